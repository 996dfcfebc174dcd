// Unary calls a second through runtime/rpc_server.h and rpc_client.h: what the transport alone
// costs, without turns or a database.
//
//   rpc_bench                            # both ends in one process, 3 s
//   rpc_bench --role=server & rpc_bench --role=client --address=127.0.0.1:50999
//
// --answer=inline answers on gRPC's thread; --answer=turn hands the call to one thread that takes
// whatever waits and answers it all, like a turn loop. Prints one line: calls/s, CPU per call of
// this process, and the mean size of a turn.
#include <sys/resource.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <iostream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gaekju/payment/v1/payment_service.pb.h"
#include "runtime/config.h"
#include "runtime/metrics.h"
#include "runtime/rpc_client.h"
#include "runtime/rpc_server.h"
#include "runtime/trace.h"

ABSL_FLAG(std::string, role, "both", "both, server or client.");
ABSL_FLAG(std::string, address, "127.0.0.1:50999",
          "Where the server is, for --role=server and client.");
ABSL_FLAG(std::string, answer, "inline", "inline or turn.");
ABSL_FLAG(absl::Duration, time, absl::Seconds(3), "How long to call, or to serve.");
ABSL_FLAG(int32_t, calls, 256, "Calls in flight.");

namespace gaekju::runtime {
namespace {

constexpr char kService[] = "gaekju.payment.v1.PaymentService";

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

// One thread that answers everything that waits, in batches.
class Turns {
 public:
  Turns() : thread_([this] { Run(); }) {}
  ~Turns() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }
  void Add(std::string payload, Responder responder) {
    bool was_empty;
    {
      std::lock_guard lock(mutex_);
      was_empty = queue_.empty();
      queue_.emplace_back(std::move(payload), std::move(responder));
    }
    if (was_empty) wake_.notify_one();
  }
  double mean() const {
    return turns_ == 0 ? 0 : static_cast<double>(answered_) / static_cast<double>(turns_);
  }

 private:
  void Run() {
    std::vector<std::pair<std::string, Responder>> batch;
    while (true) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stop_ || !queue_.empty(); });
        if (stop_) return;
        batch.swap(queue_);
      }
      ++turns_;
      answered_ += static_cast<int64_t>(batch.size());
      for (auto& [payload, responder] : batch) responder.Done(std::move(payload));
      batch.clear();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::pair<std::string, Responder>> queue_;
  bool stop_ = false;
  int64_t turns_ = 0, answered_ = 0;
  std::thread thread_;
};

// Calls in a closed loop until `end`, `calls` at a time.
class Load {
 public:
  Load(RpcClient* client, absl::Time end) : client_(client), end_(end) {
    payment::v1::CaptureRequest request;
    request.set_order_id("019a7d3e-5f0a-7c1e-8b1a-0123456789ab");
    request.set_step_id("pay");
    request.set_customer_id("customer-1");
    request.mutable_amount()->set_currency_code("KRW");
    payload_ = request.SerializeAsString();
  }
  void Run(int calls) {
    running_ = calls;
    for (int i = 0; i < calls; ++i) Next();
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [&] { return running_ == 0; });
  }
  int64_t ok() const { return ok_; }
  int64_t failed() const { return failed_; }

 private:
  void Next() {
    UnaryCall call;
    call.context = "payment";
    call.method = absl::StrCat(kService, ".Capture");
    call.payload = payload_;
    call.timeout_us = 5'000'000;
    call.traceparent = traceparent_;
    client_->Unary(std::move(call), [this](UnaryResult result) {
      ++(result.status.code() == 0 ? ok_ : failed_);
      if (absl::Now() < end_) return Next();
      std::lock_guard lock(mutex_);
      if (--running_ == 0) ended_.notify_one();
    });
  }

  RpcClient* const client_;
  const absl::Time end_;
  std::string payload_;
  const std::string traceparent_ = NewTraceparent();
  std::atomic<int64_t> ok_{0}, failed_{0};
  std::mutex mutex_;
  std::condition_variable ended_;
  int running_ = 0;
};

int Main(int argc, char** argv) {
  const auto line = ParseCommandLine(argc, argv);
  if (!line.ok()) {
    std::cerr << line.status().message() << "\n";
    return 2;
  }
  if (line->help) {
    std::cout << FlagHelp({"role", "address", "answer", "time", "calls"});
    return 0;
  }
  const std::string role = absl::GetFlag(FLAGS_role);
  const bool turn = absl::GetFlag(FLAGS_answer) == "turn";
  Metrics metrics;
  Turns turns;
  std::string address = absl::GetFlag(FLAGS_address);
  std::unique_ptr<RpcServer> server;
  if (role != "client") {
    RpcServerOptions options;
    options.listen = role == "both" ? "127.0.0.1:0" : address;
    server = std::make_unique<RpcServer>(options, &metrics);
    payment::v1::CaptureResponse response;
    response.set_payment_id("019a7d3e-5f0a-7c1e-8b1a-0123456789ab/pay");
    server->AddService(
        *google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(kService),
        [&turns, turn, payload = response.SerializeAsString()](
            const google::protobuf::MethodDescriptor&, CallContext,
            std::unique_ptr<google::protobuf::Message>, Responder responder) {
          if (turn) {
            turns.Add(payload, std::move(responder));
          } else {
            responder.Done(payload);
          }
        });
    if (const absl::Status status = server->Start(); !status.ok()) {
      std::cerr << status.message() << "\n";
      return 1;
    }
    if (role == "both") address = absl::StrCat("127.0.0.1:", server->port());
  }
  const double cpu_before = CpuSeconds();
  const absl::Time start = absl::Now();
  int64_t calls = 0, failed = 0;
  if (role == "server") {
    absl::SleepFor(absl::GetFlag(FLAGS_time));
    calls = metrics.ServerMethod(absl::StrCat(kService, ".Capture")).by_code[0]->value();
  } else {
    RpcClientOptions options;
    options.peers = absl::StrCat("payment=", address);
    auto client = *RpcClient::Create(options, &metrics);
    Load load(client.get(), start + absl::GetFlag(FLAGS_time));
    load.Run(absl::GetFlag(FLAGS_calls));
    calls = load.ok();
    failed = load.failed();
  }
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  std::printf(
      "%s answer=%s calls=%d calls_per_s=%.0f failed=%lld cpu_us_per_call=%.1f mean_turn=%.1f\n",
      role.c_str(), turn ? "turn" : "inline", absl::GetFlag(FLAGS_calls),
      static_cast<double>(calls) / seconds, static_cast<long long>(failed),
      calls == 0 ? 0.0 : (CpuSeconds() - cpu_before) * 1e6 / static_cast<double>(calls),
      turns.mean());
  return failed == 0 && calls > 0 ? 0 : 1;
}

}  // namespace
}  // namespace gaekju::runtime

int main(int argc, char** argv) { return gaekju::runtime::Main(argc, argv); }
