#include "runtime/uuid.h"

#include <atomic>
#include <chrono>
#include <random>

namespace gaekju::runtime {
namespace {

// splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014), seeded
// from the system once per thread.
struct Generator {
  Generator() {
    std::random_device device;
    state = (static_cast<uint64_t>(device()) << 32) ^ device();
  }
  uint64_t Next() {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  uint64_t state;
};

// Milliseconds since 1970 in the upper 52 bits, 1/4096 ms in the lower 12. Greater than every one
// before.
uint64_t NextStamp() {
  static std::atomic<uint64_t> last{0};
  const uint64_t ns = static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                                std::chrono::system_clock::now().time_since_epoch())
                                                .count());
  const uint64_t now = ((ns / 1'000'000) << 12) | ((ns % 1'000'000) * 4096 / 1'000'000);
  uint64_t seen = last.load(std::memory_order_relaxed);
  uint64_t next;
  do {
    next = now > seen ? now : seen + 1;
  } while (!last.compare_exchange_weak(seen, next, std::memory_order_relaxed));
  return next;
}

void AppendHex(uint64_t bits, int digits, std::string* out) {
  for (int shift = (digits - 1) * 4; shift >= 0; shift -= 4)
    out->push_back("0123456789abcdef"[(bits >> shift) & 15]);
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

uint64_t RandomBits() {
  thread_local Generator generator;
  return generator.Next();
}

std::string NewUuid() {
  const uint64_t stamp = NextStamp();
  const uint64_t random = RandomBits();
  std::string out;
  out.reserve(36);
  AppendHex(stamp >> 28, 8, &out);  // the upper 32 of 48 bits of milliseconds
  out.push_back('-');
  AppendHex(stamp >> 12, 4, &out);
  out.push_back('-');
  AppendHex(0x7000 | (stamp & 0xfff), 4, &out);
  out.push_back('-');
  AppendHex(0x8000 | ((random >> 48) & 0x3fff), 4, &out);
  out.push_back('-');
  AppendHex(random, 12, &out);
  return out;
}

int64_t UuidTimeUs(absl::string_view uuid) {
  if (uuid.size() != 36) return -1;
  int64_t ms = 0;
  for (size_t i = 0; i < uuid.size(); ++i) {
    if (i == 8 || i == 13 || i == 18 || i == 23) {
      if (uuid[i] != '-') return -1;
      continue;
    }
    const int digit = HexDigit(uuid[i]);
    if (digit < 0) return -1;
    if (i < 13) ms = (ms << 4) | digit;
  }
  const int variant = HexDigit(uuid[19]);
  if (uuid[14] != '7' || variant < 8 || variant > 11) return -1;
  return ms * 1000;
}

}  // namespace gaekju::runtime
