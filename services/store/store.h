// store.h: decides what a shop's owner has on the shelf, and whether the owner takes an order or
// lets it be cancelled. Pure: no clock, no I/O, no globals that change. Thread-safe. Invariants:
// README.md.
//
//   const flow::Context& store = StoreContext();   // what the shell, the checker and the simulator
//   run
#ifndef GAEKJU_SERVICES_STORE_STORE_H_
#define GAEKJU_SERVICES_STORE_STORE_H_

#include "flow/turn.h"
#include "gaekju/store/v1/store.pb.h"

namespace gaekju::store {

// Item by "<storefront>/<product_id>".
extern const flow::Table kItems;
// Acceptance by "<order_id>/<step_id>".
extern const flow::Table kAcceptances;

const flow::Context& StoreContext();

}  // namespace gaekju::store

#endif  // GAEKJU_SERVICES_STORE_STORE_H_
