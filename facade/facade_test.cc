// The facade's pure parts: errors, HTTP statuses, lanes, and the gateway's configuration.
#include "facade/facade.h"

#include <atomic>
#include <chrono>
#include <future>

#include "absl/strings/match.h"
#include "facade/backend.h"
#include "facade/gateway.h"
#include "flow/turn.h"
#include "gmock/gmock.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/descriptor.pb.h"
#include "google/rpc/code.pb.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"

namespace gaekju::facade {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

google::rpc::Status Unreachable() {
  google::rpc::Status status =
      flow::MakeStatus(google::rpc::UNAVAILABLE, "gaekju.order.v1.OrderService", "STEP_UNREACHABLE",
                       "delivery cannot be reached", "", 1'500'000);
  for (const auto& [locale, words] :
       std::map<std::string, std::string>{{"ko", "잠시 후 다시"}, {"en", "in a \"moment\""}}) {
    google::rpc::LocalizedMessage message;
    message.set_locale(locale);
    message.set_message(words);
    status.add_details()->PackFrom(message);
  }
  return status;
}

TEST(Errors, KeepTheirDetailsOnTheWayThroughTheFacade) {
  const google::rpc::Status status = Unreachable();
  EXPECT_EQ(ToRpc(FromRpc(status)).SerializeAsString(), status.SerializeAsString());
  EXPECT_EQ(ReasonOf(FromRpc(status)), "STEP_UNREACHABLE");
  EXPECT_TRUE(IsUnreachable(FromRpc(status)));
  EXPECT_FALSE(IsUnreachable(Error(absl::StatusCode::kNotFound, "ORDER_UNKNOWN", "none")));
}

TEST(Errors, SpeakTheCallersLanguage) {
  const absl::Time now = absl::FromUnixSeconds(0);
  EXPECT_EQ(ErrorBody(Unreachable(), "/orders", "", now),
            R"({"timestamp":"1970-01-01T00:00:00.000Z","status":503,"error":"Service Unavailable",)"
            R"("message":"잠시 후 다시","reason":"STEP_UNREACHABLE","path":"/orders"})");
  EXPECT_THAT(ErrorBody(Unreachable(), "", "en-US,en;q=0.9", now),
              HasSubstr(R"("message":"in a \"moment\"")"));
}

TEST(Errors, NameTheField) {
  const absl::Status status = Error(absl::StatusCode::kInvalidArgument, "QUANTITY_TOO_SMALL",
                                    "too few", "lines[0].quantity");
  EXPECT_THAT(ErrorBody(ToRpc(status), "", "", absl::UnixEpoch()),
              HasSubstr(R"("field":"lines[0].quantity")"));
}

TEST(Errors, AWebClientKnowsAPageTokenAsItsCursor) {
  const auto wrong = [](const char* field) {
    return FromRpc(
        flow::MakeStatus(google::rpc::INVALID_ARGUMENT, "d", "FIELD_INVALID", "", field));
  };
  EXPECT_EQ(ReasonOf(OfCursor(wrong("page_token"))), "CURSOR_INVALID");
  EXPECT_THAT(ErrorBody(ToRpc(OfCursor(wrong("page_token"))), "", "", absl::UnixEpoch()),
              HasSubstr(R"("field":"cursor")"));
  EXPECT_EQ(OfCursor(wrong("storefront")), wrong("storefront"));
  EXPECT_EQ(OfCursor(FromRpc(Unreachable())), FromRpc(Unreachable()));
}

TEST(Errors, RetryAfterIsWholeSecondsAndNeverNone) {
  EXPECT_EQ(RetryAfterSeconds(Unreachable()), 2);
  EXPECT_EQ(RetryAfterSeconds(flow::MakeStatus(google::rpc::UNAVAILABLE, "d", "R", "", "", 1)), 1);
  EXPECT_EQ(RetryAfterSeconds(flow::MakeStatus(google::rpc::NOT_FOUND, "d", "R", "")), 0);
}

TEST(Errors, EveryCodeHasItsHttpStatus) {
  const std::map<int, int> wanted = {
      {google::rpc::OK, 200},
      {google::rpc::CANCELLED, 499},
      {google::rpc::UNKNOWN, 500},
      {google::rpc::INVALID_ARGUMENT, 400},
      {google::rpc::DEADLINE_EXCEEDED, 504},
      {google::rpc::NOT_FOUND, 404},
      {google::rpc::ALREADY_EXISTS, 409},
      {google::rpc::PERMISSION_DENIED, 403},
      {google::rpc::UNAUTHENTICATED, 401},
      {google::rpc::RESOURCE_EXHAUSTED, 429},
      {google::rpc::FAILED_PRECONDITION, 409},
      {google::rpc::ABORTED, 409},
      {google::rpc::OUT_OF_RANGE, 400},
      {google::rpc::UNIMPLEMENTED, 501},
      {google::rpc::INTERNAL, 500},
      {google::rpc::UNAVAILABLE, 503},
      {google::rpc::DATA_LOSS, 500},
  };
  for (const auto& [code, status] : wanted) EXPECT_EQ(HttpStatusOf(code), status) << code;
}

TEST(PercentEncode, IsPrintableAsciiWithoutPercentOfItsOwn) {
  EXPECT_EQ(PercentEncode("{\"a\":\"후%\n\"}"), "{\"a\":\"%ED%9B%84%25%0A\"}");
}

TEST(Lane, RunsAsManyAsItHasThreadsAndRefusesBeyondItsQueue) {
  Lane lane(2, 1);
  std::promise<void> open;
  std::shared_future<void> opened = open.get_future().share();
  std::atomic<int> begun{0}, ended{0};
  const auto wait = [&] {
    ++begun;
    opened.wait();
    ++ended;
  };
  // Both threads get work; a third piece waits; a fourth is refused.
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(lane.Submit(wait));
    while (begun.load() <= i) std::this_thread::yield();
  }
  EXPECT_TRUE(lane.Submit(wait));
  EXPECT_FALSE(lane.Submit(wait));
  EXPECT_EQ(begun.load(), 2);
  open.set_value();
  lane.Stop();
  EXPECT_EQ(ended.load(), 3);
  EXPECT_FALSE(lane.Submit(wait)) << "a stopped lane takes nothing";
}

GatewayOptions Options() {
  return {.facade = "127.0.0.1:1",
          .peers = {{"order", "127.0.0.1:2"}, {"payment", "127.0.0.1:3"}},
          .listeners = {{.name = "api", .ports = {4}}, {.name = "fashion", .ports = {5, 6}}},
          .descriptor_path = "/tmp/gateway.binpb",
          .admin_port = 7};
}

TEST(Gateway, LetsThroughWhatARoleMayCallAndNothingElse) {
  const absl::StatusOr<std::string> json = GatewayBootstrap(Options());
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_THAT(*json, HasSubstr("/gaekju.payment.v1.PaymentService/ListPayments"));
  EXPECT_THAT(*json, Not(HasSubstr("/gaekju.payment.v1.PaymentService/Capture")));
  EXPECT_THAT(*json, Not(HasSubstr("/gaekju.payment.v1.PaymentService/Refund")));
  EXPECT_THAT(*json, HasSubstr("/gaekju.facade.fashion.v1.FashionService/CreateOrder"));
  EXPECT_THAT(*json, Not(HasSubstr("/gaekju.facade.myshop.v1.MyshopService/CreateOrder")));
}

TEST(Gateway, KnowsByWhichMethodsAPathIsAsked) {
  const absl::StatusOr<std::string> json = GatewayBootstrap(Options());
  ASSERT_TRUE(json.ok()) << json.status();
  for (const char* line :
       {R"({ \"^/orders$\", \"POST\" })", R"({ \"^/orders/[^/:]+$\", \"DELETE\" })",
        R"({ \"^/v1/payments/[^/:]+/[^/:]+$\", \"GET\" })",
        R"({ \"^/v1/payments/[^/:]+/[^/:]+%:pay$\", \"POST\" })"}) {
    EXPECT_THAT(*json, HasSubstr(line));
  }
  EXPECT_THAT(*json, Not(HasSubstr("%:capture"))) << "nobody outside may ask for it";
}

TEST(Gateway, SaysWhatIsWrong) {
  GatewayOptions options = Options();
  options.listeners.push_back({.name = "nosuch", .ports = {8}});
  EXPECT_THAT(std::string(GatewayBootstrap(options).status().message()), HasSubstr("'nosuch'"));
  options = Options();
  options.listeners[0].ports.clear();
  EXPECT_FALSE(GatewayBootstrap(options).ok());
  options = Options();
  options.facade = "nowhere";
  EXPECT_FALSE(GatewayBootstrap(options).ok());
}

TEST(Gateway, DescriptorsStandAloneAndKeepJsonNames) {
  google::protobuf::FileDescriptorSet files;
  ASSERT_TRUE(files.ParseFromString(GatewayDescriptors({"order", "payment"})));
  google::protobuf::DescriptorPool pool;
  for (const auto& file : files.file()) ASSERT_NE(pool.BuildFile(file), nullptr) << file.name();
  for (const Shop& shop : Shops())
    EXPECT_NE(pool.FindServiceByName(shop.service()), nullptr) << shop.service();
  const auto* order = pool.FindMessageTypeByName("gaekju.facade.fashion.v1.Order");
  ASSERT_NE(order, nullptr);
  EXPECT_EQ(order->FindFieldByName("links")->json_name(), "_links");
  EXPECT_EQ(order->FindFieldByName("product_id")->json_name(), "productId");
  EXPECT_NE(pool.FindMessageTypeByName("google.rpc.ErrorInfo"), nullptr);
}

TEST(Shops, AnswerEveryMethodOfTheirContract) {
  for (const Shop& shop : Shops()) {
    const auto* service =
        google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(shop.service());
    ASSERT_NE(service, nullptr) << shop.service();
    std::set<std::string> wanted, answered;
    for (int i = 0; i < service->method_count(); ++i) wanted.insert(service->method(i)->name());
    for (const Shop::Method& method : shop.methods())
      EXPECT_TRUE(answered.insert(method.name).second) << method.name << " twice";
    EXPECT_EQ(wanted, answered) << shop.id();
    EXPECT_FALSE(shop.document_ports().empty()) << shop.id();
    EXPECT_FALSE(shop.example().empty()) << shop.id();
  }
}

}  // namespace
}  // namespace gaekju::facade
