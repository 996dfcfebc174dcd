// step_rules.h: what holds of every step and its undo, whatever they do. One test in each context
// that has a step:
//
//   TEST_F(PaymentTest, CaptureFollowsTheRulesOfAStep) {
//     testing::ExpectFollowsStepRules(payments_, kPayments, Capture(), Capture("o1", 30000),
//                                     Refund());
//   }
#ifndef GAEKJU_SERVICES_TESTING_STEP_RULES_H_
#define GAEKJU_SERVICES_TESTING_STEP_RULES_H_

#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flow/step.h"
#include "google/protobuf/util/message_differencer.h"
#include "services/testing/requests.h"
#include "services/testing/turn_harness.h"

namespace gaekju::testing {

// The resource as others may see it: without the sagas' records.
inline std::unique_ptr<google::protobuf::Message> WithoutRecords(
    const google::protobuf::Message& row) {
  std::unique_ptr<google::protobuf::Message> shown(row.New());
  shown->CopyFrom(row);
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  row.GetReflection()->ListFields(row, &fields);
  for (const auto* field : fields) {
    if (field->message_type() == flow::StepRecord::descriptor())
      row.GetReflection()->ClearField(shown.get(), field);
  }
  return shown;
}

// Done once and undone once, for ever; an undo that comes first stops its step; what has the ids of
// another step is no repeat of it; events tell the resource as it then is. `other` is the same step
// as `step` with other content. Each rule takes an order of its own. REQUIRES: the harness has what
// it takes for `step` to be done three times.
template <class Step, class Undo>
void ExpectFollowsStepRules(TurnHarness& harness, const flow::Table& table, const Step& step,
                            const Step& other, const Undo& undo) {
  auto of = [](auto request, const char* order_id, const char* step_id = nullptr) {
    request.set_order_id(order_id);
    if (step_id != nullptr) request.set_step_id(step_id);
    return request;
  };
  size_t told_count = 0;
  auto call = [&](const auto& request) {
    harness.now_us += 1000000;
    const flow::Answer answer = harness.Call(request, From("order"));
    const std::string key = flow::StepKey(request.order_id(), request.step_id());
    for (const flow::Envelope& event : harness.TakeEnvelopes()) {
      EXPECT_EQ(event.kind, flow::Envelope::Kind::kEvent) << "the shell sends the answer";
      EXPECT_EQ(event.order_id, request.order_id());
      EXPECT_EQ(event.resource, absl::StrCat(table.name, "/", key));
      const auto* type =
          google::protobuf::DescriptorPool::generated_pool()->FindMessageTypeByName(event.type);
      std::unique_ptr<google::protobuf::Message> told(
          google::protobuf::MessageFactory::generated_factory()->GetPrototype(type)->New());
      EXPECT_TRUE(told->ParseFromString(event.payload)) << event.type;
      EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(
          told->GetReflection()->GetMessage(*told, type->field(0)),
          *WithoutRecords(*harness.Find(table, key))))
          << told->DebugString();
      ++told_count;
    }
    return answer;
  };
  auto expect_repeat = [&](const auto& request, const flow::Answer& first) {
    EXPECT_EQ(first.kind, flow::Answer::Kind::kDone) << flow::ReasonOf(first.status);
    EXPECT_EQ(call(request).payload, first.payload);
    EXPECT_EQ(harness.written_count(), 0) << "asked again";
  };
  auto expect_refused = [&](const auto& request, int code, const char* reason) {
    const flow::Answer answer = call(request);
    EXPECT_EQ(answer.status.code(), code);
    EXPECT_EQ(flow::ReasonOf(answer.status), reason);
    EXPECT_EQ(harness.written_count(), 0) << reason;
  };
  harness.TakeEnvelopes();
  {
    SCOPED_TRACE("step, then undo");
    expect_repeat(of(step, "r1"), call(of(step, "r1")));
    expect_refused(of(other, "r1"), google::rpc::ALREADY_EXISTS, "STEP_REUSED");
    expect_repeat(of(undo, "r1"), call(of(undo, "r1")));
    expect_refused(of(step, "r1"), google::rpc::FAILED_PRECONDITION, "STEP_UNDONE");
  }
  const size_t in_turns_of_its_own = told_count;
  {
    SCOPED_TRACE("undo, then step");
    expect_repeat(of(undo, "r2"), call(of(undo, "r2")));
    expect_refused(of(step, "r2"), google::rpc::FAILED_PRECONDITION, "STEP_UNDONE");
    expect_refused(of(other, "r2"), google::rpc::FAILED_PRECONDITION, "STEP_UNDONE");
    expect_repeat(of(undo, "r2"), call(of(undo, "r2")));
  }
  {
    SCOPED_TRACE("all in one turn");
    Batch batch;
    for (int i = 0; i < 2; ++i) batch.Add(of(step, "r3"));
    for (int i = 0; i < 2; ++i) batch.Add(of(undo, "r3"));
    for (const flow::Answer& answer : batch.Run(harness))
      EXPECT_EQ(answer.kind, flow::Answer::Kind::kDone);
    EXPECT_EQ(harness.TakeEvents().size(), in_turns_of_its_own);
  }
  const std::vector<std::array<const char*, 3>> bad_ids = {{"", "s", "order_id"},
                                                           {"a/b", "s", "order_id"},
                                                           {"o", "", "step_id"},
                                                           {"o", "a/b", "step_id"}};
  for (const auto& [order_id, step_id, field] : bad_ids) {
    EXPECT_EQ(FieldOf(harness.Call(of(step, order_id, step_id))), field);
    EXPECT_EQ(FieldOf(harness.Call(of(undo, order_id, step_id))), field);
  }
}

}  // namespace gaekju::testing

#endif  // GAEKJU_SERVICES_TESTING_STEP_RULES_H_
