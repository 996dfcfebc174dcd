// mutant.h: seeded defects. A line of the engine or of a decider says where it could be wrong:
//
//   if (turn.Has(key) && !GK_MUTANT(step_not_remembered)) return before;
//
// In the preset `mutants` one of them is chosen at run time, by the environment's GAEKJU_MUTANT,
// and `gaekju check`, the simulator or a test of the shell has to notice (`./dev mutants`). In
// every other build GK_MUTANT is the constant false, and no program has anything of this in it.
// What each name means stands in flow/mutants.inc.
#ifndef GAEKJU_FLOW_MUTANT_H_
#define GAEKJU_FLOW_MUTANT_H_

#ifndef GAEKJU_MUTANTS
#define GK_MUTANT(name) false
#else

#define GK_MUTANT(name) (::gaekju::flow::chosen_mutant == ::gaekju::flow::Mutant::name)

namespace gaekju::flow {

enum class Mutant {
#define GK_DEFECT(name, sentence) name,
#include "flow/mutants.inc"
#undef GK_DEFECT
  kNone
};

// Chosen before main; a name that is none ends the program with exit code 2.
extern const Mutant chosen_mutant;

}  // namespace gaekju::flow

#endif
#endif  // GAEKJU_FLOW_MUTANT_H_
