// relay.h: publishes a context's outbox to the bus, for ever, in the order of each writer's
// commits.
//
//   Relay relay(options, &bus);
//   relay.Start();
//   outputs.committed = [&](int64_t incarnation, std::vector<OutboxRow> rows) {
//   relay.Committed(incarnation, std::move(rows)); };
//
// Rows of the live writer come from memory, right after their COMMIT; rows of writers that died (or
// that memory had no room for) are read from the table. A row is published when the bus has stored
// it; what is not is published again, for as long as it takes. At every connect the streams are
// compared with what they had acknowledged: when one is younger or shorter, or has another message
// at the sequence of our newest, the relay goes back to the newest checkpoint that the stream still
// has, or to the beginning of what is retained, and raises the epoch, a part of Nats-Msg-Id
// "<context>:<incarnation>:<seq>:<epoch>", so that the duplicate window does not swallow the
// repeat. Nothing is published over a connection before that comparison; and an acknowledgement
// with a sequence that the stream had given out before proves a loss too. (docs/adr/0070)
//
// Two threads: one publishes and never touches the database, the other does everything with the
// database (cursors, take-overs, reading what memory has not, going back, pruning).
//
// Thread-safe.
#ifndef GAEKJU_RUNTIME_RELAY_H_
#define GAEKJU_RUNTIME_RELAY_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/bus.h"
#include "runtime/outbox.h"
#include "runtime/pg.h"

namespace gaekju::runtime {

class Relay {
 public:
  struct Options {
    std::string context;
    PgOptions pg;
    int in_flight_max = 1024;  // messages
    int64_t memory_bytes_max =
        64 << 20;  // of rows that wait; what comes above is read from the table later
    absl::Duration save_interval = absl::Milliseconds(200);
    absl::Duration checkpoint_interval = absl::Seconds(10);
    absl::Duration takeover_interval = absl::Seconds(1);
    absl::Duration retry_backoff_max = absl::Seconds(2);
    // A checkpoint that is not older than this when the bus last stored something is not trusted
    // after a loss, although its message is there: a server that lost its disk cache (nats-server
    // 2.9 flushes every 2 minutes) need not have lost only the end.
    absl::Duration rollback_margin = absl::Minutes(5);
    absl::Duration retention = absl::Hours(24);
    absl::Duration prune_interval = absl::Seconds(30);
    // Loud news for the log: rewinds, take-overs, outages.
    std::function<void(const std::string& message)> log;
    std::function<int64_t()> now_us;  // null: the system's clock
  };

  Relay(Options options, Bus* bus);
  ~Relay();  // stops without flushing

  void Start();
  void Stop();
  // Waits until all that was handed over is published. False after `timeout`.
  bool Flush(absl::Duration timeout);

  // Takes rows that were just committed, in the order of their commits.
  void Committed(int64_t incarnation, std::vector<OutboxRow> rows);

  // Publishes again, with the next epoch and from every replica, all retained rows that were
  // written at `from_time_us` (microseconds since 1970) or later; 0 for all. Errors: Unavailable.
  absl::Status Republish(int64_t from_time_us);
  // Publishes again the rows with events of `resource` ("<table>/<key>") from that version on, as
  // far back as they are retained.
  void Resend(std::string resource, int64_t from_version);

  struct Stats {
    int64_t published_count = 0;
    int64_t failed_count = 0;  // publishes that had to be repeated
    int64_t rewind_count = 0;
    int64_t takeover_count = 0;  // dead incarnations finished
    int64_t resend_count = 0;    // rows published again on request
    int64_t dropped_count =
        0;  // rows that the bus will never take (too large); they stay in the table
    int64_t pruned_count = 0;  // old rows deleted
    int64_t lag_rows = 0;      // handed over and not yet stored by the bus
    int64_t lag_us = 0;        // age of the oldest of them
    int64_t epoch = 0;
  };
  Stats stats() const;

 private:
  struct Core;
  std::shared_ptr<Core> core_;  // shared with callbacks of the bus
};

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_RELAY_H_
