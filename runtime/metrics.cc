#include "runtime/metrics.h"

#include <algorithm>
#include <limits>
#include <map>
#include <sstream>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "flow/check.h"
#include "prometheus/collectable.h"
#include "prometheus/exposer.h"
#include "prometheus/metric_family.h"
#include "prometheus/text_serializer.h"

namespace gaekju::runtime {
namespace {

// google.rpc.Code by number, as labels.
constexpr const char* kCodeNames[kStatusCodeCount] = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

void AddTo(std::atomic<double>& target, double n) {
  double seen = target.load(std::memory_order_relaxed);
  while (!target.compare_exchange_weak(seen, seen + n, std::memory_order_relaxed)) {
  }
}

}  // namespace

void Gauge::Add(double n) { AddTo(value_, n); }

Histogram::Histogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)), buckets_(new std::atomic<int64_t>[bounds_.size() + 1]) {
  GK_CHECK(std::is_sorted(bounds_.begin(), bounds_.end()) && !bounds_.empty())
      << "bounds of a histogram";
  for (size_t i = 0; i <= bounds_.size(); ++i) buckets_[i].store(0, std::memory_order_relaxed);
}

void Histogram::Observe(double value) {
  const size_t i = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  buckets_[i].fetch_add(1, std::memory_order_relaxed);
  AddTo(sum_, value);
}

int64_t Histogram::count() const {
  int64_t count = 0;
  for (size_t i = 0; i <= bounds_.size(); ++i) count += bucket(i);
  return count;
}

std::vector<double> SizeBounds() {
  std::vector<double> bounds;
  for (int i = 1; i <= 1024; i *= 2) bounds.push_back(i);
  return bounds;
}

std::vector<double> SecondsBounds() {
  std::vector<double> bounds;
  for (double s = 0.00025; s < 17; s *= 2) bounds.push_back(s);
  return bounds;
}

// All metrics, by name. Map nodes never move, so references stay valid.
struct Metrics::Impl : public prometheus::Collectable {
  struct Family {
    prometheus::MetricType type;
    std::string help;
    std::map<Labels, Counter> counters;
    std::map<Labels, Gauge> gauges;
    std::map<Labels, Histogram> histograms;
  };

  Family& FamilyOf(absl::string_view name, absl::string_view help, prometheus::MetricType type)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    auto [it, made] = families.try_emplace(absl::StrCat("gaekju_", name),
                                           Family{type, std::string(help), {}, {}, {}});
    GK_CHECK(it->second.type == type)
        << "metric " << std::string(name) << " is of another type already";
    return it->second;
  }
  Counter& CounterOf(absl::string_view name, absl::string_view help, const Labels& labels)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    return FamilyOf(name, help, prometheus::MetricType::Counter).counters[labels];
  }
  Gauge& GaugeOf(absl::string_view name, absl::string_view help, const Labels& labels)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    return FamilyOf(name, help, prometheus::MetricType::Gauge).gauges[labels];
  }
  Histogram& HistogramOf(absl::string_view name, absl::string_view help, std::vector<double> bounds,
                         const Labels& labels) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    return FamilyOf(name, help, prometheus::MetricType::Histogram)
        .histograms.try_emplace(labels, std::move(bounds))
        .first->second;
  }
  MethodMetrics& MethodOf(absl::string_view side, absl::string_view doing, const Labels& labels)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    auto [it, made] = methods.try_emplace({std::string(side), labels});
    if (made) {
      it->second.reset(new MethodMetrics{
          HistogramOf(absl::StrCat("rpc_", side, "_seconds"),
                      absl::StrCat("Time from the request to its end of RPCs ", doing, "."),
                      SecondsBounds(), labels)});
      for (int code = 0; code < kStatusCodeCount; ++code) {
        Labels with_code = labels;
        with_code.emplace_back("code", kCodeNames[code]);
        it->second->by_code[code] =
            &CounterOf(absl::StrCat("rpc_", side, "_total"),
                       absl::StrCat("RPCs ", doing, " by status code."), with_code);
      }
    }
    return *it->second;
  }

  std::vector<prometheus::MetricFamily> Collect() const override {
    absl::MutexLock lock(&mutex);
    std::vector<prometheus::MetricFamily> out;
    const auto metric_of = [](const Labels& labels) {
      prometheus::ClientMetric metric;
      for (const auto& [name, value] : labels) metric.label.push_back({name, value});
      return metric;
    };
    for (const auto& [name, family] : families) {
      prometheus::MetricFamily& made = out.emplace_back();
      made.name = name;
      made.help = family.help;
      made.type = family.type;
      for (const auto& [labels, counter] : family.counters) {
        // A code that a method has never answered would only fill the page.
        if (counter.value() == 0 && !labels.empty() && labels.back().first == "code") continue;
        made.metric.push_back(metric_of(labels));
        made.metric.back().counter.value = static_cast<double>(counter.value());
      }
      for (const auto& [labels, gauge] : family.gauges) {
        made.metric.push_back(metric_of(labels));
        made.metric.back().gauge.value = gauge.value();
      }
      for (const auto& [labels, histogram] : family.histograms) {
        made.metric.push_back(metric_of(labels));
        auto& h = made.metric.back().histogram;
        h.sample_sum = histogram.sum();
        for (size_t i = 0; i <= histogram.bounds().size(); ++i) {
          h.sample_count += static_cast<uint64_t>(histogram.bucket(i));
          h.bucket.push_back({h.sample_count, i < histogram.bounds().size()
                                                  ? histogram.bounds()[i]
                                                  : std::numeric_limits<double>::infinity()});
        }
      }
      if (made.metric.empty()) out.pop_back();
    }
    return out;
  }

  mutable absl::Mutex mutex;
  std::map<std::string, Family> families ABSL_GUARDED_BY(mutex);
  std::map<std::string, std::unique_ptr<ContextMetrics>, std::less<>> contexts
      ABSL_GUARDED_BY(mutex);
  std::map<std::pair<std::string, Labels>, std::unique_ptr<MethodMetrics>> methods
      ABSL_GUARDED_BY(mutex);
  std::map<std::string, std::unique_ptr<PeerMetrics>, std::less<>> peers ABSL_GUARDED_BY(mutex);
};

Metrics::Metrics() : impl_(std::make_unique<Impl>()) {}
Metrics::~Metrics() = default;

ContextMetrics& Metrics::ForContext(absl::string_view context) {
  absl::MutexLock lock(&impl_->mutex);
  if (auto it = impl_->contexts.find(context); it != impl_->contexts.end()) return *it->second;
  const Labels labels = {{"context", std::string(context)}};
  const auto counter = [&](absl::string_view name, absl::string_view help) -> Counter& {
    impl_->mutex.AssertHeld();
    return impl_->CounterOf(name, help, labels);
  };
  const auto gauge = [&](absl::string_view name, absl::string_view help) -> Gauge& {
    impl_->mutex.AssertHeld();
    return impl_->GaugeOf(name, help, labels);
  };
  const auto step = [&](const char* outcome) -> Counter& {
    impl_->mutex.AssertHeld();
    Labels with_outcome = labels;
    with_outcome.emplace_back("outcome", outcome);
    return impl_->CounterOf("step_results_total", "Results of saga steps and undos.", with_outcome);
  };
  auto* made = new ContextMetrics{
      impl_->HistogramOf("turn_size", "Requests decided and committed together.", SizeBounds(),
                         labels),
      impl_->HistogramOf("turn_seconds", "Time of a turn, from loading its rows to COMMIT.",
                         SecondsBounds(), labels),
      gauge("queue_depth", "Requests that wait for a turn."),
      gauge("waiting_callers", "Callers parked until a later turn resolves them."),
      counter("turn_retries_total", "Turns run again after a conflict or a lost connection."),
      counter("overload_refusals_total",
              "Requests refused because the queue was full or their deadline hopeless."),
      counter("timer_items_total", "Rows whose time had come: retries and expiries."),
      counter("database_connects_total", "Connections made to PostgreSQL."),
      gauge("ready", "1 when the context takes requests."),
      gauge("outbox_lag_seconds",
            "Age of the oldest outbox row that JetStream has not acknowledged."),
      gauge("outbox_pending", "Outbox rows that JetStream has not acknowledged."),
      counter("published_total", "Messages that JetStream acknowledged."),
      counter("publish_failures_total", "Publish attempts that ended without an acknowledgement."),
      counter("republished_total", "Outbox rows published again on purpose."),
      counter("stream_epochs_total",
              "How often a stream was found younger or shorter than what had been published."),
      counter("outbox_pruned_total", "Outbox rows deleted after their retention."),
      counter("consumed_total", "Messages received from JetStream."),
      counter("redelivered_total", "Messages received from JetStream not for the first time."),
      counter("dead_letters_total",
              "Messages, and events of messages, moved to the dead-letter stream."),
      counter("resends_asked_total", "Gaps seen in a resource's versions and asked for."),
      counter("resends_served_total", "Requests for missing events answered."),
      counter("bus_connects_total", "Connections made to NATS."),
      gauge("bus_connected", "1 while connected to NATS."),
      step("done"),
      step("refused"),
      step("pending"),
      step("unreachable")};
  impl_->contexts.emplace(std::string(context), made);
  return *made;
}

MethodMetrics& Metrics::ServerMethod(absl::string_view method) {
  absl::MutexLock lock(&impl_->mutex);
  return impl_->MethodOf("server", "served", {{"method", std::string(method)}});
}

MethodMetrics& Metrics::ClientMethod(absl::string_view peer, absl::string_view method) {
  absl::MutexLock lock(&impl_->mutex);
  return impl_->MethodOf("client", "made",
                         {{"peer", std::string(peer)}, {"method", std::string(method)}});
}

PeerMetrics& Metrics::Peer(absl::string_view peer) {
  absl::MutexLock lock(&impl_->mutex);
  auto it = impl_->peers.find(peer);
  if (it == impl_->peers.end()) {
    const Labels labels = {{"peer", std::string(peer)}};
    it = impl_->peers
             .emplace(
                 std::string(peer),
                 new PeerMetrics{
                     impl_->GaugeOf("breaker_state",
                                    "Circuit breaker: 0 closed, 1 open, 2 half open.", labels),
                     impl_->CounterOf("breaker_opened_total", "How often the circuit opened.",
                                      labels),
                     impl_->CounterOf(
                         "breaker_refused_total",
                         "Calls not made: the circuit was open, or too many in flight.", labels),
                     impl_->GaugeOf("rpc_client_pending", "Calls in flight.", labels)})
             .first;
  }
  return *it->second;
}

Gauge& Metrics::Sagas(absl::string_view storefront, absl::string_view state) {
  return GetGauge("sagas", "Sagas by state.",
                  {{"storefront", std::string(storefront)}, {"state", std::string(state)}});
}

Counter& Metrics::GetCounter(absl::string_view name, absl::string_view help, Labels labels) {
  absl::MutexLock lock(&impl_->mutex);
  return impl_->CounterOf(name, help, labels);
}

Gauge& Metrics::GetGauge(absl::string_view name, absl::string_view help, Labels labels) {
  absl::MutexLock lock(&impl_->mutex);
  return impl_->GaugeOf(name, help, labels);
}

Histogram& Metrics::GetHistogram(absl::string_view name, absl::string_view help,
                                 std::vector<double> bounds, Labels labels) {
  absl::MutexLock lock(&impl_->mutex);
  return impl_->HistogramOf(name, help, std::move(bounds), labels);
}

std::string Metrics::Text() const {
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, impl_->Collect());
  return out.str();
}

struct MetricsExposer::Impl {
  // The exposer asks for shared ownership; Metrics outlives it by contract.
  std::shared_ptr<prometheus::Collectable> collectable;
  std::unique_ptr<prometheus::Exposer> exposer;
};

MetricsExposer::MetricsExposer() = default;
MetricsExposer::~MetricsExposer() = default;

absl::StatusOr<int> MetricsExposer::Start(const std::string& address, Metrics* metrics) {
  auto impl = std::make_unique<Impl>();
  impl->collectable =
      std::shared_ptr<prometheus::Collectable>(metrics->impl(), [](prometheus::Collectable*) {});
  try {
    impl->exposer = std::make_unique<prometheus::Exposer>(address, /*num_threads=*/1);
  } catch (const std::exception& e) {  // CivetException: the only way it tells
    return absl::UnavailableError(absl::StrCat("cannot serve metrics on ", address, ": ", e.what(),
                                               " (is the port in use? see --metrics)"));
  }
  impl->exposer->RegisterCollectable(impl->collectable);
  const std::vector<int> ports = impl->exposer->GetListeningPorts();
  if (ports.empty())
    return absl::UnavailableError(absl::StrCat("cannot serve metrics on ", address));
  impl_ = std::move(impl);
  return ports.front();
}

}  // namespace gaekju::runtime
