// log.h: structured log lines on stderr: JSON for machines (default), or text for people.
//
//   LogInfo("order placed", {{"context", "order"}, {"order_id", id}, {"trace_id",
//   TraceIdOf(traceparent)}, {"took_ms", 12}});
//   {"ts":"2026-11-21T13:05:38.123456Z","level":"info","msg":"order
//   placed","context":"order","order_id":"…","took_ms":12}
//
// Field names used everywhere: context, order_id, step_id, trace_id, method, peer, resource,
// subject, error, reason. Empty strings are left out. A line costs a few microseconds: nothing is
// logged per request above debug. Thread-safe.
#ifndef GAEKJU_RUNTIME_LOG_H_
#define GAEKJU_RUNTIME_LOG_H_

#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace gaekju::runtime {

enum class LogLevel { kDebug = 0, kInfo = 1, kWarning = 2, kError = 3 };
enum class LogFormat { kJson, kText };

// A named value of a line. Holds a view: only for the duration of the call.
struct LogField {
  enum class Kind { kString, kInt, kDouble, kBool };
  LogField(absl::string_view k, absl::string_view v) : key(k), kind(Kind::kString), text(v) {}
  LogField(absl::string_view k, const char* v) : key(k), kind(Kind::kString), text(v) {}
  LogField(absl::string_view k, const std::string& v) : key(k), kind(Kind::kString), text(v) {}
  LogField(absl::string_view k, bool v) : key(k), kind(Kind::kBool), integer(v) {}
  LogField(absl::string_view k, double v) : key(k), kind(Kind::kDouble), real(v) {}
  template <class T, std::enable_if_t<std::is_integral_v<T> && !std::is_same_v<T, bool>, int> = 0>
  LogField(absl::string_view k, T v) : key(k), kind(Kind::kInt), integer(static_cast<int64_t>(v)) {}

  absl::string_view key;
  Kind kind;
  absl::string_view text;
  int64_t integer = 0;
  double real = 0;
};
using LogFields = std::initializer_list<LogField>;

// Sets level ("debug", "info", "warning", "error") and format ("json", "text"). INVALID_ARGUMENT
// names what it does not know. Fields of `common` are added to every line (context="payment"). Call
// once, before threads start; without it: info, json.
absl::Status ConfigureLog(absl::string_view level, absl::string_view format, LogFields common = {});

namespace internal {
extern std::atomic<int> log_level;
}
inline bool LogEnabled(LogLevel level) {
  return static_cast<int>(level) >= internal::log_level.load(std::memory_order_relaxed);
}

void Log(LogLevel level, absl::string_view message, LogFields fields = {});
inline void LogDebug(absl::string_view message, LogFields fields = {}) {
  if (LogEnabled(LogLevel::kDebug)) Log(LogLevel::kDebug, message, fields);
}
inline void LogInfo(absl::string_view message, LogFields fields = {}) {
  Log(LogLevel::kInfo, message, fields);
}
inline void LogWarning(absl::string_view message, LogFields fields = {}) {
  Log(LogLevel::kWarning, message, fields);
}
inline void LogError(absl::string_view message, LogFields fields = {}) {
  Log(LogLevel::kError, message, fields);
}

// Lets one line through per period, for what repeats while something is down.
//   static LogLimit limit(5'000'000);
//   if (int64_t skipped = limit.Allow(); skipped >= 0) LogWarning("bus is down", {{"skipped",
//   skipped}});
class LogLimit {
 public:
  explicit LogLimit(int64_t period_us) : period_us_(period_us) {}
  // How many were skipped since the last that passed; -1: skip this one too.
  int64_t Allow();

 private:
  const int64_t period_us_;
  std::atomic<int64_t> next_us_{0};
  std::atomic<int64_t> skipped_{0};
};

// The line that would be written, without the newline. Exposed for tests.
std::string FormatLogLine(LogFormat format, int64_t time_us, LogLevel level,
                          absl::string_view message, const LogField* fields, size_t field_count);

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_LOG_H_
