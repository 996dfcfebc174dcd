#include "runtime/rpc_server.h"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "flow/check.h"
#include "gaekju/auth/v1/authorization.pb.h"
#include "google/rpc/code.pb.h"
#include "grpcpp/alarm.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/impl/service_type.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/version_info.h"
#include "runtime/byte_buffer.h"
#include "runtime/log.h"
#include "runtime/trace.h"
// Where the handlers of the callback API are declared has moved over the years.
#if __has_include("grpcpp/impl/server_callback_handlers.h")
#include "grpcpp/impl/server_callback_handlers.h"
#else
#include "grpcpp/impl/codegen/server_callback_handlers.h"
#endif
#if GRPC_CPP_VERSION_MAJOR == 1 && GRPC_CPP_VERSION_MINOR < 65
#define GAEKJU_GPR_LOG 1  // later ones log through Abseil
#include "grpc/support/log.h"
#endif

namespace gaekju::runtime {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::Message;
using google::protobuf::MessageFactory;
using google::protobuf::MethodDescriptor;

constexpr char kDomain[] = "gaekju.rpc";
// Requests of up to this many times the largest limit of a method still get our own error with
// details; larger ones gRPC's, without their body ever being kept.
constexpr int kHardLimitFactor = 4;
// Trailing metadata share the metadata limit (8 KiB) of the caller.
constexpr size_t kDetailBytesMax = 6144;

int64_t SteadyNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

int64_t UnixUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

grpc::Status ToGrpc(const google::rpc::Status& status) {
  if (status.code() == 0) return grpc::Status::OK;
  std::string details = status.SerializeAsString();
  if (details.size() > kDetailBytesMax) details.clear();
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      status.message().substr(0, 1024), details);
}

grpc::Status Refusal(int code, absl::string_view reason, absl::string_view message,
                     int64_t retry_after_us = 0) {
  return ToGrpc(flow::MakeStatus(code, kDomain, reason, message, "", retry_after_us));
}

// A method as it is served.
struct ServedMethod {
  const MethodDescriptor* descriptor;
  std::string path;  // "/gaekju.payment.v1.PaymentService/Capture"; gRPC keeps a pointer into it
  const Message* request;  // the prototype of the generated type
  RpcHandler handler;
  MethodMetrics* metrics;
  size_t bytes_max;
  int64_t deadline_us_default;  // 0: none
};

}  // namespace

// What a call needs of its server. Outlives every call that gRPC still holds, not those that only a
// Responder holds.
struct ServerState {
  std::atomic<int> inflight{0};
  int stream_queue_max = 0;
  absl::Mutex mutex;
  // Streams in flight, to be ended at shutdown. Unary calls are not listed: they end by themselves.
  absl::flat_hash_set<internal::ServerCall*> streams ABSL_GUARDED_BY(mutex);
  bool draining ABSL_GUARDED_BY(mutex) = false;
};

namespace internal {

// One call. Held by gRPC (until OnDone), by its Responder, and by its alarm.
//
// Invariants:
//   1. Exactly one of answer, cancellation and alarm ends the call: who wins Claim().
//   2. gRPC's context is touched only before the claim's Finish: later it may be gone.
class ServerCall {
 public:
  ServerCall(ServerState* server, const ServedMethod* method) : server_(server), method_(method) {
    server_->inflight.fetch_add(1, std::memory_order_relaxed);
  }
  virtual ~ServerCall() {
    std::function<void()>* waiting = on_cancel_.load(std::memory_order_acquire);
    if (waiting != nullptr && waiting != Closed()) delete waiting;
  }

  void Ref() { refs_.fetch_add(1, std::memory_order_relaxed); }
  void Unref() {
    if (refs_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

  // Ends the call if nobody has. `pending` adds the trailing metadata.
  void End(grpc::Status status, std::string payload, bool pending, RpcHeaders headers = {}) {
    if (!Claim()) return;
    CloseOnCancel(/*run=*/false);
    if (alarm_) alarm_->Cancel();
    Finish(std::move(status), std::move(payload), pending, headers);
  }
  virtual bool Write(std::string payload) = 0;

  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }
  bool ended() const { return claimed_.load(std::memory_order_acquire); }

  void SetOnCancel(std::function<void()> on_cancel) {
    auto* added = new std::function<void()>(std::move(on_cancel));
    std::function<void()>* expected = nullptr;
    if (on_cancel_.compare_exchange_strong(expected, added, std::memory_order_acq_rel)) return;
    GK_CHECK(expected == Closed()) << "OnCancel twice on one call";
    if (cancelled()) (*added)();
    delete added;
  }

  // Ends the call by itself at `deadline`, for callers that set none. REQUIRES: called before
  // anybody else knows the call.
  void SetAlarm(std::chrono::system_clock::time_point deadline) {
    Ref();
    alarm_ = std::make_unique<grpc::Alarm>();
    alarm_->Set(deadline, [this](bool expired) {
      if (expired) {
        CallerGone(Refusal(google::rpc::DEADLINE_EXCEEDED, "DEFAULT_DEADLINE",
                           "the call had no deadline, and took longer than the default"));
      }
      Unref();
    });
  }

 protected:
  // Called once, by who claimed the call.
  virtual void Finish(grpc::Status status, std::string payload, bool pending,
                      const RpcHeaders& headers) = 0;

  void CallerGone(grpc::Status status) {
    cancelled_.store(true, std::memory_order_release);
    CloseOnCancel(/*run=*/true);
    if (!Claim()) return;
    if (alarm_) alarm_->Cancel();
    Finish(std::move(status), "", false, {});
  }
  void CountEnd(const grpc::Status& status) {
    method_->metrics->Ended(status.error_code(),
                            static_cast<double>(SteadyNs() - start_ns_) * 1e-9);
  }
  void Done() {  // gRPC's OnDone
    server_->inflight.fetch_sub(1, std::memory_order_relaxed);
    Unref();
  }

  ServerState* const server_;
  const ServedMethod* const method_;

 private:
  bool Claim() { return !claimed_.exchange(true, std::memory_order_acq_rel); }

  // A pointer that no function has: the call has ended or its caller has gone.
  static std::function<void()>* Closed() {
    static std::function<void()> closed;
    return &closed;
  }
  void CloseOnCancel(bool run) {
    std::function<void()>* waiting = on_cancel_.exchange(Closed(), std::memory_order_acq_rel);
    if (waiting == nullptr || waiting == Closed()) return;
    if (run) (*waiting)();
    delete waiting;
  }

  const int64_t start_ns_ = SteadyNs();
  std::atomic<int> refs_{2};  // gRPC's and the responder's
  std::atomic<bool> claimed_{false};
  std::atomic<bool> cancelled_{false};
  std::atomic<std::function<void()>*> on_cancel_{nullptr};
  std::unique_ptr<grpc::Alarm> alarm_;
};

}  // namespace internal

namespace {

class UnaryCall final : public internal::ServerCall, public grpc::ServerUnaryReactor {
 public:
  UnaryCall(ServerState* server, const ServedMethod* method, grpc::CallbackServerContext* context,
            grpc::ByteBuffer* response)
      : ServerCall(server, method), context_(context), response_(response) {}

  bool Write(std::string) override {
    GK_CHECK(false) << "Write() on the unary method "
                    << std::string(method_->descriptor->full_name());
    return false;
  }

 private:
  void Finish(grpc::Status status, std::string payload, bool pending,
              const RpcHeaders& headers) override {
    for (const auto& [name, value] : headers) context_->AddInitialMetadata(name, value);
    if (status.ok()) *response_ = ToByteBuffer(std::move(payload));
    if (pending) context_->AddTrailingMetadata("gaekju-outcome", "pending");
    CountEnd(status);
    grpc::ServerUnaryReactor::Finish(std::move(status));
  }
  void OnCancel() override {
    CallerGone(grpc::Status(grpc::StatusCode::CANCELLED, "the caller has gone"));
  }
  void OnDone() override { Done(); }
  // gRPC asks whether OnDone and OnCancel may run where it stands, without a hop to its executor's
  // thread (which costs a tenth of a call's time). Once the call has ended both are a few atomics.
  // Not API: a gRPC that drops it needs this line dropped.
  bool InternalInlineable() override { return ended(); }

  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer* const response_;
};

// A server-streaming call. At most one operation is with gRPC at any time; `mutex_` is never held
// when one is started.
class StreamCall final : public internal::ServerCall,
                         public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  StreamCall(ServerState* server, const ServedMethod* method) : ServerCall(server, method) {}

  bool Write(std::string payload) override {
    if (cancelled()) return false;
    {
      absl::MutexLock lock(&mutex_);
      if (ending_) return false;
      queue_.push_back(std::move(payload));
      if (static_cast<int>(queue_.size()) > server_->stream_queue_max) queue_.pop_front();
    }
    Pump();
    return true;
  }

 private:
  void Finish(grpc::Status status, std::string payload, bool pending,
              const RpcHeaders& headers) override {
    GK_CHECK(!pending) << "Pending() on a stream";
    GK_CHECK(headers.empty()) << "headers on a stream, which may have begun";
    CountEnd(status);
    {
      absl::MutexLock lock(&mutex_);
      if (!payload.empty()) queue_.push_back(std::move(payload));
      if (cancelled()) queue_.clear();
      ending_ = true;
      status_ = std::move(status);
    }
    Pump();
  }

  // Starts the next operation when none runs.
  void Pump() {
    bool finish = false;
    {
      absl::MutexLock lock(&mutex_);
      if (busy_ || (queue_.empty() && !ending_)) return;
      busy_ = true;
      if (queue_.empty()) {
        finish = true;
      } else {
        current_ = ToByteBuffer(std::move(queue_.front()));
        queue_.pop_front();
      }
    }
    // `busy_` keeps everybody else out until OnWriteDone, and for ever after Finish.
    if (finish) {
      grpc::ServerWriteReactor<grpc::ByteBuffer>::Finish(status_);
    } else {
      StartWrite(&current_);
    }
  }

  void OnWriteDone(bool ok) override {
    {
      absl::MutexLock lock(&mutex_);
      busy_ = false;
      if (!ok) queue_.clear();  // OnCancel comes, and ends the call
    }
    Pump();
  }
  void OnCancel() override {
    CallerGone(grpc::Status(grpc::StatusCode::CANCELLED, "the caller has gone"));
  }
  void OnDone() override {
    {
      absl::MutexLock lock(&server_->mutex);
      server_->streams.erase(this);
    }
    Done();
  }

  absl::Mutex mutex_;
  std::deque<std::string> queue_ ABSL_GUARDED_BY(mutex_);
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::Status status_;       // written once, before the Pump() that finishes
  grpc::ByteBuffer current_;  // with gRPC while busy_
};

#ifdef GAEKJU_GPR_LOG
// gRPC's own lines, as ours.
void LogFromGrpc(gpr_log_func_args* args) {
  const LogLevel level = args->severity == GPR_LOG_SEVERITY_ERROR  ? LogLevel::kError
                         : args->severity == GPR_LOG_SEVERITY_INFO ? LogLevel::kInfo
                                                                   : LogLevel::kDebug;
  Log(level, args->message, {{"source", "grpc"}, {"file", args->file}, {"line", args->line}});
}
#endif

// Whether the server at host:port accepts a new connection and speaks HTTP/2 on it within
// `timeout_ms`. The kernel completes a TCP handshake for a listener that nobody accepts from, so
// connecting alone shows nothing.
bool DialsBack(const std::string& host, int port, int timeout_ms) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return false;
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  bool answered = false;
  if (fd >= 0) {
    const int64_t end_ns = SteadyNs() + int64_t{timeout_ms} * 1'000'000;
    const auto wait = [&](short events) {
      const int64_t left_ms = (end_ns - SteadyNs()) / 1'000'000;
      pollfd p{fd, events, 0};
      return left_ms > 0 && poll(&p, 1, static_cast<int>(left_ms)) == 1 &&
             (p.revents & events) != 0;
    };
    const bool connected = connect(fd, found->ai_addr, found->ai_addrlen) == 0 ||
                           (errno == EINPROGRESS && wait(POLLOUT));
    // The connection preface of RFC 9113 §3.4 with an empty SETTINGS frame; the server must send
    // its own SETTINGS.
    constexpr char kPreface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0";
    if (connected && send(fd, kPreface, sizeof(kPreface) - 1, MSG_NOSIGNAL) > 0 && wait(POLLIN)) {
      char frame[9];
      answered = recv(fd, frame, sizeof(frame), 0) > 0;
    }
    close(fd);
  }
  freeaddrinfo(found);
  return answered;
}

}  // namespace

Responder& Responder::operator=(Responder&& other) noexcept {
  if (this != &other) {
    Responder old(std::move(*this));
    call_ = other.call_;
    other.call_ = nullptr;
  }
  return *this;
}

Responder::~Responder() {
  if (call_ == nullptr) return;
  // Does nothing when it was answered, or the caller has gone.
  static const grpc::Status* const unanswered = new grpc::Status(
      Refusal(google::rpc::UNAVAILABLE, "UNANSWERED", "the server gave the call up", 1'000'000));
  call_->End(*unanswered, "", false);
  call_->Unref();
}

void Responder::Send(flow::Answer answer) {
  switch (answer.kind) {
    case flow::Answer::Kind::kDone:
      return Done(std::move(answer.payload));
    case flow::Answer::Kind::kRefused:
      return Refuse(answer.status);
    case flow::Answer::Kind::kPending:
      return Pending();
    case flow::Answer::Kind::kWait:
    case flow::Answer::Kind::kRetry:
      break;
  }
  GK_CHECK(false) << "Send() of an answer that is none yet";
}
void Responder::Done(std::string payload) {
  call_->End(grpc::Status::OK, std::move(payload), false);
}
void Responder::Refuse(const google::rpc::Status& status) { call_->End(ToGrpc(status), "", false); }
void Responder::Pending() { call_->End(grpc::Status::OK, "", true); }
void Responder::Reply(const google::rpc::Status& status, std::string payload, RpcHeaders headers) {
  call_->End(ToGrpc(status), status.code() == 0 ? std::move(payload) : "", false,
             std::move(headers));
}
bool Responder::Write(std::string payload) { return call_->Write(std::move(payload)); }
bool Responder::cancelled() const { return call_->cancelled(); }
void Responder::OnCancel(std::function<void()> on_cancel) {
  call_->SetOnCancel(std::move(on_cancel));
}

struct RpcServer::Impl {
  // A context's service: its methods registered by their paths, with handlers over bytes.
  class Service : public grpc::Service {
   public:
    Service(Impl* server, const google::protobuf::ServiceDescriptor& descriptor,
            const RpcHandler& handler);
    const std::string& name() const { return name_; }

   private:
    const std::string name_;
    std::deque<ServedMethod> methods_;  // never moves
  };

  Impl(RpcServerOptions o, Metrics* m) : options(std::move(o)), metrics(m) {
    state.stream_queue_max = options.stream_queue_max;
    overloaded = Refusal(google::rpc::UNAVAILABLE, "OVERLOADED",
                         "the server has too many calls in flight", 1'000'000);
    draining = Refusal(google::rpc::UNAVAILABLE, "DRAINING", "the server is stopping; watch again",
                       100'000);
  }

  grpc::ServerUnaryReactor* StartUnary(const ServedMethod& method,
                                       grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request, grpc::ByteBuffer* response);
  grpc::ServerWriteReactor<grpc::ByteBuffer>* StartStream(const ServedMethod& method,
                                                          grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request);
  void Begin(const ServedMethod& method, grpc::CallbackServerContext* context,
             const grpc::ByteBuffer& request, internal::ServerCall* call);
  void PublishReadiness() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  void Watch(std::string host);

  const RpcServerOptions options;
  Metrics* const metrics;
  ServerState state;
  grpc::Status overloaded, draining;
  std::vector<std::unique_ptr<Service>> services;
  std::unique_ptr<grpc::Server> server;
  int port = 0;

  absl::Mutex mutex;
  std::vector<std::pair<std::string, bool>> ready ABSL_GUARDED_BY(mutex);
  bool stopping ABSL_GUARDED_BY(mutex) = false;
  bool stopped ABSL_GUARDED_BY(mutex) = false;
  std::thread watchdog;
};

RpcServer::Impl::Service::Service(Impl* server,
                                  const google::protobuf::ServiceDescriptor& descriptor,
                                  const RpcHandler& handler)
    : name_(descriptor.full_name()) {
  for (int i = 0; i < descriptor.method_count(); ++i) {
    const MethodDescriptor* method = descriptor.method(i);
    GK_CHECK(!method->client_streaming())
        << std::string(method->full_name()) << " streams requests: nobody serves that";
    const auto& limits = method->options().GetExtension(gaekju::auth::v1::authorization);
    ServedMethod& served = methods_.emplace_back();
    served.descriptor = method;
    served.request = MessageFactory::generated_factory()->GetPrototype(method->input_type());
    GK_CHECK(served.request != nullptr)
        << std::string(method->input_type()->full_name()) << " is not a generated message";
    served.handler = handler;
    served.metrics = &server->metrics->ServerMethod(std::string(method->full_name()));
    served.bytes_max = limits.max_request_bytes() > 0 ? limits.max_request_bytes()
                                                      : server->options.request_bytes_max;
    const int deadline_ms = limits.default_deadline_ms() > 0 ? limits.default_deadline_ms()
                            : method->server_streaming()     ? 0
                                                             : server->options.deadline_ms_default;
    served.deadline_us_default = int64_t{deadline_ms} * 1000;

    served.path = absl::StrCat("/", name_, "/", std::string(method->name()));
    const auto type = method->server_streaming() ? grpc::internal::RpcMethod::SERVER_STREAMING
                                                 : grpc::internal::RpcMethod::NORMAL_RPC;
    AddMethod(new grpc::internal::RpcServiceMethod(served.path.c_str(), type, nullptr));
    const ServedMethod* m = &served;
    if (method->server_streaming()) {
      MarkMethodRawCallback(
          i,
          new grpc::internal::CallbackServerStreamingHandler<grpc::ByteBuffer, grpc::ByteBuffer>(
              [server, m](grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
                return server->StartStream(*m, context, request);
              }));
    } else {
      MarkMethodRawCallback(
          i, new grpc::internal::CallbackUnaryHandler<grpc::ByteBuffer, grpc::ByteBuffer>(
                 [server, m](grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                             grpc::ByteBuffer* response) {
                   return server->StartUnary(*m, context, request, response);
                 }));
    }
  }
}

grpc::ServerUnaryReactor* RpcServer::Impl::StartUnary(const ServedMethod& method,
                                                      grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  auto* call = new UnaryCall(&state, &method, context, response);
  Begin(method, context, *request, call);
  return call;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* RpcServer::Impl::StartStream(
    const ServedMethod& method, grpc::CallbackServerContext* context,
    const grpc::ByteBuffer* request) {
  auto* call = new StreamCall(&state, &method);
  bool stopping_now;
  {
    absl::MutexLock lock(&state.mutex);
    state.streams.insert(call);
    stopping_now = state.draining;
  }
  if (stopping_now) {
    call->End(draining, "", false);
    call->Unref();
  } else {
    Begin(method, context, *request, call);
  }
  return call;
}

// The common path: no lock, no copy of the request. Takes over the responder's reference.
void RpcServer::Impl::Begin(const ServedMethod& method, grpc::CallbackServerContext* context,
                            const grpc::ByteBuffer& request, internal::ServerCall* call) {
  Responder responder(call);
  // The cheapest check first: what is refused for load must cost little.
  if (state.inflight.load(std::memory_order_relaxed) > options.inflight_max)
    return call->End(overloaded, "", false);
  if (const size_t bytes = request.Length(); bytes > method.bytes_max) {
    return call->End(Refusal(google::rpc::RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE",
                             absl::StrCat("the request has ", bytes, " bytes; ",
                                          std::string(method.descriptor->full_name()),
                                          " takes at most ", method.bytes_max)),
                     "", false);
  }
  std::unique_ptr<Message> message(method.request->New());
  if (!Parse(request, message.get())) {
    return call->End(
        Refusal(google::rpc::INVALID_ARGUMENT, "REQUEST_MALFORMED",
                absl::StrCat("the request is not a valid ",
                             std::string(method.request->GetDescriptor()->full_name()))),
        "", false);
  }

  CallContext made;
  const auto deadline = context->deadline();
  if (deadline != std::chrono::system_clock::time_point::max()) {
    made.deadline_us =
        std::chrono::duration_cast<std::chrono::microseconds>(deadline.time_since_epoch()).count();
  } else if (method.deadline_us_default > 0) {
    made.deadline_us = UnixUs() + method.deadline_us_default;
    call->SetAlarm(std::chrono::system_clock::now() +
                   std::chrono::microseconds(method.deadline_us_default));
  } else {
    made.deadline_us = std::numeric_limits<int64_t>::max();
  }
  made.peer = context->peer();
  const auto& metadata = context->client_metadata();
  if (const auto it = metadata.find("traceparent"); it != metadata.end()) {
    if (absl::string_view sent(it->second.data(), it->second.size()); IsTraceparent(sent))
      made.traceparent = std::string(sent);
  }
  if (made.traceparent.empty()) made.traceparent = NewTraceparent();
  if (const auto it = metadata.find("grpc-previous-rpc-attempts"); it != metadata.end()) {
    if (!absl::SimpleAtoi(absl::string_view(it->second.data(), it->second.size()), &made.attempts))
      made.attempts = 0;
  }
  for (const std::string& name : options.headers) {
    if (const auto it = metadata.find(name); it != metadata.end())
      made.headers.emplace_back(name, std::string(it->second.data(), it->second.size()));
  }
  method.handler(*method.descriptor, std::move(made), std::move(message), std::move(responder));
}

void RpcServer::Impl::PublishReadiness() {
  if (!server) return;
  grpc::HealthCheckServiceInterface* health = server->GetHealthCheckService();
  bool all = true;
  for (const auto& [name, serving] : ready) {
    health->SetServingStatus(name, serving);
    all &= serving;
  }
  health->SetServingStatus("", all);
}

void RpcServer::Impl::Watch(std::string host) {
  int failures = 0;
  while (true) {
    {
      absl::MutexLock lock(&mutex);
      if (mutex.AwaitWithTimeout(absl::Condition(&stopping), options.watchdog_period)) return;
    }
    const int timeout_ms = static_cast<int>(
        std::max<int64_t>(absl::ToInt64Milliseconds(options.watchdog_period), 100));
    if (DialsBack(host, port, timeout_ms)) {
      failures = 0;
      continue;
    }
    {
      absl::MutexLock lock(&mutex);
      if (stopping) return;
    }
    ++failures;
    LogWarning("the server does not answer on its own port",
               {{"port", port}, {"failures", failures}});
    if (failures < options.watchdog_failures_max) continue;
    failures = 0;
    if (options.on_dead) {
      options.on_dead();
    } else {
      LogError("the gRPC listener is dead: aborting, to be restarted", {{"port", port}});
      std::abort();
    }
  }
}

RpcServer::RpcServer(RpcServerOptions options, Metrics* metrics)
    : impl_(std::make_unique<Impl>(std::move(options), metrics)) {}

RpcServer::~RpcServer() { Shutdown(absl::ZeroDuration()); }

void RpcServer::AddService(const google::protobuf::ServiceDescriptor& service, RpcHandler handler) {
  GK_CHECK(!impl_->server) << "AddService() after Start()";
  impl_->services.push_back(std::make_unique<Impl::Service>(impl_.get(), service, handler));
  absl::MutexLock lock(&impl_->mutex);
  impl_->ready.emplace_back(impl_->services.back()->name(), false);
}

absl::Status RpcServer::Start() {
  GK_CHECK(!impl_->server) << "Start() twice";
  const RpcServerOptions& options = impl_->options;
  const size_t colon = options.listen.rfind(':');
  int wanted_port = -1;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(options.listen.substr(colon + 1), &wanted_port) || wanted_port < 0 ||
      wanted_port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("cannot listen on \"", options.listen,
                                                   "\": write host:port, like 127.0.0.1:50051"));
  }
#ifdef GAEKJU_GPR_LOG
  gpr_set_log_function(&LogFromGrpc);
#endif
  // Debian's Abseil is built with its search for lock-order cycles on: an eighth of a call's time,
  // and an abort for a false one in gRPC.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  static const bool plugins = [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    return true;
  }();
  (void)plugins;

  size_t bytes_max = options.request_bytes_max;
  for (const auto& service : impl_->services) {
    const auto* descriptor =
        google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(service->name());
    GK_CHECK(descriptor != nullptr) << service->name() << " is not in the generated pool";
    for (int i = 0; i < descriptor->method_count(); ++i) {
      const auto& limits =
          descriptor->method(i)->options().GetExtension(gaekju::auth::v1::authorization);
      bytes_max = std::max<size_t>(bytes_max, limits.max_request_bytes());
    }
  }
  grpc::ServerBuilder builder;
  builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &impl_->port);
  builder.SetMaxReceiveMessageSize(static_cast<int>(bytes_max) * kHardLimitFactor);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.streams_max);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, options.metadata_bytes_max);
  // Two processes must not share a port without knowing of each other.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(
      GRPC_ARG_MAX_CONNECTION_AGE_MS,
      static_cast<int>(absl::ToInt64Milliseconds(options.connection_age_max)));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, 60'000);
  // A half-open connection is noticed within 25 s; pings from callers may come every 10 s, ours
  // come every 20 s.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 2);
  // Bounds what connections may buffer, so that many slow senders cannot take the memory of the
  // turns.
  grpc::ResourceQuota quota("gaekju");
  quota.Resize(512u << 20);
  builder.SetResourceQuota(quota);
  for (const auto& service : impl_->services) builder.RegisterService(service.get());
  impl_->server = builder.BuildAndStart();
  if (!impl_->server || impl_->port == 0) {
    impl_->server.reset();
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", options.listen,
                     ": is the port in use, or the address of another machine? (--listen)"));
  }
  {
    absl::MutexLock lock(&impl_->mutex);
    impl_->PublishReadiness();
  }
  if (options.watchdog_period > absl::ZeroDuration()) {
    std::string host = options.listen.substr(0, colon);
    if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
    if (host == "0.0.0.0") host = "127.0.0.1";
    if (host == "::") host = "::1";
    impl_->watchdog = std::thread([this, host] { impl_->Watch(host); });
  }
  return absl::OkStatus();
}

int RpcServer::port() const {
  GK_CHECK(impl_->port != 0) << "port() before Start()";
  return impl_->port;
}

void RpcServer::SetReady(absl::string_view service, bool ready) {
  absl::MutexLock lock(&impl_->mutex);
  bool found = false;
  for (auto& [name, serving] : impl_->ready) {
    if (name != service) continue;
    serving = ready;
    found = true;
  }
  GK_CHECK(found) << "SetReady() of " << std::string(service) << ", which is not served here";
  if (!impl_->stopped) impl_->PublishReadiness();
}

void RpcServer::SetReady(bool ready) {
  absl::MutexLock lock(&impl_->mutex);
  for (auto& [name, serving] : impl_->ready) serving = ready;
  if (!impl_->stopped) impl_->PublishReadiness();
}

void RpcServer::Shutdown(absl::Duration grace) {
  {
    absl::MutexLock lock(&impl_->mutex);
    if (impl_->stopping) return;
    impl_->stopping = true;
    for (auto& [name, serving] : impl_->ready) serving = false;
    impl_->PublishReadiness();
    impl_->stopped = true;
  }
  if (impl_->watchdog.joinable()) impl_->watchdog.join();
  if (!impl_->server) return;
  std::vector<internal::ServerCall*> streams;
  {
    absl::MutexLock lock(&impl_->state.mutex);
    impl_->state.draining = true;
    for (internal::ServerCall* call : impl_->state.streams) {
      call->Ref();
      streams.push_back(call);
    }
  }
  for (internal::ServerCall* call : streams) {
    call->End(impl_->draining, "", false);
    call->Unref();
  }
  impl_->server->Shutdown(std::chrono::system_clock::now() + absl::ToChronoMicroseconds(grace));
  impl_->server->Wait();
}

int RpcServer::inflight() const { return impl_->state.inflight.load(std::memory_order_relaxed); }

}  // namespace gaekju::runtime
