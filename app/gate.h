// gate.h: no storefront opens before it is proved. Asked by the order context's book
// (services/order/order_service.h) before it opens a text; proves in a thread of its own, one text
// after the other, and keeps what it found in the order context's database.
//
//   Gate gate({.pg = pg, .seconds = 5});
//   options.admit = [&gate](const flow::Plan& plan) { return gate.Admit(plan); };
//
// A text that is proved opens. One that is violated does not, and its mistakes are the story of the
// shortest way to break it. One that is neither (the time ran out, or it calls a context whose
// decisions are not in this program) opens, and everybody is told. docs/adr/0060 says why.
#ifndef GAEKJU_APP_GATE_H_
#define GAEKJU_APP_GATE_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "flow/plan.h"
#include "runtime/metrics.h"
#include "runtime/pg.h"
#include "services/order/verdict.h"

namespace gaekju::app {

struct GateOptions {
  runtime::PgOptions pg;
  double seconds = 5;          // that one proof may take; 0: nothing is proved
  bool open_unproved = false;  // also what is violated
};

// The options of --check_seconds and --open_unproved. Errors: INVALID_ARGUMENT.
absl::StatusOr<GateOptions> GateOptionsFromFlags(const runtime::PgOptions& pg);

// Thread-safe.
class Gate {
 public:
  explicit Gate(GateOptions options);
  // Waits for the proof under way.
  ~Gate();
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  // As StorefrontBookOptions::admit: UNAVAILABLE while the text is being proved;
  // FAILED_PRECONDITION when it is violated.
  absl::Status Admit(const flow::Plan& plan);
  // Of a text that is open already, since an earlier process: it stays open whatever is found. One
  // that this checker has not seen is proved beside; what is not proved is told.
  void Review(const flow::Plan& plan);
  void Observe(runtime::Metrics& metrics);

 private:
  struct Asked {
    flow::Plan plan;
    bool reviewed = false;  // it is open
    std::optional<order::Verdict> verdict;
  };
  struct Open {
    std::string revision;
    bool proved = false;
  };
  // What is known of the text; nothing when it has to be proved.
  absl::StatusOr<std::optional<order::Verdict>> Known(const flow::Plan& plan) const;
  order::Verdict Prove(const flow::Plan& plan) const;
  absl::Status Decide(const flow::Plan& plan, const order::Verdict& verdict);
  void TellOpen(const flow::Plan& plan, const order::Verdict& verdict, bool reviewed);
  void Enqueue(const std::string& key, const flow::Plan& plan, bool reviewed);
  void Work();

  const GateOptions options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false;                   // guarded by mutex_, as all below
  std::map<std::string, Asked> asked_;  // by revision key, until the answer is taken
  std::deque<std::string> queue_;       // keys of asked_
  std::map<std::string, Open> open_;    // by storefront
  int64_t proof_count_ = 0;
  std::thread worker_;
};

}  // namespace gaekju::app

#endif  // GAEKJU_APP_GATE_H_
