#include "check/world.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "flow/check.h"
#include "flow/saga.h"
#include "flow/saga_rules.h"
#include "gaekju/assignment/v1/assignment_service.pb.h"
#include "gaekju/catalog/v1/catalog_service.pb.h"
#include "gaekju/delivery/v1/delivery_service.pb.h"
#include "gaekju/order/v1/order_service.pb.h"
#include "gaekju/payment/v1/payment.pb.h"
#include "gaekju/payment/v1/payment_service.pb.h"
#include "gaekju/store/v1/store_service.pb.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/rpc/code.pb.h"
#include "services/cart/cart.h"
#include "services/catalog/catalog.h"
#include "services/delivery/delivery.h"
#include "services/notification/notification.h"
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
constexpr int kStepsMax = 16;

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

// splitmix64's last step: every bit of the input moves half of the output's.
uint64_t Mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t MarkOf(const std::string& bytes, uint64_t salt) {
  return Mixed(flow::FingerprintBytes(bytes) + Mixed(salt + 1));
}

// The only dealer that there is.
assignment::v1::Dealer TheDealer(const Plan& plan) {
  assignment::v1::Dealer dealer;
  dealer.set_dealer_id(kDealerId);
  dealer.set_storefront(plan.storefront);
  dealer.mutable_location()->set_latitude(37.5);
  dealer.mutable_location()->set_longitude(127);
  return dealer;
}

}  // namespace

World::World(const Plan& plan)
    : plan_(WithoutNotices(plan)),
      book_(std::make_unique<OnePlan>(plan_)),
      dealers_({TheDealer(plan_)}),
      assignment_context_(assignment::MakeAssignmentContext(&dealers_)) {}

// ---------------------------------------------------------------- setting up

const Context* World::ContextNamed(const std::string& name,
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

absl::Status World::Prepare(const std::vector<const Context*>& contexts) {
  if (plan_.steps.size() > kStepsMax) {
    return absl::FailedPreconditionError(absl::StrCat("storefront \"", plan_.storefront, "\" has ",
                                                      plan_.steps.size(), " steps; at most ",
                                                      kStepsMax, " can be explored"));
  }
  order_context_ = order::MakeOrderContext(book_.get());
  const auto add = [&](const Context* context) {
    contexts_.push_back(std::make_unique<OneContext>());
    contexts_.back()->context = context;
  };
  const Context* order_context = order_context_.get();
  for (const Context* given : contexts) {
    if (given->name == order_context->name) order_context = given;
  }
  add(order_context);
  for (const PlanStep& step : plan_.steps) {
    const auto same = [&](const auto& known) { return known->context->name == step.context; };
    if (std::any_of(contexts_.begin(), contexts_.end(), same)) continue;
    const Context* context = ContextNamed(step.context, contexts);
    if (context == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat("step \"", step.id, "\" calls ", step.method, ", and how ", step.context,
                       " decides is not part of this program (its deciders are not linked in), so "
                       "nothing can be proved of \"",
                       plan_.storefront, "\"; the file itself is well-formed"));
    }
    if (contexts_.size() > kOtherContextsMax)
      return absl::FailedPreconditionError("too many contexts to explore");
    add(context);
  }
  GK_CHECK(InternFlight({}) == 0);
  GK_CHECK(InternDelta(-3, {}) == kWiped);
  GK_CHECK(InternDelta(-2, {}) == kCrashed);
  GK_CHECK(InternDelta(-1, {}) == kNoChange);
  for (int c = 0; c < static_cast<int>(contexts_.size()); ++c) {
    for (const auto& handler : context(c).handlers)
      contexts_[c]->handlers[handler->name()] = handler.get();
    const std::string& name = context(c).name;
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
    if (method == "delivery.AwaitReceipt") handovers_.emplace_back(i, delivery_);
    if (method == "assignment.AwaitPickup") handovers_.emplace_back(i, assignment_);
  }
  for (int c = 0; c < static_cast<int>(contexts_.size()); ++c) GK_CHECK(InternState(c, {}) == 0);

  Worker worker;
  Node node;
  Node sold_out = node;
  if (catalog_ > 0) {
    catalog::v1::CreateProductRequest create;
    create.set_product_id(kProductId);
    create.mutable_unit_price()->set_currency_code(plan_.currency_code);
    create.mutable_unit_price()->set_minor_units(kUnitPrice);
    create.set_available_count(0);
    SetState(&sold_out, catalog_,
             Apply(worker, catalog_, 0, PersonInput(catalog_, create, "")).state);
    create.set_available_count(kStock);
    SetState(&node, catalog_, Apply(worker, catalog_, 0, PersonInput(catalog_, create, "")).state);
  }
  Node dealers_full = node;
  if (assignment_ > 0) {
    assignment::v1::CreateDealerRequest create;
    create.set_dealer_id(kDealerId);
    create.set_storefront(plan_.storefront);
    create.set_agency_name("Agency");
    *create.mutable_location() = TheDealer(plan_).location();
    create.set_capacity(kDealerCapacity);
    const uint32_t state =
        Apply(worker, assignment_, 0, PersonInput(assignment_, create, "")).state;
    for (Node* at : {&node, &sold_out}) SetState(at, assignment_, state);
  }
  order::v1::PlaceOrderRequest place;
  place.set_storefront(plan_.storefront);
  place.set_customer_id("c1");
  place.set_request_id("r1");
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
    starts_.push_back({BuyerInput("PlaceOrder", place, text), at});
    starts_.back().node.started = 1;
    again_.try_emplace(place.payment_method(),
                       BuyerInput("PlaceOrder", place, "the buyer's app asks once more"));
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
  cancel_input_ = BuyerInput("CancelOrder", cancel, "the buyer cancels");
  return absl::OkStatus();
}

// ---------------------------------------------------------------- turns

std::string World::StepText(int i, bool undo) const {
  if (i < 0) return "?";
  const PlanStep& step = plan_.steps[i];
  return undo ? absl::StrCat("undo of \"", step.id, "\" (",
                             ShortMethod(step.context, step.undo_method), ")")
              : absl::StrCat("\"", step.id, "\" (", ShortMethod(step.context, step.method), ")");
}

uint16_t World::InternInput(Input input) {
  if (input.kind != Input::Kind::kCall) return AddInput(std::move(input));
  Input late = input;
  late.kind = Input::Kind::kLate;
  input.late = AddInput(std::move(late));
  input.unreachable = ResultInput(input, Answer(), /*unreachable=*/true);
  return AddInput(std::move(input));
}

uint16_t World::AddInput(Input input) {
  const bool person = input.kind == Input::Kind::kBuyer || input.kind == Input::Kind::kPerson;
  std::string key =
      absl::StrCat(static_cast<int>(input.kind), "|", context(input.context).name, "|",
                   input.handler == nullptr ? "" : input.handler->name(), "|", input.wire_id, "|",
                   input.step, "|", input.undo, input.bus, input.expiry, input.result.unreachable,
                   "|", static_cast<int>(input.result.outcome), "|", person ? input.text : "", "|",
                   input.result.payload, "|", input.payload);
  std::lock_guard<std::mutex> lock(inputs_mutex_);
  const auto it = input_ids_.find(key);
  if (it != input_ids_.end()) return it->second;
  GK_CHECK(inputs_.size() < 0xffff) << "too many messages";
  input.mark = MarkOf(key, 99);
  const auto id = static_cast<uint16_t>(inputs_.size());
  input.lost = InternDelta(id, {});
  if (input.kind == Input::Kind::kCall) {
    input.given_up = InternDelta(
        id, {static_cast<uint16_t>(input.late), static_cast<uint16_t>(input.unreachable)});
  }
  inputs_.Add(std::move(input));
  input_ids_.emplace(std::move(key), id);
  return id;
}

uint16_t World::BuyerInput(const std::string& method, const Message& request, std::string text) {
  Input input;
  input.kind = Input::Kind::kBuyer;
  input.handler = contexts_[0]->handlers.at(absl::StrCat("gaekju.order.v1.OrderService.", method));
  input.payload = Serialize(request);
  input.text = std::move(text);
  return InternInput(std::move(input));
}

uint16_t World::ResultInput(const Input& of, const Answer& answer, bool unreachable) {
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

uint16_t World::PersonInput(int context, const Message& request, std::string text) {
  Input input;
  input.kind = Input::Kind::kPerson;
  input.context = context;
  for (const auto& [name, handler] : contexts_[context]->handlers) {
    if (handler->request().GetDescriptor() == request.GetDescriptor()) input.handler = handler;
  }
  GK_CHECK(input.handler != nullptr) << request.GetTypeName();
  input.payload = Serialize(request);
  input.text = std::move(text);
  return InternInput(std::move(input));
}

// What people may do to a context's rows. People of contexts that are not known here never act.
void World::People(int context, ContextState* state) {
  const std::string& name = this->context(context).name;
  for (const auto& [key, bytes] : state->rows) {
    if (key.first < 0) continue;
    const flow::Table* table = this->context(context).tables[key.first];
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

void World::Judge(int context, ContextState* state) {
  int64_t ledger = 0, captured = 0, refunded = 0;
  int64_t places = 0, places_free = 0, assigned = 0;
  std::map<std::string, int64_t> accounts;
  for (const auto& [key, bytes] : state->rows) {
    if (key.first < 0) continue;
    const flow::Table* table = this->context(context).tables[key.first];
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
      const bool done = fact.outcome == Outcome::OUTCOME_DONE &&
                        (fact.step < 0 || !plan_.steps[fact.step].in_cancel);
      state->done_ever |= done;
      state->done_now |= done && fact.undo == Outcome::OUTCOME_UNSPECIFIED;
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
      const auto& assignment = static_cast<const assignment::v1::Assignment&>(*body);
      assigned += assignment.state() == assignment::v1::Assignment::STATE_ASSIGNED;
      state->given |= assignment.has_pickup_time();
    } else if (table == &delivery::kDeliveries) {
      state->given |= static_cast<const delivery::v1::Delivery&>(*body).receipt_step().outcome() ==
                      Outcome::OUTCOME_DONE;
    } else if (table == &cart::kCarts) {
      state->waiting_carts +=
          static_cast<const cart::v1::Cart&>(*body).state() == cart::v1::Cart::STATE_WAITING;
    } else if (table == &order::kOrders) {
      JudgeOrder(static_cast<const OrderRecord&>(*body), state);
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
  state->suspect = !state->broken.empty() || !state->twice.empty();
  People(context, state);
}

void World::JudgeOrder(const OrderRecord& record, ContextState* state) {
  const Order& order = record.order();
  state->broken = flow::BrokenSagaRule(plan_, record);
  state->order_state = order.state();
  state->word = order.status_text().ko();
  if (order.status_text().en() != order.status_text().ko())
    absl::StrAppend(&state->word, " / ", order.status_text().en());
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
  state->ended = !awaited && (order.state() == Order::STATE_COMPLETED ||
                              order.state() == Order::STATE_CANCELLED ||
                              order.state() == Order::STATE_REJECTED);
  // One who may order again gets another order: that is another life.
  const bool another = record.saga().place_retryable() && !order.has_place_time();
  const auto again = again_.find(order.payment_method());
  if (!another && again != again_.end()) state->again = again->second;
}

uint32_t World::InternState(int context, Rows rows) {
  OneContext& c = *contexts_[context];
  std::string key;
  for (const auto& [row, bytes] : rows) {
    absl::StrAppend(&key, row.first, "/", row.second, "=", bytes.size(), ":", bytes);
  }
  {
    std::lock_guard<std::mutex> lock(c.mutex);
    const auto it = c.state_ids.find(key);
    if (it != c.state_ids.end()) return it->second;
  }
  ContextState state;
  state.mark = MarkOf(key, context);
  state.rows = std::move(rows);
  Judge(context, &state);
  std::lock_guard<std::mutex> lock(c.mutex);
  const auto [it, inserted] = c.state_ids.try_emplace(std::move(key), c.states.size());
  if (inserted) {
    c.states.Add(std::move(state));
    if (c.states.size() >= (context == 0 ? kOrderStatesMax : kContextStatesMax)) full_ = true;
  }
  return it->second;
}

std::unique_ptr<Turn> World::Load(const ContextState& state, int context,
                                  const std::vector<RowKey>& keys) const {
  auto turn = std::make_unique<Turn>(kNow_us);
  for (const RowKey& key : keys) {
    if (turn->HasRow(key)) continue;
    const auto& tables = this->context(context).tables;
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

const Effect& World::Apply(Worker& worker, int context, uint32_t state, uint16_t input,
                           bool refuse) {
  const uint64_t key =
      static_cast<uint64_t>(context) << 41 | uint64_t{refuse} << 40 | uint64_t{state} << 16 | input;
  if (const auto* known = worker.effects.Find(key)) return **known;
  OneContext& c = *contexts_[context];
  {
    std::lock_guard<std::mutex> lock(c.mutex);
    const auto it = c.effects.find(key);
    if (it != c.effects.end()) {
      worker.effects.Store(key, it->second.get());
      return *it->second;
    }
  }
  std::unique_ptr<Effect> effect = refuse ? RefuseInput(context, state, inputs_[input])
                                          : RunInput(context, state, inputs_[input]);
  effect->mark_change = c.states[state].mark ^ c.states[effect->state].mark;
  std::vector<uint16_t> out = effect->out;
  effect->taken_late = InternDelta(input, out);
  effect->acted = InternDelta(-1, out);
  if (effect->result >= 0) out.push_back(static_cast<uint16_t>(effect->result));
  effect->taken = InternDelta(input, out);
  effect->kept = InternDelta(-1, out);
  std::lock_guard<std::mutex> lock(c.mutex);
  const Effect* known = c.effects.emplace(key, std::move(effect)).first->second.get();
  worker.effects.Store(key, known);
  return *known;
}

// The context refuses, as a check of the request by itself does: nothing is written, and it says
// the same every time. That it does is remembered with its rows.
std::unique_ptr<Effect> World::RefuseInput(int context, uint32_t state, const Input& input) {
  auto effect = std::make_unique<Effect>();
  effect->result =
      ResultInput(input,
                  flow::Refuse(google::rpc::FAILED_PRECONDITION, this->context(context).service,
                               "SOME_REASON", "the context refuses"),
                  /*unreachable=*/false);
  effect->said = "refused";
  Rows rows = contexts_[context]->states[state].rows;
  rows[{-1, input.wire_id}] = "";
  effect->state = InternState(context, std::move(rows));
  return effect;
}

std::unique_ptr<Effect> World::RunInput(int context, uint32_t state_id, const Input& input) {
  const Context& world = this->context(context);
  const ContextState& before = contexts_[context]->states[state_id];
  if (input.step >= 0 && !input.undo && before.rows.contains({-1, input.wire_id}) &&
      input.kind != Input::Kind::kResult && input.kind != Input::Kind::kTimer) {
    return RefuseInput(context, state_id, input);
  }
  auto effect = std::make_unique<Effect>();
  Rows rows = before.rows;
  std::unique_ptr<Turn> turn;
  Answer answer;
  if (input.kind == Input::Kind::kResult) {
    std::vector<RowKey> keys;
    world.result_keys(input.result, &keys);
    turn = Load(before, context, keys);
    world.on_result(input.result, *turn);
  } else if (input.kind == Input::Kind::kTimer) {
    std::vector<RowKey> keys;
    world.timer.keys(kOrderId, &keys);
    turn = Load(before, context, keys);
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
    world.timer.due(kOrderId, *turn);
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
        turn = Load(before, context, keys);
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
      const auto& tables = world.tables;
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
      for (int c = 1; c < static_cast<int>(contexts_.size()); ++c) {
        if (this->context(c).name == to) out.context = c;
      }
      GK_CHECK(out.context > 0) << to;
      out.handler = contexts_[out.context]->handlers.at(method);
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

bool World::HasRecord(int context, uint32_t state, const std::string& wire_id) const {
  const ContextState& at = contexts_[context]->states[state];
  const auto& records = at.records;
  return at.rows.contains({-1, wire_id}) ||
         std::any_of(records.begin(), records.end(),
                     [&](const RecordFact& fact) { return fact.wire_id == wire_id; });
}

// ---------------------------------------------------------------- sets of messages

// In the order of their marks, which is the same however they were numbered.
uint32_t World::InternFlight(std::vector<uint16_t> inputs) {
  Flight flight;
  for (const uint16_t id : inputs) {
    const Input& input = inputs_[id];
    flight.mark ^= input.mark;
    flight.bus |= input.bus;
    flight.calls |= !input.bus && input.kind != Input::Kind::kLate;
  }
  std::sort(inputs.begin(), inputs.end(), [this](uint16_t a, uint16_t b) {
    return std::make_pair(inputs_[a].mark, a) < std::make_pair(inputs_[b].mark, b);
  });
  std::lock_guard<std::mutex> lock(flights_mutex_);
  const auto [it, inserted] = flight_ids_.try_emplace(flight.mark, flights_.size());
  if (!inserted) {
    GK_CHECK(flights_[it->second].inputs == inputs) << "two sets of messages with one mark";
    return it->second;
  }
  flight.inputs = std::move(inputs);
  return flights_.Add(std::move(flight));
}

uint32_t World::InternDelta(int remove, std::vector<uint16_t> add) {
  std::sort(add.begin(), add.end());
  add.erase(std::unique(add.begin(), add.end()), add.end());
  const std::string key = absl::StrCat(remove, "|", absl::StrJoin(add, ","));
  std::lock_guard<std::mutex> lock(deltas_mutex_);
  const auto [it, inserted] = delta_ids_.try_emplace(key, deltas_.size());
  if (inserted) deltas_.Add({remove, std::move(add)});
  return it->second;
}

World::Worker::Flown World::Fly(Worker& worker, uint32_t flight, uint32_t delta) {
  if (delta == kNoChange) return {0, flight};
  if (deltas_[delta].remove == -1) {
    // Most of what is taken again says what is under way already.
    const std::vector<uint16_t>& under_way = flights_[flight].inputs;
    const std::vector<uint16_t>& more = deltas_[delta].add;
    if (std::all_of(more.begin(), more.end(), [&](uint16_t id) {
          return std::find(under_way.begin(), under_way.end(), id) != under_way.end();
        })) {
      return {0, flight};
    }
  }
  const uint64_t key = uint64_t{flight} << 32 | delta;
  if (const auto* known = worker.flights.Find(key)) return *known;
  std::vector<uint16_t> inputs = flights_[flight].inputs;
  const auto remove_if = [&inputs](auto which) {
    inputs.erase(std::remove_if(inputs.begin(), inputs.end(), which), inputs.end());
  };
  const auto add = [&inputs](uint16_t id) {
    if (std::find(inputs.begin(), inputs.end(), id) == inputs.end()) inputs.push_back(id);
  };
  if (delta == kWiped) {
    remove_if([this](uint16_t id) { return inputs_[id].bus; });
  } else if (delta == kCrashed) {
    const std::vector<uint16_t> before = std::move(inputs);
    inputs.clear();
    for (const uint16_t id : before) {
      const Input& input = inputs_[id];
      if (input.bus || input.kind == Input::Kind::kLate) add(id);
      if (input.kind == Input::Kind::kCall) add(static_cast<uint16_t>(input.late));
    }
  } else {
    const Delta& change = deltas_[delta];
    remove_if([&](uint16_t id) { return id == change.remove; });
    for (const uint16_t id : change.add) add(id);
  }
  Worker::Flown flown;
  flown.flight = InternFlight(std::move(inputs));
  flown.mark_change = flights_[flight].mark ^ flights_[flown.flight].mark;
  worker.flights.Store(key, flown);
  return flown;
}

// ---------------------------------------------------------------- moves

void World::SetState(Node* node, int c, uint32_t state) {
  if (c == 0) {
    node->set_order(state);
  } else {
    node->others[c - 1] = static_cast<uint16_t>(state);
  }
}

uint64_t World::CountsMark(uint32_t counts) { return Mixed(counts + 0x9e3779b97f4a7c15u); }

uint64_t World::HashOf(const Node& node) const {
  uint64_t hash = flights_[node.flight].mark ^ CountsMark(node.counts());
  for (int c = 0; c < static_cast<int>(contexts_.size()); ++c) hash ^= StateIn(node, c).mark;
  return hash;
}

int64_t World::turn_count() const {
  int64_t count = 0;
  for (const auto& c : contexts_) count += static_cast<int64_t>(c->effects.size());
  return count;
}

// ---------------------------------------------------------------- properties

std::string World::Violation(const Node& node, Network network, std::string* sentence) const {
  if (!StateIn(node, 0).broken.empty()) {
    *sentence = StateIn(node, 0).broken;
    return "out of turn";
  }
  for (int c = 1; c < static_cast<int>(contexts_.size()); ++c) {
    if (!StateIn(node, c).suspect) continue;
    const std::string& twice = StateIn(node, c).twice;
    const std::string& broken = StateIn(node, c).broken;
    if (broken.empty() && !twice.empty()) {
      *sentence = twice;
      return "non-idempotence";
    }
    if (broken.empty()) continue;
    *sentence = absl::StrCat(context(c).name, ": ", broken);
    return "books out of balance";
  }
  if (pay_count_ > 0 && ships_ && StateIn(node, delivery_).done_now &&
      !StateIn(node, payment_).done_ever) {
    *sentence =
        "the parcel leaves, and nothing has been paid: let the step that ships wait for the one "
        "that is paid (after)";
    return "unpaid goods shipped";
  }
  return Ended(node, network) ? EndViolation(node, sentence) : "";
}

OrderRecord World::RecordOf(uint32_t order_state) const {
  OrderRecord record;
  for (const auto& [key, bytes] : contexts_[0]->states[order_state].rows) {
    if (context(0).tables[key.first] != &order::kOrders) continue;
    GK_CHECK(record.ParseFromString(bytes)) << key.second;
  }
  return record;
}

std::string World::EndViolation(const Node& node, std::string* sentence) const {
  const Order::State order = StateIn(node, 0).order_state;
  const bool completed = order == Order::STATE_COMPLETED;
  const char* ended = completed                         ? "completed"
                      : order == Order::STATE_CANCELLED ? "cancelled"
                                                        : "refused";
  std::vector<int> held_count(plan_.steps.size(), 0);
  for (int c = 1; c < static_cast<int>(contexts_.size()); ++c) {
    for (const RecordFact& record : StateIn(node, c).records) {
      if (record.step < 0 || !record.held()) continue;
      const PlanStep& step = plan_.steps[record.step];
      if (step.undo_method.empty()) continue;
      ++held_count[record.step];
      if (step.in_cancel ? order == Order::STATE_CANCELLED : completed) continue;
      const OrderRecord told = RecordOf(node.order());
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
  if (order == Order::STATE_CANCELLED) {
    const OrderRecord told = RecordOf(node.order());
    for (int i = plan_.place_count; i < plan_.flow_count(); ++i) {
      if (plan_.steps[i].undo_method.empty() || held_count[i] == 1 ||
          told.saga().tasks(i).state() != order::v1::TASK_STATE_DONE)
        continue;
      *sentence =
          absl::StrCat("the order is cancelled, and ", StepText(i, false),
                       held_count[i] == 0 ? " of its cancel does not stand" : " is done twice");
      return held_count[i] == 0 ? "step missing" : "non-idempotence";
    }
  }
  if (order == Order::STATE_CANCELLED && !plan_.unless_done.empty()) {
    const OrderRecord told = RecordOf(node.order());
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
  if (order == Order::STATE_CANCELLED && !plan_.cancel_undos.empty()) {
    for (const auto& [step, context] : handovers_) {
      if (!StateIn(node, context).given) continue;
      *sentence = absl::StrCat(
          "the order is cancelled and taken back, and the buyer has the goods, which ",
          StepText(step, false), " waits for: let the cancel close it before any undo (",
          context == delivery_ ? "delivery.CloseReceipt" : "assignment.ClosePickup",
          ", for the right step)");
      return "goods kept";
    }
  }
  if (completed && checks_out_ && StateIn(node, cart_).waiting_carts > 0) {
    *sentence = "the order is completed, and its cart still waits for the payment";
    return "step missing";
  }
  if (payment_ > 0) {
    const int64_t money = StateIn(node, payment_).money;
    const int64_t price = completed ? pay_count_ * kUnitPrice : 0;
    if (money != price) {
      *sentence = absl::StrCat("the order is ", ended, ", and ", money,
                               " of the buyer's money is kept, not ", price);
      return money > price && completed ? "non-idempotence" : "empty compensation";
    }
  }
  if (catalog_ > 0) {
    const int64_t reserved = StateIn(node, catalog_).reserved;
    const int64_t sold = completed ? reserve_count_ : 0;
    if (reserved != sold) {
      *sentence = absl::StrCat("the order is ", ended, ", and ", reserved,
                               " units are reserved, not ", sold);
      return "stock drift";
    }
  }
  if (node.place_waits || node.cancel_waits) {
    *sentence =
        absl::StrCat("the order is ", ended, ", and whoever ",
                     node.place_waits ? "placed" : "cancelled", " it still waits for an answer");
    return "caller left waiting";
  }
  return "";
}

std::vector<std::string> World::HeldBy(const Node& node) const {
  std::vector<std::string> held;
  for (int c = 1; c < static_cast<int>(contexts_.size()); ++c) {
    const ContextState& state = StateIn(node, c);
    for (const RecordFact& record : state.records) {
      if (!record.held()) continue;
      held.push_back(absl::StrCat(
          context(c).name, ": ", StepText(record.step, false),
          record.outcome == Outcome::OUTCOME_DONE ? " is done" : " waits for a person"));
    }
    if (state.money != 0)
      held.push_back(absl::StrCat("payment: ", state.money, " ", plan_.currency_code, " kept"));
    if (state.reserved != 0)
      held.push_back(absl::StrCat("catalog: ", state.reserved, " units reserved"));
  }
  return held;
}

std::string World::Line(const Node& from, const Node& to, const Move& move) const {
  using Kind = Move::Kind;
  std::string line;
  const Input& input = inputs_[move.input];
  const std::string context = this->context(input.context).name;
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
  const Order::State before = StateIn(from, 0).order_state;
  const Order::State after = StateIn(to, 0).order_state;
  if (before != after) absl::StrAppend(&line, " [the order is ", StateName(after), "]");
  const std::string& word = StateIn(to, 0).word;
  if (word != StateIn(from, 0).word && !word.empty()) absl::StrAppend(&line, " «", word, "»");
  return line;
}

std::string World::Label(const Move& move) const {
  using Kind = Move::Kind;
  const auto name = [](Kind kind) {
    switch (kind) {
      case Kind::kTake:
        return "take";
      case Kind::kTakeAndKeep:
        return "take-and-keep";
      case Kind::kRefuse:
        return "refuse";
      case Kind::kLose:
        return "lose";
      case Kind::kUnreachable:
        return "give-up";
      case Kind::kAskEarly:
        return "ask-early";
      case Kind::kVanish:
        return "vanish";
      case Kind::kCrash:
        return "crash";
      case Kind::kWipe:
        return "wipe";
    }
    return "?";
  };
  if (move.kind == Kind::kCrash || move.kind == Kind::kWipe) return name(move.kind);
  const Input& input = inputs_[move.input];
  const auto kind = [&input] {
    switch (input.kind) {
      case Input::Kind::kCommand:
        return "command";
      case Input::Kind::kCall:
        return "call";
      case Input::Kind::kLate:
        return "late-call";
      case Input::Kind::kResult:
        return "answer";
      case Input::Kind::kTimer:
        return input.expiry ? "expiry" : "retry";
      case Input::Kind::kBuyer:
      case Input::Kind::kPerson:
        return "people";
    }
    return "?";
  };
  std::string label = absl::StrCat(name(move.kind), " ", kind(), " ");
  if (input.kind == Input::Kind::kBuyer || input.kind == Input::Kind::kPerson)
    return absl::StrCat(label, input.text);
  // A timer is of a task, whatever the task is called on the wire.
  absl::StrAppend(&label, input.undo ? "undo of " : "",
                  input.kind == Input::Kind::kTimer ? plan_.steps[input.step].id : input.wire_id);
  if (input.kind != Input::Kind::kResult) return label;
  if (input.result.unreachable) return absl::StrCat(label, " unreachable");
  switch (input.result.outcome) {
    case Outcome::OUTCOME_DONE:
      return absl::StrCat(label, " done");
    case Outcome::OUTCOME_PENDING:
      return absl::StrCat(label, " pending");
    default:
      return absl::StrCat(label, " refused");
  }
}

std::string World::Reopens(const Node& from, const Node& to, const Move& move) const {
  if (!StateIn(from, 0).ended || StateIn(to, 0).ended || move.effect == nullptr ||
      inputs_[move.input].kind != Input::Kind::kResult) {
    return "";
  }
  return absl::StrCat("the order had ended, and ", inputs_[move.input].text,
                      " sets it going again, although nobody asked");
}

std::string World::StuckSentence(const Node& node) const {
  const ContextState& order = StateIn(node, 0);
  return absl::StrCat("the order is ", StateName(order.order_state),
                      " and can never end, although nothing more goes wrong",
                      order.awaited.empty()
                          ? ""
                          : absl::StrCat("; it waits for ", absl::StrJoin(order.awaited, ", ")));
}

Node World::Settled(const Node& node, bool everything_is_lost) const {
  Node settled = node;
  settled.duplicates = settled.losses = settled.wipes = settled.unreachable = settled.crashes = 0;
  settled.refusals = settled.cancels = 0;
  if (everything_is_lost) {
    settled.flight = 0;
    settled.place_waits = settled.cancel_waits = 0;
  }
  return settled;
}

int64_t World::bytes() const {
  // A flight's vector, its heap block and its place in the map.
  return int64_t{flights_.size()} * static_cast<int64_t>(sizeof(Flight) + 64 + 24) +
         turn_count() * 250;
}

}  // namespace gaekju::check
