#include "sim/invariants.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "gaekju/flow/v1/step.pb.h"
#include "services/assignment/assignment.h"
#include "services/cart/cart.h"
#include "services/catalog/catalog.h"
#include "services/delivery/delivery.h"
#include "services/notification/notification.h"
#include "services/order/order.h"
#include "services/payment/payment.h"
#include "services/store/store.h"
#include "services/view/view.h"

namespace gaekju::sim {
namespace {

using flow::v1::Outcome;
using flow::v1::StepRecord;
using order::v1::Order;
using order::v1::OrderRecord;

constexpr absl::string_view kAwaitPickup = "gaekju.assignment.v1.AssignmentService.AwaitPickup";
constexpr absl::string_view kAwaitReceipt = "gaekju.delivery.v1.DeliveryService.AwaitReceipt";

// Steps that take nothing which could be held, but leave a record of having been done.
constexpr absl::string_view kRecordedMethods[] = {
    kAwaitPickup,
    kAwaitReceipt,
    "gaekju.notification.v1.NotificationService.Notify",
};
constexpr absl::string_view kCheckOutMethod = "gaekju.cart.v1.CartService.CheckOut";

// Reads one context's tables.
class Reader {
 public:
  Reader(RowSource* rows, std::string context) : rows_(rows), context_(std::move(context)) {}
  // Calls `row` for every row, in key order.
  template <class T>
  absl::Status Scan(const flow::Table& table,
                    const std::function<void(const std::string& key, const T& row)>& row) {
    return rows_->Scan(context_, table,
                       [&row](const std::string& key, const google::protobuf::Message& message) {
                         row(key, static_cast<const T&>(message));
                       });
  }

 private:
  RowSource* const rows_;
  const std::string context_;
};

// What is ordered, whatever it costs: the same for the same lines in the same order, never 0.
using Lines = google::protobuf::RepeatedPtrField<type::v1::LineItem>;
uint64_t LinesPrint(const Lines& lines) {
  uint64_t print = flow::FingerprintBytes("lines");
  for (const auto& line : lines) {
    print =
        flow::FingerprintBytes(absl::StrCat(line.product_id(), "/", line.quantity(), ","), print);
  }
  return print;
}

struct OrderFacts {
  Order order;  // without its lines
  uint64_t lines = 0;
  bool visible = false;
  int64_t due_time_us = 0;
  std::vector<int> tasks;  // TaskState, as in the plan's steps
  bool stable = false;     // the same when all else had been read
};

// What a context keeps of one step of an order.
struct StepFacts {
  Outcome outcome = Outcome::OUTCOME_UNSPECIFIED;
  Outcome undo = Outcome::OUTCOME_UNSPECIFIED;
  uint64_t lines = 0;  // of what it was asked for; 0: its row has none
  bool held() const { return outcome == Outcome::OUTCOME_DONE && undo != Outcome::OUTCOME_DONE; }
  // A person may still answer it, and then it is held.
  bool awaited() const {
    return outcome == Outcome::OUTCOME_PENDING && undo == Outcome::OUTCOME_UNSPECIFIED;
  }
};

struct PaymentFacts {
  std::string payment_id;
  payment::v1::Payment::State state = payment::v1::Payment::STATE_UNSPECIFIED;
  std::string currency_code;
  int64_t amount = 0;
};

class Auditor {
 public:
  Auditor(RowSource* rows, const InvariantOptions& options) : rows_(rows), options_(options) {}

  absl::StatusOr<InvariantReport> Run() {
    if (absl::Status status = ReadOrders(); !status.ok()) return status;
    for (auto check :
         {&Auditor::Payments, &Auditor::Catalog, &Auditor::Store, &Auditor::Deliveries,
          &Auditor::Carts, &Auditor::Assignments, &Auditor::Notices, &Auditor::Views}) {
      if (absl::Status status = (this->*check)(); !status.ok()) return status;
    }
    if (absl::Status status = ReadOrdersAgain(); !status.ok()) return status;
    for (const auto& [id, facts] : orders_) CheckOrder(id, facts);
    CheckOrphans();
    CheckViews();
    report_.order_count = static_cast<int64_t>(orders_.size());
    return std::move(report_);
  }

 private:
  bool Has(const std::string& context) const { return rows_->Has(context); }
  Reader Open(const std::string& context) const { return Reader(rows_, context); }

  void Violate(int invariant, const std::string& subject, const std::string& what) {
    ++report_.violation_count;
    report_.violations.push_back(
        {invariant, subject, absl::StrCat("invariant ", invariant, ": ", subject, " ", what)});
  }

  absl::Status ReadOrders();
  absl::Status ReadOrdersAgain();
  absl::Status Payments();
  absl::Status Catalog();
  absl::Status Store();
  absl::Status Deliveries();
  absl::Status Carts();
  absl::Status Assignments();
  absl::Status Notices();
  absl::Status Views();
  void CheckUndone(const std::string& key, const StepRecord& step, bool lives);
  // `lines`: of a row that has them.
  void KeepStep(const std::string& context, const std::string& key, const StepRecord& step,
                const Lines* lines = nullptr);
  void CheckOrder(const std::string& id, const OrderFacts& facts);
  void CheckSteps(const std::string& subject, const std::string& id, const OrderFacts& facts,
                  const flow::Plan& plan);
  void CheckRecords(const std::string& subject, const std::string& id, const OrderFacts& facts,
                    const flow::Plan& plan);
  void CheckLines(const std::string& subject, const std::string& id, const OrderFacts& facts,
                  const flow::Plan& plan);
  void CheckMoney(const std::string& subject, const std::string& id, const OrderFacts& facts,
                  const flow::Plan& plan);
  void CheckOrphans();
  void CheckViews();

  RowSource* const rows_;
  const InvariantOptions& options_;
  InvariantReport report_;
  absl::flat_hash_map<std::string, OrderFacts> orders_;
  absl::flat_hash_set<std::string> later_orders_;  // seen only the second time
  absl::flat_hash_map<std::string, std::map<std::string, StepFacts>>
      steps_;  // context -> "<order_id>/<step_id>"
  absl::flat_hash_map<std::string, std::vector<PaymentFacts>> payments_;  // by order
  absl::flat_hash_map<std::string, std::vector<int>> acceptances_, deliveries_,
      carts_;  // states by order
  absl::flat_hash_map<std::string, std::vector<std::pair<int, std::string>>>
      assignments_;                                              // state and agency, by order
  absl::flat_hash_set<std::string> received_, picked_up_;        // orders
  absl::flat_hash_map<std::string, view::v1::OrderView> views_;  // without what is long
  absl::flat_hash_map<std::string, uint64_t> view_lines_;
  absl::flat_hash_map<std::string, int> notices_, notices_shown_;  // how many, by order
};

std::string RevisionKey(const Order& order) {
  return absl::StrCat(order.storefront(), "@", order.storefront_revision());
}

absl::Status Auditor::ReadOrders() {
  if (!Has("order"))
    return absl::InvalidArgumentError("the invariants need the order context's tables");
  Reader reader = Open("order");
  return reader.Scan<OrderRecord>(
      order::kOrders, [&](const std::string& key, const OrderRecord& record) {
        OrderFacts& facts = orders_[key];
        facts.order = record.order();
        facts.lines = LinesPrint(record.order().lines());
        facts.order.clear_lines();
        facts.visible = record.visible();
        facts.due_time_us = record.due_time_us();
        for (const auto& task : record.saga().tasks()) {
          facts.tasks.push_back(task.undo_state() == order::v1::TASK_STATE_DONE ? -task.state()
                                                                                : task.state());
        }
      });
}

absl::Status Auditor::ReadOrdersAgain() {
  Reader reader = Open("order");
  return reader.Scan<OrderRecord>(order::kOrders, [&](const std::string& key,
                                                      const OrderRecord& record) {
    ++report_.orders_by_state[record.order().state()];
    auto it = orders_.find(key);
    if (it == orders_.end()) {
      later_orders_.insert(key);
      return;
    }
    OrderFacts& facts = it->second;
    facts.stable = facts.order.state() == record.order().state() &&
                   facts.due_time_us == record.due_time_us() && facts.visible == record.visible() &&
                   facts.order.status_code() == record.order().status_code();
  });
}

// What was taken back does not live on. `lives`: as its row says.
void Auditor::CheckUndone(const std::string& key, const StepRecord& step, bool lives) {
  if (lives && step.undo() == Outcome::OUTCOME_DONE)
    Violate(1, key, "was taken back, and its row does not say so");
}

void Auditor::KeepStep(const std::string& context, const std::string& key, const StepRecord& step,
                       const Lines* lines) {
  ++report_.step_count;
  steps_[context][key] = {step.outcome(), step.undo(), lines == nullptr ? 0 : LinesPrint(*lines)};
}

absl::Status Auditor::Payments() {
  if (!Has("payment")) return absl::OkStatus();
  Reader reader = Open("payment");
  struct Transaction {
    int64_t sum = 0, merchant = 0;
    int entries = 0;
    std::string currency_code;
  };
  absl::flat_hash_map<std::string, Transaction> transactions;
  std::map<std::string, int64_t> totals;
  absl::Status status = reader.Scan<payment::v1::LedgerEntry>(
      payment::kLedgerEntries, [&](const std::string&, const payment::v1::LedgerEntry& entry) {
        ++report_.ledger_entry_count;
        totals[entry.currency_code()] += entry.amount();
        Transaction& transaction = transactions[entry.transaction_id()];
        transaction.sum += entry.amount();
        if (entry.account() == payment::kMerchantAccount) transaction.merchant += entry.amount();
        ++transaction.entries;
        transaction.currency_code = entry.currency_code();
      });
  if (!status.ok()) return status;
  for (const auto& [currency, total] : totals) {
    if (total != 0)
      Violate(3, absl::StrCat("the ledger in ", currency),
              absl::StrCat("sums to ", total, ", not to zero"));
  }

  // What each payment's state says must be in the ledger; what is left over then belongs to no
  // payment.
  auto expect = [&](const std::string& id, int64_t merchant) {
    auto it = transactions.find(id);
    if (it == transactions.end()) {
      Violate(3, absl::StrCat("transaction ", id), "is missing in the ledger");
      return;
    }
    const Transaction& t = it->second;
    if (t.entries != 2 || t.sum != 0 || t.merchant != merchant) {
      Violate(
          3, absl::StrCat("transaction ", id),
          absl::StrCat("has ", t.entries, " entries that sum to ", t.sum, " and give the merchant ",
                       t.merchant, "; expected 2, 0 and ", merchant));
    }
    transactions.erase(it);
  };
  status = reader.Scan<payment::v1::Payment>(
      payment::kPayments, [&](const std::string& key, const payment::v1::Payment& payment) {
        ++report_.payment_count;
        KeepStep("payment", key, payment.step());
        const bool awaited = payment.state() == payment::v1::Payment::STATE_AWAITED;
        if (awaited != StepFacts{payment.step().outcome(), payment.step().undo()}.awaited()) {
          Violate(3, absl::StrCat("payment ", key),
                  absl::StrCat("is ", payment::v1::Payment::State_Name(payment.state()),
                               ", which its step does not say"));
        }
        const bool refunded = payment.state() == payment::v1::Payment::STATE_REFUNDED;
        const bool captured = payment.state() == payment::v1::Payment::STATE_CAPTURED;
        if (captured || refunded) expect(key + "/capture", payment.amount().minor_units());
        if (refunded) expect(key + "/refund", -payment.amount().minor_units());
        payments_[payment.order_id()].push_back({payment.payment_id(), payment.state(),
                                                 payment.amount().currency_code(),
                                                 payment.amount().minor_units()});
      });
  for (const auto& [id, transaction] : transactions) {
    Violate(3, absl::StrCat("transaction ", id), "is in the ledger, but no payment says so");
  }
  return status;
}

absl::Status Auditor::Catalog() {
  if (!Has("catalog")) return absl::OkStatus();
  Reader reader = Open("catalog");
  absl::flat_hash_map<std::string, int64_t> held;
  absl::Status status = reader.Scan<catalog::v1::Reservation>(
      catalog::kReservations,
      [&](const std::string& key, const catalog::v1::Reservation& reservation) {
        KeepStep("catalog", key, reservation.step(), &reservation.lines());
        CheckUndone(key, reservation.step(),
                    reservation.state() == catalog::v1::Reservation::STATE_HELD);
        if (reservation.state() != catalog::v1::Reservation::STATE_HELD) return;
        for (const auto& line : reservation.lines()) held[line.product_id()] += line.quantity();
      });
  if (!status.ok()) return status;
  return reader.Scan<catalog::v1::Product>(
      catalog::kProducts, [&](const std::string& key, const catalog::v1::Product& product) {
        ++report_.product_count;
        const int64_t reserved = held.contains(key) ? held[key] : 0;
        if (product.reserved_count() != reserved) {
          Violate(4, absl::StrCat("product ", key),
                  absl::StrCat("has reserved_count ", product.reserved_count(),
                               ", but orders hold ", reserved));
        }
        if (product.available_count() < 0) {
          Violate(4, absl::StrCat("product ", key),
                  absl::StrCat("has available_count ", product.available_count()));
        }
      });
}

absl::Status Auditor::Store() {
  if (!Has("store")) return absl::OkStatus();
  Reader reader = Open("store");
  return reader.Scan<store::v1::Acceptance>(
      store::kAcceptances, [&](const std::string& key, const store::v1::Acceptance& acceptance) {
        KeepStep("store", key, acceptance.step(), &acceptance.lines());
        acceptances_[acceptance.order_id()].push_back(acceptance.state());
        CheckUndone(key, acceptance.step(),
                    acceptance.state() != store::v1::Acceptance::STATE_CANCELLED &&
                        acceptance.state() != store::v1::Acceptance::STATE_DECLINED);
      });
}

absl::Status Auditor::Deliveries() {
  if (!Has("delivery")) return absl::OkStatus();
  Reader reader = Open("delivery");
  return reader.Scan<delivery::v1::Delivery>(
      delivery::kDeliveries, [&](const std::string& key, const delivery::v1::Delivery& delivery) {
        KeepStep("delivery", key, delivery.step(), &delivery.lines());
        deliveries_[delivery.order_id()].push_back(delivery.state());
        if (delivery.receipt_step().outcome() == Outcome::OUTCOME_DONE)
          received_.insert(delivery.order_id());
        CheckUndone(key, delivery.step(),
                    delivery.state() != delivery::v1::Delivery::STATE_CANCELLED &&
                        delivery.state() != delivery::v1::Delivery::STATE_RETURNING);
        const StepRecord& receipt = delivery.receipt_step();
        if (receipt.step_id().empty()) return;  // nobody waits for it
        KeepStep("delivery", absl::StrCat(receipt.order_id(), "/", receipt.step_id()), receipt);
        const bool on_its_way = delivery.state() == delivery::v1::Delivery::STATE_STARTED ||
                                delivery.state() == delivery::v1::Delivery::STATE_IN_TRANSIT ||
                                delivery.state() == delivery::v1::Delivery::STATE_DELIVERED;
        if ((receipt.outcome() == Outcome::OUTCOME_PENDING) != on_its_way) {
          Violate(5, absl::StrCat("delivery ", key),
                  absl::StrCat("is ", delivery::v1::Delivery::State_Name(delivery.state()),
                               ", and who waits for its receipt was told ",
                               flow::v1::Outcome_Name(receipt.outcome())));
        }
      });
}

absl::Status Auditor::Carts() {
  if (!Has("cart")) return absl::OkStatus();
  Reader reader = Open("cart");
  return reader.Scan<cart::v1::Cart>(
      cart::kCarts, [&](const std::string& key, const cart::v1::Cart& cart) {
        KeepStep("cart", key, cart.step(), &cart.lines());
        carts_[cart.order_id()].push_back(cart.state());
        const bool emptied = cart.state() == cart::v1::Cart::STATE_CANCELLED;
        if (emptied != (cart.step().undo() == Outcome::OUTCOME_DONE)) {
          Violate(1, absl::StrCat("cart ", key),
                  absl::StrCat("is ", cart::v1::Cart::State_Name(cart.state()),
                               ", which its step does not say"));
        }
      });
}

absl::Status Auditor::Assignments() {
  if (!Has("assignment")) return absl::OkStatus();
  Reader reader = Open("assignment");
  using assignment::v1::Assignment;
  absl::flat_hash_map<std::string, int64_t> assigned;  // by dealer
  absl::Status status = reader.Scan<Assignment>(
      assignment::kAssignments, [&](const std::string& key, const Assignment& assignment) {
        KeepStep("assignment", key, assignment.step(), &assignment.lines());
        if (assignment.has_assign_time())
          assignments_[assignment.order_id()].emplace_back(assignment.state(),
                                                           assignment.agency_name());
        if (assignment.has_pickup_time()) picked_up_.insert(assignment.order_id());
        const bool live = assignment.state() == Assignment::STATE_ASSIGNED;
        if (live) ++assigned[assignment.dealer_id()];
        const StepRecord& pickup = assignment.pickup_step();
        if (pickup.step_id().empty()) return;  // nobody waits for it
        KeepStep("assignment", absl::StrCat(pickup.order_id(), "/", pickup.step_id()), pickup);
        if ((pickup.outcome() == Outcome::OUTCOME_PENDING) != live) {
          Violate(5, absl::StrCat("assignment ", key),
                  absl::StrCat("is ", Assignment::State_Name(assignment.state()),
                               ", and who waits for its pick-up was told ",
                               flow::v1::Outcome_Name(pickup.outcome())));
        }
      });
  if (!status.ok()) return status;
  return reader.Scan<assignment::v1::Dealer>(
      assignment::kDealers, [&](const std::string& key, const assignment::v1::Dealer& dealer) {
        const int64_t count = assigned.contains(key) ? assigned[key] : 0;
        if (dealer.assigned_count() != count) {
          Violate(4, absl::StrCat("dealer ", key),
                  absl::StrCat("has assigned_count ", dealer.assigned_count(), ", but ", count,
                               " orders"));
        }
        if (dealer.capacity() > 0 && count > dealer.capacity()) {
          Violate(4, absl::StrCat("dealer ", key),
                  absl::StrCat("has ", count, " orders, and room for ", dealer.capacity()));
        }
      });
}

absl::Status Auditor::Notices() {
  if (!Has("notification")) return absl::OkStatus();
  Reader reader = Open("notification");
  return reader.Scan<notification::v1::Notice>(
      notification::kNotices, [&](const std::string& key, const notification::v1::Notice& notice) {
        if (notice.has_step()) KeepStep("notification", key, notice.step());  // else made by hand
        if (!notice.order_id().empty()) ++notices_[notice.order_id()];
      });
}

absl::Status Auditor::Views() {
  if (!Has("view")) return absl::OkStatus();
  Reader reader = Open("view");
  return reader.Scan<view::v1::OrderView>(
      view::kOrderViews, [&](const std::string& key, const view::v1::OrderView& row) {
        ++report_.view_count;
        view::v1::OrderView& kept = views_[key];
        kept = row;
        view_lines_[key] = LinesPrint(row.lines());
        int64_t events = 0;
        for (const auto& [resource, version] : row.applied_versions()) events += version;
        const auto shown = static_cast<int64_t>(row.timeline_size());
        if (shown != std::min<int64_t>(events, view::kTimelineMax)) {
          Violate(6, absl::StrCat("the view of order ", key),
                  absl::StrCat("counts ", events, " events, and its timeline shows ", shown));
        }
        kept.clear_lines();
        kept.clear_timeline();
        kept.clear_applied_versions();
        kept.clear_notices();
        if (row.notices_size() > 0) notices_shown_[key] = row.notices_size();
      });
}

void Auditor::CheckOrder(const std::string& id, const OrderFacts& facts) {
  const std::string subject =
      absl::StrCat("order ", id, " (", Order::State_Name(facts.order.state()), ")");
  const flow::Plan* plan = options_.plan(RevisionKey(facts.order));
  if (plan == nullptr) {
    if (facts.stable)
      Violate(2, subject,
              absl::StrCat("runs under the unknown revision ", RevisionKey(facts.order)));
    return;
  }
  if (!facts.stable) return;
  CheckLines(subject, id, facts, *plan);
  switch (facts.order.state()) {
    case Order::STATE_COMPLETED:
    case Order::STATE_CANCELLED:
    case Order::STATE_REJECTED:
      CheckSteps(subject, id, facts, *plan);
      CheckRecords(subject, id, facts, *plan);
      CheckMoney(subject, id, facts, *plan);
      break;
    default: {
      // Under way: nothing may be forgotten.
      const int64_t past_us = options_.now_us - facts.due_time_us;
      if (facts.due_time_us == 0) {
        Violate(5, subject, "has not ended, and nothing will ever move it on");
      } else if (past_us > options_.overdue_us) {
        Violate(5, subject, absl::StrCat("should have moved on ", past_us / 1'000'000, " s ago"));
      }
    }
  }
}

void Auditor::CheckSteps(const std::string& subject, const std::string& id, const OrderFacts& facts,
                         const flow::Plan& plan) {
  const Order::State state = facts.order.state();
  for (int i = 0; i < plan.place_count && i < static_cast<int>(facts.tasks.size()); ++i) {
    const flow::PlanStep& step = plan.steps[i];
    if (step.undo_method.empty() || !Has(step.context)) continue;  // nothing that could be held
    const auto& records = steps_[step.context];
    const auto found = records.find(absl::StrCat(id, "/", step.id));
    const bool held = found != records.end() && found->second.held();
    if (state == Order::STATE_COMPLETED) {
      if (!held)
        Violate(
            2, subject,
            absl::StrCat("should hold ", step.context, "'s step \"", step.id, "\", and does not"));
      continue;
    }
    const bool taken_back = state == Order::STATE_REJECTED ||
                            std::any_of(plan.cancel_undos.begin(), plan.cancel_undos.end(),
                                        [i](const flow::PlanUndo& undo) { return undo.step == i; });
    if (taken_back && held) {
      Violate(1, subject, absl::StrCat("still holds ", step.context, "'s step \"", step.id, "\""));
    }
    if (taken_back && found != records.end() && found->second.awaited()) {
      Violate(1, subject,
              absl::StrCat("is over, but ", step.context, "'s step \"", step.id,
                           "\" can still be answered"));
    }
  }
}

// Steps that hold nothing: what they were to do is done. Of an order that was refused or cancelled,
// only the notices say anything.
void Auditor::CheckRecords(const std::string& subject, const std::string& id,
                           const OrderFacts& facts, const flow::Plan& plan) {
  const bool completed = facts.order.state() == Order::STATE_COMPLETED;
  for (int i = 0; i < static_cast<int>(std::min(plan.steps.size(), facts.tasks.size())); ++i) {
    const flow::PlanStep& step = plan.steps[i];
    if (!Has(step.context)) continue;
    if (facts.order.state() == Order::STATE_CANCELLED && !plan.cancel_undos.empty() &&
        ((step.method == kAwaitPickup && picked_up_.contains(id)) ||
         (step.method == kAwaitReceipt && received_.contains(id)))) {
      Violate(1, subject,
              absl::StrCat("was taken back, and its buyer has the goods (\"", step.id, "\")"));
    }
    const bool should_be_done =
        facts.tasks[i] == order::v1::TASK_STATE_DONE && (completed || step.is_notice);
    if (!should_be_done) continue;
    if (absl::c_linear_search(kRecordedMethods, step.method)) {
      const auto& records = steps_[step.context];
      const auto found = records.find(absl::StrCat(id, "/", step.id));
      if (found == records.end() || found->second.outcome != Outcome::OUTCOME_DONE) {
        Violate(2, subject,
                absl::StrCat("counts on ", step.context, "'s step \"", step.id,
                             "\", which was not done"));
      }
    }
    if (step.method == kCheckOutMethod &&
        carts_[id] != std::vector<int>{cart::v1::Cart::STATE_PAID}) {
      Violate(2, subject, "should have one cart, and that paid");
    }
  }
}

// Whatever is done for an order is done for each of its lines.
void Auditor::CheckLines(const std::string& subject, const std::string& id, const OrderFacts& facts,
                         const flow::Plan& plan) {
  for (const flow::PlanStep& step : plan.steps) {
    const auto records = steps_.find(step.context);
    if (records == steps_.end()) continue;
    const auto found = records->second.find(absl::StrCat(id, "/", step.id));
    if (found == records->second.end() || !(found->second.held() || found->second.awaited()))
      continue;
    if (found->second.lines != 0 && found->second.lines != facts.lines)
      Violate(2, subject,
              absl::StrCat("has other lines than ", step.context, "'s step \"", step.id, "\""));
  }
}

void Auditor::CheckMoney(const std::string& subject, const std::string& id, const OrderFacts& facts,
                         const flow::Plan& plan) {
  const bool pays =
      std::any_of(plan.steps.begin(), plan.steps.begin() + plan.place_count,
                  [](const flow::PlanStep& step) { return step.context == "payment"; });
  if (!pays || !Has("payment")) return;
  int64_t held = 0;
  int captures = 0;
  if (auto it = payments_.find(id); it != payments_.end()) {
    for (const PaymentFacts& payment : it->second) {
      if (payment.state != payment::v1::Payment::STATE_CAPTURED) continue;
      held += payment.amount;
      ++captures;
    }
  }
  const bool completed = facts.order.state() == Order::STATE_COMPLETED;
  const int64_t price = facts.order.total().minor_units();
  if (completed && (held != price || captures != 1)) {
    Violate(3, subject, absl::StrCat("costs ", price, ", but ", captures, " captures hold ", held));
  }
  if (facts.order.state() == Order::STATE_REJECTED && held != 0)
    Violate(3, subject, absl::StrCat("still holds ", held, " of money"));
}

void Auditor::CheckOrphans() {
  for (const auto& [context, records] : steps_) {
    for (const auto& [key, step] : records) {
      if (!step.held()) continue;
      const std::string order_id = key.substr(0, key.find('/'));
      if (!orders_.contains(order_id) && !later_orders_.contains(order_id)) {
        Violate(5, absl::StrCat(context, "'s step ", key),
                "is held for an order that does not exist");
      }
    }
  }
}

void Auditor::CheckViews() {
  if (!Has("view")) return;
  auto one = [](const absl::flat_hash_map<std::string, std::vector<int>>& states,
                const std::string& id) -> std::optional<int> {
    auto it = states.find(id);
    if (it == states.end() || it->second.size() != 1) return std::nullopt;
    return it->second[0];
  };
  for (const auto& [id, facts] : orders_) {
    if (!facts.stable) continue;
    const std::string subject = absl::StrCat("the view of order ", id);
    const auto it = views_.find(id);
    const bool shown = it != views_.end() && it->second.order_state() != Order::STATE_UNSPECIFIED;
    // An order that was refused before it was taken says nothing on the bus, also where it is
    // readable.
    if (!facts.visible || !facts.order.has_place_time()) {
      if (shown && facts.order.state() == Order::STATE_REJECTED)
        Violate(6, subject, "shows an order that was never taken");
      continue;
    }
    if (!shown) {
      Violate(6, subject,
              absl::StrCat("is missing; the order is ", Order::State_Name(facts.order.state())));
      continue;
    }
    const view::v1::OrderView& row = it->second;
    if (row.parked_size() > 0) {
      Violate(6, subject,
              absl::StrCat("waits for an event before ", row.parked(0).resource(), " version ",
                           row.parked(0).version()));
    }
    auto differs = [&](const char* what, auto shown_value, auto real_value) {
      if (shown_value != real_value)
        Violate(6, subject,
                absl::StrCat("says ", what, " ", shown_value, ", its source ", real_value));
    };
    const Order& order = facts.order;
    differs("state", Order::State_Name(row.order_state()), Order::State_Name(order.state()));
    differs("status", row.status_code(), order.status_code());
    differs("number", row.number(), order.number());
    differs("storefront", row.storefront(), order.storefront());
    differs("customer", row.customer_id(), order.customer_id());
    differs("customer's name", row.customer_name(), order.customer_name());
    if (view_lines_[id] != facts.lines) Violate(6, subject, "shows other lines than were ordered");
    differs("total", row.total().minor_units(), order.total().minor_units());
    if (order.has_cancel_time()) differs("cancelled", row.cancelled(), true);
    // The other contexts were read while the order stood still, but a courier may have moved on
    // since.
    if (auto payments = payments_.find(id);
        payments != payments_.end() && payments->second.size() == 1) {
      const auto state = payments->second[0].state;
      if (state == payment::v1::Payment::STATE_CAPTURED ||
          state == payment::v1::Payment::STATE_REFUNDED) {
        differs("payment", payment::v1::Payment::State_Name(row.payment_state()),
                payment::v1::Payment::State_Name(state));
        differs("payment's id", row.payment_id(), payments->second[0].payment_id);
      }
    }
    if (auto state = one(acceptances_, id); state == store::v1::Acceptance::STATE_ACCEPTED ||
                                            state == store::v1::Acceptance::STATE_DECLINED) {
      differs("acceptance", store::v1::Acceptance::State_Name(row.acceptance_state()),
              store::v1::Acceptance::State_Name(static_cast<store::v1::Acceptance::State>(*state)));
    }
    if (auto state = one(carts_, id); state.has_value() &&
                                      state != cart::v1::Cart::STATE_UNSPECIFIED &&
                                      state != cart::v1::Cart::STATE_CANCELLED) {
      differs("cart", cart::v1::Cart::State_Name(row.cart_state()),
              cart::v1::Cart::State_Name(static_cast<cart::v1::Cart::State>(*state)));
    }
    if (auto found = assignments_.find(id);
        found != assignments_.end() && found->second.size() == 1) {
      using assignment::v1::Assignment;
      const auto& [state, agency_name] = found->second[0];
      differs("assignment", Assignment::State_Name(row.assignment_state()),
              Assignment::State_Name(static_cast<Assignment::State>(state)));
      differs("agency", row.agency_name(), agency_name);
    }
    if (Has("notification")) {
      auto count = [&](const absl::flat_hash_map<std::string, int>& counts) {
        const auto found = counts.find(id);
        return found == counts.end() ? 0 : std::min(found->second, view::kNoticesMax);
      };
      differs("notices", count(notices_shown_), count(notices_));
    }
    // A tombstone (cancelled before it began) publishes nothing.
    if (auto state = one(deliveries_, id); state.has_value() &&
                                           state != delivery::v1::Delivery::STATE_UNSPECIFIED &&
                                           state != delivery::v1::Delivery::STATE_CANCELLED) {
      differs(
          "delivery", delivery::v1::Delivery::State_Name(row.delivery_state()),
          delivery::v1::Delivery::State_Name(static_cast<delivery::v1::Delivery::State>(*state)));
    }
  }
}

}  // namespace

absl::StatusOr<InvariantReport> CheckInvariants(RowSource* rows, const InvariantOptions& options) {
  auto report = Auditor(rows, options).Run();
  if (report.ok()) {
    std::sort(report->violations.begin(), report->violations.end(),
              [](const auto& a, const auto& b) {
                return std::tie(a.invariant, a.subject) < std::tie(b.invariant, b.subject);
              });
  }
  return report;
}

}  // namespace gaekju::sim
