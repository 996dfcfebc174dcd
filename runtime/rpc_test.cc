// The RPC server and client against each other over loopback, and against gRPC's own client where
// that shows more.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gaekju/order/v1/order_service.pb.h"
#include "gaekju/payment/v1/payment_service.pb.h"
#include "gmock/gmock.h"
#include "google/rpc/code.pb.h"
#include "google/rpc/error_details.pb.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/version_info.h"
#include "gtest/gtest.h"
#include "runtime/rpc_client.h"
#include "runtime/rpc_server.h"
#include "runtime/testing/eventually.h"
#include "runtime/trace.h"

namespace gaekju::runtime {
namespace {

using gaekju::payment::v1::CaptureRequest;
using gaekju::payment::v1::CaptureResponse;
using google::protobuf::DescriptorPool;
using google::protobuf::Message;
using google::protobuf::MethodDescriptor;
using testing::HasSubstr;

constexpr char kPayment[] = "gaekju.payment.v1.PaymentService";
constexpr char kCapture[] = "gaekju.payment.v1.PaymentService.Capture";
constexpr char kGetPayment[] = "gaekju.payment.v1.PaymentService.GetPayment";
constexpr char kOrder[] = "gaekju.order.v1.OrderService";
constexpr absl::Duration kPatience = absl::Seconds(20);

// A handler's arguments, kept for the test to answer.
struct Held {
  const MethodDescriptor* method;
  CallContext call;
  std::unique_ptr<Message> request;
  Responder responder;
};

// A server of the payment and order contracts on a free port, whose handler is the test's.
class RpcTest : public testing::Test {
 protected:
  void Start(RpcServerOptions options = {}) {
    options.listen = "127.0.0.1:0";
    options.watchdog_period = absl::ZeroDuration();
    server_ = std::make_unique<RpcServer>(std::move(options), &metrics_);
    for (const char* name : {kPayment, kOrder}) {
      server_->AddService(
          *DescriptorPool::generated_pool()->FindServiceByName(name),
          [this](const MethodDescriptor& method, CallContext call, std::unique_ptr<Message> request,
                 Responder responder) {
            handler_(Held{&method, std::move(call), std::move(request), std::move(responder)});
          });
    }
    ASSERT_TRUE(server_->Start().ok());
    address_ = absl::StrCat("127.0.0.1:", server_->port());
    RpcClientOptions client_options;
    client_options.peers = absl::StrCat("payment=", address_, ",order=", address_);
    client_options.breaker.enabled = false;
    client_ = *RpcClient::Create(client_options, &metrics_);
    channel_ = grpc::CreateChannel(address_, grpc::InsecureChannelCredentials());
  }

  // Handlers that keep the call.
  void HoldCalls() {
    handler_ = [this](Held held) {
      absl::MutexLock lock(&mutex_);
      held_.push_back(std::make_unique<Held>(std::move(held)));
    };
  }
  int held_count() {
    absl::MutexLock lock(&mutex_);
    return static_cast<int>(held_.size());
  }
  Held& WaitHeld(int count = 1) {
    EXPECT_TRUE(Eventually([&] { return held_count() >= count; }));
    absl::MutexLock lock(&mutex_);
    return *held_[count - 1];
  }

  UnaryResult Unary(const std::string& method, std::string payload, int64_t timeout_us = 10'000'000,
                    std::string traceparent = "") {
    UnaryCall call = To(method, timeout_us, std::move(payload));
    call.traceparent = std::move(traceparent);
    return Wait(*client_, std::move(call));
  }
  static UnaryCall To(const std::string& method, int64_t timeout_us, std::string payload = "") {
    UnaryCall call;
    call.context = "payment";
    call.method = method;
    call.payload = std::move(payload);
    call.timeout_us = timeout_us;
    return call;
  }
  static UnaryResult Wait(RpcClient& client, UnaryCall call) {
    absl::Notification done;
    UnaryResult out;
    client.Unary(std::move(call), [&](UnaryResult result) {
      out = std::move(result);
      done.Notify();
    });
    done.WaitForNotification();
    return out;
  }

  // A call that reaches the handler and that nobody answers. Returns its timeout; longer each time
  // it did not get there, on a busy machine.
  int64_t CallPastDeadline() {
    int64_t timeout_us = 50'000;
    for (;; timeout_us *= 2) {
      EXPECT_EQ(Unary(kCapture, "", timeout_us).status.code(), google::rpc::DEADLINE_EXCEEDED);
      if (held_count() > 0) return timeout_us;
    }
  }

  // A call by gRPC's own client, without a deadline.
  grpc::Status RawUnary(const std::string& path, const std::string& payload, std::string* response,
                        grpc::ClientContext* context) {
    grpc::GenericStub stub(channel_);
    grpc::Slice slice(payload);
    grpc::ByteBuffer request(&slice, 1), answer;
    absl::Notification done;
    grpc::Status status;
    stub.UnaryCall(context, path, grpc::StubOptions(), &request, &answer, [&](grpc::Status s) {
      status = std::move(s);
      done.Notify();
    });
    done.WaitForNotification();
    grpc::Slice out;
    if (response != nullptr && answer.Valid() && answer.DumpToSingleSlice(&out).ok()) {
      response->assign(reinterpret_cast<const char*>(out.begin()), out.size());
    }
    return status;
  }

  // What grpc.health.v1 says: 1 serving, 2 not serving, -1 not found. Its messages are two fields;
  // they are written by hand here.
  int Health(const std::string& service) {
    std::string request, response;
    if (!service.empty())
      request = std::string("\x0a") + static_cast<char>(service.size()) + service;
    grpc::ClientContext context;
    const grpc::Status status =
        RawUnary("/grpc.health.v1.Health/Check", request, &response, &context);
    if (!status.ok()) return -1;
    return response.size() == 2 && response[0] == '\x08' ? response[1] : 0;
  }

  static std::string CapturePayload(const std::string& order_id,
                                    const std::string& payment_method = "") {
    CaptureRequest request;
    request.set_order_id(order_id);
    request.set_step_id("pay");
    request.set_payment_method(payment_method);
    return request.SerializeAsString();
  }

  Metrics metrics_;
  std::function<void(Held)> handler_ = [](Held) {};
  absl::Mutex mutex_;
  std::vector<std::unique_ptr<Held>> held_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<RpcClient> client_;
  std::shared_ptr<grpc::Channel> channel_;
  std::string address_;
};

std::string ReasonIn(const UnaryResult& result) { return flow::ReasonOf(result.status); }

TEST_F(RpcTest, RequestArrivesParsedAndTheAnswerReturns) {
  handler_ = [](Held held) {
    EXPECT_EQ(std::string(held.method->full_name()), kCapture);
    const auto& request = static_cast<const CaptureRequest&>(*held.request);
    CaptureResponse response;
    response.set_payment_id(absl::StrCat(request.order_id(), "/", request.step_id()));
    held.responder.Send(flow::Done(response));
  };
  Start();
  const UnaryResult result = Unary(kCapture, CapturePayload("o1"));
  ASSERT_EQ(result.status.code(), 0) << result.status.ShortDebugString();
  EXPECT_FALSE(result.pending);
  CaptureResponse response;
  ASSERT_TRUE(response.ParseFromString(result.payload));
  EXPECT_EQ(response.payment_id(), "o1/pay");
  EXPECT_EQ(metrics_.ServerMethod(kCapture).by_code[0]->value(), 1);
  EXPECT_EQ(metrics_.ClientMethod("payment", kCapture).by_code[0]->value(), 1);
  EXPECT_TRUE(Eventually([&] { return server_->inflight() == 0; }));
}

TEST_F(RpcTest, LargeMessagesTravelBothWays) {
  const std::string text(15'000, 'x');
  handler_ = [&](Held held) {
    const auto& request = static_cast<const CaptureRequest&>(*held.request);
    CaptureResponse response;
    for (int i = 0; i < 20; ++i) response.mutable_payment_id()->append(request.payment_method());
    held.responder.Send(flow::Done(response));
  };
  Start();
  const UnaryResult result = Unary(kCapture, CapturePayload("o1", text));
  ASSERT_EQ(result.status.code(), 0) << result.status.ShortDebugString();
  CaptureResponse response;
  ASSERT_TRUE(response.ParseFromString(result.payload));
  EXPECT_EQ(response.payment_id().size(), 300'000u);
  EXPECT_EQ(response.payment_id().find_first_not_of('x'), std::string::npos);
}

TEST_F(RpcTest, ARefusalKeepsItsDetails) {
  handler_ = [](Held held) {
    held.responder.Send(flow::Refuse(google::rpc::FAILED_PRECONDITION, "payment",
                                     "PAYMENT_DECLINED", "declined", "payment_method"));
  };
  Start();
  const UnaryResult result = Unary(kCapture, CapturePayload("o1"));
  EXPECT_EQ(result.status.code(), google::rpc::FAILED_PRECONDITION);
  EXPECT_EQ(result.status.message(), "declined");
  EXPECT_EQ(ReasonIn(result), "PAYMENT_DECLINED");
  EXPECT_EQ(result.status.details_size(), 2) << result.status.ShortDebugString();
}

TEST_F(RpcTest, DetailsTooLargeForMetadataAreLeftOut) {
  handler_ = [](Held held) {
    held.responder.Send(flow::Refuse(google::rpc::INVALID_ARGUMENT, "payment", "R",
                                     std::string(7000, 'm'), std::string(7000, 'f')));
  };
  Start();
  const UnaryResult result = Unary(kCapture, CapturePayload("o1"));
  EXPECT_EQ(result.status.code(), google::rpc::INVALID_ARGUMENT);
  EXPECT_EQ(result.status.message().size(), 1024u);
}

TEST_F(RpcTest, PendingIsOkWithTrailingMetadata) {
  handler_ = [](Held held) { held.responder.Send(flow::Pending()); };
  Start();
  const UnaryResult result = Unary(kCapture, CapturePayload("o1"));
  EXPECT_EQ(result.status.code(), 0);
  EXPECT_TRUE(result.pending);
  EXPECT_EQ(result.payload, "");
}

TEST_F(RpcTest, HeadersThatAreAskedForArriveAndThoseOfTheAnswerReturn) {
  handler_ = [](Held held) {
    EXPECT_EQ(held.call.headers, (RpcHeaders{{"idempotency-key", "k1"}}));
    const auto& request = static_cast<const CaptureRequest&>(*held.request);
    if (request.order_id() == "refused") {
      return held.responder.Reply(flow::MakeStatus(google::rpc::NOT_FOUND, "d", "R", "no"), "lost",
                                  {{"x-status", "404"}});
    }
    CaptureResponse response;
    response.set_payment_id("p1");
    held.responder.Reply({}, response.SerializeAsString(), {{"location", "/p1"}});
  };
  Start({.headers = {"idempotency-key", "not-sent"}});
  {
    grpc::ClientContext context;
    context.AddMetadata("idempotency-key", "k1");
    context.AddMetadata("not-asked-for", "x");
    std::string payload;
    EXPECT_TRUE(RawUnary("/gaekju.payment.v1.PaymentService/Capture", CapturePayload("o1"),
                         &payload, &context)
                    .ok());
    CaptureResponse response;
    EXPECT_TRUE(response.ParseFromString(payload));
    EXPECT_EQ(response.payment_id(), "p1");
    const auto& headers = context.GetServerInitialMetadata();
    const auto found = headers.find("location");
    ASSERT_NE(found, headers.end());
    EXPECT_EQ(found->second, "/p1");
  }
  grpc::ClientContext context;
  context.AddMetadata("idempotency-key", "k1");
  const grpc::Status status = RawUnary("/gaekju.payment.v1.PaymentService/Capture",
                                       CapturePayload("refused"), nullptr, &context);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(status.error_details(), HasSubstr("R"));
  EXPECT_EQ(context.GetServerInitialMetadata().count("x-status"), 1u);
}

TEST_F(RpcTest, BadRequestsNeverReachTheHandler) {
  std::atomic<int> handled{0};
  handler_ = [&](Held held) {
    ++handled;
    held.responder.Done("");
  };
  Start();
  std::string bad_text = CapturePayload("o1", "card");
  bad_text[bad_text.find("card")] = '\xff';  // not UTF-8
  struct Case {
    const char* what;
    std::string payload;
    int code;
    const char* reason;  // null: gRPC's own refusal, without details
  } const cases[] = {
      {"truncated", "\x0a\x7f", google::rpc::INVALID_ARGUMENT, "REQUEST_MALFORMED"},
      {"a field of another type", "\x08\x01\x0f", google::rpc::INVALID_ARGUMENT,
       "REQUEST_MALFORMED"},
      {"not UTF-8", bad_text, google::rpc::INVALID_ARGUMENT, "REQUEST_MALFORMED"},
      {"over the method's limit of 16384", CapturePayload("o1", std::string(16'384, 'x')),
       google::rpc::RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE"},
      {"over the server's limit", CapturePayload("o1", std::string(1 << 20, 'x')),
       google::rpc::RESOURCE_EXHAUSTED, nullptr},
  };
  for (const Case& c : cases) {
    const UnaryResult result = Unary(kCapture, c.payload);
    EXPECT_EQ(result.status.code(), c.code) << c.what << ": " << result.status.ShortDebugString();
    if (c.reason != nullptr) {
      EXPECT_EQ(ReasonIn(result), c.reason) << c.what;
    }
  }
  EXPECT_EQ(handled, 0);
  EXPECT_EQ(Unary(kCapture, "").status.code(), 0) << "an empty request is a message";
  EXPECT_EQ(Unary("gaekju.payment.v1.PaymentService.Steal", "").status.code(),
            google::rpc::UNIMPLEMENTED);
  EXPECT_EQ(handled, 1);
}

TEST_F(RpcTest, ACallerWithoutDeadlineGetsTheDefault) {
  HoldCalls();
  Start({.deadline_ms_default = 50});
  grpc::ClientContext context;
  const int64_t before_us = absl::ToUnixMicros(absl::Now());
  const grpc::Status status =
      RawUnary("/gaekju.payment.v1.PaymentService/GetPayment", "", nullptr, &context);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(flow::ReasonOf(details), "DEFAULT_DEADLINE");
  Held& held = WaitHeld();
  EXPECT_GE(held.call.deadline_us, before_us + 50'000);
  EXPECT_LT(held.call.deadline_us, before_us + 10'000'000);
  EXPECT_TRUE(held.responder.cancelled());
  held.responder.Done("too late");
}

TEST_F(RpcTest, AnAnswerBeforeTheDefaultDeadlineStops) {
  handler_ = [](Held held) { held.responder.Done(""); };
  // Were the alarm left alone, the call would be kept for an hour.
  Start({.deadline_ms_default = 3'600'000});
  grpc::ClientContext context;
  EXPECT_TRUE(RawUnary("/gaekju.payment.v1.PaymentService/GetPayment", "", nullptr, &context).ok());
  EXPECT_TRUE(Eventually([&] { return server_->inflight() == 0; }));
}

TEST_F(RpcTest, TheCallersDeadlineIsPassedOn) {
  HoldCalls();
  Start();
  const int64_t before_us = absl::ToUnixMicros(absl::Now());
  const int64_t timeout_us = CallPastDeadline();
  const int64_t after_us = absl::ToUnixMicros(absl::Now());
  Held& held = WaitHeld();
  // The timeout travels as a duration, in few digits: what the server makes of it is later by the
  // way, never much shorter.
  EXPECT_GE(held.call.deadline_us, before_us + timeout_us * 9 / 10);
  EXPECT_LE(held.call.deadline_us, after_us + timeout_us);
  EXPECT_TRUE(Eventually([&] { return held.responder.cancelled(); }));
}

TEST_F(RpcTest, ACallerThatGoesIsNoticed) {
  absl::Notification before, after;
  HoldCalls();
  Start();
  auto context = std::make_unique<grpc::ClientContext>();
  std::thread canceller([&] {
    Held& held = WaitHeld();
    held.responder.OnCancel([&] { before.Notify(); });
    context->TryCancel();
  });
  const grpc::Status status =
      RawUnary("/gaekju.payment.v1.PaymentService/Capture", "", nullptr, context.get());
  canceller.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(before.WaitForNotificationWithTimeout(kPatience));
  EXPECT_TRUE(WaitHeld().responder.cancelled());
  EXPECT_TRUE(Eventually([&] { return server_->inflight() == 0; }))
      << "the call must end without its handler's help";
}

TEST_F(RpcTest, OnCancelAfterTheCallerHasGoneRunsAtOnceAndAfterAnAnswerNever) {
  HoldCalls();
  Start();
  CallPastDeadline();
  Held& gone = WaitHeld(1);
  ASSERT_TRUE(Eventually([&] { return gone.responder.cancelled(); }));
  bool ran = false;
  // Registered between the flag and the closing it would still run; wait for the end so that "at
  // once" is what is tested.
  ASSERT_TRUE(Eventually([&] { return server_->inflight() == 0; }));
  gone.responder.OnCancel([&] { ran = true; });
  EXPECT_TRUE(ran);

  std::thread answerer([&] { WaitHeld(2).responder.Done(""); });
  EXPECT_EQ(Unary(kCapture, "").status.code(), 0);
  answerer.join();
  bool ran_after = false;
  WaitHeld(2).responder.OnCancel([&] { ran_after = true; });
  EXPECT_FALSE(ran_after);
}

TEST_F(RpcTest, ADroppedResponderAnswers) {
  handler_ = [](Held) {};
  Start();
  const UnaryResult result = Unary(kCapture, "");
  EXPECT_EQ(result.status.code(), google::rpc::UNAVAILABLE);
  EXPECT_EQ(ReasonIn(result), "UNANSWERED");
}

TEST_F(RpcTest, OnlyTheFirstAnswerCounts) {
  handler_ = [](Held held) {
    held.responder.Done("");
    held.responder.Refuse(flow::MakeStatus(google::rpc::INTERNAL, "x", "X", "x"));
    held.responder.Pending();
  };
  Start();
  const UnaryResult result = Unary(kCapture, "");
  EXPECT_EQ(result.status.code(), 0);
  EXPECT_FALSE(result.pending);
}

TEST_F(RpcTest, MoreThanItCanHoldIsRefusedAndThenServedAgain) {
  HoldCalls();
  Start({.inflight_max = 2});
  absl::Mutex mutex;
  int ended = 0;
  for (int i = 0; i < 2; ++i) {
    client_->Unary(To(kCapture, 20'000'000), [&](UnaryResult result) {
      EXPECT_EQ(result.status.code(), 0);
      absl::MutexLock lock(&mutex);
      ++ended;
    });
  }
  WaitHeld(2);
  const UnaryResult refused = Unary(kCapture, "");
  EXPECT_EQ(refused.status.code(), google::rpc::UNAVAILABLE);
  EXPECT_EQ(ReasonIn(refused), "OVERLOADED");
  bool has_retry = false;
  for (const auto& detail : refused.status.details())
    has_retry |= detail.Is<google::rpc::RetryInfo>();
  EXPECT_TRUE(has_retry);
  for (int i = 1; i <= 2; ++i) WaitHeld(i).responder.Done("");
  ASSERT_TRUE(Eventually([&] {
    absl::MutexLock lock(&mutex);
    return ended == 2;
  }));
  ASSERT_TRUE(Eventually([&] { return server_->inflight() == 0; }));
  handler_ = [](Held held) { held.responder.Done(""); };
  EXPECT_EQ(Unary(kCapture, "").status.code(), 0);
}

TEST_F(RpcTest, TraceIsPassedOnOrMade) {
  std::string seen;
  handler_ = [&](Held held) {
    seen = held.call.traceparent;
    EXPECT_THAT(held.call.peer, HasSubstr("127.0.0.1"));
    held.responder.Done("");
  };
  Start();
  const std::string sent = NewTraceparent();
  Unary(kCapture, "", 10'000'000, sent);
  EXPECT_EQ(seen, sent);
  Unary(kCapture, "", 10'000'000, "nonsense");
  EXPECT_TRUE(IsTraceparent(seen)) << seen;
  EXPECT_NE(seen, sent);
  Unary(kCapture, "");
  EXPECT_TRUE(IsTraceparent(seen)) << seen;
}

TEST_F(RpcTest, HealthFollowsReadinessPerServiceAndInAll) {
  Start();
  EXPECT_EQ(Health(""), 2);
  EXPECT_EQ(Health(kPayment), 2);
  server_->SetReady(kPayment, true);
  EXPECT_EQ(Health(kPayment), 1);
  EXPECT_EQ(Health(kOrder), 2);
  EXPECT_EQ(Health(""), 2) << "one of two";
  server_->SetReady(true);
  EXPECT_EQ(Health(""), 1);
  server_->SetReady(kOrder, false);
  EXPECT_EQ(Health(""), 2);
  EXPECT_EQ(Health("gaekju.none.v1.NoneService"), -1);
}

// One question to the reflection service, by hand: `field` of ServerReflectionRequest is a string.
std::string Reflect(const std::shared_ptr<grpc::Channel>& channel, int field,
                    const std::string& text) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const auto step = [&](int64_t expected) {
    void* tag;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok && tag == reinterpret_cast<void*>(expected);
  };
  std::string out;
  auto call = stub.PrepareCall(
      &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  call->StartCall(reinterpret_cast<void*>(1));
  EXPECT_TRUE(step(1));
  const std::string payload =
      std::string(1, static_cast<char>(field << 3 | 2)) + static_cast<char>(text.size()) + text;
  grpc::Slice slice(payload);
  call->Write(grpc::ByteBuffer(&slice, 1), reinterpret_cast<void*>(2));
  EXPECT_TRUE(step(2));
  grpc::ByteBuffer answer;
  call->Read(&answer, reinterpret_cast<void*>(3));
  EXPECT_TRUE(step(3));
  grpc::Slice bytes;
  if (answer.DumpToSingleSlice(&bytes).ok())
    out.assign(reinterpret_cast<const char*>(bytes.begin()), bytes.size());
  call->WritesDone(reinterpret_cast<void*>(4));
  EXPECT_TRUE(step(4));
  grpc::Status status;
  call->Finish(&status, reinterpret_cast<void*>(5));
  EXPECT_TRUE(step(5));
  queue.Shutdown();
  return out;
}

TEST_F(RpcTest, ReflectionListsServicesAndDescribesTheirFiles) {
  Start();
  const std::string services = Reflect(channel_, 7, "*");
  EXPECT_THAT(services, HasSubstr(kPayment));
  EXPECT_THAT(services, HasSubstr(kOrder));
  EXPECT_THAT(services, HasSubstr("grpc.health.v1.Health"));
  const std::string file = Reflect(channel_, 4, kPayment);
  for (const char* name : {"gaekju/payment/v1/payment_service.proto",
                           "google/api/annotations.proto", "gaekju/auth/v1/authorization.proto"}) {
    EXPECT_THAT(file, HasSubstr(name));
  }
  EXPECT_THAT(Reflect(channel_, 3, "google/api/http.proto"), HasSubstr("google.api"));
}

// A reader of a stream by gRPC's own client.
class Reader : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  Reader(const std::shared_ptr<grpc::Channel>& channel, const std::string& path, bool read = true)
      : stub_(channel) {
    stub_.PrepareBidiStreamingCall(&context_, path, grpc::StubOptions(), this);
    StartWriteLast(&request_, grpc::WriteOptions());
    if (read) StartRead(&message_);
    StartCall();
  }
  ~Reader() override { done_.WaitForNotification(); }
  void Cancel() { context_.TryCancel(); }
  void Read() { StartRead(&message_); }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    grpc::Slice bytes;
    const bool dumped = message_.DumpToSingleSlice(&bytes).ok();
    {
      absl::MutexLock lock(&mutex_);
      messages_.emplace_back(
          dumped ? std::string(reinterpret_cast<const char*>(bytes.begin()), bytes.size()) : "?");
    }
    StartRead(&message_);
  }
  void OnDone(const grpc::Status& status) override {
    status_ = status;
    done_.Notify();
  }
  std::vector<std::string> messages() {
    absl::MutexLock lock(&mutex_);
    return messages_;
  }
  grpc::Status WaitEnd() {
    EXPECT_TRUE(done_.WaitForNotificationWithTimeout(kPatience));
    return status_;
  }
  bool ended() const { return done_.HasBeenNotified(); }

 private:
  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::Slice empty_;
  grpc::ByteBuffer request_{&empty_, 1}, message_;
  absl::Mutex mutex_;
  std::vector<std::string> messages_ ABSL_GUARDED_BY(mutex_);
  grpc::Status status_;
  absl::Notification done_;
};
constexpr char kWatch[] = "/gaekju.order.v1.OrderService/WatchOrder";

TEST_F(RpcTest, AStreamDeliversInOrderAndEnds) {
  HoldCalls();
  Start();
  Reader reader(channel_, kWatch);
  Held& held = WaitHeld();
  EXPECT_TRUE(held.responder.Write("one"));
  EXPECT_TRUE(held.responder.Write("two"));
  held.responder.Done("three");
  EXPECT_FALSE(held.responder.Write("four"));
  EXPECT_TRUE(reader.WaitEnd().ok());
  EXPECT_THAT(reader.messages(), testing::ElementsAre("one", "two", "three"));
  EXPECT_TRUE(Eventually([&] { return server_->inflight() == 0; }));
}

TEST_F(RpcTest, AStreamCanBeRefused) {
  handler_ = [](Held held) {
    held.responder.Refuse(
        flow::MakeStatus(google::rpc::NOT_FOUND, "order", "ORDER_NOT_FOUND", "no such order"));
  };
  Start();
  Reader reader(channel_, kWatch);
  const grpc::Status status = reader.WaitEnd();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(flow::ReasonOf(details), "ORDER_NOT_FOUND");
}

TEST_F(RpcTest, ASlowReaderLosesOldStatesNeverTheLast) {
  HoldCalls();
  Start({.stream_queue_max = 4});
  Reader reader(channel_, kWatch, /*read=*/false);
  Held& held = WaitHeld();
  // Far more than the transport's window takes while nobody reads.
  const int kCount = 3000;
  for (int i = 0; i < kCount; ++i)
    ASSERT_TRUE(held.responder.Write(absl::StrCat(i, ":", std::string(1000, '.'))));
  held.responder.Done("");
  reader.Read();
  EXPECT_TRUE(reader.WaitEnd().ok());
  const std::vector<std::string> messages = reader.messages();
  EXPECT_LT(static_cast<int>(messages.size()), kCount);
  ASSERT_FALSE(messages.empty());
  EXPECT_EQ(messages.back().substr(0, 5), "2999:");
}

TEST_F(RpcTest, AWatcherThatGoesIsNoticed) {
  HoldCalls();
  Start();
  Reader reader(channel_, kWatch);
  Held& held = WaitHeld();
  absl::Notification gone;
  held.responder.OnCancel([&] { gone.Notify(); });
  ASSERT_TRUE(held.responder.Write("one"));
  ASSERT_TRUE(Eventually([&] { return reader.messages().size() == 1; }));
  reader.Cancel();
  EXPECT_TRUE(gone.WaitForNotificationWithTimeout(kPatience));
  EXPECT_FALSE(held.responder.Write("two"));
  reader.WaitEnd();
  EXPECT_TRUE(Eventually([&] { return server_->inflight() == 0; }));
}

TEST_F(RpcTest, ShutdownEndsStreamsAtOnceAndLetsCallsFinish) {
  HoldCalls();
  Start();
  Reader reader(channel_, kWatch);
  WaitHeld(1);
  absl::Notification ended;
  UnaryResult result;
  client_->Unary(To(kCapture, 20'000'000), [&](UnaryResult r) {
    result = std::move(r);
    ended.Notify();
  });
  WaitHeld(2);
  std::thread stopper([&] { server_->Shutdown(absl::Seconds(20)); });
  const grpc::Status status = reader.WaitEnd();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(ended.HasBeenNotified());
  WaitHeld(2).responder.Done("");
  ASSERT_TRUE(ended.WaitForNotificationWithTimeout(kPatience));
  EXPECT_EQ(result.status.code(), 0) << result.status.ShortDebugString();
  stopper.join();
  EXPECT_EQ(Unary(kCapture, "", 200'000).status.code(), google::rpc::UNAVAILABLE);
}

TEST_F(RpcTest, ShutdownWithoutGraceCancelsAndRespondersStayHarmless) {
  HoldCalls();
  Start();
  absl::Notification ended;
  client_->Unary(To(kCapture, 20'000'000), [&](UnaryResult r) {
    EXPECT_NE(r.status.code(), 0);
    ended.Notify();
  });
  WaitHeld();
  server_.reset();
  EXPECT_TRUE(ended.WaitForNotificationWithTimeout(kPatience));
  EXPECT_TRUE(WaitHeld().responder.cancelled());
  WaitHeld().responder.Done("");  // after the server is gone
}

TEST(RpcServer, SaysWhyItCannotListen) {
  Metrics metrics;
  for (const char* listen :
       {"50051", ":50051", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:70000"}) {
    RpcServer server(RpcServerOptions{.listen = listen}, &metrics);
    EXPECT_EQ(server.Start().code(), absl::StatusCode::kInvalidArgument) << listen;
  }
  RpcServer first(RpcServerOptions{.listen = "127.0.0.1:0"}, &metrics);
  ASSERT_TRUE(first.Start().ok());
  RpcServer second(RpcServerOptions{.listen = absl::StrCat("127.0.0.1:", first.port())}, &metrics);
  const absl::Status status = second.Start();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("--listen"));
}

// ---------------------------------------------------------------- the client

// A port that nobody listens on: bound, so that nobody takes it, and not listening.
class ClosedPort {
 public:
  ClosedPort() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
  }
  ~ClosedPort() { Free(); }
  void Free() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
  int port() const { return port_; }

 private:
  int fd_;
  int port_ = 0;
};

flow::StepResult CallAndWait(RpcClient& client, flow::Call call) {
  absl::Notification done;
  flow::StepResult out;
  client.Call(std::move(call), [&](flow::StepResult result) {
    out = std::move(result);
    done.Notify();
  });
  done.WaitForNotification();
  return out;
}

flow::Call CaptureCall() {
  flow::Call call;
  call.context = "payment";
  call.method = kCapture;
  call.order_id = "o1";
  call.step_id = "pay";
  call.undo = true;
  call.timeout_us = 5'000'000;
  return call;
}

TEST(RpcClient, ReadsWhereContextsAre) {
  Metrics metrics;
  auto client = RpcClient::Create({.peers = " order=127.0.0.1:1 , payment = [::1]:2,"}, &metrics);
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_EQ((*client)->AddressOf("order"), "127.0.0.1:1");
  EXPECT_EQ((*client)->AddressOf("payment"), "[::1]:2");
  EXPECT_EQ((*client)->AddressOf("view"), "view:50051");
  for (const char* peers : {"order", "=127.0.0.1:1", "order=", "order=a:1,order=b:1"}) {
    EXPECT_EQ(RpcClient::Create({.peers = peers}, &metrics).status().code(),
              absl::StatusCode::kInvalidArgument)
        << peers;
  }
}

TEST(RpcClient, ClassifiesEveryCode) {
  using flow::Outcome;
  for (int code = 1; code < kStatusCodeCount; ++code) {
    UnaryResult result;
    result.status.set_code(code);
    const bool refused = code == google::rpc::INVALID_ARGUMENT || code == google::rpc::NOT_FOUND ||
                         code == google::rpc::ALREADY_EXISTS ||
                         code == google::rpc::FAILED_PRECONDITION ||
                         code == google::rpc::OUT_OF_RANGE;
    const flow::StepResult step = ClassifyResult(CaptureCall(), result);
    EXPECT_EQ(step.outcome == Outcome::OUTCOME_REFUSED, refused) << code;
    EXPECT_EQ(step.unreachable, !refused) << code;
    google::rpc::Status status;
    EXPECT_TRUE(status.ParseFromString(step.payload));
    EXPECT_EQ(status.code(), code);
    EXPECT_EQ(step.order_id, "o1");
    EXPECT_EQ(step.step_id, "pay");
    EXPECT_TRUE(step.undo);
  }
  UnaryResult ok;
  ok.payload = "p";
  EXPECT_EQ(ClassifyResult(CaptureCall(), ok).outcome, Outcome::OUTCOME_DONE);
  EXPECT_EQ(ClassifyResult(CaptureCall(), ok).payload, "p");
  ok.pending = true;
  EXPECT_EQ(ClassifyResult(CaptureCall(), ok).outcome, Outcome::OUTCOME_PENDING);
}

TEST(RpcClient, CircuitOpensAndClosesAgainWhenThePeerComes) {
  Metrics metrics;
  ClosedPort port;
  RpcClientOptions options;
  options.peers = absl::StrCat("payment=127.0.0.1:", port.port());
  options.breaker.failures_max = 3;
  options.breaker.open_us = 1'000;
  options.breaker.open_us_max = 20'000;
  auto client = *RpcClient::Create(options, &metrics);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(CallAndWait(*client, CaptureCall()).unreachable);
  EXPECT_GE(metrics.Peer("payment").breaker_opened.value(), 1);
  EXPECT_TRUE(Eventually([&] {
    return CallAndWait(*client, CaptureCall()).unreachable &&
           metrics.Peer("payment").breaker_refused.value() > 0;
  })) << "no call was refused by the circuit";

  port.Free();
  RpcServer server(RpcServerOptions{.listen = absl::StrCat("127.0.0.1:", port.port()),
                                    .watchdog_period = absl::ZeroDuration()},
                   &metrics);
  server.AddService(*DescriptorPool::generated_pool()->FindServiceByName(kPayment),
                    [](const MethodDescriptor&, CallContext, std::unique_ptr<Message>,
                       Responder responder) { responder.Done("x"); });
  ASSERT_TRUE(server.Start().ok());
  EXPECT_TRUE(Eventually([&] { return !CallAndWait(*client, CaptureCall()).unreachable; }));
  EXPECT_EQ(client->breaker_state("payment"), Breaker::State::kClosed);
  EXPECT_EQ(metrics.Peer("payment").breaker_state.value(), 0);
}

TEST(RpcClient, AnOpenCircuitSaysSo) {
  Metrics metrics;
  ClosedPort port;
  RpcClientOptions options;
  options.peers = absl::StrCat("payment=127.0.0.1:", port.port());
  options.breaker.failures_max = 1;
  options.breaker.open_us = options.breaker.open_us_max = 3'600'000'000;
  auto client = *RpcClient::Create(options, &metrics);
  EXPECT_TRUE(CallAndWait(*client, CaptureCall()).unreachable);
  const flow::StepResult result = CallAndWait(*client, CaptureCall());
  EXPECT_TRUE(result.unreachable);
  google::rpc::Status status;
  ASSERT_TRUE(status.ParseFromString(result.payload));
  EXPECT_EQ(flow::ReasonOf(status), "CIRCUIT_OPEN");
  EXPECT_EQ(client->breaker_state("payment"), Breaker::State::kOpen);
}

TEST_F(RpcTest, ClosingTheClientEndsItsCalls) {
  HoldCalls();
  Start();
  std::atomic<int> ended{0};
  for (int i = 0; i < 10; ++i) {
    flow::Call call = CaptureCall();
    call.timeout_us = 600'000'000;
    client_->Call(call, [&](flow::StepResult result) {
      EXPECT_TRUE(result.unreachable);
      ++ended;
    });
  }
  WaitHeld(10);
  client_.reset();
  EXPECT_EQ(ended, 10);
}

TEST_F(RpcTest, ManyCallsFromManyThreadsEachGetTheirOwnAnswer) {
  handler_ = [](Held held) {
    CaptureResponse response;
    response.set_payment_id(static_cast<const CaptureRequest&>(*held.request).order_id());
    held.responder.Send(flow::Done(response));
  };
  Start();
  constexpr int kThreads = 4, kEach = 500;
  std::atomic<int> right{0}, ended{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        const std::string id = absl::StrCat(t, "-", i);
        client_->Unary(To(kCapture, 60'000'000, CapturePayload(id)), [&, id](UnaryResult result) {
          CaptureResponse response;
          if (result.status.code() == 0 && response.ParseFromString(result.payload) &&
              response.payment_id() == id)
            ++right;
          ++ended;
        });
      }
    });
  }
  for (auto& thread : threads) thread.join();
  ASSERT_TRUE(Eventually([&] { return ended == kThreads * kEach; }));
  EXPECT_EQ(right, kThreads * kEach);
}

// ---------------------------------------------------------------- the watchdog

TEST(Watchdog, IsQuietWhileTheServerAnswers) {
  Metrics metrics;
  std::atomic<int> dead{0};
  RpcServerOptions options{.listen = "127.0.0.1:0",
                           .watchdog_period = absl::Milliseconds(20),
                           .watchdog_failures_max = 20};
  options.on_dead = [&] { ++dead; };
  RpcServer server(options, &metrics);
  server.AddService(
      *DescriptorPool::generated_pool()->FindServiceByName(kPayment),
      [](const MethodDescriptor&, CallContext, std::unique_ptr<Message>, Responder) {});
  ASSERT_TRUE(server.Start().ok());
  absl::SleepFor(absl::Milliseconds(
      600));  // more rounds than it takes failures; nothing to wait for, since nothing may happen
  EXPECT_EQ(dead, 0);
}

// CVE-2023-4785: when accept() fails for want of file descriptors, gRPC before 1.57 never accepts
// again.
TEST(Watchdog, NoticesAListenerThatDiedOfExhaustedFileDescriptors) {
#if GRPC_CPP_VERSION_MAJOR == 1 && GRPC_CPP_VERSION_MINOR >= 53
  GTEST_SKIP() << "this gRPC's listener recovers";
#endif
  Metrics metrics;
  std::atomic<int> dead{0};
  RpcServerOptions options{.listen = "127.0.0.1:0",
                           .watchdog_period = absl::Milliseconds(200),
                           .watchdog_failures_max = 3};
  options.on_dead = [&] { ++dead; };
  RpcServer server(options, &metrics);
  ASSERT_TRUE(server.Start().ok());
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit tight = before;
  tight.rlim_cur = 64;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &tight), 0);
  // Our own ends and the accepted ones share the limit: connect until sockets run out, and the
  // accepting end fails.
  std::vector<int> fds;
  for (int i = 0; i < 200; ++i) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) break;
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(server.port()));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    (void)connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address));
    fds.push_back(fd);
  }
  absl::SleepFor(
      absl::Milliseconds(100));  // gRPC's poller tries to accept; it leaves no trace to wait for
  for (int fd : fds) close(fd);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_TRUE(Eventually([&] { return dead > 0; }));
}

}  // namespace
}  // namespace gaekju::runtime
