// payment.h: decides what may happen to the money of one order's step, and keeps the double-entry
// ledger behind it. Pure: no clock, no I/O, no globals that change. Thread-safe. Invariants:
// README.md.
//
//   const flow::Context& payment = PaymentContext();   // what the shell, the checker and the
//   simulator run
#ifndef GAEKJU_SERVICES_PAYMENT_PAYMENT_H_
#define GAEKJU_SERVICES_PAYMENT_PAYMENT_H_

#include "flow/turn.h"
#include "gaekju/payment/v1/payment.pb.h"

namespace gaekju::payment {

// Payment by "<order_id>/<step_id>".
extern const flow::Table kPayments;
// LedgerEntry by "<payment_id>/<capture|refund>/<debit|credit>". Rows are only added.
extern const flow::Table kLedgerEntries;

// The account that the shop's money is on.
inline constexpr char kMerchantAccount[] = "merchant";
// The payment method that is always declined, so that tests can ask for it.
inline constexpr char kDeclinedMethod[] = "card-declined";

const flow::Context& PaymentContext();

}  // namespace gaekju::payment

#endif  // GAEKJU_SERVICES_PAYMENT_PAYMENT_H_
