// simulator.h: a day at the shops in virtual time: many orders of many buyers, every context with
// its turns, outbox, relay, bus, calls and database, and everything that can go wrong between them,
// drawn from a seed. What decides is production's: the deciders, the saga, the turns
// (flow/turn_run.h), the CloudEvents, the circuit breaker, what tells a bus's loss. What it stands
// on is modelled; README.md says how.
//
//   absl::StatusOr<Shops> shops = Shops::Parse({{"fashion.textproto", text}});
//   Outcome outcome = Simulate(*shops, {.seed = 7});
//   for (const std::string& violation : outcome.violations) …
//
// The same shops and settings give the same outcome, trace_hash and story, in any process.
//
// Pure. One simulation belongs to one thread; Shops are never changed and may be shared.
#ifndef GAEKJU_SIM_SIMULATOR_H_
#define GAEKJU_SIM_SIMULATOR_H_

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "flow/plan.h"

namespace gaekju::sim {

// What may go wrong. Each seed draws which of them do, and how often.
enum class Fault {
  kLose,       // a command, an answer or one delivery of an event is lost; a publish is; an ack is
  kDuplicate,  // a message is delivered twice
  kDelay,      // a message comes late, after others that were sent later
  kCrash,  // a context dies: before a commit, after it, after the answers and before the acks, or
           // in between
  kAbort,  // a turn fails to commit and is run again
  kAmbiguous,    // the connection breaks at COMMIT: it happened, or not
  kBusDown,      // nobody reaches the bus
  kWipe,         // and then it has forgotten everything
  kRollback,     // or its newest messages; whoever looks first publishes again
  kUnreachable,  // a call finds nobody, or its answer is lost
  kLate,         // a call arrives after its caller has given up
  kSlow,         // a turn takes seconds
  kClock,        // a context's clock jumps
  kRevision,     // the storefront's file changes
};
inline constexpr int kFaultCount = 14;
// "lose", "bus_down".
absl::string_view FaultName(Fault fault);
std::optional<Fault> FaultOfName(absl::string_view name);

// Storefronts to be simulated.
class Shops {
 public:
  struct File {
    std::string name;  // "storefronts/fashion.textproto"
    std::string text;
  };
  // Errors: INVALID_ARGUMENT, as flow::ParseStorefront has them; FAILED_PRECONDITION when a context
  // is called whose deciders are not linked in.
  static absl::StatusOr<Shops> Parse(const std::vector<File>& files);

  struct Shop {
    std::string id;
    // The file as it is; with a comment more (another revision of the same flow); and, where an
    // owner may answer, with every answer an owner's.
    std::vector<std::shared_ptr<const flow::Plan>> plans;
  };
  const std::vector<Shop>& all() const { return shops_; }
  const flow::Plan* Find(const std::string& storefront, const std::string& revision) const;

 private:
  std::vector<Shop> shops_;
};

struct FaultRecord {
  Fault fault = Fault::kLose;
  uint32_t id = 0;  // the same in every run of the seed in which it strikes
};

struct Settings {
  uint64_t seed = 1;
  int order_count = 0;     // 0: drawn, 1 to some dozens
  std::set<Fault> faults;  // empty, without `no_faults`: the seed's choice of all
  bool no_faults = false;
  // For shrinking: only these orders are placed (by number, from 0), and only these faults strike
  // (by their ids).
  std::optional<std::set<int>> only_orders;
  std::optional<std::set<uint32_t>> only_faults;
  // Told while it runs, null for nobody: what happens, line by line; each fault that strikes.
  std::function<void(const std::string& line)> tell;
  std::function<void(const FaultRecord&)> on_fault;
};

struct Outcome {
  std::vector<std::string> violations;  // sentences; empty: all is well
  uint64_t trace_hash = 0;
  std::vector<int> orders;          // those that were placed, by number
  std::vector<FaultRecord> faults;  // those that struck
  int64_t virtual_us = 0;
  int64_t order_count = 0, turn_count = 0, item_count = 0, message_count = 0, call_count = 0;
  std::array<int64_t, kFaultCount> fault_counts = {};
  int64_t ended_count = 0, waiting_count = 0;  // orders that have ended, and that wait for people
};

// REQUIRES: shops is not empty.
Outcome Simulate(const Shops& shops, const Settings& settings);

// Makes a failing run smaller: fewer orders, fewer faults, as long as `run` still says that
// something is violated. Returns the settings of the smallest. `first`: the outcome of `settings`.
// `run` may be called some hundred times.
Settings Shrink(Settings settings, const Outcome& first,
                const std::function<Outcome(const Settings&)>& run);

}  // namespace gaekju::sim

#endif  // GAEKJU_SIM_SIMULATOR_H_
