// pg.h: one connection to PostgreSQL, in pipeline mode, with binary parameters and results.
//
//   absl::StatusOr<std::unique_ptr<PgConnection>> pg = PgConnection::Connect(options);
//   PgArray keys = PgArray::Text();
//   keys.Add("a/1");
//   (*pg)->Add("SELECT key, version FROM payment WHERE key = ANY($1)",
//   PgParams().Array(std::move(keys))); absl::StatusOr<std::vector<PgResult>> results =
//   (*pg)->Run();   // one round trip for everything that was added
//
// Invariants:
// 1. Every statement with parameters is prepared once per connection, by its text, in the round
// trip that first uses it.
// 2. After a lost connection, a time-out or an answer out of order the connection is broken: ok()
// is false and it never works again.
// 3. A failed statement fails the whole Run; inside BEGIN the transaction then waits for ROLLBACK.
//
// Errors of Run: Unavailable (connection broken: what was sent may have happened), Aborted
// (serialization, deadlock, lock time-out: nothing happened), AlreadyExists (unique violation:
// nothing happened), InvalidArgument (classes 22 and 23: what was sent can never work),
// ResourceExhausted (class 53), Internal (others). SqlState() tells the code.
//
// Not thread-safe.
#ifndef GAEKJU_RUNTIME_PG_H_
#define GAEKJU_RUNTIME_PG_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message_lite.h"

struct pg_conn;
struct pg_result;

namespace gaekju::runtime {

struct PgOptions {
  std::string
      conninfo;  // URL or keywords, as libpq reads them; the PG* environment fills what is missing
  std::string application_name = "gaekju";
  int connect_timeout_s = 3;
  int tcp_user_timeout_ms = 5000;
  int statement_timeout_ms = 10000;
  int lock_timeout_ms = 3000;
  int idle_in_transaction_timeout_ms = 5000;
  // The connection reads and writes rows by key only, so that no plan may ever scan a table.
  bool by_key_only = false;
};

// An array parameter in PostgreSQL's binary format, built in place.
class PgArray {
 public:
  static PgArray Text();
  static PgArray Bytes();
  static PgArray Int();  // int8
  static PgArray Bool();

  void Add(absl::string_view value);                           // Text, Bytes
  void AddMessage(const google::protobuf::MessageLite& body);  // Bytes, serialized
  void AddInt(int64_t value);                                  // Int
  void AddBool(bool value);                                    // Bool
  int size() const { return size_; }

 private:
  friend class PgParams;
  PgArray(uint32_t array_type, uint32_t element_type);
  uint32_t array_type_;
  int size_ = 0;
  std::string bytes_;
};

// Parameters of one statement, $1 first.
class PgParams {
 public:
  PgParams&& Text(absl::string_view value) &&;
  PgParams&& Bytes(absl::string_view value) &&;
  PgParams&& Int(int64_t value) &&;  // int8
  PgParams&& Bool(bool value) &&;
  PgParams&& Array(PgArray value) &&;
  PgParams& Push(PgArray value);
  PgParams& PushText(absl::string_view value);
  PgParams& PushInt(int64_t value);

 private:
  friend class PgConnection;
  std::vector<uint32_t> types_;
  std::vector<std::string> values_;
};

// The rows of one statement. Values are views into the result.
class PgResult {
 public:
  explicit PgResult(pg_result* result) : result_(result, &Clear) {}
  int rows() const;
  int64_t affected() const;  // rows inserted, updated or deleted
  bool IsNull(int row, int column) const;
  absl::string_view Bytes(int row, int column) const;  // text or bytea
  int64_t Int(int row, int column) const;              // int2, int4 or int8
  bool Bool(int row, int column) const;
  const pg_result* raw() const { return result_.get(); }

 private:
  static void Clear(pg_result* result);
  std::unique_ptr<pg_result, void (*)(pg_result*)> result_;
};

class PgConnection {
 public:
  // Errors: Unavailable, with libpq's words but without the password.
  static absl::StatusOr<std::unique_ptr<PgConnection>> Connect(const PgOptions& options);
  ~PgConnection();
  PgConnection(const PgConnection&) = delete;
  PgConnection& operator=(const PgConnection&) = delete;

  // Adds a statement to the next Run.
  void Add(const std::string& sql, PgParams params = PgParams());
  // Sends what was added and waits for all of it. One result per statement, in order.
  absl::StatusOr<std::vector<PgResult>> Run();
  // Send, then Receive: the halves of Run, so that the caller can work in between.
  absl::Status Send();
  absl::StatusOr<std::vector<PgResult>> Receive();
  // One statement by itself.
  absl::StatusOr<PgResult> Query(const std::string& sql, PgParams params = PgParams());
  // Statements without parameters, separated by semicolons (a migration), as one transaction.
  absl::Status Script(const std::string& sql);

  bool ok() const { return !broken_; }
  int backend_pid() const;

 private:
  struct Statement {
    std::string sql;
    PgParams params;
  };
  struct Expected {
    std::string sql;
    bool is_prepare;
  };
  PgConnection(pg_conn* connection, const PgOptions& options);
  absl::Status Break(absl::string_view why);
  absl::Status Write(const Statement& statement);
  // Waits until the socket can be read (or, when `writing`, written). Unavailable after the
  // statement time-out and some grace.
  absl::Status WaitForSocket(bool writing);
  absl::StatusOr<pg_result*> NextResult();

  pg_conn* connection_;
  const int64_t reply_timeout_ms_;
  bool broken_ = false;
  std::vector<Statement> added_;
  std::vector<Expected> expected_;  // answers that are still to come
  absl::flat_hash_map<std::string, std::string> prepared_;
  int64_t next_statement_ = 1;
};

// The SQLSTATE of a failed Run; empty when the server sent none.
std::string SqlState(const absl::Status& status);

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_PG_H_
