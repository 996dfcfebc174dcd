// turn.h: the boundary between a context's pure decisions and the shell that runs them.
//
// A context is a set of tables and handlers. The shell collects the requests that wait, asks each
// handler which rows it touches, loads those rows into one Turn, runs the handlers one after the
// other, commits everything the Turn collected in one transaction, and only then answers, calls and
// publishes. The checker and the simulator run the same handlers over rows in memory.
//
//   Answer HandleRelease(const ReleaseRequest& request, Turn& turn) {
//     const Product* product = turn.Find<Product>(kProducts, "p1");   // a row announced by the
//     handler's keys turn.Edit<Product>(kProducts, "p1").set_available_count(…);     // written at
//     commit turn.Emit(kProducts, "p1", StockReleased(…), order_id);         // published after
//     commit, with the row's next version return Done(ReleaseResponse());
//   }
//
// Pure: no clock, no I/O. A Turn belongs to one thread.
#ifndef GAEKJU_FLOW_TURN_H_
#define GAEKJU_FLOW_TURN_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "flow/check.h"
#include "gaekju/flow/v1/step.pb.h"
#include "google/protobuf/message.h"
#include "google/rpc/status.pb.h"

namespace gaekju::flow {

using gaekju::flow::v1::Outcome;

// A field of a resource that is also an SQL column, so that queries can search it. Strings,
// integers, bools and enums.
struct Column {
  std::string name;  // SQL column
  std::string path;  // field, dots for nested ones: "order.storefront"
};

// A table of resources: SQL columns `key text primary key, version bigint, body bytea`, and those
// listed. Declared once as a namespace-scope constant in a context's header; compared by address.
struct Table {
  std::string name;
  const google::protobuf::Message* prototype;  // the default instance of the resource's message
  std::vector<Column> columns;
};

// One row: which table, which key.
struct RowKey {
  const Table* table;
  std::string key;
  bool operator==(const RowKey& o) const { return table == o.table && key == o.key; }
  template <class H>
  friend H AbslHashValue(H h, const RowKey& k) {
    return H::combine(std::move(h), k.table, k.key);
  }
};

// One message that leaves a turn through the outbox.
struct Envelope {
  enum class Kind { kEvent, kCommand, kAnswer };
  Kind kind = Kind::kEvent;
  std::string to;    // command: the context asked; answer: the context that asked; event: empty
  std::string type;  // event and answer: the payload's full name; command: the method's full name
  std::string order_id;
  std::string step_id;                             // command and answer
  bool undo = false;                               // command and answer: of the step's undo
  Outcome outcome = Outcome::OUTCOME_UNSPECIFIED;  // answer
  std::string reply_to;                            // command: where the answer goes
  std::string resource;                            // event: "<table>/<key>"
  int64_t version = 0;                             // event: contiguous per resource, from 1
  int64_t time_us = 0;                             // when the turn ran, microseconds since 1970
  std::string traceparent;                         // W3C; may be empty
  std::string payload;                             // serialized
};

// A unary gRPC call to another context that the shell makes after COMMIT; its result comes back as
// a StepResult.
struct Call {
  std::string context;
  std::string method;  // full name
  std::string order_id;
  std::string step_id;
  bool undo = false;
  int64_t timeout_us = 0;
  std::string traceparent;
  std::string payload;
};

// Events that a projection misses: the shell asks their source to publish them again.
struct Resend {
  std::string source;        // the context
  std::string resource;      // "<table>/<key>"
  int64_t from_version = 0;  // the first that is missing
};

// What a handler answers.
struct Answer {
  enum class Kind {
    kDone,     // `payload` is the serialized response
    kRefused,  // `status` says why
    kPending,  // a person will answer; an Envelope follows then
    kWait,     // the caller waits until a turn resolves `wait_key`
    kRetry,    // run again in the next turn with `more_keys` loaded too; nothing was changed
  };
  Kind kind = Kind::kDone;
  std::string payload;
  google::rpc::Status status;
  std::string wait_key;
  std::vector<RowKey> more_keys;
};

// Answers with a response.
Answer Done(const google::protobuf::Message& response);
// Answers with a refusal. `code` is a google.rpc.Code; `reason` is UPPER_SNAKE_CASE, `domain` the
// context. `field` may be empty.
Answer Refuse(int code, absl::string_view domain, absl::string_view reason,
              absl::string_view message, absl::string_view field = "");
// As above, as a status.
google::rpc::Status MakeStatus(int code, absl::string_view domain, absl::string_view reason,
                               absl::string_view message, absl::string_view field = "",
                               int64_t retry_after_us = 0);
// The reason in a status's ErrorInfo; empty when it has none.
std::string ReasonOf(const google::rpc::Status& status);
Answer Pending();
// Holds the caller until a later turn calls Resolve(wait_key, …), or its deadline passes.
Answer Wait(std::string wait_key);

// FNV-1a of a message's deterministic serialization: the same on every machine, for "same request,
// other content".
uint64_t Fingerprint(const google::protobuf::Message& message);
// FNV-1a of bytes.
uint64_t FingerprintBytes(absl::string_view bytes, uint64_t seed = 0xcbf29ce484222325u);

// The rows and outputs of one batch of requests. Invariants: a row is loaded at most once; a row's
// version grows by one for each event emitted on it; nothing leaves before the shell has committed.
class Turn {
 public:
  struct Row {
    std::unique_ptr<google::protobuf::Message> body;  // null: no such row
    int64_t version = 0;
    bool existed = false;  // was loaded from the store
    bool dirty = false;
  };

  // `now_us`: the turn's time, microseconds since 1970; the same for every request of the turn.
  explicit Turn(int64_t now_us) : now_us_(now_us) {}
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

  // --- for handlers
  int64_t now_us() const { return now_us_; }

  // The row's resource, or null. REQUIRES: the handler announced the key.
  const google::protobuf::Message* FindRow(const Table& table, absl::string_view key) const;
  // The row's resource for writing, made when absent. REQUIRES: the handler announced the key.
  google::protobuf::Message& EditRow(const Table& table, absl::string_view key);
  // A new row that nobody loads: append-only tables (a ledger). The key must never exist; a second
  // commit with it fails.
  google::protobuf::Message& AppendRow(const Table& table, absl::string_view key);

  template <class T>
  const T* Find(const Table& table, absl::string_view key) const {
    return static_cast<const T*>(FindRow(table, key));
  }
  template <class T>
  T& Edit(const Table& table, absl::string_view key) {
    return static_cast<T&>(EditRow(table, key));
  }
  template <class T>
  T& Append(const Table& table, absl::string_view key) {
    return static_cast<T&>(AppendRow(table, key));
  }

  // Publishes an event of the row after commit. REQUIRES: the row was edited.
  void Emit(const Table& table, absl::string_view key, const google::protobuf::Message& event,
            absl::string_view order_id);
  // Publishes a command or an answer after commit.
  void Send(Envelope envelope);
  // Calls another context after commit.
  void CallAfterCommit(Call call) {
    if (call.traceparent.empty()) call.traceparent = traceparent_;
    calls_.push_back(std::move(call));
  }
  // Answers whoever waits for `wait_key`, after commit.
  void Resolve(std::string wait_key, Answer answer) {
    resolved_.emplace_back(std::move(wait_key), std::move(answer));
  }
  // Asks for missing events again, after commit.
  void RequestResend(Resend resend) { resends_.push_back(std::move(resend)); }
  // The trace of the request being handled; stamped on what Emit, Send and CallAfterCommit collect.
  void set_traceparent(std::string traceparent) { traceparent_ = std::move(traceparent); }
  const std::string& traceparent() const { return traceparent_; }

  // --- for the shell
  // Adds a row as the store has it; `body` null when it has none. REQUIRES: not added before.
  void AddRow(const RowKey& key, int64_t version, std::unique_ptr<google::protobuf::Message> body);
  bool HasRow(const RowKey& key) const { return rows_.contains(key); }
  // Rows in the order in which they were first seen.
  const std::vector<RowKey>& order() const { return order_; }
  const Row& row(const RowKey& key) const { return rows_.at(key); }
  std::vector<Envelope>& envelopes() { return envelopes_; }
  std::vector<Call>& calls() { return calls_; }
  std::vector<Resend>& resends() { return resends_; }
  std::vector<std::pair<std::string, Answer>>& resolved() { return resolved_; }

 private:
  Row& MutableRow(const Table& table, absl::string_view key);

  const int64_t now_us_;
  absl::flat_hash_map<RowKey, Row> rows_;
  std::vector<RowKey> order_;
  std::vector<Envelope> envelopes_;
  std::vector<Call> calls_;
  std::vector<Resend> resends_;
  std::vector<std::pair<std::string, Answer>> resolved_;
  std::string traceparent_;
};

// What a handler of events learns of the envelope: order and loss matter to projections.
struct EventInfo {
  std::string source;  // the context, "payment"
  std::string id;      // unique within the source
  std::string type;
  std::string resource;  // "<table>/<key>"
  std::string order_id;
  int64_t version = 0;
  int64_t time_us = 0;
};

// Who asked, and how the answer travels. Steps keep `reply_to` so that a person's later answer
// finds its way.
struct Caller {
  std::string reply_to;      // empty: a plain call
  std::string traceparent;   // may be empty
  std::string request_uuid;  // a fresh UUIDv7 made by the shell for this request; the only
                             // randomness a decider sees
  EventInfo event;           // only for handlers of events
};

// Decides one kind of request. Stateless and thread-safe.
class Handler {
 public:
  virtual ~Handler() = default;
  // The full name of the method (gaekju.payment.v1.PaymentService.Capture), or of the event
  // (gaekju.order.v1.OrderPlaced).
  virtual const std::string& name() const = 0;
  // The default instance of the request (or event).
  virtual const google::protobuf::Message& request() const = 0;
  // Checks the request by itself, before any row is loaded. Not OK: refused with it. `field` paths
  // go in BadRequest.
  virtual google::rpc::Status Validate(const google::protobuf::Message&) const { return {}; }
  // Appends every row that Handle may find or edit.
  virtual void Keys(const google::protobuf::Message& request, const Caller& caller,
                    std::vector<RowKey>* keys) const = 0;
  // Decides. Checks first, then changes: a refusal leaves the turn as it was.
  virtual Answer Handle(const google::protobuf::Message& request, const Caller& caller,
                        Turn& turn) const = 0;
};

// A handler from functions. Request is a Protobuf message.
template <class Request>
class FunctionHandler : public Handler {
 public:
  using ValidateFn = std::function<google::rpc::Status(const Request&)>;
  using KeysFn = std::function<void(const Request&, const Caller&, std::vector<RowKey>*)>;
  using HandleFn = std::function<Answer(const Request&, const Caller&, Turn&)>;
  FunctionHandler(std::string name, ValidateFn validate, KeysFn keys, HandleFn handle)
      : name_(std::move(name)),
        validate_(std::move(validate)),
        keys_(std::move(keys)),
        handle_(std::move(handle)) {}
  const std::string& name() const override { return name_; }
  const google::protobuf::Message& request() const override { return Request::default_instance(); }
  google::rpc::Status Validate(const google::protobuf::Message& r) const override {
    return validate_ ? validate_(static_cast<const Request&>(r)) : google::rpc::Status();
  }
  void Keys(const google::protobuf::Message& r, const Caller& c,
            std::vector<RowKey>* k) const override {
    keys_(static_cast<const Request&>(r), c, k);
  }
  Answer Handle(const google::protobuf::Message& r, const Caller& c, Turn& t) const override {
    return handle_(static_cast<const Request&>(r), c, t);
  }

 private:
  std::string name_;
  ValidateFn validate_;
  KeysFn keys_;
  HandleFn handle_;
};

// The result of a step as the context that asked sees it: an answer from the bus, or the end of a
// Call.
struct StepResult {
  std::string order_id;
  std::string step_id;
  bool undo = false;
  bool unreachable =
      false;  // UNAVAILABLE, DEADLINE_EXCEEDED, an open circuit: nobody knows whether it worked
  Outcome outcome = Outcome::OUTCOME_UNSPECIFIED;
  std::string payload;  // the response; a serialized google.rpc.Status when refused or unreachable
};

// Reads one row by key: `method`'s request has `key_field`, its response has `response_field`.
struct GetQuery {
  std::string method;  // full name
  const Table* table;
  std::string key_field;
  std::string response_field;
  // Fills `out` (the response's field) from the row; false hides the row. Null: the row is copied.
  // A request with a non-empty `customer_id` that is not the row's column of that name finds
  // nothing.
  std::function<bool(const google::protobuf::Message& row, google::protobuf::Message* out)> project;
};

// Lists rows in pages. The request's fields named in `filters` are columns of the table; empty ones
// do not filter. A repeated text field is a column in the plural, or the key where there is no such
// column, and asks for the rows that have any of its values: "order_ids".
struct ListQuery {
  std::string method;
  const Table* table;
  std::vector<std::string> filters;
  std::string response_field;
  bool newest_first = true;  // by key, descending; else ascending
  std::function<bool(const google::protobuf::Message& row, google::protobuf::Message* out)> project;
  // The request's field that, when set, asks for the keys that are its value and a number, by that
  // number: "toy-" for toy-2, toy-10. Wants an index on (rtrim(key, '0123456789'),
  // length(key), key).
  std::string series = {};
};

// Streams a row at each change until `ended`.
struct WatchQuery {
  std::string method;
  const Table* table;
  std::string key_field;
  std::string response_field;
  std::function<bool(const google::protobuf::Message& row, google::protobuf::Message* out)> project;
  std::function<bool(const google::protobuf::Message& row)> ended;
};

// How those who wait (Answer::Kind::kWait) learn what another process of the same context has
// decided: the shell looks at their rows now and then.
struct WaitQuery {
  const Table* table = nullptr;  // null: nobody waits for another process
  // The row that a `wait_key` is about.
  std::function<std::string(absl::string_view wait_key)> key;
  // What who waits for `wait_key` is told of the row as it stands; kWait: nothing yet.
  std::function<Answer(absl::string_view wait_key, const google::protobuf::Message& row)> answer;
};

// Rows whose integer column `column` (microseconds since 1970, 0 = never) has passed are handed to
// `due`.
struct Timer {
  const Table* table = nullptr;
  std::string column;
  std::function<void(absl::string_view key, std::vector<RowKey>* keys)> keys;
  std::function<void(absl::string_view key, Turn& turn)> due;
};

// A bounded context as the shell, the checker and the simulator see it.
struct Context {
  std::string name;     // "payment"
  std::string service;  // "gaekju.payment.v1.PaymentService"
  std::vector<const Table*> tables;
  std::vector<std::shared_ptr<const Handler>> handlers;  // RPCs and steps of `service`
  std::vector<std::shared_ptr<const Handler>>
      events;  // events of other contexts, by the payload's full name
  // Results of steps that this context asked for. Null when it asks for none.
  std::function<void(const StepResult&, std::vector<RowKey>* keys)> result_keys;
  std::function<void(const StepResult&, Turn&)> on_result;
  std::vector<GetQuery> gets;
  std::vector<ListQuery> lists;
  std::vector<WatchQuery> watches;
  WaitQuery waits;
  Timer timer;
};

}  // namespace gaekju::flow

#endif  // GAEKJU_FLOW_TURN_H_
