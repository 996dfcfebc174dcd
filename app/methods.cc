#include "app/methods.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "app/context_list.h"

namespace gaekju::app {

using google::protobuf::MethodDescriptor;
using google::protobuf::ServiceDescriptor;

namespace {

// The context whose process serves a package's service.
std::string ServedBy(const std::string& package) {
  return package == "storefront" ? "order" : package;
}

}  // namespace

absl::StatusOr<Method> FindMethod(const std::string& given) {
  const auto* pool = google::protobuf::DescriptorPool::generated_pool();
  std::string name = given;
  for (char& c : name) c = c == '/' ? '.' : c;
  const std::vector<std::string> parts = absl::StrSplit(name, '.');
  if (parts.size() == 2) {
    const ServiceDescriptor* service = pool->FindServiceByName(ServiceOf(parts[0]));
    if (service == nullptr) return absl::NotFoundError(UnknownContext(parts[0]));
    if (const MethodDescriptor* method = service->FindMethodByName(parts[1]))
      return Method{ServedBy(parts[0]), method};
    std::vector<std::string> names;
    for (int i = 0; i < service->method_count(); ++i) names.push_back(service->method(i)->name());
    return absl::NotFoundError(absl::StrCat(parts[0], " has no method '", parts[1],
                                            "'; it has: ", absl::StrJoin(names, ", ")));
  }
  const MethodDescriptor* method = pool->FindMethodByName(name);
  if (method == nullptr)
    return absl::NotFoundError(
        absl::StrCat("there is no method '", given, "'; say order.PlaceOrder"));
  return Method{parts.size() > 1 ? ServedBy(parts[1]) : "", method};
}

}  // namespace gaekju::app
