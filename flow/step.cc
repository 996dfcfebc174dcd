#include "flow/step.h"

#include "flow/mutant.h"
#include "flow/values.h"

namespace gaekju::flow {
namespace {

Answer FromRecord(Outcome outcome, const std::string& bytes) {
  Answer answer;
  switch (outcome) {
    case Outcome::OUTCOME_DONE:
      answer.kind = Answer::Kind::kDone;
      answer.payload = bytes;
      return answer;
    case Outcome::OUTCOME_REFUSED:
      answer.kind = Answer::Kind::kRefused;
      GK_CHECK(answer.status.ParseFromString(bytes));
      return answer;
    default:
      GK_CHECK(outcome == Outcome::OUTCOME_PENDING) << outcome;
      answer.kind = Answer::Kind::kPending;
      return answer;
  }
}

Outcome ToRecord(const Answer& answer, std::string* bytes) {
  switch (answer.kind) {
    case Answer::Kind::kDone:
      *bytes = answer.payload;
      return Outcome::OUTCOME_DONE;
    case Answer::Kind::kRefused:
      *bytes = answer.status.SerializeAsString();
      return Outcome::OUTCOME_REFUSED;
    default:
      GK_CHECK(answer.kind == Answer::Kind::kPending) << "a step answers done, refused or pending";
      bytes->clear();
      return Outcome::OUTCOME_PENDING;
  }
}

void SendAnswer(const Answer& answer, absl::string_view answer_type, const StepRecord& record,
                bool undo, const std::string& reply_to, Turn& turn) {
  if (reply_to.empty()) return;
  Envelope envelope;
  envelope.kind = Envelope::Kind::kAnswer;
  envelope.to = reply_to;
  envelope.order_id = record.order_id();
  envelope.step_id = record.step_id();
  envelope.undo = undo;
  envelope.outcome = ToRecord(answer, &envelope.payload);
  envelope.type =
      answer.kind == Answer::Kind::kDone ? std::string(answer_type) : answer.status.GetTypeName();
  turn.Send(std::move(envelope));
}

}  // namespace

google::rpc::Status ValidateStepIds(absl::string_view order_id, absl::string_view step_id,
                                    absl::string_view domain) {
  return FieldChecks(domain).Id("order_id", order_id).Id("step_id", step_id).status();
}

bool WasAsked(const StepRecord& record) {
  return record.outcome() != Outcome::OUTCOME_UNSPECIFIED ||
         record.undo() != Outcome::OUTCOME_UNSPECIFIED;
}
Answer RecordedAnswer(const StepRecord& record) {
  return FromRecord(record.outcome(), record.answer());
}
Answer RecordedUndoAnswer(const StepRecord& record) {
  return FromRecord(record.undo(), record.undo_answer());
}

void RecordAnswer(const Answer& answer, StepRecord* record) {
  record->set_outcome(ToRecord(answer, record->mutable_answer()));
}
void RecordUndoAnswer(const Answer& answer, StepRecord* record) {
  record->set_undo(ToRecord(answer, record->mutable_undo_answer()));
}

void AnswerPendingStep(const Answer& answer, absl::string_view answer_type, StepRecord* record,
                       Turn& turn) {
  GK_CHECK(record->outcome() == Outcome::OUTCOME_PENDING);
  GK_CHECK(record->undo() == Outcome::OUTCOME_UNSPECIFIED) << "answered after its undo";
  GK_CHECK(answer.kind != Answer::Kind::kPending) << "a person answers done or refused";
  if (!GK_MUTANT(persons_answer_not_recorded)) RecordAnswer(answer, record);
  SendAnswer(answer, answer_type, *record, /*undo=*/false, record->reply_to(), turn);
}

void AnswerPendingUndo(const Answer& answer, absl::string_view answer_type, StepRecord* record,
                       Turn& turn) {
  GK_CHECK(record->undo() == Outcome::OUTCOME_PENDING);
  GK_CHECK(answer.kind == Answer::Kind::kDone) << "an undo is never refused";
  if (!GK_MUTANT(persons_undo_answer_not_recorded)) RecordUndoAnswer(answer, record);
  SendAnswer(answer, answer_type, *record, /*undo=*/true, record->undo_reply_to(), turn);
}

}  // namespace gaekju::flow
