// supervisor.h: keeps child processes running, and stops them in order.
//
//   Supervisor supervisor;                         // takes over SIGINT, SIGTERM and SIGCHLD
//   Child* nats = supervisor.Add({.name = "nats", .process = {…}});
//   supervisor.Start(nats);
//   RETURN_IF_ERROR(supervisor.WaitFor([&] { return Answers(port); }, absl::Seconds(20),
//   "nats-server")); supervisor.RunUntilStopped();                  // restarts what ends, until
//   Ctrl-C supervisor.Stop({nats}, SIGTERM, absl::Seconds(10));
//
// Invariants:
//  1. A child that ends unasked is started again after a pause that doubles from 100 ms to 5 s, and
//  is back at 100 ms once the
//     child has run for 10 s.
//  2. A child that was told to stop is never started again.
// One thread: everything happens inside WaitFor, RunUntilStopped and Stop.
#ifndef GAEKJU_APP_SUPERVISOR_H_
#define GAEKJU_APP_SUPERVISOR_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "app/process.h"

namespace gaekju::app {

// EX_CONFIG of sysexits.h: a child that ends with it before it was ever ready will not get better
// by being started again.
inline constexpr int kConfigExitCode = 78;

struct ChildSpec {
  std::string name = {};
  ProcessSpec process = {};  // output_path is rotated to <output_path>.1 when the child is added
  bool tells_ready = false;  // writes a line to the descriptor in GAEKJU_READY_FD when it can serve
  std::function<void()> before_start =
      {};  // called before each start: removes what a kill -9 left behind
  std::function<void(absl::string_view line)> on_log_line = {};  // called with each, soon
};

struct Child {
  ChildSpec spec;
  pid_t pid = 0;  // 0: not running
  bool wanted = false;
  bool ready = false;  // only when it tells
  int start_count = 0;
  int last_exit = 0;  // a wait status
  absl::Time start_time = absl::InfinitePast();
  absl::Time restart_time = absl::InfiniteFuture();
  absl::Duration pause = absl::ZeroDuration();
  int ready_fd = -1;
  int64_t shown_bytes = 0;  // of the log, to echo or on_log_line
};

class Supervisor {
 public:
  Supervisor();
  // Kills what still runs.
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  Child* Add(ChildSpec spec);
  // REQUIRES: `child` is of this supervisor, and not running.
  absl::Status Start(Child* child);
  // Handles children and signals until `condition` holds. Errors: CANCELLED (asked to stop),
  // DEADLINE_EXCEEDED ("<what> …"), ABORTED (a child gave up with kConfigExitCode, or ended five
  // times without ever having been ready).
  absl::Status WaitFor(const std::function<bool()>& condition, absl::Duration timeout,
                       const std::string& what);
  void RunUntilStopped();
  // Sends `signal` to all of them and waits; kills what is left after `timeout`, or at once when
  // asked to stop again. False when something had to be killed.
  bool Stop(const std::vector<Child*>& children, int signal, absl::Duration timeout);

  // Echoes and hands on what the children have logged by now. All that waits here does so too.
  void ReadLogs();
  bool stop_requested() const { return stop_count_ > 0; }
  const std::vector<std::unique_ptr<Child>>& children() const { return children_; }

  // Whether the children's new log lines are shown, prefixed with their names.
  bool echo = false;
  // Called after any child has started, ended or become ready.
  std::function<void()> on_change;
  // Called with a line for people, e.g. "payment ended with signal 9 (Killed); again in 100 ms".
  std::function<void(const std::string&)> on_line;

 private:
  void Step(absl::Duration longest);
  void Reap();
  void ReadSignals();
  void ReadReady(Child* child);
  void Ended(Child* child, int wait_status);

  std::vector<std::unique_ptr<Child>> children_;
  int signal_fd_ = -1;
  int stop_count_ = 0;
  absl::Status gave_up_;
};

}  // namespace gaekju::app

#endif  // GAEKJU_APP_SUPERVISOR_H_
