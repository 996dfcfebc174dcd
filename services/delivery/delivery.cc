#include "services/delivery/delivery.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flow/mutant.h"
#include "flow/step.h"
#include "flow/values.h"
#include "gaekju/delivery/v1/delivery_events.pb.h"
#include "gaekju/delivery/v1/delivery_service.pb.h"
#include "google/rpc/code.pb.h"

namespace gaekju::delivery {

using flow::Answer;
using flow::Caller;
using flow::Outcome;
using flow::RowKey;
using flow::StepRecord;
using flow::Turn;
using gaekju::delivery::v1::ApproveCancelRequest;
using gaekju::delivery::v1::ApproveCancelResponse;
using gaekju::delivery::v1::AwaitReceiptRequest;
using gaekju::delivery::v1::AwaitReceiptResponse;
using gaekju::delivery::v1::CancelRequest;
using gaekju::delivery::v1::CancelResponse;
using gaekju::delivery::v1::CloseReceiptRequest;
using gaekju::delivery::v1::CloseReceiptResponse;
using gaekju::delivery::v1::ConfirmReceiptRequest;
using gaekju::delivery::v1::ConfirmReceiptResponse;
using gaekju::delivery::v1::Delivery;
using gaekju::delivery::v1::DeliveryCancelled;
using gaekju::delivery::v1::DeliveryProgressed;
using gaekju::delivery::v1::DeliveryReceived;
using gaekju::delivery::v1::DeliveryReturned;
using gaekju::delivery::v1::DeliveryStarted;
using gaekju::delivery::v1::ReceiptClosing;
using gaekju::delivery::v1::RecordProgressRequest;
using gaekju::delivery::v1::RecordProgressResponse;
using gaekju::delivery::v1::ReopenReceiptRequest;
using gaekju::delivery::v1::ReopenReceiptResponse;
using gaekju::delivery::v1::StartRequest;
using gaekju::delivery::v1::StartResponse;
using google::protobuf::Message;

const flow::Table kDeliveries = {
    "deliveries",
    &Delivery::default_instance(),
    {{"order_id", "order_id"}, {"customer_id", "customer_id"}, {"state", "state"}}};

const flow::Table kReceiptClosings = {"receipt_closings", &ReceiptClosing::default_instance(), {}};

namespace {

constexpr char kDomain[] = "gaekju.delivery.v1.DeliveryService";
constexpr size_t kCustomerNameSizeMax = 256;
constexpr size_t kAddressSizeMax = 1024;

// The shipment as others may see it: without what only this context keeps.
Delivery Shown(const Delivery& delivery) {
  Delivery shown = delivery;
  shown.clear_step();
  shown.clear_receipt_step();
  shown.clear_receipt_closed_by();
  return shown;
}

// One whose receipt was closed before it began is none yet.
bool HasBegun(const Delivery* delivery) {
  return delivery != nullptr && delivery->state() != Delivery::STATE_UNSPECIFIED;
}

bool Show(const Message& row, Message* out) {
  const auto& delivery = static_cast<const Delivery&>(row);
  *static_cast<Delivery*>(out) = Shown(delivery);
  return HasBegun(&delivery);
}

template <class Response>
Answer DoneWithDelivery(const Delivery& delivery) {
  Response response;
  *response.mutable_delivery() = Shown(delivery);
  return flow::Done(response);
}

template <class Event>
void EmitEvent(const Delivery& delivery, Turn& turn) {
  Event event;
  *event.mutable_delivery() = Shown(delivery);
  turn.Emit(kDeliveries, delivery.delivery_id(), event, delivery.order_id());
}

bool IsStopped(const Delivery& delivery) {
  return delivery.state() == Delivery::STATE_CANCELLED ||
         delivery.state() == Delivery::STATE_RETURNING;
}

bool HasArrived(const Delivery& delivery) {
  return delivery.state() == Delivery::STATE_DELIVERED ||
         delivery.state() == Delivery::STATE_RECEIVED;
}

// --- refusals

Answer NotFound(const std::string& delivery_id) {
  return flow::Refuse(google::rpc::NOT_FOUND, kDomain, "DELIVERY_NOT_FOUND",
                      absl::StrCat("no delivery ", delivery_id), "delivery_id");
}

Answer RefuseStopped(const Delivery& delivery) {
  return flow::Refuse(google::rpc::FAILED_PRECONDITION, kDomain, "DELIVERY_CANCELLED",
                      absl::StrCat("the delivery is ", Delivery::State_Name(delivery.state())),
                      "delivery_id");
}

// --- the step and its undo

google::rpc::Status ValidateStart(const StartRequest& request) {
  return flow::FieldChecks(kDomain)
      .Storefront("storefront", request.storefront())
      .Reference("customer_id", request.customer_id())
      .Text("customer_name", request.customer_name(), kCustomerNameSizeMax)
      .Text("delivery_address", request.delivery_address(), kAddressSizeMax)
      .Lines("lines", request.lines())
      .status();
}

Answer Start(const StartRequest& request, const Caller&, Delivery& delivery, Turn& turn) {
  delivery.set_delivery_id(flow::StepKey(request.order_id(), request.step_id()));
  delivery.set_order_id(request.order_id());
  delivery.set_storefront(request.storefront());
  delivery.set_customer_id(request.customer_id());
  delivery.set_customer_name(request.customer_name());
  delivery.set_delivery_address(request.delivery_address());
  *delivery.mutable_lines() = request.lines();
  delivery.set_state(Delivery::STATE_STARTED);
  *delivery.mutable_start_time() = flow::ToTimestamp(turn.now_us());
  EmitEvent<DeliveryStarted>(delivery, turn);
  StartResponse response;
  response.set_delivery_id(delivery.delivery_id());
  return flow::Done(response);
}

Answer Cancel(Delivery& delivery, Turn& turn) {
  GK_CHECK(!IsStopped(delivery)) << delivery.delivery_id();
  if (GK_MUTANT(stopped_parcel_goes_on)) return flow::Done(CancelResponse());
  *delivery.mutable_cancel_time() = flow::ToTimestamp(turn.now_us());
  if (HasArrived(delivery)) {
    delivery.set_state(Delivery::STATE_RETURNING);
    EmitEvent<DeliveryReturned>(delivery, turn);
  } else {
    delivery.set_state(Delivery::STATE_CANCELLED);
    EmitEvent<DeliveryCancelled>(delivery, turn);
  }
  // Nobody will confirm the receipt any more: whoever waits for it is told.
  if (delivery.receipt_step().outcome() == Outcome::OUTCOME_PENDING &&
      !GK_MUTANT(stopped_parcel_still_awaited)) {
    flow::AnswerPendingStep(RefuseStopped(delivery),
                            AwaitReceiptResponse::descriptor()->full_name(),
                            delivery.mutable_receipt_step(), turn);
  }
  return flow::Done(CancelResponse());
}

// No parcel ever left, so none was stopped: a tombstone, and no event.
void Void(const CancelRequest& request, Delivery& delivery, Turn& turn) {
  delivery.set_delivery_id(flow::StepKey(request.order_id(), request.step_id()));
  delivery.set_order_id(request.order_id());
  delivery.set_state(Delivery::STATE_CANCELLED);
  *delivery.mutable_cancel_time() = flow::ToTimestamp(turn.now_us());
}

// --- on the way

google::rpc::Status ValidateRecordProgress(const RecordProgressRequest& request) {
  return flow::FieldChecks(kDomain)
      .Key("delivery_id", request.delivery_id())
      .That(request.state() == Delivery::STATE_IN_TRANSIT ||
                request.state() == Delivery::STATE_DELIVERED,
            "state", "must be STATE_IN_TRANSIT or STATE_DELIVERED")
      .status();
}

Answer RecordProgress(const RecordProgressRequest& request, const Caller&, Turn& turn) {
  const Delivery* found = turn.Find<Delivery>(kDeliveries, request.delivery_id());
  if (!HasBegun(found)) return NotFound(request.delivery_id());
  if (IsStopped(*found) && !GK_MUTANT(late_courier_resurrects)) return RefuseStopped(*found);
  // STARTED < IN_TRANSIT < DELIVERED < RECEIVED: never backwards, so what is reported late changes
  // nothing.
  if (found->state() >= request.state() && !GK_MUTANT(late_courier_resurrects))
    return DoneWithDelivery<RecordProgressResponse>(*found);
  Delivery& delivery = turn.Edit<Delivery>(kDeliveries, request.delivery_id());
  delivery.set_state(request.state());
  if (request.state() == Delivery::STATE_DELIVERED) {
    *delivery.mutable_deliver_time() = flow::ToTimestamp(turn.now_us());
  }
  EmitEvent<DeliveryProgressed>(delivery, turn);
  return DoneWithDelivery<RecordProgressResponse>(delivery);
}

google::rpc::Status ValidateConfirmReceipt(const ConfirmReceiptRequest& request) {
  return flow::FieldChecks(kDomain).Key("delivery_id", request.delivery_id()).status();
}

Answer ConfirmReceipt(const ConfirmReceiptRequest& request, const Caller&, Turn& turn) {
  const Delivery* found = turn.Find<Delivery>(kDeliveries, request.delivery_id());
  // Somebody else's delivery is none, so that ids tell strangers nothing.
  if (!HasBegun(found) ||
      (!request.customer_id().empty() && request.customer_id() != found->customer_id())) {
    return NotFound(request.delivery_id());
  }
  if (IsStopped(*found)) return RefuseStopped(*found);
  if (found->state() == Delivery::STATE_RECEIVED)
    return DoneWithDelivery<ConfirmReceiptResponse>(*found);
  if (!found->receipt_closed_by().empty() && !GK_MUTANT(closed_receipt_still_taken)) {
    return flow::Refuse(google::rpc::FAILED_PRECONDITION, kDomain, "RECEIPT_CLOSED",
                        "the order is being cancelled; its receipt is not confirmed any more",
                        "delivery_id");
  }
  Delivery& delivery = turn.Edit<Delivery>(kDeliveries, request.delivery_id());
  delivery.set_state(Delivery::STATE_RECEIVED);
  // The buyer knows before the courier has told us: it has arrived by now.
  if (!delivery.has_deliver_time())
    *delivery.mutable_deliver_time() = flow::ToTimestamp(turn.now_us());
  EmitEvent<DeliveryReceived>(delivery, turn);
  AwaitReceiptResponse response;
  *response.mutable_receipt_time() = flow::ToTimestamp(turn.now_us());
  const Answer receipt = flow::Done(response);
  if (GK_MUTANT(receipt_not_told)) return DoneWithDelivery<ConfirmReceiptResponse>(delivery);
  if (delivery.receipt_step().outcome() == Outcome::OUTCOME_PENDING) {
    flow::AnswerPendingStep(receipt, response.GetTypeName(), delivery.mutable_receipt_step(), turn);
  } else if (!GK_MUTANT(early_receipt_forgotten)) {
    flow::RecordAnswer(receipt, delivery.mutable_receipt_step());  // for a step that asks later
  }
  return DoneWithDelivery<ConfirmReceiptResponse>(delivery);
}

// --- the step that waits for the receipt

google::rpc::Status ValidateAwaitReceipt(const AwaitReceiptRequest& request) {
  auto status = flow::ValidateStepIds(request.order_id(), request.step_id(), kDomain);
  if (status.code() != 0) return status;
  return flow::FieldChecks(kDomain).Key("delivery_id", request.delivery_id()).status();
}

// Its record stands in the shipment that it waits for, as `receipt_step`: without a step_id until
// one asks, and with the receipt's answer already when the buyer came first.
Answer AwaitReceipt(const AwaitReceiptRequest& request, const Caller& caller, Turn& turn) {
  const Delivery* found = turn.Find<Delivery>(kDeliveries, request.delivery_id());
  if (!HasBegun(found) || found->order_id() != request.order_id())
    return NotFound(request.delivery_id());
  const uint64_t fingerprint = flow::Fingerprint(request);
  const StepRecord& asked = found->receipt_step();
  if (asked.step_id().empty()) {
    if (IsStopped(*found)) return RefuseStopped(*found);  // for ever, so there is nothing to record
    StepRecord* record =
        turn.Edit<Delivery>(kDeliveries, request.delivery_id()).mutable_receipt_step();
    record->set_order_id(request.order_id());
    record->set_step_id(request.step_id());
    record->set_request_fingerprint(fingerprint);
    record->set_reply_to(caller.reply_to);
    if (record->outcome() == Outcome::OUTCOME_UNSPECIFIED)
      flow::RecordAnswer(flow::Pending(), record);
    return flow::RecordedAnswer(*record);
  }
  if (asked.request_fingerprint() != fingerprint) {
    return flow::Refuse(google::rpc::ALREADY_EXISTS, kDomain, "STEP_REUSED",
                        absl::StrCat("step ", asked.step_id(), " waits for this receipt"));
  }
  // As flow/step.h has it: a plain call does not take the answer from who has somewhere to send it.
  if (asked.outcome() == Outcome::OUTCOME_PENDING && !caller.reply_to.empty() &&
      asked.reply_to() != caller.reply_to) {
    turn.Edit<Delivery>(kDeliveries, request.delivery_id())
        .mutable_receipt_step()
        ->set_reply_to(caller.reply_to);
  }
  return flow::RecordedAnswer(asked);
}

// --- the receipt is closed before a cancel stops the shipment

std::string ShipmentOf(const CloseReceiptRequest& request) {
  return flow::StepKey(request.order_id(), request.shipment_step_id());
}

google::rpc::Status ValidateCloseReceipt(const CloseReceiptRequest& request) {
  return flow::FieldChecks(kDomain).Id("shipment_step_id", request.shipment_step_id()).status();
}

// The shipment's row decides: the receipt was first, or none comes any more. So it is written also
// where there is none yet.
Answer CloseReceipt(const CloseReceiptRequest& request, const Caller&, ReceiptClosing& closing,
                    Turn& turn) {
  const std::string delivery_id = ShipmentOf(request);
  closing.set_closing_id(flow::StepKey(request.order_id(), request.step_id()));
  closing.set_delivery_id(delivery_id);
  const Delivery* found = turn.Find<Delivery>(kDeliveries, delivery_id);
  if (found != nullptr && found->receipt_step().outcome() == Outcome::OUTCOME_DONE) {
    return flow::Refuse(google::rpc::FAILED_PRECONDITION, kDomain, "DELIVERY_RECEIVED",
                        "the buyer has confirmed the receipt; it is too late to cancel");
  }
  Delivery& delivery = turn.Edit<Delivery>(kDeliveries, delivery_id);
  delivery.set_delivery_id(delivery_id);
  delivery.set_order_id(request.order_id());
  delivery.set_receipt_closed_by(closing.closing_id());
  return flow::Done(CloseReceiptResponse());
}

Answer ReopenReceipt(ReceiptClosing& closing, Turn& turn) {
  Delivery& delivery = turn.Edit<Delivery>(kDeliveries, closing.delivery_id());
  if (delivery.receipt_closed_by() == closing.closing_id() && !GK_MUTANT(receipt_stays_closed))
    delivery.clear_receipt_closed_by();
  return flow::Done(ReopenReceiptResponse());
}

void VoidClosing(const ReopenReceiptRequest& request, ReceiptClosing& closing, Turn&) {
  closing.set_closing_id(flow::StepKey(request.order_id(), request.step_id()));
}

// --- the question before a cancel

std::string ShipmentKey(const ApproveCancelRequest& request) {
  return flow::StepKey(request.order_id(), request.shipment_step_id());
}

google::rpc::Status ValidateApproveCancel(const ApproveCancelRequest& request) {
  auto status = flow::ValidateStepIds(request.order_id(), request.step_id(), kDomain);
  if (status.code() != 0) return status;
  return flow::FieldChecks(kDomain).Id("shipment_step_id", request.shipment_step_id()).status();
}

// Holds nothing back: what is delivered between this answer and the cancel is returned.
Answer ApproveCancel(const ApproveCancelRequest& request, const Caller&, Turn& turn) {
  const Delivery* found = turn.Find<Delivery>(kDeliveries, ShipmentKey(request));
  if (found != nullptr && found->has_deliver_time()) {
    return flow::Refuse(google::rpc::FAILED_PRECONDITION, kDomain, "DELIVERY_DELIVERED",
                        "the delivery has arrived; it cannot be stopped any more");
  }
  return flow::Done(ApproveCancelResponse());
}

template <class Request>
void DeliveryKey(const Request& request, const Caller&, std::vector<RowKey>* keys) {
  keys->push_back({&kDeliveries, request.delivery_id()});
}

flow::Context MakeContext() {
  flow::Context context;
  context.name = "delivery";
  context.service = kDomain;
  context.tables = {&kDeliveries, &kReceiptClosings};
  context.handlers = {
      flow::StepHandler<Delivery, StartRequest>(absl::StrCat(kDomain, ".Start"), kDeliveries,
                                                ValidateStart,
                                                /*more_keys=*/nullptr, Start),
      flow::UndoHandler<Delivery, CancelRequest>(absl::StrCat(kDomain, ".Cancel"), kDeliveries,
                                                 /*held_rows=*/nullptr, Cancel, Void),
      std::make_shared<flow::FunctionHandler<AwaitReceiptRequest>>(
          absl::StrCat(kDomain, ".AwaitReceipt"), ValidateAwaitReceipt,
          DeliveryKey<AwaitReceiptRequest>, AwaitReceipt),
      std::make_shared<flow::FunctionHandler<ApproveCancelRequest>>(
          absl::StrCat(kDomain, ".ApproveCancel"), ValidateApproveCancel,
          [](const ApproveCancelRequest& request, const Caller&, std::vector<RowKey>* keys) {
            keys->push_back({&kDeliveries, ShipmentKey(request)});
          },
          ApproveCancel),
      std::make_shared<flow::FunctionHandler<RecordProgressRequest>>(
          absl::StrCat(kDomain, ".RecordProgress"), ValidateRecordProgress,
          DeliveryKey<RecordProgressRequest>, RecordProgress),
      std::make_shared<flow::FunctionHandler<ConfirmReceiptRequest>>(
          absl::StrCat(kDomain, ".ConfirmReceipt"), ValidateConfirmReceipt,
          DeliveryKey<ConfirmReceiptRequest>, ConfirmReceipt),
      flow::StepHandler<ReceiptClosing, CloseReceiptRequest>(
          absl::StrCat(kDomain, ".CloseReceipt"), kReceiptClosings, ValidateCloseReceipt,
          [](const CloseReceiptRequest& request, std::vector<RowKey>* keys) {
            keys->push_back({&kDeliveries, ShipmentOf(request)});
          },
          CloseReceipt),
      flow::UndoHandler<ReceiptClosing, ReopenReceiptRequest>(
          absl::StrCat(kDomain, ".ReopenReceipt"), kReceiptClosings,
          [](const ReceiptClosing& closing, std::vector<RowKey>* keys) {
            keys->push_back({&kDeliveries, closing.delivery_id()});
          },
          ReopenReceipt, VoidClosing),
  };
  context.gets = {
      {absl::StrCat(kDomain, ".GetDelivery"), &kDeliveries, "delivery_id", "delivery", Show}};
  context.lists = {{absl::StrCat(kDomain, ".ListDeliveries"),
                    &kDeliveries,
                    {"order_id", "customer_id", "order_ids"},
                    "deliveries",
                    /*newest_first=*/true,
                    Show}};
  return context;
}

}  // namespace

const flow::Context& DeliveryContext() {
  static const flow::Context* const context = new flow::Context(MakeContext());
  return *context;
}

}  // namespace gaekju::delivery
