// storefront.h: reads a storefront file (storefronts/*.textproto) into a plan, or says what is
// wrong with it and where.
//
//   absl::StatusOr<Plan> plan = ParseStorefront(text, "storefronts/shop.textproto");
//   if (!plan.ok()) std::cerr << plan.status().message();
//   // storefronts/shop.textproto:12:23: step "pay": unknown call "payment.Captur"; did you mean
//   "payment.Capture"? It has: Capture
//
// What a storefront may say is told in storefronts/README.md.
// Pure: the caller reads the file. Thread-safe.
#ifndef GAEKJU_FLOW_STOREFRONT_H_
#define GAEKJU_FLOW_STOREFRONT_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "flow/plan.h"
#include "google/protobuf/descriptor.h"

namespace gaekju::flow {

// A storefront's text may have this many bytes.
inline constexpr size_t kStorefrontBytes_max = 256 * 1024;

// Reads a storefront. `file_name` may have folders; its stem must be the storefront's id. Empty:
// a stored revision, whose name is not checked, nor what later versions may refuse (a word that
// hides that of a cancel, an undo that does not wait for a step that may refuse the cancel, a
// cancel that gives back what a person has): its orders go on. Contexts are looked up among those
// linked in, then in `pool`, which holds further contexts and outlives the plan. Errors:
// INVALID_ARGUMENT, one mistake a line, "<file_name>:<line>:<column>: <what, and what to write
// instead>", in the text's order; at most 100 of them. Mistakes of spelling (unknown fields, broken
// syntax) hide all others until they are put right.
absl::StatusOr<Plan> ParseStorefront(absl::string_view text, absl::string_view file_name,
                                     const google::protobuf::DescriptorPool& pool);
// The same with the contexts that are linked in.
absl::StatusOr<Plan> ParseStorefront(absl::string_view text, absl::string_view file_name);

}  // namespace gaekju::flow

#endif  // GAEKJU_FLOW_STOREFRONT_H_
