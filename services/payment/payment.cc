#include "services/payment/payment.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flow/mutant.h"
#include "flow/step.h"
#include "flow/values.h"
#include "gaekju/payment/v1/payment_events.pb.h"
#include "gaekju/payment/v1/payment_service.pb.h"
#include "google/rpc/code.pb.h"

namespace gaekju::payment {

using flow::Answer;
using flow::Caller;
using flow::RowKey;
using flow::Turn;
using gaekju::payment::v1::CaptureRequest;
using gaekju::payment::v1::CaptureResponse;
using gaekju::payment::v1::LedgerEntry;
using gaekju::payment::v1::MissingMethod;
using gaekju::payment::v1::Payment;
using gaekju::payment::v1::PaymentCaptured;
using gaekju::payment::v1::PaymentRefunded;
using gaekju::payment::v1::PayRequest;
using gaekju::payment::v1::PayResponse;
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
    if (amount < 0 && GK_MUTANT(ledger_side_missing)) continue;
    if (reason == "refund" && GK_MUTANT(refund_of_zero)) continue;
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
      .That(v1::MissingMethod_IsValid(request.missing_method()), "missing_method",
            "is not a MissingMethod")
      .status();
}

Answer Decline() {
  return flow::Refuse(google::rpc::FAILED_PRECONDITION, kDomain, "PAYMENT_DECLINED",
                      "the payment was declined", "payment_method");
}

// Takes the money. REQUIRES: all but the state of the payment is set.
Answer TakeMoney(Payment& payment, Turn& turn) {
  payment.set_state(Payment::STATE_CAPTURED);
  *payment.mutable_capture_time() = flow::ToTimestamp(turn.now_us());
  Move(payment, "capture", CustomerAccount(payment), kMerchantAccount, turn);
  EmitEvent<PaymentCaptured>(payment, turn);
  CaptureResponse response;
  response.set_payment_id(payment.payment_id());
  return flow::Done(response);
}

Answer Capture(const CaptureRequest& request, const Caller&, Payment& payment, Turn& turn) {
  payment.set_payment_id(flow::StepKey(request.order_id(), request.step_id()));
  payment.set_order_id(request.order_id());
  payment.set_customer_id(request.customer_id());
  *payment.mutable_amount() = request.amount();
  payment.set_payment_method(request.payment_method());
  if (request.payment_method() == kDeclinedMethod) {
    if (GK_MUTANT(declined_card_charged)) TakeMoney(payment, turn);
    payment.set_state(Payment::STATE_DECLINED);
    return Decline();
  }
  if (request.payment_method().empty() &&
      request.missing_method() == MissingMethod::MISSING_METHOD_AWAIT) {
    payment.set_state(Payment::STATE_AWAITED);
    return GK_MUTANT(awaited_counts_as_paid) ? flow::Done(CaptureResponse()) : flow::Pending();
  }
  return TakeMoney(payment, turn);
}

Answer Refund(Payment& payment, Turn& turn) {
  GK_CHECK(payment.state() == Payment::STATE_CAPTURED) << payment.payment_id();
  if (!GK_MUTANT(refund_leaves_captured)) payment.set_state(Payment::STATE_REFUNDED);
  *payment.mutable_refund_time() = flow::ToTimestamp(turn.now_us());
  Move(payment, "refund", kMerchantAccount, CustomerAccount(payment), turn);
  if (!GK_MUTANT(refund_not_published)) EmitEvent<PaymentRefunded>(payment, turn);
  return flow::Done(RefundResponse());
}

// Nothing was captured: a declined payment stays declined; one that is awaited, or never came, is
// void from now on. No money, so no event.
void Void(const RefundRequest& request, Payment& payment, Turn& turn) {
  if (payment.state() == Payment::STATE_DECLINED) return;
  if (payment.state() == Payment::STATE_AWAITED && GK_MUTANT(void_gives_money_back)) {
    Move(payment, "refund", kMerchantAccount, CustomerAccount(payment), turn);
  }
  if (payment.state() == Payment::STATE_AWAITED && GK_MUTANT(awaited_payment_not_voided)) return;
  payment.set_payment_id(flow::StepKey(request.order_id(), request.step_id()));
  payment.set_order_id(request.order_id());
  payment.set_state(Payment::STATE_VOIDED);
}

// --- the buyer pays later

google::rpc::Status ValidatePay(const PayRequest& request) {
  return flow::FieldChecks(kDomain)
      .Key("payment_id", request.payment_id())
      .That(!request.payment_method().empty(), "payment_method", "must be set")
      .Text("payment_method", request.payment_method(), kPaymentMethodSizeMax)
      .status();
}

Answer DoneWithPayment(const Payment& payment) {
  PayResponse response;
  *response.mutable_payment() = Shown(payment);
  return flow::Done(response);
}

Answer Pay(const PayRequest& request, const Caller&, Turn& turn) {
  const Payment* found = turn.Find<Payment>(kPayments, request.payment_id());
  // Somebody else's payment is none, so that ids tell strangers nothing.
  if (found == nullptr ||
      (!request.customer_id().empty() && request.customer_id() != found->customer_id())) {
    return flow::Refuse(google::rpc::NOT_FOUND, kDomain, "PAYMENT_NOT_FOUND",
                        absl::StrCat("no payment ", request.payment_id()), "payment_id");
  }
  // Paid is paid, however it is asked to be paid again.
  if (found->state() == Payment::STATE_CAPTURED && !GK_MUTANT(awaited_payment_taken_twice))
    return DoneWithPayment(*found);
  if (found->state() != Payment::STATE_AWAITED && !GK_MUTANT(awaited_payment_taken_twice)) {
    return flow::Refuse(google::rpc::FAILED_PRECONDITION, kDomain, "PAYMENT_NOT_AWAITED",
                        absl::StrCat("the payment is ", Payment::State_Name(found->state())),
                        "payment_id");
  }
  // Not recorded, unlike a declined capture: the buyer takes another card.
  if (request.payment_method() == kDeclinedMethod) return Decline();
  Payment& payment = turn.Edit<Payment>(kPayments, request.payment_id());
  payment.set_payment_method(request.payment_method());
  const Answer step_answer = TakeMoney(payment, turn);
  flow::AnswerPendingStep(step_answer, CaptureResponse::descriptor()->full_name(),
                          payment.mutable_step(), turn);
  return DoneWithPayment(payment);
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
      std::make_shared<flow::FunctionHandler<PayRequest>>(
          absl::StrCat(kDomain, ".Pay"), ValidatePay,
          [](const PayRequest& request, const Caller&, std::vector<RowKey>* keys) {
            keys->push_back({&kPayments, request.payment_id()});
          },
          Pay),
  };
  context.gets = {
      {absl::StrCat(kDomain, ".GetPayment"), &kPayments, "payment_id", "payment", Show}};
  context.lists = {{absl::StrCat(kDomain, ".ListPayments"),
                    &kPayments,
                    {"order_id", "customer_id", "order_ids"},
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
