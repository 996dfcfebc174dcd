#include "runtime/pg.h"

#include "absl/strings/str_cat.h"
#include "google/protobuf/timestamp.pb.h"
#include "gtest/gtest.h"
#include "runtime/testing/postgres.h"

namespace gaekju::runtime {
namespace {

Postgres& Server() {
  static Postgres server;  // ends with the process
  return server;
}

class PgTest : public testing::Test {
 protected:
  PgTest() { options_.conninfo = Server().CreateDatabase(); }
  std::unique_ptr<PgConnection> Connect() {
    auto pg = PgConnection::Connect(options_);
    EXPECT_TRUE(pg.ok()) << pg.status();
    return *std::move(pg);
  }
  PgOptions options_;
};

TEST_F(PgTest, ValuesComeBackAsTheyWent) {
  auto pg = Connect();
  const std::string bytes("\x00\x01\xff", 3);
  auto result = pg->Query(
      "SELECT $1::text, $2::bytea, $3::bigint, $4::boolean, NULL::text, 7::int, 8::smallint",
      PgParams().Text("객주").Bytes(bytes).Int(-5).Bool(true));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->Bytes(0, 0), "객주");
  EXPECT_EQ(result->Bytes(0, 1), bytes);
  EXPECT_EQ(result->Int(0, 2), -5);
  EXPECT_TRUE(result->Bool(0, 3));
  EXPECT_TRUE(result->IsNull(0, 4));
  EXPECT_EQ(result->Int(0, 5), 7);
  EXPECT_EQ(result->Int(0, 6), 8);
}

TEST_F(PgTest, ArraysComeBackAsTheyWent) {
  auto pg = Connect();
  google::protobuf::Timestamp message;
  message.set_seconds(77);
  PgArray texts = PgArray::Text(), ints = PgArray::Int(), bools = PgArray::Bool(),
          bodies = PgArray::Bytes();
  for (int i = 0; i < 3; ++i) {
    texts.Add(absl::StrCat("t", i));
    ints.AddInt(int64_t{1} << (40 + i));
    bools.AddBool(i == 1);
    bodies.AddMessage(message);
  }
  auto result =
      pg->Query("SELECT * FROM unnest($1::text[], $2::bigint[], $3::boolean[], $4::bytea[])",
                PgParams().Array(texts).Array(ints).Array(bools).Array(bodies));
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->rows(), 3);
  EXPECT_EQ(result->Bytes(2, 0), "t2");
  EXPECT_EQ(result->Int(2, 1), int64_t{1} << 42);
  EXPECT_TRUE(result->Bool(1, 2));
  EXPECT_EQ(result->Bytes(0, 3), message.SerializeAsString());
  result = pg->Query("SELECT count(*) FROM unnest($1::text[])", PgParams().Array(PgArray::Text()));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->Int(0, 0), 0);
}

TEST_F(PgTest, FailedStatementFailsTheRunAndTheConnectionGoesOn) {
  auto pg = Connect();
  ASSERT_TRUE(pg->Script("CREATE TABLE t (k text PRIMARY KEY)").ok());
  pg->Add("BEGIN");
  pg->Add("INSERT INTO t VALUES ($1)", PgParams().Text("a"));
  pg->Add("INSERT INTO t VALUES ($1)", PgParams().Text("a"));
  pg->Add("SELECT 1 AS never_prepared");
  pg->Add("COMMIT");
  auto failed = pg->Run();
  EXPECT_EQ(failed.status().code(), absl::StatusCode::kAlreadyExists) << failed.status();
  EXPECT_EQ(SqlState(failed.status()), "23505");
  EXPECT_TRUE(pg->ok());
  ASSERT_TRUE(pg->Query("ROLLBACK").ok());
  auto count = pg->Query("SELECT count(*) FROM t");
  ASSERT_TRUE(count.ok()) << count.status();
  EXPECT_EQ(count->Int(0, 0), 0);
  // What was not prepared because the pipeline was aborted is prepared now.
  EXPECT_TRUE(pg->Query("SELECT 1 AS never_prepared").ok());
  EXPECT_TRUE(pg->Query("INSERT INTO t VALUES ($1)", PgParams().Text("a")).ok());
}

TEST_F(PgTest, ErrorsAreClassified) {
  auto pg = Connect();
  ASSERT_TRUE(pg->Script("CREATE TABLE t (k text PRIMARY KEY, n int CHECK (n > 0))").ok());
  EXPECT_EQ(pg->Query("INSERT INTO t VALUES ('x', 0)").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(
      pg->Query("SELECT $1::text", PgParams().Text(absl::string_view("a\0b", 3))).status().code(),
      absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(pg->Query("SELECT * FROM no_such_table").status().code(), absl::StatusCode::kInternal);
  auto other = Connect();
  ASSERT_TRUE(pg->Query("INSERT INTO t VALUES ('x', 1)").ok());
  ASSERT_TRUE(pg->Query("BEGIN").ok());
  ASSERT_TRUE(pg->Query("SELECT * FROM t FOR UPDATE").ok());
  ASSERT_TRUE(other->Query("SET lock_timeout = '10ms'").ok());
  EXPECT_EQ(other->Query("SELECT * FROM t FOR UPDATE").status().code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(other->ok());
}

TEST_F(PgTest, TerminatedBackendBreaksTheConnection) {
  auto pg = Connect(), killer = Connect();
  ASSERT_TRUE(
      killer
          ->Query("SELECT pg_terminate_backend($1::int8::int4)", PgParams().Int(pg->backend_pid()))
          .ok());
  absl::Status status;
  // The signal is asynchronous; until it arrives, queries work.
  while (status.ok()) status = pg->Query("SELECT 1").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_FALSE(pg->ok());
  EXPECT_EQ(pg->Query("SELECT 1").status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(PgTest, LargeParametersAndResultsDoNotDeadlock) {
  auto pg = Connect();
  const std::string large(8 << 20, 'x');
  for (int i = 0; i < 4; ++i) pg->Add("SELECT $1::bytea", PgParams().Bytes(large));
  auto results = pg->Run();
  ASSERT_TRUE(results.ok()) << results.status();
  for (const PgResult& result : *results) EXPECT_EQ(result.Bytes(0, 0).size(), large.size());
}

TEST_F(PgTest, UnreachableServerIsUnavailable) {
  PgOptions options;
  options.conninfo = "host=/nonexistent dbname=x password=secret";
  absl::Status status = PgConnection::Connect(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(std::string(status.message()).find("secret"), std::string::npos);
  options.conninfo = "no=such keyword";
  EXPECT_EQ(PgConnection::Connect(options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(PgTest, FailedScriptLeavesNoTransaction) {
  auto pg = Connect();
  EXPECT_FALSE(pg->Script("BEGIN; CREATE TABLE t (k text); SELECT nonsense; COMMIT").ok());
  EXPECT_TRUE(pg->ok());
  auto found = pg->Query("SELECT to_regclass('t') IS NULL");
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_TRUE(found->Bool(0, 0));
}

}  // namespace
}  // namespace gaekju::runtime
