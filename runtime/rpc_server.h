// rpc_server.h: serves a context's RPCs from their descriptors, with health, reflection, limits and
// a watchdog.
//
//   RpcServer server(RpcServerOptions{.listen = "127.0.0.1:50051"}, &metrics);
//   server.AddService(*pool->FindServiceByName("gaekju.payment.v1.PaymentService"),
//                     [&](const MethodDescriptor& method, CallContext call,
//                     std::unique_ptr<Message> request, Responder responder) {
//                       loop.Submit(…, [r = std::move(responder)](flow::Answer answer) mutable {
//                       r.Send(std::move(answer)); });
//                     });
//   RETURN_IF_ERROR(server.Start());
//   server.SetReady("gaekju.payment.v1.PaymentService", true);   // health says SERVING
//   …
//   server.SetReady(false);                 // health says NOT_SERVING, calls are still served
//   server.Shutdown(absl::Seconds(10));     // no new calls; waits for those in flight, then
//   cancels them
//
// There are no generated stubs: requests arrive as bytes, and are parsed on gRPC's thread into the
// generated message type. What the server itself refuses, before a handler sees the call, carries
// ErrorInfo (domain "gaekju.rpc"):
//   INVALID_ARGUMENT REQUEST_MALFORMED, RESOURCE_EXHAUSTED REQUEST_TOO_LARGE, DEADLINE_EXCEEDED
//   DEFAULT_DEADLINE, UNAVAILABLE OVERLOADED, DRAINING (streams, at shutdown) and UNANSWERED (all
//   three with RetryInfo).
//
// Thread-safe. No gRPC header is included here: that would cost each includer seconds.
#ifndef GAEKJU_RUNTIME_RPC_SERVER_H_
#define GAEKJU_RUNTIME_RPC_SERVER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "flow/turn.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "google/rpc/status.pb.h"
#include "runtime/metrics.h"

namespace gaekju::runtime {

// Metadata of a call or an answer: lower-case names, printable ASCII values.
using RpcHeaders = std::vector<std::pair<std::string, std::string>>;

// What a handler learns of a call beside its request.
struct CallContext {
  // Microseconds since 1970: the caller's, or the method's default when the caller set none. A
  // stream whose contract sets none has INT64_MAX: watches last as long as their connection.
  int64_t deadline_us = 0;
  std::string
      traceparent;   // the caller's, or a new one when the caller sent none or a malformed one
  std::string peer;  // the other end's address, as gRPC writes it: "ipv4:127.0.0.1:40000"
  int32_t attempts =
      0;  // how often the caller's gRPC library tried before (grpc-previous-rpc-attempts)
  RpcHeaders headers;  // those of RpcServerOptions::headers that the caller sent
};

namespace internal {
class ServerCall;  // one call in flight; reference-counted
}

// The caller's end of one call. Movable, thread-safe except for being moved. A responder that is
// destroyed without an answer answers UNAVAILABLE, so no caller hangs because of a lost callback.
class Responder {
 public:
  Responder() = default;
  explicit Responder(internal::ServerCall* call) : call_(call) {}  // takes over one reference
  Responder(Responder&& other) noexcept : call_(other.call_) { other.call_ = nullptr; }
  Responder& operator=(Responder&& other) noexcept;
  Responder(const Responder&) = delete;
  Responder& operator=(const Responder&) = delete;
  ~Responder();

  // Ends the call. kDone: OK with the payload. kRefused: its status with all details. kPending: OK
  // with an empty message and the trailing metadata `gaekju-outcome: pending`. The first answer
  // counts, later ones and those after the caller has gone do nothing. REQUIRES: the kind is one of
  // the three.
  void Send(flow::Answer answer);
  void Done(std::string payload);
  void Refuse(const google::rpc::Status&
                  status);  // code 0 is OK with an empty message (the end of a stream)
  void Pending();
  // As Done() (code 0) or Refuse(), with initial metadata.
  void Reply(const google::rpc::Status& status, std::string payload, RpcHeaders headers);

  // Streams one message (server-streaming methods; each message is a whole state). Never blocks: at
  // most `stream_queue_max` messages wait for a slow reader, then the oldest unsent one is dropped.
  // False when the caller has gone.
  bool Write(std::string payload);

  // The caller has gone: cancelled, disconnected or past its deadline. Work for it may be dropped;
  // nothing need be sent.
  bool cancelled() const;
  // Calls `on_cancel` once when the caller goes (at once if it has), on a gRPC thread; it may only
  // enqueue. Dropped after an answer. At most one per call.
  void OnCancel(std::function<void()> on_cancel);
  explicit operator bool() const { return call_ != nullptr; }

 private:
  internal::ServerCall* call_ = nullptr;
};

// Handles a call. Runs on a gRPC thread: it may only enqueue, or answer from memory. `request` is
// of the method's generated type.
using RpcHandler =
    std::function<void(const google::protobuf::MethodDescriptor& method, CallContext call,
                       std::unique_ptr<google::protobuf::Message> request, Responder responder)>;

struct RpcServerOptions {
  std::string listen = "127.0.0.1:50051";  // port 0: a free one, see port()
  // Calls in flight beyond which new ones are refused before they are parsed. Memory: about 2 KiB +
  // the request, each.
  int inflight_max = 20000;
  // Per connection. Two full turns (512) of one peer on one connection.
  int streams_max = 1024;
  int metadata_bytes_max = 8192;
  // Names of the metadata that handlers want to see (CallContext::headers); lower-case.
  std::vector<std::string> headers = {};
  // Largest request of a method that sets no limit of its own (its authorization option), bytes.
  int request_bytes_max = 65536;
  // Deadline of a caller that sets none, where the method's option sets none, milliseconds.
  int deadline_ms_default = 5000;
  int stream_queue_max = 64;
  // Any connection is renewed at this age, so that new replicas get their share; those in use may
  // finish their calls for a minute.
  absl::Duration connection_age_max = absl::Minutes(30);
  // How often the server dials its own port, and how many failures in a row make it call `on_dead`.
  // Zero: never. gRPC 1.51's listener dies for good when file descriptors run out (CVE-2023-4785),
  // and nothing else notices.
  absl::Duration watchdog_period = absl::Seconds(5);
  int watchdog_failures_max = 3;
  std::function<void()> on_dead =
      {};  // default: logs and aborts the process, for a supervisor to restart
};

class RpcServer {
 public:
  // `metrics` must outlive the server.
  RpcServer(RpcServerOptions options, Metrics* metrics);
  RpcServer(const RpcServer&) = delete;
  RpcServer& operator=(const RpcServer&) = delete;
  ~RpcServer();  // Shutdown(0) if it was not called

  // Serves every method of `service`, unary and server-streaming, through `handler`. REQUIRES: not
  // started; the service and its messages are in the generated pool.
  void AddService(const google::protobuf::ServiceDescriptor& service, RpcHandler handler);

  // Binds and serves. UNAVAILABLE when the address cannot be bound (it names the address);
  // INVALID_ARGUMENT when it is not host:port.
  absl::Status Start();
  // The bound port. REQUIRES: started.
  int port() const;

  // What grpc.health.v1 says of one service; "" (the process) is SERVING when all are. All start
  // NOT_SERVING.
  void SetReady(absl::string_view service, bool ready);
  // Of all services.
  void SetReady(bool ready);

  // Stops: refuses new calls, waits up to `grace` for calls in flight, then cancels the rest.
  // Idempotent.
  void Shutdown(absl::Duration grace);

  // Calls in flight.
  int inflight() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_RPC_SERVER_H_
