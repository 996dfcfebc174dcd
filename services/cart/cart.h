// cart.h: decides what may happen to the cart of one order's step.
// Pure: no clock, no I/O, no globals that change. Thread-safe. Invariants: README.md.
//
//   const flow::Context& cart = CartContext();   // what the shell, the checker and the simulator
//   run
#ifndef GAEKJU_SERVICES_CART_CART_H_
#define GAEKJU_SERVICES_CART_CART_H_

#include "flow/turn.h"
#include "gaekju/cart/v1/cart.pb.h"

namespace gaekju::cart {

// Cart by "<order_id>/<step_id>".
extern const flow::Table kCarts;

const flow::Context& CartContext();

}  // namespace gaekju::cart

#endif  // GAEKJU_SERVICES_CART_CART_H_
