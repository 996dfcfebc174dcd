#include "flow/values.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "flow/turn.h"
#include "google/rpc/code.pb.h"

namespace gaekju::flow {
namespace {

constexpr size_t kIdSizeMax = 64;
constexpr size_t kStorefrontSizeMax = 32;
constexpr size_t kNameSizeMax = 256;
constexpr int kLineCountMax = 100;
constexpr int32_t kQuantityMax = 1000000;

// PostgreSQL's text cannot hold a NUL, and nobody wants a line break in a key or a log line.
bool HasControl(absl::string_view value) {
  return std::any_of(value.begin(), value.end(),
                     [](unsigned char c) { return absl::ascii_iscntrl(c); });
}

}  // namespace

google::protobuf::Timestamp ToTimestamp(int64_t time_us) {
  google::protobuf::Timestamp time;
  int64_t seconds = time_us / 1000000;
  int64_t rest_us = time_us % 1000000;
  if (rest_us < 0) {  // before 1970: nanos count forward all the same
    --seconds;
    rest_us += 1000000;
  }
  time.set_seconds(seconds);
  time.set_nanos(static_cast<int32_t>(rest_us * 1000));
  return time;
}

int64_t ToMicros(const google::protobuf::Timestamp& time) {
  return time.seconds() * 1000000 + time.nanos() / 1000;
}

FieldChecks& FieldChecks::That(bool holds, absl::string_view field, absl::string_view rule) {
  if (holds || status_.code() != 0) return *this;
  status_ = MakeStatus(google::rpc::INVALID_ARGUMENT, domain_, "FIELD_INVALID",
                       absl::StrCat(field, " ", rule), field);
  return *this;
}

FieldChecks& FieldChecks::Id(absl::string_view field, absl::string_view value) {
  return That(!value.empty() && value.size() <= kIdSizeMax && !HasControl(value) &&
                  value.find('/') == value.npos,
              field, "must have 1 to 64 bytes, none of them \"/\" or a control character");
}

FieldChecks& FieldChecks::Reference(absl::string_view field, absl::string_view value) {
  return That(!value.empty() && value.size() <= kIdSizeMax && !HasControl(value), field,
              "must have 1 to 64 bytes, none of them a control character");
}

FieldChecks& FieldChecks::Key(absl::string_view field, absl::string_view value) {
  return That(value.size() >= 3 && value.size() <= 2 * kIdSizeMax + 1 && !HasControl(value) &&
                  std::count(value.begin(), value.end(), '/') == 1,
              field, "must be two ids with a \"/\" between them");
}

FieldChecks& FieldChecks::Storefront(absl::string_view field, absl::string_view value) {
  return That(!value.empty() && value.size() <= kStorefrontSizeMax &&
                  std::all_of(value.begin(), value.end(),
                              [](unsigned char c) {
                                return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-';
                              }),
              field, "must have 1 to 32 lower-case letters, digits and dashes");
}

FieldChecks& FieldChecks::Text(absl::string_view field, absl::string_view value, size_t size_max) {
  if (value.size() <= size_max) return *this;
  return That(false, field, absl::StrCat("must have at most ", size_max, " bytes"));
}

FieldChecks& FieldChecks::Range(absl::string_view field, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return *this;
  return That(false, field, absl::StrCat("must be ", min, " to ", max));
}

FieldChecks& FieldChecks::Currency(absl::string_view field, absl::string_view value) {
  return That(value.size() == 3 && std::all_of(value.begin(), value.end(), absl::ascii_isupper),
              field, "must be three capital letters, as ISO 4217 has it");
}

FieldChecks& FieldChecks::Money(absl::string_view field, const gaekju::type::v1::Money& money,
                                int64_t minor_units_min) {
  Currency(absl::StrCat(field, ".currency_code"), money.currency_code());
  if (money.minor_units() >= minor_units_min) return *this;
  return That(false, absl::StrCat(field, ".minor_units"),
              absl::StrCat("must be at least ", minor_units_min));
}

FieldChecks& FieldChecks::Lines(
    absl::string_view field,
    const google::protobuf::RepeatedPtrField<gaekju::type::v1::LineItem>& lines) {
  if (lines.empty() || lines.size() > kLineCountMax) {
    return That(false, field, "must have 1 to 100 lines");
  }
  for (int i = 0; i < lines.size() && status_.code() == 0; ++i) {
    const std::string line = absl::StrCat(field, "[", i, "].");
    Id(absl::StrCat(line, "product_id"), lines[i].product_id());
    Range(absl::StrCat(line, "quantity"), lines[i].quantity(), 1, kQuantityMax);
    Text(absl::StrCat(line, "display_name"), lines[i].display_name(), kNameSizeMax);
  }
  return *this;
}

}  // namespace gaekju::flow
