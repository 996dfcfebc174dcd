// invariants.h: what must hold of a shop's books once they are settled (design, section 7), over
// the contexts' rows, wherever those come from: `gaekju audit` reads live databases, the simulator
// its rows in memory.
//
//   absl::StatusOr<InvariantReport> report = CheckInvariants(&rows, options);
//   for (const InvariantReport::Violation& v : report->violations) … v.text …
//
//   1. A REJECTED or CANCELLED order holds nothing that its flow takes back: no money, stock,
//   acceptance, shipment, cart or dealer; and nobody can still answer a step of it (pay what was
//   awaited); nor has the buyer what a cancelled order took back, where `place` waits for that.
//   2. A COMPLETED order holds what its flow says: each step of `place` done once and not undone;
//   its cart is paid, its receipt or pick-up confirmed, and whoever was to be told was told. What
//   is done for an order is done for each of its lines.
//   3. The ledger sums to zero, per currency and per transaction; a payment has the entries of its
//   state and no others; what an order's payments hold is its price or nothing.
//   4. A product's reserved_count is what live reservations hold, and available_count is not
//   negative; a dealer's assigned_count is what is assigned, and no more than its capacity.
//   5. Nothing is held for an order that does not exist; an order that has not ended has a time at
//   which it goes on, not long past.
//   6. A view row equals its sources, and its timeline has each event that it counts; refused
//   orders that nobody may see have none.
//
// Orders are read before and after all else, and only those that did not change in between are
// compared across contexts: so the rows may be those of a shop that goes on meanwhile.
//
// Pure.
#ifndef GAEKJU_SIM_INVARIANTS_H_
#define GAEKJU_SIM_INVARIANTS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flow/plan.h"
#include "flow/turn.h"
#include "gaekju/order/v1/order.pb.h"

namespace gaekju::sim {

// Where rows come from.
class RowSource {
 public:
  virtual ~RowSource() = default;
  // Contexts that there are not are not looked at.
  virtual bool Has(const std::string& context) const = 0;
  // Calls `row` for every row of the table, in key order.
  virtual absl::Status Scan(
      const std::string& context, const flow::Table& table,
      const std::function<void(const std::string& key, const google::protobuf::Message& row)>&
          row) = 0;
};

struct InvariantOptions {
  int64_t now_us = 0;  // microseconds since 1970
  // A saga whose due time is further past than this is stuck.
  int64_t overdue_us = 30'000'000;
  // The plan of "<storefront>@<revision>"; null when there is no such revision.
  std::function<const flow::Plan*(const std::string& revision_key)> plan;
};

struct InvariantReport {
  struct Violation {
    int invariant = 0;
    std::string subject;  // what is wrong: "order 019a…", "product TV"
    std::string text;     // the whole sentence
  };
  std::vector<Violation> violations;  // by invariant and subject
  int64_t violation_count = 0;
  int64_t order_count = 0, payment_count = 0, ledger_entry_count = 0, product_count = 0,
          step_count = 0, view_count = 0;
  // Orders by state, as read last.
  std::map<gaekju::order::v1::Order::State, int64_t> orders_by_state;
};

// Errors: those of the rows.
absl::StatusOr<InvariantReport> CheckInvariants(RowSource* rows, const InvariantOptions& options);

}  // namespace gaekju::sim

#endif  // GAEKJU_SIM_INVARIANTS_H_
