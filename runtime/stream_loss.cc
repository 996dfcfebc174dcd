#include "runtime/stream_loss.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace gaekju::runtime {

namespace {

// Whether the stream has the message that it acknowledged. REQUIRES: of the same life.
absl::StatusOr<bool> StillHas(const std::string& name, const StreamPosition& position,
                              const StreamNow& now, const MessageIdAt& message_id_at) {
  if (position.last_seq > now.last_seq) return false;
  // What a limit has removed, or who it was is not known: the numbers have to do.
  if (position.last_seq < now.first_seq || position.msg_id.empty()) return true;
  absl::StatusOr<std::string> msg_id = message_id_at(name, position.last_seq);
  if (!msg_id.ok()) return msg_id.status();
  return *msg_id == position.msg_id;
}

}  // namespace

const char* StreamOf(absl::string_view subject) {
  if (absl::StartsWith(subject, "gaekju.command.")) return kCommandsStreamName;
  if (absl::StartsWith(subject, "gaekju.answer.")) return kAnswersStreamName;
  if (absl::StartsWith(subject, "gaekju.event.")) return kEventsStreamName;
  return kDeadStreamName;
}

void MergePositions(const StreamPositions& memory, StreamPositions* table) {
  for (const auto& [stream, position] : memory) {
    if (position.last_seq == 0) continue;
    StreamPosition& merged = (*table)[stream];
    if (merged.created_ns != position.created_ns || merged.last_seq < position.last_seq)
      merged = position;
  }
}

absl::StatusOr<std::string> FindLoss(const StreamPositions& known,
                                     const std::map<std::string, int64_t>& given_twice,
                                     const StreamsNow& present, const MessageIdAt& message_id_at) {
  std::string why;
  auto tell = [&why](auto... parts) { absl::StrAppend(&why, why.empty() ? "" : "; ", parts...); };
  for (const auto& [name, last] : given_twice) {
    if (present.contains(name)) tell(name, " gave out sequence ", last + 1, " twice");
  }
  for (const auto& [name, position] : known) {
    if (position.last_seq == 0) continue;
    const auto it = present.find(name);
    if (it == present.end()) {
      tell(name, " is gone");
    } else if (it->second.created_ns != position.created_ns) {
      tell(name, " was made anew");
    } else if (it->second.last_seq < position.last_seq) {
      tell(name, " ends at ", it->second.last_seq, " and had ", position.last_seq);
    } else {
      absl::StatusOr<bool> still_has = StillHas(name, position, it->second, message_id_at);
      if (!still_has.ok()) return still_has.status();
      if (!*still_has) tell(name, " has another message at ", position.last_seq);
    }
  }
  return why;
}

absl::StatusOr<StreamPositions> WhatIsLeft(
    const std::map<std::string, std::vector<StreamPosition>>& acknowledged,
    const StreamsNow& present, const MessageIdAt& message_id_at) {
  StreamPositions left;
  for (const auto& [name, now] : present) {
    left[name].created_ns = now.created_ns;
    const auto it = acknowledged.find(name);
    if (it == acknowledged.end()) continue;
    std::vector<StreamPosition> of_this_life;
    for (const StreamPosition& position : it->second) {
      if (position.created_ns == now.created_ns) of_this_life.push_back(position);
    }
    std::sort(of_this_life.begin(), of_this_life.end(),
              [](const auto& a, const auto& b) { return a.last_seq < b.last_seq; });
    // Invariant: it has those before `begin`, and not those from `end` on.
    size_t begin = 0, end = of_this_life.size();
    while (begin < end) {
      const size_t middle = begin + (end - begin) / 2;
      absl::StatusOr<bool> still_has = StillHas(name, of_this_life[middle], now, message_id_at);
      if (!still_has.ok()) return still_has.status();
      (*still_has ? begin : end) = *still_has ? middle + 1 : middle;
    }
    if (begin > 0) left[name] = of_this_life[begin - 1];
  }
  return left;
}

int64_t RestartOfConsumer(int64_t delivered_seq, int64_t ack_floor_seq, int64_t last_seq_before,
                          int64_t last_seq) {
  if (delivered_seq <= last_seq) return 0;
  return std::min(ack_floor_seq, last_seq_before) + 1;
}

int64_t EpochAfterLoss(int64_t epoch) { return epoch + 1; }

std::string OutboxMessageId(absl::string_view context, int64_t incarnation, int64_t seq,
                            int64_t epoch) {
  return absl::StrCat(context, ":", incarnation, ":", seq, ":", epoch);
}

}  // namespace gaekju::runtime
