#include "runtime/turn_store.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "flow/mutant.h"
#include "google/protobuf/descriptor.h"

namespace gaekju::runtime {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

int64_t SystemNowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

bool IsTimestamp(const FieldDescriptor* field) {
  return field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE &&
         field->message_type()->full_name() == "google.protobuf.Timestamp";
}

TableSql::Kind KindOf(const FieldDescriptor* field, const flow::Column& column) {
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return TableSql::Kind::kText;
    case FieldDescriptor::CPPTYPE_BOOL:
      return TableSql::Kind::kBool;
    case FieldDescriptor::CPPTYPE_INT32:
    case FieldDescriptor::CPPTYPE_INT64:
    case FieldDescriptor::CPPTYPE_UINT32:
    case FieldDescriptor::CPPTYPE_UINT64:
    case FieldDescriptor::CPPTYPE_ENUM:
      return TableSql::Kind::kInt;
    default:
      break;
  }
  GK_CHECK(IsTimestamp(field)) << "column " << column.name << ": " << column.path
                               << " is no string, integer, bool, enum or Timestamp";
  return TableSql::Kind::kInt;
}

TableSql::Path PathOf(const flow::Table& table, const flow::Column& column) {
  TableSql::Path path;
  const google::protobuf::Descriptor* type = table.prototype->GetDescriptor();
  for (const std::string& name : std::vector<std::string>(absl::StrSplit(column.path, '.'))) {
    GK_CHECK(type != nullptr) << table.name << "." << column.name << ": nothing is inside "
                              << column.path;
    const FieldDescriptor* field = type->FindFieldByName(name);
    GK_CHECK(field != nullptr && !field->is_repeated())
        << table.name << "." << column.name << ": no single field " << name << " in "
        << type->full_name();
    path.fields.push_back(field);
    type = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE ? field->message_type() : nullptr;
  }
  path.kind = KindOf(path.fields.back(), column);
  return path;
}

// The message that holds the path's last field; absent ones read as their defaults.
const Message& Holder(const TableSql::Path& path, const Message& row) {
  const Message* message = &row;
  for (size_t i = 0; i + 1 < path.fields.size(); ++i) {
    message = &message->GetReflection()->GetMessage(*message, path.fields[i]);
  }
  return *message;
}

const char* SqlType(TableSql::Kind kind) {
  switch (kind) {
    case TableSql::Kind::kText:
      return "text";
    case TableSql::Kind::kInt:
      return "bigint";
    case TableSql::Kind::kBool:
      return "boolean";
  }
  return "";
}

}  // namespace

// ---------------------------------------------------------------- TableSql

TableSql::TableSql(const flow::Table& table) : table_(table) {
  std::vector<std::string> names = {"key", "version", "body"},
                           arrays = {"$1::text[]", "$2::bigint[]", "$3::bytea[]"};
  for (const flow::Column& column : table.columns) {
    paths_.push_back(PathOf(table, column));
    names.push_back(column.name);
    arrays.push_back(absl::StrCat("$", arrays.size() + 1, "::", SqlType(paths_.back().kind), "[]"));
  }
  const std::string list = absl::StrJoin(names, ", ");
  const std::string rows =
      absl::StrCat("unnest(", absl::StrJoin(arrays, ", "), ") AS u(", list, ")");
  std::vector<std::string> sets;
  for (size_t i = 1; i < names.size(); ++i)
    sets.push_back(absl::StrCat(names[i], " = u.", names[i]));
  select_ = absl::StrCat("SELECT key, version, body FROM ", table.name,
                         " WHERE key = ANY($1) ORDER BY key",
                         GK_MUTANT(rows_not_locked) ? "" : " FOR UPDATE");
  update_ = absl::StrCat("UPDATE ", table.name, " AS t SET ", absl::StrJoin(sets, ", "), " FROM ",
                         rows, " WHERE t.key = u.key");
  insert_ = absl::StrCat("INSERT INTO ", table.name, " (", list, ") SELECT ", list, " FROM ", rows);
}

std::string TableSql::TextOf(const Path& path, const Message& row) {
  const Message& holder = Holder(path, row);
  std::string text = holder.GetReflection()->GetString(holder, path.fields.back());
  // PostgreSQL's text holds everything but this.
  std::replace(text.begin(), text.end(), '\0', ' ');
  return text;
}

bool TableSql::BoolOf(const Path& path, const Message& row) {
  const Message& holder = Holder(path, row);
  return holder.GetReflection()->GetBool(holder, path.fields.back());
}

int64_t TableSql::IntOf(const Path& path, const Message& row) {
  const Message& holder = Holder(path, row);
  const FieldDescriptor* field = path.fields.back();
  const google::protobuf::Reflection& reflection = *holder.GetReflection();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return reflection.GetInt32(holder, field);
    case FieldDescriptor::CPPTYPE_INT64:
      return reflection.GetInt64(holder, field);
    case FieldDescriptor::CPPTYPE_UINT32:
      return reflection.GetUInt32(holder, field);
    case FieldDescriptor::CPPTYPE_UINT64:
      return static_cast<int64_t>(reflection.GetUInt64(holder, field));
    case FieldDescriptor::CPPTYPE_ENUM:
      return reflection.GetEnumValue(holder, field);
    default:
      break;
  }
  if (!reflection.HasField(holder, field)) return 0;  // a Timestamp
  const Message& time = reflection.GetMessage(holder, field);
  const google::protobuf::Descriptor& type = *time.GetDescriptor();
  return time.GetReflection()->GetInt64(time, type.FindFieldByNumber(1)) * 1000000 +
         time.GetReflection()->GetInt32(time, type.FindFieldByNumber(2)) / 1000;
}

PgParams TableSql::Params(
    const std::vector<std::pair<const std::string*, const flow::Turn::Row*>>& rows) const {
  PgArray keys = PgArray::Text(), versions = PgArray::Int(), bodies = PgArray::Bytes();
  for (const auto& [key, row] : rows) {
    keys.Add(*key);
    versions.AddInt(row->version);
    bodies.AddMessage(*row->body);
  }
  PgParams params;
  params.Push(std::move(keys)).Push(std::move(versions)).Push(std::move(bodies));
  for (const Path& path : paths_) {
    PgArray values = path.kind == Kind::kText  ? PgArray::Text()
                     : path.kind == Kind::kInt ? PgArray::Int()
                                               : PgArray::Bool();
    for (const auto& [key, row] : rows) {
      switch (path.kind) {
        case Kind::kText:
          values.Add(TextOf(path, *row->body));
          break;
        case Kind::kInt:
          values.AddInt(IntOf(path, *row->body));
          break;
        case Kind::kBool:
          values.AddBool(BoolOf(path, *row->body));
          break;
      }
    }
    params.Push(std::move(values));
  }
  return params;
}

const TableSql::Path* TableSql::FindColumn(absl::string_view column) const {
  for (size_t i = 0; i < paths_.size(); ++i) {
    if (table_.columns[i].name == column) return &paths_[i];
  }
  return nullptr;
}

// ---------------------------------------------------------------- TurnStore

TurnStore::TurnStore(Options options) : options_(std::move(options)) {
  options_.pg.by_key_only = true;
  if (!options_.now_us) options_.now_us = SystemNowUs;
  for (const flow::Table* table : options_.tables) {
    index_[table] = static_cast<int>(tables_.size());
    tables_.push_back(std::make_unique<TableSql>(*table));
  }
}

absl::Status TurnStore::Connect() {
  pg_.reset();
  auto connected = PgConnection::Connect(options_.pg);
  if (!connected.ok()) return connected.status();
  std::unique_ptr<PgConnection> pg = *std::move(connected);
  // Money is not answered for before it is on disk, whatever the server's default.
  auto sync = pg->Query(GK_MUTANT(commit_not_flushed)
                            ? "SELECT 1"
                            : "SELECT set_config('synchronous_commit', 'on', false) WHERE "
                              "current_setting('synchronous_commit') IN ('off', 'local')");
  if (!sync.ok()) return sync.status();
  auto incarnation = StartIncarnation(*pg, options_.now_us());
  if (!incarnation.ok()) return incarnation.status();
  pg_ = std::move(pg);
  incarnation_ = *incarnation;
  next_seq_ = 1;
  return absl::OkStatus();
}

absl::Status TurnStore::Load(const std::vector<flow::RowKey>& keys, flow::Turn* turn) {
  if (!connected()) return absl::UnavailableError("PostgreSQL: not connected");
  std::vector<std::vector<const flow::RowKey*>> by_table(tables_.size());
  for (const flow::RowKey& key : keys) {
    const auto it = index_.find(key.table);
    GK_CHECK(it != index_.end()) << "table " << key.table->name << " is not one of the context's";
    by_table[static_cast<size_t>(it->second)].push_back(&key);
  }
  // Tables in the context's order and keys in theirs: every writer locks in the same order.
  pg_->Add("BEGIN");
  for (size_t t = 0; t < tables_.size(); ++t) {
    if (by_table[t].empty()) continue;
    PgArray array = PgArray::Text();
    for (const flow::RowKey* key : by_table[t]) array.Add(key->key);
    PgParams params;
    params.Push(std::move(array));
    pg_->Add(tables_[t]->select(), std::move(params));
  }
  Failpoint("load");
  auto results = pg_->Run();
  if (!results.ok()) {
    Rollback();
    return results.status();
  }
  size_t next = 1;
  for (size_t t = 0; t < tables_.size(); ++t) {
    if (by_table[t].empty()) continue;
    const PgResult& result = (*results)[next++];
    const flow::Table& table = tables_[t]->table();
    for (int i = 0; i < result.rows(); ++i) {
      std::unique_ptr<Message> body(table.prototype->New());
      const absl::string_view bytes = result.Bytes(i, 2);
      if (!body->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
        Rollback();
        return absl::DataLossError(absl::StrCat("row ", table.name, "/", result.Bytes(i, 0),
                                                " is not a ", body->GetTypeName()));
      }
      turn->AddRow({&table, std::string(result.Bytes(i, 0))}, result.Int(i, 1), std::move(body));
    }
    if (static_cast<size_t>(result.rows()) == by_table[t].size()) continue;
    for (const flow::RowKey* key : by_table[t]) {
      if (!turn->HasRow(*key)) turn->AddRow(*key, 0, nullptr);
    }
  }
  return absl::OkStatus();
}

absl::Status TurnStore::Commit(flow::Turn& turn, std::vector<OutboxRow>* rows) {
  using RowRefs = std::vector<std::pair<const std::string*, const flow::Turn::Row*>>;
  std::vector<RowRefs> updates(tables_.size()), inserts(tables_.size());
  for (const flow::RowKey& key : turn.order()) {
    const flow::Turn::Row& row = turn.row(key);
    if (!row.dirty) continue;
    const auto it = index_.find(key.table);
    GK_CHECK(it != index_.end()) << "table " << key.table->name << " is not one of the context's";
    (row.existed ? updates : inserts)[static_cast<size_t>(it->second)].emplace_back(&key.key, &row);
  }
  const auto by_key = [](const auto& a, const auto& b) { return *a.first < *b.first; };
  for (size_t t = 0; t < tables_.size(); ++t) {
    if (!updates[t].empty()) pg_->Add(tables_[t]->update(), tables_[t]->Params(updates[t]));
    if (inserts[t].empty()) continue;
    // In key order: two writers that insert the same keys wait for each other in one direction
    // only.
    std::sort(inserts[t].begin(), inserts[t].end(), by_key);
    pg_->Add(tables_[t]->insert(), tables_[t]->Params(inserts[t]));
  }
  int64_t seq = next_seq_;
  for (OutboxRow& row : *rows) {
    row.incarnation = incarnation_;
    row.seq = seq++;
  }
  if (!rows->empty()) AddOutboxInsert(*pg_, *rows);
  pg_->Add("COMMIT");
  Failpoint("before_commit");
  absl::Status status = pg_->Send();
  if (!status.ok()) return status;
  Failpoint("commit_sent");
  auto results = pg_->Receive();
  if (!results.ok()) {
    Rollback();
    return results.status();
  }
  next_seq_ = seq;
  // Rows that we hold locked cannot vanish: an update that finds fewer is a bug, or somebody edits
  // the tables by hand.
  size_t next = 0;
  for (size_t t = 0; t < tables_.size(); ++t) {
    if (!updates[t].empty()) {
      GK_CHECK((*results)[next++].affected() == static_cast<int64_t>(updates[t].size()))
          << "update of " << tables_[t]->table().name;
    }
    if (!inserts[t].empty()) ++next;
  }
  Failpoint("committed");
  return absl::OkStatus();
}

std::string TurnStore::Setting(absl::string_view name) {
  if (!connected()) return "";
  auto result = pg_->Query("SELECT current_setting($1)", PgParams().Text(name));
  return result.ok() ? std::string(result->Bytes(0, 0)) : "";
}

void TurnStore::Rollback() {
  if (!connected()) return;
  // Whatever goes wrong here breaks the connection, and with it the transaction.
  if (!pg_->Query("ROLLBACK").ok()) pg_.reset();
}

}  // namespace gaekju::runtime
