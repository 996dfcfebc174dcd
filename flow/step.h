// step.h: makes a step and its undo idempotent, so that each context's decider sees every step at
// most once, and every undo at most once and only of a step that was done. Asking again gives the
// same answer; an undo that comes first leaves a tombstone, and the step is then refused with
// STEP_UNDONE; the same step with other content is refused with STEP_REUSED.
//
// The record of the step lives in the resource that the step makes, keyed "<order_id>/<step_id>",
// in a field `step` of type StepRecord. A context names its two deciders:
//
//   context.handlers.push_back(StepHandler<Payment, CaptureRequest>(
//       "gaekju.payment.v1.PaymentService.Capture", kPayments, validate, more_keys,
//       [](const CaptureRequest& request, const Caller&, Payment& payment, Turn& turn) -> Answer {
//       … }));
//   context.handlers.push_back(UndoHandler<Payment, RefundRequest>(
//       "gaekju.payment.v1.PaymentService.Refund", kPayments, held_rows,
//       [](Payment& payment, Turn& turn) -> Answer { … },      // the step was done: take it back;
//       Done or Pending
//       [](const RefundRequest&, Payment& payment, Turn& turn) { … }));  // it never was, or was
//       refused or waits: mark it void
//
// A refusal of the do decider is recorded too. One that Validate makes is not: it says the same
// every time. A resource whose record is empty (it was made for another reason) has not been asked.
#ifndef GAEKJU_FLOW_STEP_H_
#define GAEKJU_FLOW_STEP_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flow/mutant.h"
#include "flow/turn.h"
#include "google/rpc/code.pb.h"

namespace gaekju::flow {

using gaekju::flow::v1::StepRecord;

// "<order_id>/<step_id>".
inline std::string StepKey(absl::string_view order_id, absl::string_view step_id) {
  return absl::StrCat(order_id, "/", step_id);
}

// Checks order_id and step_id: 1 to 64 bytes each, and no "/", so that two steps never share a key.
// OK has code 0.
google::rpc::Status ValidateStepIds(absl::string_view order_id, absl::string_view step_id,
                                    absl::string_view domain);

// Whether the step was asked, or its undo was.
bool WasAsked(const StepRecord& record);
// The answer a record stands for: what was answered before. REQUIRES: record.outcome() is set, or
// record.undo() is.
Answer RecordedAnswer(const StepRecord& record);
// The answer that the record's undo stands for. REQUIRES: record.undo() is set.
Answer RecordedUndoAnswer(const StepRecord& record);
// Writes `answer` into the record.
void RecordAnswer(const Answer& answer, StepRecord* record);
void RecordUndoAnswer(const Answer& answer, StepRecord* record);

// A person answered a pending step: records it, and sends it to whoever asked last. `answer` is
// Done or Refuse. REQUIRES: record->outcome() is pending, and the step has not been taken back.
// `answer_type`: the response message's full name.
void AnswerPendingStep(const Answer& answer, absl::string_view answer_type, StepRecord* record,
                       Turn& turn);
// The same for a pending undo. REQUIRES: record->undo() is pending.
void AnswerPendingUndo(const Answer& answer, absl::string_view answer_type, StepRecord* record,
                       Turn& turn);

template <class Resource, class Request>
std::shared_ptr<const Handler> StepHandler(
    std::string name, const Table& table,
    std::function<google::rpc::Status(const Request&)> validate,
    std::function<void(const Request&, std::vector<RowKey>*)> more_keys,
    std::function<Answer(const Request&, const Caller&, Resource&, Turn&)> decide) {
  const std::string domain = name.substr(0, name.rfind('.'));
  return std::make_shared<FunctionHandler<Request>>(
      std::move(name),
      [validate, domain](const Request& request) {
        auto status = ValidateStepIds(request.order_id(), request.step_id(), domain);
        return status.code() != 0 || !validate ? status : validate(request);
      },
      [&table, more_keys](const Request& request, const Caller&, std::vector<RowKey>* keys) {
        keys->push_back({&table, StepKey(request.order_id(), request.step_id())});
        if (more_keys) more_keys(request, keys);
      },
      [&table, decide, domain](const Request& request, const Caller& caller, Turn& turn) {
        const std::string key = StepKey(request.order_id(), request.step_id());
        const uint64_t fingerprint = Fingerprint(request);
        const Resource* found = turn.Find<Resource>(table, key);
        const bool asked = found != nullptr && WasAsked(found->step());
        if (asked && !GK_MUTANT(step_not_remembered)) {
          const StepRecord& record = found->step();
          if (record.undo() != Outcome::OUTCOME_UNSPECIFIED) {
            return Refuse(google::rpc::FAILED_PRECONDITION, domain, "STEP_UNDONE",
                          absl::StrCat("step ", key, " was taken back"));
          }
          if (record.request_fingerprint() != fingerprint) {
            return Refuse(google::rpc::ALREADY_EXISTS, domain, "STEP_REUSED",
                          absl::StrCat("step ", key, " was asked before with other content"));
          }
          // A plain call has nowhere for a later answer to go, so it does not take the answer from
          // who has.
          if (record.outcome() == Outcome::OUTCOME_PENDING && !caller.reply_to.empty() &&
              record.reply_to() != caller.reply_to) {
            turn.Edit<Resource>(table, key).mutable_step()->set_reply_to(caller.reply_to);
          }
          return RecordedAnswer(record);
        }
        Resource& resource = turn.Edit<Resource>(table, key);
        StepRecord* record = resource.mutable_step();
        record->set_order_id(request.order_id());
        record->set_step_id(request.step_id());
        record->set_request_fingerprint(fingerprint);
        record->set_reply_to(caller.reply_to);
        Answer answer = decide(request, caller, resource, turn);
        RecordAnswer(answer, resource.mutable_step());
        return answer;
      });
}

// `held_rows` appends the rows that taking the step back touches, as the resource tells; null when
// there are none but its own. They are known only once the resource is loaded, so the handler then
// answers kRetry, once, before it changes anything.
template <class Resource, class Request>
std::shared_ptr<const Handler> UndoHandler(
    std::string name, const Table& table,
    std::function<void(const Resource&, std::vector<RowKey>*)> held_rows,
    std::function<Answer(Resource&, Turn&)> undo,
    std::function<void(const Request&, Resource&, Turn&)> make_void) {
  const std::string domain = name.substr(0, name.rfind('.'));
  return std::make_shared<FunctionHandler<Request>>(
      std::move(name),
      [domain](const Request& request) {
        return ValidateStepIds(request.order_id(), request.step_id(), domain);
      },
      [&table](const Request& request, const Caller&, std::vector<RowKey>* keys) {
        keys->push_back({&table, StepKey(request.order_id(), request.step_id())});
      },
      [&table, held_rows, undo, make_void](const Request& request, const Caller& caller,
                                           Turn& turn) {
        const std::string key = StepKey(request.order_id(), request.step_id());
        const Resource* found = turn.Find<Resource>(table, key);
        if (found != nullptr && found->step().undo() != Outcome::OUTCOME_UNSPECIFIED) {
          if (found->step().undo() == Outcome::OUTCOME_PENDING && !caller.reply_to.empty() &&
              found->step().undo_reply_to() != caller.reply_to) {
            turn.Edit<Resource>(table, key).mutable_step()->set_undo_reply_to(caller.reply_to);
          }
          return RecordedUndoAnswer(found->step());
        }
        const bool was_done = found != nullptr &&
                              found->step().outcome() == Outcome::OUTCOME_DONE &&
                              !GK_MUTANT(undo_voids_what_was_done);
        if (found == nullptr && GK_MUTANT(tombstone_forgotten)) return Answer();
        if (was_done && held_rows) {
          Answer retry;
          retry.kind = Answer::Kind::kRetry;
          std::vector<RowKey> keys;
          held_rows(*found, &keys);
          for (RowKey& row : keys) {
            if (!turn.HasRow(row)) retry.more_keys.push_back(std::move(row));
          }
          if (!retry.more_keys.empty()) return retry;
        }
        Resource& resource = turn.Edit<Resource>(table, key);
        StepRecord* record = resource.mutable_step();
        record->set_order_id(request.order_id());
        record->set_step_id(request.step_id());
        record->set_undo_reply_to(caller.reply_to);
        Answer answer;
        if (was_done) {
          answer = undo(resource, turn);
          GK_CHECK(answer.kind != Answer::Kind::kRefused) << "an undo is never refused: " << key;
        } else {
          make_void(request, resource, turn);
        }
        if (!GK_MUTANT(undo_not_recorded)) RecordUndoAnswer(answer, resource.mutable_step());
        return answer;
      });
}

}  // namespace gaekju::flow

#endif  // GAEKJU_FLOW_STEP_H_
