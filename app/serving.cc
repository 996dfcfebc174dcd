#include "app/serving.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "absl/strings/numbers.h"
#include "flow/check.h"

namespace gaekju::app {

void TellReady() {
  const char* variable = getenv("GAEKJU_READY_FD");
  int fd = -1;
  if (variable == nullptr || !absl::SimpleAtoi(variable, &fd)) return;
  [[maybe_unused]] ssize_t n = write(fd, "ready\n", 6);
  close(fd);
  unsetenv("GAEKJU_READY_FD");
}

StopSignal::StopSignal() {
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGTERM);
  sigaddset(&mask, SIGINT);
  GK_CHECK(pthread_sigmask(SIG_BLOCK, &mask, nullptr) == 0);
  fd_ = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
  GK_CHECK(fd_ >= 0);
  signal(SIGPIPE, SIG_IGN);
}

bool StopSignal::requested() {
  signalfd_siginfo info;
  if (!requested_ && read(fd_, &info, sizeof(info)) == sizeof(info)) requested_ = true;
  return requested_;
}

bool StopSignal::Wait(int milliseconds) {
  pollfd fds{fd_, POLLIN, 0};
  poll(&fds, 1, milliseconds);
  return requested();
}

}  // namespace gaekju::app
