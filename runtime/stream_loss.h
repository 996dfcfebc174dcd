// stream_loss.h: tells from what the bus's streams had acknowledged, and what they are now, whether
// they have lost something, and where a consumer begins again that is ahead of its stream; and how
// a message of an outbox is called, so that the repeat after a loss is no duplicate. The parts of
// the relay and the bus that decide and do nothing, so that the simulator runs them too.
//
//   MergePositions(of_memory, &of_table);
//   auto why = FindLoss(of_table, /*given_twice=*/{}, streams, message_id_at);
//   if (why.ok() && !why->empty()) …      // go back to WhatIsLeft(…), with EpochAfterLoss(epoch)
//
// A stream that was made anew is younger, and one that came back without its newest messages is
// shorter, until somebody publishes. After that only its content tells: at the sequence that was
// acknowledged to us stands another message than ours. Losses are of a stream's end: a message that
// is still there means that all before it are (or were, until a limit of the stream removed them).
//
// Pure.
#ifndef GAEKJU_RUNTIME_STREAM_LOSS_H_
#define GAEKJU_RUNTIME_STREAM_LOSS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace gaekju::runtime {

inline constexpr char kCommandsStreamName[] = "GAEKJU_COMMANDS";
inline constexpr char kAnswersStreamName[] = "GAEKJU_ANSWERS";
inline constexpr char kEventsStreamName[] = "GAEKJU_EVENTS";
inline constexpr char kDeadStreamName[] = "GAEKJU_DEAD";

// The stream that a subject's messages are kept in.
const char* StreamOf(absl::string_view subject);

// How far a stream had come when it last acknowledged something of ours.
struct StreamPosition {
  int64_t created_ns = 0;  // when the stream was made
  int64_t last_seq = 0;
  std::string msg_id;  // our message's, which has that sequence; empty: not known
};
using StreamPositions = std::map<std::string, StreamPosition>;  // by stream

// A stream as it is.
struct StreamNow {
  int64_t created_ns = 0;
  int64_t first_seq = 1;  // what came before has been removed by the stream's limits
  int64_t last_seq = 0;
};
using StreamsNow = std::map<std::string, StreamNow>;  // by stream

// The Nats-Msg-Id of a stream's message, or nothing when there is none with that sequence.
using MessageIdAt =
    std::function<absl::StatusOr<std::string>(const std::string& stream, int64_t seq)>;

// Adds what memory knows to what the table does.
void MergePositions(const StreamPositions& memory, StreamPositions* table);

// Why something is lost; empty: nothing is. Asks for one message of each stream. `known`: what was
// acknowledged. `given_twice`: the last sequence that can still be there, of streams that gave one
// out for the second time. Errors: those of `message_id_at`.
absl::StatusOr<std::string> FindLoss(const StreamPositions& known,
                                     const std::map<std::string, int64_t>& given_twice,
                                     const StreamsNow& present, const MessageIdAt& message_id_at);

// For each stream of `present`, the furthest of `acknowledged` that it still has; with sequence 0
// when it has none. Asks for a few messages (a binary search). Errors: those of `message_id_at`.
absl::StatusOr<StreamPositions> WhatIsLeft(
    const std::map<std::string, std::vector<StreamPosition>>& acknowledged,
    const StreamsNow& present, const MessageIdAt& message_id_at);

// The sequence at which a durable consumer has to begin again that is ahead of its stream, because
// the server kept its state and not the newest messages: what is published next would never be
// delivered to it. 0: it is not ahead. `last_seq_before`, `last_seq`: the stream's, before and
// after the consumer's numbers were asked for.
int64_t RestartOfConsumer(int64_t delivered_seq, int64_t ack_floor_seq, int64_t last_seq_before,
                          int64_t last_seq);

// The epoch of what is published again, so that the broker's duplicate window does not swallow it.
int64_t EpochAfterLoss(int64_t epoch);

// Nats-Msg-Id of an outbox row.
std::string OutboxMessageId(absl::string_view context, int64_t incarnation, int64_t seq,
                            int64_t epoch);

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_STREAM_LOSS_H_
