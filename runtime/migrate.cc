#include "runtime/migrate.h"

#include <cinttypes>
#include <cstdio>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "flow/turn.h"
#include "runtime/runtime_migrations.h"

namespace gaekju::runtime {
namespace {

constexpr int64_t kMigrationLock = 0x676b6d6967726174;  // "gkmigrat"

constexpr char kTableSql[] =
    "CREATE TABLE IF NOT EXISTS schema_migration (owner text NOT NULL, number bigint NOT NULL, "
    "name text NOT NULL, "
    "checksum text NOT NULL, applied_time timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (owner, "
    "number))";

std::string Checksum(const std::string& sql) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016" PRIx64, flow::FingerprintBytes(sql));
  return text;
}

std::string Quoted(const std::string& text) {
  return absl::StrCat("'", absl::StrReplaceAll(text, {{"'", "''"}}), "'");
}

struct Recorded {
  std::string name, checksum;
};

absl::Status MigrateSet(PgConnection& pg, const MigrationSet& set) {
  auto result = pg.Query("SELECT number, name, checksum FROM schema_migration WHERE owner = $1",
                         PgParams().Text(set.owner));
  if (!result.ok()) return result.status();
  std::map<int64_t, Recorded> recorded;
  for (int i = 0; i < result->rows(); ++i) {
    recorded[result->Int(i, 0)] = {std::string(result->Bytes(i, 1)),
                                   std::string(result->Bytes(i, 2))};
  }
  for (const Migration& migration : set.migrations) {
    const std::string checksum = Checksum(migration.sql);
    const auto it = recorded.find(migration.number);
    if (it != recorded.end()) {
      if (it->second.checksum != checksum) {
        return absl::FailedPreconditionError(absl::StrCat(
            "migration ", migration.name, " of ", set.owner, " was applied to this database as ",
            it->second.name, " with other content (checksum ", it->second.checksum, ", now ",
            checksum, "). Restore the old file and put the change into a new migration."));
      }
      continue;
    }
    if (!recorded.empty() && recorded.rbegin()->first > migration.number) {
      return absl::FailedPreconditionError(
          absl::StrCat("migration ", migration.name, " of ", set.owner,
                       " is missing in this database, which already has ",
                       recorded.rbegin()->second.name, ". Give it a higher number."));
    }
    absl::Status status = pg.Script(
        absl::StrCat("BEGIN;\n", migration.sql,
                     "\n;\nINSERT INTO schema_migration (owner, number, name, checksum) VALUES (",
                     Quoted(set.owner), ", ", migration.number, ", ", Quoted(migration.name), ", ",
                     Quoted(checksum), ");\nCOMMIT"));
    if (!status.ok()) {
      if (status.code() == absl::StatusCode::kUnavailable) return status;
      return absl::InvalidArgumentError(
          absl::StrCat("migration ", migration.name, " of ", set.owner, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Migrate(const PgOptions& pg_options, const std::vector<MigrationSet>& sets) {
  PgOptions options = pg_options;
  options.statement_timeout_ms = 0;  // an index may take its time
  options.lock_timeout_ms = 0;       // and another replica, which migrates, too
  options.by_key_only = false;
  auto connected = PgConnection::Connect(options);
  if (!connected.ok()) return connected.status();
  PgConnection& pg = **connected;
  // Of the session: it ends with the connection.
  if (auto locked = pg.Query("SELECT pg_advisory_lock($1)", PgParams().Int(kMigrationLock));
      !locked.ok()) {
    return locked.status();
  }
  if (absl::Status status = pg.Script(kTableSql); !status.ok()) return status;
  for (const MigrationSet& set : sets) {
    if (absl::Status status = MigrateSet(pg, set); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace gaekju::runtime
