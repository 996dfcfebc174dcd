#include "runtime/testing/fake_bus.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/match.h"
#include "flow/check.h"

namespace gaekju::runtime {
namespace {

std::string StreamOf(const std::string& subject) {
  if (absl::StartsWith(subject, "gaekju.command.")) return kCommandsStream;
  if (absl::StartsWith(subject, "gaekju.answer.")) return kAnswersStream;
  if (absl::StartsWith(subject, "gaekju.event.")) return kEventsStream;
  return kDeadStream;
}

}  // namespace

FakeBus::FakeBus() {
  for (const char* stream : {kCommandsStream, kAnswersStream, kEventsStream, kDeadStream}) {
    streams_[stream].created_ns = ++clock_ns_;
  }
  thread_ = std::thread([this] { Answer(); });
}

// Answers come on a thread of the bus, never from inside Publish.
void FakeBus::Answer() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    wake_.wait(lock, [&] { return closed_ || !answers_.empty(); });
    if (answers_.empty()) return;
    auto [done, result] = std::move(answers_.front());
    answers_.pop_front();
    lock.unlock();
    done(std::move(result));
    done = nullptr;
    lock.lock();
  }
}

void FakeBus::Publish(BusMessage message, PublishDone done) {
  std::lock_guard<std::mutex> lock(mutex_);
  absl::StatusOr<uint64_t> result = absl::UnavailableError("not connected");
  if (std::find(refused_.begin(), refused_.end(), message.body) != refused_.end()) {
    result = absl::InvalidArgumentError("too large");
  } else if (message.connection != 0 && message.connection != connection_) {
    result = absl::UnavailableError("another connection");
  } else if (connected_ && !closed_) {
    Stream& stream = streams_[StreamOf(message.subject)];
    const auto [it, is_new] = stream.ids.try_emplace(message.msg_id, stream.last_seq + 1);
    if (is_new) {
      stream.kept[++stream.last_seq] = message.msg_id;
      stored_.push_back(std::move(message));
      stored_wake_.notify_all();
    }
    result = it->second;
    if (lost_acks_ > 0) {
      --lost_acks_;
      result = absl::DeadlineExceededError("no ack");
    }
  }
  answers_.emplace_back(std::move(done), std::move(result));
  wake_.notify_all();
}

absl::StatusOr<std::vector<StreamState>> FakeBus::Streams() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!connected_) return absl::UnavailableError("not connected");
  std::vector<StreamState> states;
  for (const auto& [name, stream] : streams_)
    states.push_back({name, stream.created_ns, stream.first_seq, stream.last_seq});
  return states;
}

void FakeBus::Disconnect() {
  std::lock_guard<std::mutex> lock(mutex_);
  connected_ = false;
}

void FakeBus::Connect() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    connected_ = true;
    ++connection_;
  }
  TellConnect();
}

void FakeBus::Reconnect() {
  std::lock_guard<std::mutex> lock(mutex_);
  ++connection_;
}

absl::StatusOr<std::string> FakeBus::MessageId(const std::string& stream, uint64_t seq) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!connected_) return absl::UnavailableError("not connected");
  const auto& kept = streams_[stream].kept;
  const auto it = kept.find(seq);
  return it == kept.end() ? "" : it->second;
}

uint64_t FakeBus::connection() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return connected_ ? connection_ : 0;
}

void FakeBus::TellConnect() {
  std::vector<std::function<void()>> callbacks;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    callbacks = on_connect_;
  }
  for (const auto& callback : callbacks) callback();
}

void FakeBus::Wipe(const std::string& stream, bool same) {
  std::lock_guard<std::mutex> lock(mutex_);
  Stream fresh;
  fresh.created_ns = same ? streams_[stream].created_ns : ++clock_ns_;
  fresh.ids =
      streams_[stream].ids;  // the duplicate window is the worst case: it outlives everything
  streams_[stream] = std::move(fresh);
}

void FakeBus::Shorten(const std::string& stream, uint64_t last_seq) {
  std::lock_guard<std::mutex> lock(mutex_);
  GK_CHECK(streams_[stream].last_seq >= last_seq);
  streams_[stream].last_seq = last_seq;
  auto& kept = streams_[stream].kept;
  kept.erase(kept.upper_bound(last_seq), kept.end());
}

void FakeBus::RemoveUntil(const std::string& stream, uint64_t seq) {
  std::lock_guard<std::mutex> lock(mutex_);
  streams_[stream].first_seq = seq + 1;
  auto& kept = streams_[stream].kept;
  kept.erase(kept.begin(), kept.upper_bound(seq));
}

void FakeBus::Grow(const std::string& stream, int count) {
  std::lock_guard<std::mutex> lock(mutex_);
  streams_[stream].last_seq += static_cast<uint64_t>(count);
}

void FakeBus::LoseAcks(int count) {
  std::lock_guard<std::mutex> lock(mutex_);
  lost_acks_ = count;
}

void FakeBus::Refuse(std::string body) {
  std::lock_guard<std::mutex> lock(mutex_);
  refused_.push_back(std::move(body));
}

std::vector<BusMessage> FakeBus::stored() {
  std::lock_guard<std::mutex> lock(mutex_);
  return stored_;
}

bool FakeBus::WaitForStored(size_t count) {
  std::unique_lock<std::mutex> lock(mutex_);
  return stored_wake_.wait_for(lock, std::chrono::seconds(60),
                               [&] { return stored_.size() >= count; });
}

uint64_t FakeBus::last_seq(const std::string& stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  return streams_[stream].last_seq;
}

void FakeBus::OnConnect(std::function<void()> callback) {
  bool now;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    on_connect_.push_back(callback);
    now = connected_;
  }
  if (now) callback();
}

bool FakeBus::connected() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return connected_;
}

void FakeBus::Close() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return;
    closed_ = true;
    wake_.notify_all();
  }
  thread_.join();
}

}  // namespace gaekju::runtime
