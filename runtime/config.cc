#include "runtime/config.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <utility>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

// --- where
ABSL_FLAG(std::string, listen, "127.0.0.1:50051",
          "Address to serve gRPC on, host:port; port 0 takes a free one. Loopback, because only a "
          "sidecar or a local client should reach the raw "
          "port; in a container without a mesh: 0.0.0.0:50051.");
ABSL_FLAG(
    std::string, database, "dbname=gaekju_{context}",
    "PostgreSQL, as a libpq connection string or URI "
    "(postgresql://user@host:5432/gaekju_{context}). {context} becomes the context's name: each "
    "has a database of its own. Give passwords by GAEKJU_DATABASE or PGPASSFILE, not on the "
    "command line, which every user can read.");
ABSL_FLAG(
    std::string, nats, "nats://127.0.0.1:4222",
    "NATS servers with JetStream, URLs separated by commas. Need not be up: the relay waits.");
ABSL_FLAG(std::string, peers, "",
          "Where other contexts are: order=127.0.0.1:50051,payment=127.0.0.1:50052,… Contexts not "
          "listed are at --peer_default.");
ABSL_FLAG(std::string, peer_default, "{context}:50051",
          "Address of a context that --peers does not list; {context} becomes its name. The "
          "default is the Kubernetes Service of that name.");
ABSL_FLAG(std::string, metrics, "127.0.0.1:9464",
          "Address to serve Prometheus metrics on (/metrics); port 0 takes a free one, empty "
          "serves none.");
// --- logs
ABSL_FLAG(std::string, log_level, "info",
          "Least severe lines to write: debug, info, warning or error.");
ABSL_FLAG(std::string, log_format, "json",
          "json (a line each, for machines) or text (for people), on stderr.");
// --- turns
ABSL_FLAG(int32_t, turn_size_max, 512,
          "Most requests decided and committed together. Above some 500 a turn's rows no longer "
          "share more of the commit's cost, and "
          "each waits longer.");
ABSL_FLAG(int32_t, queue_size_max, 8192,
          "Requests that may wait for a turn; more are refused with UNAVAILABLE and RetryInfo. 16 "
          "full turns: about 100 ms of work.");
ABSL_FLAG(absl::Duration, timer_period, absl::Milliseconds(200),
          "How often rows whose time has come (retries, expiries) are looked for.");
// --- database
ABSL_FLAG(int32_t, query_connections, 2,
          "Connections for reads (Get, List, Watch), beside the one that writes.");
ABSL_FLAG(absl::Duration, database_connect_timeout, absl::Seconds(3),
          "Time to connect to PostgreSQL before the next attempt.");
ABSL_FLAG(absl::Duration, statement_timeout, absl::Seconds(5),
          "Longest SQL statement. A turn takes milliseconds: one of seconds is stuck.");
ABSL_FLAG(absl::Duration, lock_timeout, absl::Seconds(2),
          "Longest wait for a row's lock; after it the turn runs again.");
// --- outbox and bus
ABSL_FLAG(absl::Duration, outbox_retention, absl::Hours(24),
          "How long published messages stay in the outbox, to be published again when the bus "
          "loses its store. Not less than the streams keep.");
ABSL_FLAG(int32_t, publish_pending_max, 1024,
          "Messages sent to JetStream and not yet acknowledged. More only fill buffers.");
ABSL_FLAG(
    int32_t, consume_pending_max, 2048,
    "Messages JetStream may deliver before they are acknowledged, per consumer: four full turns.");
ABSL_FLAG(
    absl::Duration, ack_wait, absl::Seconds(5),
    "When a process dies or stands still, the messages it had in hand come to another (or to "
    "its successor) after so long. One that "
    "lives says twice in that time that it still has them, so slowness brings nothing again.");
// --- life
ABSL_FLAG(absl::Duration, drain_timeout, absl::Seconds(10),
          "After SIGTERM: how long calls and turns in flight may take to finish. Less than the "
          "supervisor's patience (Kubernetes: 30s).");
// --- gRPC
ABSL_FLAG(
    int32_t, rpc_inflight_max, 20000,
    "Calls in flight; more are refused before they are parsed. Bounds memory: some 4 KiB each.");
ABSL_FLAG(int32_t, rpc_streams_max, 1024,
          "Calls in flight per connection; more wait in the caller. Two full turns.");
ABSL_FLAG(int32_t, rpc_request_bytes_max, 65536,
          "Largest request of an RPC whose contract sets no limit, bytes.");
ABSL_FLAG(absl::Duration, rpc_deadline_default, absl::Seconds(5),
          "Deadline of callers that set none, where the contract sets none.");
ABSL_FLAG(absl::Duration, rpc_connection_age_max, absl::Minutes(30),
          "Age at which a connection is renewed, so that new replicas get callers.");
ABSL_FLAG(absl::Duration, watchdog_period, absl::Seconds(5),
          "How often the server dials its own port; after three failures in a row it aborts, to be "
          "restarted. 0 never does. gRPC 1.51 stops "
          "accepting for good once file descriptors run out (CVE-2023-4785).");
ABSL_FLAG(bool, breaker, true,
          "Circuit breaker for calls to other contexts. Off in a mesh, whose proxies do it: two "
          "would hide from each other what they see.");
ABSL_FLAG(int32_t, breaker_pending_max, 4096,
          "Calls in flight to one context; more count as unreachable at once. Eight full turns.");
ABSL_FLAG(int32_t, breaker_failures_max, 5,
          "Consecutive failed calls that open the circuit. Envoy's default.");
ABSL_FLAG(absl::Duration, breaker_open, absl::Seconds(1),
          "How long the circuit stays open before one call probes; doubles with each failed probe. "
          "About a restart.");
ABSL_FLAG(absl::Duration, breaker_open_max, absl::Seconds(30),
          "Longest time without a probe. Envoy's base ejection time.");

namespace gaekju::runtime {
namespace {

constexpr absl::string_view kPrefix = "GAEKJU_";

// Our flags by name. Abseil's own libraries define a few (flagfile, …) when they are linked; those
// are not ours.
std::map<std::string, absl::CommandLineFlag*> OurFlags() {
  std::map<std::string, absl::CommandLineFlag*> flags;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (flag->IsRetired() || absl::StrContains(flag->Filename(), "absl/")) continue;
    flags.emplace(std::string(name), flag);
  }
  return flags;
}

std::string VariableOf(absl::string_view flag) {
  return absl::StrCat(kPrefix, absl::AsciiStrToUpper(flag));
}

// Levenshtein's distance.
size_t Distance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row[b.size()];
}

// The flag somebody probably meant; empty when nothing is near.
std::string Nearest(absl::string_view name,
                    const std::map<std::string, absl::CommandLineFlag*>& flags) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, name.size() / 3) + 1;
  for (const auto& [candidate, flag] : flags) {
    size_t distance = Distance(name, candidate);
    // "--turn_size" for --turn_size_max: the beginning or the end of a name is near, too.
    if (name.size() >= 4 && (absl::StartsWith(candidate, name) || absl::EndsWith(candidate, name)))
      distance = std::min<size_t>(distance, 2);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

absl::Status SetFlag(absl::CommandLineFlag* flag, absl::string_view value,
                     absl::string_view source) {
  std::string error;
  if (flag->ParseFrom(value, &error)) return absl::OkStatus();
  std::string hint = error.empty() ? "" : absl::StrCat(": ", error);
  if (flag->IsOfType<absl::Duration>())
    hint = ": write a duration with its unit, like 500ms, 10s or 24h";
  if (flag->IsOfType<int32_t>()) hint = ": write a whole number";
  if (flag->IsOfType<bool>()) hint = ": write true or false";
  return absl::InvalidArgumentError(absl::StrCat(source, " cannot be \"", value, "\"", hint));
}

// The file's part below the root of the repository, without its ending: "runtime/config".
std::string Section(absl::string_view path) {
  const std::vector<absl::string_view> parts = absl::StrSplit(path, '/');
  std::string out = parts.size() > 1 ? absl::StrCat(parts[parts.size() - 2], "/", parts.back())
                                     : std::string(path);
  if (absl::EndsWith(out, ".cc")) out.resize(out.size() - 3);
  return out;
}

void AppendWrapped(absl::string_view text, size_t indent, size_t width, std::string* out) {
  size_t column = width;  // begins a line
  bool first = true;
  for (absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    if (column + 1 + word.size() > width) {
      absl::StrAppend(out, first ? "" : "\n", std::string(indent, ' '), word);
      column = indent + word.size();
    } else {
      absl::StrAppend(out, " ", word);
      column += 1 + word.size();
    }
    first = false;
  }
  out->push_back('\n');
}

std::vector<std::string> ProcessEnvironment() {
  std::vector<std::string> out;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    if (absl::StartsWith(*entry, kPrefix)) out.emplace_back(*entry);
  }
  return out;
}

}  // namespace

absl::StatusOr<CommandLine> ParseCommandLine(int argc, const char* const* argv) {
  return ParseCommandLine(std::vector<std::string>(argv + std::min(argc, 1), argv + argc),
                          ProcessEnvironment());
}

absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& arguments,
                                             const std::vector<std::string>& environment) {
  const auto flags = OurFlags();
  for (const std::string& entry : environment) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(entry, absl::MaxSplits('=', 1));
    if (!absl::StartsWith(parts.first, kPrefix)) continue;
    const auto it = flags.find(absl::AsciiStrToLower(parts.first.substr(kPrefix.size())));
    if (it == flags.end()) continue;
    if (auto status = SetFlag(it->second, parts.second, parts.first); !status.ok()) return status;
  }

  CommandLine line;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument == "--") {
      line.arguments.insert(line.arguments.end(), arguments.begin() + i + 1, arguments.end());
      break;
    }
    if (argument == "-h" || argument == "--help") {
      line.help = true;
      continue;
    }
    if (argument.size() < 2 || argument[0] != '-') {
      line.arguments.push_back(argument);
      continue;
    }
    const size_t dashes = absl::StartsWith(argument, "--") ? 2 : 1;
    const size_t equals = argument.find('=');
    const bool has_value = equals != std::string::npos;
    const std::string written = argument.substr(0, equals);
    const std::string name = absl::StrReplaceAll(written.substr(dashes), {{"-", "_"}});
    auto it = flags.find(name);
    if (it == flags.end() && absl::StartsWith(name, "no") && !has_value) {
      it = flags.find(name.substr(2));
      if (it != flags.end() && it->second->IsOfType<bool>()) {
        if (auto status = SetFlag(it->second, "false", written); !status.ok()) return status;
        continue;
      }
      it = flags.end();
    }
    if (it == flags.end()) {
      const std::string nearest = Nearest(name, flags);
      return absl::InvalidArgumentError(
          absl::StrCat("unknown flag ", written,
                       nearest.empty() ? "" : absl::StrCat("; did you mean --", nearest, "?"),
                       " (--help lists all)"));
    }
    std::string value;
    if (has_value) {
      value = argument.substr(equals + 1);
    } else if (it->second->IsOfType<bool>()) {
      value = "true";
    } else if (i + 1 < arguments.size()) {
      value = arguments[++i];
    } else {
      return absl::InvalidArgumentError(absl::StrCat(written, " needs a value: ", written, "=…"));
    }
    if (auto status = SetFlag(it->second, value, written); !status.ok()) return status;
  }
  return line;
}

std::string FlagHelp(const std::vector<std::string>& only) {
  std::map<std::string, std::vector<std::pair<std::string, absl::CommandLineFlag*>>> sections;
  for (const auto& [name, flag] : OurFlags()) {
    if (!only.empty() && std::find(only.begin(), only.end(), name) == only.end()) continue;
    sections[Section(flag->Filename())].emplace_back(name, flag);
  }
  std::string out = "Flags (each also as a variable of the environment; the command line wins):\n";
  for (const auto& [section, flags] : sections) {
    absl::StrAppend(&out, "\n  [", section, "]\n");
    for (const auto& [name, flag] : flags) {
      const std::string value = flag->DefaultValue();
      absl::StrAppend(&out, "  --", name, "=", value.empty() ? "\"\"" : value, "   (",
                      VariableOf(name), ")\n");
      AppendWrapped(flag->Help(), 6, 100, &out);
    }
  }
  return out;
}

std::vector<std::string> UnknownEnvironment(const std::vector<std::string>& environment) {
  const auto flags = OurFlags();
  std::vector<std::string> out;
  for (const std::string& entry : environment) {
    const absl::string_view variable = absl::string_view(entry).substr(0, entry.find('='));
    if (!absl::StartsWith(variable, kPrefix)) continue;
    const std::string name = absl::AsciiStrToLower(variable.substr(kPrefix.size()));
    if (flags.contains(name)) continue;
    // Only what is near a flag: the rest is Kubernetes' or somebody else's.
    const std::string nearest = Nearest(name, flags);
    if (!nearest.empty())
      out.push_back(
          absl::StrCat(variable, " is no setting; did you mean ", VariableOf(nearest), "?"));
  }
  return out;
}

std::vector<std::string> UnknownEnvironment() { return UnknownEnvironment(ProcessEnvironment()); }

ServerConfig ServerConfigFromFlags() {
  ServerConfig c;
  c.listen = absl::GetFlag(FLAGS_listen);
  c.database = absl::GetFlag(FLAGS_database);
  c.nats = absl::GetFlag(FLAGS_nats);
  c.peers = absl::GetFlag(FLAGS_peers);
  c.peer_default = absl::GetFlag(FLAGS_peer_default);
  c.metrics = absl::GetFlag(FLAGS_metrics);
  c.log_level = absl::GetFlag(FLAGS_log_level);
  c.log_format = absl::GetFlag(FLAGS_log_format);
  c.turn_size_max = absl::GetFlag(FLAGS_turn_size_max);
  c.queue_size_max = absl::GetFlag(FLAGS_queue_size_max);
  c.timer_period = absl::GetFlag(FLAGS_timer_period);
  c.query_connections = absl::GetFlag(FLAGS_query_connections);
  c.database_connect_timeout = absl::GetFlag(FLAGS_database_connect_timeout);
  c.statement_timeout = absl::GetFlag(FLAGS_statement_timeout);
  c.lock_timeout = absl::GetFlag(FLAGS_lock_timeout);
  c.outbox_retention = absl::GetFlag(FLAGS_outbox_retention);
  c.publish_pending_max = absl::GetFlag(FLAGS_publish_pending_max);
  c.consume_pending_max = absl::GetFlag(FLAGS_consume_pending_max);
  c.ack_wait = absl::GetFlag(FLAGS_ack_wait);
  c.drain_timeout = absl::GetFlag(FLAGS_drain_timeout);
  c.rpc_inflight_max = absl::GetFlag(FLAGS_rpc_inflight_max);
  c.rpc_streams_max = absl::GetFlag(FLAGS_rpc_streams_max);
  c.rpc_request_bytes_max = absl::GetFlag(FLAGS_rpc_request_bytes_max);
  c.rpc_deadline_default = absl::GetFlag(FLAGS_rpc_deadline_default);
  c.rpc_connection_age_max = absl::GetFlag(FLAGS_rpc_connection_age_max);
  c.watchdog_period = absl::GetFlag(FLAGS_watchdog_period);
  c.breaker = absl::GetFlag(FLAGS_breaker);
  c.breaker_pending_max = absl::GetFlag(FLAGS_breaker_pending_max);
  c.breaker_failures_max = absl::GetFlag(FLAGS_breaker_failures_max);
  c.breaker_open = absl::GetFlag(FLAGS_breaker_open);
  c.breaker_open_max = absl::GetFlag(FLAGS_breaker_open_max);
  return c;
}

absl::Status CheckServerConfig(const ServerConfig& c) {
  const std::vector<std::pair<const char*, int64_t>> at_least_one = {
      {"turn_size_max", c.turn_size_max},
      {"queue_size_max", c.queue_size_max},
      {"query_connections", c.query_connections},
      {"publish_pending_max", c.publish_pending_max},
      {"consume_pending_max", c.consume_pending_max},
      {"rpc_inflight_max", c.rpc_inflight_max},
      {"rpc_streams_max", c.rpc_streams_max},
      {"rpc_request_bytes_max", c.rpc_request_bytes_max},
      {"breaker_pending_max", c.breaker_pending_max},
      {"breaker_failures_max", c.breaker_failures_max}};
  for (const auto& [name, value] : at_least_one) {
    if (value < 1)
      return absl::InvalidArgumentError(
          absl::StrCat("--", name, " must be at least 1, not ", value));
  }
  const std::vector<std::pair<const char*, absl::Duration>> positive = {
      {"timer_period", c.timer_period},
      {"database_connect_timeout", c.database_connect_timeout},
      {"statement_timeout", c.statement_timeout},
      {"lock_timeout", c.lock_timeout},
      {"outbox_retention", c.outbox_retention},
      {"rpc_deadline_default", c.rpc_deadline_default},
      {"rpc_connection_age_max", c.rpc_connection_age_max},
      {"breaker_open", c.breaker_open},
      {"breaker_open_max", c.breaker_open_max}};
  for (const auto& [name, value] : positive) {
    if (value < absl::Milliseconds(1)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", name, " must be at least 1ms, not ", absl::FormatDuration(value)));
    }
  }
  // Less than a process may stand still by itself (a loaded machine, a slow disk) only repeats
  // work.
  if (c.ack_wait < absl::Milliseconds(100)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--ack_wait must be at least 100ms, not ", absl::FormatDuration(c.ack_wait)));
  }
  if (c.drain_timeout < absl::ZeroDuration() || c.watchdog_period < absl::ZeroDuration()) {
    return absl::InvalidArgumentError("--drain_timeout and --watchdog_period must not be negative");
  }
  if (c.queue_size_max < c.turn_size_max) {
    return absl::InvalidArgumentError(absl::StrCat("--queue_size_max (", c.queue_size_max,
                                                   ") must not be less than --turn_size_max (",
                                                   c.turn_size_max, ")"));
  }
  if (c.breaker_open_max < c.breaker_open) {
    return absl::InvalidArgumentError("--breaker_open_max must not be less than --breaker_open");
  }
  return absl::OkStatus();
}

std::string DatabaseOf(const ServerConfig& config, absl::string_view context) {
  return absl::StrReplaceAll(config.database, {{"{context}", context}});
}

RpcServerOptions RpcServerOptionsOf(const ServerConfig& config) {
  RpcServerOptions options;
  options.listen = config.listen;
  options.inflight_max = config.rpc_inflight_max;
  options.streams_max = config.rpc_streams_max;
  options.request_bytes_max = config.rpc_request_bytes_max;
  options.deadline_ms_default =
      static_cast<int>(absl::ToInt64Milliseconds(config.rpc_deadline_default));
  options.connection_age_max = config.rpc_connection_age_max;
  options.watchdog_period = config.watchdog_period;
  return options;
}

RpcClientOptions RpcClientOptionsOf(const ServerConfig& config) {
  RpcClientOptions options;
  options.peers = config.peers;
  options.peer_default = config.peer_default;
  options.breaker.enabled = config.breaker;
  options.breaker.pending_max = config.breaker_pending_max;
  options.breaker.failures_max = config.breaker_failures_max;
  options.breaker.open_us = absl::ToInt64Microseconds(config.breaker_open);
  options.breaker.open_us_max = absl::ToInt64Microseconds(config.breaker_open_max);
  return options;
}

int64_t RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return -1;
  constexpr rlim_t kWanted =
      65536;  // far above any sidecar's connections, far below what would slow a close-all loop
  const rlim_t reachable =
      limit.rlim_max == RLIM_INFINITY ? kWanted : std::min(kWanted, limit.rlim_max);
  if (limit.rlim_cur < reachable) {
    limit.rlim_cur = reachable;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) getrlimit(RLIMIT_NOFILE, &limit);
  }
  return static_cast<int64_t>(limit.rlim_cur);
}

}  // namespace gaekju::runtime
