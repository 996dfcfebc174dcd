// database.h: one context's database as its turns and its relay see it: rows under locks, the
// outbox by writer incarnation, the relay's cursors, epoch and checkpoints. Rows are kept as bytes:
// what does not survive being serialized is not state.
//
//   Database db(tables);
//   if (db.Lock(keys, /*owner=*/1)) db.Load(keys, &turn);
//   absl::Status status = db.Commit(turn, …);
//
// Pure. Belongs to one simulation.
#ifndef GAEKJU_SIM_DATABASE_H_
#define GAEKJU_SIM_DATABASE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "flow/turn.h"
#include "runtime/stream_loss.h"

namespace gaekju::sim {

// One message of the bus, as a turn has written it.
struct OutboxRow {
  int64_t seq = 0;
  std::string subject;
  std::vector<std::pair<std::string, std::string>> headers;
  std::vector<std::string> resources;
  std::string body;
};

class Database {
 public:
  explicit Database(const flow::Context& context);

  // --- turns
  // Locks the rows that there are; false when another owner has one of them: nothing is locked
  // then.
  bool Lock(const std::vector<flow::RowKey>& keys, int owner);
  void Unlock(int owner);
  void Load(const std::vector<flow::RowKey>& keys, flow::Turn* turn) const;
  // Writes the turn's rows and numbers and appends `rows`. Errors: ALREADY_EXISTS when somebody
  // else has made a row meanwhile; nothing is written then.
  absl::Status Commit(const flow::Turn& turn, int64_t incarnation, std::vector<OutboxRow> rows);

  int64_t NewIncarnation() {
    const int64_t incarnation = ++last_incarnation_;
    outbox[incarnation];
    return incarnation;
  }

  // --- timers
  // When the earliest row is due; 0: none is.
  int64_t NextDue() const { return due_.empty() ? 0 : due_.begin()->first; }
  std::vector<std::string> Due(int64_t now_us, size_t count_max) const;

  // --- reading
  template <class T>
  std::unique_ptr<T> Find(const flow::Table& table, const std::string& key) const {
    const auto& rows = Rows(table);
    const auto it = rows.find(key);
    if (it == rows.end()) return nullptr;
    auto row = std::make_unique<T>();
    GK_CHECK(row->ParseFromString(it->second.body)) << key;
    return row;
  }
  struct Row {
    int64_t version = 0;
    std::string body;
  };
  const std::map<std::string, Row>& Rows(const flow::Table& table) const;

  // --- the relay's tables
  struct Log {
    std::vector<OutboxRow> rows;  // by seq, from 1
    int64_t published_seq = 0;
    bool closed = false;
    int owner = 0;  // who holds the lock of the incarnation: its writer, or the relay that finishes
                    // it; 0: nobody
  };
  std::map<int64_t, Log> outbox;  // by incarnation
  int64_t epoch = 0;
  runtime::StreamPositions positions;
  struct Checkpoint {
    int64_t time_us = 0;
    std::map<int64_t, int64_t> published;  // by incarnation
    runtime::StreamPositions positions;
  };
  std::vector<Checkpoint> checkpoints;

 private:
  int64_t DueTimeOf(const google::protobuf::Message& row) const;

  const flow::Context& context_;
  absl::flat_hash_map<const flow::Table*, std::map<std::string, Row>> tables_;
  absl::flat_hash_map<flow::RowKey, int> locks_;
  std::map<int, std::vector<flow::RowKey>> locked_;  // by owner
  std::set<std::pair<int64_t, std::string>> due_;
  absl::flat_hash_map<std::string, int64_t> due_of_;  // by key
  std::vector<const google::protobuf::FieldDescriptor*> due_path_;
  int64_t last_incarnation_ = 0;
};

}  // namespace gaekju::sim

#endif  // GAEKJU_SIM_DATABASE_H_
