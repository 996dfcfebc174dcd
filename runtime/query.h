// query.h: answers a context's declared reads (flow::GetQuery, ListQuery, WatchQuery) on
// connections of their own.
//
//   QueryServer queries(context, options);
//   if (queries.Handles(method)) queries.Execute(method, bytes, deadline_us, [](flow::Answer
//   answer) { … }); uint64_t id = queries.Watch(method, bytes, on_update, on_end);   // a stream
//   outputs.changed = [&](const flow::Table& table, const std::string& key) {
//   queries.Changed(table, key); };
//
// Lists take page_size (50 when 0, at most 1,000) and page_token; a token serves only the filters
// it was made for. Refusals: INVALID_ARGUMENT with the field (page_token, page_size, the key when
// empty), NOT_FOUND, UNAVAILABLE with RetryInfo.
//
// Thread-safe. Callbacks run on the server's threads, or inside the call.
#ifndef GAEKJU_RUNTIME_QUERY_H_
#define GAEKJU_RUNTIME_QUERY_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "flow/turn.h"
#include "runtime/pg.h"

namespace gaekju::runtime {

class QueryServer {
 public:
  struct Options {
    PgOptions pg;
    int connections = 2;
    int queue_max = 4096;
    // How often watched rows are read even when no change was announced: other replicas write too.
    absl::Duration watch_interval = absl::Seconds(1);
    int watches_max = 10000;
    std::function<int64_t()> now_us;  // null: the system's clock
  };
  // `context` outlives the server.
  QueryServer(const flow::Context& context, Options options);
  ~QueryServer();  // ends watches, answers what waits with UNAVAILABLE

  bool Handles(absl::string_view method) const;  // a Get or a List
  bool Watches(absl::string_view method) const;

  // `request`: the serialized request. `deadline_us`: microseconds since 1970, 0 for none.
  void Execute(absl::string_view method, absl::string_view request, int64_t deadline_us,
               std::function<void(flow::Answer)> done);

  // Calls `update` with the serialized response now and at each change, then `end` once: with OK
  // when the row has ended, or with the refusal. Neither is called after CancelWatch has returned.
  uint64_t Watch(absl::string_view method, absl::string_view request,
                 std::function<void(std::string response)> update,
                 std::function<void(google::rpc::Status)> end);
  void CancelWatch(uint64_t id);

  // A row was written.
  void Changed(const flow::Table& table, const std::string& key);

  // Runs anything else on one of the connections, which is null when there is none to be had.
  void Run(std::function<void(PgConnection* pg)> job);

  bool database_up() const;

 private:
  struct Core;
  std::unique_ptr<Core> core_;
};

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_QUERY_H_
