#include "services/cart/cart.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "flow/values.h"
#include "gaekju/cart/v1/cart_events.pb.h"
#include "gaekju/cart/v1/cart_service.pb.h"
#include "google/rpc/code.pb.h"
#include "services/testing/context_rules.h"
#include "services/testing/property.h"
#include "services/testing/requests.h"
#include "services/testing/step_rules.h"
#include "services/testing/turn_harness.h"

namespace gaekju::cart {
namespace {

using flow::Answer;
using gaekju::cart::v1::Cart;
using gaekju::cart::v1::CheckOutRequest;
using gaekju::cart::v1::EmptyRequest;
using gaekju::cart::v1::FillRequest;
using gaekju::cart::v1::FillResponse;
using gaekju::cart::v1::GetCartRequest;
using gaekju::cart::v1::ListCartsRequest;
using google::protobuf::Message;
using ::testing::ElementsAre;
using testing::FieldOf;
using ::testing::IsEmpty;

FillRequest Fill(const std::string& order_id = "o1") {
  FillRequest request;
  request.set_order_id(order_id);
  request.set_step_id("cart");
  request.set_storefront("funshop");
  request.set_customer_id("cust1");
  auto* line = request.add_lines();
  line->set_product_id("toy-1");
  line->set_quantity(2);
  return request;
}

EmptyRequest Empty(const std::string& order_id = "o1") {
  EmptyRequest request;
  request.set_order_id(order_id);
  request.set_step_id("cart");
  return request;
}

CheckOutRequest CheckOut(const std::string& order_id = "o1") {
  CheckOutRequest request;
  request.set_order_id(order_id);
  request.set_step_id("check-out");
  request.set_cart_id(order_id + "/cart");
  return request;
}

class CartTest : public ::testing::Test {
 protected:
  const Cart& Row(const std::string& key = "o1/cart") {
    const Cart* cart = carts_.Row<Cart>(kCarts, key);
    GK_CHECK(cart != nullptr) << key;
    return *cart;
  }
  // A cart in this state, and nothing sent.
  void Given(Cart::State state) {
    carts_.Clear();
    if (state == Cart::STATE_UNSPECIFIED) return;
    carts_.Call(Fill());
    if (state == Cart::STATE_PAID) carts_.Call(CheckOut());
    if (state == Cart::STATE_CANCELLED) carts_.Call(Empty());
    EXPECT_EQ(Row().state(), state);
    carts_.TakeEnvelopes();
  }

  testing::TurnHarness carts_{CartContext()};
};

TEST(Cart, FollowsTheRulesOfAContext) { testing::ExpectFollowsRules(CartContext()); }

TEST_F(CartTest, FillFollowsTheRulesOfAStep) {
  FillRequest other = Fill();
  other.mutable_lines(0)->set_quantity(3);
  testing::ExpectFollowsStepRules(carts_, kCarts, Fill(), other, Empty());
}

TEST_F(CartTest, IsFilled) {
  const Answer answer = carts_.Call(Fill());
  FillResponse response;
  ASSERT_TRUE(response.ParseFromString(answer.payload));
  EXPECT_EQ(response.cart_id(), "o1/cart");
  EXPECT_EQ(Row().cart_id(), "o1/cart");
  EXPECT_EQ(Row().order_id(), "o1");
  EXPECT_EQ(Row().storefront(), "funshop");
  EXPECT_EQ(Row().customer_id(), "cust1");
  EXPECT_EQ(Row().lines(0).quantity(), 2);
  EXPECT_EQ(Row().state(), Cart::STATE_WAITING);
  EXPECT_EQ(flow::ToMicros(Row().create_time()), carts_.now_us);
  EXPECT_THAT(carts_.TakeEvents(), ElementsAre("CartFilled o1/cart@1"));
}

// Every request in every state: the state after it, the refusal, the event.
TEST_F(CartTest, Transitions) {
  const auto fill = Fill();
  const auto check_out = CheckOut();
  const auto empty = Empty();
  using S = Cart;
  struct Case {
    Cart::State given;
    const Message* when;
    Cart::State then;
    const char* reason;  // "": done
    const char* event;   // "": none
  };
  const Case cases[] = {
      {S::STATE_UNSPECIFIED, &fill, S::STATE_WAITING, "", "CartFilled"},
      {S::STATE_WAITING, &fill, S::STATE_WAITING, "", ""},
      {S::STATE_PAID, &fill, S::STATE_PAID, "", ""},
      {S::STATE_CANCELLED, &fill, S::STATE_CANCELLED, "STEP_UNDONE", ""},
      {S::STATE_WAITING, &check_out, S::STATE_PAID, "", "CartPaid"},
      {S::STATE_PAID, &check_out, S::STATE_PAID, "", ""},
      {S::STATE_CANCELLED, &check_out, S::STATE_CANCELLED, "CART_CANCELLED", ""},
      {S::STATE_UNSPECIFIED, &empty, S::STATE_CANCELLED, "", ""},
      {S::STATE_WAITING, &empty, S::STATE_CANCELLED, "", "CartCancelled"},
      {S::STATE_PAID, &empty, S::STATE_CANCELLED, "", "CartCancelled"},
      {S::STATE_CANCELLED, &empty, S::STATE_CANCELLED, "", ""},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(absl::StrCat(Cart::State_Name(c.given), ", ", c.when->GetTypeName()));
    Given(c.given);
    carts_.now_us += 1000000;
    const Answer answer = carts_.Call(*c.when);
    EXPECT_EQ(flow::ReasonOf(answer.status), c.reason);
    EXPECT_EQ(answer.status.code(), *c.reason ? google::rpc::FAILED_PRECONDITION : 0);
    EXPECT_EQ(Row().state(), c.then);
    const auto events = carts_.TakeEvents();
    ASSERT_EQ(events.size(), *c.event ? 1u : 0u);
    if (*c.event) {
      EXPECT_EQ(events[0].substr(0, events[0].find(' ')), c.event);
    }
    if (c.given == c.then) {
      EXPECT_EQ(carts_.written_count(), 0);
    }
    EXPECT_EQ(Row().has_cancel_time(), c.then == S::STATE_CANCELLED);
    EXPECT_EQ(Row().has_pay_time(), c.given == S::STATE_PAID || c.then == S::STATE_PAID);
  }
}

TEST_F(CartTest, AnEmptyThatComesFirstStopsTheCart) {
  EXPECT_EQ(carts_.Call(Empty()).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().cart_id(), "o1/cart");
  EXPECT_EQ(Row().order_id(), "o1");
  EXPECT_EQ(flow::ReasonOf(carts_.Call(CheckOut()).status), "CART_CANCELLED");
  EXPECT_THAT(carts_.TakeEvents(), IsEmpty()) << "there was nothing to empty";
}

TEST_F(CartTest, OnlyTheOrdersOwnCartIsCheckedOut) {
  carts_.Call(Fill());
  CheckOutRequest request = CheckOut("o2");
  for (const char* cart_id : {"o2/cart", "o1/cart"}) {
    request.set_cart_id(cart_id);
    const Answer answer = carts_.Call(request);
    EXPECT_EQ(answer.status.code(), google::rpc::NOT_FOUND) << cart_id;
    EXPECT_EQ(flow::ReasonOf(answer.status), "CART_NOT_FOUND") << cart_id;
  }
  EXPECT_EQ(Row().state(), Cart::STATE_WAITING);
}

TEST_F(CartTest, BadRequestsNameTheField) {
  testing::ExpectNamesTheField(
      carts_, Fill(),
      {
          {"storefront", [](auto* r) { r->set_storefront("F"); }},
          {"customer_id", [](auto* r) { r->clear_customer_id(); }},
          {"lines", [](auto* r) { r->clear_lines(); }},
          {"lines[0].quantity", [](auto* r) { r->mutable_lines(0)->set_quantity(0); }},
      });
  CheckOutRequest request = CheckOut();
  request.clear_cart_id();
  EXPECT_EQ(FieldOf(carts_.Call(request)), "cart_id");
  request.clear_order_id();
  EXPECT_EQ(FieldOf(carts_.Call(request)), "order_id");
  EXPECT_THAT(carts_.Rows(kCarts), IsEmpty());
}

TEST_F(CartTest, ReadsShowCartsWithoutTheSagasRecord) {
  carts_.Call(Fill("o1"));
  carts_.Call(Fill("o2"));
  GetCartRequest get;
  get.set_cart_id("o1/cart");
  const auto found = carts_.Get(get);
  ASSERT_NE(found, nullptr);
  EXPECT_FALSE(static_cast<const Cart&>(*found).has_step());
  ListCartsRequest list;
  list.set_customer_id("cust1");
  const auto listed = carts_.List(list);
  ASSERT_EQ(listed.size(), 2u);
  EXPECT_EQ(static_cast<const Cart&>(*listed[0]).order_id(), "o2");
  EXPECT_FALSE(static_cast<const Cart&>(*listed[0]).has_step());
  list.set_order_id("o1");
  EXPECT_EQ(carts_.List(list).size(), 1u);
  list.set_customer_id("cust2");
  EXPECT_THAT(carts_.List(list), IsEmpty());
}

// Any order of fills, payments, undos and repeats, alone and together in turns.
TEST(CartProperty, PaidOnceEmptiedOnceAndThenForEver) {
  for (const uint64_t seed : testing::Seeds(300)) {
    SCOPED_TRACE(testing::Replay(seed));
    std::mt19937_64 random(seed);
    testing::TurnHarness carts(CartContext());
    std::map<std::string, Cart::State> before;
    std::map<std::string, int> told;
    for (int turn = 0; turn < 30; ++turn) {
      testing::Batch batch;
      for (int i = testing::Pick(random, 4); i >= 0; --i) {
        const std::string order_id = absl::StrCat("o", testing::Pick(random, 6));
        switch (testing::Pick(random, 5)) {
          case 0:
            batch.Add(Empty(order_id));
            break;
          case 1:
          case 2:
            batch.Add(CheckOut(order_id));
            break;
          default:
            batch.Add(Fill(order_id));
        }
      }
      batch.Run(carts);
      for (const std::string& event : carts.TakeEvents()) ++told[event.substr(0, event.find('@'))];
      for (const auto& [key, row] : carts.Rows(kCarts)) {
        const auto& cart = static_cast<const Cart&>(*row.body);
        const bool filled = cart.has_create_time();
        const bool emptied = cart.state() == Cart::STATE_CANCELLED;
        ASSERT_GE(cart.state(), before[key]) << key;
        before[key] = cart.state();
        ASSERT_EQ(emptied, cart.step().undo() == flow::Outcome::OUTCOME_DONE) << key;
        ASSERT_EQ(emptied, cart.has_cancel_time()) << key;
        ASSERT_EQ(told["CartFilled " + key], filled ? 1 : 0) << key;
        ASSERT_EQ(told["CartPaid " + key], cart.has_pay_time() ? 1 : 0) << key;
        ASSERT_EQ(told["CartCancelled " + key], filled && emptied ? 1 : 0) << key;
        ASSERT_TRUE(filled || emptied) << key;
      }
    }
  }
}

}  // namespace
}  // namespace gaekju::cart
