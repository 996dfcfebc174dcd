#include "runtime/intake.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/cloudevents.h"

namespace gaekju::runtime {
namespace {

// Settles one delivery when all of its envelopes are.
struct Settlement {
  BusDelivery delivery;
  std::atomic<int> open{0};
  std::mutex mutex;
  std::string dead_reason;  // of the first that can never work
  bool again = false;       // one was not processed
};

}  // namespace

struct Intake::Shared {
  // Publishes the dead letter, then acks.
  void Bury(const BusDelivery& delivery, const std::string& reason);

  const Options options;
  Bus* const bus;
  std::atomic<int64_t> dead_count{0};
};

Intake::Intake(Options options, TurnLoop* loop, Bus* bus)
    : shared_(new Shared{std::move(options), bus}), loop_(loop) {}

int64_t Intake::dead_count() const { return shared_->dead_count; }

void Intake::Shared::Bury(const BusDelivery& delivery, const std::string& reason) {
  ++dead_count;
  if (options.dead) {
    options.dead(absl::StrCat(delivery.stream, "/", delivery.stream_seq, " ", delivery.subject),
                 reason);
  }
  // Acked only when the dead letter is stored; until then it comes again.
  bus->Publish(DeadLetter(delivery, options.context, reason),
               [delivery, delay = options.nak_delay](absl::StatusOr<uint64_t> stored) {
                 if (stored.ok() || stored.status().code() == absl::StatusCode::kInvalidArgument) {
                   delivery.Ack();
                 } else {
                   delivery.Nak(delay);
                 }
               });
}

void Intake::Take(BusDelivery delivery) {
  auto envelopes = DecodeMessage(delivery.subject, delivery.headers, delivery.body);
  if (!envelopes.ok()) return shared_->Bury(delivery, std::string(envelopes.status().message()));
  if (envelopes->empty()) return delivery.Ack();

  auto settlement = std::make_shared<Settlement>();
  settlement->delivery = std::move(delivery);
  // One more than the envelopes: nothing is settled before all of them were submitted.
  settlement->open = static_cast<int>(envelopes->size()) + 1;
  const auto settled = [shared = shared_, settlement](absl::Status status) {
    if (!status.ok()) {
      std::lock_guard<std::mutex> lock(settlement->mutex);
      if (status.code() != absl::StatusCode::kInvalidArgument) {
        settlement->again = true;
      } else if (settlement->dead_reason.empty()) {
        settlement->dead_reason = std::string(status.message());
      }
    }
    if (--settlement->open > 0) return;
    // Whoever comes last is alone. An envelope that was not processed brings the whole message
    // again; handlers are idempotent.
    if (settlement->again) return settlement->delivery.Nak(shared->options.nak_delay);
    if (!settlement->dead_reason.empty())
      return shared->Bury(settlement->delivery, settlement->dead_reason);
    settlement->delivery.Ack();
  };
  for (DecodedEnvelope& decoded : *envelopes) Submit(std::move(decoded), settled);
  settled(absl::OkStatus());
}

void Intake::Submit(DecodedEnvelope decoded, std::function<void(absl::Status)> settled) {
  flow::Envelope& envelope = decoded.envelope;
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
