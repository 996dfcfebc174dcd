// serving.h: how a process that serves lives: it tells its supervisor when it is ready, and ends
// when it is told to.
//
//   StopSignal stop;                    // before any thread starts
//   …
//   TellReady();
//   while (!stop.Wait(1000)) {}
#ifndef GAEKJU_APP_SERVING_H_
#define GAEKJU_APP_SERVING_H_

#include <atomic>

namespace gaekju::app {

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
