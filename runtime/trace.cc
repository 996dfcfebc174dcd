#include "runtime/trace.h"

#include <cstdint>

#include "runtime/uuid.h"

namespace gaekju::runtime {
namespace {

constexpr size_t kLength = 55;  // 2 + 1 + 32 + 1 + 16 + 1 + 2

// Lower-case hex digits only.
bool IsHex(absl::string_view text) {
  for (char c : text) {
    if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return false;
  }
  return true;
}

bool AllZeros(absl::string_view text) {
  return text.find_first_not_of('0') == absl::string_view::npos;
}

void WriteHex(uint64_t bits, char* out) {
  for (int i = 15; i >= 0; --i, bits >>= 4) out[i] = "0123456789abcdef"[bits & 15];
}

uint64_t NonZero() {
  uint64_t bits;
  do {
    bits = RandomBits();
  } while (bits == 0);
  return bits;
}

}  // namespace

bool IsTraceparent(absl::string_view t) {
  if (t.size() < kLength || t[2] != '-' || t[35] != '-' || t[52] != '-') return false;
  const absl::string_view version = t.substr(0, 2);
  if (!IsHex(version) || version == "ff") return false;
  // Version 00 ends here; a later one may go on after another dash.
  if (t.size() > kLength && (version == "00" || t[kLength] != '-')) return false;
  const absl::string_view trace = t.substr(3, 32), span = t.substr(36, 16);
  return IsHex(trace) && !AllZeros(trace) && IsHex(span) && !AllZeros(span) &&
         IsHex(t.substr(53, 2));
}

std::string NewTraceparent() {
  std::string out = "00-00000000000000000000000000000000-0000000000000000-01";
  WriteHex(NonZero(), &out[3]);
  WriteHex(RandomBits(), &out[19]);
  WriteHex(NonZero(), &out[36]);
  return out;
}

std::string ChildTraceparent(absl::string_view traceparent) {
  if (!IsTraceparent(traceparent)) return NewTraceparent();
  // We know version 00 only, so that is what we write (W3C trace context, 3.2.3 "versioning").
  std::string out(traceparent.substr(0, kLength));
  out[0] = out[1] = '0';
  WriteHex(NonZero(), &out[36]);
  return out;
}

absl::string_view TraceIdOf(absl::string_view traceparent) {
  return IsTraceparent(traceparent) ? traceparent.substr(3, 32) : absl::string_view();
}

}  // namespace gaekju::runtime
