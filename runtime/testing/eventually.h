// eventually.h: for what somebody else makes true, and which has nothing of its own to wait on.
//
//   EXPECT_TRUE(Eventually([&] { return server.inflight() == 0; }));
#ifndef GAEKJU_RUNTIME_TESTING_EVENTUALLY_H_
#define GAEKJU_RUNTIME_TESTING_EVENTUALLY_H_

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace gaekju::runtime {

// Looks every few milliseconds, so that it takes no time from those it waits for; false when it
// never comes.
template <class Condition>
bool Eventually(Condition condition) {
  const absl::Time end = absl::Now() + absl::Minutes(1);
  while (!condition()) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return true;
}

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_TESTING_EVENTUALLY_H_
