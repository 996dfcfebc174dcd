#include "services/payment/payment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "flow/values.h"
#include "gaekju/payment/v1/payment_events.pb.h"
#include "gaekju/payment/v1/payment_service.pb.h"
#include "google/rpc/code.pb.h"
#include "services/testing/context_rules.h"
#include "services/testing/property.h"
#include "services/testing/requests.h"
#include "services/testing/step_rules.h"
#include "services/testing/turn_harness.h"

namespace gaekju::payment {
namespace {

using flow::Answer;
using gaekju::payment::v1::CaptureRequest;
using gaekju::payment::v1::CaptureResponse;
using gaekju::payment::v1::GetPaymentRequest;
using gaekju::payment::v1::LedgerEntry;
using gaekju::payment::v1::ListPaymentsRequest;
using gaekju::payment::v1::MissingMethod;
using gaekju::payment::v1::Payment;
using gaekju::payment::v1::PaymentCaptured;
using gaekju::payment::v1::PayRequest;
using gaekju::payment::v1::PayResponse;
using gaekju::payment::v1::RefundRequest;
using ::testing::ElementsAre;
using testing::FieldOf;
using testing::From;
using ::testing::IsEmpty;

CaptureRequest Capture(const std::string& order_id = "o1", int64_t amount = 20000,
                       const std::string& method = "card", const std::string& step_id = "pay") {
  CaptureRequest request;
  request.set_order_id(order_id);
  request.set_step_id(step_id);
  request.set_customer_id("jang");
  request.mutable_amount()->set_currency_code("KRW");
  request.mutable_amount()->set_minor_units(amount);
  request.set_payment_method(method);
  return request;
}

RefundRequest Refund(const std::string& order_id = "o1", const std::string& step_id = "pay") {
  RefundRequest request;
  request.set_order_id(order_id);
  request.set_step_id(step_id);
  return request;
}

// A capture of what the buyer pays later.
CaptureRequest Await(const std::string& order_id = "o1", const std::string& method = "",
                     const std::string& step_id = "pay") {
  CaptureRequest request = Capture(order_id, 20000, method, step_id);
  request.set_missing_method(MissingMethod::MISSING_METHOD_AWAIT);
  return request;
}

PayRequest Pay(const std::string& method = "card", const std::string& customer_id = "",
               const std::string& payment_id = "o1/pay") {
  PayRequest request;
  request.set_payment_id(payment_id);
  request.set_customer_id(customer_id);
  request.set_payment_method(method);
  return request;
}

class PaymentTest : public ::testing::Test {
 protected:
  const Payment& Row(const std::string& key = "o1/pay") {
    const Payment* payment = payments_.Row<Payment>(kPayments, key);
    GK_CHECK(payment != nullptr) << key;
    return *payment;
  }
  // The ledger as "<entry key> <account> <amount>", by key.
  std::vector<std::string> Ledger() {
    std::vector<std::string> lines;
    for (const auto& [key, row] : payments_.Rows(kLedgerEntries)) {
      const auto& entry = static_cast<const LedgerEntry&>(*row.body);
      EXPECT_EQ(entry.entry_id(), key);
      lines.push_back(absl::StrCat(key, " ", entry.account(), " ", entry.amount()));
    }
    return lines;
  }

  testing::TurnHarness payments_{PaymentContext()};
};

TEST(Payment, FollowsTheRulesOfAContext) { testing::ExpectFollowsRules(PaymentContext()); }

TEST_F(PaymentTest, CaptureFollowsTheRulesOfAStep) {
  testing::ExpectFollowsStepRules(payments_, kPayments, Capture(), Capture("o1", 30000), Refund());
  EXPECT_EQ(Ledger().size(), 8u) << "there and back, of the two that were captured";
}

TEST_F(PaymentTest, CaptureTakesTheMoney) {
  const Answer answer = payments_.Call(Capture());
  ASSERT_EQ(answer.kind, Answer::Kind::kDone);
  CaptureResponse response;
  ASSERT_TRUE(response.ParseFromString(answer.payload));
  EXPECT_EQ(response.payment_id(), "o1/pay");
  EXPECT_EQ(Row().state(), Payment::STATE_CAPTURED);
  EXPECT_EQ(flow::ToMicros(Row().capture_time()), payments_.now_us);
  EXPECT_FALSE(Row().has_refund_time());
  EXPECT_THAT(Ledger(), ElementsAre("o1/pay/capture/credit merchant 20000",
                                    "o1/pay/capture/debit customer:jang -20000"));
  EXPECT_THAT(payments_.TakeEvents(), ElementsAre("PaymentCaptured o1/pay@1"));
}

TEST_F(PaymentTest, RefundReturnsIt) {
  payments_.Call(Capture());
  payments_.TakeEvents();
  payments_.now_us += 5000000;
  EXPECT_EQ(payments_.Call(Refund()).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().state(), Payment::STATE_REFUNDED);
  EXPECT_EQ(flow::ToMicros(Row().refund_time()), payments_.now_us);
  EXPECT_THAT(Ledger(), ElementsAre("o1/pay/capture/credit merchant 20000",
                                    "o1/pay/capture/debit customer:jang -20000",
                                    "o1/pay/refund/credit customer:jang 20000",
                                    "o1/pay/refund/debit merchant -20000"));
  EXPECT_THAT(payments_.TakeEvents(), ElementsAre("PaymentRefunded o1/pay@2"));
}

TEST_F(PaymentTest, ADeclineIsRecordedAndMovesNothing) {
  for (int i = 0; i < 2; ++i) {
    const Answer answer = payments_.Call(Capture("o1", 20000, kDeclinedMethod));
    EXPECT_EQ(answer.kind, Answer::Kind::kRefused);
    EXPECT_EQ(answer.status.code(), google::rpc::FAILED_PRECONDITION);
    EXPECT_EQ(flow::ReasonOf(answer.status), "PAYMENT_DECLINED");
  }
  EXPECT_EQ(payments_.written_count(), 0) << "the second time";
  EXPECT_EQ(Row().state(), Payment::STATE_DECLINED);
  EXPECT_FALSE(Row().has_capture_time());
  EXPECT_THAT(Ledger(), IsEmpty());
  EXPECT_THAT(payments_.TakeEvents(), IsEmpty());
}

TEST_F(PaymentTest, TheRefundOfADeclineReturnsNothing) {
  payments_.Call(Capture("o1", 20000, kDeclinedMethod));
  EXPECT_EQ(payments_.Call(Refund()).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().state(), Payment::STATE_DECLINED);
  EXPECT_THAT(Ledger(), IsEmpty());
  EXPECT_THAT(payments_.TakeEvents(), IsEmpty());
}

TEST_F(PaymentTest, ARefundThatComesFirstReturnsNothing) {
  EXPECT_EQ(payments_.Call(Refund()).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().state(), Payment::STATE_VOIDED);
  EXPECT_EQ(Row().payment_id(), "o1/pay");
  EXPECT_EQ(Row().order_id(), "o1");
  EXPECT_THAT(Ledger(), IsEmpty());
  EXPECT_THAT(payments_.TakeEvents(), IsEmpty());
}

TEST_F(PaymentTest, WithoutAMethodTheBuyerIsAwaited) {
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(payments_.Call(Await(), From("order")).kind, Answer::Kind::kPending) << i;
    EXPECT_EQ(Row().state(), Payment::STATE_AWAITED);
  }
  EXPECT_EQ(payments_.written_count(), 0) << "asked again";
  EXPECT_EQ(Row().amount().minor_units(), 20000);
  EXPECT_FALSE(Row().has_capture_time());
  EXPECT_THAT(Ledger(), IsEmpty());
  EXPECT_THAT(payments_.TakeEnvelopes(), IsEmpty());
}

TEST_F(PaymentTest, WithAMethodNobodyIsAwaited) {
  EXPECT_EQ(payments_.Call(Await("o1", "card")).kind, Answer::Kind::kDone);
  EXPECT_EQ(flow::ReasonOf(payments_.Call(Await("o2", kDeclinedMethod)).status),
            "PAYMENT_DECLINED");
  // Nor where the storefront does not want it.
  for (const auto missing :
       {MissingMethod::MISSING_METHOD_UNSPECIFIED, MissingMethod::MISSING_METHOD_CAPTURE}) {
    CaptureRequest request = Capture(absl::StrCat("p", missing), 20000, "");
    request.set_missing_method(missing);
    EXPECT_EQ(payments_.Call(request).kind, Answer::Kind::kDone) << missing;
  }
}

TEST_F(PaymentTest, PayingAnswersTheStepThatWaits) {
  payments_.Call(Await(), From("order"));
  payments_.now_us += 60000000;
  PayResponse response;
  ASSERT_TRUE(response.ParseFromString(payments_.Call(Pay("card", "jang")).payload));
  EXPECT_EQ(response.payment().state(), Payment::STATE_CAPTURED);
  EXPECT_EQ(response.payment().payment_method(), "card");
  EXPECT_FALSE(response.payment().has_step());
  EXPECT_EQ(Row().state(), Payment::STATE_CAPTURED);
  EXPECT_EQ(flow::ToMicros(Row().capture_time()), payments_.now_us);
  EXPECT_THAT(Ledger(), ElementsAre("o1/pay/capture/credit merchant 20000",
                                    "o1/pay/capture/debit customer:jang -20000"));
  const auto envelopes = payments_.TakeEnvelopes();
  ASSERT_EQ(envelopes.size(), 2u);
  PaymentCaptured event;
  ASSERT_TRUE(event.ParseFromString(envelopes[0].payload));
  EXPECT_EQ(event.payment().state(), Payment::STATE_CAPTURED);
  EXPECT_EQ(envelopes[0].version, 1);
  EXPECT_EQ(envelopes[1].kind, flow::Envelope::Kind::kAnswer);
  EXPECT_EQ(envelopes[1].to, "order");
  EXPECT_EQ(envelopes[1].order_id, "o1");
  EXPECT_EQ(envelopes[1].step_id, "pay");
  EXPECT_EQ(envelopes[1].outcome, flow::Outcome::OUTCOME_DONE);
  EXPECT_EQ(envelopes[1].type, "gaekju.payment.v1.CaptureResponse");
  CaptureResponse captured;
  ASSERT_TRUE(captured.ParseFromString(envelopes[1].payload));
  EXPECT_EQ(captured.payment_id(), "o1/pay");
  // The saga that lost the answer asks again.
  EXPECT_EQ(payments_.Call(Await(), From("order")).payload, envelopes[1].payload);
}

TEST_F(PaymentTest, PayingTwiceTakesTheMoneyOnce) {
  payments_.Call(Await(), From("order"));
  const auto card = Pay("card"), again = Pay("card"), other = Pay("other-card");
  const auto declined = Pay(kDeclinedMethod);
  const auto answers = payments_.CallTogether({&card, &again});
  EXPECT_EQ(answers[1].payload, answers[0].payload);
  payments_.TakeEnvelopes();
  for (const auto& pay : {card, other, declined}) {
    EXPECT_EQ(payments_.Call(pay).payload, answers[0].payload) << "it is paid";
    EXPECT_EQ(payments_.written_count(), 0);
  }
  EXPECT_EQ(Ledger().size(), 2u);
  EXPECT_EQ(Row().payment_method(), "card");
}

TEST_F(PaymentTest, ADeclinedPayLeavesThePaymentAwaited) {
  payments_.Call(Await(), From("order"));
  const Answer answer = payments_.Call(Pay(kDeclinedMethod));
  EXPECT_EQ(answer.status.code(), google::rpc::FAILED_PRECONDITION);
  EXPECT_EQ(flow::ReasonOf(answer.status), "PAYMENT_DECLINED");
  EXPECT_EQ(payments_.written_count(), 0);
  EXPECT_EQ(Row().state(), Payment::STATE_AWAITED);
  EXPECT_EQ(payments_.Call(Pay("card")).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().state(), Payment::STATE_CAPTURED);
}

TEST_F(PaymentTest, TheRefundOfWhatIsAwaitedReturnsNothingAndEndsTheWait) {
  payments_.Call(Await(), From("order"));
  EXPECT_EQ(payments_.Call(Refund()).kind, Answer::Kind::kDone);
  EXPECT_EQ(Row().state(), Payment::STATE_VOIDED);
  const Answer late = payments_.Call(Pay("card", "jang"));
  EXPECT_EQ(late.status.code(), google::rpc::FAILED_PRECONDITION);
  EXPECT_EQ(flow::ReasonOf(late.status), "PAYMENT_NOT_AWAITED");
  EXPECT_EQ(flow::ReasonOf(payments_.Call(Await()).status), "STEP_UNDONE");
  EXPECT_THAT(Ledger(), IsEmpty());
  EXPECT_THAT(payments_.TakeEnvelopes(), IsEmpty()) << "no money moved, and nobody was answered";
}

TEST_F(PaymentTest, WhatWasPaidLateIsRefundedInFull) {
  payments_.Call(Await(), From("order"));
  payments_.Call(Pay());
  payments_.Call(Refund());
  EXPECT_EQ(Row().state(), Payment::STATE_REFUNDED);
  EXPECT_EQ(Ledger().size(), 4u);
  EXPECT_EQ(flow::ReasonOf(payments_.Call(Pay()).status), "PAYMENT_NOT_AWAITED");
  EXPECT_THAT(payments_.TakeEvents(),
              ElementsAre("PaymentCaptured o1/pay@1", "PaymentRefunded o1/pay@2"));
}

TEST_F(PaymentTest, WhatWasDeclinedIsNotPaidLater) {
  payments_.Call(Await("o1", kDeclinedMethod));
  EXPECT_EQ(flow::ReasonOf(payments_.Call(Pay()).status), "PAYMENT_NOT_AWAITED");
  EXPECT_EQ(Row().state(), Payment::STATE_DECLINED);
}

TEST_F(PaymentTest, OnlyTheBuyerPays) {
  payments_.Call(Await());
  for (const Answer& answer :
       {payments_.Call(Pay("card", "kim")), payments_.Call(Pay("card", "jang", "o2/pay"))}) {
    EXPECT_EQ(answer.status.code(), google::rpc::NOT_FOUND);
    EXPECT_EQ(flow::ReasonOf(answer.status), "PAYMENT_NOT_FOUND");
  }
  EXPECT_EQ(Row().state(), Payment::STATE_AWAITED);
}

TEST_F(PaymentTest, BadPaysNameTheField) {
  payments_.Call(Await());
  EXPECT_EQ(FieldOf(payments_.Call(Pay(""))), "payment_method");
  EXPECT_EQ(FieldOf(payments_.Call(Pay(std::string(257, 'x')))), "payment_method");
  EXPECT_EQ(FieldOf(payments_.Call(Pay("card", "jang", "o1"))), "payment_id");
  EXPECT_EQ(Row().state(), Payment::STATE_AWAITED);
}

TEST_F(PaymentTest, BadRequestsNameTheField) {
  testing::ExpectNamesTheField(
      payments_, Capture(),
      {
          {"customer_id", [](auto* r) { r->clear_customer_id(); }},
          {"customer_id", [](auto* r) { r->set_customer_id(std::string(65, 'x')); }},
          {"amount.currency_code", [](auto* r) { r->clear_amount(); }},
          {"amount.currency_code", [](auto* r) { r->mutable_amount()->set_currency_code("won"); }},
          {"amount.minor_units", [](auto* r) { r->mutable_amount()->set_minor_units(0); }},
          {"amount.minor_units", [](auto* r) { r->mutable_amount()->set_minor_units(-1); }},
          {"payment_method", [](auto* r) { r->set_payment_method(std::string(257, 'x')); }},
          {"missing_method", [](auto* r) { r->set_missing_method(static_cast<MissingMethod>(9)); }},
      });
}

TEST_F(PaymentTest, TheLargestAmountMovesAndReturns) {
  const int64_t largest = std::numeric_limits<int64_t>::max();
  payments_.Call(Capture("o1", largest));
  payments_.Call(Refund());
  EXPECT_THAT(Ledger(), ElementsAre(absl::StrCat("o1/pay/capture/credit merchant ", largest),
                                    absl::StrCat("o1/pay/capture/debit customer:jang ", -largest),
                                    absl::StrCat("o1/pay/refund/credit customer:jang ", largest),
                                    absl::StrCat("o1/pay/refund/debit merchant ", -largest)));
}

TEST_F(PaymentTest, ReadsShowPaymentsWithoutTheSagasRecord) {
  payments_.Call(Capture("o1"));
  payments_.Call(Capture("o2"));
  GetPaymentRequest get;
  get.set_payment_id("o1/pay");
  const auto found = payments_.Get(get);
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(static_cast<const Payment&>(*found).payment_id(), "o1/pay");
  EXPECT_FALSE(static_cast<const Payment&>(*found).has_step());
  get.set_payment_id("o3/pay");
  EXPECT_EQ(payments_.Get(get), nullptr);

  ListPaymentsRequest list;
  ASSERT_EQ(payments_.List(list).size(), 2u);
  EXPECT_EQ(static_cast<const Payment&>(*payments_.List(list)[0]).payment_id(), "o2/pay")
      << "newest";
  list.set_order_id("o1");
  ASSERT_EQ(payments_.List(list).size(), 1u);
  EXPECT_FALSE(static_cast<const Payment&>(*payments_.List(list)[0]).has_step());
  list.set_customer_id("jang");
  EXPECT_EQ(payments_.List(list).size(), 1u);
  list.set_customer_id("kim");
  EXPECT_THAT(payments_.List(list), IsEmpty());
}

// Any order of captures, refunds, late payments and repeats, alone and together in turns.
TEST_F(PaymentTest, TheBooksBalanceWhateverComes) {
  for (const uint64_t seed : testing::Seeds(200)) {
    SCOPED_TRACE(testing::Replay(seed));
    std::mt19937_64 random(seed);
    testing::TurnHarness payments(PaymentContext());
    std::map<std::string, int> event_count;
    for (int turn = 0; turn < 40; ++turn) {
      testing::Batch batch;
      for (int i = testing::Pick(random, 4); i >= 0; --i) {
        const std::string order_id = absl::StrCat("o", testing::Pick(random, 4));
        const std::string step_id = testing::Pick(random, 4) == 0 ? "pay2" : "pay";
        const int kind = testing::Pick(random, 6);
        if (kind == 0) {
          batch.Add(Refund(order_id, step_id));
        } else if (kind == 1) {
          const bool declined = testing::Pick(random, 3) == 0;
          batch.Add(Pay(declined ? kDeclinedMethod : "card", "", order_id + "/" + step_id));
        } else if (kind <= 3) {
          batch.Add(Await(order_id, "", step_id));
        } else {
          const bool declined = testing::Pick(random, 5) == 0;
          batch.Add(Capture(order_id, 1 + testing::Pick(random, 2),
                            declined ? kDeclinedMethod : "card", step_id));
        }
      }
      batch.Run(payments, From("order"));
      for (const flow::Envelope& envelope : payments.TakeEnvelopes()) {
        const bool answer = envelope.kind == flow::Envelope::Kind::kAnswer;
        const std::string what =
            answer ? absl::StrCat("answer to ", envelope.order_id, "/", envelope.step_id)
                   : absl::StrCat(envelope.type, " ", envelope.resource);
        EXPECT_EQ(++event_count[what], 1) << what << " twice";
      }

      std::map<std::string, int64_t> by_transaction, merchant_by_payment;
      std::map<std::string, int> entries_by_payment;
      for (const auto& [key, row] : payments.Rows(kLedgerEntries)) {
        const auto& entry = static_cast<const LedgerEntry&>(*row.body);
        by_transaction[entry.transaction_id()] += entry.amount();
        const std::string payment_id =
            entry.transaction_id().substr(0, entry.transaction_id().rfind('/'));
        ++entries_by_payment[payment_id];
        if (entry.account() == kMerchantAccount) merchant_by_payment[payment_id] += entry.amount();
      }
      for (const auto& [transaction, sum] : by_transaction) ASSERT_EQ(sum, 0) << transaction;
      for (const auto& [key, row] : payments.Rows(kPayments)) {
        const auto& payment = static_cast<const Payment&>(*row.body);
        const bool captured = payment.state() == Payment::STATE_CAPTURED;
        const bool refunded = payment.state() == Payment::STATE_REFUNDED;
        ASSERT_EQ(merchant_by_payment[key], captured ? payment.amount().minor_units() : 0) << key;
        ASSERT_EQ(entries_by_payment[key], captured ? 2 : refunded ? 4 : 0) << key;
        ASSERT_EQ(row.version, captured ? 1 : refunded ? 2 : 0) << key;
        const bool awaited = payment.state() == Payment::STATE_AWAITED;
        if (payment.step().undo() != flow::Outcome::OUTCOME_UNSPECIFIED) {
          ASSERT_FALSE(captured) << key << " was taken back and holds money";
          ASSERT_FALSE(awaited) << key << " was taken back and can be paid";
        } else {
          ASSERT_EQ(awaited, payment.step().outcome() == flow::Outcome::OUTCOME_PENDING) << key;
          ASSERT_EQ(captured, payment.step().outcome() == flow::Outcome::OUTCOME_DONE) << key;
        }
      }
    }
  }
}

}  // namespace
}  // namespace gaekju::payment
