#include "app/supervisor.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "flow/check.h"

namespace gaekju::app {
namespace {

constexpr absl::Duration kPauseMin = absl::Milliseconds(100);
constexpr absl::Duration kPauseMax = absl::Seconds(5);
// A child that ran this long is taken to be sound: its next failure is a new one.
constexpr absl::Duration kSoundAfter = absl::Seconds(10);
// A child that ends this often without ever having been ready is broken, not unlucky.
constexpr int kStartsBeforeGivingUp = 5;

}  // namespace

Supervisor::Supervisor() {
  sigset_t mask;
  sigemptyset(&mask);
  for (int signal : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) sigaddset(&mask, signal);
  GK_CHECK(sigprocmask(SIG_BLOCK, &mask, nullptr) == 0);
  signal_fd_ = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
  GK_CHECK(signal_fd_ >= 0);
  signal(SIGPIPE, SIG_IGN);
}

Supervisor::~Supervisor() {
  for (const auto& child : children_) {
    if (child->pid > 0) {
      kill(child->pid, child->spec.process.death_signal);
      waitpid(child->pid, nullptr, 0);
    }
    if (child->ready_fd >= 0) close(child->ready_fd);
  }
  close(signal_fd_);
}

Child* Supervisor::Add(ChildSpec spec) {
  const std::string& log = spec.process.output_path;
  if (!log.empty()) rename(log.c_str(), absl::StrCat(log, ".1").c_str());
  children_.push_back(std::make_unique<Child>());
  children_.back()->spec = std::move(spec);
  return children_.back().get();
}

absl::Status Supervisor::Start(Child* child) {
  GK_CHECK(child->pid == 0);
  if (child->spec.before_start) child->spec.before_start();
  ProcessSpec process = child->spec.process;
  if (child->ready_fd >= 0) {
    close(child->ready_fd);
    child->ready_fd = -1;
  }
  if (child->spec.tells_ready) {
    process.notify_variable = "GAEKJU_READY_FD";
    process.notify_fd = &child->ready_fd;
  }
  absl::StatusOr<pid_t> pid = StartProcess(process);
  if (!pid.ok()) return pid.status();
  child->pid = *pid;
  child->wanted = true;
  child->ready = false;
  ++child->start_count;
  child->start_time = absl::Now();
  child->restart_time = absl::InfiniteFuture();
  if (on_change) on_change();
  return absl::OkStatus();
}

absl::Status Supervisor::WaitFor(const std::function<bool()>& condition, absl::Duration timeout,
                                 const std::string& what) {
  const absl::Time deadline = absl::Now() + timeout;
  for (;;) {
    if (stop_count_ > 0) return absl::CancelledError("asked to stop");
    if (!gave_up_.ok()) return gave_up_;
    if (condition()) return absl::OkStatus();
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat(what, " took more than ", absl::FormatDuration(timeout)));
    }
    Step(absl::Milliseconds(20));
  }
}

void Supervisor::RunUntilStopped() {
  while (stop_count_ == 0) Step(echo ? absl::Milliseconds(100) : absl::Seconds(1));
}

bool Supervisor::Stop(const std::vector<Child*>& children, int signal, absl::Duration timeout) {
  for (Child* child : children) {
    child->wanted = false;
    child->restart_time = absl::InfiniteFuture();
    if (child->pid > 0) kill(child->pid, signal);
  }
  const absl::Time deadline = absl::Now() + timeout;
  const int asked = stop_count_;
  auto running = [&] {
    return std::any_of(children.begin(), children.end(), [](const Child* c) { return c->pid > 0; });
  };
  bool clean = true;
  while (running()) {
    if (clean && (absl::Now() > deadline || stop_count_ > std::max(asked, 1))) {
      clean = false;
      for (Child* child : children) {
        if (child->pid == 0) continue;
        if (on_line)
          on_line(
              absl::StrCat(child->spec.name, " (pid ", child->pid, ") does not stop; killing it"));
        kill(child->pid, SIGKILL);
      }
    }
    Step(absl::Milliseconds(20));
  }
  return clean;
}

void Supervisor::Step(absl::Duration longest) {
  const absl::Time now = absl::Now();
  absl::Duration wait = longest;
  for (const auto& child : children_) wait = std::min(wait, child->restart_time - now);
  wait = std::max(wait, absl::ZeroDuration());

  std::vector<pollfd> fds = {{signal_fd_, POLLIN, 0}};
  std::vector<Child*> owners = {nullptr};
  for (const auto& child : children_) {
    if (child->ready_fd < 0) continue;
    fds.push_back({child->ready_fd, POLLIN, 0});
    owners.push_back(child.get());
  }
  poll(fds.data(), fds.size(),
       static_cast<int>(absl::ToInt64Milliseconds(absl::Ceil(wait, absl::Milliseconds(1)))));
  ReadSignals();
  for (size_t i = 1; i < fds.size(); ++i) {
    if (fds[i].revents != 0) ReadReady(owners[i]);
  }
  Reap();
  for (const auto& child : children_) {
    if (!child->wanted || child->pid != 0 || child->restart_time > absl::Now()) continue;
    absl::Status status = Start(child.get());
    if (!status.ok()) {
      if (on_line) on_line(std::string(status.message()));
      child->restart_time = absl::Now() + kPauseMax;
    }
  }
  ReadLogs();
}

void Supervisor::ReadSignals() {
  signalfd_siginfo info;
  while (read(signal_fd_, &info, sizeof(info)) == sizeof(info)) {
    if (info.ssi_signo != SIGCHLD) ++stop_count_;
  }
}

void Supervisor::Reap() {
  for (const auto& child : children_) {
    int wait_status = 0;
    if (child->pid > 0 && waitpid(child->pid, &wait_status, WNOHANG) == child->pid)
      Ended(child.get(), wait_status);
  }
}

void Supervisor::Ended(Child* child, int wait_status) {
  const absl::Time now = absl::Now();
  const bool was_ready = child->ready;
  child->pid = 0;
  child->ready = false;
  child->last_exit = wait_status;
  if (child->wanted) {
    const bool sound = now - child->start_time > kSoundAfter;
    child->pause = sound ? kPauseMin : std::clamp(child->pause * 2, kPauseMin, kPauseMax);
    child->restart_time = now + child->pause;
    if (child->spec.tells_ready && !was_ready) {
      const bool hopeless = WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == kConfigExitCode;
      if (hopeless || child->start_count >= kStartsBeforeGivingUp) {
        gave_up_ = absl::AbortedError(absl::StrCat(child->spec.name, " does not start (",
                                                   DescribeExit(wait_status), "). The end of ",
                                                   child->spec.process.output_path, ":\n",
                                                   LastLines(child->spec.process.output_path, 12)));
      }
    }
    if (on_line) {
      on_line(absl::StrCat(child->spec.name, " ended with ", DescribeExit(wait_status),
                           "; starting it again in ", absl::FormatDuration(child->pause)));
    }
  }
  if (on_change) on_change();
}

void Supervisor::ReadReady(Child* child) {
  char buffer[256];
  const ssize_t n = read(child->ready_fd, buffer, sizeof(buffer));
  if (n > 0) {
    child->ready = true;
    if (child->start_count > 1 && on_line) {
      on_line(absl::StrCat(child->spec.name, " serves again (pid ", child->pid, ")"));
    }
    child->start_count = std::min(child->start_count, 2);  // the failures before it are forgiven
    if (on_change) on_change();
  } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
    close(child->ready_fd);
    child->ready_fd = -1;
  }
}

void Supervisor::ReadLogs() {
  for (const auto& child : children_) {
    if (!echo && child->spec.on_log_line == nullptr) continue;
    const std::string& path = child->spec.process.output_path;
    struct stat info;
    if (path.empty() || stat(path.c_str(), &info) != 0 || info.st_size <= child->shown_bytes)
      continue;
    std::ifstream in(path, std::ios::binary);
    in.seekg(child->shown_bytes);
    std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    const size_t end = text.rfind('\n');  // whole lines only
    if (end == std::string::npos) continue;
    text.resize(end);
    child->shown_bytes += static_cast<int64_t>(end) + 1;
    for (absl::string_view line : absl::StrSplit(text, '\n')) {
      if (echo) {
        fprintf(stderr, "%-9s| %.*s\n", child->spec.name.c_str(), static_cast<int>(line.size()),
                line.data());
      }
      if (child->spec.on_log_line) child->spec.on_log_line(line);
    }
  }
}

}  // namespace gaekju::app
