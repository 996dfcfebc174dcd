// dice.h: all the chance there is in a simulation. What is drawn depends on the seed and on what it
// is drawn for (which order's which message, for the how-manyth time), never on what else happens:
// so taking an order or a fault out of a run leaves the luck of all others as it was, and a failing
// run can be made smaller.
//
//   Dice dice(seed);
//   int64_t delay_us = dice.Between("latency", key, 200, 2000);
//
// Pure. Belongs to one thread.
#ifndef GAEKJU_SIM_DICE_H_
#define GAEKJU_SIM_DICE_H_

#include <cstdint>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "flow/turn.h"

namespace gaekju::sim {

// SplitMix64's finalizer: every bit of the result depends on every bit of `x`.
constexpr uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
constexpr uint64_t Mix(uint64_t a, uint64_t b) { return Mix(a ^ Mix(b)); }
inline uint64_t HashOf(absl::string_view text) { return flow::FingerprintBytes(text); }

class Dice {
 public:
  explicit Dice(uint64_t seed) : seed_(seed) {}

  // 64 bits for the next time that `what` is drawn for `key`.
  uint64_t Draw(absl::string_view what, uint64_t key) {
    const uint64_t purpose = Mix(HashOf(what), key);
    return Mix(Mix(seed_, purpose), ++times_[purpose]);
  }
  // Both included.
  int64_t Between(absl::string_view what, uint64_t key, int64_t low, int64_t high) {
    return low + static_cast<int64_t>(Draw(what, key) % static_cast<uint64_t>(high - low + 1));
  }
  // From `low` to `high`, each order of magnitude as likely. REQUIRES: low > 0.
  int64_t Spread(absl::string_view what, uint64_t key, int64_t low, int64_t high) {
    int64_t top = low;
    for (uint64_t times = Draw(what, key) % 24; times > 0 && top < high; --times)
      top += top / 2 + 1;
    if (top > high) top = high;
    return Between(what, key, low, top);
  }
  bool Chance(absl::string_view what, uint64_t key, double probability) {
    return static_cast<double>(Draw(what, key) >> 11) * 0x1p-53 < probability;
  }

 private:
  const uint64_t seed_;
  absl::flat_hash_map<uint64_t, uint32_t> times_;
};

}  // namespace gaekju::sim

#endif  // GAEKJU_SIM_DICE_H_
