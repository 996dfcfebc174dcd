#include "facade/card.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gaekju::facade {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kKey[] = "77777777777777777777777777777777777777777777777777777777777777aF";

CardBox Box(const std::string& key = kKey) {
  const absl::StatusOr<CardBox> box = CardBox::Of(key);
  EXPECT_TRUE(box.ok()) << box.status();
  return *box;
}

TEST(CardBox, KeepsTheNumberForWhoHasTheKey) {
  for (const std::string number :
       {"12345678999", "000011119999", "1", "1234 5678-9012 3456", "0000-0000"}) {
    const std::string hidden = Box().Hide(number, "r1");
    EXPECT_THAT(hidden, Not(HasSubstr(number)));
    EXPECT_LE(hidden.size(), 128u);
    EXPECT_EQ(Box(absl::StrCat(" ", kKey, "\n")).Show(hidden), number);
    EXPECT_THAT(Box(std::string(64, '0')).Show(hidden), Not(HasSubstr(number)));
    EXPECT_THAT(CardBox().Show(hidden), Not(HasSubstr(number)));
  }
}

TEST(CardBox, TellsTheLastDigitsToEverybody) {
  EXPECT_THAT(Box().Hide("12345678999", "r1"), HasSubstr("card:*******8999:"));
  EXPECT_EQ(CardBox().Show(Box().Hide("12345678999", "r1")), "*******8999");
  EXPECT_EQ(CardBox().Show(Box().Hide("1234-5678-9012", "r1")), "****-****-9012");
  EXPECT_EQ(CardBox().Show(Box().Hide("12345678", "r1")), "********") << "too short to show any";
}

TEST(CardBox, WithoutAKeyTheNumberIsGone) {
  EXPECT_EQ(CardBox().Hide("12345678999", "r1"), "card:*******8999");
  EXPECT_EQ(Box().Show("card:*******8999"), "*******8999");
}

TEST(CardBox, TheSameRequestIsTheSameTextAndNoOtherIs) {
  EXPECT_EQ(Box().Hide("12345678999", "r1"), Box().Hide("12345678999", "r1"));
  EXPECT_NE(Box().Hide("12345678999", "r1"), Box().Hide("12345678999", "r2"));
  EXPECT_NE(Box().Hide("12345678999", "r1"), Box().Hide("12345678998", "r1"));
}

TEST(CardBox, WhatIsNoNumberStandsForItself) {
  for (const std::string word : {"", "card", "card-declined", "-", "카드 7", "12345678999x"}) {
    EXPECT_EQ(Box().Hide(word, "r1"), word);
    EXPECT_EQ(Box().Show(word), word);
  }
  EXPECT_EQ(Box().Show("12345678999"), "12345678999") << "of an order that is older than the key";
}

TEST(CardBox, AChangedTextIsNotOpened) {
  const std::string hidden = Box().Hide("12345678999", "r1");
  const size_t box = hidden.rfind(':') + 1;
  for (size_t i = box; i < hidden.size() - 1; ++i) {  // the last may hold bits of no byte
    std::string changed = hidden;
    changed[i] = changed[i] == 'A' ? 'B' : 'A';
    EXPECT_EQ(Box().Show(changed), "*******8999") << i;
  }
  for (const std::string text : {"card:", "card::", "card:x:!!", "card:x:AAAA"})
    EXPECT_FALSE(absl::StrContains(Box().Show(text), ":")) << text;
}

TEST(CardBox, TheKeyIs64HexDigits) {
  const std::string key(64, 'a');
  EXPECT_TRUE(CardBox::Of(key).ok());
  EXPECT_FALSE(CardBox::Of("").ok());
  EXPECT_FALSE(CardBox::Of(key + "a").ok());
  EXPECT_FALSE(CardBox::Of(key.substr(1)).ok());
  EXPECT_FALSE(CardBox::Of(key.substr(1) + "g").ok());
}

}  // namespace
}  // namespace gaekju::facade
