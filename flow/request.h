// request.h: fills a step's request from the order, the answers of the steps it waits for, and the
// storefront's constants.
//
//   // Once, when the storefront loads: which field comes from where.
//   CompileRequest(constants, from, &plan, step);
//   // For each ask:
//   std::string bytes = BuildRequest(plan, plan.steps[step], order, answer_of, wire_step_id);
//
// A constant comes first, then what the storefront says with `from`. The rest is found by field
// name and type: in the nearest step that is waited for (a notice waits for what it tells of), then
// in the order. Fields of the order that change while it runs (state, status, times of transitions,
// total) are no source: a step that is asked again must be told the same, or it is refused as
// another request under the same id. For the same reason no notice is told what a step of cancel
// answered: a second cancel answers anew.
//
// Requests are spliced on the wire: no message of the request's type is built, so contexts that are
// not linked in cost the same. Pure. Thread-safe.
#ifndef GAEKJU_FLOW_REQUEST_H_
#define GAEKJU_FLOW_REQUEST_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "flow/plan.h"
#include "gaekju/order/v1/order.pb.h"
#include "google/protobuf/descriptor.h"

namespace gaekju::flow {

// Whether a field of the order is the same whenever the saga asks, so that a step may be told it.
bool IsFixedInOrder(const google::protobuf::FieldDescriptor& field);

// Whether the bytes of one field mean the same in the other. The two may be of different pools.
bool IsSameType(const google::protobuf::FieldDescriptor& a,
                const google::protobuf::FieldDescriptor& b);

// Fills `copies` of the plan's step `step`. `constants` are the request's fields that the
// storefront gives; they are not copied. `from` are copies of fields of the order that the
// storefront asks for, each field of the request at most once. Returns what is wrong, one sentence
// a mistake, without the step's name; empty when all is well. REQUIRES: request, response and
// `after` (of a notice: `when`) of the step and of all that it waits for are set. `after` may have
// a cycle.
std::vector<std::string> CompileRequest(
    const std::vector<const google::protobuf::FieldDescriptor*>& constants,
    const std::vector<FieldCopy>& from, Plan* plan, int step);

// The serialized request of a step: order_id, step_id, copies, constants. The same bytes for the
// same input. `answer_of` gives the serialized response of a step of the plan, by index; empty when
// it has none. Malformed answers are copied up to where they are malformed. REQUIRES: the step's
// request was compiled.
std::string BuildRequest(const Plan& plan, const PlanStep& step, const order::v1::Order& order,
                         const std::function<const std::string&(int step)>& answer_of,
                         absl::string_view wire_step_id);

// The serialized request of a step's undo: order_id and step_id. REQUIRES: the step has an undo.
std::string BuildUndoRequest(const PlanStep& step, absl::string_view order_id,
                             absl::string_view wire_step_id);

// "string", "repeated gaekju.type.v1.LineItem", "map<string, int32>": a field's type as its
// contract writes it.
std::string FieldTypeName(const google::protobuf::FieldDescriptor& field);

// Whether the contract marks the field REQUIRED.
bool IsRequired(const google::protobuf::FieldDescriptor& field);

}  // namespace gaekju::flow

#endif  // GAEKJU_FLOW_REQUEST_H_
