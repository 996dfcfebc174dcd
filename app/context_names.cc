// The names alone, for the programs that serve nothing.
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "app/context_list.h"

namespace gaekju::app {

const std::vector<std::string>& ContextNames() {
  static const auto* const kNames =
      new std::vector<std::string>{"order", "payment",    "catalog",      "store", "delivery",
                                   "cart",  "assignment", "notification", "view"};
  return *kNames;
}

bool IsContext(absl::string_view name) {
  for (const std::string& known : ContextNames()) {
    if (known == name) return true;
  }
  return false;
}

std::string UnknownContext(absl::string_view name) {
  return absl::StrCat("there is no context '", name,
                      "'; there are: ", absl::StrJoin(ContextNames(), ", "));
}

std::string ServiceOf(absl::string_view context) {
  std::string service(context);
  if (!service.empty()) service[0] = absl::ascii_toupper(static_cast<unsigned char>(service[0]));
  return absl::StrCat("gaekju.", context, ".v1.", service, "Service");
}

}  // namespace gaekju::app
