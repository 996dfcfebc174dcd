#include "runtime/log.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "spdlog/pattern_formatter.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace gaekju::runtime {
namespace internal {
std::atomic<int> log_level{static_cast<int>(LogLevel::kInfo)};
}
namespace {

constexpr absl::string_view kLevelNames[] = {"debug", "info", "warning", "error"};
constexpr spdlog::level::level_enum kSpdlogLevels[] = {spdlog::level::debug, spdlog::level::info,
                                                       spdlog::level::warn, spdlog::level::err};

// What ConfigureLog sets. Read by every line without a lock: it is set before threads start.
struct Settings {
  LogFormat format = LogFormat::kJson;
  std::vector<std::pair<std::string, std::string>> common;
};

Settings& GlobalSettings() {
  static auto* settings = new Settings;  // never destroyed: threads may log while the process exits
  return *settings;
}

spdlog::logger& Logger() {
  static auto* logger = [] {
    auto sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    auto* made = new spdlog::logger("gaekju", std::move(sink));
    made->set_formatter(
        std::make_unique<spdlog::pattern_formatter>("%v"));  // we write the whole line ourselves
    made->set_level(spdlog::level::trace);
    made->flush_on(spdlog::level::trace);
    return made;
  }();
  return *logger;
}

// Appends `text` as the inside of a JSON string. Bytes that are no UTF-8 are replaced, so that a
// line always parses.
void AppendJsonText(absl::string_view text, std::string* out) {
  const auto continuation = [&](size_t i) {
    return i < text.size() && (static_cast<uint8_t>(text[i]) & 0xc0) == 0x80;
  };
  for (size_t i = 0; i < text.size();) {
    const auto c = static_cast<uint8_t>(text[i]);
    if (c < 0x80) {
      switch (c) {
        case '"':
          absl::StrAppend(out, "\\\"");
          break;
        case '\\':
          absl::StrAppend(out, "\\\\");
          break;
        case '\n':
          absl::StrAppend(out, "\\n");
          break;
        case '\t':
          absl::StrAppend(out, "\\t");
          break;
        case '\r':
          absl::StrAppend(out, "\\r");
          break;
        default:
          if (c < 0x20 || c == 0x7f) {
            absl::StrAppendFormat(out, "\\u%04x", c);
          } else {
            out->push_back(static_cast<char>(c));
          }
      }
      ++i;
      continue;
    }
    size_t length = c >= 0xf0 && c <= 0xf4  ? 4
                    : c >= 0xe0 && c < 0xf0 ? 3
                    : c >= 0xc2 && c < 0xe0 ? 2
                                            : 0;
    const uint8_t second = i + 1 < text.size() ? static_cast<uint8_t>(text[i + 1]) : 0;
    // Overlong forms, surrogates, and what is above U+10FFFF.
    if ((c == 0xe0 && second < 0xa0) || (c == 0xed && second > 0x9f) ||
        (c == 0xf0 && second < 0x90) || (c == 0xf4 && second > 0x8f)) {
      length = 0;
    }
    for (size_t k = 1; k < length; ++k) {
      if (!continuation(i + k)) length = 0;
    }
    if (length == 0) {
      absl::StrAppend(out, "\\ufffd");
      ++i;
    } else {
      out->append(text.data() + i, length);
      i += length;
    }
  }
}

void AppendValue(const LogField& field, std::string* out) {
  switch (field.kind) {
    case LogField::Kind::kString:
      break;
    case LogField::Kind::kInt:
      absl::StrAppend(out, field.integer);
      break;
    case LogField::Kind::kBool:
      absl::StrAppend(out, field.integer ? "true" : "false");
      break;
    case LogField::Kind::kDouble:
      if (std::isfinite(field.real)) {
        absl::StrAppend(out, field.real);
      } else {
        absl::StrAppend(out, "null");  // JSON has no word for it
      }
      break;
  }
}

// Text that needs no quotes for a person to see where it ends.
bool IsPlain(absl::string_view text) {
  for (char c : text) {
    const auto u = static_cast<uint8_t>(c);
    if (u <= 0x20 || u == 0x7f || c == '"' || c == '\\' || c == '=') return false;
  }
  return true;
}

}  // namespace

std::string FormatLogLine(LogFormat format, int64_t time_us, LogLevel level,
                          absl::string_view message, const LogField* fields, size_t field_count) {
  std::string out;
  out.reserve(128 + message.size() + field_count * 32);
  const absl::string_view level_name = kLevelNames[static_cast<int>(level)];
  const absl::Time time = absl::FromUnixMicros(time_us);
  if (format == LogFormat::kJson) {
    absl::StrAppend(&out, "{\"ts\":\"",
                    absl::FormatTime("%Y-%m-%d%ET%H:%M:%E6SZ", time, absl::UTCTimeZone()),
                    "\",\"level\":\"", level_name, "\",\"msg\":\"");
    AppendJsonText(message, &out);
    out.push_back('"');
  } else {
    static const char* const kLetters = "DIWE";
    absl::StrAppend(&out, absl::FormatTime("%H:%M:%E3S", time, absl::LocalTimeZone()), " ",
                    absl::string_view(&kLetters[static_cast<int>(level)], 1), " ");
    for (char c : message) out.push_back(static_cast<uint8_t>(c) < 0x20 ? ' ' : c);
  }
  for (size_t i = 0; i < field_count; ++i) {
    const LogField& field = fields[i];
    const bool is_text = field.kind == LogField::Kind::kString;
    if (is_text && field.text.empty()) continue;
    if (format == LogFormat::kJson) {
      absl::StrAppend(&out, ",\"");
      AppendJsonText(field.key, &out);
      absl::StrAppend(&out, "\":");
    } else {
      absl::StrAppend(&out, " ", field.key, "=");
    }
    if (is_text && (format == LogFormat::kJson || !IsPlain(field.text))) {
      out.push_back('"');
      AppendJsonText(field.text, &out);
      out.push_back('"');
    } else if (is_text) {
      absl::StrAppend(&out, field.text);
    } else {
      AppendValue(field, &out);
    }
  }
  if (format == LogFormat::kJson) out.push_back('}');
  return out;
}

absl::Status ConfigureLog(absl::string_view level, absl::string_view format, LogFields common) {
  int found = -1;
  for (int i = 0; i < 4; ++i) {
    if (level == kLevelNames[i]) found = i;
  }
  if (found < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("log level \"", level, "\" is none of debug, info, warning, error"));
  }
  if (format != "json" && format != "text") {
    return absl::InvalidArgumentError(
        absl::StrCat("log format \"", format, "\" is neither json nor text"));
  }
  Settings& settings = GlobalSettings();
  settings.format = format == "json" ? LogFormat::kJson : LogFormat::kText;
  settings.common.clear();
  for (const LogField& field : common) {
    std::string value(field.text);
    if (field.kind != LogField::Kind::kString) AppendValue(field, &value);
    settings.common.emplace_back(std::string(field.key), std::move(value));
  }
  internal::log_level.store(found, std::memory_order_relaxed);
  return absl::OkStatus();
}

void Log(LogLevel level, absl::string_view message, LogFields fields) {
  if (!LogEnabled(level)) return;
  const Settings& settings = GlobalSettings();
  std::string line;
  const int64_t now_us = absl::ToUnixMicros(absl::Now());
  if (settings.common.empty()) {
    line = FormatLogLine(settings.format, now_us, level, message, fields.begin(), fields.size());
  } else {
    std::vector<LogField> all;
    all.reserve(settings.common.size() + fields.size());
    for (const auto& [key, value] : settings.common) {
      bool overridden = false;
      for (const LogField& field : fields) overridden |= field.key == key;
      if (!overridden) all.emplace_back(key, value);
    }
    all.insert(all.end(), fields.begin(), fields.end());
    line = FormatLogLine(settings.format, now_us, level, message, all.data(), all.size());
  }
  Logger().log(kSpdlogLevels[static_cast<int>(level)],
               spdlog::string_view_t(line.data(), line.size()));
}

int64_t LogLimit::Allow() {
  const int64_t now_us = std::chrono::duration_cast<std::chrono::microseconds>(
                             std::chrono::steady_clock::now().time_since_epoch())
                             .count();
  int64_t next = next_us_.load(std::memory_order_relaxed);
  if (now_us >= next &&
      next_us_.compare_exchange_strong(next, now_us + period_us_, std::memory_order_relaxed)) {
    return skipped_.exchange(0, std::memory_order_relaxed);
  }
  skipped_.fetch_add(1, std::memory_order_relaxed);
  return -1;
}

}  // namespace gaekju::runtime
