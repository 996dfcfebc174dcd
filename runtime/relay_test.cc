#include "runtime/relay.h"

#include <functional>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/cloudevents.h"
#include "runtime/migrate.h"
#include "runtime/testing/eventually.h"
#include "runtime/testing/fake_bus.h"
#include "runtime/testing/postgres.h"

namespace gaekju::runtime {
namespace {

using testing::ElementsAre;

constexpr absl::Duration kPatience = absl::Seconds(60);

Postgres& Server() {
  static Postgres server;  // ends with the process
  return server;
}

// A writer connection, as TurnStore has one.
class Writer {
 public:
  explicit Writer(const PgOptions& options) {
    auto pg = PgConnection::Connect(options);
    GK_CHECK(pg.ok()) << pg.status();
    pg_ = *std::move(pg);
    auto started = StartIncarnation(*pg_, 1);
    GK_CHECK(started.ok()) << started.status();
    incarnation_ = *started;
  }

  // Writes rows with these bodies, without COMMIT.
  std::vector<OutboxRow> Write(const std::vector<std::string>& bodies,
                               const std::string& subject = "gaekju.event.toy") {
    std::vector<OutboxRow> rows;
    for (const std::string& body : bodies) {
      OutboxRow row;
      row.incarnation = incarnation_;
      row.seq = ++seq_;
      row.time_us = time_us;
      row.subject = subject;
      row.headers = {{"ce-type", "toy: a\\b\nc"}};
      row.body = body;
      rows.push_back(row);
    }
    pg_->Add("BEGIN");
    AddOutboxInsert(*pg_, rows);
    auto results = pg_->Run();
    GK_CHECK(results.ok()) << results.status();
    return rows;
  }
  void Commit() { GK_CHECK(pg_->Query("COMMIT").ok()); }
  std::vector<OutboxRow> WriteAndCommit(const std::vector<std::string>& bodies,
                                        const std::string& subject = "gaekju.event.toy") {
    auto rows = Write(bodies, subject);
    Commit();
    return rows;
  }
  int64_t incarnation() const { return incarnation_; }
  int64_t time_us = 1000;

 private:
  std::unique_ptr<PgConnection> pg_;
  int64_t incarnation_ = 0, seq_ = 0;
};

class RelayTest : public testing::Test {
 protected:
  RelayTest() {
    options_.context = "toy";
    options_.pg.conninfo = Server().CreateDatabase();
    options_.save_interval = absl::Milliseconds(1);
    options_.checkpoint_interval = absl::Milliseconds(1);
    options_.takeover_interval = absl::Milliseconds(5);
    options_.retry_backoff_max = absl::Milliseconds(50);
    options_.now_us = [] { return int64_t{2000}; };
    GK_CHECK(Migrate(options_.pg, {{"runtime", RuntimeMigrations()}}).ok());
  }

  std::unique_ptr<Relay> StartRelay() {
    auto relay = std::make_unique<Relay>(options_, &bus_);
    relay->Start();
    return relay;
  }
  int64_t Int(const std::string& sql) {
    auto pg = PgConnection::Connect(options_.pg);
    auto result = (*pg)->Query(sql);
    GK_CHECK(result.ok()) << result.status();
    return result->rows() == 0 || result->IsNull(0, 0) ? 0 : result->Int(0, 0);
  }
  std::vector<std::string> Bodies() {
    std::vector<std::string> bodies;
    for (const BusMessage& message : bus_.stored()) bodies.push_back(message.body);
    return bodies;
  }
  std::set<std::string> BodiesAfter(size_t count) {
    std::set<std::string> bodies;
    const auto stored = bus_.stored();
    for (size_t i = count; i < stored.size(); ++i) bodies.insert(stored[i].body);
    return bodies;
  }
  // Until the cursor of the incarnation has been saved, with a checkpoint.
  bool WaitForCheckpoint(int64_t incarnation, int64_t seq) {
    return Eventually([&] {
      return Int(absl::StrCat("SELECT max(seq) FROM relay_checkpoint WHERE incarnation = ",
                              incarnation)) == seq &&
             Int(absl::StrCat("SELECT published_seq FROM outbox_incarnation WHERE incarnation = ",
                              incarnation)) == seq;
    });
  }

  FakeBus bus_;
  Relay::Options options_;
};

std::vector<std::string> Numbered(const std::string& prefix, int from, int to) {
  std::vector<std::string> bodies;
  for (int i = from; i < to; ++i) bodies.push_back(absl::StrCat(prefix, i));
  return bodies;
}

TEST(OutboxHeaders, ComeBackAsTheyWent) {
  const std::vector<std::pair<std::string, std::string>> headers = {
      {"a", ""}, {"b", "x: y"}, {"c", std::string("line\nnext\\n\0", 12)}, {"d", "\\"}};
  EXPECT_EQ(UnpackHeaders(PackHeaders(headers)), headers);
}

TEST_F(RelayTest, PublishesFromMemoryWithoutReadingTheTable) {
  auto relay = StartRelay();
  Writer writer(options_.pg);
  std::vector<OutboxRow> rows = writer.WriteAndCommit({"a", "b", "c"});
  Int("DELETE FROM outbox RETURNING 1");  // so nobody can have read them
  relay->Committed(writer.incarnation(), rows);
  EXPECT_TRUE(relay->Flush(kPatience));
  EXPECT_THAT(Bodies(), ElementsAre("a", "b", "c"));
  const BusMessage first = bus_.stored()[0];
  EXPECT_EQ(first.msg_id, absl::StrCat("toy:", writer.incarnation(), ":1:0"));
  EXPECT_EQ(first.subject, "gaekju.event.toy");
  EXPECT_EQ(first.headers, rows[0].headers);
  EXPECT_EQ(relay->stats().published_count, 3);
  EXPECT_EQ(relay->stats().lag_rows, 0);
  EXPECT_TRUE(WaitForCheckpoint(writer.incarnation(), 3));
}

TEST_F(RelayTest, TwoWritersThatCommitOutOfOrderAreBothPublishedWhole) {
  auto relay = StartRelay();
  Writer slow(options_.pg), fast(options_.pg);
  const auto slow_rows = slow.Write({"slow1", "slow2"});  // open
  const auto fast_rows = fast.WriteAndCommit({"fast1", "fast2"});
  relay->Committed(fast.incarnation(), fast_rows);
  ASSERT_TRUE(relay->Flush(kPatience));
  EXPECT_THAT(Bodies(), ElementsAre("fast1", "fast2"));
  ASSERT_TRUE(WaitForCheckpoint(fast.incarnation(), 2));
  slow.Commit();
  relay->Committed(slow.incarnation(), slow_rows);
  ASSERT_TRUE(relay->Flush(kPatience));
  EXPECT_THAT(Bodies(), ElementsAre("fast1", "fast2", "slow1", "slow2"));
}

TEST_F(RelayTest, ALongTransactionInAnotherDatabaseStallsNobody) {
  PgOptions elsewhere;
  elsewhere.conninfo = Server().CreateDatabase();
  auto other = PgConnection::Connect(elsewhere);
  ASSERT_TRUE(other.ok());
  ASSERT_TRUE((*other)->Script("CREATE TABLE t (k int)").ok());
  ASSERT_TRUE((*other)->Query("SET idle_in_transaction_session_timeout = 0").ok());
  ASSERT_TRUE((*other)->Query("BEGIN").ok());
  ASSERT_TRUE(
      (*other)->Query("INSERT INTO t VALUES (1)").ok());  // holds a transaction id of the cluster
  auto relay = StartRelay();
  std::vector<OutboxRow> rows;
  {
    Writer dead(options_.pg);
    dead.WriteAndCommit({"dead"});
  }
  Writer live(options_.pg);
  relay->Committed(live.incarnation(), live.WriteAndCommit({"live"}));
  EXPECT_TRUE(bus_.WaitForStored(2));
  EXPECT_TRUE((*other)->Query("COMMIT").ok());
}

TEST_F(RelayTest, DeadWritersLogIsFinishedAndClosedAndALivingOnesIsNot) {
  Writer living(options_.pg);
  living.WriteAndCommit({"living"});  // handed to nobody here: another process's relay does it
  {
    Writer dead(options_.pg);
    for (int i = 0; i < 3; ++i) dead.WriteAndCommit(Numbered("d", i * 300, i * 300 + 300));
  }
  auto relay = StartRelay();
  ASSERT_TRUE(bus_.WaitForStored(900));
  ASSERT_TRUE(Eventually([&] { return relay->stats().takeover_count == 1; }));
  EXPECT_EQ(Bodies(), Numbered("d", 0, 900));
  EXPECT_EQ(Int("SELECT count(*) FROM outbox_incarnation WHERE closed"), 1);
  EXPECT_EQ(Int("SELECT published_seq FROM outbox_incarnation WHERE closed"), 900);
}

TEST_F(RelayTest, WriterThatDiesWhileItsRowsAreHandedOver) {
  auto relay = StartRelay();
  int64_t incarnation;
  {
    Writer writer(options_.pg);
    incarnation = writer.incarnation();
    relay->Committed(incarnation, writer.WriteAndCommit({"a"}));
    writer.WriteAndCommit({"b", "c"});  // its COMMIT's answer was lost: never handed over
  }
  ASSERT_TRUE(bus_.WaitForStored(3));
  EXPECT_THAT(Bodies(), ElementsAre("a", "b", "c"));
  ASSERT_TRUE(Eventually([&] { return relay->stats().takeover_count == 1; }));
  // A hand-over that comes late has been read from the table.
  OutboxRow late;
  late.incarnation = incarnation;
  late.seq = 3;
  relay->Committed(incarnation, {late});
  EXPECT_TRUE(relay->Flush(kPatience));
  EXPECT_EQ(bus_.stored().size(), 3u);
}

TEST_F(RelayTest, OutageLosesNothing) {
  auto relay = StartRelay();
  Writer writer(options_.pg);
  relay->Committed(writer.incarnation(), writer.WriteAndCommit(Numbered("a", 0, 10)));
  ASSERT_TRUE(relay->Flush(kPatience));
  bus_.Disconnect();
  relay->Committed(writer.incarnation(), writer.WriteAndCommit(Numbered("b", 0, 10)));
  ASSERT_TRUE(Eventually([&] { return relay->stats().failed_count > 0; }));
  EXPECT_FALSE(relay->Flush(absl::ZeroDuration()));
  EXPECT_EQ(relay->stats().lag_rows, 10);
  EXPECT_EQ(relay->stats().lag_us, 1000);
  bus_.Connect();
  ASSERT_TRUE(relay->Flush(kPatience));
  auto expected = Numbered("a", 0, 10);
  for (const auto& b : Numbered("b", 0, 10)) expected.push_back(b);
  EXPECT_THAT(Bodies(), testing::UnorderedElementsAreArray(expected));
  EXPECT_EQ(relay->stats().rewind_count, 0);
}

TEST_F(RelayTest, LostAcknowledgementIsRepeatedUnderTheSameId) {
  auto relay = StartRelay();
  Writer writer(options_.pg);
  bus_.LoseAcks(3);
  relay->Committed(writer.incarnation(), writer.WriteAndCommit({"a", "b", "c", "d"}));
  ASSERT_TRUE(relay->Flush(kPatience));
  EXPECT_THAT(Bodies(), ElementsAre("a", "b", "c", "d"));  // the repeats were duplicates
  EXPECT_GE(relay->stats().failed_count, 3);
  EXPECT_EQ(relay->stats().rewind_count, 0);
}

TEST_F(RelayTest, WipedStreamIsFilledAgainWithTheNextEpoch) {
  {
    Writer dead(options_.pg);
    dead.WriteAndCommit({"dead"});
  }
  auto relay = StartRelay();
  Writer writer(options_.pg);
  relay->Committed(writer.incarnation(), writer.WriteAndCommit({"a", "b"}));
  ASSERT_TRUE(bus_.WaitForStored(3));
  ASSERT_TRUE(
      Eventually([&] { return Int("SELECT count(*) FROM outbox_incarnation WHERE closed") == 1; }));
  ASSERT_TRUE(WaitForCheckpoint(writer.incarnation(), 2));
  bus_.Disconnect();
  bus_.Wipe(kEventsStream);
  bus_.Connect();
  ASSERT_TRUE(bus_.WaitForStored(6));
  EXPECT_EQ(BodiesAfter(3), (std::set<std::string>{"dead", "a", "b"}));
  EXPECT_EQ(relay->stats().epoch, 1);
  EXPECT_EQ(relay->stats().rewind_count, 1);
  EXPECT_EQ(bus_.stored().back().msg_id.substr(bus_.stored().back().msg_id.rfind(':')), ":1");
  ASSERT_TRUE(relay->Flush(kPatience));
  EXPECT_EQ(bus_.last_seq(kEventsStream), 3u);
  EXPECT_EQ(Int("SELECT epoch FROM relay_epoch"), 1);
  // What comes now is published once.
  relay->Committed(writer.incarnation(), writer.WriteAndCommit({"c"}));
  ASSERT_TRUE(relay->Flush(kPatience));
  EXPECT_EQ(bus_.stored().size(), 7u);
  ASSERT_TRUE(WaitForCheckpoint(writer.incarnation(), 3));
}

TEST_F(RelayTest, WipedAndWarnedOnlyByARestartOfTheRelay) {
  Writer writer(options_.pg);
  {
    auto relay = StartRelay();
    relay->Committed(writer.incarnation(), writer.WriteAndCommit({"a", "b"}));
    ASSERT_TRUE(WaitForCheckpoint(writer.incarnation(), 2));
  }
  bus_.Wipe(kEventsStream);
  auto relay = StartRelay();
  relay->Committed(writer.incarnation(), writer.WriteAndCommit({"c"}));
  ASSERT_TRUE(bus_.WaitForStored(5));
  EXPECT_EQ(BodiesAfter(2), (std::set<std::string>{"a", "b", "c"}));
}

TEST_F(RelayTest, ShorterStreamIsFilledFromTheNewestCheckpointThatItStillHas) {
  options_.rollback_margin = absl::ZeroDuration();
  auto relay = StartRelay();
  Writer writer(options_.pg);
  for (int i = 0; i < 3; ++i) {
    relay->Committed(writer.incarnation(),
                     writer.WriteAndCommit(Numbered(absl::StrCat("batch", i, "-"), 0, 10)));
    ASSERT_TRUE(WaitForCheckpoint(writer.incarnation(), (i + 1) * 10));
  }
  bus_.Disconnect();
  bus_.Shorten(kEventsStream, 25);  // the checkpoint at 20 still holds
  bus_.Connect();
  ASSERT_TRUE(bus_.WaitForStored(40));
  ASSERT_TRUE(relay->Flush(kPatience));
  const auto again = Numbered("batch2-", 0, 10);
  EXPECT_EQ(BodiesAfter(30), std::set<std::string>(again.begin(), again.end()));
  EXPECT_EQ(relay->stats().rewind_count, 1);
  // And once more: what is known after going back is not forgotten.
  ASSERT_TRUE(WaitForCheckpoint(writer.incarnation(), 30));
  bus_.Disconnect();
  bus_.Shorten(kEventsStream, 5);
  bus_.Connect();
  ASSERT_TRUE(bus_.WaitForStored(70));
  EXPECT_EQ(BodiesAfter(40).size(), 30u);
}

TEST_F(RelayTest, OtherStreamsDoNotMakeItGoBack) {
  auto relay = StartRelay();
  Writer writer(options_.pg);
  relay->Committed(writer.incarnation(), writer.WriteAndCommit({"a", "b"}));
  ASSERT_TRUE(WaitForCheckpoint(writer.incarnation(), 2));
  bus_.Wipe(kAnswersStream);  // nothing of ours was in it
  bus_.TellConnect();
  relay->Committed(writer.incarnation(), writer.WriteAndCommit({"c"}, "gaekju.answer.order"));
  ASSERT_TRUE(relay->Flush(kPatience));
  EXPECT_EQ(relay->stats().rewind_count, 0);
  EXPECT_THAT(Bodies(), ElementsAre("a", "b", "c"));
}

// The stream lost its end and grew again before anybody looked: only the acknowledged sequence
// tells.
TEST_F(RelayTest, SequenceGivenOutTwiceIsALoss) {
  auto relay = StartRelay();
  Writer writer(options_.pg);
  relay->Committed(writer.incarnation(), writer.WriteAndCommit(Numbered("a", 0, 10)));
  ASSERT_TRUE(WaitForCheckpoint(writer.incarnation(), 10));
  bus_.Shorten(kEventsStream, 0);
  bus_.Grow(kEventsStream, 5);  // and nobody is told
  relay->Committed(writer.incarnation(), writer.WriteAndCommit({"b"}));
  ASSERT_TRUE(bus_.WaitForStored(11));  // is given 6
  bus_.Grow(kEventsStream, 100);
  ASSERT_TRUE(bus_.WaitForStored(22));
  EXPECT_EQ(relay->stats().rewind_count, 1);
  EXPECT_EQ(BodiesAfter(11).size(), 11u);
  EXPECT_TRUE(relay->Flush(kPatience));
}

// Somebody else has published before we looked: the stream is longer than ever.
TEST_F(RelayTest, StreamThatLostItsEndAndHasGrownAgainIsToldByItsContent) {
  options_.rollback_margin = absl::ZeroDuration();
  auto relay = StartRelay();
  Writer writer(options_.pg);
  for (int i = 0; i < 3; ++i) {
    relay->Committed(writer.incarnation(),
                     writer.WriteAndCommit(Numbered(absl::StrCat("batch", i, "-"), 0, 10)));
    ASSERT_TRUE(WaitForCheckpoint(writer.incarnation(), (i + 1) * 10));
  }
  bus_.Disconnect();
  bus_.Shorten(kEventsStream, 25);
  bus_.Grow(kEventsStream, 100);
  bus_.Connect();
  ASSERT_TRUE(bus_.WaitForStored(40));
  ASSERT_TRUE(relay->Flush(kPatience));
  const auto again = Numbered("batch2-", 0, 10);
  EXPECT_EQ(BodiesAfter(30), std::set<std::string>(again.begin(), again.end()));
  EXPECT_EQ(relay->stats().rewind_count, 1);
  // Once: what was published again is what is looked for from now on.
  ASSERT_TRUE(WaitForCheckpoint(writer.incarnation(), 30));
  bus_.Disconnect();
  bus_.Connect();
  relay->Committed(writer.incarnation(), writer.WriteAndCommit({"new"}));
  ASSERT_TRUE(relay->Flush(kPatience));
  EXPECT_EQ(bus_.stored().size(), 41u);
  EXPECT_EQ(relay->stats().rewind_count, 1);
}

TEST_F(RelayTest, AProcessThatStartsKnowsWhichMessageWasItsLast) {
  Writer writer(options_.pg);
  {
    auto relay = StartRelay();
    relay->Committed(writer.incarnation(), writer.WriteAndCommit(Numbered("a", 0, 10)));
    ASSERT_TRUE(WaitForCheckpoint(writer.incarnation(), 10));
  }
  bus_.Shorten(kEventsStream, 9);
  bus_.Grow(kEventsStream, 1);
  auto relay = StartRelay();
  relay->Committed(writer.incarnation(), writer.WriteAndCommit({"b"}));
  ASSERT_TRUE(bus_.WaitForStored(21));  // the checkpoint is too young to be trusted: all of it
  EXPECT_EQ(BodiesAfter(10).size(), 11u);
  EXPECT_EQ(relay->stats().rewind_count, 1);
}

TEST_F(RelayTest, WhatTheOtherWriterLostIsPublishedAgainToo) {
  auto one = StartRelay(), two = StartRelay();
  Writer first(options_.pg), second(options_.pg);
  one->Committed(first.incarnation(), first.WriteAndCommit({"f"}));
  ASSERT_TRUE(WaitForCheckpoint(first.incarnation(), 1));
  two->Committed(second.incarnation(), second.WriteAndCommit({"s"}));
  ASSERT_TRUE(WaitForCheckpoint(second.incarnation(), 1));
  bus_.Disconnect();
  bus_.Shorten(kEventsStream, 1);  // has "f" still
  bus_.Grow(kEventsStream, 10);
  bus_.Connect();
  ASSERT_TRUE(Eventually([&] { return BodiesAfter(2).contains("s"); }));
  EXPECT_EQ(one->stats().rewind_count + two->stats().rewind_count, 1);
  EXPECT_TRUE(one->Flush(kPatience));
  EXPECT_TRUE(two->Flush(kPatience));
}

// Its connection broke and came back, and it has not heard of it yet.
TEST_F(RelayTest, PublishesOverNoConnectionThatItHasNotLookedAt) {
  auto relay = StartRelay();
  Writer writer(options_.pg);
  relay->Committed(writer.incarnation(), writer.WriteAndCommit(Numbered("a", 0, 10)));
  ASSERT_TRUE(WaitForCheckpoint(writer.incarnation(), 10));
  bus_.Reconnect();
  bus_.Shorten(kEventsStream, 5);
  bus_.Grow(kEventsStream, 5);
  // Its acknowledgement would be further than all before it.
  relay->Committed(writer.incarnation(), writer.WriteAndCommit({"b"}));
  ASSERT_TRUE(bus_.WaitForStored(21));
  EXPECT_EQ(BodiesAfter(10).size(), 11u);
  EXPECT_EQ(relay->stats().rewind_count, 1);
}

TEST_F(RelayTest, WhatALimitOfTheStreamHasRemovedIsNotPublishedAgain) {
  auto relay = StartRelay();
  Writer writer(options_.pg);
  relay->Committed(writer.incarnation(), writer.WriteAndCommit({"a", "b"}));
  ASSERT_TRUE(WaitForCheckpoint(writer.incarnation(), 2));
  bus_.Disconnect();
  bus_.Grow(kEventsStream, 10);
  bus_.RemoveUntil(kEventsStream, 7);
  bus_.Connect();
  relay->Committed(writer.incarnation(), writer.WriteAndCommit({"c"}));
  ASSERT_TRUE(relay->Flush(kPatience));
  EXPECT_THAT(Bodies(), ElementsAre("a", "b", "c"));
  EXPECT_EQ(relay->stats().rewind_count, 0);
}

TEST_F(RelayTest, RepublishFromAnyPoint) {
  auto relay = StartRelay();
  Writer writer(options_.pg);
  for (int64_t time = 1; time <= 3; ++time) {
    writer.time_us = time * 100;
    relay->Committed(writer.incarnation(), writer.WriteAndCommit({absl::StrCat("t", time)}));
  }
  ASSERT_TRUE(WaitForCheckpoint(writer.incarnation(), 3));
  ASSERT_EQ(relay->Republish(150), absl::OkStatus());
  ASSERT_TRUE(bus_.WaitForStored(5));
  EXPECT_THAT(Bodies(), ElementsAre("t1", "t2", "t3", "t2", "t3"));
  ASSERT_TRUE(WaitForCheckpoint(writer.incarnation(), 3));
  ASSERT_EQ(relay->Republish(0), absl::OkStatus());
  ASSERT_TRUE(bus_.WaitForStored(8));
  EXPECT_THAT(Bodies(), ElementsAre("t1", "t2", "t3", "t2", "t3", "t1", "t2", "t3"));
  EXPECT_EQ(relay->stats().epoch, 2);
  EXPECT_EQ(relay->stats().rewind_count, 0);
}

TEST_F(RelayTest, RestartedRelayGoesOnWhereItWas) {
  {
    auto relay = StartRelay();
    Writer writer(options_.pg);
    relay->Committed(writer.incarnation(), writer.WriteAndCommit(Numbered("a", 0, 50)));
    ASSERT_TRUE(relay->Flush(kPatience));
    ASSERT_TRUE(WaitForCheckpoint(writer.incarnation(), 50));
    bus_.Disconnect();
    relay->Committed(writer.incarnation(), writer.WriteAndCommit(Numbered("b", 0, 50)));
  }
  bus_.Connect();
  auto relay = StartRelay();
  ASSERT_TRUE(bus_.WaitForStored(100));
  ASSERT_TRUE(Eventually([&] { return relay->stats().takeover_count == 1; }));
  EXPECT_EQ(relay->stats().published_count, 50);
}

TEST_F(RelayTest, TheCursorIsNeverAheadOfTheBus) {
  Writer writer(options_.pg);
  {
    auto relay = StartRelay();
    relay->Committed(writer.incarnation(), writer.WriteAndCommit({"a", "b"}));
    ASSERT_TRUE(relay->Flush(kPatience));
    bus_.Disconnect();
    relay->Committed(writer.incarnation(), writer.WriteAndCommit({"c", "d", "e"}));
  }  // saves its cursor
  EXPECT_EQ(Int("SELECT max(published_seq) FROM outbox_incarnation"), 2);
}

TEST_F(RelayTest, WhatMemoryHasNoRoomForIsRead) {
  options_.memory_bytes_max = 2000;
  options_.in_flight_max = 7;
  auto relay = StartRelay();
  Writer writer(options_.pg);
  bus_.Disconnect();
  for (int i = 0; i < 40; ++i) {
    relay->Committed(writer.incarnation(),
                     writer.WriteAndCommit(Numbered("", i * 50, i * 50 + 50)));
  }
  bus_.Connect();
  ASSERT_TRUE(bus_.WaitForStored(2000));
  ASSERT_TRUE(relay->Flush(kPatience));
  EXPECT_EQ(Bodies(), Numbered("", 0, 2000));
  relay->Committed(writer.incarnation(), writer.WriteAndCommit({"last"}));
  ASSERT_TRUE(relay->Flush(kPatience));
  EXPECT_EQ(bus_.stored().size(), 2001u);
}

TEST_F(RelayTest, TwoRelaysOnAWipedBusLoseNothing) {
  auto one = StartRelay(), two = StartRelay();
  Writer first(options_.pg), second(options_.pg);
  for (int i = 0; i < 5; ++i) {
    one->Committed(first.incarnation(), first.WriteAndCommit({absl::StrCat("f", i)}));
    two->Committed(second.incarnation(), second.WriteAndCommit({absl::StrCat("s", i)}));
  }
  ASSERT_TRUE(WaitForCheckpoint(first.incarnation(), 5));
  ASSERT_TRUE(WaitForCheckpoint(second.incarnation(), 5));
  const size_t before = bus_.stored().size();
  bus_.Disconnect();
  bus_.Wipe(kEventsStream);
  bus_.Connect();
  ASSERT_TRUE(Eventually([&] { return BodiesAfter(before).size() == 10; }));
  EXPECT_EQ(one->stats().rewind_count + two->stats().rewind_count, 1);  // the other follows
  ASSERT_TRUE(Eventually([&] { return one->stats().epoch == 1 && two->stats().epoch == 1; }));
  EXPECT_TRUE(one->Flush(kPatience));
  EXPECT_TRUE(two->Flush(kPatience));
}

TEST_F(RelayTest, DatabaseRestartStopsNothingForGood) {
  Postgres own;
  options_.pg.conninfo = own.CreateDatabase();
  ASSERT_EQ(Migrate(options_.pg, {{"runtime", RuntimeMigrations()}}), absl::OkStatus());
  auto relay = StartRelay();
  {
    Writer writer(options_.pg);
    relay->Committed(writer.incarnation(), writer.WriteAndCommit({"a"}));
    ASSERT_TRUE(bus_.WaitForStored(1));
    writer.WriteAndCommit({"b"});
    own.Kill();
    own.Start();
  }
  ASSERT_TRUE(bus_.WaitForStored(2));
  Writer writer(options_.pg);
  relay->Committed(writer.incarnation(), writer.WriteAndCommit({"c"}));
  ASSERT_TRUE(bus_.WaitForStored(3));
  EXPECT_THAT(Bodies(), ElementsAre("a", "b", "c"));
  ASSERT_TRUE(WaitForCheckpoint(writer.incarnation(), 1));
  relay.reset();
}

TEST_F(RelayTest, ADatabaseMadeAnewUsesNoIdOfTheOldOne) {
  {
    auto relay = StartRelay();
    Writer writer(options_.pg);
    EXPECT_GT(writer.incarnation(), 1600000000);  // a time, in seconds
    relay->Committed(writer.incarnation(), writer.WriteAndCommit({"old"}));
    ASSERT_TRUE(relay->Flush(kPatience));
  }
  options_.pg.conninfo = Server().CreateDatabase();
  ASSERT_EQ(Migrate(options_.pg, {{"runtime", RuntimeMigrations()}}), absl::OkStatus());
  auto relay = StartRelay();
  // Made a second later than the old one, at the earliest; a test need not wait for that.
  Int("SELECT setval('outbox_incarnation_number', nextval('outbox_incarnation_number') + 1)");
  Writer writer(options_.pg);
  relay->Committed(writer.incarnation(), writer.WriteAndCommit({"new"}));
  ASSERT_TRUE(relay->Flush(kPatience));
  EXPECT_THAT(Bodies(), ElementsAre("old", "new"));
}

TEST_F(RelayTest, MessageThatCanNeverBePublishedHoldsNobodyUp) {
  std::vector<std::string> told;
  std::mutex mutex;
  options_.log = [&](const std::string& message) {
    std::lock_guard<std::mutex> lock(mutex);
    told.push_back(message);
  };
  bus_.Refuse("huge");
  auto relay = StartRelay();
  Writer writer(options_.pg);
  relay->Committed(writer.incarnation(), writer.WriteAndCommit({"a", "huge", "b"}));
  ASSERT_TRUE(relay->Flush(kPatience));
  EXPECT_THAT(Bodies(), ElementsAre("a", "b"));
  EXPECT_EQ(relay->stats().dropped_count, 1);
  relay.reset();
  EXPECT_THAT(told, testing::Contains(testing::HasSubstr("can never be published")));
}

TEST_F(RelayTest, ResendFindsTheRowsOfAResource) {
  auto relay = StartRelay();
  Writer writer(options_.pg);
  for (int version = 1; version <= 4; ++version) {
    std::vector<flow::Envelope> envelopes(2);
    for (int i = 0; i < 2; ++i) {
      envelopes[static_cast<size_t>(i)].type = "toy.Changed";
      envelopes[static_cast<size_t>(i)].order_id = "o";
      envelopes[static_cast<size_t>(i)].resource =
          i == 0 ? "thing/1" : absl::StrCat("thing/other", version);
      envelopes[static_cast<size_t>(i)].version = i == 0 ? version : 1;
    }
    auto encoded = EncodeTurn("toy", envelopes, absl::StrCat("x-", version));
    ASSERT_EQ(encoded.size(), 1u);
    OutboxRow row;
    row.incarnation = writer.incarnation();
    row.seq = version;
    row.time_us = 1;
    row.subject = encoded[0].subject;
    row.headers = encoded[0].headers;
    row.resources = encoded[0].resources;
    row.body = encoded[0].body;
    auto pg = PgConnection::Connect(options_.pg);
    AddOutboxInsert(**pg, {row});
    ASSERT_TRUE((*pg)->Run().ok());
    relay->Committed(writer.incarnation(), {row});
  }
  ASSERT_TRUE(relay->Flush(kPatience));
  ASSERT_EQ(bus_.stored().size(), 4u);
  relay->Resend("thing/1", 3);
  relay->Resend("thing/unknown", 1);
  ASSERT_TRUE(bus_.WaitForStored(6));
  ASSERT_TRUE(relay->Flush(kPatience));
  EXPECT_EQ(relay->stats().resend_count, 2);
  EXPECT_EQ(bus_.stored()[4].body, bus_.stored()[2].body);
  EXPECT_EQ(bus_.stored()[5].body, bus_.stored()[3].body);
}

// 20,000 rows: a scan is cheaper than an index for less.
TEST_F(RelayTest, ResendFindsItsRowsByTheIndex) {
  auto pg = PgConnection::Connect(options_.pg);
  ASSERT_TRUE(pg.ok());
  ASSERT_TRUE((*pg)
                  ->Query("INSERT INTO outbox SELECT 1, i, 1, 's', '', ARRAY['thing/' || i, "
                          "'thing/' || i + 1], '' FROM generate_series(1, 20000) AS i")
                  .ok());
  ASSERT_TRUE((*pg)->Query("ANALYZE outbox").ok());
  auto plan = (*pg)->Query(
      "EXPLAIN SELECT incarnation, seq FROM outbox WHERE resources && ARRAY['thing/7'] "
      "ORDER BY incarnation DESC, seq DESC LIMIT 500000");
  ASSERT_TRUE(plan.ok());
  std::string text;
  for (int i = 0; i < plan->rows(); ++i) absl::StrAppend(&text, plan->Bytes(i, 0), "\n");
  EXPECT_THAT(text, testing::HasSubstr("Index Scan on outbox_resources"));
}

TEST_F(RelayTest, WhatIsNotPublishedIsNotPruned) {
  Writer writer(options_.pg);
  writer.time_us = 1;
  {
    auto relay = StartRelay();
    relay->Committed(writer.incarnation(), writer.WriteAndCommit({"a"}));
    ASSERT_TRUE(relay->Flush(kPatience));
  }  // saves its cursor
  bus_.Disconnect();
  writer.WriteAndCommit({"b", "c"});
  options_.retention = absl::Microseconds(500);  // now is 2,000
  options_.prune_interval = absl::Milliseconds(1);
  auto relay = StartRelay();
  ASSERT_TRUE(Eventually([&] { return Int("SELECT count(*) FROM outbox WHERE seq = 1") == 0; }));
  EXPECT_EQ(Int("SELECT count(*) FROM outbox"), 2);
}

TEST_F(RelayTest, OldPublishedRowsArePruned) {
  options_.retention = absl::Microseconds(500);  // now is 2,000
  options_.prune_interval = absl::Milliseconds(1);
  bus_.Disconnect();
  auto relay = StartRelay();
  Writer writer(options_.pg);
  writer.time_us = 1400;
  relay->Committed(writer.incarnation(), writer.WriteAndCommit(Numbered("old", 0, 2500)));
  writer.time_us = 1600;
  relay->Committed(writer.incarnation(), writer.WriteAndCommit(Numbered("new", 0, 10)));
  {
    Writer dead(options_.pg);
    dead.time_us = 1;
    dead.WriteAndCommit({"dead"});
  }
  EXPECT_EQ(Int("SELECT count(*) FROM outbox"), 2511);  // old, but not published
  bus_.Connect();
  ASSERT_TRUE(Eventually([&] { return Int("SELECT count(*) FROM outbox") == 10; }));
  EXPECT_EQ(bus_.stored().size(), 2511u);
  ASSERT_TRUE(Eventually([&] { return Int("SELECT count(*) FROM outbox_incarnation") == 1; }));
  EXPECT_EQ(relay->stats().pruned_count, 2501);
}

}  // namespace
}  // namespace gaekju::runtime
