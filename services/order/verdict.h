// verdict.h: what was found when a storefront's text was proved, kept in the order context's
// database. Who proves is not known here (app/gate.h).
//
//   absl::StatusOr<std::optional<Verdict>> known = FindVerdict(pg, "my-shop", plan.revision);
//   absl::Status kept = KeepVerdict(pg, "my-shop", plan.revision, {.kind =
//   Verdict::Kind::kProved});
//
// REQUIRES: the order context's migrations have been applied.
#ifndef GAEKJU_SERVICES_ORDER_VERDICT_H_
#define GAEKJU_SERVICES_ORDER_VERDICT_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/pg.h"

namespace gaekju::order {

struct Verdict {
  // As stored.
  enum class Kind { kProved = 1, kUnproved = 2, kViolated = 3 };
  Kind kind = Kind::kUnproved;
  int checker_version = 0;  // a newer checker may find more
  int64_t budget_ms = 0;    // how long it was given
  // Of kViolated: the violation and its story, a line each. Of kUnproved: why.
  std::string told = {};
};

// The last verdict of a revision. Errors: those of PgConnection.
absl::StatusOr<std::optional<Verdict>> FindVerdict(const runtime::PgOptions& pg,
                                                   absl::string_view storefront,
                                                   absl::string_view revision);
// Keeps a verdict in place of an earlier one. Errors: those of PgConnection.
absl::Status KeepVerdict(const runtime::PgOptions& pg, absl::string_view storefront,
                         absl::string_view revision, const Verdict& verdict);

}  // namespace gaekju::order

#endif  // GAEKJU_SERVICES_ORDER_VERDICT_H_
