#include "services/view/view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "flow/values.h"
#include "gaekju/assignment/v1/assignment_events.pb.h"
#include "gaekju/cart/v1/cart_events.pb.h"
#include "gaekju/delivery/v1/delivery_events.pb.h"
#include "gaekju/notification/v1/notification_events.pb.h"
#include "gaekju/order/v1/order_events.pb.h"
#include "gaekju/payment/v1/payment_events.pb.h"
#include "gaekju/store/v1/store_events.pb.h"
#include "gaekju/view/v1/view_service.pb.h"
#include "google/protobuf/util/message_differencer.h"
#include "google/rpc/code.pb.h"
#include "services/testing/context_rules.h"
#include "services/testing/property.h"
#include "services/testing/turn_harness.h"

namespace gaekju::view {
namespace {

using assignment::v1::Assignment;
using cart::v1::Cart;
using delivery::v1::Delivery;
using flow::Answer;
using flow::EventInfo;
using gaekju::view::v1::GetOrderTimelineRequest;
using gaekju::view::v1::GetOrderTimelineResponse;
using gaekju::view::v1::GetOrderViewRequest;
using gaekju::view::v1::ListOrderViewsRequest;
using gaekju::view::v1::OrderView;
using notification::v1::NoticeSent;
using order::v1::Order;
using payment::v1::Payment;
using store::v1::Acceptance;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr int64_t kStartUs = 1700000000000000;

// An event as it arrives.
struct Arrival {
  std::shared_ptr<const google::protobuf::Message> event;
  EventInfo info;
};

template <class Event>
Arrival Make(const Event& event, const std::string& source, const std::string& resource,
             int64_t version, int64_t time_us) {
  Arrival arrival;
  arrival.event = std::make_shared<Event>(event);
  arrival.info.source = source;
  arrival.info.resource = resource;
  arrival.info.id = absl::StrCat(resource, "@", version);
  arrival.info.type = event.GetTypeName();
  arrival.info.order_id = "o1";
  arrival.info.version = version;
  arrival.info.time_us = kStartUs + time_us;
  return arrival;
}

template <class Event>
Arrival OfOrder(int64_t version, Order::State state, const std::string& status_code,
                int64_t time_us) {
  Event event;
  Order* order = event.mutable_order();
  order->set_order_id("o1");
  order->set_storefront("fashion");
  order->set_number(17);
  order->set_customer_id("jang");
  order->set_customer_name("Jang");
  order->set_delivery_address("seoul");
  auto* line = order->add_lines();
  line->set_product_id("p1");
  line->set_quantity(2);
  order->mutable_total()->set_currency_code("KRW");
  order->mutable_total()->set_minor_units(40000);
  order->set_state(state);
  order->set_status_code(status_code);
  order->mutable_status_text()->set_ko(status_code + "!");
  *order->mutable_place_time() = flow::ToTimestamp(kStartUs + 20);
  if (state == Order::STATE_CANCELLING || state == Order::STATE_CANCELLED)
    *order->mutable_cancel_time() = flow::ToTimestamp(kStartUs + 70);
  return Make(event, "order", "orders/o1", version, time_us);
}

template <class Event>
Arrival OfPayment(int64_t version, Payment::State state, int64_t time_us,
                  const std::string& step = "pay") {
  Event event;
  event.mutable_payment()->set_payment_id("o1/" + step);
  event.mutable_payment()->set_state(state);
  return Make(event, "payment", "payments/o1/" + step, version, time_us);
}

template <class Event>
Arrival OfStore(int64_t version, Acceptance::State state, int64_t time_us) {
  Event event;
  event.mutable_acceptance()->set_state(state);
  return Make(event, "store", "acceptances/o1/accept", version, time_us);
}

template <class Event>
Arrival OfDelivery(int64_t version, Delivery::State state, int64_t time_us,
                   const std::string& step = "ship") {
  Event event;
  event.mutable_delivery()->set_delivery_id("o1/" + step);
  event.mutable_delivery()->set_delivery_address("seoul, " + step);
  event.mutable_delivery()->set_state(state);
  return Make(event, "delivery", "deliveries/o1/" + step, version, time_us);
}

template <class Event>
Arrival OfCart(int64_t version, Cart::State state, int64_t time_us) {
  Event event;
  event.mutable_cart()->set_cart_id("o1/cart");
  event.mutable_cart()->set_state(state);
  return Make(event, "cart", "carts/o1/cart", version, time_us);
}

template <class Event>
Arrival OfAssignment(int64_t version, Assignment::State state, int64_t time_us) {
  Event event;
  event.mutable_assignment()->set_assignment_id("o1/assign");
  event.mutable_assignment()->set_agency_name("대리점_3");
  event.mutable_assignment()->set_state(state);
  return Make(event, "assignment", "assignments/o1/assign", version, time_us);
}

Arrival OfNotice(int64_t number, int64_t time_us, const std::string& id = "") {
  NoticeSent event;
  auto* notice = event.mutable_notice();
  notice->set_notice_id(id.empty() ? absl::StrCat("o1/tell-", number) : id);
  notice->set_storefront("fashion");
  notice->set_number(number);
  notice->set_order_id("o1");
  notice->set_customer_id("jang");
  notice->set_recipient(notification::v1::RECIPIENT_SELLER);
  notice->set_code("CANCEL_REQUESTED");
  notice->mutable_text()->set_ko(absl::StrCat("주문취소 ", number));
  *notice->mutable_create_time() = flow::ToTimestamp(kStartUs + time_us);
  return Make(event, "notification", "notices/" + notice->notice_id(), 1, time_us);
}

const Arrival kCaptured = OfPayment<payment::v1::PaymentCaptured>(1, Payment::STATE_CAPTURED, 10);
const Arrival kPlaced = OfOrder<order::v1::OrderPlaced>(1, Order::STATE_PLACED, "PLACED", 20);
const Arrival kAccepted = OfStore<store::v1::StoreAccepted>(1, Acceptance::STATE_ACCEPTED, 30);
const Arrival kChanged =
    OfOrder<order::v1::OrderStatusChanged>(2, Order::STATE_PLACED, "ACCEPTED", 40);
const Arrival kStarted = OfDelivery<delivery::v1::DeliveryStarted>(1, Delivery::STATE_STARTED, 50);
const Arrival kProgressed =
    OfDelivery<delivery::v1::DeliveryProgressed>(2, Delivery::STATE_IN_TRANSIT, 55);
const Arrival kCompleted =
    OfOrder<order::v1::OrderCompleted>(3, Order::STATE_COMPLETED, "SHIPPED", 60);
const Arrival kCancelled =
    OfOrder<order::v1::OrderCancelled>(4, Order::STATE_CANCELLING, "CANCELLING", 70);
const Arrival kRefunded = OfPayment<payment::v1::PaymentRefunded>(2, Payment::STATE_REFUNDED, 80);
const Arrival kStoreCancelled =
    OfStore<store::v1::StoreCancelled>(2, Acceptance::STATE_CANCELLED, 80);
const Arrival kStopped =
    OfDelivery<delivery::v1::DeliveryCancelled>(3, Delivery::STATE_CANCELLED, 90);
const Arrival kCancelCompleted =
    OfOrder<order::v1::OrderCancelCompleted>(5, Order::STATE_CANCELLED, "CANCELLED", 100);

// An order placed, shipped and cancelled, in the order in which it happened.
const std::vector<Arrival> kLife = {kCaptured, kPlaced,         kAccepted,  kChanged,
                                    kStarted,  kProgressed,     kCompleted, kCancelled,
                                    kRefunded, kStoreCancelled, kStopped,   kCancelCompleted};

class ViewTest : public ::testing::Test {
 protected:
  ViewTest() { view_.now_us = kStartUs + 1000; }

  Answer Tell(const Arrival& arrival) { return view_.Deliver(*arrival.event, arrival.info); }
  void TellAll(const std::vector<Arrival>& arrivals) {
    for (const Arrival& arrival : arrivals) Tell(arrival);
  }
  const OrderView& Row() {
    const OrderView* row = view_.Row<OrderView>(kOrderViews, "o1");
    GK_CHECK(row != nullptr);
    return *row;
  }
  bool Visible(const std::string& customer_id = "") {
    GetOrderViewRequest request;
    request.set_order_id("o1");
    request.set_customer_id(customer_id);
    return view_.Get(request) != nullptr;
  }
  // Event types of the timeline, shortly.
  std::vector<std::string> Timeline() {
    std::vector<std::string> types;
    for (const auto& entry : Row().timeline()) {
      types.push_back(entry.event_type().substr(entry.event_type().rfind('.') + 1));
    }
    return types;
  }
  // "<source> <resource>@<from_version>" of each request to resend.
  std::vector<std::string> Resends() {
    std::vector<std::string> resends;
    for (const flow::Resend& r : view_.TakeResends()) {
      resends.push_back(absl::StrCat(r.source, " ", r.resource, "@", r.from_version));
    }
    return resends;
  }

  testing::TurnHarness view_{ViewContext()};
};

TEST(View, FollowsTheRulesOfAContext) { testing::ExpectFollowsRules(ViewContext()); }

// A new event that the view does not know would be a gap for ever.
TEST(View, KnowsEveryEventOfTheContextsOrders) {
  std::set<std::string> known;
  for (const auto& handler : ViewContext().events) known.insert(handler->name());
  for (const char* file :
       {"gaekju/order/v1/order_events.proto", "gaekju/payment/v1/payment_events.proto",
        "gaekju/store/v1/store_events.proto", "gaekju/delivery/v1/delivery_events.proto",
        "gaekju/cart/v1/cart_events.proto", "gaekju/assignment/v1/assignment_events.proto",
        "gaekju/notification/v1/notification_events.proto"}) {
    const auto* descriptor =
        google::protobuf::DescriptorPool::generated_pool()->FindFileByName(file);
    ASSERT_NE(descriptor, nullptr) << file;
    for (int i = 0; i < descriptor->message_type_count(); ++i) {
      const std::string& name = descriptor->message_type(i)->full_name();
      if (name == "gaekju.store.v1.ItemRegistered") continue;  // not of an order
      EXPECT_TRUE(known.contains(name)) << name;
    }
  }
}

TEST_F(ViewTest, ShowsAnOrderWithItsPaymentAcceptanceAndDelivery) {  // FA-04
  TellAll({kCaptured, kPlaced, kAccepted, kChanged, kStarted});
  GetOrderViewRequest request;
  request.set_order_id("o1");
  const auto found = view_.Get(request);
  ASSERT_NE(found, nullptr);
  const auto& view = static_cast<const OrderView&>(*found);
  EXPECT_EQ(view.order_id(), "o1");
  EXPECT_EQ(view.storefront(), "fashion");
  EXPECT_EQ(view.number(), 17);
  EXPECT_EQ(view.customer_id(), "jang");
  EXPECT_EQ(view.customer_name(), "Jang");
  EXPECT_EQ(view.lines(0).quantity(), 2);
  EXPECT_EQ(view.total().minor_units(), 40000);
  EXPECT_EQ(view.order_state(), Order::STATE_PLACED);
  EXPECT_EQ(view.status_code(), "ACCEPTED");
  EXPECT_EQ(view.status_text().ko(), "ACCEPTED!");
  EXPECT_EQ(view.payment_id(), "o1/pay");
  EXPECT_EQ(view.payment_state(), Payment::STATE_CAPTURED);
  EXPECT_EQ(view.acceptance_state(), Acceptance::STATE_ACCEPTED);
  EXPECT_EQ(view.delivery_id(), "o1/ship");
  EXPECT_EQ(view.delivery_address(), "seoul, ship");
  EXPECT_EQ(view.delivery_state(), Delivery::STATE_STARTED);
  EXPECT_EQ(flow::ToMicros(view.place_time()), kStartUs + 20);
  EXPECT_EQ(flow::ToMicros(view.update_time()), kStartUs + 50);
  EXPECT_EQ(view.timeline_size(), 5);
  EXPECT_THAT(view.applied_versions(), IsEmpty()) << "inner matters";
  EXPECT_THAT(Resends(), IsEmpty());
  EXPECT_EQ(Row().gap_due_time_us(), 0);
}

TEST_F(ViewTest, ShowsTheCancelledDelivery) {  // FA-10
  TellAll(kLife);
  EXPECT_EQ(Row().order_state(), Order::STATE_CANCELLED);
  EXPECT_EQ(Row().payment_state(), Payment::STATE_REFUNDED);
  EXPECT_EQ(Row().acceptance_state(), Acceptance::STATE_CANCELLED);
  EXPECT_EQ(Row().delivery_state(), Delivery::STATE_CANCELLED);
}

// Each event type, and the state it leaves; as the first of its resource.
TEST_F(ViewTest, EveryEventTellsItsResourcesState) {
  const Arrival arrivals[] = {
      OfOrder<order::v1::OrderPlaced>(1, Order::STATE_PLACED, "c", 1),
      OfOrder<order::v1::OrderCompleted>(1, Order::STATE_COMPLETED, "c", 1),
      OfOrder<order::v1::OrderStatusChanged>(1, Order::STATE_PLACED, "c", 1),
      OfOrder<order::v1::OrderCancelled>(1, Order::STATE_CANCELLING, "c", 1),
      OfOrder<order::v1::OrderCancelRefused>(1, Order::STATE_COMPLETED, "c", 1),
      OfOrder<order::v1::OrderCancelCompleted>(1, Order::STATE_CANCELLED, "c", 1),
      OfOrder<order::v1::OrderRejected>(1, Order::STATE_REJECTED, "c", 1),
      OfPayment<payment::v1::PaymentCaptured>(1, Payment::STATE_CAPTURED, 1),
      OfPayment<payment::v1::PaymentRefunded>(1, Payment::STATE_REFUNDED, 1),
      OfStore<store::v1::StoreAccepted>(1, Acceptance::STATE_ACCEPTED, 1),
      OfStore<store::v1::StoreDeclined>(1, Acceptance::STATE_DECLINED, 1),
      OfStore<store::v1::StoreCancelled>(1, Acceptance::STATE_CANCELLED, 1),
      OfDelivery<delivery::v1::DeliveryStarted>(1, Delivery::STATE_STARTED, 1),
      OfDelivery<delivery::v1::DeliveryProgressed>(1, Delivery::STATE_IN_TRANSIT, 1),
      OfDelivery<delivery::v1::DeliveryReceived>(1, Delivery::STATE_RECEIVED, 1),
      OfDelivery<delivery::v1::DeliveryCancelled>(1, Delivery::STATE_CANCELLED, 1),
      OfDelivery<delivery::v1::DeliveryReturned>(1, Delivery::STATE_RETURNING, 1),
      OfCart<cart::v1::CartFilled>(1, Cart::STATE_WAITING, 1),
      OfCart<cart::v1::CartPaid>(1, Cart::STATE_PAID, 1),
      OfCart<cart::v1::CartCancelled>(1, Cart::STATE_CANCELLED, 1),
      OfAssignment<assignment::v1::DealerAssigned>(1, Assignment::STATE_ASSIGNED, 1),
      OfAssignment<assignment::v1::OrderPickedUp>(1, Assignment::STATE_PICKED_UP, 1),
      OfAssignment<assignment::v1::AssignmentCancelled>(1, Assignment::STATE_CANCELLED, 1),
  };
  const std::map<std::string, std::pair<std::string, std::string>> states = {
      {"order", {"order.state", "order_state"}},
      {"payment", {"payment.state", "payment_state"}},
      {"store", {"acceptance.state", "acceptance_state"}},
      {"delivery", {"delivery.state", "delivery_state"}},
      {"cart", {"cart.state", "cart_state"}},
      {"assignment", {"assignment.state", "assignment_state"}}};
  EXPECT_EQ(std::size(arrivals) + 1, ViewContext().events.size()) << "and the notice";
  for (const Arrival& arrival : arrivals) {
    view_.Clear();
    EXPECT_EQ(Tell(arrival).kind, Answer::Kind::kDone) << arrival.info.type;
    const auto& [in_event, in_row] = states.at(arrival.info.source);
    const std::string told = testing::ColumnText(*arrival.event, in_event);
    const std::string shown = testing::ColumnText(Row(), in_row);
    EXPECT_EQ(shown, told) << arrival.info.type;
    EXPECT_THAT(Timeline(),
                ElementsAre(arrival.info.type.substr(arrival.info.type.rfind('.') + 1)));
  }
}

TEST_F(ViewTest, ShowsTheCartAndTheAgency) {  // FU-05, TS-05
  TellAll({kPlaced, OfCart<cart::v1::CartFilled>(1, Cart::STATE_WAITING, 30),
           OfAssignment<assignment::v1::DealerAssigned>(1, Assignment::STATE_ASSIGNED, 40)});
  EXPECT_EQ(Row().cart_id(), "o1/cart");
  EXPECT_EQ(Row().cart_state(), Cart::STATE_WAITING);
  EXPECT_EQ(Row().assignment_id(), "o1/assign");
  EXPECT_EQ(Row().assignment_state(), Assignment::STATE_ASSIGNED);
  EXPECT_EQ(Row().agency_name(), "대리점_3");
  EXPECT_THAT(Timeline(), ElementsAre("OrderPlaced", "CartFilled", "DealerAssigned"));
}

// --- cancels, and the seller's page of them

TEST_F(ViewTest, RemembersTheFirstCancelThatWasAccepted) {
  TellAll({kPlaced, kChanged, kCompleted});
  EXPECT_FALSE(Row().cancelled());
  EXPECT_FALSE(Row().has_cancel_time());
  Tell(kCancelled);
  EXPECT_TRUE(Row().cancelled());
  EXPECT_EQ(flow::ToMicros(Row().cancel_time()), kStartUs + 70);
  Tell(OfOrder<order::v1::OrderCancelRefused>(5, Order::STATE_COMPLETED, "SHIPPED", 90));
  EXPECT_TRUE(Row().cancelled()) << "it was accepted once";
  EXPECT_EQ(flow::ToMicros(Row().cancel_time()), kStartUs + 70);
  order::v1::OrderCancelled again;
  again.mutable_order()->set_state(Order::STATE_CANCELLING);
  *again.mutable_order()->mutable_cancel_time() = flow::ToTimestamp(kStartUs + 170);
  Tell(Make(again, "order", "orders/o1", 6, 170));
  EXPECT_EQ(Row().order_state(), Order::STATE_CANCELLING);
  EXPECT_EQ(flow::ToMicros(Row().cancel_time()), kStartUs + 70) << "the first";
}

TEST_F(ViewTest, OrdersAreFoundByNumberAndByTheirCancel) {
  TellAll({kPlaced, kChanged, kCompleted});
  auto count = [&](int64_t number, bool cancelled, const std::string& storefront) {
    ListOrderViewsRequest request;
    request.set_number(number);
    request.set_cancelled(cancelled);
    request.set_storefront(storefront);
    return view_.List(request).size();
  };
  EXPECT_EQ(count(17, false, "fashion"), 1u);
  EXPECT_EQ(count(17, false, ""), 1u);
  EXPECT_EQ(count(18, false, "fashion"), 0u);
  EXPECT_EQ(count(17, false, "tshop"), 0u);
  EXPECT_EQ(count(0, true, "fashion"), 0u);
  Tell(kCancelled);
  EXPECT_EQ(count(0, true, "fashion"), 1u);
  EXPECT_EQ(count(17, true, "fashion"), 1u);
}

// A row that was written before there were numbers and cancels to search by.
TEST_F(ViewTest, ARowFromBeforeIsWrittenOnceMore) {
  TellAll(kLife);
  OrderView old = Row();
  old.clear_cancelled();
  old.clear_cancel_time();
  old.clear_payment_id();
  flow::Turn turn(view_.now_us);
  turn.AddRow({&kOrderViews, "o1"}, 0, std::make_unique<OrderView>(old));
  ViewContext().timer.due("o1", turn);
  ASSERT_TRUE(turn.row({&kOrderViews, "o1"}).dirty);
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(
      *turn.row({&kOrderViews, "o1"}).body, Row()));
  EXPECT_THAT(turn.resends(), IsEmpty());
}

// --- notices

std::vector<int64_t> NumbersOf(const OrderView& view) {
  std::vector<int64_t> numbers;
  for (const auto& notice : view.notices()) numbers.push_back(notice.number());
  return numbers;
}

TEST_F(ViewTest, ShowsWhatWasTold) {
  TellAll({kPlaced, OfNotice(3, 30)});
  ASSERT_EQ(Row().notices_size(), 1);
  const auto& notice = Row().notices(0);
  EXPECT_EQ(notice.notice_id(), "o1/tell-3");
  EXPECT_EQ(notice.number(), 3);
  EXPECT_EQ(notice.recipient(), notification::v1::RECIPIENT_SELLER);
  EXPECT_EQ(notice.code(), "CANCEL_REQUESTED");
  EXPECT_EQ(notice.text().ko(), "주문취소 3");
  EXPECT_EQ(flow::ToMicros(notice.create_time()), kStartUs + 30);
  EXPECT_EQ(flow::ToMicros(Row().update_time()), kStartUs + 30);
  EXPECT_THAT(Timeline(), ElementsAre("OrderPlaced")) << "notices have their own times";
}

TEST_F(ViewTest, NoticesStandByTheirNumbersHoweverTheyCome) {
  TellAll({OfNotice(7, 40), OfNotice(3, 30), OfNotice(9, 50), OfNotice(3, 30)});
  EXPECT_EQ(view_.written_count(), 0) << "a repeat changes nothing";
  EXPECT_FALSE(Visible()) << "the order has not come yet";
  Tell(kPlaced);
  EXPECT_TRUE(Visible());
  EXPECT_THAT(NumbersOf(Row()), ElementsAre(3, 7, 9));
  EXPECT_EQ(Row().parked_size(), 0);
  EXPECT_THAT(Resends(), IsEmpty());
}

TEST_F(ViewTest, ANoticeAboutNoOrderIsNobodys) {
  Arrival about_none = OfNotice(1, 10, "fashion/r1");
  about_none.info.order_id.clear();
  EXPECT_EQ(Tell(about_none).kind, Answer::Kind::kDone);
  EXPECT_THAT(view_.Rows(kOrderViews), IsEmpty());
}

TEST_F(ViewTest, ARowShowsTheLastHundredNotices) {
  std::mt19937_64 random(7);
  std::vector<Arrival> notices = {OfNotice(1, 1000)};  // the oldest by number, by a clock ahead
  for (int number = 2; number <= 250; ++number) notices.push_back(OfNotice(number, number));
  for (int round = 0; round < 3; ++round) {
    if (round < 2) std::shuffle(notices.begin(), notices.end(), random);
    if (round == 2)
      std::sort(notices.begin(), notices.end(),
                [](const auto& a, const auto& b) { return a.info.time_us < b.info.time_us; });
    view_.Clear();
    Tell(kPlaced);
    TellAll(notices);
    ASSERT_EQ(Row().notices_size(), kNoticesMax);
    EXPECT_EQ(Row().notices(0).number(), 151);
    EXPECT_EQ(Row().notices(kNoticesMax - 1).number(), 250);
    EXPECT_EQ(flow::ToMicros(Row().update_time()), kStartUs + 1000);
    for (const Arrival& again : notices) {
      Tell(again);
      ASSERT_EQ(view_.written_count(), 0) << again.info.resource;
    }
  }
}

// --- before the order is there

TEST_F(ViewTest, AnOrderIsNotSeenBeforeItIsPlaced) {  // D0
  TellAll({kCaptured, kAccepted, kStarted});
  GetOrderTimelineRequest timeline;
  timeline.set_order_id("o1");
  EXPECT_FALSE(Visible());
  EXPECT_THAT(view_.List(ListOrderViewsRequest()), IsEmpty());
  EXPECT_EQ(view_.Call(timeline).status.code(), google::rpc::NOT_FOUND);
  EXPECT_EQ(Row().customer_id(), "") << "nor found by its buyer";
  Tell(kPlaced);
  EXPECT_TRUE(Visible());
  EXPECT_EQ(view_.List(ListOrderViewsRequest()).size(), 1u);
  EXPECT_EQ(view_.Call(timeline).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().delivery_address(), "seoul, ship") << "the shipment knows better than the order";
  EXPECT_EQ(Row().payment_state(), Payment::STATE_CAPTURED);
}

TEST_F(ViewTest, ARefusedOrdersLeftoversAreNotSeen) {
  TellAll({kCaptured, kRefunded});
  EXPECT_FALSE(Visible());
}

TEST_F(ViewTest, OthersDoNotSeeIt) {
  TellAll({kPlaced});
  EXPECT_TRUE(Visible("jang"));
  EXPECT_FALSE(Visible("kim"));
  GetOrderTimelineRequest timeline;
  timeline.set_order_id("o1");
  timeline.set_customer_id("kim");
  const Answer answer = view_.Call(timeline);
  EXPECT_EQ(answer.status.code(), google::rpc::NOT_FOUND);
  EXPECT_EQ(flow::ReasonOf(answer.status), "ORDER_NOT_FOUND");
  ListOrderViewsRequest list;
  list.set_customer_id("kim");
  EXPECT_THAT(view_.List(list), IsEmpty());
  list.set_customer_id("jang");
  list.set_storefront("fashion");
  EXPECT_EQ(view_.List(list).size(), 1u);
}

TEST_F(ViewTest, TheTimelineIsAnswered) {
  TellAll({kPlaced, kCaptured});
  GetOrderTimelineRequest request;
  request.set_order_id("o1");
  GetOrderTimelineResponse response;
  ASSERT_TRUE(response.ParseFromString(view_.Call(request).payload));
  ASSERT_EQ(response.entries_size(), 2);
  EXPECT_EQ(response.entries(0).event_type(), "gaekju.payment.v1.PaymentCaptured");
  EXPECT_EQ(response.entries(0).source(), "payment");
  EXPECT_EQ(response.entries(0).event_id(), "payments/o1/pay@1");
  EXPECT_EQ(flow::ToMicros(response.entries(0).event_time()), kStartUs + 10);
  EXPECT_EQ(view_.written_count(), 0);
  request.clear_order_id();
  EXPECT_EQ(view_.Call(request).status.code(), google::rpc::INVALID_ARGUMENT);
}

// --- order among events

TEST_F(ViewTest, ARepeatedEventChangesNothing) {
  TellAll({kPlaced, kChanged, kCompleted});
  for (const Arrival& again : {kPlaced, kChanged, kCompleted}) {
    Tell(again);
    EXPECT_EQ(view_.written_count(), 0);
  }
  EXPECT_EQ(Row().status_code(), "SHIPPED") << "a late event does not bring an old state back";
  EXPECT_THAT(Timeline(), ElementsAre("OrderPlaced", "OrderStatusChanged", "OrderCompleted"));
}

TEST_F(ViewTest, ARepeatUnderAnotherIdIsARepeat) {  // published again after the bus lost it
  Tell(kPlaced);
  Arrival again = kPlaced;
  again.info.id = "another";
  Tell(again);
  EXPECT_EQ(Row().timeline_size(), 1);
}

TEST_F(ViewTest, AnEventThatOvertakesWaits) {
  TellAll({kPlaced, kCompleted});
  EXPECT_EQ(Row().status_code(), "PLACED");
  EXPECT_EQ(Row().parked_size(), 1);
  EXPECT_EQ(Row().gap_due_time_us(), view_.now_us + kGapRetryMinUs);
  EXPECT_THAT(Resends(), ElementsAre("order orders/o1@2"));
  Tell(kChanged);
  EXPECT_EQ(Row().status_code(), "SHIPPED");
  EXPECT_EQ(Row().parked_size(), 0);
  EXPECT_EQ(Row().gap_due_time_us(), 0);
  EXPECT_THAT(Timeline(), ElementsAre("OrderPlaced", "OrderStatusChanged", "OrderCompleted"));
}

TEST_F(ViewTest, EventsThatOvertookEachOtherAreAppliedInTheirOrder) {
  TellAll({kPlaced, kCancelled, kCompleted, kChanged});  // 1, 4, 3, 2
  EXPECT_EQ(Row().status_code(), "CANCELLING");
  EXPECT_EQ(Row().parked_size(), 0);
}

TEST_F(ViewTest, ATimerThatComesLateFindsNothingToDo) {
  // The shell looks for due rows before it loads them: meanwhile the gap may be filled, or just
  // have been asked for.
  for (const auto& arrivals : {std::vector<Arrival>{kPlaced}, {kPlaced, kCompleted}}) {
    view_.Clear();
    TellAll(arrivals);
    flow::Turn turn(view_.now_us);
    turn.AddRow({&kOrderViews, "o1"}, 0, std::make_unique<OrderView>(Row()));
    ViewContext().timer.due("o1", turn);
    EXPECT_THAT(turn.resends(), IsEmpty());
    EXPECT_EQ(turn.row({&kOrderViews, "o1"}).dirty, Row().gap_due_time_us() == 0)
        << "one that misses nothing is written as it is";
  }
}

TEST_F(ViewTest, AGapIsAskedForOncePerResourceUntilTheTimer) {
  TellAll({kCompleted, kCancelled, kCompleted, kRefunded});
  EXPECT_EQ(Row().parked_size(), 3) << "a parked event is not parked twice";
  EXPECT_THAT(Resends(), ElementsAre("order orders/o1@1", "payment payments/o1/pay@1"));
  EXPECT_FALSE(Visible());

  EXPECT_EQ(view_.RunTimer(), 0);
  view_.now_us += kGapRetryMinUs;
  EXPECT_EQ(view_.RunTimer(), 1);
  EXPECT_THAT(Resends(), ElementsAre("order orders/o1@1", "payment payments/o1/pay@1"));
  EXPECT_EQ(view_.RunTimer(), 0) << "not again at once";

  Tell(kPlaced);
  view_.now_us = Row().gap_due_time_us();
  view_.RunTimer();
  EXPECT_THAT(Resends(), ElementsAre("order orders/o1@2", "payment payments/o1/pay@1"))
      << "from the first that is missing";
}

TEST_F(ViewTest, TheTimerWaitsLongerAndLongerUpToAMinute) {
  Tell(kCompleted);
  int64_t last_us = 0;
  for (int i = 0; i < 10; ++i) {
    const int64_t wait_us = Row().gap_due_time_us() - view_.now_us;
    EXPECT_GE(wait_us, std::max(last_us, kGapRetryMinUs));
    EXPECT_LE(wait_us, kGapRetryMaxUs);
    last_us = wait_us;
    view_.now_us += wait_us;
    EXPECT_EQ(view_.RunTimer(), 1);
  }
  EXPECT_EQ(last_us, kGapRetryMaxUs);
}

TEST_F(ViewTest, FillingOneGapLeavesTheOther) {
  TellAll({kCompleted, kRefunded, kPlaced, kChanged});
  EXPECT_EQ(Row().status_code(), "SHIPPED");
  EXPECT_EQ(Row().parked_size(), 1);
  EXPECT_NE(Row().gap_due_time_us(), 0);
  Tell(kCaptured);
  EXPECT_EQ(Row().payment_state(), Payment::STATE_REFUNDED);
  EXPECT_EQ(Row().gap_due_time_us(), 0);
}

TEST_F(ViewTest, TheTimelineIsByTimeThenSourceThenOwnOrder) {
  // The store and the payment tell of the same microsecond; the order tells two things in one turn.
  const Arrival completed =
      OfOrder<order::v1::OrderCompleted>(2, Order::STATE_COMPLETED, "DONE", 20);
  TellAll({kStoreCancelled, kRefunded, kPlaced, completed, kAccepted, kCaptured});
  EXPECT_THAT(Timeline(), ElementsAre("PaymentCaptured", "OrderPlaced", "OrderCompleted",
                                      "StoreAccepted", "PaymentRefunded", "StoreCancelled"));
  EXPECT_EQ(flow::ToMicros(Row().update_time()), kStartUs + 80);
}

TEST_F(ViewTest, OfSeveralShipmentsTheLastKeyIsShown) {
  const Arrival again =
      OfDelivery<delivery::v1::DeliveryStarted>(1, Delivery::STATE_STARTED, 200, "ship.2");
  for (const auto& arrivals :
       {std::vector<Arrival>{kStarted, again, kProgressed}, {again, kStarted, kProgressed}}) {
    view_.Clear();
    TellAll(arrivals);
    EXPECT_EQ(Row().delivery_id(), "o1/ship.2");
    EXPECT_EQ(Row().delivery_state(), Delivery::STATE_STARTED);
    EXPECT_EQ(Row().timeline_size(), 3);
  }
}

TEST_F(ViewTest, AnEventThatCannotBePlacedIsRefused) {
  const std::function<void(EventInfo*)> spoils[] = {[](EventInfo* info) { info->order_id.clear(); },
                                                    [](EventInfo* info) { info->source.clear(); },
                                                    [](EventInfo* info) { info->resource.clear(); },
                                                    [](EventInfo* info) { info->version = 0; },
                                                    [](EventInfo* info) { info->version = -1; }};
  for (const auto& spoil : spoils) {
    Arrival arrival = kPlaced;
    spoil(&arrival.info);
    const Answer answer = Tell(arrival);
    EXPECT_EQ(answer.kind, Answer::Kind::kRefused);
    EXPECT_EQ(flow::ReasonOf(answer.status), "EVENT_INCOMPLETE");
  }
  EXPECT_THAT(view_.Rows(kOrderViews), IsEmpty());
}

// --- the bound

std::vector<Arrival> ManyStatusChanges(int count) {
  std::vector<Arrival> arrivals = {kPlaced};
  for (int version = 2; version <= count; ++version) {
    arrivals.push_back(OfOrder<order::v1::OrderStatusChanged>(
        version, Order::STATE_PLACED, absl::StrCat("S", version), 20 + version));
  }
  return arrivals;
}

TEST_F(ViewTest, AFullRowKeepsTheHighestSoThatTheGapStaysKnown) {
  const std::vector<Arrival> life = ManyStatusChanges(100);
  for (size_t i = 1; i < life.size(); ++i) {
    Tell(life[i]);
    EXPECT_LE(Row().parked_size(), kParkedMax);
  }
  EXPECT_THAT(Resends(), ElementsAre("order orders/o1@1"));
  Tell(life[0]);  // 2 to 64 follow, 65 to 99 were left out, 100 stays
  EXPECT_EQ(Row().status_code(), "S64");
  EXPECT_EQ(Row().parked_size(), 1);
  view_.now_us = Row().gap_due_time_us();
  view_.RunTimer();
  EXPECT_THAT(Resends(), ElementsAre("order orders/o1@65"));
  TellAll({life.begin() + 64, life.end()});
  EXPECT_EQ(Row().status_code(), "S100");
  EXPECT_EQ(Row().parked_size(), 0);
  EXPECT_EQ(Row().timeline_size(), 100);
}

TEST_F(ViewTest, ATimelineKeepsItsLatestEntries) {
  TellAll(ManyStatusChanges(kTimelineMax + 20));
  EXPECT_EQ(Row().timeline_size(), kTimelineMax);
  EXPECT_EQ(flow::ToMicros(Row().timeline(0).event_time()), kStartUs + 20 + 21);
  Tell(kCaptured);
  EXPECT_EQ(Row().timeline_size(), kTimelineMax);
  EXPECT_EQ(Row().payment_state(), Payment::STATE_CAPTURED) << "older than all that is kept";
  EXPECT_EQ(flow::ToMicros(Row().timeline(0).event_time()), kStartUs + 20 + 21);
}

TEST_F(ViewTest, AFullRowMakesRoomForAnotherResource) {
  const std::vector<Arrival> life = ManyStatusChanges(70);
  for (size_t i = life.size() - 1; i > 0; --i) Tell(life[i]);  // downwards: late ones find no room
  EXPECT_EQ(Row().parked_size(), kParkedMax);
  Resends();
  Tell(kRefunded);
  EXPECT_EQ(Row().parked_size(), kParkedMax);
  EXPECT_THAT(Resends(), ElementsAre("payment payments/o1/pay@1"));
  Tell(kCaptured);
  EXPECT_EQ(Row().payment_state(), Payment::STATE_REFUNDED);
}

// --- any arrival

// Whatever the order, the losses and the repeats: once resends and the timer have done their work,
// the row is the one that the proper order makes.
TEST(ViewProperty, RowsConvergeHoweverEventsArrive) {
  std::vector<Arrival> life = kLife;
  life.push_back(
      OfDelivery<delivery::v1::DeliveryStarted>(1, Delivery::STATE_STARTED, 120, "ship.2"));
  life.push_back(
      OfDelivery<delivery::v1::DeliveryProgressed>(2, Delivery::STATE_DELIVERED, 130, "ship.2"));
  life.push_back(OfCart<cart::v1::CartFilled>(1, Cart::STATE_WAITING, 25));
  life.push_back(OfCart<cart::v1::CartPaid>(2, Cart::STATE_PAID, 35));
  life.push_back(OfAssignment<assignment::v1::DealerAssigned>(1, Assignment::STATE_ASSIGNED, 36));
  life.push_back(OfAssignment<assignment::v1::OrderPickedUp>(2, Assignment::STATE_PICKED_UP, 66));
  for (const Arrival& change : ManyStatusChanges(80)) {
    if (change.info.version > 5) life.push_back(change);
  }
  const int entry_count = static_cast<int>(life.size());
  for (int number = 1; number <= kNoticesMax + 20; ++number)
    life.push_back(OfNotice(number, 20 + number / 2));
  testing::TurnHarness proper(ViewContext());
  for (const Arrival& arrival : life) proper.Deliver(*arrival.event, arrival.info);
  const OrderView& want = *proper.Row<OrderView>(kOrderViews, "o1");
  ASSERT_EQ(want.timeline_size(), entry_count);

  for (const uint64_t seed : testing::Seeds(100)) {
    SCOPED_TRACE(testing::Replay(seed));
    std::mt19937_64 random(seed);
    testing::TurnHarness view(ViewContext());
    const size_t reach =
        1 +
        testing::Pick(random, static_cast<int>(life.size()));  // how far events overtake each other
    auto deliver = [&](std::vector<Arrival> arrivals, int lost_percent) {
      for (size_t i = 0; i + 1 < arrivals.size(); ++i) {
        std::swap(arrivals[i], arrivals[i + random() % std::min(reach, arrivals.size() - i)]);
      }
      for (const Arrival& arrival : arrivals) {
        if (testing::Pick(random, 100) < lost_percent) continue;
        for (int times = 1 + testing::Pick(random, 2); times > 0; --times)
          view.Deliver(*arrival.event, arrival.info);
      }
    };
    deliver(life, 30);
    // The last of each resource must come once: a loss at the end shows only when something follows
    // it.
    for (const Arrival& arrival : life) {
      if (arrival.info.source == "notification" ||
          arrival.info.version ==
              want.applied_versions().at(arrival.info.source + "/" + arrival.info.resource)) {
        view.Deliver(*arrival.event, arrival.info);
      }
    }
    int rounds = 0;
    for (bool due = true; due; ++rounds) {
      ASSERT_LT(rounds, 200) << "never heals";
      for (const flow::Resend& resend : view.TakeResends()) {
        std::vector<Arrival> again;
        for (const Arrival& arrival : life) {
          if (arrival.info.source == resend.source && arrival.info.resource == resend.resource &&
              arrival.info.version >= resend.from_version) {
            again.push_back(arrival);
          }
        }
        deliver(again, 20);
      }
      view.now_us += kGapRetryMaxUs;
      due = view.RunTimer() > 0;
    }
    const OrderView& got = *view.Row<OrderView>(kOrderViews, "o1");
    ASSERT_TRUE(google::protobuf::util::MessageDifferencer::Equals(got, want))
        << got.ShortDebugString() << "\n"
        << want.ShortDebugString();
  }
}

}  // namespace
}  // namespace gaekju::view
