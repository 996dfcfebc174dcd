#include "sim/database.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "google/protobuf/descriptor.h"

namespace gaekju::sim {

using flow::RowKey;
using flow::Turn;
using google::protobuf::Message;

Database::Database(const flow::Context& context) : context_(context) {
  for (const flow::Table* table : context.tables) tables_[table];
  if (context.timer.table == nullptr) return;
  for (const flow::Column& column : context.timer.table->columns) {
    if (column.name != context.timer.column) continue;
    const auto* type = context.timer.table->prototype->GetDescriptor();
    for (absl::string_view part : absl::StrSplit(column.path, '.')) {
      due_path_.push_back(type->FindFieldByName(std::string(part)));
      GK_CHECK(due_path_.back() != nullptr) << column.path;
      type = due_path_.back()->message_type();
    }
  }
  GK_CHECK(!due_path_.empty()) << context.name;
}

int64_t Database::DueTimeOf(const Message& row) const {
  const Message* message = &row;
  for (size_t i = 0; i + 1 < due_path_.size(); ++i) {
    message = &message->GetReflection()->GetMessage(*message, due_path_[i]);
  }
  return message->GetReflection()->GetInt64(*message, due_path_.back());
}

const std::map<std::string, Database::Row>& Database::Rows(const flow::Table& table) const {
  const auto it = tables_.find(&table);
  GK_CHECK(it != tables_.end()) << table.name << " is not of " << context_.name;
  return it->second;
}

bool Database::Lock(const std::vector<RowKey>& keys, int owner) {
  for (const RowKey& key : keys) {
    const auto it = locks_.find(key);
    if (it != locks_.end() && it->second != owner) return false;
  }
  std::vector<RowKey>& locked = locked_[owner];
  for (const RowKey& key : keys) {
    if (Rows(*key.table).contains(key.key) && locks_.try_emplace(key, owner).second) {
      locked.push_back(key);
    }
  }
  return true;
}

void Database::Unlock(int owner) {
  for (const RowKey& key : locked_[owner]) locks_.erase(key);
  locked_[owner].clear();
}

void Database::Load(const std::vector<RowKey>& keys, Turn* turn) const {
  for (const RowKey& key : keys) {
    const auto& rows = Rows(*key.table);
    const auto it = rows.find(key.key);
    if (it == rows.end()) {
      turn->AddRow(key, 0, nullptr);
      continue;
    }
    std::unique_ptr<Message> body(key.table->prototype->New());
    GK_CHECK(body->ParseFromString(it->second.body)) << key.key;
    turn->AddRow(key, it->second.version, std::move(body));
  }
}

absl::Status Database::Commit(const Turn& turn, int64_t incarnation, std::vector<OutboxRow> rows) {
  for (const RowKey& key : turn.order()) {
    const Turn::Row& row = turn.row(key);
    if (row.dirty && !row.existed && Rows(*key.table).contains(key.key)) {
      return absl::AlreadyExistsError(absl::StrCat(key.table->name, "/", key.key));
    }
  }
  for (const RowKey& key : turn.order()) {
    const Turn::Row& row = turn.row(key);
    if (!row.dirty) continue;
    Row& stored = tables_[key.table][key.key];
    stored.version = row.version;
    stored.body = row.body->SerializeAsString();
    if (key.table != context_.timer.table) continue;
    int64_t& due = due_of_[key.key];
    if (due != 0) due_.erase({due, key.key});
    due = DueTimeOf(*row.body);
    if (due > 0) due_.insert({due, key.key});
  }
  Log& log = outbox[incarnation];
  for (OutboxRow& row : rows) {
    row.seq = static_cast<int64_t>(log.rows.size()) + 1;
    log.rows.push_back(std::move(row));
  }
  return absl::OkStatus();
}

std::vector<std::string> Database::Due(int64_t now_us, size_t count_max) const {
  std::vector<std::string> keys;
  for (const auto& [time_us, key] : due_) {
    if (time_us > now_us || keys.size() >= count_max) break;
    keys.push_back(key);
  }
  return keys;
}

}  // namespace gaekju::sim
