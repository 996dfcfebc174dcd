#include "runtime/migrate.h"

#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/testing/postgres.h"

namespace gaekju::runtime {
namespace {

using testing::HasSubstr;

Postgres& Server() {
  static Postgres server;  // ends with the process
  return server;
}

class MigrateTest : public testing::Test {
 protected:
  MigrateTest() { options_.conninfo = Server().CreateDatabase(); }
  int64_t Count(const std::string& from) {
    auto pg = PgConnection::Connect(options_);
    auto result = (*pg)->Query("SELECT count(*) FROM " + from);
    return result.ok() ? result->Int(0, 0) : -1;
  }
  PgOptions options_;
  const MigrationSet first_ = {"shop", {{1, "0001_a", "CREATE TABLE a (k text)"}}};
  const MigrationSet both_ = {
      "shop",
      {{1, "0001_a", "CREATE TABLE a (k text)"},
       {2, "0002_b", "CREATE TABLE b (k text); INSERT INTO b VALUES ('it''s')"}}};
};

TEST_F(MigrateTest, TwiceIsOnce) {
  const std::vector<MigrationSet> sets = {{"runtime", RuntimeMigrations()}, both_};
  ASSERT_EQ(Migrate(options_, sets), absl::OkStatus());
  ASSERT_EQ(Migrate(options_, sets), absl::OkStatus());
  EXPECT_EQ(Count("b"), 1);
  EXPECT_EQ(Count("outbox"), 0);
  EXPECT_EQ(Count("relay_epoch"), 1);
}

TEST_F(MigrateTest, NewOnesAreAdded) {
  ASSERT_EQ(Migrate(options_, {first_}), absl::OkStatus());
  EXPECT_EQ(Count("b"), -1);
  ASSERT_EQ(Migrate(options_, {both_}), absl::OkStatus());
  EXPECT_EQ(Count("b"), 1);
  // An older binary beside a newer one.
  EXPECT_EQ(Migrate(options_, {first_}), absl::OkStatus());
}

TEST_F(MigrateTest, ChangedOneIsRefused) {
  ASSERT_EQ(Migrate(options_, {both_}), absl::OkStatus());
  MigrationSet changed = both_;
  changed.migrations[0].sql += " ";
  const absl::Status status = Migrate(options_, {changed});
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("0001_a"));
  EXPECT_THAT(status.message(), HasSubstr("new migration"));
}

TEST_F(MigrateTest, OneInBetweenIsRefused) {
  ASSERT_EQ(Migrate(options_, {{"shop", {both_.migrations[1]}}}), absl::OkStatus());
  EXPECT_EQ(Migrate(options_, {both_}).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(MigrateTest, WrongSqlChangesNothing) {
  MigrationSet wrong = both_;
  wrong.migrations[1].sql = "CREATE TABLE b (k text); CREATE NONSENSE";
  const absl::Status status = Migrate(options_, {wrong});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("0002_b"));
  EXPECT_EQ(Count("b"), -1);
  EXPECT_EQ(Count("schema_migration"), 1);
  EXPECT_EQ(Migrate(options_, {both_}), absl::OkStatus());
}

TEST_F(MigrateTest, ReplicasAtTheSameTime) {
  std::vector<std::thread> replicas;
  std::vector<absl::Status> statuses(8);
  for (absl::Status& status : statuses) {
    replicas.emplace_back([this, &status] {
      status = Migrate(options_, {{"runtime", RuntimeMigrations()}, both_});
    });
  }
  for (std::thread& replica : replicas) replica.join();
  for (const absl::Status& status : statuses) EXPECT_EQ(status, absl::OkStatus());
  EXPECT_EQ(Count("b"), 1);
}

}  // namespace
}  // namespace gaekju::runtime
