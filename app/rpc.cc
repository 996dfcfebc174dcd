#include "app/rpc.h"

#include <condition_variable>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "flow/turn.h"
#include "google/rpc/code.pb.h"

namespace gaekju::app {

absl::StatusOr<std::unique_ptr<RpcCaller>> RpcCaller::Create(const std::string& peers,
                                                             int connections) {
  std::unique_ptr<RpcCaller> caller(new RpcCaller());
  for (int i = 0; i < connections; ++i) {
    runtime::RpcClientOptions options;
    options.peers = peers;
    options.breaker.enabled = false;
    auto client = runtime::RpcClient::Create(std::move(options), &caller->metrics_);
    if (!client.ok()) return client.status();
    caller->clients_.push_back(*std::move(client));
  }
  return caller;
}

void RpcCaller::Start(const std::string& context, const std::string& method,
                      const google::protobuf::Message& request, absl::Duration timeout,
                      std::function<void(runtime::UnaryResult)> done) {
  runtime::UnaryCall call;
  call.context = context;
  call.method = method;
  call.payload = request.SerializeAsString();
  call.timeout_us = absl::ToInt64Microseconds(timeout);
  clients_[next_.fetch_add(1, std::memory_order_relaxed) % clients_.size()]->Unary(std::move(call),
                                                                                   std::move(done));
}

absl::Status RpcCaller::Call(const std::string& context, const std::string& method,
                             const google::protobuf::Message& request,
                             google::protobuf::Message* response, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  for (;;) {
    struct Waiting {
      std::mutex mutex;
      std::condition_variable ended;
      bool done = false;
      runtime::UnaryResult result;
    } waiting;
    Start(context, method, request, std::max(absl::Milliseconds(100), deadline - absl::Now()),
          [&waiting](runtime::UnaryResult result) {
            std::lock_guard lock(waiting.mutex);
            waiting.result = std::move(result);
            waiting.done = true;
            waiting.ended.notify_one();  // under the lock: `waiting` goes when the waiter wakes
          });
    std::unique_lock lock(waiting.mutex);
    waiting.ended.wait(lock, [&] { return waiting.done; });
    const google::rpc::Status& status = waiting.result.status;
    if (status.code() == google::rpc::UNAVAILABLE &&
        absl::Now() + absl::Milliseconds(200) < deadline) {
      absl::SleepFor(absl::Milliseconds(100));
      continue;
    }
    if (status.code() != 0) {
      return absl::Status(static_cast<absl::StatusCode>(status.code()), DescribeRpcStatus(status));
    }
    if (!response->ParseFromString(waiting.result.payload)) {
      return absl::InternalError(
          absl::StrCat(method, " answered something that is no ", response->GetTypeName()));
    }
    return absl::OkStatus();
  }
}

std::string DescribeRpcStatus(const google::rpc::Status& status) {
  const std::string reason = flow::ReasonOf(status);
  return absl::StrCat(google::rpc::Code_Name(static_cast<google::rpc::Code>(status.code())),
                      reason.empty() ? "" : " ", reason, ": ", status.message());
}

}  // namespace gaekju::app
