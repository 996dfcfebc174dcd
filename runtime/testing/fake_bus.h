// fake_bus.h: streams in memory, which a test can cut off, wipe, shorten, hold and make fail.
// As the real one, it stores only one of several messages with the same msg_id. Thread-safe.
#ifndef GAEKJU_RUNTIME_TESTING_FAKE_BUS_H_
#define GAEKJU_RUNTIME_TESTING_FAKE_BUS_H_

#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/bus.h"

namespace gaekju::runtime {

class FakeBus : public Bus {
 public:
  FakeBus();
  ~FakeBus() override { Close(); }

  // --- for tests
  // Cuts the connection: what is in flight fails or is lost, and everything after it fails.
  void Disconnect();
  void Connect();  // and tells OnConnect
  // The connection is another one, and nobody knows yet.
  void Reconnect();
  // Empties a stream, made anew or (`same`) with its old creation time and its sequence from 1.
  void Wipe(const std::string& stream, bool same = false);
  // Forgets what a stream has above `last_seq`, as after a lost disk cache.
  void Shorten(const std::string& stream, uint64_t last_seq);
  // What a limit of the stream does.
  void RemoveUntil(const std::string& stream, uint64_t seq);
  // Somebody else's messages.
  void Grow(const std::string& stream, int count);
  // The next publishes are stored, but their acknowledgements are lost.
  void LoseAcks(int count);
  // Publishes of messages with this body can never work.
  void Refuse(std::string body);
  // Runs `poke` under no lock, then tells OnConnect.
  void TellConnect();
  // Every message that was stored by the stream (not swallowed as a duplicate), in order, with
  // those of the past.
  std::vector<BusMessage> stored();
  bool WaitForStored(size_t count);
  uint64_t last_seq(const std::string& stream);

  // --- Bus
  void Publish(BusMessage message, PublishDone done) override;
  absl::StatusOr<std::vector<StreamState>> Streams() override;
  absl::Status Consume(ConsumerSpec, DeliveryHandler) override { return absl::OkStatus(); }
  absl::Status Subscribe(std::string, std::string, CoreHandler) override {
    return absl::OkStatus();
  }
  absl::Status PublishCore(absl::string_view, absl::string_view) override {
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> Request(absl::string_view, absl::string_view,
                                      absl::Duration) override {
    return absl::UnimplementedError("");
  }
  void OnConnect(std::function<void()> callback) override;
  bool connected() const override;
  absl::StatusOr<std::string> MessageId(const std::string& stream, uint64_t seq) override;
  uint64_t connection() const override;
  void Close() override;

 private:
  struct Stream {
    int64_t created_ns = 0;
    uint64_t first_seq = 1, last_seq = 0;
    std::map<std::string, uint64_t> ids;   // the duplicate window
    std::map<uint64_t, std::string> kept;  // by sequence
  };
  void Answer();

  mutable std::mutex mutex_;
  std::condition_variable wake_, stored_wake_;
  std::map<std::string, Stream> streams_;
  std::vector<BusMessage> stored_;
  std::deque<std::pair<PublishDone, absl::StatusOr<uint64_t>>> answers_;
  std::vector<std::function<void()>> on_connect_;
  std::vector<std::string> refused_;
  int64_t clock_ns_ = 1000;
  uint64_t connection_ = 1;
  int lost_acks_ = 0;
  bool connected_ = true, closed_ = false;
  std::thread thread_;
};

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_TESTING_FAKE_BUS_H_
