#include "services/notification/notification.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "flow/values.h"
#include "gaekju/notification/v1/notification_events.pb.h"
#include "gaekju/notification/v1/notification_service.pb.h"
#include "google/rpc/code.pb.h"
#include "services/testing/context_rules.h"
#include "services/testing/property.h"
#include "services/testing/requests.h"
#include "services/testing/turn_harness.h"

namespace gaekju::notification {
namespace {

using flow::Answer;
using flow::Caller;
using gaekju::notification::v1::CreateNoticeRequest;
using gaekju::notification::v1::CreateNoticeResponse;
using gaekju::notification::v1::GetNoticeRequest;
using gaekju::notification::v1::ListNoticesRequest;
using gaekju::notification::v1::Notice;
using gaekju::notification::v1::NoticeCounter;
using gaekju::notification::v1::NoticeSent;
using gaekju::notification::v1::NotifyRequest;
using gaekju::notification::v1::NotifyResponse;
using gaekju::notification::v1::Recipient;
using google::protobuf::Message;
using ::testing::ElementsAre;
using testing::FieldOf;
using ::testing::IsEmpty;

NotifyRequest Notify(const std::string& order_id = "o1", const std::string& step_id = "tell") {
  NotifyRequest request;
  request.set_order_id(order_id);
  request.set_step_id(step_id);
  request.set_storefront("mealkit");
  request.set_number(7);
  request.set_customer_id("cust1");
  request.set_customer_name("jang");
  auto* line = request.add_lines();
  line->set_product_id("kit-1");
  line->set_display_name("밀키트");
  line->set_quantity(2);
  line = request.add_lines();
  line->set_product_id("kit-2");
  line->set_quantity(3);
  request.set_agency_name("강남점");
  request.set_recipient(Recipient::RECIPIENT_SELLER);
  request.set_code("ORDERED");
  request.mutable_text()->set_ko("주문 {number}번: {product} {quantity}개");
  request.mutable_text()->set_en("Order {number}");
  return request;
}

CreateNoticeRequest Create(const std::string& request_id = "r1", const std::string& text = "공지") {
  CreateNoticeRequest request;
  request.set_storefront("mealkit");
  request.set_request_id(request_id);
  request.mutable_text()->set_ko(text);
  return request;
}

Caller CallerWith(const std::string& uuid) {
  Caller caller;
  caller.request_uuid = uuid;
  return caller;
}

class NotificationTest : public ::testing::Test {
 protected:
  const Notice& Row(const std::string& key = "o1/tell") {
    const Notice* notice = notices_.Row<Notice>(kNotices, key);
    GK_CHECK(notice != nullptr) << key;
    return *notice;
  }
  std::vector<std::string> Ids(const ListNoticesRequest& list) {
    std::vector<std::string> ids;
    for (const auto& message : notices_.List(list))
      ids.push_back(static_cast<const Notice&>(*message).notice_id());
    return ids;
  }

  testing::TurnHarness notices_{NotificationContext()};
};

TEST(Notification, FollowsTheRulesOfAContext) {
  testing::ExpectFollowsRules(NotificationContext());
}

TEST_F(NotificationTest, TellsOnce) {
  const Answer answer = notices_.Call(Notify());
  NotifyResponse response;
  ASSERT_TRUE(response.ParseFromString(answer.payload));
  EXPECT_EQ(response.notice_id(), "o1/tell");
  EXPECT_EQ(Row().notice_id(), "o1/tell");
  EXPECT_EQ(Row().storefront(), "mealkit");
  EXPECT_EQ(Row().number(), 1);
  EXPECT_EQ(Row().order_id(), "o1");
  EXPECT_EQ(Row().recipient(), Recipient::RECIPIENT_SELLER);
  EXPECT_EQ(Row().customer_id(), "cust1");
  EXPECT_EQ(Row().code(), "ORDERED");
  EXPECT_EQ(Row().text().ko(), "주문 7번: 밀키트 5개");
  EXPECT_EQ(Row().text().en(), "Order 7");
  EXPECT_EQ(flow::ToMicros(Row().create_time()), notices_.now_us);
  EXPECT_THAT(notices_.TakeEvents(), ElementsAre("NoticeSent o1/tell@1"));
  notices_.now_us += 1000000;
  EXPECT_EQ(notices_.Call(Notify()).payload, answer.payload);
  EXPECT_EQ(notices_.written_count(), 0);
  EXPECT_EQ(notices_.Rows(kNoticeLog).size(), 1u);
}

TEST_F(NotificationTest, EventsTellTheNoticeButNotWhatOnlyWeKeep) {
  notices_.Call(Notify());
  notices_.Call(Create());
  const auto envelopes = notices_.TakeEnvelopes();
  ASSERT_EQ(envelopes.size(), 2u);
  NoticeSent told, manual;
  ASSERT_TRUE(told.ParseFromString(envelopes[0].payload));
  ASSERT_TRUE(manual.ParseFromString(envelopes[1].payload));
  EXPECT_EQ(told.notice().text().ko(), "주문 7번: 밀키트 5개");
  EXPECT_EQ(told.notice().number(), 1);
  EXPECT_FALSE(told.notice().has_step());
  EXPECT_EQ(envelopes[0].order_id, "o1");
  EXPECT_EQ(envelopes[0].resource, "notices/o1/tell");
  EXPECT_EQ(manual.notice().number(), 2);
  EXPECT_EQ(manual.notice().request_fingerprint(), 0u);
  EXPECT_EQ(envelopes[1].resource, "notices/mealkit/r1");
}

TEST_F(NotificationTest, TheSameStepWithOtherWordsIsRefused) {
  notices_.Call(Notify());
  NotifyRequest request = Notify();
  request.mutable_text()->set_en("something else");
  EXPECT_EQ(flow::ReasonOf(notices_.Call(request).status), "STEP_REUSED");
  EXPECT_EQ(Row().text().en(), "Order 7");
}

TEST_F(NotificationTest, FillsInThePlaceholders) {
  const std::pair<const char*, const char*> cases[] = {
      {"plain", "plain"},
      {"{number}", "7"},
      {"{customer_name}!", "jang!"},
      {"{product}", "밀키트"},
      {"{quantity}{quantity}", "55"},
      {"at {agency_name}", "at 강남점"},
      {"{{", "{"},
      {"{{number}", "{number}"},
      {"{{{number}}", "{7}"},
      {"a } b", "a } b"},
  };
  int i = 0;
  for (const auto& [text, said] : cases) {
    NotifyRequest request = Notify("o1", absl::StrCat("s", ++i));
    request.mutable_text()->set_ko(text);
    ASSERT_EQ(notices_.Call(request).kind, Answer::Kind::kDone) << text;
    EXPECT_EQ(Row(absl::StrCat("o1/s", i)).text().ko(), said) << text;
  }
}

TEST_F(NotificationTest, WhatIsFilledInIsNotReadAgain) {
  NotifyRequest request = Notify();
  request.set_customer_name("{number} {nobody} {{");
  request.mutable_text()->set_ko("{customer_name}");
  ASSERT_EQ(notices_.Call(request).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().text().ko(), "{number} {nobody} {{");
}

TEST_F(NotificationTest, AProductWithoutANameIsToldByItsId) {
  NotifyRequest request = Notify();
  request.mutable_lines(0)->clear_display_name();
  notices_.Call(request);
  EXPECT_EQ(Row().text().ko(), "주문 7번: kit-1 5개");
}

TEST_F(NotificationTest, WithoutLinesThereIsNoProduct) {
  NotifyRequest request = Notify();
  request.clear_lines();
  ASSERT_EQ(notices_.Call(request).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().text().ko(), "주문 7번:  0개");
}

TEST_F(NotificationTest, BadRequestsNameTheField) {
  testing::ExpectNamesTheField(
      notices_, Notify(),
      {
          {"order_id", [](auto* r) { r->clear_order_id(); }},
          {"step_id", [](auto* r) { r->clear_step_id(); }},
          {"storefront", [](auto* r) { r->set_storefront("F"); }},
          {"customer_id", [](auto* r) { r->clear_customer_id(); }},
          {"customer_name", [](auto* r) { r->set_customer_name(std::string(257, 'x')); }},
          {"agency_name", [](auto* r) { r->set_agency_name(std::string(257, 'x')); }},
          {"recipient", [](auto* r) { r->set_recipient(static_cast<Recipient>(9)); }},
          {"code", [](auto* r) { r->set_code("ordered"); }},
          {"code", [](auto* r) { r->set_code(std::string(65, 'X')); }},
          {"lines[1].quantity", [](auto* r) { r->mutable_lines(1)->set_quantity(0); }},
          {"text", [](auto* r) { r->clear_text(); }},
          {"text", [](auto* r) { r->mutable_text()->set_ko(" "), r->mutable_text()->clear_en(); }},
          {"text.ko", [](auto* r) { r->mutable_text()->set_ko(std::string(1025, 'x')); }},
          {"text.en", [](auto* r) { r->mutable_text()->set_en(std::string(1025, 'x')); }},
          {"text.ko", [](auto* r) { r->mutable_text()->set_ko("{nobody}"); }},
          {"text.ko", [](auto* r) { r->mutable_text()->set_ko("{}"); }},
          {"text.ko", [](auto* r) { r->mutable_text()->set_ko("a {"); }},
          {"text.en", [](auto* r) { r->mutable_text()->set_en("{number"); }},
          {"text.en", [](auto* r) { r->mutable_text()->set_en("{{{"); }},
      });
}

TEST_F(NotificationTest, OneLanguageIsEnough) {
  NotifyRequest request = Notify();
  request.mutable_text()->clear_ko();
  EXPECT_EQ(notices_.Call(request).kind, Answer::Kind::kDone);
}

TEST_F(NotificationTest, NobodyNamedIsTheBuyer) {
  NotifyRequest request = Notify();
  request.clear_recipient();
  notices_.Call(request);
  EXPECT_EQ(Row().recipient(), Recipient::RECIPIENT_BUYER);
}

TEST_F(NotificationTest, NumbersCountPerStorefront) {
  NotifyRequest other = Notify("o2");
  other.set_storefront("tshop");
  const auto first = Notify("o1"), third = Notify("o3");
  notices_.CallTogether({&first, &other, &third, &first});
  EXPECT_EQ(Row("o1/tell").number(), 1);
  EXPECT_EQ(Row("o2/tell").number(), 1);
  EXPECT_EQ(Row("o3/tell").number(), 2);
  EXPECT_EQ(notices_.Row<NoticeCounter>(kNoticeCounters, "mealkit")->last_number(), 2);
}

TEST_F(NotificationTest, AManualNoticeIsMadeOncePerRequestId) {
  const Answer answer = notices_.Call(Create(), CallerWith("u1"));
  CreateNoticeResponse response;
  ASSERT_TRUE(response.ParseFromString(answer.payload));
  EXPECT_EQ(response.notice().notice_id(), "mealkit/r1");
  EXPECT_EQ(response.notice().text().ko(), "공지");
  EXPECT_EQ(response.notice().recipient(), Recipient::RECIPIENT_BUYER);
  EXPECT_EQ(response.notice().number(), 1);
  EXPECT_EQ(response.notice().request_fingerprint(), 0u);
  EXPECT_EQ(notices_.Call(Create(), CallerWith("u2")).payload, answer.payload);
  EXPECT_EQ(notices_.written_count(), 0);
  const Answer other = notices_.Call(Create("r1", "다른 공지"), CallerWith("u3"));
  EXPECT_EQ(other.status.code(), google::rpc::ALREADY_EXISTS);
  EXPECT_EQ(flow::ReasonOf(other.status), "REQUEST_ID_REUSED");
  EXPECT_THAT(notices_.TakeEvents(), ElementsAre("NoticeSent mealkit/r1@1"));
}

TEST_F(NotificationTest, WithoutARequestIdEachIsNew) {
  notices_.Call(Create(""), CallerWith("u1"));
  notices_.Call(Create(""), CallerWith("u2"));
  EXPECT_EQ(Row("mealkit/u1").number(), 1);
  EXPECT_EQ(Row("mealkit/u2").number(), 2);
}

TEST_F(NotificationTest, AManualNoticeSaysItAsItStands) {
  notices_.Call(Create("r1", "{number} {nobody} {"));
  EXPECT_EQ(Row("mealkit/r1").text().ko(), "{number} {nobody} {");
}

TEST_F(NotificationTest, BadManualNoticesNameTheField) {
  testing::ExpectNamesTheField(
      notices_, Create(),
      {
          {"storefront", [](auto* r) { r->clear_storefront(); }},
          {"request_id", [](auto* r) { r->set_request_id(std::string(65, 'x')); }},
          {"request_id", [](auto* r) { r->set_request_id("a/b"); }},
          {"order_id", [](auto* r) { r->set_order_id("a/b"); }},
          {"customer_id", [](auto* r) { r->set_customer_id(std::string(65, 'x')); }},
          {"recipient", [](auto* r) { r->set_recipient(static_cast<Recipient>(9)); }},
          {"text", [](auto* r) { r->clear_text(); }},
          {"text.ko", [](auto* r) { r->mutable_text()->set_ko(std::string(1025, 'x')); }},
      });
}

TEST_F(NotificationTest, ListsAreNewestFirstWhateverTheIdsAre) {
  notices_.Call(Notify("o1", "b"));
  notices_.now_us += 1;
  notices_.Call(Create("a"));
  notices_.now_us += 1;
  NotifyRequest buyer = Notify("o1", "a");
  buyer.set_recipient(Recipient::RECIPIENT_BUYER);
  notices_.Call(buyer);
  notices_.now_us += 1;
  NotifyRequest other = Notify("o0", "z");
  other.set_storefront("tshop");
  other.set_customer_id("cust2");
  notices_.Call(other);

  ListNoticesRequest list;
  EXPECT_THAT(Ids(list), ElementsAre("o0/z", "o1/a", "mealkit/a", "o1/b"));
  list.set_storefront("mealkit");
  EXPECT_THAT(Ids(list), ElementsAre("o1/a", "mealkit/a", "o1/b"));
  list.set_number(2);
  EXPECT_THAT(Ids(list), ElementsAre("mealkit/a"));
  list.clear_number();
  list.set_recipient(Recipient::RECIPIENT_BUYER);
  EXPECT_THAT(Ids(list), ElementsAre("o1/a", "mealkit/a"));
  list.set_order_id("o1");
  EXPECT_THAT(Ids(list), ElementsAre("o1/a"));
  list.Clear();
  list.set_customer_id("cust2");
  EXPECT_THAT(Ids(list), ElementsAre("o0/z"));
  const auto shown = notices_.List(list);
  EXPECT_FALSE(static_cast<const Notice&>(*shown[0]).has_step());

  GetNoticeRequest get;
  get.set_notice_id("mealkit/a");
  const auto found = notices_.Get(get);
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(static_cast<const Notice&>(*found).number(), 2);
  EXPECT_EQ(static_cast<const Notice&>(*found).request_fingerprint(), 0u);
}

// Any order of steps, manual notices and repeats, alone and together in turns.
TEST(NotificationProperty, EachCauseIsToldOnceAndNumbersHaveNoGaps) {
  for (const uint64_t seed : testing::Seeds(200)) {
    SCOPED_TRACE(testing::Replay(seed));
    std::mt19937_64 random(seed);
    testing::TurnHarness notices(NotificationContext());
    std::map<std::string, int> told;
    for (int turn = 0; turn < 30; ++turn) {
      notices.now_us += testing::Pick(random, 2);
      testing::Batch batch;
      for (int i = testing::Pick(random, 4); i >= 0; --i) {
        const char* storefront = testing::Pick(random, 2) == 0 ? "mealkit" : "tshop";
        if (testing::Pick(random, 3) == 0) {
          auto create = Create(absl::StrCat("r", testing::Pick(random, 4)),
                               absl::StrCat("text ", testing::Pick(random, 2)));
          create.set_storefront(storefront);
          batch.Add(create);
        } else {
          auto notify = Notify(absl::StrCat("o", testing::Pick(random, 4)),
                               testing::Pick(random, 2) == 0 ? "tell" : "tell-2");
          notify.set_storefront(storefront);  // another one is STEP_REUSED
          batch.Add(notify);
        }
      }
      batch.Run(notices);
      for (const std::string& event : notices.TakeEvents()) ++told[event];
      std::map<std::string, std::set<int64_t>> numbers;
      for (const auto& [key, row] : notices.Rows(kNotices)) {
        const auto& notice = static_cast<const Notice&>(*row.body);
        ASSERT_EQ(told["NoticeSent " + key + "@1"], 1) << key;
        ASSERT_EQ(row.version, 1) << key;
        ASSERT_TRUE(numbers[notice.storefront()].insert(notice.number()).second) << key;
      }
      ASSERT_EQ(told.size(), notices.Rows(kNotices).size());
      ASSERT_EQ(notices.Rows(kNoticeLog).size(), notices.Rows(kNotices).size());
      for (const auto& [storefront, seen] : numbers) {
        const auto last = notices.Row<NoticeCounter>(kNoticeCounters, storefront)->last_number();
        ASSERT_EQ(*seen.begin(), 1);
        ASSERT_EQ(*seen.rbegin(), last);
        ASSERT_EQ(static_cast<int64_t>(seen.size()), last);
      }
      for (const auto& [key, row] : notices.Rows(kNoticeLog)) {
        Notice kept = static_cast<const Notice&>(*row.body);
        Notice notice = *notices.Row<Notice>(kNotices, kept.notice_id());
        notice.clear_step();
        notice.clear_request_fingerprint();
        ASSERT_EQ(kept.SerializeAsString(), notice.SerializeAsString()) << key;
      }
    }
  }
}

}  // namespace
}  // namespace gaekju::notification
