#include "check/explorer.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "flow/check.h"
#include "flow/saga.h"
#include "flow/turn.h"
#include "gaekju/assignment/v1/assignment_service.pb.h"
#include "gaekju/catalog/v1/catalog_service.pb.h"
#include "gaekju/delivery/v1/delivery_service.pb.h"
#include "gaekju/flow/v1/step.pb.h"
#include "gaekju/order/v1/order.pb.h"
#include "gaekju/order/v1/order_service.pb.h"
#include "gaekju/payment/v1/payment.pb.h"
#include "gaekju/payment/v1/payment_service.pb.h"
#include "gaekju/store/v1/store_service.pb.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/rpc/code.pb.h"
#include "services/assignment/assignment.h"
#include "services/cart/cart.h"
#include "services/catalog/catalog.h"
#include "services/delivery/delivery.h"
#include "services/notification/notification.h"
#include "services/order/order.h"
#include "services/payment/payment.h"
#include "services/store/store.h"

namespace gaekju::check {
namespace {

using flow::Answer;
using flow::Context;
using flow::Envelope;
using flow::Handler;
using flow::Outcome;
using flow::Plan;
using flow::PlanStep;
using flow::RowKey;
using flow::SagaRun;
using flow::Turn;
using flow::v1::StepRecord;
using google::protobuf::Message;
using order::v1::Order;
using order::v1::OrderRecord;
using order::v1::Task;

constexpr char kOrderId[] = "o1";
constexpr char kProductId[] = "p1";
constexpr int64_t kUnitPrice = 1000;
constexpr int64_t kStock = 1;  // the last unit: what is not given back is missed
constexpr char kDealerId[] = "d1";
constexpr int64_t kDealerCapacity = 1;  // its last place
// The time at which everything happens, and those at which a task may be asked again: never by
// itself, or at once.
constexpr int64_t kNow_us = 1'800'000'000'000'000;
constexpr int64_t kLater_us = kNow_us + 3'600'000'000;
constexpr int64_t kAtOnce_us = 1;
constexpr int kOtherContextsMax = 7;
constexpr int kStepsMax = 16;
constexpr int64_t kProgressStates = 1 << 18;

std::string Serialize(const Message& message) {
  std::string bytes;
  google::protobuf::io::StringOutputStream stream(&bytes);
  google::protobuf::io::CodedOutputStream coded(&stream);
  coded.SetSerializationDeterministic(true);
  GK_CHECK(message.SerializeToCodedStream(&coded)) << message.GetTypeName();
  coded.Trim();
  return bytes;
}

// "payment.Capture" of "gaekju.payment.v1.PaymentService.Capture".
std::string ShortMethod(const std::string& context, const std::string& method) {
  return absl::StrCat(context, ".", method.substr(method.rfind('.') + 1));
}

// "PLACED".
std::string StateName(Order::State state) {
  return Order::State_Name(state).substr(std::strlen("STATE_"));
}

bool Waiting(order::v1::TaskState state) {
  return state == order::v1::TASK_STATE_ASKED || state == order::v1::TASK_STATE_PENDING;
}

// Whether the saga still waits for the task: as SagaRun::OnDue sees it.
bool Awaited(const Task& task) {
  return Waiting(task.undo_state()) ||
         (Waiting(task.state()) && task.undo_state() == order::v1::TASK_STATE_UNSPECIFIED);
}

// Takes out of a record what only counts or measures time: how often a task was asked moves nothing
// but its next retry time, and of a retry or expiry time only whether there is one matters, because
// a timer may fire at any time.
void NormalizeOrder(OrderRecord* record) {
  record->set_due_time_us(0);
  for (Task& task : *record->mutable_saga()->mutable_tasks()) {
    task.set_attempts(0);
    task.set_undo_attempts(0);
    if (task.retry_time_us() != 0) task.set_retry_time_us(kLater_us);
    if (task.undo_retry_time_us() != 0) task.set_undo_retry_time_us(kLater_us);
    if (task.expire_time_us() != 0) task.set_expire_time_us(kLater_us);
  }
}

class OnePlan : public order::PlanBook {
 public:
  explicit OnePlan(const Plan& plan) : plan_(plan) {}
  const Plan* Current(const std::string& storefront) const override {
    return storefront == plan_.storefront ? &plan_ : nullptr;
  }
  const Plan* Pinned(const std::string&, const std::string&) const override { return &plan_; }

 private:
  const Plan& plan_;
};

// A notice takes nothing, and no step, undo or phase of the order looks at its task (flow/saga.h,
// invariant 7; its random walks compare an order's life with and without): what is proved of the
// plan without notices holds with them. Each would multiply the states by those of its task and
// messages.
Plan WithoutNotices(Plan plan) {
  plan.steps.resize(plan.flow_count());
  plan.notice_count = 0;
  return plan;
}

// ---- what the explorer knows of a context

using Rows = std::map<std::pair<int, std::string>, std::string>;  // (table, key) -> bytes

// One StepRecord among a context's rows.
struct RecordFact {
  std::string wire_id;
  int step = -1;  // index in the plan
  Outcome outcome = Outcome::OUTCOME_UNSPECIFIED;
  Outcome undo = Outcome::OUTCOME_UNSPECIFIED;
  bool held() const {
    return undo == Outcome::OUTCOME_UNSPECIFIED &&
           (outcome == Outcome::OUTCOME_DONE || outcome == Outcome::OUTCOME_PENDING);
  }
};

// One state of a context: its rows, and what they mean.
struct ContextState {
  Rows rows;
  std::vector<RecordFact> records;
  std::string broken;      // an invariant of the context that does not hold; empty when all do
  std::string twice;       // what was done twice; empty when nothing was
  bool done_ever = false;  // some step was done, taken back or not
  bool done_now = false;   // some step is done, and not taken back
  int64_t money = 0;       // what is kept of the buyer's money
  int64_t reserved = 0;    // units of stock
  int waiting_carts = 0;   // that nobody has paid
  std::vector<uint16_t> people;  // messages: what people may do now
  // Of the order context:
  Order::State order_state = Order::STATE_UNSPECIFIED;
  bool ended = false;                // completed, cancelled or rejected, and nothing is awaited
  std::vector<uint16_t> timers;      // messages
  std::vector<std::string> awaited;  // tasks, for the report
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
  const Handler* handler = nullptr;
  std::string payload;
  std::string wire_id;
  int step = -1;
  bool undo = false;
  bool bus = false;
  bool expiry = false;  // kTimer
  int late = -1;        // kCall: the same call, given up
  flow::StepResult result;
  std::string text;  // for the report
};

// What an input did.
struct Effect {
  uint32_t state = 0;         // of the context
  std::vector<uint16_t> out;  // messages sent
  int result = -1;            // the answer to a command or call, as a message; -1: none
  bool place_waits = false, cancel_waits = false;
  bool place_resolved = false, cancel_resolved = false;
  std::string said;
};

struct Node {           // a state of the world
  uint32_t flight = 0;  // set of messages
  uint32_t order = 0;
  uint16_t others[kOtherContextsMax] = {};
  uint16_t refused = 0;  // steps that are refused, by index in the plan
  uint8_t duplicates = 0, losses = 0, unreachable = 0, crashes = 0, wipes = 0, refusals = 0,
          cancels = 0;
  uint8_t flags = 0;
  bool operator==(const Node& o) const { return std::memcmp(this, &o, sizeof(Node)) == 0; }
};
static_assert(sizeof(Node) == 32);
constexpr uint8_t kStarted = 1, kPlaceWaits = 2, kCancelWaits = 4;

uint64_t HashOf(const Node& node) {
  uint64_t words[4];
  std::memcpy(words, &node, sizeof(node));
  uint64_t hash = 0x9e3779b97f4a7c15u;
  for (uint64_t word : words) {
    hash = (hash ^ word) * 0xff51afd7ed558ccdu;
    hash ^= hash >> 32;
  }
  return hash;
}

// Nodes by number, each once.
class NodeSet {
 public:
  NodeSet() : slots_(1 << 16, kEmpty) {}
  // The node's number, and whether it is new.
  std::pair<uint32_t, bool> Insert(const Node& node, uint32_t parent) {
    if ((nodes_.size() + 1) * 2 > slots_.size()) Grow();
    const size_t mask = slots_.size() - 1;
    for (size_t i = HashOf(node) & mask;; i = (i + 1) & mask) {
      if (slots_[i] == kEmpty) {
        slots_[i] = static_cast<uint32_t>(nodes_.size());
        nodes_.push_back(node);
        parents_.push_back(parent);
        return {slots_[i], true};
      }
      if (nodes_[slots_[i]] == node) return {slots_[i], false};
    }
  }
  const Node& operator[](uint32_t i) const { return nodes_[i]; }
  uint32_t parent(uint32_t i) const { return parents_[i]; }
  uint32_t size() const { return static_cast<uint32_t>(nodes_.size()); }

 private:
  static constexpr uint32_t kEmpty = ~uint32_t{0};
  void Grow() {
    std::vector<uint32_t> slots(slots_.size() * 2, kEmpty);
    const size_t mask = slots.size() - 1;
    for (uint32_t n = 0; n < nodes_.size(); ++n) {
      size_t i = HashOf(nodes_[n]) & mask;
      while (slots[i] != kEmpty) i = (i + 1) & mask;
      slots[i] = n;
    }
    slots_ = std::move(slots);
  }
  std::vector<Node> nodes_;
  std::vector<uint32_t> parents_;
  std::vector<uint32_t> slots_;
};

struct Move {
  enum class Kind : uint8_t {
    kTake,         // an input happens; a message in flight is used up
    kTakeAndKeep,  // it is taken, and comes again
    kRefuse,       // the context refuses the step
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

// The only dealer that there is.
assignment::v1::Dealer TheDealer(const Plan& plan) {
  assignment::v1::Dealer dealer;
  dealer.set_dealer_id(kDealerId);
  dealer.set_storefront(plan.storefront);
  dealer.mutable_location()->set_latitude(37.5);
  dealer.mutable_location()->set_longitude(127);
  return dealer;
}

class Explorer {
 public:
  Explorer(const Plan& plan, const Bounds& bounds)
      : plan_(WithoutNotices(plan)),
        bounds_(bounds),
        book_(plan_),
        dealers_({TheDealer(plan_)}),
        assignment_context_(assignment::MakeAssignmentContext(&dealers_)) {}

  // `contexts` are those that Explore was given.
  absl::Status Prepare(const std::vector<const Context*>& contexts);
  Report Run(const std::function<void(const Report&)>& progress);

 private:
  struct World {
    const Context* context = nullptr;
    std::map<std::string, const Handler*> handlers;
    std::vector<ContextState> states;
    absl::flat_hash_map<std::string, uint32_t> state_ids;
    absl::flat_hash_map<uint64_t, std::unique_ptr<Effect>> effects;
  };

  const Context* ContextNamed(const std::string& name,
                              const std::vector<const Context*>& contexts) const;

  // --- turns
  uint32_t InternState(int context, Rows rows);
  void Judge(int context, ContextState* state);
  uint16_t InternInput(Input input);
  uint16_t ResultInput(const Input& of, const Answer& answer, bool unreachable);
  const Effect& Apply(int context, uint32_t state, uint16_t input);
  const Effect& Refused(uint16_t input);
  std::unique_ptr<Effect> RunInput(int context, uint32_t state, const Input& input);
  std::unique_ptr<Turn> Load(const ContextState& state, const World& world,
                             const std::vector<RowKey>& keys) const;
  void People(int context, ContextState* state);
  uint16_t PersonInput(int context, const Message& request, std::string text);
  std::string StepText(int step, bool undo) const;
  bool HasRecord(int context, uint32_t state, const std::string& wire_id) const;

  // --- sets of messages in flight
  uint32_t InternFlight(std::vector<uint16_t> inputs);
  uint32_t With(uint32_t flight, uint16_t input);
  uint32_t Without(uint32_t flight, uint16_t input);

  // --- moves
  uint32_t StateOf(const Node& node, int context) const {
    return context == 0 ? node.order : node.others[context - 1];
  }
  void SetState(Node* node, int context, uint32_t state);
  void Follow(Node* node, int context, const Effect& effect, bool with_result);
  int Faults(const Node& node) const {
    return node.duplicates + node.losses + node.unreachable + node.crashes + node.wipes;
  }
  template <class Sink>
  void Expand(const Node& node, Sink sink);

  // --- properties
  bool Ended(const Node& node) const {
    return node.flight == 0 && (node.flags & kStarted) != 0 && worlds_[0].states[node.order].ended;
  }
  // Empty when all hold; else the hazard, and `sentence` is set.
  std::string Violation(const Node& node, std::string* sentence) const;
  std::string EndViolation(const Node& node, std::string* sentence) const;
  void Tell(uint32_t node, Report* report);
  std::string Line(const Node& from, const Node& to, const Move& move) const;
  std::vector<std::string> HeldBy(const Node& node) const;
  OrderRecord RecordOf(uint32_t order_state) const;

  const Plan plan_;
  const Bounds bounds_;
  const OnePlan book_;
  const assignment::FixedDealers dealers_;
  const std::unique_ptr<Context> assignment_context_;
  std::unique_ptr<Context> order_context_;
  std::vector<World> worlds_;  // the order context first
  std::vector<Input> inputs_;
  std::map<std::string, uint16_t> input_ids_;
  std::map<uint16_t, Effect> refusals_;
  std::vector<std::vector<uint16_t>> flights_;
  std::map<std::vector<uint16_t>, uint32_t> flight_ids_;
  absl::flat_hash_map<uint64_t, uint32_t> flight_with_, flight_without_;
  struct Start {
    uint16_t input;
    Node node;
  };
  std::vector<Start> starts_;
  uint16_t cancel_input_ = 0;
  int payment_ = -1, delivery_ = -1, cart_ = -1, assignment_ = -1,
      catalog_ = -1;         // worlds of the steps whose meaning the properties know
  int pay_count_ = 0;        // place's steps payment.Capture
  bool ships_ = false;       // place has delivery.Start
  bool checks_out_ = false;  // place has cart.CheckOut
  int reserve_count_ = 0;    // place's steps catalog.Reserve
  bool states_full_ = false;
  int64_t turn_count_ = 0;
  NodeSet nodes_;
};

// ---------------------------------------------------------------- setting up

const Context* Explorer::ContextNamed(const std::string& name,
                                      const std::vector<const Context*>& contexts) const {
  for (const Context* context : contexts) {
    if (context->name == name) return context;
  }
  const Context* const known[] = {assignment_context_.get(),
                                  &cart::CartContext(),
                                  &catalog::CatalogContext(),
                                  &delivery::DeliveryContext(),
                                  &notification::NotificationContext(),
                                  &payment::PaymentContext(),
                                  &store::StoreContext()};
  for (const Context* context : known) {
    if (context->name == name) return context;
  }
  return nullptr;
}

absl::Status Explorer::Prepare(const std::vector<const Context*>& contexts) {
  if (plan_.steps.size() > kStepsMax) {
    return absl::FailedPreconditionError(absl::StrCat("storefront \"", plan_.storefront, "\" has ",
                                                      plan_.steps.size(), " steps; at most ",
                                                      kStepsMax, " can be explored"));
  }
  order_context_ = order::MakeOrderContext(&book_);
  worlds_.emplace_back().context = order_context_.get();
  for (const PlanStep& step : plan_.steps) {
    const auto same = [&](const World& world) { return world.context->name == step.context; };
    if (std::any_of(worlds_.begin(), worlds_.end(), same)) continue;
    const Context* context = ContextNamed(step.context, contexts);
    if (context == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat("step \"", step.id, "\" calls ", step.method, ", and how ", step.context,
                       " decides is not part of this program (its deciders are not linked in), so "
                       "nothing can be proved of \"",
                       plan_.storefront, "\"; the file itself is well-formed"));
    }
    if (worlds_.size() > kOtherContextsMax)
      return absl::FailedPreconditionError("too many contexts to explore");
    worlds_.emplace_back().context = context;
  }
  flights_.push_back({});
  flight_ids_[{}] = 0;
  for (int c = 0; c < static_cast<int>(worlds_.size()); ++c) {
    World& world = worlds_[c];
    for (const auto& handler : world.context->handlers)
      world.handlers[handler->name()] = handler.get();
    const std::string& name = world.context->name;
    if (name == "payment") payment_ = c;
    if (name == "delivery") delivery_ = c;
    if (name == "catalog") catalog_ = c;
    if (name == "cart") cart_ = c;
    if (name == "assignment") assignment_ = c;
  }
  bool may_pay_later = false;
  for (int i = 0; i < plan_.place_count; ++i) {
    const PlanStep& step = plan_.steps[i];
    const std::string method = ShortMethod(step.context, step.method);
    if (method == "payment.Capture") {
      payment::v1::CaptureRequest constants;
      may_pay_later |= constants.ParsePartialFromString(step.constants) &&
                       constants.missing_method() == payment::v1::MISSING_METHOD_AWAIT;
    }
    checks_out_ |= method == "cart.CheckOut";
    pay_count_ += method == "payment.Capture";
    ships_ |= method == "delivery.Start";
    reserve_count_ += method == "catalog.Reserve";
  }
  for (int c = 0; c < static_cast<int>(worlds_.size()); ++c) GK_CHECK(InternState(c, {}) == 0);

  Node node;
  node.flags = 0;
  Node sold_out = node;
  if (catalog_ > 0) {
    catalog::v1::CreateProductRequest create;
    create.set_product_id(kProductId);
    create.mutable_unit_price()->set_currency_code(plan_.currency_code);
    create.mutable_unit_price()->set_minor_units(kUnitPrice);
    create.set_available_count(0);
    SetState(&sold_out, catalog_, Apply(catalog_, 0, PersonInput(catalog_, create, "")).state);
    create.set_available_count(kStock);
    SetState(&node, catalog_, Apply(catalog_, 0, PersonInput(catalog_, create, "")).state);
  }
  Node dealers_full = node;
  if (assignment_ > 0) {
    assignment::v1::CreateDealerRequest create;
    create.set_dealer_id(kDealerId);
    create.set_storefront(plan_.storefront);
    create.set_agency_name("Agency");
    *create.mutable_location() = TheDealer(plan_).location();
    create.set_capacity(kDealerCapacity);
    const uint32_t state = Apply(assignment_, 0, PersonInput(assignment_, create, "")).state;
    for (Node* at : {&node, &sold_out}) SetState(at, assignment_, state);
  }
  order::v1::PlaceOrderRequest place;
  place.set_storefront(plan_.storefront);
  place.set_customer_id("c1");
  place.set_customer_name("Kim");
  place.set_delivery_address("Seoul");
  place.set_payment_method("card");
  auto* line = place.add_lines();
  line->set_product_id(kProductId);
  line->set_quantity(1);
  place.mutable_expected_total()->set_currency_code(plan_.currency_code);
  place.mutable_expected_total()->set_minor_units(kUnitPrice);
  *place.mutable_delivery_location() = TheDealer(plan_).location();
  const auto start = [&](const Node& at, const std::string& text) {
    Input input;
    input.kind = Input::Kind::kBuyer;
    input.handler = worlds_[0].handlers.at("gaekju.order.v1.OrderService.PlaceOrder");
    input.payload = Serialize(place);
    input.text = text;
    starts_.push_back({InternInput(std::move(input)), at});
  };
  start(node, "the buyer places an order");
  if (reserve_count_ > 0) start(sold_out, "the buyer orders what is sold out");
  if (assignment_ > 0) start(dealers_full, "the buyer places an order, and there is no dealer");
  if (pay_count_ > 0) {
    place.set_payment_method(payment::kDeclinedMethod);
    start(node, "the buyer places an order, with a card that will be declined");
  }
  if (may_pay_later) {
    place.clear_payment_method();
    start(node, "the buyer places an order, to be paid later");
  }
  order::v1::CancelOrderRequest cancel;
  cancel.set_order_id(kOrderId);
  Input input;
  input.kind = Input::Kind::kBuyer;
  input.handler = worlds_[0].handlers.at("gaekju.order.v1.OrderService.CancelOrder");
  input.payload = Serialize(cancel);
  input.text = "the buyer cancels";
  cancel_input_ = InternInput(std::move(input));
  return absl::OkStatus();
}

// ---------------------------------------------------------------- turns

std::string Explorer::StepText(int i, bool undo) const {
  if (i < 0) return "?";
  const PlanStep& step = plan_.steps[i];
  return undo ? absl::StrCat("undo of \"", step.id, "\" (",
                             ShortMethod(step.context, step.undo_method), ")")
              : absl::StrCat("\"", step.id, "\" (", ShortMethod(step.context, step.method), ")");
}

uint16_t Explorer::InternInput(Input input) {
  std::string key = absl::StrCat(
      static_cast<int>(input.kind), "|", input.context, "|",
      input.handler == nullptr ? "" : input.handler->name(), "|", input.wire_id, "|", input.step,
      "|", input.undo, input.bus, input.expiry, input.result.unreachable, "|",
      static_cast<int>(input.result.outcome), "|", input.result.payload, "|", input.payload);
  auto [it, inserted] =
      input_ids_.try_emplace(std::move(key), static_cast<uint16_t>(inputs_.size()));
  if (!inserted) return it->second;
  GK_CHECK(inputs_.size() < 0xffff) << "too many messages";
  const uint16_t id = it->second;
  if (input.kind == Input::Kind::kCall) {
    Input late = input;
    late.kind = Input::Kind::kLate;
    inputs_.push_back(std::move(input));
    const uint16_t late_id = InternInput(std::move(late));
    inputs_[id].late = late_id;
  } else {
    inputs_.push_back(std::move(input));
  }
  return id;
}

uint16_t Explorer::ResultInput(const Input& of, const Answer& answer, bool unreachable) {
  Input input;
  input.kind = Input::Kind::kResult;
  input.bus = of.bus;
  input.wire_id = of.wire_id;
  input.step = of.step;
  input.undo = of.undo;
  flow::StepResult& result = input.result;
  result.order_id = kOrderId;
  result.step_id = of.wire_id;
  result.undo = of.undo;
  std::string what;
  if (unreachable) {
    result.unreachable = true;
    what = "cannot be reached";
  } else {
    switch (answer.kind) {
      case Answer::Kind::kDone:
        result.outcome = Outcome::OUTCOME_DONE;
        result.payload = answer.payload;
        what = "is done";
        break;
      case Answer::Kind::kPending:
        result.outcome = Outcome::OUTCOME_PENDING;
        what = "waits for a person";
        break;
      default:
        GK_CHECK(answer.kind == Answer::Kind::kRefused) << "a step neither waits nor retries";
        result.outcome = Outcome::OUTCOME_REFUSED;
        result.payload = Serialize(answer.status);
        what = absl::StrCat("is refused (", flow::ReasonOf(answer.status), ")");
    }
  }
  input.text = absl::StrCat(StepText(of.step, of.undo), " ", what);
  return InternInput(std::move(input));
}

uint16_t Explorer::PersonInput(int context, const Message& request, std::string text) {
  Input input;
  input.kind = Input::Kind::kPerson;
  input.context = context;
  for (const auto& [name, handler] : worlds_[context].handlers) {
    if (handler->request().GetDescriptor() == request.GetDescriptor()) input.handler = handler;
  }
  GK_CHECK(input.handler != nullptr) << request.GetTypeName();
  input.payload = Serialize(request);
  input.text = std::move(text);
  return InternInput(std::move(input));
}

// What people may do to a context's rows. People of contexts that are not known here never act.
void Explorer::People(int context, ContextState* state) {
  const std::string& name = worlds_[context].context->name;
  for (const auto& [key, bytes] : state->rows) {
    const flow::Table* table = worlds_[context].context->tables[key.first];
    if (name == "store" && table == &store::kAcceptances) {
      store::v1::Acceptance acceptance;
      GK_CHECK(acceptance.ParseFromString(bytes));
      if (acceptance.state() == store::v1::Acceptance::STATE_WAITING) {
        store::v1::AnswerOrderRequest answer;
        answer.set_acceptance_id(key.second);
        answer.set_accept(true);
        state->people.push_back(
            PersonInput(context, answer, "the store's owner accepts the order"));
        answer.set_accept(false);
        state->people.push_back(
            PersonInput(context, answer, "the store's owner declines the order"));
      } else if (acceptance.state() == store::v1::Acceptance::STATE_CANCEL_WAITING) {
        store::v1::ConfirmCancelRequest confirm;
        confirm.set_acceptance_id(key.second);
        state->people.push_back(
            PersonInput(context, confirm, "the store's owner confirms the cancel"));
      }
    } else if (name == "delivery" && table == &delivery::kDeliveries) {
      delivery::v1::Delivery delivery;
      GK_CHECK(delivery.ParseFromString(bytes));
      if (delivery.state() == delivery::v1::Delivery::STATE_STARTED) {
        delivery::v1::RecordProgressRequest progress;
        progress.set_delivery_id(key.second);
        progress.set_state(delivery::v1::Delivery::STATE_DELIVERED);
        state->people.push_back(PersonInput(context, progress, "the parcel is delivered"));
      }
      if (delivery.state() == delivery::v1::Delivery::STATE_STARTED ||
          delivery.state() == delivery::v1::Delivery::STATE_DELIVERED) {
        delivery::v1::ConfirmReceiptRequest confirm;
        confirm.set_delivery_id(key.second);
        state->people.push_back(PersonInput(context, confirm, "the buyer confirms the receipt"));
      }
    } else if (name == "assignment" && table == &assignment::kAssignments) {
      assignment::v1::Assignment assignment;
      GK_CHECK(assignment.ParseFromString(bytes));
      if (assignment.state() == assignment::v1::Assignment::STATE_ASSIGNED) {
        assignment::v1::ConfirmPickupRequest confirm;
        confirm.set_assignment_id(key.second);
        state->people.push_back(PersonInput(context, confirm, "the buyer picks it up"));
      }
    } else if (name == "payment" && table == &payment::kPayments) {
      payment::v1::Payment payment;
      GK_CHECK(payment.ParseFromString(bytes));
      if (payment.state() == payment::v1::Payment::STATE_AWAITED) {
        payment::v1::PayRequest pay;
        pay.set_payment_id(key.second);
        pay.set_payment_method("card");
        state->people.push_back(PersonInput(context, pay, "the buyer pays"));
      }
    }
  }
}

void Explorer::Judge(int context, ContextState* state) {
  int64_t ledger = 0, captured = 0, refunded = 0;
  int64_t places = 0, places_free = 0, assigned = 0;
  std::map<std::string, int64_t> accounts;
  for (const auto& [key, bytes] : state->rows) {
    const flow::Table* table = worlds_[context].context->tables[key.first];
    std::unique_ptr<Message> body(table->prototype->New());
    GK_CHECK(body->ParseFromString(bytes)) << table->name << "/" << key.second;
    for (int i = 0; i < body->GetDescriptor()->field_count(); ++i) {
      const auto* field = body->GetDescriptor()->field(i);
      if (field->is_repeated() || field->message_type() != StepRecord::descriptor()) continue;
      const auto& record =
          static_cast<const StepRecord&>(body->GetReflection()->GetMessage(*body, field));
      if (record.step_id().empty()) continue;
      RecordFact fact;
      fact.wire_id = record.step_id();
      fact.step = plan_.StepIndex(fact.wire_id.substr(0, fact.wire_id.find('.')));
      fact.outcome = record.outcome();
      fact.undo = record.undo();
      state->done_ever |= fact.outcome == Outcome::OUTCOME_DONE;
      state->done_now |=
          fact.outcome == Outcome::OUTCOME_DONE && fact.undo == Outcome::OUTCOME_UNSPECIFIED;
      state->records.push_back(std::move(fact));
    }
    if (table == &payment::kLedgerEntries) {
      const auto& entry = static_cast<const payment::v1::LedgerEntry&>(*body);
      ledger += entry.amount();
      accounts[entry.account()] += entry.amount();
      if (entry.account() == payment::kMerchantAccount) {
        (entry.amount() > 0 ? captured : refunded) += std::abs(entry.amount());
      }
    } else if (table == &catalog::kProducts) {
      const auto& product = static_cast<const catalog::v1::Product&>(*body);
      state->reserved = product.reserved_count();
      const int64_t all = product.available_count() + product.reserved_count();
      if (product.available_count() < 0 || product.reserved_count() < 0 ||
          (all != 0 && all != kStock)) {
        state->broken = absl::StrCat("stock is made or lost: ", product.available_count(),
                                     " available, ", product.reserved_count(), " reserved");
      }
    } else if (table == &assignment::kDealers) {
      const auto& dealer = static_cast<const assignment::v1::Dealer&>(*body);
      places_free += dealer.capacity() - dealer.assigned_count();
      if (dealer.assigned_count() < 0 || dealer.assigned_count() > dealer.capacity()) {
        state->broken = absl::StrCat("a dealer with ", dealer.capacity(), " places has ",
                                     dealer.assigned_count(), " orders");
      }
      places += dealer.capacity();
    } else if (table == &assignment::kAssignments) {
      assigned += static_cast<const assignment::v1::Assignment&>(*body).state() ==
                  assignment::v1::Assignment::STATE_ASSIGNED;
    } else if (table == &cart::kCarts) {
      state->waiting_carts +=
          static_cast<const cart::v1::Cart&>(*body).state() == cart::v1::Cart::STATE_WAITING;
    } else if (table == &order::kOrders) {
      const auto& record = static_cast<const OrderRecord&>(*body);
      state->order_state = record.order().state();
      bool awaited = false;
      for (int i = 0; i < record.saga().tasks_size(); ++i) {
        const Task& task = record.saga().tasks(i);
        if (!Awaited(task)) continue;
        awaited = true;
        const bool undo = Waiting(task.undo_state());
        Input timer;
        timer.kind = Input::Kind::kTimer;
        timer.step = i;
        timer.undo = undo;
        timer.text = absl::StrCat("order asks again: ", StepText(i, undo));
        if ((undo ? task.undo_retry_time_us() : task.retry_time_us()) != 0) {
          state->timers.push_back(InternInput(timer));
        }
        state->awaited.push_back(StepText(i, undo));
        if (!undo && task.expire_time_us() != 0) {
          timer.expiry = true;
          timer.text = absl::StrCat("nobody has answered ", StepText(i, undo), " in time");
          state->timers.push_back(InternInput(timer));
        }
      }
      state->ended = !awaited && (state->order_state == Order::STATE_COMPLETED ||
                                  state->order_state == Order::STATE_CANCELLED ||
                                  state->order_state == Order::STATE_REJECTED);
    }
  }
  for (const auto& [account, amount] : accounts) {
    if (amount > 0) state->money += amount;
  }
  if (captured > pay_count_ * kUnitPrice) {
    state->twice = absl::StrCat("payment has taken ", captured, ", and the price is ",
                                pay_count_ * kUnitPrice);
  }
  if (refunded > captured) {
    state->twice = absl::StrCat("payment has given back ", refunded, " of ", captured);
  }
  if (places_free + assigned != places) {
    state->broken = absl::StrCat("dealers' places are made or lost: of ", places, ", ", places_free,
                                 " are free, and ", assigned, " orders are assigned");
  }
  if (ledger != 0) state->broken = absl::StrCat("the ledger sums to ", ledger);
  People(context, state);
}

uint32_t Explorer::InternState(int context, Rows rows) {
  World& world = worlds_[context];
  std::string key;
  for (const auto& [row, bytes] : rows) {
    absl::StrAppend(&key, row.first, "/", row.second, "=", bytes.size(), ":", bytes);
  }
  auto [it, inserted] =
      world.state_ids.try_emplace(std::move(key), static_cast<uint32_t>(world.states.size()));
  if (!inserted) return it->second;
  const uint32_t id = it->second;
  states_full_ |= context != 0 && id >= 0xffff;
  ContextState state;
  state.rows = std::move(rows);
  Judge(context, &state);
  world.states.push_back(std::move(state));
  return id;
}

std::unique_ptr<Turn> Explorer::Load(const ContextState& state, const World& world,
                                     const std::vector<RowKey>& keys) const {
  auto turn = std::make_unique<Turn>(kNow_us);
  for (const RowKey& key : keys) {
    if (turn->HasRow(key)) continue;
    const auto& tables = world.context->tables;
    const int table =
        static_cast<int>(std::find(tables.begin(), tables.end(), key.table) - tables.begin());
    const auto it = state.rows.find({table, key.key});
    if (it == state.rows.end()) {
      turn->AddRow(key, 0, nullptr);
      continue;
    }
    std::unique_ptr<Message> body(key.table->prototype->New());
    GK_CHECK(body->ParseFromString(it->second)) << key.key;
    turn->AddRow(key, 0, std::move(body));
  }
  return turn;
}

const Effect& Explorer::Apply(int context, uint32_t state, uint16_t input) {
  const uint64_t key = uint64_t{state} << 16 | input;
  const auto it = worlds_[context].effects.find(key);
  if (it != worlds_[context].effects.end()) return *it->second;
  const Input copy = inputs_[input];  // what runs may add inputs
  std::unique_ptr<Effect> effect = RunInput(context, state, copy);
  return *worlds_[context].effects.emplace(key, std::move(effect)).first->second;
}

// The context refuses, as a check of the request by itself does: nothing is written, and it says
// the same every time.
const Effect& Explorer::Refused(uint16_t input) {
  const auto it = refusals_.find(input);
  if (it != refusals_.end()) return it->second;
  Effect effect;
  const Input copy = inputs_[input];
  effect.result = ResultInput(
      copy,
      flow::Refuse(google::rpc::FAILED_PRECONDITION, worlds_[copy.context].context->service,
                   "SOME_REASON", "the context refuses"),
      /*unreachable=*/false);
  effect.said = "refused";
  return refusals_.emplace(input, std::move(effect)).first->second;
}

std::unique_ptr<Effect> Explorer::RunInput(int context, uint32_t state_id, const Input& input) {
  ++turn_count_;
  const World& world = worlds_[context];
  auto effect = std::make_unique<Effect>();
  Rows rows = world.states[state_id].rows;
  std::unique_ptr<Turn> turn;
  Answer answer;
  if (input.kind == Input::Kind::kResult) {
    std::vector<RowKey> keys;
    world.context->result_keys(input.result, &keys);
    turn = Load(world.states[state_id], world, keys);
    world.context->on_result(input.result, *turn);
  } else if (input.kind == Input::Kind::kTimer) {
    std::vector<RowKey> keys;
    world.context->timer.keys(kOrderId, &keys);
    turn = Load(world.states[state_id], world, keys);
    // Only this task's time has passed.
    auto* record = const_cast<OrderRecord*>(turn->Find<OrderRecord>(order::kOrders, kOrderId));
    Task& task = *record->mutable_saga()->mutable_tasks(input.step);
    if (input.expiry) {
      task.set_expire_time_us(kAtOnce_us);
    } else if (input.undo) {
      task.set_undo_retry_time_us(kAtOnce_us);
    } else {
      task.set_retry_time_us(kAtOnce_us);
    }
    world.context->timer.due(kOrderId, *turn);
  } else {
    std::unique_ptr<Message> request(input.handler->request().New());
    GK_CHECK(request->ParseFromString(input.payload)) << input.handler->name();
    flow::Caller caller;
    caller.request_uuid = kOrderId;
    if (input.kind == Input::Kind::kCommand) caller.reply_to = "order";
    answer.status = input.handler->Validate(*request);
    if (answer.status.code() != 0) {
      answer.kind = Answer::Kind::kRefused;
    } else {
      std::vector<RowKey> keys;
      input.handler->Keys(*request, caller, &keys);
      for (int round = 0;; ++round) {
        GK_CHECK(round < 10) << input.handler->name() << " asks for rows for ever";
        turn = Load(world.states[state_id], world, keys);
        answer = input.handler->Handle(*request, caller, *turn);
        if (answer.kind != Answer::Kind::kRetry) break;
        keys.insert(keys.end(), answer.more_keys.begin(), answer.more_keys.end());
      }
    }
    const bool is_step = input.kind == Input::Kind::kCommand || input.kind == Input::Kind::kCall ||
                         input.kind == Input::Kind::kLate;
    if (is_step && input.kind != Input::Kind::kLate) {
      effect->result = ResultInput(input, answer, /*unreachable=*/false);
    }
    switch (answer.kind) {
      case Answer::Kind::kDone:
        effect->said = "done";
        break;
      case Answer::Kind::kPending:
        effect->said = "a person will answer";
        break;
      case Answer::Kind::kWait:
        effect->said = "waits";
        effect->place_waits = absl::EndsWith(answer.wait_key, "/place");
        effect->cancel_waits = !effect->place_waits;
        break;
      default:
        effect->said = absl::StrCat("refused, ", flow::ReasonOf(answer.status));
    }
  }
  if (turn != nullptr) {
    for (const RowKey& key : turn->order()) {
      const Turn::Row& row = turn->row(key);
      if (!row.dirty) continue;
      const auto& tables = world.context->tables;
      const int table =
          static_cast<int>(std::find(tables.begin(), tables.end(), key.table) - tables.begin());
      if (key.table == &order::kOrders) {
        OrderRecord record = static_cast<const OrderRecord&>(*row.body);
        NormalizeOrder(&record);
        rows[{table, key.key}] = Serialize(record);
      } else {
        rows[{table, key.key}] = Serialize(*row.body);
      }
    }
    const auto sent = [&](Input::Kind kind, const std::string& to, const std::string& method,
                          const std::string& wire_id, bool undo, const std::string& payload) {
      Input out;
      out.kind = kind;
      out.bus = kind == Input::Kind::kCommand;
      for (int c = 1; c < static_cast<int>(worlds_.size()); ++c) {
        if (worlds_[c].context->name == to) out.context = c;
      }
      GK_CHECK(out.context > 0) << to;
      out.handler = worlds_[out.context].handlers.at(method);
      out.wire_id = wire_id;
      out.step = plan_.StepIndex(wire_id.substr(0, wire_id.find('.')));
      out.undo = undo;
      out.payload = payload;
      out.text = StepText(out.step, undo);
      effect->out.push_back(InternInput(std::move(out)));
    };
    for (const Envelope& envelope : turn->envelopes()) {
      if (envelope.kind == Envelope::Kind::kCommand) {
        sent(Input::Kind::kCommand, envelope.to, envelope.type, envelope.step_id, envelope.undo,
             envelope.payload);
      } else if (envelope.kind == Envelope::Kind::kAnswer) {
        Input of;
        of.bus = true;
        of.wire_id = envelope.step_id;
        of.step = plan_.StepIndex(of.wire_id.substr(0, of.wire_id.find('.')));
        of.undo = envelope.undo;
        Answer sent_answer;
        sent_answer.payload = envelope.payload;
        if (envelope.outcome == Outcome::OUTCOME_REFUSED) {
          sent_answer.kind = Answer::Kind::kRefused;
          GK_CHECK(sent_answer.status.ParseFromString(envelope.payload));
        }
        effect->out.push_back(ResultInput(of, sent_answer, /*unreachable=*/false));
      }  // events go to views, which decide nothing
    }
    for (const flow::Call& call : turn->calls()) {
      sent(Input::Kind::kCall, call.context, call.method, call.step_id, call.undo, call.payload);
    }
    for (const auto& [key, resolution] : turn->resolved()) {
      (absl::EndsWith(key, "/place") ? effect->place_resolved : effect->cancel_resolved) = true;
    }
  }
  effect->state = InternState(context, std::move(rows));
  return effect;
}

bool Explorer::HasRecord(int context, uint32_t state, const std::string& wire_id) const {
  const auto& records = worlds_[context].states[state].records;
  return std::any_of(records.begin(), records.end(),
                     [&](const RecordFact& fact) { return fact.wire_id == wire_id; });
}

// ---------------------------------------------------------------- sets of messages

uint32_t Explorer::InternFlight(std::vector<uint16_t> inputs) {
  const auto [it, inserted] =
      flight_ids_.try_emplace(std::move(inputs), static_cast<uint32_t>(flights_.size()));
  if (inserted) flights_.push_back(it->first);
  return it->second;
}

uint32_t Explorer::With(uint32_t flight, uint16_t input) {
  const uint64_t key = uint64_t{flight} << 16 | input;
  const auto found = flight_with_.find(key);
  if (found != flight_with_.end()) return found->second;
  std::vector<uint16_t> inputs = flights_[flight];
  const auto at = std::lower_bound(inputs.begin(), inputs.end(), input);
  if (at == inputs.end() || *at != input) inputs.insert(at, input);
  return flight_with_[key] = InternFlight(std::move(inputs));
}

uint32_t Explorer::Without(uint32_t flight, uint16_t input) {
  const uint64_t key = uint64_t{flight} << 16 | input;
  const auto found = flight_without_.find(key);
  if (found != flight_without_.end()) return found->second;
  std::vector<uint16_t> inputs = flights_[flight];
  inputs.erase(std::remove(inputs.begin(), inputs.end(), input), inputs.end());
  return flight_without_[key] = InternFlight(std::move(inputs));
}

// ---------------------------------------------------------------- moves

void Explorer::SetState(Node* node, int context, uint32_t state) {
  if (context == 0) {
    node->order = state;
  } else {
    node->others[context - 1] = static_cast<uint16_t>(state);
  }
}

void Explorer::Follow(Node* node, int context, const Effect& effect, bool with_result) {
  SetState(node, context, effect.state);
  for (uint16_t out : effect.out) node->flight = With(node->flight, out);
  if (with_result && effect.result >= 0)
    node->flight = With(node->flight, static_cast<uint16_t>(effect.result));
  if (effect.place_waits) node->flags |= kPlaceWaits;
  if (effect.cancel_waits) node->flags |= kCancelWaits;
  if (effect.place_resolved) node->flags &= ~kPlaceWaits;
  if (effect.cancel_resolved) node->flags &= ~kCancelWaits;
}

template <class Sink>
void Explorer::Expand(const Node& node, Sink sink) {
  using Kind = Move::Kind;
  if ((node.flags & kStarted) == 0) {
    for (const Start& start : starts_) {
      const Effect& effect = Apply(0, start.node.order, start.input);
      Node next = start.node;
      next.flags |= kStarted;
      Follow(&next, 0, effect, true);
      sink(next, Move{Kind::kTake, start.input, &effect});
    }
    return;
  }
  const bool faulty = Faults(node) < bounds_.fault_count_max;
  const std::vector<uint16_t> flight = flights_[node.flight];  // moves add sets
  int bus_count = 0;
  bool calls_open = false;
  for (uint16_t id : flight) {
    const Input::Kind kind = inputs_[id].kind;
    const int context = inputs_[id].context;
    const int late = inputs_[id].late;
    const int step = inputs_[id].step;
    const bool bus = inputs_[id].bus;
    const bool undo = inputs_[id].undo;
    const bool asks_step = kind != Input::Kind::kResult && !undo;
    bus_count += bus;
    calls_open |= !bus && kind != Input::Kind::kLate;
    Node without = node;
    without.flight = Without(node.flight, id);
    const uint32_t state = StateOf(node, context);

    const bool always_refused = asks_step && (node.refused >> step & 1) != 0;
    const Effect& effect = always_refused ? Refused(id) : Apply(context, state, id);
    const auto follow = [&](Node next, Kind move, const Effect& what, bool refused) {
      if (refused) {
        next.flight = With(next.flight, static_cast<uint16_t>(what.result));
      } else {
        Follow(&next, context, what, kind != Input::Kind::kLate);
      }
      sink(next, Move{move, id, &what});
    };
    if (kind == Input::Kind::kLate) {
      if (!always_refused) follow(without, Kind::kTake, effect, false);
      sink(without, Move{Kind::kVanish, id, nullptr});
      continue;
    }
    follow(without, Kind::kTake, effect, always_refused);
    if (asks_step && !always_refused && node.refusals < bounds_.refusal_count_max &&
        !HasRecord(context, state, inputs_[id].wire_id)) {
      Node next = without;
      ++next.refusals;
      next.refused |= static_cast<uint16_t>(1 << step);
      follow(next, Kind::kRefuse, Refused(id), true);
    }
    if (!faulty) continue;
    const bool call_result = kind == Input::Kind::kResult && !bus;
    if (!call_result && node.duplicates < bounds_.duplicate_count_max) {
      Node next = node;
      ++next.duplicates;
      follow(next, Kind::kTakeAndKeep, effect, always_refused);
    }
    if (bus && node.losses < bounds_.loss_count_max) {
      Node next = without;
      ++next.losses;
      sink(next, Move{Kind::kLose, id, nullptr});
    }
    if (kind == Input::Kind::kCall && node.unreachable < bounds_.unreachable_count_max) {
      Node next = without;
      ++next.unreachable;
      next.flight = With(next.flight, static_cast<uint16_t>(late));
      next.flight =
          With(next.flight, ResultInput(Input(inputs_[id]), Answer(), /*unreachable=*/true));
      sink(next, Move{Kind::kUnreachable, id, nullptr});
    }
  }
  if (faulty && bus_count > 0 && node.wipes < bounds_.wipe_count_max) {
    Node next = node;
    ++next.wipes;
    std::vector<uint16_t> left;
    for (uint16_t id : flight) {
      if (!inputs_[id].bus) left.push_back(id);
    }
    next.flight = InternFlight(std::move(left));
    sink(next, Move{Kind::kWipe, 0, nullptr});
  }
  if (faulty && (calls_open || (node.flags & (kPlaceWaits | kCancelWaits)) != 0) &&
      node.crashes < bounds_.crash_count_max) {
    Node next = node;
    ++next.crashes;
    next.flags &= ~(kPlaceWaits | kCancelWaits);
    std::set<uint16_t> left;
    for (uint16_t id : flight) {
      const Input& input = inputs_[id];
      if (input.bus || input.kind == Input::Kind::kLate) {
        left.insert(id);
      } else if (input.kind == Input::Kind::kCall) {
        left.insert(static_cast<uint16_t>(input.late));
      }
    }
    next.flight = InternFlight({left.begin(), left.end()});
    sink(next, Move{Kind::kCrash, 0, nullptr});
  }
  const auto act = [&](int context, uint16_t input) {
    const Effect& effect = Apply(context, StateOf(node, context), input);
    Node next = node;
    Follow(&next, context, effect, false);
    sink(next, Move{Kind::kTake, input, &effect});
  };
  const std::vector<uint16_t> timers = worlds_[0].states[node.order].timers;  // turns add states
  for (uint16_t timer : timers) {
    const Input& task = inputs_[timer];
    const bool under_way = std::any_of(flight.begin(), flight.end(), [&](uint16_t id) {
      const Input& input = inputs_[id];
      return input.step == task.step && input.undo == task.undo && input.kind != Input::Kind::kLate;
    });
    if (task.expiry || !under_way || bounds_.asks_early_freely) {
      act(0, timer);
    } else if (faulty && node.duplicates < bounds_.duplicate_count_max) {
      const Effect& effect = Apply(0, node.order, timer);
      Node next = node;
      Follow(&next, 0, effect, false);
      if (next == node) continue;
      ++next.duplicates;
      sink(next, Move{Kind::kAskEarly, timer, &effect});
    }
  }
  for (int c = 1; c < static_cast<int>(worlds_.size()); ++c) {
    const std::vector<uint16_t> people = worlds_[c].states[StateOf(node, c)].people;
    for (uint16_t person : people) act(c, person);
  }
  if (node.cancels < bounds_.cancel_count_max) {
    const Effect& effect = Apply(0, node.order, cancel_input_);
    Node next = node;
    ++next.cancels;
    Follow(&next, 0, effect, false);
    sink(next, Move{Kind::kTake, cancel_input_, &effect});
  }
}

// ---------------------------------------------------------------- properties

std::string Explorer::Violation(const Node& node, std::string* sentence) const {
  for (int c = 1; c < static_cast<int>(worlds_.size()); ++c) {
    const std::string& twice = worlds_[c].states[StateOf(node, c)].twice;
    const std::string& broken = worlds_[c].states[StateOf(node, c)].broken;
    if (broken.empty() && !twice.empty()) {
      *sentence = twice;
      return "non-idempotence";
    }
    if (broken.empty()) continue;
    *sentence = absl::StrCat(worlds_[c].context->name, ": ", broken);
    return "books out of balance";
  }
  if (pay_count_ > 0 && ships_ && worlds_[delivery_].states[StateOf(node, delivery_)].done_now &&
      !worlds_[payment_].states[StateOf(node, payment_)].done_ever) {
    *sentence =
        "the parcel leaves, and nothing has been paid: let the step that ships wait for the one "
        "that is paid (after)";
    return "unpaid goods shipped";
  }
  return Ended(node) ? EndViolation(node, sentence) : "";
}

OrderRecord Explorer::RecordOf(uint32_t order_state) const {
  OrderRecord record;
  for (const auto& [key, bytes] : worlds_[0].states[order_state].rows) {
    if (worlds_[0].context->tables[key.first] != &order::kOrders) continue;
    GK_CHECK(record.ParseFromString(bytes)) << key.second;
  }
  return record;
}

std::string Explorer::EndViolation(const Node& node, std::string* sentence) const {
  const Order::State order = worlds_[0].states[node.order].order_state;
  const bool completed = order == Order::STATE_COMPLETED;
  const char* ended = completed                         ? "completed"
                      : order == Order::STATE_CANCELLED ? "cancelled"
                                                        : "refused";
  std::vector<int> held_count(plan_.steps.size(), 0);
  for (int c = 1; c < static_cast<int>(worlds_.size()); ++c) {
    for (const RecordFact& record : worlds_[c].states[StateOf(node, c)].records) {
      if (record.step < 0 || !record.held()) continue;
      const PlanStep& step = plan_.steps[record.step];
      if (step.undo_method.empty()) continue;
      ++held_count[record.step];
      if (step.in_cancel ? order == Order::STATE_CANCELLED : completed) continue;
      const OrderRecord told = RecordOf(node.order);
      const auto& task = told.saga().tasks(record.step);
      const std::string what = absl::StrCat("the order is ", ended, ", and ",
                                            StepText(record.step, false), " still stands");
      if (task.undo_state() == order::v1::TASK_STATE_DONE) {
        *sentence = absl::StrCat(what, ": it came after its undo");
        return "hanging";
      }
      if (order == Order::STATE_CANCELLED) {
        *sentence = absl::StrCat(what, ": cancel never takes it back; write a step { undo: \"",
                                 step.id, "\" }");
      } else {
        *sentence = absl::StrCat(what, ": nothing takes it back");
      }
      return "empty compensation";
    }
  }
  if (completed) {
    for (int i = 0; i < plan_.place_count; ++i) {
      if (plan_.steps[i].undo_method.empty() || held_count[i] == 1) continue;
      *sentence = absl::StrCat("the order is completed, and ", StepText(i, false),
                               held_count[i] == 0 ? " is not done" : " is done twice");
      return held_count[i] == 0 ? "step missing" : "non-idempotence";
    }
  }
  if (order == Order::STATE_CANCELLED && !plan_.unless_done.empty()) {
    const OrderRecord told = RecordOf(node.order);
    for (int i : plan_.unless_done) {
      // One that has an undo may be done after the cancel was accepted, and is taken back.
      if (!plan_.steps[i].undo_method.empty() ||
          told.saga().tasks(i).state() != order::v1::TASK_STATE_DONE)
        continue;
      *sentence = absl::StrCat("the order is cancelled, and ", StepText(i, false),
                               " was done before: it was too late");
      return "cancelled too late";
    }
  }
  if (completed && checks_out_ && worlds_[cart_].states[StateOf(node, cart_)].waiting_carts > 0) {
    *sentence = "the order is completed, and its cart still waits for the payment";
    return "step missing";
  }
  if (payment_ > 0) {
    const int64_t money = worlds_[payment_].states[StateOf(node, payment_)].money;
    const int64_t price = completed ? pay_count_ * kUnitPrice : 0;
    if (money != price) {
      *sentence = absl::StrCat("the order is ", ended, ", and ", money,
                               " of the buyer's money is kept, not ", price);
      return money > price && completed ? "non-idempotence" : "empty compensation";
    }
  }
  if (catalog_ > 0) {
    const int64_t reserved = worlds_[catalog_].states[StateOf(node, catalog_)].reserved;
    const int64_t sold = completed ? reserve_count_ : 0;
    if (reserved != sold) {
      *sentence = absl::StrCat("the order is ", ended, ", and ", reserved,
                               " units are reserved, not ", sold);
      return "stock drift";
    }
  }
  if ((node.flags & (kPlaceWaits | kCancelWaits)) != 0) {
    *sentence = absl::StrCat("the order is ", ended, ", and whoever ",
                             (node.flags & kPlaceWaits) != 0 ? "placed" : "cancelled",
                             " it still waits for an answer");
    return "caller left waiting";
  }
  return "";
}

std::vector<std::string> Explorer::HeldBy(const Node& node) const {
  std::vector<std::string> held;
  for (int c = 1; c < static_cast<int>(worlds_.size()); ++c) {
    const ContextState& state = worlds_[c].states[StateOf(node, c)];
    for (const RecordFact& record : state.records) {
      if (!record.held()) continue;
      held.push_back(absl::StrCat(
          worlds_[c].context->name, ": ", StepText(record.step, false),
          record.outcome == Outcome::OUTCOME_DONE ? " is done" : " waits for a person"));
    }
    if (state.money != 0)
      held.push_back(absl::StrCat("payment: ", state.money, " ", plan_.currency_code, " kept"));
    if (state.reserved != 0)
      held.push_back(absl::StrCat("catalog: ", state.reserved, " units reserved"));
  }
  return held;
}

std::string Explorer::Line(const Node& from, const Node& to, const Move& move) const {
  using Kind = Move::Kind;
  std::string line;
  const Input& input = inputs_[move.input];
  const std::string context = worlds_[input.context].context->name;
  const std::string said = move.effect == nullptr ? "" : absl::StrCat(": ", move.effect->said);
  switch (move.kind) {
    case Kind::kTake:
    case Kind::kTakeAndKeep:
    case Kind::kRefuse:
    case Kind::kAskEarly:
      switch (input.kind) {
        case Input::Kind::kCommand:
        case Input::Kind::kCall:
          line =
              absl::StrCat(context, " is ", input.bus ? "told " : "called for ", input.text, said);
          break;
        case Input::Kind::kLate:
          line = absl::StrCat("the call of ", input.text, " arrives at last", said);
          break;
        case Input::Kind::kResult:
          line = absl::StrCat("order hears: ", input.text);
          break;
        case Input::Kind::kTimer:
          line = input.text;
          break;
        case Input::Kind::kBuyer:
        case Input::Kind::kPerson:
          line = absl::StrCat(input.text, said);
          break;
      }
      if (move.kind == Kind::kTakeAndKeep)
        absl::StrAppend(&line, "; the message will come a second time");
      break;
    case Kind::kLose:
      line = input.kind == Input::Kind::kResult
                 ? absl::StrCat("the answer is lost: ", input.text)
                 : absl::StrCat("the command of ", input.text, " is lost");
      break;
    case Kind::kUnreachable:
      line =
          absl::StrCat("the call of ", input.text, " is given up, unanswered; it may still arrive");
      break;
    case Kind::kVanish:
      line = absl::StrCat("the call of ", input.text, " never arrives");
      break;
    case Kind::kCrash:
      line = "the order process dies and starts again; it has forgotten its calls";
      break;
    case Kind::kWipe:
      line = "the bus's store is wiped: no message in it is left";
      break;
  }
  const Order::State before = worlds_[0].states[from.order].order_state;
  const Order::State after = worlds_[0].states[to.order].order_state;
  if (before != after) {
    absl::StrAppend(&line, " [the order is ", StateName(after), "]");
  }
  return line;
}

void Explorer::Tell(uint32_t node, Report* report) {
  report->verdict = Verdict::kViolated;
  std::vector<uint32_t> path;
  for (uint32_t i = node;; i = nodes_.parent(i)) {
    path.push_back(i);
    if (i == 0) break;
  }
  std::reverse(path.begin(), path.end());
  for (size_t i = 1; i < path.size(); ++i) {
    const Node from = nodes_[path[i - 1]], to = nodes_[path[i]];
    std::string line;
    Expand(from, [&](const Node& next, const Move& move) {
      if (line.empty() && next == to) line = Line(from, to, move);
    });
    report->trace.push_back(std::move(line));
  }
  report->held = HeldBy(nodes_[node]);
}

// ---------------------------------------------------------------- the search

Report Explorer::Run(const std::function<void(const Report&)>& progress) {
  Report report;
  nodes_.Insert(Node(), 0);
  std::vector<std::pair<uint32_t, uint32_t>> fair;  // (to, from)
  uint32_t level_end = 1;
  bool found = false;
  uint32_t bad = 0;
  for (uint32_t i = 0; i < nodes_.size() && !found; ++i) {
    if (i == level_end) {
      ++report.depth;
      level_end = nodes_.size();
    }
    if (i % kProgressStates == 0 && progress) {
      report.state_count = nodes_.size();
      progress(report);
    }
    if (nodes_.size() > bounds_.state_count_max || states_full_) {
      report.state_count = nodes_.size();
      report.turn_count = turn_count_;
      return report;
    }
    const Node node = nodes_[i];
    Expand(node, [&](const Node& next, const Move& move) {
      if (next == node || found) return;
      ++report.transition_count;
      const auto [id, inserted] = nodes_.Insert(next, i);
      if (move.fair() && move.input != cancel_input_) fair.emplace_back(id, i);
      if (!inserted) return;
      report.hazard = Violation(next, &report.sentence);
      if (!report.hazard.empty()) {
        found = true;
        bad = id;
      }
      if (Ended(next)) ++report.ended_count;
    });
  }
  report.state_count = nodes_.size();
  report.turn_count = turn_count_;
  if (found) {
    Tell(bad, &report);
    return report;
  }
  // Backwards from the ends, along what happens by itself.
  std::vector<uint32_t> first(nodes_.size() + 1, 0);
  for (const auto& [to, from] : fair) ++first[to + 1];
  for (uint32_t i = 0; i < nodes_.size(); ++i) first[i + 1] += first[i];
  std::vector<uint32_t> sources(fair.size());
  {
    std::vector<uint32_t> at(first.begin(), first.end() - 1);
    for (const auto& [to, from] : fair) sources[at[to]++] = from;
  }
  fair = {};
  std::vector<bool> can_end(nodes_.size(), false);
  std::vector<uint32_t> todo;
  for (uint32_t i = 0; i < nodes_.size(); ++i) {
    if (!Ended(nodes_[i])) continue;
    can_end[i] = true;
    todo.push_back(i);
  }
  while (!todo.empty()) {
    const uint32_t to = todo.back();
    todo.pop_back();
    for (uint32_t k = first[to]; k < first[to + 1]; ++k) {
      if (can_end[sources[k]]) continue;
      can_end[sources[k]] = true;
      todo.push_back(sources[k]);
    }
  }
  // The first at which nothing is in flight tells most.
  uint32_t stuck = nodes_.size();
  for (uint32_t i = nodes_.size(); i-- > 0;) {
    if (can_end[i]) continue;
    if (stuck == nodes_.size() || nodes_[i].flight == 0 || nodes_[stuck].flight != 0) stuck = i;
  }
  if (stuck < nodes_.size()) {
    const ContextState& order = worlds_[0].states[nodes_[stuck].order];
    report.hazard = "stuck";
    report.sentence =
        absl::StrCat("the order is ", StateName(order.order_state),
                     " and can never end, although nothing more goes wrong",
                     order.awaited.empty()
                         ? ""
                         : absl::StrCat("; it waits for ", absl::StrJoin(order.awaited, ", ")));
    Tell(stuck, &report);
    return report;
  }
  report.verdict = Verdict::kProved;
  return report;
}

}  // namespace

absl::StatusOr<Report> Explore(const Plan& plan, const Bounds& bounds,
                               const std::function<void(const Report&)>& progress,
                               const std::vector<const Context*>& contexts) {
  Explorer explorer(plan, bounds);
  if (absl::Status status = explorer.Prepare(contexts); !status.ok()) return status;
  return explorer.Run(progress);
}

}  // namespace gaekju::check
