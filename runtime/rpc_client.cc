#include "runtime/rpc_client.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "flow/check.h"
#include "flow/turn_run.h"
#include "google/rpc/code.pb.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"
#include "runtime/byte_buffer.h"
#include "runtime/log.h"

namespace gaekju::runtime {
namespace {

constexpr char kDomain[] = "gaekju.rpc";

int64_t SteadyUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::string ToString(const grpc::ByteBuffer& bytes) {
  grpc::Slice slice;
  if (!ToSlice(bytes, &slice)) return "";
  return std::string(reinterpret_cast<const char*>(slice.begin()), slice.size());
}

google::rpc::Status FromGrpc(const grpc::Status& status) {
  google::rpc::Status out;
  if (status.ok()) return out;
  const std::string details = status.error_details();
  if (details.empty() || !out.ParseFromString(details) || out.code() != status.error_code()) {
    out.Clear();
    out.set_code(status.error_code());
    out.set_message(status.error_message());
  }
  return out;
}

// Whether the peer itself answered. What Envoy counts as a 5xx is a failure: nobody there, too
// late, or broken.
bool Reached(grpc::StatusCode code) {
  switch (code) {
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::DEADLINE_EXCEEDED:
    case grpc::StatusCode::UNKNOWN:
    case grpc::StatusCode::INTERNAL:
    case grpc::StatusCode::DATA_LOSS:
      return false;
    default:
      return true;
  }
}

// "gaekju.payment.v1.PaymentService.Capture" -> "/gaekju.payment.v1.PaymentService/Capture".
std::string PathOf(absl::string_view method) {
  const size_t dot = method.rfind('.');
  if (dot == absl::string_view::npos) return absl::StrCat("/", method);
  return absl::StrCat("/", method.substr(0, dot), "/", method.substr(dot + 1));
}

struct Peer;

// One call in flight. Linked into its peer's list, so that the destructor can cancel it.
struct Flight {
  Peer* peer = nullptr;
  Flight* previous = nullptr;
  Flight* next = nullptr;
  Breaker::Ticket ticket = 0;
  MethodMetrics* metrics = nullptr;
  int64_t started_us = 0;
  bool ended = false;  // guarded by the peer's mutex: the context is going, or has gone
  std::string path;
  std::optional<grpc::ClientContext> context{std::in_place};
  grpc::ByteBuffer request, response;
  std::function<void(UnaryResult)> done;
};

struct Peer {
  Peer(std::string n, std::string a, std::shared_ptr<grpc::Channel> channel,
       const BreakerOptions& options, PeerMetrics& m)
      : name(std::move(n)),
        address(std::move(a)),
        stub(std::move(channel)),
        metrics(m),
        breaker(options) {}

  const std::string name;
  const std::string address;
  grpc::GenericStub stub;
  PeerMetrics& metrics;

  // Held for some 20 ns, three times a call; never while calling anything of gRPC's but TryCancel.
  absl::Mutex mutex;
  Breaker breaker ABSL_GUARDED_BY(mutex);
  Flight* flights ABSL_GUARDED_BY(mutex) = nullptr;
  bool closing ABSL_GUARDED_BY(mutex) = false;
  absl::flat_hash_map<std::string, MethodMetrics*> methods ABSL_GUARDED_BY(mutex);

  bool Idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) { return flights == nullptr; }
  void Changed(Breaker::State before) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    metrics.pending.Set(breaker.pending());
    const Breaker::State now = breaker.state();
    if (now == before) return;
    metrics.breaker_state.Set(static_cast<int>(now));
    if (now == Breaker::State::kOpen) {
      metrics.breaker_opened.Add();
      // A failed probe opens it again: once is news enough.
      if (before == Breaker::State::kClosed)
        LogWarning("circuit opened", {{"peer", name}, {"address", address}});
    } else if (now == Breaker::State::kClosed) {
      LogInfo("circuit closed", {{"peer", name}, {"address", address}});
    }
  }
};

UnaryResult NotSent(absl::string_view peer, absl::string_view reason, absl::string_view message) {
  UnaryResult result;
  result.status = flow::MakeStatus(google::rpc::UNAVAILABLE, kDomain, reason,
                                   absl::StrCat(message, " ", peer), "", 1'000'000);
  return result;
}

}  // namespace

struct RpcClient::Impl {
  RpcClientOptions options;
  Metrics* metrics;
  absl::flat_hash_map<std::string, std::string> addresses;  // by context
  mutable absl::Mutex mutex;
  // By context's name, or by address for calls to an address.
  absl::flat_hash_map<std::string, std::unique_ptr<Peer>> peers ABSL_GUARDED_BY(mutex);

  Peer* PeerOf(const std::string& name, const std::string& address) {
    {
      absl::ReaderMutexLock lock(&mutex);
      if (const auto it = peers.find(name); it != peers.end()) return it->second.get();
    }
    absl::MutexLock lock(&mutex);
    std::unique_ptr<Peer>& peer = peers[name];
    if (peer == nullptr) {
      grpc::ChannelArguments args;
      // A peer that restarts is reached again within 250 ms; until then whoever asks is refused.
      args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
      args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS,
                  1000);  // also the time one attempt to connect may take
      args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 250);
      args.SetInt(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, 1000);
      // A half-open connection is noticed within 25 s; the server allows a ping every 10 s.
      args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
      args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
      args.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
      args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
      args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);                     // one layer retries: the saga
      args.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);  // no TXT look-ups
      args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // http_proxy is for the world outside
      args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
      args.SetLoadBalancingPolicyName("round_robin");  // where DNS knows several replicas
      args.SetMaxReceiveMessageSize(options.response_bytes_max);
      peer = std::make_unique<Peer>(
          name, address,
          grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args),
          options.breaker, metrics->Peer(name));
    }
    return peer.get();
  }

  std::string AddressOf(absl::string_view context) const {
    if (const auto it = addresses.find(context); it != addresses.end()) return it->second;
    return absl::StrReplaceAll(options.peer_default, {{"{context}", context}});
  }
};

absl::StatusOr<std::unique_ptr<RpcClient>> RpcClient::Create(RpcClientOptions options,
                                                             Metrics* metrics) {
  auto impl = std::make_unique<Impl>();
  for (absl::string_view entry : absl::StrSplit(options.peers, ',', absl::SkipWhitespace())) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(entry, absl::MaxSplits('=', 1));
    const absl::string_view context = absl::StripAsciiWhitespace(parts.first);
    const absl::string_view address = absl::StripAsciiWhitespace(parts.second);
    if (context.empty() || address.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--peers: \"", absl::StripAsciiWhitespace(entry),
                       "\" is not context=host:port, like payment=127.0.0.1:50052"));
    }
    if (!impl->addresses.emplace(std::string(context), std::string(address)).second) {
      return absl::InvalidArgumentError(absl::StrCat("--peers names ", context, " twice"));
    }
  }
  impl->options = std::move(options);
  impl->metrics = metrics;
  return std::unique_ptr<RpcClient>(new RpcClient(std::move(impl)));
}

RpcClient::RpcClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

RpcClient::~RpcClient() {
  absl::MutexLock lock(&impl_->mutex);
  for (auto& [name, peer] : impl_->peers) {
    absl::MutexLock peer_lock(&peer->mutex);
    peer->closing = true;
    for (Flight* flight = peer->flights; flight != nullptr; flight = flight->next) {
      if (!flight->ended) flight->context->TryCancel();
    }
  }
  for (auto& [name, peer] : impl_->peers) {
    Peer* p = peer.get();
    absl::MutexLock peer_lock(&p->mutex);
    p->mutex.Await(absl::Condition(p, &Peer::Idle));
  }
}

void RpcClient::Unary(UnaryCall call, std::function<void(UnaryResult)> done) {
  const std::string& name = call.context.empty() ? call.address : call.context;
  Peer* peer =
      impl_->PeerOf(name, call.context.empty() ? call.address : impl_->AddressOf(call.context));
  auto flight = std::make_unique<Flight>();
  bool closing = false;
  {
    absl::MutexLock lock(&peer->mutex);
    closing = peer->closing;
    const Breaker::State before = peer->breaker.state();
    if (!closing) flight->ticket = peer->breaker.Admit(SteadyUs());
    peer->Changed(before);
    if (flight->ticket != 0) {
      flight->next = peer->flights;
      if (peer->flights != nullptr) peer->flights->previous = flight.get();
      peer->flights = flight.get();
      MethodMetrics*& metrics = peer->methods[call.method];
      if (metrics == nullptr) metrics = &impl_->metrics->ClientMethod(name, call.method);
      flight->metrics = metrics;
    }
  }
  if (flight->ticket == 0) {
    peer->metrics.breaker_refused.Add();
    return done(
        closing ? NotSent(name, "CLIENT_CLOSED", "not called, because this process is stopping:")
                : NotSent(name, "CIRCUIT_OPEN",
                          "not called, because the last calls failed or too many are in flight:"));
  }

  flight->peer = peer;
  flight->path = PathOf(call.method);
  flight->started_us = SteadyUs();
  flight->done = std::move(done);
  const int64_t timeout_us =
      call.timeout_us > 0 ? call.timeout_us : impl_->options.timeout_us_default;
  flight->context->set_deadline(std::chrono::system_clock::now() +
                                std::chrono::microseconds(timeout_us));
  flight->context->set_wait_for_ready(false);
  if (!call.traceparent.empty()) flight->context->AddMetadata("traceparent", call.traceparent);
  flight->request = ToByteBuffer(std::move(call.payload));

  Flight* f = flight.release();  // until its callback
  peer->stub.UnaryCall(
      &*f->context, f->path, grpc::StubOptions(), &f->request, &f->response,
      [f](grpc::Status status) {
        Peer* peer = f->peer;
        const int64_t now_us = SteadyUs();
        f->metrics->Ended(status.error_code(), static_cast<double>(now_us - f->started_us) * 1e-6);
        UnaryResult result;
        result.status = FromGrpc(status);
        if (status.ok()) {
          result.payload = ToString(f->response);
          const auto& trailers = f->context->GetServerTrailingMetadata();
          const auto it = trailers.find("gaekju-outcome");
          result.pending = it != trailers.end() && it->second == "pending";
        }
        {
          absl::MutexLock lock(&peer->mutex);
          const Breaker::State before = peer->breaker.state();
          // What our own destructor cancels says nothing about the peer.
          peer->breaker.Ended(f->ticket, peer->closing || Reached(status.error_code()), now_us);
          peer->Changed(before);
          f->ended = true;
        }
        f->done(std::move(result));
        f->done = nullptr;
        // The context holds the channel. Were it the last to do so, the channel's end would stop
        // the very threads that run this callback, which gRPC cannot do (grpc/grpc#32584: it
        // crashes before 1.54). So it goes while the destructor still waits for us.
        f->context.reset();
        {
          // Last of all: the destructor waits for the list to be empty.
          absl::MutexLock lock(&peer->mutex);
          if (f->previous != nullptr) f->previous->next = f->next;
          if (f->next != nullptr) f->next->previous = f->previous;
          if (peer->flights == f) peer->flights = f->next;
        }
        delete f;
      });
}

void RpcClient::Call(flow::Call call, std::function<void(flow::StepResult)> done) {
  UnaryCall unary;
  unary.context = call.context;
  unary.method = call.method;
  unary.payload = std::move(call.payload);
  unary.timeout_us = call.timeout_us;
  unary.traceparent = call.traceparent;
  call.payload.clear();
  Unary(std::move(unary), [call = std::move(call), done = std::move(done)](UnaryResult result) {
    done(ClassifyResult(call, std::move(result)));
  });
}

std::string RpcClient::AddressOf(absl::string_view context) const {
  return impl_->AddressOf(context);
}

Breaker::State RpcClient::breaker_state(absl::string_view context) const {
  absl::ReaderMutexLock lock(&impl_->mutex);
  const auto it = impl_->peers.find(context);
  if (it == impl_->peers.end()) return Breaker::State::kClosed;
  absl::MutexLock peer_lock(&it->second->mutex);
  return it->second->breaker.state();
}

flow::StepResult ClassifyResult(const flow::Call& call, UnaryResult result) {
  return flow::ResultOfCall(call, result.status, result.pending, std::move(result.payload));
}

}  // namespace gaekju::runtime
