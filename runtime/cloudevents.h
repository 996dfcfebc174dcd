// cloudevents.h: envelopes as CloudEvents 1.0 on the bus. One message carries what a turn has for
// one subject.
//
//   for (EncodedMessage& m : EncodeTurn("payment", turn.envelopes(), "7-41"))
//   outbox.Add(std::move(m)); absl::StatusOr<std::vector<DecodedEnvelope>> envelopes =
//   DecodeMessage(delivery.subject, delivery.headers, delivery.body);
//
// One envelope: binary mode of the NATS binding (attributes are headers "ce-…", the payload is the
// body). Several: batch mode (content-type application/cloudevents-batch+protobuf, body
// io.cloudevents.v1.CloudEventBatch). The attributes are the same in both; docs/adr has what a
// consumer in another language must do. Pure and thread-safe. The batch is written and read
// straight from the wire format: building its maps costs ten times as much, and this is the hot
// path.
//
//   attribute      of                what
//   id             all               unique within the source: "<id_prefix>.<index in the turn>"
//   source         all               "/gaekju/<context>"
//   specversion    all               "1.0"
//   type           all               event, answer: the payload's full name; command: the method's
//   full name time           all               when the turn ran, microseconds subject        all
//   event: the resource "<table>/<key>"; command and answer: the order id orderid        all may be
//   absent in events stepid         command, answer undo           command, answer   true when it
//   is the step's undo; else absent outcome        answer            "DONE", "REFUSED" or "PENDING"
//   replyto        command           the context that the answer goes to
//   version        event             contiguous per resource, from 1
//   traceparent    all               W3C; may be absent; the header is plain "traceparent"
#ifndef GAEKJU_RUNTIME_CLOUDEVENTS_H_
#define GAEKJU_RUNTIME_CLOUDEVENTS_H_

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "flow/turn.h"

namespace gaekju::runtime {

inline constexpr char kBinaryContentType[] = "application/protobuf";
inline constexpr char kBatchContentType[] = "application/cloudevents-batch+protobuf";

// A message is closed when it reaches either. One envelope that is larger goes alone.
inline constexpr size_t kBatchBytesMax = 256 * 1024;
inline constexpr size_t kBatchEventsMax = 512;

// One bus message. `headers` has everything but Nats-Msg-Id, which is the relay's.
struct EncodedMessage {
  std::string subject;
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
  std::vector<std::string>
      resources;  // of its events, each once: what a resend request may ask for
  size_t event_count = 0;
};

// Encodes a turn's envelopes, grouped by subject; within a subject their order is kept.
// `source`: the context. `id_prefix`: unique for the turn within the source; ids are
// "<id_prefix>.<index>". REQUIRES: `to` is set for commands and answers.
std::vector<EncodedMessage> EncodeTurn(absl::string_view source,
                                       absl::Span<const flow::Envelope> envelopes,
                                       absl::string_view id_prefix);

// An envelope as it was received.
struct DecodedEnvelope {
  flow::Envelope envelope;
  std::string source;  // the context, without "/gaekju/"
  std::string id;
};

// What stands in a bus message, in its order.
struct ReadEnvelope {
  absl::Status status;      // not OK: it cannot be read; INVALID_ARGUMENT, with what is wrong
  DecodedEnvelope decoded;  // when it cannot be read: what of it could be; the type, above all
  // Of a batch: the bytes of the message that are a batch of this envelope alone; of one that
  // breaks off, the rest. Empty: the envelope is the whole message.
  absl::string_view part;
};

// Reads a bus message of either mode; what can be read of it stands beside what cannot. `subject`:
// gaekju.command.<to>, gaekju.answer.<to> or gaekju.event.<source>.
std::vector<ReadEnvelope> ReadMessage(
    absl::string_view subject, const std::vector<std::pair<std::string, std::string>>& headers,
    absl::string_view body);

// The same, all or nothing. Errors: INVALID_ARGUMENT, with what is wrong.
absl::StatusOr<std::vector<DecodedEnvelope>> DecodeMessage(
    absl::string_view subject, const std::vector<std::pair<std::string, std::string>>& headers,
    absl::string_view body);

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_CLOUDEVENTS_H_
