// property.h: seeds for tests with random sequences, printed so that a failure can be run again.
//
//   for (uint64_t seed : testing::Seeds(200)) {
//     SCOPED_TRACE(testing::Replay(seed));
//     std::mt19937_64 random(seed);
//     …
//   }
#ifndef GAEKJU_SERVICES_TESTING_PROPERTY_H_
#define GAEKJU_SERVICES_TESTING_PROPERTY_H_

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <random>
#include <string>
#include <vector>

namespace gaekju::testing {

// `count` seeds that no run has seen before; or only the one in the environment's GAEKJU_SEED.
inline std::vector<uint64_t> Seeds(int count) {
  if (const char* seed = std::getenv("GAEKJU_SEED")) return {std::strtoull(seed, nullptr, 10)};
  const uint64_t first = std::random_device()();
  std::cout << "[ seeds    ] " << first << " to " << first + count - 1 << "\n";
  std::vector<uint64_t> seeds;
  for (int i = 0; i < count; ++i) seeds.push_back(first + i);
  return seeds;
}

inline std::string Replay(uint64_t seed) {
  return "replay with GAEKJU_SEED=" + std::to_string(seed);
}

// A number from 0 to `count` - 1. The same on every machine, unlike std::uniform_int_distribution.
inline int Pick(std::mt19937_64& random, int count) { return static_cast<int>(random() % count); }

}  // namespace gaekju::testing

#endif  // GAEKJU_SERVICES_TESTING_PROPERTY_H_
