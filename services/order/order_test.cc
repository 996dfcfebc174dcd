#include "services/order/order.h"

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "flow/storefront.h"
#include "flow/turn.h"
#include "gaekju/catalog/v1/catalog_service.pb.h"
#include "gaekju/notification/v1/notification_service.pb.h"
#include "gaekju/order/v1/order.pb.h"
#include "gaekju/order/v1/order_events.pb.h"
#include "gaekju/order/v1/order_service.pb.h"
#include "gaekju/payment/v1/payment_service.pb.h"
#include "gmock/gmock.h"
#include "google/protobuf/text_format.h"
#include "google/protobuf/util/message_differencer.h"
#include "google/rpc/code.pb.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"
#include "services/testing/turn_harness.h"

namespace gaekju::order {
namespace {

using flow::Answer;
using flow::Outcome;
using order::v1::CancelOrderRequest;
using order::v1::GetOrderRequest;
using order::v1::Order;
using order::v1::OrderRecord;
using order::v1::PlaceOrderRequest;
using order::v1::PlaceOrderResponse;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr char kShop[] = R"(
id: "shop" display_name { ko: "가게" en: "Shop" } currency_code: "KRW"
place {
  step { id: "quote" call: "catalog.Quote" via: GRPC }
  step { id: "pay" call: "payment.Capture" via: GRPC after: "quote" }
  step { id: "accept" call: "store.AcceptOrder" via: JETSTREAM after: "pay" }
}
cancel { step { undo: "accept" } step { undo: "pay" } }
status { stage: PLACED code: "PLACED" text { ko: "주문" en: "Placed" } }
status { done: "accept" code: "ACCEPTED" text { ko: "점주승인" en: "Accepted" } }
)";

MATCHER_P(EqualsProto, wanted, "") {
  return google::protobuf::util::MessageDifferencer::Equals(arg, wanted);
}

// The same shop, with a word for refused orders.
std::string ReadableShop() {
  return std::string(kShop) +
         R"(status { stage: REJECTED code: "REJECTED" text { ko: "예약불가" en: "Impossible" } })";
}

class FakeBook : public PlanBook {
 public:
  explicit FakeBook(const std::string& text) : plan_(*flow::ParseStorefront(text, "")) {}
  const flow::Plan* Current(const std::string& storefront) const override {
    return open_ && storefront == plan_.storefront ? &plan_ : nullptr;
  }
  void Close() { open_ = false; }
  void SetReadable(bool readable) { readable_ = readable; }
  const flow::Plan* Pinned(const std::string&, const std::string&) const override {
    return readable_ ? &plan_ : nullptr;
  }

 private:
  flow::Plan plan_;
  bool open_ = true;
  bool readable_ = true;
};

class OrderTest : public ::testing::Test {
 protected:
  explicit OrderTest(const std::string& text = kShop)
      : book_(text), context_(MakeOrderContext(&book_)), shop_(*context_) {}

  static PlaceOrderRequest Request(const std::string& request_id = "r1") {
    PlaceOrderRequest request;
    request.set_storefront("shop");
    request.set_request_id(request_id);
    request.set_customer_id("c1");
    request.set_payment_method("card");
    auto* line = request.add_lines();
    line->set_product_id("p1");
    line->set_quantity(2);
    return request;
  }
  Answer Place(const PlaceOrderRequest& request, const std::string& order_id = "o1") {
    flow::Caller caller;
    caller.request_uuid = order_id;
    return shop_.Call(request, caller);
  }
  Answer Cancel(const std::string& order_id = "o1", const std::string& customer_id = "") {
    CancelOrderRequest request;
    request.set_order_id(order_id);
    request.set_customer_id(customer_id);
    return shop_.Call(request);
  }
  void Result(const std::string& step, Outcome outcome, const std::string& payload = "",
              bool undo = false, bool unreachable = false) {
    flow::StepResult result;
    result.order_id = "o1";
    result.step_id = step;
    result.outcome = outcome;
    result.payload = payload;
    result.undo = undo;
    result.unreachable = unreachable;
    shop_.Result(result);
  }
  void Quote() {
    catalog::v1::QuoteResponse quote;
    quote.mutable_amount()->set_currency_code("KRW");
    quote.mutable_amount()->set_minor_units(20000);
    Result("quote", Outcome::OUTCOME_DONE, quote.SerializeAsString());
  }
  void PlaceWhole() {
    Place(Request());
    Quote();
    Result("pay", Outcome::OUTCOME_DONE);
  }
  std::unique_ptr<Order> Get(const std::string& order_id = "o1",
                             const std::string& customer_id = "") {
    GetOrderRequest request;
    request.set_order_id(order_id);
    request.set_customer_id(customer_id);
    auto found = shop_.Get(request);
    return std::unique_ptr<Order>(static_cast<Order*>(found.release()));
  }
  std::vector<std::string> Events() {
    std::vector<std::string> types;
    for (const auto& envelope : shop_.TakeEnvelopes()) {
      if (envelope.kind == flow::Envelope::Kind::kEvent) types.push_back(envelope.type.substr(16));
    }
    return types;
  }

  FakeBook book_;
  std::unique_ptr<flow::Context> context_;
  testing::TurnHarness shop_;
};

TEST_F(OrderTest, PlacingCallsTheFirstStepAndHoldsTheCaller) {
  const Answer answer = Place(Request());
  EXPECT_EQ(answer.kind, Answer::Kind::kWait);
  const auto calls = shop_.TakeCalls();
  ASSERT_EQ(calls.size(), 1u);
  EXPECT_EQ(calls[0].method, "gaekju.catalog.v1.CatalogService.Quote");
  EXPECT_EQ(calls[0].context, "catalog");
  EXPECT_EQ(calls[0].timeout_us, 2'000'000);
  catalog::v1::QuoteRequest quote;
  ASSERT_TRUE(quote.ParseFromString(calls[0].payload));
  EXPECT_EQ(quote.order_id(), "o1");
  EXPECT_EQ(quote.step_id(), "quote");
  EXPECT_EQ(quote.currency_code(), "KRW");
  EXPECT_EQ(quote.lines(0).quantity(), 2);
  EXPECT_THAT(Events(), IsEmpty());
  EXPECT_EQ(Get(), nullptr) << "nobody sees an order before it is taken";
}

TEST_F(OrderTest, AStepIsToldWhatTheOneBeforeAnswered) {
  Place(Request());
  shop_.TakeCalls();
  Quote();
  const auto calls = shop_.TakeCalls();
  ASSERT_EQ(calls.size(), 1u);
  payment::v1::CaptureRequest capture;
  ASSERT_TRUE(capture.ParseFromString(calls[0].payload));
  EXPECT_EQ(capture.amount().minor_units(), 20000);
  EXPECT_EQ(capture.customer_id(), "c1");
}

TEST_F(OrderTest, TakenOrdersAnswerTheirCallerTellTheWorldAndGoOn) {
  Place(Request());
  Quote();
  shop_.TakeEnvelopes();
  Result("pay", Outcome::OUTCOME_DONE);
  auto resolved = shop_.TakeResolved();
  ASSERT_EQ(resolved.size(), 1u);
  EXPECT_EQ(resolved[0].first, "o1/place");
  PlaceOrderResponse response;
  ASSERT_TRUE(response.ParseFromString(resolved[0].second.payload));
  EXPECT_EQ(response.order().state(), Order::STATE_PLACED);
  EXPECT_EQ(response.order().number(), 1);
  EXPECT_EQ(response.order().total().minor_units(), 20000);
  EXPECT_EQ(response.order().status_text().ko(), "주문");
  const auto envelopes = shop_.TakeEnvelopes();
  ASSERT_EQ(envelopes.size(), 2u);
  EXPECT_EQ(envelopes[0].type, "gaekju.store.v1.StoreService.AcceptOrder");
  EXPECT_EQ(envelopes[0].to, "store");
  EXPECT_EQ(envelopes[0].reply_to, "order");
  EXPECT_EQ(envelopes[1].type, "gaekju.order.v1.OrderPlaced");
  EXPECT_EQ(envelopes[1].resource, "orders/o1");
  EXPECT_EQ(envelopes[1].version, 1);
  ASSERT_NE(Get(), nullptr);
  Result("accept", Outcome::OUTCOME_DONE);
  EXPECT_THAT(Events(), ElementsAre("OrderCompleted"));
  EXPECT_EQ(Get()->state(), Order::STATE_COMPLETED);
}

TEST_F(OrderTest, ARefusedOrderIsAsIfItHadNeverBeen) {
  Place(Request());
  Quote();
  shop_.TakeEnvelopes();
  Result(
      "pay", Outcome::OUTCOME_REFUSED,
      flow::MakeStatus(google::rpc::FAILED_PRECONDITION, "payment", "PAYMENT_DECLINED", "declined")
          .SerializeAsString());
  auto resolved = shop_.TakeResolved();
  ASSERT_EQ(resolved.size(), 1u);
  EXPECT_EQ(resolved[0].second.kind, Answer::Kind::kRefused);
  EXPECT_EQ(flow::ReasonOf(resolved[0].second.status), "PAYMENT_DECLINED");
  EXPECT_THAT(shop_.TakeEnvelopes(), IsEmpty());
  EXPECT_EQ(Get(), nullptr);
  EXPECT_EQ(Cancel().status.code(), google::rpc::NOT_FOUND);
}

TEST_F(OrderTest, TheSameRequestIsTheSameOrder) {
  PlaceWhole();
  const Answer again = Place(Request(), "o2");
  EXPECT_EQ(again.kind, Answer::Kind::kDone);
  PlaceOrderResponse response;
  ASSERT_TRUE(response.ParseFromString(again.payload));
  EXPECT_EQ(response.order().order_id(), "o1");
  EXPECT_EQ(shop_.Row<OrderRecord>(kOrders, "o2"), nullptr);
}

TEST_F(OrderTest, ARequestThatRunsAgainAfterAnUnknownCommitIsAnsweredByItsOwnOrder) {
  for (const char* request_id : {"r1", ""}) {
    const std::string uuid = std::string("o") + request_id;
    Place(Request(request_id), uuid);
    const Answer again = Place(Request(request_id), uuid);
    EXPECT_EQ(again.kind, Answer::Kind::kWait);
    EXPECT_EQ(again.wait_key, uuid + "/place");
  }
}

TEST_F(OrderTest, AShopThatHasClosedKnowsWhatItTook) {
  PlaceWhole();
  book_.Close();
  EXPECT_EQ(Place(Request(), "o2").kind, Answer::Kind::kDone);
  EXPECT_EQ(flow::ReasonOf(Place(Request("r2"), "o3").status), "STOREFRONT_UNKNOWN");
}

TEST_F(OrderTest, TheSameRequestWhilePlacingWaitsForTheSameOrder) {
  Place(Request());
  const Answer again = Place(Request(), "o2");
  EXPECT_EQ(again.kind, Answer::Kind::kWait);
  EXPECT_EQ(again.wait_key, "o1/place");
}

TEST_F(OrderTest, TheSameRequestIdWithOtherContentIsRefused) {
  PlaceWhole();
  PlaceOrderRequest other = Request();
  other.mutable_lines(0)->set_quantity(3);
  const Answer answer = Place(other, "o2");
  EXPECT_EQ(answer.status.code(), google::rpc::ALREADY_EXISTS);
  EXPECT_EQ(flow::ReasonOf(answer.status), "REQUEST_ID_REUSED");
}

TEST_F(OrderTest, ADeclinedRequestStaysDeclined) {
  Place(Request());
  Quote();
  Result(
      "pay", Outcome::OUTCOME_REFUSED,
      flow::MakeStatus(google::rpc::FAILED_PRECONDITION, "payment", "PAYMENT_DECLINED", "declined")
          .SerializeAsString());
  EXPECT_EQ(flow::ReasonOf(Place(Request(), "o2").status), "PAYMENT_DECLINED");
}

TEST_F(OrderTest, ARequestRefusedForUnavailabilityMayTryAgain) {
  Place(Request());
  Result("quote", Outcome::OUTCOME_UNSPECIFIED, "", false, /*unreachable=*/true);
  auto resolved = shop_.TakeResolved();
  ASSERT_EQ(resolved.size(), 1u);
  EXPECT_EQ(resolved[0].second.status.code(), google::rpc::UNAVAILABLE);
  google::rpc::RetryInfo retry;
  bool has_retry = false;
  for (const auto& detail : resolved[0].second.status.details())
    has_retry |= detail.UnpackTo(&retry);
  EXPECT_TRUE(has_retry);
  const Answer again = Place(Request(), "o2");
  EXPECT_EQ(again.wait_key, "o2/place");
  EXPECT_EQ(shop_.Row<OrderRecord>(kOrders, "o2")->order().number(), 2)
      << "refused orders leave gaps";
}

TEST_F(OrderTest, CancelAnswersAtOnceWhereNobodyIsWaitedFor) {
  PlaceWhole();
  Events();
  const Answer answer = Cancel();
  EXPECT_EQ(answer.kind, Answer::Kind::kDone);
  EXPECT_EQ(Get()->state(), Order::STATE_CANCELLING);
  EXPECT_THAT(Events(), ElementsAre("OrderCancelled"));
  Result("accept", Outcome::OUTCOME_DONE, "", /*undo=*/true);
  Result("pay", Outcome::OUTCOME_DONE, "", /*undo=*/true);
  EXPECT_THAT(Events(), ElementsAre("OrderCancelCompleted"));
  EXPECT_EQ(Cancel().kind, Answer::Kind::kDone) << "again is the same";
  EXPECT_THAT(Events(), IsEmpty());
}

TEST_F(OrderTest, OthersSeeNothing) {
  PlaceWhole();
  EXPECT_EQ(Cancel("o1", "c2").status.code(), google::rpc::NOT_FOUND);
  EXPECT_EQ(Cancel("o9").status.code(), google::rpc::NOT_FOUND);
  EXPECT_NE(Cancel("o1", "c1").status.code(), google::rpc::NOT_FOUND);
}

TEST_F(OrderTest, ALostCallIsMadeAgainByItsTimer) {
  Place(Request());
  shop_.TakeCalls();
  shop_.now_us += 3'500'000;
  EXPECT_EQ(shop_.RunTimer(), 1);
  const auto calls = shop_.TakeCalls();
  ASSERT_EQ(calls.size(), 1u);
  EXPECT_EQ(calls[0].step_id, "quote");
}

TEST_F(OrderTest, AnAnswerForNobodyChangesNothing) {
  shop_.Result(
      {.order_id = "o7", .step_id = "pay", .outcome = Outcome::OUTCOME_DONE, .payload = ""});
  EXPECT_EQ(shop_.written_count(), 0);
}

TEST_F(OrderTest, WhereTheBuyerIsIsKept) {
  PlaceOrderRequest request = Request();
  request.mutable_delivery_location()->set_latitude(37.5);
  request.mutable_delivery_location()->set_longitude(-180);
  Place(request);
  const auto* record = shop_.Row<OrderRecord>(kOrders, "o1");
  EXPECT_EQ(record->order().delivery_location().latitude(), 37.5);
  EXPECT_EQ(record->order().delivery_location().longitude(), -180);
}

TEST_F(OrderTest, IsFoundByItsNumber) {
  const auto& lists = context_->lists;
  ASSERT_EQ(lists.size(), 1u);
  EXPECT_THAT(lists[0].filters, ::testing::Contains("number"));
}

constexpr char kTellingShop[] = R"(
id: "shop" display_name { ko: "가게" en: "Shop" } currency_code: "KRW"
place {
  try_later { ko: "잠시 후" en: "Later" }
  step { id: "pay" call: "payment.Capture" via: GRPC from { field: "amount" order: "expected_total" } }
  step { id: "wait" call: "delivery.Start" via: JETSTREAM after: "pay" }
}
cancel { unless_done: "wait" step { undo: "pay" } }
status { stage: PLACED code: "PLACED" text { ko: "주문" en: "Placed" } }
notice {
  id: "tell"
  stage: PLACED
  with { [type.googleapis.com/gaekju.notification.v1.NotifyRequest] { code: "X" text { ko: "가" en: "a" } } }
}
)";

class TellingOrderTest : public OrderTest {
 protected:
  TellingOrderTest() : OrderTest(kTellingShop) {}
  static PlaceOrderRequest Shown() {
    PlaceOrderRequest request = Request();
    request.mutable_expected_total()->set_currency_code("KRW");
    request.mutable_expected_total()->set_minor_units(9000);
    return request;
  }
};

TEST_F(TellingOrderTest, WhatAStepNeedsOfTheBuyerHasToBeGiven) {
  const Answer answer = Place(Request());
  EXPECT_EQ(answer.status.code(), google::rpc::INVALID_ARGUMENT);
  EXPECT_EQ(flow::ReasonOf(answer.status), "FIELD_INVALID");
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(answer.status.details(0).UnpackTo(&info));
  EXPECT_EQ(info.metadata().at("field"), "expected_total");
  EXPECT_EQ(Place(Shown()).wait_key, "o1/place");
  const auto calls = shop_.TakeCalls();
  ASSERT_EQ(calls.size(), 1u);
  payment::v1::CaptureRequest pay;
  ASSERT_TRUE(pay.ParseFromString(calls[0].payload));
  EXPECT_EQ(pay.amount().minor_units(), 9000);
}

TEST_F(TellingOrderTest, ANoticeIsACommandThatAnswersToTheOrder) {
  Place(Shown());
  Result("pay", Outcome::OUTCOME_DONE);
  std::vector<std::string> commands;
  for (const auto& envelope : shop_.TakeEnvelopes()) {
    if (envelope.kind != flow::Envelope::Kind::kCommand || envelope.step_id != "tell") continue;
    EXPECT_EQ(envelope.to, "notification");
    EXPECT_EQ(envelope.type, "gaekju.notification.v1.NotificationService.Notify");
    EXPECT_EQ(envelope.reply_to, "order");
    notification::v1::NotifyRequest notice;
    ASSERT_TRUE(notice.ParseFromString(envelope.payload));
    EXPECT_EQ(notice.code(), "X");
    EXPECT_EQ(notice.number(), 1);
    EXPECT_EQ(notice.step_id(), "tell");
    commands.push_back(envelope.step_id);
  }
  EXPECT_THAT(commands, ElementsAre("tell"));
}

TEST_F(TellingOrderTest, AnAnsweredNoticeIsNoEvent) {
  Place(Shown());
  Result("pay", Outcome::OUTCOME_DONE);
  Events();
  Result("tell", Outcome::OUTCOME_DONE);
  EXPECT_THAT(Events(), IsEmpty());
}

TEST_F(TellingOrderTest, ACancelThatComesTooLateIsRefused) {
  Place(Shown());
  Result("pay", Outcome::OUTCOME_DONE);
  Result("wait", Outcome::OUTCOME_DONE);
  const Answer answer = Cancel();
  EXPECT_EQ(answer.status.code(), google::rpc::FAILED_PRECONDITION);
  EXPECT_EQ(flow::ReasonOf(answer.status), "CANCEL_TOO_LATE");
  EXPECT_EQ(Get()->state(), Order::STATE_COMPLETED);
}

// Whoever follows an order by its events was told of the cancel that is under way, by what else has
// happened meanwhile; so it is told as well that the cancel came to nothing.
constexpr char kAskingShop[] = R"(
id: "shop" display_name { ko: "가게" en: "Shop" } currency_code: "KRW"
place { step { id: "ship" call: "delivery.Start" via: JETSTREAM } }
cancel {
  step {
    id: "ask" call: "delivery.ApproveCancel" via: GRPC
    with { [type.googleapis.com/gaekju.delivery.v1.ApproveCancelRequest] { shipment_step_id: "ship" } }
  }
  step { undo: "ship" via: GRPC after: "ask" }
}
status { stage: PLACED code: "ORDERED" text { ko: "주문" en: "Ordered" } }
status { done: "ship" code: "SHIPPED" text { ko: "발송" en: "Shipped" } }
)";

class AskingOrderTest : public OrderTest {
 protected:
  AskingOrderTest() : OrderTest(kAskingShop) {}
};

TEST_F(AskingOrderTest, AnOrderThatIsCompleteOnceItsCancelIsRefusedSaysSo) {
  Place(Request());
  EXPECT_THAT(Events(), ElementsAre("OrderPlaced"));
  EXPECT_EQ(Cancel().kind, Answer::Kind::kWait);
  Result("ship", Outcome::OUTCOME_DONE);
  EXPECT_THAT(Events(), ElementsAre("OrderStatusChanged"));
  Result("ask", Outcome::OUTCOME_UNSPECIFIED, "", /*undo=*/false, /*unreachable=*/true);
  EXPECT_EQ(Get()->state(), Order::STATE_COMPLETED);
  EXPECT_THAT(Events(), ElementsAre("OrderCompleted"));
}

TEST_F(AskingOrderTest, AnOrderThatGoesOnOnceItsCancelIsRefusedSaysSo) {
  Place(Request());
  Cancel();
  Events();
  Result("ask", Outcome::OUTCOME_UNSPECIFIED, "", /*undo=*/false, /*unreachable=*/true);
  EXPECT_EQ(Get()->state(), Order::STATE_PLACED);
  EXPECT_THAT(Events(), ElementsAre("OrderStatusChanged"));
  Result("ship", Outcome::OUTCOME_DONE);
  EXPECT_THAT(Events(), ElementsAre("OrderCompleted"));
}

TEST_F(AskingOrderTest, ACompleteOrderSaysSoOnce) {
  Place(Request());
  Result("ship", Outcome::OUTCOME_DONE);
  EXPECT_THAT(Events(), ElementsAre("OrderPlaced", "OrderCompleted"));
  Cancel();
  Result("ask", Outcome::OUTCOME_UNSPECIFIED, "", /*undo=*/false, /*unreachable=*/true);
  EXPECT_EQ(Get()->state(), Order::STATE_COMPLETED);
  EXPECT_THAT(Events(), ElementsAre("OrderStatusChanged"));
}

// The shop's contract of a step is not known any more, and then is again.
TEST_F(OrderTest, AnOrderWhosePlanCannotBeReadStaysAsItIsAndGoesOnWhenItCan) {
  PlaceWhole();
  shop_.TakeCalls();
  shop_.TakeEnvelopes();
  const OrderRecord before = *shop_.Row<OrderRecord>(kOrders, "o1");
  ASSERT_GT(before.due_time_us(), 0);
  OrderRecord held = before;
  held.set_due_time_us(-before.due_time_us());

  book_.SetReadable(false);
  shop_.now_us += 3600'000'000;
  EXPECT_EQ(shop_.RunTimer(), 1);
  EXPECT_THAT(*shop_.Row<OrderRecord>(kOrders, "o1"), EqualsProto(held));
  EXPECT_EQ(shop_.RunTimer(), 0) << "it is not due again and again";
  Result("accept", Outcome::OUTCOME_DONE);
  EXPECT_THAT(*shop_.Row<OrderRecord>(kOrders, "o1"), EqualsProto(held));

  const Answer cancel = Cancel();
  EXPECT_EQ(cancel.kind, Answer::Kind::kRefused);
  EXPECT_EQ(cancel.status.code(), google::rpc::UNAVAILABLE);
  EXPECT_EQ(flow::ReasonOf(cancel.status), "STOREFRONT_REVISION_UNREADABLE");
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(cancel.status.details(0).UnpackTo(&info));
  EXPECT_EQ(info.metadata().at("field"), "order_id");
  EXPECT_EQ(Place(Request(), "o2").kind, Answer::Kind::kDone) << "what was answered stays so";
  EXPECT_EQ(Get()->state(), Order::STATE_PLACED);
  EXPECT_THAT(shop_.TakeEnvelopes(), IsEmpty());
  EXPECT_THAT(shop_.TakeCalls(), IsEmpty());

  // As the book turns the column; the body follows.
  book_.SetReadable(true);
  OrderRecord released = held;
  released.set_due_time_us(before.due_time_us());
  shop_.Put(kOrders, "o1", released, /*version=*/1);
  EXPECT_EQ(shop_.RunTimer(), 1);
  EXPECT_GT(shop_.Row<OrderRecord>(kOrders, "o1")->due_time_us(), shop_.now_us);
  const auto asked = shop_.TakeEnvelopes();
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_EQ(asked[0].step_id, "accept");
  Result("accept", Outcome::OUTCOME_DONE);
  EXPECT_EQ(Get()->state(), Order::STATE_COMPLETED);
}

TEST_F(OrderTest, NobodyWaitsForAnOrderWhosePlanCannotBeRead) {
  EXPECT_EQ(Place(Request()).kind, Answer::Kind::kWait);
  book_.SetReadable(false);
  const Answer answer = Place(Request(), "o2");
  EXPECT_EQ(answer.kind, Answer::Kind::kRefused);
  EXPECT_EQ(flow::ReasonOf(answer.status), "STOREFRONT_REVISION_UNREADABLE");
  book_.SetReadable(true);
  EXPECT_EQ(Place(Request(), "o2").kind, Answer::Kind::kWait);
}

// What the row says to who waits at another replica is what the turn says to who waits at its own.
class WaitTest : public OrderTest {
 protected:
  explicit WaitTest(const std::string& text = kShop) : OrderTest(text) {}
  Answer Told(const std::string& wait_key) {
    EXPECT_EQ(context_->waits.key(wait_key), "o1");
    return context_->waits.answer(wait_key, *shop_.Row<OrderRecord>(kOrders, "o1"));
  }
  // Of the last turn.
  void ExpectToldAs(const std::string& wait_key) {
    std::vector<Answer> resolved;
    for (auto& [key, answer] : shop_.TakeResolved()) {
      if (key == wait_key) resolved.push_back(answer);
    }
    ASSERT_EQ(resolved.size(), 1u);
    const Answer told = Told(wait_key);
    EXPECT_EQ(told.kind, resolved[0].kind);
    EXPECT_EQ(told.payload, resolved[0].payload);
    EXPECT_THAT(told.status, EqualsProto(resolved[0].status));
  }
};

TEST_F(WaitTest, ForAnOrderThatIsTaken) {
  Place(Request());
  Quote();
  EXPECT_EQ(Told("o1/place").kind, Answer::Kind::kWait);
  Result("pay", Outcome::OUTCOME_DONE);
  EXPECT_EQ(Told("o1/place").kind, Answer::Kind::kDone);
  ExpectToldAs("o1/place");
}

TEST_F(WaitTest, ForAnOrderThatIsRefused) {
  Place(Request());
  Result("quote", Outcome::OUTCOME_REFUSED,
         flow::MakeStatus(google::rpc::FAILED_PRECONDITION, "catalog", "STOCK_SHORT", "none left")
             .SerializeAsString());
  EXPECT_EQ(flow::ReasonOf(Told("o1/place").status), "STOCK_SHORT");
  ExpectToldAs("o1/place");
}

TEST_F(WaitTest, ForACancelOfAnOrderThatIsRefused) {
  Place(Request());
  EXPECT_EQ(Cancel().kind, Answer::Kind::kWait);
  EXPECT_EQ(Told("o1/cancel").kind, Answer::Kind::kWait);
  Result("quote", Outcome::OUTCOME_REFUSED,
         flow::MakeStatus(google::rpc::FAILED_PRECONDITION, "catalog", "STOCK_SHORT", "none left")
             .SerializeAsString());
  EXPECT_EQ(flow::ReasonOf(Told("o1/cancel").status), "ORDER_REJECTED");
  ExpectToldAs("o1/cancel");
}

TEST_F(WaitTest, ForACancelThatCameWhileTheOrderWasPlaced) {
  Place(Request());
  Quote();
  EXPECT_EQ(Cancel().kind, Answer::Kind::kWait);
  Result("pay", Outcome::OUTCOME_DONE);
  EXPECT_EQ(Told("o1/cancel").kind, Answer::Kind::kDone);
  ExpectToldAs("o1/cancel");
}

constexpr char kWaitingShop[] = R"(
id: "shop" display_name { ko: "가게" en: "Shop" } currency_code: "KRW"
place {
  step { id: "quote" call: "catalog.Quote" via: GRPC }
  step { id: "pay" call: "payment.Capture" via: GRPC after: "quote" }
  step { id: "deliver" call: "delivery.Start" via: GRPC after: "pay" }
}
cancel { step { undo: "deliver" via: GRPC } step { undo: "pay" via: GRPC after: "deliver" } }
status { stage: PLACED code: "PLACED" text { ko: "주문" en: "Placed" } }
)";

class WaitForUndosTest : public WaitTest {
 protected:
  WaitForUndosTest() : WaitTest(kWaitingShop) {}
};

TEST_F(WaitForUndosTest, AllThatTheCallerWaitsForHasToBeUndone) {
  PlaceWhole();
  Result("deliver", Outcome::OUTCOME_DONE);
  shop_.TakeResolved();
  EXPECT_EQ(Cancel().kind, Answer::Kind::kWait);
  EXPECT_EQ(Told("o1/cancel").kind, Answer::Kind::kWait);
  Result("deliver", Outcome::OUTCOME_DONE, "", /*undo=*/true);
  EXPECT_EQ(Told("o1/cancel").kind, Answer::Kind::kWait) << "the money is not back";
  Result("pay", Outcome::OUTCOME_DONE, "", /*undo=*/true);
  EXPECT_EQ(Told("o1/cancel").kind, Answer::Kind::kDone);
  ExpectToldAs("o1/cancel");
}

class ReadableOrderTest : public OrderTest {
 protected:
  ReadableOrderTest() : OrderTest(ReadableShop()) {}
};

TEST_F(ReadableOrderTest, AShopWithAWordForRefusedOrdersKeepsThemReadable) {
  Place(Request());
  Result("quote", Outcome::OUTCOME_REFUSED,
         flow::MakeStatus(google::rpc::FAILED_PRECONDITION, "catalog", "STOCK_SHORT", "none left")
             .SerializeAsString());
  auto resolved = shop_.TakeResolved();
  ASSERT_EQ(resolved.size(), 1u);
  EXPECT_EQ(resolved[0].second.kind, Answer::Kind::kDone)
      << "the shop's answer is its word, not an error";
  ASSERT_NE(Get(), nullptr);
  EXPECT_EQ(Get()->status_text().ko(), "예약불가");
  EXPECT_EQ(Get()->reject_reason(), "STOCK_SHORT");
  EXPECT_THAT(Events(), IsEmpty());
}

struct BadRequestCase {
  const char* name;
  const char* change;  // merged into a good request
  int code;
  const char* reason;
  const char* field;
};

class BadRequestTest : public OrderTest, public ::testing::WithParamInterface<BadRequestCase> {};

TEST_P(BadRequestTest, NamesTheField) {
  PlaceOrderRequest request = Request();
  const std::string change = GetParam().change;
  if (change.rfind("!", 0) == 0) {
    request.GetReflection()->ClearField(&request,
                                        request.GetDescriptor()->FindFieldByName(change.substr(1)));
  } else {
    google::protobuf::TextFormat::Parser parser;
    PlaceOrderRequest patch;
    ASSERT_TRUE(parser.ParseFromString(change, &patch));
    if (!patch.lines().empty()) request.clear_lines();
    request.MergeFrom(patch);
  }
  const Answer answer = Place(request);
  EXPECT_EQ(answer.kind, Answer::Kind::kRefused);
  EXPECT_EQ(answer.status.code(), GetParam().code) << answer.status.DebugString();
  EXPECT_EQ(flow::ReasonOf(answer.status), GetParam().reason);
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(answer.status.details(0).UnpackTo(&info));
  EXPECT_EQ(info.metadata().at("field"), GetParam().field);
  EXPECT_EQ(info.domain(), "gaekju.order.v1.OrderService");
  EXPECT_EQ(shop_.written_count(), 0);
}

INSTANTIATE_TEST_SUITE_P(
    Requests, BadRequestTest,
    ::testing::Values(
        BadRequestCase{"NoStorefront", "!storefront", 3, "FIELD_INVALID", "storefront"},
        BadRequestCase{"UnknownStorefront", "storefront: 'nowhere'", 5, "STOREFRONT_UNKNOWN",
                       "storefront"},
        BadRequestCase{"NoCustomer", "!customer_id", 3, "FIELD_INVALID", "customer_id"},
        BadRequestCase{"NoLines", "!lines", 3, "FIELD_INVALID", "lines"},
        BadRequestCase{"ZeroQuantity", "lines { product_id: 'p1' }", 3, "FIELD_INVALID",
                       "lines[0].quantity"},
        BadRequestCase{"NegativeQuantity", "lines { product_id: 'p1' quantity: -1 }", 3,
                       "FIELD_INVALID", "lines[0].quantity"},
        BadRequestCase{
            "SameProductTwice",
            "lines { product_id: 'p1' quantity: 1 } lines { product_id: 'p1' quantity: 1 }", 3,
            "FIELD_INVALID", "lines[1].product_id"},
        BadRequestCase{"WrongCurrency", "expected_total { currency_code: 'USD' minor_units: 1 }", 3,
                       "CURRENCY_MISMATCH", "expected_total.currency_code"},
        BadRequestCase{"NegativePrice", "expected_total { currency_code: 'KRW' minor_units: -1 }",
                       3, "FIELD_INVALID", "expected_total.minor_units"},
        BadRequestCase{"NorthOfThePole", "delivery_location { latitude: 90.001 }", 3,
                       "FIELD_INVALID", "delivery_location.latitude"},
        BadRequestCase{"NoLatitudeAtAll", "delivery_location { latitude: nan }", 3, "FIELD_INVALID",
                       "delivery_location.latitude"},
        BadRequestCase{"OnceAround", "delivery_location { longitude: -180.5 }", 3, "FIELD_INVALID",
                       "delivery_location.longitude"},
        BadRequestCase{"EndlesslyEast", "delivery_location { longitude: inf }", 3, "FIELD_INVALID",
                       "delivery_location.longitude"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace gaekju::order
