// up_gateway.h: the web side of `gaekju up`: the facade, and the Envoy in front of it.
//
//   UpGateway gateway(program, data, log_directory);
//   RETURN_IF_ERROR(gateway.Prepare(book, &next_port));        // ports; finds Envoy
//   …
//   RETURN_IF_ERROR(gateway.Start(supervisor, peers, flags, say));
//   std::cout << gateway.Commands();
//
// Without Envoy everything else runs: Start says where to get one, and goes on.
#ifndef GAEKJU_APP_UP_GATEWAY_H_
#define GAEKJU_APP_UP_GATEWAY_H_

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "app/ports.h"
#include "app/supervisor.h"
#include "app/up_file.h"

namespace gaekju::app {

// What a document prints, for a listener of our own: "http POST http://localhost:8081/orders qty=1"
// -> "http POST http://127.0.0.1:50081/orders qty=1". Also of "localhost:8081/…" and ":8081/…".
std::string AdaptedCommand(const std::string& command, int port);

class UpGateway {
 public:
  UpGateway(std::string program, std::string data, std::string log_directory)
      : program_(std::move(program)), data_(std::move(data)), log_(std::move(log_directory)) {}

  // Chooses ports: of the facade `*next_port` (private ones, when it is 0), of the listeners those
  // from --web_port_base, and those that --document_ports asks for. `more_directories`: where
  // Envoy may be, after --envoy and PATH. Errors: INVALID_ARGUMENT (no such shop), ALREADY_EXISTS
  // (a port is taken).
  absl::Status Prepare(PortBook& book, int* next_port,
                       const std::vector<std::string>& more_directories);
  // Starts both and waits until they serve. An Envoy that does not start is told to `say`, and done
  // without. Errors: of the facade's start.
  absl::Status Start(Supervisor& supervisor, const std::string& peers,
                     const std::vector<std::string>& flags,
                     const std::function<void(const std::string&)>& say);
  // What was started, in the order to stop it.
  std::vector<Child*> children() const;
  void Fill(UpFile* up) const;
  // How to call it from the web; empty without Envoy.
  std::string Commands(const std::vector<std::string>& shops) const;

 private:
  struct Shop {
    std::string name;
    std::vector<int> document_ports;
    std::string example;
  };

  const std::string program_, data_, log_;
  std::string envoy_;  // its path; empty: there is none
  std::vector<Shop> shops_;
  std::map<std::string, std::vector<int>> web_ports_;  // listener -> ports, its own first
  int facade_port_ = 0, facade_metrics_port_ = 0, admin_port_ = 0;
  Child* facade_ = nullptr;
  Child* gateway_ = nullptr;
};

}  // namespace gaekju::app

#endif  // GAEKJU_APP_UP_GATEWAY_H_
