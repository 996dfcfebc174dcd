// audit.h: the invariants of docs (design §7) over live databases, read only. Used by `gaekju
// audit` and, after a load, by `gaekju load`.
//
//   absl::StatusOr<AuditReport> report = Audit(dsns, {.settle = absl::Seconds(20)});
//   for (const AuditReport::Violation& v : report->violations) std::cerr << v.text << "\n";
//
// What must hold stands in sim/invariants.h.
//
// Each database is read in one snapshot; orders are read before and after all others, and only
// those that did not change in between are compared across databases. So it may run beside traffic.
// What has to settle first (views, overdue sagas) is looked at again until `settle` has passed.
#ifndef GAEKJU_APP_AUDIT_H_
#define GAEKJU_APP_AUDIT_H_

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "google/protobuf/descriptor.h"
#include "sim/invariants.h"

namespace gaekju::app {

struct AuditOptions {
  absl::Duration settle = absl::Seconds(10);
  // A saga whose due time is further past than this is stuck.
  absl::Duration overdue = absl::Seconds(30);
  // Violations beyond so many are counted, not listed.
  int violations_max = 50;
  // Of contexts that are not linked in and that storefronts call.
  const google::protobuf::DescriptorPool* contracts =
      google::protobuf::DescriptorPool::generated_pool();
};

using AuditReport = sim::InvariantReport;

// `dsns`: context -> libpq connection string. Contexts that are missing are not looked at.
// Errors: those of the connections.
absl::StatusOr<AuditReport> Audit(const std::map<std::string, std::string>& dsns,
                                  const AuditOptions& options);

}  // namespace gaekju::app

#endif  // GAEKJU_APP_AUDIT_H_
