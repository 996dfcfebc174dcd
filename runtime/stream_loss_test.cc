#include "runtime/stream_loss.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gaekju::runtime {
namespace {

using ::testing::HasSubstr;

// Streams whose message at sequence n is called "<life><n>": what a stream has from the sequence
// `lost_from` on was published after it had lost its end.
MessageIdAt Has(int64_t lost_from = 1000) {
  return [lost_from](const std::string&, int64_t seq) {
    return absl::StrCat(seq < lost_from ? "a" : "b", seq);
  };
}
StreamPosition Ours(int64_t seq, int64_t created_ns = 1) {
  return {created_ns, seq, absl::StrCat("a", seq)};
}
// Of one stream.
std::string Loss(const StreamPosition& known, const StreamNow& now,
                 const MessageIdAt& message_id_at = Has()) {
  auto why = FindLoss({{"S", known}}, {}, {{"S", now}}, message_id_at);
  return why.ok() ? *why : why.status().ToString();
}
int64_t Left(const std::vector<StreamPosition>& acknowledged, const StreamNow& now,
             const MessageIdAt& message_id_at) {
  auto left = WhatIsLeft({{"S", acknowledged}}, {{"S", now}}, message_id_at);
  return left.ok() ? left->at("S").last_seq : -1;
}

TEST(FindLoss, WhatHasGrownHasLostNothing) {
  EXPECT_EQ(Loss(Ours(5), {1, 1, 9}), "");
  EXPECT_EQ(Loss({1, 0, ""}, {2, 1, 0}), "") << "nothing was there";
}

TEST(FindLoss, YoungerShorterAndMissingStreamsHaveLostSomething) {
  EXPECT_THAT(Loss(Ours(5), {2, 1, 9}), HasSubstr("made anew"));
  EXPECT_THAT(Loss(Ours(5), {1, 1, 3}), HasSubstr("ends at 3 and had 5"));
  EXPECT_THAT(*FindLoss({{"S", Ours(5)}}, {}, {}, Has()), HasSubstr("gone"));
}

TEST(FindLoss, AnotherMessageWhereOursWasTellsThatAStreamHasGrownAgain) {
  EXPECT_THAT(Loss(Ours(5), {1, 1, 9}, Has(4)), HasSubstr("another message at 5"));
  EXPECT_EQ(Loss(Ours(5), {1, 1, 9}, Has(6)), "");
}

TEST(FindLoss, WhatALimitHasRemovedIsNotLost) {
  EXPECT_EQ(Loss(Ours(5), {1, 6, 9}, Has(4)), "");
  EXPECT_THAT(Loss(Ours(5), {1, 5, 9}, Has(4)), HasSubstr("another message"));
}

TEST(FindLoss, AnOlderVersionsNumbersHaveToDo) {
  EXPECT_EQ(Loss({1, 5, ""}, {1, 1, 9}, Has(4)), "");
  EXPECT_THAT(Loss({1, 5, ""}, {1, 1, 4}), HasSubstr("ends at 4"));
}

TEST(FindLoss, ASequenceGivenOutTwiceIsALoss) {
  EXPECT_THAT(*FindLoss({{"S", Ours(5)}}, {{"S", 3}}, {{"S", {1, 1, 9}}}, Has()),
              HasSubstr("sequence 4 twice"));
}

TEST(FindLoss, WithoutAnAnswerNothingIsKnown) {
  const auto nobody = [](const std::string&, int64_t) -> absl::StatusOr<std::string> {
    return absl::UnavailableError("away");
  };
  EXPECT_THAT(Loss(Ours(5), {1, 1, 9}, nobody), HasSubstr("away"));
  EXPECT_EQ(Left({Ours(5)}, {1, 1, 9}, nobody), -1);
}

TEST(WhatIsLeft, TheFurthestOfOursThatIsThere) {
  std::vector<StreamPosition> acknowledged;
  for (int64_t seq = 40; seq > 0; seq -= 2) acknowledged.push_back(Ours(seq));
  for (int64_t lost_from = 1; lost_from <= 42; ++lost_from) {
    const int64_t expected = std::min<int64_t>(40, (lost_from - 1) / 2 * 2);
    EXPECT_EQ(Left(acknowledged, {1, 1, 100}, Has(lost_from)), expected) << lost_from;
    EXPECT_EQ(Left(acknowledged, {1, 1, lost_from - 1}, Has(lost_from)), expected) << lost_from;
  }
  EXPECT_EQ(Left(acknowledged, {1, 31, 100}, Has(31)), 30) << "its message is removed by a limit";
  EXPECT_EQ(Left(acknowledged, {2, 1, 100}, Has()), 0) << "of another life";
  EXPECT_EQ(Left({}, {1, 1, 100}, Has()), 0);
}

TEST(WhatIsLeft, CountsEachStreamByItself) {
  auto left = WhatIsLeft({{"A", {Ours(3), Ours(7)}}, {"B", {Ours(3, 2), Ours(7, 2)}}},
                         {{"A", {1, 1, 5}}, {"B", {2, 1, 9}}, {"C", {3, 1, 9}}}, Has());
  ASSERT_TRUE(left.ok());
  EXPECT_EQ(left->at("A").last_seq, 3);
  EXPECT_EQ(left->at("B").msg_id, "a7");
  EXPECT_EQ(left->at("C").last_seq, 0);
  EXPECT_EQ(left->at("C").created_ns, 3);
}

TEST(RestartOfConsumer, OneThatIsAheadBeginsWhereTheStreamEndedOrItsAcksDo) {
  EXPECT_EQ(RestartOfConsumer(/*delivered=*/100, /*ack_floor=*/90, 100, 100), 0);
  EXPECT_EQ(RestartOfConsumer(101, 101, 100, 105), 0) << "the stream has grown meanwhile";
  EXPECT_EQ(RestartOfConsumer(120, 120, 100, 100), 101);
  EXPECT_EQ(RestartOfConsumer(120, 90, 100, 100), 91);
  EXPECT_EQ(RestartOfConsumer(120, 110, 100, 105), 101) << "what came meanwhile is new to it";
}

TEST(MergePositions, TheFurtherCountsAndMemoryKnowsTheLaterLife) {
  StreamPositions table = {{"A", Ours(5)}, {"B", Ours(5)}, {"C", Ours(5)}};
  MergePositions({{"A", {1, 4, "x"}}, {"B", {2, 1, "y"}}, {"C", {1, 7, "z"}}, {"D", {1, 0, ""}}},
                 &table);
  EXPECT_EQ(table["A"].msg_id, "a5");
  EXPECT_EQ(table["B"].created_ns, 2);
  EXPECT_EQ(table["B"].msg_id, "y");
  EXPECT_EQ(table["C"].last_seq, 7);
  EXPECT_EQ(table["C"].msg_id, "z");
  EXPECT_FALSE(table.contains("D"));
}

TEST(OutboxMessageId, ANewEpochIsAnotherMessage) {
  EXPECT_NE(OutboxMessageId("order", 1, 2, 3), OutboxMessageId("order", 1, 2, EpochAfterLoss(3)));
}

}  // namespace
}  // namespace gaekju::runtime
