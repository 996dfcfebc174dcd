// context_list.h: the contexts that this binary serves, and how each is made. Adding a context is
// one line in context_list.cc.
//
//   runtime::ContextServer::Spec spec = ContextSpec("payment", "storefronts");
#ifndef GAEKJU_APP_CONTEXT_LIST_H_
#define GAEKJU_APP_CONTEXT_LIST_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "runtime/context_server.h"

namespace gaekju::app {

// Their names; `gaekju up` gives them ports in this order.
const std::vector<std::string>& ContextNames();
bool IsContext(absl::string_view name);
// "there is no context 'x'; there are: order, payment, …"
std::string UnknownContext(absl::string_view name);
// "gaekju.payment.v1.PaymentService"
std::string ServiceOf(absl::string_view context);

// How to serve it. `storefronts`: a directory, for the order context. REQUIRES: IsContext(name).
runtime::ContextServer::Spec ContextSpec(absl::string_view name, const std::string& storefronts);

}  // namespace gaekju::app

#endif  // GAEKJU_APP_CONTEXT_LIST_H_
