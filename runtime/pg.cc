#include "runtime/pg.h"

#include <arpa/inet.h>
#include <libpq-fe.h>
#include <poll.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "absl/base/internal/endian.h"
#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "flow/check.h"

namespace gaekju::runtime {
namespace {

// src/include/catalog/pg_type.dat
constexpr uint32_t kBoolOid = 16, kBoolArrayOid = 1000;
constexpr uint32_t kBytesOid = 17, kBytesArrayOid = 1001;
constexpr uint32_t kIntOid = 20, kIntArrayOid = 1016;
constexpr uint32_t kTextOid = 25, kTextArrayOid = 1009;

constexpr char kSqlStatePayload[] = "gaekju/sqlstate";
constexpr int kArrayHeaderBytes = 20;
// How much longer than statement_timeout an answer may take before the connection is given up.
constexpr int64_t kReplyGraceMs = 5000;

void AppendInt32(uint32_t value, std::string* out) {
  value = htonl(value);
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void AppendInt64(int64_t value, std::string* out) {
  uint64_t big = absl::ghtonll(static_cast<uint64_t>(value));
  out->append(reinterpret_cast<const char*>(&big), sizeof(big));
}

void PatchInt32(size_t offset, uint32_t value, std::string* out) {
  value = htonl(value);
  std::memcpy(out->data() + offset, &value, sizeof(value));
}

absl::Status WithSqlState(absl::Status status, absl::string_view sql_state) {
  status.SetPayload(kSqlStatePayload, absl::Cord(sql_state));
  return status;
}

// https://www.postgresql.org/docs/15/errcodes-appendix.html
enum class Failure { kBroken, kConflict, kUnique, kNever, kFull, kOther };
Failure Classify(absl::string_view s) {
  if (absl::StartsWith(s, "08") || absl::StartsWith(s, "57P") || s == "25P03" || s == "25006")
    return Failure::kBroken;
  // A prepared statement that is gone, or whose table changed under it: a fresh connection prepares
  // it anew.
  if (s == "26000" || s == "0A000") return Failure::kBroken;
  if (absl::StartsWith(s, "40") || s == "55P03" || s == "57014") return Failure::kConflict;
  if (s == "23505") return Failure::kUnique;
  if (absl::StartsWith(s, "22") || absl::StartsWith(s, "23") || absl::StartsWith(s, "54"))
    return Failure::kNever;
  if (absl::StartsWith(s, "53")) return Failure::kFull;
  return Failure::kOther;
}

absl::Status StatusOf(const PGresult* result, const std::string& sql) {
  const char* state = PQresultErrorField(result, PG_DIAG_SQLSTATE);
  const char* primary = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
  const char* detail = PQresultErrorField(result, PG_DIAG_MESSAGE_DETAIL);
  const std::string sql_state = state == nullptr ? "" : state;
  std::string message = primary == nullptr ? PQresultErrorMessage(result) : primary;
  message = std::string(absl::StripTrailingAsciiWhitespace(message));
  if (detail != nullptr) absl::StrAppend(&message, " (", detail, ")");
  absl::StrAppend(&message, " [", sql_state, "] in: ", absl::string_view(sql).substr(0, 80));
  absl::StatusCode code = absl::StatusCode::kInternal;
  switch (Classify(sql_state)) {
    case Failure::kBroken:
      code = absl::StatusCode::kUnavailable;
      break;
    case Failure::kConflict:
      code = absl::StatusCode::kAborted;
      break;
    case Failure::kUnique:
      code = absl::StatusCode::kAlreadyExists;
      break;
    case Failure::kNever:
      code = absl::StatusCode::kInvalidArgument;
      break;
    case Failure::kFull:
      code = absl::StatusCode::kResourceExhausted;
      break;
    case Failure::kOther:
      break;
  }
  return WithSqlState(absl::Status(code, message), sql_state);
}

int64_t SteadyMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

// ---------------------------------------------------------------- PgArray, PgParams, PgResult

PgArray::PgArray(uint32_t array_type, uint32_t element_type) : array_type_(array_type) {
  AppendInt32(1, &bytes_);  // dimensions
  AppendInt32(0, &bytes_);  // no nulls
  AppendInt32(element_type, &bytes_);
  AppendInt32(0, &bytes_);  // length, patched when it is used
  AppendInt32(1, &bytes_);  // lower bound
}

PgArray PgArray::Text() { return PgArray(kTextArrayOid, kTextOid); }
PgArray PgArray::Bytes() { return PgArray(kBytesArrayOid, kBytesOid); }
PgArray PgArray::Int() { return PgArray(kIntArrayOid, kIntOid); }
PgArray PgArray::Bool() { return PgArray(kBoolArrayOid, kBoolOid); }

void PgArray::Add(absl::string_view value) {
  AppendInt32(static_cast<uint32_t>(value.size()), &bytes_);
  bytes_.append(value.data(), value.size());
  ++size_;
}

void PgArray::AddMessage(const google::protobuf::MessageLite& body) {
  const size_t size = body.ByteSizeLong();
  AppendInt32(static_cast<uint32_t>(size), &bytes_);
  const size_t offset = bytes_.size();
  bytes_.resize(offset + size);
  body.SerializeWithCachedSizesToArray(reinterpret_cast<uint8_t*>(bytes_.data()) + offset);
  ++size_;
}

void PgArray::AddInt(int64_t value) {
  AppendInt32(8, &bytes_);
  AppendInt64(value, &bytes_);
  ++size_;
}

void PgArray::AddBool(bool value) {
  AppendInt32(1, &bytes_);
  bytes_.push_back(value ? 1 : 0);
  ++size_;
}

PgParams& PgParams::Push(PgArray value) {
  types_.push_back(value.array_type_);
  if (value.size_ == 0) {
    PatchInt32(0, 0, &value.bytes_);
    value.bytes_.resize(12);  // an empty array has no dimension
  } else {
    PatchInt32(12, static_cast<uint32_t>(value.size_), &value.bytes_);
  }
  values_.push_back(std::move(value.bytes_));
  return *this;
}

PgParams& PgParams::PushText(absl::string_view value) {
  types_.push_back(kTextOid);
  values_.emplace_back(value);
  return *this;
}

PgParams& PgParams::PushInt(int64_t value) {
  types_.push_back(kIntOid);
  AppendInt64(value, &values_.emplace_back());
  return *this;
}

PgParams&& PgParams::Text(absl::string_view value) && { return std::move(PushText(value)); }
PgParams&& PgParams::Int(int64_t value) && { return std::move(PushInt(value)); }
PgParams&& PgParams::Array(PgArray value) && { return std::move(Push(std::move(value))); }
PgParams&& PgParams::Bytes(absl::string_view value) && {
  types_.push_back(kBytesOid);
  values_.emplace_back(value);
  return std::move(*this);
}
PgParams&& PgParams::Bool(bool value) && {
  types_.push_back(kBoolOid);
  values_.emplace_back(1, value ? 1 : 0);
  return std::move(*this);
}

void PgResult::Clear(pg_result* result) { PQclear(result); }
int PgResult::rows() const { return PQntuples(result_.get()); }
bool PgResult::IsNull(int row, int column) const {
  return PQgetisnull(result_.get(), row, column) != 0;
}

int64_t PgResult::affected() const {
  const char* text = PQcmdTuples(result_.get());
  return *text == '\0' ? 0 : std::strtoll(text, nullptr, 10);
}

absl::string_view PgResult::Bytes(int row, int column) const {
  return absl::string_view(PQgetvalue(result_.get(), row, column),
                           static_cast<size_t>(PQgetlength(result_.get(), row, column)));
}

int64_t PgResult::Int(int row, int column) const {
  const absl::string_view bytes = Bytes(row, column);
  switch (bytes.size()) {
    case 8:
      return static_cast<int64_t>(absl::big_endian::Load64(bytes.data()));
    case 4:
      return static_cast<int32_t>(absl::big_endian::Load32(bytes.data()));
    case 2:
      return static_cast<int16_t>(absl::big_endian::Load16(bytes.data()));
    default:
      GK_CHECK(false) << "column " << column << " is not an integer";
      return 0;
  }
}

bool PgResult::Bool(int row, int column) const {
  const absl::string_view bytes = Bytes(row, column);
  GK_CHECK(bytes.size() == 1) << "column " << column << " is not a boolean";
  return bytes[0] != 0;
}

// ---------------------------------------------------------------- PgConnection

absl::StatusOr<std::unique_ptr<PgConnection>> PgConnection::Connect(const PgOptions& options) {
  char* parse_error = nullptr;
  PQconninfoOption* given = PQconninfoParse(options.conninfo.c_str(), &parse_error);
  if (given == nullptr) {
    const std::string why = parse_error == nullptr ? "out of memory" : parse_error;
    PQfreemem(parse_error);
    return absl::InvalidArgumentError(
        absl::StrCat("PostgreSQL address: ", absl::StripTrailingAsciiWhitespace(why)));
  }
  std::string settings;
  for (const PQconninfoOption* o = given; o->keyword != nullptr; ++o) {
    if (absl::string_view(o->keyword) == "options" && o->val != nullptr)
      settings = absl::StrCat(o->val, " ");
  }
  PQconninfoFree(given);
  absl::StrAppend(&settings, "-c jit=off -c statement_timeout=", options.statement_timeout_ms,
                  " -c lock_timeout=", options.lock_timeout_ms,
                  " -c idle_in_transaction_session_timeout=",
                  options.idle_in_transaction_timeout_ms, " -c client_min_messages=warning");
  if (options.by_key_only) {
    absl::StrAppend(
        &settings,
        " -c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c enable_hashjoin=off"
        " -c enable_mergejoin=off");
  }
  const std::string connect_timeout = absl::StrCat(options.connect_timeout_s);
  const std::string user_timeout = absl::StrCat(options.tcp_user_timeout_ms);
  // Later keywords override what the address says; "dbname" first, so that it is expanded.
  const char* keywords[] = {"dbname",
                            "application_name",
                            "connect_timeout",
                            "tcp_user_timeout",
                            "keepalives_idle",
                            "keepalives_interval",
                            "keepalives_count",
                            "client_encoding",
                            "options",
                            "target_session_attrs",
                            nullptr};
  const char* values[] = {options.conninfo.c_str(),
                          options.application_name.c_str(),
                          connect_timeout.c_str(),
                          user_timeout.c_str(),
                          "5",
                          "2",
                          "3",
                          "UTF8",
                          settings.c_str(),
                          "read-write",
                          nullptr};
  PGconn* connection = PQconnectdbParams(keywords, values, /*expand_dbname=*/1);
  if (connection == nullptr)
    return absl::ResourceExhaustedError("no memory for a PostgreSQL connection");
  if (PQstatus(connection) != CONNECTION_OK) {
    const std::string why(absl::StripTrailingAsciiWhitespace(PQerrorMessage(connection)));
    PQfinish(connection);
    return absl::UnavailableError(absl::StrCat("PostgreSQL: ", why));
  }
  PQsetNoticeProcessor(
      connection, [](void*, const char*) {}, nullptr);
  if (PQsetnonblocking(connection, 1) != 0 || PQenterPipelineMode(connection) != 1) {
    PQfinish(connection);
    return absl::UnavailableError("PostgreSQL: no pipeline mode");
  }
  return std::unique_ptr<PgConnection>(new PgConnection(connection, options));
}

PgConnection::PgConnection(pg_conn* connection, const PgOptions& options)
    : connection_(connection),
      reply_timeout_ms_(
          options.statement_timeout_ms == 0 ? -1 : options.statement_timeout_ms + kReplyGraceMs) {}

PgConnection::~PgConnection() { PQfinish(connection_); }

int PgConnection::backend_pid() const { return PQbackendPID(connection_); }

absl::Status PgConnection::Break(absl::string_view why) {
  broken_ = true;
  added_.clear();
  expected_.clear();
  return absl::UnavailableError(
      absl::StrCat("PostgreSQL connection lost: ", absl::StripTrailingAsciiWhitespace(why)));
}

void PgConnection::Add(const std::string& sql, PgParams params) {
  added_.push_back({sql, std::move(params)});
}

absl::Status PgConnection::Write(const Statement& statement) {
  auto [prepared, is_new] = prepared_.try_emplace(statement.sql);
  const auto& types = statement.params.types_;
  if (is_new) {
    prepared->second = absl::StrCat("s", next_statement_++);
    if (PQsendPrepare(connection_, prepared->second.c_str(), statement.sql.c_str(),
                      static_cast<int>(types.size()), types.data()) != 1) {
      return Break(PQerrorMessage(connection_));
    }
    expected_.push_back({statement.sql, true});
  }
  std::vector<const char*> values;
  std::vector<int> lengths, formats;
  for (const std::string& value : statement.params.values_) {
    values.push_back(value.data());
    lengths.push_back(static_cast<int>(value.size()));
    formats.push_back(1);
  }
  if (PQsendQueryPrepared(connection_, prepared->second.c_str(), static_cast<int>(values.size()),
                          values.data(), lengths.data(), formats.data(), /*resultFormat=*/1) != 1) {
    return Break(PQerrorMessage(connection_));
  }
  expected_.push_back({statement.sql, false});
  return absl::OkStatus();
}

absl::Status PgConnection::WaitForSocket(bool writing) {
  const int64_t until = SteadyMs() + reply_timeout_ms_;
  while (true) {
    pollfd fd = {PQsocket(connection_), static_cast<short>(POLLIN | (writing ? POLLOUT : 0)), 0};
    const int64_t left = reply_timeout_ms_ < 0 ? -1 : std::max<int64_t>(until - SteadyMs(), 0);
    const int n = poll(&fd, 1, static_cast<int>(left));
    if (n > 0) return absl::OkStatus();
    if (n == 0) return Break(absl::StrCat("no answer within ", reply_timeout_ms_, " ms"));
    if (errno != EINTR) return Break(std::strerror(errno));
  }
}

absl::Status PgConnection::Send() {
  if (broken_) return Break("broken before");
  GK_CHECK(expected_.empty()) << "Send before Receive";
  for (const Statement& statement : added_) {
    if (absl::Status status = Write(statement); !status.ok()) return status;
  }
  added_.clear();
  if (PQpipelineSync(connection_) != 1) return Break(PQerrorMessage(connection_));
  // Both sides may have full buffers: read while there is still something to write.
  while (true) {
    const int flushed = PQflush(connection_);
    if (flushed == 0) return absl::OkStatus();
    if (flushed < 0) return Break(PQerrorMessage(connection_));
    if (absl::Status status = WaitForSocket(true); !status.ok()) return status;
    if (PQconsumeInput(connection_) != 1) return Break(PQerrorMessage(connection_));
  }
}

absl::StatusOr<pg_result*> PgConnection::NextResult() {
  while (PQisBusy(connection_) != 0) {
    if (absl::Status status = WaitForSocket(false); !status.ok()) return status;
    if (PQconsumeInput(connection_) != 1) return Break(PQerrorMessage(connection_));
  }
  return PQgetResult(connection_);
}

absl::StatusOr<std::vector<PgResult>> PgConnection::Receive() {
  if (broken_) return Break("broken before");
  std::vector<PgResult> results;
  absl::Status failure;
  bool must_break = false;
  for (const Expected& expected : std::exchange(expected_, {})) {
    absl::StatusOr<pg_result*> next = NextResult();
    if (!next.ok()) return next.status();
    if (*next == nullptr) return Break("an answer is missing");
    PgResult result(*next);
    const ExecStatusType kind = PQresultStatus(*next);
    if (kind == PGRES_TUPLES_OK || kind == PGRES_COMMAND_OK) {
      if (!expected.is_prepare) results.push_back(std::move(result));
    } else if (kind == PGRES_PIPELINE_ABORTED || kind == PGRES_FATAL_ERROR) {
      if (expected.is_prepare) prepared_.erase(expected.sql);
      if (failure.ok() && kind == PGRES_FATAL_ERROR) {
        failure = StatusOf(*next, expected.sql);
        must_break = failure.code() == absl::StatusCode::kUnavailable;
      }
      if (PQstatus(connection_) != CONNECTION_OK) {
        absl::Status lost = Break(failure.ok() ? "aborted" : failure.message());
        return WithSqlState(lost, SqlState(failure));
      }
    } else {
      return Break(absl::StrCat("unexpected answer ", PQresStatus(kind)));
    }
    next = NextResult();  // the null that ends each statement's results
    if (!next.ok()) return next.status();
    if (*next != nullptr) {
      PQclear(*next);
      return Break("an answer too many");
    }
  }
  absl::StatusOr<pg_result*> sync = NextResult();
  if (!sync.ok()) return sync.status();
  if (*sync == nullptr) return Break("the synchronization is missing");
  const ExecStatusType kind = PQresultStatus(*sync);
  PQclear(*sync);
  if (kind != PGRES_PIPELINE_SYNC)
    return Break(absl::StrCat("expected a synchronization, got ", PQresStatus(kind)));
  if (must_break) return WithSqlState(Break(failure.message()), SqlState(failure));
  if (!failure.ok()) return failure;
  return results;
}

absl::StatusOr<std::vector<PgResult>> PgConnection::Run() {
  if (absl::Status status = Send(); !status.ok()) return status;
  return Receive();
}

absl::StatusOr<PgResult> PgConnection::Query(const std::string& sql, PgParams params) {
  GK_CHECK(added_.empty()) << "Query between Add and Run";
  Add(sql, std::move(params));
  absl::StatusOr<std::vector<PgResult>> results = Run();
  if (!results.ok()) return results.status();
  return std::move(results->front());
}

absl::Status PgConnection::Script(const std::string& sql) {
  if (broken_) return Break("broken before");
  GK_CHECK(added_.empty() && expected_.empty()) << "Script inside a pipeline";
  if (PQexitPipelineMode(connection_) != 1 || PQsetnonblocking(connection_, 0) != 0) {
    return Break(PQerrorMessage(connection_));
  }
  PgResult result(PQexec(connection_, sql.c_str()));
  absl::Status status;
  const PGresult* raw = result.raw();
  const ExecStatusType kind = PQresultStatus(raw);
  if (kind != PGRES_COMMAND_OK && kind != PGRES_TUPLES_OK && kind != PGRES_EMPTY_QUERY)
    status = StatusOf(raw, sql);
  if (PQstatus(connection_) != CONNECTION_OK)
    return WithSqlState(Break(status.message()), SqlState(status));
  if (!status.ok() && PQtransactionStatus(connection_) != PQTRANS_IDLE)
    PQclear(PQexec(connection_, "ROLLBACK"));
  if (PQsetnonblocking(connection_, 1) != 0 || PQenterPipelineMode(connection_) != 1) {
    return Break(PQerrorMessage(connection_));
  }
  return status;
}

std::string SqlState(const absl::Status& status) {
  absl::optional<absl::Cord> payload = status.GetPayload(kSqlStatePayload);
  return payload.has_value() ? std::string(*payload) : "";
}

}  // namespace gaekju::runtime
