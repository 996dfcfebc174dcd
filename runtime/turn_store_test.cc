#include "runtime/turn_store.h"

#include <thread>

#include "absl/strings/str_cat.h"
#include "gaekju/payment/v1/payment.pb.h"
#include "gtest/gtest.h"
#include "runtime/testing/postgres.h"
#include "runtime/testing/toy_context.h"

namespace gaekju::runtime {
namespace {

using gaekju::payment::v1::Payment;

Postgres& Server() {
  static Postgres server;  // ends with the process
  return server;
}

class TurnStoreTest : public testing::Test {
 protected:
  TurnStoreTest() {
    options_.pg.conninfo = Server().CreateDatabase();
    options_.tables = {&kToyCounters, &kToyMarks};
    MakeToyTables(options_.pg);
  }
  std::unique_ptr<TurnStore> Open() {
    auto store = std::make_unique<TurnStore>(options_);
    EXPECT_EQ(store->Connect(), absl::OkStatus());
    return store;
  }
  // Adds one to the counter.
  static absl::Status Increment(TurnStore& store, const std::string& key) {
    flow::Turn turn(1);
    if (absl::Status status = store.Load({{&kToyCounters, key}}, &turn); !status.ok())
      return status;
    Payment& row = turn.Edit<Payment>(kToyCounters, key);
    row.mutable_amount()->set_minor_units(row.amount().minor_units() + 1);
    std::vector<OutboxRow> rows;
    return store.Commit(turn, &rows);
  }
  TurnStore::Options options_;
};

TEST_F(TurnStoreTest, RowsAndColumnsComeBackAsTheyWent) {
  auto store = Open();
  {
    flow::Turn turn(1);
    ASSERT_EQ(store->Load({{&kToyCounters, "a"}, {&kToyMarks, "m"}}, &turn), absl::OkStatus());
    EXPECT_EQ(turn.Find<Payment>(kToyCounters, "a"), nullptr);
    Payment& row = turn.Edit<Payment>(kToyCounters, "a");
    row.set_customer_id(std::string("zero\0byte", 9));
    row.set_state(Payment::STATE_DECLINED);
    row.mutable_amount()->set_minor_units(int64_t{1} << 40);
    row.mutable_capture_time()->set_seconds(7);
    row.mutable_capture_time()->set_nanos(1500);
    turn.Append<Payment>(kToyMarks, "appended").set_order_id("o");
    std::vector<OutboxRow> rows;
    ASSERT_EQ(store->Commit(turn, &rows), absl::OkStatus());
  }
  EXPECT_EQ(
      QueryInt(options_.pg,
               "SELECT count(*) FROM toy_counter WHERE key = 'a' AND customer_id = 'zero byte' AND "
               "state = 2 AND minor_units = 1::bigint << 40 AND due_us = 7000001"),
      1);
  EXPECT_EQ(QueryInt(options_.pg,
                     "SELECT count(*) FROM toy_mark WHERE key = 'appended' AND order_id = 'o'"),
            1);
  EXPECT_EQ(QueryInt(options_.pg, "SELECT count(*) FROM toy_mark"),
            1);  // "m" was loaded, and not made
  flow::Turn turn(2);
  ASSERT_EQ(store->Load({{&kToyCounters, "a"}}, &turn), absl::OkStatus());
  ASSERT_NE(turn.Find<Payment>(kToyCounters, "a"), nullptr);
  EXPECT_EQ(turn.Find<Payment>(kToyCounters, "a")->customer_id().size(),
            9u);  // the body keeps every byte
  store->Rollback();
}

TEST_F(TurnStoreTest, AppendedTwiceIsAlreadyExists) {
  auto store = Open();
  for (const bool first : {true, false}) {
    flow::Turn turn(1);
    ASSERT_EQ(store->Load({}, &turn), absl::OkStatus());
    turn.Append<Payment>(kToyMarks, "k");
    std::vector<OutboxRow> rows;
    const absl::Status status = store->Commit(turn, &rows);
    EXPECT_EQ(status.code(), first ? absl::StatusCode::kOk : absl::StatusCode::kAlreadyExists)
        << status;
  }
  EXPECT_TRUE(store->connected());
  EXPECT_EQ(Increment(*store, "a"), absl::OkStatus());  // no transaction was left open
}

// What one writer has loaded, another waits for: so nobody writes over what he has not seen.
TEST_F(TurnStoreTest, ALoadedRowIsLocked) {
  auto one = Open(), two = Open();
  ASSERT_EQ(Increment(*one, "hot"), absl::OkStatus());
  flow::Turn turn(1);
  ASSERT_EQ(one->Load({{&kToyCounters, "hot"}}, &turn), absl::OkStatus());
  turn.Edit<Payment>(kToyCounters, "hot").mutable_amount()->set_minor_units(10);
  absl::Status second;
  std::thread other([&] { second = Increment(*two, "hot"); });
  bool waits = false;
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  while (!waits && std::chrono::steady_clock::now() < until) {
    waits = QueryInt(options_.pg,
                     "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND "
                     "wait_event_type = 'Lock' AND query LIKE '%FOR UPDATE%'") == 1;
  }
  EXPECT_TRUE(waits);
  std::vector<OutboxRow> rows;
  ASSERT_EQ(one->Commit(turn, &rows), absl::OkStatus());
  other.join();
  EXPECT_EQ(second, absl::OkStatus());
  EXPECT_EQ(ToyCount(options_.pg, "hot"), 11);
}

TEST_F(TurnStoreTest, CommitIsSynchronousWhateverTheServersDefault) {
  auto admin = PgConnection::Connect(options_.pg);
  ASSERT_TRUE(admin.ok());
  ASSERT_TRUE((*admin)->Script("ALTER ROLE postgres SET synchronous_commit = off").ok());
  auto store = Open();
  // The store's own connection is not ours to ask; its role's default is off, and a fresh
  // connection shows it.
  auto fresh = PgConnection::Connect(options_.pg);
  auto shown = (*fresh)->Query("SHOW synchronous_commit");
  ASSERT_TRUE(shown.ok());
  EXPECT_EQ(shown->Bytes(0, 0), "off");
  EXPECT_EQ(store->Setting("synchronous_commit"), "on");
  EXPECT_EQ(store->Setting("enable_seqscan"), "off");
  ASSERT_TRUE((*admin)->Script("ALTER ROLE postgres RESET synchronous_commit").ok());
}

TEST_F(TurnStoreTest, EachConnectionIsAnIncarnationWithItsOwnNumbers) {
  auto store = Open();
  const int64_t first = store->incarnation();
  for (int i = 0; i < 2; ++i) {
    flow::Turn turn(1);
    ASSERT_EQ(store->Load({}, &turn), absl::OkStatus());
    std::vector<OutboxRow> rows(2);
    ASSERT_EQ(store->Commit(turn, &rows), absl::OkStatus());
    EXPECT_EQ(rows[1].seq, 2 * i + 2);
    EXPECT_EQ(rows[1].incarnation, first);
  }
  ASSERT_EQ(store->Connect(), absl::OkStatus());
  EXPECT_GT(store->incarnation(), first);
  EXPECT_EQ(store->next_seq(), 1);
}

// A turn that was not committed takes no numbers: the log has no gaps.
TEST_F(TurnStoreTest, AFailedTurnLeavesNoGap) {
  auto store = Open();
  ASSERT_EQ(Increment(*store, "a"), absl::OkStatus());
  flow::Turn turn(1);
  ASSERT_EQ(store->Load({{&kToyCounters, "a"}}, &turn), absl::OkStatus());
  turn.Edit<Payment>(kToyCounters, "a")
      .mutable_amount()
      ->set_minor_units(-1);  // the table's CHECK refuses it
  std::vector<OutboxRow> rows(3);
  EXPECT_EQ(store->Commit(turn, &rows).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store->next_seq(), 1);
  EXPECT_EQ(QueryInt(options_.pg, "SELECT count(*) FROM outbox"), 0);
}

}  // namespace
}  // namespace gaekju::runtime
