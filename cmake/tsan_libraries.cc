// Tells the thread sanitizer what libabsl and libgrpc do between threads. The distribution's are
// built without it: Abseil's locks wait on futexes and gRPC's queues on atomics that it cannot see,
// so all that passes through them would look like a race. Linked into every binary of the preset
// `tsan`, where these definitions stand before the libraries', also for the calls that gRPC makes
// itself: each calls the library's and says what it means.
#include <dlfcn.h>
#include <grpc/grpc.h>
#include <sanitizer/tsan_interface.h>

#include <cstdlib>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

namespace {

// Calls the library's definition of the function of which `own` is ours.
template <typename Result, typename... Parameters>
class Library {
 public:
  explicit Library(void* own) {
    Dl_info info;
    if (dladdr(own, &info) == 0 || info.dli_sname == nullptr) std::abort();
    next_ = reinterpret_cast<Result (*)(Parameters...)>(dlsym(RTLD_NEXT, info.dli_sname));
    if (next_ == nullptr) std::abort();
  }
  Result operator()(Parameters... parameters) const { return next_(parameters...); }

 private:
  Result (*next_)(Parameters...);
};

// A condition that is evaluated with the lock held, by whichever thread holds it.
class Told {
 public:
  Told(void* lock, const absl::Condition& condition) : lock_(lock), condition_(condition) {}
  bool Evaluate() {
    __tsan_acquire(lock_);
    const bool holds = condition_.Eval();
    __tsan_release(lock_);
    return holds;
  }

 private:
  void* const lock_;
  const absl::Condition& condition_;
};

}  // namespace

#pragma GCC diagnostic ignored "-Wpmf-conversions"
#define GAEKJU_LIBRARY(own, ...) \
  static const Library<__VA_ARGS__> library(reinterpret_cast<void*>(own))

// ---------------------------------------------------------------- Abseil
namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  GAEKJU_LIBRARY(&Mutex::Lock, void, Mutex*);
  library(this);
  __tsan_acquire(this);
}
void Mutex::Unlock() {
  GAEKJU_LIBRARY(&Mutex::Unlock, void, Mutex*);
  __tsan_release(this);
  library(this);
}
bool Mutex::TryLock() {
  GAEKJU_LIBRARY(&Mutex::TryLock, bool, Mutex*);
  const bool locked = library(this);
  if (locked) __tsan_acquire(this);
  return locked;
}
void Mutex::ReaderLock() {
  GAEKJU_LIBRARY(&Mutex::ReaderLock, void, Mutex*);
  library(this);
  __tsan_acquire(this);
}
void Mutex::ReaderUnlock() {
  GAEKJU_LIBRARY(&Mutex::ReaderUnlock, void, Mutex*);
  __tsan_release(this);
  library(this);
}
void Mutex::LockWhen(const Condition& condition) {
  GAEKJU_LIBRARY(&Mutex::LockWhen, void, Mutex*, const Condition&);
  Told told(this, condition);
  library(this, Condition(&told, &Told::Evaluate));
  __tsan_acquire(this);
}
bool Mutex::LockWhenWithTimeout(const Condition& condition, Duration timeout) {
  GAEKJU_LIBRARY(&Mutex::LockWhenWithTimeout, bool, Mutex*, const Condition&, Duration);
  Told told(this, condition);
  const bool holds = library(this, Condition(&told, &Told::Evaluate), timeout);
  __tsan_acquire(this);
  return holds;
}
bool Mutex::LockWhenWithDeadline(const Condition& condition, Time deadline) {
  GAEKJU_LIBRARY(&Mutex::LockWhenWithDeadline, bool, Mutex*, const Condition&, Time);
  Told told(this, condition);
  const bool holds = library(this, Condition(&told, &Told::Evaluate), deadline);
  __tsan_acquire(this);
  return holds;
}
void Mutex::Await(const Condition& condition) {
  GAEKJU_LIBRARY(&Mutex::Await, void, Mutex*, const Condition&);
  Told told(this, condition);
  __tsan_release(this);
  library(this, Condition(&told, &Told::Evaluate));
  __tsan_acquire(this);
}
bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  GAEKJU_LIBRARY(&Mutex::AwaitWithTimeout, bool, Mutex*, const Condition&, Duration);
  Told told(this, condition);
  __tsan_release(this);
  const bool holds = library(this, Condition(&told, &Told::Evaluate), timeout);
  __tsan_acquire(this);
  return holds;
}
bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  GAEKJU_LIBRARY(&Mutex::AwaitWithDeadline, bool, Mutex*, const Condition&, Time);
  Told told(this, condition);
  __tsan_release(this);
  const bool holds = library(this, Condition(&told, &Told::Evaluate), deadline);
  __tsan_acquire(this);
  return holds;
}
void CondVar::Wait(Mutex* mutex) {
  GAEKJU_LIBRARY(&CondVar::Wait, void, CondVar*, Mutex*);
  __tsan_release(mutex);
  library(this, mutex);
  __tsan_acquire(mutex);
}
bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  GAEKJU_LIBRARY(&CondVar::WaitWithTimeout, bool, CondVar*, Mutex*, Duration);
  __tsan_release(mutex);
  const bool expired = library(this, mutex, timeout);
  __tsan_acquire(mutex);
  return expired;
}
bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  GAEKJU_LIBRARY(&CondVar::WaitWithDeadline, bool, CondVar*, Mutex*, Time);
  __tsan_release(mutex);
  const bool expired = library(this, mutex, deadline);
  __tsan_acquire(mutex);
  return expired;
}
void Notification::Notify() {
  GAEKJU_LIBRARY(&Notification::Notify, void, Notification*);
  __tsan_release(this);
  library(this);
}
void Notification::WaitForNotification() const {
  GAEKJU_LIBRARY(&Notification::WaitForNotification, void, const Notification*);
  library(this);
  __tsan_acquire(const_cast<Notification*>(this));
}
bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  GAEKJU_LIBRARY(&Notification::WaitForNotificationWithTimeout, bool, const Notification*,
                 Duration);
  const bool notified = library(this, timeout);
  if (notified) __tsan_acquire(const_cast<Notification*>(this));
  return notified;
}
bool Notification::WaitForNotificationWithDeadline(Time deadline) const {
  GAEKJU_LIBRARY(&Notification::WaitForNotificationWithDeadline, bool, const Notification*, Time);
  const bool notified = library(this, deadline);
  if (notified) __tsan_acquire(const_cast<Notification*>(this));
  return notified;
}

ABSL_NAMESPACE_END
}  // namespace absl

// ---------------------------------------------------------------- gRPC
// What was done before an operation was started, or was ended, is seen by who takes its tag from
// the queue.
grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t op_count,
                                      void* tag, void* reserved) {
  GAEKJU_LIBRARY(&grpc_call_start_batch, grpc_call_error, grpc_call*, const grpc_op*, size_t, void*,
                 void*);
  __tsan_release(tag);
  return library(call, ops, op_count, tag, reserved);
}

// Not API; in a gRPC that has it no more, nobody calls it.
struct grpc_cq_completion;
void grpc_cq_end_op(grpc_completion_queue* queue, void* tag, absl::Status error,
                    void (*done)(void*, grpc_cq_completion*), void* done_argument,
                    grpc_cq_completion* storage, bool internal) {
  GAEKJU_LIBRARY(&grpc_cq_end_op, void, grpc_completion_queue*, void*, absl::Status,
                 void (*)(void*, grpc_cq_completion*), void*, grpc_cq_completion*, bool);
  __tsan_release(tag);
  library(queue, tag, error, done, done_argument, storage, internal);
}

grpc_event grpc_completion_queue_next(grpc_completion_queue* queue, gpr_timespec deadline,
                                      void* reserved) {
  GAEKJU_LIBRARY(&grpc_completion_queue_next, grpc_event, grpc_completion_queue*, gpr_timespec,
                 void*);
  const grpc_event event = library(queue, deadline, reserved);
  if (event.type == GRPC_OP_COMPLETE) __tsan_acquire(event.tag);
  return event;
}
