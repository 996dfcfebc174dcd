// rpc.h: calls with typed messages, for the commands that drive a shop.
//
//   RpcCaller caller(peers, connections);
//   catalog::v1::CreateProductResponse response;
//   absl::Status status = caller.Call("catalog", "gaekju.catalog.v1.CatalogService.CreateProduct",
//   request, &response);
#ifndef GAEKJU_APP_RPC_H_
#define GAEKJU_APP_RPC_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "google/protobuf/message.h"
#include "google/rpc/status.pb.h"
#include "runtime/metrics.h"
#include "runtime/rpc_client.h"

namespace gaekju::app {

// Thread-safe. No circuit breaker: who drives a shop wants to see its failures.
class RpcCaller {
 public:
  // `connections` to each context, used in turn.
  static absl::StatusOr<std::unique_ptr<RpcCaller>> Create(const std::string& peers,
                                                           int connections = 1);

  // Calls without waiting; `done` runs on a gRPC thread and only enqueues.
  void Start(const std::string& context, const std::string& method,
             const google::protobuf::Message& request, absl::Duration timeout,
             std::function<void(runtime::UnaryResult)> done);
  // Calls and waits. UNAVAILABLE is asked again until `timeout` has passed in all.
  absl::Status Call(const std::string& context, const std::string& method,
                    const google::protobuf::Message& request, google::protobuf::Message* response,
                    absl::Duration timeout = absl::Seconds(20));

 private:
  RpcCaller() = default;
  runtime::Metrics metrics_;
  std::vector<std::unique_ptr<runtime::RpcClient>> clients_;
  std::atomic<uint64_t> next_{0};
};

// "FAILED_PRECONDITION STOCK_SHORT: …"
std::string DescribeRpcStatus(const google::rpc::Status& status);

}  // namespace gaekju::app

#endif  // GAEKJU_APP_RPC_H_
