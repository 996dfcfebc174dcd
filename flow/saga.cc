#include "flow/saga.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "flow/mutant.h"
#include "flow/values.h"
#include "google/protobuf/empty.pb.h"
#include "google/protobuf/unknown_field_set.h"
#include "google/rpc/code.pb.h"
#include "google/rpc/error_details.pb.h"

namespace gaekju::flow {
namespace {

using order::v1::Order;
using order::v1::OrderRecord;
using order::v1::Saga;
using order::v1::Task;
using order::v1::TASK_STATE_ASKED;
using order::v1::TASK_STATE_DONE;
using order::v1::TASK_STATE_PENDING;
using order::v1::TASK_STATE_REFUSED;
using order::v1::TASK_STATE_SKIPPED;
using order::v1::TASK_STATE_UNSPECIFIED;
using storefront::v1::GRPC;
using storefront::v1::Via;

constexpr char kDomain[] = "gaekju.order.v1.OrderService";
// After a call's deadline, this long until it is made again by whoever finds it unanswered (its
// process may have died).
constexpr int64_t kCallGrace_us = 1'000'000;
// What a caller is told to wait before trying again.
constexpr int64_t kRetryAfter_us = 2'000'000;
constexpr int64_t kBusyRetryAfter_us = 1'000'000;

bool Waiting(order::v1::TaskState state) {
  return state == TASK_STATE_ASKED || state == TASK_STATE_PENDING;
}

// The order's total is the first `Money amount` that a step answers. Read by field number, so that
// any context can tell it.
void ReadAmount(const PlanStep& step, const std::string& response, Order* order) {
  const auto* field = step.response == nullptr ? nullptr : step.response->FindFieldByName("amount");
  if (field == nullptr || field->is_repeated() ||
      field->message_type() != type::v1::Money::descriptor())
    return;
  google::protobuf::Empty fields;
  if (!fields.ParseFromString(response)) return;
  const auto& unknown = fields.GetReflection()->GetUnknownFields(fields);
  for (int i = 0; i < unknown.field_count(); ++i) {
    if (unknown.field(i).number() == field->number() &&
        unknown.field(i).type() == google::protobuf::UnknownField::TYPE_LENGTH_DELIMITED) {
      type::v1::Money amount;
      if (amount.ParseFromString(unknown.field(i).length_delimited()))
        *order->mutable_total() = amount;
    }
  }
}

// Adds what a person is told in their own language.
void AddLocalized(const char* locale, const std::string& text, google::rpc::Status* status) {
  if (text.empty()) return;
  google::rpc::LocalizedMessage message;
  message.set_locale(locale);
  message.set_message(text);
  status->add_details()->PackFrom(message);
}

// What a step said when it was refused.
google::rpc::Status RefusalOf(const PlanStep& step, const std::string& answer) {
  google::rpc::Status status;
  if (status.ParseFromString(answer) && status.code() != 0) return status;
  return MakeStatus(google::rpc::FAILED_PRECONDITION, kDomain, "STEP_REFUSED",
                    absl::StrCat("step \"", step.id, "\" was refused"));
}

}  // namespace

int64_t RetryDelay(int64_t first_us, int64_t max_us, int attempts, uint64_t salt) {
  int64_t delay = first_us;
  for (int i = 1; i < attempts && delay < max_us; ++i) delay *= 2;
  delay = std::min(delay, max_us);
  const int64_t spread = delay / 4;
  return delay - spread / 2 + static_cast<int64_t>(salt % static_cast<uint64_t>(spread + 1));
}

SagaRun::SagaRun(const Plan& plan, OrderRecord* record, int64_t now_us)
    : plan_(plan),
      record_(*record),
      order_(*record->mutable_order()),
      saga_(*record->mutable_saga()),
      now_us_(now_us) {
  GK_CHECK(saga_.tasks_size() == 0 || saga_.tasks_size() == static_cast<int>(plan.steps.size()))
      << "plan " << plan.storefront << "@" << plan.revision << " is not the order's";
}

std::string SagaRun::WireStepId(const Plan& plan, const Saga& saga, int i) {
  const PlanStep& step = plan.steps[i];
  return step.in_cancel && saga.cancel_round() > 1 && !GK_MUTANT(cancel_round_not_told)
             ? absl::StrCat(step.id, ".", saga.cancel_round())
             : step.id;
}

int SagaRun::StepOfWireId(const Plan& plan, const Saga& saga, const std::string& wire_id) {
  for (int i = 0; i < static_cast<int>(plan.steps.size()); ++i) {
    if (WireStepId(plan, saga, i) == wire_id) return i;
  }
  return -1;
}

bool SagaRun::Has(Fact fact) const {
  return std::find(facts_.begin(), facts_.end(), fact) != facts_.end();
}

int64_t SagaRun::Jittered(int64_t first_us, int64_t max_us, int attempts, int i, bool undo) const {
  const uint64_t salt = FingerprintBytes(
      absl::StrCat(order_.order_id(), "/", step(i).id, undo ? "-" : "+", attempts));
  return now_us_ + RetryDelay(first_us, max_us, attempts, salt);
}

google::rpc::Status SagaRun::TooLateStatus() {
  auto status = MakeStatus(google::rpc::FAILED_PRECONDITION, kDomain, "CANCEL_TOO_LATE",
                           "the order has come too far to be cancelled");
  AddLocalized("ko", "이제는 주문을 취소할 수 없습니다", &status);
  AddLocalized("en", "It is too late to cancel this order", &status);
  return status;
}

google::rpc::Status SagaRun::BusyStatus(const Plan& plan) {
  auto status = MakeStatus(google::rpc::UNAVAILABLE, kDomain, "CANCEL_BUSY",
                           "an earlier cancel is still being taken back; please try again in a "
                           "moment",
                           "", kBusyRetryAfter_us);
  AddLocalized("ko", plan.cancel_try_later.ko(), &status);
  AddLocalized("en", plan.cancel_try_later.en(), &status);
  return status;
}

google::rpc::Status SagaRun::Unreachable(int i) const {
  auto status = MakeStatus(google::rpc::UNAVAILABLE, kDomain, "STEP_UNREACHABLE",
                           absl::StrCat("step \"", step(i).id, "\": the ", step(i).context,
                                        " service could not be reached; please try again in a "
                                        "moment"),
                           "", kRetryAfter_us);
  const auto& words = step(i).in_cancel ? plan_.cancel_try_later : plan_.place_try_later;
  AddLocalized("ko", words.ko(), &status);
  AddLocalized("en", words.en(), &status);
  return status;
}

// ---- what holds

bool SagaRun::UnderWay() const {
  switch (order_.state()) {
    case Order::STATE_PLACING:
    case Order::STATE_PLACED:
    case Order::STATE_CANCEL_REQUESTED:
      return true;
    default:
      return false;
  }
}

bool SagaRun::CancelUnderWay() const {
  return order_.state() == Order::STATE_CANCEL_REQUESTED ||
         order_.state() == Order::STATE_CANCELLING;
}

bool SagaRun::Held(int i) {
  const Task& t = task(i);
  return !step(i).undo_method.empty() && t.undo_state() != TASK_STATE_DONE &&
         (t.undo_state() != TASK_STATE_UNSPECIFIED ||
          (Waiting(t.state()) && !GK_MUTANT(asked_counts_as_not_held)) ||
          t.state() == TASK_STATE_DONE);
}

bool SagaRun::Undone(int i) {
  const Task& t = task(i);
  if (t.undo_state() != TASK_STATE_UNSPECIFIED)
    return t.undo_state() == TASK_STATE_DONE || GK_MUTANT(undone_once_asked);
  if (t.state() == TASK_STATE_SKIPPED || t.state() == TASK_STATE_REFUSED) return true;
  return step(i).undo_method.empty() && t.state() == TASK_STATE_DONE;
}

bool SagaRun::Blocked(int i) {
  const Task& t = task(i);
  if (t.state() == TASK_STATE_DONE) return false;
  if (t.deferred() || t.state() == TASK_STATE_PENDING) return true;
  return std::any_of(step(i).after.begin(), step(i).after.end(),
                     [this](int j) { return Blocked(j); });
}

bool SagaRun::NothingUndoneYet() {
  for (int i = 0; i < plan_.place_count; ++i) {
    if (task(i).undo_state() != TASK_STATE_UNSPECIFIED)
      return GK_MUTANT(cancel_refused_after_an_undo);
  }
  return true;
}

bool SagaRun::CancelMayBeAskedAgain() {
  for (int i = plan_.place_count; i < plan_.flow_count(); ++i) {
    const auto state = task(i).state();
    if (state == TASK_STATE_UNSPECIFIED) continue;
    if (state == TASK_STATE_REFUSED || !step(i).undo_method.empty()) return false;
  }
  return !GK_MUTANT(unanswered_cancel_asked_anew);
}

bool SagaRun::TooLateToCancel() {
  return !GK_MUTANT(cancel_too_late_accepted) &&
         std::any_of(plan_.unless_done.begin(), plan_.unless_done.end(),
                     [this](int i) { return task(i).state() == TASK_STATE_DONE; });
}

// When a word is shown, and when a notice is sent.
bool SagaRun::Holds(const PlanTrigger& when) {
  const bool rejected =
      order_.state() == Order::STATE_REJECTING || order_.state() == Order::STATE_REJECTED;
  if (when.done >= 0) return task(when.done).state() == TASK_STATE_DONE;
  if (when.undone >= 0) return (order_.has_cancel_time() || rejected) && Undone(when.undone);
  switch (when.stage) {
    case storefront::v1::PLACED:
      return order_.has_place_time();
    case storefront::v1::COMPLETED:
      for (int i = 0; i < plan_.place_count; ++i) {
        if (task(i).state() != TASK_STATE_DONE) return false;
      }
      return true;
    case storefront::v1::CANCELLING:
      return order_.has_cancel_time();
    case storefront::v1::CANCELLED:
      return order_.state() == Order::STATE_CANCELLED;
    case storefront::v1::REJECTED:
      return rejected;
    default:
      return false;
  }
}

// ---- inputs

void SagaRun::Place() {
  GK_CHECK(saga_.tasks_size() == 0);
  for (const PlanStep& s : plan_.steps) saga_.add_tasks()->set_step_id(s.id);
  order_.set_storefront(plan_.storefront);
  order_.set_storefront_revision(plan_.revision);
  order_.set_currency_code(plan_.currency_code);
  *order_.mutable_create_time() = ToTimestamp(now_us_);
  SetState(Order::STATE_PLACING);
  Advance();
}

SagaRun::CancelReply SagaRun::RequestCancel() {
  switch (order_.state()) {
    case Order::STATE_REJECTING:
    case Order::STATE_REJECTED:
      return CancelReply::kRejected;
    case Order::STATE_CANCEL_REQUESTED:
      return CancelReply::kWait;
    case Order::STATE_CANCELLING:
    case Order::STATE_CANCELLED:
      Advance();
      return Has(Fact::kCancelAnswered) ? CancelReply::kDone : CancelReply::kWait;
    default:
      break;
  }
  if (!plan_.has_cancel) return CancelReply::kNotOffered;
  if (TooLateToCancel()) return CancelReply::kTooLate;
  if (saga_.cancel_refused() && !GK_MUTANT(busy_cancel_accepted)) return CancelReply::kBusy;
  changed_ = true;
  if (order_.state() == Order::STATE_PLACING) {
    saga_.set_cancel_requested(!GK_MUTANT(early_cancel_forgotten));
    return CancelReply::kWait;
  }
  BeginCancel();
  Advance();
  return Has(Fact::kCancelAnswered) ? CancelReply::kDone : CancelReply::kWait;
}

void SagaRun::OnResult(const StepResult& result) {
  const int i = StepOfWireId(plan_, saga_, result.step_id);
  if (i < 0) return;
  Task& t = task(i);
  if (result.undo) {
    if (!Waiting(t.undo_state())) return;
    changed_ = true;
    if (result.unreachable || result.outcome == Outcome::OUTCOME_REFUSED) {
      // An undo cannot be refused: whoever refuses it is broken, and is asked until it is not.
      t.set_deferred(true);
      t.set_undo_retry_time_us(
          GK_MUTANT(unreachable_undo_never_asked_again)
              ? 0
              : Jittered(kCallRetryFirst_us, kCallRetryMax_us, t.undo_attempts(), i, true));
      if (GK_MUTANT(unreachable_undo_counts_as_done)) t.set_undo_state(TASK_STATE_DONE);
    } else if (result.outcome == Outcome::OUTCOME_PENDING) {
      const bool was_called = t.undo_state() == TASK_STATE_ASKED && UndoVia(i) == GRPC;
      t.set_undo_state(TASK_STATE_PENDING);
      if (was_called) {  // as below
        AskUndo(i, GRPC);
      } else {
        t.set_undo_retry_time_us(
            Jittered(kPendingRetryFirst_us, kPendingRetryMax_us, t.undo_attempts(), i, true));
      }
    } else {
      t.set_undo_state(TASK_STATE_DONE);
      t.set_undo_retry_time_us(0);
    }
    Advance();
    return;
  }
  if (!Waiting(t.state()) && !GK_MUTANT(late_answer_resurrects)) return;
  const bool in_course = t.undo_state() == TASK_STATE_UNSPECIFIED;
  changed_ = true;
  if (result.unreachable) {
    if (t.state() == TASK_STATE_PENDING || !in_course) return;
    const bool buyer_is_waiting = step(i).in_cancel
                                      ? order_.state() == Order::STATE_CANCEL_REQUESTED
                                      : order_.state() == Order::STATE_PLACING;
    if (GK_MUTANT(unreachable_counts_as_refused)) t.set_state(TASK_STATE_REFUSED);
    if (step(i).buyer_waits && step(i).fail_on_unavailable && buyer_is_waiting &&
        !GK_MUTANT(failing_step_deferred)) {
      if (step(i).in_cancel) {
        RefuseCancel(Unreachable(i));
      } else {
        Reject(Unreachable(i), /*retryable=*/true);
      }
    } else {
      t.set_deferred(true);
      if (t.retry_time_us() != 0) {
        t.set_retry_time_us(
            GK_MUTANT(deferred_step_never_asked)
                ? 0
                : Jittered(kCallRetryFirst_us, kCallRetryMax_us, t.attempts(), i, false));
      }
    }
  } else if (result.outcome == Outcome::OUTCOME_PENDING) {
    const bool was_called = t.state() == TASK_STATE_ASKED && step(i).via == GRPC;
    t.set_state(TASK_STATE_PENDING);
    if (t.retry_time_us() != 0 && was_called) {
      // A call has one answer. Asked over the bus too, the step knows where the person's goes.
      AskStep(i);
    } else if (t.retry_time_us() != 0) {
      t.set_retry_time_us(
          GK_MUTANT(pending_step_never_asked_again)
              ? 0
              : Jittered(kPendingRetryFirst_us, kPendingRetryMax_us, t.attempts(), i, false));
    }
  } else {
    if (!GK_MUTANT(answer_not_kept)) t.set_answer(result.payload);
    t.set_retry_time_us(0);
    t.set_expire_time_us(0);
    const bool done = result.outcome == Outcome::OUTCOME_DONE || GK_MUTANT(refusal_counts_as_done);
    t.set_state(done ? TASK_STATE_DONE : TASK_STATE_REFUSED);
    if (t.state() == TASK_STATE_DONE && i < plan_.place_count && !order_.has_total()) {
      ReadAmount(step(i), result.payload, &order_);
      if (order_.has_total()) facts_.push_back(Fact::kStatusChanged);
    }
    if (t.state() == TASK_STATE_REFUSED && in_course && !step(i).is_notice) {
      const google::rpc::Status status = RefusalOf(step(i), result.payload);
      if (!step(i).in_cancel && UnderWay()) {
        Reject(status, /*retryable=*/false);
      } else if (step(i).in_cancel && CancelUnderWay() && NothingUndoneYet()) {
        RefuseCancel(status);
      }
    }
  }
  Advance();
}

void SagaRun::OnDue() {
  for (int i = 0; i < saga_.tasks_size(); ++i) {
    Task& t = task(i);
    if (Waiting(t.undo_state())) {
      if (t.undo_retry_time_us() != 0 && t.undo_retry_time_us() <= now_us_) {
        AskUndo(i, UndoVia(i));
      }
      continue;
    }
    if (!Waiting(t.state()) || t.undo_state() != TASK_STATE_UNSPECIFIED) continue;
    if (t.expire_time_us() != 0 && t.expire_time_us() <= now_us_) {
      changed_ = true;
      t.set_expire_time_us(0);
      const auto status =
          MakeStatus(google::rpc::FAILED_PRECONDITION, kDomain, "STEP_EXPIRED",
                     absl::StrCat("step \"", step(i).id, "\": nobody answered in time"));
      if (!step(i).in_cancel && UnderWay() && !GK_MUTANT(expiry_ignored)) {
        Reject(status, /*retryable=*/false);
        continue;
      }
      if (step(i).in_cancel && CancelUnderWay() && NothingUndoneYet()) {
        RefuseCancel(status);
        continue;
      }
    }
    if (t.retry_time_us() != 0 && t.retry_time_us() <= now_us_) AskStep(i);
  }
  Advance();
}

// ---- transitions

void SagaRun::SetState(Order::State state) {
  changed_ = true;
  order_.set_state(state);
}

void SagaRun::Reject(const google::rpc::Status& status, bool retryable) {
  if (!GK_MUTANT(reject_forgets_the_canceller) &&
      (order_.state() == Order::STATE_CANCEL_REQUESTED || saga_.cancel_requested())) {
    RefuseCancel(MakeStatus(google::rpc::FAILED_PRECONDITION, kDomain, "ORDER_REJECTED",
                            "the order was refused while its cancel was under way"));
    if (order_.state() == Order::STATE_REJECTING) return;  // by what it found refused
  }
  saga_.set_place_refusal(status.SerializeAsString());
  saga_.set_place_retryable(retryable);
  order_.set_reject_reason(ReasonOf(status));
  SetState(Order::STATE_REJECTING);
  if (plan_.rejected_is_readable && !retryable) record_.set_visible(true);
  SkipUnasked();
  facts_.push_back(Fact::kRejected);
}

void SagaRun::BeginCancel() {
  saga_.set_cancel_requested(false);
  saga_.clear_cancel_refusal();
  if (!GK_MUTANT(cancel_round_not_counted)) saga_.set_cancel_round(saga_.cancel_round() + 1);
  for (int i = plan_.place_count; i < plan_.flow_count(); ++i) {
    task(i).Clear();
    task(i).set_step_id(step(i).id);
  }
  SetState(Order::STATE_CANCEL_REQUESTED);
}

void SagaRun::RefuseCancel(const google::rpc::Status& status) {
  changed_ = true;
  saga_.set_cancel_requested(false);
  saga_.set_cancel_refusal(status.SerializeAsString());
  saga_.set_cancel_refused(!GK_MUTANT(refused_cancel_not_taken_back));
  cancel_was_accepted_ = order_.has_cancel_time();
  order_.clear_cancel_time();
  facts_.push_back(Fact::kCancelRefused);
  const bool same_again = CancelMayBeAskedAgain();
  for (int i = plan_.place_count; i < plan_.flow_count(); ++i) {
    if (!Held(i)) task(i).set_state(TASK_STATE_SKIPPED);
    task(i).set_retry_time_us(0);
    task(i).set_expire_time_us(0);
  }
  if (order_.state() == Order::STATE_PLACING) return;
  if (same_again) saga_.set_cancel_round(saga_.cancel_round() - 1);
  bool completed = true;
  for (int i = 0; i < plan_.place_count; ++i) {
    Task& t = task(i);
    if (t.state() == TASK_STATE_SKIPPED && !GK_MUTANT(refused_cancel_leaves_steps_skipped))
      t.set_state(TASK_STATE_UNSPECIFIED);
    if (Waiting(t.state()) && t.retry_time_us() == 0 && !GK_MUTANT(refused_cancel_asks_no_more))
      t.set_retry_time_us(now_us_ + kCallRetryFirst_us);
    if (Waiting(t.state()) && t.expire_time_us() == 0 && step(i).expires_after_us > 0)
      t.set_expire_time_us(now_us_ + step(i).expires_after_us);
    completed = completed && t.state() == TASK_STATE_DONE;
  }
  if (completed && !order_.has_end_time()) {
    *order_.mutable_end_time() = ToTimestamp(now_us_);
    // Its last step was done while the cancel was under way: nobody was told yet.
    if (!cancel_was_accepted_) facts_.push_back(Fact::kCompleted);
  }
  SetState(completed ? Order::STATE_COMPLETED : Order::STATE_PLACED);
  // A step that was refused while the order was being taken back did not matter, and now does.
  for (int i = 0; i < plan_.place_count; ++i) {
    if (task(i).state() != TASK_STATE_REFUSED) continue;
    Reject(RefusalOf(step(i), task(i).answer()), /*retryable=*/false);
    return;
  }
}

// Steps that nobody will ask any more, and those in course that have nothing to take back.
void SagaRun::SkipUnasked() {
  for (int i = 0; i < plan_.place_count; ++i) {
    Task& t = task(i);
    if (t.state() == TASK_STATE_UNSPECIFIED ||
        (Waiting(t.state()) && (step(i).undo_method.empty() || GK_MUTANT(asked_step_skipped)))) {
      t.set_state(TASK_STATE_SKIPPED);
    }
    bool to_be_undone = order_.state() == Order::STATE_REJECTING;
    for (const PlanUndo& undo : plan_.cancel_undos) to_be_undone |= undo.step == i;
    if (to_be_undone || t.state() == TASK_STATE_SKIPPED) {
      t.set_retry_time_us(0);
      t.set_expire_time_us(0);
    }
  }
}

Via SagaRun::UndoVia(int i) const {
  if (order_.state() == Order::STATE_CANCELLING) {
    for (const PlanUndo& undo : plan_.cancel_undos) {
      if (undo.step == i) return undo.via;
    }
  }
  return storefront::v1::JETSTREAM;
}

void SagaRun::AskStep(int i) {
  changed_ = true;
  Task& t = task(i);
  t.set_attempts(t.attempts() + 1);
  if (t.state() == TASK_STATE_UNSPECIFIED) {
    t.set_state(TASK_STATE_ASKED);
    if (step(i).expires_after_us > 0 && !GK_MUTANT(expiry_forgotten))
      t.set_expire_time_us(now_us_ + step(i).expires_after_us);
  }
  if (t.state() == TASK_STATE_PENDING) {
    t.set_retry_time_us(
        Jittered(kPendingRetryFirst_us, kPendingRetryMax_us, t.attempts(), i, false));
  } else if (step(i).via == GRPC) {
    t.set_retry_time_us(
        GK_MUTANT(call_has_no_retry) ? 0 : now_us_ + step(i).deadline_us + kCallGrace_us);
  } else {
    t.set_retry_time_us(
        GK_MUTANT(command_has_no_retry)
            ? 0
            : Jittered(kCommandRetryFirst_us, kCommandRetryMax_us, t.attempts(), i, false));
  }
  const bool pending = t.state() == TASK_STATE_PENDING;
  asks_.push_back({i, /*undo=*/false, pending ? storefront::v1::JETSTREAM : step(i).via});
}

void SagaRun::AskUndo(int i, Via via) {
  changed_ = true;
  Task& t = task(i);
  t.set_undo_attempts(t.undo_attempts() + 1);
  if (t.undo_state() == TASK_STATE_UNSPECIFIED) {
    t.set_undo_state(TASK_STATE_ASKED);
    t.set_deferred(false);
    t.set_retry_time_us(0);
    t.set_expire_time_us(0);
  }
  if (t.undo_state() == TASK_STATE_PENDING) {
    t.set_undo_retry_time_us(
        Jittered(kPendingRetryFirst_us, kPendingRetryMax_us, t.undo_attempts(), i, true));
  } else if (via == GRPC) {
    t.set_undo_retry_time_us(now_us_ + step(i).deadline_us + kCallGrace_us);
  } else {
    t.set_undo_retry_time_us(
        GK_MUTANT(undo_has_no_retry)
            ? 0
            : Jittered(kCommandRetryFirst_us, kCommandRetryMax_us, t.undo_attempts(), i, true));
  }
  const bool pending = t.undo_state() == TASK_STATE_PENDING;
  asks_.push_back({i, /*undo=*/true, pending ? storefront::v1::JETSTREAM : via});
}

bool SagaRun::AskReadySteps() {
  bool asked = false;
  const bool place = UnderWay();
  const bool cancel = CancelUnderWay();
  // A refused order leaves no trace with those whom its buyer did not wait for.
  const bool taken =
      order_.state() != Order::STATE_PLACING || GK_MUTANT(hidden_step_asked_before_placed);
  for (int i = 0; i < plan_.flow_count(); ++i) {
    if (task(i).state() != TASK_STATE_UNSPECIFIED) continue;
    const PlanStep& s = step(i);
    if (s.in_cancel ? !cancel : !place || !(taken || s.buyer_waits)) continue;
    bool ready = std::all_of(s.after.begin(), s.after.end(), [&](int j) {
      // A step of cancel that was refused too late to matter does not hold up the rest.
      return task(j).state() == TASK_STATE_DONE || GK_MUTANT(step_asked_before_its_turn) ||
             (s.in_cancel && task(j).state() == TASK_STATE_REFUSED);
    });
    ready = ready &&
            std::all_of(s.after_undo.begin(), s.after_undo.end(), [&](int j) { return Undone(j); });
    if (!s.after_undo.empty() && order_.state() != Order::STATE_CANCELLING) ready = false;
    if (!ready) continue;
    AskStep(i);
    asked = true;
  }
  return asked;
}

bool SagaRun::AskReadyUndos() {
  bool asked = false;
  if (order_.state() == Order::STATE_CANCELLING) {
    for (const PlanUndo& undo : plan_.cancel_undos) {
      if (!Held(undo.step) || task(undo.step).undo_state() != TASK_STATE_UNSPECIFIED) continue;
      const bool ready = std::all_of(undo.after.begin(), undo.after.end(),
                                     [&](int j) {
                                       return task(j).state() == TASK_STATE_DONE ||
                                              task(j).state() == TASK_STATE_REFUSED;
                                     }) &&
                         std::all_of(undo.after_undo.begin(), undo.after_undo.end(),
                                     [&](int j) { return Undone(j); });
      if (!ready && !GK_MUTANT(undo_before_its_condition)) continue;
      AskUndo(undo.step, undo.via);
      asked = true;
    }
  }
  // Taking back in reverse: what depends on a step first. The steps of a refused order, and those
  // of a refused cancel.
  const bool rejecting = order_.state() == Order::STATE_REJECTING;
  for (int i = 0; i < plan_.flow_count(); ++i) {
    if (step(i).in_cancel ? !saga_.cancel_refused() : !rejecting) continue;
    if (GK_MUTANT(reject_takes_nothing_back_of_the_buyer) && step(i).buyer_waits) continue;
    if (!Held(i) || task(i).undo_state() != TASK_STATE_UNSPECIFIED) continue;
    bool ready = true;
    for (int j = 0; j < plan_.flow_count(); ++j) {
      const auto& after = step(j).after;
      if (std::find(after.begin(), after.end(), i) != after.end() && !Undone(j)) ready = false;
    }
    if (!ready && !GK_MUTANT(reject_in_any_order)) continue;
    AskUndo(i, storefront::v1::JETSTREAM);
    asked = true;
  }
  return asked;
}

// Nobody is told of an order that can never be read.
void SagaRun::AskReadyNotices() {
  if (!record_.visible() || GK_MUTANT(notice_never_sent)) return;
  for (int i = plan_.flow_count(); i < saga_.tasks_size(); ++i) {
    if (task(i).state() == TASK_STATE_UNSPECIFIED &&
        (Holds(step(i).when) || GK_MUTANT(notice_before_its_trigger)))
      AskStep(i);
  }
}

bool SagaRun::SettlePhase() {
  const int all = plan_.flow_count();
  auto done = [&](int i) { return task(i).state() == TASK_STATE_DONE; };
  if (saga_.cancel_refused()) {
    bool held = false;
    for (int i = plan_.place_count; i < all; ++i) held |= Held(i);
    if (!held) {
      saga_.set_cancel_refused(false);
      changed_ = true;
    }
  }
  switch (order_.state()) {
    case Order::STATE_PLACING: {
      for (int i = 0; i < plan_.place_count; ++i) {
        if (step(i).buyer_waits && !done(i) && !Blocked(i) && !GK_MUTANT(placed_before_done))
          return false;
      }
      *order_.mutable_place_time() = ToTimestamp(now_us_);
      record_.set_visible(true);
      SetState(Order::STATE_PLACED);
      facts_.push_back(Fact::kPlaced);
      if (saga_.cancel_requested() && !GK_MUTANT(cancel_of_placing_dropped)) BeginCancel();
      return true;
    }
    case Order::STATE_PLACED: {
      for (int i = 0; i < plan_.place_count; ++i) {
        if (!done(i) && !GK_MUTANT(completed_too_early)) return false;
      }
      *order_.mutable_end_time() = ToTimestamp(now_us_);
      SetState(Order::STATE_COMPLETED);
      facts_.push_back(Fact::kCompleted);
      return true;
    }
    case Order::STATE_CANCEL_REQUESTED: {
      if (TooLateToCancel()) {
        RefuseCancel(TooLateStatus());
        return true;
      }
      for (int i = plan_.place_count; i < all; ++i) {
        if (step(i).buyer_waits && !done(i) && !Blocked(i)) return false;
      }
      *order_.mutable_cancel_time() = ToTimestamp(now_us_);
      order_.clear_end_time();
      SetState(Order::STATE_CANCELLING);
      if (!GK_MUTANT(cancel_skips_nothing)) SkipUnasked();
      facts_.push_back(Fact::kCancelAccepted);
      return true;
    }
    case Order::STATE_CANCELLING: {
      for (const PlanUndo& undo : plan_.cancel_undos) {
        if (!Undone(undo.step) && !GK_MUTANT(cancelled_too_early)) return false;
      }
      for (int i = 0; i < all; ++i) {
        const auto state = task(i).state();
        if (step(i).in_cancel && state != TASK_STATE_DONE && state != TASK_STATE_REFUSED)
          return false;
        if (!step(i).in_cancel && Waiting(state) && task(i).undo_state() != TASK_STATE_DONE)
          return false;
      }
      *order_.mutable_end_time() = ToTimestamp(now_us_);
      SetState(Order::STATE_CANCELLED);
      facts_.push_back(Fact::kCancelCompleted);
      return true;
    }
    case Order::STATE_REJECTING: {
      if (saga_.cancel_refused()) return false;
      for (int i = 0; i < plan_.place_count; ++i) {
        if (!Undone(i) && !GK_MUTANT(rejected_too_early)) return false;
      }
      *order_.mutable_end_time() = ToTimestamp(now_us_);
      SetState(Order::STATE_REJECTED);
      facts_.push_back(Fact::kRejectCompleted);
      return true;
    }
    default:
      return false;
  }
}

void SagaRun::Advance() {
  while (true) {
    // The phase first: what a new phase forbids is not asked any more.
    bool moved = false;
    while (SettlePhase()) moved = true;
    moved |= AskReadySteps();
    moved |= AskReadyUndos();
    if (!moved) break;
  }
  AskReadyNotices();
  if (order_.state() == Order::STATE_CANCELLING || order_.state() == Order::STATE_CANCELLED) {
    bool answered = true;
    for (int i = plan_.place_count; i < plan_.flow_count(); ++i) {
      if (step(i).buyer_waits && task(i).state() == TASK_STATE_ASKED && !Blocked(i))
        answered = false;
    }
    for (const PlanUndo& undo : plan_.cancel_undos) {
      const Task& t = task(undo.step);
      if (undo.buyer_waits && t.undo_state() == TASK_STATE_ASKED && !t.deferred()) answered = false;
    }
    if (answered && !GK_MUTANT(canceller_never_answered)) facts_.push_back(Fact::kCancelAnswered);
  }
  UpdateStatus();
  UpdateDueTime();
}

void SagaRun::UpdateStatus() {
  const PlanStatus* word = nullptr;
  for (const PlanStatus& status : plan_.statuses) {
    if (Holds(status.when)) word = &status;
  }
  const std::string code = word == nullptr ? "" : word->code;
  if (order_.status_code() == code) return;
  order_.set_status_code(code);
  if (word == nullptr) {
    order_.clear_status_text();
  } else {
    order_.mutable_status_text()->set_ko(word->ko);
    order_.mutable_status_text()->set_en(word->en);
  }
  changed_ = true;
  facts_.push_back(Fact::kStatusChanged);
}

void SagaRun::UpdateDueTime() {
  int64_t due = 0;
  auto earliest = [&due](int64_t time_us) {
    if (time_us != 0 && (due == 0 || time_us < due)) due = time_us;
  };
  for (const Task& t : saga_.tasks()) {
    if (Waiting(t.state())) {
      earliest(t.retry_time_us());
      earliest(t.expire_time_us());
    }
    if (Waiting(t.undo_state()) && !GK_MUTANT(due_time_without_undos))
      earliest(t.undo_retry_time_us());
  }
  // An earlier time than needed is kept while it has not passed: the column is indexed, and most
  // orders end before it comes.
  const int64_t kept = record_.due_time_us();
  if (due != 0 && kept != 0 && kept <= due && kept > now_us_) return;
  if (kept != due) {
    record_.set_due_time_us(due);
    changed_ = true;
  }
}

}  // namespace gaekju::flow
