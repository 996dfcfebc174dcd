// check.cc: looks at each storefront as `gaekju check` does, one thread, and ends at the first that
// is violated.

#include <iostream>

#include "absl/strings/str_cat.h"
#include "check/explorer.h"
#include "flow/storefront.h"
#include "tests/mutants/trial.h"

int main(int argc, char** argv) {
  using namespace gaekju;
  const mutants::Trial trial = mutants::ReadTrial(argc, argv);
  for (const auto& file : trial.files) {
    // As a stored revision: the engine has to run also what new files may not say.
    const auto plan = flow::ParseStorefront(file.text, "");
    if (!plan.ok()) {
      std::cerr << file.name << ": " << plan.status().message() << std::endl;
      return mutants::kWrongCall;
    }
    mutants::Say({{"file", file.name}});
    check::Bounds bounds;
    bounds.fault_count_max = 1;  // no long search for the best story
    check::Budget budget;
    budget.thread_count = 1;
    budget.seconds_max = trial.seconds_max;
    budget.bytes_max = int64_t{2} << 30;
    const auto report = check::Explore(*plan, bounds, budget);
    if (!report.ok()) {
      std::cerr << file.name << ": " << report.status().message() << std::endl;
      return mutants::kWrongCall;
    }
    const char* const verdicts[] = {"proved", "violated", "unfinished"};
    mutants::Say({{"file", file.name},
                  {"verdict", verdicts[static_cast<int>(report->verdict)]},
                  {"hazard", report->hazard},
                  {"sentence", report->sentence},
                  {"states", absl::StrCat(report->state_count)},
                  {"seconds", absl::StrCat(report->seconds)}});
    if (report->verdict == check::Verdict::kViolated) {
      // The story, for whoever runs this by hand.
      for (const std::string& line : report->trace) std::cerr << "  " << line << "\n";
      return mutants::kViolated;
    }
  }
  return mutants::kNothing;
}
