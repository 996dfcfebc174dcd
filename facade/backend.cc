#include "facade/backend.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "flow/check.h"
#include "flow/turn.h"
#include "google/protobuf/message.h"
#include "google/rpc/code.pb.h"
#include "google/rpc/error_details.pb.h"

namespace gaekju::facade {
namespace {

constexpr char kDomain[] = "gaekju.facade";
// Some 20 MiB; then they are learnt anew.
constexpr size_t kKnownOrdersMax = 100'000;

// "order" -> "gaekju.order.v1.OrderService."
std::string ServicePrefix(absl::string_view context) {
  std::string name(context);
  if (!name.empty()) name[0] = absl::ascii_toupper(static_cast<unsigned char>(name[0]));
  return absl::StrCat("gaekju.", context, ".v1.", name, "Service.");
}

std::string JsonQuote(absl::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      absl::StrAppend(&out, "\\", std::string(1, c));
    } else if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppendFormat(&out, "\\u%04x", static_cast<int>(c));
    } else {
      out.push_back(c);
    }
  }
  out.push_back('"');
  return out;
}

// What a caller is told when a context does not answer, instead of gRPC's words about addresses.
google::rpc::Status Unreachable(int code, absl::string_view context) {
  google::rpc::Status status = flow::MakeStatus(
      code, kDomain, "CONTEXT_UNREACHABLE",
      absl::StrCat("the ", context, " service could not be reached; please try again in a moment"),
      /*field=*/"", /*retry_after_us=*/1'000'000);
  google::rpc::LocalizedMessage words;
  words.set_locale("ko");
  words.set_message("잠시 후 다시 시도해 주세요");
  status.add_details()->PackFrom(words);
  words.set_locale("en");
  words.set_message("Please try again in a moment");
  status.add_details()->PackFrom(words);
  return status;
}

template <class Detail, class Use>
void ForEach(const google::rpc::Status& status, Use use) {
  for (const google::protobuf::Any& any : status.details()) {
    Detail detail;
    if (any.Is<Detail>() && any.UnpackTo(&detail)) use(detail);
  }
}

}  // namespace

// ---------------------------------------------------------------- HTTP
int HttpStatusOf(int code) {
  switch (code) {
    case google::rpc::OK:
      return 200;
    case google::rpc::INVALID_ARGUMENT:
    case google::rpc::OUT_OF_RANGE:
      return 400;
    case google::rpc::UNAUTHENTICATED:
      return 401;
    case google::rpc::PERMISSION_DENIED:
      return 403;
    case google::rpc::NOT_FOUND:
      return 404;
    case google::rpc::ALREADY_EXISTS:
    case google::rpc::ABORTED:
    case google::rpc::FAILED_PRECONDITION:
      return 409;
    case google::rpc::RESOURCE_EXHAUSTED:
      return 429;
    case google::rpc::CANCELLED:
      return 499;
    case google::rpc::UNIMPLEMENTED:
      return 501;
    case google::rpc::UNAVAILABLE:
      return 503;
    case google::rpc::DEADLINE_EXCEEDED:
      return 504;
    default:
      return 500;
  }
}

std::string HttpReasonOf(int status) {
  switch (status) {
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 409:
      return "Conflict";
    case 429:
      return "Too Many Requests";
    case 499:
      return "Client Closed Request";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    default:
      return "Internal Server Error";
  }
}

int64_t RetryAfterSeconds(const google::rpc::Status& status) {
  int64_t seconds = 0;
  ForEach<google::rpc::RetryInfo>(status, [&](const google::rpc::RetryInfo& info) {
    const auto& delay = info.retry_delay();
    seconds = std::max<int64_t>({seconds, 1, delay.seconds() + (delay.nanos() > 0 ? 1 : 0)});
  });
  return seconds;
}

std::string ErrorBody(const google::rpc::Status& status, absl::string_view path,
                      absl::string_view language, absl::Time now) {
  const int http = HttpStatusOf(status.code());
  const absl::string_view wanted = absl::StartsWithIgnoreCase(language, "en") ? "en" : "ko";
  std::string message = status.message();
  ForEach<google::rpc::LocalizedMessage>(status, [&](const google::rpc::LocalizedMessage& words) {
    if (absl::StartsWith(words.locale(), wanted)) message = words.message();
  });
  std::string field;
  ForEach<google::rpc::BadRequest>(status, [&](const google::rpc::BadRequest& bad) {
    if (field.empty() && bad.field_violations_size() > 0) field = bad.field_violations(0).field();
  });
  std::string body =
      absl::StrCat("{\"timestamp\":",
                   JsonQuote(absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", now, absl::UTCTimeZone())),
                   ",\"status\":", http, ",\"error\":", JsonQuote(HttpReasonOf(http)),
                   ",\"message\":", JsonQuote(message));
  if (const std::string reason = flow::ReasonOf(status); !reason.empty())
    absl::StrAppend(&body, ",\"reason\":", JsonQuote(reason));
  if (!field.empty()) absl::StrAppend(&body, ",\"field\":", JsonQuote(field));
  if (!path.empty()) absl::StrAppend(&body, ",\"path\":", JsonQuote(path));
  return absl::StrCat(body, "}");
}

std::string PercentEncode(absl::string_view bytes) {
  std::string out;
  for (const char c : bytes) {
    if (absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
        absl::StrContains("-_.~{}:,\"/[]()", c)) {
      out.push_back(c);
    } else {
      absl::StrAppendFormat(&out, "%%%02X", static_cast<unsigned char>(c));
    }
  }
  return out;
}

// ---------------------------------------------------------------- lanes
bool Lane::Submit(std::function<void()> work) {
  std::lock_guard lock(mutex_);
  if (stopping_ || static_cast<int>(waiting_.size()) >= waiting_max_) return false;
  waiting_.push_back(std::move(work));
  if (idle_ < static_cast<int>(waiting_.size()) &&
      static_cast<int>(threads_.size()) < threads_max_) {
    threads_.emplace_back([this] { Loop(); });
  }
  wake_.notify_one();
  return true;
}

void Lane::Loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    ++idle_;
    wake_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    --idle_;
    if (waiting_.empty()) return;
    std::function<void()> work = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    work();
    work = nullptr;
    lock.lock();
  }
}

void Lane::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

std::string CallState::Header(absl::string_view name) const {
  for (const auto& [known, value] : context.headers) {
    if (known == name) return value;
  }
  return "";
}

// ---------------------------------------------------------------- backend
Lane& Backend::LaneOf(const std::string& name) {
  std::lock_guard lock(mutex_);
  std::unique_ptr<Lane>& lane = lanes_[name];
  if (lane == nullptr)
    lane = std::make_unique<Lane>(options_.lane_threads_max, options_.lane_waiting_max);
  return *lane;
}

void Backend::Stop() {
  // Lanes are made while serving only, and nothing is served any more.
  for (auto& [name, lane] : lanes_) lane->Stop();
}

void Backend::Serve(const Shop& shop, runtime::RpcServer& server) {
  const auto* service =
      google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(shop.service());
  GK_CHECK(service != nullptr) << shop.service() << " is not in the generated pool";
  struct Bound {
    const Shop::Method* method;
    const google::protobuf::Message* response;
    Lane* lane;
  };
  auto bound = std::make_shared<std::map<const google::protobuf::MethodDescriptor*, Bound>>();
  for (const Shop::Method& method : shop.methods()) {
    const auto* descriptor = service->FindMethodByName(method.name);
    GK_CHECK(descriptor != nullptr) << shop.service() << " has no method " << method.name;
    GK_CHECK(descriptor->input_type() == method.request &&
             descriptor->output_type() == method.response)
        << descriptor->full_name() << " is of other types than its handler";
    const auto* response = google::protobuf::MessageFactory::generated_factory()->GetPrototype(
        descriptor->output_type());
    GK_CHECK(bound->emplace(descriptor, Bound{&method, response, &LaneOf(method.lane)}).second)
        << method.name << " has two handlers";
  }
  for (int i = 0; i < service->method_count(); ++i) {
    GK_CHECK(bound->contains(service->method(i)))
        << std::string(service->method(i)->full_name()) << " has no handler";
  }
  server.AddService(*service, [this, bound, &shop](
                                  const google::protobuf::MethodDescriptor& method,
                                  runtime::CallContext context,
                                  std::unique_ptr<google::protobuf::Message> request,
                                  runtime::Responder responder) {
    const Bound& to = bound->at(&method);
    // Shared, because std::function has to be copyable.
    auto state = std::make_shared<CallState>();
    state->context = std::move(context);
    std::shared_ptr<google::protobuf::Message> message = std::move(request);
    auto answer = std::make_shared<runtime::Responder>(std::move(responder));
    auto refuse = [](CallState& call, runtime::Responder& end, const google::rpc::Status& status) {
      const std::string path = call.Header(kPathHeader);
      call.headers.clear();  // a Location that was not reached
      call.headers.emplace_back(
          kErrorHeader,
          PercentEncode(ErrorBody(status, path, call.Header("accept-language"), absl::Now())));
      call.headers.emplace_back(kStatusHeader, absl::StrCat(HttpStatusOf(status.code())));
      if (const int64_t seconds = RetryAfterSeconds(status); seconds > 0) {
        call.headers.emplace_back("retry-after", absl::StrCat(seconds));
      } else if (status.code() == google::rpc::UNAVAILABLE) {
        call.headers.emplace_back("retry-after", "1");
      }
      end.Reply(status, "", std::move(call.headers));
    };
    const bool taken = to.lane->Submit([this, &shop, &to, bound, state, message, answer, refuse] {
      if (answer->cancelled()) return;  // nobody waits: an order that was not begun is not placed
      std::unique_ptr<google::protobuf::Message> response(to.response->New());
      Call call(*this, shop.id(), *state);
      if (absl::Status status = to.method->run(call, *message, response.get()); !status.ok())
        return refuse(*state, *answer, ToRpc(status));
      answer->Reply({}, response->SerializeAsString(), std::move(state->headers));
    });
    if (!taken) {
      refuse(*state, *answer,
             flow::MakeStatus(
                 google::rpc::RESOURCE_EXHAUSTED, kDomain, "LANE_FULL",
                 absl::StrCat("too many wait for ", to.method->lane, "; try again in a moment"),
                 /*field=*/"", /*retry_after_us=*/1'000'000));
    }
  });
}

absl::Status Backend::Ask(const CallState& state, absl::string_view context,
                          absl::string_view method, const google::protobuf::Message& request,
                          google::protobuf::Message* response, absl::Duration timeout) {
  struct Waiting {
    std::mutex mutex;
    std::condition_variable ended;
    bool done = false;
    runtime::UnaryResult result;
  } waiting;
  runtime::UnaryCall call;
  call.context = std::string(context);
  call.method = absl::StrCat(ServicePrefix(context), method);
  call.payload = request.SerializeAsString();
  call.timeout_us = std::max<int64_t>(1000, absl::ToInt64Microseconds(timeout));
  call.traceparent = state.context.traceparent;
  client_->Unary(std::move(call), [&waiting](runtime::UnaryResult result) {
    std::lock_guard lock(waiting.mutex);
    waiting.result = std::move(result);
    waiting.done = true;
    waiting.ended.notify_one();  // under the lock: `waiting` goes when the waiter wakes
  });
  std::unique_lock lock(waiting.mutex);
  waiting.ended.wait(lock, [&] { return waiting.done; });
  const google::rpc::Status& status = waiting.result.status;
  if (status.code() != 0) {
    const bool own_words =
        status.details_size() > 0 || (status.code() != google::rpc::UNAVAILABLE &&
                                      status.code() != google::rpc::DEADLINE_EXCEEDED);
    return FromRpc(own_words ? status : Unreachable(status.code(), context));
  }
  if (!response->ParseFromString(waiting.result.payload)) {
    return absl::InternalError(absl::StrCat(context, ".", method, " answered something that is no ",
                                            std::string(response->GetTypeName())));
  }
  return absl::OkStatus();
}

const std::string& Backend::StorefrontOf(const std::string& shop) const {
  const auto it = options_.storefronts.find(shop);
  return it == options_.storefronts.end() ? shop : it->second;
}

void Backend::Remember(const std::string& storefront, const std::string& order_id, int64_t number) {
  if (order_id.empty() || number <= 0) return;
  std::lock_guard lock(mutex_);
  if (numbers_.size() >= kKnownOrdersMax) {
    numbers_.clear();
    order_ids_.clear();
  }
  numbers_[order_id] = number;
  order_ids_[absl::StrCat(storefront, "/", number)] = order_id;
}

std::optional<std::string> Backend::OrderIdOf(const std::string& storefront, int64_t number) {
  std::lock_guard lock(mutex_);
  const auto it = order_ids_.find(absl::StrCat(storefront, "/", number));
  if (it == order_ids_.end()) return std::nullopt;
  return it->second;
}

int64_t Backend::NumberOf(const std::string& order_id) {
  std::lock_guard lock(mutex_);
  const auto it = numbers_.find(order_id);
  return it == numbers_.end() ? 0 : it->second;
}

}  // namespace gaekju::facade
