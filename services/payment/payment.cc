#include "services/payment/payment.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flow/step.h"
#include "flow/values.h"
#include "gaekju/payment/v1/payment_events.pb.h"
#include "gaekju/payment/v1/payment_service.pb.h"
#include "google/rpc/code.pb.h"

namespace gaekju::payment {

using flow::Answer;
using flow::Caller;
using flow::Turn;
using gaekju::payment::v1::CaptureRequest;
using gaekju::payment::v1::CaptureResponse;
using gaekju::payment::v1::LedgerEntry;
using gaekju::payment::v1::Payment;
using gaekju::payment::v1::PaymentCaptured;
using gaekju::payment::v1::PaymentRefunded;
using gaekju::payment::v1::RefundRequest;
using gaekju::payment::v1::RefundResponse;
using google::protobuf::Message;

const flow::Table kPayments = {
    "payments",
    &Payment::default_instance(),
    {{"order_id", "order_id"}, {"customer_id", "customer_id"}, {"state", "state"}}};

const flow::Table kLedgerEntries = {"ledger_entries",
                                    &LedgerEntry::default_instance(),
                                    {{"account", "account"},
                                     {"order_id", "order_id"},
                                     {"currency_code", "currency_code"},
                                     {"amount", "amount"}}};

namespace {

constexpr char kDomain[] = "gaekju.payment.v1.PaymentService";
constexpr size_t kPaymentMethodSizeMax = 256;

// The payment as others may see it: without what only this context keeps.
Payment Shown(const Payment& payment) {
  Payment shown = payment;
  shown.clear_step();
  return shown;
}

bool Show(const Message& row, Message* out) {
  *static_cast<Payment*>(out) = Shown(static_cast<const Payment&>(row));
  return true;
}

template <class Event>
void EmitEvent(const Payment& payment, Turn& turn) {
  Event event;
  *event.mutable_payment() = Shown(payment);
  turn.Emit(kPayments, payment.payment_id(), event, payment.order_id());
}

// Moves the payment's amount (positive, so its negation exists) between two accounts.
void Move(const Payment& payment, absl::string_view reason, const std::string& from,
          const std::string& to, Turn& turn) {
  const std::string transaction_id = absl::StrCat(payment.payment_id(), "/", reason);
  const std::pair<const char*, int64_t> sides[] = {{"debit", -payment.amount().minor_units()},
                                                   {"credit", payment.amount().minor_units()}};
  for (const auto& [side, amount] : sides) {
    const std::string entry_id = absl::StrCat(transaction_id, "/", side);
    LedgerEntry& entry = turn.Append<LedgerEntry>(kLedgerEntries, entry_id);
    entry.set_entry_id(entry_id);
    entry.set_transaction_id(transaction_id);
    entry.set_account(amount < 0 ? from : to);
    entry.set_order_id(payment.order_id());
    entry.set_currency_code(payment.amount().currency_code());
    entry.set_amount(amount);
    *entry.mutable_create_time() = flow::ToTimestamp(turn.now_us());
  }
}

std::string CustomerAccount(const Payment& payment) {
  return absl::StrCat("customer:", payment.customer_id());
}

google::rpc::Status ValidateCapture(const CaptureRequest& request) {
  return flow::FieldChecks(kDomain)
      .Reference("customer_id", request.customer_id())
      .Money("amount", request.amount(), /*minor_units_min=*/1)
      .Text("payment_method", request.payment_method(), kPaymentMethodSizeMax)
      .status();
}

Answer Capture(const CaptureRequest& request, const Caller&, Payment& payment, Turn& turn) {
  payment.set_payment_id(flow::StepKey(request.order_id(), request.step_id()));
  payment.set_order_id(request.order_id());
  payment.set_customer_id(request.customer_id());
  *payment.mutable_amount() = request.amount();
  payment.set_payment_method(request.payment_method());
  if (request.payment_method() == kDeclinedMethod) {
    payment.set_state(Payment::STATE_DECLINED);
    return flow::Refuse(google::rpc::FAILED_PRECONDITION, kDomain, "PAYMENT_DECLINED",
                        "the payment was declined", "payment_method");
  }
  payment.set_state(Payment::STATE_CAPTURED);
  *payment.mutable_capture_time() = flow::ToTimestamp(turn.now_us());
  Move(payment, "capture", CustomerAccount(payment), kMerchantAccount, turn);
  EmitEvent<PaymentCaptured>(payment, turn);
  CaptureResponse response;
  response.set_payment_id(payment.payment_id());
  return flow::Done(response);
}

Answer Refund(Payment& payment, Turn& turn) {
  GK_CHECK(payment.state() == Payment::STATE_CAPTURED) << payment.payment_id();
  payment.set_state(Payment::STATE_REFUNDED);
  *payment.mutable_refund_time() = flow::ToTimestamp(turn.now_us());
  Move(payment, "refund", kMerchantAccount, CustomerAccount(payment), turn);
  EmitEvent<PaymentRefunded>(payment, turn);
  return flow::Done(RefundResponse());
}

// Nothing was captured: a declined payment stays declined, one that never came leaves a tombstone.
// No money, so no event.
void Void(const RefundRequest& request, Payment& payment, Turn&) {
  if (payment.state() == Payment::STATE_DECLINED) return;
  payment.set_payment_id(flow::StepKey(request.order_id(), request.step_id()));
  payment.set_order_id(request.order_id());
  payment.set_state(Payment::STATE_VOIDED);
}

flow::Context MakeContext() {
  flow::Context context;
  context.name = "payment";
  context.service = kDomain;
  context.tables = {&kPayments, &kLedgerEntries};
  context.handlers = {
      flow::StepHandler<Payment, CaptureRequest>(absl::StrCat(kDomain, ".Capture"), kPayments,
                                                 ValidateCapture, /*more_keys=*/nullptr, Capture),
      flow::UndoHandler<Payment, RefundRequest>(absl::StrCat(kDomain, ".Refund"), kPayments,
                                                /*held_rows=*/nullptr, Refund, Void),
  };
  context.gets = {
      {absl::StrCat(kDomain, ".GetPayment"), &kPayments, "payment_id", "payment", Show}};
  context.lists = {{absl::StrCat(kDomain, ".ListPayments"),
                    &kPayments,
                    {"order_id", "customer_id"},
                    "payments",
                    /*newest_first=*/true,
                    Show}};
  return context;
}

}  // namespace

const flow::Context& PaymentContext() {
  static const flow::Context* const context = new flow::Context(MakeContext());
  return *context;
}

}  // namespace gaekju::payment
