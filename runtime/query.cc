#include "runtime/query.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/dynamic_message.h"
#include "google/rpc/code.pb.h"
#include "runtime/turn_store.h"

namespace gaekju::runtime {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

constexpr int kPageSizeDefault = 50;
constexpr int kPageSizeMax = 1000;
constexpr int kFilterValuesMax = kPageSizeMax;  // of a repeated filter: a page full
constexpr size_t kKeyBytesMax = 1024;
constexpr char kSeries[] = "rtrim(key, '0123456789')";
constexpr size_t kJobsPerRound = 32;  // of one connection, sent together
constexpr int kListRoundsMax = 10;    // queries for one page whose rows are mostly hidden
constexpr size_t kWatchKeysPerRead = 1000;
constexpr int64_t kRetryAfterUs = 1000000;
constexpr auto kReconnectInterval = std::chrono::milliseconds(200);

using Project = std::function<bool(const Message& row, Message* out)>;

// What is the same for the three kinds, worked out once.
struct Method {
  const Message* request = nullptr;
  const Message* response = nullptr;
  const TableSql* table = nullptr;
  const FieldDescriptor* key_field = nullptr;  // Get, Watch
  const FieldDescriptor* customer_field =
      nullptr;  // Get, Watch; null when the request or the table has none
  const TableSql::Path* customer_column = nullptr;
  const FieldDescriptor* response_field = nullptr;
  const FieldDescriptor* page_size_field = nullptr;  // List
  const FieldDescriptor* page_token_field = nullptr;
  const FieldDescriptor* next_page_token_field = nullptr;
  struct Filter {
    const FieldDescriptor* field;
    std::string column;
    TableSql::Kind kind;
  };
  std::vector<Filter> filters;
  const FieldDescriptor* series_field = nullptr;  // null without one
  const flow::GetQuery* get = nullptr;
  const flow::ListQuery* list = nullptr;
  const flow::WatchQuery* watch = nullptr;
  Project project;
  std::string select;  // Get
};

struct Job {
  std::string sql;
  PgParams params;
  int64_t deadline_us = 0;
  std::function<void(absl::StatusOr<PgResult>)> finish;
  std::function<void(PgConnection*)> custom;  // instead of all of the above
};

bool IsEmpty(const Message& message, const FieldDescriptor* field) {
  const auto& reflection = *message.GetReflection();
  if (field->is_repeated()) return reflection.FieldSize(message, field) == 0;
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return reflection.GetString(message, field).empty();
    case FieldDescriptor::CPPTYPE_BOOL:
      return !reflection.GetBool(message, field);
    default:
      return TableSql::IntOf({{field}, TableSql::Kind::kInt}, message) == 0;
  }
}

// Fills the response's field from the row; false when the row is hidden.
bool Fill(const Method& method, const Message& row, Message* response) {
  const auto& reflection = *response->GetReflection();
  Message* out = method.response_field->is_repeated()
                     ? reflection.AddMessage(response, method.response_field)
                     : reflection.MutableMessage(response, method.response_field);
  bool shown = true;
  if (method.project) {
    shown = method.project(row, out);
  } else {
    out->CopyFrom(row);
  }
  if (!shown && method.response_field->is_repeated())
    reflection.RemoveLast(response, method.response_field);
  return shown;
}

}  // namespace

struct QueryServer::Core {
  struct WatchState {
    uint64_t id;
    const Method* method;
    std::string key, customer;
    std::function<void(std::string)> update;
    std::function<void(google::rpc::Status)> end;
    std::recursive_mutex mutex;  // a callback may cancel its own watch
    bool is_over = false;
    bool has_content = false;
    uint64_t content = 0;  // fingerprint of what was sent last
  };

  Core(const flow::Context& c, Options o) : context(c), options(std::move(o)) {}

  const flow::Context& context;
  const Options options;
  std::map<const flow::Table*, std::unique_ptr<TableSql>> tables;
  absl::flat_hash_map<std::string, Method> methods;

  std::mutex mutex;
  // --- guarded by mutex
  std::condition_variable wake, poll_wake;
  std::deque<Job> jobs;
  bool stopping = false;
  uint64_t next_watch = 1;
  std::map<uint64_t, std::shared_ptr<WatchState>> watches;
  std::map<std::pair<const flow::Table*, std::string>, std::set<uint64_t>> watches_by_key;
  std::set<std::pair<const flow::Table*, std::string>> changed;
  bool is_reading_changed = false;

  std::atomic<int> connected{0};
  std::atomic<int> watch_count{0};
  std::vector<std::thread> workers;
  std::thread poller;

  int64_t Now() const {
    return options.now_us ? options.now_us() : absl::ToUnixMicros(absl::Now());
  }

  flow::Answer Refusal(int code, absl::string_view reason, absl::string_view message,
                       absl::string_view field = "") const {
    flow::Answer answer = flow::Refuse(code, context.service, reason, message, field);
    if (code == google::rpc::UNAVAILABLE) {
      answer.status =
          flow::MakeStatus(code, context.service, reason, message, field, kRetryAfterUs);
    }
    return answer;
  }
  flow::Answer NotFound(const Method& method, absl::string_view key) const {
    const std::string& what = method.response_field->name();  // "order": ORDER_NOT_FOUND
    return Refusal(google::rpc::NOT_FOUND, absl::StrCat(absl::AsciiStrToUpper(what), "_NOT_FOUND"),
                   absl::StrCat("there is no ", what, " \"", key, "\""), method.key_field->name());
  }
  flow::Answer NoDatabase(const absl::Status& status) const {
    if (status.code() == absl::StatusCode::kInternal ||
        status.code() == absl::StatusCode::kDataLoss) {
      return Refusal(google::rpc::INTERNAL, "QUERY_FAILED", "the query failed");
    }
    return Refusal(google::rpc::UNAVAILABLE, "DATABASE_DOWN", "the database cannot be reached");
  }

  const TableSql* TableOf(const flow::Table* table);
  Method MakeMethod(const std::string& name, const flow::Table* table,
                    const std::string& response_field);
  void Index();

  bool Push(Job job);
  void Work();
  void RunJobs(std::unique_ptr<PgConnection>* pg, std::vector<Job> batch);

  std::unique_ptr<Message> Parse(const Method& method, absl::string_view request,
                                 flow::Answer* refusal) const;
  bool ReadKey(const Method& method, const Message& request, std::string* key,
               std::string* customer, flow::Answer* refusal) const;
  // The row, or null with the refusal. `body`: serialized.
  std::unique_ptr<Message> ReadRow(const Method& method, absl::string_view body,
                                   const std::string& customer) const;
  void Get(const Method& method, const Message& request, int64_t deadline_us,
           std::function<void(flow::Answer)> done);

  struct Page {
    const Method* method;
    std::unique_ptr<Message> request, response;
    int page_size = 0;
    int count = 0;
    int rounds = 0;
    uint64_t fingerprint = 0;
    bool in_series = false;  // by (length, key) instead of by key
    bool has_start = false;
    std::string start;  // the last key that was looked at
    int64_t deadline_us = 0;
    std::function<void(flow::Answer)> done;
  };
  void List(const Method& method, std::unique_ptr<Message> request, int64_t deadline_us,
            std::function<void(flow::Answer)> done);
  void ReadPage(std::shared_ptr<Page> page);
  bool TakeRows(Page& page, const PgResult& rows);  // true when the page is complete

  void ReadChanged();  // REQUIRES: mutex
  void Deliver(WatchState& watch, const absl::string_view* body);
  void RunPoller();
  void Forget(uint64_t id);
};

// ---------------------------------------------------------------- what the context declares

const TableSql* QueryServer::Core::TableOf(const flow::Table* table) {
  auto& sql = tables[table];
  if (sql == nullptr) sql = std::make_unique<TableSql>(*table);
  return sql.get();
}

Method QueryServer::Core::MakeMethod(const std::string& name, const flow::Table* table,
                                     const std::string& response_field) {
  const auto* pool = google::protobuf::DescriptorPool::generated_pool();
  const auto* descriptor = pool->FindMethodByName(name);
  GK_CHECK(descriptor != nullptr) << "no method " << name;
  auto* factory = google::protobuf::MessageFactory::generated_factory();
  Method method;
  method.request = factory->GetPrototype(descriptor->input_type());
  method.response = factory->GetPrototype(descriptor->output_type());
  method.table = TableOf(table);
  method.response_field = descriptor->output_type()->FindFieldByName(response_field);
  GK_CHECK(method.response_field != nullptr && method.response_field->message_type() != nullptr)
      << name << ": no message field " << response_field;
  method.customer_field = descriptor->input_type()->FindFieldByName("customer_id");
  method.customer_column = method.table->FindColumn("customer_id");
  if (method.customer_column == nullptr) method.customer_field = nullptr;
  return method;
}

void QueryServer::Core::Index() {
  for (const flow::GetQuery& query : context.gets) {
    Method method = MakeMethod(query.method, query.table, query.response_field);
    method.get = &query;
    method.project = query.project;
    method.key_field = method.request->GetDescriptor()->FindFieldByName(query.key_field);
    GK_CHECK(method.key_field != nullptr) << query.method << ": no field " << query.key_field;
    method.select = absl::StrCat("SELECT body FROM ", query.table->name, " WHERE key = $1");
    methods[query.method] = std::move(method);
  }
  for (const flow::WatchQuery& query : context.watches) {
    Method method = MakeMethod(query.method, query.table, query.response_field);
    method.watch = &query;
    method.project = query.project;
    method.key_field = method.request->GetDescriptor()->FindFieldByName(query.key_field);
    GK_CHECK(method.key_field != nullptr) << query.method << ": no field " << query.key_field;
    methods[query.method] = std::move(method);
  }
  for (const flow::ListQuery& query : context.lists) {
    Method method = MakeMethod(query.method, query.table, query.response_field);
    method.list = &query;
    method.project = query.project;
    const auto* input = method.request->GetDescriptor();
    method.page_size_field = input->FindFieldByName("page_size");
    method.page_token_field = input->FindFieldByName("page_token");
    method.next_page_token_field =
        method.response->GetDescriptor()->FindFieldByName("next_page_token");
    GK_CHECK(method.page_size_field != nullptr && method.page_token_field != nullptr &&
             method.next_page_token_field != nullptr && method.response_field->is_repeated())
        << query.method << " is not a list as in AIP-158";
    for (const std::string& filter : query.filters) {
      const auto* field = input->FindFieldByName(filter);
      GK_CHECK(field != nullptr) << query.method << ": filter " << filter;
      std::string name = filter;
      if (field->is_repeated()) name.pop_back();  // "order_ids"
      const auto* column = method.table->FindColumn(name);
      if (column == nullptr && field->is_repeated()) name = "key";
      GK_CHECK(column != nullptr || field->is_repeated()) << query.method << ": filter " << filter;
      const TableSql::Kind kind = column == nullptr ? TableSql::Kind::kText : column->kind;
      GK_CHECK((field->cpp_type() == FieldDescriptor::CPPTYPE_STRING) ==
                   (kind == TableSql::Kind::kText) &&
               (!field->is_repeated() || kind == TableSql::Kind::kText))
          << query.method << ": the filter " << filter << " and the column are of different types";
      method.filters.push_back({field, std::move(name), kind});
    }
    if (!query.series.empty()) {
      method.series_field = input->FindFieldByName(query.series);
      GK_CHECK(method.series_field != nullptr && !query.newest_first)
          << query.method << ": series " << query.series;
      method.filters.push_back({method.series_field, kSeries, TableSql::Kind::kText});
    }
    methods[query.method] = std::move(method);
  }
}

// ---------------------------------------------------------------- connections

bool QueryServer::Core::Push(Job job) {
  std::lock_guard<std::mutex> lock(mutex);
  if (stopping || jobs.size() >= static_cast<size_t>(options.queue_max)) return false;
  jobs.push_back(std::move(job));
  wake.notify_one();
  return true;
}

void QueryServer::Core::Work() {
  std::unique_ptr<PgConnection> pg;
  auto connect_after = std::chrono::steady_clock::time_point();
  const auto connect = [&] {
    if (pg != nullptr && pg->ok()) return;
    if (pg != nullptr) --connected;
    pg.reset();
    if (std::chrono::steady_clock::now() < connect_after) return;
    auto made = PgConnection::Connect(options.pg);
    if (made.ok()) {
      pg = *std::move(made);
      ++connected;
    } else {
      connect_after = std::chrono::steady_clock::now() + kReconnectInterval;
    }
  };
  connect();
  while (true) {
    std::vector<Job> batch;
    {
      std::unique_lock<std::mutex> lock(mutex);
      // Without a connection it is tried again now and then, so that readiness comes back without a
      // query.
      const auto ready = [&] { return stopping || !jobs.empty(); };
      if (pg != nullptr && pg->ok()) {
        wake.wait(lock, ready);
      } else {
        wake.wait_for(lock, kReconnectInterval, ready);
      }
      if (stopping) break;
      while (!jobs.empty() && batch.size() < kJobsPerRound) {
        const bool is_custom = jobs.front().custom != nullptr;
        if (is_custom && !batch.empty()) break;
        batch.push_back(std::move(jobs.front()));
        jobs.pop_front();
        if (is_custom) break;
      }
    }
    connect();
    if (!batch.empty()) RunJobs(&pg, std::move(batch));
  }
  if (pg != nullptr) --connected;
}

void QueryServer::Core::RunJobs(std::unique_ptr<PgConnection>* pg, std::vector<Job> batch) {
  if (batch[0].custom) {
    batch[0].custom(pg->get());
    return;
  }
  const int64_t now_us = Now();
  const auto late = std::stable_partition(batch.begin(), batch.end(), [&](const Job& job) {
    return job.deadline_us == 0 || job.deadline_us > now_us;
  });
  for (auto it = late; it != batch.end(); ++it) it->finish(absl::DeadlineExceededError("too late"));
  batch.erase(late, batch.end());
  if (batch.empty()) return;
  if (*pg == nullptr) {
    for (Job& job : batch) job.finish(absl::UnavailableError("no connection"));
    return;
  }
  for (Job& job : batch) (*pg)->Add(job.sql, job.params);
  auto results = (*pg)->Run();
  if (results.ok()) {
    for (size_t i = 0; i < batch.size(); ++i) batch[i].finish(std::move((*results)[i]));
    return;
  }
  // One of them, or the connection: each by itself, on a new connection if need be.
  for (Job& job : batch) {
    if (!(*pg)->ok()) {
      --connected;
      pg->reset();
      auto made = PgConnection::Connect(options.pg);
      if (!made.ok()) {
        for (Job& rest : batch) {
          if (rest.finish) rest.finish(made.status());
        }
        return;
      }
      *pg = *std::move(made);
      ++connected;
    }
    auto finish = std::move(job.finish);
    job.finish = nullptr;
    finish((*pg)->Query(job.sql, job.params));
  }
}

// ---------------------------------------------------------------- Get

std::unique_ptr<Message> QueryServer::Core::Parse(const Method& method, absl::string_view request,
                                                  flow::Answer* refusal) const {
  std::unique_ptr<Message> message(method.request->New());
  if (message->ParseFromArray(request.data(), static_cast<int>(request.size()))) return message;
  *refusal =
      Refusal(google::rpc::INVALID_ARGUMENT, "REQUEST_MALFORMED", "the request cannot be parsed");
  return nullptr;
}

bool QueryServer::Core::ReadKey(const Method& method, const Message& request, std::string* key,
                                std::string* customer, flow::Answer* refusal) const {
  *key = request.GetReflection()->GetString(request, method.key_field);
  if (key->empty() || key->size() > kKeyBytesMax || key->find('\0') != std::string::npos) {
    *refusal = Refusal(google::rpc::INVALID_ARGUMENT, "FIELD_INVALID",
                       absl::StrCat(method.key_field->name(), " has 1 to ", kKeyBytesMax,
                                    " bytes, and none is zero"),
                       method.key_field->name());
    return false;
  }
  if (method.customer_field != nullptr)
    *customer = request.GetReflection()->GetString(request, method.customer_field);
  return true;
}

std::unique_ptr<Message> QueryServer::Core::ReadRow(const Method& method, absl::string_view body,
                                                    const std::string& customer) const {
  std::unique_ptr<Message> row(method.table->table().prototype->New());
  if (!row->ParseFromArray(body.data(), static_cast<int>(body.size()))) return nullptr;
  // Somebody else's is as if it were not there.
  if (!customer.empty() && TableSql::TextOf(*method.customer_column, *row) != customer)
    return nullptr;
  return row;
}

void QueryServer::Core::Get(const Method& method, const Message& request, int64_t deadline_us,
                            std::function<void(flow::Answer)> done) {
  std::string key, customer;
  flow::Answer refusal;
  if (!ReadKey(method, request, &key, &customer, &refusal)) return done(std::move(refusal));
  Job job{method.select, PgParams().Text(key), deadline_us, nullptr, nullptr};
  job.finish = [this, &method, key, customer, done](absl::StatusOr<PgResult> result) {
    if (!result.ok()) return done(NoDatabase(result.status()));
    if (result->rows() == 0) return done(NotFound(method, key));
    const std::unique_ptr<Message> row = ReadRow(method, result->Bytes(0, 0), customer);
    const std::unique_ptr<Message> response(method.response->New());
    if (row == nullptr || !Fill(method, *row, response.get())) return done(NotFound(method, key));
    done(flow::Done(*response));
  };
  if (!Push(std::move(job)))
    done(Refusal(google::rpc::UNAVAILABLE, "OVERLOADED", "the query queue is full"));
}

// ---------------------------------------------------------------- List

void QueryServer::Core::List(const Method& method, std::unique_ptr<Message> request,
                             int64_t deadline_us, std::function<void(flow::Answer)> done) {
  const auto& reflection = *request->GetReflection();
  auto page = std::make_shared<Page>();
  page->method = &method;
  const int64_t page_size =
      TableSql::IntOf({{method.page_size_field}, TableSql::Kind::kInt}, *request);
  if (page_size < 0) {
    return done(Refusal(google::rpc::INVALID_ARGUMENT, "FIELD_INVALID", "page_size is negative",
                        "page_size"));
  }
  page->page_size = page_size == 0 ? kPageSizeDefault
                                   : static_cast<int>(std::min<int64_t>(page_size, kPageSizeMax));
  // A token belongs to the method and the filters it came from.
  page->fingerprint = flow::FingerprintBytes(method.list->method);
  for (size_t i = 0; i < method.filters.size(); ++i) {
    const FieldDescriptor* field = method.filters[i].field;
    std::string value;
    switch (method.filters[i].kind) {
      case TableSql::Kind::kText:
        if (!field->is_repeated()) {
          value = reflection.GetString(*request, field);
          break;
        }
        if (reflection.FieldSize(*request, field) > kFilterValuesMax) {
          return done(Refusal(google::rpc::INVALID_ARGUMENT, "FIELD_INVALID",
                              absl::StrCat("at most ", kFilterValuesMax, " at a time"),
                              field->name()));
        }
        for (int j = 0; j < reflection.FieldSize(*request, field); ++j) {
          const std::string one = reflection.GetRepeatedString(*request, field, j);
          absl::StrAppend(&value, one.size(), ":", one);
        }
        break;
      case TableSql::Kind::kInt:
        value = absl::StrCat(TableSql::IntOf({{field}, TableSql::Kind::kInt}, *request));
        break;
      case TableSql::Kind::kBool:
        value = reflection.GetBool(*request, field) ? "1" : "0";
        break;
    }
    if (value.find('\0') != std::string::npos) {
      return done(Refusal(google::rpc::INVALID_ARGUMENT, "FIELD_INVALID",
                          "a filter holds a zero byte", field->name()));
    }
    page->fingerprint =
        flow::FingerprintBytes(absl::StrCat(i, "=", value, "\n"), page->fingerprint);
  }
  if (method.series_field != nullptr) {
    page->start = reflection.GetString(*request, method.series_field);
    page->has_start = page->in_series = !page->start.empty();
    if (page->in_series && absl::ascii_isdigit(static_cast<unsigned char>(page->start.back()))) {
      return done(Refusal(google::rpc::INVALID_ARGUMENT, "FIELD_INVALID", "must not end in a digit",
                          method.series_field->name()));
    }
  }
  const std::string token = reflection.GetString(*request, method.page_token_field);
  if (!token.empty()) {
    std::string bytes;
    const std::string expected = absl::StrCat(absl::Hex(page->fingerprint, absl::kZeroPad16), ":");
    if (!absl::WebSafeBase64Unescape(token, &bytes) ||
        bytes.compare(0, expected.size(), expected) != 0 || bytes.size() == expected.size() ||
        bytes.find('\0') != std::string::npos) {
      return done(Refusal(google::rpc::INVALID_ARGUMENT, "FIELD_INVALID",
                          "page_token is not of this method with these filters", "page_token"));
    }
    page->has_start = true;
    page->start = bytes.substr(expected.size());
  }
  page->response.reset(method.response->New());
  page->request = std::move(request);
  page->deadline_us = deadline_us;
  page->done = std::move(done);
  ReadPage(std::move(page));
}

void QueryServer::Core::ReadPage(std::shared_ptr<Page> page) {
  const Method& method = *page->method;
  const Message& request = *page->request;
  Job job;
  job.sql = absl::StrCat("SELECT key, body FROM ", method.list->table->name);
  std::string glue = " WHERE ";
  int n = 0;
  for (const auto& [field, column, kind] : method.filters) {
    if (IsEmpty(request, field)) continue;
    const char* equals = " = $";
    const char* end = "";
    switch (kind) {
      case TableSql::Kind::kText:
        if (field->is_repeated()) {
          PgArray values = PgArray::Text();
          for (int i = 0; i < request.GetReflection()->FieldSize(request, field); ++i)
            values.Add(request.GetReflection()->GetRepeatedString(request, field, i));
          job.params.Push(std::move(values));
          equals = " = ANY($";
          end = ")";
          break;
        }
        job.params.PushText(request.GetReflection()->GetString(request, field));
        break;
      case TableSql::Kind::kInt:
        job.params.PushInt(TableSql::IntOf({{field}, TableSql::Kind::kInt}, request));
        break;
      case TableSql::Kind::kBool:
        // Written out, so that an index of only such rows serves it.
        absl::StrAppend(&job.sql, glue, column);
        glue = " AND ";
        continue;
    }
    absl::StrAppend(&job.sql, glue, column, equals, ++n, end);
    glue = " AND ";
  }
  if (page->has_start) {
    job.params.PushText(page->start);
    ++n;
    if (page->in_series) {
      absl::StrAppend(&job.sql, glue, "(length(key), key) > (length($", n, "), $", n, ")");
    } else {
      absl::StrAppend(&job.sql, glue, "key ", method.list->newest_first ? "<" : ">", " $", n);
    }
  }
  absl::StrAppend(&job.sql, " ORDER BY ", page->in_series ? "length(key), key" : "key",
                  method.list->newest_first ? " DESC" : "", " LIMIT $", ++n);
  job.params.PushInt(page->page_size + 1);
  job.deadline_us = page->deadline_us;
  job.finish = [this, page](absl::StatusOr<PgResult> rows) {
    if (!rows.ok()) return page->done(NoDatabase(rows.status()));
    if (TakeRows(*page, *rows)) return page->done(flow::Done(*page->response));
    ReadPage(page);
  };
  if (!Push(std::move(job))) {
    page->done(Refusal(google::rpc::UNAVAILABLE, "OVERLOADED", "the query queue is full"));
  }
}

bool QueryServer::Core::TakeRows(Page& page, const PgResult& rows) {
  const Method& method = *page.method;
  int i = 0;
  for (; i < rows.rows() && page.count < page.page_size; ++i) {
    page.has_start = true;
    page.start = std::string(rows.Bytes(i, 0));
    const std::unique_ptr<Message> row = ReadRow(method, rows.Bytes(i, 1), "");
    if (row != nullptr && Fill(method, *row, page.response.get())) ++page.count;
  }
  const bool is_end = rows.rows() <= page.page_size && i == rows.rows();
  if (is_end) return true;
  if (page.count < page.page_size && ++page.rounds < kListRoundsMax) return false;
  const std::string token =
      absl::StrCat(absl::Hex(page.fingerprint, absl::kZeroPad16), ":", page.start);
  page.response->GetReflection()->SetString(page.response.get(), method.next_page_token_field,
                                            absl::WebSafeBase64Escape(token));
  return true;
}

// ---------------------------------------------------------------- Watch

void QueryServer::Core::Deliver(WatchState& watch, const absl::string_view* body) {
  std::lock_guard<std::recursive_mutex> lock(watch.mutex);
  if (watch.is_over) return;
  const Method& method = *watch.method;
  const std::unique_ptr<Message> row =
      body == nullptr ? nullptr : ReadRow(method, *body, watch.customer);
  const std::unique_ptr<Message> response(method.response->New());
  if (row == nullptr || !Fill(method, *row, response.get())) {
    watch.is_over = true;
    watch.end(NotFound(method, watch.key).status);
    return;
  }
  const uint64_t content = flow::FingerprintBytes(*body);
  if (!watch.has_content || content != watch.content) {
    watch.has_content = true;
    watch.content = content;
    watch.update(response->SerializeAsString());
  }
  if (!watch.is_over && method.watch->ended && method.watch->ended(*row)) {
    watch.is_over = true;
    watch.end(google::rpc::Status());
  }
}

// One read at a time, of everything that has changed meanwhile: so no watcher sees an older row
// after a newer one.
void QueryServer::Core::ReadChanged() {
  if (is_reading_changed || changed.empty() || stopping) return;
  const flow::Table* table = changed.begin()->first;
  auto keys = std::make_shared<std::vector<std::string>>();
  while (!changed.empty() && changed.begin()->first == table && keys->size() < kWatchKeysPerRead) {
    keys->push_back(changed.begin()->second);
    changed.erase(changed.begin());
  }
  PgArray array = PgArray::Text();
  for (const std::string& key : *keys) array.Add(key);
  Job job{absl::StrCat("SELECT key, body FROM ", table->name, " WHERE key = ANY($1)"),
          PgParams().Array(std::move(array)), 0, nullptr, nullptr};
  job.finish = [this, table, keys](absl::StatusOr<PgResult> result) {
    std::vector<std::pair<std::shared_ptr<WatchState>, std::string>> to_tell;
    {
      std::lock_guard<std::mutex> lock(mutex);
      for (const std::string& key : *keys) {
        const auto it = watches_by_key.find({table, key});
        if (it == watches_by_key.end()) continue;
        // What could not be read is read at the next poll.
        if (!result.ok()) continue;
        for (uint64_t id : it->second) to_tell.emplace_back(watches.at(id), key);
      }
    }
    if (result.ok()) {
      absl::flat_hash_map<absl::string_view, absl::string_view> bodies;
      for (int i = 0; i < result->rows(); ++i) bodies[result->Bytes(i, 0)] = result->Bytes(i, 1);
      for (auto& [watch, key] : to_tell) {
        const auto it = bodies.find(key);
        Deliver(*watch, it == bodies.end() ? nullptr : &it->second);
        bool is_over;
        {
          std::lock_guard<std::recursive_mutex> lock(watch->mutex);
          is_over = watch->is_over;
        }
        if (is_over) Forget(watch->id);
      }
    }
    std::lock_guard<std::mutex> lock(mutex);
    is_reading_changed = false;
    if (result.ok()) ReadChanged();
  };
  is_reading_changed = true;
  jobs.push_back(std::move(job));  // beside the bound: there is only one
  wake.notify_one();
}

void QueryServer::Core::RunPoller() {
  std::unique_lock<std::mutex> lock(mutex);
  while (!stopping) {
    poll_wake.wait_for(lock, absl::ToChronoMicroseconds(options.watch_interval));
    if (stopping) return;
    for (const auto& [key, ids] : watches_by_key) changed.insert(key);
    ReadChanged();
  }
}

void QueryServer::Core::Forget(uint64_t id) {
  std::shared_ptr<WatchState> watch;  // destroyed outside the lock
  std::lock_guard<std::mutex> lock(mutex);
  const auto it = watches.find(id);
  if (it == watches.end()) return;
  watch = std::move(it->second);
  watches.erase(it);
  watch_count = static_cast<int>(watches.size());
  const auto by_key = watches_by_key.find({&watch->method->table->table(), watch->key});
  by_key->second.erase(id);
  if (by_key->second.empty()) watches_by_key.erase(by_key);
}

// ---------------------------------------------------------------- QueryServer

QueryServer::QueryServer(const flow::Context& context, Options options)
    : core_(std::make_unique<Core>(context, std::move(options))) {
  core_->Index();
  for (int i = 0; i < core_->options.connections; ++i) {
    core_->workers.emplace_back([core = core_.get()] { core->Work(); });
  }
  core_->poller = std::thread([core = core_.get()] { core->RunPoller(); });
}

QueryServer::~QueryServer() {
  std::deque<Job> jobs;
  std::vector<std::shared_ptr<Core::WatchState>> watches;
  {
    std::lock_guard<std::mutex> lock(core_->mutex);
    core_->stopping = true;
    core_->wake.notify_all();
    core_->poll_wake.notify_all();
  }
  for (std::thread& worker : core_->workers) worker.join();
  core_->poller.join();
  {
    std::lock_guard<std::mutex> lock(core_->mutex);
    jobs.swap(core_->jobs);
    for (auto& [id, watch] : core_->watches) watches.push_back(watch);
  }
  for (Job& job : jobs) {
    if (job.custom) {
      job.custom(nullptr);
    } else {
      job.finish(absl::UnavailableError("shutting down"));
    }
  }
  for (auto& watch : watches) {
    std::lock_guard<std::recursive_mutex> lock(watch->mutex);
    if (std::exchange(watch->is_over, true)) continue;
    watch->end(
        core_->Refusal(google::rpc::UNAVAILABLE, "SHUTTING_DOWN", "the server is shutting down")
            .status);
  }
}

bool QueryServer::Handles(absl::string_view method) const {
  const auto it = core_->methods.find(method);
  return it != core_->methods.end() && it->second.watch == nullptr;
}

bool QueryServer::Watches(absl::string_view method) const {
  const auto it = core_->methods.find(method);
  return it != core_->methods.end() && it->second.watch != nullptr;
}

void QueryServer::Execute(absl::string_view method, absl::string_view request, int64_t deadline_us,
                          std::function<void(flow::Answer)> done) {
  const auto it = core_->methods.find(method);
  GK_CHECK(it != core_->methods.end() && it->second.watch == nullptr) << "no query " << method;
  flow::Answer refusal;
  std::unique_ptr<Message> message = core_->Parse(it->second, request, &refusal);
  if (message == nullptr) return done(std::move(refusal));
  if (it->second.get != nullptr) {
    core_->Get(it->second, *message, deadline_us, std::move(done));
  } else {
    core_->List(it->second, std::move(message), deadline_us, std::move(done));
  }
}

uint64_t QueryServer::Watch(absl::string_view method, absl::string_view request,
                            std::function<void(std::string response)> update,
                            std::function<void(google::rpc::Status)> end) {
  const auto it = core_->methods.find(method);
  GK_CHECK(it != core_->methods.end() && it->second.watch != nullptr) << "no watch " << method;
  flow::Answer refusal;
  const std::unique_ptr<Message> message = core_->Parse(it->second, request, &refusal);
  auto watch = std::make_shared<Core::WatchState>();
  watch->method = &it->second;
  watch->update = std::move(update);
  watch->end = std::move(end);
  bool ok = message != nullptr &&
            core_->ReadKey(it->second, *message, &watch->key, &watch->customer, &refusal);
  if (ok) {
    std::lock_guard<std::mutex> lock(core_->mutex);
    ok =
        !core_->stopping && core_->watches.size() < static_cast<size_t>(core_->options.watches_max);
    if (ok) {
      watch->id = core_->next_watch++;
      core_->watches[watch->id] = watch;
      core_->watch_count = static_cast<int>(core_->watches.size());
      core_->watches_by_key[{it->second.watch->table, watch->key}].insert(watch->id);
      core_->changed.insert({it->second.watch->table, watch->key});
      core_->ReadChanged();
      return watch->id;
    }
    refusal = core_->Refusal(google::rpc::UNAVAILABLE, "OVERLOADED", "too many watches");
  }
  watch->end(refusal.status);
  return 0;
}

void QueryServer::CancelWatch(uint64_t id) {
  std::shared_ptr<Core::WatchState> watch;
  {
    std::lock_guard<std::mutex> lock(core_->mutex);
    const auto it = core_->watches.find(id);
    if (it == core_->watches.end()) return;
    watch = it->second;
  }
  {
    std::lock_guard<std::recursive_mutex> lock(watch->mutex);
    watch->is_over = true;
  }
  core_->Forget(id);
}

void QueryServer::Changed(const flow::Table& table, const std::string& key) {
  if (core_->watch_count == 0) return;
  std::lock_guard<std::mutex> lock(core_->mutex);
  if (!core_->watches_by_key.contains({&table, key})) return;
  core_->changed.insert({&table, key});
  core_->ReadChanged();
}

void QueryServer::Run(std::function<void(PgConnection* pg)> job) {
  Job custom;
  custom.custom = job;
  if (!core_->Push(std::move(custom))) job(nullptr);
}

bool QueryServer::database_up() const { return core_->connected > 0; }

}  // namespace gaekju::runtime
