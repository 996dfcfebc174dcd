#include "runtime/context_server.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "flow/check.h"
#include "google/rpc/code.pb.h"
#include "runtime/bus.h"
#include "runtime/intake.h"
#include "runtime/log.h"
#include "runtime/query.h"
#include "runtime/relay.h"
#include "runtime/turn_loop.h"
#include "runtime/uuid.h"

namespace gaekju::runtime {
namespace {

// How long a caller is told to wait before it asks a context that is starting or stopping again.
constexpr int64_t kRetryAfterUs = 1'000'000;
constexpr absl::Duration kReadinessPeriod = absl::Milliseconds(50);
constexpr absl::Duration kMetricsPeriod = absl::Seconds(1);
constexpr absl::Duration kObservePeriod = absl::Seconds(5);
constexpr absl::Duration kDatabaseRetry = absl::Milliseconds(200);

// A request to send events of a resource again, as it travels over core NATS: "<from_version>
// <resource>".
std::string EncodeResend(const flow::Resend& resend) {
  return absl::StrCat(resend.from_version, " ", resend.resource);
}

std::optional<std::pair<std::string, int64_t>> DecodeResend(absl::string_view body) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(body, absl::MaxSplits(' ', 1));
  int64_t from_version = 0;
  if (!absl::SimpleAtoi(parts.first, &from_version) || parts.second.empty()) return std::nullopt;
  return std::pair(std::string(parts.second), from_version);
}

// Adds to a counter what a total has grown by since the last time.
class Growth {
 public:
  void To(int64_t total, Counter& counter) {
    if (total > last_) counter.Add(total - last_);
    last_ = total;
  }

 private:
  int64_t last_ = 0;
};

}  // namespace

PgOptions PgOptionsOf(const ServerConfig& config, absl::string_view context) {
  PgOptions pg;
  pg.conninfo = DatabaseOf(config, context);
  pg.application_name = absl::StrCat("gaekju-", context);
  pg.connect_timeout_s =
      std::max<int>(1, static_cast<int>(absl::ToInt64Seconds(config.database_connect_timeout)));
  pg.statement_timeout_ms = static_cast<int>(absl::ToInt64Milliseconds(config.statement_timeout));
  pg.lock_timeout_ms = static_cast<int>(absl::ToInt64Milliseconds(config.lock_timeout));
  return pg;
}

struct ContextServer::Core {
  Core(Spec s, Shared sh)
      : spec(std::move(s)), shared(sh), metrics(sh.metrics->ForContext(spec.name)) {}

  void HandleCall(const google::protobuf::MethodDescriptor& method, CallContext call,
                  std::unique_ptr<google::protobuf::Message> request, Responder responder);
  void HandleWatch(const std::string& method, const google::protobuf::Message& request,
                   Responder responder);
  void HandleFurther(const Further& further, const google::protobuf::MethodDescriptor& method,
                     std::unique_ptr<google::protobuf::Message> request, Responder responder);
  void RefuseUnavailable(Responder& responder, absl::string_view reason, absl::string_view message,
                         absl::string_view service = "") const;
  absl::Status RetryWhileUnavailable(const std::function<bool()>& stop,
                                     const std::function<absl::Status()>& attempt);
  void Build();
  absl::Status Consume();
  void Housekeep();
  void UpdateReadiness();
  void UpdateMetrics();
  bool CanDecide() const { return loop->database_up() && queries->database_up(); }
  void EndWatches();

  const Spec spec;
  const Shared shared;
  ContextMetrics& metrics;

  // Built by Start, in this order; destroyed in the opposite one.
  std::shared_ptr<const flow::Context> context;
  std::unique_ptr<NatsBus> bus;
  std::unique_ptr<Relay> relay;
  std::unique_ptr<QueryServer> queries;
  std::unique_ptr<TurnLoop> loop;
  std::unique_ptr<Intake> intake;
  std::atomic<bool> started{false};  // all of the above may be used
  std::atomic<bool> draining{false};
  std::atomic<bool> is_ready{false};

  // Streams that are open, so that a drain can end them.
  std::mutex watch_mutex;
  int64_t next_watch = 1;
  std::map<int64_t, std::shared_ptr<Responder>> watches;

  std::mutex mutex;
  std::condition_variable wake;
  bool stop_housekeeping = false;
  std::thread housekeeper;

  Growth published, publish_failures, republished, epochs, pruned, consumed, redelivered,
      bus_connects, dead_letters;
  std::atomic<bool> observing{false};
};

// ---------------------------------------------------------------- calls
void ContextServer::Core::RefuseUnavailable(Responder& responder, absl::string_view reason,
                                            absl::string_view message,
                                            absl::string_view service) const {
  responder.Refuse(flow::MakeStatus(google::rpc::UNAVAILABLE,
                                    service.empty() ? spec.service : service, reason, message,
                                    /*field=*/"", kRetryAfterUs));
}

void ContextServer::Core::HandleCall(const google::protobuf::MethodDescriptor& method,
                                     CallContext call,
                                     std::unique_ptr<google::protobuf::Message> request,
                                     Responder responder) {
  if (!started)
    return RefuseUnavailable(responder, "STARTING", "the service is starting; try again");
  if (draining)
    return RefuseUnavailable(responder, "DRAINING", "the service is stopping; try again");
  const std::string& name = method.full_name();
  if (method.server_streaming()) return HandleWatch(name, *request, std::move(responder));

  // Shared, because std::function has to be copyable.
  auto shared_responder = std::make_shared<Responder>(std::move(responder));
  auto answer = [shared_responder](flow::Answer a) { shared_responder->Send(std::move(a)); };
  if (queries->Handles(name)) {
    queries->Execute(name, request->SerializeAsString(), call.deadline_us, std::move(answer));
    return;
  }
  const flow::Handler* handler = loop->FindHandler(name);
  if (handler == nullptr) {
    shared_responder->Refuse(
        flow::MakeStatus(google::rpc::UNIMPLEMENTED, spec.service, "METHOD_UNIMPLEMENTED",
                         absl::StrCat(name, " is in the contract, but not in this server")));
    return;
  }
  Request item;
  item.handler = handler;
  item.message = std::move(request);
  item.caller.traceparent = std::move(call.traceparent);
  item.caller.request_uuid = NewUuid();
  item.deadline_us = call.deadline_us;
  item.done = std::move(answer);
  const uint64_t ticket = loop->Submit(std::move(item));
  if (ticket != 0) shared_responder->OnCancel([this, ticket] { loop->Cancel(ticket); });
}

void ContextServer::Core::HandleWatch(const std::string& method,
                                      const google::protobuf::Message& request,
                                      Responder responder) {
  auto stream = std::make_shared<Responder>(std::move(responder));
  if (!queries->Watches(method)) {
    stream->Refuse(
        flow::MakeStatus(google::rpc::UNIMPLEMENTED, spec.service, "METHOD_UNIMPLEMENTED",
                         absl::StrCat(method, " is in the contract, but not in this server")));
    return;
  }
  int64_t watch = 0;
  {
    std::lock_guard lock(watch_mutex);
    watch = next_watch++;
    watches[watch] = stream;
  }
  const uint64_t id = queries->Watch(
      method, request.SerializeAsString(),
      [stream](std::string response) { stream->Write(std::move(response)); },
      [this, stream, watch](google::rpc::Status status) {
        stream->Refuse(status);  // code 0 ends the stream with OK
        std::lock_guard lock(watch_mutex);
        watches.erase(watch);
      });
  stream->OnCancel([this, watch, id] {
    queries->CancelWatch(id);
    std::lock_guard lock(watch_mutex);
    watches.erase(watch);
  });
}

void ContextServer::Core::HandleFurther(const Further& further,
                                        const google::protobuf::MethodDescriptor& method,
                                        std::unique_ptr<google::protobuf::Message> request,
                                        Responder responder) {
  if (!started) {
    return RefuseUnavailable(responder, "STARTING", "the service is starting; try again",
                             further.service);
  }
  if (draining) {
    return RefuseUnavailable(responder, "DRAINING", "the service is stopping; try again",
                             further.service);
  }
  // Shared, because std::function has to be copyable.
  queries->Run(
      [&further, &method, request = std::shared_ptr<google::protobuf::Message>(std::move(request)),
       shared_responder = std::make_shared<Responder>(std::move(responder))](PgConnection* pg) {
        if (shared_responder->cancelled()) return;
        shared_responder->Send(further.answer(method, *request, pg));
      });
}

void ContextServer::Core::EndWatches() {
  std::map<int64_t, std::shared_ptr<Responder>> open;
  {
    std::lock_guard lock(watch_mutex);
    open.swap(watches);
  }
  for (auto& [id, stream] : open)
    RefuseUnavailable(*stream, "DRAINING", "the service is stopping; watch again");
}

// ---------------------------------------------------------------- start
absl::Status ContextServer::Core::RetryWhileUnavailable(
    const std::function<bool()>& stop, const std::function<absl::Status()>& attempt) {
  LogLimit limit(2'000'000);
  for (;;) {
    absl::Status status = attempt();
    if (!absl::IsUnavailable(status) && !absl::IsAborted(status)) return status;
    if (limit.Allow() >= 0) {
      LogWarning("waiting for the database: is it running, and does --database name it?",
                 {{"context", spec.name}, {"error", status.message()}});
    }
    if (stop()) return absl::CancelledError("asked to stop while waiting for the database");
    std::this_thread::sleep_for(absl::ToChronoMilliseconds(kDatabaseRetry));
  }
}

void ContextServer::Core::Build() {
  const ServerConfig& config = *shared.config;
  const std::string& name = spec.name;
  const PgOptions pg = PgOptionsOf(config, name);

  NatsBusOptions bus_options;
  bus_options.urls = absl::StrSplit(config.nats, ',', absl::SkipWhitespace());
  bus_options.name = name;
  bus = std::make_unique<NatsBus>(std::move(bus_options));

  Relay::Options relay_options;
  relay_options.context = name;
  relay_options.pg = pg;
  relay_options.in_flight_max = config.publish_pending_max;
  relay_options.retention = config.outbox_retention;
  relay_options.log = [name](const std::string& message) {
    LogWarning(message, {{"context", name}});
  };
  relay = std::make_unique<Relay>(std::move(relay_options), bus.get());

  QueryServer::Options query_options;
  query_options.pg = pg;
  query_options.connections = config.query_connections;
  queries = std::make_unique<QueryServer>(*context, std::move(query_options));

  TurnOutputs outputs;
  outputs.committed = [this](int64_t incarnation, std::vector<OutboxRow> rows) {
    relay->Committed(incarnation, std::move(rows));
  };
  outputs.observe = spec.observe_committed;
  outputs.call = [this](flow::Call call, std::function<void(flow::StepResult)> done) {
    shared.client->Call(std::move(call), std::move(done));
  };
  outputs.resend = [this](flow::Resend resend) {
    metrics.resends_asked.Add();
    bus->PublishCore(ResendSubject(resend.source), EncodeResend(resend))
        .IgnoreError();  // asked again by the row's due time
  };
  outputs.changed = [this](const flow::Table& table, const std::string& key) {
    queries->Changed(table, key);
  };
  outputs.turn = [this](const TurnStats& turn) {
    metrics.turn_size.Observe(turn.item_count);
    metrics.turn_seconds.Observe(
        static_cast<double>(turn.load_us + turn.handle_us + turn.commit_us) / 1e6);
    if (turn.rerun_count > 0) metrics.turn_retries.Add(turn.rerun_count);
    if (turn.timer_count > 0) metrics.timer_items.Add(turn.timer_count);
  };
  outputs.shed = [this](const std::string&) { metrics.overload_refusals.Add(); };
  outputs.failed = [name](const std::string& what, const std::string& reason) {
    LogError("a request failed by itself",
             {{"context", name}, {"method", what}, {"reason", reason}});
  };
  outputs.database = [this, name](bool up, const std::string& why) {
    if (up) {
      metrics.database_connects.Add();
      LogInfo("database connected", {{"context", name}});
    } else {
      LogWarning("database lost; requests wait", {{"context", name}, {"error", why}});
    }
  };
  TurnLoop::Options loop_options;
  loop_options.pg = pg;
  loop_options.turn_items_max = config.turn_size_max;
  loop_options.queue_requests_max = config.queue_size_max;
  loop_options.timer_interval = config.timer_period;
  loop = std::make_unique<TurnLoop>(*context, std::move(loop_options), std::move(outputs));

  intake = std::make_unique<Intake>(
      Intake::Options{
          .context = name,
          .make_uuid = [] { return NewUuid(); },
          .dead =
              [name](const std::string& what, const std::string& reason) {
                LogError("dead letter", {{"context", name}, {"subject", what}, {"reason", reason}});
              }},
      loop.get(), bus.get());
}

absl::Status ContextServer::Core::Consume() {
  const std::string& name = spec.name;
  auto consume = [&](const char* stream, std::string subject) {
    ConsumerSpec consumer;
    consumer.stream = stream;
    consumer.durable = name;
    consumer.filter_subject = std::move(subject);
    consumer.max_ack_pending = shared.config->consume_pending_max;
    consumer.ack_wait = shared.config->ack_wait;
    return bus->Consume(std::move(consumer),
                        [this](BusDelivery delivery) { intake->Take(std::move(delivery)); });
  };
  if (absl::Status status = consume(kCommandsStream, CommandSubject(name)); !status.ok())
    return status;
  if (loop->takes_results()) {
    if (absl::Status status = consume(kAnswersStream, AnswerSubject(name)); !status.ok())
      return status;
  }
  if (!context->events.empty()) {
    if (absl::Status status = consume(kEventsStream, ""); !status.ok()) return status;
  }
  return bus->Subscribe(ResendSubject(name), name, [this](CoreMessage message) {
    if (auto resend = DecodeResend(message.body)) {
      metrics.resends_served.Add();
      relay->Resend(resend->first, resend->second);
    }
  });
}

absl::Status ContextServer::Start(const std::function<bool()>& stop) {
  Core& c = *core_;
  const PgOptions pg = PgOptionsOf(*c.shared.config, c.spec.name);
  absl::Status migrated = c.RetryWhileUnavailable(stop, [&] {
    return Migrate(pg, {{"runtime", RuntimeMigrations()}, {c.spec.name, c.spec.migrations}});
  });
  if (!migrated.ok()) return migrated;
  absl::Status made = c.RetryWhileUnavailable(stop, [&]() -> absl::Status {
    absl::StatusOr<std::shared_ptr<const flow::Context>> context = c.spec.make(pg);
    if (!context.ok()) return context.status();
    c.context = *std::move(context);
    return absl::OkStatus();
  });
  if (!made.ok()) return made;
  GK_CHECK(c.context->service == c.spec.service)
      << c.context->service << " is not " << c.spec.service;
  c.Build();
  c.relay->Start();
  c.loop->Start();
  if (absl::Status status = c.Consume(); !status.ok()) return status;
  c.started = true;
  c.housekeeper = std::thread([&c] { c.Housekeep(); });
  return absl::OkStatus();
}

// ---------------------------------------------------------------- while it runs
void ContextServer::Core::UpdateReadiness() {
  const bool now_ready = !draining && CanDecide();
  if (is_ready.exchange(now_ready) == now_ready) return;
  metrics.ready.Set(now_ready ? 1 : 0);
  shared.rpc->SetReady(spec.service, now_ready);
  for (const Further& further : spec.further) shared.rpc->SetReady(further.service, now_ready);
  LogInfo(now_ready ? "ready" : "not ready", {{"context", spec.name}});
}

void ContextServer::Core::UpdateMetrics() {
  metrics.queue_depth.Set(loop->queue_depth());
  metrics.waiting_callers.Set(loop->waiter_count());
  const Relay::Stats r = relay->stats();
  metrics.outbox_pending.Set(static_cast<double>(r.lag_rows));
  metrics.outbox_lag_seconds.Set(static_cast<double>(r.lag_us) / 1e6);
  published.To(r.published_count, metrics.published);
  publish_failures.To(r.failed_count, metrics.publish_failures);
  republished.To(r.resend_count, metrics.republished);
  epochs.To(r.rewind_count, metrics.epochs);
  pruned.To(r.pruned_count, metrics.outbox_pruned);
  const BusStats b = bus->stats();
  metrics.bus_connected.Set(bus->connected() ? 1 : 0);
  consumed.To(static_cast<int64_t>(b.delivered), metrics.consumed);
  redelivered.To(static_cast<int64_t>(b.redelivered), metrics.redelivered);
  bus_connects.To(static_cast<int64_t>(b.connects), metrics.bus_connects);
  dead_letters.To(intake->dead_count(), metrics.dead_letters);
}

void ContextServer::Core::Housekeep() {
  absl::Time next_metrics = absl::Now();
  absl::Time next_observe = absl::Now();
  std::unique_lock lock(mutex);
  while (!wake.wait_for(lock, absl::ToChronoMilliseconds(kReadinessPeriod),
                        [this] { return stop_housekeeping; })) {
    lock.unlock();
    UpdateReadiness();
    const absl::Time now = absl::Now();
    if (now >= next_metrics) {
      next_metrics = now + kMetricsPeriod;
      UpdateMetrics();
    }
    if (spec.observe && now >= next_observe && is_ready && !observing.exchange(true)) {
      next_observe = now + kObservePeriod;
      queries->Run([this](PgConnection* pg) {
        if (pg != nullptr) spec.observe(*pg, *shared.metrics);
        observing = false;
      });
    }
    lock.lock();
  }
}

bool ContextServer::Drain(absl::Duration timeout) {
  Core& c = *core_;
  if (!c.started) return true;
  const absl::Time deadline = absl::Now() + timeout;
  c.draining = true;
  c.UpdateReadiness();
  c.EndWatches();
  c.bus->StopConsuming();
  bool clean = c.loop->Drain(timeout);
  clean &= c.relay->Flush(std::max(absl::Milliseconds(100), deadline - absl::Now()));
  {
    std::lock_guard lock(c.mutex);
    c.stop_housekeeping = true;
  }
  c.wake.notify_all();
  if (c.housekeeper.joinable()) c.housekeeper.join();
  c.UpdateMetrics();
  c.bus->Close();
  c.relay->Stop();
  LogInfo(
      clean ? "drained" : "stopped with work left; it is in the outbox and in the callers' rows",
      {{"context", c.spec.name}});
  return clean;
}

ContextServer::ContextServer(Spec spec, Shared shared)
    : core_(std::make_unique<Core>(std::move(spec), shared)) {
  GK_CHECK(shared.config != nullptr && shared.rpc != nullptr && shared.client != nullptr &&
           shared.metrics != nullptr);
}

ContextServer::~ContextServer() {
  if (core_->started && !core_->draining) Drain(absl::ZeroDuration());
}

void ContextServer::Register() {
  const auto find = [](const std::string& name) -> const google::protobuf::ServiceDescriptor& {
    const auto* found = google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(name);
    GK_CHECK(found != nullptr) << name << " is not linked";
    return *found;
  };
  core_->shared.rpc->AddService(
      find(core_->spec.service),
      [core = core_.get()](const google::protobuf::MethodDescriptor& method, CallContext call,
                           std::unique_ptr<google::protobuf::Message> request,
                           Responder responder) {
        core->HandleCall(method, std::move(call), std::move(request), std::move(responder));
      });
  for (const Further& further : core_->spec.further) {
    core_->shared.rpc->AddService(
        find(further.service),
        [core = core_.get(), &further](const google::protobuf::MethodDescriptor& method,
                                       CallContext, std::unique_ptr<google::protobuf::Message> r,
                                       Responder responder) {
          core->HandleFurther(further, method, std::move(r), std::move(responder));
        });
  }
}

bool ContextServer::ready() const { return core_->is_ready; }

const std::string& ContextServer::name() const { return core_->spec.name; }

}  // namespace gaekju::runtime
