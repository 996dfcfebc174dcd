#include "services/store/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "flow/values.h"
#include "gaekju/store/v1/store_events.pb.h"
#include "gaekju/store/v1/store_service.pb.h"
#include "google/rpc/code.pb.h"
#include "services/testing/context_rules.h"
#include "services/testing/property.h"
#include "services/testing/requests.h"
#include "services/testing/step_rules.h"
#include "services/testing/turn_harness.h"

namespace gaekju::store {
namespace {

using flow::Answer;
using flow::Envelope;
using flow::Outcome;
using gaekju::store::v1::Acceptance;
using gaekju::store::v1::AcceptOrderRequest;
using gaekju::store::v1::AcceptOrderResponse;
using gaekju::store::v1::AnswerOrderRequest;
using gaekju::store::v1::AnswerOrderResponse;
using gaekju::store::v1::CancelAcceptanceRequest;
using gaekju::store::v1::Confirmation;
using gaekju::store::v1::ConfirmCancelRequest;
using gaekju::store::v1::ConfirmCancelResponse;
using gaekju::store::v1::GetAcceptanceRequest;
using gaekju::store::v1::Item;
using gaekju::store::v1::ListAcceptancesRequest;
using gaekju::store::v1::ListItemsRequest;
using gaekju::store::v1::RegisterItemRequest;
using gaekju::store::v1::RegisterItemResponse;
using ::testing::ElementsAre;
using testing::FieldOf;
using testing::From;
using ::testing::IsEmpty;

constexpr auto kAutomatic = Confirmation::CONFIRMATION_AUTOMATIC;
constexpr auto kManual = Confirmation::CONFIRMATION_MANUAL;

AcceptOrderRequest Accept(Confirmation acceptance = kAutomatic,
                          Confirmation cancel_confirmation = kAutomatic,
                          const std::string& order_id = "o1") {
  AcceptOrderRequest request;
  request.set_order_id(order_id);
  request.set_step_id("accept");
  request.set_storefront("fashion");
  auto* line = request.add_lines();
  line->set_product_id("outwear-1");
  line->set_quantity(1);
  request.set_acceptance(acceptance);
  request.set_cancel_confirmation(cancel_confirmation);
  return request;
}

CancelAcceptanceRequest Cancel(const std::string& order_id = "o1") {
  CancelAcceptanceRequest request;
  request.set_order_id(order_id);
  request.set_step_id("accept");
  return request;
}

AnswerOrderRequest Say(bool accept, const std::string& acceptance_id = "o1/accept") {
  AnswerOrderRequest request;
  request.set_acceptance_id(acceptance_id);
  request.set_accept(accept);
  return request;
}

ConfirmCancelRequest Confirm(const std::string& acceptance_id = "o1/accept") {
  ConfirmCancelRequest request;
  request.set_acceptance_id(acceptance_id);
  return request;
}

RegisterItemRequest Register(const std::string& product_id, const std::string& display_name,
                             const std::string& storefront = "fashion") {
  RegisterItemRequest request;
  request.set_storefront(storefront);
  request.set_product_id(product_id);
  request.set_display_name(display_name);
  return request;
}

class StoreTest : public ::testing::Test {
 protected:
  // As the saga asks, over JetStream.
  Answer FromOrder(const google::protobuf::Message& request) {
    return store_.Call(request, From("order"));
  }
  const Acceptance& Row(const std::string& key = "o1/accept") {
    const Acceptance* acceptance = store_.Row<Acceptance>(kAcceptances, key);
    GK_CHECK(acceptance != nullptr) << key;
    return *acceptance;
  }
  // What was sent, shortly: events by name, answers as "<outcome> to <asker>".
  std::vector<std::string> Sent() {
    std::vector<std::string> sent;
    for (const Envelope& envelope : store_.TakeEnvelopes()) {
      if (envelope.kind == Envelope::Kind::kEvent) {
        sent.push_back(absl::StrCat(envelope.type.substr(envelope.type.rfind('.') + 1), "@",
                                    envelope.version));
      } else {
        sent.push_back(absl::StrCat(envelope.undo ? "undo " : "step ",
                                    flow::v1::Outcome_Name(envelope.outcome), " to ", envelope.to));
      }
    }
    return sent;
  }

  testing::TurnHarness store_{StoreContext()};
};

TEST(Store, FollowsTheRulesOfAContext) { testing::ExpectFollowsRules(StoreContext()); }

TEST_F(StoreTest, AcceptOrderFollowsTheRulesOfAStep) {
  testing::ExpectFollowsStepRules(store_, kAcceptances, Accept(), Accept(kManual), Cancel());
}

// --- items

TEST_F(StoreTest, AnItemIsRegisteredOnceAndRenamed) {
  RegisterItemResponse response;
  ASSERT_TRUE(response.ParseFromString(store_.Call(Register("p1", "Outwear-1")).payload));
  EXPECT_EQ(response.item().item_id(), "fashion/p1");
  EXPECT_EQ(response.item().display_name(), "Outwear-1");
  const int64_t create_time_us = flow::ToMicros(response.item().create_time());
  EXPECT_EQ(create_time_us, store_.now_us);

  store_.now_us += 1000000;
  EXPECT_EQ(store_.Call(Register("p1", "Outwear-1")).payload, response.SerializeAsString());
  EXPECT_EQ(store_.written_count(), 0);

  ASSERT_TRUE(response.ParseFromString(store_.Call(Register("p1", "Outwear-2")).payload));
  EXPECT_EQ(response.item().display_name(), "Outwear-2");
  EXPECT_EQ(flow::ToMicros(response.item().create_time()), create_time_us)
      << "a new name is no new item";
  EXPECT_THAT(store_.TakeEvents(),
              ElementsAre("ItemRegistered fashion/p1@1", "ItemRegistered fashion/p1@2"));
}

TEST_F(StoreTest, ItemsAreListedByStorefront) {
  store_.Call(Register("p2", "b"));
  store_.Call(Register("p1", "a"));
  store_.Call(Register("p1", "other", "tshop"));
  ListItemsRequest list;
  list.set_storefront("fashion");
  std::vector<std::string> names;
  for (const auto& row : store_.List(list))
    names.push_back(static_cast<const Item&>(*row).display_name());
  EXPECT_THAT(names, ElementsAre("a", "b"));
}

TEST_F(StoreTest, BadItemsNameTheField) {
  EXPECT_EQ(FieldOf(store_.Call(Register("p1", "x", "Fashion"))), "storefront");
  EXPECT_EQ(FieldOf(store_.Call(Register("p1", "x", ""))), "storefront");
  EXPECT_EQ(FieldOf(store_.Call(Register("", "x"))), "product_id");
  EXPECT_EQ(FieldOf(store_.Call(Register("p1", std::string(257, 'x')))), "display_name");
}

// --- automatic

TEST_F(StoreTest, AcceptsAtOnce) {
  const Answer answer = FromOrder(Accept());
  AcceptOrderResponse response;
  ASSERT_EQ(answer.kind, Answer::Kind::kDone);
  ASSERT_TRUE(response.ParseFromString(answer.payload));
  EXPECT_EQ(response.acceptance_id(), "o1/accept");
  EXPECT_EQ(Row().state(), Acceptance::STATE_ACCEPTED);
  EXPECT_EQ(Row().storefront(), "fashion");
  EXPECT_EQ(Row().lines_size(), 1);
  EXPECT_EQ(flow::ToMicros(Row().accept_time()), store_.now_us);
  EXPECT_THAT(Sent(), ElementsAre("StoreAccepted@1")) << "the shell sends the answer";
}

TEST_F(StoreTest, UnspecifiedIsAutomatic) {
  EXPECT_EQ(FromOrder(Accept(Confirmation::CONFIRMATION_UNSPECIFIED,
                             Confirmation::CONFIRMATION_UNSPECIFIED))
                .kind,
            Answer::Kind::kDone);
  EXPECT_EQ(FromOrder(Cancel()).kind, Answer::Kind::kDone);
}

TEST_F(StoreTest, CancelsAtOnce) {
  FromOrder(Accept());
  store_.now_us += 1000000;
  EXPECT_EQ(FromOrder(Cancel()).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().state(), Acceptance::STATE_CANCELLED);
  EXPECT_EQ(flow::ToMicros(Row().cancel_time()), store_.now_us);
  EXPECT_THAT(Sent(), ElementsAre("StoreAccepted@1", "StoreCancelled@2"));
}

TEST_F(StoreTest, BadOrdersNameTheField) {
  testing::ExpectNamesTheField(
      store_, Accept(),
      {
          {"storefront", [](auto* r) { r->clear_storefront(); }},
          {"lines", [](auto* r) { r->clear_lines(); }},
          {"lines[0].quantity", [](auto* r) { r->mutable_lines(0)->set_quantity(0); }},
          {"acceptance", [](auto* r) { r->set_acceptance(static_cast<Confirmation>(7)); }},
          {"cancel_confirmation",
           [](auto* r) { r->set_cancel_confirmation(static_cast<Confirmation>(7)); }},
      });
}

// --- the cancel overtakes

TEST_F(StoreTest, ACancelThatComesFirstIsConfirmedOnceAndStopsTheOrder) {  // FA-13
  EXPECT_EQ(FromOrder(Cancel()).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().state(), Acceptance::STATE_CANCELLED);
  EXPECT_EQ(Row().acceptance_id(), "o1/accept");
  EXPECT_EQ(Row().order_id(), "o1");
  EXPECT_FALSE(Row().has_accept_time());
  EXPECT_THAT(Sent(), ElementsAre("StoreCancelled@1"));
  EXPECT_EQ(flow::ReasonOf(FromOrder(Accept(kManual, kManual)).status), "STEP_UNDONE");
  EXPECT_EQ(flow::ReasonOf(store_.Call(Say(true)).status), "ALREADY_ANSWERED");
  EXPECT_EQ(store_.Call(Confirm()).kind, Answer::Kind::kDone) << "cancelled it is";
  EXPECT_THAT(Sent(), IsEmpty());
}

// --- the owner answers

TEST_F(StoreTest, TheOwnerAccepts) {
  EXPECT_EQ(FromOrder(Accept(kManual)).kind, Answer::Kind::kPending);
  EXPECT_EQ(Row().state(), Acceptance::STATE_WAITING);
  EXPECT_THAT(Sent(), IsEmpty());
  store_.now_us += 86400000000;
  AnswerOrderResponse response;
  const Answer answer = store_.Call(Say(true));
  ASSERT_TRUE(response.ParseFromString(answer.payload));
  EXPECT_EQ(response.acceptance().state(), Acceptance::STATE_ACCEPTED);
  EXPECT_FALSE(response.acceptance().has_step());
  EXPECT_EQ(flow::ToMicros(Row().accept_time()), store_.now_us);
  EXPECT_THAT(Sent(), ElementsAre("StoreAccepted@1", "step OUTCOME_DONE to order"));
  EXPECT_EQ(FromOrder(Accept(kManual)).kind, Answer::Kind::kDone)
      << "the answer was lost; asked again";
  EXPECT_EQ(store_.Call(Say(true)).payload, answer.payload);
  EXPECT_EQ(store_.written_count(), 0);
}

TEST_F(StoreTest, TheOwnerDeclines) {
  FromOrder(Accept(kManual));
  EXPECT_EQ(store_.Call(Say(false)).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().state(), Acceptance::STATE_DECLINED);
  EXPECT_THAT(Sent(), ElementsAre("StoreDeclined@1", "step OUTCOME_REFUSED to order"));
  const Answer again = FromOrder(Accept(kManual));
  EXPECT_EQ(again.status.code(), google::rpc::FAILED_PRECONDITION);
  EXPECT_EQ(flow::ReasonOf(again.status), "STORE_DECLINED");
  EXPECT_EQ(store_.Call(Say(false)).kind, Answer::Kind::kDone);
  EXPECT_EQ(store_.written_count(), 0);
}

TEST_F(StoreTest, TheCancelOfADeclinedOrderTellsNothingMore) {
  FromOrder(Accept(kManual));
  store_.Call(Say(false));
  Sent();
  EXPECT_EQ(FromOrder(Cancel()).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().state(), Acceptance::STATE_DECLINED);
  EXPECT_THAT(Sent(), IsEmpty());
}

TEST_F(StoreTest, ACancelWhileTheOwnerThinksIsImmediate) {
  FromOrder(Accept(kManual, kManual));
  EXPECT_EQ(FromOrder(Cancel()).kind, Answer::Kind::kDone)
      << "nothing was accepted: nothing to confirm";
  EXPECT_EQ(Row().state(), Acceptance::STATE_CANCELLED);
  EXPECT_EQ(Row().storefront(), "fashion");
  EXPECT_THAT(Sent(), ElementsAre("StoreCancelled@1"));
  for (const bool accept : {true, false}) {
    EXPECT_EQ(flow::ReasonOf(store_.Call(Say(accept)).status), "ALREADY_ANSWERED") << "too late";
  }
  EXPECT_THAT(Sent(), IsEmpty());
}

TEST_F(StoreTest, TheOwnerConfirmsTheCancel) {
  FromOrder(Accept(kAutomatic, kManual));
  EXPECT_EQ(FromOrder(Cancel()).kind, Answer::Kind::kPending);
  EXPECT_EQ(Row().state(), Acceptance::STATE_CANCEL_WAITING);
  EXPECT_FALSE(Row().has_cancel_time());
  EXPECT_THAT(Sent(), ElementsAre("StoreAccepted@1"));
  EXPECT_EQ(FromOrder(Cancel()).kind, Answer::Kind::kPending);
  store_.now_us += 1000000;
  const Answer answer = store_.Call(Confirm());
  ConfirmCancelResponse response;
  ASSERT_TRUE(response.ParseFromString(answer.payload));
  EXPECT_EQ(response.acceptance().state(), Acceptance::STATE_CANCELLED);
  EXPECT_EQ(flow::ToMicros(Row().cancel_time()), store_.now_us);
  EXPECT_THAT(Sent(), ElementsAre("StoreCancelled@2", "undo OUTCOME_DONE to order"));
  EXPECT_EQ(FromOrder(Cancel()).kind, Answer::Kind::kDone);
  EXPECT_EQ(store_.Call(Confirm()).payload, answer.payload);
  EXPECT_EQ(store_.Call(Say(true)).kind, Answer::Kind::kDone) << "it had been accepted";
  EXPECT_EQ(store_.written_count(), 0);
}

// What the owner's two requests answer in each state.
TEST_F(StoreTest, OwnersRequestsByState) {
  struct Case {
    const char* what;
    std::function<void()> given;
    std::string accept, decline, confirm;  // reason; empty: done
  };
  const Case cases[] = {
      {"nothing", [] {}, "ACCEPTANCE_NOT_FOUND", "ACCEPTANCE_NOT_FOUND", "ACCEPTANCE_NOT_FOUND"},
      {"waiting", [&] { FromOrder(Accept(kManual)); }, "", "", "NO_CANCEL_WAITING"},
      {"accepted", [&] { FromOrder(Accept()); }, "", "ALREADY_ANSWERED", "NO_CANCEL_WAITING"},
      {"declined",
       [&] {
         FromOrder(Accept(kManual));
         store_.Call(Say(false));
       },
       "ALREADY_ANSWERED", "", "NO_CANCEL_WAITING"},
      {"cancel waiting",
       [&] {
         FromOrder(Accept(kAutomatic, kManual));
         FromOrder(Cancel());
       },
       "", "ALREADY_ANSWERED", ""},
      {"cancelled",
       [&] {
         FromOrder(Accept());
         FromOrder(Cancel());
       },
       "", "ALREADY_ANSWERED", ""},
      {"never was", [&] { FromOrder(Cancel()); }, "ALREADY_ANSWERED", "ALREADY_ANSWERED", ""},
  };
  for (const Case& c : cases) {
    const std::pair<std::unique_ptr<google::protobuf::Message>, std::string> requests[] = {
        {std::make_unique<AnswerOrderRequest>(Say(true)), c.accept},
        {std::make_unique<AnswerOrderRequest>(Say(false)), c.decline},
        {std::make_unique<ConfirmCancelRequest>(Confirm()), c.confirm}};
    for (const auto& [request, reason] : requests) {
      store_.Clear();
      c.given();
      EXPECT_EQ(flow::ReasonOf(store_.Call(*request).status), reason)
          << c.what << ": " << request->ShortDebugString();
    }
  }
}

TEST_F(StoreTest, BadIdsOfAcceptancesAreRefused) {
  for (const char* id : {"", "o1", "a/b/c"}) {
    for (const Answer& answer : {store_.Call(Say(true, id)), store_.Call(Confirm(id))}) {
      EXPECT_EQ(answer.status.code(), google::rpc::INVALID_ARGUMENT) << id;
      EXPECT_EQ(FieldOf(answer), "acceptance_id") << id;
    }
  }
}

TEST_F(StoreTest, ReadsShowAcceptancesWithoutTheSagasRecord) {
  FromOrder(Accept());
  FromOrder(Accept(kManual, kAutomatic, "o2"));
  GetAcceptanceRequest get;
  get.set_acceptance_id("o1/accept");
  const auto found = store_.Get(get);
  ASSERT_NE(found, nullptr);
  EXPECT_FALSE(static_cast<const Acceptance&>(*found).has_step());
  ListAcceptancesRequest list;
  list.set_storefront("fashion");
  const auto listed = store_.List(list);
  ASSERT_EQ(listed.size(), 2u);
  EXPECT_EQ(static_cast<const Acceptance&>(*listed[0]).order_id(), "o2");
  list.set_order_id("o1");
  EXPECT_EQ(store_.List(list).size(), 1u);
}

// Any order of steps, cancels, owners' answers and repeats.
TEST(StoreProperty, CancelledIsForEverAndToldOnce) {
  for (const uint64_t seed : testing::Seeds(300)) {
    SCOPED_TRACE(testing::Replay(seed));
    std::mt19937_64 random(seed);
    testing::TurnHarness store(StoreContext());
    std::map<std::string, AcceptOrderRequest> orders;
    for (int i = 0; i < 4; ++i) {
      const std::string order_id = absl::StrCat("o", i);
      orders[order_id] = Accept(testing::Pick(random, 2) ? kManual : kAutomatic,
                                testing::Pick(random, 2) ? kManual : kAutomatic, order_id);
    }
    std::map<std::string, int> told;  // "<event> <key>"
    std::set<std::string> undone;
    for (int turn = 0; turn < 30; ++turn) {
      testing::Batch batch;
      for (int i = testing::Pick(random, 4); i >= 0; --i) {
        const std::string order_id = absl::StrCat("o", testing::Pick(random, 4));
        const std::string key = order_id + "/accept";
        switch (testing::Pick(random, 6)) {
          case 0:
            batch.Add(Cancel(order_id));
            break;
          case 1:
            batch.Add(Say(true, key));
            break;
          case 2:
            batch.Add(Say(false, key));
            break;
          case 3:
            batch.Add(Confirm(key));
            break;
          default:
            batch.Add(orders[order_id]);
        }
      }
      batch.Run(store);
      for (const std::string& event : store.TakeEvents()) ++told[event.substr(0, event.find('@'))];
      for (const auto& [key, row] : store.Rows(kAcceptances)) {
        const auto& acceptance = static_cast<const Acceptance&>(*row.body);
        const bool cancelled = acceptance.state() == Acceptance::STATE_CANCELLED;
        ASSERT_EQ(told["StoreCancelled " + key], cancelled ? 1 : 0) << key;
        ASSERT_EQ(told["StoreAccepted " + key], acceptance.has_accept_time() ? 1 : 0) << key;
        ASSERT_EQ(told["StoreDeclined " + key],
                  acceptance.state() == Acceptance::STATE_DECLINED ? 1 : 0)
            << key;
        if (acceptance.step().undo() == Outcome::OUTCOME_DONE) {
          undone.insert(key);
          ASSERT_TRUE(cancelled || acceptance.state() == Acceptance::STATE_DECLINED) << key;
        } else {
          ASSERT_FALSE(undone.contains(key)) << key << " came back";
        }
      }
    }
  }
}

}  // namespace
}  // namespace gaekju::store
