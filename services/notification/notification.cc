#include "services/notification/notification.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "flow/mutant.h"
#include "flow/step.h"
#include "flow/values.h"
#include "gaekju/notification/v1/notification_events.pb.h"
#include "gaekju/notification/v1/notification_service.pb.h"
#include "google/rpc/code.pb.h"

namespace gaekju::notification {

using flow::Answer;
using flow::Caller;
using flow::RowKey;
using flow::Turn;
using gaekju::notification::v1::CreateNoticeRequest;
using gaekju::notification::v1::CreateNoticeResponse;
using gaekju::notification::v1::Notice;
using gaekju::notification::v1::NoticeCounter;
using gaekju::notification::v1::NoticeSent;
using gaekju::notification::v1::NotifyRequest;
using gaekju::notification::v1::NotifyResponse;
using gaekju::notification::v1::Recipient;
using gaekju::type::v1::LocalizedText;
using google::protobuf::Message;

const flow::Table kNotices = {"notices", &Notice::default_instance(), {}};

const flow::Table kNoticeLog = {"notice_log",
                                &Notice::default_instance(),
                                {{"storefront", "storefront"},
                                 {"number", "number"},
                                 {"order_id", "order_id"},
                                 {"customer_id", "customer_id"},
                                 {"recipient", "recipient"}}};

const flow::Table kNoticeCounters = {"notice_counters", &NoticeCounter::default_instance(), {}};

namespace {

constexpr char kDomain[] = "gaekju.notification.v1.NotificationService";
constexpr size_t kTextSizeMax = 1024;  // of a language, before it is filled in
constexpr size_t kNameSizeMax = 256;
constexpr size_t kCodeSizeMax = 64;

// The notice as others may see it: without what only this context keeps.
Notice Shown(const Notice& notice) {
  Notice shown = notice;
  shown.clear_step();
  shown.clear_request_fingerprint();
  return shown;
}

bool Show(const Message& row, Message* out) {
  *static_cast<Notice*>(out) = Shown(static_cast<const Notice&>(row));
  return true;
}

// --- what is said

using Words = std::vector<std::pair<absl::string_view, std::string>>;  // placeholder -> words

Words WordsOf(const NotifyRequest& request) {
  int64_t quantity = 0;
  for (const auto& line : request.lines()) quantity += line.quantity();
  std::string product;
  if (request.lines_size() > 0) {
    const auto& first = request.lines(0);
    product = first.display_name().empty() ? first.product_id() : first.display_name();
  }
  return {{"number", absl::StrCat(request.number())},
          {"customer_name", request.customer_name()},
          {"product", product},
          {"quantity", absl::StrCat(quantity)},
          {"agency_name", request.agency_name()}};
}

// Appends the text with its placeholders filled in; false when one is none of ours or has no end.
// What is filled in is never read again: a buyer called "{number}" is told so.
bool Render(absl::string_view text, const Words& words, std::string* out) {
  while (!text.empty()) {
    const size_t brace = text.find('{');
    out->append(text.data(), std::min(brace, text.size()));
    if (brace == text.npos) return true;
    text.remove_prefix(brace + 1);
    if (absl::StartsWith(text, "{")) {
      out->push_back('{');
      text.remove_prefix(1);
      continue;
    }
    const size_t end = text.find('}');
    const auto word = std::find_if(words.begin(), words.end(), [&](const auto& known) {
      return known.first == text.substr(0, end);
    });
    if (end == text.npos || word == words.end()) return false;
    out->append(word->second);
    text.remove_prefix(end + 1);
  }
  return true;
}

bool IsCode(absl::string_view code) {
  return std::all_of(code.begin(), code.end(), [](unsigned char c) {
    return absl::ascii_isupper(c) || absl::ascii_isdigit(c) || c == '_';
  });
}

// Words in one language at least.
flow::FieldChecks& CheckText(const LocalizedText& text, flow::FieldChecks& checks) {
  const bool has_words = !absl::StripAsciiWhitespace(text.ko()).empty() ||
                         !absl::StripAsciiWhitespace(text.en()).empty();
  return checks.That(has_words, "text", "must say something, in ko or en")
      .Text("text.ko", text.ko(), kTextSizeMax)
      .Text("text.en", text.en(), kTextSizeMax);
}

// --- how it is kept

// Counts the notice, writes it down by its time, and tells it. REQUIRES: all else of it is set.
void Send(Notice& notice, Turn& turn) {
  NoticeCounter& counter = turn.Edit<NoticeCounter>(kNoticeCounters, notice.storefront());
  counter.set_storefront(notice.storefront());
  if (!GK_MUTANT(notices_number_twice) || counter.last_number() == 0)
    counter.set_last_number(counter.last_number() + 1);
  notice.set_number(counter.last_number());
  // Nobody named: the buyer, so that lists by recipient find it.
  if (notice.recipient() == Recipient::RECIPIENT_UNSPECIFIED)
    notice.set_recipient(Recipient::RECIPIENT_BUYER);
  *notice.mutable_create_time() = flow::ToTimestamp(turn.now_us());
  const std::string log_key =
      absl::StrFormat("%016d/%s/%012d", turn.now_us(), notice.storefront(), notice.number());
  turn.Append<Notice>(kNoticeLog, log_key) = Shown(notice);
  NoticeSent event;
  *event.mutable_notice() = Shown(notice);
  if (!GK_MUTANT(notice_not_published))
    turn.Emit(kNotices, notice.notice_id(), event, notice.order_id());
}

// --- the step

google::rpc::Status ValidateNotify(const NotifyRequest& request) {
  flow::FieldChecks checks(kDomain);
  checks.Storefront("storefront", request.storefront())
      .Reference("customer_id", request.customer_id())
      .Text("customer_name", request.customer_name(), kNameSizeMax)
      .Text("agency_name", request.agency_name(), kNameSizeMax)
      .That(v1::Recipient_IsValid(request.recipient()), "recipient", "is not a Recipient")
      .Text("code", request.code(), kCodeSizeMax)
      .That(IsCode(request.code()), "code", "must be UPPER_SNAKE_CASE");
  if (request.lines_size() > 0) checks.Lines("lines", request.lines());
  CheckText(request.text(), checks);
  const Words words = WordsOf(request);
  constexpr char kRule[] =
      "has a placeholder that there is not; there are {number}, {customer_name}, {product}, "
      "{quantity} and {agency_name}, and \"{{\" is a brace";
  std::string said;
  return checks.That(Render(request.text().ko(), words, &said), "text.ko", kRule)
      .That(Render(request.text().en(), words, &said), "text.en", kRule)
      .status();
}

Answer Notify(const NotifyRequest& request, const Caller&, Notice& notice, Turn& turn) {
  notice.set_notice_id(flow::StepKey(request.order_id(), request.step_id()));
  notice.set_storefront(request.storefront());
  notice.set_order_id(request.order_id());
  notice.set_recipient(request.recipient());
  notice.set_customer_id(request.customer_id());
  notice.set_code(request.code());
  const Words words = WordsOf(request);
  GK_CHECK(Render(request.text().ko(), words, notice.mutable_text()->mutable_ko()) &&
           Render(request.text().en(), words, notice.mutable_text()->mutable_en()))
      << "validated";
  Send(notice, turn);
  NotifyResponse response;
  response.set_notice_id(notice.notice_id());
  return flow::Done(response);
}

// --- by hand

std::string ManualKey(const CreateNoticeRequest& request, const Caller& caller) {
  return absl::StrCat(request.storefront(), "/",
                      request.request_id().empty() ? caller.request_uuid : request.request_id());
}

google::rpc::Status ValidateCreateNotice(const CreateNoticeRequest& request) {
  flow::FieldChecks checks(kDomain);
  checks.Storefront("storefront", request.storefront());
  if (!request.request_id().empty()) checks.Id("request_id", request.request_id());
  if (!request.order_id().empty()) checks.Id("order_id", request.order_id());
  if (!request.customer_id().empty()) checks.Reference("customer_id", request.customer_id());
  checks.That(v1::Recipient_IsValid(request.recipient()), "recipient", "is not a Recipient");
  return CheckText(request.text(), checks).status();
}

Answer DoneWithNotice(const Notice& notice) {
  CreateNoticeResponse response;
  *response.mutable_notice() = Shown(notice);
  return flow::Done(response);
}

Answer CreateNotice(const CreateNoticeRequest& request, const Caller& caller, Turn& turn) {
  const std::string key = ManualKey(request, caller);
  const uint64_t fingerprint = flow::Fingerprint(request);
  if (const Notice* found = turn.Find<Notice>(kNotices, key)) {
    if (found->request_fingerprint() == fingerprint) return DoneWithNotice(*found);
    return flow::Refuse(google::rpc::ALREADY_EXISTS, kDomain, "REQUEST_ID_REUSED",
                        "this request_id was used before with other content; take a new one",
                        "request_id");
  }
  Notice& notice = turn.Edit<Notice>(kNotices, key);
  notice.set_notice_id(key);
  notice.set_storefront(request.storefront());
  notice.set_order_id(request.order_id());
  notice.set_recipient(request.recipient());
  notice.set_customer_id(request.customer_id());
  *notice.mutable_text() = request.text();
  notice.set_request_fingerprint(fingerprint);
  Send(notice, turn);
  return DoneWithNotice(notice);
}

flow::Context MakeContext() {
  flow::Context context;
  context.name = "notification";
  context.service = kDomain;
  context.tables = {&kNotices, &kNoticeLog, &kNoticeCounters};
  context.handlers = {
      flow::StepHandler<Notice, NotifyRequest>(
          absl::StrCat(kDomain, ".Notify"), kNotices, ValidateNotify,
          [](const NotifyRequest& request, std::vector<RowKey>* keys) {
            keys->push_back({&kNoticeCounters, request.storefront()});
          },
          Notify),
      std::make_shared<flow::FunctionHandler<CreateNoticeRequest>>(
          absl::StrCat(kDomain, ".CreateNotice"), ValidateCreateNotice,
          [](const CreateNoticeRequest& request, const Caller& caller, std::vector<RowKey>* keys) {
            keys->push_back({&kNotices, ManualKey(request, caller)});
            keys->push_back({&kNoticeCounters, request.storefront()});
          },
          CreateNotice),
  };
  context.gets = {{absl::StrCat(kDomain, ".GetNotice"), &kNotices, "notice_id", "notice", Show}};
  context.lists = {{absl::StrCat(kDomain, ".ListNotices"),
                    &kNoticeLog,
                    {"storefront", "order_id", "customer_id", "recipient", "number"},
                    "notices",
                    /*newest_first=*/true,
                    /*project=*/nullptr}};
  return context;
}

}  // namespace

const flow::Context& NotificationContext() {
  static const flow::Context* const context = new flow::Context(MakeContext());
  return *context;
}

}  // namespace gaekju::notification
