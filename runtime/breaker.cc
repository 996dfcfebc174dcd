#include "runtime/breaker.h"

#include <algorithm>

#include "flow/check.h"

namespace gaekju::runtime {

Breaker::Ticket Breaker::Admit(int64_t now_us) {
  if (!options_.enabled) {
    ++pending_;
    return epoch_;
  }
  if (state_ == State::kOpen && now_us >= open_until_us_) {
    state_ = State::kHalfOpen;
    ++epoch_;
    ++pending_;
    return epoch_;  // the probe: the only call admitted in this epoch
  }
  if (state_ != State::kClosed || pending_ >= options_.pending_max) return 0;
  ++pending_;
  return epoch_;
}

void Breaker::Ended(Ticket ticket, bool reached, int64_t now_us) {
  GK_CHECK(ticket > 0 && pending_ > 0) << "Ended() without Admit()";
  --pending_;
  if (!options_.enabled || ticket != epoch_) return;
  if (state_ == State::kHalfOpen) {
    if (!reached) return Open(now_us);
    state_ = State::kClosed;
    ++epoch_;
    failures_ = 0;
    open_us_ = 0;
    return;
  }
  if (reached) {
    failures_ = 0;
  } else if (++failures_ >= options_.failures_max) {
    Open(now_us);
  }
}

void Breaker::Open(int64_t now_us) {
  open_us_ = open_us_ == 0 ? options_.open_us : std::min(open_us_ * 2, options_.open_us_max);
  open_until_us_ = now_us + open_us_;
  state_ = State::kOpen;
  ++epoch_;
  failures_ = 0;
}

}  // namespace gaekju::runtime
