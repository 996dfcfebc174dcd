#include "flow/request.h"

#include <algorithm>
#include <cstdint>

#include "absl/algorithm/container.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "flow/check.h"
#include "flow/mutant.h"
#include "google/api/field_behavior.pb.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"

namespace gaekju::flow {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using order::v1::Order;

// ---- what can supply a field

// A message whose fields may supply those of a request.
struct Source {
  FieldCopy::From from = FieldCopy::From::kOrder;
  int step = -1;
  const Descriptor* message = nullptr;

  const FieldDescriptor* Field(const std::string& name) const {
    const FieldDescriptor* field = message->FindFieldByName(name);
    if (field != nullptr && from == FieldCopy::From::kOrder && !IsFixedInOrder(*field))
      return nullptr;
    return field;
  }
};

Source AnswerOf(const Plan& plan, int step) {
  return {FieldCopy::From::kAnswer, step, plan.steps[step].response};
}

// The steps that `step` waits for, nearest first; the steps of equal distance as `after` names
// them.
std::vector<int> Awaited(const Plan& plan, int step) {
  std::vector<int> found;
  std::vector<bool> seen(plan.steps.size(), false);
  seen[step] = true;
  auto visit = [&](const std::vector<int>& after) {
    for (int i : after) {
      if (!seen[i]) found.push_back(i);
      seen[i] = true;
    }
  };
  visit(plan.steps[step].after);
  const int told = plan.steps[step].when.done;
  if (told >= 0 && !plan.steps[told].in_cancel) visit({told});
  for (size_t i = 0; i < found.size(); ++i) visit(plan.steps[found[i]].after);
  return found;
}

// ---- mistakes

std::string Quoted(absl::string_view text) { return absl::StrCat("\"", text, "\""); }

std::string FieldList(const Source& source) {
  std::vector<std::string> fields;
  for (int i = 0; i < source.message->field_count(); ++i) {
    const FieldDescriptor& field = *source.message->field(i);
    if (source.Field(std::string(field.name())) == nullptr) continue;
    fields.push_back(absl::StrCat(field.name(), " (", FieldTypeName(field), ")"));
  }
  return fields.empty() ? "nothing" : absl::StrJoin(fields, ", ");
}

// A step of the same flow that does not wait for `step` and whose answer has the field; -1 for
// none. REQUIRES: nothing that `step` waits for answers it.
int StepThatAnswers(const Plan& plan, const FieldDescriptor& field, int step) {
  for (int i = 0; i < static_cast<int>(plan.steps.size()); ++i) {
    const PlanStep& other = plan.steps[i];
    if (i == step || other.is_notice || other.in_cancel != plan.steps[step].in_cancel ||
        other.response == nullptr) {
      continue;
    }
    if (absl::c_linear_search(Awaited(plan, i), step)) continue;
    const FieldDescriptor* source = other.response->FindFieldByName(std::string(field.name()));
    if (source != nullptr && IsSameType(*source, field)) return i;
  }
  return -1;
}

std::string Unsupplied(const Plan& plan, const std::vector<Source>& sources,
                       const FieldDescriptor& field, int step) {
  const std::string name(field.name());
  std::string text = absl::StrCat("its request needs ", name, " (", FieldTypeName(field),
                                  "), and nothing supplies it. ");
  const FieldDescriptor* in_order = Order::descriptor()->FindFieldByName(name);
  if (in_order != nullptr && !IsFixedInOrder(*in_order)) {
    absl::StrAppend(
        &text, "The order's ", name,
        " changes while the order runs, and a step that is asked again must be told the same. ");
  }
  for (const Source& source : sources) {
    const FieldDescriptor* other = source.Field(name);
    if (other == nullptr) continue;
    absl::StrAppend(
        &text,
        source.step < 0 ? "The order has " : Quoted(plan.steps[source.step].id) + " answers ", name,
        " as another type: ", FieldTypeName(*other), ". ");
  }
  for (const Source& source : sources) {
    absl::StrAppend(
        &text,
        source.step < 0 ? "The order has: " : Quoted(plan.steps[source.step].id) + " answers: ",
        FieldList(source), ". ");
  }
  const int other = StepThatAnswers(plan, field, step);
  if (other >= 0) {
    absl::StrAppend(&text, plan.steps[step].is_notice ? "Write done: " : "Write after: ",
                    Quoted(plan.steps[other].id), ", which answers ", name);
  } else {
    absl::StrAppend(&text,
                    plan.steps[step].is_notice ? "Tell of a step of place that answers "
                                               : "Wait for a step that answers ",
                    name, ", or write with { [type.googleapis.com/",
                    plan.steps[step].request->full_name(), "] { ", name, ": … } }");
  }
  return text;
}

// ---- the wire

constexpr uint32_t kVarint = 0;
constexpr uint32_t kFixed64 = 1;
constexpr uint32_t kLengthDelimited = 2;
constexpr uint32_t kFixed32 = 5;

void AppendVarint(uint64_t value, std::string* out) {
  while (value >= 0x80) {
    out->push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  out->push_back(static_cast<char>(value));
}

bool ReadVarint(absl::string_view* bytes, uint64_t* value) {
  *value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    if (bytes->empty()) return false;
    const uint8_t byte = static_cast<uint8_t>(bytes->front());
    bytes->remove_prefix(1);
    *value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return true;
  }
  return false;
}

// One top-level field as it stands in a serialized message.
struct WireField {
  uint32_t number = 0;
  uint32_t wire_type = 0;
  absl::string_view value;  // what follows the tag
};
using WireFields = absl::InlinedVector<WireField, 32>;

// The top-level fields of a serialized message, in its order; up to where it is malformed. Groups,
// which proto3 has not, end it.
void Scan(absl::string_view bytes, WireFields* fields) {
  uint64_t tag = 0;
  while (!bytes.empty() && ReadVarint(&bytes, &tag)) {
    const absl::string_view start = bytes;
    uint64_t length = 0;
    switch (tag & 7) {
      case kVarint:
        if (!ReadVarint(&bytes, &length)) return;
        break;
      case kFixed64:
        if (bytes.size() < 8) return;
        bytes.remove_prefix(8);
        break;
      case kLengthDelimited:
        if (!ReadVarint(&bytes, &length) || bytes.size() < length) return;
        bytes.remove_prefix(length);
        break;
      case kFixed32:
        if (bytes.size() < 4) return;
        bytes.remove_prefix(4);
        break;
      default:
        return;
    }
    if (tag >> 3 == 0 || tag >> 32 != 0) return;
    fields->push_back({static_cast<uint32_t>(tag >> 3), static_cast<uint32_t>(tag & 7),
                       start.substr(0, start.size() - bytes.size())});
  }
}

void AppendTag(uint32_t number, uint32_t wire_type, std::string* out) {
  AppendVarint(uint64_t{number} << 3 | wire_type, out);
}

void AppendText(const Descriptor& message, const char* field_name, absl::string_view value,
                std::string* out) {
  const FieldDescriptor* field = message.FindFieldByName(field_name);
  GK_CHECK(field != nullptr) << message.full_name() << "." << field_name;
  if (value.empty()) return;
  AppendTag(field->number(), kLengthDelimited, out);
  AppendVarint(value.size(), out);
  out->append(value.data(), value.size());
}

std::string SerializeDeterministically(const google::protobuf::Message& message) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    GK_CHECK(message.SerializeToCodedStream(&coded)) << message.GetTypeName();
  }
  return bytes;
}

}  // namespace

bool IsFixedInOrder(const FieldDescriptor& field) {
  switch (field.number()) {
    case Order::kTotalFieldNumber:
    case Order::kStateFieldNumber:
    case Order::kStatusCodeFieldNumber:
    case Order::kStatusTextFieldNumber:
    case Order::kPlaceTimeFieldNumber:
    case Order::kCancelTimeFieldNumber:
    case Order::kEndTimeFieldNumber:
    case Order::kRejectReasonFieldNumber:
      return false;
    default:
      return true;
  }
}

bool IsSameType(const FieldDescriptor& a, const FieldDescriptor& b) {
  if (a.type() != b.type() || a.is_repeated() != b.is_repeated() || a.is_map() != b.is_map())
    return false;
  if (a.is_map()) {
    return IsSameType(*a.message_type()->map_key(), *b.message_type()->map_key()) &&
           IsSameType(*a.message_type()->map_value(), *b.message_type()->map_value());
  }
  if (a.message_type() != nullptr)
    return a.message_type()->full_name() == b.message_type()->full_name();
  if (a.enum_type() != nullptr) return a.enum_type()->full_name() == b.enum_type()->full_name();
  return true;
}

std::string FieldTypeName(const FieldDescriptor& field) {
  if (field.is_map()) {
    return absl::StrCat("map<", FieldTypeName(*field.message_type()->map_key()), ", ",
                        FieldTypeName(*field.message_type()->map_value()), ">");
  }
  const absl::string_view repeated = field.is_repeated() ? "repeated " : "";
  if (field.message_type() != nullptr)
    return absl::StrCat(repeated, field.message_type()->full_name());
  if (field.enum_type() != nullptr) return absl::StrCat(repeated, field.enum_type()->full_name());
  return absl::StrCat(repeated, field.type_name());
}

bool IsRequired(const FieldDescriptor& field) {
  const auto& options = field.options();
  for (int i = 0; i < options.ExtensionSize(google::api::field_behavior); ++i) {
    if (options.GetExtension(google::api::field_behavior, i) == google::api::REQUIRED) return true;
  }
  return false;
}

std::vector<std::string> CompileRequest(const std::vector<const FieldDescriptor*>& constants,
                                        const std::vector<FieldCopy>& from, Plan* plan, int step) {
  std::vector<std::string> mistakes;
  PlanStep& target = plan->steps[step];
  target.copies.clear();
  std::vector<Source> sources;
  for (int i : Awaited(*plan, step)) sources.push_back(AnswerOf(*plan, i));
  sources.push_back({FieldCopy::From::kOrder, -1, Order::descriptor()});

  // What is given for one member of a oneof settles the others.
  auto settles = [](const FieldDescriptor* given, const FieldDescriptor* field) {
    return given == field || (field->containing_oneof() != nullptr &&
                              given->containing_oneof() == field->containing_oneof());
  };
  auto is_constant = [&](const FieldDescriptor* field) {
    return absl::c_any_of(constants, [&](const auto* given) { return settles(given, field); });
  };
  for (const FieldCopy& copy : from) {
    if (!is_constant(copy.target)) target.copies.push_back(copy);
  }
  auto is_given = [&](const FieldDescriptor* field) {
    return is_constant(field) ||
           absl::c_any_of(from, [&](const auto& copy) { return settles(copy.target, field); });
  };
  for (int i = 0; i < target.request->field_count(); ++i) {
    const FieldDescriptor* field = target.request->field(i);
    if (field->name() == "order_id" || field->name() == "step_id" || is_given(field)) continue;
    const Source* found = nullptr;
    for (const Source& source : sources) {
      const FieldDescriptor* candidate = source.Field(std::string(field->name()));
      if (candidate == nullptr || !IsSameType(*candidate, *field)) continue;
      found = &source;
      target.copies.push_back({source.from, source.step, candidate, field});
      break;
    }
    if (found == nullptr && IsRequired(*field)) {
      mistakes.push_back(Unsupplied(*plan, sources, *field, step));
    }
  }
  // Grouped by source, so that each is scanned once; the order of the groups and of the fields in
  // them is fixed.
  absl::c_stable_sort(target.copies, [](const FieldCopy& a, const FieldCopy& b) {
    if (a.step != b.step) return a.step < b.step;
    return a.target->number() < b.target->number();
  });
  return mistakes;
}

std::string BuildRequest(const Plan& plan, const PlanStep& step, const Order& order,
                         const std::function<const std::string&(int step)>& answer_of,
                         absl::string_view wire_step_id) {
  std::string request;
  AppendText(*step.request, "order_id", order.order_id(), &request);
  AppendText(*step.request, "step_id", wire_step_id, &request);
  std::string order_bytes;
  WireFields fields;
  for (size_t i = 0; i < step.copies.size(); ++i) {
    const FieldCopy& copy = step.copies[i];
    if (i == 0 || copy.step != step.copies[i - 1].step) {
      fields.clear();
      if (copy.from == FieldCopy::From::kOrder) {
        order_bytes = SerializeDeterministically(order);
        Scan(order_bytes, &fields);
      } else {
        GK_CHECK(copy.step >= 0 && copy.step < static_cast<int>(plan.steps.size())) << step.id;
        Scan(answer_of(copy.step), &fields);
      }
    }
    for (const WireField& field : fields) {
      if (field.number != static_cast<uint32_t>(copy.source->number())) continue;
      AppendTag(copy.target->number(), field.wire_type, &request);
      request.append(field.value.data(), field.value.size());
      if (GK_MUTANT(first_line_only)) break;
    }
  }
  if (!GK_MUTANT(shops_words_not_passed_on)) request.append(step.constants);
  return request;
}

std::string BuildUndoRequest(const PlanStep& step, absl::string_view order_id,
                             absl::string_view wire_step_id) {
  GK_CHECK(step.undo_request != nullptr) << step.id << " has nothing to undo";
  std::string request;
  AppendText(*step.undo_request, "order_id", order_id, &request);
  AppendText(*step.undo_request, "step_id",
             GK_MUTANT(undo_of_the_first_round) ? step.id : wire_step_id, &request);
  return request;
}

}  // namespace gaekju::flow
