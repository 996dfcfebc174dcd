// saga_rules.h: what must hold of an order's record after every input, told apart from the saga
// that keeps it (flow/saga.h): the checker looks at each state, the simulator at each commit.
//
//   if (std::string wrong = BrokenSagaRule(plan, record); !wrong.empty()) …   // a sentence
//
// Pure.
#ifndef GAEKJU_FLOW_SAGA_RULES_H_
#define GAEKJU_FLOW_SAGA_RULES_H_

#include <string>

#include "flow/plan.h"
#include "gaekju/order/v1/order.pb.h"

namespace gaekju::flow {

// Empty when all hold:
//  1. Nothing is being taken back for an order that reads CANCELLED or REJECTED.
//  2. Nothing is taken back before what its undo waits for; of a refused order or cancel, before
//  what depends on it.
//  3. What the buyer does not wait for is not asked before the order is taken; and it is not taken
//  before what they wait for is done, waits for a person, or was put off.
//  4. A step that expires has a time for it as long as it is waited for.
//  5. A notice of a step that is done, or of an order that is taken, is asked.
// REQUIRES: `plan` is the record's revision; it may lack the notices.
std::string BrokenSagaRule(const Plan& plan, const order::v1::OrderRecord& record);

}  // namespace gaekju::flow

#endif  // GAEKJU_FLOW_SAGA_RULES_H_
