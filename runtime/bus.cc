#include "runtime/bus.h"

#include <nats/nats.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "flow/check.h"
#include "runtime/log.h"
#include "runtime/stream_loss.h"

namespace gaekju::runtime {
namespace {

using Clock = std::chrono::steady_clock;  // never the wall clock: it may jump

// A socket that takes nothing for so long is dead. nats.c holds the connection's lock while it
// writes, so without this bound its own pings would wait behind a stuck write for ever.
constexpr int64_t kWriteDeadlineMs = 2000;
constexpr auto kRetryPause =
    std::chrono::milliseconds(100);  // after a look at the server that failed
constexpr auto kRebuildPause =
    std::chrono::milliseconds(1000);  // after a connection that nats.c gave up
constexpr int64_t kGiB = int64_t{1} << 30;
constexpr int64_t kMaxBytesLeast = int64_t{1} << 26;  // 64 MiB

struct StreamPlan {
  const char* name;
  const char* subject;
  int64_t max_bytes;
};
constexpr StreamPlan kStreams[] = {
    {kCommandsStream, "gaekju.command.*", kGiB},
    {kAnswersStream, "gaekju.answer.*", kGiB},
    {kEventsStream, "gaekju.event.*", 4 * kGiB},
    {kDeadStream, "gaekju.dead.*", kGiB},
};

// --- owners of what nats.c allocates

template <class T, void (*Free)(T*)>
struct Freer {
  void operator()(T* object) const { Free(object); }
};
template <class T, void (*Free)(T*)>
using Owned = std::unique_ptr<T, Freer<T, Free>>;
using OwnedMsg = Owned<natsMsg, natsMsg_Destroy>;
using OwnedOptions = Owned<natsOptions, natsOptions_Destroy>;
using OwnedStatistics = Owned<natsStatistics, natsStatistics_Destroy>;
using OwnedStreamInfo = Owned<jsStreamInfo, jsStreamInfo_Destroy>;
using OwnedConsumerInfo = Owned<jsConsumerInfo, jsConsumerInfo_Destroy>;
using OwnedConsumerInfoList = Owned<jsConsumerInfoList, jsConsumerInfoList_Destroy>;

std::string Text(natsStatus status) {
  natsStatus last = NATS_OK;
  const char* detail = nats_GetLastError(&last);  // of this thread
  if (detail != nullptr && *detail != '\0' && last == status) {
    return absl::StrCat(natsStatus_GetText(status), ": ", detail);
  }
  return natsStatus_GetText(status);
}

absl::Status Unavailable(absl::string_view what, natsStatus status) {
  return absl::UnavailableError(absl::StrCat(what, ": ", Text(status)));
}

bool IsToken(absl::string_view text) {
  return !text.empty() && text.find_first_of(" \t\r\n.*>") == text.npos;
}

// A subject to publish to: tokens between dots, no wildcards.
bool IsSubject(absl::string_view text) {
  for (absl::string_view token : absl::StrSplit(text, '.')) {
    if (!IsToken(token)) return false;
  }
  return true;
}

bool IsHeader(absl::string_view name, absl::string_view value) {
  if (name.empty() || value.find_first_of(absl::string_view("\r\n\0", 3)) != value.npos)
    return false;
  return std::all_of(name.begin(), name.end(),
                     [](char c) { return c > ' ' && c < 127 && c != ':'; });
}

// --- the server's JSON acknowledgement of a publish, one line that only the server writes:
// {"stream":"GAEKJU_EVENTS","seq":7,"duplicate":true} or
// {"error":{"code":503,"err_code":10077,"description":"…"},…}

absl::string_view JsonValueAt(absl::string_view json, absl::string_view name) {
  const size_t at = json.find(absl::StrCat("\"", name, "\":"));
  if (at == json.npos) return {};
  json.remove_prefix(at + name.size() + 3);
  while (!json.empty() && json.front() == ' ') json.remove_prefix(1);
  return json;
}

uint64_t JsonNumber(absl::string_view json, absl::string_view name) {
  absl::string_view value = JsonValueAt(json, name);
  const size_t end = value.find_first_not_of("0123456789");
  uint64_t number = 0;
  return absl::SimpleAtoi(value.substr(0, end), &number) ? number : 0;
}

struct PubAck {
  absl::StatusOr<uint64_t> stream_seq;
  bool duplicate = false;
};

PubAck ParsePubAck(absl::string_view json) {
  constexpr uint64_t kMessageTooLarge =
      10054;  // nats-server's errors.json: JSStreamMessageExceedsMaximumErr
  if (absl::string_view error = JsonValueAt(json, "error"); !error.empty()) {
    const uint64_t code = JsonNumber(error, "code");
    const std::string text = absl::StrCat("JetStream: ", error.substr(0, 300));
    if (JsonNumber(error, "err_code") == kMessageTooLarge)
      return {absl::InvalidArgumentError(text)};
    return {code >= 500 ? absl::UnavailableError(text) : absl::FailedPreconditionError(text)};
  }
  const uint64_t seq = JsonNumber(json, "seq");
  if (seq == 0)
    return {absl::FailedPreconditionError(
        absl::StrCat("not an acknowledgement: ", json.substr(0, 300)))};
  return {seq, absl::StartsWith(JsonValueAt(json, "duplicate"), "true")};
}

// --- where a delivery comes from. Its reply subject says it:
// $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>, in newer
// servers $JS.ACK.<domain>.<account>.<stream>.<consumer>.<delivered>.<stream seq>.<consumer
// seq>.<time>.<pending>.<random>

bool ParseAckSubject(absl::string_view reply, BusDelivery* delivery) {
  if (!absl::StartsWith(reply, "$JS.ACK.")) return false;
  const std::vector<absl::string_view> tokens = absl::StrSplit(reply, '.');
  size_t stream;
  if (tokens.size() == 9) {
    stream = 2;
  } else if (tokens.size() >= 11) {
    stream = 4;
  } else {
    return false;
  }
  delivery->stream = std::string(tokens[stream]);
  return absl::SimpleAtoi(tokens[stream + 2], &delivery->delivered) &&
         absl::SimpleAtoi(tokens[stream + 3], &delivery->stream_seq);
}

struct Counters {
  std::atomic<uint64_t> published{0}, publish_failed{0}, publish_duplicates{0}, delivered{0},
      redelivered{0}, acked{0}, naked{0}, in_progress{0}, stale_acks{0}, connects{0},
      streams_made{0}, consumers_made{0}, consumers_updated{0}, consumers_mended{0};
};

struct Settlement;

// A consumer as the bus keeps it for its whole life.
struct Consumer {
  ConsumerSpec spec;
  DeliveryHandler handler;
  // Which life of the stream the subscription is for. Sequences of another life mean other
  // messages: an ack from a life that is over would settle a message that nobody has handled.
  std::atomic<uint64_t> epoch{0};
  // The connection (see Serial) for which `epoch` and `acks_since_serial` are known to be right.
  // Until it is the present one, acks are held back.
  std::atomic<uint64_t> verified_serial{0};
  // What earlier connections brought is not acknowledged any more: the stream has lost it, and
  // gives its sequences to other messages.
  std::atomic<uint64_t> acks_since_serial{0};
  std::string deliver_subject;   // of the keeper's thread
  bool was_missing = false;      // of the keeper's thread: at the last look
  uint64_t settings_serial = 0;  // of the keeper's thread: for which connection they were compared
  Clock::duration progress_period{};  // how long a delivery in hand may go without a word
  // The deliveries in hand, longest without a word to the server first. Guarded by Sender::mu.
  std::list<Settlement*> in_hand;
  // The furthest delivery of the latest connection, and of those before it that were not looked at
  // since. Guarded by Sender::mu.
  struct Furthest {
    uint64_t serial = 0;
    uint64_t stream_seq = 0;
    std::string msg_id;
  };
  std::vector<Furthest> furthest;
};

class Sender;

// The one-time right to ack or nak a delivery. While it is unused and somebody holds it, the
// delivery is in hand: the server is told so now and then, and does not deliver it again.
struct Settlement : std::enable_shared_from_this<Settlement> {
  ~Settlement();  // dropped without a word: comes again after ack_wait

  std::shared_ptr<Sender> sender;
  std::shared_ptr<Consumer> consumer;
  uint64_t epoch = 0;
  uint64_t serial = 0;  // the connection that brought it
  std::string reply;
  std::atomic<bool> used{false};
  // Guarded by Sender::mu.
  bool listed = false;  // in consumer->in_hand, at `place`
  std::list<Settlement*>::iterator place;
  Clock::time_point told;  // when the server last heard that it is in hand, or delivered it
};

// What waits to be written, shared with deliveries that may outlive the bus.
class Sender {
 public:
  struct Item {
    BusMessage message;                      // of a publish
    PublishDone done;                        // null: core NATS
    std::shared_ptr<Settlement> settlement;  // not null: an ack or nak instead
    int64_t nak_delay_us = -1;
  };

  // False: closed, and the item is left as it was.
  bool Push(Item&& item) {
    {
      std::lock_guard<std::mutex> lock(mu);
      if (item.settlement != nullptr) Unlist(*item.settlement);
      if (closing) return false;
      queue.push_back(std::move(item));
    }
    wake.notify_one();
    return true;
  }

  // A delivery has come.
  void List(Settlement& settlement, const BusDelivery& delivery) {
    std::lock_guard<std::mutex> lock(mu);
    settlement.told = Clock::now();
    std::vector<Consumer::Furthest>& furthest = settlement.consumer->furthest;
    if (furthest.empty() || furthest.back().serial != settlement.serial) furthest.emplace_back();
    if (furthest.back().stream_seq < delivery.stream_seq) {
      furthest.back() = {settlement.serial, delivery.stream_seq,
                         std::string(FindHeader(delivery.headers, "Nats-Msg-Id"))};
    }
    std::list<Settlement*>& in_hand = settlement.consumer->in_hand;
    settlement.place = in_hand.insert(in_hand.end(), &settlement);
    settlement.listed = true;
  }
  // It is settled, or dropped. REQUIRES: mu is held.
  void Unlist(Settlement& settlement) {
    if (!std::exchange(settlement.listed, false)) return;
    settlement.consumer->in_hand.erase(settlement.place);
  }

  struct Slot {        // a publish that waits for its acknowledgement
    PublishDone done;  // null: it has come
    Clock::time_point deadline;
  };

  std::mutex mu;
  std::condition_variable wake;
  // Guarded by mu.
  std::vector<Item> queue;
  std::deque<Slot> slots;  // by id, from first_id; deadlines ascend
  uint64_t first_id = 1;
  uint64_t in_flight = 0;
  std::vector<std::shared_ptr<Consumer>> consumers;  // whose deliveries may be in hand
  bool sweep = false;    // the connection broke: no acknowledgement will come
  bool recheck = false;  // a consumer was verified: held acks may go
  bool closing = false;

  // The callback that waits under `id`, once. REQUIRES: mu is held.
  PublishDone Take(uint64_t id) {
    if (id < first_id || id - first_id >= slots.size()) return nullptr;
    PublishDone done = std::exchange(slots[id - first_id].done, nullptr);
    if (done) --in_flight;
    while (!slots.empty() && !slots.front().done) {
      slots.pop_front();
      ++first_id;
    }
    return done;
  }

  // Those in hand that the server has not heard of for progress_period, to be told now; and when to
  // look again. REQUIRES: mu is held.
  Clock::time_point TakeUntold(Clock::time_point now,
                               std::vector<std::shared_ptr<Settlement>>* untold) {
    Clock::time_point next = Clock::time_point::max();
    for (const std::shared_ptr<Consumer>& consumer : consumers) {
      std::list<Settlement*>& in_hand = consumer->in_hand;
      // Each at most once: what is told goes to the end with the present time.
      while (!in_hand.empty() && in_hand.front()->told + consumer->progress_period <= now) {
        Settlement& settlement = *in_hand.front();
        settlement.told = now;
        in_hand.splice(in_hand.end(), in_hand, in_hand.begin());
        // Null: its last holder is dropping it, and waits for mu.
        if (auto held = settlement.weak_from_this().lock()) untold->push_back(std::move(held));
      }
      // By the clock and not by the deliveries: one that comes need not wake the writer.
      next = std::min(next, now + consumer->progress_period);
    }
    return next;
  }
};

Settlement::~Settlement() {
  std::lock_guard<std::mutex> lock(sender->mu);
  sender->Unlist(*this);
}

}  // namespace

// ---------------------------------------------------------------- small functions

std::string CommandSubject(absl::string_view to) { return absl::StrCat("gaekju.command.", to); }
std::string AnswerSubject(absl::string_view to) { return absl::StrCat("gaekju.answer.", to); }
std::string EventSubject(absl::string_view source) { return absl::StrCat("gaekju.event.", source); }
std::string DeadSubject(absl::string_view context) { return absl::StrCat("gaekju.dead.", context); }
std::string ResendSubject(absl::string_view context) {
  return absl::StrCat("gaekju.resend.", context);
}

absl::string_view FindHeader(const BusHeaders& headers, absl::string_view name) {
  for (const auto& [key, value] : headers) {
    if (key == name) return value;
  }
  return {};
}

void BusDelivery::Ack() const {
  if (settle) settle(-1);
}

void BusDelivery::Nak(absl::Duration delay) const {
  GK_CHECK(delay > absl::ZeroDuration()) << "an immediate nak is a loop at full speed";
  if (settle) settle(std::max<int64_t>(1, absl::ToInt64Microseconds(delay)));
}

BusMessage DeadLetter(const BusDelivery& delivery, absl::string_view context,
                      absl::string_view reason) {
  BusMessage message;
  message.subject = DeadSubject(context);
  absl::string_view id = FindHeader(delivery.headers, "Nats-Msg-Id");
  message.msg_id =
      id.empty() ? absl::StrCat("dead:", context, ":", delivery.stream, ":", delivery.stream_seq)
                 : absl::StrCat("dead:", context, ":", id);
  for (const auto& header : delivery.headers) {
    if (!absl::StartsWith(header.first, "Nats-")) message.headers.push_back(header);
  }
  std::string line(reason.substr(0, 1000));
  std::replace_if(
      line.begin(), line.end(), [](char c) { return c == '\r' || c == '\n' || c == '\0'; }, ' ');
  message.headers.emplace_back("gaekju-dead-reason", std::move(line));
  message.headers.emplace_back("gaekju-dead-subject", delivery.subject);
  message.headers.emplace_back("gaekju-dead-stream", delivery.stream);
  message.headers.emplace_back("gaekju-dead-seq", absl::StrCat(delivery.stream_seq));
  message.body = delivery.body;
  return message;
}

// ---------------------------------------------------------------- NatsBus
//
// Threads of ours: the writer (publishes, acks, word of what is in hand, and failures and time
// limits of all that) and the keeper (connects; looks whether streams and consumers stand; calls
// OnConnect). nats.c adds its own per connection and per subscription.
//
// Acks go by plain publishes to the reply subject, and consumers are plain subscriptions to the
// deliver subject of a durable that the keeper makes. So nats.c's JetStream subscriptions and its
// Fetch (overflow in 3.4.1, fixed in 3.9) are not used, and a durable that was lost is only made
// again: the subscription, which nats.c resends at every reconnect, stays. The deliver subject
// contains the stream's creation time, so a subscription never sees messages of two lives of a
// stream.
class NatsBus::Impl {
 public:
  explicit Impl(NatsBusOptions options)
      : options_(std::move(options)), sender_(std::make_shared<Sender>()) {
    GK_CHECK(!options_.urls.empty());
    const natsStatus s = nats_Open(-1);
    GK_CHECK(s == NATS_OK) << natsStatus_GetText(s);
    char nuid[64];
    static std::atomic<uint64_t> instances{0};
    absl::SNPrintF(nuid, sizeof(nuid), "%x%x%x", static_cast<uint64_t>(getpid()),
                   static_cast<uint64_t>(nats_NowInNanoSeconds()), instances.fetch_add(1));
    ack_inbox_ = absl::StrCat("_INBOX.gaekju.", nuid, ".");
    writer_ = std::thread([this] { WriterLoop(); });
    keeper_ = std::thread([this] { KeeperLoop(); });
  }

  ~Impl() { Close(); }

  void Publish(BusMessage message, PublishDone done) {
    GK_CHECK(done != nullptr);
    Sender::Item item;
    item.message = std::move(message);
    item.done = std::move(done);
    if (!sender_->Push(std::move(item))) item.done(absl::CancelledError("the bus is closed"));
  }

  absl::StatusOr<std::vector<StreamState>> Streams() {
    std::shared_ptr<Link> link = CurrentLink();
    if (link == nullptr) return absl::UnavailableError("not connected to NATS yet");
    std::vector<StreamState> states;
    for (const StreamPlan& plan : kStreams) {
      absl::StatusOr<StreamState> state = EnsureStream(*link, plan);
      if (!state.ok()) return state.status();
      states.push_back(*std::move(state));
    }
    return states;
  }

  absl::StatusOr<std::string> MessageId(const std::string& stream, uint64_t seq) {
    std::shared_ptr<Link> link = CurrentLink();
    if (link == nullptr) return absl::UnavailableError("not connected to NATS yet");
    return MessageIdAt(*link, stream, seq);
  }

  uint64_t connection() const { return ready_ ? verified_serial_.load() : 0; }

  absl::Status Consume(ConsumerSpec spec, DeliveryHandler handler) {
    GK_CHECK(handler != nullptr);
    if (!IsToken(spec.stream))
      return absl::InvalidArgumentError(absl::StrCat("not a stream's name: '", spec.stream, "'"));
    if (!IsToken(spec.durable))
      return absl::InvalidArgumentError(absl::StrCat("not a durable's name: '", spec.durable, "'"));
    if (spec.max_ack_pending < 1) return absl::InvalidArgumentError("max_ack_pending is below 1");
    if (spec.ack_wait < absl::Milliseconds(1))
      return absl::InvalidArgumentError("ack_wait is below 1 ms");
    auto consumer = std::make_shared<Consumer>();
    consumer->spec = std::move(spec);
    consumer->handler = std::move(handler);
    // A look each quarter finds what has been silent for a quarter: a word at least each half.
    consumer->progress_period = std::chrono::microseconds(
        std::max<int64_t>(250, absl::ToInt64Microseconds(consumer->spec.ack_wait) / 4));
    {
      std::lock_guard<std::mutex> lock(sender_->mu);
      sender_->consumers.push_back(consumer);
    }
    sender_->wake.notify_all();  // it did not know when to look
    {
      std::lock_guard<std::mutex> lock(mu_);
      consumers_.push_back(std::move(consumer));
    }
    WakeKeeper();
    return absl::OkStatus();
  }

  absl::Status Subscribe(std::string subject, std::string group, CoreHandler handler) {
    GK_CHECK(handler != nullptr);
    if (subject.empty() || subject.find_first_of(" \t\r\n") != subject.npos) {
      return absl::InvalidArgumentError(absl::StrCat("not a subject: '", subject, "'"));
    }
    if (!group.empty() && group.find_first_of(" \t\r\n") != group.npos) {
      return absl::InvalidArgumentError(absl::StrCat("not a group: '", group, "'"));
    }
    auto core = std::make_shared<Core>();
    core->subject = std::move(subject);
    core->group = std::move(group);
    core->handler = std::move(handler);
    std::shared_ptr<Link> link;
    {
      std::lock_guard<std::mutex> lock(mu_);
      cores_.push_back(core);
      link = link_;
    }
    // At once when there is a connection, so that a caller who is connected knows that it listens;
    // otherwise the keeper does it.
    if (link != nullptr) SubscribeCores(*link);
    return absl::OkStatus();
  }

  absl::Status PublishCore(absl::string_view subject, absl::string_view body) {
    if (!IsSubject(subject))
      return absl::InvalidArgumentError(absl::StrCat("not a subject: '", subject, "'"));
    if (!up_) return absl::UnavailableError("not connected to NATS");
    Sender::Item item;
    item.message.subject = std::string(subject);
    item.message.body = std::string(body);
    return sender_->Push(std::move(item)) ? absl::OkStatus()
                                          : absl::CancelledError("the bus is closed");
  }

  absl::StatusOr<std::string> Request(absl::string_view subject, absl::string_view body,
                                      absl::Duration timeout) {
    if (!IsSubject(subject))
      return absl::InvalidArgumentError(absl::StrCat("not a subject: '", subject, "'"));
    std::shared_ptr<Link> link = CurrentLink();
    if (link == nullptr) return absl::UnavailableError("not connected to NATS yet");
    natsMsg* reply = nullptr;
    const natsStatus s = natsConnection_Request(
        &reply, link->nc, std::string(subject).c_str(), body.data(), static_cast<int>(body.size()),
        std::max<int64_t>(1, absl::ToInt64Milliseconds(timeout)));
    OwnedMsg owner(reply);
    if (s == NATS_TIMEOUT)
      return absl::DeadlineExceededError(absl::StrCat("no answer to ", subject));
    if (s != NATS_OK) return Unavailable(absl::StrCat("request to ", subject), s);
    return std::string(natsMsg_GetData(reply), natsMsg_GetDataLength(reply));
  }

  void OnConnect(std::function<void()> callback) {
    {
      std::lock_guard<std::mutex> lock(mu_);
      on_connect_.push_back({std::move(callback), 0});
    }
    WakeKeeper();
  }

  bool connected() const { return ready_.load(std::memory_order_acquire); }

  void StopConsuming() {
    std::shared_ptr<Link> link;
    {
      std::lock_guard<std::mutex> lock(mu_);
      link = link_;
    }
    stop_consuming_ = true;
    if (link == nullptr) return;
    std::lock_guard<std::mutex> lock(link->subscribe_mu);  // the handles stay until it is released
    for (const auto& [consumer, handle] : link->consumers) {
      if (handle != nullptr) natsSubscription_Drain(handle);
    }
    constexpr int64_t kDrainTimeout_ms = 1000;
    for (const auto& [consumer, handle] : link->consumers) {
      if (handle != nullptr) natsSubscription_WaitForDrainCompletion(handle, kDrainTimeout_ms);
    }
  }

  void Close() {
    std::lock_guard<std::mutex> close_lock(close_mu_);  // a second caller waits for the first
    if (closed_) return;
    closed_ = true;
    closing_ = true;
    ready_ = false;
    {
      std::lock_guard<std::mutex> lock(sender_->mu);
      sender_->closing = true;
    }
    sender_->wake.notify_all();
    writer_.join();                                    // after it has sent the acks that waited
    std::vector<std::shared_ptr<Consumer>> consumers;  // not destroyed under the lock
    {
      std::lock_guard<std::mutex> lock(sender_->mu);
      consumers.swap(sender_->consumers);  // deliveries that outlive the bus keep theirs
    }
    std::set<std::shared_ptr<Subscription>> subscriptions;
    std::shared_ptr<Link> link;
    {
      std::lock_guard<std::mutex> lock(mu_);
      subscriptions = subscriptions_;
      link = link_;
    }
    for (const auto& subscription : subscriptions) {
      std::lock_guard<std::mutex> lock(subscription->mu);  // waits for a handler that runs
      subscription->dead = true;
    }
    subscriptions.clear();
    if (link != nullptr) CloseLink(*link);  // ends a request that the keeper may be waiting for
    WakeKeeper();
    keeper_.join();
    {
      std::lock_guard<std::mutex> lock(mu_);
      link = std::exchange(link_, nullptr);
    }
    if (link != nullptr) CloseLink(*link);
    std::unique_lock<std::mutex> lock(mu_);
    changed_.wait(lock,
                  [this] { return subscriptions_.empty(); });  // their threads have left our code
  }

  BusStats stats() const {
    BusStats s;
    s.published = counters_.published;
    s.publish_failed = counters_.publish_failed;
    s.publish_duplicates = counters_.publish_duplicates;
    s.delivered = counters_.delivered;
    s.redelivered = counters_.redelivered;
    s.acked = counters_.acked;
    s.naked = counters_.naked;
    s.in_progress = counters_.in_progress;
    s.stale_acks = counters_.stale_acks;
    s.connects = counters_.connects;
    s.streams_made = counters_.streams_made;
    s.consumers_made = counters_.consumers_made;
    s.consumers_updated = counters_.consumers_updated;
    s.consumers_mended = counters_.consumers_mended;
    std::lock_guard<std::mutex> lock(sender_->mu);
    s.in_flight = sender_->in_flight;
    return s;
  }

 private:
  struct Core {
    std::string subject;
    std::string group;
    CoreHandler handler;
  };

  // One subscription of nats.c; shared with its thread.
  struct Subscription {
    Impl* impl = nullptr;
    uint64_t link_number = 0;
    std::shared_ptr<Consumer> consumer;  // exactly one of the three
    std::shared_ptr<Core> core;
    bool acks = false;
    uint64_t epoch = 0;
    std::mutex mu;      // held while a handler runs
    bool dead = false;  // guarded by mu
  };

  // One nats.c connection, which reconnects by itself for ever. nats.c still gives one up when the
  // server says something final (bad credentials twice, too many connections); the keeper then
  // makes another.
  struct Link {
    Impl* impl = nullptr;
    uint64_t number = 0;
    natsConnection* nc = nullptr;
    jsCtx* js = nullptr;
    std::mutex subscribe_mu;  // held while subscriptions are made, and to close
    bool closing = false;     // guarded by subscribe_mu
    // Guarded by subscribe_mu.
    natsSubscription* acks = nullptr;
    std::map<const Core*, natsSubscription*> cores;
    std::map<const Consumer*, natsSubscription*> consumers;
    bool gone = false;  // guarded by Impl::mu_: nats.c has called its last callback

    ~Link() {
      if (acks != nullptr) natsSubscription_Destroy(acks);
      for (auto& [unused, subscription] : cores) natsSubscription_Destroy(subscription);
      for (auto& [unused, subscription] : consumers) natsSubscription_Destroy(subscription);
      jsCtx_Destroy(js);
      natsConnection_Destroy(nc);
    }
  };

  struct Listener {
    std::function<void()> callback;
    uint64_t serial;  // the connection it was told of
  };

  // ------------------------------------------------ the connection

  std::shared_ptr<Link> CurrentLink() {
    std::lock_guard<std::mutex> lock(mu_);
    return closing_ ? nullptr : link_;
  }

  // Which connection this is: grows with each link and each of its reconnects. 0: not connected.
  static uint64_t Serial(const Link& link) { return Serial(link.nc, link.number); }
  static uint64_t Serial(natsConnection* nc, uint64_t link_number) {
    natsStatistics* raw = nullptr;
    if (natsConnection_Status(nc) != NATS_CONN_STATUS_CONNECTED ||
        natsStatistics_Create(&raw) != NATS_OK)
      return 0;
    OwnedStatistics statistics(raw);
    uint64_t reconnects = 0;
    natsConnection_GetStats(nc, raw);
    natsStatistics_GetCounts(raw, nullptr, nullptr, nullptr, nullptr, &reconnects);
    return (link_number << 32) + reconnects + 1;
  }

  std::shared_ptr<Link> MakeLink() {
    auto link = std::make_shared<Link>();
    link->impl = this;
    link->number = ++link_count_;
    natsOptions* raw = nullptr;
    GK_CHECK(natsOptions_Create(&raw) == NATS_OK);
    OwnedOptions o(raw);
    std::vector<const char*> urls;
    for (const std::string& url : options_.urls) urls.push_back(url.c_str());
    natsStatus s = natsOptions_SetServers(raw, urls.data(), static_cast<int>(urls.size()));
    auto set = [&s](natsStatus next) {
      if (s == NATS_OK) s = next;
    };
    set(natsOptions_SetName(raw, options_.name.c_str()));
    if (!options_.user.empty())
      set(natsOptions_SetUserInfo(raw, options_.user.c_str(), options_.password.c_str()));
    if (!options_.credentials_file.empty()) {
      set(natsOptions_SetUserCredentialsFromFiles(raw, options_.credentials_file.c_str(), nullptr));
    }
    if (!options_.tls_ca_file.empty()) {
      set(natsOptions_SetSecure(raw, true));
      set(natsOptions_LoadCATrustedCertificates(raw, options_.tls_ca_file.c_str()));
    }
    const int64_t wait_ms =
        std::max<int64_t>(1, absl::ToInt64Milliseconds(options_.reconnect_wait));
    set(natsOptions_SetTimeout(raw, kWriteDeadlineMs));
    set(natsOptions_SetMaxReconnect(raw, -1));  // nats.c's own default gives up after 60
    set(natsOptions_SetReconnectWait(raw, wait_ms));
    set(natsOptions_SetReconnectJitter(raw, wait_ms, wait_ms));
    set(natsOptions_SetRetryOnFailedConnect(raw, true, OnConnected, link.get()));
    set(natsOptions_SetReconnectedCB(raw, OnConnected, link.get()));
    set(natsOptions_SetDisconnectedCB(raw, OnDisconnected, link.get()));
    set(natsOptions_SetClosedCB(raw, OnClosed, link.get()));
    set(natsOptions_SetErrorHandler(raw, OnError, link.get()));
    set(natsOptions_SetPingInterval(
        raw, std::max<int64_t>(1, absl::ToInt64Milliseconds(options_.ping_interval))));
    set(natsOptions_SetMaxPingsOut(
        raw, 2));  // the default of 2 minutes x 2 notices a dead server after 5 minutes
    set(natsOptions_SetWriteDeadline(raw, kWriteDeadlineMs));
    set(natsOptions_SetFailRequestsOnDisconnect(raw, true));
    // What is written while disconnected fails at once: a buffered publish would look sent, and a
    // buffered ack could reach an empty server, where its sequence means another message.
    set(natsOptions_SetReconnectBufSize(raw, 0));
    // Write through: the flusher thread would wait 1 ms for more, at each hop of an order. A
    // message carries a turn already.
    set(natsOptions_SetSendAsap(raw, true));
    if (s == NATS_OK) s = natsConnection_Connect(&link->nc, raw);
    if (s == NATS_OK || s == NATS_NOT_YET_CONNECTED) {
      jsOptions js_options;
      jsOptions_Init(&js_options);
      js_options.Wait = std::max<int64_t>(1, absl::ToInt64Milliseconds(options_.api_timeout));
      s = natsConnection_JetStream(&link->js, link->nc, &js_options);
      GK_CHECK(s == NATS_OK) << Text(s);
      return link;
    }
    LogError("cannot set up a connection to NATS", {{"error", Text(s)}});
    link->gone = true;  // no callbacks without a connection
    return nullptr;
  }

  // Ends a link and waits until nats.c is done with it. Idempotent. Its memory goes with the last
  // owner.
  void CloseLink(Link& link) {
    {
      std::lock_guard<std::mutex> lock(link.subscribe_mu);
      link.closing = true;
    }
    natsConnection_Close(link.nc);
    std::unique_lock<std::mutex> lock(mu_);
    changed_.wait(lock, [&] { return link.gone; });
  }

  static void OnConnected(natsConnection*, void* closure) {
    Impl* impl = static_cast<Link*>(closure)->impl;
    impl->up_ = true;
    impl->WakeKeeper();
  }

  static void OnDisconnected(natsConnection*, void* closure) {
    Impl* impl = static_cast<Link*>(closure)->impl;
    impl->ready_ = false;
    impl->up_ = false;
    if (!impl->closing_) LogWarning("connection to NATS lost", {{"bus", impl->options_.name}});
    impl->FailInFlight();
    impl->WakeKeeper();
  }

  static void OnClosed(natsConnection*, void* closure) {
    Link* link = static_cast<Link*>(closure);
    Impl* impl = link->impl;
    impl->ready_ = false;
    impl->up_ = false;
    impl->FailInFlight();
    {
      // Notified under the lock: whoever waits for `gone` may destroy the bus right after.
      std::lock_guard<std::mutex> lock(impl->mu_);
      link->gone = true;
      impl->wake_keeper_ = true;
      impl->changed_.notify_all();
    }
  }

  static void OnError(natsConnection*, natsSubscription* subscription, natsStatus error, void*) {
    static LogLimit limit(1'000'000);
    const int64_t skipped = limit.Allow();
    if (skipped < 0) return;
    LogWarning(
        "NATS error",
        {{"error", natsStatus_GetText(error)},
         {"subject", subscription != nullptr ? natsSubscription_GetSubject(subscription) : ""},
         {"skipped", skipped}});
  }

  void FailInFlight() {
    {
      std::lock_guard<std::mutex> lock(sender_->mu);
      sender_->sweep = true;
    }
    sender_->wake.notify_all();
  }

  // ------------------------------------------------ the keeper

  void WakeKeeper() {
    std::lock_guard<std::mutex> lock(mu_);
    wake_keeper_ = true;
    changed_.notify_all();
  }

  // As WakeKeeper, at most every kRetryPause.
  void LookSoon() {
    const int64_t now = Clock::now().time_since_epoch().count();
    int64_t next = next_look_.load();
    if (now >= next &&
        next_look_.compare_exchange_strong(next, now + Clock::duration(kRetryPause).count()))
      WakeKeeper();
  }

  void KeeperLoop() {
    bool again_soon = false;
    while (true) {
      std::shared_ptr<Link> link;
      {
        std::unique_lock<std::mutex> lock(mu_);
        const auto pause = again_soon ? Clock::duration(kRetryPause)
                                      : Clock::duration(std::chrono::microseconds(
                                            absl::ToInt64Microseconds(options_.check_interval)));
        if (link_ != nullptr && !link_->gone) {
          changed_.wait_for(lock, pause, [this] { return wake_keeper_ || closing_; });
        }
        wake_keeper_ = false;
        link = link_;
      }
      if (closing_) return;
      if (link == nullptr || IsGone(*link)) {
        link = ReplaceLink(std::move(link));
        if (link == nullptr || closing_) continue;
      }
      SubscribeCores(*link);
      const uint64_t serial = Serial(*link);
      if (serial == 0) {  // OnConnected wakes us
        ready_ = false;
        again_soon = false;
        continue;
      }
      up_ = true;
      bool streams_changed = false;
      const absl::Status status = Verify(*link, serial, &streams_changed);
      const bool same = Serial(*link) == serial;
      again_soon = !status.ok() || !same;
      if (status.ok()) verified_serial_ = serial;
      ready_ = status.ok() && same && !closing_;
      pending_change_ |= streams_changed;
      if (!ready_) {
        static LogLimit limit(5'000'000);
        if (!status.ok() && !closing_ && limit.Allow() >= 0) {
          LogWarning("JetStream is not ready",
                     {{"bus", options_.name}, {"error", status.ToString()}});
        }
        continue;
      }
      if (serial != last_serial_) {
        last_serial_ = serial;
        ++counters_.connects;
        LogInfo("connected to NATS", {{"bus", options_.name}});
      }
      Announce(serial);
    }
  }

  bool IsGone(const Link& link) {
    std::lock_guard<std::mutex> lock(mu_);
    return link.gone;
  }

  std::shared_ptr<Link> ReplaceLink(std::shared_ptr<Link> old) {
    if (old != nullptr) {
      LogError("NATS closed the connection for good; making another", {{"bus", options_.name}});
      Pause(kRebuildPause);
      std::lock_guard<std::mutex> lock(mu_);
      link_ = nullptr;
    }
    old = nullptr;
    if (closing_) return nullptr;
    std::shared_ptr<Link> link = MakeLink();
    if (link == nullptr) {
      Pause(kRebuildPause);
      return nullptr;
    }
    std::lock_guard<std::mutex> lock(mu_);
    link_ = link;  // Close ends it, also when it began meanwhile
    return link;
  }

  void Pause(Clock::duration pause) {
    std::unique_lock<std::mutex> lock(mu_);
    changed_.wait_for(lock, pause, [this] { return closing_.load(); });
  }

  void Announce(uint64_t serial) {
    std::vector<std::function<void()>> callbacks;
    {
      std::lock_guard<std::mutex> lock(mu_);
      for (Listener& listener : on_connect_) {
        if (listener.serial == serial && !pending_change_) continue;
        listener.serial = serial;
        callbacks.push_back(listener.callback);
      }
      pending_change_ = false;
    }
    for (const auto& callback : callbacks) {
      if (!closing_) callback();
    }
  }

  // Makes what the server lacks, and notes what was lost.
  absl::Status Verify(Link& link, uint64_t serial, bool* streams_changed) {
    if (absl::Status status = SubscribeAcks(link); !status.ok()) return status;
    for (const StreamPlan& plan : kStreams) {
      absl::StatusOr<StreamState> state = EnsureStream(link, plan);
      if (!state.ok()) return state.status();
      StreamState& known = known_streams_[plan.name];
      if (known.created_ns != 0 &&
          (known.created_ns != state->created_ns || state->last_seq < known.last_seq)) {
        *streams_changed = true;
        LogWarning("a stream was lost", {{"stream", plan.name},
                                         {"last_seq_before", known.last_seq},
                                         {"last_seq_now", state->last_seq}});
      }
      known = *state;
    }
    std::vector<std::shared_ptr<Consumer>> consumers;
    {
      std::lock_guard<std::mutex> lock(mu_);
      consumers = consumers_;
    }
    if (serial != verified_serial_) {
      if (absl::Status status = MendConsumers(link); !status.ok()) return status;
    }
    for (const std::shared_ptr<Consumer>& consumer : consumers) {
      if (closing_) return absl::CancelledError("closing");
      if (absl::Status status = CheckDelivered(link, serial, *consumer); !status.ok())
        return status;
      if (absl::Status status = EnsureConsumer(link, serial, consumer); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::StatusOr<StreamState> EnsureStream(Link& link, const StreamPlan& plan) {
    jsStreamInfo* raw = nullptr;
    jsErrCode code = static_cast<jsErrCode>(0);
    natsStatus s = js_GetStreamInfo(&raw, link.js, plan.name, nullptr, &code);
    for (int64_t max_bytes = plan.max_bytes; s == NATS_NOT_FOUND || code == JSStreamNotFoundErr;) {
      const char* subjects[] = {plan.subject};
      jsStreamConfig config;
      jsStreamConfig_Init(&config);
      config.Name = plan.name;
      config.Subjects = subjects;
      config.SubjectsLen = 1;
      config.Storage = js_FileStorage;
      config.Retention = js_LimitsPolicy;
      config.Discard =
          js_DiscardOld;  // the outbox is the truth; a full stream must not stop orders
      config.MaxAge = absl::ToInt64Nanoseconds(absl::Hours(24));
      config.MaxBytes = max_bytes;
      config.Duplicates = absl::ToInt64Nanoseconds(absl::Minutes(2));
      config.Replicas = options_.replicas;
      code = static_cast<jsErrCode>(0);
      s = js_AddStream(&raw, link.js, &config, nullptr, &code);
      if (s == NATS_OK) {
        ++counters_.streams_made;
        LogInfo("made a stream", {{"stream", plan.name}, {"max_bytes", max_bytes}});
      } else if (code == JSStorageResourcesExceededErr && max_bytes / 2 >= kMaxBytesLeast) {
        max_bytes /=
            2;  // the server promises a stream its max_bytes; a small disk gets smaller streams
        code = JSStreamNotFoundErr;
        s = NATS_NOT_FOUND;
      } else if (code ==
                 JSStreamNameExistErr) {  // somebody else made it meanwhile, with other settings
        code = static_cast<jsErrCode>(0);
        s = js_GetStreamInfo(&raw, link.js, plan.name, nullptr, &code);
        if (s == NATS_NOT_FOUND) break;
      } else {
        break;
      }
    }
    OwnedStreamInfo info(raw);
    if (s != NATS_OK) return Unavailable(absl::StrCat("stream ", plan.name), s);
    return StreamState{plan.name, info->Created, info->State.FirstSeq, info->State.LastSeq};
  }

  // Empty when there is no such message, or when it has none.
  static absl::StatusOr<std::string> MessageIdAt(Link& link, const std::string& stream,
                                                 uint64_t seq) {
    natsMsg* raw = nullptr;
    jsErrCode code = static_cast<jsErrCode>(0);
    const natsStatus s = js_GetMsg(&raw, link.js, stream.c_str(), seq, nullptr, &code);
    OwnedMsg message(raw);
    if (s == NATS_NOT_FOUND || code == JSNoMessageFoundErr || code == JSStreamNotFoundErr)
      return std::string();
    if (s != NATS_OK) return Unavailable(absl::StrCat("message ", seq, " of ", stream), s);
    const char* msg_id = nullptr;
    if (natsMsgHeader_Get(raw, "Nats-Msg-Id", &msg_id) != NATS_OK || msg_id == nullptr)
      return std::string();
    return std::string(msg_id);
  }

  // Consumers that are ahead of their streams begin again where the stream ends. nats-server 2.9
  // leaves them where they are after it has lost a stream's end: what is published next would never
  // be delivered to them. Every process does so for all, before it publishes.
  absl::Status MendConsumers(Link& link) {
    for (const StreamPlan& plan : kStreams) {
      absl::StatusOr<StreamState> before = EnsureStream(link, plan);
      if (!before.ok()) return before.status();
      jsConsumerInfoList* raw = nullptr;
      jsErrCode code = static_cast<jsErrCode>(0);
      natsStatus s = js_Consumers(&raw, link.js, plan.name, nullptr, &code);
      if (s == NATS_NOT_FOUND) continue;
      if (s != NATS_OK) return Unavailable(absl::StrCat("consumers of ", plan.name), s);
      OwnedConsumerInfoList consumers(raw);
      absl::StatusOr<StreamState> now = EnsureStream(link, plan);
      if (!now.ok()) return now.status();
      for (int i = 0; i < consumers->Count; ++i) {
        const jsConsumerInfo& info = *consumers->List[i];
        const int64_t start = RestartOfConsumer(
            static_cast<int64_t>(info.Delivered.Stream), static_cast<int64_t>(info.AckFloor.Stream),
            static_cast<int64_t>(before->last_seq), static_cast<int64_t>(now->last_seq));
        if (start == 0) continue;
        LogWarning("a consumer is ahead of its stream", {{"stream", plan.name},
                                                         {"consumer", info.Name},
                                                         {"delivered", info.Delivered.Stream},
                                                         {"begins_at", start}});
        jsConsumerConfig config = *info.Config;
        config.DeliverPolicy = js_DeliverByStartSequence;
        config.OptStartSeq = static_cast<uint64_t>(start);
        // It is gone also when the server says no because it writes to its directory just now.
        (void)js_DeleteConsumer(link.js, plan.name, info.Name, nullptr, &code);
        s = js_AddConsumer(nullptr, link.js, plan.name, &config, nullptr, &code);
        if (s != NATS_OK)
          return Unavailable(absl::StrCat("consumer ", info.Name, " of ", plan.name), s);
        ++counters_.consumers_mended;
      }
    }
    return absl::OkStatus();
  }

  // Whether the stream still has the furthest of what earlier connections delivered. If not, what
  // they delivered is not acknowledged: it would settle other messages.
  absl::Status CheckDelivered(Link& link, uint64_t serial, Consumer& consumer) {
    std::vector<Consumer::Furthest> earlier;
    {
      std::lock_guard<std::mutex> lock(sender_->mu);
      for (const Consumer::Furthest& furthest : consumer.furthest) {
        if (furthest.serial != serial) earlier.push_back(furthest);
      }
    }
    if (earlier.empty()) return absl::OkStatus();
    for (const Consumer::Furthest& furthest : earlier) {
      absl::StatusOr<std::string> msg_id =
          MessageIdAt(link, consumer.spec.stream, furthest.stream_seq);
      if (!msg_id.ok()) return msg_id.status();
      if (*msg_id != furthest.msg_id) consumer.acks_since_serial = serial;
    }
    std::lock_guard<std::mutex> lock(sender_->mu);
    consumer.furthest.erase(
        std::remove_if(consumer.furthest.begin(), consumer.furthest.end(),
                       [serial](const auto& furthest) { return furthest.serial < serial; }),
        consumer.furthest.end());
    return absl::OkStatus();
  }

  absl::Status EnsureConsumer(Link& link, uint64_t serial,
                              const std::shared_ptr<Consumer>& consumer) {
    const ConsumerSpec& spec = consumer->spec;
    auto known = known_streams_.find(spec.stream);
    if (known == known_streams_.end())
      return absl::InvalidArgumentError(absl::StrCat("no such stream: ", spec.stream));
    jsConsumerConfig config;
    jsConsumerConfig_Init(&config);
    std::string deliver_subject = absl::StrCat("gaekju.deliver.", spec.stream, ".", spec.durable,
                                               ".", known->second.created_ns);
    config.Durable = spec.durable.c_str();
    config.DeliverSubject = deliver_subject.c_str();
    config.DeliverGroup = spec.durable.c_str();
    config.DeliverPolicy = js_DeliverAll;
    config.AckPolicy = js_AckExplicit;
    config.AckWait = absl::ToInt64Nanoseconds(spec.ack_wait);
    config.MaxDeliver =
        -1;  // poison is ours to judge: the server would only stop delivering, without a word
    config.MaxAckPending = spec.max_ack_pending;
    config.FilterSubject = spec.filter_subject.empty() ? nullptr : spec.filter_subject.c_str();

    jsConsumerInfo* raw = nullptr;
    jsErrCode code = static_cast<jsErrCode>(0);
    natsStatus s = js_GetConsumerInfo(&raw, link.js, spec.stream.c_str(), spec.durable.c_str(),
                                      nullptr, &code);
    OwnedConsumerInfo info(raw);
    const bool found = s == NATS_OK;
    if (!found && s != NATS_NOT_FOUND && code != JSConsumerNotFoundErr) {
      return Unavailable(absl::StrCat("consumer ", spec.durable, " of ", spec.stream), s);
    }
    if (!found && consumer->deliver_subject == deliver_subject &&
        !std::exchange(consumer->was_missing, true)) {
      // It stood in this stream, and another process may be mending it this moment. Made here, it
      // would begin with the oldest message of the stream.
      return absl::UnavailableError(absl::StrCat("consumer ", spec.durable, " is missing"));
    }
    consumer->was_missing = false;
    if (found && info->Config->DeliverSubject != nullptr)
      deliver_subject = info->Config->DeliverSubject;
    config.DeliverSubject = deliver_subject.c_str();
    // Listen first: the server starts to deliver as soon as the durable stands.
    if (absl::Status status = SubscribeConsumer(link, consumer, deliver_subject); !status.ok())
      return status;
    if (!found) {
      s = js_AddConsumer(nullptr, link.js, spec.stream.c_str(), &config, nullptr, &code);
      if (s != NATS_OK)
        return Unavailable(absl::StrCat("making consumer ", spec.durable, " of ", spec.stream), s);
      ++counters_.consumers_made;
      LogInfo("made a consumer", {{"stream", spec.stream}, {"durable", spec.durable}});
    } else if (consumer->settings_serial != serial &&
               (info->Config->AckWait != config.AckWait ||
                info->Config->MaxAckPending != config.MaxAckPending)) {
      config.DeliverPolicy = info->Config->DeliverPolicy;  // where it began cannot be changed
      config.OptStartSeq = info->Config->OptStartSeq;
      // Keeps its position and what is unacknowledged. Once a connection: two processes of one
      // durable with different flags, as in a roll-out, do not take turns at it.
      s = js_UpdateConsumer(nullptr, link.js, spec.stream.c_str(), &config, nullptr, &code);
      if (s != NATS_OK)
        return Unavailable(absl::StrCat("updating consumer ", spec.durable, " of ", spec.stream),
                           s);
      ++counters_.consumers_updated;
      LogInfo("updated a consumer", {{"stream", spec.stream},
                                     {"durable", spec.durable},
                                     {"ack_wait_ms", config.AckWait / 1'000'000},
                                     {"max_ack_pending", config.MaxAckPending}});
    }
    consumer->settings_serial = serial;
    if (consumer->verified_serial.exchange(serial) != serial) {
      {
        std::lock_guard<std::mutex> lock(sender_->mu);
        sender_->recheck = true;
      }
      sender_->wake.notify_all();
    }
    return absl::OkStatus();
  }

  // ------------------------------------------------ subscriptions

  absl::Status SubscribeAcks(Link& link) {
    std::lock_guard<std::mutex> lock(link.subscribe_mu);
    if (link.closing || link.acks != nullptr) return absl::OkStatus();
    auto subscription = std::make_shared<Subscription>();
    subscription->acks = true;
    absl::StatusOr<natsSubscription*> handle =
        MakeSubscription(link, absl::StrCat(ack_inbox_, "*"), "", std::move(subscription), -1);
    if (!handle.ok()) return handle.status();
    link.acks = *handle;
    return absl::OkStatus();
  }

  void SubscribeCores(Link& link) {
    std::vector<std::shared_ptr<Core>> cores;
    {
      std::lock_guard<std::mutex> lock(mu_);
      cores = cores_;
    }
    std::lock_guard<std::mutex> lock(link.subscribe_mu);
    for (const std::shared_ptr<Core>& core : cores) {
      if (link.closing || link.cores.count(core.get()) != 0) continue;
      auto subscription = std::make_shared<Subscription>();
      subscription->core = core;
      absl::StatusOr<natsSubscription*> handle =
          MakeSubscription(link, core->subject, core->group, std::move(subscription), 65536);
      if (handle.ok()) {
        link.cores[core.get()] = *handle;
      } else {
        LogError("cannot subscribe",
                 {{"subject", core->subject}, {"error", handle.status().ToString()}});
      }
    }
  }

  absl::Status SubscribeConsumer(Link& link, const std::shared_ptr<Consumer>& consumer,
                                 const std::string& deliver_subject) {
    std::lock_guard<std::mutex> lock(link.subscribe_mu);
    if (link.closing || stop_consuming_) return absl::CancelledError("closing");
    natsSubscription*& handle = link.consumers[consumer.get()];
    if (consumer->deliver_subject != deliver_subject) {
      // Another life of the stream: what was delivered before cannot be acked any more.
      natsSubscription_Destroy(std::exchange(handle, nullptr));
      consumer->deliver_subject = deliver_subject;
      ++consumer->epoch;
    }
    if (handle != nullptr) return absl::OkStatus();
    auto subscription = std::make_shared<Subscription>();
    subscription->consumer = consumer;
    subscription->epoch = consumer->epoch;
    // Bounded for a handler that stalls for so long that messages come again: what is dropped here
    // comes once more.
    absl::StatusOr<natsSubscription*> made =
        MakeSubscription(link, deliver_subject, consumer->spec.durable, std::move(subscription),
                         2 * std::min(consumer->spec.max_ack_pending, 1 << 20) + 1024);
    if (!made.ok()) return made.status();
    handle = *made;
    return absl::OkStatus();
  }

  // REQUIRES: link.subscribe_mu is held.
  absl::StatusOr<natsSubscription*> MakeSubscription(Link& link, const std::string& subject,
                                                     const std::string& group,
                                                     std::shared_ptr<Subscription> subscription,
                                                     int pending_limit) {
    subscription->impl = this;
    subscription->link_number = link.number;
    auto* closure = new std::shared_ptr<Subscription>(subscription);  // deleted in OnComplete
    natsSubscription* handle = nullptr;
    natsStatus s = group.empty() ? natsConnection_Subscribe(&handle, link.nc, subject.c_str(),
                                                            OnMessage, closure)
                                 : natsConnection_QueueSubscribe(&handle, link.nc, subject.c_str(),
                                                                 group.c_str(), OnMessage, closure);
    if (s != NATS_OK) {
      delete closure;
      return Unavailable(absl::StrCat("subscribing to ", subject), s);
    }
    {
      std::lock_guard<std::mutex> lock(mu_);
      subscriptions_.insert(subscription);
    }
    s = natsSubscription_SetOnCompleteCB(handle, OnComplete, closure);
    if (s != NATS_OK) {
      // nats.c has closed the connection this very moment. The closure stays allocated: its thread
      // may still look at it.
      {
        std::lock_guard<std::mutex> lock(subscription->mu);
        subscription->dead = true;
      }
      {
        std::lock_guard<std::mutex> lock(mu_);
        subscriptions_.erase(subscription);
      }
      natsSubscription_Destroy(handle);
      return Unavailable(absl::StrCat("subscribing to ", subject), s);
    }
    natsSubscription_SetPendingLimits(handle, pending_limit, -1);
    return handle;
  }

  static void OnComplete(void* closure) {
    auto* owner = static_cast<std::shared_ptr<Subscription>*>(closure);
    std::shared_ptr<Subscription> subscription = std::move(*owner);
    delete owner;
    Impl* impl = subscription->impl;
    std::lock_guard<std::mutex> lock(
        impl->mu_);  // notified under it: Close may free the bus right after
    impl->subscriptions_.erase(subscription);
    impl->changed_.notify_all();
  }

  static void OnMessage(natsConnection* nc, natsSubscription*, natsMsg* message, void* closure) {
    OwnedMsg owner(message);
    Subscription& subscription = **static_cast<std::shared_ptr<Subscription>*>(closure);
    std::lock_guard<std::mutex> lock(subscription.mu);
    if (subscription.dead) return;
    Impl& impl = *subscription.impl;
    if (subscription.acks) {
      impl.OnPubAck(message);
    } else if (subscription.core != nullptr) {
      const char* reply = natsMsg_GetReply(message);
      subscription.core->handler(
          {natsMsg_GetSubject(message), reply != nullptr ? reply : "",
           std::string(natsMsg_GetData(message), natsMsg_GetDataLength(message))});
    } else {
      impl.OnDelivery(nc, subscription, message);
    }
  }

  void OnDelivery(natsConnection* nc, const Subscription& subscription, natsMsg* message) {
    const char* reply = natsMsg_GetReply(message);
    BusDelivery delivery;
    if (reply == nullptr || !ParseAckSubject(reply, &delivery))
      return;  // not of JetStream: somebody else's publish
    delivery.subject = natsMsg_GetSubject(message);
    delivery.body.assign(natsMsg_GetData(message), natsMsg_GetDataLength(message));
    const char** keys = nullptr;
    int count = 0;
    if (natsMsgHeader_Keys(message, &keys, &count) == NATS_OK) {
      delivery.headers.reserve(count);
      for (int i = 0; i < count; ++i) {
        const char* value = nullptr;
        if (natsMsgHeader_Get(message, keys[i], &value) == NATS_OK && value != nullptr) {
          delivery.headers.emplace_back(keys[i], value);
        }
      }
      free(keys);
    }
    ++counters_.delivered;
    if (delivery.delivered > 1) ++counters_.redelivered;
    auto settlement = std::make_shared<Settlement>();
    settlement->sender = sender_;
    settlement->consumer = subscription.consumer;
    settlement->epoch = subscription.epoch;
    settlement->serial = Serial(nc, subscription.link_number);
    settlement->reply = reply;
    sender_->List(*settlement, delivery);
    delivery.settle = [settlement = std::move(settlement)](int64_t nak_delay_us) {
      if (settlement->used.exchange(true)) return;
      Sender::Item item;
      item.settlement = settlement;
      item.nak_delay_us = nak_delay_us;
      settlement->sender->Push(std::move(item));
    };
    subscription.consumer->handler(std::move(delivery));
  }

  // ------------------------------------------------ the writer

  void OnPubAck(natsMsg* message) {
    uint64_t id = 0;
    absl::string_view subject = natsMsg_GetSubject(message);
    if (!absl::ConsumePrefix(&subject, ack_inbox_) || !absl::SimpleAtoi(subject, &id)) return;
    PublishDone done;
    {
      std::lock_guard<std::mutex> lock(sender_->mu);
      done = sender_->Take(id);
    }
    if (done == nullptr) return;  // too late
    PubAck ack;
    if (natsMsg_IsNoResponders(message)) {
      ack.stream_seq = absl::UnavailableError("no stream takes the subject now");
      LookSoon();  // it may have been lost
    } else {
      ack =
          ParsePubAck(absl::string_view(natsMsg_GetData(message), natsMsg_GetDataLength(message)));
    }
    if (ack.duplicate) ++counters_.publish_duplicates;
    Finish(std::move(done), std::move(ack.stream_seq));
  }

  void Finish(PublishDone done, absl::StatusOr<uint64_t> result) {
    ++(result.ok() ? counters_.published : counters_.publish_failed);
    done(std::move(result));
  }

  void WriterLoop() {
    Sender& sender = *sender_;
    std::vector<Sender::Item> batch;
    std::vector<Sender::Item>
        held;  // acks until it is known that the stream is still the one they are for
    Clock::time_point next_look = Clock::time_point::max();  // at what is in hand
    size_t consumer_count = 0;
    while (true) {
      std::vector<PublishDone> broken, late;
      std::vector<std::shared_ptr<Settlement>> untold;
      bool closing = false;
      {
        std::unique_lock<std::mutex> lock(sender.mu);
        auto ready = [&] {
          return !sender.queue.empty() || sender.sweep || sender.closing ||
                 (sender.recheck && !held.empty()) || sender.consumers.size() != consumer_count;
        };
        // A copy: the slot may be gone before the wait ends.
        const Clock::time_point until =
            sender.slots.empty() ? next_look : std::min(next_look, sender.slots.front().deadline);
        if (until == Clock::time_point::max()) {
          sender.wake.wait(lock, ready);
        } else {
          sender.wake.wait_until(lock, until, ready);
        }
        batch.swap(sender.queue);
        sender.recheck = false;
        closing = sender.closing;
        const bool sweep = std::exchange(sender.sweep, false);
        const Clock::time_point now = Clock::now();
        if (now >= next_look || sender.consumers.size() != consumer_count) {
          next_look = sender.TakeUntold(now, &untold);
          consumer_count = sender.consumers.size();
        }
        while (!sender.slots.empty() &&
               (sweep || closing || sender.slots.front().deadline <= now)) {
          const bool expired = sender.slots.front().deadline <= now;
          if (PublishDone done = sender.Take(sender.first_id))
            (expired ? late : broken).push_back(std::move(done));
        }
      }
      for (PublishDone& done : broken) {
        Finish(std::move(done),
               closing ? absl::CancelledError("the bus was closed")
                       : absl::UnavailableError("the connection broke before the acknowledgement"));
      }
      for (PublishDone& done : late) {
        Finish(std::move(done),
               absl::DeadlineExceededError("no acknowledgement within publish_timeout"));
      }
      std::shared_ptr<Link> link;
      {
        // Without a connection nats.c is left alone: it holds its lock while it waits for a server
        // that does not greet.
        std::lock_guard<std::mutex> lock(mu_);
        if (up_) link = link_;
      }
      const uint64_t serial = link != nullptr ? Serial(*link) : 0;
      std::vector<Sender::Item> settles = std::exchange(held, {});
      for (Sender::Item& item : batch) {
        if (item.settlement != nullptr) {
          settles.push_back(std::move(item));
        } else if (item.done == nullptr) {
          if (link != nullptr) {
            natsConnection_Publish(link->nc, item.message.subject.c_str(), item.message.body.data(),
                                   static_cast<int>(item.message.body.size()));
          }
        } else if (closing) {
          Finish(std::move(item.done), absl::CancelledError("the bus was closed"));
        } else {
          Send(link.get(), serial, std::move(item));
        }
      }
      batch.clear();
      if (!settles.empty() || !untold.empty()) {
        for (Sender::Item& item : settles) {
          if (!Settle(link.get(), serial, item)) held.push_back(std::move(item));
        }
        for (const auto& settlement : untold) TellInProgress(link.get(), serial, *settlement);
      }
      if (closing) return;
    }
  }

  void Send(Link* link, uint64_t serial, Sender::Item item) {
    BusMessage& message = item.message;
    absl::Status bad;
    if (!IsSubject(message.subject))
      bad = absl::InvalidArgumentError(absl::StrCat("not a subject: '", message.subject, "'"));
    for (const auto& [name, value] : message.headers) {
      if (!IsHeader(name, value))
        bad = absl::InvalidArgumentError(absl::StrCat("not a header: '", name, "'"));
    }
    if (!message.msg_id.empty() && !IsHeader("Nats-Msg-Id", message.msg_id)) {
      bad = absl::InvalidArgumentError("not a msg_id");
    }
    if (!bad.ok()) return Finish(std::move(item.done), std::move(bad));
    if (link == nullptr || !up_) {
      return Finish(std::move(item.done), absl::UnavailableError("not connected to NATS"));
    }
    if (message.connection != 0 && message.connection != serial) {
      return Finish(std::move(item.done),
                    absl::UnavailableError("another connection than was looked at"));
    }

    uint64_t id;
    {
      std::lock_guard<std::mutex> lock(sender_->mu);
      id = sender_->first_id + sender_->slots.size();
      sender_->slots.push_back(
          {std::move(item.done), Clock::now() + std::chrono::microseconds(absl::ToInt64Microseconds(
                                                    options_.publish_timeout))});
      ++sender_->in_flight;
    }
    natsMsg* raw = nullptr;
    natsStatus s =
        natsMsg_Create(&raw, message.subject.c_str(), absl::StrCat(ack_inbox_, id).c_str(),
                       message.body.data(), static_cast<int>(message.body.size()));
    OwnedMsg owner(raw);
    if (s == NATS_OK && !message.msg_id.empty())
      s = natsMsgHeader_Set(raw, "Nats-Msg-Id", message.msg_id.c_str());
    for (const auto& [name, value] : message.headers) {
      // nats.c 3.4.1 reads the line after an empty value as that value.
      if (s == NATS_OK && !value.empty()) s = natsMsgHeader_Set(raw, name.c_str(), value.c_str());
    }
    if (s == NATS_OK) s = natsConnection_PublishMsg(link->nc, raw);
    if (s == NATS_OK) return;
    if (s != NATS_MAX_PAYLOAD) NoteBroken();
    PublishDone done;
    {
      std::lock_guard<std::mutex> lock(sender_->mu);
      done = sender_->Take(id);
    }
    if (done == nullptr) return;
    Finish(std::move(done),
           s == NATS_MAX_PAYLOAD ? absl::InvalidArgumentError(Text(s)) : Unavailable("publish", s));
  }

  // A write failed: nothing more is tried until there is a connection again.
  void NoteBroken() {
    up_ = false;
    LookSoon();
  }

  // False: not now; it has to wait for the keeper.
  bool Settle(Link* link, uint64_t serial, const Sender::Item& item) {
    const Settlement& settlement = *item.settlement;
    const Consumer& consumer = *settlement.consumer;
    if (serial == 0 || !up_ || consumer.verified_serial != serial) return false;
    if (consumer.epoch != settlement.epoch || settlement.serial < consumer.acks_since_serial) {
      ++counters_.stale_acks;
      return true;
    }
    const std::string payload =
        item.nak_delay_us < 0 ? "+ACK"
                              : absl::StrCat("-NAK {\"delay\": ", item.nak_delay_us * 1000, "}");
    if (natsConnection_Publish(link->nc, settlement.reply.c_str(), payload.data(),
                               static_cast<int>(payload.size())) != NATS_OK) {
      NoteBroken();
      return false;
    }
    ++(item.nak_delay_us < 0 ? counters_.acked : counters_.naked);
    return true;
  }

  // Starts ack_wait anew. What cannot be told now is told at the next look, or comes again.
  void TellInProgress(Link* link, uint64_t serial, const Settlement& settlement) {
    static constexpr absl::string_view kInProgress = "+WPI";
    const Consumer& consumer = *settlement.consumer;
    if (serial == 0 || !up_ || consumer.verified_serial != serial ||
        consumer.epoch != settlement.epoch || settlement.serial < consumer.acks_since_serial ||
        settlement.used)
      return;
    if (natsConnection_Publish(link->nc, settlement.reply.c_str(), kInProgress.data(),
                               static_cast<int>(kInProgress.size())) != NATS_OK) {
      return NoteBroken();
    }
    ++counters_.in_progress;
  }

  const NatsBusOptions options_;
  const std::shared_ptr<Sender> sender_;
  std::string ack_inbox_;
  Counters counters_;
  std::atomic<bool> up_{false};               // there is a connection
  std::atomic<bool> ready_{false};            // and streams and consumers stand
  std::atomic<uint64_t> verified_serial_{0};  // the last connection over which they stood
  std::atomic<bool> closing_{false};
  std::atomic<bool> stop_consuming_{false};
  std::atomic<int64_t> next_look_{0};

  std::mutex mu_;
  std::condition_variable changed_;
  // Guarded by mu_.
  std::shared_ptr<Link> link_;
  std::vector<std::shared_ptr<Consumer>> consumers_;
  std::vector<std::shared_ptr<Core>> cores_;
  std::vector<Listener> on_connect_;
  std::set<std::shared_ptr<Subscription>> subscriptions_;
  bool wake_keeper_ = false;

  // Of the keeper's thread.
  uint64_t link_count_ = 0;
  uint64_t last_serial_ = 0;
  bool pending_change_ = false;
  std::map<std::string, StreamState, std::less<>> known_streams_;

  std::mutex close_mu_;
  bool closed_ = false;  // guarded by close_mu_

  std::thread writer_;
  std::thread keeper_;
};

NatsBus::NatsBus(NatsBusOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
NatsBus::~NatsBus() { Close(); }

void NatsBus::Publish(BusMessage message, PublishDone done) {
  impl_->Publish(std::move(message), std::move(done));
}
absl::StatusOr<std::vector<StreamState>> NatsBus::Streams() { return impl_->Streams(); }
absl::Status NatsBus::Consume(ConsumerSpec spec, DeliveryHandler handler) {
  return impl_->Consume(std::move(spec), std::move(handler));
}
absl::Status NatsBus::Subscribe(std::string subject, std::string group, CoreHandler handler) {
  return impl_->Subscribe(std::move(subject), std::move(group), std::move(handler));
}
absl::Status NatsBus::PublishCore(absl::string_view subject, absl::string_view body) {
  return impl_->PublishCore(subject, body);
}
absl::StatusOr<std::string> NatsBus::Request(absl::string_view subject, absl::string_view body,
                                             absl::Duration timeout) {
  return impl_->Request(subject, body, timeout);
}
void NatsBus::OnConnect(std::function<void()> callback) { impl_->OnConnect(std::move(callback)); }
bool NatsBus::connected() const { return impl_->connected(); }
uint64_t NatsBus::connection() const { return impl_->connection(); }
absl::StatusOr<std::string> NatsBus::MessageId(const std::string& stream, uint64_t seq) {
  return impl_->MessageId(stream, seq);
}
void NatsBus::StopConsuming() { impl_->StopConsuming(); }

void NatsBus::Close() { impl_->Close(); }
BusStats NatsBus::stats() const { return impl_->stats(); }

}  // namespace gaekju::runtime
