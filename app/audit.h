// audit.h: the invariants of docs (design §7) over live databases, read only. Used by `gaekju
// audit` and, after a load, by `gaekju load`.
//
//   absl::StatusOr<AuditReport> report = Audit(dsns, {.settle = absl::Seconds(20)});
//   for (const AuditReport::Violation& v : report->violations) std::cerr << v.text << "\n";
//
//   1. A REJECTED or CANCELLED order holds nothing that its flow takes back: no money, stock,
//   acceptance, shipment, cart or dealer; and nobody can still answer a step of it (pay what was
//   awaited).
//   2. A COMPLETED order holds what its flow says: each step of `place` done once and not undone;
//   its cart is paid, its receipt or pick-up confirmed, and whoever was to be told was told.
//   3. The ledger sums to zero, per currency and per transaction; a payment has the entries of its
//   state and no others; what an
//      order's payments hold is its price or nothing.
//   4. A product's reserved_count is what live reservations hold, and available_count is not
//   negative; a dealer's assigned_count is what is assigned, and no more than its capacity.
//   5. Nothing is held for an order that does not exist; an order that has not ended has a time at
//   which it goes on, not long past.
//   6. A view row equals its sources; refused orders that nobody may see have none.
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
#include "gaekju/order/v1/order.pb.h"
#include "google/protobuf/descriptor.h"

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

struct AuditReport {
  struct Violation {
    int invariant = 0;
    std::string subject;  // what is wrong: "order 019a…", "product TV"
    std::string text;     // the whole sentence
  };
  std::vector<Violation> violations;
  int64_t violation_count = 0;
  int64_t order_count = 0, payment_count = 0, ledger_entry_count = 0, product_count = 0,
          step_count = 0, view_count = 0;
  // Orders by state, as read last.
  std::map<gaekju::order::v1::Order::State, int64_t> orders_by_state;
};

// `dsns`: context -> libpq connection string. Contexts that are missing are not looked at.
// Errors: those of the connections.
absl::StatusOr<AuditReport> Audit(const std::map<std::string, std::string>& dsns,
                                  const AuditOptions& options);

}  // namespace gaekju::app

#endif  // GAEKJU_APP_AUDIT_H_
