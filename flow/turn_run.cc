#include "flow/turn_run.h"

#include "absl/strings/str_cat.h"
#include "flow/mutant.h"
#include "google/protobuf/descriptor.h"
#include "google/rpc/code.pb.h"

namespace gaekju::flow {

TurnRunner::TurnRunner(const Context& context, int item_retries_max)
    : context_(context), item_retries_max_(item_retries_max) {
  const auto* pool = google::protobuf::DescriptorPool::generated_pool();
  for (const auto& handler : context.handlers) {
    handlers_[handler->name()] = handler.get();
    if (const auto* method = pool->FindMethodByName(handler->name())) {
      response_types_[handler.get()] = method->output_type()->full_name();
    }
  }
  for (const auto& handler : context.events) events_[handler->name()] = handler.get();
}

const Handler* TurnRunner::FindHandler(absl::string_view method) const {
  const auto it = handlers_.find(method);
  return it == handlers_.end() ? nullptr : it->second;
}

const Handler* TurnRunner::FindEvent(absl::string_view type) const {
  const auto it = events_.find(type);
  return it == events_.end() ? nullptr : it->second;
}

void TurnRunner::CollectKeys(TurnItem& item) const {
  if (item.has_keys) return;
  item.has_keys = true;
  switch (item.kind) {
    case TurnItem::Kind::kCommand:
      item.answer.status = item.handler->Validate(*item.message);
      if (item.answer.status.code() != 0) {
        item.answer.kind = Answer::Kind::kRefused;
        item.is_bad = true;
        return;
      }
      [[fallthrough]];
    case TurnItem::Kind::kRequest:
    case TurnItem::Kind::kEvent:
      item.handler->Keys(*item.message, item.caller, &item.keys);
      break;
    case TurnItem::Kind::kResult:
      context_.result_keys(item.result, &item.keys);
      break;
    case TurnItem::Kind::kTimer:
      context_.timer.keys(item.timer_key, &item.keys);
      break;
  }
  for (const RowKey& key : item.keys) {
    if (key.key.size() <= kKeyBytesMax && key.key.find('\0') == std::string::npos) continue;
    item.is_bad = true;
    item.keys.clear();
    item.answer =
        Refuse(google::rpc::INVALID_ARGUMENT, context_.service, "FIELD_INVALID",
               absl::StrCat("a key is longer than ", kKeyBytesMax, " bytes, or holds a zero byte"));
    return;
  }
}

void TurnRunner::Handle(TurnItem& item, Turn& turn) const {
  turn.set_traceparent(item.caller.traceparent);
  if (!item.is_bad) {
    switch (item.kind) {
      case TurnItem::Kind::kRequest:
      case TurnItem::Kind::kCommand:
      case TurnItem::Kind::kEvent:
        item.answer = item.handler->Handle(*item.message, item.caller, turn);
        break;
      case TurnItem::Kind::kResult:
        context_.on_result(item.result, turn);
        break;
      case TurnItem::Kind::kTimer:
        context_.timer.due(item.timer_key, turn);
        break;
    }
  }
  if (item.answer.kind == Answer::Kind::kRetry) {
    if (++item.retries <= item_retries_max_) {
      if (!GK_MUTANT(more_rows_never_loaded))
        item.keys.insert(item.keys.end(), item.answer.more_keys.begin(),
                         item.answer.more_keys.end());
      return;
    }
    item.answer = Refuse(google::rpc::ABORTED, context_.service, "TOO_MANY_RETRIES",
                         "the rows kept changing");
  }
  if (item.kind == TurnItem::Kind::kCommand) AnswerCommand(item, turn);
}

void TurnRunner::AnswerCommand(const TurnItem& item, Turn& turn) const {
  // Without its ids nobody could tell what the answer is to.
  if (item.caller.reply_to.empty() || item.order_id.empty() || item.step_id.empty()) return;
  Envelope envelope;
  envelope.kind = Envelope::Kind::kAnswer;
  envelope.to = item.caller.reply_to;
  envelope.order_id = item.order_id;
  envelope.step_id = item.step_id;
  envelope.undo = item.undo && !GK_MUTANT(undos_answer_reads_as_the_steps);
  const auto type = response_types_.find(item.handler);
  if (type != response_types_.end()) envelope.type = type->second;
  switch (item.answer.kind) {
    case Answer::Kind::kDone:
      envelope.outcome = Outcome::OUTCOME_DONE;
      envelope.payload = item.answer.payload;
      break;
    case Answer::Kind::kRefused:
      if (GK_MUTANT(refused_command_not_answered)) return;
      envelope.outcome = Outcome::OUTCOME_REFUSED;
      envelope.type = item.answer.status.GetTypeName();
      envelope.payload = item.answer.status.SerializeAsString();
      break;
    case Answer::Kind::kPending:
      envelope.outcome = Outcome::OUTCOME_PENDING;
      break;
    case Answer::Kind::kWait:  // whoever asked asks again
    case Answer::Kind::kRetry:
      return;
  }
  turn.Send(std::move(envelope));
}

StepResult ResultOfCall(const Call& call, const google::rpc::Status& status, bool pending,
                        std::string payload) {
  StepResult out;
  out.order_id = call.order_id;
  out.step_id = call.step_id;
  out.undo = call.undo;
  switch (status.code()) {
    case google::rpc::OK:
      out.outcome = pending && !GK_MUTANT(pending_call_counts_as_done) ? Outcome::OUTCOME_PENDING
                                                                       : Outcome::OUTCOME_DONE;
      out.payload = std::move(payload);
      return out;
    case google::rpc::INVALID_ARGUMENT:
    case google::rpc::NOT_FOUND:
    case google::rpc::ALREADY_EXISTS:
    case google::rpc::FAILED_PRECONDITION:
    case google::rpc::OUT_OF_RANGE:
      out.outcome = Outcome::OUTCOME_REFUSED;
      break;
    default:
      out.unreachable = !GK_MUTANT(unknown_fate_counts_as_refused);
      if (!out.unreachable) out.outcome = Outcome::OUTCOME_REFUSED;
  }
  out.payload = status.SerializeAsString();
  return out;
}

}  // namespace gaekju::flow
