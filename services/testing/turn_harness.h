// turn_harness.h: runs a context's handlers over rows in memory, each request in a turn of its own,
// as the shell runs them (flow/turn_run.h), whatever has to be asked again at once. Keeps what a
// turn sends. For tests of deciders.
//
//   TurnHarness payment(PaymentContext());
//   flow::Answer answer = payment.Call(capture);       // the RPC is found by its request's type
//   payment.Row<Payment>(kPayments, "o1/pay");         // null: no such row
//   payment.TakeEvents();                              // "gaekju.payment.v1.PaymentCaptured
//   o1/pay@1"
//
// Aborts when a handler breaks a rule of flow/turn.h: a refusal or retry that changes something (a
// step's own record excepted), a row that appears twice. No clock: `now_us` moves only when told.
// One thread.
#ifndef GAEKJU_SERVICES_TESTING_TURN_HARNESS_H_
#define GAEKJU_SERVICES_TESTING_TURN_HARNESS_H_

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "flow/turn.h"
#include "flow/turn_run.h"

namespace gaekju::testing {

class TurnHarness {
 public:
  struct StoredRow {
    int64_t version = 0;
    std::shared_ptr<const google::protobuf::Message> body;
  };
  // What one request of a shared turn is.
  struct Item {
    const flow::Handler* handler;
    const google::protobuf::Message* request;
    flow::Caller caller;
  };

  // REQUIRES: `context` outlives the harness.
  explicit TurnHarness(const flow::Context& context);

  // --- running
  // The RPC that takes this type of request. Aborts when there is none.
  const flow::Handler& HandlerFor(const google::protobuf::Message& request) const;
  // One RPC in a turn of its own.
  flow::Answer Call(const google::protobuf::Message& request, flow::Caller caller = {});
  // Several RPCs in one turn. Answers in the same order.
  std::vector<flow::Answer> CallTogether(
      const std::vector<const google::protobuf::Message*>& requests);
  // One event of another context.
  flow::Answer Deliver(const google::protobuf::Message& event, const flow::EventInfo& info);
  // One result of a step that this context asked for.
  void Result(const flow::StepResult& result);
  // Runs the timer of every row that is due at `now_us`. Returns how many were.
  int RunTimer();
  // Any batch; what the others are made of.
  std::vector<flow::Answer> RunTurn(const std::vector<Item>& items);

  // --- reading
  // The row, or null.
  template <class T>
  const T* Row(const flow::Table& table, absl::string_view key) const {
    return static_cast<const T*>(Find(table, key));
  }
  const google::protobuf::Message* Find(const flow::Table& table, absl::string_view key) const;
  // All rows of a table by key.
  const std::map<std::string, StoredRow>& Rows(const flow::Table& table) const;
  void Put(const flow::Table& table, const std::string& key, const google::protobuf::Message& body,
           int64_t version = 0);
  // Forgets all rows, and all that was sent.
  void Clear();
  // What the context's declared read of this type of request shows of a row; null when it finds or
  // shows none.
  std::unique_ptr<google::protobuf::Message> Get(const google::protobuf::Message& request) const;
  // All rows that the declared list of this type of request shows, in its order.
  std::vector<std::unique_ptr<google::protobuf::Message>> List(
      const google::protobuf::Message& request) const;

  // --- what turns sent since the last Take, oldest first
  std::vector<flow::Envelope> TakeEnvelopes();
  // The events among them, as "<type> <key>@<version>".
  std::vector<std::string> TakeEvents();
  std::vector<flow::Call> TakeCalls() { return std::move(calls_); }
  std::vector<flow::Resend> TakeResends() { return std::exchange(resends_, {}); }
  std::vector<std::pair<std::string, flow::Answer>> TakeResolved() {
    return std::exchange(resolved_, {});
  }

  int64_t now_us = 1700000000000000;
  // Rows written, events and answers sent by the last turn: 0 for a repeat.
  int written_count() const { return written_count_; }
  int64_t retry_count() const { return retry_count_; }

 private:
  using TurnItems = std::vector<std::unique_ptr<flow::TurnItem>>;
  static constexpr int kItemRetriesMax = 8;  // as the shell's

  void RunAlone(std::unique_ptr<flow::TurnItem> item);
  // In one turn, and those that want more rows in further ones, until all have answered.
  void Run(TurnItems& items);
  std::unique_ptr<flow::Turn> Load(const std::vector<flow::RowKey>& keys) const;
  void Store(flow::Turn& turn);

  const flow::Context& context_;
  const flow::TurnRunner runner_;
  absl::flat_hash_map<const flow::Table*, std::map<std::string, StoredRow>> tables_;
  std::vector<flow::Envelope> envelopes_;
  std::vector<flow::Call> calls_;
  std::vector<flow::Resend> resends_;
  std::vector<std::pair<std::string, flow::Answer>> resolved_;
  int written_count_ = 0;
  int64_t retry_count_ = 0;
};

// The field of a message at a path with dots, as text: how a column sees it. Aborts when there is
// no such field.
std::string ColumnText(const google::protobuf::Message& message, absl::string_view path);

}  // namespace gaekju::testing

#endif  // GAEKJU_SERVICES_TESTING_TURN_HARNESS_H_
