// notification.h: decides what buyers and sellers are told, once for each cause.
// Pure: no clock, no I/O, no globals that change. Thread-safe. Invariants: README.md.
//
//   const flow::Context& notification = NotificationContext();   // what the shell, the checker and
//   the simulator run
#ifndef GAEKJU_SERVICES_NOTIFICATION_NOTIFICATION_H_
#define GAEKJU_SERVICES_NOTIFICATION_NOTIFICATION_H_

#include "flow/turn.h"
#include "gaekju/notification/v1/notification.pb.h"

namespace gaekju::notification {

// Notice by "<order_id>/<step_id>", or "<storefront>/<request_id>".
extern const flow::Table kNotices;
// The same notice, as others see it, by "<create_time>/<storefront>/<number>": oldest first. Rows
// are only added.
extern const flow::Table kNoticeLog;
// NoticeCounter by storefront.
extern const flow::Table kNoticeCounters;

const flow::Context& NotificationContext();

}  // namespace gaekju::notification

#endif  // GAEKJU_SERVICES_NOTIFICATION_NOTIFICATION_H_
