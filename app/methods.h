// methods.h: finds an RPC by what people call it.
//
//   absl::StatusOr<Method> method = FindMethod("catalog.CreateProduct");
//   method->context;      // "catalog"
#ifndef GAEKJU_APP_METHODS_H_
#define GAEKJU_APP_METHODS_H_

#include <string>

#include "absl/status/statusor.h"
#include "google/protobuf/descriptor.h"

namespace gaekju::app {

struct Method {
  std::string context;
  const google::protobuf::MethodDescriptor* descriptor = nullptr;
};

// "order.PlaceOrder", "gaekju.order.v1.OrderService.PlaceOrder" or "…/PlaceOrder", among those that
// are linked in. Errors: NOT_FOUND (says what there is).
absl::StatusOr<Method> FindMethod(const std::string& given);

}  // namespace gaekju::app

#endif  // GAEKJU_APP_METHODS_H_
