#include "runtime/breaker.h"

#include <cstdint>
#include <iostream>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace gaekju::runtime {
namespace {

constexpr int64_t kSecond = 1'000'000;

BreakerOptions Options() {
  BreakerOptions options;
  options.pending_max = 3;
  options.failures_max = 2;
  options.open_us = 1 * kSecond;
  options.open_us_max = 4 * kSecond;
  return options;
}

// One call, admitted or not, that ends at once.
bool CallOnce(Breaker& breaker, bool reached, int64_t now_us) {
  const Breaker::Ticket ticket = breaker.Admit(now_us);
  if (ticket == 0) return false;
  breaker.Ended(ticket, reached, now_us);
  return true;
}

TEST(Breaker, OpensAfterConsecutiveFailuresOnly) {
  Breaker breaker(Options());
  EXPECT_TRUE(CallOnce(breaker, false, 0));
  EXPECT_TRUE(CallOnce(breaker, true, 0));
  EXPECT_TRUE(CallOnce(breaker, false, 0));
  EXPECT_EQ(breaker.state(), Breaker::State::kClosed);
  EXPECT_TRUE(CallOnce(breaker, false, 0));
  EXPECT_EQ(breaker.state(), Breaker::State::kOpen);
  EXPECT_FALSE(CallOnce(breaker, true, kSecond - 1));
}

TEST(Breaker, OneProbeClosesIt) {
  Breaker breaker(Options());
  CallOnce(breaker, false, 0);
  CallOnce(breaker, false, 0);
  const Breaker::Ticket probe = breaker.Admit(kSecond);
  ASSERT_NE(probe, 0);
  EXPECT_EQ(breaker.state(), Breaker::State::kHalfOpen);
  EXPECT_EQ(breaker.Admit(kSecond), 0) << "a second probe";
  EXPECT_EQ(breaker.Admit(100 * kSecond), 0) << "a second probe, while the first is out";
  breaker.Ended(probe, true, kSecond + 1);
  EXPECT_EQ(breaker.state(), Breaker::State::kClosed);
  EXPECT_TRUE(CallOnce(breaker, false, kSecond + 2)) << "failures count from nought again";
  EXPECT_EQ(breaker.state(), Breaker::State::kClosed);
}

TEST(Breaker, FailedProbesDoubleTheTimeUpToItsMost) {
  Breaker breaker(Options());
  CallOnce(breaker, false, 0);
  CallOnce(breaker, false, 0);
  int64_t now = 0;
  for (int64_t open_for : {1 * kSecond, 2 * kSecond, 4 * kSecond, 4 * kSecond}) {
    EXPECT_FALSE(CallOnce(breaker, false, now + open_for - 1)) << open_for;
    now += open_for;
    EXPECT_TRUE(CallOnce(breaker, false, now)) << open_for;
  }
  // A success begins anew: the next time is the shortest again.
  now += 4 * kSecond;
  EXPECT_TRUE(CallOnce(breaker, true, now));
  CallOnce(breaker, false, now);
  CallOnce(breaker, false, now);
  EXPECT_FALSE(CallOnce(breaker, true, now + kSecond - 1));
  EXPECT_TRUE(CallOnce(breaker, true, now + kSecond));
}

TEST(Breaker, CallsFromBeforeItOpenedChangeNothing) {
  Breaker breaker(Options());
  const Breaker::Ticket a = breaker.Admit(0), b = breaker.Admit(0), late = breaker.Admit(0);
  breaker.Ended(a, false, 0);
  breaker.Ended(b, false, 0);
  ASSERT_EQ(breaker.state(), Breaker::State::kOpen);
  breaker.Ended(late, true, 1);
  EXPECT_EQ(breaker.state(), Breaker::State::kOpen) << "an old success does not close it";
  EXPECT_EQ(breaker.pending(), 0);
}

TEST(Breaker, AnOldFailureDoesNotFailTheProbe) {
  Breaker breaker(Options());
  const Breaker::Ticket a = breaker.Admit(0), b = breaker.Admit(0), late = breaker.Admit(0);
  breaker.Ended(a, false, 0);
  breaker.Ended(b, false, 0);
  const Breaker::Ticket probe = breaker.Admit(kSecond);
  breaker.Ended(late, false, kSecond);
  EXPECT_EQ(breaker.state(), Breaker::State::kHalfOpen);
  breaker.Ended(probe, true, kSecond);
  EXPECT_EQ(breaker.state(), Breaker::State::kClosed);
}

TEST(Breaker, BoundsWhatIsInFlight) {
  Breaker breaker(Options());
  std::vector<Breaker::Ticket> tickets;
  for (int i = 0; i < 3; ++i) tickets.push_back(breaker.Admit(0));
  EXPECT_EQ(breaker.Admit(0), 0);
  EXPECT_EQ(breaker.state(), Breaker::State::kClosed) << "being full is no failure";
  breaker.Ended(tickets[0], true, 0);
  EXPECT_NE(breaker.Admit(0), 0);
}

TEST(Breaker, DisabledOnlyCounts) {
  BreakerOptions options = Options();
  options.enabled = false;
  Breaker breaker(options);
  std::vector<Breaker::Ticket> tickets;
  for (int i = 0; i < 100; ++i) {
    tickets.push_back(breaker.Admit(0));
    ASSERT_NE(tickets.back(), 0);
  }
  EXPECT_EQ(breaker.pending(), 100);
  for (Breaker::Ticket ticket : tickets) breaker.Ended(ticket, false, 0);
  EXPECT_EQ(breaker.state(), Breaker::State::kClosed);
  EXPECT_EQ(breaker.pending(), 0);
}

// Random histories keep the invariants of the header.
TEST(Breaker, InvariantsHoldInRandomHistories) {
  const uint64_t seed = std::random_device()();
  std::cout << "seed " << seed << "\n";
  std::mt19937_64 random(seed);
  for (int history = 0; history < 500; ++history) {
    Breaker breaker(Options());
    std::vector<Breaker::Ticket> out;
    Breaker::Ticket probe = 0;
    int64_t now = 0, opened_at = -1;
    for (int step = 0; step < 200; ++step) {
      now += static_cast<int64_t>(random() % (kSecond / 2));
      const Breaker::State before = breaker.state();
      if (random() % 2 == 0 || out.empty()) {
        const Breaker::Ticket ticket = breaker.Admit(now);
        if (before == Breaker::State::kHalfOpen) {
          ASSERT_EQ(ticket, 0);
        }
        if (before == Breaker::State::kOpen && now - opened_at < 1 * kSecond) {
          ASSERT_EQ(ticket, 0);
        }
        if (before == Breaker::State::kOpen && now - opened_at >= 4 * kSecond) {
          ASSERT_NE(ticket, 0);
        }
        if (ticket != 0) out.push_back(ticket);
        if (ticket != 0 && before == Breaker::State::kOpen) probe = ticket;
      } else {
        const size_t i = random() % out.size();
        const Breaker::Ticket ticket = out[i];
        out.erase(out.begin() + static_cast<int64_t>(i));
        breaker.Ended(ticket, random() % 3 == 0, now);
        if (before != Breaker::State::kClosed && ticket != probe) {
          ASSERT_EQ(breaker.state(), before);
        }
      }
      if (breaker.state() == Breaker::State::kOpen && before != Breaker::State::kOpen)
        opened_at = now;
      ASSERT_EQ(breaker.pending(), static_cast<int>(out.size()));
      ASSERT_LE(breaker.pending(), 4);  // three, and a probe beside old calls
    }
  }
}

}  // namespace
}  // namespace gaekju::runtime
