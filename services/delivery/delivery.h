// delivery.h: decides what may happen to the shipment of one order's step.
// Pure: no clock, no I/O, no globals that change. Thread-safe. Invariants: README.md.
//
//   const flow::Context& delivery = DeliveryContext();   // what the shell, the checker and the
//   simulator run
#ifndef GAEKJU_SERVICES_DELIVERY_DELIVERY_H_
#define GAEKJU_SERVICES_DELIVERY_DELIVERY_H_

#include "flow/turn.h"
#include "gaekju/delivery/v1/delivery.pb.h"

namespace gaekju::delivery {

// Delivery by "<order_id>/<step_id>".
extern const flow::Table kDeliveries;
// ReceiptClosing by "<order_id>/<step_id>", of the step of a cancel.
extern const flow::Table kReceiptClosings;

const flow::Context& DeliveryContext();

}  // namespace gaekju::delivery

#endif  // GAEKJU_SERVICES_DELIVERY_DELIVERY_H_
