// turn_store.h: loads the rows of a turn and commits it, in two round trips.
//
//   TurnStore store(options);
//   absl::Status status = store.Connect();
//   flow::Turn turn(now_us);
//   status = store.Load(keys, &turn);         // BEGIN; SELECT … FOR UPDATE, in key order
//   … handlers …
//   status = store.Commit(turn, &rows);       // UPDATE, INSERT, outbox, COMMIT
//
// A failed Load or Commit leaves no transaction open. Whatever the error, the right thing is to run
// the whole turn again from Load, after Connect when connected() is false: also when the COMMIT's
// answer was lost, because handlers are idempotent.
//
// Errors: those of PgConnection::Run. Unavailable from Commit means that nobody knows whether it
// happened. Belongs to one thread.
#ifndef GAEKJU_RUNTIME_TURN_STORE_H_
#define GAEKJU_RUNTIME_TURN_STORE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "flow/turn.h"
#include "runtime/outbox.h"
#include "runtime/pg.h"

namespace gaekju::runtime {

// How a table's rows become SQL, worked out once: statements and the path of each column.
class TableSql {
 public:
  explicit TableSql(const flow::Table& table);

  const flow::Table& table() const { return table_; }
  const std::string& select() const {
    return select_;
  }  // $1 text[]: key, version, body, locked in key order
  const std::string& update() const { return update_; }
  const std::string& insert() const { return insert_; }

  // The arrays of update() and insert(): key, version, body and the columns.
  PgParams Params(
      const std::vector<std::pair<const std::string*, const flow::Turn::Row*>>& rows) const;

  enum class Kind { kText, kInt, kBool };
  struct Path {
    std::vector<const google::protobuf::FieldDescriptor*> fields;
    Kind kind;
  };
  // The column's value in `row`, as text, integer or bool; the field's default when a message on
  // the way is absent.
  static std::string TextOf(const Path& path, const google::protobuf::Message& row);
  static int64_t IntOf(const Path& path, const google::protobuf::Message& row);
  static bool BoolOf(const Path& path, const google::protobuf::Message& row);
  // The path of `column`; null when the table has no such column.
  const Path* FindColumn(absl::string_view column) const;

 private:
  const flow::Table& table_;
  std::vector<Path> paths_;  // one per column
  std::string select_, update_, insert_;
};

class TurnStore {
 public:
  struct Options {
    PgOptions pg;
    std::vector<const flow::Table*> tables;
    // For tests: called at "load", "before_commit", "commit_sent" and "committed".
    std::function<void(const char* point)> failpoint;
    std::function<int64_t()> now_us;  // microseconds since 1970; null: the system's clock
  };
  explicit TurnStore(Options options);

  // Connects anew and starts an incarnation.
  absl::Status Connect();
  bool connected() const { return pg_ != nullptr && pg_->ok(); }

  // Begins a transaction and adds a row to the turn for each key, locked. No key twice.
  absl::Status Load(const std::vector<flow::RowKey>& keys, flow::Turn* turn);
  // Writes the turn's dirty rows and `rows`, which it numbers, and commits. REQUIRES: Load returned
  // OK.
  absl::Status Commit(flow::Turn& turn, std::vector<OutboxRow>* rows);
  // Gives the turn up.
  void Rollback();

  int64_t incarnation() const { return incarnation_; }
  int64_t next_seq() const { return next_seq_; }  // of the next outbox row
  // A setting of the connection, "" when it cannot be asked. REQUIRES: no transaction is open. For
  // tests.
  std::string Setting(absl::string_view name);

 private:
  void Failpoint(const char* point) {
    if (options_.failpoint) options_.failpoint(point);
  }
  Options options_;
  std::vector<std::unique_ptr<TableSql>> tables_;
  absl::flat_hash_map<const flow::Table*, int> index_;
  std::unique_ptr<PgConnection> pg_;
  int64_t incarnation_ = 0;
  int64_t next_seq_ = 1;
};

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_TURN_STORE_H_
