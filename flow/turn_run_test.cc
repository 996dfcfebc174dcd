#include "flow/turn_run.h"

#include "gmock/gmock.h"
#include "google/rpc/code.pb.h"
#include "gtest/gtest.h"

namespace gaekju::flow {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

struct Item : TurnItem {
  uint64_t ticket = 0;
};

std::unique_ptr<Item> Asked(uint64_t ticket, Answer answer) {
  auto item = std::make_unique<Item>();
  item->ticket = ticket;
  item->answer = std::move(answer);
  return item;
}

Answer Of(Answer::Kind kind) {
  Answer answer;
  answer.kind = kind;
  return answer;
}

const auto kNobodyIsGone = [](const Item&) { return false; };

TEST(EndTurn, ALaterItemOfTheSameTurnMayResolveWhatAnEarlierOneWaitsFor) {
  Waiters<Item> waiters;
  std::vector<std::unique_ptr<Item>> items;
  items.push_back(Asked(1, Wait("o1/place")));
  const auto end =
      EndTurn(std::move(items), {{"o1/place", Of(Answer::Kind::kDone)}}, &waiters, kNobodyIsGone);
  ASSERT_THAT(end.answered, SizeIs(1));
  EXPECT_EQ(end.answered[0].first->ticket, 1u);
  EXPECT_EQ(end.answered[0].second.kind, Answer::Kind::kDone);
  EXPECT_TRUE(waiters.empty());
}

TEST(EndTurn, WhoHasHungUpIsNotParked) {
  Waiters<Item> waiters;
  std::vector<std::unique_ptr<Item>> items;
  items.push_back(Asked(1, Wait("a")));
  items.push_back(Asked(2, Wait("a")));
  EndTurn(std::move(items), {}, &waiters, [](const Item& item) { return item.ticket == 1; });
  EXPECT_EQ(waiters.Take(1), nullptr);
  EXPECT_NE(waiters.Take(2), nullptr);
  EXPECT_EQ(waiters.Take(2), nullptr) << "once";
}

TEST(Waiters, KeysAreTakenInTheirOrderEachOnceFromWhereALookEnded) {
  Waiters<Item> waiters;
  std::vector<std::unique_ptr<Item>> items;
  const char* const keys[] = {"b", "a", "b", "c"};
  for (uint64_t i = 0; i < 4; ++i) items.push_back(Asked(i + 1, Wait(keys[i])));
  EndTurn(std::move(items), {}, &waiters, kNobodyIsGone);
  EXPECT_THAT(waiters.KeysAfter("", 9), ::testing::ElementsAre("a", "b", "c"));
  EXPECT_THAT(waiters.KeysAfter("", 2), ::testing::ElementsAre("a", "b"));
  EXPECT_THAT(waiters.KeysAfter("b", 2), ::testing::ElementsAre("c"));
  EXPECT_THAT(waiters.KeysAfter("c", 2), IsEmpty());
}

TEST(EndTurn, WhatWantsMoreRowsGoesAgainInItsOrderAndNobodyIsTold) {
  Waiters<Item> waiters;
  std::vector<std::unique_ptr<Item>> items;
  for (uint64_t ticket : {1, 2}) items.push_back(Asked(ticket, Of(Answer::Kind::kRetry)));
  items.push_back(Asked(3, Of(Answer::Kind::kDone)));
  items[1]->kind = TurnItem::Kind::kCommand;
  items[2]->kind = TurnItem::Kind::kCommand;
  const auto end = EndTurn(std::move(items), {}, &waiters, kNobodyIsGone);
  ASSERT_THAT(end.again, SizeIs(2));
  EXPECT_EQ(end.again[0]->ticket, 1u);
  EXPECT_THAT(end.answered, IsEmpty());
  ASSERT_THAT(end.settled, SizeIs(1));
  EXPECT_EQ(end.settled[0]->ticket, 3u);
}

TEST(ResultOfCall, OnlyWhatThePeerDecidedIsARefusal) {
  google::rpc::Status status;
  EXPECT_EQ(ResultOfCall({}, status, /*pending=*/true, "").outcome, Outcome::OUTCOME_PENDING);
  EXPECT_EQ(ResultOfCall({}, status, /*pending=*/false, "").outcome, Outcome::OUTCOME_DONE);
  status.set_code(google::rpc::FAILED_PRECONDITION);
  EXPECT_EQ(ResultOfCall({}, status, false, "").outcome, Outcome::OUTCOME_REFUSED);
  for (int code :
       {google::rpc::UNAVAILABLE, google::rpc::DEADLINE_EXCEEDED, google::rpc::INTERNAL}) {
    status.set_code(code);
    EXPECT_TRUE(ResultOfCall({}, status, false, "").unreachable) << code;
  }
}

}  // namespace
}  // namespace gaekju::flow
