// trial.h: what the programs of ./dev mutants share. Each takes files of storefronts, with one
// seeded defect in the engine, and says whether it noticed:
//
//   GAEKJU_MUTANT=refund_of_zero build/mutants/tests/mutants/mutants_check storefronts/*.textproto
//
// Exit codes: 0: noticed, or nothing to notice; 1: there is a violation; 2: a wrong call. A program
// that aborts has noticed too: by its own checks.
#ifndef GAEKJU_TESTS_MUTANTS_TRIAL_H_
#define GAEKJU_TESTS_MUTANTS_TRIAL_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace gaekju::mutants {

inline constexpr int kNothing = 0, kViolated = 1, kWrongCall = 2;

struct Trial {
  double seconds_max = 0;                 // --seconds=N
  int64_t first_seed = 1, last_seed = 0;  // --seeds=A-B
  struct File {
    std::string name;
    std::string text;
  };
  std::vector<File> files;
};

// Reads the command line and the files. Ends the program with kWrongCall when it cannot.
Trial ReadTrial(int argc, char** argv);

// One line on the standard output: {"file": …, key: value, …}. Written at once.
void Say(const std::vector<std::pair<std::string, std::string>>& fields);

}  // namespace gaekju::mutants

#endif  // GAEKJU_TESTS_MUTANTS_TRIAL_H_
