// shops.h: which shops there are, and what each is shown with: the directory of storefronts, and
// the calls of its demo/<storefront>.textproto (message gaekju.storefront.v1.Demo) that put goods,
// dealers … in place.
//
//   for (const std::string& shop : ShopsIn("storefronts")) {
//     absl::StatusOr<Demo> demo = ReadDemo("storefronts", shop);
//   }
#ifndef GAEKJU_APP_SHOPS_H_
#define GAEKJU_APP_SHOPS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "app/methods.h"
#include "gaekju/storefront/v1/storefront.pb.h"
#include "google/protobuf/message.h"

namespace gaekju::app {

// The directory of storefronts when none is named: here; beside the binary as it is built; as it
// would be installed. Empty: there is none.
std::string FindStorefronts();
// The storefronts whose files are in a directory, by name. Empty: none, or no directory.
std::vector<std::string> ShopsIn(const std::string& storefronts);

struct DemoCall {
  Method method;
  std::shared_ptr<const google::protobuf::Message> request;
  std::string place;  // "<file>:<line>:<column>"
};

struct Demo {
  std::vector<DemoCall> calls;
};

// A demo's text may have this many bytes.
inline constexpr size_t kDemoBytes_max = 1024 * 1024;

// Reads a demo. Errors: INVALID_ARGUMENT, one mistake a line,
// "<file_name>:<line>:<column>: <what>", in the text's order.
absl::StatusOr<Demo> ParseDemo(absl::string_view text, const std::string& file_name);
// The demo of a storefront; without calls when it has none. Errors: as above, INTERNAL.
absl::StatusOr<Demo> ReadDemo(const std::string& storefronts, const std::string& shop);

// "on sale: TV, MASK; 10 × assignment.CreateDealer": the products of the calls, and how often what
// else is called.
std::string Describe(const Demo& demo);

// A request in JSON that places an order for one of the demo's first product, with what the
// storefront's steps read of an order. Errors: NOT_FOUND, INVALID_ARGUMENT (no storefront).
absl::StatusOr<std::string> OrderJson(const std::string& storefronts, const std::string& shop,
                                      const Demo& demo);

}  // namespace gaekju::app

#endif  // GAEKJU_APP_SHOPS_H_
