// bus.h: the courier between contexts: at-least-once messages over NATS JetStream.
//
// The bus may lose, repeat and reorder messages, and its whole store may be wiped; the outbox is
// the truth, and what is asked for and not answered is asked again. So the bus promises little: a
// message that was acknowledged to Publish is delivered to every consumer at least once unless the
// store is lost; a consumer comes back by itself after any outage, also to an empty server.
//
//   NatsBus bus({.urls = {"nats://127.0.0.1:4222"}, .name = "payment"});
//   bus.Consume({.stream = kCommandsStream, .durable = "payment", .filter_subject =
//   CommandSubject("payment")},
//               [&](BusDelivery delivery) { queue.Push(std::move(delivery)); });          // ack
//               after COMMIT
//   bus.Publish({.subject = AnswerSubject("order"), .msg_id = "payment:7:41:0", .headers = …, .body
//   = …},
//               [](absl::StatusOr<uint64_t> stream_seq) { … });
//
// Threads: every function may be called from any thread. Callbacks run on the bus's threads: they
// only enqueue, never block, and never call a blocking function of the bus (Streams, Request,
// Close).
#ifndef GAEKJU_RUNTIME_BUS_H_
#define GAEKJU_RUNTIME_BUS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace gaekju::runtime {

// The streams. File storage, max_age 24 h, max_bytes 1 GiB (events: 4 GiB), discard old, duplicate
// window 2 min.
inline constexpr char kCommandsStream[] = "GAEKJU_COMMANDS";  // gaekju.command.<context asked>
inline constexpr char kAnswersStream[] = "GAEKJU_ANSWERS";    // gaekju.answer.<context that asked>
inline constexpr char kEventsStream[] = "GAEKJU_EVENTS";      // gaekju.event.<source>
inline constexpr char kDeadStream[] =
    "GAEKJU_DEAD";  // gaekju.dead.<context that could not handle it>

std::string CommandSubject(absl::string_view to);
std::string AnswerSubject(absl::string_view to);
std::string EventSubject(absl::string_view source);
std::string DeadSubject(absl::string_view context);
std::string ResendSubject(absl::string_view context);  // core NATS, no stream

using BusHeaders = std::vector<std::pair<std::string, std::string>>;

// The header's value, or empty. Names are compared as they are written.
absl::string_view FindHeader(const BusHeaders& headers, absl::string_view name);

// A message for a stream. `msg_id` becomes Nats-Msg-Id: the server stores one of those with the
// same id within 2 minutes. Header values hold no CR or LF.
struct BusMessage {
  std::string subject;
  std::string msg_id;
  BusHeaders headers;
  std::string body;
  // Not 0: is only sent over this connection, see Bus::connection.
  uint64_t connection = 0;
};

// The stream's sequence (of the first one for a duplicate), or why it is not known to be stored:
// UNAVAILABLE (not connected, the connection broke or is another than the message's, or the stream
// is not there now),
// DEADLINE_EXCEEDED (no ack within publish_timeout), INVALID_ARGUMENT (too large, or a bad subject
// or header: never succeeds), FAILED_PRECONDITION (the server refused it), CANCELLED (Close). After
// UNAVAILABLE and DEADLINE_EXCEEDED it may be stored all the same.
using PublishDone = std::function<void(absl::StatusOr<uint64_t> stream_seq)>;

// What the server knows of a stream. A stream that was lost and made again has a later
// `created_ns`. One that came back without its newest messages has a lower `last_seq`, until others
// have published.
struct StreamState {
  std::string name;
  int64_t created_ns = 0;  // nanoseconds since 1970, by the server's clock
  uint64_t first_seq = 0;
  uint64_t last_seq = 0;
};

// A durable push consumer; processes that name the same stream and durable share its messages.
struct ConsumerSpec {
  std::string stream;
  std::string durable;         // no '.', '*', '>' or spaces
  std::string filter_subject;  // empty: all of the stream
  int max_ack_pending =
      1024;  // delivered and not acknowledged, over all processes; then the server waits
  // A delivery of which the server has not heard for so long is delivered again, to any process. A
  // durable that stands with another ack_wait or max_ack_pending is changed, in its place.
  absl::Duration ack_wait = absl::Seconds(5);
};

// One delivery. While a copy of it lives and neither Ack nor Nak was called, it is in hand: the bus
// tells the server so at least every half ack_wait, and it does not come again, however long it
// takes. It comes again after ack_wait when the last copy goes without a word, when an ack is lost,
// and when the process or its connection stands still or dies: then to another process too.
// Movable and copyable; Ack and Nak may be called from any thread, also after Close (then they do
// nothing); the first call counts.
struct BusDelivery {
  std::string stream;
  std::string subject;
  BusHeaders headers;
  std::string body;
  uint64_t stream_seq = 0;
  uint64_t delivered = 1;  // 1: the first time

  void Ack() const;
  // Comes again after `delay`; > 0, because a delay of nothing is a loop at full speed.
  void Nak(absl::Duration delay) const;

  // How the bus hears of it: < 0 means ack, otherwise nak with a delay in microseconds. Set by the
  // bus.
  std::function<void(int64_t nak_delay_us)> settle;
};
using DeliveryHandler = std::function<void(BusDelivery delivery)>;

// A message outside any stream: at most once. `reply_to` is empty when nobody waits for an answer.
struct CoreMessage {
  std::string subject;
  std::string reply_to;
  std::string body;
};
using CoreHandler = std::function<void(CoreMessage message)>;

// The dead letter of a delivery that `context` cannot handle: the same headers and body, with why
// and where from (gaekju-dead-reason, -subject, -stream, -seq). Publish it, and Ack the delivery
// once it is stored.
BusMessage DeadLetter(const BusDelivery& delivery, absl::string_view context,
                      absl::string_view reason);

// See the head of the file.
class Bus {
 public:
  virtual ~Bus() = default;

  // Stores a message in the stream of its subject. `done` is called exactly once, from a thread of
  // the bus (after Close: from inside Publish). Never blocks. The caller bounds what is in flight
  // (~1024).
  virtual void Publish(BusMessage message, PublishDone done) = 0;

  // The four streams, missing ones made first. Blocks for at most api_timeout each. Errors:
  // UNAVAILABLE.
  virtual absl::StatusOr<std::vector<StreamState>> Streams() = 0;

  // The Nats-Msg-Id of a stream's message; empty when it has none, or when there is no such
  // message. Blocks for at most api_timeout. Errors: UNAVAILABLE.
  virtual absl::StatusOr<std::string> MessageId(const std::string& stream, uint64_t seq) = 0;

  // Which connection this is, over which streams and consumers were found to stand; 0: none. Who
  // looks at the streams after asking for it, and publishes with it, publishes to what was looked
  // at: a server that was started again, with another store perhaps, is another connection.
  virtual uint64_t connection() const = 0;

  // Delivers a consumer's messages to `handler` until Close, from now on or from when the server
  // can be reached, one after the other on a thread of its own. The durable is made when the server
  // has none, at every connect and within 2 s at other times. One that is ahead of its stream (the
  // server kept it, and not the stream's newest messages) is made anew where the stream ends, also
  // those of others: at every connect, before anything is published. Errors: INVALID_ARGUMENT.
  virtual absl::Status Consume(ConsumerSpec spec, DeliveryHandler handler) = 0;

  // Core NATS: at most once, lost when nobody listens or the bus is down.
  // Subscribers that name the same `group` share the messages; empty: everyone gets all.
  virtual absl::Status Subscribe(std::string subject, std::string group, CoreHandler handler) = 0;
  virtual absl::Status PublishCore(absl::string_view subject, absl::string_view body) = 0;
  // Waits for one answer. Errors: UNAVAILABLE (not connected, or nobody listens),
  // DEADLINE_EXCEEDED.
  virtual absl::StatusOr<std::string> Request(absl::string_view subject, absl::string_view body,
                                              absl::Duration timeout) = 0;

  // Calls `callback` after every connect, once the streams and consumers stand, and whenever a
  // stream was found lost or made anew; at once (from a thread of the bus) if it is connected
  // already. The relay compares Streams() then.
  virtual void OnConnect(std::function<void()> callback) = 0;

  // Whether messages flow now, as far as is known (a silent server is noticed after ~10 s).
  virtual bool connected() const = 0;

  // Takes no further deliveries, hands those that have come to their handlers, and returns then (or
  // after a second); the rest goes to other processes at once. Acks and publishes go on until
  // Close. For a drain: without it, what is on its way to us comes again only after ack_wait.
  virtual void StopConsuming() {}

  // Ends everything: no callback runs after it has returned; pending publishes end with CANCELLED.
  // Idempotent.
  virtual void Close() = 0;
};

// How to reach the servers. The defaults are those of production.
struct NatsBusOptions {
  std::vector<std::string> urls = {"nats://127.0.0.1:4222"};
  std::string name = "gaekju";  // shown by the server's monitoring; the context
  std::string user;
  std::string password;
  std::string credentials_file;
  std::string tls_ca_file;                            // not empty: TLS
  int replicas = 1;                                   // of each stream
  absl::Duration publish_timeout = absl::Seconds(5);  // an ack that has not come by then is lost
  absl::Duration api_timeout = absl::Seconds(2);      // for one request to JetStream's API
  absl::Duration check_interval =
      absl::Milliseconds(1500);  // between two looks whether streams and consumers still stand
  absl::Duration reconnect_wait =
      absl::Milliseconds(200);                      // between two tries; plus up to as much jitter
  absl::Duration ping_interval = absl::Seconds(5);  // two unanswered: the connection is dead
};

// Counters since the start; for metrics.
struct BusStats {
  uint64_t published = 0;  // acknowledged by the server
  uint64_t publish_failed = 0;
  uint64_t publish_duplicates = 0;  // of `published`
  uint64_t in_flight = 0;           // now
  uint64_t delivered = 0;
  uint64_t redelivered = 0;  // of `delivered`
  uint64_t acked = 0;
  uint64_t naked = 0;
  uint64_t in_progress = 0;  // words to the server that a delivery is still in hand
  uint64_t stale_acks = 0;   // dropped: the stream has lost what they are for
  uint64_t connects = 0;
  uint64_t streams_made = 0;
  uint64_t consumers_made = 0;
  uint64_t consumers_updated = 0;  // to other settings
  uint64_t consumers_mended = 0;   // were ahead of their streams
};

// Bus over nats.c. Connects in the background and for ever; one connection.
class NatsBus : public Bus {
 public:
  explicit NatsBus(NatsBusOptions options);
  ~NatsBus() override;  // closes
  NatsBus(const NatsBus&) = delete;
  NatsBus& operator=(const NatsBus&) = delete;

  void Publish(BusMessage message, PublishDone done) override;
  absl::StatusOr<std::vector<StreamState>> Streams() override;
  absl::StatusOr<std::string> MessageId(const std::string& stream, uint64_t seq) override;
  uint64_t connection() const override;
  absl::Status Consume(ConsumerSpec spec, DeliveryHandler handler) override;
  absl::Status Subscribe(std::string subject, std::string group, CoreHandler handler) override;
  absl::Status PublishCore(absl::string_view subject, absl::string_view body) override;
  absl::StatusOr<std::string> Request(absl::string_view subject, absl::string_view body,
                                      absl::Duration timeout) override;
  void OnConnect(std::function<void()> callback) override;
  bool connected() const override;
  void StopConsuming() override;
  void Close() override;

  BusStats stats() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_BUS_H_
