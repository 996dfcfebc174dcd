// view.h: what buyers see of their orders, built from the events of the contexts that orders pass
// through. Pure: no clock, no I/O, no globals that change. Thread-safe. Invariants: README.md.
//
//   const flow::Context& view = ViewContext();   // what the shell, the checker and the simulator
//   run
//
// An event is applied when the one before it of the same resource has been; it waits in the row
// until then, and the missing ones are asked for again. So rows come out the same in whatever order
// events come, and however often.
#ifndef GAEKJU_SERVICES_VIEW_VIEW_H_
#define GAEKJU_SERVICES_VIEW_VIEW_H_

#include <cstdint>

#include "flow/turn.h"
#include "gaekju/view/v1/view.pb.h"

namespace gaekju::view {

// OrderView by order_id.
extern const flow::Table kOrderViews;

// Events that one row parks. An order has some ten events in all, so this many means that something
// is badly late.
inline constexpr int kParkedMax = 64;
// Notices that one row shows, those with the highest numbers: a seller may write any number of
// them.
inline constexpr int kNoticesMax = 100;
// Entries of one row's timeline, the latest: a cancel that is refused may be asked for again and
// again.
inline constexpr int kTimelineMax = 500;
// Missing events are asked for again after as long as has been waited for them, within these
// bounds.
inline constexpr int64_t kGapRetryMinUs = 5000000;
inline constexpr int64_t kGapRetryMaxUs = 60000000;

const flow::Context& ViewContext();

}  // namespace gaekju::view

#endif  // GAEKJU_SERVICES_VIEW_VIEW_H_
