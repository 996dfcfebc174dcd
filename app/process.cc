#include "app/process.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"

extern char** environ;

namespace gaekju::app {
namespace {

// Where a child failed before exec, told to the parent over a pipe that exec closes.
struct StartFailure {
  enum Stage { kOutput, kDirectory, kUser, kExec } stage;
  int error;
};

const char* StageName(StartFailure::Stage stage) {
  switch (stage) {
    case StartFailure::kOutput:
      return "cannot open its log";
    case StartFailure::kDirectory:
      return "cannot enter its directory";
    case StartFailure::kUser:
      return "cannot become the other user";
    case StartFailure::kExec:
      return "cannot be executed";
  }
  return "failed";
}

std::vector<std::string> ChildEnvironment(const ProcessSpec& spec, int notify_fd) {
  std::vector<std::pair<std::string, std::string>> extra = spec.environment;
  if (notify_fd >= 0) extra.emplace_back(spec.notify_variable, absl::StrCat(notify_fd));
  std::vector<std::string> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string name(*entry, strcspn(*entry, "="));
    bool replaced = false;
    for (const auto& [key, value] : extra) replaced |= key == name;
    if (!replaced) environment.emplace_back(*entry);
  }
  for (const auto& [key, value] : extra) environment.push_back(absl::StrCat(key, "=", value));
  return environment;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& s : strings) pointers.push_back(s.data());
  pointers.push_back(nullptr);
  return pointers;
}

}  // namespace

absl::StatusOr<pid_t> StartProcess(const ProcessSpec& spec) {
  int failure_pipe[2];
  if (pipe2(failure_pipe, O_CLOEXEC) != 0) return absl::InternalError("no pipe");
  absl::Cleanup close_failure = [&] { close(failure_pipe[0]); };
  int notify_pipe[2] = {-1, -1};
  if (spec.notify_fd != nullptr && pipe2(notify_pipe, O_CLOEXEC | O_NONBLOCK) != 0) {
    close(failure_pipe[1]);
    return absl::InternalError("no pipe");
  }

  // Everything that allocates happens before the fork.
  std::vector<std::string> arguments = spec.argv;
  std::vector<std::string> environment = ChildEnvironment(spec, notify_pipe[1]);
  std::vector<char*> argv = Pointers(arguments);
  std::vector<char*> envp = Pointers(environment);
  const pid_t parent = getpid();

  const pid_t pid = fork();
  if (pid == 0) {
    auto fail = [&](StartFailure::Stage stage) {
      const StartFailure failure{stage, errno};
      [[maybe_unused]] ssize_t n = write(failure_pipe[1], &failure, sizeof(failure));
      _exit(127);
    };
    setpgid(0, 0);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    for (int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGCHLD}) ::signal(signal, SIG_DFL);
    const int null_fd = open("/dev/null", O_RDONLY);
    if (null_fd >= 0) dup2(null_fd, STDIN_FILENO);
    if (!spec.output_path.empty()) {
      const int out =
          open(spec.output_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
      if (out < 0) fail(StartFailure::kOutput);
      dup2(out, STDOUT_FILENO);
      dup2(out, STDERR_FILENO);
    }
    if (!spec.directory.empty() && chdir(spec.directory.c_str()) != 0)
      fail(StartFailure::kDirectory);
    if (notify_pipe[1] >= 0) fcntl(notify_pipe[1], F_SETFD, 0);
    if (spec.user.has_value()) {
      if (initgroups(spec.user->name.c_str(), spec.user->gid) != 0 || setgid(spec.user->gid) != 0 ||
          setuid(spec.user->uid) != 0) {
        fail(StartFailure::kUser);
      }
    }
    // After setuid, which clears it. The parent may have died before this line.
    prctl(PR_SET_PDEATHSIG, spec.death_signal);
    if (getppid() != parent) _exit(127);
    execve(argv[0], argv.data(), envp.data());
    fail(StartFailure::kExec);
  }
  close(failure_pipe[1]);
  if (notify_pipe[1] >= 0) close(notify_pipe[1]);
  if (pid < 0) {
    if (notify_pipe[0] >= 0) close(notify_pipe[0]);
    return absl::InternalError(absl::StrCat("cannot fork: ", strerror(errno)));
  }
  setpgid(pid, pid);  // both sides, so that it is done whoever runs first
  StartFailure failure;
  ssize_t n;
  do {
    n = read(failure_pipe[0], &failure, sizeof(failure));
  } while (n < 0 && errno == EINTR);
  if (n == sizeof(failure)) {
    waitpid(pid, nullptr, 0);
    if (notify_pipe[0] >= 0) close(notify_pipe[0]);
    const std::string text =
        absl::StrCat(spec.argv[0], " ", StageName(failure.stage), ": ", strerror(failure.error));
    if (failure.stage == StartFailure::kExec) return absl::NotFoundError(text);
    return absl::InternalError(text);
  }
  if (spec.notify_fd != nullptr) *spec.notify_fd = notify_pipe[0];
  return pid;
}

absl::Status RunProcess(const ProcessSpec& spec, absl::Duration timeout) {
  absl::StatusOr<pid_t> pid = StartProcess(spec);
  if (!pid.ok()) return pid.status();
  const absl::Time deadline = absl::Now() + timeout;
  int wait_status = 0;
  // Polled: initdb takes seconds, and a caller's SIGCHLD handling must not matter.
  while (waitpid(*pid, &wait_status, WNOHANG) == 0) {
    if (absl::Now() > deadline) {
      kill(-*pid, SIGKILL);
      waitpid(*pid, &wait_status, 0);
      return absl::DeadlineExceededError(
          absl::StrCat(spec.argv[0], " took more than ", absl::FormatDuration(timeout)));
    }
    const timespec pause{0, 5'000'000};
    nanosleep(&pause, nullptr);
  }
  if (WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0) return absl::OkStatus();
  return absl::AbortedError(
      absl::StrCat(spec.argv[0], " ended with ", DescribeExit(wait_status),
                   spec.output_path.empty() ? "" : ":\n",
                   spec.output_path.empty() ? "" : LastLines(spec.output_path, 15)));
}

std::string DescribeExit(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    return absl::StrCat("signal ", WTERMSIG(wait_status), " (", strsignal(WTERMSIG(wait_status)),
                        ")");
  }
  return absl::StrCat("exit code ", WEXITSTATUS(wait_status));
}

std::string LastLines(const std::string& path, int line_count) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) return "";
  const std::streamoff size = in.tellg();
  constexpr std::streamoff kTailBytesMax = 16384;
  in.seekg(std::max<std::streamoff>(0, size - kTailBytesMax));
  const std::string tail((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  std::vector<std::string> lines = absl::StrSplit(tail, '\n');
  if (!lines.empty() && lines.back().empty()) lines.pop_back();
  if (static_cast<int>(lines.size()) > line_count)
    lines.erase(lines.begin(), lines.end() - line_count);
  return absl::StrJoin(lines, "\n");
}

absl::StatusOr<std::optional<ProcessUser>> UnprivilegedUser(const std::string& name) {
  if (geteuid() != 0) return std::optional<ProcessUser>();
  const passwd* entry = getpwnam(name.c_str());
  if (entry == nullptr) {
    return absl::NotFoundError(absl::StrCat(
        "PostgreSQL does not run as root, and there is no user '", name, "' to run it as"));
  }
  return std::optional<ProcessUser>(ProcessUser{name, entry->pw_uid, entry->pw_gid});
}

absl::StatusOr<std::string> FindProgram(const std::string& program,
                                        const std::vector<std::string>& more_directories) {
  const char* path = getenv("PATH");
  std::vector<std::string> directories =
      absl::StrSplit(path == nullptr ? "" : path, ':', absl::SkipEmpty());
  directories.insert(directories.end(), more_directories.begin(), more_directories.end());
  for (const std::string& directory : directories) {
    const std::string candidate = absl::StrCat(directory, "/", program);
    if (access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return absl::NotFoundError(absl::StrCat("there is no ", program, " on this machine"));
}

}  // namespace gaekju::app
