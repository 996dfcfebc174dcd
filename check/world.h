// world.h: one order's world, as small numbers: what may happen in it, what a thing that happens
// does, and what must hold. Knows the contexts; the search (explorer.h) does not.
//
//   World world(plan);
//   world.Prepare({});
//   World::Worker worker;
//   world.Expand(worker, node, Network::kCounted, bounds, [&](const Node& next, uint64_t hash,
//   const Move& move) { … });
//
// Handlers run once for each (rows of their context, message); everything after that is looked up.
// Threads share the world; each has a Worker of its own. Numbers depend on who comes first; marks
// and hashes, by which things are ordered, do not.
#ifndef GAEKJU_CHECK_WORLD_H_
#define GAEKJU_CHECK_WORLD_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "check/explorer.h"
#include "check/node_table.h"
#include "check/stable_vector.h"
#include "flow/plan.h"
#include "flow/turn.h"
#include "gaekju/flow/v1/step.pb.h"
#include "gaekju/order/v1/order.pb.h"
#include "services/assignment/assignment.h"
#include "services/order/order.h"

namespace gaekju::check {

// What was looked up last, by key. Forgets.
template <class T>
class LossyCache {
 public:
  // Null when it is not known (any more).
  const T* Find(uint64_t key) const {
    const Slot& slot = slots_[At(key)];
    return slot.key == key + 1 ? &slot.value : nullptr;
  }
  void Store(uint64_t key, T value) {
    if (++stored_ > slots_.size() && slots_.size() < kSizeMax) Grow();
    slots_[At(key)] = {key + 1, value};
  }
  int64_t bytes() const { return static_cast<int64_t>(slots_.size() * sizeof(Slot)); }

 private:
  static constexpr size_t kSizeMax = 1 << 21;
  struct Slot {
    uint64_t key = 0;  // plus one
    T value{};
  };
  size_t At(uint64_t key) const { return (key * 0x9e3779b97f4a7c15u >> 40) & (slots_.size() - 1); }
  void Grow() {
    std::vector<Slot> old(slots_.size() * 2);
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.key != 0) slots_[At(slot.key - 1)] = slot;
    }
    stored_ = 0;
  }
  std::vector<Slot> slots_ = std::vector<Slot>(256);
  size_t stored_ = 0;
};

// How messages fare.
enum class Network {
  // What is sent can be taken at any time from then on, any number of times, or never. So nothing
  // has to be counted: losses, repetitions, late calls, crashes and wipes are all the same, and
  // there may be any number of them.
  kAny,
  // What is sent is taken once; whatever else happens to it is a move of its own, and counted.
  kCounted,
};

// One StepRecord among a context's rows.
struct RecordFact {
  std::string wire_id;
  int step = -1;  // index in the plan
  flow::Outcome outcome = flow::Outcome::OUTCOME_UNSPECIFIED;
  flow::Outcome undo = flow::Outcome::OUTCOME_UNSPECIFIED;
  bool held() const {
    return undo == flow::Outcome::OUTCOME_UNSPECIFIED &&
           (outcome == flow::Outcome::OUTCOME_DONE || outcome == flow::Outcome::OUTCOME_PENDING);
  }
};

// (table, key) -> bytes. Table -1: a step, by its wire id, that the context always refuses.
using Rows = std::map<std::pair<int, std::string>, std::string>;

// One state of a context: its rows, and what they mean.
struct ContextState {
  Rows rows;
  uint64_t mark = 0;  // of the rows
  std::vector<RecordFact> records;
  std::string broken;      // an invariant of the context that does not hold; empty when all do
  std::string twice;       // what was done twice; empty when nothing was
  bool suspect = false;    // `broken` or `twice`
  bool done_ever = false;  // some step of place was done, taken back or not
  bool done_now = false;   // some step of place is done, and not taken back
  int64_t money = 0;       // what is kept of the buyer's money
  int64_t reserved = 0;    // units of stock
  int waiting_carts = 0;   // that nobody has paid
  bool given = false;      // the buyer has said that they have the goods
  std::vector<uint16_t> people;  // messages: what people may do now
  // Of the order context:
  order::v1::Order::State order_state = order::v1::Order::STATE_UNSPECIFIED;
  bool ended = false;                // completed, cancelled or rejected, and nothing is awaited
  std::vector<uint16_t> timers;      // messages
  std::vector<std::string> awaited;  // tasks, for the report
  std::string word;                  // the shop's own, for the report
  int again = -1;                    // the message with which the buyer's app asks once more
};

// What makes a context move.
struct Input {
  enum class Kind : uint8_t {
    kCommand,  // on the bus, to a context
    kCall,     // over gRPC, to a context
    kLate,     // a call that was given up, and may still arrive
    kResult,  // of a command (on the bus) or of a call (in the order process), to the order context
    kTimer,   // a task's retry or expiry time has passed
    kBuyer,   // the buyer asks the order context
    kPerson,  // somebody else asks a context
  };
  Kind kind = Kind::kCommand;
  int context = 0;
  const flow::Handler* handler = nullptr;
  std::string payload;
  std::string wire_id;
  int step = -1;
  bool undo = false;
  bool bus = false;
  bool expiry = false;    // kTimer
  int late = -1;          // kCall: the same call, given up
  int unreachable = -1;   // kCall: the result that it found nobody
  uint32_t lost = 0;      // what that does to a flight
  uint32_t given_up = 0;  // kCall: the same
  flow::StepResult result;
  std::string text;   // for the report
  uint64_t mark = 0;  // of all that is above, but the numbers
};

// What an input did.
struct Effect {
  uint32_t state = 0;         // of the context
  uint64_t mark_change = 0;   // the state's mark before and after, xored
  std::vector<uint16_t> out;  // messages sent
  int result = -1;            // the answer to a command or call, as a message; -1: none
  // What it does to the flight: when the message is used up, when it stays, when it was a late call
  // and nobody hears the answer, and when it was none of the flight's.
  uint32_t taken = 0, kept = 0, taken_late = 0, acted = 0;
  bool place_waits = false, cancel_waits = false;
  bool place_resolved = false, cancel_resolved = false;
  std::string said;
};

struct Move {
  enum class Kind : uint8_t {
    kTake,         // an input happens; a message in flight is used up
    kTakeAndKeep,  // it is taken, and comes again
    kRefuse,       // the context refuses the step, now and always
    kLose,
    kUnreachable,
    kAskEarly,  // a task is asked again although its message or answer is under way
    kVanish,    // a late call never arrives
    kCrash,
    kWipe,
  };
  Kind kind = Kind::kTake;
  uint16_t input = 0;
  const Effect* effect = nullptr;
  // Part of a life in which nothing goes wrong, and that nobody has to choose.
  bool fair() const { return kind == Kind::kTake || kind == Kind::kVanish; }
};

class World {
 public:
  // What one thread remembers of what all share.
  struct Worker {
    struct Flown {
      uint64_t mark_change;
      uint32_t flight;
    };
    LossyCache<const Effect*> effects;
    LossyCache<Flown> flights;
    int64_t bytes() const { return effects.bytes() + flights.bytes(); }
  };

  explicit World(const flow::Plan& plan);

  // `contexts` stand in for those of the same names. Errors: as Explore.
  absl::Status Prepare(const std::vector<const flow::Context*>& contexts);

  // Calls sink(next, hash of next, move) for everything that may happen in `node`, in an order that
  // is the same every time. What changes nothing is left out.
  template <class Sink>
  void Expand(Worker& worker, const Node& node, Network network, const Bounds& bounds, Sink sink);

  uint64_t HashOf(const Node& node) const;

  // The order has ended, and nothing can change that: nothing is in flight, or what is may be lost.
  bool Ended(const Node& node, Network network) const {
    return (network == Network::kAny || node.flight == 0) && node.started &&
           contexts_[0]->states[node.order()].ended;
  }
  bool OrderEnded(const Node& node) const { return contexts_[0]->states[node.order()].ended; }
  // As it is once everything that is counted is forgotten, and, if so, all that is under way lost.
  Node Settled(const Node& node, bool everything_is_lost) const;
  // Empty when all properties of a state hold; else the hazard, and `sentence` is set.
  std::string Violation(const Node& node, Network network, std::string* sentence) const;
  // Whether an answer sets an order going again that had ended. Empty: no; else the sentence.
  std::string Reopens(const Node& from, const Node& to, const Move& move) const;
  // The sentence of an order that can never end.
  std::string StuckSentence(const Node& node) const;

  std::string Line(const Node& from, const Node& to, const Move& move) const;
  // What the move is called in a trace that is written down: does not depend on numbers.
  std::string Label(const Move& move) const;
  std::vector<std::string> HeldBy(const Node& node) const;

  // Handlers and people that are not the buyer never run for these.
  bool IsCancel(const Move& move) const {
    return move.kind == Move::Kind::kTake && move.input == cancel_input_;
  }
  int flight_size(const Node& node) const {
    return static_cast<int>(flights_[node.flight].inputs.size());
  }
  // The numbers are used up: the search has to stop.
  bool full() const { return full_.load(std::memory_order_relaxed); }
  int64_t turn_count() const;
  int64_t bytes() const;

 private:
  struct OneContext {
    const flow::Context* context = nullptr;
    std::map<std::string, const flow::Handler*> handlers;
    std::mutex mutex;  // of the growing of what follows
    StableVector<ContextState> states;
    absl::flat_hash_map<std::string, uint32_t> state_ids;
    absl::flat_hash_map<uint64_t, std::unique_ptr<Effect>> effects;
  };
  struct Flight {
    std::vector<uint16_t> inputs;  // by mark
    uint64_t mark = 0;
    bool bus = false;    // has a message that the bus would lose
    bool calls = false;  // has a call or its result, which the order process would lose
  };
  // How a flight changes: without one message, with others. There are few, each interned.
  struct Delta {
    int remove = -1;
    std::vector<uint16_t> add;
  };
  static constexpr uint32_t kWiped = 0, kCrashed = 1, kNoChange = 2;

  const flow::Context* ContextNamed(const std::string& name,
                                    const std::vector<const flow::Context*>& contexts) const;
  const flow::Context& context(int c) const { return *contexts_[c]->context; }
  const ContextState& StateIn(const Node& node, int c) const {
    return contexts_[c]->states[StateOf(node, c)];
  }
  static uint32_t StateOf(const Node& node, int c) {
    return c == 0 ? node.order() : node.others[c - 1];
  }
  static void SetState(Node* node, int c, uint32_t state);

  uint32_t InternState(int context, Rows rows);
  void Judge(int context, ContextState* state);
  void JudgeOrder(const order::v1::OrderRecord& record, ContextState* state);
  void People(int context, ContextState* state);
  uint16_t InternInput(Input input);
  uint16_t AddInput(Input input);
  uint16_t ResultInput(const Input& of, const flow::Answer& answer, bool unreachable);
  uint16_t PersonInput(int context, const google::protobuf::Message& request, std::string text);
  uint16_t BuyerInput(const std::string& method, const google::protobuf::Message& request,
                      std::string text);
  std::string StepText(int step, bool undo) const;
  bool HasRecord(int context, uint32_t state, const std::string& wire_id) const;

  const Effect& Apply(Worker& worker, int context, uint32_t state, uint16_t input,
                      bool refuse = false);
  std::unique_ptr<Effect> RunInput(int context, uint32_t state, const Input& input);
  std::unique_ptr<Effect> RefuseInput(int context, uint32_t state, const Input& input);
  std::unique_ptr<flow::Turn> Load(const ContextState& state, int context,
                                   const std::vector<flow::RowKey>& keys) const;

  uint32_t InternFlight(std::vector<uint16_t> inputs);
  uint32_t InternDelta(int remove, std::vector<uint16_t> add);
  Worker::Flown Fly(Worker& worker, uint32_t flight, uint32_t delta);

  std::string EndViolation(const Node& node, std::string* sentence) const;
  order::v1::OrderRecord RecordOf(uint32_t order_state) const;

  static uint64_t CountsMark(uint32_t counts);
  const flow::Plan plan_;
  const std::unique_ptr<order::PlanBook> book_;
  const assignment::FixedDealers dealers_;
  const std::unique_ptr<flow::Context> assignment_context_;
  std::unique_ptr<flow::Context> order_context_;
  std::vector<std::unique_ptr<OneContext>> contexts_;  // the order context first
  std::mutex inputs_mutex_;
  StableVector<Input> inputs_;
  absl::flat_hash_map<std::string, uint16_t> input_ids_;
  std::mutex deltas_mutex_;
  StableVector<Delta> deltas_;
  absl::flat_hash_map<std::string, uint32_t> delta_ids_;
  std::mutex flights_mutex_;
  StableVector<Flight> flights_;
  absl::flat_hash_map<uint64_t, uint32_t> flight_ids_;  // by mark
  struct Start {
    uint16_t input;
    Node node;
  };
  std::vector<Start> starts_;
  std::map<std::string, uint16_t> again_;  // by payment method
  uint16_t cancel_input_ = 0;
  int payment_ = -1, delivery_ = -1, cart_ = -1, assignment_ = -1,
      catalog_ = -1;         // contexts of the steps whose meaning the properties know
  int pay_count_ = 0;        // place's steps payment.Capture
  bool ships_ = false;       // place has delivery.Start
  bool checks_out_ = false;  // place has cart.CheckOut
  // Place's step, and its context, that waits until the buyer has the goods: delivery.AwaitReceipt,
  // assignment.AwaitPickup.
  std::vector<std::pair<int, int>> handovers_;
  int reserve_count_ = 0;  // place's steps catalog.Reserve
  std::atomic<bool> full_{false};
};

// ---------------------------------------------------------------- moves

template <class Sink>
void World::Expand(Worker& worker, const Node& node, Network network, const Bounds& bounds,
                   Sink sink) {
  using Kind = Move::Kind;
  const uint64_t hash = HashOf(node);
  const uint32_t counts = node.counts();
  // `next` is `node` as it is counted after the move, and becomes what an input does to it.
  const auto take = [&](Node next, int context, uint16_t input, const Effect& effect,
                        uint32_t delta, Kind kind) {
    const Worker::Flown flown = Fly(worker, next.flight, delta);
    SetState(&next, context, effect.state);
    next.flight = flown.flight;
    if (effect.place_waits) next.place_waits = 1;
    if (effect.cancel_waits) next.cancel_waits = 1;
    if (effect.place_resolved) next.place_waits = 0;
    if (effect.cancel_resolved) next.cancel_waits = 0;
    const uint64_t change = effect.mark_change ^ flown.mark_change;
    const uint32_t next_counts = next.counts();
    if (next_counts != counts) {
      sink(next, hash ^ change ^ CountsMark(counts) ^ CountsMark(next_counts),
           Move{kind, input, &effect});
    } else if (change != 0) {
      sink(next, hash ^ change, Move{kind, input, &effect});
    }
  };
  // Something happens to the flight alone, and to what is counted.
  const auto drop = [&](Node next, uint32_t delta, Kind kind, uint16_t input) {
    const Worker::Flown flown = Fly(worker, node.flight, delta);
    next.flight = flown.flight;
    sink(next, hash ^ flown.mark_change ^ CountsMark(counts) ^ CountsMark(next.counts()),
         Move{kind, input, nullptr});
  };

  if (!node.started) {
    for (const Start& start : starts_) {
      const Effect& effect = Apply(worker, 0, start.node.order(), start.input);
      Node next = start.node;
      next.flight = Fly(worker, next.flight, effect.acted).flight;
      SetState(&next, 0, effect.state);
      next.place_waits = effect.place_waits;
      sink(next, HashOf(next), Move{Kind::kTake, start.input, &effect});
    }
    return;
  }
  const bool counted = network == Network::kCounted;
  const bool faulty = counted && node.faults() < bounds.fault_count_max;
  const Flight& flight = flights_[node.flight];
  const ContextState& order = contexts_[0]->states[node.order()];

  for (const uint16_t id : flight.inputs) {
    const Input& input = inputs_[id];
    const uint32_t state = StateOf(node, input.context);
    const Effect& effect = Apply(worker, input.context, state, id);
    if (input.kind == Input::Kind::kLate) {
      take(node, input.context, id, effect, effect.taken_late, Kind::kTake);
      drop(node, input.lost, Kind::kVanish, id);
      continue;
    }
    take(node, input.context, id, effect, counted ? effect.taken : effect.kept, Kind::kTake);
    if (input.kind != Input::Kind::kResult && !input.undo &&
        node.refusals < bounds.refusal_count_max &&
        !HasRecord(input.context, state, input.wire_id)) {
      const Effect& refused = Apply(worker, input.context, state, id, /*refuse=*/true);
      Node next = node;
      ++next.refusals;
      take(next, input.context, id, refused, counted ? refused.taken : refused.kept, Kind::kRefuse);
    }
    if (!counted && input.unreachable >= 0) {
      const auto result = static_cast<uint16_t>(input.unreachable);
      const Effect& unanswered = Apply(worker, 0, node.order(), result);
      take(node, 0, result, unanswered, unanswered.acted, Kind::kTake);
    }
    if (!faulty) continue;
    const bool call_result = input.kind == Input::Kind::kResult && !input.bus;
    if (!call_result && node.duplicates < bounds.duplicate_count_max) {
      Node next = node;
      ++next.duplicates;
      take(next, input.context, id, effect, effect.kept, Kind::kTakeAndKeep);
    }
    if (input.bus && node.losses < bounds.loss_count_max) {
      Node next = node;
      ++next.losses;
      drop(next, input.lost, Kind::kLose, id);
    }
    if (input.kind == Input::Kind::kCall && node.unreachable < bounds.unreachable_count_max) {
      Node next = node;
      ++next.unreachable;
      drop(next, input.given_up, Kind::kUnreachable, id);
    }
  }
  if (faulty && flight.bus && node.wipes < bounds.wipe_count_max) {
    Node next = node;
    ++next.wipes;
    drop(next, kWiped, Kind::kWipe, 0);
  }
  if (faulty && (flight.calls || node.place_waits || node.cancel_waits) &&
      node.crashes < bounds.crash_count_max) {
    Node next = node;
    ++next.crashes;
    next.place_waits = next.cancel_waits = 0;
    drop(next, kCrashed, Kind::kCrash, 0);
  }
  for (const uint16_t timer : order.timers) {
    const Input& task = inputs_[timer];
    bool early = false;
    if (counted && !task.expiry && !bounds.asks_early_freely) {
      for (const uint16_t id : flight.inputs) {
        const Input& input = inputs_[id];
        early |=
            input.step == task.step && input.undo == task.undo && input.kind != Input::Kind::kLate;
      }
    }
    if (early && (!faulty || node.duplicates >= bounds.duplicate_count_max)) continue;
    const Effect& effect = Apply(worker, 0, node.order(), timer);
    Node next = node;
    if (early) {
      if (effect.mark_change == 0 && Fly(worker, node.flight, effect.acted).mark_change == 0)
        continue;
      ++next.duplicates;
    }
    take(next, 0, timer, effect, effect.acted, early ? Kind::kAskEarly : Kind::kTake);
  }
  if (order.again >= 0) {
    const auto again = static_cast<uint16_t>(order.again);
    const Effect& effect = Apply(worker, 0, node.order(), again);
    take(node, 0, again, effect, effect.acted, Kind::kTake);
  }
  for (int c = 1; c < static_cast<int>(contexts_.size()); ++c) {
    const uint32_t state = StateOf(node, c);
    for (const uint16_t person : contexts_[c]->states[state].people) {
      const Effect& effect = Apply(worker, c, state, person);
      take(node, c, person, effect, effect.acted, Kind::kTake);
    }
  }
  if (node.cancels < bounds.cancel_count_max) {
    const Effect& effect = Apply(worker, 0, node.order(), cancel_input_);
    Node next = node;
    ++next.cancels;
    take(next, 0, cancel_input_, effect, effect.acted, Kind::kTake);
  }
}

}  // namespace gaekju::check

#endif  // GAEKJU_CHECK_WORLD_H_
