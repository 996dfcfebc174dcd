// assignment.h: decides which dealer has an order, and what may happen to it then.
// Pure: no clock, no I/O, no globals that change. Thread-safe. Invariants: README.md.
//
//   FixedDealers finder(dealers);                    // in production: DealerBook
//   std::unique_ptr<flow::Context> assignment = MakeAssignmentContext(&finder);
#ifndef GAEKJU_SERVICES_ASSIGNMENT_ASSIGNMENT_H_
#define GAEKJU_SERVICES_ASSIGNMENT_ASSIGNMENT_H_

#include <memory>

#include "flow/turn.h"
#include "gaekju/assignment/v1/assignment.pb.h"
#include "services/assignment/dealer_finder.h"

namespace gaekju::assignment {

// Dealer by dealer_id.
extern const flow::Table kDealers;
// Assignment by "<order_id>/<step_id>".
extern const flow::Table kAssignments;
// PickupClosing by "<order_id>/<step_id>", of the step of a cancel.
extern const flow::Table kPickupClosings;

// Whether it can take one more order.
bool HasRoom(const gaekju::assignment::v1::Dealer& dealer);

// `finder` outlives the context.
std::unique_ptr<flow::Context> MakeAssignmentContext(const DealerFinder* finder);

}  // namespace gaekju::assignment

#endif  // GAEKJU_SERVICES_ASSIGNMENT_ASSIGNMENT_H_
