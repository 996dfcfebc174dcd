#include "flow/mutant.h"

namespace gaekju::flow {

Mutant chosen_mutant = Mutant::kNone;

bool ChooseMutant(absl::string_view name) {
#define GK_DEFECT(defect, sentence) \
  if (name == #defect) {            \
    chosen_mutant = Mutant::defect; \
    return true;                    \
  }
#include "flow/mutants.inc"
#undef GK_DEFECT
  return false;
}

}  // namespace gaekju::flow
