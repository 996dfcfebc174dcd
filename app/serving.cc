#include "app/serving.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "flow/check.h"
#include "runtime/log.h"

namespace gaekju::app {

absl::StatusOr<runtime::Metrics*> BeginServing(const runtime::ServerConfig& config) {
  absl::Status status = runtime::CheckServerConfig(config);
  if (status.ok()) status = runtime::ConfigureLog(config.log_level, config.log_format);
  if (!status.ok()) return status;
  runtime::RaiseFileLimit();
  for (const std::string& warning : runtime::UnknownEnvironment()) runtime::LogWarning(warning);
  // Never destroyed: civetweb takes up to 2 s to stop, and a restart should not.
  static auto& metrics = *new runtime::Metrics();
  static auto& exposer = *new runtime::MetricsExposer();
  if (config.metrics.empty()) return &metrics;
  if (auto port = exposer.Start(config.metrics, &metrics); !port.ok()) {
    return absl::Status(port.status().code(),
                        absl::StrCat(port.status().message(), " (--metrics; empty serves none)"));
  }
  return &metrics;
}

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
