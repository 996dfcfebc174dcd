#include "runtime/stream_loss.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gaekju::runtime {
namespace {

using ::testing::HasSubstr;

TEST(CompareStreams, WhatHasGrownHasLostNothing) {
  EXPECT_EQ(CompareStreams({{"S", {1, 5}}}, {}, {{"S", {1, 9}}}).why, "");
  EXPECT_EQ(CompareStreams({{"S", {1, 0}}}, {}, {{"S", {2, 0}}}).why, "") << "nothing was there";
}

TEST(CompareStreams, YoungerShorterAndMissingStreamsHaveLostSomething) {
  const StreamPositions known = {{"S", {1, 5}}};
  EXPECT_THAT(CompareStreams(known, {}, {{"S", {2, 9}}}).why, HasSubstr("made anew"));
  EXPECT_THAT(CompareStreams(known, {}, {}).why, HasSubstr("gone"));
  const StreamLoss shorter = CompareStreams(known, {}, {{"S", {1, 3}}});
  EXPECT_THAT(shorter.why, HasSubstr("ends at 3 and had 5"));
  EXPECT_EQ(shorter.left.at("S").last_seq, 3);
}

TEST(CompareStreams, ASequenceGivenOutTwiceTellsHowMuchIsLeft) {
  const StreamLoss loss = CompareStreams({{"S", {1, 5}}}, {{"S", 3}}, {{"S", {1, 9}}});
  EXPECT_THAT(loss.why, HasSubstr("sequence 4 twice"));
  EXPECT_EQ(loss.present.at("S").last_seq, 3);
  EXPECT_EQ(loss.left.at("S").last_seq, 3);
}

TEST(MergePositions, TheFurtherCountsAndMemoryKnowsTheLaterLife) {
  StreamPositions table = {{"A", {1, 5}}, {"B", {1, 5}}, {"C", {1, 5}}};
  MergePositions({{"A", {1, 4}}, {"B", {2, 1}}, {"C", {1, 7}}, {"D", {1, 0}}}, &table);
  EXPECT_EQ(table["A"].last_seq, 5);
  EXPECT_EQ(table["B"].created_ns, 2);
  EXPECT_EQ(table["B"].last_seq, 1);
  EXPECT_EQ(table["C"].last_seq, 7);
  EXPECT_FALSE(table.contains("D"));
}

TEST(OutboxMessageId, ANewEpochIsAnotherMessage) {
  EXPECT_NE(OutboxMessageId("order", 1, 2, 3), OutboxMessageId("order", 1, 2, EpochAfterLoss(3)));
}

}  // namespace
}  // namespace gaekju::runtime
