// storefront_service.h: gaekju.storefront.v1.StorefrontService, answered from a StorefrontBook.
//
//   flow::Answer answer = AnswerStorefronts(book, method, request, pg);
#ifndef GAEKJU_SERVICES_ORDER_STOREFRONT_SERVICE_H_
#define GAEKJU_SERVICES_ORDER_STOREFRONT_SERVICE_H_

#include "flow/turn.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "runtime/pg.h"
#include "services/order/order_service.h"

namespace gaekju::order {

inline constexpr char kStorefrontService[] = "gaekju.storefront.v1.StorefrontService";

// `pg`: to the order context's database, for revisions that serve no more; null when there is none
// to be had. REQUIRES: `request` is of the method's type. Thread-safe.
flow::Answer AnswerStorefronts(const StorefrontBook& book,
                               const google::protobuf::MethodDescriptor& method,
                               const google::protobuf::Message& request, runtime::PgConnection* pg);

}  // namespace gaekju::order

#endif  // GAEKJU_SERVICES_ORDER_STOREFRONT_SERVICE_H_
