// turn_loop.h: the thread that runs a context's turns. It takes whatever waits, loads the rows,
// runs the handlers, commits, and only then answers, acks, calls and publishes. No timer in the
// batching: a turn takes what came while the last one was committing.
//
//   TurnLoop loop(context, options, outputs);
//   loop.Start();
//   loop.Submit({.handler = loop.FindHandler(method), .message = …, .caller = …, .deadline_us = …,
//   .done = …}); loop.Drain(absl::Seconds(10));
//
// Promises:
// 1. `done` of a Request is called at most once, after the COMMIT of the turn that decided it, on a
// thread of the loop or inside Submit;
//    exactly once unless it was cancelled.
// 2. `settled` of bus items is called exactly once: OK after COMMIT; InvalidArgument when the item
// can never work (a dead letter);
//    Unavailable when it was not processed (ask again later).
// 3. While the database is down, what waits stays; Requests whose deadline passes meanwhile, or
// that find the queue full, are refused
//    UNAVAILABLE with RetryInfo.
// 4. Who waits for what another process of the context decides, on the same database, is answered
//    within about two timer_intervals of its COMMIT.
// 5. One item that breaks a turn (its row violates a constraint) fails alone: the turn is run again
// item by item.
//
// Thread-safe.
#ifndef GAEKJU_RUNTIME_TURN_LOOP_H_
#define GAEKJU_RUNTIME_TURN_LOOP_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/time/time.h"
#include "flow/turn.h"
#include "flow/turn_run.h"
#include "runtime/outbox.h"
#include "runtime/turn_store.h"

namespace gaekju::runtime {

// A request whose caller waits.
struct Request {
  const flow::Handler* handler = nullptr;
  std::unique_ptr<google::protobuf::Message> message;
  flow::Caller caller;
  int64_t deadline_us = 0;  // microseconds since 1970; 0: none
  std::function<void(flow::Answer)> done;
};

// A step that came over the bus. With caller.reply_to, its answer goes out through the outbox.
struct Command {
  const flow::Handler* handler = nullptr;
  std::unique_ptr<google::protobuf::Message> message;
  flow::Caller caller;
  std::string order_id;
  std::string step_id;
  bool undo = false;
  std::function<void(absl::Status)> settled;
};

// An event of another context; caller.event says which.
struct Event {
  const flow::Handler* handler = nullptr;
  std::unique_ptr<google::protobuf::Message> message;
  flow::Caller caller;
  std::function<void(absl::Status)> settled;
};

// What one turn did, for metrics.
struct TurnStats {
  int item_count = 0;
  int row_count = 0;
  int outbox_row_count = 0;
  int timer_count = 0;  // of the items: rows whose time had come
  int rerun_count = 0;  // times the turn was run again
  int64_t load_us = 0;
  int64_t handle_us = 0;
  int64_t commit_us = 0;
};

// Where a turn's results go after its COMMIT. Each may be null. Called on the loop's second thread,
// in the order of the turns, but for `observe`.
struct TurnOutputs {
  // Each row that the turn wrote, as it was committed: for what a context keeps of its tables in
  // memory. Called on the loop's thread, before the next turn begins. A turn whose COMMIT nobody
  // answered is not seen here: who needs every row also reads the table now and then, as for those
  // that other replicas write.
  std::function<void(const flow::Table&, const std::string& key, const google::protobuf::Message&)>
      observe;
  std::function<void(int64_t incarnation, std::vector<OutboxRow> rows)>
      committed;  // Relay::Committed
  // Makes the call and reports its end once, on any thread.
  std::function<void(flow::Call, std::function<void(flow::StepResult)>)> call;
  std::function<void(flow::Resend)> resend;
  std::function<void(const flow::Table&, const std::string& key)>
      changed;  // rows that were written
  std::function<void(const TurnStats&)> turn;
  // A Request was refused UNAVAILABLE because of overload or an outage; on any thread.
  std::function<void(const std::string& reason)> shed;
  // A Request or bus item that failed alone; `reason` for the log.
  std::function<void(const std::string& what, const std::string& reason)> failed;
  std::function<void(bool up, const std::string& why)>
      database;  // the writer connection came or went
};

class TurnLoop {
 public:
  struct Options {
    PgOptions pg;
    int turn_items_max = 512;
    int queue_requests_max = 8192;  // Requests; bus items are bounded by the bus's max_ack_pending
    int item_retries_max = 8;       // kRetry answers of one item
    int conflicts_max = 20;         // unique violations in a row before a turn is taken apart
    absl::Duration reconnect_backoff_min = absl::Milliseconds(20);
    absl::Duration reconnect_backoff_max = absl::Seconds(1);
    absl::Duration timer_interval = absl::Milliseconds(200);
    std::function<void(const char* point)> failpoint;  // for tests, see TurnStore
    std::function<int64_t()> now_us;                   // null: the system's clock
  };

  // `context` outlives the loop.
  TurnLoop(const flow::Context& context, Options options, TurnOutputs outputs);
  ~TurnLoop();  // stops without draining

  void Start();
  // Takes no new Requests, finishes what waits and who waits, then stops. Those left after
  // `timeout` are answered UNAVAILABLE. True when nothing was left. Results of calls and bus items
  // are still taken while it runs.
  bool Drain(absl::Duration timeout);

  // Returns a ticket for Cancel, or 0 when `done` was called already.
  uint64_t Submit(Request request);
  // The caller is gone: a Request that waits is forgotten without `done`. One whose turn is running
  // may still see `done`.
  void Cancel(uint64_t ticket);
  void Submit(Command command);
  void Submit(Event event);
  void Submit(flow::StepResult result, std::string traceparent,
              std::function<void(absl::Status)> settled);

  // By the full name of the method or of the event's message; null when the context has none.
  const flow::Handler* FindHandler(absl::string_view method) const {
    return runner_.FindHandler(method);
  }
  const flow::Handler* FindEvent(absl::string_view type) const { return runner_.FindEvent(type); }
  bool takes_results() const { return context_.on_result != nullptr; }

  bool database_up() const { return database_up_; }
  int queue_depth() const { return queue_depth_; }
  int waiter_count() const { return waiter_count_; }

 private:
  struct Item;
  struct Finished;
  struct Gate;
  using Items = std::vector<std::unique_ptr<Item>>;
  using Answered = std::vector<std::pair<std::unique_ptr<Item>, flow::Answer>>;

  void Run();
  void RunTimer();
  void AnswerWaiters(PgConnection& pg);
  void HandOutDue(PgConnection& pg);
  void RunAfterCommit();
  Items Take();
  void Enqueue(std::unique_ptr<Item> item);
  // Connects until it works; refuses meanwhile what expires. False when the loop stops.
  bool EnsureConnected(Items* items);
  bool Pause(absl::Duration duration);  // false when the loop stops
  // Runs the items as one turn until it is committed, or as several when one of them breaks it.
  void RunTurn(Items items);
  absl::Status TryTurn(Items& items, Finished* finished);
  void Finish(std::unique_ptr<Finished> finished);
  void HandOut(Finished& finished);
  void Fail(std::unique_ptr<Item> item, const absl::Status& why);
  void GiveUp(std::unique_ptr<Item> item,
              absl::string_view reason);  // not processed, may come again
  // Removes Requests of `items` whose deadline has passed, and answers them.
  void DropExpired(Items* items);
  void ExpireWaiting();
  void Shed(Answered answered);
  bool IsQuiet() const;  // REQUIRES: mutex_
  void Stop();
  int64_t Now() const;

  const flow::Context& context_;
  const Options options_;
  const TurnOutputs outputs_;
  TurnStore store_;
  const flow::TurnRunner runner_;
  const std::shared_ptr<Gate> gate_;  // lets late results of calls find the loop gone

  mutable std::mutex mutex_;
  // Guarded by mutex_:
  std::condition_variable wake_;  // items to take, or a change of state
  std::condition_variable timer_wake_;
  std::condition_variable finished_wake_;  // results to hand out, or room for more
  std::condition_variable quiet_;          // for Drain
  std::deque<std::unique_ptr<Item>> queue_;
  int queued_requests_ = 0;
  bool started_ = false;
  bool draining_ = false;
  bool stopping_ = false;
  bool after_stopping_ = false;
  bool in_turn_ = false;
  bool handing_out_ = false;
  int calls_open_ = 0;
  uint64_t next_ticket_ = 1;
  absl::flat_hash_map<uint64_t, Item*> queued_tickets_;  // queued, or in the running turn
  flow::Waiters<Item> waiters_;
  absl::flat_hash_set<std::string> timer_keys_;  // queued or in the running turn
  std::deque<std::unique_ptr<Finished>> finished_;

  std::atomic<bool> database_up_{false};
  std::atomic<int> queue_depth_{0};
  std::atomic<int> waiter_count_{0};
  std::atomic<int64_t> turn_us_{0};  // moving mean of the time a turn takes
  // Of the loop's thread:
  int64_t last_now_us_ = 0;
  int64_t reruns_ = 0;
  // Of the timer's thread:
  std::string waiters_after_;  // the last key that was looked at

  std::thread thread_, timer_thread_, after_thread_;
};

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_TURN_LOOP_H_
