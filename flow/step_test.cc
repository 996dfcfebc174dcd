// The promises of flow/step.h, tested with a step whose decider does what each test says.
#include "flow/step.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gaekju/store/v1/store.pb.h"
#include "gaekju/store/v1/store_service.pb.h"
#include "google/rpc/code.pb.h"
#include "google/rpc/error_details.pb.h"

namespace gaekju::flow {
namespace {

using gaekju::store::v1::Acceptance;
using gaekju::store::v1::AcceptOrderRequest;
using gaekju::store::v1::AcceptOrderResponse;
using gaekju::store::v1::CancelAcceptanceRequest;
using gaekju::store::v1::CancelAcceptanceResponse;
using gaekju::store::v1::Item;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

const Table kRows{"acceptances", &Acceptance::default_instance(), {}};
const Table kShelf{"items", &Item::default_instance(), {}};
constexpr char kAnswerType[] = "gaekju.store.v1.AcceptOrderResponse";

Answer DoneWith(const std::string& id) {
  AcceptOrderResponse response;
  response.set_acceptance_id(id);
  return Done(response);
}

Answer No() { return Refuse(google::rpc::FAILED_PRECONDITION, "test", "NO", "no"); }

class StepTest : public ::testing::Test {
 protected:
  StepTest() {
    do_ = StepHandler<Acceptance, AcceptOrderRequest>(
        "gaekju.store.v1.StoreService.AcceptOrder", kRows,
        [](const AcceptOrderRequest& request) {
          return request.storefront() == "bad"
                     ? MakeStatus(google::rpc::INVALID_ARGUMENT, "test", "BAD", "bad")
                     : google::rpc::Status();
        },
        [](const AcceptOrderRequest&, std::vector<RowKey>* keys) {
          keys->push_back({&kShelf, "x"});
        },
        [this](const AcceptOrderRequest&, const Caller&, Acceptance&, Turn& turn) {
          calls_.push_back("do");
          turn.Find<Item>(kShelf, "x");  // announced by more_keys
          return do_answer_;
        });
    undo_ = UndoHandler<Acceptance, CancelAcceptanceRequest>(
        "gaekju.store.v1.StoreService.CancelAcceptance", kRows,
        [this](const Acceptance&, std::vector<RowKey>* keys) {
          for (const std::string& key : held_) keys->push_back({&kShelf, key});
        },
        [this](Acceptance&, Turn& turn) {
          calls_.push_back("undo");
          for (const std::string& key : held_) turn.Edit<Item>(kShelf, key);
          return undo_answer_;
        },
        [this](const CancelAcceptanceRequest&, Acceptance&, Turn&) { calls_.push_back("void"); });
  }

  // One request in a turn of its own, as the shell runs it.
  Answer Run(const Handler& handler, const google::protobuf::Message& request,
             const std::string& reply_to = "order") {
    Answer answer;
    answer.status = handler.Validate(request);
    if (answer.status.code() != 0) {
      answer.kind = Answer::Kind::kRefused;
      return answer;
    }
    Caller caller;
    caller.reply_to = reply_to;
    std::vector<RowKey> keys;
    handler.Keys(request, caller, &keys);
    for (;;) {
      Turn turn(1000);
      for (const RowKey& key : keys) {
        auto it = rows_.find(key.key);
        std::unique_ptr<google::protobuf::Message> body;
        if (key.table == &kRows && it != rows_.end()) body.reset(new Acceptance(it->second));
        turn.AddRow(key, 0, std::move(body));
      }
      answer = handler.Handle(request, caller, turn);
      written_ = 0;
      for (const RowKey& key : turn.order()) written_ += turn.row(key).dirty;
      if (answer.kind == Answer::Kind::kRetry) {
        EXPECT_EQ(written_, 0) << "a retry changes nothing";
        keys.insert(keys.end(), answer.more_keys.begin(), answer.more_keys.end());
        ++retries_;
        continue;
      }
      Store(turn);
      return answer;
    }
  }

  void Store(Turn& turn) {
    for (const RowKey& key : turn.order()) {
      const Turn::Row& row = turn.row(key);
      if (key.table == &kRows && row.dirty)
        rows_[key.key] = static_cast<const Acceptance&>(*row.body);
    }
    for (Envelope& envelope : turn.envelopes()) sent_.push_back(std::move(envelope));
  }

  Answer Do(const std::string& reply_to = "order") { return Run(*do_, request_, reply_to); }
  Answer Undo(const std::string& reply_to = "order") {
    return Run(*undo_, undo_request_, reply_to);
  }

  // A person's answer to the step, or to its undo, in a turn of its own.
  void Person(const Answer& answer, decltype(AnswerPendingStep)* tell = AnswerPendingStep) {
    Turn turn(2000);
    RowKey key{&kRows, "o1/accept"};
    turn.AddRow(key, 0, std::make_unique<Acceptance>(rows_.at(key.key)));
    tell(answer, kAnswerType, turn.Edit<Acceptance>(kRows, key.key).mutable_step(), turn);
    Store(turn);
  }

  const StepRecord& record() { return rows_.at("o1/accept").step(); }

  static AcceptOrderRequest Request() {
    AcceptOrderRequest request;
    request.set_order_id("o1");
    request.set_step_id("accept");
    request.set_storefront("fashion");
    return request;
  }
  static CancelAcceptanceRequest UndoRequest() {
    CancelAcceptanceRequest request;
    request.set_order_id("o1");
    request.set_step_id("accept");
    return request;
  }

  std::shared_ptr<const Handler> do_, undo_;
  AcceptOrderRequest request_ = Request();
  CancelAcceptanceRequest undo_request_ = UndoRequest();
  Answer do_answer_ = DoneWith("a1");
  Answer undo_answer_ = Done(CancelAcceptanceResponse());
  std::vector<std::string> held_;
  std::vector<std::string> calls_;  // what was decided
  std::map<std::string, Acceptance> rows_;
  std::vector<Envelope> sent_;
  int written_ = 0;  // rows, in the last turn
  int retries_ = 0;
};

TEST_F(StepTest, AskedTwiceIsDecidedOnceAndAnsweredTheSame) {
  const Answer first = Do();
  const Answer second = Do();
  EXPECT_EQ(first.kind, Answer::Kind::kDone);
  EXPECT_EQ(second.kind, Answer::Kind::kDone);
  EXPECT_EQ(second.payload, DoneWith("a1").payload);
  EXPECT_THAT(calls_, ElementsAre("do"));
  EXPECT_EQ(written_, 0) << "a repeat writes nothing";
  EXPECT_EQ(record().order_id(), "o1");
  EXPECT_EQ(record().step_id(), "accept");
}

TEST_F(StepTest, ARefusalIsRecordedAndRepeated) {
  do_answer_ = No();
  EXPECT_EQ(ReasonOf(Do().status), "NO");
  do_answer_ = DoneWith("a1");  // what it would say now
  const Answer again = Do();
  EXPECT_EQ(again.kind, Answer::Kind::kRefused);
  EXPECT_EQ(ReasonOf(again.status), "NO");
  EXPECT_EQ(again.status.code(), google::rpc::FAILED_PRECONDITION);
  EXPECT_THAT(calls_, ElementsAre("do"));
}

TEST_F(StepTest, OtherContentIsRefused) {
  Do();
  request_.set_storefront("other");
  const Answer answer = Do();
  EXPECT_EQ(answer.status.code(), google::rpc::ALREADY_EXISTS);
  EXPECT_EQ(ReasonOf(answer.status), "STEP_REUSED");
  EXPECT_EQ(written_, 0);
  request_ = Request();
  EXPECT_EQ(Do().kind, Answer::Kind::kDone) << "the first content still has its answer";
}

TEST_F(StepTest, OtherContentIsRefusedAlsoAfterARefusal) {
  do_answer_ = No();
  Do();
  request_.set_storefront("other");
  EXPECT_EQ(ReasonOf(Do().status), "STEP_REUSED");
}

TEST_F(StepTest, AnotherStepOfTheSameOrderIsAnotherRecord) {
  Do();
  request_.set_step_id("accept.2");
  EXPECT_EQ(Do().kind, Answer::Kind::kDone);
  EXPECT_THAT(calls_, ElementsAre("do", "do"));
  EXPECT_EQ(rows_.size(), 2u);
}

TEST_F(StepTest, AFailedValidationLeavesNoRecord) {
  request_.set_storefront("bad");
  EXPECT_EQ(ReasonOf(Do().status), "BAD");
  EXPECT_THAT(rows_, IsEmpty());
}

TEST_F(StepTest, IdsThatCannotBeKeysAreRefused) {
  struct Case {
    std::string order_id, step_id, field;
  };
  const std::string long_id(65, 'x');
  for (const Case& c : std::vector<Case>{
           {"", "accept", "order_id"},
           {long_id, "accept", "order_id"},
           {"o1/accept", "2", "order_id"},  // would share a key with order o1, step accept/2
           {std::string("o\0", 2), "accept", "order_id"},
           {"o1", "", "step_id"},
           {"o1", long_id, "step_id"},
           {"o1", "accept/2", "step_id"},
           {"o1", "acc\nept", "step_id"}}) {
    request_.set_order_id(c.order_id);
    request_.set_step_id(c.step_id);
    undo_request_.set_order_id(c.order_id);
    undo_request_.set_step_id(c.step_id);
    for (const Answer& answer : {Do(), Undo()}) {
      EXPECT_EQ(answer.status.code(), google::rpc::INVALID_ARGUMENT) << c.order_id << c.step_id;
      google::rpc::BadRequest bad;
      ASSERT_EQ(answer.status.details_size(), 2);
      ASSERT_TRUE(answer.status.details(1).UnpackTo(&bad));
      EXPECT_EQ(bad.field_violations(0).field(), c.field);
    }
  }
  EXPECT_THAT(calls_, IsEmpty());
}

TEST_F(StepTest, UndoneOnceHoweverOftenAsked) {
  Do();
  EXPECT_EQ(Undo().kind, Answer::Kind::kDone);
  EXPECT_EQ(Undo().kind, Answer::Kind::kDone);
  EXPECT_EQ(written_, 0);
  EXPECT_THAT(calls_, ElementsAre("do", "undo"));
}

TEST_F(StepTest, AnUndoThatComesFirstLeavesATombstone) {
  EXPECT_EQ(Undo().kind, Answer::Kind::kDone);
  EXPECT_EQ(record().outcome(), Outcome::OUTCOME_UNSPECIFIED);
  EXPECT_EQ(record().undo(), Outcome::OUTCOME_DONE);
  const Answer step = Do();
  EXPECT_EQ(step.status.code(), google::rpc::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonOf(step.status), "STEP_UNDONE");
  EXPECT_EQ(Undo().kind, Answer::Kind::kDone);
  EXPECT_THAT(calls_, ElementsAre("void"));
}

TEST_F(StepTest, AfterItsUndoTheStepIsRefusedWhateverItsContent) {
  Do();
  Undo();
  EXPECT_EQ(ReasonOf(Do().status), "STEP_UNDONE");
  request_.set_storefront("other");
  EXPECT_EQ(ReasonOf(Do().status), "STEP_UNDONE");
}

TEST_F(StepTest, TheUndoOfARefusedStepTakesNothingBack) {
  do_answer_ = No();
  Do();
  EXPECT_EQ(Undo().kind, Answer::Kind::kDone);
  EXPECT_THAT(calls_, ElementsAre("do", "void"));
}

TEST_F(StepTest, AnUndoSeesTheRowsThatTheResourceNames) {
  Do();
  held_ = {"x", "y"};
  EXPECT_EQ(Undo().kind, Answer::Kind::kDone);
  EXPECT_EQ(retries_, 1) << "once, for both";
  EXPECT_EQ(written_, 3) << "the record and both rows";
  Undo();
  EXPECT_EQ(retries_, 1) << "a repeat needs them no more";
}

TEST_F(StepTest, AnUndoThatTakesNothingBackAsksForNoRows) {
  held_ = {"y"};
  Undo();
  request_.set_order_id("o2");
  undo_request_.set_order_id("o2");
  do_answer_ = No();
  Do();
  Undo();
  EXPECT_EQ(retries_, 0);
}

TEST_F(StepTest, APendingStepIsAnsweredToWhoAsked) {
  do_answer_ = Pending();
  EXPECT_EQ(Do().kind, Answer::Kind::kPending);
  EXPECT_EQ(Do().kind, Answer::Kind::kPending);
  EXPECT_THAT(sent_, IsEmpty());
  Person(DoneWith("a1"));
  ASSERT_EQ(sent_.size(), 1u);
  const Envelope& envelope = sent_[0];
  EXPECT_EQ(envelope.kind, Envelope::Kind::kAnswer);
  EXPECT_EQ(envelope.to, "order");
  EXPECT_EQ(envelope.type, kAnswerType);
  EXPECT_EQ(envelope.order_id, "o1");
  EXPECT_EQ(envelope.step_id, "accept");
  EXPECT_FALSE(envelope.undo);
  EXPECT_EQ(envelope.outcome, Outcome::OUTCOME_DONE);
  EXPECT_EQ(envelope.payload, DoneWith("a1").payload);
  EXPECT_EQ(envelope.time_us, 2000);
  EXPECT_EQ(Do().payload, DoneWith("a1").payload) << "asking again tells it again";
  EXPECT_THAT(calls_, ElementsAre("do"));
}

TEST_F(StepTest, APendingStepMayBeRefused) {
  do_answer_ = Pending();
  Do();
  Person(No());
  ASSERT_EQ(sent_.size(), 1u);
  EXPECT_EQ(sent_[0].outcome, Outcome::OUTCOME_REFUSED);
  EXPECT_EQ(sent_[0].type, "google.rpc.Status");
  google::rpc::Status status;
  ASSERT_TRUE(status.ParseFromString(sent_[0].payload));
  EXPECT_EQ(ReasonOf(status), "NO");
  EXPECT_EQ(ReasonOf(Do().status), "NO");
}

TEST_F(StepTest, ThePendingAnswerGoesToTheLatestAsker) {
  do_answer_ = Pending();
  Do("first");
  Do("second");
  EXPECT_EQ(written_, 1);
  Do("second");
  EXPECT_EQ(written_, 0);
  Person(DoneWith("a1"));
  ASSERT_EQ(sent_.size(), 1u);
  EXPECT_EQ(sent_[0].to, "second");
}

TEST_F(StepTest, APlainCallDoesNotTakeThePendingAnswerAway) {
  do_answer_ = Pending();
  Do("order");
  Do("");
  Person(DoneWith("a1"));
  ASSERT_EQ(sent_.size(), 1u);
  EXPECT_EQ(sent_[0].to, "order");
}

TEST_F(StepTest, AnAnswerThatNobodyWaitsForIsOnlyRecorded) {
  do_answer_ = Pending();
  Do("");
  Person(DoneWith("a1"));
  EXPECT_THAT(sent_, IsEmpty());
  EXPECT_EQ(Do("").kind, Answer::Kind::kDone);
}

TEST_F(StepTest, AnUndoWhileThePersonThinksMakesTheStepVoid) {
  do_answer_ = Pending();
  Do();
  EXPECT_EQ(Undo().kind, Answer::Kind::kDone);
  EXPECT_THAT(calls_, ElementsAre("do", "void"));
  EXPECT_EQ(ReasonOf(Do().status), "STEP_UNDONE");
}

TEST_F(StepTest, ThePersonCannotAnswerWhatWasUndone) {
  do_answer_ = Pending();
  Do();
  Undo();
  EXPECT_DEATH(Person(DoneWith("a1")), "answered after its undo");
}

TEST_F(StepTest, APendingUndoIsAnsweredToItsLatestAsker) {
  Do("asker");
  undo_answer_ = Pending();
  EXPECT_EQ(Undo("first").kind, Answer::Kind::kPending);
  EXPECT_EQ(Undo("second").kind, Answer::Kind::kPending);
  EXPECT_EQ(Undo("").kind, Answer::Kind::kPending);
  EXPECT_THAT(calls_, ElementsAre("do", "undo"));
  EXPECT_EQ(ReasonOf(Do().status), "STEP_UNDONE") << "the step is being taken back";
  Person(Done(CancelAcceptanceResponse()), AnswerPendingUndo);
  ASSERT_EQ(sent_.size(), 1u);
  EXPECT_EQ(sent_[0].to, "second");
  EXPECT_TRUE(sent_[0].undo);
  EXPECT_EQ(sent_[0].outcome, Outcome::OUTCOME_DONE);
  EXPECT_EQ(sent_[0].type, kAnswerType);
  EXPECT_EQ(Undo().kind, Answer::Kind::kDone);
}

TEST_F(StepTest, AnUndoIsNeverRefused) {
  Do();
  undo_answer_ = No();
  EXPECT_DEATH(Undo(), "an undo is never refused");
}

TEST_F(StepTest, StepAndUndoMayShareATurn) {
  // The shell runs what waits together: the undo sees what the step has just written.
  Turn turn(1000);
  turn.AddRow({&kRows, "o1/accept"}, 0, nullptr);
  turn.AddRow({&kShelf, "x"}, 0, nullptr);
  EXPECT_EQ(do_->Handle(request_, Caller(), turn).kind, Answer::Kind::kDone);
  EXPECT_EQ(undo_->Handle(undo_request_, Caller(), turn).kind, Answer::Kind::kDone);
  EXPECT_EQ(ReasonOf(do_->Handle(request_, Caller(), turn).status), "STEP_UNDONE");
  EXPECT_THAT(calls_, ElementsAre("do", "undo"));
}

TEST(Turn, StampsTheTraceOnWhateverLeaves) {
  Turn turn(1);
  turn.set_traceparent("00-1");
  turn.CallAfterCommit({});
  turn.Send({});
  Call traced;
  traced.traceparent = "00-2";
  turn.CallAfterCommit(traced);
  EXPECT_EQ(turn.calls()[0].traceparent, "00-1");
  EXPECT_EQ(turn.calls()[1].traceparent, "00-2") << "what the decider set stays";
  EXPECT_EQ(turn.envelopes()[0].traceparent, "00-1");
}

TEST(Turn, VersionsCountTheEventsOfARow) {
  Turn turn(5);
  turn.AddRow({&kRows, "k"}, 7, nullptr);
  turn.Edit<Acceptance>(kRows, "k").set_order_id("o1");
  turn.Emit(kRows, "k", AcceptOrderResponse(), "o1");
  turn.Emit(kRows, "k", AcceptOrderResponse(), "o1");
  EXPECT_EQ(turn.envelopes()[0].version, 8);
  EXPECT_EQ(turn.envelopes()[1].version, 9);
  EXPECT_EQ(turn.envelopes()[1].resource, "acceptances/k");
  EXPECT_EQ(turn.row({&kRows, "k"}).version, 9);
}

TEST(Turn, AnEventOfAnUnchangedRowIsABug) {
  Turn turn(5);
  turn.AddRow({&kRows, "k"}, 7, std::make_unique<Acceptance>());
  EXPECT_DEATH(turn.Emit(kRows, "k", AcceptOrderResponse(), "o1"), "unchanged row");
}

}  // namespace
}  // namespace gaekju::flow
