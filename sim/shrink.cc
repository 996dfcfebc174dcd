#include <algorithm>
#include <vector>

#include "sim/simulator.h"

namespace gaekju::sim {
namespace {

// The smallest part of `all` that `fails` still says yes to, as far as taking parts out, ever
// smaller ones, finds it. REQUIRES: fails(all).
template <class T>
std::vector<T> Least(std::vector<T> all, const std::function<bool(const std::vector<T>&)>& fails) {
  if (!all.empty() && fails({})) return {};
  for (size_t part = (all.size() + 1) / 2; part > 0; part = part == 1 ? 0 : (part + 1) / 2) {
    for (size_t begin = 0; begin < all.size();) {
      std::vector<T> fewer(all.begin(), all.begin() + static_cast<ptrdiff_t>(begin));
      fewer.insert(fewer.end(),
                   all.begin() + static_cast<ptrdiff_t>(std::min(begin + part, all.size())),
                   all.end());
      if (fewer.size() < all.size() && fails(fewer)) {
        all = std::move(fewer);
      } else {
        begin += part;
      }
    }
  }
  return all;
}

}  // namespace

Settings Shrink(Settings settings, const Outcome& first,
                const std::function<Outcome(const Settings&)>& run) {
  settings.tell = nullptr;
  std::vector<uint32_t> struck;
  auto keep = [&](const Outcome& outcome) {
    struck.clear();
    for (const FaultRecord& fault : outcome.faults) struck.push_back(fault.id);
    std::sort(struck.begin(), struck.end());
    struck.erase(std::unique(struck.begin(), struck.end()), struck.end());
  };
  keep(first);
  std::vector<int> orders = first.orders;
  // Twice: with fewer faults, fewer orders may do, and the other way round.
  for (int round = 0; round < 2; ++round) {
    orders = Least<int>(orders, [&](const std::vector<int>& fewer) {
      if (fewer.empty()) return false;
      Settings smaller = settings;
      smaller.only_orders.emplace(fewer.begin(), fewer.end());
      const Outcome outcome = run(smaller);
      if (outcome.violations.empty()) return false;
      keep(outcome);
      return true;
    });
    settings.only_orders.emplace(orders.begin(), orders.end());
    struck = Least<uint32_t>(struck, [&](const std::vector<uint32_t>& fewer) {
      Settings smaller = settings;
      smaller.only_faults.emplace(fewer.begin(), fewer.end());
      return !run(smaller).violations.empty();
    });
    settings.only_faults.emplace(struck.begin(), struck.end());
  }
  return settings;
}

}  // namespace gaekju::sim
