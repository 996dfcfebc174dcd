// process.h: starts child processes that cannot outlive us.
//
//   absl::StatusOr<pid_t> pid = StartProcess({.argv = {"/usr/sbin/nats-server", "-c", "nats.conf"},
//   .output_path = "nats.log"});
//
// A child is the leader of a process group of its own (so that Ctrl-C reaches only us), and gets
// `death_signal` from the kernel when the thread that started it ends: start children from the main
// thread only. Not for processes with other threads that hold locks at fork time: what runs between
// fork and exec is async-signal-safe.
#ifndef GAEKJU_APP_PROCESS_H_
#define GAEKJU_APP_PROCESS_H_

#include <signal.h>
#include <sys/types.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace gaekju::app {

// Another user to run a child as. Only root can.
struct ProcessUser {
  std::string name = {};
  uid_t uid = 0;
  gid_t gid = 0;
};

struct ProcessSpec {
  std::vector<std::string> argv = {};                                 // argv[0] is a path
  std::vector<std::pair<std::string, std::string>> environment = {};  // on top of ours
  std::string output_path = {};  // stdout and stderr are appended here; empty: ours
  std::string directory = {};    // working directory; empty: ours
  std::optional<ProcessUser> user = {};
  int death_signal = SIGKILL;
  // When set, the child's end of a pipe is in the variable of this name; what the child writes can
  // be read from *notify_fd.
  std::string notify_variable = {};
  int* notify_fd = nullptr;
};

// Forks and executes. Errors: NOT_FOUND (argv[0] cannot be executed), INTERNAL (fork, pipe, or the
// output file).
absl::StatusOr<pid_t> StartProcess(const ProcessSpec& spec);

// Runs a process to its end. Errors: as StartProcess; DEADLINE_EXCEEDED (it was killed); ABORTED
// (exit code not 0, with the end of its output when `output_path` is set).
absl::Status RunProcess(const ProcessSpec& spec, absl::Duration timeout);

// "exit code 3", "signal 9 (Killed)".
std::string DescribeExit(int wait_status);

// The last `line_count` lines of a file; empty when it cannot be read.
std::string LastLines(const std::string& path, int line_count);

// The user to run PostgreSQL as: `name` when we are root (PostgreSQL refuses root), else nobody
// else. Errors: NOT_FOUND, when we are root and there is no such user.
absl::StatusOr<std::optional<ProcessUser>> UnprivilegedUser(const std::string& name);

// The first executable `program` in PATH and in `more_directories`. Errors: NOT_FOUND.
absl::StatusOr<std::string> FindProgram(const std::string& program,
                                        const std::vector<std::string>& more_directories);

}  // namespace gaekju::app

#endif  // GAEKJU_APP_PROCESS_H_
