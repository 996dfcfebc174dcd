// simulate.cc: runs the storefronts together, as `gaekju simulate` does, seed by seed, and ends at
// the first that is violated.

#include <chrono>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "sim/simulator.h"
#include "tests/mutants/trial.h"

int main(int argc, char** argv) {
  using namespace gaekju;
  const mutants::Trial trial = mutants::ReadTrial(argc, argv);
  std::vector<sim::Shops::File> files;
  for (const auto& file : trial.files) files.push_back({file.name, file.text});
  const auto shops = sim::Shops::Parse(files);
  if (!shops.ok()) {
    std::cerr << shops.status().message() << std::endl;
    return mutants::kWrongCall;
  }
  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [&start] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  for (int64_t seed = trial.first_seed; seed <= trial.last_seed; ++seed) {
    if (trial.seconds_max > 0 && seconds() > trial.seconds_max) break;
    mutants::Say({{"seed", absl::StrCat(seed)}});
    sim::Settings settings;
    settings.seed = static_cast<uint64_t>(seed);
    const sim::Outcome outcome = sim::Simulate(*shops, settings);
    if (outcome.violations.empty()) continue;
    mutants::Say({{"seed", absl::StrCat(seed)},
                  {"verdict", "violated"},
                  {"sentence", outcome.violations[0]},
                  {"seconds", absl::StrCat(seconds())}});
    return mutants::kViolated;
  }
  return mutants::kNothing;
}
