// uuid.h: UUIDv7 (RFC 9562): ids that sort by the time they were made.
//
//   std::string id = NewUuid();   // "019a…-7…-…", 36 characters
//
// Within a process each is greater than the one before, across threads too (rand_a carries the
// fraction of the millisecond, RFC 9562 §6.2 method 3, and a tie counts on from the last). 62
// random bits keep processes apart. Unique, not secret. Lock-free.
#ifndef GAEKJU_RUNTIME_UUID_H_
#define GAEKJU_RUNTIME_UUID_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace gaekju::runtime {

std::string NewUuid();
// When a UUIDv7 was made, microseconds since 1970 (millisecond resolution); -1 when it is not a
// UUIDv7.
int64_t UuidTimeUs(absl::string_view uuid);

// 64 random bits from a generator per thread. Not secret.
uint64_t RandomBits();

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_UUID_H_
