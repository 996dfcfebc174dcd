#include "runtime/turn_loop.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gaekju/payment/v1/payment.pb.h"
#include "gaekju/payment/v1/payment_events.pb.h"
#include "gmock/gmock.h"
#include "google/rpc/code.pb.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"
#include "runtime/cloudevents.h"
#include "runtime/testing/eventually.h"
#include "runtime/testing/postgres.h"
#include "runtime/testing/toy_context.h"

namespace gaekju::runtime {
namespace {

using gaekju::payment::v1::CaptureResponse;
using Kind = flow::Answer::Kind;

constexpr auto kPatience = std::chrono::seconds(60);

Postgres& Server() {
  static Postgres server;  // ends with the process
  return server;
}

// Collects what came, and waits for it.
template <class T>
class Collector {
 public:
  void Add(T value) {
    std::lock_guard<std::mutex> lock(mutex_);
    values_.push_back(std::move(value));
    wake_.notify_all();
  }
  // True when there are `count` within the patience.
  bool WaitFor(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    return wake_.wait_for(lock, kPatience, [&] { return values_.size() >= count; });
  }
  std::vector<T> values() {
    std::lock_guard<std::mutex> lock(mutex_);
    return values_;
  }
  size_t size() {
    std::lock_guard<std::mutex> lock(mutex_);
    return values_.size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<T> values_;
};

bool HasRetryInfo(const google::rpc::Status& status) {
  google::rpc::RetryInfo retry;
  for (const auto& detail : status.details()) {
    if (detail.UnpackTo(&retry)) return true;
  }
  return false;
}

class TurnLoopTest : public testing::Test {
 protected:
  TurnLoopTest() : context_(ToyContext()) {
    options_.pg.conninfo = Server().CreateDatabase();
    options_.reconnect_backoff_min = absl::Milliseconds(1);
    options_.timer_interval = absl::Milliseconds(5);
    MakeToyTables(options_.pg);
    outputs_.turn = [this](const TurnStats& stats) { turns_.Add(stats); };
    outputs_.committed = [this](int64_t, std::vector<OutboxRow> rows) {
      for (OutboxRow& row : rows) rows_.Add(std::move(row));
    };
    outputs_.shed = [this](const std::string& why) { shed_.Add(why); };
    outputs_.failed = [this](const std::string& what, const std::string& why) {
      failed_.Add(what + ": " + why);
    };
  }

  TurnLoop& Loop() {
    if (loop_ == nullptr) {
      loop_ = std::make_unique<TurnLoop>(context_, options_, outputs_);
      loop_->Start();
    }
    return *loop_;
  }

  uint64_t Send(TurnLoop& loop, const std::string& order, const std::string& customer,
                int64_t amount = 1, const std::string& how = "", int64_t deadline_us = 0) {
    Request request;
    request.handler = loop.FindHandler(kToyCapture);
    request.message = ToyRequest(order, customer, amount, how);
    request.deadline_us = deadline_us;
    request.done = [this](flow::Answer answer) { answers_.Add(std::move(answer)); };
    return loop.Submit(std::move(request));
  }

  void SendCommand(TurnLoop& loop, const std::string& order, const std::string& customer,
                   const std::string& how) {
    Command command;
    command.handler = loop.FindHandler(kToyCapture);
    command.message = ToyRequest(how == "invalid" ? "" : order, customer, 1, how);
    command.caller.reply_to = "order";
    command.order_id = order;
    command.step_id = "pay";
    command.settled = [this](absl::Status status) { settled_.Add(status); };
    loop.Submit(std::move(command));
  }

  int DoneCount() {
    int count = 0;
    for (const auto& answer : answers_.values()) count += answer.kind == Kind::kDone;
    return count;
  }

  const flow::Context context_;
  TurnLoop::Options options_;
  TurnOutputs outputs_;
  Collector<flow::Answer> answers_;
  Collector<absl::Status> settled_;
  Collector<TurnStats> turns_;
  Collector<OutboxRow> rows_;
  Collector<std::string> shed_, failed_;
  std::unique_ptr<TurnLoop> loop_;  // ends before what its callbacks use
};

TEST_F(TurnLoopTest, ManyRequestsOnOneHotRowShareTurns) {
  constexpr int kRequests = 3000;
  for (int i = 0; i < kRequests; ++i) Send(Loop(), absl::StrCat("o", i), "hot");
  ASSERT_TRUE(answers_.WaitFor(kRequests));
  EXPECT_EQ(DoneCount(), kRequests);
  EXPECT_EQ(ToyCount(options_.pg, "hot"), kRequests);
  EXPECT_EQ(QueryInt(options_.pg, "SELECT version FROM toy_counter WHERE key = 'hot'"), kRequests);
  EXPECT_TRUE(loop_->Drain(absl::Seconds(30)));
  EXPECT_LT(turns_.size(), kRequests / 10u);
  // The outbox has each event once, in order, and numbers without a gap.
  int64_t seq = 0, version = 0;
  for (const OutboxRow& row : rows_.values()) {
    EXPECT_EQ(row.seq, ++seq);
    auto envelopes = DecodeMessage(row.subject, row.headers, row.body);
    ASSERT_TRUE(envelopes.ok()) << envelopes.status();
    for (const DecodedEnvelope& e : *envelopes) EXPECT_EQ(e.envelope.version, ++version);
  }
  EXPECT_EQ(version, kRequests);
  EXPECT_EQ(QueryInt(options_.pg, "SELECT max(seq) FROM outbox"), seq);
  EXPECT_EQ(QueryInt(options_.pg,
                     "SELECT count(*) FROM outbox WHERE resources = ARRAY['toy_counter/hot']"),
            seq);
}

TEST_F(TurnLoopTest, ARepeatedRequestHasOneEffect) {
  for (int i = 0; i < 10; ++i) Send(Loop(), "same", "c");
  ASSERT_TRUE(answers_.WaitFor(10));
  EXPECT_EQ(DoneCount(), 10);
  EXPECT_EQ(ToyCount(options_.pg, "c"), 1);
}

TEST_F(TurnLoopTest, InvalidRequestIsRefusedAtOnce) {
  EXPECT_EQ(Send(Loop(), "", "c"), 0u);
  ASSERT_EQ(answers_.size(), 1u);
  EXPECT_EQ(answers_.values()[0].status.code(), google::rpc::INVALID_ARGUMENT);
}

TEST_F(TurnLoopTest, KeysThatPostgresCannotHoldAreRefused) {
  Send(Loop(), std::string("a\0b", 3), "c");
  Send(Loop(), std::string(5000, 'x'), "c");
  Send(Loop(), "fine", "c");
  ASSERT_TRUE(answers_.WaitFor(3));
  EXPECT_EQ(answers_.values()[0].status.code(), google::rpc::INVALID_ARGUMENT);
  EXPECT_EQ(answers_.values()[1].status.code(), google::rpc::INVALID_ARGUMENT);
  EXPECT_EQ(answers_.values()[2].kind, Kind::kDone);
}

TEST_F(TurnLoopTest, AnItemThatBreaksTheTurnFailsAlone) {
  std::atomic<bool> hold{true};
  options_.failpoint = [&](const char* point) {
    // The first turn waits until everything is queued, so that the second holds all of it.
    if (std::string(point) == "load") Eventually([&] { return !hold; });
  };
  Send(Loop(), "first", "c");
  for (int i = 0; i < 100; ++i)
    Send(Loop(), absl::StrCat("o", i), i == 57 ? "bad" : "c", i == 57 ? -5 : 1);
  hold = false;
  ASSERT_TRUE(answers_.WaitFor(101));
  EXPECT_EQ(DoneCount(), 100);
  EXPECT_EQ(ToyCount(options_.pg, "c"), 100);
  EXPECT_EQ(ToyCount(options_.pg, "bad"), 0);
  ASSERT_EQ(failed_.size(), 1u);
  EXPECT_THAT(failed_.values()[0], testing::HasSubstr("23514"));
}

// The backend is killed at each point of a turn; at "commit_sent" nobody can know whether the
// COMMIT happened.
TEST_F(TurnLoopTest, ConnectionLostAnywhereLeavesOneEffect) {
  for (const std::string point : {"load", "before_commit", "commit_sent", "committed"}) {
    std::atomic<int> kills{0};
    std::atomic<bool> armed{false};
    options_.failpoint = [&](const char* at) {
      if (point != at || !armed.exchange(false)) return;
      ++kills;
      // Terminates every writer of this database and waits until it is gone.
      auto killer = PgConnection::Connect(options_.pg);
      ASSERT_TRUE(killer.ok());
      ASSERT_TRUE(
          (*killer)
              ->Query("SELECT pg_terminate_backend(a.pid, 10000) FROM pg_stat_activity a WHERE "
                      "a.datname = current_database() AND a.pid <> pg_backend_pid()")
              .ok());
    };
    loop_.reset();
    const std::string customer = "c-" + point;
    const size_t before = answers_.size();
    for (int round = 0; round < 10; ++round) {
      armed = true;
      Send(Loop(), absl::StrCat(point, round), customer);
      ASSERT_TRUE(answers_.WaitFor(before + static_cast<size_t>(round) + 1));
    }
    loop_.reset();
    EXPECT_EQ(kills, 10) << point;
    EXPECT_EQ(answers_.size(), before + 10) << point;
    EXPECT_EQ(ToyCount(options_.pg, customer), 10) << point;
    EXPECT_EQ(
        QueryInt(options_.pg, "SELECT version FROM toy_counter WHERE key = '" + customer + "'"), 10)
        << point;
  }
  EXPECT_EQ(DoneCount(), static_cast<int>(answers_.size()));
}

// A COMMIT that waits for a standby which never comes has happened, and when its backend is killed,
// nobody is told. A request without an id of its own (it has the one that the shell has given it)
// must still count once.
TEST_F(TurnLoopTest, ACommitThatHappenedAndWasNotAnsweredIsNotDoneAgain) {
  Postgres own;
  options_.pg.conninfo = own.CreateDatabase();
  MakeToyTables(options_.pg);
  const auto run = [&](const std::string& sql) {
    auto pg = PgConnection::Connect(options_.pg);
    ASSERT_TRUE(pg.ok()) << pg.status();
    ASSERT_TRUE((*pg)->Script(sql).ok()) << sql;
  };
  std::atomic<bool> armed{false};
  options_.failpoint = [&](const char* at) {
    if (std::string(at) != "commit_sent" || !armed.exchange(false)) return;
    const char waiting[] = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    EXPECT_TRUE(Eventually(
        [&] { return QueryInt(options_.pg, absl::StrCat("SELECT count(*) ", waiting)) == 1; }));
    run(absl::StrCat("SELECT pg_terminate_backend(pid, 10000) ", waiting));
    run("ALTER SYSTEM RESET synchronous_standby_names");
    run("SELECT pg_reload_conf()");
  };
  Send(Loop(), "first", "c");
  ASSERT_TRUE(answers_.WaitFor(1));
  run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
  run("SELECT pg_reload_conf()");
  ASSERT_TRUE(Eventually([&] {
    auto pg = PgConnection::Connect(options_.pg);
    return pg.ok() && (*pg)->Query("SHOW synchronous_standby_names")->Bytes(0, 0) == "nobody";
  }));
  // A COMMIT waits once the checkpointer, too, has read it: before its second checkpoint it has.
  run("CHECKPOINT");
  run("CHECKPOINT");
  armed = true;
  Request request;
  request.handler = loop_->FindHandler(kToyCapture);
  request.message = ToyRequest("o", "c", 1, "new");
  request.caller.request_uuid = "the-request";
  request.done = [this](flow::Answer answer) { answers_.Add(std::move(answer)); };
  loop_->Submit(std::move(request));
  ASSERT_TRUE(answers_.WaitFor(2));
  EXPECT_FALSE(armed);
  EXPECT_EQ(DoneCount(), 2);
  EXPECT_EQ(ToyCount(options_.pg, "c"), 2);
  EXPECT_EQ(QueryInt(options_.pg, "SELECT count(*) FROM toy_mark"), 2);
  EXPECT_EQ(QueryInt(options_.pg, "SELECT count(*) FROM outbox"), 2);
  loop_.reset();
}

// Whatever comes of a turn comes of it after the COMMIT.
TEST_F(TurnLoopTest, NobodyIsToldBeforeTheCommit) {
  std::atomic<int> calls{0}, told_early{0};
  outputs_.call = [&](flow::Call call, std::function<void(flow::StepResult)> done) {
    ++calls;
    flow::StepResult result;
    result.order_id = call.order_id;
    result.outcome = flow::Outcome::OUTCOME_DONE;
    done(result);
  };
  std::atomic<bool> loading{false}, hold{true};
  size_t commits = 0;  // of the loop's thread
  options_.failpoint = [&](const char* point) {
    // The first turn waits until everything else is queued, so that the second holds all of it.
    if (std::string(point) == "load") {
      loading = true;
      Eventually([&] { return !hold; });
    }
    if (std::string(point) != "before_commit" || commits > 1) return;
    const size_t before = commits++;  // of the first turn: one answer, one row
    told_early +=
        answers_.size() > before || rows_.size() > before || settled_.size() > 0 || calls > 0;
  };
  Send(Loop(), "first", "c");
  ASSERT_TRUE(Eventually([&] { return loading.load(); }));
  Send(Loop(), "o1", "c");
  Send(Loop(), "o2", "c", 1, "call");
  SendCommand(Loop(), "o3", "c", "");
  hold = false;
  ASSERT_TRUE(answers_.WaitFor(3));
  ASSERT_TRUE(settled_.WaitFor(1));
  ASSERT_TRUE(Eventually([&] { return calls > 0; }));
  EXPECT_EQ(told_early, 0);
}

// Two replicas insert the same keys: the second finds the unique violation, and runs its turn again
// over the first one's rows.
TEST_F(TurnLoopTest, TwoReplicasThatInsertTheSameKeyHaveOneEffect) {
  std::atomic<bool> other_committed{false}, armed{true};
  TurnLoop::Options second = options_;
  options_.failpoint = [&](const char* point) {
    if (std::string(point) == "before_commit" && armed.exchange(false)) {
      Eventually([&] { return other_committed.load(); });
    }
  };
  second.failpoint = [&](const char* point) {
    if (std::string(point) == "committed") other_committed = true;
  };
  TurnLoop other(context_, second, {});
  other.Start();
  Send(Loop(), "same", "a");
  ASSERT_TRUE(Eventually([&] { return !armed.load(); }));
  Send(other, "same", "a");
  ASSERT_TRUE(answers_.WaitFor(2));
  EXPECT_EQ(DoneCount(), 2);
  EXPECT_EQ(ToyCount(options_.pg, "a"), 1);
  ASSERT_TRUE(turns_.WaitFor(1));
  EXPECT_EQ(turns_.values()[0].rerun_count, 1);
}

TEST_F(TurnLoopTest, TwoReplicasUnderLoadCountRight) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 random(seed);
  TurnLoop other(context_, options_, {});
  other.Start();
  constexpr int kOrders = 500;
  for (int i = 0; i < kOrders; ++i) {
    const std::string order = absl::StrCat("o", i), customer = absl::StrCat("c", random() % 7);
    const bool first = random() % 2 == 0;
    Send(first ? Loop() : other, order, customer);
    Send(first ? other : Loop(), order, customer);
  }
  ASSERT_TRUE(answers_.WaitFor(2 * kOrders));
  EXPECT_EQ(DoneCount(), 2 * kOrders);
  EXPECT_EQ(QueryInt(options_.pg, "SELECT sum(minor_units)::bigint FROM toy_counter"), kOrders);
  EXPECT_EQ(QueryInt(options_.pg, "SELECT count(*) FROM toy_mark"), kOrders);
  // Every writer's log is without a gap.
  EXPECT_EQ(QueryInt(options_.pg,
                     "SELECT count(*) FROM (SELECT incarnation FROM outbox GROUP BY incarnation "
                     "HAVING max(seq) <> count(*)) AS gaps"),
            0);
}

TEST_F(TurnLoopTest, DatabaseRestartInTheMiddle) {
  Postgres own;
  options_.pg.conninfo = own.CreateDatabase();
  MakeToyTables(options_.pg);
  constexpr int kOrders = 600;
  for (int i = 0; i < kOrders; ++i) {
    Send(Loop(), absl::StrCat("o", i), absl::StrCat("c", i % 5));
    if (i == 150 || i == 300 || i == 450) {
      ASSERT_TRUE(answers_.WaitFor(static_cast<size_t>(i - 100)));
      if (i == 300) {
        own.Stop();
      } else {
        own.Kill();
      }
      own.Start();
    }
  }
  ASSERT_TRUE(answers_.WaitFor(kOrders));
  EXPECT_EQ(DoneCount(), kOrders);
  EXPECT_EQ(QueryInt(options_.pg, "SELECT sum(minor_units)::bigint FROM toy_counter"), kOrders);
  loop_.reset();
}

TEST_F(TurnLoopTest, WhileTheDatabaseIsDownCallersAreRefusedInTime) {
  options_.pg.conninfo = "host=/nonexistent dbname=none";
  options_.queue_requests_max = 3;
  Send(Loop(), "o1", "c", 1, "", absl::ToUnixMicros(absl::Now()) + 100000);
  ASSERT_TRUE(answers_.WaitFor(1));
  EXPECT_EQ(answers_.values()[0].status.code(), google::rpc::UNAVAILABLE);
  EXPECT_TRUE(HasRetryInfo(answers_.values()[0].status));
  EXPECT_EQ(flow::ReasonOf(answers_.values()[0].status), "DATABASE_DOWN");
  EXPECT_FALSE(loop_->database_up());
  // Hopeless, then a full queue.
  Send(Loop(), "o2", "c", 1, "", absl::ToUnixMicros(absl::Now()) - 1);
  EXPECT_EQ(answers_.size(), 2u);
  for (int i = 0; i < 4; ++i) Send(Loop(), absl::StrCat("p", i), "c");
  ASSERT_TRUE(answers_.WaitFor(3));
  EXPECT_EQ(answers_.values()[2].status.code(), google::rpc::UNAVAILABLE);
  EXPECT_TRUE(HasRetryInfo(answers_.values()[2].status));
  // The rest is refused when the loop ends.
  EXPECT_FALSE(loop_->Drain(absl::Milliseconds(20)));
  ASSERT_TRUE(answers_.WaitFor(6));
  for (const auto& answer : answers_.values())
    EXPECT_EQ(answer.status.code(), google::rpc::UNAVAILABLE);
  EXPECT_GE(shed_.size(), 3u);
}

TEST_F(TurnLoopTest, WaitersAreAnsweredByTheTurnThatResolves) {
  Send(Loop(), "w1", "c", 1, "wait:k");
  Send(Loop(), "w2", "c", 1, "wait:k");
  Send(Loop(), "x", "c", 1, "wait:other");
  ASSERT_TRUE(Eventually([&] { return loop_->waiter_count() == 3; }));
  EXPECT_EQ(answers_.size(), 0u);
  Send(Loop(), "r", "c", 1, "resolve:k");
  ASSERT_TRUE(answers_.WaitFor(3));
  int resolved = 0;
  for (const auto& answer : answers_.values()) {
    CaptureResponse response;
    ASSERT_TRUE(response.ParseFromString(answer.payload));
    resolved += response.payment_id() == "resolved by r";
  }
  EXPECT_EQ(resolved, 2);
  EXPECT_EQ(loop_->waiter_count(), 1);
}

// As two replicas: the one who waits is told by the row that the other has written.
TEST_F(TurnLoopTest, WaitersAreAnsweredWhenAnotherProcessDecides) {
  flow::Context context = ToyContext();
  std::atomic<int> looks{0};
  context.waits.table = &kToyCounters;
  context.waits.key = [](absl::string_view) { return std::string("c"); };
  context.waits.answer = [&](absl::string_view wait_key, const google::protobuf::Message& row) {
    ++looks;
    const auto& counter = static_cast<const gaekju::payment::v1::Payment&>(row);
    if (counter.amount().minor_units() < 100) return flow::Wait(std::string(wait_key));
    CaptureResponse response;
    response.set_payment_id(absl::StrCat(wait_key, " by ", counter.amount().minor_units()));
    return flow::Done(response);
  };
  TurnLoop one(context, options_, outputs_);
  one.Start();
  Send(one, "w1", "c", 1, "wait:k1");
  Send(one, "w2", "c", 1, "wait:k2");
  ASSERT_TRUE(Eventually([&] { return one.waiter_count() == 2; }));
  ASSERT_TRUE(Eventually([&] { return looks >= 4; }));
  EXPECT_EQ(answers_.size(), 0u) << "nothing is decided";
  Send(Loop(), "other", "c", 98);
  ASSERT_TRUE(answers_.WaitFor(3));
  std::set<std::string> ids;
  for (const auto& answer : answers_.values()) {
    CaptureResponse response;
    ASSERT_TRUE(response.ParseFromString(answer.payload));
    ids.insert(response.payment_id());
  }
  EXPECT_EQ(ids.count("k1 by 100"), 1u);
  EXPECT_EQ(ids.count("k2 by 100"), 1u);
  EXPECT_EQ(one.waiter_count(), 0);
  EXPECT_TRUE(one.Drain(absl::Seconds(60)));
}

TEST_F(TurnLoopTest, WaitAndResolveInOneTurn) {
  std::atomic<bool> hold{true};
  options_.failpoint = [&](const char* point) {
    if (std::string(point) == "load") Eventually([&] { return !hold; });
  };
  Send(Loop(), "first", "c");
  Send(Loop(), "w", "c", 1, "wait:k");
  Send(Loop(), "r", "c", 1, "resolve:k");
  hold = false;
  ASSERT_TRUE(answers_.WaitFor(3));
  EXPECT_EQ(DoneCount(), 3);
  EXPECT_EQ(loop_->waiter_count(), 0);
}

TEST_F(TurnLoopTest, CancelledWaiterIsForgotten) {
  const uint64_t ticket = Send(Loop(), "w", "c", 1, "wait:k");
  ASSERT_TRUE(Eventually([&] { return loop_->waiter_count() == 1; }));
  loop_->Cancel(ticket);
  EXPECT_EQ(loop_->waiter_count(), 0);
  Send(Loop(), "r", "c", 1, "resolve:k");
  ASSERT_TRUE(answers_.WaitFor(1));
  EXPECT_TRUE(loop_->Drain(absl::Seconds(30)));
  EXPECT_EQ(answers_.size(), 1u);
}

TEST_F(TurnLoopTest, WaiterWhoseDeadlinePassesIsRefused) {
  Send(Loop(), "w", "c", 1, "wait:never", absl::ToUnixMicros(absl::Now()) + 500000);
  ASSERT_TRUE(answers_.WaitFor(1));
  EXPECT_EQ(answers_.values()[0].status.code(), google::rpc::UNAVAILABLE);
  EXPECT_EQ(loop_->waiter_count(), 0);
  EXPECT_EQ(ToyCount(options_.pg, "c"), 1);
}

TEST_F(TurnLoopTest, RetryLoadsMoreRows) {
  Send(Loop(), "o", "c", 1, "look:elsewhere");
  ASSERT_TRUE(answers_.WaitFor(1));
  EXPECT_EQ(answers_.values()[0].kind, Kind::kDone);
  EXPECT_EQ(ToyCount(options_.pg, "c"), 1);
}

TEST_F(TurnLoopTest, CommandsAreAnsweredThroughTheOutbox) {
  SendCommand(Loop(), "o1", "c", "");
  SendCommand(Loop(), "o2", "c", "refuse");
  SendCommand(Loop(), "o3", "c", "pending");
  SendCommand(Loop(), "o4", "c", "invalid");  // refused by Validate
  ASSERT_TRUE(settled_.WaitFor(4));
  for (const absl::Status& status : settled_.values()) EXPECT_EQ(status, absl::OkStatus());
  std::map<std::string, flow::Envelope> answers;
  for (const OutboxRow& row : rows_.values()) {
    if (row.subject != "gaekju.answer.order") continue;
    auto envelopes = DecodeMessage(row.subject, row.headers, row.body);
    ASSERT_TRUE(envelopes.ok()) << envelopes.status();
    for (DecodedEnvelope& e : *envelopes) answers[e.envelope.order_id] = e.envelope;
  }
  ASSERT_EQ(answers.size(), 4u);
  EXPECT_EQ(answers["o1"].outcome, flow::Outcome::OUTCOME_DONE);
  EXPECT_EQ(answers["o1"].type, "gaekju.payment.v1.CaptureResponse");
  EXPECT_EQ(answers["o1"].step_id, "pay");
  EXPECT_EQ(answers["o2"].outcome, flow::Outcome::OUTCOME_REFUSED);
  google::rpc::Status status;
  ASSERT_TRUE(status.ParseFromString(answers["o2"].payload));
  EXPECT_EQ(flow::ReasonOf(status), "REFUSED");
  EXPECT_EQ(answers["o3"].outcome, flow::Outcome::OUTCOME_PENDING);
  EXPECT_EQ(answers["o4"].outcome, flow::Outcome::OUTCOME_REFUSED);
}

TEST_F(TurnLoopTest, EventsAreSettledAndPoisonIsTold) {
  for (const std::string customer : {"fine", "poison"}) {
    Event event;
    event.handler = Loop().FindEvent("gaekju.payment.v1.PaymentCaptured");
    ASSERT_NE(event.handler, nullptr);
    event.message.reset(event.handler->request().New());
    auto* captured = static_cast<gaekju::payment::v1::PaymentCaptured*>(event.message.get());
    captured->mutable_payment()->set_customer_id(customer);
    event.settled = [this](absl::Status status) { settled_.Add(status); };
    loop_->Submit(std::move(event));
    ASSERT_TRUE(settled_.WaitFor(customer == "fine" ? 1 : 2));
  }
  EXPECT_EQ(settled_.values()[0], absl::OkStatus());
  EXPECT_EQ(settled_.values()[1].code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ToyCount(options_.pg, "events"), 1);
}

TEST_F(TurnLoopTest, TimerHandsOutWhatIsDueOnce) {
  Send(Loop(), "o1", "due", 1, "due:1000");           // long ago
  Send(Loop(), "o2", "later", 1, "due:33000000000");  // in a thousand years
  ASSERT_TRUE(answers_.WaitFor(2));
  ASSERT_TRUE(Eventually([&] { return ToyCount(options_.pg, "due") == 1001; }));
  EXPECT_EQ(QueryInt(options_.pg, "SELECT due_us FROM toy_counter WHERE key = 'due'"), 0);
  // Some more rounds of the timer change nothing.
  Send(Loop(), "o3", "due2", 1, "due:1000");
  ASSERT_TRUE(Eventually([&] { return ToyCount(options_.pg, "due2") == 1001; }));
  EXPECT_EQ(ToyCount(options_.pg, "due"), 1001);
  EXPECT_EQ(ToyCount(options_.pg, "later"), 1);
}

TEST_F(TurnLoopTest, CallsAreMadeAfterCommitAndDrainWaitsForThem) {
  Collector<std::function<void(flow::StepResult)>> calls;
  outputs_.call = [&](flow::Call call, std::function<void(flow::StepResult)> done) {
    EXPECT_EQ(call.context, "other");
    EXPECT_EQ(ToyCount(options_.pg, "c"), 1);  // committed before
    calls.Add(std::move(done));
  };
  Collector<flow::Resend> resends;
  outputs_.resend = [&](flow::Resend resend) { resends.Add(std::move(resend)); };
  Send(Loop(), "o", "c", 1, "call");
  ASSERT_TRUE(calls.WaitFor(1));
  std::thread drain([&] { EXPECT_TRUE(loop_->Drain(absl::Seconds(60))); });
  // A new caller is refused once the drain has begun; the open call is still waited for.
  ASSERT_TRUE(Eventually([&] {
    const size_t before = answers_.size();
    if (Send(*loop_, absl::StrCat("n", before), "n") != 0) answers_.WaitFor(before + 1);
    return answers_.values().back().kind == Kind::kRefused;
  }));
  EXPECT_EQ(flow::ReasonOf(answers_.values().back().status), "OVERLOADED");
  flow::StepResult result;
  result.order_id = "o";
  calls.values()[0](result);
  drain.join();
  EXPECT_EQ(ToyCount(options_.pg, "results"), 1);
  // A result that comes after the end is dropped.
  loop_.reset();
  calls.values()[0](result);
  EXPECT_EQ(ToyCount(options_.pg, "results"), 1);
}

TEST_F(TurnLoopTest, ResendsAreHandedOut) {
  Collector<flow::Resend> resends;
  outputs_.resend = [&](flow::Resend resend) { resends.Add(std::move(resend)); };
  Send(Loop(), "o", "c", 1, "resend");
  ASSERT_TRUE(resends.WaitFor(1));
  EXPECT_EQ(resends.values()[0].from_version, 7);
  loop_.reset();
}

TEST_F(TurnLoopTest, ChangedRowsAreTold) {
  Collector<std::string> changed;
  outputs_.changed = [&](const flow::Table& table, const std::string& key) {
    changed.Add(table.name + "/" + key);
  };
  Send(Loop(), "o", "c");
  ASSERT_TRUE(changed.WaitFor(2));
  EXPECT_THAT(changed.values(), testing::UnorderedElementsAre("toy_mark/o/pay", "toy_counter/c"));
  loop_.reset();
}

}  // namespace
}  // namespace gaekju::runtime
