// request.h: fills a step's request from the order, the answers of the steps it waits for, and the
// storefront's constants.
//
//   CompileRequest(constants, &plan, step);                        // once, when the storefront
//   loads: field -> source std::string bytes = BuildRequest(plan, plan.steps[step], order,
//   answer_of, wire_step_id);   // for each ask
//
// Sources are found by field name and type: first a constant, then the nearest step that is waited
// for, then the order. Fields of the order that change while it runs (state, status, times of
// transitions, total) are no source: a step that is asked again must be told the same, or it is
// refused as another request under the same id.
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

// Fills `copies` of the plan's step `step`. `constants` are the request's fields that the
// storefront gives; they are not copied. Returns what is wrong, one sentence a mistake, without the
// step's name; empty when all is well. REQUIRES: request, response and `after` of the step and of
// all that it waits for are set. `after` may have a cycle.
std::vector<std::string> CompileRequest(
    const std::vector<const google::protobuf::FieldDescriptor*>& constants, Plan* plan, int step);

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
