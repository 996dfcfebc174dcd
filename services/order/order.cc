#include "services/order/order.h"

#include <cstdlib>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "flow/mutant.h"
#include "flow/request.h"
#include "flow/saga.h"
#include "flow/values.h"
#include "gaekju/order/v1/order.pb.h"
#include "gaekju/order/v1/order_events.pb.h"
#include "gaekju/order/v1/order_service.pb.h"
#include "google/rpc/code.pb.h"

namespace gaekju::order {

using flow::Answer;
using flow::Caller;
using flow::Refuse;
using flow::RowKey;
using flow::SagaRun;
using flow::Turn;
using order::v1::CancelOrderRequest;
using order::v1::CancelOrderResponse;
using order::v1::NumberCounter;
using order::v1::Order;
using order::v1::OrderRecord;
using order::v1::PlacedRequest;
using order::v1::PlaceOrderRequest;
using order::v1::PlaceOrderResponse;

const flow::Table kOrders = {"orders",
                             &OrderRecord::default_instance(),
                             {{"storefront", "order.storefront"},
                              {"customer_id", "order.customer_id"},
                              {"number", "order.number"},
                              {"state", "order.state"},
                              {"visible", "visible"},
                              {"due_time_us", "due_time_us"}}};
const flow::Table kPlacedRequests = {"placed_requests", &PlacedRequest::default_instance(), {}};
const flow::Table kNumberCounters = {"number_counters", &NumberCounter::default_instance(), {}};
const flow::Table kStorefrontRevisions = {
    "storefront_revisions", &order::v1::StorefrontRevision::default_instance(), {}};

namespace {

constexpr char kDomain[] = "gaekju.order.v1.OrderService";
constexpr char kPlaceWait[] = "/place";
constexpr char kCancelWait[] = "/cancel";
// What cannot be read is mended by an operator, not by waiting.
constexpr int64_t kHeldRetry_us = 30'000'000;

std::string PlaceWaitKey(absl::string_view order_id) { return absl::StrCat(order_id, kPlaceWait); }
std::string CancelWaitKey(absl::string_view order_id) {
  return absl::StrCat(order_id, kCancelWait);
}

std::string RequestKey(const PlaceOrderRequest& request) {
  return absl::StrCat(request.storefront(), "/", request.customer_id(), "/", request.request_id());
}

// ---- checks of a request by itself

bool IsEmpty(const google::protobuf::Message& message,
             const google::protobuf::FieldDescriptor& field) {
  const auto* reflection = message.GetReflection();
  return field.is_repeated() ? reflection->FieldSize(message, &field) == 0
                             : !reflection->HasField(message, &field);
}

google::rpc::Status ValidatePlace(const PlaceOrderRequest& request) {
  flow::FieldChecks checks(kDomain);
  checks.Storefront("storefront", request.storefront());
  if (!request.request_id().empty()) checks.Id("request_id", request.request_id());
  checks.Reference("customer_id", request.customer_id())
      .Text("customer_name", request.customer_name(), 256)
      .Text("delivery_address", request.delivery_address(), 1024)
      .Text("payment_method", request.payment_method(), 256)
      .Lines("lines", request.lines());
  if (checks.status().code() != 0) return checks.status();
  std::set<std::string> seen;
  for (int i = 0; i < request.lines_size(); ++i) {
    checks.That(seen.insert(request.lines(i).product_id()).second,
                absl::StrCat("lines[", i, "].product_id"),
                absl::StrCat("is in an earlier line too (\"", request.lines(i).product_id(),
                             "\"); add their quantities"));
  }
  // What is no number is neither above nor below.
  const auto& place = request.delivery_location();
  checks
      .That(place.latitude() >= -90 && place.latitude() <= 90, "delivery_location.latitude",
            "must be -90 to 90")
      .That(place.longitude() >= -180 && place.longitude() <= 180, "delivery_location.longitude",
            "must be -180 to 180");
  return checks.status();
}

// ---- checks of a new order by its shop; null: there is none of that name, or it is closed

google::rpc::Status CheckPlace(const flow::Plan* plan, const PlaceOrderRequest& request) {
  if (plan == nullptr) {
    return flow::MakeStatus(google::rpc::NOT_FOUND, kDomain, "STOREFRONT_UNKNOWN",
                            absl::StrCat("there is no storefront \"", request.storefront(), "\""),
                            "storefront");
  }
  if (request.has_expected_total() &&
      request.expected_total().currency_code() != plan->currency_code) {
    return flow::MakeStatus(
        google::rpc::INVALID_ARGUMENT, kDomain, "CURRENCY_MISMATCH",
        absl::StrCat("storefront \"", plan->storefront, "\" sells in ", plan->currency_code,
                     ", not \"", request.expected_total().currency_code(), "\""),
        "expected_total.currency_code");
  }
  flow::FieldChecks checks(kDomain);
  if (request.has_expected_total()) checks.Money("expected_total", request.expected_total(), 0);
  // Some fields only some shops need; what the server sets is not the buyer's to give.
  for (const flow::PlanInput& input : plan->inputs) {
    const auto* field = request.GetDescriptor()->FindFieldByName(std::string(input.field->name()));
    if (field == nullptr) continue;
    checks.That(!IsEmpty(request, *field), field->name(),
                absl::StrCat("must be set: step \"", input.step, "\" of storefront \"",
                             plan->storefront, "\" needs it"));
  }
  return checks.status();
}

// ---- answers

Answer NotFound(absl::string_view order_id) {
  return Refuse(google::rpc::NOT_FOUND, kDomain, "ORDER_NOT_FOUND",
                absl::StrCat("there is no order \"", order_id, "\""), "order_id");
}

Answer RefusedWith(const std::string& serialized_status) {
  Answer answer;
  answer.kind = Answer::Kind::kRefused;
  GK_CHECK(answer.status.ParseFromString(serialized_status));
  return answer;
}

// What the caller of PlaceOrder is told of an order as it stands.
Answer PlaceAnswer(const OrderRecord& record) {
  const Order& order = record.order();
  if (!record.visible() &&
      (order.state() == Order::STATE_REJECTING || order.state() == Order::STATE_REJECTED)) {
    return RefusedWith(record.saga().place_refusal());
  }
  if (order.state() == Order::STATE_PLACING) return flow::Wait(PlaceWaitKey(order.order_id()));
  PlaceOrderResponse response;
  *response.mutable_order() = order;
  return flow::Done(response);
}

Answer CancelAnswer(const OrderRecord& record) {
  CancelOrderResponse response;
  *response.mutable_order() = record.order();
  return flow::Done(response);
}

template <class Event>
void EmitOrderEvent(const Order& order, Turn& turn) {
  Event event;
  *event.mutable_order() = order;
  turn.Emit(kOrders, order.order_id(), event, order.order_id());
}

// ---- from the saga to the turn

void SendAsk(const flow::Plan& plan, const OrderRecord& record, const SagaRun::Ask& ask,
             Turn& turn) {
  const flow::PlanStep& step = plan.steps[ask.step];
  const std::string wire_id = SagaRun::WireStepId(plan, record.saga(), ask.step);
  const std::string& method = ask.undo ? step.undo_method : step.method;
  std::string payload =
      ask.undo
          ? flow::BuildUndoRequest(step, record.order().order_id(), wire_id)
          : flow::BuildRequest(
                plan, step, record.order(),
                [&record](int i) -> const std::string& { return record.saga().tasks(i).answer(); },
                wire_id);
  if (ask.via == storefront::v1::GRPC) {
    flow::Call call;
    call.context = step.context;
    call.method = method;
    call.order_id = record.order().order_id();
    call.step_id = wire_id;
    call.undo = ask.undo;
    call.timeout_us = step.deadline_us;
    call.traceparent = record.traceparent();
    call.payload = std::move(payload);
    turn.CallAfterCommit(std::move(call));
    return;
  }
  flow::Envelope command;
  command.kind = flow::Envelope::Kind::kCommand;
  command.to = step.context;
  command.type = method;
  command.order_id = record.order().order_id();
  command.step_id = wire_id;
  command.undo = ask.undo;
  if (!GK_MUTANT(command_without_return_address)) command.reply_to = "order";
  command.traceparent = record.traceparent();
  command.payload = std::move(payload);
  turn.Send(std::move(command));
}

// Hands what a run has decided to the turn. REQUIRES: `record` is the turn's row, edited.
void Flush(const flow::Plan& plan, const SagaRun& run, const OrderRecord& record, Turn& turn) {
  const Order& order = record.order();
  for (const SagaRun::Ask& ask : run.asks()) {
    if (!(ask.undo && GK_MUTANT(undo_decided_but_not_sent))) SendAsk(plan, record, ask, turn);
  }
  // Every event carries the whole order, so one event of a run tells of all it did; each kind is
  // told for those who wait for it.
  const bool was_taken = order.has_place_time();
  bool told = false;
  for (SagaRun::Fact fact : run.facts()) {
    switch (fact) {
      case SagaRun::Fact::kPlaced:
        EmitOrderEvent<order::v1::OrderPlaced>(order, turn);
        if (!GK_MUTANT(buyer_not_told_of_placed))
          turn.Resolve(PlaceWaitKey(order.order_id()), PlaceAnswer(record));
        told = true;
        break;
      case SagaRun::Fact::kCompleted:
        if (!GK_MUTANT(completion_not_published)) {
          EmitOrderEvent<order::v1::OrderCompleted>(order, turn);
        }
        told = true;
        break;
      case SagaRun::Fact::kRejected:
        if (was_taken) {
          EmitOrderEvent<order::v1::OrderRejected>(order, turn);
          told = true;
        }
        if (!GK_MUTANT(buyer_not_told_of_refusal))
          turn.Resolve(PlaceWaitKey(order.order_id()), PlaceAnswer(record));
        break;
      case SagaRun::Fact::kCancelAccepted:
        EmitOrderEvent<order::v1::OrderCancelled>(order, turn);
        told = true;
        break;
      case SagaRun::Fact::kCancelRefused:
        if (was_taken && run.cancel_was_accepted()) {
          EmitOrderEvent<order::v1::OrderCancelRefused>(order, turn);
          told = true;
        }
        if (GK_MUTANT(canceller_not_told_of_refusal)) break;
        turn.Resolve(CancelWaitKey(order.order_id()), RefusedWith(record.saga().cancel_refusal()));
        break;
      case SagaRun::Fact::kCancelCompleted:
        if (!GK_MUTANT(cancel_end_not_published)) {
          EmitOrderEvent<order::v1::OrderCancelCompleted>(order, turn);
        }
        told = true;
        break;
      case SagaRun::Fact::kCancelAnswered:
        turn.Resolve(CancelWaitKey(order.order_id()), CancelAnswer(record));
        break;
      case SagaRun::Fact::kRejectCompleted:
        if (was_taken) {
          EmitOrderEvent<order::v1::OrderStatusChanged>(order, turn);
          told = true;
        }
        break;
      case SagaRun::Fact::kStatusChanged:
        break;
    }
  }
  // What was told while a cancel was under way said so; that it is over has to be told, too.
  if ((run.Has(SagaRun::Fact::kStatusChanged) || run.Has(SagaRun::Fact::kCancelRefused)) &&
      was_taken && !told) {
    EmitOrderEvent<order::v1::OrderStatusChanged>(order, turn);
  }
}

// Null: the revision that the order was placed under cannot be read here.
const flow::Plan* PinnedPlan(const PlanBook& book, const OrderRecord& record) {
  return book.Pinned(record.order().storefront(), record.order().storefront_revision());
}

// What callers are told of an order whose plan cannot be read. `field`: by which they named it.
Answer Held(const OrderRecord& record, absl::string_view field) {
  const Order& order = record.order();
  Answer answer;
  answer.kind = Answer::Kind::kRefused;
  answer.status = flow::MakeStatus(
      google::rpc::UNAVAILABLE, kDomain, "STOREFRONT_REVISION_UNREADABLE",
      absl::StrCat("the order stays as it is for now: it was placed under revision ",
                   order.storefront_revision(), " of storefront \"", order.storefront(),
                   "\", which cannot be read at present"),
      field, kHeldRetry_us);
  return answer;
}

// Runs `input` on an existing order's saga. One whose plan cannot be read stays as it is and is not
// due while that is so: its time is kept, negated, until somebody can read it (order_service.h).
// Answers that come meanwhile are asked for again then.
template <class Input>
void RunSaga(const PlanBook& book, const std::string& order_id, Turn& turn, Input input) {
  const OrderRecord* found = turn.Find<OrderRecord>(kOrders, order_id);
  if (found == nullptr) return;
  const flow::Plan* plan = PinnedPlan(book, *found);
  const int64_t due_us = found->due_time_us();
  if (plan == nullptr && due_us == 0) return;
  OrderRecord& record = turn.Edit<OrderRecord>(kOrders, order_id);
  record.set_due_time_us(plan == nullptr ? -std::abs(due_us) : std::abs(due_us));
  if (plan == nullptr) return;
  SagaRun run(*plan, &record, turn.now_us());
  input(run);
  Flush(*plan, run, record, turn);
}

// ---- handlers

Answer HandlePlace(const PlanBook& book, const PlaceOrderRequest& request, const Caller& caller,
                   Turn& turn) {
  // This very request has made its order: the turn runs again, because nobody knew of its COMMIT.
  if (const auto* own = turn.Find<OrderRecord>(kOrders, caller.request_uuid))
    return PlaceAnswer(*own);
  const uint64_t fingerprint = flow::Fingerprint(request);
  const std::string key = request.request_id().empty() ? "" : RequestKey(request);
  // What was asked before is answered as before, also by a shop that has changed or closed since.
  if (!key.empty() && !GK_MUTANT(request_id_ignored)) {
    if (const auto* placed = turn.Find<PlacedRequest>(kPlacedRequests, key)) {
      if (placed->request_fingerprint() != fingerprint) {
        return Refuse(google::rpc::ALREADY_EXISTS, kDomain, "REQUEST_ID_REUSED",
                      "this request_id was used before with other content; take a new one",
                      "request_id");
      }
      const RowKey earlier{&kOrders, placed->order_id()};
      if (!turn.HasRow(earlier)) {
        Answer retry;
        retry.kind = Answer::Kind::kRetry;
        retry.more_keys = {earlier};
        return retry;
      }
      const auto* record = turn.Find<OrderRecord>(kOrders, placed->order_id());
      GK_CHECK(record != nullptr) << "request without order: " << key;
      const bool try_again = record->saga().place_retryable() &&
                             !record->order().has_place_time() &&
                             !GK_MUTANT(second_try_refused_as_the_first);
      if (!try_again) {
        const Answer answer = PlaceAnswer(*record);
        // Nobody would end that wait.
        const bool held =
            answer.kind == Answer::Kind::kWait && PinnedPlan(book, *record) == nullptr;
        return held ? Held(*record, "request_id") : answer;
      }
    }
  }
  const flow::Plan* plan = book.Current(request.storefront());
  if (auto status = CheckPlace(plan, request); status.code() != 0) {
    Answer answer;
    answer.kind = Answer::Kind::kRefused;
    answer.status = std::move(status);
    return answer;
  }
  if (!key.empty()) {
    auto& placed = turn.Edit<PlacedRequest>(kPlacedRequests, key);
    placed.set_request_key(key);
    placed.set_order_id(caller.request_uuid);
    placed.set_request_fingerprint(fingerprint);
  }
  auto& counter = turn.Edit<NumberCounter>(kNumberCounters, request.storefront());
  counter.set_storefront(request.storefront());
  if (!GK_MUTANT(orders_number_twice) || counter.last_number() == 0)
    counter.set_last_number(counter.last_number() + 1);

  OrderRecord& record = turn.Edit<OrderRecord>(kOrders, caller.request_uuid);
  record.set_request_fingerprint(fingerprint);
  record.set_traceparent(caller.traceparent);
  Order& order = *record.mutable_order();
  order.set_order_id(caller.request_uuid);
  order.set_number(counter.last_number());
  order.set_customer_id(request.customer_id());
  order.set_customer_name(request.customer_name());
  order.set_delivery_address(request.delivery_address());
  *order.mutable_lines() = request.lines();
  for (auto& line : *order.mutable_lines()) line.clear_unit_price();
  order.set_payment_method(request.payment_method());
  if (request.has_expected_total()) *order.mutable_expected_total() = request.expected_total();
  if (request.has_delivery_location()) {
    *order.mutable_delivery_location() = request.delivery_location();
  }

  SagaRun run(*plan, &record, turn.now_us());
  run.Place();
  Flush(*plan, run, record, turn);
  return PlaceAnswer(record);
}

Answer HandleCancel(const PlanBook& book, const CancelOrderRequest& request, Turn& turn) {
  const auto* found = turn.Find<OrderRecord>(kOrders, request.order_id());
  if (found == nullptr || (!found->visible() && found->order().state() != Order::STATE_PLACING) ||
      (!request.customer_id().empty() && request.customer_id() != found->order().customer_id())) {
    return NotFound(request.order_id());
  }
  const flow::Plan* const pinned = PinnedPlan(book, *found);
  if (pinned == nullptr) return Held(*found, "order_id");
  const flow::Plan& plan = *pinned;
  OrderRecord record = *found;
  SagaRun run(plan, &record, turn.now_us());
  const SagaRun::CancelReply reply = run.RequestCancel();
  if (run.changed() && !GK_MUTANT(cancel_not_written))
    turn.Edit<OrderRecord>(kOrders, request.order_id()) = record;
  Flush(plan, run, record, turn);
  switch (reply) {
    case SagaRun::CancelReply::kDone:
      return CancelAnswer(record);
    case SagaRun::CancelReply::kWait:
      return flow::Wait(CancelWaitKey(request.order_id()));
    case SagaRun::CancelReply::kNotOffered:
      return Refuse(google::rpc::FAILED_PRECONDITION, kDomain, "CANCEL_NOT_OFFERED",
                    absl::StrCat("storefront \"", plan.storefront, "\" does not cancel orders"));
    case SagaRun::CancelReply::kRejected:
      return Refuse(google::rpc::FAILED_PRECONDITION, kDomain, "ORDER_REJECTED",
                    "the order was refused; there is nothing to cancel");
    case SagaRun::CancelReply::kTooLate: {
      Answer answer;
      answer.kind = Answer::Kind::kRefused;
      answer.status = SagaRun::TooLateStatus();
      return answer;
    }
    case SagaRun::CancelReply::kBusy: {
      Answer answer;
      answer.kind = Answer::Kind::kRefused;
      answer.status = SagaRun::BusyStatus(plan);
      return answer;
    }
  }
  return {};
}

// What who waits is told of the order as it stands, whoever has decided it.
Answer WaitAnswer(const PlanBook& book, absl::string_view wait_key, const OrderRecord& record) {
  if (absl::EndsWith(wait_key, kPlaceWait)) return PlaceAnswer(record);
  switch (record.order().state()) {
    case Order::STATE_PLACING:
    case Order::STATE_CANCEL_REQUESTED:
      break;
    case Order::STATE_CANCELLING:
    case Order::STATE_CANCELLED: {
      // Whether everything that the caller waits for has answered: a copy is asked once more.
      const flow::Plan* plan = PinnedPlan(book, record);
      if (plan == nullptr) break;
      OrderRecord copy = record;
      if (SagaRun(*plan, &copy, /*now_us=*/0).RequestCancel() == SagaRun::CancelReply::kDone)
        return CancelAnswer(record);
      break;
    }
    default:
      if (record.saga().cancel_refusal().empty()) break;
      return RefusedWith(record.saga().cancel_refusal());
  }
  return flow::Wait(std::string(wait_key));
}

// ---- reading

bool ProjectOrder(const google::protobuf::Message& row, google::protobuf::Message* out) {
  const auto& record = static_cast<const OrderRecord&>(row);
  if (!record.visible()) return false;
  static_cast<Order*>(out)->CopyFrom(record.order());
  return true;
}

bool OrderEnded(const google::protobuf::Message& row) {
  switch (static_cast<const OrderRecord&>(row).order().state()) {
    case Order::STATE_COMPLETED:
    case Order::STATE_CANCELLED:
    case Order::STATE_REJECTED:
      return true;
    default:
      return false;
  }
}

}  // namespace

std::unique_ptr<flow::Context> MakeOrderContext(const PlanBook* book) {
  auto context = std::make_unique<flow::Context>();
  context->name = "order";
  context->service = kDomain;
  context->tables = {&kOrders, &kPlacedRequests, &kNumberCounters, &kStorefrontRevisions};
  const std::string service = absl::StrCat(kDomain, ".");
  context->handlers.push_back(std::make_shared<flow::FunctionHandler<PlaceOrderRequest>>(
      service + "PlaceOrder", ValidatePlace,
      [](const PlaceOrderRequest& request, const Caller& caller, std::vector<RowKey>* keys) {
        keys->push_back({&kOrders, caller.request_uuid});
        keys->push_back({&kNumberCounters, request.storefront()});
        if (!request.request_id().empty()) keys->push_back({&kPlacedRequests, RequestKey(request)});
      },
      [book](const PlaceOrderRequest& request, const Caller& caller, Turn& turn) {
        return HandlePlace(*book, request, caller, turn);
      }));
  context->handlers.push_back(std::make_shared<flow::FunctionHandler<CancelOrderRequest>>(
      service + "CancelOrder",
      [](const CancelOrderRequest& request) {
        return flow::FieldChecks(kDomain).Id("order_id", request.order_id()).status();
      },
      [](const CancelOrderRequest& request, const Caller&, std::vector<RowKey>* keys) {
        keys->push_back({&kOrders, request.order_id()});
      },
      [book](const CancelOrderRequest& request, const Caller&, Turn& turn) {
        return HandleCancel(*book, request, turn);
      }));
  context->result_keys = [](const flow::StepResult& result, std::vector<RowKey>* keys) {
    keys->push_back({&kOrders, result.order_id});
  };
  context->on_result = [book](const flow::StepResult& result, Turn& turn) {
    RunSaga(*book, result.order_id, turn, [&](SagaRun& run) { run.OnResult(result); });
  };
  context->waits.table = &kOrders;
  context->waits.key = [](absl::string_view wait_key) {
    return std::string(wait_key.substr(0, wait_key.rfind('/')));
  };
  context->waits.answer = [book](absl::string_view wait_key, const google::protobuf::Message& row) {
    return WaitAnswer(*book, wait_key, static_cast<const OrderRecord&>(row));
  };
  context->timer.table = &kOrders;
  context->timer.column = "due_time_us";
  context->timer.keys = [](absl::string_view key, std::vector<RowKey>* keys) {
    keys->push_back({&kOrders, std::string(key)});
  };
  context->timer.due = [book](absl::string_view key, Turn& turn) {
    RunSaga(*book, std::string(key), turn, [](SagaRun& run) { run.OnDue(); });
  };
  context->gets.push_back({service + "GetOrder", &kOrders, "order_id", "order", ProjectOrder});
  context->lists.push_back({service + "ListOrders",
                            &kOrders,
                            {"storefront", "customer_id", "number", "order_ids"},
                            "orders",
                            /*newest_first=*/true,
                            ProjectOrder});
  context->watches.push_back(
      {service + "WatchOrder", &kOrders, "order_id", "order", ProjectOrder, OrderEnded});
  return context;
}

}  // namespace gaekju::order
