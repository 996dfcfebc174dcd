#include "runtime/relay.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "flow/check.h"
#include "flow/mutant.h"
#include "runtime/cloudevents.h"
#include "runtime/stream_loss.h"

namespace gaekju::runtime {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kReadRows = 256;          // of the outbox in one query; a row has up to 256 KiB
constexpr size_t kWindowLow = 1024;     // fewer rows in memory than this: more are read
constexpr int kPruneRows = 1000;        // in one DELETE
constexpr int kPruneBatchesMax = 50;    // in one go
constexpr int kResendRowsMax = 500000;  // looked at for one batch of resources
constexpr size_t kResendsMax = 1000;    // resources that wait
constexpr size_t kResendBatch = 256;
constexpr auto kTick = std::chrono::milliseconds(100);
constexpr auto kRetryBackoffMin = std::chrono::milliseconds(20);

Clock::duration ToClock(absl::Duration d) {
  return std::chrono::microseconds(absl::ToInt64Microseconds(d));
}

int64_t SizeOf(const OutboxRow& row) { return static_cast<int64_t>(row.body.size()) + 512; }

using Position = StreamPosition;
using Positions = StreamPositions;

// Of a result with stream, created_ns, last_seq, msg_id.
std::vector<std::pair<std::string, Position>> PositionsOf(const PgResult& result) {
  std::vector<std::pair<std::string, Position>> positions;
  for (int i = 0; i < result.rows(); ++i) {
    positions.emplace_back(
        std::string(result.Bytes(i, 0)),
        Position{result.Int(i, 1), result.Int(i, 2), std::string(result.Bytes(i, 3))});
  }
  return positions;
}

// The same as four arrays.
struct StreamArrays {
  explicit StreamArrays(const Positions& positions) {
    for (const auto& [stream, position] : positions) {
      names.Add(stream);
      created.AddInt(position.created_ns);
      last.AddInt(position.last_seq);
      msg_ids.Add(position.msg_id);
    }
  }
  PgParams Params() const {
    return PgParams().Array(names).Array(created).Array(last).Array(msg_ids);
  }
  PgArray names = PgArray::Text(), created = PgArray::Int(), last = PgArray::Int(),
          msg_ids = PgArray::Text();
};

struct Pending {
  enum class State { kWaiting, kInFlight, kStored };
  OutboxRow row;
  State state = State::kWaiting;
  bool is_fresh =
      false;  // never sent before by anybody: its acknowledgement cannot be a duplicate's
  int64_t position_at_send = 0;  // of its stream
};

// What is left of one incarnation. Invariant: `window` holds the rows above published_seq up to
// read_seq, by seq.
struct Log {
  int64_t published_seq = 0;   // everything up to here is stored
  int64_t saved_seq = 0;       // published_seq as the table has it
  int64_t read_seq = 0;        // everything up to here is or was in the window
  int64_t committed_seq = 0;   // the highest known to exist
  bool is_taken_over = false;  // its writer is dead, and we hold its lock
  bool is_at_end = false;      // taken over, and nothing is above read_seq
  std::deque<Pending> window;
  size_t next = 0;  // no row before it is kWaiting

  Pending* Find(int64_t seq) {
    const auto it = std::lower_bound(window.begin(), window.end(), seq,
                                     [](const Pending& p, int64_t s) { return p.row.seq < s; });
    return it == window.end() || it->row.seq != seq ? nullptr : &*it;
  }
  void Append(OutboxRow row, bool is_fresh) {
    read_seq = row.seq;
    committed_seq = std::max(committed_seq, read_seq);
    window.push_back({std::move(row), Pending::State::kWaiting, is_fresh, 0});
  }
};

}  // namespace

struct Relay::Core : std::enable_shared_from_this<Relay::Core> {
  Core(Options o, Bus* b) : options(std::move(o)), bus(b) {}

  const Options options;
  Bus* const bus;
  const MessageIdAt message_id_at = [this](const std::string& stream, int64_t seq) {
    return bus->MessageId(stream, static_cast<uint64_t>(seq));
  };

  mutable std::mutex mutex;
  // --- guarded by mutex
  std::condition_variable publish_wake, keep_wake, idle;
  bool started = false, stopping = false;
  // The streams were compared since the last connect; until then nothing is published, and then
  // over that connection only.
  bool is_checked = false;
  uint64_t checked_connection = 0;
  bool was_checked = false;    // at least once
  int64_t check_requests = 0;  // grows whenever a comparison is due
  int64_t generation =
      0;  // grows with each going back; acknowledgements of earlier ones do not count
  int64_t epoch = 0;
  int in_flight = 0;
  int64_t memory_bytes = 0;
  std::map<int64_t, Log> logs;
  std::set<int64_t> closed;     // finished: a late hand-over has been read from the table already
  std::deque<Pending> resends;  // rows to publish again, in front of all others
  int64_t resend_number = 0;
  std::map<std::string, int64_t> resends_wanted;  // resource -> version
  Positions positions;
  std::map<std::string, int64_t>
      lost_after;  // stream -> the last sequence that can still be there, from an acknowledgement
  bool positions_changed = false;
  Clock::time_point publish_after{};
  std::chrono::milliseconds backoff = kRetryBackoffMin;
  Stats stats;

  // --- of the keeper's thread
  std::unique_ptr<PgConnection> pg;
  std::string last_failure;  // told once
  Clock::time_point connect_after{}, check_after{}, save_at{}, checkpoint_at{}, takeover_at{},
      prune_at{};

  std::thread publisher, keeper;

  void Tell(const std::string& message) const {
    if (options.log) options.log(message);
  }
  int64_t Now() const {
    return options.now_us ? options.now_us() : absl::ToUnixMicros(absl::Now());
  }

  // --- publisher
  void RunPublisher();
  std::vector<std::pair<BusMessage, PublishDone>> CollectMessages();
  BusMessage MessageOf(const OutboxRow& row, absl::string_view suffix) const;
  void Stored(int64_t of_generation, int64_t incarnation, int64_t seq, const char* stream,
              absl::StatusOr<uint64_t> stream_seq);
  void ResendStored(int64_t of_generation, OutboxRow row, const absl::Status& status);
  void PublishFailed(const absl::Status& status);
  void Advance(Log& log);
  bool IsIdle() const;
  bool NeedsReading(const Log& log) const;

  // --- keeper
  void RunKeeper();
  bool KeeperConnected();
  absl::Status Compare();
  absl::Status GoBack(const Positions& left, int64_t stored_epoch, const std::string& why);
  absl::StatusOr<Positions> FindLeft(const Positions& known, const StreamsNow& present);
  void Adopt(int64_t new_epoch, const std::map<int64_t, int64_t>& published);
  absl::StatusOr<bool> ReadMore();
  absl::Status Save(bool checkpoint);
  absl::Status TakeOver();
  absl::Status CloseFinished();
  absl::Status Prune();
  absl::Status ServeResends();
  void LoseConnection();
};

// ---------------------------------------------------------------- publisher

BusMessage Relay::Core::MessageOf(const OutboxRow& row, absl::string_view suffix) const {
  BusMessage message;
  message.subject = row.subject;
  message.msg_id =
      absl::StrCat(OutboxMessageId(options.context, row.incarnation, row.seq, epoch), suffix);
  message.headers = row.headers;
  message.body = row.body;
  message.connection = checked_connection;
  return message;
}

// REQUIRES: mutex.
std::vector<std::pair<BusMessage, PublishDone>> Relay::Core::CollectMessages() {
  std::vector<std::pair<BusMessage, PublishDone>> out;
  auto self = shared_from_this();
  while (in_flight < options.in_flight_max && !resends.empty()) {
    OutboxRow row = std::move(resends.front().row);
    resends.pop_front();
    // An id of its own, or the broker would take it for a duplicate.
    BusMessage message = MessageOf(row, absl::StrCat(":r", ++resend_number, "-", Now()));
    ++in_flight;
    out.emplace_back(std::move(message),
                     [self, g = generation, row = std::move(row)](absl::StatusOr<uint64_t> seq) {
                       self->ResendStored(g, row, seq.status());
                     });
  }
  for (auto& [incarnation, log] : logs) {
    for (; log.next < log.window.size() && in_flight < options.in_flight_max; ++log.next) {
      Pending& pending = log.window[log.next];
      if (pending.state != Pending::State::kWaiting) continue;
      const char* stream = StreamOf(pending.row.subject);
      pending.state = Pending::State::kInFlight;
      pending.position_at_send = pending.is_fresh ? positions[stream].last_seq : 0;
      pending.is_fresh = false;
      ++in_flight;
      out.emplace_back(
          MessageOf(pending.row, ""),
          [self, g = generation, i = incarnation, s = pending.row.seq, stream](
              absl::StatusOr<uint64_t> seq) { self->Stored(g, i, s, stream, std::move(seq)); });
    }
  }
  return out;
}

void Relay::Core::RunPublisher() {
  std::unique_lock<std::mutex> lock(mutex);
  while (!stopping) {
    if (!is_checked || in_flight >= options.in_flight_max) {
      publish_wake.wait(lock);
      continue;
    }
    if (Clock::now() < publish_after) {
      publish_wake.wait_until(lock, publish_after);
      continue;
    }
    auto messages = CollectMessages();
    if (messages.empty()) {
      publish_wake.wait(lock);
      continue;
    }
    lock.unlock();
    for (auto& [message, done] : messages) bus->Publish(std::move(message), std::move(done));
    messages.clear();
    lock.lock();
  }
}

// REQUIRES: mutex.
void Relay::Core::PublishFailed(const absl::Status& status) {
  ++stats.failed_count;
  if (is_checked) {  // the first of those that were in flight
    Tell(absl::StrCat("publishing stopped: ", status.message()));
    publish_after = Clock::now() + backoff;
    backoff =
        std::min(backoff * 2,
                 std::chrono::milliseconds(absl::ToInt64Milliseconds(options.retry_backoff_max)));
  }
  // The connection broke, the stream is gone, or nobody knows: look at the streams before anything
  // else is published.
  is_checked = false;
  ++check_requests;
  keep_wake.notify_all();
  publish_wake.notify_all();
}

// REQUIRES: mutex. Lets go of what is stored at the window's head.
void Relay::Core::Advance(Log& log) {
  while (!log.window.empty() && log.window.front().state == Pending::State::kStored) {
    log.published_seq = log.window.front().row.seq;
    memory_bytes -= SizeOf(log.window.front().row);
    log.window.pop_front();
    if (log.next > 0) --log.next;
  }
}

void Relay::Core::Stored(int64_t of_generation, int64_t incarnation, int64_t seq,
                         const char* stream, absl::StatusOr<uint64_t> stream_seq) {
  std::lock_guard<std::mutex> lock(mutex);
  if (in_flight-- >= options.in_flight_max) publish_wake.notify_all();
  const auto it = logs.find(incarnation);
  Pending* pending =
      of_generation == generation && it != logs.end() ? it->second.Find(seq) : nullptr;
  if (pending == nullptr) {
    if (IsIdle()) idle.notify_all();
    return;
  }
  Log& log = it->second;
  if (stream_seq.ok()) {
    const auto got = static_cast<int64_t>(*stream_seq);
    Position& position = positions[stream];
    if (got <= pending->position_at_send) {
      // The stream gives a sequence out for the second time: it was shorter when it took this
      // message.
      const auto lost = lost_after.try_emplace(stream, got - 1).first;
      lost->second = std::min(lost->second, got - 1);
      is_checked = false;
      ++check_requests;
      keep_wake.notify_all();
    } else if (got > position.last_seq) {
      position.last_seq = got;
      position.msg_id = OutboxMessageId(options.context, incarnation, seq, epoch);
      positions_changed = true;
    }
    ++stats.published_count;
    backoff = kRetryBackoffMin;
    pending->state = Pending::State::kStored;
  } else if (stream_seq.status().code() == absl::StatusCode::kInvalidArgument) {
    ++stats.dropped_count;
    Tell(absl::StrCat("outbox row ", incarnation, "/", seq, " to ", pending->row.subject,
                      " can never be published: ", stream_seq.status().message()));
    pending->state = Pending::State::kStored;
  } else {
    pending->state = Pending::State::kWaiting;
    log.next = 0;
    PublishFailed(stream_seq.status());
  }
  Advance(log);
  if (NeedsReading(log) || (log.is_at_end && log.window.empty())) keep_wake.notify_all();
  if (IsIdle()) idle.notify_all();
}

void Relay::Core::ResendStored(int64_t of_generation, OutboxRow row, const absl::Status& status) {
  std::lock_guard<std::mutex> lock(mutex);
  if (in_flight-- >= options.in_flight_max) publish_wake.notify_all();
  if (status.ok()) {
    ++stats.resend_count;
  } else if (of_generation == generation && status.code() != absl::StatusCode::kInvalidArgument) {
    resends.push_back({std::move(row), Pending::State::kWaiting, false, 0});
    PublishFailed(status);
  }
  if (IsIdle()) idle.notify_all();
}

// REQUIRES: mutex.
bool Relay::Core::NeedsReading(const Log& log) const {
  if (log.window.size() >= kWindowLow ||
      (memory_bytes > options.memory_bytes_max && !log.window.empty()))
    return false;
  return log.is_taken_over ? !log.is_at_end : log.read_seq < log.committed_seq;
}

// REQUIRES: mutex.
bool Relay::Core::IsIdle() const {
  if (in_flight > 0 || !resends.empty()) return false;
  for (const auto& [incarnation, log] : logs) {
    if (!log.window.empty() || log.read_seq < log.committed_seq) return false;
  }
  return true;
}

// ---------------------------------------------------------------- keeper

void Relay::Core::LoseConnection() {
  if (pg == nullptr || pg->ok()) return;
  pg.reset();
  connect_after = Clock::now() + kTick;
  // With the connection went the locks of the dead; another relay may finish them now.
  std::lock_guard<std::mutex> lock(mutex);
  for (auto& [incarnation, log] : logs) log.is_taken_over = log.is_at_end = false;
}

bool Relay::Core::KeeperConnected() {
  if (pg != nullptr && pg->ok()) return true;
  if (Clock::now() < connect_after) return false;
  auto connected = PgConnection::Connect(options.pg);
  if (!connected.ok()) {
    connect_after = Clock::now() + std::chrono::milliseconds(500);
    return false;
  }
  pg = *std::move(connected);
  takeover_at = Clock::time_point();
  return true;
}

// Compares the streams with what they had acknowledged, and goes back when they have lost
// something.
absl::Status Relay::Core::Compare() {
  // In this order: what we know, what the other relays know, what the streams have. A stream only
  // grows meanwhile, unless it loses something; the other way round, its growth would look like a
  // loss.
  int64_t requests, of_epoch;
  Positions remembered;
  std::map<std::string, int64_t> twice;
  {
    std::lock_guard<std::mutex> lock(mutex);
    requests = check_requests;
    of_epoch = epoch;
    remembered = positions;
    twice = lost_after;
  }
  pg->Add("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
  pg->Add("SELECT epoch FROM relay_epoch");
  pg->Add("SELECT stream, created_ns, last_seq, msg_id FROM relay_stream");
  pg->Add("COMMIT");
  auto results = pg->Run();
  if (!results.ok()) {
    if (pg->ok()) (void)pg->Query("ROLLBACK");
    return results.status();
  }
  if ((*results)[1].rows() != 1) return absl::InternalError("relay_epoch has no row");
  const int64_t stored_epoch = (*results)[1].Int(0, 0);
  Positions known;
  for (auto& [stream, position] : PositionsOf((*results)[2])) known[stream] = std::move(position);
  const uint64_t connection = bus->connection();
  if (connection == 0) return absl::UnavailableError("not connected to the bus");
  auto streams = bus->Streams();
  if (!streams.ok()) return streams.status();
  StreamsNow present;
  for (const StreamState& state : *streams) {
    present[state.name] = {state.created_ns, static_cast<int64_t>(state.first_seq),
                           static_cast<int64_t>(state.last_seq)};
  }
  // Who went back knows better than our memory.
  if (stored_epoch == of_epoch) MergePositions(remembered, &known);
  auto why = FindLoss(known, twice, present, message_id_at);
  if (!why.ok()) return why.status();
  if (!why->empty()) {
    for (const auto& [stream, last_seq] : twice) {
      StreamNow& now = present[stream];
      now.last_seq = std::min(now.last_seq, last_seq);
    }
    auto left = FindLeft(known, present);
    if (!left.ok()) return left.status();
    if (absl::Status status = GoBack(*left, stored_epoch, *why); !status.ok()) return status;
  } else if (stored_epoch != epoch) {
    auto cursors = pg->Query("SELECT incarnation, published_seq FROM outbox_incarnation");
    if (!cursors.ok()) return cursors.status();
    std::map<int64_t, int64_t> published;
    for (int i = 0; i < cursors->rows(); ++i) published[cursors->Int(i, 0)] = cursors->Int(i, 1);
    std::lock_guard<std::mutex> lock(mutex);
    if (was_checked) Tell(absl::StrCat("epoch ", stored_epoch, ": another relay went back"));
    Adopt(stored_epoch, published);
  }
  std::lock_guard<std::mutex> lock(mutex);
  if (why->empty()) {
    for (const auto& [stream, now] : present) {
      Position& position = positions[stream];
      if (position.created_ns != now.created_ns) position = {now.created_ns, 0, ""};
      const auto it = known.find(stream);
      if (it != known.end() && it->second.created_ns == now.created_ns &&
          it->second.last_seq > position.last_seq)
        position = it->second;
    }
  }
  checked_connection = connection;
  takeover_at = Clock::time_point();
  was_checked = true;
  // A request that came meanwhile is about what we may not have seen.
  is_checked = requests == check_requests;
  publish_wake.notify_all();
  return absl::OkStatus();
}

// Of all that was ever acknowledged, the furthest that the streams still have.
absl::StatusOr<Positions> Relay::Core::FindLeft(const Positions& known, const StreamsNow& present) {
  auto checkpoints =
      pg->Query("SELECT DISTINCT stream, created_ns, last_seq, msg_id FROM relay_checkpoint");
  if (!checkpoints.ok()) return checkpoints.status();
  std::map<std::string, std::vector<Position>> acknowledged;
  for (const auto& [stream, position] : known) acknowledged[stream].push_back(position);
  for (auto& [stream, position] : PositionsOf(*checkpoints))
    acknowledged[stream].push_back(std::move(position));
  return WhatIsLeft(acknowledged, present, message_id_at);
}

// `left`: of what was acknowledged, what is still there.
absl::Status Relay::Core::GoBack(const Positions& left, int64_t stored_epoch,
                                 const std::string& why) {
  const StreamArrays streams(left);
  pg->Add("BEGIN");
  pg->Add("UPDATE relay_epoch SET epoch = $2 WHERE epoch = $1 RETURNING epoch",
          PgParams().Int(stored_epoch).Int(EpochAfterLoss(stored_epoch)));
  auto bumped = pg->Run();
  if (!bumped.ok() || (*bumped)[1].rows() == 0) {
    if (pg->ok()) (void)pg->Query("ROLLBACK");
    return bumped.ok() ? absl::AbortedError("another relay went back at the same time")
                       : bumped.status();
  }
  // Checkpoints that a stream no longer reaches are worth nothing; nor are those from shortly
  // before the loss.
  pg->Add(
      "DELETE FROM relay_checkpoint c WHERE NOT EXISTS (SELECT 1 FROM unnest($1::text[], "
      "$2::bigint[], $3::bigint[]) "
      "AS s(stream, created_ns, last_seq) WHERE s.stream = c.stream AND s.created_ns = "
      "c.created_ns "
      "AND s.last_seq >= c.last_seq) OR c.time_us > (SELECT max(time_us) FROM relay_checkpoint) - "
      "$4",
      PgParams()
          .Array(streams.names)
          .Array(streams.created)
          .Array(streams.last)
          .Int(absl::ToInt64Microseconds(options.rollback_margin)));
  // A checkpoint has a row per stream; one that lost some of them in the DELETE is incomplete.
  pg->Add(
      "DELETE FROM relay_checkpoint c USING (SELECT incarnation, seq FROM relay_checkpoint GROUP "
      "BY incarnation, seq "
      "HAVING count(*) < max(stream_count)) AS p WHERE c.incarnation = p.incarnation AND c.seq = "
      "p.seq");
  pg->Add(
      "UPDATE outbox_incarnation AS i SET published_seq = t.seq, closed = false FROM ("
      "SELECT o.incarnation, coalesce((SELECT max(c.seq) FROM relay_checkpoint c WHERE "
      "c.incarnation = o.incarnation), 0) AS seq "
      "FROM outbox_incarnation o) AS t WHERE i.incarnation = t.incarnation AND t.seq < "
      "i.published_seq");
  pg->Add("DELETE FROM relay_stream");
  pg->Add(
      "INSERT INTO relay_stream SELECT stream, created_ns, last_seq, msg_id FROM "
      "unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[]) "
      "AS s(stream, created_ns, last_seq, msg_id)",
      streams.Params());
  pg->Add("SELECT incarnation, published_seq FROM outbox_incarnation");
  pg->Add("COMMIT");
  auto results = pg->Run();
  if (!results.ok()) {
    if (pg->ok()) (void)pg->Query("ROLLBACK");
    return results.status();
  }
  std::map<int64_t, int64_t> published;
  const PgResult& cursors = (*results)[5];
  for (int i = 0; i < cursors.rows(); ++i) published[cursors.Int(i, 0)] = cursors.Int(i, 1);
  const int64_t new_epoch = (*bumped)[1].Int(0, 0);
  std::lock_guard<std::mutex> lock(mutex);
  ++stats.rewind_count;
  Tell(absl::StrCat("THE BUS HAS LOST MESSAGES (", why, "): publishing again, epoch ", new_epoch));
  positions = left;
  Adopt(new_epoch, published);
  return absl::OkStatus();
}

// REQUIRES: mutex. Starts over from the cursors in the table.
void Relay::Core::Adopt(int64_t new_epoch, const std::map<int64_t, int64_t>& published) {
  epoch = stats.epoch = new_epoch;
  ++generation;
  lost_after.clear();
  resends.clear();
  memory_bytes = 0;
  for (auto& [incarnation, log] : logs) {
    for (const Pending& pending : log.window)
      log.committed_seq = std::max(log.committed_seq, pending.row.seq);
    log.window.clear();
    log.next = 0;
    log.is_at_end = false;
    const auto it = published.find(incarnation);
    log.published_seq = log.saved_seq = log.read_seq = it == published.end() ? 0 : it->second;
  }
}

// Reads rows that memory has not. True when there may be more.
absl::StatusOr<bool> Relay::Core::ReadMore() {
  struct Want {
    int64_t incarnation, after_seq, generation;
  };
  std::vector<Want> wants;
  {
    std::lock_guard<std::mutex> lock(mutex);
    if (!is_checked) return false;
    for (const auto& [incarnation, log] : logs) {
      if (NeedsReading(log)) wants.push_back({incarnation, log.read_seq, generation});
    }
  }
  bool more = false;
  for (const Want& want : wants) {
    auto rows = ReadOutbox(*pg, want.incarnation, want.after_seq, kReadRows);
    if (!rows.ok()) return rows.status();
    std::lock_guard<std::mutex> lock(mutex);
    const auto it = logs.find(want.incarnation);
    if (want.generation != generation || it == logs.end()) continue;
    Log& log = it->second;
    if (log.read_seq != want.after_seq) {
      more = true;  // rows came from the writer meanwhile
      continue;
    }
    for (OutboxRow& row : *rows) {
      memory_bytes += SizeOf(row);
      log.Append(std::move(row), /*is_fresh=*/false);
    }
    if (rows->size() < static_cast<size_t>(kReadRows)) {
      log.is_at_end = log.is_taken_over;
      // Known rows that are not there were pruned.
      if (log.read_seq < log.committed_seq && rows->empty())
        log.read_seq = log.published_seq = log.committed_seq;
    }
    more = more || NeedsReading(log);
    publish_wake.notify_all();
  }
  return more;
}

absl::Status Relay::Core::Save(bool checkpoint) {
  std::map<int64_t, int64_t> cursors;
  Positions now;
  int64_t of_epoch, of_generation;
  {
    std::lock_guard<std::mutex> lock(mutex);
    of_epoch = epoch;
    of_generation = generation;
    for (const auto& [incarnation, log] : logs) {
      const int64_t cursor = GK_MUTANT(cursor_ahead_of_the_bus) ? log.read_seq : log.published_seq;
      if (cursor != log.saved_seq || checkpoint) cursors[incarnation] = cursor;
    }
    for (const auto& [stream, position] : positions) {
      if (position.last_seq > 0) now[stream] = position;
    }
    if (cursors.empty() && !positions_changed) return absl::OkStatus();
    positions_changed = false;
  }
  PgArray incarnations = PgArray::Int(), seqs = PgArray::Int();
  for (const auto& [incarnation, seq] : cursors) {
    incarnations.AddInt(incarnation);
    seqs.AddInt(seq);
  }
  const StreamArrays streams(now);
  pg->Add("BEGIN");
  // A cursor that is lost costs some duplicates; it is not worth a disk flush.
  pg->Add("SELECT set_config('synchronous_commit', 'off', true)");
  // Waits for a relay that is going back, so that the statements below see its epoch.
  pg->Add("SELECT epoch FROM relay_epoch FOR SHARE");
  pg->Add(
      "UPDATE outbox_incarnation AS i SET published_seq = u.seq FROM unnest($1::bigint[], "
      "$2::bigint[]) "
      "AS u(incarnation, seq) WHERE i.incarnation = u.incarnation AND i.published_seq < u.seq "
      "AND (SELECT epoch FROM relay_epoch) = $3",
      PgParams().Array(incarnations).Array(seqs).Int(of_epoch));
  // In the same transaction as the cursors: what is saved as published can be looked for.
  pg->Add(
      "INSERT INTO relay_stream AS r SELECT stream, created_ns, last_seq, msg_id FROM "
      "unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[]) "
      "AS s(stream, created_ns, last_seq, msg_id) WHERE (SELECT epoch FROM relay_epoch) = $5 "
      "ON CONFLICT (stream) DO UPDATE SET created_ns = excluded.created_ns, "
      "last_seq = excluded.last_seq, msg_id = excluded.msg_id "
      "WHERE r.created_ns <> excluded.created_ns OR r.last_seq < excluded.last_seq",
      streams.Params().Int(of_epoch));
  if (checkpoint) {
    pg->Add(
        "INSERT INTO relay_checkpoint (stream, created_ns, last_seq, msg_id, incarnation, seq, "
        "stream_count, time_us) "
        "SELECT s.stream, s.created_ns, s.last_seq, s.msg_id, u.incarnation, u.seq, $7, $8 "
        "FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[]) "
        "AS s(stream, created_ns, last_seq, msg_id), "
        "unnest($5::bigint[], $6::bigint[]) AS u(incarnation, seq) "
        "WHERE u.seq > 0 AND (SELECT epoch FROM relay_epoch) = $9 ON CONFLICT DO NOTHING",
        streams.Params()
            .Array(incarnations)
            .Array(seqs)
            .Int(static_cast<int64_t>(now.size()))
            .Int(Now())
            .Int(of_epoch));
  }
  pg->Add("COMMIT");
  auto results = pg->Run();
  if (!results.ok()) {
    if (pg->ok()) (void)pg->Query("ROLLBACK");
    std::lock_guard<std::mutex> lock(mutex);
    positions_changed = true;
    return results.status();
  }
  std::lock_guard<std::mutex> lock(mutex);
  if ((*results)[2].rows() == 1 && (*results)[2].Int(0, 0) != of_epoch) {
    // Another relay went back, or somebody asked for everything again.
    is_checked = false;
    ++check_requests;
    return absl::OkStatus();
  }
  if (of_generation != generation) return absl::OkStatus();
  for (const auto& [incarnation, seq] : cursors) {
    const auto it = logs.find(incarnation);
    if (it != logs.end()) it->second.saved_seq = std::max(it->second.saved_seq, seq);
  }
  return absl::OkStatus();
}

// Finishes what dead writers have left: whoever obtains the lock of an incarnation knows that its
// writer is gone.
absl::Status Relay::Core::TakeOver() {
  auto open = pg->Query(
      "SELECT incarnation, published_seq FROM outbox_incarnation WHERE NOT closed ORDER BY "
      "incarnation");
  if (!open.ok()) return open.status();
  std::vector<std::pair<int64_t, int64_t>> wanted;
  {
    std::lock_guard<std::mutex> lock(mutex);
    for (int i = 0; i < open->rows(); ++i) {
      const auto it = logs.find(open->Int(i, 0));
      if (it == logs.end() || !it->second.is_taken_over)
        wanted.emplace_back(open->Int(i, 0), open->Int(i, 1));
    }
  }
  if (wanted.empty()) return absl::OkStatus();
  for (const auto& [incarnation, published] : wanted) {
    pg->Add("SELECT pg_try_advisory_lock($1)", PgParams().Int(IncarnationLock(incarnation)));
  }
  auto locked = pg->Run();
  if (!locked.ok()) return locked.status();
  std::vector<int64_t> mine;
  for (size_t i = 0; i < wanted.size(); ++i) {
    if ((*locked)[i].Bool(0, 0)) mine.push_back(wanted[i].first);
  }
  if (mine.empty()) return absl::OkStatus();
  // The cursor is read again under the lock: who held it before may have finished meanwhile.
  PgArray incarnations = PgArray::Int();
  for (int64_t incarnation : mine) incarnations.AddInt(incarnation);
  auto cursors = pg->Query(
      "SELECT incarnation, published_seq, closed FROM outbox_incarnation WHERE incarnation = "
      "ANY($1)",
      PgParams().Array(std::move(incarnations)));
  if (!cursors.ok()) return cursors.status();
  std::lock_guard<std::mutex> lock(mutex);
  for (int i = 0; i < cursors->rows(); ++i) {
    const int64_t incarnation = cursors->Int(i, 0);
    auto [it, is_new] = logs.try_emplace(incarnation);
    Log& log = it->second;
    closed.erase(incarnation);
    if (is_new)
      log.published_seq = log.saved_seq = log.read_seq = log.committed_seq = cursors->Int(i, 1);
    log.is_taken_over = true;
    log.is_at_end = cursors->Bool(i, 2);
  }
  return absl::OkStatus();
}

absl::Status Relay::Core::CloseFinished() {
  std::vector<int64_t> finished;
  int64_t of_generation;
  {
    std::lock_guard<std::mutex> lock(mutex);
    of_generation = generation;
    for (const auto& [incarnation, log] : logs) {
      if (log.is_taken_over && log.is_at_end && log.window.empty()) finished.push_back(incarnation);
    }
  }
  if (finished.empty()) return absl::OkStatus();
  // With a checkpoint, so that a later loss need not publish all of it again.
  if (absl::Status status = Save(/*checkpoint=*/true); !status.ok()) return status;
  int64_t of_epoch;
  {
    std::lock_guard<std::mutex> lock(mutex);
    if (of_generation != generation || !is_checked) return absl::OkStatus();
    of_epoch = epoch;
  }
  for (int64_t incarnation : finished) {
    pg->Add("BEGIN");
    pg->Add("SELECT epoch FROM relay_epoch FOR SHARE");
    pg->Add(
        "UPDATE outbox_incarnation SET closed = true WHERE incarnation = $1 AND (SELECT epoch FROM "
        "relay_epoch) = $2",
        PgParams().Int(incarnation).Int(of_epoch));
    pg->Add("COMMIT");
    pg->Add("SELECT pg_advisory_unlock($1)", PgParams().Int(IncarnationLock(incarnation)));
  }
  auto results = pg->Run();
  if (!results.ok()) return results.status();
  std::lock_guard<std::mutex> lock(mutex);
  if (of_generation != generation) return absl::OkStatus();
  for (int64_t incarnation : finished) {
    logs.erase(incarnation);
    closed.insert(incarnation);
    ++stats.takeover_count;
  }
  return absl::OkStatus();
}

absl::Status Relay::Core::Prune() {
  const int64_t before_us = Now() - absl::ToInt64Microseconds(options.retention);
  auto incarnations =
      pg->Query("SELECT incarnation, published_seq, closed, started_us FROM outbox_incarnation");
  if (!incarnations.ok()) return incarnations.status();
  for (int i = 0; i < incarnations->rows(); ++i) {
    const int64_t incarnation = incarnations->Int(i, 0);
    bool is_empty = false;
    for (int batch = 0; batch < kPruneBatchesMax; ++batch) {
      auto deleted = pg->Query(
          "WITH head AS (SELECT seq, time_us FROM outbox WHERE incarnation = $1 ORDER BY seq LIMIT "
          "$4), "
          "gone AS (DELETE FROM outbox WHERE incarnation = $1 AND seq <= $2 AND seq <= "
          "(SELECT max(seq) FROM head WHERE time_us < $3) RETURNING 1) "
          "SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM head)",
          PgParams()
              .Int(incarnation)
              .Int(GK_MUTANT(pruned_before_published) ? INT64_MAX : incarnations->Int(i, 1))
              .Int(before_us)
              .Int(kPruneRows));
      if (!deleted.ok()) return deleted.status();
      is_empty = deleted->Int(0, 0) == deleted->Int(0, 1);
      std::lock_guard<std::mutex> lock(mutex);
      stats.pruned_count += deleted->Int(0, 0);
      if (deleted->Int(0, 0) < kPruneRows) break;
    }
    if (is_empty && incarnations->Bool(i, 2) && incarnations->Int(i, 3) < before_us) {
      pg->Add("DELETE FROM relay_checkpoint WHERE incarnation = $1", PgParams().Int(incarnation));
      pg->Add("DELETE FROM outbox_incarnation WHERE incarnation = $1 AND closed",
              PgParams().Int(incarnation));
      if (auto results = pg->Run(); !results.ok()) return results.status();
    }
  }
  // The newest of each incarnation stays, however old.
  return pg
      ->Query(
          "DELETE FROM relay_checkpoint AS c WHERE time_us < $1 AND seq < "
          "(SELECT max(seq) FROM relay_checkpoint m WHERE m.incarnation = c.incarnation)",
          PgParams().Int(before_us))
      .status();
}

// Looks through the rows of all resources that are asked for at once, newest first, until each has
// its first missing event.
absl::Status Relay::Core::ServeResends() {
  std::map<std::string, int64_t> wanted;
  {
    std::lock_guard<std::mutex> lock(mutex);
    while (!resends_wanted.empty() && wanted.size() < kResendBatch) {
      wanted.insert(resends_wanted.extract(resends_wanted.begin()));
    }
  }
  if (wanted.empty()) return absl::OkStatus();
  // First which rows, by the index; then what is in them, a few at a time.
  PgArray resources = PgArray::Text();
  for (const auto& [resource, version] : wanted) resources.Add(resource);
  auto keys = pg->Query(
      "SELECT incarnation, seq FROM outbox WHERE resources && $1 "
      "ORDER BY incarnation DESC, seq DESC LIMIT $2",
      PgParams().Array(std::move(resources)).Int(kResendRowsMax));
  if (!keys.ok()) return keys.status();
  std::vector<OutboxRow> found;  // newest first
  for (int next = 0; next < keys->rows() && !wanted.empty();) {
    PgArray incarnations = PgArray::Int(), seqs = PgArray::Int();
    for (const int end = std::min(next + kReadRows, keys->rows()); next < end; ++next) {
      incarnations.AddInt(keys->Int(next, 0));
      seqs.AddInt(keys->Int(next, 1));
    }
    auto hits = pg->Query(
        "SELECT incarnation, seq, time_us, subject, headers, body FROM outbox JOIN "
        "unnest($1::bigint[], $2::bigint[]) AS k(incarnation, seq) USING (incarnation, seq) "
        "ORDER BY incarnation DESC, seq DESC",
        PgParams().Array(std::move(incarnations)).Array(std::move(seqs)));
    if (!hits.ok()) return hits.status();
    for (int h = 0; h < hits->rows(); ++h) {
      OutboxRow row;
      row.incarnation = hits->Int(h, 0);
      row.seq = hits->Int(h, 1);
      row.time_us = hits->Int(h, 2);
      row.subject = std::string(hits->Bytes(h, 3));
      row.headers = UnpackHeaders(hits->Bytes(h, 4));
      row.body = std::string(hits->Bytes(h, 5));
      auto envelopes = DecodeMessage(row.subject, row.headers, row.body);
      bool is_wanted = false;
      if (envelopes.ok()) {
        for (const DecodedEnvelope& decoded : *envelopes) {
          const auto it = wanted.find(decoded.envelope.resource);
          is_wanted = is_wanted || (it != wanted.end() && decoded.envelope.version >= it->second);
        }
        for (const DecodedEnvelope& decoded : *envelopes) {
          const auto it = wanted.find(decoded.envelope.resource);
          if (it != wanted.end() && decoded.envelope.version <= it->second) wanted.erase(it);
        }
      }
      if (is_wanted) found.push_back(std::move(row));
    }
  }
  std::lock_guard<std::mutex> lock(mutex);
  for (auto it = found.rbegin(); it != found.rend(); ++it) {
    resends.push_back({std::move(*it), Pending::State::kWaiting, false, 0});
  }
  if (!wanted.empty()) {
    Tell(absl::StrCat("resend: ", wanted.size(),
                      " resources have events that are no longer in the outbox, e.g. ",
                      wanted.begin()->first, " from version ", wanted.begin()->second));
  }
  publish_wake.notify_all();
  return absl::OkStatus();
}

void Relay::Core::RunKeeper() {
  while (true) {
    bool stops, is_due, has_resends;
    {
      std::lock_guard<std::mutex> lock(mutex);
      stops = stopping;
      is_due = !is_checked;
      has_resends = !resends_wanted.empty();
    }
    if (stops) {
      if (pg != nullptr && pg->ok()) (void)Save(/*checkpoint=*/false);
      return;
    }
    bool more = false, failed = false;
    if (KeeperConnected()) {
      const auto now = Clock::now();
      absl::Status status;
      if (is_due && now >= check_after && bus->connected()) {
        status = Compare();
        if (!status.ok()) check_after = now + kTick;
      }
      if (status.ok() && now >= takeover_at) {
        takeover_at = now + ToClock(options.takeover_interval);
        status = TakeOver();
      }
      if (status.ok() && has_resends) status = ServeResends();
      if (status.ok()) {
        auto read = ReadMore();
        status = read.status();
        more = read.ok() && *read;
      }
      if (status.ok()) status = CloseFinished();
      if (status.ok() && now >= save_at) {
        const bool checkpoint = now >= checkpoint_at;
        if (checkpoint) checkpoint_at = now + ToClock(options.checkpoint_interval);
        save_at = now + ToClock(options.save_interval);
        status = Save(checkpoint);
      }
      if (status.ok() && now >= prune_at) {
        prune_at = now + ToClock(options.prune_interval);
        status = Prune();
      }
      if (!status.ok()) {
        if (last_failure != status.message()) Tell(absl::StrCat("relay: ", status.message()));
        last_failure = std::string(status.message());
        LoseConnection();
        more = false;
        failed = true;
      }
    }
    std::unique_lock<std::mutex> lock(mutex);
    const auto has_work = [&] {
      if (stopping || more) return true;
      if (failed || pg == nullptr || !is_checked) return false;
      if (!resends_wanted.empty()) return true;
      for (const auto& [incarnation, log] : logs) {
        if (NeedsReading(log) || (log.is_taken_over && log.is_at_end && log.window.empty()))
          return true;
      }
      return false;
    };
    if (!has_work()) keep_wake.wait_for(lock, kTick);
  }
}

// ---------------------------------------------------------------- Relay

Relay::Relay(Options options, Bus* bus) : core_(std::make_shared<Core>(std::move(options), bus)) {}

Relay::~Relay() { Stop(); }

void Relay::Start() {
  {
    std::lock_guard<std::mutex> lock(core_->mutex);
    GK_CHECK(!core_->started && !core_->stopping);
    core_->started = true;
    Core* core = core_.get();
    core_->publisher = std::thread([core] { core->RunPublisher(); });
    core_->keeper = std::thread([core] { core->RunKeeper(); });
  }
  core_->bus->OnConnect([weak = std::weak_ptr<Core>(core_)] {
    const std::shared_ptr<Core> core = weak.lock();
    if (core == nullptr) return;
    std::lock_guard<std::mutex> lock(core->mutex);
    core->is_checked = false;
    ++core->check_requests;
    core->publish_after = Clock::time_point();
    core->keep_wake.notify_all();
  });
}

void Relay::Stop() {
  {
    std::lock_guard<std::mutex> lock(core_->mutex);
    core_->stopping = true;
    core_->publish_wake.notify_all();
    core_->keep_wake.notify_all();
    core_->idle.notify_all();
  }
  if (core_->publisher.joinable()) core_->publisher.join();
  if (core_->keeper.joinable()) core_->keeper.join();
}

bool Relay::Flush(absl::Duration timeout) {
  std::unique_lock<std::mutex> lock(core_->mutex);
  core_->idle.wait_for(lock, absl::ToChronoMicroseconds(timeout),
                       [&] { return core_->stopping || core_->IsIdle(); });
  return core_->IsIdle();
}

void Relay::Committed(int64_t incarnation, std::vector<OutboxRow> rows) {
  std::lock_guard<std::mutex> lock(core_->mutex);
  if (core_->closed.contains(incarnation)) return;
  Log& log = core_->logs[incarnation];
  for (OutboxRow& row : rows) {
    // What does not follow, or finds no room, is read from the table when its turn comes.
    const bool follows = row.seq == log.read_seq + 1 && log.read_seq >= log.committed_seq;
    log.committed_seq = std::max(log.committed_seq, row.seq);
    if (!follows || core_->memory_bytes > core_->options.memory_bytes_max) continue;
    core_->memory_bytes += SizeOf(row);
    log.Append(std::move(row), /*is_fresh=*/true);
  }
  if (core_->NeedsReading(log)) core_->keep_wake.notify_all();
  core_->publish_wake.notify_all();
}

absl::Status Relay::Republish(int64_t from_time_us) {
  PgOptions options = core_->options.pg;
  options.statement_timeout_ms = 0;  // it looks at the whole outbox
  auto pg = PgConnection::Connect(options);
  if (!pg.ok()) return pg.status();
  (*pg)->Add("BEGIN");
  (*pg)->Add("UPDATE relay_epoch SET epoch = epoch + 1");
  (*pg)->Add(
      "UPDATE outbox_incarnation AS i SET published_seq = t.seq, closed = false FROM ("
      "SELECT incarnation, min(seq) - 1 AS seq FROM outbox WHERE time_us >= $1 GROUP BY "
      "incarnation) AS t "
      "WHERE i.incarnation = t.incarnation AND t.seq < i.published_seq",
      PgParams().Int(from_time_us));
  (*pg)->Add("COMMIT");
  if (auto results = (*pg)->Run(); !results.ok()) return results.status();
  std::lock_guard<std::mutex> lock(core_->mutex);
  core_->Tell(absl::StrCat("publishing again from ", from_time_us, ", as asked"));
  core_->is_checked = false;
  ++core_->check_requests;
  core_->keep_wake.notify_all();
  return absl::OkStatus();
}

void Relay::Resend(std::string resource, int64_t from_version) {
  std::lock_guard<std::mutex> lock(core_->mutex);
  auto& wanted = core_->resends_wanted;
  const auto it = wanted.find(resource);
  if (it != wanted.end()) {
    it->second = std::min(it->second, from_version);
  } else if (wanted.size() < kResendsMax) {
    wanted.emplace(std::move(resource), from_version);
  }
  core_->keep_wake.notify_all();
}

Relay::Stats Relay::stats() const {
  std::lock_guard<std::mutex> lock(core_->mutex);
  Stats stats = core_->stats;
  int64_t oldest_us = 0;
  for (const auto& [incarnation, log] : core_->logs) {
    stats.lag_rows += std::max<int64_t>(log.committed_seq - log.published_seq, 0);
    if (log.window.empty()) continue;
    const int64_t time_us = log.window.front().row.time_us;
    oldest_us = oldest_us == 0 ? time_us : std::min(oldest_us, time_us);
  }
  if (oldest_us > 0) stats.lag_us = std::max<int64_t>(core_->Now() - oldest_us, 0);
  return stats;
}

}  // namespace gaekju::runtime
