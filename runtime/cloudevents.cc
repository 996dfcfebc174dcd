#include "runtime/cloudevents.h"

#include <cstdint>
#include <limits>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "flow/check.h"
#include "flow/values.h"
#include "google/protobuf/util/time_util.h"

namespace gaekju::runtime {
namespace {

using flow::Envelope;
using Kind = flow::Envelope::Kind;
using Headers = std::vector<std::pair<std::string, std::string>>;

constexpr absl::string_view kSourcePrefix = "/gaekju/";
constexpr absl::string_view kSpecVersion = "1.0";

// Names of attributes; as a header with "ce-" before it.
constexpr absl::string_view kSubject = "subject";
constexpr absl::string_view kTime = "time";
constexpr absl::string_view kOrderId = "orderid";
constexpr absl::string_view kStepId = "stepid";
constexpr absl::string_view kUndo = "undo";
constexpr absl::string_view kOutcome = "outcome";
constexpr absl::string_view kReplyTo = "replyto";
constexpr absl::string_view kVersion = "version";
constexpr absl::string_view kTraceparent = "traceparent";
constexpr absl::string_view kDataContentType = "datacontenttype";

absl::string_view OutcomeText(flow::Outcome outcome) {
  switch (outcome) {
    case flow::v1::OUTCOME_DONE:
      return "DONE";
    case flow::v1::OUTCOME_REFUSED:
      return "REFUSED";
    case flow::v1::OUTCOME_PENDING:
      return "PENDING";
    default:
      return "";
  }
}

bool ParseOutcome(absl::string_view text, flow::Outcome* outcome) {
  for (flow::Outcome o :
       {flow::v1::OUTCOME_DONE, flow::v1::OUTCOME_REFUSED, flow::v1::OUTCOME_PENDING}) {
    if (text == OutcomeText(o)) {
      *outcome = o;
      return true;
    }
  }
  return false;
}

// What the attribute `subject` says: of an event the resource, else the order.
const std::string& SubjectAttribute(const Envelope& e) {
  return e.kind == Kind::kEvent ? e.resource : e.order_id;
}

std::string BusSubject(absl::string_view source, const Envelope& e) {
  switch (e.kind) {
    case Kind::kCommand:
      return absl::StrCat("gaekju.command.", e.to);
    case Kind::kAnswer:
      return absl::StrCat("gaekju.answer.", e.to);
    case Kind::kEvent:
      break;
  }
  return absl::StrCat("gaekju.event.", source);
}

// ---------------------------------------------------------------- the wire format of
// io.cloudevents.v1 https://protobuf.dev/programming-guides/encoding: a field is (number << 3 |
// type), then a varint or a length and bytes.

enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

constexpr char Tag(uint32_t number, WireType type) { return static_cast<char>(number << 3 | type); }

// CloudEvent
constexpr uint32_t kId = 1, kSourceField = 2, kSpecVersionField = 3, kType = 4, kAttributes = 5,
                   kBinaryData = 6, kTextData = 7, kProtoData = 8;
// CloudEventAttributeValue
constexpr uint32_t kCeBoolean = 1, kCeInteger = 2, kCeString = 3, kCeUri = 5, kCeUriRef = 6,
                   kCeTimestamp = 7;

size_t VarintSize(uint64_t value) {
  size_t size = 1;
  for (; value >= 0x80; value >>= 7) ++size;
  return size;
}

void PutVarint(uint64_t value, std::string* out) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(value | 0x80));
  out->push_back(static_cast<char>(value));
}

void PutBytes(uint32_t number, absl::string_view bytes, std::string* out) {
  out->push_back(Tag(number, kBytes));
  PutVarint(bytes.size(), out);
  out->append(bytes.data(), bytes.size());
}

// The head of an entry of `attributes`, up to the value's bytes. `value_size`: of the
// CloudEventAttributeValue.
void PutAttributeHead(absl::string_view name, size_t value_size, std::string* out) {
  const size_t entry_size =
      1 + VarintSize(name.size()) + name.size() + 1 + VarintSize(value_size) + value_size;
  out->push_back(Tag(kAttributes, kBytes));
  PutVarint(entry_size, out);
  PutBytes(1, name, out);
  out->push_back(Tag(2, kBytes));
  PutVarint(value_size, out);
}

void PutString(absl::string_view name, absl::string_view value, std::string* out) {
  if (value.empty()) return;
  PutAttributeHead(name, 1 + VarintSize(value.size()) + value.size(), out);
  PutBytes(kCeString, value, out);
}

void PutInteger(absl::string_view name, int64_t value, std::string* out) {
  if (value == 0) return;
  if (value < 0 ||
      value > std::numeric_limits<int32_t>::max()) {  // CloudEvents has no 64-bit integers
    PutString(name, absl::StrCat(value), out);
    return;
  }
  PutAttributeHead(name, 1 + VarintSize(value), out);
  out->push_back(Tag(kCeInteger, kVarint));
  PutVarint(value, out);
}

void PutTrue(absl::string_view name, std::string* out) {
  PutAttributeHead(name, 2, out);
  out->push_back(Tag(kCeBoolean, kVarint));
  out->push_back(1);
}

void PutTime(absl::string_view name, int64_t time_us, std::string* out) {
  int64_t seconds = time_us / 1'000'000;
  int64_t nanos = time_us % 1'000'000 * 1000;
  if (nanos < 0) {
    nanos += 1'000'000'000;
    --seconds;
  }
  const size_t size = 1 + VarintSize(static_cast<uint64_t>(seconds)) + 1 + VarintSize(nanos);
  PutAttributeHead(name, 1 + VarintSize(size) + size, out);
  out->push_back(Tag(kCeTimestamp, kBytes));
  PutVarint(size, out);
  out->push_back(Tag(1, kVarint));
  PutVarint(static_cast<uint64_t>(seconds), out);
  out->push_back(Tag(2, kVarint));
  PutVarint(nanos, out);
}

void PutEvent(absl::string_view source, absl::string_view id, const Envelope& e, std::string* out) {
  PutBytes(kId, id, out);
  out->push_back(Tag(kSourceField, kBytes));
  PutVarint(kSourcePrefix.size() + source.size(), out);
  absl::StrAppend(out, kSourcePrefix, source);
  PutBytes(kSpecVersionField, kSpecVersion, out);
  PutBytes(kType, e.type, out);
  PutTime(kTime, e.time_us, out);
  PutString(kSubject, SubjectAttribute(e), out);
  PutString(kOrderId, e.order_id, out);
  PutString(kStepId, e.step_id, out);
  if (e.undo) PutTrue(kUndo, out);
  PutString(kOutcome, OutcomeText(e.outcome), out);
  PutString(kReplyTo, e.reply_to, out);
  PutInteger(kVersion, e.version, out);
  PutString(kTraceparent, e.traceparent, out);
  PutBytes(kBinaryData, e.payload, out);
}

// Reads fields one after the other. After a false `ok` everything is empty.
class Reader {
 public:
  explicit Reader(absl::string_view bytes)
      : p_(bytes.data()), begin_(p_), end_(p_ + bytes.size()) {}

  bool ok() const { return ok_; }
  // Bytes that have been read. REQUIRES: ok().
  size_t position() const { return static_cast<size_t>(p_ - begin_); }

  // Goes to the next field; false at the end or when the bytes are broken.
  bool Next() {
    if (p_ == end_ || !ok_) return false;
    const uint64_t tag = Varint();
    number_ = static_cast<uint32_t>(tag >> 3);
    type_ = static_cast<WireType>(tag & 7);
    bytes_ = {};
    value_ = 0;
    switch (type_) {
      case kVarint:
        value_ = Varint();
        break;
      case kBytes: {
        const uint64_t size = Varint();
        if (size > static_cast<uint64_t>(end_ - p_)) return Fail();
        bytes_ = absl::string_view(p_, size);
        p_ += size;
        break;
      }
      case kFixed64:
        if (end_ - p_ < 8) return Fail();
        p_ += 8;
        break;
      case kFixed32:
        if (end_ - p_ < 4) return Fail();
        p_ += 4;
        break;
      default:
        return Fail();
    }
    if (number_ == 0) return Fail();
    return ok_;
  }

  bool Is(uint32_t number, WireType type) const { return number_ == number && type_ == type; }
  uint32_t number() const { return number_; }
  absl::string_view bytes() const { return bytes_; }
  uint64_t value() const { return value_; }

 private:
  uint64_t Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && p_ != end_; shift += 7) {
      const uint8_t byte = static_cast<uint8_t>(*p_++);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    Fail();
    return 0;
  }

  bool Fail() {
    ok_ = false;
    p_ = end_;
    return false;
  }

  const char* p_;
  const char* const begin_;
  const char* const end_;
  bool ok_ = true;
  uint32_t number_ = 0;
  WireType type_ = kVarint;
  absl::string_view bytes_;
  uint64_t value_ = 0;
};

// ---------------------------------------------------------------- header values
// The binding percent-encodes as the HTTP binding does (3.1.3.2): all but printable ASCII, and
// space, '"' and '%'.

bool NeedsEscape(char c) { return c <= ' ' || c >= 127 || c == '"' || c == '%'; }

std::string Escape(absl::string_view value) {
  std::string out;
  out.reserve(value.size());
  for (char c : value) {
    if (NeedsEscape(c)) {
      constexpr char kHex[] = "0123456789ABCDEF";
      const uint8_t byte = static_cast<uint8_t>(c);
      out += '%';
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else {
      out += c;
    }
  }
  return out;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  c = absl::ascii_tolower(c);
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

std::string Unescape(absl::string_view value) {
  std::string out;
  out.reserve(value.size());
  for (size_t i = 0; i < value.size(); ++i) {
    if (value[i] == '%' && i + 2 < value.size() && HexDigit(value[i + 1]) >= 0 &&
        HexDigit(value[i + 2]) >= 0) {
      out += static_cast<char>(HexDigit(value[i + 1]) << 4 | HexDigit(value[i + 2]));
      i += 2;
    } else {
      out += value[i];
    }
  }
  return out;
}

void AddHeader(absl::string_view name, absl::string_view value, Headers* headers) {
  if (!value.empty()) headers->emplace_back(absl::StrCat("ce-", name), Escape(value));
}

// RFC 3339 in UTC, always with six digits of a second: the text of whole seconds is the library's.
std::string FormatTime(int64_t time_us) {
  google::protobuf::Timestamp time = flow::ToTimestamp(time_us);
  const int micros = time.nanos() / 1000;
  time.set_nanos(0);
  std::string text = google::protobuf::util::TimeUtil::ToString(time);  // "2026-11-21T13:05:38Z"
  text.pop_back();
  const std::string digits = absl::StrCat(1'000'000 + micros);
  absl::StrAppend(&text, ".", digits.substr(1), "Z");
  return text;
}

Headers BinaryHeaders(absl::string_view source, absl::string_view id, const Envelope& e) {
  Headers headers;
  headers.reserve(14);
  AddHeader("id", id, &headers);
  AddHeader("source", absl::StrCat(kSourcePrefix, source), &headers);
  AddHeader("specversion", kSpecVersion, &headers);
  AddHeader("type", e.type, &headers);
  AddHeader(kTime, FormatTime(e.time_us), &headers);
  AddHeader(kDataContentType, kBinaryContentType, &headers);
  AddHeader(kSubject, SubjectAttribute(e), &headers);
  AddHeader(kOrderId, e.order_id, &headers);
  AddHeader(kStepId, e.step_id, &headers);
  if (e.undo) AddHeader(kUndo, "true", &headers);
  AddHeader(kOutcome, OutcomeText(e.outcome), &headers);
  AddHeader(kReplyTo, e.reply_to, &headers);
  if (e.version != 0) AddHeader(kVersion, absl::StrCat(e.version), &headers);
  if (!e.traceparent.empty()) headers.emplace_back("traceparent", Escape(e.traceparent));
  headers.emplace_back("content-type", kBinaryContentType);
  return headers;
}

// ---------------------------------------------------------------- decoding

// Where a message was: what the subject says of all its envelopes.
struct Place {
  Kind kind = Kind::kEvent;
  absl::string_view name;  // command and answer: to; event: the source
};

absl::StatusOr<Place> ParseSubject(absl::string_view subject) {
  Place place;
  place.name = subject;
  if (absl::ConsumePrefix(&place.name, "gaekju.command.")) {
    place.kind = Kind::kCommand;
  } else if (absl::ConsumePrefix(&place.name, "gaekju.answer.")) {
    place.kind = Kind::kAnswer;
  } else if (absl::ConsumePrefix(&place.name, "gaekju.event.")) {
    place.kind = Kind::kEvent;
  } else {
    place.name = {};
  }
  if (place.name.empty() || absl::StrContains(place.name, '.')) {
    return absl::InvalidArgumentError(absl::StrCat("not a subject of ours: '", subject, "'"));
  }
  return place;
}

// An event while it is read: views into the message.
struct Raw {
  absl::string_view spec_version, source;
  absl::string_view subject, content_type;
  bool has_payload = false;
};

absl::Status SetVersion(absl::string_view text, Envelope* e) {
  if (!absl::SimpleAtoi(text, &e->version) || e->version < 0) {
    return absl::InvalidArgumentError(absl::StrCat("version is not a number: '", text, "'"));
  }
  return absl::OkStatus();
}

absl::Status SetOutcome(absl::string_view text, Envelope* e) {
  if (!ParseOutcome(text, &e->outcome)) {
    return absl::InvalidArgumentError(
        absl::StrCat("outcome is none of DONE, REFUSED, PENDING: '", text, "'"));
  }
  return absl::OkStatus();
}

bool IsProtobuf(absl::string_view content_type) {
  content_type = absl::StripAsciiWhitespace(content_type.substr(0, content_type.find(';')));
  return content_type.empty() || absl::EqualsIgnoreCase(content_type, kBinaryContentType) ||
         absl::EqualsIgnoreCase(content_type, "application/x-protobuf") ||
         absl::EqualsIgnoreCase(content_type, "application/vnd.google.protobuf");
}

// UTF-8 without NUL: such texts become keys of rows, and PostgreSQL refuses a whole turn for one
// that is not.
bool IsText(absl::string_view text) {
  const auto* p = reinterpret_cast<const uint8_t*>(text.data());
  const uint8_t* const end = p + text.size();
  while (p != end) {
    const uint8_t lead = *p++;
    if (lead == 0) return false;
    if (lead < 0x80) continue;
    const int more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    if (lead < 0xc2 || lead > 0xf4 || end - p < more) return false;
    uint32_t code = lead & (0x3f >> more);
    for (int i = 0; i < more; ++i) {
      if ((*p & 0xc0) != 0x80) return false;
      code = code << 6 | (*p++ & 0x3f);
    }
    constexpr uint32_t kLeast[] = {0, 0x80, 0x800, 0x10000};
    if (code < kLeast[more] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) return false;
  }
  return true;
}

// Checks what both modes must have, and fills what follows from the place.
absl::Status Finish(const Place& place, const Raw& raw, DecodedEnvelope* out) {
  Envelope& e = out->envelope;
  if (raw.spec_version != kSpecVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("specversion is not 1.0: '", raw.spec_version, "'"));
  }
  if (out->id.empty()) return absl::InvalidArgumentError("id is missing");
  if (e.type.empty()) return absl::InvalidArgumentError("type is missing");
  if (raw.source.empty()) return absl::InvalidArgumentError("source is missing");
  if (!IsProtobuf(raw.content_type)) {
    return absl::InvalidArgumentError(
        absl::StrCat("datacontenttype is not ", kBinaryContentType, ": '", raw.content_type, "'"));
  }
  out->source = std::string(absl::StripPrefix(raw.source, kSourcePrefix));
  e.kind = place.kind;
  switch (place.kind) {
    case Kind::kEvent:
      // The server's permissions are by subject, so a source may not speak for another.
      if (out->source != place.name) {
        return absl::InvalidArgumentError(
            absl::StrCat("source '", raw.source, "' on the subject of ", place.name));
      }
      e.resource = std::string(raw.subject);
      break;
    case Kind::kCommand:
      e.to = std::string(place.name);
      break;
    case Kind::kAnswer:
      e.to = std::string(place.name);
      if (e.outcome == flow::v1::OUTCOME_UNSPECIFIED)
        return absl::InvalidArgumentError("an answer without outcome");
      break;
  }
  for (const std::string* text : {&out->id, &out->source, &e.type, &e.order_id, &e.step_id,
                                  &e.reply_to, &e.resource, &e.traceparent}) {
    if (!IsText(*text))
      return absl::InvalidArgumentError("an attribute is not UTF-8, or has a NUL in it");
  }
  if (place.kind != Kind::kEvent && (e.order_id.empty() || e.step_id.empty())) {
    return absl::InvalidArgumentError("orderid or stepid is missing");
  }
  return absl::OkStatus();
}

// One entry of `attributes`.
absl::Status ReadAttribute(absl::string_view entry, Raw* raw, Envelope* e) {
  absl::string_view name, value;
  Reader fields(entry);
  while (fields.Next()) {
    if (fields.Is(1, kBytes)) name = fields.bytes();
    if (fields.Is(2, kBytes)) value = fields.bytes();
  }
  absl::string_view text;
  uint64_t number = 0;
  bool is_number = false;
  absl::string_view timestamp;
  Reader attribute(value);
  while (attribute.Next()) {
    if (attribute.Is(kCeString, kBytes) || attribute.Is(kCeUri, kBytes) ||
        attribute.Is(kCeUriRef, kBytes)) {
      text = attribute.bytes();
    } else if (attribute.Is(kCeBoolean, kVarint) || attribute.Is(kCeInteger, kVarint)) {
      number = attribute.value();
      is_number = true;
    } else if (attribute.Is(kCeTimestamp, kBytes)) {
      timestamp = attribute.bytes();
    }
  }
  if (!fields.ok() || !attribute.ok()) return absl::InvalidArgumentError("an attribute is broken");

  if (name == kOrderId) {
    e->order_id = std::string(text);
  } else if (name == kSubject) {
    raw->subject = text;
  } else if (name == kStepId) {
    e->step_id = std::string(text);
  } else if (name == kTraceparent) {
    e->traceparent = std::string(text);
  } else if (name == kReplyTo) {
    e->reply_to = std::string(text);
  } else if (name == kUndo) {
    e->undo = is_number ? number != 0 : absl::EqualsIgnoreCase(text, "true");
  } else if (name == kOutcome) {
    return SetOutcome(text, e);
  } else if (name == kVersion) {
    if (!is_number) return SetVersion(text, e);
    e->version = static_cast<int32_t>(number);
    if (e->version < 0) return absl::InvalidArgumentError("version is negative");
  } else if (name == kTime) {
    int64_t seconds = 0, nanos = 0;
    Reader parts(timestamp);
    while (parts.Next()) {
      if (parts.Is(1, kVarint)) seconds = static_cast<int64_t>(parts.value());
      if (parts.Is(2, kVarint)) nanos = static_cast<int64_t>(parts.value());
    }
    // The range of google.protobuf.Timestamp.
    if (!parts.ok() || seconds < -62'135'596'800 || seconds > 253'402'300'799 || nanos < 0 ||
        nanos > 999'999'999) {
      return absl::InvalidArgumentError("time is broken");
    }
    e->time_us = seconds * 1'000'000 + nanos / 1000;
  } else if (name == kDataContentType) {
    raw->content_type = text;
  }  // others are not ours: CloudEvents asks to ignore them
  return absl::OkStatus();
}

absl::Status ReadEvent(const Place& place, absl::string_view bytes, DecodedEnvelope* out) {
  Raw raw;
  Envelope& e = out->envelope;
  Reader fields(bytes);
  while (fields.Next()) {
    if (fields.Is(kAttributes, kBytes)) {
      if (absl::Status status = ReadAttribute(fields.bytes(), &raw, &e); !status.ok())
        return status;
    } else if (fields.Is(kId, kBytes)) {
      out->id = std::string(fields.bytes());
    } else if (fields.Is(kSourceField, kBytes)) {
      raw.source = fields.bytes();
    } else if (fields.Is(kSpecVersionField, kBytes)) {
      raw.spec_version = fields.bytes();
    } else if (fields.Is(kType, kBytes)) {
      e.type = std::string(fields.bytes());
    } else if (fields.Is(kBinaryData, kBytes)) {
      e.payload = std::string(fields.bytes());
    } else if (fields.Is(kProtoData,
                         kBytes)) {  // as SDKs of other languages like to send it: an Any
      Reader any(fields.bytes());
      while (any.Next()) {
        if (any.Is(2, kBytes)) e.payload = std::string(any.bytes());
      }
      if (!any.ok()) return absl::InvalidArgumentError("proto_data is broken");
    } else if (fields.Is(kTextData, kBytes)) {
      return absl::InvalidArgumentError("the payload is text; it has to be Protobuf");
    }
  }
  if (!fields.ok()) return absl::InvalidArgumentError("a CloudEvent is broken");
  return Finish(place, raw, out);
}

absl::Status ReadHeaders(const Place& place, const Headers& headers, absl::string_view body,
                         DecodedEnvelope* out) {
  Envelope& e = out->envelope;
  std::string spec_version, source, subject, content_type;
  for (const auto& [name, escaped] : headers) {
    absl::string_view attribute = name;
    if (absl::EqualsIgnoreCase(name, "traceparent")) {
      e.traceparent = Unescape(escaped);
      continue;
    }
    if (attribute.size() < 3 || !absl::EqualsIgnoreCase(attribute.substr(0, 3), "ce-")) continue;
    const std::string key = absl::AsciiStrToLower(attribute.substr(3));
    std::string value = Unescape(escaped);
    if (key == "id") {
      out->id = std::move(value);
    } else if (key == "source") {
      source = std::move(value);
    } else if (key == "specversion") {
      spec_version = std::move(value);
    } else if (key == "type") {
      e.type = std::move(value);
    } else if (key == kTime) {
      google::protobuf::Timestamp time;
      if (!google::protobuf::util::TimeUtil::FromString(value, &time)) {
        return absl::InvalidArgumentError(absl::StrCat("time is not RFC 3339: '", value, "'"));
      }
      e.time_us = flow::ToMicros(time);
    } else if (key == kSubject) {
      subject = std::move(value);
    } else if (key == kOrderId) {
      e.order_id = std::move(value);
    } else if (key == kStepId) {
      e.step_id = std::move(value);
    } else if (key == kUndo) {
      e.undo = absl::EqualsIgnoreCase(value, "true");
    } else if (key == kOutcome) {
      if (absl::Status status = SetOutcome(value, &e); !status.ok()) return status;
    } else if (key == kReplyTo) {
      e.reply_to = std::move(value);
    } else if (key == kVersion) {
      if (absl::Status status = SetVersion(value, &e); !status.ok()) return status;
    } else if (key == kTraceparent) {
      if (e.traceparent.empty()) e.traceparent = std::move(value);
    } else if (key == kDataContentType) {
      content_type = std::move(value);
    }
  }
  Raw raw;
  raw.spec_version = spec_version;
  raw.source = source;
  raw.subject = subject;
  raw.content_type = content_type;
  e.payload = std::string(body);
  return Finish(place, raw, out);
}

}  // namespace

// ---------------------------------------------------------------- encoding

std::vector<EncodedMessage> EncodeTurn(absl::string_view source,
                                       absl::Span<const Envelope> envelopes,
                                       absl::string_view id_prefix) {
  // A message that is being filled. The first envelope waits: alone it travels in binary mode.
  struct Open {
    EncodedMessage message;
    size_t first = 0;  // index of the first envelope
    absl::flat_hash_set<absl::string_view> resources;
  };
  std::vector<Open> open;
  absl::flat_hash_map<std::string, size_t> by_subject;  // -> the one in `open` that takes more
  std::string id, event;
  for (size_t i = 0; i < envelopes.size(); ++i) {
    const Envelope& e = envelopes[i];
    GK_CHECK(e.kind == Kind::kEvent || !e.to.empty())
        << "a command or an answer to nobody: " << e.type;
    id.assign(id_prefix.data(), id_prefix.size());
    absl::StrAppend(&id, ".", i);
    event.clear();
    PutEvent(source, id, e, &event);
    const size_t size = 1 + VarintSize(event.size()) + event.size();

    auto [entry, added] = by_subject.try_emplace(BusSubject(source, e), open.size());
    if (!added) {
      const EncodedMessage& last = open[entry->second].message;
      if (last.event_count == kBatchEventsMax || last.body.size() + size > kBatchBytesMax) {
        entry->second = open.size();
        added = true;
      }
    }
    if (added) {
      open.emplace_back();
      open.back().message.subject = entry->first;
      open.back().first = i;
    }
    Open& target = open[entry->second];
    PutBytes(1, event, &target.message.body);  // CloudEventBatch.events
    ++target.message.event_count;
    if (!e.resource.empty() && target.resources.insert(e.resource).second)
      target.message.resources.push_back(e.resource);
  }

  std::vector<EncodedMessage> messages;
  messages.reserve(open.size());
  for (Open& o : open) {
    if (o.message.event_count == 1) {
      const Envelope& e = envelopes[o.first];
      o.message.headers = BinaryHeaders(source, absl::StrCat(id_prefix, ".", o.first), e);
      o.message.body = e.payload;
    } else {
      o.message.headers.emplace_back("content-type", kBatchContentType);
    }
    messages.push_back(std::move(o.message));
  }
  return messages;
}

std::vector<ReadEnvelope> ReadMessage(absl::string_view subject, const Headers& headers,
                                      absl::string_view body) {
  std::vector<ReadEnvelope> out;
  absl::StatusOr<Place> place = ParseSubject(subject);
  if (!place.ok()) {
    out.emplace_back().status = place.status();
    return out;
  }
  absl::string_view content_type;
  for (const auto& [name, value] : headers) {
    if (absl::EqualsIgnoreCase(name, "content-type")) content_type = value;
  }
  content_type = absl::StripAsciiWhitespace(content_type.substr(0, content_type.find(';')));

  if (absl::EqualsIgnoreCase(content_type, kBatchContentType)) {
    Reader events(body);
    size_t whole = 0;  // bytes before the field that is being read
    int index = 0;
    for (; events.Next(); whole = events.position()) {
      if (!events.Is(1, kBytes)) continue;
      const absl::string_view part = body.substr(whole, events.position() - whole);
      ReadEnvelope& one = out.emplace_back();
      one.decoded.envelope.kind = place->kind;
      one.part = part;
      one.status = ReadEvent(*place, events.bytes(), &one.decoded);
      if (!one.status.ok()) {
        one.status = absl::InvalidArgumentError(
            absl::StrCat("event ", index, " of the batch: ", one.status.message()));
      }
      ++index;
    }
    if (!events.ok()) {
      ReadEnvelope& rest = out.emplace_back();
      rest.status = absl::InvalidArgumentError("the CloudEventBatch is broken");
      rest.part = body.substr(whole);
    }
    return out;
  }
  ReadEnvelope& one = out.emplace_back();
  one.decoded.envelope.kind = place->kind;
  if (absl::EqualsIgnoreCase(content_type,
                             "application/cloudevents+protobuf")) {  // structured mode: one event
    one.status = ReadEvent(*place, body, &one.decoded);
  } else if (absl::StartsWithIgnoreCase(content_type, "application/cloudevents") ||
             !IsProtobuf(content_type)) {
    one.status = absl::InvalidArgumentError(
        absl::StrCat("content-type is not supported: '", content_type, "'"));
  } else {
    one.status = ReadHeaders(*place, headers, body, &one.decoded);
  }
  return out;
}

absl::StatusOr<std::vector<DecodedEnvelope>> DecodeMessage(absl::string_view subject,
                                                           const Headers& headers,
                                                           absl::string_view body) {
  std::vector<DecodedEnvelope> out;
  for (ReadEnvelope& one : ReadMessage(subject, headers, body)) {
    if (!one.status.ok()) return one.status;
    out.push_back(std::move(one.decoded));
  }
  return out;
}

}  // namespace gaekju::runtime
