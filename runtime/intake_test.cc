#include "runtime/intake.h"

#include <condition_variable>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "gaekju/payment/v1/payment_events.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/testing/fake_bus.h"
#include "runtime/testing/postgres.h"
#include "runtime/testing/toy_context.h"

namespace gaekju::runtime {
namespace {

Postgres& Server() {
  static Postgres server;  // ends with the process
  return server;
}

class IntakeTest : public testing::Test {
 protected:
  IntakeTest() : context_(ToyContext()) {
    options_.pg.conninfo = Server().CreateDatabase();
    MakeToyTables(options_.pg);
    loop_ = std::make_unique<TurnLoop>(context_, options_, TurnOutputs());
    loop_->Start();
    Intake::Options options;
    options.context = "toy";
    options.make_uuid = [] { return "uuid"; };
    intake_ = std::make_unique<Intake>(options, loop_.get(), &bus_);
  }
  ~IntakeTest() override {
    loop_.reset();
    bus_.Close();
  }

  void Deliver(const std::string& subject, BusHeaders headers, std::string body) {
    BusDelivery delivery;
    delivery.stream = kCommandsStream;
    delivery.stream_seq = ++stream_seq_;
    delivery.subject = subject;
    delivery.headers = std::move(headers);
    delivery.body = std::move(body);
    delivery.settle = [this](int64_t nak_delay_us) {
      std::lock_guard<std::mutex> lock(mutex_);
      settled_.push_back(nak_delay_us);
      wake_.notify_all();
    };
    intake_->Take(std::move(delivery));
  }
  void Deliver(const std::vector<flow::Envelope>& envelopes) {
    for (EncodedMessage& message : EncodeTurn("order", envelopes, absl::StrCat("1-", ++turn_))) {
      Deliver(message.subject, message.headers, message.body);
    }
  }
  int64_t WaitForSettled(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    EXPECT_TRUE(
        wake_.wait_for(lock, std::chrono::seconds(60), [&] { return settled_.size() >= count; }));
    return settled_.back();
  }
  static flow::Envelope Command(const std::string& order, const std::string& how = "") {
    flow::Envelope envelope;
    envelope.kind = flow::Envelope::Kind::kCommand;
    envelope.to = "toy";
    envelope.type = kToyCapture;
    envelope.order_id = order;
    envelope.step_id = "pay";
    envelope.reply_to = "order";
    envelope.payload = ToyRequest(order, "c", 1, how)->SerializeAsString();
    return envelope;
  }

  const flow::Context context_;
  TurnLoop::Options options_;
  FakeBus bus_;
  std::unique_ptr<TurnLoop> loop_;
  std::unique_ptr<Intake> intake_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<int64_t> settled_;
  int turn_ = 0;
  uint64_t stream_seq_ = 0;
};

TEST_F(IntakeTest, BatchIsAckedOnceAllOfItIsCommitted) {
  std::vector<flow::Envelope> envelopes;
  for (int i = 0; i < 700; ++i) envelopes.push_back(Command(absl::StrCat("o", i)));
  Deliver(envelopes);
  EXPECT_LT(WaitForSettled(2), 0);  // split into two messages, each acked
  EXPECT_EQ(ToyCount(options_.pg, "c"), 700);
  EXPECT_EQ(intake_->dead_count(), 0);
  // Again: nothing happens twice.
  Deliver(envelopes);
  EXPECT_LT(WaitForSettled(4), 0);
  EXPECT_EQ(ToyCount(options_.pg, "c"), 700);
}

TEST_F(IntakeTest, EventsAndAnswers) {
  flow::Envelope event;
  event.type = "gaekju.payment.v1.PaymentCaptured";
  event.resource = "payment/1";
  event.version = 1;
  flow::Envelope other = event;
  other.type = "gaekju.payment.v1.PaymentRefunded";  // toy does not care for it
  flow::Envelope answer;
  answer.kind = flow::Envelope::Kind::kAnswer;
  answer.to = "toy";
  answer.type = "x.Y";
  answer.order_id = "o";
  answer.step_id = "s";
  answer.outcome = flow::Outcome::OUTCOME_DONE;
  Deliver({event, other, answer});
  EXPECT_LT(WaitForSettled(2), 0);
  EXPECT_EQ(ToyCount(options_.pg, "events"), 1);
  EXPECT_EQ(ToyCount(options_.pg, "results"), 1);
  EXPECT_EQ(intake_->dead_count(), 0);
}

TEST_F(IntakeTest, PoisonGoesToTheDeadLettersAndTheRestOfItsMessageIsDone) {
  Deliver("gaekju.command.toy", {{"content-type", "application/protobuf"}}, "rubbish");
  EXPECT_LT(WaitForSettled(1), 0);
  flow::Envelope unknown = Command("o1");
  unknown.type = "no.such.Method";
  Deliver({unknown, Command("o2")});
  EXPECT_LT(WaitForSettled(2), 0);
  flow::Envelope broken = Command("o3");
  broken.payload = "\xff";
  Deliver({broken});
  EXPECT_LT(WaitForSettled(3), 0);
  EXPECT_EQ(intake_->dead_count(), 3);
  EXPECT_EQ(ToyCount(options_.pg, "c"), 1);
  ASSERT_EQ(bus_.stored().size(), 3u);
  EXPECT_EQ(bus_.stored()[0].subject, "gaekju.dead.toy");
  EXPECT_EQ(bus_.stored()[0].body, "rubbish");
  EXPECT_THAT(FindHeader(bus_.stored()[1].headers, "gaekju-dead-reason"),
              testing::HasSubstr("no.such.Method"));
}

TEST_F(IntakeTest, OnlyWhatCannotBeReadIsADeadLetterAndItsNeighboursAreTaken) {
  flow::Envelope unreadable = Command("o3");
  unreadable.step_id = "not \xff UTF-8";
  flow::Envelope unknown = Command("o5");
  unknown.type = "no.such.Method";
  const std::vector<flow::Envelope> envelopes = {Command("o1"), Command("o2"), unreadable,
                                                 Command("o4"), unknown};
  Deliver(envelopes);
  EXPECT_LT(WaitForSettled(1), 0);
  EXPECT_EQ(ToyCount(options_.pg, "c"), 3);
  ASSERT_EQ(bus_.stored().size(), 2u);
  EXPECT_THAT(FindHeader(bus_.stored()[0].headers, "gaekju-dead-reason"),
              testing::HasSubstr("event 2 of the batch"));
  EXPECT_EQ(FindHeader(bus_.stored()[0].headers, "gaekju-dead-type"), kToyCapture);
  EXPECT_THAT(FindHeader(bus_.stored()[1].headers, "gaekju-dead-reason"),
              testing::HasSubstr("no.such.Method"));
  // The letter is that event alone, as it can be sent again.
  const BusMessage letter = bus_.stored()[1];
  auto again = DecodeMessage("gaekju.command.toy", letter.headers, letter.body);
  ASSERT_TRUE(again.ok()) << again.status();
  ASSERT_EQ(again->size(), 1u);
  EXPECT_EQ(again->front().envelope.order_id, "o5");
  // The same delivery once more, its ack lost: nothing is done, or dead, twice.
  --stream_seq_;
  --turn_;
  Deliver(envelopes);
  EXPECT_LT(WaitForSettled(2), 0);
  EXPECT_EQ(ToyCount(options_.pg, "c"), 3);
  EXPECT_EQ(bus_.stored().size(), 2u);
}

TEST_F(IntakeTest, OneDeadLetterOfSeveralThatIsNotStoredBringsTheMessageAgain) {
  flow::Envelope unknown = Command("o1");
  unknown.type = "no.such.Method";
  flow::Envelope other = Command("o2");
  other.type = "no.such.Other";
  bus_.LoseAcks(1);
  Deliver({unknown, other, Command("o3")});
  EXPECT_GT(WaitForSettled(1), 0);
  --stream_seq_;
  --turn_;
  Deliver({unknown, other, Command("o3")});
  EXPECT_LT(WaitForSettled(2), 0);
  EXPECT_EQ(bus_.stored().size(), 2u);
  EXPECT_EQ(ToyCount(options_.pg, "c"), 1);
}

// A source that is newer than this context: what it has to say to others is not ours to judge.
TEST_F(IntakeTest, EventsThatAreNotTakenAreNobodysDeadLetters) {
  flow::Envelope event;
  event.type = "gaekju.payment.v1.PaymentCaptured";
  event.resource = "payment/1";
  event.version = 1;
  flow::Envelope newer = event;
  newer.type = "gaekju.payment.v1.PaymentPromised";
  newer.resource = "in a \xff way of its own";
  Deliver({event, newer});
  EXPECT_LT(WaitForSettled(1), 0);
  std::vector<std::pair<std::string, std::string>> headers =
      EncodeTurn("order", {newer}, "9")[0].headers;
  headers.emplace_back("ce-version", "a new kind of version");
  Deliver("gaekju.event.order", headers, "");
  EXPECT_LT(WaitForSettled(2), 0);
  EXPECT_EQ(ToyCount(options_.pg, "events"), 1);
  EXPECT_EQ(intake_->dead_count(), 0);
  // One that is taken has to be readable.
  newer.type = event.type;
  Deliver({event, newer});
  EXPECT_LT(WaitForSettled(3), 0);
  EXPECT_EQ(intake_->dead_count(), 1);
}

TEST_F(IntakeTest, DeadLetterThatCannotBeStoredComesAgain) {
  bus_.Disconnect();
  Deliver("gaekju.command.toy", {}, "rubbish");
  EXPECT_GT(WaitForSettled(1), 0);
}

TEST_F(IntakeTest, WhatIsNotProcessedComesAgain) {
  loop_->Drain(absl::ZeroDuration());
  Deliver({Command("o1"), Command("o2")});
  EXPECT_GT(WaitForSettled(1), 0);
  EXPECT_EQ(ToyCount(options_.pg, "c"), 0);
}

}  // namespace
}  // namespace gaekju::runtime
