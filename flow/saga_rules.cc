#include "flow/saga_rules.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"

namespace gaekju::flow {
namespace {

using order::v1::Order;
using order::v1::OrderRecord;
using order::v1::Task;
using order::v1::TASK_STATE_ASKED;
using order::v1::TASK_STATE_DONE;
using order::v1::TASK_STATE_PENDING;
using order::v1::TASK_STATE_REFUSED;
using order::v1::TASK_STATE_SKIPPED;
using order::v1::TASK_STATE_UNSPECIFIED;

bool Waiting(order::v1::TaskState state) {
  return state == TASK_STATE_ASKED || state == TASK_STATE_PENDING;
}

class Rules {
 public:
  Rules(const Plan& plan, const OrderRecord& record) : plan_(plan), record_(record) {}

  std::string Broken() const {
    const Order& order = record_.order();
    if (record_.saga().tasks_size() < static_cast<int>(plan_.steps.size())) return "";  // not begun
    const bool over =
        order.state() == Order::STATE_CANCELLED || order.state() == Order::STATE_REJECTED;
    for (int i = 0; i < plan_.flow_count(); ++i) {
      const PlanStep& step = plan_.steps[i];
      const Task& t = task(i);
      const bool being_undone = t.undo_state() != TASK_STATE_UNSPECIFIED;
      if (over && Waiting(t.undo_state()))
        return Of(i, "is still being taken back, and the order reads as over");
      if (being_undone && UndoneTooEarly(i)) return Of(i, "is taken back before its turn");
      if (step.in_cancel) continue;
      if (!order.has_place_time() && !step.buyer_waits && t.state() != TASK_STATE_UNSPECIFIED &&
          t.state() != TASK_STATE_SKIPPED)
        return Of(i, "was asked before the order was taken, and the buyer does not wait for it");
      if (order.state() == Order::STATE_PLACED && step.buyer_waits &&
          t.state() != TASK_STATE_DONE && !Blocked(i))
        return Of(i, "is not done, and the order was taken");
      const bool goes_on =
          order.state() == Order::STATE_PLACING || order.state() == Order::STATE_PLACED;
      if (goes_on && step.expires_after_us > 0 && Waiting(t.state()) && t.expire_time_us() == 0)
        return Of(i, "is waited for, and never expires");
    }
    for (int i = plan_.flow_count(); i < static_cast<int>(plan_.steps.size()); ++i) {
      const PlanTrigger& when = plan_.steps[i].when;
      const bool holds = when.done >= 0
                             ? task(when.done).state() == TASK_STATE_DONE
                             : when.stage == storefront::v1::PLACED && order.has_place_time();
      if (record_.visible() && holds && task(i).state() == TASK_STATE_UNSPECIFIED)
        return Of(i, "was never told");
    }
    return "";
  }

 private:
  const Task& task(int i) const { return record_.saga().tasks(i); }
  std::string Of(int i, const char* what) const {
    return absl::StrCat("\"", plan_.steps[i].id, "\" ", what);
  }
  bool Undone(int i) const {
    const Task& t = task(i);
    if (t.undo_state() != TASK_STATE_UNSPECIFIED) return t.undo_state() == TASK_STATE_DONE;
    return t.state() == TASK_STATE_SKIPPED || t.state() == TASK_STATE_REFUSED ||
           (plan_.steps[i].undo_method.empty() && t.state() == TASK_STATE_DONE);
  }
  bool Blocked(int i) const {
    const Task& t = task(i);
    if (t.state() == TASK_STATE_DONE) return false;
    const auto& after = plan_.steps[i].after;
    return t.deferred() || t.state() == TASK_STATE_PENDING ||
           std::any_of(after.begin(), after.end(), [this](int j) { return Blocked(j); });
  }
  bool UndoneTooEarly(int i) const {
    const Order::State state = record_.order().state();
    if (state == Order::STATE_CANCELLING || state == Order::STATE_CANCELLED) {
      const auto answered = [this](int j) {
        return task(j).state() == TASK_STATE_DONE || task(j).state() == TASK_STATE_REFUSED;
      };
      return std::any_of(plan_.cancel_undos.begin(), plan_.cancel_undos.end(),
                         [&](const PlanUndo& undo) {
                           return undo.step == i &&
                                  !(std::all_of(undo.after.begin(), undo.after.end(), answered) &&
                                    std::all_of(undo.after_undo.begin(), undo.after_undo.end(),
                                                [this](int j) { return Undone(j); }));
                         });
    }
    for (int j = 0; j < plan_.flow_count(); ++j) {
      const auto& after = plan_.steps[j].after;
      if (std::find(after.begin(), after.end(), i) != after.end() && !Undone(j)) return true;
    }
    return false;
  }

  const Plan& plan_;
  const OrderRecord& record_;
};

}  // namespace

std::string BrokenSagaRule(const Plan& plan, const OrderRecord& record) {
  return Rules(plan, record).Broken();
}

}  // namespace gaekju::flow
