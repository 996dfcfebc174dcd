#include "facade/lookup.h"

#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gaekju::facade {
namespace {

TEST(Narrow, KeepsWhatFitsAndTakesTheNearestOfTheRest) {
  EXPECT_EQ(Narrow(0), 0);
  EXPECT_EQ(Narrow(-7), -7);
  EXPECT_EQ(Narrow(2'147'483'647), 2'147'483'647);
  EXPECT_EQ(Narrow(2'147'483'648), 2'147'483'647);
  EXPECT_EQ(Narrow(std::numeric_limits<int64_t>::min()), std::numeric_limits<int32_t>::min());
}

TEST(IsWord, IsBlindToCaseAndSpaceAndNothingElse) {
  EXPECT_TRUE(IsWord("예약취소", {"예약취소", "canceled"}));
  EXPECT_TRUE(IsWord(" Canceled ", {"예약취소", "canceled"}));
  EXPECT_FALSE(IsWord("예약취소완료", {"예약취소", "canceled"}));
  EXPECT_FALSE(IsWord("", {"예약취소", "canceled"}));
  EXPECT_FALSE(IsWord("can celed", {"예약취소", "canceled"}));
}

TEST(UnknownStatus, NamesTheFieldAndTheWordsThatThereAre) {
  const absl::Status status = UnknownStatus("shipped", "예약취소");
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_EQ(ReasonOf(status), "STATUS_UNKNOWN");
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("예약취소"));
  EXPECT_THAT(ToRpc(status).DebugString(), testing::HasSubstr("BadRequest"));
}

TEST(QuantityOf, AddsTheLinesAndDoesNotOverflow) {
  google::protobuf::RepeatedPtrField<type::v1::LineItem> lines;
  EXPECT_EQ(QuantityOf(lines), 0);
  lines.Add()->set_quantity(5);
  lines.Add()->set_quantity(7);
  EXPECT_EQ(QuantityOf(lines), 12);
  lines.Add()->set_quantity(std::numeric_limits<int32_t>::max());
  EXPECT_EQ(QuantityOf(lines), std::numeric_limits<int32_t>::max());
}

TEST(TimeText, IsRfc3339OrNothing) {
  google::protobuf::Timestamp time;
  EXPECT_EQ(TimeText(time), "");
  time.set_seconds(1'649'330'873);
  EXPECT_EQ(TimeText(time), "2022-04-07T11:27:53Z");
}

}  // namespace
}  // namespace gaekju::facade
