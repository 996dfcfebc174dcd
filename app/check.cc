// check.cc: `gaekju check`: proves storefronts, or tells the shortest way to break them.

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <sstream>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "app/command.h"
#include "app/contracts.h"
#include "check/explorer.h"
#include "flow/storefront.h"

ABSL_FLAG(int, faults, 2, "how many things go wrong in one order's life, of all kinds together");
ABSL_FLAG(int, refusals, 1, "how many steps are refused");
ABSL_FLAG(int, cancels, 2, "how often the buyer cancels");
ABSL_FLAG(int64_t, states_max, 20'000'000, "give up, without a proof, after this many states");

namespace gaekju::app {
namespace {

constexpr int kProved = 0, kViolated = 1, kInvalid = 2;

check::Bounds BoundsFromFlags() {
  check::Bounds bounds;
  bounds.fault_count_max = absl::GetFlag(FLAGS_faults);
  bounds.duplicate_count_max = std::min(bounds.fault_count_max, 2);
  bounds.loss_count_max = bounds.unreachable_count_max = bounds.fault_count_max;
  bounds.crash_count_max = std::min(bounds.fault_count_max, 3);
  bounds.refusal_count_max = absl::GetFlag(FLAGS_refusals);
  bounds.cancel_count_max = absl::GetFlag(FLAGS_cancels);
  bounds.state_count_max = absl::GetFlag(FLAGS_states_max);
  return bounds;
}

int CheckFile(const std::string& name, const check::Bounds& bounds) {
  std::ifstream file(name);
  std::stringstream text;
  text << file.rdbuf();
  if (!file.good()) return Fail("check", absl::StrCat("cannot read ", name), kInvalid);
  const auto contracts = ContractsFromFlag();
  if (!contracts.ok()) return Fail("check", contracts.status().message(), kInvalid);
  const auto plan = flow::ParseStorefront(text.str(), name, **contracts);
  if (!plan.ok()) {
    std::cerr << plan.status().message() << "\n";
    return kInvalid;
  }
  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [&start] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  const auto report = check::Explore(*plan, bounds, [&](const check::Report& so_far) {
    if (so_far.state_count < 2) return;
    std::cerr << absl::StrFormat("%s: %d states, %.0f states/s\n", name, so_far.state_count,
                                 so_far.state_count / std::max(seconds(), 1e-6));
  });
  if (!report.ok())
    return Fail("check", absl::StrCat(name, ": ", report.status().message()), kInvalid);
  const double took = seconds();
  const std::string size = absl::StrFormat(
      "%d states, %d transitions, depth %d, %.2f s, %.0f states/s", report->state_count,
      report->transition_count, report->depth, took, report->state_count / std::max(took, 1e-6));
  switch (report->verdict) {
    case check::Verdict::kProved:
      std::cout << absl::StrFormat(
          "%s: proved with up to %d faults, %d refusals and %d cancels: %s\n", name,
          bounds.fault_count_max, bounds.refusal_count_max, bounds.cancel_count_max, size);
      return kProved;
    case check::Verdict::kUnfinished:
      std::cout << name
                << ": not proved: nothing found, but there are more states than --states-max: "
                << size << "\n";
      return kViolated;
    case check::Verdict::kViolated:
      break;
  }
  std::cout << name << ": " << report->hazard << ": " << report->sentence << "\n";
  int number = 0;
  for (const std::string& line : report->trace)
    std::cout << absl::StrFormat("%4d. %s\n", ++number, line);
  if (!report->held.empty()) std::cout << "At the end:\n";
  for (const std::string& line : report->held) std::cout << "      " << line << "\n";
  std::cout << "(" << size << ")\n";
  return kViolated;
}

int RunCheck(const std::vector<std::string>& files) {
  if (files.empty()) return Fail("check", "names no file; see gaekju check --help", kInvalid);
  const check::Bounds bounds = BoundsFromFlags();
  int worst = kProved;
  for (const std::string& file : files) worst = std::max(worst, CheckFile(file, bounds));
  return worst;
}

}  // namespace

Command CheckCommand() {
  return {.name = "check",
          .summary = "prove storefronts, or tell the shortest way to break them",
          .usage =
              "Usage: gaekju check FILE... [--faults=2] [--refusals=1] [--cancels=2]\n"
              "\n"
              "Runs every life that one order can have under the storefront's flows: messages in "
              "any order, twice, lost,\n"
              "calls that are given up and arrive later, a crash, a wiped bus, refusals, and a "
              "buyer who cancels at any\n"
              "time. Exit code 0: proved within these bounds. 1: violated (the shortest trace is "
              "printed), or too many\n"
              "states. 2: not a storefront, or one that calls a context of --contracts, whose "
              "decisions are not in this program.\n",
          .flags = {"contracts", "faults", "refusals", "cancels", "states_max"},
          .run = RunCheck};
}

}  // namespace gaekju::app
