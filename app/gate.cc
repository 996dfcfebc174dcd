#include "app/gate.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "check/explorer.h"
#include "runtime/log.h"
#include "services/order/order_service.h"

ABSL_FLAG(double, check_seconds, 5,
          "how long the proof of a storefront that was not seen before may take, before it opens; "
          "0: storefronts open unproved");
ABSL_FLAG(bool, open_unproved, false,
          "open storefronts even when the proof finds a way to break them. Orders will break");

namespace gaekju::app {
namespace {

using order::Verdict;
using Kind = order::Verdict::Kind;

// Grows when the checker finds more than before, or what it explores decides otherwise: texts that
// were proved are proved again.
constexpr int kCheckerVersion = 3;
constexpr int64_t kMemory_max = int64_t{1} << 30;
// Proofs are patient: whoever serves beside goes first.
constexpr int kNiceness = 10;

std::string KeyOf(const flow::Plan& plan) {
  return order::RevisionKey(plan.storefront, plan.revision);
}

int64_t BudgetMs(const GateOptions& options) {
  return static_cast<int64_t>(options.seconds * 1000);
}

std::string Story(const flow::Plan& plan, const check::Report& report) {
  std::vector<std::string> lines = {
      absl::StrCat(plan.storefront, ".textproto: ", report.hazard, ": ", report.sentence)};
  int number = 0;
  for (const std::string& line : report.trace)
    lines.push_back(absl::StrFormat("%2d. %s", ++number, line));
  for (const std::string& line : report.held) lines.push_back(absl::StrCat("at the end: ", line));
  return absl::StrJoin(lines, "\n");
}

}  // namespace

absl::StatusOr<GateOptions> GateOptionsFromFlags(const runtime::PgOptions& pg) {
  const double seconds = absl::GetFlag(FLAGS_check_seconds);
  if (!(seconds >= 0 && seconds <= 3600)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--check_seconds=", seconds, " has to be from 0 to 3600"));
  }
  return GateOptions{
      .pg = pg, .seconds = seconds, .open_unproved = absl::GetFlag(FLAGS_open_unproved)};
}

Gate::Gate(GateOptions options) : options_(std::move(options)), worker_([this] { Work(); }) {}

Gate::~Gate() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  worker_.join();
}

absl::Status Gate::Admit(const flow::Plan& plan) {
  const std::string key = KeyOf(plan);
  std::optional<Verdict> verdict;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (const auto asked = asked_.find(key); asked != asked_.end()) {
      if (!asked->second.verdict.has_value()) return absl::UnavailableError("is being proved");
      verdict = asked->second.verdict;
      asked_.erase(asked);
    }
  }
  if (!verdict.has_value()) {
    absl::StatusOr<std::optional<Verdict>> known = Known(plan);
    if (!known.ok()) return absl::UnavailableError(known.status().message());
    verdict = *std::move(known);
  }
  if (!verdict.has_value()) {
    runtime::LogInfo("proving a storefront before it opens",
                     {{"storefront", plan.storefront}, {"revision", plan.revision}});
    Enqueue(key, plan, /*reviewed=*/false);
    return absl::UnavailableError("is being proved");
  }
  return Decide(plan, *verdict);
}

void Gate::Review(const flow::Plan& plan) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (open_.count(plan.storefront) != 0) return;  // it opened in this process
  }
  const absl::StatusOr<std::optional<Verdict>> known = Known(plan);
  if (known.ok() && known->has_value()) {
    TellOpen(plan, **known, /*reviewed=*/true);
  } else {
    Enqueue(KeyOf(plan), plan, /*reviewed=*/true);
  }
}

void Gate::Observe(runtime::Metrics& metrics) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [storefront, open] : open_) {
    metrics
        .GetGauge("storefront_unproved",
                  "1: the storefront opened without a proof. 0: it is proved.",
                  {{"storefront", storefront}})
        .Set(open.proved ? 0 : 1);
  }
  runtime::Counter& proofs = metrics.GetCounter(
      "storefront_proofs_total", "Proofs of storefronts that this process has tried.");
  proofs.Add(proof_count_ - proofs.value());
}

// Of an earlier checker nothing is known, and of a shorter time nothing that is not proved.
absl::StatusOr<std::optional<Verdict>> Gate::Known(const flow::Plan& plan) const {
  if (options_.seconds == 0) {
    return std::optional<Verdict>({.kind = Kind::kUnproved, .told = "--check_seconds=0"});
  }
  auto known = order::FindVerdict(options_.pg, plan.storefront, plan.revision);
  if (!known.ok() || !known->has_value()) return known;
  const Verdict& verdict = **known;
  if (verdict.checker_version != kCheckerVersion ||
      (verdict.kind == Kind::kUnproved && verdict.budget_ms < BudgetMs(options_))) {
    return std::optional<Verdict>();
  }
  return known;
}

Verdict Gate::Prove(const flow::Plan& plan) const {
  Verdict verdict{
      .kind = Kind::kUnproved, .checker_version = kCheckerVersion, .budget_ms = BudgetMs(options_)};
  const absl::StatusOr<check::Report> report = check::Explore(
      plan, check::Bounds(),
      check::Budget{.seconds_max = options_.seconds, .bytes_max = kMemory_max, .thread_count = 1});
  if (!report.ok()) {
    verdict.told = std::string(report.status().message());
    return verdict;
  }
  switch (report->verdict) {
    case check::Verdict::kProved:
      verdict.kind = Kind::kProved;
      runtime::LogInfo("storefront proved", {{"storefront", plan.storefront},
                                             {"revision", plan.revision},
                                             {"states", report->state_count},
                                             {"seconds", report->seconds}});
      break;
    case check::Verdict::kViolated:
      verdict.kind = Kind::kViolated;
      verdict.told = Story(plan, *report);
      break;
    case check::Verdict::kUnfinished:
      verdict.told = absl::StrFormat(
          "not proved within %g s: nothing found in the first %d states; prove it with "
          "`gaekju check`, or give it longer with --check_seconds",
          options_.seconds, report->state_count);
      break;
  }
  return verdict;
}

absl::Status Gate::Decide(const flow::Plan& plan, const Verdict& verdict) {
  if (verdict.kind == Kind::kViolated && !options_.open_unproved) {
    return absl::FailedPreconditionError(verdict.told);
  }
  TellOpen(plan, verdict, /*reviewed=*/false);
  return absl::OkStatus();
}

void Gate::TellOpen(const flow::Plan& plan, const Verdict& verdict, bool reviewed) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    Open& open = open_[plan.storefront];
    // Another text has opened while this one was looked at.
    if (reviewed && !open.revision.empty() && open.revision != plan.revision) return;
    open = {.revision = plan.revision, .proved = verdict.kind == Kind::kProved};
  }
  if (verdict.kind == Kind::kUnproved) {
    runtime::LogWarning(
        "storefront is open without a proof",
        {{"storefront", plan.storefront}, {"revision", plan.revision}, {"reason", verdict.told}});
  } else if (verdict.kind == Kind::kViolated) {
    runtime::LogError(
        "storefront is open although it is violated: its orders will break",
        {{"storefront", plan.storefront}, {"revision", plan.revision}, {"reason", verdict.told}});
  }
}

void Gate::Enqueue(const std::string& key, const flow::Plan& plan, bool reviewed) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!asked_.try_emplace(key, Asked{.plan = plan, .reviewed = reviewed, .verdict = {}}).second)
      return;
    queue_.push_back(key);
  }
  changed_.notify_all();
}

void Gate::Work() {
  // Of this thread alone, on Linux.
  setpriority(PRIO_PROCESS, static_cast<id_t>(syscall(SYS_gettid)), kNiceness);
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (stop_) return;
    const std::string key = queue_.front();
    queue_.pop_front();
    const flow::Plan plan = asked_.at(key).plan;
    ++proof_count_;
    lock.unlock();
    const Verdict verdict = Prove(plan);
    if (absl::Status kept =
            order::KeepVerdict(options_.pg, plan.storefront, plan.revision, verdict);
        !kept.ok()) {
      runtime::LogWarning(
          "what was found about a storefront could not be kept; proved again at "
          "the next start",
          {{"storefront", plan.storefront}, {"error", kept.message()}});
    }
    lock.lock();
    Asked& asked = asked_.at(key);
    asked.verdict = verdict;
    if (!asked.reviewed) continue;  // Admit() takes it
    asked_.erase(key);
    lock.unlock();
    TellOpen(plan, verdict, /*reviewed=*/true);
    lock.lock();
  }
}

}  // namespace gaekju::app
