// migrate.h: brings a context's database to the schema that this binary knows.
//
//   absl::Status status = Migrate(pg, {{"runtime", RuntimeMigrations()}, {"payment",
//   PaymentMigrations()}});
//
// Migrations are SQL files NNNN_name.sql, embedded at build time (gaekju_migrations() in
// runtime/migrations.cmake), run in order of their numbers, each in a transaction of its own, under
// an advisory lock, and recorded with a checksum. A recorded migration whose text has changed since
// is refused (FailedPrecondition): add a new one instead.
#ifndef GAEKJU_RUNTIME_MIGRATE_H_
#define GAEKJU_RUNTIME_MIGRATE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/pg.h"

namespace gaekju::runtime {

struct Migration {
  int number;
  std::string name;  // the file's name without ".sql"
  std::string sql;
};

struct MigrationSet {
  std::string owner;  // "runtime" or the context
  std::vector<Migration> migrations;
};

// The runtime's own tables: outbox, outbox_incarnation, relay_*.
const std::vector<Migration>& RuntimeMigrations();

// Applies what is missing. Errors: FailedPrecondition (changed, or a newer one is recorded than
// this binary knows of a number that it lacks in between), Unavailable, InvalidArgument (the SQL is
// wrong; names the migration).
absl::Status Migrate(const PgOptions& pg, const std::vector<MigrationSet>& sets);

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_MIGRATE_H_
