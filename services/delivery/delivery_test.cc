#include "services/delivery/delivery.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "flow/values.h"
#include "gaekju/delivery/v1/delivery_events.pb.h"
#include "gaekju/delivery/v1/delivery_service.pb.h"
#include "google/rpc/code.pb.h"
#include "services/testing/context_rules.h"
#include "services/testing/property.h"
#include "services/testing/requests.h"
#include "services/testing/step_rules.h"
#include "services/testing/turn_harness.h"

namespace gaekju::delivery {
namespace {

using flow::Answer;
using gaekju::delivery::v1::ApproveCancelRequest;
using gaekju::delivery::v1::AwaitReceiptRequest;
using gaekju::delivery::v1::AwaitReceiptResponse;
using gaekju::delivery::v1::CancelRequest;
using gaekju::delivery::v1::CloseReceiptRequest;
using gaekju::delivery::v1::ConfirmReceiptRequest;
using gaekju::delivery::v1::ConfirmReceiptResponse;
using gaekju::delivery::v1::Delivery;
using gaekju::delivery::v1::GetDeliveryRequest;
using gaekju::delivery::v1::ListDeliveriesRequest;
using gaekju::delivery::v1::ReceiptClosing;
using gaekju::delivery::v1::RecordProgressRequest;
using gaekju::delivery::v1::RecordProgressResponse;
using gaekju::delivery::v1::ReopenReceiptRequest;
using gaekju::delivery::v1::StartRequest;
using gaekju::delivery::v1::StartResponse;
using ::testing::ElementsAre;
using testing::FieldOf;
using testing::From;
using ::testing::IsEmpty;

StartRequest Start(const std::string& order_id = "o1") {
  StartRequest request;
  request.set_order_id(order_id);
  request.set_step_id("ship");
  request.set_storefront("fashion");
  request.set_customer_id("cust1");
  request.set_customer_name("jang");
  request.set_delivery_address("seoul");
  auto* line = request.add_lines();
  line->set_product_id("outwear-1");
  line->set_quantity(1);
  return request;
}

CancelRequest Cancel(const std::string& order_id = "o1") {
  CancelRequest request;
  request.set_order_id(order_id);
  request.set_step_id("ship");
  return request;
}

RecordProgressRequest Progress(Delivery::State state, const std::string& delivery_id = "o1/ship") {
  RecordProgressRequest request;
  request.set_delivery_id(delivery_id);
  request.set_state(state);
  return request;
}

ConfirmReceiptRequest Receive(const std::string& customer_id = "",
                              const std::string& delivery_id = "o1/ship") {
  ConfirmReceiptRequest request;
  request.set_delivery_id(delivery_id);
  request.set_customer_id(customer_id);
  return request;
}

AwaitReceiptRequest Await(const std::string& order_id = "o1",
                          const std::string& step_id = "receive") {
  AwaitReceiptRequest request;
  request.set_order_id(order_id);
  request.set_step_id(step_id);
  request.set_delivery_id(order_id + "/ship");
  return request;
}

ApproveCancelRequest Ask(const std::string& order_id = "o1") {
  ApproveCancelRequest request;
  request.set_order_id(order_id);
  request.set_step_id("ask");
  request.set_shipment_step_id("ship");
  return request;
}

CloseReceiptRequest Close(const std::string& order_id = "o1",
                          const std::string& step_id = "close") {
  CloseReceiptRequest request;
  request.set_order_id(order_id);
  request.set_step_id(step_id);
  request.set_shipment_step_id("ship");
  return request;
}

ReopenReceiptRequest Reopen(const std::string& order_id = "o1",
                            const std::string& step_id = "close") {
  ReopenReceiptRequest request;
  request.set_order_id(order_id);
  request.set_step_id(step_id);
  return request;
}

class DeliveryTest : public ::testing::Test {
 protected:
  const Delivery& Row(const std::string& key = "o1/ship") {
    const Delivery* delivery = deliveries_.Row<Delivery>(kDeliveries, key);
    GK_CHECK(delivery != nullptr) << key;
    return *delivery;
  }
  // A shipment in this state, and nothing sent.
  void Given(Delivery::State state) {
    deliveries_.Clear();
    if (state == Delivery::STATE_UNSPECIFIED) return;
    deliveries_.Call(Start());
    switch (state) {
      case Delivery::STATE_IN_TRANSIT:
        deliveries_.Call(Progress(Delivery::STATE_IN_TRANSIT));
        break;
      case Delivery::STATE_DELIVERED:
        deliveries_.Call(Progress(Delivery::STATE_DELIVERED));
        break;
      case Delivery::STATE_RECEIVED:
        deliveries_.Call(Receive());
        break;
      case Delivery::STATE_CANCELLED:
        deliveries_.Call(Cancel());
        break;
      case Delivery::STATE_RETURNING:
        deliveries_.Call(Progress(Delivery::STATE_DELIVERED));
        deliveries_.Call(Cancel());
        break;
      default:
        break;
    }
    EXPECT_EQ(Row().state(), state);
    deliveries_.TakeEnvelopes();
  }

  testing::TurnHarness deliveries_{DeliveryContext()};
};

TEST(Delivery, FollowsTheRulesOfAContext) { testing::ExpectFollowsRules(DeliveryContext()); }

TEST_F(DeliveryTest, StartFollowsTheRulesOfAStep) {
  StartRequest other = Start();
  other.set_delivery_address("busan");
  testing::ExpectFollowsStepRules(deliveries_, kDeliveries, Start(), other, Cancel());
}

TEST_F(DeliveryTest, CloseReceiptFollowsTheRulesOfAStep) {
  CloseReceiptRequest other = Close();
  other.set_shipment_step_id("other");
  testing::ExpectFollowsStepRules(deliveries_, kReceiptClosings, Close(), other, Reopen());
}

TEST_F(DeliveryTest, Starts) {  // FA-12: one delivery, to seoul
  const Answer answer = deliveries_.Call(Start());
  StartResponse response;
  ASSERT_TRUE(response.ParseFromString(answer.payload));
  EXPECT_EQ(response.delivery_id(), "o1/ship");
  EXPECT_EQ(Row().state(), Delivery::STATE_STARTED);
  EXPECT_EQ(Row().delivery_address(), "seoul");
  EXPECT_EQ(Row().customer_id(), "cust1");
  EXPECT_EQ(Row().customer_name(), "jang");
  EXPECT_EQ(Row().storefront(), "fashion");
  EXPECT_EQ(Row().lines(0).quantity(), 1);
  EXPECT_EQ(flow::ToMicros(Row().start_time()), deliveries_.now_us);
  EXPECT_THAT(deliveries_.TakeEvents(), ElementsAre("DeliveryStarted o1/ship@1"));
}

TEST_F(DeliveryTest, BadRequestsNameTheField) {
  testing::ExpectNamesTheField(
      deliveries_, Start(),
      {
          {"storefront", [](auto* r) { r->set_storefront("F"); }},
          {"customer_id", [](auto* r) { r->clear_customer_id(); }},
          {"customer_name", [](auto* r) { r->set_customer_name(std::string(257, 'x')); }},
          {"delivery_address", [](auto* r) { r->set_delivery_address(std::string(1025, 'x')); }},
          {"lines", [](auto* r) { r->clear_lines(); }},
      });
  for (const Answer& answer : {deliveries_.Call(Progress(Delivery::STATE_DELIVERED, "o1")),
                               deliveries_.Call(Receive("", ""))}) {
    EXPECT_EQ(answer.status.code(), google::rpc::INVALID_ARGUMENT);
    EXPECT_EQ(FieldOf(answer), "delivery_id");
  }
  for (const auto state :
       {Delivery::STATE_UNSPECIFIED, Delivery::STATE_STARTED, Delivery::STATE_RECEIVED,
        Delivery::STATE_CANCELLED, Delivery::STATE_RETURNING, static_cast<Delivery::State>(9)}) {
    EXPECT_EQ(FieldOf(deliveries_.Call(Progress(state))), "state") << state;
  }
  EXPECT_THAT(deliveries_.Rows(kDeliveries), IsEmpty());
}

// Every request in every state: the state after it, the refusal, the event.
TEST_F(DeliveryTest, Transitions) {
  const auto progress_transit = Progress(Delivery::STATE_IN_TRANSIT);
  const auto progress_delivered = Progress(Delivery::STATE_DELIVERED);
  const auto receive = Receive("cust1");
  const auto cancel = Cancel();
  const auto ask = Ask();
  using S = Delivery;
  struct Case {
    Delivery::State given;
    const google::protobuf::Message* when;
    Delivery::State then;
    const char* reason;  // "": done
    const char* event;   // "": none
  };
  const Case cases[] = {
      {S::STATE_STARTED, &progress_transit, S::STATE_IN_TRANSIT, "", "DeliveryProgressed"},
      {S::STATE_IN_TRANSIT, &progress_transit, S::STATE_IN_TRANSIT, "", ""},
      {S::STATE_DELIVERED, &progress_transit, S::STATE_DELIVERED, "", ""},
      {S::STATE_RECEIVED, &progress_transit, S::STATE_RECEIVED, "", ""},
      {S::STATE_CANCELLED, &progress_transit, S::STATE_CANCELLED, "DELIVERY_CANCELLED", ""},
      {S::STATE_RETURNING, &progress_transit, S::STATE_RETURNING, "DELIVERY_CANCELLED", ""},
      {S::STATE_STARTED, &progress_delivered, S::STATE_DELIVERED, "", "DeliveryProgressed"},
      {S::STATE_IN_TRANSIT, &progress_delivered, S::STATE_DELIVERED, "", "DeliveryProgressed"},
      {S::STATE_DELIVERED, &progress_delivered, S::STATE_DELIVERED, "", ""},
      {S::STATE_RECEIVED, &progress_delivered, S::STATE_RECEIVED, "", ""},
      {S::STATE_CANCELLED, &progress_delivered, S::STATE_CANCELLED, "DELIVERY_CANCELLED", ""},
      {S::STATE_RETURNING, &progress_delivered, S::STATE_RETURNING, "DELIVERY_CANCELLED", ""},
      {S::STATE_STARTED, &receive, S::STATE_RECEIVED, "", "DeliveryReceived"},
      {S::STATE_IN_TRANSIT, &receive, S::STATE_RECEIVED, "", "DeliveryReceived"},
      {S::STATE_DELIVERED, &receive, S::STATE_RECEIVED, "", "DeliveryReceived"},
      {S::STATE_RECEIVED, &receive, S::STATE_RECEIVED, "", ""},
      {S::STATE_CANCELLED, &receive, S::STATE_CANCELLED, "DELIVERY_CANCELLED", ""},
      {S::STATE_RETURNING, &receive, S::STATE_RETURNING, "DELIVERY_CANCELLED", ""},
      {S::STATE_STARTED, &cancel, S::STATE_CANCELLED, "", "DeliveryCancelled"},
      {S::STATE_IN_TRANSIT, &cancel, S::STATE_CANCELLED, "", "DeliveryCancelled"},
      {S::STATE_DELIVERED, &cancel, S::STATE_RETURNING, "", "DeliveryReturned"},
      {S::STATE_RECEIVED, &cancel, S::STATE_RETURNING, "", "DeliveryReturned"},
      {S::STATE_CANCELLED, &cancel, S::STATE_CANCELLED, "", ""},
      {S::STATE_RETURNING, &cancel, S::STATE_RETURNING, "", ""},
      {S::STATE_STARTED, &ask, S::STATE_STARTED, "", ""},
      {S::STATE_IN_TRANSIT, &ask, S::STATE_IN_TRANSIT, "", ""},
      {S::STATE_DELIVERED, &ask, S::STATE_DELIVERED, "DELIVERY_DELIVERED", ""},
      {S::STATE_RECEIVED, &ask, S::STATE_RECEIVED, "DELIVERY_DELIVERED", ""},
      {S::STATE_CANCELLED, &ask, S::STATE_CANCELLED, "", ""},
      {S::STATE_RETURNING, &ask, S::STATE_RETURNING, "DELIVERY_DELIVERED", ""},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(absl::StrCat(Delivery::State_Name(c.given), ", ", c.when->ShortDebugString()));
    Given(c.given);
    const Answer answer = deliveries_.Call(*c.when);
    EXPECT_EQ(flow::ReasonOf(answer.status), c.reason);
    EXPECT_EQ(answer.status.code(), *c.reason ? google::rpc::FAILED_PRECONDITION : 0);
    EXPECT_EQ(Row().state(), c.then);
    const auto events = deliveries_.TakeEvents();
    ASSERT_EQ(events.size(), *c.event ? 1u : 0u);
    if (*c.event) {
      EXPECT_EQ(events[0].substr(0, events[0].find(' ')), c.event);
    } else {
      EXPECT_EQ(deliveries_.written_count(), 0);
    }
    const bool stopped = c.then == S::STATE_CANCELLED || c.then == S::STATE_RETURNING;
    EXPECT_EQ(Row().has_cancel_time(), stopped);
    if (c.then == S::STATE_DELIVERED || c.then == S::STATE_RECEIVED ||
        c.then == S::STATE_RETURNING) {
      EXPECT_TRUE(Row().has_deliver_time());
    }
  }
}

TEST_F(DeliveryTest, TheReceiptDoesNotMoveTheTimeOfDelivery) {
  Given(Delivery::STATE_DELIVERED);
  const int64_t deliver_time_us = flow::ToMicros(Row().deliver_time());
  deliveries_.now_us += 1000000;
  ConfirmReceiptResponse response;
  ASSERT_TRUE(response.ParseFromString(deliveries_.Call(Receive()).payload));
  EXPECT_EQ(response.delivery().state(), Delivery::STATE_RECEIVED);
  EXPECT_FALSE(response.delivery().has_step());
  EXPECT_EQ(flow::ToMicros(Row().deliver_time()), deliver_time_us);
}

TEST_F(DeliveryTest, ProgressAnswersTheShipmentAsItIs) {
  Given(Delivery::STATE_RECEIVED);
  RecordProgressResponse response;
  ASSERT_TRUE(
      response.ParseFromString(deliveries_.Call(Progress(Delivery::STATE_IN_TRANSIT)).payload));
  EXPECT_EQ(response.delivery().state(), Delivery::STATE_RECEIVED);
  EXPECT_FALSE(response.delivery().has_step());
}

TEST_F(DeliveryTest, OnlyTheBuyerConfirmsTheReceipt) {
  Given(Delivery::STATE_DELIVERED);
  const Answer answer = deliveries_.Call(Receive("somebody"));
  EXPECT_EQ(answer.status.code(), google::rpc::NOT_FOUND);
  EXPECT_EQ(flow::ReasonOf(answer.status), "DELIVERY_NOT_FOUND");
  EXPECT_EQ(deliveries_.written_count(), 0);
}

TEST_F(DeliveryTest, WhatIsNotThereIsNotFound) {
  for (const Answer& answer :
       {deliveries_.Call(Progress(Delivery::STATE_DELIVERED)), deliveries_.Call(Receive())}) {
    EXPECT_EQ(answer.status.code(), google::rpc::NOT_FOUND);
    EXPECT_EQ(flow::ReasonOf(answer.status), "DELIVERY_NOT_FOUND");
  }
}

TEST_F(DeliveryTest, ACancelThatComesFirstStopsTheShipment) {  // FA-13
  EXPECT_EQ(deliveries_.Call(Cancel()).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().state(), Delivery::STATE_CANCELLED);
  EXPECT_EQ(Row().delivery_id(), "o1/ship");
  EXPECT_EQ(Row().order_id(), "o1");
  EXPECT_EQ(flow::ReasonOf(deliveries_.Call(Progress(Delivery::STATE_DELIVERED)).status),
            "DELIVERY_CANCELLED");
  EXPECT_THAT(deliveries_.TakeEvents(), IsEmpty()) << "no parcel was stopped";
}

// A shipment that never began may be stopped, and the question leaves nothing behind.
TEST_F(DeliveryTest, TheQuestionBeforeACancelChangesNothing) {
  EXPECT_EQ(deliveries_.Call(Ask()).kind, Answer::Kind::kDone);
  EXPECT_THAT(deliveries_.Rows(kDeliveries), IsEmpty());
  EXPECT_EQ(deliveries_.Call(Start()).kind, Answer::Kind::kDone);
  // It is a question: the same one is answered as things stand.
  EXPECT_EQ(deliveries_.Call(Ask()).kind, Answer::Kind::kDone);
  deliveries_.Call(Progress(Delivery::STATE_DELIVERED));
  EXPECT_EQ(flow::ReasonOf(deliveries_.Call(Ask()).status), "DELIVERY_DELIVERED");
  for (const char* field : {"order_id", "step_id", "shipment_step_id"}) {
    ApproveCancelRequest request = Ask();
    request.GetReflection()->ClearField(&request, request.GetDescriptor()->FindFieldByName(field));
    EXPECT_EQ(FieldOf(deliveries_.Call(request)), field);
  }
}

TEST_F(DeliveryTest, TheReceiptAnswersTheStepThatWaits) {  // MK: 배송완료 by the member
  Given(Delivery::STATE_STARTED);
  EXPECT_EQ(deliveries_.Call(Await(), From("order")).kind, Answer::Kind::kPending);
  EXPECT_EQ(deliveries_.Call(Await(), From("order")).kind, Answer::Kind::kPending);
  EXPECT_EQ(deliveries_.written_count(), 0) << "asked again";
  deliveries_.Call(Progress(Delivery::STATE_DELIVERED));
  EXPECT_EQ(deliveries_.TakeEnvelopes().size(), 1u) << "delivered is not received";
  deliveries_.now_us += 1000000;
  deliveries_.Call(Receive());
  const auto envelopes = deliveries_.TakeEnvelopes();
  ASSERT_EQ(envelopes.size(), 2u);
  EXPECT_EQ(envelopes[0].type, "gaekju.delivery.v1.DeliveryReceived");
  EXPECT_EQ(envelopes[1].kind, flow::Envelope::Kind::kAnswer);
  EXPECT_EQ(envelopes[1].to, "order");
  EXPECT_EQ(envelopes[1].order_id, "o1");
  EXPECT_EQ(envelopes[1].step_id, "receive");
  EXPECT_FALSE(envelopes[1].undo);
  EXPECT_EQ(envelopes[1].outcome, flow::Outcome::OUTCOME_DONE);
  EXPECT_EQ(envelopes[1].type, "gaekju.delivery.v1.AwaitReceiptResponse");
  AwaitReceiptResponse response;
  ASSERT_TRUE(response.ParseFromString(envelopes[1].payload));
  EXPECT_EQ(flow::ToMicros(response.receipt_time()), deliveries_.now_us);
  deliveries_.now_us += 1000000;
  EXPECT_EQ(deliveries_.Call(Await(), From("order")).payload, envelopes[1].payload);
  deliveries_.Call(Receive());
  EXPECT_THAT(deliveries_.TakeEnvelopes(), IsEmpty());
}

TEST_F(DeliveryTest, AStepThatAsksAfterTheReceiptIsDoneAtOnce) {
  Given(Delivery::STATE_RECEIVED);
  const int64_t receipt_time_us = deliveries_.now_us;
  deliveries_.now_us += 1000000;
  for (int i = 0; i < 2; ++i) {
    const Answer answer = deliveries_.Call(Await(), From("order"));
    ASSERT_EQ(answer.kind, Answer::Kind::kDone);
    AwaitReceiptResponse response;
    ASSERT_TRUE(response.ParseFromString(answer.payload));
    EXPECT_EQ(flow::ToMicros(response.receipt_time()), receipt_time_us);
  }
  EXPECT_EQ(deliveries_.written_count(), 0) << "the second time";
  EXPECT_THAT(deliveries_.TakeEnvelopes(), IsEmpty());
  // What has been received stays so for the saga, also when it comes back.
  deliveries_.Call(Cancel());
  EXPECT_EQ(deliveries_.Call(Await()).kind, Answer::Kind::kDone);
}

TEST_F(DeliveryTest, AShipmentThatIsStoppedRefusesTheStepThatWaits) {
  for (const bool arrived : {false, true}) {
    Given(arrived ? Delivery::STATE_DELIVERED : Delivery::STATE_STARTED);
    deliveries_.Call(Await(), From("order"));
    EXPECT_EQ(deliveries_.Call(Cancel()).kind, Answer::Kind::kDone);
    const auto envelopes = deliveries_.TakeEnvelopes();
    ASSERT_EQ(envelopes.size(), 2u);
    EXPECT_EQ(envelopes[1].kind, flow::Envelope::Kind::kAnswer);
    EXPECT_EQ(envelopes[1].to, "order");
    EXPECT_EQ(envelopes[1].step_id, "receive");
    EXPECT_EQ(envelopes[1].outcome, flow::Outcome::OUTCOME_REFUSED);
    google::rpc::Status status;
    ASSERT_TRUE(status.ParseFromString(envelopes[1].payload));
    EXPECT_EQ(flow::ReasonOf(status), "DELIVERY_CANCELLED");
    deliveries_.Call(Cancel());
    EXPECT_THAT(deliveries_.TakeEnvelopes(), IsEmpty());
    EXPECT_EQ(flow::ReasonOf(deliveries_.Call(Await()).status), "DELIVERY_CANCELLED");
  }
}

TEST_F(DeliveryTest, NobodyWaitsForAStoppedShipment) {
  for (const auto state : {Delivery::STATE_CANCELLED, Delivery::STATE_RETURNING}) {
    Given(state);
    const Answer answer = deliveries_.Call(Await(), From("order"));
    EXPECT_EQ(answer.status.code(), google::rpc::FAILED_PRECONDITION);
    EXPECT_EQ(flow::ReasonOf(answer.status), "DELIVERY_CANCELLED");
    EXPECT_EQ(deliveries_.written_count(), 0);
  }
  deliveries_.Clear();
  deliveries_.Call(Cancel());  // came first
  EXPECT_EQ(flow::ReasonOf(deliveries_.Call(Await()).status), "DELIVERY_CANCELLED");
}

TEST_F(DeliveryTest, OnlyTheOrdersOwnShipmentIsWaitedFor) {
  Given(Delivery::STATE_STARTED);
  AwaitReceiptRequest request = Await("o2");
  for (const char* delivery_id : {"o2/ship", "o1/ship"}) {
    request.set_delivery_id(delivery_id);
    EXPECT_EQ(flow::ReasonOf(deliveries_.Call(request).status), "DELIVERY_NOT_FOUND");
  }
  request.clear_delivery_id();
  EXPECT_EQ(FieldOf(deliveries_.Call(request)), "delivery_id");
  request.clear_step_id();
  EXPECT_EQ(FieldOf(deliveries_.Call(request)), "step_id");
  EXPECT_FALSE(Row().has_receipt_step());
}

TEST_F(DeliveryTest, TheAnswerGoesToWhoAskedLastAndOneStepWaits) {
  Given(Delivery::STATE_STARTED);
  deliveries_.Call(Await());  // a plain call: nowhere to answer
  deliveries_.Call(Await(), From("order"));
  deliveries_.Call(Await());
  EXPECT_EQ(flow::ReasonOf(deliveries_.Call(Await("o1", "other"), From("nobody")).status),
            "STEP_REUSED");
  deliveries_.Call(Receive());
  const auto envelopes = deliveries_.TakeEnvelopes();
  ASSERT_EQ(envelopes.size(), 2u);
  EXPECT_EQ(envelopes[1].to, "order");
}

// MK-17: the shipment goes on, and nobody confirms its receipt, until the cancel is refused.
TEST_F(DeliveryTest, AReceiptThatIsClosedIsNotConfirmed) {
  Given(Delivery::STATE_STARTED);
  deliveries_.Call(Await(), From("order"));
  deliveries_.TakeEnvelopes();
  EXPECT_EQ(deliveries_.Call(Close()).kind, Answer::Kind::kDone);
  EXPECT_EQ(deliveries_.Call(Close("o1", "close.2")).kind, Answer::Kind::kDone);
  EXPECT_EQ(flow::ReasonOf(deliveries_.Call(Receive()).status), "RECEIPT_CLOSED");
  EXPECT_EQ(deliveries_.Call(Progress(Delivery::STATE_DELIVERED)).kind, Answer::Kind::kDone);
  EXPECT_EQ(deliveries_.Call(Reopen()).kind, Answer::Kind::kDone);
  EXPECT_EQ(flow::ReasonOf(deliveries_.Call(Receive()).status), "RECEIPT_CLOSED")
      << "by the second";
  EXPECT_EQ(flow::ReasonOf(deliveries_.Call(Close()).status), "STEP_UNDONE") << "late";
  EXPECT_THAT(deliveries_.TakeEvents(), ElementsAre("DeliveryProgressed o1/ship@2"));
  EXPECT_EQ(deliveries_.Call(Reopen("o1", "close.2")).kind, Answer::Kind::kDone);
  EXPECT_EQ(deliveries_.Call(Receive()).kind, Answer::Kind::kDone);
  EXPECT_EQ(flow::ReasonOf(deliveries_.Call(Close("o1", "close.3")).status), "DELIVERY_RECEIVED");
  EXPECT_TRUE(Row().receipt_closed_by().empty());
  for (const char* field : {"order_id", "step_id", "shipment_step_id"}) {
    CloseReceiptRequest request = Close();
    request.GetReflection()->ClearField(&request, request.GetDescriptor()->FindFieldByName(field));
    EXPECT_EQ(FieldOf(deliveries_.Call(request)), field);
  }
}

TEST_F(DeliveryTest, AReceiptIsClosedBeforeTheShipmentBegins) {
  EXPECT_EQ(deliveries_.Call(Close()).kind, Answer::Kind::kDone);
  GetDeliveryRequest get;
  get.set_delivery_id("o1/ship");
  EXPECT_EQ(deliveries_.Get(get), nullptr) << "there is none yet";
  for (const Answer& answer : {deliveries_.Call(Receive()), deliveries_.Call(Await()),
                               deliveries_.Call(Progress(Delivery::STATE_DELIVERED))}) {
    EXPECT_EQ(flow::ReasonOf(answer.status), "DELIVERY_NOT_FOUND");
  }
  EXPECT_EQ(deliveries_.Call(Start()).kind, Answer::Kind::kDone);
  EXPECT_EQ(flow::ReasonOf(deliveries_.Call(Receive()).status), "RECEIPT_CLOSED");
  EXPECT_EQ(deliveries_.Call(Cancel()).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().state(), Delivery::STATE_CANCELLED);
  EXPECT_THAT(deliveries_.TakeEvents(),
              ElementsAre("DeliveryStarted o1/ship@1", "DeliveryCancelled o1/ship@2"));
}

TEST_F(DeliveryTest, ReadsShowShipmentsWithoutTheSagasRecord) {
  deliveries_.Call(Start("o1"));
  deliveries_.Call(Start("o2"));
  deliveries_.Call(Await("o1"));
  GetDeliveryRequest get;
  get.set_delivery_id("o1/ship");
  const auto found = deliveries_.Get(get);
  ASSERT_NE(found, nullptr);
  EXPECT_FALSE(static_cast<const Delivery&>(*found).has_step());
  EXPECT_FALSE(static_cast<const Delivery&>(*found).has_receipt_step());
  ListDeliveriesRequest list;
  list.set_customer_id("cust1");
  const auto listed = deliveries_.List(list);
  ASSERT_EQ(listed.size(), 2u);
  EXPECT_EQ(static_cast<const Delivery&>(*listed[0]).order_id(), "o2");
  list.set_order_id("o1");
  EXPECT_EQ(deliveries_.List(list).size(), 1u);
  list.set_customer_id("cust2");
  EXPECT_THAT(deliveries_.List(list), IsEmpty());
}

// Any order of starts, cancels, reports, receipts, steps that wait for them, and repeats.
TEST(DeliveryProperty, NeverBackwardsAndCancelledForEver) {
  for (const uint64_t seed : testing::Seeds(300)) {
    SCOPED_TRACE(testing::Replay(seed));
    std::mt19937_64 random(seed);
    testing::TurnHarness deliveries(DeliveryContext());
    std::map<std::string, Delivery::State> before;
    std::map<std::string, int> told;
    std::set<std::string> waits;  // shipments whose receipt a step was told to wait for
    for (int turn = 0; turn < 30; ++turn) {
      testing::Batch batch;
      for (int i = testing::Pick(random, 4); i >= 0; --i) {
        const std::string order_id = absl::StrCat("o", testing::Pick(random, 4));
        const std::string key = order_id + "/ship";
        switch (testing::Pick(random, 12)) {
          case 0:
            batch.Add(Cancel(order_id));
            break;
          case 1:
            batch.Add(Receive("cust1", key));
            break;
          case 2:
            batch.Add(Progress(Delivery::STATE_DELIVERED, key));
            break;
          case 3:
            batch.Add(Progress(Delivery::STATE_IN_TRANSIT, key));
            break;
          case 4:
            batch.Add(Ask(order_id));
            break;
          case 5:
            batch.Add(Close(order_id));
            break;
          case 6:
            if (testing::Pick(random, 3) == 0)
              batch.Add(Reopen(order_id));
            else
              batch.Add(Receive("cust1", key));
            break;
          case 7:
          case 8:
            batch.Add(Await(order_id));
            break;
          default:
            batch.Add(Start(order_id));
        }
      }
      const auto answers = batch.Run(deliveries, From("order"));
      for (size_t i = 0; i < batch.size(); ++i) {
        const auto* await = dynamic_cast<const AwaitReceiptRequest*>(&batch[i]);
        if (await != nullptr && answers[i].kind == Answer::Kind::kPending)
          waits.insert(await->delivery_id());
      }
      for (const flow::Envelope& envelope : deliveries.TakeEnvelopes()) {
        const std::string key = envelope.order_id + "/ship";
        const bool answer = envelope.kind == flow::Envelope::Kind::kAnswer;
        ++told[absl::StrCat(answer ? "answer" : envelope.type.substr(envelope.type.rfind('.') + 1),
                            " ", key)];
      }
      std::set<std::string> closed;
      for (const auto& [key, row] : deliveries.Rows(kReceiptClosings)) {
        const auto& closing = static_cast<const ReceiptClosing&>(*row.body);
        if (closing.step().outcome() == flow::Outcome::OUTCOME_DONE &&
            closing.step().undo() == flow::Outcome::OUTCOME_UNSPECIFIED)
          closed.insert(closing.delivery_id());
      }
      for (const auto& [key, row] : deliveries.Rows(kDeliveries)) {
        const auto& delivery = static_cast<const Delivery&>(*row.body);
        ASSERT_EQ(!delivery.receipt_closed_by().empty(), closed.contains(key)) << key;
        ASSERT_FALSE(closed.contains(key) && told["DeliveryReceived " + key] > 0) << key;
        const bool stopped = delivery.state() == Delivery::STATE_CANCELLED ||
                             delivery.state() == Delivery::STATE_RETURNING;
        const bool started = delivery.has_start_time();
        ASSERT_GE(delivery.state(), before[key]) << key;
        before[key] = delivery.state();
        ASSERT_EQ(stopped, delivery.step().undo() == flow::Outcome::OUTCOME_DONE) << key;
        ASSERT_EQ(stopped, delivery.has_cancel_time()) << key;
        ASSERT_EQ(told["DeliveryStarted " + key], started ? 1 : 0) << key;
        ASSERT_EQ(told["DeliveryCancelled " + key] + told["DeliveryReturned " + key],
                  started && stopped ? 1 : 0)
            << key;
        ASSERT_EQ(told["DeliveryReturned " + key],
                  delivery.state() == Delivery::STATE_RETURNING ? 1 : 0)
            << key;
        ASSERT_LE(told["DeliveryProgressed " + key], 2) << key;
        ASSERT_LE(told["DeliveryReceived " + key], 1) << key;
        // Whoever waits is answered once, when it is received or stopped, and as things then stand.
        const auto outcome = delivery.receipt_step().outcome();
        const bool received = told["DeliveryReceived " + key] == 1;
        const bool pending = outcome == flow::Outcome::OUTCOME_PENDING;
        ASSERT_EQ(told["answer " + key], waits.contains(key) && !pending ? 1 : 0) << key;
        ASSERT_FALSE(pending && (received || stopped)) << key;
        ASSERT_EQ(outcome == flow::Outcome::OUTCOME_DONE, received) << key;
      }
    }
  }
}

}  // namespace
}  // namespace gaekju::delivery
