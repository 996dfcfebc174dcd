// rpc_client.h: unary calls to other contexts, by the context's name.
//
//   ASSIGN_OR_RETURN(auto client, RpcClient::Create({.peers =
//   "payment=127.0.0.1:50052,store=127.0.0.1:50053"}, &metrics)); client->Call(std::move(call),
//   [&loop](flow::StepResult result) { loop.SubmitResult(std::move(result)); });
//
// How an end is classified: OK is done, or pending with the trailing metadata `gaekju-outcome:
// pending`; INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION and OUT_OF_RANGE are
// refusals; everything else is `unreachable`: nobody knows whether it worked. No retries here: the
// saga's row is what retries, and one layer retries only. Every call has a deadline.
//
// Thread-safe. No gRPC header is included here.
#ifndef GAEKJU_RUNTIME_RPC_CLIENT_H_
#define GAEKJU_RUNTIME_RPC_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "flow/turn.h"
#include "google/rpc/status.pb.h"
#include "runtime/breaker.h"
#include "runtime/metrics.h"

namespace gaekju::runtime {

struct RpcClientOptions {
  // "order=127.0.0.1:50051,payment=…": where contexts are. A context that is not listed is at
  // `peer_default`.
  std::string peers = {};
  // "{context}" is replaced by its name. The default is the name of a Kubernetes Service in the
  // same namespace.
  std::string peer_default = "{context}:50051";
  int64_t timeout_us_default = 2'000'000;  // of calls that set none
  BreakerOptions breaker = {};
  int response_bytes_max = 4 << 20;
};

// A raw unary call; what Call() is made of, and what tools and tests use.
struct UnaryCall {
  std::string context;  // whose address; or empty, then `address` is used
  std::string address;  // "host:port"
  std::string method;   // full name: "gaekju.payment.v1.PaymentService.Capture"
  std::string payload;  // the serialized request
  int64_t timeout_us = 0;
  std::string traceparent;
};
struct UnaryResult {
  google::rpc::Status status;  // code 0: it worked; else with the details that the peer sent
  std::string payload;         // the serialized response
  bool pending = false;
};

class RpcClient {
 public:
  // INVALID_ARGUMENT when `peers` is malformed. `metrics` must outlive the client.
  static absl::StatusOr<std::unique_ptr<RpcClient>> Create(RpcClientOptions options,
                                                           Metrics* metrics);
  RpcClient(const RpcClient&) = delete;
  RpcClient& operator=(const RpcClient&) = delete;
  // Cancels what is in flight and waits until every callback has run. Not from a callback.
  ~RpcClient();

  // Calls; `done` runs exactly once, on a gRPC thread (or on this one, when the circuit is open);
  // it may only enqueue.
  void Call(flow::Call call, std::function<void(flow::StepResult)> done);
  void Unary(UnaryCall call, std::function<void(UnaryResult)> done);

  // Where a context is: "127.0.0.1:50052".
  std::string AddressOf(absl::string_view context) const;
  Breaker::State breaker_state(absl::string_view context) const;

 private:
  struct Impl;
  explicit RpcClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Turns a unary call's end into a step's result. Pure; exposed for tests.
flow::StepResult ClassifyResult(const flow::Call& call, UnaryResult result);

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_RPC_CLIENT_H_
