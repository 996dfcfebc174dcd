#include "services/testing/turn_harness.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/dynamic_message.h"

namespace gaekju::testing {
namespace {

using flow::Answer;
using flow::RowKey;
using flow::Turn;
using flow::TurnItem;
using google::protobuf::DescriptorPool;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::MessageFactory;
using google::protobuf::MethodDescriptor;

const MethodDescriptor* FindMethod(const std::string& name) {
  const MethodDescriptor* method = DescriptorPool::generated_pool()->FindMethodByName(name);
  GK_CHECK(method != nullptr) << "no such method: " << name;
  return method;
}

std::unique_ptr<Message> NewMessage(const google::protobuf::Descriptor* type) {
  return std::unique_ptr<Message>(MessageFactory::generated_factory()->GetPrototype(type)->New());
}

// Copies the row, or has the query show it; null when it hides it.
template <class Query>
std::unique_ptr<Message> Project(const Query& query, const Message& row,
                                 const google::protobuf::Descriptor* type) {
  auto out = NewMessage(type);
  if (!query.project) {
    out->CopyFrom(row);
  } else if (!query.project(row, out.get())) {
    return nullptr;
  }
  return out;
}

// The text of the column called `column`.
std::string ColumnOf(const flow::Table& table, const Message& row, absl::string_view column) {
  for (const flow::Column& c : table.columns) {
    if (c.name == column) return ColumnText(row, c.path);
  }
  GK_CHECK(false) << table.name << " has no column " << column;
  return "";
}

// Whether the row is one that the request's `filter` asks for, as flow::ListQuery says.
bool Passes(const flow::Table& table, const std::string& key, const Message& row,
            const Message& request, const std::string& filter) {
  const FieldDescriptor* field = request.GetDescriptor()->FindFieldByName(filter);
  GK_CHECK(field != nullptr) << request.GetTypeName() << " has no " << filter;
  if (!field->is_repeated()) {
    const std::unique_ptr<Message> unset(request.New());  // an empty field does not filter
    const std::string wanted = ColumnText(request, filter);
    return wanted == ColumnText(*unset, filter) || wanted == ColumnOf(table, row, filter);
  }
  const std::string column = filter.substr(0, filter.size() - 1);  // "order_ids"
  const bool is_column = std::any_of(table.columns.begin(), table.columns.end(),
                                     [&](const flow::Column& c) { return c.name == column; });
  const std::string value = is_column ? ColumnOf(table, row, column) : key;
  const auto wanted = request.GetReflection()->GetRepeatedFieldRef<std::string>(request, field);
  return wanted.empty() || std::find(wanted.begin(), wanted.end(), value) != wanted.end();
}

}  // namespace

std::string ColumnText(const Message& message, absl::string_view path) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(path, absl::MaxSplits('.', 1));
  const FieldDescriptor* field = message.GetDescriptor()->FindFieldByName(std::string(parts.first));
  GK_CHECK(field != nullptr && !field->is_repeated())
      << message.GetTypeName() << " has no single field " << path;
  const auto* reflection = message.GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return ColumnText(reflection->GetMessage(message, field), parts.second);
    case FieldDescriptor::CPPTYPE_STRING:
      return reflection->GetString(message, field);
    case FieldDescriptor::CPPTYPE_INT64:
      return absl::StrCat(reflection->GetInt64(message, field));
    case FieldDescriptor::CPPTYPE_INT32:
      return absl::StrCat(reflection->GetInt32(message, field));
    case FieldDescriptor::CPPTYPE_ENUM:
      return absl::StrCat(reflection->GetEnumValue(message, field));
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection->GetBool(message, field) ? "1" : "0";
    default:
      GK_CHECK(false) << "a column cannot be a " << field->cpp_type_name() << ": " << path;
      return "";
  }
}

TurnHarness::TurnHarness(const flow::Context& context)
    : context_(context), runner_(context, kItemRetriesMax) {
  for (const flow::Table* table : context.tables) tables_[table];
}

const flow::Handler& TurnHarness::HandlerFor(const Message& request) const {
  for (const auto& handler : context_.handlers) {
    if (handler->request().GetDescriptor() == request.GetDescriptor()) return *handler;
  }
  GK_CHECK(false) << context_.name << " has no handler for " << request.GetTypeName();
  return *context_.handlers[0];
}

Answer TurnHarness::Call(const Message& request, flow::Caller caller) {
  return RunTurn({{&HandlerFor(request), &request, std::move(caller)}})[0];
}

std::vector<Answer> TurnHarness::CallTogether(const std::vector<const Message*>& requests) {
  std::vector<Item> items;
  for (const Message* request : requests) items.push_back({&HandlerFor(*request), request, {}});
  return RunTurn(items);
}

Answer TurnHarness::Deliver(const Message& event, const flow::EventInfo& info) {
  const flow::Handler* handler = runner_.FindEvent(event.GetTypeName());
  GK_CHECK(handler != nullptr) << context_.name << " has no handler for " << event.GetTypeName();
  flow::Caller caller;
  caller.event = info;
  return RunTurn({{handler, &event, std::move(caller)}})[0];
}

void TurnHarness::Result(const flow::StepResult& result) {
  auto item = std::make_unique<TurnItem>();
  item->kind = TurnItem::Kind::kResult;
  item->result = result;
  RunAlone(std::move(item));
}

int TurnHarness::RunTimer() {
  const flow::Timer& timer = context_.timer;
  GK_CHECK(timer.table != nullptr) << context_.name << " has no timer";
  std::vector<std::string> due;
  for (const auto& [key, row] : Rows(*timer.table)) {
    int64_t time_us = 0;
    GK_CHECK(absl::SimpleAtoi(ColumnOf(*timer.table, *row.body, timer.column), &time_us));
    if (time_us > 0 && time_us <= now_us) due.push_back(key);
  }
  for (const std::string& key : due) {
    auto item = std::make_unique<TurnItem>();
    item->kind = TurnItem::Kind::kTimer;
    item->timer_key = key;
    RunAlone(std::move(item));
  }
  return static_cast<int>(due.size());
}

std::vector<Answer> TurnHarness::RunTurn(const std::vector<Item>& items) {
  std::vector<Answer> answers(items.size());
  TurnItems waiting;
  std::vector<size_t> places;  // of those who wait, among the items
  for (size_t i = 0; i < items.size(); ++i) {
    answers[i].status = items[i].handler->Validate(*items[i].request);
    if (answers[i].status.code() != 0) {
      answers[i].kind = Answer::Kind::kRefused;
      continue;
    }
    auto item = std::make_unique<TurnItem>();
    item->handler = items[i].handler;
    item->message.reset(items[i].request->New());
    item->message->CopyFrom(*items[i].request);
    item->caller = items[i].caller;
    waiting.push_back(std::move(item));
    places.push_back(i);
  }
  written_count_ = 0;
  Run(waiting);
  for (size_t i = 0; i < waiting.size(); ++i) answers[places[i]] = std::move(waiting[i]->answer);
  return answers;
}

void TurnHarness::RunAlone(std::unique_ptr<TurnItem> item) {
  TurnItems items;
  items.push_back(std::move(item));
  Run(items);
}

void TurnHarness::Run(TurnItems& items) {
  std::vector<size_t> places(items.size());
  std::iota(places.begin(), places.end(), 0);
  while (!places.empty()) {
    TurnItems round;
    for (size_t i : places) round.push_back(std::move(items[i]));
    auto turn = Load(runner_.Keys(round));
    std::vector<size_t> again;
    for (size_t i = 0; i < round.size(); ++i) {
      const size_t sent_count = turn->envelopes().size();
      TurnItem& item = *round[i];
      runner_.Handle(item, *turn);
      const bool retries = item.answer.kind == Answer::Kind::kRetry;
      if (retries || item.answer.kind == Answer::Kind::kRefused) {
        GK_CHECK(turn->envelopes().size() == sent_count)
            << item.handler->name() << " refused, and sent";
      }
      if (!retries) continue;
      GK_CHECK(!item.answer.more_keys.empty()) << item.handler->name() << " asks for no rows";
      if (round.size() == 1) {
        for (const RowKey& key : turn->order()) {
          GK_CHECK(!turn->row(key).dirty) << item.handler->name() << " retries, and wrote";
        }
      }
      again.push_back(places[i]);
      ++retry_count_;
    }
    for (size_t i = 0; i < round.size(); ++i) items[places[i]] = std::move(round[i]);
    Store(*turn);
    places = std::move(again);
  }
}

std::unique_ptr<Turn> TurnHarness::Load(const std::vector<RowKey>& keys) const {
  auto turn = std::make_unique<Turn>(now_us);
  for (const RowKey& key : keys) {
    const auto& rows = Rows(*key.table);
    auto it = rows.find(key.key);
    if (it == rows.end()) {
      turn->AddRow(key, 0, nullptr);
      continue;
    }
    std::unique_ptr<Message> body(it->second.body->New());
    body->CopyFrom(*it->second.body);
    turn->AddRow(key, it->second.version, std::move(body));
  }
  return turn;
}

void TurnHarness::Store(Turn& turn) {
  for (const RowKey& key : turn.order()) {
    const Turn::Row& row = turn.row(key);
    if (!row.dirty) continue;
    auto& rows = tables_.at(key.table);
    auto [it, inserted] = rows.try_emplace(key.key);
    GK_CHECK(inserted != row.existed) << "row appears twice: " << key.table->name << "/" << key.key;
    // Through the wire, as in a store: what does not survive that is not state.
    std::unique_ptr<Message> body(key.table->prototype->New());
    GK_CHECK(body->ParseFromString(row.body->SerializeAsString())) << key.key;
    it->second = {row.version, std::move(body)};
    ++written_count_;
  }
  for (auto& envelope : turn.envelopes()) envelopes_.push_back(std::move(envelope));
  for (auto& call : turn.calls()) calls_.push_back(std::move(call));
  for (auto& resend : turn.resends()) resends_.push_back(std::move(resend));
  for (auto& resolved : turn.resolved()) resolved_.push_back(std::move(resolved));
  written_count_ += static_cast<int>(turn.envelopes().size());
}

const Message* TurnHarness::Find(const flow::Table& table, absl::string_view key) const {
  const auto& rows = Rows(table);
  auto it = rows.find(std::string(key));
  return it == rows.end() ? nullptr : it->second.body.get();
}

const std::map<std::string, TurnHarness::StoredRow>& TurnHarness::Rows(
    const flow::Table& table) const {
  auto it = tables_.find(&table);
  GK_CHECK(it != tables_.end()) << table.name << " is not a table of " << context_.name;
  return it->second;
}

void TurnHarness::Put(const flow::Table& table, const std::string& key, const Message& body,
                      int64_t version) {
  std::unique_ptr<Message> copy(body.New());
  copy->CopyFrom(body);
  tables_.at(&table)[key] = {version, std::move(copy)};
}

void TurnHarness::Clear() {
  for (auto& [table, rows] : tables_) rows.clear();
  envelopes_.clear();
  calls_.clear();
  resends_.clear();
  resolved_.clear();
}

std::unique_ptr<Message> TurnHarness::Get(const Message& request) const {
  for (const flow::GetQuery& query : context_.gets) {
    const MethodDescriptor* method = FindMethod(query.method);
    if (method->input_type() != request.GetDescriptor()) continue;
    const Message* row = Find(*query.table, ColumnText(request, query.key_field));
    if (row == nullptr) return nullptr;
    if (method->input_type()->FindFieldByName("customer_id") != nullptr) {
      const std::string customer = ColumnText(request, "customer_id");
      if (!customer.empty() && customer != ColumnOf(*query.table, *row, "customer_id"))
        return nullptr;
    }
    const FieldDescriptor* field = method->output_type()->FindFieldByName(query.response_field);
    GK_CHECK(field != nullptr) << query.method << " answers no " << query.response_field;
    return Project(query, *row, field->message_type());
  }
  GK_CHECK(false) << context_.name << " has no get for " << request.GetTypeName();
  return nullptr;
}

std::vector<std::unique_ptr<Message>> TurnHarness::List(const Message& request) const {
  for (const flow::ListQuery& query : context_.lists) {
    const MethodDescriptor* method = FindMethod(query.method);
    if (method->input_type() != request.GetDescriptor()) continue;
    const FieldDescriptor* field = method->output_type()->FindFieldByName(query.response_field);
    GK_CHECK(field != nullptr && field->is_repeated()) << query.method;
    GK_CHECK(query.series.empty() || ColumnText(request, query.series).empty())
        << "a series is for the database to sort";
    std::vector<std::unique_ptr<Message>> out;
    for (const auto& [key, row] : Rows(*query.table)) {
      const bool shown =
          std::all_of(query.filters.begin(), query.filters.end(), [&](const std::string& filter) {
            return Passes(*query.table, key, *row.body, request, filter);
          });
      if (!shown) continue;
      if (auto message = Project(query, *row.body, field->message_type())) {
        out.push_back(std::move(message));
      }
    }
    if (query.newest_first) std::reverse(out.begin(), out.end());
    return out;
  }
  GK_CHECK(false) << context_.name << " has no list for " << request.GetTypeName();
  return {};
}

std::vector<flow::Envelope> TurnHarness::TakeEnvelopes() { return std::exchange(envelopes_, {}); }

std::vector<std::string> TurnHarness::TakeEvents() {
  std::vector<std::string> events;
  for (const flow::Envelope& envelope : TakeEnvelopes()) {
    if (envelope.kind != flow::Envelope::Kind::kEvent) continue;
    const size_t slash = envelope.resource.find('/');
    events.push_back(absl::StrCat(envelope.type.substr(envelope.type.rfind('.') + 1), " ",
                                  envelope.resource.substr(slash + 1), "@", envelope.version));
  }
  return events;
}

}  // namespace gaekju::testing
