// up_file.h: <data>/up.json, where `gaekju up` says what runs where, for tools and tests. It is
// there exactly while `up` runs (or was killed: look whether `pid` lives), is replaced atomically
// whenever a child starts or ends, and holds passwords (mode 0600).
//
//   {
//     "pid": 4711, "data": "/var/lib/gaekju", "ready": true, "storefronts": "/…/storefronts",
//     "postgres": {"pid": 4712, "port": 24017, "dsn": "postgresql://…/postgres", "log": "…"},
//     "nats":     {"pid": 4713, "port": 25001, "url": "nats://gaekju:…@127.0.0.1:25001", "store":
//     "/var/lib/gaekju/nats", "log": "…"}, "contexts": {
//       "order":  {"pid": 4714, "ready": true, "address": "127.0.0.1:50051", "port": 50051,
//       "metrics": "127.0.0.1:22310",
//                  "dsn": "postgresql://…/order", "log": "/var/lib/gaekju/log/order.log", "starts":
//                  1}, …
//     },
//     "facade":   {"pid": 4720, "port": 50060, "log": "…"},
//     "gateway":  {"pid": 4721, "port": 21003, "log": "…"},
//     "web":      {"api": 50080, "<storefront>": 50081, …}
//   }
//
// A pid of 0: not running now.
#ifndef GAEKJU_APP_UP_FILE_H_
#define GAEKJU_APP_UP_FILE_H_

#include <sys/types.h>

#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace gaekju::app {

struct UpFile {
  struct Server {
    pid_t pid = 0;
    int port = 0;
    std::string url = {};    // nats: how to connect; postgres: the DSN of the database "postgres"
    std::string store = {};  // nats
    std::string log = {};
  };
  struct Context {
    pid_t pid = 0;
    bool ready = false;
    int port = 0;
    std::string metrics = {};
    std::string dsn = {};
    std::string log = {};
    int start_count = 0;
    std::string address() const;
  };
  pid_t pid = 0;
  std::string data = {};
  std::string storefronts = {};
  bool ready = false;  // everything serves, and the demo is there
  Server postgres = {}, nats = {};
  Server facade = {};   // the port is of its gRPC
  Server gateway = {};  // Envoy; the port is of its admin interface; 0: there is none
  std::map<std::string, int> web =
      {};  // listener ("api", a shop) -> port, where there is a gateway
  std::map<std::string, Context> contexts = {};
};

std::string UpFilePath(const std::string& data_directory);
absl::Status WriteUpFile(const UpFile& up);
// Errors: NOT_FOUND (nothing runs there; says how to start it), INVALID_ARGUMENT (not ours).
absl::StatusOr<UpFile> ReadUpFile(const std::string& data_directory);

// Where `up` keeps its data unless told: /var/lib/gaekju for root, else $XDG_STATE_HOME/gaekju or
// ~/.local/state/gaekju.
std::string DefaultDataDirectory();

}  // namespace gaekju::app

#endif  // GAEKJU_APP_UP_FILE_H_
