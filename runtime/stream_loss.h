// stream_loss.h: tells from what the bus's streams had acknowledged, and what they are now, whether
// they have lost something; and how a message of an outbox is called, so that the repeat after a
// loss is no duplicate. The part of the relay that decides and does nothing, so that the simulator
// runs it too.
//
//   MergePositions(of_memory, &of_table);
//   StreamLoss loss = CompareStreams(of_table, /*given_twice=*/{}, streams);
//   if (!loss.why.empty()) …                                  // go back, to EpochAfterLoss(epoch)
//
// Pure.
#ifndef GAEKJU_RUNTIME_STREAM_LOSS_H_
#define GAEKJU_RUNTIME_STREAM_LOSS_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/strings/string_view.h"

namespace gaekju::runtime {

inline constexpr char kCommandsStreamName[] = "GAEKJU_COMMANDS";
inline constexpr char kAnswersStreamName[] = "GAEKJU_ANSWERS";
inline constexpr char kEventsStreamName[] = "GAEKJU_EVENTS";
inline constexpr char kDeadStreamName[] = "GAEKJU_DEAD";

// The stream that a subject's messages are kept in.
const char* StreamOf(absl::string_view subject);

// How far a stream had come when it last acknowledged something of ours, or has come now.
struct StreamPosition {
  int64_t created_ns = 0;  // when the stream was made
  int64_t last_seq = 0;
};
using StreamPositions = std::map<std::string, StreamPosition>;  // by stream

// Adds what memory knows to what the table does.
void MergePositions(const StreamPositions& memory, StreamPositions* table);

struct StreamLoss {
  std::string why;          // empty: nothing is lost
  StreamPositions left;     // of what was acknowledged, what is still there
  StreamPositions present;  // as given, but without what is known to be lost
};
// `known`: what was acknowledged. `given_twice`: the last sequence that can still be there, of
// streams that gave one out for the second time. `present`: the streams as they are.
StreamLoss CompareStreams(const StreamPositions& known,
                          const std::map<std::string, int64_t>& given_twice,
                          StreamPositions present);

// The epoch of what is published again, so that the broker's duplicate window does not swallow it.
int64_t EpochAfterLoss(int64_t epoch);

// Nats-Msg-Id of an outbox row.
std::string OutboxMessageId(absl::string_view context, int64_t incarnation, int64_t seq,
                            int64_t epoch);

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_STREAM_LOSS_H_
