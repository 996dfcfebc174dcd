// check.h: GK_CHECK aborts on our own bugs, in every build. For the outside world (peers, database,
// bus, files) use absl::Status.
//
//   GK_CHECK(version > 0) << "row " << key;
#ifndef GAEKJU_FLOW_CHECK_H_
#define GAEKJU_FLOW_CHECK_H_

#include <cstdlib>
#include <iostream>

namespace gaekju::flow {

// Collects the message of a failed check, prints it and aborts.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition) {
    std::cerr << file << ":" << line << ": check failed: " << condition << " ";
  }
  CheckFailure(const CheckFailure&) = delete;
  CheckFailure& operator=(const CheckFailure&) = delete;
  [[noreturn]] ~CheckFailure() {
    std::cerr << std::endl;
    std::abort();
  }
  std::ostream& stream() { return std::cerr; }
};

}  // namespace gaekju::flow

#define GK_CHECK(condition) \
  if (condition) {          \
  } else                    \
    ::gaekju::flow::CheckFailure(__FILE__, __LINE__, #condition).stream()

#endif  // GAEKJU_FLOW_CHECK_H_
