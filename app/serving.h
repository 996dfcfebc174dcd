// serving.h: how a process that serves lives: it begins as its configuration says, tells its
// supervisor when it is ready, and ends when it is told to.
//
//   StopSignal stop;                    // before any thread starts
//   auto metrics = BeginServing(config);
//   …
//   TellReady();
//   while (!stop.Wait(1000)) {}
#ifndef GAEKJU_APP_SERVING_H_
#define GAEKJU_APP_SERVING_H_

#include <atomic>

#include "absl/status/statusor.h"
#include "runtime/config.h"
#include "runtime/metrics.h"

namespace gaekju::app {

// Checks the configuration, opens the log, lifts the limit of files and serves metrics, which are
// never destroyed. An error is one of the configuration.
absl::StatusOr<runtime::Metrics*> BeginServing(const runtime::ServerConfig& config);

// Tells a supervisor, once, that everything serves: a line to the descriptor in GAEKJU_READY_FD.
void TellReady();

// SIGTERM and SIGINT, read by one thread; blocked in all others.
class StopSignal {
 public:
  StopSignal();
  // Whether one has come. Thread-safe.
  bool requested();
  // Waits for one, at most that long.
  bool Wait(int milliseconds);

 private:
  int fd_ = -1;
  std::atomic<bool> requested_{false};
};

}  // namespace gaekju::app

#endif  // GAEKJU_APP_SERVING_H_
