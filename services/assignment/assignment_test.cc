#include "services/assignment/assignment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "flow/values.h"
#include "gaekju/assignment/v1/assignment_events.pb.h"
#include "gaekju/assignment/v1/assignment_service.pb.h"
#include "google/rpc/code.pb.h"
#include "services/assignment/dealer_index.h"
#include "services/testing/context_rules.h"
#include "services/testing/property.h"
#include "services/testing/requests.h"
#include "services/testing/step_rules.h"
#include "services/testing/turn_harness.h"

namespace gaekju::assignment {
namespace {

using flow::Answer;
using flow::Outcome;
using gaekju::assignment::v1::Assignment;
using gaekju::assignment::v1::AssignRequest;
using gaekju::assignment::v1::AssignResponse;
using gaekju::assignment::v1::AwaitPickupRequest;
using gaekju::assignment::v1::AwaitPickupResponse;
using gaekju::assignment::v1::ClosePickupRequest;
using gaekju::assignment::v1::ConfirmPickupRequest;
using gaekju::assignment::v1::ConfirmPickupResponse;
using gaekju::assignment::v1::CreateDealerRequest;
using gaekju::assignment::v1::CreateDealerResponse;
using gaekju::assignment::v1::Dealer;
using gaekju::assignment::v1::GetAssignmentRequest;
using gaekju::assignment::v1::GetDealerRequest;
using gaekju::assignment::v1::ListAssignmentsRequest;
using gaekju::assignment::v1::ListDealersRequest;
using gaekju::assignment::v1::PickupClosing;
using gaekju::assignment::v1::ReopenPickupRequest;
using gaekju::assignment::v1::UnassignRequest;
using gaekju::type::v1::Location;
using google::protobuf::Message;
using ::testing::ElementsAre;
using testing::FieldOf;
using testing::From;
using ::testing::IsEmpty;

Location At(double latitude, double longitude) {
  Location location;
  location.set_latitude(latitude);
  location.set_longitude(longitude);
  return location;
}

const Location kSeoul = At(37.5665, 126.9780), kBusan = At(35.1796, 129.0756);

CreateDealerRequest Create(const std::string& dealer_id, const Location& location,
                           int64_t capacity = 0) {
  CreateDealerRequest request;
  request.set_dealer_id(dealer_id);
  request.set_storefront("tshop");
  request.set_agency_name("agency of " + dealer_id);
  *request.mutable_location() = location;
  request.set_capacity(capacity);
  return request;
}

AssignRequest Assign(const std::string& order_id = "o1", const Location& location = kSeoul) {
  AssignRequest request;
  request.set_order_id(order_id);
  request.set_step_id("assign");
  request.set_storefront("tshop");
  request.set_customer_id("cust1");
  auto* line = request.add_lines();
  line->set_product_id("p1");
  line->set_quantity(1);
  *request.mutable_delivery_location() = location;
  return request;
}

UnassignRequest Unassign(const std::string& order_id = "o1") {
  UnassignRequest request;
  request.set_order_id(order_id);
  request.set_step_id("assign");
  return request;
}

AwaitPickupRequest Await(const std::string& order_id = "o1", const std::string& step_id = "pickup",
                         const std::string& assignment_id = "") {
  AwaitPickupRequest request;
  request.set_order_id(order_id);
  request.set_step_id(step_id);
  request.set_assignment_id(assignment_id.empty() ? order_id + "/assign" : assignment_id);
  return request;
}

ConfirmPickupRequest Confirm(const std::string& order_id = "o1") {
  ConfirmPickupRequest request;
  request.set_assignment_id(order_id + "/assign");
  return request;
}

ClosePickupRequest Close(const std::string& order_id = "o1", const std::string& step_id = "close") {
  ClosePickupRequest request;
  request.set_order_id(order_id);
  request.set_step_id(step_id);
  request.set_assignment_step_id("assign");
  return request;
}

ReopenPickupRequest Reopen(const std::string& order_id = "o1",
                           const std::string& step_id = "close") {
  ReopenPickupRequest request;
  request.set_order_id(order_id);
  request.set_step_id(step_id);
  return request;
}

// One context, and an index that learns of it when it is told to: after each turn, as the shell
// does it, or late.
class Replica {
 public:
  void Learn() {
    std::vector<DealerIndex::Row> rows;
    for (const auto& [key, row] : harness.Rows(kDealers)) {
      rows.push_back(DealerIndex::RowOf(static_cast<const Dealer&>(*row.body)));
    }
    index.PutAll(rows);
  }
  Answer Call(const Message& request, flow::Caller caller = {}) {
    Answer answer = harness.Call(request, std::move(caller));
    Learn();
    return answer;
  }

  DealerIndex index;
  const std::unique_ptr<flow::Context> context = MakeAssignmentContext(&index);
  testing::TurnHarness harness{*context};
};

class AssignmentTest : public ::testing::Test {
 protected:
  Answer Call(const Message& request, flow::Caller caller = {}) {
    return replica_.Call(request, std::move(caller));
  }
  const Assignment& Row(const std::string& key = "o1/assign") {
    const Assignment* assignment = replica_.harness.Row<Assignment>(kAssignments, key);
    GK_CHECK(assignment != nullptr) << key;
    return *assignment;
  }
  const Dealer& DealerRow(const std::string& key) {
    const Dealer* dealer = replica_.harness.Row<Dealer>(kDealers, key);
    GK_CHECK(dealer != nullptr) << key;
    return *dealer;
  }
  std::string DealerOf(const Answer& answer) {
    AssignResponse response;
    GK_CHECK(answer.kind == Answer::Kind::kDone && response.ParseFromString(answer.payload))
        << flow::ReasonOf(answer.status);
    return response.dealer_id();
  }
  std::vector<std::string> TakeEvents() { return replica_.harness.TakeEvents(); }

  Replica replica_;
};

TEST(Assignment, FollowsTheRulesOfAContext) {
  const FixedDealers nobody({});
  testing::ExpectFollowsRules(*MakeAssignmentContext(&nobody));
}

TEST_F(AssignmentTest, AssignFollowsTheRulesOfAStep) {
  Call(Create("d1", kSeoul, 1));
  testing::ExpectFollowsStepRules(replica_.harness, kAssignments, Assign(), Assign("o1", kBusan),
                                  Unassign());
  EXPECT_EQ(DealerRow("d1").assigned_count(), 0);
}

TEST_F(AssignmentTest, ClosePickupFollowsTheRulesOfAStep) {
  ClosePickupRequest other = Close();
  other.set_assignment_step_id("other");
  testing::ExpectFollowsStepRules(replica_.harness, kPickupClosings, Close(), other, Reopen());
}

// ---------------------------------------------------------------- dealers

TEST_F(AssignmentTest, ADealerIsCreatedOnce) {
  const Answer answer = Call(Create("d1", kSeoul, 3));
  CreateDealerResponse response;
  ASSERT_TRUE(response.ParseFromString(answer.payload));
  EXPECT_EQ(response.dealer().agency_name(), "agency of d1");
  EXPECT_EQ(response.dealer().capacity(), 3);
  EXPECT_EQ(response.dealer().location().latitude(), kSeoul.latitude());
  EXPECT_EQ(response.dealer().request_fingerprint(), 0u);
  EXPECT_EQ(flow::ToMicros(DealerRow("d1").create_time()), replica_.harness.now_us);
  EXPECT_EQ(Call(Create("d1", kSeoul, 3)).payload, answer.payload);
  EXPECT_EQ(replica_.harness.written_count(), 0);
  const Answer other = Call(Create("d1", kBusan, 3));
  EXPECT_EQ(other.status.code(), google::rpc::ALREADY_EXISTS);
  EXPECT_EQ(flow::ReasonOf(other.status), "DEALER_EXISTS");
}

TEST_F(AssignmentTest, BadRequestsNameTheField) {
  testing::ExpectNamesTheField(
      replica_.harness, Create("d1", kSeoul),
      {
          {"dealer_id", [](auto* r) { r->clear_dealer_id(); }},
          {"dealer_id", [](auto* r) { r->set_dealer_id("a/b"); }},
          {"storefront", [](auto* r) { r->set_storefront("T"); }},
          {"agency_name", [](auto* r) { r->clear_agency_name(); }},
          {"agency_name", [](auto* r) { r->set_agency_name(std::string(257, 'x')); }},
          {"location", [](auto* r) { r->clear_location(); }},
          {"location", [](auto* r) { *r->mutable_location() = At(90.5, 0); }},
          {"location", [](auto* r) { *r->mutable_location() = At(0, -180.5); }},
          {"location", [](auto* r) { *r->mutable_location() = At(std::nan(""), 1); }},
          {"capacity", [](auto* r) { r->set_capacity(-1); }},
      });
  testing::ExpectNamesTheField(
      replica_.harness, Assign(),
      {
          {"storefront", [](auto* r) { r->clear_storefront(); }},
          {"customer_id", [](auto* r) { r->clear_customer_id(); }},
          {"lines", [](auto* r) { r->clear_lines(); }},
          {"delivery_location", [](auto* r) { *r->mutable_delivery_location() = At(91, 0); }},
      });
  EXPECT_EQ(FieldOf(Call(Confirm("o1/x"))), "assignment_id");
  EXPECT_EQ(FieldOf(Call(Await("o1", "pickup", "o1"))), "assignment_id");
  EXPECT_EQ(FieldOf(Call(Await("o1", ""))), "step_id");
  EXPECT_THAT(replica_.harness.Rows(kAssignments), IsEmpty());
  EXPECT_THAT(replica_.harness.Rows(kDealers), IsEmpty());
}

// ---------------------------------------------------------------- which dealer

TEST_F(AssignmentTest, TheNearestDealerHasIt) {  // TS-03
  Call(Create("busan", kBusan));
  Call(Create("seoul", kSeoul));
  const Answer answer = Call(Assign("o1", At(37.5, 127)));
  AssignResponse response;
  ASSERT_TRUE(response.ParseFromString(answer.payload));
  EXPECT_EQ(response.assignment_id(), "o1/assign");
  EXPECT_EQ(response.dealer_id(), "seoul");
  EXPECT_EQ(response.agency_name(), "agency of seoul");
  EXPECT_EQ(Row().state(), Assignment::STATE_ASSIGNED);
  EXPECT_EQ(Row().dealer_id(), "seoul");
  EXPECT_EQ(Row().agency_name(), "agency of seoul");
  EXPECT_EQ(Row().customer_id(), "cust1");
  EXPECT_EQ(Row().storefront(), "tshop");
  EXPECT_EQ(Row().lines(0).product_id(), "p1");
  EXPECT_NEAR(Row().distance_metres(), 7650, 100);
  EXPECT_EQ(flow::ToMicros(Row().assign_time()), replica_.harness.now_us);
  EXPECT_EQ(DealerRow("seoul").assigned_count(), 1);
  EXPECT_EQ(DealerRow("busan").assigned_count(), 0);
  EXPECT_THAT(TakeEvents(), ElementsAre("DealerAssigned o1/assign@1"));
}

TEST_F(AssignmentTest, OfSeveralAsNearTheLeastId) {  // TS-03
  for (const char* id : {"d3", "d1", "d2"}) Call(Create(id, kBusan, 1));
  EXPECT_EQ(DealerOf(Call(Assign("o1"))), "d1");
  EXPECT_EQ(DealerOf(Call(Assign("o2"))), "d2");
  EXPECT_EQ(DealerOf(Call(Assign("o3"))), "d3");
}

TEST_F(AssignmentTest, WithoutALocationTheLeastIdWithRoom) {
  Call(Create("d2", kSeoul));
  Call(Create("d1", kBusan, 1));
  AssignRequest unset = Assign("o1");
  unset.clear_delivery_location();
  EXPECT_EQ(DealerOf(Call(unset)), "d1");
  EXPECT_EQ(Row("o1/assign").distance_metres(), 0);
  EXPECT_EQ(DealerOf(Call(Assign("o2", At(0, 0)))), "d2");
}

TEST_F(AssignmentTest, OnlyDealersOfTheStorefront) {
  CreateDealerRequest other = Create("near", kSeoul);
  other.set_storefront("funshop");
  Call(other);
  EXPECT_EQ(flow::ReasonOf(Call(Assign("o1")).status), "DEALERS_FULL");
  Call(Create("far", kBusan));
  EXPECT_EQ(DealerOf(Call(Assign("o2"))), "far");
}

TEST_F(AssignmentTest, FullDealersArePassedOverAndNoneLeftIsARefusal) {
  Call(Create("near", kSeoul, 1));
  Call(Create("far", kBusan, 2));
  EXPECT_EQ(DealerOf(Call(Assign("o1"))), "near");
  EXPECT_EQ(DealerOf(Call(Assign("o2"))), "far");
  EXPECT_EQ(DealerOf(Call(Assign("o3"))), "far");
  TakeEvents();
  const Answer refused = Call(Assign("o4"));
  EXPECT_EQ(refused.status.code(), google::rpc::FAILED_PRECONDITION);
  EXPECT_EQ(flow::ReasonOf(refused.status), "DEALERS_FULL");
  EXPECT_EQ(Row("o4/assign").state(), Assignment::STATE_REFUSED);
  EXPECT_EQ(Row("o4/assign").dealer_id(), "");
  EXPECT_THAT(TakeEvents(), IsEmpty());
  // What was refused stays refused, though there is room again; another order takes it.
  Call(Unassign("o1"));
  EXPECT_EQ(flow::ReasonOf(Call(Assign("o4")).status), "DEALERS_FULL");
  EXPECT_EQ(DealerOf(Call(Assign("o5"))), "near");
}

TEST_F(AssignmentTest, AWholeTurnForTheSameFewDealers) {
  // 512 orders at once, from one door: 600 dealers with room for one each.
  for (int i = 0; i < 600; ++i) {
    replica_.harness.Call(Create(absl::StrCat("d", 1000 + i), At(37.5 + i * 0.001, 127), 1));
  }
  replica_.Learn();
  std::vector<AssignRequest> requests;
  for (int i = 0; i < 512; ++i) requests.push_back(Assign(absl::StrCat("o", i), At(37.5, 127)));
  std::vector<const Message*> batch;
  for (const auto& request : requests) batch.push_back(&request);
  // The index learns nothing until the end: the rows alone tell who is full.
  const auto answers = replica_.harness.CallTogether(batch);
  for (size_t i = 0; i < answers.size(); ++i) {
    ASSERT_EQ(DealerOf(answers[i]), absl::StrCat("d", 1000 + i));
  }
  EXPECT_LE(replica_.harness.retry_count(), 4 * 512) << "the loop grants 8 retries to each";
}

// Knows what was committed before the turn, as the shell's does.
class Committed : public DealerFinder {
 public:
  void Nearest(absl::string_view storefront, const Location* location, int count,
               std::vector<std::string>* dealer_ids) const override {
    std::vector<Dealer> with_room;
    for (const auto& [key, row] : harness->Rows(kDealers)) {
      const auto& dealer = static_cast<const Dealer&>(*row.body);
      if (HasRoom(dealer)) with_room.push_back(dealer);
    }
    FixedDealers(std::move(with_room)).Nearest(storefront, location, count, dealer_ids);
  }
  const testing::TurnHarness* harness = nullptr;
};

TEST(Assignment, AWholeTurnThatLearnsOnTheWayEndsAsSoon) {
  // What the turns before have filled is not offered again: how many come for the same dealers is
  // told by those that this turn fills.
  Committed finder;
  const auto context = MakeAssignmentContext(&finder);
  testing::TurnHarness harness(*context);
  finder.harness = &harness;
  for (int i = 0; i < 300; ++i) harness.Call(Create(absl::StrCat("d", 100 + i), kSeoul, 1));
  std::vector<AssignRequest> requests;
  for (int i = 0; i < 250; ++i) requests.push_back(Assign(absl::StrCat("o", i)));
  std::vector<const Message*> batch;
  for (const auto& request : requests) batch.push_back(&request);
  // Aborts after ten rounds; the loop gives each nine.
  const auto answers = harness.CallTogether(batch);
  for (size_t i = 0; i < answers.size(); ++i) {
    AssignResponse response;
    ASSERT_EQ(answers[i].kind, Answer::Kind::kDone);
    ASSERT_TRUE(response.ParseFromString(answers[i].payload));
    ASSERT_EQ(response.dealer_id(), absl::StrCat("d", 100 + i));
  }
}

TEST_F(AssignmentTest, ADealerThatSomebodyElseAskedForIsNotTakenForTheNearest) {
  for (int i = 0; i < 4; ++i) Call(Create(absl::StrCat("near", i), kSeoul, 1));
  Call(Create("far", kBusan));
  for (int i = 0; i < 3; ++i) {  // filled elsewhere, and the index is behind
    Dealer dealer = DealerRow(absl::StrCat("near", i));
    dealer.set_assigned_count(1);
    replica_.harness.Put(kDealers, dealer.dealer_id(), dealer);
  }
  const AssignRequest in_busan = Assign("o1", kBusan), in_seoul = Assign("o2", kSeoul);
  const auto answers = replica_.harness.CallTogether({&in_busan, &in_seoul});
  EXPECT_EQ(DealerOf(answers[0]), "far");
  EXPECT_EQ(DealerOf(answers[1]), "near3");
}

TEST(FixedDealers, NearestFirstOfTheStorefront) {
  std::vector<Dealer> dealers(4);
  const char* const ids[] = {"b", "a", "far", "other"};
  for (int i = 0; i < 4; ++i) {
    dealers[static_cast<size_t>(i)].set_dealer_id(ids[i]);
    dealers[static_cast<size_t>(i)].set_storefront(i == 3 ? "funshop" : "tshop");
    *dealers[static_cast<size_t>(i)].mutable_location() = i == 2 ? kBusan : kSeoul;
  }
  const FixedDealers finder(dealers);
  std::vector<std::string> found;
  finder.Nearest("tshop", &kSeoul, 9, &found);
  EXPECT_THAT(found, ElementsAre("a", "b", "far"));
  found.clear();
  finder.Nearest("tshop", nullptr, 2, &found);
  EXPECT_THAT(found, ElementsAre("a", "b"));
}

TEST_F(AssignmentTest, AnIndexThatIsBehindNeverFillsADealerTwice) {
  for (int i = 0; i < 300; ++i) Call(Create(absl::StrCat("d", 100 + i), kSeoul, 1));
  // Another replica has given all but the last an order, and this one has heard nothing.
  for (int i = 0; i < 299; ++i) {
    Dealer dealer = DealerRow(absl::StrCat("d", 100 + i));
    dealer.set_assigned_count(1);
    replica_.harness.Put(kDealers, dealer.dealer_id(), dealer);
  }
  EXPECT_EQ(DealerOf(replica_.harness.Call(Assign("o1"))), "d399");
  EXPECT_LE(replica_.harness.retry_count(), 8);
  EXPECT_EQ(flow::ReasonOf(replica_.harness.Call(Assign("o2")).status), "DEALERS_FULL");
}

// ---------------------------------------------------------------- taking it back

TEST_F(AssignmentTest, UnassignGivesTheRoomBack) {  // TS-05
  Call(Create("d1", kSeoul, 1));
  Call(Assign());
  TakeEvents();
  const int64_t update_time_us = DealerRow("d1").update_time_us();
  EXPECT_EQ(Call(Unassign()).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().state(), Assignment::STATE_CANCELLED);
  EXPECT_EQ(flow::ToMicros(Row().cancel_time()), replica_.harness.now_us);
  EXPECT_EQ(DealerRow("d1").assigned_count(), 0);
  EXPECT_GT(DealerRow("d1").update_time_us(), update_time_us) << "though no clock has moved";
  EXPECT_THAT(TakeEvents(), ElementsAre("AssignmentCancelled o1/assign@2"));
  EXPECT_EQ(DealerOf(Call(Assign("o2"))), "d1");
}

TEST_F(AssignmentTest, AnUnassignThatComesFirst) {  // TS-12
  Call(Create("d1", kSeoul, 1));
  EXPECT_EQ(Call(Unassign()).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().state(), Assignment::STATE_CANCELLED);
  EXPECT_EQ(Row().order_id(), "o1");
  EXPECT_EQ(DealerRow("d1").assigned_count(), 0);
  EXPECT_EQ(flow::ReasonOf(Call(Confirm()).status), "ASSIGNMENT_CANCELLED");
  EXPECT_EQ(flow::ReasonOf(Call(Await()).status), "ASSIGNMENT_CANCELLED");
  EXPECT_THAT(TakeEvents(), IsEmpty()) << "nobody had it";
}

TEST_F(AssignmentTest, AnUnassignOfWhatWasRefused) {
  Call(Assign());
  EXPECT_EQ(Call(Unassign()).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().state(), Assignment::STATE_REFUSED);
  EXPECT_THAT(TakeEvents(), IsEmpty());
}

// ---------------------------------------------------------------- the pick-up

TEST_F(AssignmentTest, APickUpFreesTheDealerAndAnswersWhoWaits) {
  Call(Create("d1", kSeoul, 1));
  Call(Assign());
  TakeEvents();
  EXPECT_EQ(Call(Await(), From("order")).kind, Answer::Kind::kPending);
  EXPECT_EQ(Call(Await(), From("order")).kind, Answer::Kind::kPending);
  EXPECT_EQ(replica_.harness.written_count(), 0);
  ConfirmPickupResponse confirmed;
  ASSERT_TRUE(confirmed.ParseFromString(Call(Confirm()).payload));
  EXPECT_EQ(confirmed.assignment().state(), Assignment::STATE_PICKED_UP);
  EXPECT_FALSE(confirmed.assignment().has_step());
  EXPECT_FALSE(confirmed.assignment().has_pickup_step());
  EXPECT_EQ(DealerRow("d1").assigned_count(), 0);
  const auto envelopes = replica_.harness.TakeEnvelopes();
  ASSERT_EQ(envelopes.size(), 2u);
  EXPECT_EQ(envelopes[0].kind, flow::Envelope::Kind::kAnswer);
  EXPECT_EQ(envelopes[0].to, "order");
  EXPECT_EQ(envelopes[0].order_id, "o1");
  EXPECT_EQ(envelopes[0].step_id, "pickup");
  EXPECT_EQ(envelopes[0].outcome, Outcome::OUTCOME_DONE);
  AwaitPickupResponse response;
  ASSERT_TRUE(response.ParseFromString(envelopes[0].payload));
  EXPECT_EQ(flow::ToMicros(response.pickup_time()), replica_.harness.now_us);
  EXPECT_EQ(envelopes[1].type, "gaekju.assignment.v1.OrderPickedUp");
  // Asked again: the same answer.
  EXPECT_EQ(Call(Await(), From("order")).payload, envelopes[0].payload);
  EXPECT_EQ(Call(Confirm()).kind, Answer::Kind::kDone);
  EXPECT_EQ(replica_.harness.written_count(), 0);
  EXPECT_EQ(DealerOf(Call(Assign("o2"))), "d1");
}

TEST_F(AssignmentTest, APickUpBeforeAnybodyWaits) {
  Call(Create("d1", kSeoul, 1));
  Call(Assign());
  Call(Confirm());
  const Answer answer = Call(Await(), From("order"));
  AwaitPickupResponse response;
  EXPECT_EQ(answer.kind, Answer::Kind::kDone);
  ASSERT_TRUE(response.ParseFromString(answer.payload));
  EXPECT_TRUE(response.has_pickup_time());
  // Its answer stays, also when the goods come back.
  Call(Unassign());
  EXPECT_EQ(Call(Await(), From("order")).payload, answer.payload);
}

TEST_F(AssignmentTest, AnUnassignRefusesWhoWaits) {
  Call(Create("d1", kSeoul, 1));
  Call(Assign());
  Call(Await());
  Call(Await(), From("order"));  // a plain call waits for nothing; who can be told is remembered
  replica_.harness.TakeEnvelopes();
  Call(Unassign());
  const auto envelopes = replica_.harness.TakeEnvelopes();
  ASSERT_EQ(envelopes.size(), 2u);
  EXPECT_EQ(envelopes[0].to, "order");
  EXPECT_EQ(envelopes[0].outcome, Outcome::OUTCOME_REFUSED);
  google::rpc::Status status;
  ASSERT_TRUE(status.ParseFromString(envelopes[0].payload));
  EXPECT_EQ(flow::ReasonOf(status), "ASSIGNMENT_CANCELLED");
  EXPECT_EQ(envelopes[1].type, "gaekju.assignment.v1.AssignmentCancelled");
  EXPECT_EQ(flow::ReasonOf(Call(Await(), From("order")).status), "ASSIGNMENT_CANCELLED");
  EXPECT_EQ(flow::ReasonOf(Call(Confirm()).status), "ASSIGNMENT_CANCELLED");
}

TEST_F(AssignmentTest, AnUnassignAfterThePickUpFreesNothingTwice) {
  Call(Create("d1", kSeoul, 1));
  Call(Assign("o1"));
  Call(Confirm("o1"));
  Call(Assign("o2"));
  TakeEvents();
  EXPECT_EQ(Call(Unassign("o1")).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row("o1/assign").state(), Assignment::STATE_CANCELLED);
  EXPECT_EQ(DealerRow("d1").assigned_count(), 1) << "of o2";
  EXPECT_THAT(TakeEvents(), ElementsAre("AssignmentCancelled o1/assign@3"));
}

TEST_F(AssignmentTest, WhatIsNotThereIsNotFound) {
  for (const Answer& answer : {Call(Confirm()), Call(Await())}) {
    EXPECT_EQ(answer.status.code(), google::rpc::NOT_FOUND);
    EXPECT_EQ(flow::ReasonOf(answer.status), "ASSIGNMENT_NOT_FOUND");
  }
  Call(Assign());  // refused: there are no dealers
  EXPECT_EQ(flow::ReasonOf(Call(Confirm()).status), "ASSIGNMENT_NOT_FOUND");
  EXPECT_EQ(flow::ReasonOf(Call(Await()).status), "ASSIGNMENT_NOT_FOUND");
  Call(Create("d1", kSeoul));
  Call(Assign("o2"));
  EXPECT_EQ(flow::ReasonOf(Call(Await("o1", "pickup", "o2/assign")).status), "ASSIGNMENT_NOT_FOUND")
      << "another order's";
}

TEST_F(AssignmentTest, OneStepWaitsForAPickUp) {
  Call(Create("d1", kSeoul));
  Call(Assign());
  Call(Await());
  EXPECT_EQ(flow::ReasonOf(Call(Await("o1", "another")).status), "STEP_REUSED");
}

// ---------------------------------------------------------------- the pick-up is closed

TEST_F(AssignmentTest, WhatIsBeingCancelledIsNotPickedUp) {  // TS-13
  Call(Create("d1", kSeoul));
  Call(Assign());
  Call(Await(), From("order"));
  TakeEvents();
  EXPECT_EQ(Call(Close()).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().state(), Assignment::STATE_ASSIGNED);
  EXPECT_THAT(TakeEvents(), IsEmpty());
  for (int i = 0; i < 2; ++i) {
    const Answer answer = Call(Confirm());
    EXPECT_EQ(answer.status.code(), google::rpc::FAILED_PRECONDITION);
    EXPECT_EQ(flow::ReasonOf(answer.status), "PICKUP_CLOSED");
    EXPECT_EQ(Call(Close()).kind, Answer::Kind::kDone) << "asked again";
    EXPECT_EQ(replica_.harness.written_count(), 0);
  }
  EXPECT_EQ(Call(Unassign()).kind, Answer::Kind::kDone);
  EXPECT_EQ(flow::ReasonOf(Call(Confirm()).status), "ASSIGNMENT_CANCELLED");
}

TEST_F(AssignmentTest, WhatWasPickedUpIsNotClosed) {  // TS-13
  Call(Create("d1", kSeoul));
  Call(Assign());
  Call(Confirm());
  const Answer answer = Call(Close());
  EXPECT_EQ(answer.status.code(), google::rpc::FAILED_PRECONDITION);
  EXPECT_EQ(flow::ReasonOf(answer.status), "PICKED_UP");
  EXPECT_TRUE(Row().pickup_closed_by().empty());
  EXPECT_EQ(flow::ReasonOf(Call(Close()).status), "PICKED_UP") << "asked again";
  EXPECT_EQ(Call(Reopen()).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().state(), Assignment::STATE_PICKED_UP);
}

TEST_F(AssignmentTest, APickUpIsClosedBeforeThereIsAnAssignment) {  // TS-12
  Call(Create("d1", kSeoul));
  EXPECT_EQ(Call(Close()).kind, Answer::Kind::kDone);
  GetAssignmentRequest get;
  get.set_assignment_id("o1/assign");
  EXPECT_EQ(replica_.harness.Get(get), nullptr) << "there is none yet";
  EXPECT_EQ(flow::ReasonOf(Call(Confirm()).status), "ASSIGNMENT_NOT_FOUND");
  EXPECT_EQ(flow::ReasonOf(Call(Await()).status), "ASSIGNMENT_NOT_FOUND");
  EXPECT_EQ(DealerOf(Call(Assign())), "d1");
  EXPECT_EQ(flow::ReasonOf(Call(Confirm()).status), "PICKUP_CLOSED");
  EXPECT_EQ(Call(Reopen()).kind, Answer::Kind::kDone);
  EXPECT_EQ(Call(Confirm()).kind, Answer::Kind::kDone);
}

TEST_F(AssignmentTest, ARefusedCancelOpensThePickUpAgainAndNoOthers) {
  Call(Create("d1", kSeoul));
  Call(Assign());
  Call(Close());
  Call(Close("o1", "close.2"));
  EXPECT_EQ(Call(Reopen()).kind, Answer::Kind::kDone);
  EXPECT_EQ(flow::ReasonOf(Call(Confirm()).status), "PICKUP_CLOSED") << "by the second cancel";
  EXPECT_EQ(flow::ReasonOf(Call(Close()).status), "STEP_UNDONE") << "late";
  EXPECT_EQ(Call(Reopen("o1", "close.2")).kind, Answer::Kind::kDone);
  EXPECT_EQ(Call(Confirm()).kind, Answer::Kind::kDone);
  // An undo that comes first.
  Call(Assign("o2"));
  EXPECT_EQ(Call(Reopen("o2")).kind, Answer::Kind::kDone);
  EXPECT_EQ(flow::ReasonOf(Call(Close("o2")).status), "STEP_UNDONE");
  EXPECT_EQ(Call(Confirm("o2")).kind, Answer::Kind::kDone);
  for (const char* field : {"order_id", "step_id", "assignment_step_id"}) {
    ClosePickupRequest request = Close("o3");
    request.GetReflection()->ClearField(&request, request.GetDescriptor()->FindFieldByName(field));
    EXPECT_EQ(FieldOf(Call(request)), field);
  }
}

// ---------------------------------------------------------------- reads

TEST_F(AssignmentTest, ReadsShowNothingThatOnlyTheContextKeeps) {
  Call(Create("d1", kSeoul));
  Call(Create("d2", kBusan));
  Call(Assign("o1"));
  Call(Assign("o2", kBusan));
  GetAssignmentRequest get;
  get.set_assignment_id("o1/assign");
  const auto found = replica_.harness.Get(get);
  ASSERT_NE(found, nullptr);
  EXPECT_FALSE(static_cast<const Assignment&>(*found).has_step());
  GetDealerRequest get_dealer;
  get_dealer.set_dealer_id("d2");
  const auto dealer = replica_.harness.Get(get_dealer);
  ASSERT_NE(dealer, nullptr);
  EXPECT_EQ(static_cast<const Dealer&>(*dealer).assigned_count(), 1);
  EXPECT_EQ(static_cast<const Dealer&>(*dealer).request_fingerprint(), 0u);
  ListAssignmentsRequest list;
  list.set_customer_id("cust1");
  const auto listed = replica_.harness.List(list);
  ASSERT_EQ(listed.size(), 2u);
  EXPECT_EQ(static_cast<const Assignment&>(*listed[0]).order_id(), "o2");
  list.set_dealer_id("d1");
  EXPECT_EQ(replica_.harness.List(list).size(), 1u);
  list.set_order_id("o2");
  EXPECT_THAT(replica_.harness.List(list), IsEmpty());
  ListDealersRequest dealers;
  dealers.set_storefront("tshop");
  const auto listed_dealers = replica_.harness.List(dealers);
  ASSERT_EQ(listed_dealers.size(), 2u);
  EXPECT_EQ(static_cast<const Dealer&>(*listed_dealers[0]).dealer_id(), "d1");
  dealers.set_storefront("funshop");
  EXPECT_THAT(replica_.harness.List(dealers), IsEmpty());
}

// ---------------------------------------------------------------- any order of everything

// Dealers here and there, orders that come, go, are picked up and are asked for again, in turns of
// one or several, with an index that learns at once or now and then.
TEST(AssignmentProperty, CapacityHoldsAndTheNearestIsChosen) {
  for (const uint64_t seed : testing::Seeds(200)) {
    SCOPED_TRACE(testing::Replay(seed));
    std::mt19937_64 random(seed);
    Replica replica;
    const int dealer_count = 1 + testing::Pick(random, 12);
    for (int i = 0; i < dealer_count; ++i) {
      replica.Call(Create(absl::StrCat("d", i),
                          At(1 + testing::Pick(random, 5), testing::Pick(random, 5)),
                          testing::Pick(random, 4)));
    }
    const bool learns_late = testing::Pick(random, 2) == 0;
    std::map<std::string, int> told;
    for (int turn = 0; turn < 40; ++turn) {
      testing::Batch batch;
      const bool alone = testing::Pick(random, 2) == 0;
      for (int i = alone ? 0 : testing::Pick(random, 6); i >= 0; --i) {
        const std::string order_id = absl::StrCat("o", testing::Pick(random, 15));
        switch (testing::Pick(random, 10)) {
          case 0:
            batch.Add(Unassign(order_id));
            break;
          case 1:
            batch.Add(Confirm(order_id));
            break;
          case 2:
            batch.Add(Await(order_id));
            break;
          case 3:
            batch.Add(Close(order_id));
            break;
          case 4:
            if (testing::Pick(random, 3) != 0) {
              batch.Add(Confirm(order_id));
            } else {
              batch.Add(Reopen(order_id));
            }
            break;
          default: {
            // One place for each order, so that a repeat is one; some nowhere.
            const int number = std::atoi(order_id.c_str() + 1);
            batch.Add(
                Assign(order_id, number % 4 == 0 ? At(0, 0) : At(1 + number % 5, number % 3)));
          }
        }
      }
      // What is chosen when one order comes alone to a replica that knows everything.
      std::string expected;
      bool expects = false;
      if (const auto* assign = dynamic_cast<const AssignRequest*>(&batch[0]);
          assign != nullptr && alone && !learns_late) {
        const auto* known =
            replica.harness.Row<Assignment>(kAssignments, assign->order_id() + "/assign");
        expects = known == nullptr || known->state() == Assignment::STATE_UNSPECIFIED;
        std::vector<Dealer> with_room;
        for (const auto& [key, row] : replica.harness.Rows(kDealers)) {
          const auto& dealer = static_cast<const Dealer&>(*row.body);
          if (HasRoom(dealer)) with_room.push_back(dealer);
        }
        std::vector<std::string> ids;
        const Location& location = assign->delivery_location();
        FixedDealers(with_room).Nearest("tshop", IsKnown(location) ? &location : nullptr, 1, &ids);
        if (!ids.empty()) expected = ids[0];
      }
      const auto answers = batch.Run(replica.harness);
      if (expects) {
        AssignResponse response;
        if (expected.empty()) {
          ASSERT_EQ(flow::ReasonOf(answers[0].status), "DEALERS_FULL");
        } else {
          ASSERT_TRUE(response.ParseFromString(answers[0].payload));
          ASSERT_EQ(response.dealer_id(), expected);
        }
      }
      if (!learns_late || testing::Pick(random, 5) == 0) replica.Learn();
      for (const std::string& event : replica.harness.TakeEvents())
        ++told[event.substr(0, event.find('@'))];

      std::set<std::string> closed;
      for (const auto& [key, row] : replica.harness.Rows(kPickupClosings)) {
        const auto& closing = static_cast<const PickupClosing&>(*row.body);
        if (closing.step().outcome() == Outcome::OUTCOME_DONE &&
            closing.step().undo() == Outcome::OUTCOME_UNSPECIFIED)
          closed.insert(closing.assignment_id());
      }
      std::map<std::string, int64_t> live;
      for (const auto& [key, row] : replica.harness.Rows(kAssignments)) {
        const auto& assignment = static_cast<const Assignment&>(*row.body);
        const bool undone = assignment.step().undo() == Outcome::OUTCOME_DONE;
        const bool done = assignment.step().outcome() == Outcome::OUTCOME_DONE;
        if (assignment.state() == Assignment::STATE_ASSIGNED) ++live[assignment.dealer_id()];
        ASSERT_EQ(done, !assignment.dealer_id().empty()) << key;
        ASSERT_EQ(!assignment.pickup_closed_by().empty(), closed.contains(key)) << key;
        ASSERT_FALSE(closed.contains(key) && assignment.has_pickup_time()) << key;
        ASSERT_EQ(assignment.state() == Assignment::STATE_ASSIGNED ||
                      assignment.state() == Assignment::STATE_PICKED_UP,
                  done && !undone)
            << key;
        ASSERT_EQ(told["DealerAssigned " + key], done ? 1 : 0) << key;
        ASSERT_EQ(told["AssignmentCancelled " + key], done && undone ? 1 : 0) << key;
        ASSERT_EQ(told["OrderPickedUp " + key], assignment.has_pickup_time() ? 1 : 0) << key;
        if (assignment.pickup_step().outcome() == Outcome::OUTCOME_PENDING) {
          ASSERT_EQ(assignment.state(), Assignment::STATE_ASSIGNED) << key;
        }
      }
      for (const auto& [key, row] : replica.harness.Rows(kDealers)) {
        const auto& dealer = static_cast<const Dealer&>(*row.body);
        ASSERT_EQ(dealer.assigned_count(), live[key]) << key;
        if (dealer.capacity() != 0) {
          ASSERT_LE(dealer.assigned_count(), dealer.capacity()) << key;
        }
      }
    }
  }
}

}  // namespace
}  // namespace gaekju::assignment
