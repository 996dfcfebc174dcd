#include "runtime/testing/toy_context.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "flow/step.h"
#include "gaekju/payment/v1/payment.pb.h"
#include "gaekju/payment/v1/payment_events.pb.h"
#include "google/rpc/code.pb.h"
#include "runtime/migrate.h"

namespace gaekju::runtime {
namespace {

using gaekju::payment::v1::CaptureRequest;
using gaekju::payment::v1::CaptureResponse;
using gaekju::payment::v1::Payment;
using gaekju::payment::v1::PaymentCaptured;

void AddTo(const std::string& customer, int64_t amount, const std::string& order_id,
           flow::Turn& turn) {
  Payment& counter = turn.Edit<Payment>(kToyCounters, customer);
  counter.set_customer_id(customer);
  counter.set_state(Payment::STATE_CAPTURED);
  counter.mutable_amount()->set_minor_units(counter.amount().minor_units() + amount);
  PaymentCaptured event;
  event.mutable_payment()->set_customer_id(customer);
  turn.Emit(kToyCounters, customer, event, order_id);
}

std::string MarkOf(const CaptureRequest& request, const flow::Caller& caller) {
  if (request.payment_method() == "new") return caller.request_uuid;
  return flow::StepKey(request.order_id(), request.step_id());
}

flow::Answer Capture(const CaptureRequest& request, const flow::Caller& caller, flow::Turn& turn) {
  absl::string_view how = request.payment_method();
  if (how == "refuse")
    return flow::Refuse(google::rpc::FAILED_PRECONDITION, "toy", "REFUSED", "refused");
  if (absl::ConsumePrefix(&how, "look:")) {
    const flow::RowKey key{&kToyCounters, std::string(how)};
    if (!turn.HasRow(key)) {
      flow::Answer answer;
      answer.kind = flow::Answer::Kind::kRetry;
      answer.more_keys = {key};
      return answer;
    }
  }
  const std::string mark = MarkOf(request, caller);
  if (turn.Find<Payment>(kToyMarks, mark) == nullptr) {
    turn.Edit<Payment>(kToyMarks, mark).set_order_id(request.order_id());
    AddTo(request.customer_id(), request.amount().minor_units(), request.order_id(), turn);
  }
  int64_t due_s = 0;
  if (absl::ConsumePrefix(&how, "wait:")) return flow::Wait(std::string(how));
  if (absl::ConsumePrefix(&how, "resolve:")) {
    CaptureResponse resolved;
    resolved.set_payment_id(absl::StrCat("resolved by ", request.order_id()));
    turn.Resolve(std::string(how), flow::Done(resolved));
  } else if (how == "pending") {
    return flow::Pending();
  } else if (absl::ConsumePrefix(&how, "due:") && absl::SimpleAtoi(how, &due_s)) {
    turn.Edit<Payment>(kToyCounters, request.customer_id())
        .mutable_capture_time()
        ->set_seconds(due_s);
  } else if (how == "call") {
    flow::Call call;
    call.context = "other";
    call.order_id = request.order_id();
    turn.CallAfterCommit(call);
  } else if (how == "resend") {
    turn.RequestResend({"other", "thing/1", 7});
  }
  CaptureResponse response;
  response.set_payment_id(mark);
  return flow::Done(response);
}

}  // namespace

const flow::Table kToyCounters = {"toy_counter",
                                  &Payment::default_instance(),
                                  {{"customer_id", "customer_id"},
                                   {"state", "state"},
                                   {"minor_units", "amount.minor_units"},
                                   {"due_us", "capture_time"}}};
const flow::Table kToyMarks = {
    "toy_mark", &Payment::default_instance(), {{"order_id", "order_id"}}};

flow::Context ToyContext() {
  flow::Context context;
  context.name = "toy";
  context.service = "gaekju.payment.v1.PaymentService";
  context.tables = {&kToyCounters, &kToyMarks};
  context.handlers.push_back(std::make_shared<flow::FunctionHandler<CaptureRequest>>(
      kToyCapture,
      [](const CaptureRequest& request) {
        if (!request.order_id().empty()) return google::rpc::Status();
        return flow::MakeStatus(google::rpc::INVALID_ARGUMENT, "toy", "NO_ORDER",
                                "order_id is empty", "order_id");
      },
      [](const CaptureRequest& request, const flow::Caller& caller,
         std::vector<flow::RowKey>* keys) {
        keys->push_back({&kToyMarks, MarkOf(request, caller)});
        keys->push_back({&kToyCounters, request.customer_id()});
      },
      Capture));
  context.events.push_back(std::make_shared<flow::FunctionHandler<PaymentCaptured>>(
      "gaekju.payment.v1.PaymentCaptured", nullptr,
      [](const PaymentCaptured&, const flow::Caller&, std::vector<flow::RowKey>* keys) {
        keys->push_back({&kToyCounters, "events"});
      },
      [](const PaymentCaptured& event, const flow::Caller& caller, flow::Turn& turn) {
        if (event.payment().customer_id() == "poison") {
          return flow::Refuse(google::rpc::INVALID_ARGUMENT, "toy", "POISON", "poison");
        }
        AddTo("events", 1, caller.event.order_id, turn);
        return flow::Done(CaptureResponse());
      }));
  context.result_keys = [](const flow::StepResult&, std::vector<flow::RowKey>* keys) {
    keys->push_back({&kToyCounters, "results"});
  };
  context.on_result = [](const flow::StepResult& result, flow::Turn& turn) {
    AddTo("results", 1, result.order_id, turn);
  };
  context.timer.table = &kToyCounters;
  context.timer.column = "due_us";
  context.timer.keys = [](absl::string_view key, std::vector<flow::RowKey>* keys) {
    keys->push_back({&kToyCounters, std::string(key)});
  };
  context.timer.due = [](absl::string_view key, flow::Turn& turn) {
    const Payment* counter = turn.Find<Payment>(kToyCounters, key);
    if (counter == nullptr || !counter->has_capture_time()) return;
    turn.Edit<Payment>(kToyCounters, key).clear_capture_time();
    AddTo(std::string(key), 1000, "", turn);
  };
  context.gets.push_back({kToyGet, &kToyCounters, "payment_id", "payment", nullptr});
  context.lists.push_back({kToyList, &kToyCounters, {"customer_id"}, "payments", true, nullptr});
  return context;
}

void MakeToyTables(const PgOptions& pg) {
  const absl::Status status =
      Migrate(pg, {{"runtime", RuntimeMigrations()},
                   {"toy",
                    {{1, "0001_toy",
                      "CREATE TABLE toy_counter (key text COLLATE \"C\" PRIMARY KEY, version "
                      "bigint NOT NULL, body bytea NOT NULL, "
                      "customer_id text NOT NULL, state integer NOT NULL, minor_units bigint NOT "
                      "NULL CHECK (minor_units >= 0), "
                      "due_us bigint NOT NULL);"
                      "CREATE INDEX toy_counter_due ON toy_counter (due_us) WHERE due_us > 0;"
                      "CREATE TABLE toy_mark (key text COLLATE \"C\" PRIMARY KEY, version bigint "
                      "NOT NULL, body bytea NOT NULL, "
                      "order_id text NOT NULL)"}}}});
  GK_CHECK(status.ok()) << status;
}

std::unique_ptr<CaptureRequest> ToyRequest(const std::string& order_id, const std::string& customer,
                                           int64_t amount, const std::string& how) {
  auto request = std::make_unique<CaptureRequest>();
  request->set_order_id(order_id);
  request->set_step_id("pay");
  request->set_customer_id(customer);
  request->mutable_amount()->set_minor_units(amount);
  request->set_payment_method(how);
  return request;
}

int64_t QueryInt(const PgOptions& options, const std::string& sql) {
  auto pg = PgConnection::Connect(options);
  GK_CHECK(pg.ok()) << pg.status();
  auto result = (*pg)->Query(sql);
  GK_CHECK(result.ok()) << result.status();
  return result->rows() == 0 || result->IsNull(0, 0) ? 0 : result->Int(0, 0);
}

int64_t ToyCount(const PgOptions& pg, const std::string& customer) {
  return QueryInt(pg,
                  absl::StrCat("SELECT minor_units FROM toy_counter WHERE key = '", customer, "'"));
}

}  // namespace gaekju::runtime
