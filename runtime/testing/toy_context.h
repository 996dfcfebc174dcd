// toy_context.h: a small context for tests of the shell. Capture(order_id, step_id, customer_id,
// amount) adds the amount to the customer's counter, once per order and step. `payment_method` asks
// for special behaviour:
//
//   "wait:K"     waits for K            "resolve:K"  resolves K
//   "pending"    answers pending        "refuse"     refuses FAILED_PRECONDITION
//   "look:C"     needs the counter C, which it announces only by kRetry
//   "new"        counts once per request_uuid instead
//   "due:T"      sets the counter's timer to T seconds since 1970; when it is due, the counter
//   grows by 1000 "call"       calls another context; the result adds 1 to the counter "results"
//   "resend"     asks for events again
//
// The table refuses counters below zero. An event PaymentCaptured adds 1 to the counter "events";
// of customer "poison" it is refused.
#ifndef GAEKJU_RUNTIME_TESTING_TOY_CONTEXT_H_
#define GAEKJU_RUNTIME_TESTING_TOY_CONTEXT_H_

#include <memory>
#include <string>

#include "flow/turn.h"
#include "gaekju/payment/v1/payment_service.pb.h"
#include "runtime/pg.h"

namespace gaekju::runtime {

extern const flow::Table kToyCounters;
extern const flow::Table kToyMarks;
inline constexpr char kToyCapture[] = "gaekju.payment.v1.PaymentService.Capture";
inline constexpr char kToyGet[] = "gaekju.payment.v1.PaymentService.GetPayment";
inline constexpr char kToyList[] = "gaekju.payment.v1.PaymentService.ListPayments";
inline constexpr char kToyWatch[] =
    "gaekju.payment.v1.PaymentService.Refund";  // any method with a string field will do

flow::Context ToyContext();

// Makes the tables, and the runtime's.
void MakeToyTables(const PgOptions& pg);

std::unique_ptr<gaekju::payment::v1::CaptureRequest> ToyRequest(const std::string& order_id,
                                                                const std::string& customer,
                                                                int64_t amount = 1,
                                                                const std::string& how = "");

// The customer's counter in the database; 0 when it has none.
int64_t ToyCount(const PgOptions& pg, const std::string& customer);
int64_t QueryInt(const PgOptions& pg, const std::string& sql);

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_TESTING_TOY_CONTEXT_H_
