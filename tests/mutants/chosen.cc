// Which seeded defect a program of ./dev mutants has: what the environment says. In no other build.

#include <cstdlib>
#include <iostream>
#include <string>

#include "flow/mutant.h"

namespace gaekju::flow {
namespace {

Mutant Choose() {
  const char* name = std::getenv("GAEKJU_MUTANT");
  if (name == nullptr || *name == '\0') return Mutant::kNone;
#define GK_DEFECT(defect, sentence) \
  if (std::string(name) == #defect) return Mutant::defect;
#include "flow/mutants.inc"
#undef GK_DEFECT
  std::cerr << "GAEKJU_MUTANT: there is no seeded defect \"" << name << "\"" << std::endl;
  std::exit(2);
}

}  // namespace

const Mutant chosen_mutant = Choose();

}  // namespace gaekju::flow
