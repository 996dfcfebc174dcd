// breaker.h: decides whether a call to a peer may go out, from how the last ones ended. Why it
// exists: docs/adr/0020. Pure: the time is passed in. Not thread-safe: the client guards it (it is
// asked twice per call and holds no lock while a call runs).
//
//   Breaker breaker(BreakerOptions{});
//   if (!breaker.Admit(now_us)) return Unreachable("circuit open");
//   …                                   // the call
//   breaker.Ended(ok, now_us);          // once for each Admit that said yes
//
//   closed ──failures_max failures in a row──> open ──open_us──> half open ──probe answers──>
//   closed
//                                               ^                    │
//                                               └───probe fails──────┘  (open_us doubles, up to
//                                               open_us_max)
//
// Invariants:
//   1. In flight never exceeds pending_max; half open, never more than one.
//   2. A call that was admitted before the breaker opened changes nothing when it ends afterwards,
//   except the count in flight.
//   3. While the peer answers (even with a refusal), the breaker stays closed.
#ifndef GAEKJU_RUNTIME_BREAKER_H_
#define GAEKJU_RUNTIME_BREAKER_H_

#include <cstdint>

namespace gaekju::runtime {

struct BreakerOptions {
  bool enabled = true;          // false: only counts; a mesh does it (Envoy's outlier detection)
  int pending_max = 4096;       // calls in flight to one peer; more are unreachable at once
  int failures_max = 5;         // consecutive; Envoy's consecutive_5xx default
  int64_t open_us = 1'000'000;  // the first time without calls
  int64_t open_us_max = 30'000'000;  // Envoy's base ejection time: longer would only delay recovery
};

class Breaker {
 public:
  enum class State { kClosed = 0, kOpen = 1, kHalfOpen = 2 };
  // The ticket of an admitted call; 0 is a refusal.
  using Ticket = int64_t;

  explicit Breaker(BreakerOptions options) : options_(options) {}

  // Whether a call may go out now. A positive ticket must come back through Ended().
  Ticket Admit(int64_t now_us);
  // The call with this ticket ended. `reached`: the peer answered, be it with a refusal.
  void Ended(Ticket ticket, bool reached, int64_t now_us);

  State state() const { return state_; }
  int pending() const { return pending_; }

 private:
  void Open(int64_t now_us);

  const BreakerOptions options_;
  State state_ = State::kClosed;
  int pending_ = 0;
  int failures_ = 0;  // consecutive, while closed
  int64_t open_until_us_ = 0;
  int64_t open_us_ = 0;  // how long the last time was
  int64_t epoch_ = 1;  // grows with every change of state; a ticket is the epoch it was admitted in
};

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_BREAKER_H_
