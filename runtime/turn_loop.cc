#include "runtime/turn_loop.h"

#include <algorithm>
#include <chrono>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "flow/mutant.h"
#include "google/rpc/code.pb.h"
#include "runtime/cloudevents.h"

namespace gaekju::runtime {
namespace {

using google::protobuf::Message;

// A Request is given up this long before its deadline, so that the refusal still reaches the
// caller.
constexpr int64_t kAnswerTravelUs = 20000;
constexpr int64_t kRetryAfterUs = 1000000;
// Turns whose results wait to be handed out; then the loop waits.
constexpr size_t kFinishedMax = 4;
constexpr int kTimerKeysMax = 512;
// Of those who wait, so many rows are looked at at once; the others at the next tick.
constexpr size_t kWaitKeysMax = 1024;

int64_t SystemNowUs() { return absl::ToUnixMicros(absl::Now()); }

int64_t SteadyUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

struct TurnLoop::Item : flow::TurnItem {
  int64_t deadline_us = 0;  // kRequest
  uint64_t ticket = 0;
  bool cancelled = false;  // guarded by mutex_
  std::function<void(flow::Answer)> done;
  std::function<void(absl::Status)> settled;
};

// What a committed turn leaves to hand out.
struct TurnLoop::Finished {
  Items items;
  Answered answered;
  std::vector<std::pair<std::string, flow::Answer>> resolutions;
  std::vector<flow::Call> calls;
  std::vector<flow::Resend> resends;
  std::vector<flow::RowKey> changed;
  int64_t incarnation = 0;
  std::vector<OutboxRow> rows;
  TurnStats stats;
};

struct TurnLoop::Gate {
  std::mutex mutex;
  TurnLoop* loop;
};

TurnLoop::TurnLoop(const flow::Context& context, Options options, TurnOutputs outputs)
    : context_(context),
      options_(std::move(options)),
      outputs_(std::move(outputs)),
      store_({options_.pg, context.tables, options_.failpoint, options_.now_us}),
      runner_(context, options_.item_retries_max),
      gate_(std::make_shared<Gate>()) {
  gate_->loop = this;
}

TurnLoop::~TurnLoop() {
  Stop();
  std::lock_guard<std::mutex> lock(gate_->mutex);
  gate_->loop = nullptr;
}

void TurnLoop::Start() {
  std::lock_guard<std::mutex> lock(mutex_);
  GK_CHECK(!started_ && !stopping_);
  started_ = true;
  thread_ = std::thread([this] { Run(); });
  timer_thread_ = std::thread([this] { RunTimer(); });
  after_thread_ = std::thread([this] { RunAfterCommit(); });
}

bool TurnLoop::IsQuiet() const {
  return queue_.empty() && !in_turn_ && finished_.empty() && !handing_out_ && waiters_.empty() &&
         calls_open_ == 0;
}

bool TurnLoop::Drain(absl::Duration timeout) {
  bool quiet;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    draining_ = true;
    timer_wake_.notify_all();
    quiet = started_ &&
            quiet_.wait_for(lock, absl::ToChronoMicroseconds(timeout), [&] { return IsQuiet(); });
  }
  Stop();
  return quiet;
}

void TurnLoop::Stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    draining_ = stopping_ = true;
    wake_.notify_all();
    timer_wake_.notify_all();
    finished_wake_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
  if (timer_thread_.joinable()) timer_thread_.join();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    after_stopping_ = true;
    finished_wake_.notify_all();
  }
  if (after_thread_.joinable()) after_thread_.join();
  // What is left was not processed.
  Items left;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& item : queue_) left.push_back(std::move(item));
    for (auto& item : waiters_.TakeIf([](const Item&) { return true; })) {
      left.push_back(std::move(item));
    }
    queue_.clear();
    queued_tickets_.clear();
    queued_requests_ = queue_depth_ = waiter_count_ = 0;
  }
  for (auto& item : left) GiveUp(std::move(item), "the server is shutting down");
  database_up_ = false;
}

int64_t TurnLoop::Now() const { return options_.now_us ? options_.now_us() : SystemNowUs(); }

// ---------------------------------------------------------------- taking items in

uint64_t TurnLoop::Submit(Request request) {
  flow::Answer refusal;
  refusal.kind = flow::Answer::Kind::kRefused;
  refusal.status = request.handler->Validate(*request.message);
  if (refusal.status.code() != 0) {
    request.done(std::move(refusal));
    return 0;
  }
  const int64_t now_us = Now();
  const char* why = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const int64_t turns_before = static_cast<int64_t>(queue_.size()) / options_.turn_items_max;
    if (draining_) {
      why = "the server is shutting down";
    } else if (queued_requests_ >= options_.queue_requests_max) {
      why = "the queue is full";
    } else if (request.deadline_us != 0 &&
               now_us + turns_before * turn_us_ + kAnswerTravelUs > request.deadline_us) {
      why = "the deadline cannot be met";
    } else {
      auto item = std::make_unique<Item>();
      item->kind = Item::Kind::kRequest;
      item->handler = request.handler;
      item->message = std::move(request.message);
      item->caller = std::move(request.caller);
      item->deadline_us = request.deadline_us;
      item->done = std::move(request.done);
      const uint64_t ticket = item->ticket = next_ticket_++;
      queued_tickets_[ticket] = item.get();
      ++queued_requests_;
      queue_.push_back(std::move(item));
      queue_depth_ = static_cast<int>(queue_.size());
      wake_.notify_one();
      return ticket;
    }
  }
  if (outputs_.shed) outputs_.shed(why);
  refusal.status = flow::MakeStatus(google::rpc::UNAVAILABLE, context_.service, "OVERLOADED", why,
                                    "", kRetryAfterUs);
  request.done(std::move(refusal));
  return 0;
}

void TurnLoop::Cancel(uint64_t ticket) {
  std::unique_ptr<Item> gone;  // destroyed outside the lock
  std::lock_guard<std::mutex> lock(mutex_);
  if (const auto it = queued_tickets_.find(ticket); it != queued_tickets_.end()) {
    it->second->cancelled = true;
    return;
  }
  gone = waiters_.Take(ticket);
  if (gone == nullptr) return;
  waiter_count_ = static_cast<int>(waiters_.size());
  if (IsQuiet()) quiet_.notify_all();
}

void TurnLoop::Enqueue(std::unique_ptr<Item> item) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!stopping_) {
      queue_.push_back(std::move(item));
      queue_depth_ = static_cast<int>(queue_.size());
      wake_.notify_one();
      return;
    }
  }
  GiveUp(std::move(item), "the server is shutting down");
}

void TurnLoop::Submit(Command command) {
  auto item = std::make_unique<Item>();
  item->kind = Item::Kind::kCommand;
  item->handler = command.handler;
  item->message = std::move(command.message);
  item->caller = std::move(command.caller);
  item->order_id = std::move(command.order_id);
  item->step_id = std::move(command.step_id);
  item->undo = command.undo;
  item->settled = std::move(command.settled);
  Enqueue(std::move(item));
}

void TurnLoop::Submit(Event event) {
  auto item = std::make_unique<Item>();
  item->kind = Item::Kind::kEvent;
  item->handler = event.handler;
  item->message = std::move(event.message);
  item->caller = std::move(event.caller);
  item->settled = std::move(event.settled);
  Enqueue(std::move(item));
}

void TurnLoop::Submit(flow::StepResult result, std::string traceparent,
                      std::function<void(absl::Status)> settled) {
  auto item = std::make_unique<Item>();
  item->kind = Item::Kind::kResult;
  item->result = std::move(result);
  item->caller.traceparent = std::move(traceparent);
  item->settled = std::move(settled);
  if (!takes_results()) {
    Fail(std::move(item),
         absl::InvalidArgumentError(absl::StrCat(context_.name, " asks for no steps")));
    return;
  }
  Enqueue(std::move(item));
}

// ---------------------------------------------------------------- the loop

void TurnLoop::Run() {
  Items nothing;
  EnsureConnected(&nothing);
  while (true) {
    Items items = Take();
    if (items.empty()) break;
    RunTurn(std::move(items));
    std::lock_guard<std::mutex> lock(mutex_);
    in_turn_ = false;
    if (IsQuiet()) quiet_.notify_all();
  }
  std::lock_guard<std::mutex> lock(mutex_);
  in_turn_ = false;
}

TurnLoop::Items TurnLoop::Take() {
  while (true) {
    Items items, cancelled;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
      if (stopping_) return {};
      while (!queue_.empty() && items.size() < static_cast<size_t>(options_.turn_items_max)) {
        std::unique_ptr<Item> item = std::move(queue_.front());
        queue_.pop_front();
        if (item->ticket != 0) --queued_requests_;
        if (item->cancelled) queued_tickets_.erase(item->ticket);
        (item->cancelled ? cancelled : items).push_back(std::move(item));
      }
      queue_depth_ = static_cast<int>(queue_.size());
      in_turn_ = true;
    }
    DropExpired(&items);
    if (!items.empty()) return items;
    std::lock_guard<std::mutex> lock(mutex_);
    in_turn_ = false;
    if (IsQuiet()) quiet_.notify_all();
  }
}

void TurnLoop::DropExpired(Items* items) {
  const int64_t now_us = Now();
  Answered expired;
  const auto is_expired = [&](const std::unique_ptr<Item>& item) {
    return item->deadline_us != 0 && item->deadline_us - kAnswerTravelUs <= now_us;
  };
  const auto first = std::stable_partition(items->begin(), items->end(),
                                           [&](const auto& i) { return !is_expired(i); });
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto it = first; it != items->end(); ++it) {
      queued_tickets_.erase((*it)->ticket);
      if (!(*it)->cancelled) expired.emplace_back(std::move(*it), flow::Answer());
    }
  }
  items->erase(first, items->end());
  Shed(std::move(expired));
}

void TurnLoop::Shed(Answered answered) {
  for (auto& [item, answer] : answered) {
    const char* why =
        database_up_ ? "not decided before the deadline" : "the database cannot be reached";
    if (outputs_.shed) outputs_.shed(why);
    answer.kind = flow::Answer::Kind::kRefused;
    answer.status =
        flow::MakeStatus(google::rpc::UNAVAILABLE, context_.service,
                         database_up_ ? "OVERLOADED" : "DATABASE_DOWN", why, "", kRetryAfterUs);
    item->done(std::move(answer));
  }
}

void TurnLoop::ExpireWaiting() {
  const int64_t now_us = Now();
  Answered expired;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto is_expired = [&](const Item& item) {
      return item.deadline_us != 0 && item.deadline_us - kAnswerTravelUs <= now_us;
    };
    for (auto& item : waiters_.TakeIf(is_expired)) {
      expired.emplace_back(std::move(item), flow::Answer());
    }
    waiter_count_ = static_cast<int>(waiters_.size());
    // What is queued expires here only when no turn would take it soon.
    if (!database_up_) {
      for (auto& item : queue_) {
        if (!is_expired(*item)) continue;
        queued_tickets_.erase(item->ticket);
        --queued_requests_;
        if (!item->cancelled) expired.emplace_back(std::move(item), flow::Answer());
        item = nullptr;
      }
      queue_.erase(std::remove(queue_.begin(), queue_.end(), nullptr), queue_.end());
      queue_depth_ = static_cast<int>(queue_.size());
    }
    if (IsQuiet()) quiet_.notify_all();
  }
  Shed(std::move(expired));
}

bool TurnLoop::Pause(absl::Duration duration) {
  std::unique_lock<std::mutex> lock(mutex_);
  return !wake_.wait_for(lock, absl::ToChronoMicroseconds(duration), [&] { return stopping_; });
}

bool TurnLoop::EnsureConnected(Items* items) {
  absl::Duration backoff = options_.reconnect_backoff_min;
  while (!store_.connected()) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (stopping_) return false;
    }
    const absl::Status status = store_.Connect();
    if (status.ok()) break;
    if (database_up_.exchange(false) && outputs_.database)
      outputs_.database(false, std::string(status.message()));
    DropExpired(items);
    ExpireWaiting();
    if (!Pause(backoff)) return false;
    backoff = std::min(backoff * 2, options_.reconnect_backoff_max);
  }
  if (!database_up_.exchange(true) && outputs_.database) {
    outputs_.database(true, absl::StrCat("incarnation ", store_.incarnation()));
  }
  return true;
}

void TurnLoop::RunTurn(Items all) {
  std::deque<Items> batches;
  batches.push_back(std::move(all));
  absl::Duration backoff = options_.reconnect_backoff_min;
  int conflicts = 0, reruns = 0;
  while (!batches.empty()) {
    Items& items = batches.front();
    if (items.empty()) {
      batches.pop_front();
      continue;
    }
    if (!EnsureConnected(&items)) break;
    if (items.empty()) continue;
    auto finished = std::make_unique<Finished>();
    const absl::Status status = TryTurn(items, finished.get());
    if (status.ok()) {
      finished->items = std::move(items);
      finished->stats.rerun_count = reruns;
      batches.pop_front();
      Finish(std::move(finished));
      conflicts = reruns = 0;
      continue;
    }
    ++reruns;
    switch (status.code()) {
      case absl::StatusCode::kUnavailable:  // EnsureConnected waits, when it has to
        if (database_up_.exchange(false) && outputs_.database)
          outputs_.database(false, std::string(status.message()));
        if (!Pause(options_.reconnect_backoff_min)) goto stopped;
        DropExpired(&items);
        for (auto& item : items) {
          if (!GK_MUTANT(rerun_is_a_new_request)) continue;
          item->caller.request_uuid += "+";
          item->has_keys = false;
          item->keys.clear();
        }
        continue;
      case absl::StatusCode::kResourceExhausted:  // a full disk: nothing that an item could help
        if (database_up_.exchange(false) && outputs_.database)
          outputs_.database(false, std::string(status.message()));
        DropExpired(&items);
        ExpireWaiting();
        if (!Pause(backoff)) goto stopped;
        backoff = std::min(backoff * 2, options_.reconnect_backoff_max);
        continue;
      case absl::StatusCode::kAborted:
        continue;
      case absl::StatusCode::kAlreadyExists:
        if (++conflicts < options_.conflicts_max) continue;
        break;
      default:
        break;
    }
    conflicts = 0;
    if (items.size() == 1) {
      std::unique_ptr<Item> item = std::move(items[0]);
      batches.pop_front();
      Fail(std::move(item), status);
      continue;
    }
    // One of them breaks the turn: halve until it is alone. Their order stays.
    Items second(std::make_move_iterator(items.begin() + static_cast<ptrdiff_t>(items.size() / 2)),
                 std::make_move_iterator(items.end()));
    items.resize(items.size() - second.size());
    batches.insert(batches.begin() + 1, std::move(second));
  }
stopped:
  // The loop stops: what was not committed was not processed.
  for (Items& items : batches) {
    for (auto& item : items) GiveUp(std::move(item), "the server is shutting down");
  }
}

absl::Status TurnLoop::TryTurn(Items& items, Finished* finished) {
  const int64_t start_us = SteadyUs();
  const std::vector<flow::RowKey> keys = runner_.Keys(items);
  last_now_us_ = std::max(last_now_us_, Now());
  flow::Turn turn(last_now_us_);
  if (absl::Status status = store_.Load(keys, &turn); !status.ok()) return status;
  const int64_t loaded_us = SteadyUs();

  runner_.Handle(items, turn);
  std::vector<OutboxRow> rows;
  if (!turn.envelopes().empty()) {
    const std::string id_prefix = absl::StrCat(store_.incarnation(), "-", store_.next_seq());
    for (EncodedMessage& message : EncodeTurn(context_.name, turn.envelopes(), id_prefix)) {
      OutboxRow& row = rows.emplace_back();
      row.time_us = last_now_us_;
      row.subject = std::move(message.subject);
      row.headers = std::move(message.headers);
      row.resources = std::move(message.resources);
      row.body = std::move(message.body);
    }
  }
  const int64_t handled_us = SteadyUs();
  for (auto& item : items) {
    if (item->settled && GK_MUTANT(acked_before_commit)) {
      std::exchange(item->settled, nullptr)(absl::OkStatus());
    }
    if (item->done && GK_MUTANT(answered_before_commit)) {
      std::exchange(item->done, [](flow::Answer) {})(item->answer);
    }
  }
  if (absl::Status status = store_.Commit(turn, &rows); !status.ok()) return status;
  const int64_t committed_us = SteadyUs();

  for (const flow::RowKey& key : turn.order()) {
    const flow::Turn::Row& row = turn.row(key);
    if (!row.dirty) continue;
    if (outputs_.observe) outputs_.observe(*key.table, key.key, *row.body);
    finished->changed.push_back(key);
  }
  finished->incarnation = store_.incarnation();
  finished->rows = std::move(rows);
  finished->calls = std::move(turn.calls());
  finished->resends = std::move(turn.resends());
  finished->resolutions = std::move(turn.resolved());
  finished->stats.item_count = static_cast<int>(items.size());
  finished->stats.row_count = static_cast<int>(keys.size());
  finished->stats.outbox_row_count = static_cast<int>(finished->rows.size());
  finished->stats.load_us = loaded_us - start_us;
  finished->stats.handle_us = handled_us - loaded_us;
  finished->stats.commit_us = committed_us - handled_us;
  turn_us_ =
      turn_us_ == 0 ? committed_us - start_us : (turn_us_ * 7 + (committed_us - start_us)) / 8;
  return absl::OkStatus();
}

void TurnLoop::Finish(std::unique_ptr<Finished> finished) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (const auto& item : finished->items) {
    if (item->kind == Item::Kind::kRequest && item->answer.kind != flow::Answer::Kind::kRetry) {
      queued_tickets_.erase(item->ticket);
    }
  }
  flow::TurnEnd<Item> end =
      flow::EndTurn(std::move(finished->items), std::move(finished->resolutions), &waiters_,
                    [](const Item& item) { return item.cancelled; });
  for (const auto& item : end.timers) timer_keys_.erase(item->timer_key);
  finished->stats.timer_count += static_cast<int>(end.timers.size());
  waiter_count_ = static_cast<int>(waiters_.size());
  finished->items = std::move(end.settled);
  finished->answered = std::move(end.answered);
  for (auto it = end.again.rbegin(); it != end.again.rend(); ++it) {
    if ((*it)->ticket != 0) ++queued_requests_;
    queue_.push_front(std::move(*it));
  }
  queue_depth_ = static_cast<int>(queue_.size());
  calls_open_ += outputs_.call ? static_cast<int>(finished->calls.size()) : 0;
  finished_wake_.wait(lock, [&] { return finished_.size() < kFinishedMax || stopping_; });
  finished_.push_back(std::move(finished));
  finished_wake_.notify_all();
}

// ---------------------------------------------------------------- after the COMMIT

void TurnLoop::RunAfterCommit() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    finished_wake_.wait(lock, [&] { return after_stopping_ || !finished_.empty(); });
    if (finished_.empty()) return;
    std::unique_ptr<Finished> finished = std::move(finished_.front());
    finished_.pop_front();
    handing_out_ = true;
    finished_wake_.notify_all();
    lock.unlock();
    HandOut(*finished);
    finished.reset();
    lock.lock();
    handing_out_ = false;
    if (IsQuiet()) quiet_.notify_all();
  }
}

void TurnLoop::HandOut(Finished& finished) {
  if (outputs_.committed && !finished.rows.empty())
    outputs_.committed(finished.incarnation, std::move(finished.rows));
  for (auto& [item, answer] : finished.answered) item->done(std::move(answer));
  for (flow::Call& call : finished.calls) {
    if (!outputs_.call) continue;
    std::string traceparent = call.traceparent;
    outputs_.call(std::move(call), [gate = gate_, traceparent](flow::StepResult result) {
      std::lock_guard<std::mutex> gate_lock(gate->mutex);
      if (gate->loop == nullptr) return;
      TurnLoop& loop = *gate->loop;
      if (loop.takes_results()) loop.Submit(std::move(result), traceparent, nullptr);
      std::lock_guard<std::mutex> lock(loop.mutex_);
      --loop.calls_open_;
      if (loop.IsQuiet()) loop.quiet_.notify_all();
    });
  }
  for (auto& item : finished.items) {
    if (!item->settled) continue;
    if (item->kind == Item::Kind::kEvent && item->answer.kind == flow::Answer::Kind::kRefused) {
      item->settled(absl::InvalidArgumentError(item->answer.status.message()));
    } else {
      item->settled(absl::OkStatus());
    }
  }
  if (outputs_.resend) {
    for (flow::Resend& resend : finished.resends) outputs_.resend(std::move(resend));
  }
  if (outputs_.changed) {
    for (const flow::RowKey& key : finished.changed) outputs_.changed(*key.table, key.key);
  }
  if (outputs_.turn) outputs_.turn(finished.stats);
}

void TurnLoop::Fail(std::unique_ptr<Item> item, const absl::Status& why) {
  std::string what;
  switch (item->kind) {
    case Item::Kind::kRequest:
    case Item::Kind::kCommand:
    case Item::Kind::kEvent:
      what = item->handler->name();
      break;
    case Item::Kind::kResult:
      what = absl::StrCat("result of ", item->result.order_id, "/", item->result.step_id);
      break;
    case Item::Kind::kTimer:
      what = absl::StrCat("timer of ", item->timer_key);
      break;
  }
  if (outputs_.failed) outputs_.failed(what, std::string(why.message()));
  {
    std::lock_guard<std::mutex> lock(mutex_);
    queued_tickets_.erase(item->ticket);
    if (item->kind == Item::Kind::kTimer) timer_keys_.erase(item->timer_key);
  }
  if (item->done) {
    item->done(flow::Refuse(google::rpc::INTERNAL, context_.service, "NOT_STORED",
                            "the request could not be stored"));
  }
  if (!item->settled) return;
  // What the schema does not know may be a migration that has not come yet; the rest will never
  // work.
  if (why.code() == absl::StatusCode::kInternal) {
    item->settled(absl::UnavailableError(why.message()));
  } else {
    item->settled(absl::InvalidArgumentError(why.message()));
  }
}

void TurnLoop::GiveUp(std::unique_ptr<Item> item, absl::string_view reason) {
  bool cancelled;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    queued_tickets_.erase(item->ticket);
    cancelled = item->cancelled;
  }
  if (item->done && !cancelled) {
    flow::Answer answer;
    answer.kind = flow::Answer::Kind::kRefused;
    answer.status = flow::MakeStatus(google::rpc::UNAVAILABLE, context_.service, "SHUTTING_DOWN",
                                     reason, "", kRetryAfterUs);
    item->done(std::move(answer));
  }
  if (item->settled) item->settled(absl::UnavailableError(reason));
}

// ---------------------------------------------------------------- the timer

void TurnLoop::RunTimer() {
  const bool polls = context_.timer.table != nullptr;
  const bool looks = context_.waits.table != nullptr;
  std::unique_ptr<PgConnection> pg;
  while (true) {
    bool draining;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      timer_wake_.wait_for(lock, absl::ToChronoMicroseconds(options_.timer_interval),
                           [&] { return stopping_; });
      if (stopping_) return;
      draining = draining_;
    }
    ExpireWaiting();
    const bool look = looks && waiter_count_ > 0;
    // Behind: what waits comes first, and brings most of what a timer would ask for again.
    const bool poll = polls && !draining && queue_depth_ < options_.turn_items_max;
    if ((!look && !poll) || !database_up_) continue;
    if (pg == nullptr || !pg->ok()) {
      auto connected = PgConnection::Connect(options_.pg);
      if (!connected.ok()) continue;
      pg = *std::move(connected);
    }
    if (look) AnswerWaiters(*pg);
    if (poll) HandOutDue(*pg);
  }
}

// What they wait for may have been decided by another process: their rows say so.
void TurnLoop::AnswerWaiters(PgConnection& pg) {
  const flow::WaitQuery& waits = context_.waits;
  std::vector<std::string> wait_keys;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    wait_keys = waiters_.KeysAfter(waiters_after_, kWaitKeysMax);
  }
  waiters_after_ = wait_keys.size() < kWaitKeysMax ? "" : wait_keys.back();
  if (wait_keys.empty()) return;
  std::multimap<std::string, std::string> by_row;
  PgArray keys = PgArray::Text();
  for (std::string& wait_key : wait_keys) {
    std::string key = waits.key(wait_key);
    keys.Add(key);
    by_row.emplace(std::move(key), std::move(wait_key));
  }
  auto rows =
      pg.Query(absl::StrCat("SELECT key, body FROM ", waits.table->name, " WHERE key = ANY($1)"),
               PgParams().Array(std::move(keys)));
  if (!rows.ok()) return;  // looked at again
  std::vector<std::pair<std::string, flow::Answer>> known;
  const std::unique_ptr<Message> row(waits.table->prototype->New());
  for (int i = 0; i < rows->rows(); ++i) {
    const absl::string_view body = rows->Bytes(i, 1);
    if (!row->ParseFromArray(body.data(), static_cast<int>(body.size()))) continue;
    const auto [first, last] = by_row.equal_range(std::string(rows->Bytes(i, 0)));
    for (auto it = first; it != last; ++it) {
      flow::Answer answer = waits.answer(it->second, *row);
      if (answer.kind != flow::Answer::Kind::kWait) known.emplace_back(it->second, answer);
    }
  }
  Answered answered;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [wait_key, answer] : known) {
      for (auto& item : waiters_.Resolve(wait_key)) answered.emplace_back(std::move(item), answer);
    }
    waiter_count_ = static_cast<int>(waiters_.size());
    if (IsQuiet()) quiet_.notify_all();
  }
  for (auto& [item, answer] : answered) item->done(std::move(answer));
}

void TurnLoop::HandOutDue(PgConnection& pg) {
  const flow::Timer& timer = context_.timer;
  auto due = pg.Query(
      absl::StrCat("SELECT key FROM ", timer.table->name, " WHERE ", timer.column, " > 0 AND ",
                   timer.column, " <= $1 ORDER BY ", timer.column, " LIMIT ", kTimerKeysMax),
      PgParams().Int(Now()));
  if (!due.ok()) return;
  for (int i = 0; i < due->rows(); ++i) {
    std::string key(due->Bytes(i, 0));
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!timer_keys_.insert(key).second) continue;
    }
    auto item = std::make_unique<Item>();
    item->kind = Item::Kind::kTimer;
    item->timer_key = std::move(key);
    Enqueue(std::move(item));
  }
}

}  // namespace gaekju::runtime
