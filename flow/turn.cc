#include "flow/turn.h"

#include "flow/mutant.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/rpc/error_details.pb.h"

namespace gaekju::flow {

Answer Done(const google::protobuf::Message& response) {
  Answer answer;
  answer.kind = Answer::Kind::kDone;
  answer.payload = response.SerializeAsString();
  return answer;
}

google::rpc::Status MakeStatus(int code, absl::string_view domain, absl::string_view reason,
                               absl::string_view message, absl::string_view field,
                               int64_t retry_after_us) {
  google::rpc::Status status;
  status.set_code(code);
  status.set_message(std::string(message));
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain(std::string(domain));
  if (!field.empty()) (*info.mutable_metadata())["field"] = std::string(field);
  status.add_details()->PackFrom(info);
  if (!field.empty()) {
    google::rpc::BadRequest bad;
    auto* violation = bad.add_field_violations();
    violation->set_field(std::string(field));
    violation->set_description(std::string(message));
    status.add_details()->PackFrom(bad);
  }
  if (retry_after_us > 0) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(retry_after_us / 1000000);
    retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(retry_after_us % 1000000 * 1000));
    status.add_details()->PackFrom(retry);
  }
  return status;
}

std::string ReasonOf(const google::rpc::Status& status) {
  google::rpc::ErrorInfo info;
  for (const auto& detail : status.details()) {
    if (detail.UnpackTo(&info)) return info.reason();
  }
  return "";
}

Answer Refuse(int code, absl::string_view domain, absl::string_view reason,
              absl::string_view message, absl::string_view field) {
  Answer answer;
  answer.kind = Answer::Kind::kRefused;
  answer.status = MakeStatus(code, domain, reason, message, field);
  return answer;
}

Answer Pending() {
  Answer answer;
  answer.kind = Answer::Kind::kPending;
  return answer;
}

Answer Wait(std::string wait_key) {
  Answer answer;
  answer.kind = Answer::Kind::kWait;
  answer.wait_key = std::move(wait_key);
  return answer;
}

uint64_t FingerprintBytes(absl::string_view bytes, uint64_t seed) {
  uint64_t hash = seed;
  for (unsigned char byte : bytes) {
    hash ^= byte;
    hash *= 0x100000001b3u;
  }
  return hash;
}

uint64_t Fingerprint(const google::protobuf::Message& message) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    GK_CHECK(message.SerializeToCodedStream(&coded)) << message.GetTypeName();
  }
  return FingerprintBytes(bytes);
}

const google::protobuf::Message* Turn::FindRow(const Table& table, absl::string_view key) const {
  auto it = rows_.find(RowKey{&table, std::string(key)});
  GK_CHECK(it != rows_.end()) << "row not announced: " << table.name << "/" << key;
  return it->second.body.get();
}

Turn::Row& Turn::MutableRow(const Table& table, absl::string_view key) {
  auto it = rows_.find(RowKey{&table, std::string(key)});
  GK_CHECK(it != rows_.end()) << "row not announced: " << table.name << "/" << key;
  return it->second;
}

google::protobuf::Message& Turn::EditRow(const Table& table, absl::string_view key) {
  Row& row = MutableRow(table, key);
  if (row.body == nullptr) row.body.reset(table.prototype->New());
  row.dirty = true;
  return *row.body;
}

google::protobuf::Message& Turn::AppendRow(const Table& table, absl::string_view key) {
  RowKey row_key{&table, std::string(key)};
  auto [it, inserted] = rows_.try_emplace(row_key);
  GK_CHECK(inserted) << "appended twice: " << table.name << "/" << key;
  order_.push_back(std::move(row_key));
  it->second.body.reset(table.prototype->New());
  it->second.dirty = true;
  return *it->second.body;
}

void Turn::Emit(const Table& table, absl::string_view key, const google::protobuf::Message& event,
                absl::string_view order_id) {
  Row& row = MutableRow(table, key);
  GK_CHECK(row.dirty) << "event of an unchanged row: " << table.name << "/" << key;
  Envelope envelope;
  envelope.kind = Envelope::Kind::kEvent;
  envelope.type = event.GetTypeName();
  envelope.order_id = std::string(order_id);
  envelope.resource = table.name + "/" + std::string(key);
  envelope.version = row.version + 1;
  if (!GK_MUTANT(version_not_counted)) ++row.version;
  envelope.payload = event.SerializeAsString();
  Send(std::move(envelope));
}

void Turn::Send(Envelope envelope) {
  envelope.time_us = now_us_;
  if (envelope.traceparent.empty()) envelope.traceparent = traceparent_;
  envelopes_.push_back(std::move(envelope));
}

void Turn::AddRow(const RowKey& key, int64_t version,
                  std::unique_ptr<google::protobuf::Message> body) {
  auto [it, inserted] = rows_.try_emplace(key);
  GK_CHECK(inserted) << "row added twice: " << key.table->name << "/" << key.key;
  order_.push_back(key);
  it->second.version = version;
  it->second.existed = body != nullptr;
  it->second.body = std::move(body);
}

}  // namespace gaekju::flow
