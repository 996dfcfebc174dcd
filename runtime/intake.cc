#include "runtime/intake.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "flow/mutant.h"
#include "runtime/cloudevents.h"

namespace gaekju::runtime {

// Settles one delivery when all of its envelopes are.
struct Intake::Settlement {
  struct Dead {
    absl::string_view part;  // of the delivery; empty: all of it
    std::string type;
    std::string reason;
  };
  BusDelivery delivery;
  std::atomic<int> open{0};
  std::mutex mutex;
  std::map<int, Dead> dead;  // what can never work, by its place in the message
  bool again = false;        // one was not processed, or a dead letter not stored
};

struct Intake::Shared {
  // Publishes the dead letters, then acks.
  void Bury(const std::shared_ptr<Settlement>& settlement);

  const Options options;
  Bus* const bus;
  std::atomic<int64_t> dead_count{0};
};

Intake::Intake(Options options, TurnLoop* loop, Bus* bus)
    : shared_(new Shared{std::move(options), bus}), loop_(loop) {}

int64_t Intake::dead_count() const { return shared_->dead_count; }

void Intake::Shared::Bury(const std::shared_ptr<Settlement>& settlement) {
  const BusDelivery& delivery = settlement->delivery;
  settlement->open = static_cast<int>(settlement->dead.size());
  // Acked only when the dead letters are stored; until then all of it comes again.
  const auto stored = [settlement, delay = options.nak_delay](absl::StatusOr<uint64_t> seq) {
    if (!seq.ok() && seq.status().code() != absl::StatusCode::kInvalidArgument &&
        !GK_MUTANT(lost_dead_letter_acked)) {
      std::lock_guard<std::mutex> lock(settlement->mutex);
      settlement->again = true;
    }
    if (--settlement->open > 0) return;
    settlement->again ? settlement->delivery.Nak(delay) : settlement->delivery.Ack();
  };
  // Copied: the last one stored is the settlement's end.
  const std::map<int, Settlement::Dead> dead = settlement->dead;
  for (const auto& [index, one] : dead) {
    ++dead_count;
    if (options.dead) {
      options.dead(absl::StrCat(delivery.stream, "/", delivery.stream_seq, " ", delivery.subject),
                   one.reason);
    }
    if (one.part.empty()) {
      bus->Publish(DeadLetter(delivery, options.context, one.reason), stored);
      continue;
    }
    BusDelivery part;
    part.stream = delivery.stream;
    part.stream_seq = delivery.stream_seq;
    part.subject = delivery.subject;
    part.headers = {
        {"content-type", kBatchContentType},
        // Told apart from the rest of the message, and the same when it comes again.
        {"Nats-Msg-Id", absl::StrCat(delivery.stream, ":", delivery.stream_seq, ":",
                                     FindHeader(delivery.headers, "Nats-Msg-Id"), ":", index)}};
    // It may be what is broken.
    const bool is_name =
        !one.type.empty() && std::all_of(one.type.begin(), one.type.end(), absl::ascii_isgraph);
    if (is_name) part.headers.emplace_back("gaekju-dead-type", one.type);
    part.body = std::string(one.part);
    bus->Publish(DeadLetter(part, options.context, one.reason), stored);
  }
}

void Intake::Take(BusDelivery delivery) {
  auto settlement = std::make_shared<Settlement>();
  settlement->delivery = std::move(delivery);
  const BusDelivery& message = settlement->delivery;
  std::vector<ReadEnvelope> read = ReadMessage(message.subject, message.headers, message.body);
  // One more than the envelopes: nothing is settled before all of them were submitted.
  settlement->open = static_cast<int>(read.size()) + 1;
  const auto settle = [shared = shared_, settlement] {
    if (--settlement->open > 0) return;
    // Whoever comes last is alone. An envelope that was not processed brings the whole message
    // again; handlers are idempotent.
    if (settlement->again && !GK_MUTANT(unprocessed_message_acked))
      return settlement->delivery.Nak(shared->options.nak_delay);
    if (!settlement->dead.empty()) return shared->Bury(settlement);
    settlement->delivery.Ack();
  };
  for (size_t i = 0; i < read.size(); ++i) {
    Settlement::Dead as_dead{read[i].part, read[i].decoded.envelope.type, ""};
    Submit(std::move(read[i]), [settlement, settle, index = static_cast<int>(i),
                                as_dead = std::move(as_dead)](const absl::Status& status) {
      if (!status.ok()) {
        std::lock_guard<std::mutex> lock(settlement->mutex);
        if (status.code() != absl::StatusCode::kInvalidArgument) {
          settlement->again = true;
        } else {
          Settlement::Dead& dead = settlement->dead[index] = as_dead;
          dead.reason = std::string(status.message());
        }
      }
      settle();
    });
  }
  settle();
}

void Intake::Submit(ReadEnvelope read, std::function<void(absl::Status)> settled) {
  DecodedEnvelope& decoded = read.decoded;
  flow::Envelope& envelope = decoded.envelope;
  if (!read.status.ok()) {
    // A newer source may send what only newer contexts need to read.
    const bool is_unneeded = envelope.kind == flow::Envelope::Kind::kEvent &&
                             !envelope.type.empty() && loop_->FindEvent(envelope.type) == nullptr;
    return settled(is_unneeded ? absl::OkStatus() : read.status);
  }
  flow::Caller caller;
  caller.traceparent = envelope.traceparent;
  if (envelope.kind == flow::Envelope::Kind::kAnswer) {
    flow::StepResult result;
    result.order_id = std::move(envelope.order_id);
    result.step_id = std::move(envelope.step_id);
    result.undo = envelope.undo;
    result.outcome = envelope.outcome;
    result.payload = std::move(envelope.payload);
    return loop_->Submit(std::move(result), std::move(envelope.traceparent), std::move(settled));
  }
  const bool is_command = envelope.kind == flow::Envelope::Kind::kCommand;
  const flow::Handler* handler =
      is_command ? loop_->FindHandler(envelope.type) : loop_->FindEvent(envelope.type);
  if (handler == nullptr) {
    // Sources publish events of which a context needs only some.
    if (!is_command) return settled(absl::OkStatus());
    return settled(absl::InvalidArgumentError(
        absl::StrCat(shared_->options.context, " does not know ", envelope.type)));
  }
  std::unique_ptr<google::protobuf::Message> message(handler->request().New());
  if (!message->ParseFromString(envelope.payload)) {
    return settled(
        absl::InvalidArgumentError(absl::StrCat("the payload is no ", message->GetTypeName())));
  }
  if (shared_->options.make_uuid) caller.request_uuid = shared_->options.make_uuid();
  if (is_command) {
    caller.reply_to = std::move(envelope.reply_to);
    loop_->Submit(Command{handler, std::move(message), std::move(caller),
                          std::move(envelope.order_id), std::move(envelope.step_id), envelope.undo,
                          std::move(settled)});
    return;
  }
  caller.event = {std::move(decoded.source),
                  std::move(decoded.id),
                  std::move(envelope.type),
                  std::move(envelope.resource),
                  std::move(envelope.order_id),
                  envelope.version,
                  envelope.time_us};
  loop_->Submit(Event{handler, std::move(message), std::move(caller), std::move(settled)});
}

}  // namespace gaekju::runtime
