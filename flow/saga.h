// saga.h: one order's run through its storefront's flows, as a pure state machine over the order's
// record.
//
//   SagaRun run(plan, &record, now_us);
//   run.Place();                       // or RequestCancel(), OnResult(…), OnDue()
//   for (const SagaRun::Ask& ask : run.asks()) …     // what to ask of whom, now
//   for (SagaRun::Fact fact : run.facts()) …         // what has happened to the order
//
// Invariants:
//  1. A step is asked only when everything it waits for is done, and only while nothing takes the
//  order back.
//  2. A step that was ever asked and not refused is taken back before the order ends REJECTED, in
//  reverse order, and, if the cancel
//     flow names it, before it ends CANCELLED. A step that was never asked is never undone.
//  3. Whatever was asked and not answered has a retry time; `due_time_us` is never later than the
//  earliest of them.
//  4. An answer that was seen before, or that comes for what nobody asks any more, changes nothing.
//  5. A cancel can be refused only until the first undo was asked.
//  6. What the buyer does not wait for is asked only once the order is taken.
//  7. A notice is asked at most once the moment its trigger first holds for an order that can be
//  read, and again until it is answered, whatever becomes of the order. Nothing waits for it: an
//  order with notices goes the same way as one without.
//
// Pure and deterministic: the jitter of retries is a hash of order, step and attempt.
#ifndef GAEKJU_FLOW_SAGA_H_
#define GAEKJU_FLOW_SAGA_H_

#include <cstdint>
#include <string>
#include <vector>

#include "flow/plan.h"
#include "flow/turn.h"
#include "gaekju/order/v1/order.pb.h"

namespace gaekju::flow {

// How long to wait before asking again, in microseconds: doubles per attempt from `first` to `max`,
// ±12.5 % by `salt`.
int64_t RetryDelay(int64_t first_us, int64_t max_us, int attempts, uint64_t salt);

// A lost command or answer over JetStream is asked again after this long at first.
inline constexpr int64_t kCommandRetryFirst_us = 10'000'000;
inline constexpr int64_t kCommandRetryMax_us = 300'000'000;
// An unreachable context is called again after this long at first.
inline constexpr int64_t kCallRetryFirst_us = 500'000;
inline constexpr int64_t kCallRetryMax_us = 60'000'000;
// A person who has not answered is asked for again after this long at first, in case the answer was
// lost.
inline constexpr int64_t kPendingRetryFirst_us = 30'000'000;
inline constexpr int64_t kPendingRetryMax_us = 600'000'000;

class SagaRun {
 public:
  // Ask a step, or its undo.
  struct Ask {
    int step = -1;  // index in Plan::steps
    bool undo = false;
    gaekju::storefront::v1::Via via = gaekju::storefront::v1::JETSTREAM;
    bool operator==(const Ask&) const = default;
  };
  enum class Fact {
    kPlaced,           // the buyer may be told that the order is taken
    kCompleted,        // every step of place is done
    kRejected,         // refused; being taken back
    kRejectCompleted,  // nothing is held
    kCancelAccepted,   // being taken back
    kCancelAnswered,   // everything that the buyer waits for in a cancel has answered
    kCancelRefused,    // the cancel is refused; the order goes on
    kCancelCompleted,  // everything the cancel flow names is taken back
    kStatusChanged,    // the shop's word for the order changed, or its price became known
  };
  enum class CancelReply {
    kWait,        // kCancelAnswered or kCancelRefused follows
    kDone,        // accepted, now or before
    kNotOffered,  // the storefront has no cancel flow
    kRejected,    // the order was refused
    kBusy,        // an earlier, refused cancel is still being taken back: try again
    kTooLate,     // a step is done after which the storefront does not cancel
  };

  // REQUIRES: `plan` is the record's revision, except before Place(). Both outlive the run.
  SagaRun(const Plan& plan, order::v1::OrderRecord* record, int64_t now_us);

  // Starts a new order. REQUIRES: the record has no saga, and its order's input fields are set.
  void Place();
  // The buyer cancels.
  CancelReply RequestCancel();
  // A step or an undo was answered, or could not be reached.
  void OnResult(const StepResult& result);
  // Some retry or expiry time may have passed.
  void OnDue();

  const std::vector<Ask>& asks() const { return asks_; }
  const std::vector<Fact>& facts() const { return facts_; }
  bool Has(Fact fact) const;
  // With kCancelRefused: whether the cancel had been accepted before.
  bool cancel_was_accepted() const { return cancel_was_accepted_; }
  // Whether anything in the record changed.
  bool changed() const { return changed_; }
  // What kTooLate and kBusy mean, as the caller is told.
  static google::rpc::Status TooLateStatus();
  static google::rpc::Status BusyStatus(const Plan& plan);

  // What the step is called on the wire: its id, and for the n-th cancel "<id>.<n>".
  static std::string WireStepId(const Plan& plan, const order::v1::Saga& saga, int step);
  // The step that a wire id means; -1 when it is of no step, or of an earlier cancel.
  static int StepOfWireId(const Plan& plan, const order::v1::Saga& saga,
                          const std::string& wire_id);

 private:
  order::v1::Task& task(int step) { return *saga_.mutable_tasks(step); }
  const PlanStep& step(int i) const { return plan_.steps[i]; }
  bool UnderWay() const;        // placing or going on: steps of place may be asked
  bool CancelUnderWay() const;  // steps of cancel may be asked
  bool Held(int i);             // asked, not refused, not undone
  bool Undone(int i);           // taken back, or never to be taken back
  bool Blocked(int i);  // the buyer need not wait for it: deferred, or behind a deferred one
  bool NothingUndoneYet();
  // Nobody has said no to the cancel in course, and nothing of it has to be taken back: the next
  // one asks under its names, so that who was reached all the same hears of one cancel, not of two.
  bool CancelMayBeAskedAgain();
  bool TooLateToCancel();
  bool Holds(const PlanTrigger& when);
  google::rpc::Status Unreachable(int i) const;
  void Advance();
  bool AskReadySteps();
  bool AskReadyUndos();
  void AskReadyNotices();
  bool SettlePhase();
  void AskStep(int i);
  void AskUndo(int i, gaekju::storefront::v1::Via via);
  gaekju::storefront::v1::Via UndoVia(int i) const;  // as the cancel flow says; else JETSTREAM
  void Reject(const google::rpc::Status& status, bool retryable);
  void BeginCancel();
  void RefuseCancel(const google::rpc::Status& status);
  void SkipUnasked();
  void SetState(order::v1::Order::State state);
  void UpdateStatus();
  void UpdateDueTime();
  int64_t Jittered(int64_t first_us, int64_t max_us, int attempts, int step, bool undo) const;

  const Plan& plan_;
  order::v1::OrderRecord& record_;
  order::v1::Order& order_;
  order::v1::Saga& saga_;
  const int64_t now_us_;
  std::vector<Ask> asks_;
  std::vector<Fact> facts_;
  bool changed_ = false;
  bool cancel_was_accepted_ = false;
};

}  // namespace gaekju::flow

#endif  // GAEKJU_FLOW_SAGA_H_
