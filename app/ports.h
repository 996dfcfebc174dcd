// ports.h: TCP ports on loopback: which are free, and which we chose before.
//
//   PortBook book("<data>/ports");                       // "postgres 24017" a line
//   absl::StatusOr<int> port = book.Private("postgres");  // the same after a restart, another one
//   when somebody took it RETURN_IF_ERROR(book.Save());
#ifndef GAEKJU_APP_PORTS_H_
#define GAEKJU_APP_PORTS_H_

#include <map>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace gaekju::app {

// Whether 127.0.0.1:port can be bound.
bool PortIsFree(int port);
// Whether somebody accepts connections at 127.0.0.1:port.
bool PortAnswers(int port);
// "pid 123 (postgres)", as far as /proc lets us see; "another process" otherwise.
std::string PortOwner(int port);

class PortBook {
 public:
  explicit PortBook(std::string path);  // reads the file, when there is one

  // The remembered port of `name`, or a free one when there is none or it is taken. Free ports are
  // taken from below the range that the kernel gives to outgoing connections, so that none of those
  // sits on the port while its owner restarts. Errors: RESOURCE_EXHAUSTED.
  absl::StatusOr<int> Private(const std::string& name);
  // `port`, for `name`. Errors: ALREADY_EXISTS (taken; names the port, its owner, and `flag`).
  absl::StatusOr<int> Fixed(const std::string& name, int port, const std::string& flag);
  absl::Status Save() const;

 private:
  const std::string path_;
  std::map<std::string, int> ports_;
  std::set<int> handed_out_;
};

}  // namespace gaekju::app

#endif  // GAEKJU_APP_PORTS_H_
