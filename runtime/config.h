// config.h: flags, environment and --help; and the flags that every server has.
//
//   auto line = ParseCommandLine(argc, argv);
//   if (!line.ok()) { std::cerr << line.status().message() << "\n"; return 2; }
//   if (line->help) { std::cout << "gaekju serve CONTEXT…\n" << FlagHelp(); return 0; }
//   ServerConfig config = ServerConfigFromFlags();
//
// A flag is an ABSL_FLAG anywhere in the program: --turn_size_max=128, --turn-size-max 128,
// --nobreaker. Each can also be set by the environment as GAEKJU_<NAME> (GAEKJU_TURN_SIZE_MAX=128);
// the command line wins. Unknown flags are errors that name the nearest one. Unknown GAEKJU_*
// variables are only reported (see UnknownEnvironment), because Kubernetes makes some by itself for
// a Service called gaekju-… (GAEKJU_ORDER_SERVICE_HOST); for that reason no flag is called port, or
// ends in _port, _host, _addr or _proto.
#ifndef GAEKJU_RUNTIME_CONFIG_H_
#define GAEKJU_RUNTIME_CONFIG_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/rpc_client.h"
#include "runtime/rpc_server.h"

namespace gaekju::runtime {

struct CommandLine {
  std::vector<std::string>
      arguments;      // what is not a flag, without the program's name; everything after "--"
  bool help = false;  // --help, -h
};

// Sets flags from the environment, then from the command line. INVALID_ARGUMENT: one line a person
// can act on.
absl::StatusOr<CommandLine> ParseCommandLine(int argc, const char* const* argv);
// As above with an environment of "NAME=value"s. For tests.
absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& arguments,
                                             const std::vector<std::string>& environment);

// All flags by the file that defines them, each with its variable, default and what it does.
// `only`: names of flags; empty for all.
std::string FlagHelp(const std::vector<std::string>& only = {});

// GAEKJU_* variables that look like a flag and are none, each with the nearest flag: worth a
// warning in the log.
std::vector<std::string> UnknownEnvironment(const std::vector<std::string>& environment);
std::vector<std::string> UnknownEnvironment();

// What every server is configured by. Defaults, units and reasons stand in --help (config.cc).
struct ServerConfig {
  // --- where
  std::string listen;    // "127.0.0.1:50051"
  std::string database;  // libpq conninfo or URI; see DatabaseOf
  std::string nats;      // "nats://127.0.0.1:4222"
  std::string peers;
  std::string peer_default;
  std::string metrics;  // "127.0.0.1:9464"; empty: none
  // --- logs
  std::string log_level;
  std::string log_format;
  // --- turns
  int turn_size_max = 0;
  int queue_size_max = 0;
  absl::Duration timer_period;
  // --- database
  int query_connections = 0;
  absl::Duration database_connect_timeout;
  absl::Duration statement_timeout;
  absl::Duration lock_timeout;
  // --- outbox
  absl::Duration outbox_retention;
  int publish_pending_max = 0;
  int consume_pending_max = 0;
  absl::Duration ack_wait;
  // --- life
  absl::Duration drain_timeout;
  // --- gRPC
  int rpc_inflight_max = 0;
  int rpc_streams_max = 0;
  int rpc_request_bytes_max = 0;
  absl::Duration rpc_deadline_default;
  absl::Duration rpc_connection_age_max;
  absl::Duration watchdog_period;
  bool breaker = true;
  int breaker_pending_max = 0;
  int breaker_failures_max = 0;
  absl::Duration breaker_open;
  absl::Duration breaker_open_max;
};

ServerConfig ServerConfigFromFlags();

// INVALID_ARGUMENT when a value is out of its range; names the flag.
absl::Status CheckServerConfig(const ServerConfig& config);

// `config.database` with "{context}" replaced: each context has a database of its own.
std::string DatabaseOf(const ServerConfig& config, absl::string_view context);
RpcServerOptions RpcServerOptionsOf(const ServerConfig& config);
RpcClientOptions RpcClientOptionsOf(const ServerConfig& config);

// Raises the limit of open files as far as the system lets (reliability: an exhausted one kills
// gRPC 1.51's listener). Returns the new limit.
int64_t RaiseFileLimit();

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_CONFIG_H_
