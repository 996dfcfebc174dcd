#include "runtime/stream_loss.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace gaekju::runtime {

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
    if (merged.created_ns == position.created_ns) {
      merged.last_seq = std::max(merged.last_seq, position.last_seq);
    } else {
      merged = position;
    }
  }
}

StreamLoss CompareStreams(const StreamPositions& known,
                          const std::map<std::string, int64_t>& given_twice,
                          StreamPositions present) {
  StreamLoss loss;
  auto tell = [&loss](auto... parts) {
    absl::StrAppend(&loss.why, loss.why.empty() ? "" : "; ", parts...);
  };
  for (auto& [name, position] : present) {
    const auto lost = given_twice.find(name);
    if (lost == given_twice.end()) continue;
    tell(name, " gave out sequence ", lost->second + 1, " twice");
    position.last_seq = std::min(position.last_seq, lost->second);
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
    }
  }
  for (const auto& [name, position] : present) {
    StreamPosition& left = loss.left[name];
    left.created_ns = position.created_ns;
    const auto it = known.find(name);
    if (it == known.end() || it->second.created_ns != position.created_ns) continue;
    left.last_seq = std::min(it->second.last_seq, position.last_seq);
  }
  loss.present = std::move(present);
  return loss;
}

int64_t EpochAfterLoss(int64_t epoch) { return epoch + 1; }

std::string OutboxMessageId(absl::string_view context, int64_t incarnation, int64_t seq,
                            int64_t epoch) {
  return absl::StrCat(context, ":", incarnation, ":", seq, ":", epoch);
}

}  // namespace gaekju::runtime
