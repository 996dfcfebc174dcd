// catalog.h: decides what is for sale, for how much, and who gets what is left.
// Pure: no clock, no I/O, no globals that change. Thread-safe. Invariants: README.md.
//
//   const flow::Context& catalog = CatalogContext();   // what the shell, the checker and the
//   simulator run
#ifndef GAEKJU_SERVICES_CATALOG_CATALOG_H_
#define GAEKJU_SERVICES_CATALOG_CATALOG_H_

#include <cstdint>

#include "flow/turn.h"
#include "gaekju/catalog/v1/catalog.pb.h"

namespace gaekju::catalog {

// Product by product_id.
extern const flow::Table kProducts;
// Reservation by "<order_id>/<step_id>".
extern const flow::Table kReservations;
// StockChange by "<product_id>/<request_id>".
extern const flow::Table kStockChanges;

// The most of one product that can be available, and the largest change of it.
inline constexpr int64_t kStockCountMax = 1000000000000;

const flow::Context& CatalogContext();

}  // namespace gaekju::catalog

#endif  // GAEKJU_SERVICES_CATALOG_CATALOG_H_
