// order.h: decides what may happen to orders: placing, cancelling, and every answer their sagas
// wait for. Pure: no clock, no I/O; plans come from a PlanBook, ids from the shell.
//
//   std::unique_ptr<flow::Context> context = MakeOrderContext(&book);
//
// Rows: `orders` (OrderRecord by order_id), `placed_requests` (which order a request_id made),
// `number_counters` (by storefront).
#ifndef GAEKJU_SERVICES_ORDER_ORDER_H_
#define GAEKJU_SERVICES_ORDER_ORDER_H_

#include <memory>
#include <string>

#include "flow/plan.h"
#include "flow/turn.h"

namespace gaekju::order {

extern const flow::Table kOrders;
extern const flow::Table kPlacedRequests;
extern const flow::Table kNumberCounters;
extern const flow::Table kStorefrontRevisions;

// The plans that orders run under. Thread-safe. Plans live as long as the book.
class PlanBook {
 public:
  virtual ~PlanBook() = default;
  // The plan that new orders of the storefront get; null when there is no such storefront.
  virtual const flow::Plan* Current(const std::string& storefront) const = 0;
  // The plan of a revision that some order has. Revisions are stored before the first order of
  // theirs; null when the text cannot be read here any more, because a context that it calls is not
  // known or has changed. Such an order stays as it is, with its due time negated.
  virtual const flow::Plan* Pinned(const std::string& storefront,
                                   const std::string& revision) const = 0;
};

// The order context. `book` outlives it.
std::unique_ptr<flow::Context> MakeOrderContext(const PlanBook* book);

}  // namespace gaekju::order

#endif  // GAEKJU_SERVICES_ORDER_ORDER_H_
