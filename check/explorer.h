// explorer.h: proves a storefront before it opens. Explores every life that one order can have
// under its place and cancel flows, over the production saga and deciders, within bounds on what
// goes wrong.
//
//   absl::StatusOr<Report> report = Explore(plan, Bounds());
//   if (report->verdict == Verdict::kViolated) for (const std::string& line : report->trace) …
//
// What may happen, in any order: any message in flight is taken; a message is taken twice; one is
// lost; a call finds nobody, and yet arrives, then or later; the order process dies with its calls
// under way; the bus's whole store is wiped; any task that waits is asked for again; a step is
// refused; the buyer cancels, also twice; people answer.
//
// What must hold:
//  1. In every state, the ledger sums to zero, and stock is neither made nor lost.
//  2. In every state, nothing is shipped before the storefront's payment.
//  3. A rejected or cancelled order holds nothing once nothing is in flight: no step done or
//  waiting and not taken back.
//  4. A completed order then holds exactly the steps of its place flow.
//  5. No caller waits for an order that has ended.
//  6. From every state, the order can still end once nothing more goes wrong.
//
// How: a context's rows are serialized and interned, so that a state of the world is 32 bytes of
// small numbers, and a handler runs once for each (rows of its context, message). Time stands
// still: retry and expiry times are there or not, and attempts are not counted (see NormalizeOrder
// in explorer.cc), which makes the space finite. Messages in flight are a set; a second copy is a
// message that stays when it is taken, and a task that is asked again too early counts as one.
// Searched breadth first, so a counterexample is a shortest one.
//
// Pure, and deterministic. One thread.
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

// How much may go wrong in one order's life. Small bounds find most mistakes: each is the work of
// one or two faults.
struct Bounds {
  int fault_count_max = 2;      // of all kinds together
  int duplicate_count_max = 1;  // messages taken twice, or asked again while the first is under way
  int loss_count_max = 1;       // messages lost
  int unreachable_count_max = 1;  // calls that find nobody; whether they arrive later is free
  int crash_count_max = 1;        // of the order process, with its calls under way
  int wipe_count_max = 1;         // of the bus
  int refusal_count_max = 1;      // steps that a context refuses; each then refuses always
  int cancel_count_max = 2;       // of the buyer
  // A task may be asked again at any time, also while its message or answer is under way, and that
  // is no duplicate. Hundreds of times as many states; without it, what is asked too early is among
  // the duplicates.
  bool asks_early_freely = false;
  int64_t state_count_max =
      20'000'000;  // then the verdict is kUnfinished; a state costs some 100 bytes
};

enum class Verdict {
  kProved,      // within the bounds
  kViolated,    // `trace` shows how
  kUnfinished,  // nothing found in state_count_max states; not a proof
};

struct Report {
  Verdict verdict = Verdict::kUnfinished;
  // Of a violation: its name ("empty compensation"), a sentence, the moves that lead to it, and
  // what is held at their end.
  std::string hazard;
  std::string sentence;
  std::vector<std::string> trace;
  std::vector<std::string> held;

  int64_t state_count = 0;
  int64_t transition_count = 0;  // without those that change nothing
  int64_t ended_count = 0;       // states in which the order has ended and nothing is in flight
  int64_t turn_count = 0;        // how often a handler ran
  int depth = 0;                 // moves of the longest shortest path
};

// Explores. `progress`, when not null, is told now and then. `contexts` stand in for the linked-in
// ones of the same names (tests break them on purpose); they outlive the call. Errors:
// FAILED_PRECONDITION when the plan calls a context whose deciders are not linked in, or has too
// many steps to explore.
absl::StatusOr<Report> Explore(const flow::Plan& plan, const Bounds& bounds,
                               const std::function<void(const Report& so_far)>& progress = nullptr,
                               const std::vector<const flow::Context*>& contexts = {});

}  // namespace gaekju::check

#endif  // GAEKJU_CHECK_EXPLORER_H_
