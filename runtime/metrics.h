// metrics.h: every metric of a process, named in one place, and the page that Prometheus scrapes.
//
//   Metrics metrics;
//   ContextMetrics& m = metrics.ForContext("payment");
//   m.turn_size.Observe(turn.size());
//   m.dead_letters.Add(1);
//   MetricsExposer exposer;  exposer.Start("127.0.0.1:9464", &metrics);
//
// Writing is lock-free (relaxed atomics); references stay valid as long as `Metrics`. Asking for a
// metric by labels takes a lock: keep the reference. All names begin with gaekju_, counters end in
// _total, units are base units (seconds, bytes).
#ifndef GAEKJU_RUNTIME_METRICS_H_
#define GAEKJU_RUNTIME_METRICS_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace gaekju::runtime {

class Counter {
 public:
  void Add(int64_t n = 1) { value_.fetch_add(n, std::memory_order_relaxed); }
  int64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> value_{0};
};

class Gauge {
 public:
  void Set(double value) { value_.store(value, std::memory_order_relaxed); }
  void Add(double n);
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

// Counts observations into fixed buckets. A scrape may see the sum of one observation and not yet
// its bucket; it catches up.
class Histogram {
 public:
  // `bounds`: upper bounds, ascending; one more bucket counts what is above the last.
  explicit Histogram(std::vector<double> bounds);
  void Observe(double value);

  const std::vector<double>& bounds() const { return bounds_; }
  int64_t bucket(size_t i) const { return buckets_[i].load(std::memory_order_relaxed); }
  int64_t count() const;
  double sum() const { return sum_.load(std::memory_order_relaxed); }

 private:
  const std::vector<double> bounds_;
  std::unique_ptr<std::atomic<int64_t>[]> buckets_;
  std::atomic<double> sum_{0};
};

// 1, 2, 4 … 1024.
std::vector<double> SizeBounds();
// 0.25 ms … 16 s, doubling.
std::vector<double> SecondsBounds();

using Labels = std::vector<std::pair<std::string, std::string>>;

// Metrics of one context in this process; label context="…".
struct ContextMetrics {
  // --- turns (TurnLoop)
  Histogram& turn_size;     // gaekju_turn_size: requests decided together
  Histogram& turn_seconds;  // gaekju_turn_seconds: from load to COMMIT
  Gauge& queue_depth;       // gaekju_queue_depth: items that wait for a turn
  Gauge& waiting_callers;   // gaekju_waiting_callers: parked by a wait key
  Counter& turn_retries;    // gaekju_turn_retries_total: turns run again after a conflict or a lost
                            // connection
  Counter& overload_refusals;  // gaekju_overload_refusals_total: refused because the queue was full
                               // or the deadline hopeless
  Counter& timer_items;  // gaekju_timer_items_total: rows whose time had come: the saga's retries
                         // and expiries
  Counter& database_connects;  // gaekju_database_connects_total
  Gauge& ready;                // gaekju_ready: 1 or 0
  // --- outbox and relay
  Gauge& outbox_lag_seconds;  // gaekju_outbox_lag_seconds: age of the oldest row not yet
                              // acknowledged by JetStream
  Gauge& outbox_pending;      // gaekju_outbox_pending: rows not yet acknowledged
  Counter& published;         // gaekju_published_total: messages acknowledged by JetStream
  Counter& publish_failures;  // gaekju_publish_failures_total: attempts that ended without an
                              // acknowledgement
  Counter& republished;       // gaekju_republished_total: rows published again on purpose
  Counter& epochs;  // gaekju_stream_epochs_total: how often a stream was found younger or shorter
                    // than it should be
  Counter& outbox_pruned;  // gaekju_outbox_pruned_total
  // --- consumers
  Counter& consumed;        // gaekju_consumed_total: messages received
  Counter& redelivered;     // gaekju_redelivered_total: of them, not for the first time
  Counter& dead_letters;    // gaekju_dead_letters_total
  Counter& resends_asked;   // gaekju_resends_asked_total: gaps seen in a resource's versions
  Counter& resends_served;  // gaekju_resends_served_total
  Counter& bus_connects;    // gaekju_bus_connects_total
  Gauge& bus_connected;     // gaekju_bus_connected: 1 or 0
  // --- steps of sagas (order)
  Counter& steps_done;         // gaekju_step_results_total{outcome="done"}
  Counter& steps_refused;      // … {outcome="refused"}
  Counter& steps_pending;      // … {outcome="pending"}
  Counter& steps_unreachable;  // … {outcome="unreachable"}
};

constexpr int kStatusCodeCount = 17;  // google.rpc.Code 0..16

// Calls of one method, served or made.
struct MethodMetrics {
  Histogram&
      seconds;  // gaekju_rpc_server_seconds{method} or gaekju_rpc_client_seconds{peer,method}
  std::array<Counter*, kStatusCodeCount> by_code{};  // …_total{method,code}
  void Ended(int code, double seconds_taken) {
    by_code[code < 0 || code >= kStatusCodeCount ? 2 : code]->Add();
    seconds.Observe(seconds_taken);
  }
};

// One peer that we call.
struct PeerMetrics {
  Gauge& breaker_state;      // gaekju_breaker_state{peer}: 0 closed, 1 open, 2 half open
  Counter& breaker_opened;   // gaekju_breaker_opened_total{peer}
  Counter& breaker_refused;  // gaekju_breaker_refused_total{peer}: calls that were not made
  Gauge& pending;            // gaekju_rpc_client_pending{peer}
};

class Metrics {
 public:
  Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;
  ~Metrics();

  ContextMetrics& ForContext(absl::string_view context);
  MethodMetrics& ServerMethod(absl::string_view method);  // full name
  MethodMetrics& ClientMethod(absl::string_view peer, absl::string_view method);
  PeerMetrics& Peer(absl::string_view peer);

  // Sagas by state, of the order context: gaekju_sagas{storefront,state}. Set by whoever counts
  // them.
  Gauge& Sagas(absl::string_view storefront, absl::string_view state);

  // For what is not listed above: the same name and labels give the same metric. `name` without the
  // gaekju_ prefix.
  Counter& GetCounter(absl::string_view name, absl::string_view help, Labels labels = {});
  Gauge& GetGauge(absl::string_view name, absl::string_view help, Labels labels = {});
  Histogram& GetHistogram(absl::string_view name, absl::string_view help,
                          std::vector<double> bounds, Labels labels = {});

  // The page in Prometheus' text format.
  std::string Text() const;

  struct Impl;
  Impl* impl() const { return impl_.get(); }  // for the exposer

 private:
  std::unique_ptr<Impl> impl_;
};

// Serves Metrics at http://<address>/metrics. Destroying it takes up to two seconds (its web server
// looks that often whether it should stop), so a process that ends does it last or leaves it.
class MetricsExposer {
 public:
  MetricsExposer();
  ~MetricsExposer();
  // Returns the bound port (address port 0: a free one). UNAVAILABLE when the address cannot be
  // bound. `metrics` must outlive the exposer.
  absl::StatusOr<int> Start(const std::string& address, Metrics* metrics);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_METRICS_H_
