// explorer.h: proves a storefront before it opens. Explores every life that one order can have
// under its place and cancel flows, over the production saga and deciders, and says that no way of
// messages, crashes, refusals and people breaks it, or tells the shortest story of one that does.
//
//   absl::StatusOr<Report> report = Explore(plan, Bounds(), Budget());
//   if (report->verdict == Verdict::kViolated) for (const std::string& line : report->trace) …
//
// What may happen, in any order: any message in flight is taken; a message is taken twice; one is
// lost; a call finds nobody, and yet arrives, then or later; the order process dies with its calls
// under way; the bus's whole store is wiped; any task that waits is asked for again; a step is
// refused; the buyer cancels, also twice, or asks again; people answer, or never do.
//
// What must hold:
//  1. In every state, the ledger sums to zero, and stock is neither made nor lost.
//  2. In every state, nothing is shipped before the storefront's payment.
//  3. A rejected or cancelled order holds nothing once nothing is in flight: no step done or
//  waiting and not taken back.
//  4. A completed order then holds exactly the steps of its place flow.
//  5. No caller waits for an order that has ended.
//  6. From every state, the order can still end once nothing more goes wrong, even if all that is
//  under way is lost; and no answer sets it going again once it has ended.
//
// Two ways of looking. First with any number of faults: a message that was sent can be taken from
// then on any number of times, or never, and nothing is counted; what holds so holds whatever goes
// wrong, and the states are few. Only where that finds something, or where asked (Bounds::counted),
// each fault is a move of its own, and counted: a counterexample then is one that can really happen
// so, with as few faults as possible, and as short as possible. README.md argues why.
//
// Deterministic: the same verdict, numbers and counterexample whatever the number of threads.
#ifndef GAEKJU_CHECK_EXPLORER_H_
#define GAEKJU_CHECK_EXPLORER_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "flow/plan.h"
#include "flow/turn.h"

namespace gaekju::check {

// How much may go wrong in one order's life.
struct Bounds {
  // Nothing that goes wrong with messages is counted, and the next six only bound the search for
  // the story of a violation; or: they bound everything, and the proof is one within them.
  bool counted = false;
  int fault_count_max = 3;      // of all kinds together
  int duplicate_count_max = 2;  // messages taken twice, or asked again while the first is under way
  int loss_count_max = 2;       // messages lost
  int unreachable_count_max = 2;  // calls that find nobody; whether they arrive later is free
  int crash_count_max = 3;        // of the order process, with its calls under way
  int wipe_count_max = 1;         // of the bus

  int refusal_count_max = 15;  // steps that a context refuses; each then refuses always
  int cancel_count_max = 2;    // of the buyer
  // Counted: a task may be asked again at any time, also while its message or answer is under way,
  // and that is no duplicate. Hundreds of times as many states; without it, what is asked too early
  // is among the duplicates.
  bool asks_early_freely = false;
};

// What an exploration may cost. Over it, the verdict is kUnfinished.
struct Budget {
  double seconds_max = 0;  // 0: as long as it takes
  int64_t state_count_max = 1'000'000'000;
  int64_t bytes_max = int64_t{16} << 30;
  int thread_count = 0;  // 0: as many as there are cores
};

enum class Verdict {
  kProved,      // within the bounds
  kViolated,    // `trace` shows how
  kUnfinished,  // nothing found in the budget; not a proof
};

struct Report {
  Verdict verdict = Verdict::kUnfinished;
  // Whether faults were counted: else a proof is one for any number of them.
  bool counted = false;
  // Of kUnfinished: what ran out.
  std::string ran_out;
  // Of a violation: its name ("empty compensation"), a sentence, the moves that lead to it, and
  // what is held at their end.
  std::string hazard;
  std::string sentence;
  std::vector<std::string> trace;
  std::vector<std::string> held;
  std::vector<std::string> moves;  // the trace, as Replay takes it

  int64_t state_count = 0;
  int64_t transition_count = 0;  // without those that change nothing
  int64_t ended_count = 0;       // states in which the order has ended (counted: and nothing is in
                                 // flight)
  int64_t turn_count = 0;        // how often a handler ran
  int depth = 0;                 // moves of the longest shortest path
  int64_t bytes = 0;             // what it took
  double seconds = 0;
  int thread_count = 0;
};

// Explores. `progress`, when not null, is told now and then, from the calling thread. `contexts`
// stand in for the linked-in ones of the same names (tests break them on purpose); they outlive the
// call. Errors: FAILED_PRECONDITION when the plan calls a context whose deciders are not linked in,
// or has too many steps to explore; INVALID_ARGUMENT when a bound is larger than can be counted.
absl::StatusOr<Report> Explore(const flow::Plan& plan, const Bounds& bounds,
                               const Budget& budget = {},
                               const std::function<void(const Report& so_far)>& progress = nullptr,
                               const std::vector<const flow::Context*>& contexts = {});

struct Replayed {
  // The first move that cannot happen any more, from 0; -1: all did.
  int differs_at = -1;
  std::vector<std::string> instead;  // what can happen there, as in Report::moves
  std::string hazard;                // at the end; empty: nothing is violated
  std::string sentence;
  std::vector<std::string> trace;  // as far as it went
  std::vector<std::string> held;
};

// Takes the moves of an earlier report again, one by one, under this plan and this program.
// `counted` as in that report. Errors: as Explore.
absl::StatusOr<Replayed> Replay(const flow::Plan& plan, const std::vector<std::string>& moves,
                                bool counted,
                                const std::vector<const flow::Context*>& contexts = {});

}  // namespace gaekju::check

#endif  // GAEKJU_CHECK_EXPLORER_H_
