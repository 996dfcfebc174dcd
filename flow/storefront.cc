#include "flow/storefront.h"

#include <algorithm>
#include <deque>
#include <iterator>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "flow/check.h"
#include "flow/request.h"
#include "flow/turn.h"
#include "gaekju/flow/v1/closing.pb.h"
#include "gaekju/flow/v1/step.pb.h"
#include "gaekju/order/v1/order.pb.h"
#include "gaekju/storefront/v1/storefront.pb.h"
#include "google/protobuf/descriptor_database.h"
#include "google/protobuf/dynamic_message.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/text_format.h"

namespace gaekju::flow {
namespace {

namespace v1 = gaekju::storefront::v1;
using google::protobuf::Descriptor;
using google::protobuf::DescriptorPool;
using google::protobuf::FieldDescriptor;
using google::protobuf::MethodDescriptor;
using google::protobuf::ServiceDescriptor;
using google::protobuf::TextFormat;
using Tree = TextFormat::ParseInfoTree;

constexpr int kNestingDepth_max = 64;
constexpr int kSteps_max = 100;  // of place and cancel together; also what one `after` may name
constexpr int kStatuses_max = 100;
constexpr int kNotices_max = 100;
constexpr char kNoticeCall[] = "notification.Notify";
constexpr size_t kMistakes_max = 100;  // that are told
constexpr int64_t kDeadlineDefault_us = 2'000'000;
constexpr int64_t kDeadline_us_min = 10'000;
constexpr int64_t kDeadline_us_max = 60'000'000;
constexpr int64_t kExpiry_us_max = int64_t{366} * 86'400 * 1'000'000;
constexpr char kAnyPrefix[] = "type.googleapis.com/";

// ---- words

std::string Quoted(absl::string_view text) { return absl::StrCat("\"", text, "\""); }

// Edits that turn one word into the other, without regard to case.
int EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<int> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const bool same = absl::ascii_tolower(a[i - 1]) == absl::ascii_tolower(b[j - 1]);
      const int replaced = diagonal + (same ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

// "; did you mean "<prefix><word>"?" for the candidate that is spelt most alike, or "".
std::string DidYouMean(absl::string_view word, const std::vector<std::string>& candidates,
                       absl::string_view prefix = "") {
  if (word.size() > 64) return "";
  int best = std::max<int>(2, static_cast<int>(word.size()) / 3) + 1;
  const std::string* found = nullptr;
  for (const std::string& candidate : candidates) {
    const int distance = EditDistance(word, candidate);
    if (distance < best && distance < static_cast<int>(candidate.size())) {
      best = distance;
      found = &candidate;
    }
  }
  return found == nullptr ? "" : absl::StrCat("; did you mean \"", prefix, *found, "\"?");
}

// As above, and then all that there is to choose from.
std::string Choices(absl::string_view word, const std::vector<std::string>& candidates,
                    absl::string_view has, absl::string_view prefix = "") {
  const std::string meant = DidYouMean(word, candidates, prefix);
  return absl::StrCat(
      meant, meant.empty() ? ". " : " ", has, " ",
      candidates.empty() ? "nothing that would do" : absl::StrJoin(candidates, ", "));
}

template <class Predicate>
bool Matches(absl::string_view text, size_t size_max, Predicate predicate) {
  return !text.empty() && text.size() <= size_max && absl::c_all_of(text, predicate);
}

bool IsStorefrontId(absl::string_view id) {
  return Matches(
      id, 32, [](char c) { return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-'; });
}

bool IsStepId(absl::string_view id) {
  return Matches(id, 32, [](char c) {
    return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-' || c == '_';
  });
}

bool IsCurrencyCode(absl::string_view code) {
  return code.size() == 3 && Matches(code, 3, [](char c) { return absl::ascii_isupper(c); });
}

bool IsUpperSnakeCase(absl::string_view code) {
  return Matches(
             code, 64,
             [](char c) { return absl::ascii_isupper(c) || absl::ascii_isdigit(c) || c == '_'; }) &&
         absl::ascii_isupper(code.front()) && code.back() != '_' && !absl::StrContains(code, "__");
}

// Bytes of the well-formed UTF-8 sequence at the beginning; 0 when it is not one (RFC 3629).
size_t Utf8SequenceLength(absl::string_view text) {
  const auto byte = [text](size_t i) {
    return i < text.size() ? static_cast<uint8_t>(text[i]) : 0;
  };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  size_t length = 0;
  uint8_t low = 0x80, high = 0xbf;
  if (lead >= 0xc2 && lead <= 0xdf) length = 2;
  if (lead >= 0xe0 && lead <= 0xef) length = 3;
  if (lead >= 0xf0 && lead <= 0xf4) length = 4;
  if (lead == 0xe0) low = 0xa0;
  if (lead == 0xed) high = 0x9f;
  if (lead == 0xf0) low = 0x90;
  if (lead == 0xf4) high = 0x8f;
  if (length == 0 || byte(1) < low || byte(1) > high) return 0;
  for (size_t i = 2; i < length; ++i) {
    if (byte(i) < 0x80 || byte(i) > 0xbf) return 0;
  }
  return length;
}

// Where the first byte stands that is not UTF-8; npos for none.
size_t FirstNonUtf8(absl::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const size_t length = Utf8SequenceLength(text.substr(i));
    if (length == 0) return i;
    i += length;
  }
  return absl::string_view::npos;
}

bool IsUtf8(absl::string_view text) { return FirstNonUtf8(text) == absl::string_view::npos; }

// ---- places in the text

// Counted from 0, as Protobuf's tokenizer counts: bytes, and a tab goes to the next multiple of 8.
struct Position {
  int line = 0;
  int column = 0;
  bool operator<(const Position& o) const {
    return std::tie(line, column) < std::tie(o.line, o.column);
  }
};

Position Next(Position at, char c) {
  if (c == '\n') return {at.line + 1, 0};
  if (c == '\t') return {at.line, at.column + 8 - at.column % 8};
  return {at.line, at.column + 1};
}

Position PositionOf(absl::string_view text, size_t offset) {
  Position at;
  for (char c : text.substr(0, offset)) at = Next(at, c);
  return at;
}

size_t OffsetOf(absl::string_view text, Position wanted) {
  Position at;
  for (size_t i = 0; i < text.size(); ++i) {
    if (!(at < wanted)) return i;
    at = Next(at, text[i]);
  }
  return text.size();
}

bool IsWordCharacter(char c) { return absl::ascii_isalnum(c) || c == '_'; }

// Where `word` stands for the last time before `end`, by itself; `end` when nowhere.
size_t LastWordBefore(absl::string_view text, absl::string_view word, size_t end) {
  for (size_t at = end; !word.empty() && at > 0;) {
    at = text.substr(0, end).rfind(word, at - 1);
    if (at == absl::string_view::npos) break;
    const size_t after = at + word.size();
    const bool begins = at == 0 || !IsWordCharacter(text[at - 1]) || !IsWordCharacter(word.front());
    const bool ends =
        after >= text.size() || !IsWordCharacter(text[after]) || !IsWordCharacter(word.back());
    if (begins && ends) return at;
  }
  return end;
}

// ---- mistakes

class Mistakes {
 public:
  void Add(Position at, std::string what) {
    if (!full()) {
      found_.push_back({at, std::move(what)});
    } else {
      ++untold_count_;
    }
  }
  bool empty() const { return found_.empty(); }
  bool full() const { return found_.size() >= kMistakes_max; }
  absl::Status ToStatus(absl::string_view file_name) {
    absl::c_stable_sort(found_, [](const auto& a, const auto& b) { return a.first < b.first; });
    std::vector<std::string> lines;
    for (const auto& [at, what] : found_) {
      lines.push_back(absl::StrCat(file_name, ":", at.line + 1, ":", at.column + 1, ": ", what));
    }
    if (untold_count_ > 0)
      lines.push_back(absl::StrCat(file_name, ": and ", untold_count_, " more"));
    return absl::InvalidArgumentError(absl::StrJoin(lines, "\n"));
  }

 private:
  int64_t untold_count_ = 0;
  std::vector<std::pair<Position, std::string>> found_;
};

// ---- contexts

// Where methods and messages are looked up: what is linked in comes first, because it needs no
// dynamic messages.
class Contracts : public TextFormat::Finder {
 public:
  explicit Contracts(const DescriptorPool& pool) : pool_(pool) {}

  const Descriptor* FindMessage(const std::string& name) const {
    const Descriptor* found = DescriptorPool::generated_pool()->FindMessageTypeByName(name);
    return found != nullptr ? found : pool_.FindMessageTypeByName(name);
  }
  const MethodDescriptor* FindMethod(const std::string& name) const {
    const MethodDescriptor* found = DescriptorPool::generated_pool()->FindMethodByName(name);
    return found != nullptr ? found : pool_.FindMethodByName(name);
  }
  const ServiceDescriptor* FindService(const std::string& name) const {
    const ServiceDescriptor* found = DescriptorPool::generated_pool()->FindServiceByName(name);
    const ServiceDescriptor* other = pool_.FindServiceByName(name);
    return other != nullptr && (found == nullptr || other->method_count() > found->method_count())
               ? other
               : found;
  }
  const Descriptor* FindAnyType(const google::protobuf::Message&, const std::string& prefix,
                                const std::string& name) const override {
    return prefix == kAnyPrefix ? FindMessage(name) : nullptr;
  }

 private:
  const DescriptorPool& pool_;
};

bool IsStep(const MethodDescriptor& method) {
  return method.options().HasExtension(gaekju::flow::v1::step);
}

std::vector<std::string> StepsOf(const ServiceDescriptor& service) {
  std::vector<std::string> steps;
  for (int i = 0; i < service.method_count(); ++i) {
    if (IsStep(*service.method(i))) steps.emplace_back(service.method(i)->name());
  }
  return steps;
}

// "order_view" -> "OrderView".
std::string CamelCase(absl::string_view name) {
  std::string camel;
  for (absl::string_view part : absl::StrSplit(name, '_', absl::SkipEmpty())) {
    camel.push_back(absl::ascii_toupper(part.front()));
    absl::StrAppend(&camel, part.substr(1));
  }
  return camel;
}

std::string ServiceName(absl::string_view context) {
  return absl::StrCat("gaekju.", context, ".v1.", CamelCase(context), "Service");
}

// The last part of the service's package that is not its version: gaekju.payment.v1.PaymentService
// -> payment.
std::string ContextOf(const ServiceDescriptor& service) {
  std::vector<std::string> parts = absl::StrSplit(std::string(service.file()->package()), '.');
  const auto is_version = [](absl::string_view part) {
    return part.size() > 1 && part[0] == 'v' && absl::ascii_isdigit(part[1]);
  };
  while (parts.size() > 1 && is_version(parts.back())) parts.pop_back();
  return parts.back();
}

// The contexts that are linked in and have steps. Those of another pool cannot be listed.
std::vector<std::string> LinkedContexts() {
  std::vector<std::string> files, contexts;
  DescriptorPool::internal_generated_database()->FindAllFileNames(&files);
  for (const std::string& name : files) {
    if (!absl::StartsWith(name, "gaekju/")) continue;
    const auto* file = DescriptorPool::generated_pool()->FindFileByName(name);
    for (int i = 0; file != nullptr && i < file->service_count(); ++i) {
      if (!StepsOf(*file->service(i)).empty()) contexts.push_back(ContextOf(*file->service(i)));
    }
  }
  absl::c_sort(contexts);
  contexts.erase(std::unique(contexts.begin(), contexts.end()), contexts.end());
  return contexts;
}

// Where brackets nest deeper than `depth_max`; npos for nowhere. (Protobuf 3.21 does not count
// messages in google.protobuf.Any.)
size_t FirstTooDeep(absl::string_view text, int depth_max) {
  int depth = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '#') {
      i = std::min(text.find('\n', i), text.size());
    } else if (c == '"' || c == '\'') {
      for (++i; i < text.size() && text[i] != c && text[i] != '\n'; ++i)
        i += text[i] == '\\' ? 1 : 0;
    } else if (c == '{' || c == '<' || c == '[') {
      if (++depth > depth_max) return i;
    } else if (c == '}' || c == '>' || c == ']') {
      depth = std::max(depth - 1, 0);
    }
  }
  return absl::string_view::npos;
}

// ---- spelling: what Protobuf's parser finds, said in the words of this format

// Collects what the parser reports. (Protobuf 3.21 calls AddError and AddWarning, later versions
// RecordError and RecordWarning.)
class Spelling : public google::protobuf::io::ErrorCollector {
 public:
  struct Report {
    Position at;
    std::string text;
  };
  void AddError(int line, int column, const std::string& text) { RecordError(line, column, text); }
  void AddWarning(int line, int column, const std::string& text) {
    RecordError(line, column, text);
  }
  void RecordError(int line, int column, absl::string_view text) {
    reports_.push_back({{std::max(line, 0), std::max(column, 0)}, std::string(text)});
  }
  void RecordWarning(int line, int column, absl::string_view text) {
    RecordError(line, column, text);
  }
  const std::vector<Report>& reports() const { return reports_; }

 private:
  std::vector<Report> reports_;
};

// Takes what stands between `before` and `after` from the front of the text.
bool Take(absl::string_view* text, absl::string_view before, absl::string_view after,
          std::string* taken) {
  absl::string_view rest = *text;
  if (!absl::ConsumePrefix(&rest, before)) return false;
  const size_t end = rest.find(after);
  if (end == absl::string_view::npos) return false;
  *taken = std::string(rest.substr(0, end));
  *text = rest.substr(end + after.size());
  return true;
}

// The type of the constants that `offset` stands in; null when it stands in none.
const Descriptor* ConstantsAround(absl::string_view text, size_t offset,
                                  const Contracts& contracts) {
  const size_t start = text.substr(0, offset).rfind(kAnyPrefix);
  if (start == absl::string_view::npos) return nullptr;
  const size_t end = text.find(']', start);
  if (end == absl::string_view::npos || end > offset) return nullptr;
  int depth = 0;
  for (char c : text.substr(end, offset - end))
    depth += c == '{' || c == '<' ? 1 : c == '}' || c == '>' ? -1 : 0;
  if (depth <= 0) return nullptr;
  return contracts.FindMessage(std::string(absl::StripAsciiWhitespace(
      text.substr(start + sizeof(kAnyPrefix) - 1, end - start - sizeof(kAnyPrefix) + 1))));
}

// The values of the enum that a field of this name has, in `message` or in its fields.
std::vector<std::string> EnumValues(const Descriptor& message, const std::string& field_name,
                                    int depth) {
  std::vector<std::string> values;
  const FieldDescriptor* field = message.FindFieldByName(field_name);
  if (field != nullptr && field->enum_type() != nullptr) {
    for (int i = 0; i < field->enum_type()->value_count(); ++i) {
      if (field->enum_type()->value(i)->number() != 0)
        values.emplace_back(field->enum_type()->value(i)->name());
    }
  }
  for (int i = 0; values.empty() && depth > 0 && i < message.field_count(); ++i) {
    if (message.field(i)->message_type() != nullptr) {
      values = EnumValues(*message.field(i)->message_type(), field_name, depth - 1);
    }
  }
  return values;
}

// What a parser's report means, and where. The parser often points behind the word it speaks of;
// `at` comes back on the word.
std::string Explain(absl::string_view text, const Contracts& contracts, absl::string_view report,
                    Position* at) {
  const size_t offset = OffsetOf(text, *at);
  const auto point_to = [&](absl::string_view word) {
    *at = PositionOf(text, LastWordBefore(text, word, offset));
  };
  std::string a, b;
  absl::string_view rest = report;
  if (Take(&rest, "Message type \"", "\" has no field named \"", &a) &&
      Take(&rest, "", "\".", &b)) {
    point_to(b);
    std::vector<std::string> fields;
    const Descriptor* message = contracts.FindMessage(a);
    for (int i = 0; message != nullptr && i < message->field_count(); ++i)
      fields.emplace_back(message->field(i)->name());
    const absl::string_view name = absl::string_view(a).substr(a.rfind('.') + 1);
    return absl::StrCat("unknown field ", Quoted(b),
                        Choices(b, fields, absl::StrCat(name, " has:")));
  }
  if (Take(&rest, "Ignoring extension \"", "\" which is not defined", &a)) {
    point_to("[");
    return absl::StrCat("unknown field [", a, "]; only `with` takes a name in brackets: with { [",
                        kAnyPrefix, "<type>] { … } }");
  }
  if (Take(&rest, "Unknown enumeration value of \"", "\" for field \"", &a) &&
      Take(&rest, "", "\".", &b)) {
    point_to(a);
    const Descriptor* around = ConstantsAround(text, offset, contracts);
    const auto values =
        EnumValues(around != nullptr ? *around : *v1::Storefront::descriptor(), b, 3);
    return absl::StrCat(b, ": unknown value ", Quoted(a), Choices(a, values, "It is one of:"));
  }
  if (Take(&rest, "Non-repeated field \"", "\" is specified multiple times.", &a)) {
    point_to(a);
    return absl::StrCat(Quoted(a), " is given twice; leave one out");
  }
  if (Take(&rest, "Field \"", "\" is specified along with field \"", &a) &&
      Take(&rest, "", "\"", &b)) {
    point_to(a);
    return absl::StrCat(Quoted(a), " and ", Quoted(b), " are given together; leave one out");
  }
  if (Take(&rest, "Could not find type \"", "\"", &a)) {
    point_to("[");
    if (!absl::StartsWith(a, kAnyPrefix)) {
      return absl::StrCat("unknown type ", Quoted(a), "; write [", kAnyPrefix,
                          a.substr(a.rfind('/') + 1), "]");
    }
    return absl::StrCat("unknown type ", Quoted(a.substr(sizeof(kAnyPrefix) - 1)),
                        "; write the full name of the request that the step's call takes");
  }
  if (absl::StartsWith(report, "Non-repeated Any specified multiple times")) {
    return "`with` has two messages; leave one out";
  }
  if (Take(&rest, "Expected string, got: ", "\n", &a) ||
      absl::ConsumePrefix(&rest, "Expected string, got: ")) {
    return absl::StrCat("expected a text in quotes, found ", rest, "; write \"", rest, "\"");
  }
  if (Take(&rest, "Expected \"", "\", found \"", &a) && Take(&rest, "", "\".", &b)) {
    if (a == "/" && b == "]") {
      return absl::StrCat("expected \"/\", found \"]\"; write [", kAnyPrefix,
                          "<the type's full name>]");
    }
    return absl::StrCat("expected \"", a, "\", found ",
                        b.empty() ? "the end of the file" : Quoted(b));
  }
  if (absl::StartsWith(report, "String literals cannot cross line boundaries")) {
    return "a text ends on the line it begins on; close it with a quote";
  }
  if (Take(&rest, "Expected identifier, got: ", "\n", &a) ||
      absl::ConsumePrefix(&rest, "Expected identifier, got: ")) {
    return absl::StrCat("expected a field's name, found ",
                        rest.empty() ? "the end of the file; is a \"}\" missing?" : Quoted(rest));
  }
  std::string plain(absl::StripSuffix(report, "."));
  if (!plain.empty()) plain[0] = absl::ascii_tolower(plain[0]);
  return plain;
}

// ---- meaning

std::string SerializeDeterministically(const google::protobuf::Message& message) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    GK_CHECK(message.SerializePartialToCodedStream(&coded)) << message.GetTypeName();
  }
  return bytes;
}

const FieldDescriptor* StepField(int number) {
  return v1::Step::descriptor()->FindFieldByNumber(number);
}

// Where the index-th value of a field stands (-1: of a single one); `otherwise` when it does not.
Position At(const Tree* tree, const FieldDescriptor* field, int index, Position otherwise) {
  if (tree == nullptr) return otherwise;
  const auto at = tree->GetLocation(field, index);
  return at.line < 0 ? otherwise : Position{at.line, at.column};
}

// Microseconds; rounded down. -1 for what is negative or no duration.
int64_t Microseconds(const google::protobuf::Duration& duration) {
  constexpr int64_t kSeconds_max = 315'576'000'000;  // duration.proto
  if (duration.seconds() < 0 || duration.seconds() > kSeconds_max) return -1;
  if (duration.nanos() < 0 || duration.nanos() > 999'999'999) return -1;
  return duration.seconds() * 1'000'000 + duration.nanos() / 1000;
}

// Reads one storefront.
class Reader {
 public:
  Reader(absl::string_view text, absl::string_view file_name, const DescriptorPool& pool)
      : file_text_(text),
        text_(absl::StripPrefix(text, "\xef\xbb\xbf")),
        file_name_(file_name),
        contracts_(pool) {}

  absl::StatusOr<Plan> Read();

 private:
  // A step of a flow as the file has it, an undo, or a notice.
  struct Node {
    const v1::Step* step = nullptr;
    const Tree* tree = nullptr;
    Position at;
    std::string name;  // step "pay", undo "pay", step 3 of place, notice "tell"
    bool in_cancel = false;
    bool is_undo = false;
    bool is_notice = false;
    int plan_step = -1;              // the step, or the step it undoes; -1 when not known
    std::vector<int> after;          // nodes of the same flow
    std::vector<Position> after_at;  // where each is named
    bool after_is_known = true;
    bool buyer_waits = false;
    std::vector<const FieldDescriptor*> constants;
    std::vector<FieldCopy> from;

    // The field of a step, or that of a notice which has its name; null when a notice has none.
    const FieldDescriptor* FileField(int number) const {
      const FieldDescriptor* field = StepField(number);
      return is_notice ? v1::Notice::descriptor()->FindFieldByName(std::string(field->name()))
                       : field;
    }
    Position Field(int number) const {
      const FieldDescriptor* field = FileField(number);
      return field == nullptr ? at : At(tree, field, -1, at);
    }
  };

  bool Parse();
  void ReadHead();
  void ReadFlow(const v1::Flow& flow, const Tree* tree, bool in_cancel);
  void ReadStep(Node* node);
  void ReadUndo(Node* node);
  void ReadStepId(Node* node);
  void ReadCall(Node* node, PlanStep* step);
  const MethodDescriptor* FindCall(const Node& node);
  bool CheckRequest(const Node& node, const MethodDescriptor& method, bool is_undo);
  void ReadVia(const Node& node, v1::Via otherwise, v1::Via* via);
  void ReadDurations(const Node& node, PlanStep* step);
  void ReadConstants(Node* node, PlanStep* step);
  void ReadFrom(Node* node, const PlanStep& step);
  void ReadNotices();
  void ReadNotice(const v1::Notice& notice, const Tree* tree, Position at, int index);
  void ReadUnlessDone(const v1::Flow& flow, const Tree* tree, bool in_cancel);
  void ReadTryLater(const v1::Flow& flow, const Tree* tree, bool in_cancel);
  void ReadAfter(bool in_cancel);
  int FindNode(const std::string& id, bool in_cancel) const;
  void FindCycles(bool in_cancel);
  std::vector<std::vector<bool>> FindBefore() const;
  bool ComesAfterUndo(const std::vector<bool>& before) const;
  void FindHastyUndos();
  void FindGoodsKept();
  void FindHiddenWords();
  void FindWaiting();
  void ReadOnUnavailable(const Node& node);
  void CompileRequests();
  void ReadStatuses();
  void ReadStatus(const v1::StatusWord& word, const Tree* tree, int index);
  template <class Trigger, class Complain>
  PlanTrigger ReadWhen(const Trigger& file, const Complain& bad);
  void CollectInputs();
  void FillGraph();
  bool AwaitsOnlyKnown(int node) const;

  std::vector<std::string> StepIds(bool in_cancel) const;
  // Complains of a node.
  void Bad(const Node& node, Position at, absl::string_view what) {
    mistakes_.Add(at, absl::StrCat(node.name, ": ", what));
  }

  const absl::string_view file_text_;
  const absl::string_view text_;  // without the mark that some editors begin a file with
  const absl::string_view file_name_;
  const Contracts contracts_;
  v1::Storefront file_;
  Tree tree_;
  Mistakes mistakes_;
  std::vector<Node> nodes_;            // of place, then of cancel, then the notices
  std::deque<v1::Step> notice_steps_;  // the notices as steps, for their nodes
  bool has_cycle_ = false;
  Plan plan_;
};

absl::StatusOr<Plan> Reader::Read() {
  const absl::string_view file_name = file_name_.empty() ? "storefront" : file_name_;
  if (!Parse()) return mistakes_.ToStatus(file_name);
  plan_.revision = absl::StrCat(absl::Hex(FingerprintBytes(file_text_), absl::kZeroPad16));
  ReadHead();
  const FieldDescriptor* place =
      v1::Storefront::descriptor()->FindFieldByNumber(v1::Storefront::kPlaceFieldNumber);
  const FieldDescriptor* cancel =
      v1::Storefront::descriptor()->FindFieldByNumber(v1::Storefront::kCancelFieldNumber);
  if (file_.place().step().empty()) {
    mistakes_.Add(At(&tree_, place, -1, {}),
                  "place has no step; write place { step { id: \"…\" call: \"<context>.<Method>\" "
                  "via: GRPC } }");
  }
  ReadFlow(file_.place(), tree_.GetTreeForNested(place, -1), /*in_cancel=*/false);
  plan_.place_count = static_cast<int>(plan_.steps.size());
  plan_.has_cancel = file_.has_cancel();
  ReadFlow(file_.cancel(), tree_.GetTreeForNested(cancel, -1), /*in_cancel=*/true);
  ReadUnlessDone(file_.place(), tree_.GetTreeForNested(place, -1), /*in_cancel=*/false);
  ReadUnlessDone(file_.cancel(), tree_.GetTreeForNested(cancel, -1), /*in_cancel=*/true);
  ReadNotices();
  for (bool in_cancel : {false, true}) ReadAfter(in_cancel);
  for (bool in_cancel : {false, true}) FindCycles(in_cancel);
  FillGraph();
  if (!has_cycle_) FindWaiting();
  CompileRequests();
  ReadStatuses();
  ReadTryLater(file_.place(), tree_.GetTreeForNested(place, -1), /*in_cancel=*/false);
  ReadTryLater(file_.cancel(), tree_.GetTreeForNested(cancel, -1), /*in_cancel=*/true);
  CollectInputs();
  // A stored revision was served before, perhaps by a program that did not look for these; its
  // orders have to go on.
  if (!file_name_.empty()) {
    if (!has_cycle_) {
      FindHastyUndos();
      FindGoodsKept();
    }
    FindHiddenWords();
  }
  if (!mistakes_.empty()) return mistakes_.ToStatus(file_name);
  return std::move(plan_);
}

bool Reader::Parse() {
  if (text_.size() > kStorefrontBytes_max) {
    mistakes_.Add(
        {}, absl::StrCat("the file has ", text_.size(), " bytes; at most ", kStorefrontBytes_max));
    return false;
  }
  const size_t not_utf8 = FirstNonUtf8(text_);
  if (not_utf8 != absl::string_view::npos) {
    mistakes_.Add(PositionOf(text_, not_utf8), "this is not UTF-8; save the file as UTF-8");
    return false;
  }
  const size_t too_deep = FirstTooDeep(text_, kNestingDepth_max);
  if (too_deep != absl::string_view::npos) {
    mistakes_.Add(PositionOf(text_, too_deep),
                  absl::StrCat("this is nested too deep; at most ", kNestingDepth_max, " levels"));
    return false;
  }
  Spelling spelling;
  TextFormat::Parser parser;
  parser.RecordErrorsTo(&spelling);
  parser.WriteLocationsTo(&tree_);
  parser.SetFinder(&contracts_);
  parser.SetRecursionLimit(kNestingDepth_max);
  parser.AllowUnknownField(true);  // so that all of them are reported; each makes the file bad
  google::protobuf::io::ArrayInputStream stream(text_.data(), static_cast<int>(text_.size()));
  const bool parsed = parser.Parse(&stream, &file_);
  for (const Spelling::Report& report : spelling.reports()) {
    Position at = report.at;
    const std::string what = mistakes_.full() ? "" : Explain(text_, contracts_, report.text, &at);
    mistakes_.Add(at, what);
  }
  if (!parsed && mistakes_.empty()) mistakes_.Add({}, "this is not textproto");
  const int step_count = file_.place().step_size() + file_.cancel().step_size();
  if (step_count > kSteps_max) {
    mistakes_.Add(
        {}, absl::StrCat("place and cancel have ", step_count, " steps; at most ", kSteps_max));
  }
  if (file_.status_size() > kStatuses_max) {
    mistakes_.Add({}, absl::StrCat("there are ", file_.status_size(), " status words; at most ",
                                   kStatuses_max));
  }
  if (file_.notice_size() > kNotices_max) {
    mistakes_.Add(
        {}, absl::StrCat("there are ", file_.notice_size(), " notices; at most ", kNotices_max));
  }
  return mistakes_.empty();
}

void Reader::ReadHead() {
  const Descriptor* storefront = v1::Storefront::descriptor();
  const auto at = [&](int number) {
    return At(&tree_, storefront->FindFieldByNumber(number), -1, {});
  };
  absl::string_view stem = file_name_.substr(file_name_.rfind('/') + 1);
  stem = stem.substr(0, stem.rfind('.'));
  plan_.storefront = file_.id();
  if (file_.id().empty()) {
    mistakes_.Add(
        at(v1::Storefront::kIdFieldNumber),
        absl::StrCat("id is missing; write id: ", Quoted(IsStorefrontId(stem) ? stem : "my-shop")));
  } else if (!IsStorefrontId(file_.id())) {
    mistakes_.Add(at(v1::Storefront::kIdFieldNumber),
                  absl::StrCat("id ", Quoted(file_.id()),
                               " will not do; write 1 to 32 lower-case letters, digits and dashes",
                               IsStorefrontId(stem) ? absl::StrCat(": id: ", Quoted(stem)) : ""));
  } else if (!file_name_.empty() && file_.id() != stem) {
    mistakes_.Add(at(v1::Storefront::kIdFieldNumber),
                  absl::StrCat("id ", Quoted(file_.id()), " is not the file's name; write id: ",
                               Quoted(stem), ", or rename the file to ", file_.id(), ".textproto"));
  }
  plan_.currency_code = file_.currency_code();
  if (file_.currency_code().empty()) {
    mistakes_.Add(
        at(v1::Storefront::kCurrencyCodeFieldNumber),
        "currency_code is missing; write currency_code: \"KRW\", or another ISO 4217 code");
  } else if (!IsCurrencyCode(file_.currency_code())) {
    mistakes_.Add(
        at(v1::Storefront::kCurrencyCodeFieldNumber),
        absl::StrCat("currency_code ", Quoted(file_.currency_code()),
                     ": write the three capital letters of an ISO 4217 code, e.g. \"KRW\""));
  }
  if (!IsUtf8(file_.display_name().ko()) || !IsUtf8(file_.display_name().en())) {
    mistakes_.Add(at(v1::Storefront::kDisplayNameFieldNumber),
                  "display_name is not UTF-8; write the letters themselves");
  }
}

void Reader::ReadFlow(const v1::Flow& flow, const Tree* tree, bool in_cancel) {
  const FieldDescriptor* step_field =
      v1::Flow::descriptor()->FindFieldByNumber(v1::Flow::kStepFieldNumber);
  for (int i = 0; i < flow.step_size(); ++i) {
    Node node;
    node.step = &flow.step(i);
    node.tree = tree == nullptr ? nullptr : tree->GetTreeForNested(step_field, i);
    node.in_cancel = in_cancel;
    node.at = At(tree, step_field, i, At(tree, step_field, 0, {}));
    const v1::Step& step = *node.step;
    node.is_undo = in_cancel && !step.undo().empty() && step.call().empty();
    node.name = node.is_undo ? absl::StrCat("undo ", Quoted(step.undo()))
                : !step.id().empty()
                    ? absl::StrCat("step ", Quoted(step.id()))
                    : absl::StrCat("step ", i + 1, " of ", in_cancel ? "cancel" : "place");
    if (node.is_undo) {
      ReadUndo(&node);
    } else {
      ReadStep(&node);
    }
    nodes_.push_back(std::move(node));
  }
}

void Reader::ReadStep(Node* node) {
  const v1::Step& file = *node->step;
  PlanStep step;
  step.id = file.id();
  step.in_cancel = node->in_cancel;
  step.deadline_us = kDeadlineDefault_us;
  if (!file.undo().empty()) {
    Bad(*node, node->Field(v1::Step::kUndoFieldNumber),
        node->in_cancel ? "has both call and undo; a step of cancel has one of them"
                        : "undo stands in cancel only; write here what is to be done: call: "
                          "\"<context>.<Method>\"");
  }
  if (file.undo().empty() || !file.call().empty()) {  // else the above says it all
    ReadStepId(node);
    ReadCall(node, &step);
    ReadVia(*node, v1::VIA_UNSPECIFIED, &step.via);
    ReadDurations(*node, &step);
    ReadConstants(node, &step);
    ReadFrom(node, step);
  }
  node->plan_step = static_cast<int>(plan_.steps.size());
  plan_.steps.push_back(std::move(step));
}

void Reader::ReadStepId(Node* node) {
  const std::string& id = node->step->id();
  if (id.empty()) {
    Bad(*node, node->Field(v1::Step::kIdFieldNumber),
        absl::StrCat("id is missing; write id: \"…\", a name of your own for this ",
                     node->is_notice ? "notice" : "step"));
  } else if (!IsStepId(id)) {
    Bad(*node, node->Field(v1::Step::kIdFieldNumber),
        "this id will not do; write 1 to 32 lower-case letters, digits, dashes and underscores");
  } else {
    for (const Node& other : nodes_) {
      if (other.is_undo || other.step->id() != id) continue;
      Bad(*node, node->Field(v1::Step::kIdFieldNumber),
          absl::StrCat("there is another ", other.is_notice ? "notice" : "step",
                       " of this id in line ", other.at.line + 1, "; write another id"));
      break;
    }
  }
}

void Reader::ReadUndo(Node* node) {
  const v1::Step& file = *node->step;
  PlanUndo undo;
  for (int i = 0; i < plan_.place_count; ++i) {
    if (plan_.steps[i].id == file.undo()) undo.step = i;
  }
  const Position at = node->Field(v1::Step::kUndoFieldNumber);
  if (undo.step < 0) {
    Bad(*node, at,
        absl::StrCat("there is no such step in place",
                     Choices(file.undo(), StepIds(false), "place has:")));
  } else {
    const PlanStep& step = plan_.steps[undo.step];
    const bool twice = absl::c_any_of(
        plan_.cancel_undos, [&](const PlanUndo& other) { return other.step == undo.step; });
    if (twice) {
      Bad(*node, at, "is undone twice; leave one out");
    } else if (step.request != nullptr && step.undo_method.empty()) {
      Bad(*node, at,
          absl::StrCat("its call ", step.method.substr(step.method.rfind('.') + 1),
                       " has nothing to undo; leave this out"));
    }
    node->plan_step = undo.step;
  }
  if (file.from_size() > 0) {
    Bad(*node, At(node->tree, StepField(v1::Step::kFromFieldNumber), 0, node->at),
        "an undo is told only its order and step; leave from out");
  }
  const std::pair<int, absl::string_view> kUnwanted[] = {
      {v1::Step::kIdFieldNumber, "an undo goes by its step's id; leave id out"},
      {v1::Step::kExpiresAfterFieldNumber,
       "an undo is asked until it is done; leave expires_after out"},
      {v1::Step::kDeadlineFieldNumber, "an undo has its step's deadline; leave deadline out"},
      {v1::Step::kWithFieldNumber, "an undo is told only its order and step; leave with out"},
  };
  for (const auto& [number, what] : kUnwanted) {
    const Position none{-1, -1};
    const Position given = At(node->tree, StepField(number), -1, none);
    if (given.line >= 0) Bad(*node, given, what);
  }
  ReadVia(*node, v1::JETSTREAM, &undo.via);
  plan_.cancel_undos.push_back(std::move(undo));
}

void Reader::ReadVia(const Node& node, v1::Via otherwise, v1::Via* via) {
  const v1::Via given = node.step->via();
  *via = given == v1::VIA_UNSPECIFIED ? otherwise : given;
  if (*via == v1::GRPC || *via == v1::JETSTREAM) return;
  Bad(node, node.Field(v1::Step::kViaFieldNumber),
      absl::StrCat(given == v1::VIA_UNSPECIFIED
                       ? "via is missing"
                       : absl::StrCat("via: ", static_cast<int>(given), " is unknown"),
                   "; write via: GRPC (a call) or via: JETSTREAM (a command, nobody waits)"));
}

void Reader::ReadDurations(const Node& node, PlanStep* step) {
  const v1::Step& file = *node.step;
  if (file.has_expires_after()) {
    const Position at = node.Field(v1::Step::kExpiresAfterFieldNumber);
    step->expires_after_us = Microseconds(file.expires_after());
    if (step->expires_after_us <= 0) {
      Bad(node, at, "expires_after has to be above 0; write e.g. expires_after { seconds: 1800 }");
    } else if (step->expires_after_us > kExpiry_us_max) {
      Bad(node, at,
          "expires_after is above 366 days; write less, or leave it out to wait for ever");
    }
  }
  if (file.has_deadline()) {
    const Position at = node.Field(v1::Step::kDeadlineFieldNumber);
    step->deadline_us = Microseconds(file.deadline());
    if (step->deadline_us < kDeadline_us_min || step->deadline_us > kDeadline_us_max) {
      Bad(node, at, "deadline has to be from 10 ms to 60 s; write e.g. deadline { seconds: 2 }");
    } else if (step->via == v1::JETSTREAM) {
      Bad(node, at, "deadline is for via: GRPC, a command has none; leave it out");
    }
  }
}

// ---- calls

const MethodDescriptor* Reader::FindCall(const Node& node) {
  const std::string& call = node.step->call();
  const Position at = node.Field(v1::Step::kCallFieldNumber);
  const size_t dot = call.rfind('.');
  if (call.empty()) {
    Bad(node, at,
        node.in_cancel
            ? "has neither call nor undo; write call: \"<context>.<Method>\" or undo: \"<step of "
              "place>\""
            : "call is missing; write call: \"<context>.<Method>\", e.g. \"payment.Capture\"");
    return nullptr;
  }
  if (dot == std::string::npos || dot == 0 || dot + 1 == call.size()) {
    Bad(node, at,
        absl::StrCat("call ", Quoted(call),
                     " is not \"<context>.<Method>\", e.g. \"payment.Capture\""));
    return nullptr;
  }
  const std::string before = call.substr(0, dot);
  const std::string name = call.substr(dot + 1);
  const bool is_short = before.find('.') == std::string::npos;
  const std::string service_name = is_short ? ServiceName(before) : before;
  const MethodDescriptor* method = contracts_.FindMethod(absl::StrCat(service_name, ".", name));
  const ServiceDescriptor* service = contracts_.FindService(service_name);
  if (service == nullptr) {
    const std::vector<std::string> contexts = LinkedContexts();
    Bad(node, at,
        is_short ? absl::StrCat("unknown context ", Quoted(before), " in call ", Quoted(call),
                                Choices(before, contexts, "There are:"))
                 : absl::StrCat("unknown service ", Quoted(before), " in call ", Quoted(call),
                                "; is its contract in the descriptor set?"));
    return nullptr;
  }
  const std::string prefix = absl::StrCat(before, ".");
  if (method == nullptr) {
    Bad(node, at,
        absl::StrCat("unknown call ", Quoted(call),
                     Choices(name, StepsOf(*service), "It has:", prefix)));
    return nullptr;
  }
  if (!IsStep(*method)) {
    std::string why = absl::StrCat("call ", Quoted(call), " is not a step");
    for (int i = 0; i < service->method_count(); ++i) {
      const MethodDescriptor& other = *service->method(i);
      if (!IsStep(other) || other.options().GetExtension(gaekju::flow::v1::step).undo() != name)
        continue;
      absl::StrAppend(&why, " but takes ", prefix, other.name(),
                      " back: write it in cancel as undo: \"<step>\"");
    }
    Bad(node, at, absl::StrCat(why, Choices(name, StepsOf(*service), "It has:", prefix)));
    return nullptr;
  }
  return method;
}

// Whether the request of a step, or of an undo, can be filled by a saga.
bool Reader::CheckRequest(const Node& node, const MethodDescriptor& method, bool is_undo) {
  const Position at = node.Field(v1::Step::kCallFieldNumber);
  const Descriptor& request = *method.input_type();
  const std::string contract = absl::StrCat("its contract is wrong: ", request.full_name());
  bool good = true;
  for (const char* name : {"order_id", "step_id"}) {
    const FieldDescriptor* field = request.FindFieldByName(name);
    if (field != nullptr && field->type() == FieldDescriptor::TYPE_STRING && !field->is_repeated())
      continue;
    Bad(node, at, absl::StrCat(contract, " has no `string ", name, "`; add it"));
    good = false;
  }
  for (int i = 0; is_undo && i < request.field_count(); ++i) {
    const FieldDescriptor& field = *request.field(i);
    if (field.name() == "order_id" || field.name() == "step_id" || !IsRequired(field)) continue;
    Bad(node, at,
        absl::StrCat(contract, " requires ", field.name(),
                     ", but an undo is told only order_id and step_id; ",
                     "keep what it needs when the step is done"));
    good = false;
  }
  if (method.client_streaming() || method.server_streaming()) {
    Bad(node, at,
        absl::StrCat("its contract is wrong: ", method.full_name(),
                     " streams; a step is a unary RPC"));
    good = false;
  }
  return good;
}

void Reader::ReadCall(Node* node, PlanStep* step) {
  const MethodDescriptor* method = FindCall(*node);
  if (method == nullptr) return;
  const Position at = node->Field(v1::Step::kCallFieldNumber);
  const gaekju::flow::v1::Step& option = method->options().GetExtension(gaekju::flow::v1::step);
  bool good = CheckRequest(*node, *method, /*is_undo=*/false);
  if (option.undo().empty() != option.nothing_to_undo()) {
    Bad(*node, at,
        absl::StrCat("its contract is wrong: the step option of ", method->full_name(),
                     " has to have one of undo and nothing_to_undo"));
    return;
  }
  if (node->is_notice && !option.undo().empty()) {
    Bad(*node, at,
        absl::StrCat("call ", Quoted(node->step->call()), " takes something, which ",
                     Quoted(option.undo()), " takes back; a notice takes nothing: write a step ",
                     "of place or cancel"));
    return;
  }
  if (!option.undo().empty()) {
    const MethodDescriptor* undo = method->service()->FindMethodByName(option.undo());
    if (undo == nullptr) {
      Bad(*node, at,
          absl::StrCat("its contract is wrong: ", method->full_name(), " is undone by ",
                       Quoted(option.undo()), ", which ", method->service()->name(),
                       " does not have"));
      return;
    }
    good = CheckRequest(*node, *undo, /*is_undo=*/true) && good;
    if (!good) return;
    step->undo_method = std::string(undo->full_name());
    step->undo_request = undo->input_type();
    step->undo_response = undo->output_type();
  }
  if (!good) return;
  step->context = ContextOf(*method->service());
  step->method = std::string(method->full_name());
  step->request = method->input_type();
  step->response = method->output_type();
}

void Reader::ReadConstants(Node* node, PlanStep* step) {
  const v1::Step& file = *node->step;
  if (!file.has_with() || step->request == nullptr) return;
  const Position at = node->Field(v1::Step::kWithFieldNumber);
  const Tree* tree = node->tree == nullptr ? nullptr
                                           : node->tree->GetTreeForNested(
                                                 node->FileField(v1::Step::kWithFieldNumber), -1);
  const std::string right =
      absl::StrCat("with { [", kAnyPrefix, step->request->full_name(), "] { … } }");
  if (file.with().type_url() != absl::StrCat(kAnyPrefix, step->request->full_name())) {
    Bad(*node, at,
        absl::StrCat("with ",
                     file.with().type_url().empty()
                         ? "is empty"
                         : "has the type " + Quoted(file.with().type_url()),
                     "; write ", right, file.with().type_url().empty() ? ", or leave it out" : ""));
    return;
  }
  google::protobuf::DynamicMessageFactory factory;
  std::unique_ptr<google::protobuf::Message> constants(factory.GetPrototype(step->request)->New());
  if (!constants->ParsePartialFromString(file.with().value())) {
    Bad(*node, at,
        absl::StrCat("with cannot be read as ", step->request->full_name(),
                     " (is a text not UTF-8?); write ", right));
    return;
  }
  for (int i = 0; i < step->request->field_count(); ++i) {
    const FieldDescriptor* field = step->request->field(i);
    const auto* reflection = constants->GetReflection();
    const bool has_value = field->is_repeated() ? reflection->FieldSize(*constants, field) > 0
                                                : reflection->HasField(*constants, field);
    const Position field_at = At(tree, field, field->is_repeated() ? 0 : -1, at);
    const bool is_written = At(tree, field, field->is_repeated() ? 0 : -1, {-1, -1}).line >= 0;
    if (!has_value && !is_written) continue;
    node->constants.push_back(field);
    if (field->name() == "order_id" || field->name() == "step_id") {
      Bad(*node, field_at, absl::StrCat(field->name(), " is given by the saga; leave it out"));
    } else if (!has_value && IsRequired(*field)) {
      Bad(*node, field_at,
          absl::StrCat(field->name(),
                       " is required and cannot be empty; write a value, or leave it out ",
                       "to have it filled from the order"));
    }
  }
  step->constants = SerializeDeterministically(*constants);
}

void Reader::ReadFrom(Node* node, const PlanStep& step) {
  const Tree* tree = node->tree;
  const FieldDescriptor* from = StepField(v1::Step::kFromFieldNumber);
  const Descriptor& order = *order::v1::Order::descriptor();
  const auto is_saga_s = [](const std::string& name) {
    return name == "order_id" || name == "step_id";
  };
  for (int i = 0; i < node->step->from_size() && step.request != nullptr; ++i) {
    const v1::FieldSource& file = node->step->from(i);
    const Position start = At(tree, from, i, At(tree, from, 0, node->at));
    const Tree* nested = tree == nullptr ? nullptr : tree->GetTreeForNested(from, i);
    const auto at = [&](int number) {
      return At(nested, v1::FieldSource::descriptor()->FindFieldByNumber(number), -1, start);
    };
    const Position field_at = at(v1::FieldSource::kFieldFieldNumber);
    const Position order_at = at(v1::FieldSource::kOrderFieldNumber);
    FieldCopy copy;
    copy.target = step.request->FindFieldByName(file.field());
    copy.source = order.FindFieldByName(file.order());
    if (is_saga_s(file.field())) {
      Bad(*node, field_at,
          absl::StrCat("from: ", file.field(), " is given by the saga; leave it out"));
    } else if (copy.target == nullptr) {
      std::vector<std::string> fields;
      for (int f = 0; f < step.request->field_count(); ++f) {
        const std::string name(step.request->field(f)->name());
        if (!is_saga_s(name)) fields.push_back(name);
      }
      Bad(*node, field_at,
          absl::StrCat("from: unknown field ", Quoted(file.field()),
                       Choices(file.field(), fields, absl::StrCat(step.request->name(), " has:"))));
    } else if (absl::c_any_of(node->from, [&](const FieldCopy& other) {
                 return other.target == copy.target;
               })) {
      Bad(*node, field_at,
          absl::StrCat("from: ", Quoted(file.field()), " is filled twice; leave one out"));
    } else if (copy.source == nullptr) {
      std::vector<std::string> fields;
      for (int f = 0; f < order.field_count(); ++f) {
        if (IsFixedInOrder(*order.field(f)) && IsSameType(*order.field(f), *copy.target))
          fields.emplace_back(order.field(f)->name());
      }
      Bad(*node, order_at,
          absl::StrCat("from: the order has no ", Quoted(file.order()),
                       Choices(file.order(), fields,
                               absl::StrCat("Of type ", FieldTypeName(*copy.target), " it has:"))));
    } else if (!IsFixedInOrder(*copy.source)) {
      Bad(*node, order_at,
          absl::StrCat("from: the order's ", file.order(), " changes while the order runs, and a ",
                       "step that is asked again must be told the same; leave it out"));
    } else if (!IsSameType(*copy.source, *copy.target)) {
      Bad(*node, order_at,
          absl::StrCat("from: the order's ", file.order(), " is ", FieldTypeName(*copy.source),
                       ", but ", file.field(), " is ", FieldTypeName(*copy.target)));
    } else {
      node->from.push_back(copy);
      continue;
    }
    // That the field is not filled would be the same mistake again.
    if (copy.target != nullptr) node->constants.push_back(copy.target);
  }
}

// ---- notices

void Reader::ReadNotices() {
  const FieldDescriptor* field =
      v1::Storefront::descriptor()->FindFieldByNumber(v1::Storefront::kNoticeFieldNumber);
  for (int i = 0; i < file_.notice_size(); ++i) {
    ReadNotice(file_.notice(i), tree_.GetTreeForNested(field, i),
               At(&tree_, field, i, At(&tree_, field, 0, {})), i);
  }
  plan_.notice_count = file_.notice_size();
}

// A notice is read as the step that it is.
void Reader::ReadNotice(const v1::Notice& notice, const Tree* tree, Position at, int index) {
  v1::Step& file = notice_steps_.emplace_back();
  file.set_id(notice.id());
  file.set_call(notice.call().empty() ? kNoticeCall : notice.call());
  file.set_via(v1::JETSTREAM);
  if (notice.has_with()) *file.mutable_with() = notice.with();
  Node node;
  node.step = &file;
  node.tree = tree;
  node.at = at;
  node.is_notice = true;
  node.name = notice.id().empty() ? absl::StrCat("notice ", index + 1)
                                  : absl::StrCat("notice ", Quoted(notice.id()));
  PlanStep step;
  step.id = notice.id();
  step.is_notice = true;
  step.via = v1::JETSTREAM;
  ReadStepId(&node);
  ReadCall(&node, &step);
  ReadConstants(&node, &step);
  step.when = ReadWhen(notice, [&](absl::string_view name, absl::string_view what) {
    const FieldDescriptor* field = v1::Notice::descriptor()->FindFieldByName(std::string(name));
    Bad(node, field == nullptr ? at : At(tree, field, -1, at), what);
  });
  const bool has_word = absl::c_any_of(
      file_.status(), [](const v1::StatusWord& word) { return word.stage() == v1::REJECTED; });
  if (step.when.stage == v1::REJECTED && !has_word) {
    Bad(node,
        At(tree, v1::Notice::descriptor()->FindFieldByNumber(v1::Notice::kStageFieldNumber), -1,
           at),
        "stage: refused orders have never been in this storefront, so nobody is told of them; "
        "write a status word for stage: REJECTED, or leave this out");
  }
  node.plan_step = static_cast<int>(plan_.steps.size());
  plan_.steps.push_back(std::move(step));
  nodes_.push_back(std::move(node));
}

// ---- flows as a whole

void Reader::ReadUnlessDone(const v1::Flow& flow, const Tree* tree, bool in_cancel) {
  const FieldDescriptor* field =
      v1::Flow::descriptor()->FindFieldByNumber(v1::Flow::kUnlessDoneFieldNumber);
  for (int i = 0; i < flow.unless_done_size(); ++i) {
    const std::string& id = flow.unless_done(i);
    const Position at = At(tree, field, i, At(tree, field, 0, {}));
    const int step = plan_.StepIndex(id);
    if (!in_cancel) {
      mistakes_.Add(at, "unless_done stands in cancel only; leave it out");
      return;
    }
    if (step < 0 || step >= plan_.place_count || id.empty()) {
      mistakes_.Add(at, absl::StrCat("unless_done: unknown step of place ", Quoted(id),
                                     Choices(id, StepIds(false), "place has:")));
    } else if (absl::c_linear_search(plan_.unless_done, step)) {
      mistakes_.Add(at,
                    absl::StrCat("unless_done: ", Quoted(id), " is named twice; leave one out"));
    } else {
      plan_.unless_done.push_back(step);
    }
  }
}

void Reader::ReadTryLater(const v1::Flow& flow, const Tree* tree, bool in_cancel) {
  if (!flow.has_try_later()) return;
  const Position at =
      At(tree, v1::Flow::descriptor()->FindFieldByNumber(v1::Flow::kTryLaterFieldNumber), -1, {});
  const type::v1::LocalizedText& words = flow.try_later();
  if (words.ko().empty() || words.en().empty()) {
    mistakes_.Add(at, absl::StrCat("try_later has no ", words.ko().empty() ? "ko" : "en",
                                   "; write try_later { ko: \"…\" en: \"…\" }"));
  }
  if (!IsUtf8(words.ko()) || !IsUtf8(words.en())) {
    mistakes_.Add(at, "try_later is not UTF-8; write the letters themselves");
  }
  const bool is_told = absl::c_any_of(plan_.steps, [&](const PlanStep& step) {
    return step.in_cancel == in_cancel && step.fail_on_unavailable;
  });
  if (!is_told && mistakes_.empty()) {
    mistakes_.Add(at, absl::StrCat("try_later: the caller waits for no step of ",
                                   in_cancel ? "cancel" : "place",
                                   " that fails when it cannot be reached; leave it out"));
  }
  (in_cancel ? plan_.cancel_try_later : plan_.place_try_later) = words;
}

// What the buyer has to give, because some step cannot do without.
void Reader::CollectInputs() {
  for (const PlanStep& step : plan_.steps) {
    for (const FieldCopy& copy : step.copies) {
      if (copy.from != FieldCopy::From::kOrder || !IsRequired(*copy.target)) continue;
      if (absl::c_any_of(plan_.inputs,
                         [&](const PlanInput& other) { return other.field == copy.source; })) {
        continue;
      }
      plan_.inputs.push_back({copy.source, step.id});
    }
  }
  absl::c_stable_sort(plan_.inputs, [](const PlanInput& a, const PlanInput& b) {
    return a.field->number() < b.field->number();
  });
}

// ---- what waits for what

std::vector<std::string> Reader::StepIds(bool in_cancel) const {
  std::vector<std::string> ids;
  for (const PlanStep& step : plan_.steps) {
    if (step.in_cancel == in_cancel && !step.is_notice && !step.id.empty()) ids.push_back(step.id);
  }
  return ids;
}

int Reader::FindNode(const std::string& id, bool in_cancel) const {
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    if (node.in_cancel != in_cancel || node.is_notice) continue;
    if (node.is_undo ? node.step->undo() == id : node.step->id() == id) return static_cast<int>(i);
  }
  return -1;
}

void Reader::ReadAfter(bool in_cancel) {
  const FieldDescriptor* field = StepField(v1::Step::kAfterFieldNumber);
  std::vector<std::string> choices = StepIds(in_cancel);
  for (const Node& node : nodes_) {
    if (in_cancel && node.is_undo && node.plan_step >= 0) choices.push_back(node.step->undo());
  }
  for (Node& node : nodes_) {
    if (node.in_cancel != in_cancel) continue;
    const v1::Step& file = *node.step;
    const Position first = At(node.tree, field, 0, node.at);
    if (file.after_size() > kSteps_max) {
      Bad(node, first,
          absl::StrCat("after names ", file.after_size(), " steps; at most ", kSteps_max));
      node.after_is_known = false;
      continue;
    }
    // Of `after: ["a", "b"]` the parser tells only where it begins.
    const bool is_list =
        file.after_size() > 1 && At(node.tree, field, file.after_size() - 1, {-1, -1}).line < 0;
    size_t list_offset = is_list ? OffsetOf(text_, first) : 0;
    for (int i = 0; i < file.after_size(); ++i) {
      const std::string& id = file.after(i);
      Position at = At(node.tree, field, i, first);
      if (is_list) {
        const size_t found = text_.find(id, list_offset);
        if (found != absl::string_view::npos && found > 0) {
          at = PositionOf(text_, found - 1);
          list_offset = found + id.size();
        }
      }
      const int other = FindNode(id, in_cancel);
      if (other < 0 || id.empty()) {
        node.after_is_known = false;
        const int elsewhere = FindNode(id, !in_cancel);
        const std::string has = in_cancel ? "cancel has:" : "place has:";
        std::vector<std::string> others = choices;
        others.erase(
            std::remove(others.begin(), others.end(), node.is_undo ? file.undo() : file.id()),
            others.end());
        std::string what =
            absl::StrCat("after: unknown step ", Quoted(id), Choices(id, others, has));
        if (!id.empty() && elsewhere >= 0 && in_cancel) {
          what = absl::StrCat("after: cancel does not undo ", Quoted(id),
                              "; add step { undo: ", Quoted(id), " }, or leave it out");
        } else if (!id.empty() && elsewhere >= 0 && !nodes_[elsewhere].is_undo) {
          what = absl::StrCat("after: ", Quoted(id),
                              " is a step of cancel; a step of place waits for steps of place");
        }
        const bool is_notice = absl::c_any_of(
            nodes_, [&](const Node& n) { return n.is_notice && n.step->id() == id; });
        if (!id.empty() && is_notice) {
          what =
              absl::StrCat("after: ", Quoted(id),
                           " is a notice, which nobody waits for; make it a step, or leave it out");
        }
        Bad(node, at, what);
      } else if (absl::c_linear_search(node.after, other)) {
        Bad(node, at, absl::StrCat("after: ", Quoted(id), " is named twice; leave one out"));
      } else {
        node.after.push_back(other);
        node.after_at.push_back(at);
      }
    }
  }
}

void Reader::FindCycles(bool in_cancel) {
  // What is left when all that waits for nothing is taken away, again and again, waits in a circle
  // or for one.
  std::vector<bool> left(nodes_.size());
  for (size_t i = 0; i < nodes_.size(); ++i) left[i] = nodes_[i].in_cancel == in_cancel;
  while (true) {
    for (bool changed = true; changed;) {
      changed = false;
      for (size_t i = 0; i < nodes_.size(); ++i) {
        if (!left[i] || absl::c_any_of(nodes_[i].after, [&](int other) { return left[other]; }))
          continue;
        left[i] = false;
        changed = true;
      }
    }
    const auto first = absl::c_find(left, true);
    if (first == left.end()) return;
    has_cycle_ = true;
    std::vector<int> path;
    int at = static_cast<int>(first - left.begin());
    while (!absl::c_linear_search(path, at)) {
      path.push_back(at);
      at = *absl::c_find_if(nodes_[at].after, [&](int other) { return left[other]; });
    }
    path.erase(path.begin(), absl::c_find(path, at));
    std::rotate(path.begin(), absl::c_min_element(path), path.end());
    std::vector<std::string> names;
    for (int i : path) names.push_back(nodes_[i].name);
    names.push_back(names.front());
    const Node& node = nodes_[path.front()];
    const int next = path.size() > 1 ? path[1] : path[0];
    Bad(node, node.after_at[absl::c_find(node.after, next) - node.after.begin()],
        absl::StrCat("waits for itself: ", absl::StrJoin(names, " after "),
                     "; leave one `after` out"));
    for (int i : path) left[i] = false;
  }
}

// Of each node, all that it waits for, and what that waits for. REQUIRES: no cycle.
std::vector<std::vector<bool>> Reader::FindBefore() const {
  const int count = static_cast<int>(nodes_.size());
  std::vector<std::vector<bool>> before(count);
  const auto fill = [&](auto& self, int i) -> void {
    if (!before[i].empty()) return;
    before[i].resize(count);
    for (int other : nodes_[i].after) {
      self(self, other);
      before[i][other] = true;
      for (int k = 0; k < count; ++k) before[i][k] = before[i][k] || before[other][k];
    }
  };
  for (int i = 0; i < count; ++i) fill(fill, i);
  return before;
}

bool Reader::ComesAfterUndo(const std::vector<bool>& before) const {
  for (size_t k = 0; k < nodes_.size(); ++k) {
    if (before[k] && nodes_[k].is_undo) return true;
  }
  return false;
}

// A cancel can be refused until its first undo is asked. Where an undo does not wait for a step
// that may refuse, that step is asked in vain. REQUIRES: no cycle.
void Reader::FindHastyUndos() {
  const int count = static_cast<int>(nodes_.size());
  const std::vector<std::vector<bool>> before = FindBefore();
  for (int undo = 0; undo < count; ++undo) {
    const Node& node = nodes_[undo];
    if (!node.is_undo || node.plan_step < 0 || !node.after_is_known) continue;
    for (int asked = 0; asked < count; ++asked) {
      const Node& step = nodes_[asked];
      if (!step.in_cancel || step.is_undo || step.is_notice || before[undo][asked]) continue;
      if (before[asked][undo] || ComesAfterUndo(before[asked])) continue;
      Bad(node, node.Field(v1::Step::kUndoFieldNumber),
          absl::StrCat("does not wait for ", step.name,
                       ", which may still refuse the cancel: what is taken back would be taken "
                       "back all the same; write after: ",
                       Quoted(step.step->id())));
    }
  }
}

// What a person answers, the order hears of later. A cancel that takes something back in between
// would give back what the person has, unless it has the step closed where it is answered. (That
// the undos wait for that is FindHastyUndos's.) REQUIRES: no cycle.
void Reader::FindGoodsKept() {
  if (plan_.cancel_undos.empty()) return;
  const std::vector<std::vector<bool>> before = FindBefore();
  const FieldDescriptor* cancel =
      v1::Storefront::descriptor()->FindFieldByNumber(v1::Storefront::kCancelFieldNumber);
  for (int i = 0; i < plan_.place_count; ++i) {
    const PlanStep& step = plan_.steps[i];
    const MethodDescriptor* method = contracts_.FindMethod(step.method);
    if (method == nullptr) continue;  // which was told
    const ServiceDescriptor& service = *method->service();
    const MethodDescriptor* closer = nullptr;
    for (int m = 0; m < service.method_count(); ++m) {
      if (service.method(m)->options().GetExtension(gaekju::flow::v1::closes) == method->name())
        closer = service.method(m);
    }
    if (closer == nullptr) continue;
    bool late = false;
    bool closed = false;
    for (size_t n = 0; n < nodes_.size(); ++n) {
      const Node& node = nodes_[n];
      if (!node.in_cancel || node.is_undo ||
          plan_.steps[node.plan_step].method != closer->full_name())
        continue;
      (ComesAfterUndo(before[n]) ? late : closed) = true;
    }
    if (closed) continue;
    std::string with;
    for (int f = 0; f < closer->input_type()->field_count(); ++f) {
      const FieldDescriptor& field = *closer->input_type()->field(f);
      if (!IsRequired(field) || field.name() == "order_id" || field.name() == "step_id") continue;
      absl::StrAppend(&with, " ", field.name(), ": \"…\"");
    }
    if (!with.empty()) {
      with = absl::StrCat(" with { [", kAnyPrefix, closer->input_type()->full_name(), "] {", with,
                          " } }");
    }
    mistakes_.Add(
        At(&tree_, cancel, -1, {}),
        absl::StrCat("cancel: goods kept: a person answers ", Quoted(step.id),
                     ", and the order hears of it later; a cancel in between would give back what "
                     "the person has. ",
                     late ? "It is closed too late, after an undo; write" : "Close it first: write",
                     " step { id: \"close-", step.id,
                     "\" call: ", Quoted(absl::StrCat(step.context, ".", closer->name())),
                     " via: JETSTREAM", with, " }, and let every undo wait for it (after)"));
  }
}

void Reader::FindWaiting() {
  // The nodes in an order in which each comes after what it waits for.
  std::vector<bool> known(nodes_.size(), false);
  for (size_t count = 0; count < nodes_.size();) {
    for (size_t i = 0; i < nodes_.size(); ++i) {
      Node& node = nodes_[i];
      if (known[i] || !absl::c_all_of(node.after, [&](int other) { return known[other]; }))
        continue;
      known[i] = true;
      ++count;
      v1::Via via = node.step->via();
      if (via == v1::VIA_UNSPECIFIED && node.is_undo) via = v1::JETSTREAM;
      node.buyer_waits = via == v1::GRPC && absl::c_all_of(node.after, [&](int other) {
                           return nodes_[other].buyer_waits;
                         });
    }
  }
  size_t undo = 0;
  for (const Node& node : nodes_) {
    if (node.is_undo) {
      plan_.cancel_undos[undo++].buyer_waits = node.buyer_waits;
    } else {
      plan_.steps[node.plan_step].buyer_waits = node.buyer_waits;
    }
    ReadOnUnavailable(node);
  }
}

void Reader::ReadOnUnavailable(const Node& node) {
  const v1::OnUnavailable given = node.step->on_unavailable();
  const Position at = node.Field(v1::Step::kOnUnavailableFieldNumber);
  const bool is_grpc = node.step->via() == v1::GRPC;
  if (!node.is_undo) {
    plan_.steps[node.plan_step].fail_on_unavailable =
        node.buyer_waits && (given == v1::ON_UNAVAILABLE_UNSPECIFIED || given == v1::FAIL);
  }
  if (given == v1::ON_UNAVAILABLE_UNSPECIFIED) return;
  if (given != v1::FAIL && given != v1::DEFER) {
    Bad(node, at,
        absl::StrCat("on_unavailable: ", static_cast<int>(given),
                     " is unknown; write FAIL or DEFER"));
  } else if (node.is_undo && given == v1::FAIL) {
    Bad(node, at,
        "on_unavailable: FAIL is not for an undo, which is asked until it is done; leave it out");
  } else if (!is_grpc) {
    Bad(node, at,
        "on_unavailable is for via: GRPC, a command waits until its context is back; leave it out");
  } else if (given == v1::FAIL && !node.buyer_waits && node.after_is_known) {
    std::vector<std::string> names;
    for (int other : node.after) {
      if (!nodes_[other].buyer_waits) names.push_back(nodes_[other].name);
    }
    Bad(node, at,
        absl::StrCat("on_unavailable: FAIL is told to the buyer, who does not wait here, nor for ",
                     absl::StrJoin(names, ", "), "; write DEFER, or leave it out"));
  }
}

// The graph of nodes as indexes of the plan.
void Reader::FillGraph() {
  size_t undo = 0;
  for (const Node& node : nodes_) {
    std::vector<int>* after = nullptr;
    std::vector<int>* after_undo = nullptr;
    if (node.is_undo) {
      after = &plan_.cancel_undos[undo].after;
      after_undo = &plan_.cancel_undos[undo++].after_undo;
    } else {
      after = &plan_.steps[node.plan_step].after;
      after_undo = &plan_.steps[node.plan_step].after_undo;
    }
    for (int other : node.after) {
      if (nodes_[other].plan_step < 0) continue;  // the undo of an unknown step, which was told
      (nodes_[other].is_undo ? after_undo : after)->push_back(nodes_[other].plan_step);
    }
  }
}

// Whether all that a node waits for is known well enough to tell what its answers supply.
bool Reader::AwaitsOnlyKnown(int start) const {
  std::vector<int> queue = {start};
  for (size_t i = 0; i < queue.size(); ++i) {
    const Node& node = nodes_[queue[i]];
    if (!node.after_is_known) return false;
    if (!node.is_undo && plan_.steps[node.plan_step].response == nullptr) return false;
    const int told = node.is_undo ? -1 : plan_.steps[node.plan_step].when.done;
    for (int other = 0; told >= 0 && other < static_cast<int>(nodes_.size()); ++other) {
      if (!nodes_[other].is_undo && nodes_[other].plan_step == told) queue.push_back(other);
    }
    for (int other : node.after) {
      if (!absl::c_linear_search(queue, other)) queue.push_back(other);
    }
  }
  return true;
}

void Reader::CompileRequests() {
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    if (node.is_undo || !AwaitsOnlyKnown(static_cast<int>(i))) continue;
    for (const std::string& what :
         CompileRequest(node.constants, node.from, &plan_, node.plan_step)) {
      Bad(node, node.Field(v1::Step::kCallFieldNumber), what);
    }
  }
}

// ---- the shop's words

void Reader::ReadStatuses() {
  const FieldDescriptor* field =
      v1::Storefront::descriptor()->FindFieldByNumber(v1::Storefront::kStatusFieldNumber);
  for (int i = 0; i < file_.status_size(); ++i)
    ReadStatus(file_.status(i), tree_.GetTreeForNested(field, i), i);
}

// When a word or a notice holds. `bad` complains of the field of that name ("": of the whole).
template <class Trigger, class Complain>
PlanTrigger Reader::ReadWhen(const Trigger& file, const Complain& bad) {
  PlanTrigger when;
  switch (file.when_case()) {
    case Trigger::kStage:
      when.stage = file.stage();
      if (!v1::Stage_IsValid(file.stage()) || file.stage() == v1::STAGE_UNSPECIFIED) {
        bad("stage",
            "this stage is unknown; write PLACED, COMPLETED, CANCELLING, CANCELLED or REJECTED");
      }
      break;
    case Trigger::kDone: {
      when.done = plan_.StepIndex(file.done());
      std::vector<std::string> ids = StepIds(false);
      absl::c_copy(StepIds(true), std::back_inserter(ids));
      if (file.done().empty() || (when.done >= 0 && plan_.steps[when.done].is_notice)) {
        when.done = -1;
      }
      if (when.done < 0) {
        bad("done", absl::StrCat("done: unknown step ", Quoted(file.done()),
                                 Choices(file.done(), ids, "There are:")));
      }
      break;
    }
    case Trigger::kUndone: {
      when.undone = plan_.StepIndex(file.undone());
      if (when.undone < 0 || when.undone >= plan_.place_count || file.undone().empty()) {
        when.undone = -1;
        bad("undone", absl::StrCat("undone: unknown step of place ", Quoted(file.undone()),
                                   Choices(file.undone(), StepIds(false), "place has:")));
      } else if (plan_.steps[when.undone].request != nullptr &&
                 plan_.steps[when.undone].undo_method.empty()) {
        bad("undone", absl::StrCat("undone: ", Quoted(file.undone()),
                                   " has nothing to undo, so this never holds; leave it out"));
      }
      break;
    }
    case Trigger::WHEN_NOT_SET:
      bad("",
          "says not when it holds; write stage: PLACED, done: \"<step>\" or undone: \"<step>\"");
      break;
  }
  return when;
}

// Of the words that hold the last is shown. One of place that stands behind one of cancel hides it:
// a cancelled order would read as if it went on.
void Reader::FindHiddenWords() {
  if (!plan_.has_cancel) return;
  const FieldDescriptor* field =
      v1::Storefront::descriptor()->FindFieldByNumber(v1::Storefront::kStatusFieldNumber);
  const PlanStatus* of_cancel = nullptr;
  for (size_t i = 0; i < plan_.statuses.size(); ++i) {
    const PlanStatus& status = plan_.statuses[i];
    const PlanTrigger& when = status.when;
    if (when.stage == v1::CANCELLING || when.stage == v1::CANCELLED || when.undone >= 0 ||
        when.done >= plan_.place_count) {
      of_cancel = &status;
      continue;
    }
    const bool of_place = when.stage == v1::PLACED || when.stage == v1::COMPLETED ||
                          (when.done >= 0 && !absl::c_linear_search(plan_.unless_done, when.done));
    if (!of_place || of_cancel == nullptr) continue;
    mistakes_.Add(At(&tree_, field, static_cast<int>(i), At(&tree_, field, 0, {})),
                  absl::StrCat("status ", Quoted(status.code),
                               ": a cancelled order would still read ", Quoted(status.en),
                               ", because the last word that holds is shown; move "
                               "this above status ",
                               Quoted(of_cancel->code)));
  }
}

void Reader::ReadStatus(const v1::StatusWord& word, const Tree* tree, int index) {
  const FieldDescriptor* status_field =
      v1::Storefront::descriptor()->FindFieldByNumber(v1::Storefront::kStatusFieldNumber);
  const Position start = At(&tree_, status_field, index, At(&tree_, status_field, 0, {}));
  const auto at = [&](int number) {
    return At(tree, v1::StatusWord::descriptor()->FindFieldByNumber(number), -1, start);
  };
  const auto bad = [&](int number, absl::string_view what) {
    const std::string name = word.code().empty() ? absl::StrCat("status ", index + 1)
                                                 : absl::StrCat("status ", Quoted(word.code()));
    mistakes_.Add(number == 0 ? start : at(number), absl::StrCat(name, ": ", what));
  };
  PlanStatus status;
  status.when = ReadWhen(word, [&](absl::string_view name, absl::string_view what) {
    const FieldDescriptor* field = v1::StatusWord::descriptor()->FindFieldByName(std::string(name));
    bad(field == nullptr ? 0 : field->number(), what);
  });
  plan_.rejected_is_readable |= status.when.stage == v1::REJECTED;
  status.code = word.code();
  if (word.code().empty()) {
    bad(v1::StatusWord::kCodeFieldNumber,
        "code is missing; write code: \"ORDER_PLACED\", or what it is");
  } else if (!IsUpperSnakeCase(word.code())) {
    bad(v1::StatusWord::kCodeFieldNumber,
        "this code is not UPPER_SNAKE_CASE; write e.g. code: \"ORDER_PLACED\"");
  }
  status.ko = word.text().ko();
  status.en = word.text().en();
  if (status.ko.empty() || status.en.empty()) {
    bad(v1::StatusWord::kTextFieldNumber,
        absl::StrCat("text has no ", status.ko.empty() ? "ko" : "en",
                     "; write text { ko: \"…\" en: \"…\" }"));
  }
  if (!IsUtf8(status.ko) || !IsUtf8(status.en)) {
    bad(v1::StatusWord::kTextFieldNumber, "text is not UTF-8; write the letters themselves");
  }
  plan_.statuses.push_back(std::move(status));
}

}  // namespace

absl::StatusOr<Plan> ParseStorefront(absl::string_view text, absl::string_view file_name,
                                     const DescriptorPool& pool) {
  return Reader(text, file_name, pool).Read();
}

absl::StatusOr<Plan> ParseStorefront(absl::string_view text, absl::string_view file_name) {
  return ParseStorefront(text, file_name, *DescriptorPool::generated_pool());
}

}  // namespace gaekju::flow
