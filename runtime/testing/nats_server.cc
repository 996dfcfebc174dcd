#include "runtime/testing/nats_server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flow/check.h"

namespace gaekju::runtime {
namespace {

constexpr auto kStartTimeout = std::chrono::seconds(20);

sockaddr_in Loopback(int port) {
  sockaddr_in address;
  std::memset(&address, 0, sizeof(address));
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

// A port that nobody listens on now. Somebody may take it before the server does: the server then
// ends and another is tried.
int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  GK_CHECK(fd >= 0) << strerror(errno);
  sockaddr_in address = Loopback(0);
  GK_CHECK(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0)
      << strerror(errno);
  socklen_t length = sizeof(address);
  GK_CHECK(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0) << strerror(errno);
  close(fd);
  return ntohs(address.sin_port);
}

// Whether a NATS server greets on the port: its first bytes are "INFO".
bool Greets(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  GK_CHECK(fd >= 0) << strerror(errno);
  sockaddr_in address = Loopback(port);
  char greeting[4] = {};
  bool greets = false;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    pollfd ready = {fd, POLLIN, 0};
    greets = poll(&ready, 1, 1000) == 1 && recv(fd, greeting, 4, MSG_WAITALL) == 4 &&
             std::memcmp(greeting, "INFO", 4) == 0;
  }
  close(fd);
  return greets;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

NatsServer::NatsServer() {
  const char* base = getenv("TMPDIR");
  std::string pattern = absl::StrCat(base != nullptr ? base : "/tmp", "/gaekju_nats_XXXXXX");
  GK_CHECK(mkdtemp(pattern.data()) != nullptr) << strerror(errno);
  directory_ = pattern;
  port_ = FreePort();
  Start();
}

NatsServer::~NatsServer() {
  if (running()) Kill();
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

void NatsServer::Start() {
  GK_CHECK(!running());
  const std::string log = absl::StrCat(directory_, "/log");
  const std::string port = std::to_string(port_);
  const std::string store = absl::StrCat(directory_, "/store");
  const char* args[] = {"nats-server", "-a",  "127.0.0.1",   "-p",   port.c_str(),
                        "-js",         "-sd", store.c_str(), nullptr};
  const pid_t parent = getpid();
  pid_ = fork();
  GK_CHECK(pid_ >= 0) << strerror(errno);
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // ends with the test, whatever happens to it
    if (getppid() != parent) _exit(1);
    const int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    execvp(args[0], const_cast<char**>(args));
    execv("/usr/sbin/nats-server", const_cast<char**>(args));
    _exit(127);
  }
  const auto give_up = std::chrono::steady_clock::now() + kStartTimeout;
  while (!Greets(port_)) {
    int status = 0;
    GK_CHECK(waitpid(pid_, &status, WNOHANG) == 0)
        << "nats-server ended with status " << status << " (127: not installed)\n"
        << ReadFile(log);
    GK_CHECK(std::chrono::steady_clock::now() < give_up) << "nats-server does not answer\n"
                                                         << ReadFile(log);
    poll(nullptr, 0, 5);  // between two looks at the port
  }
}

void NatsServer::Kill() {
  GK_CHECK(running());
  kill(pid_, SIGKILL);
  Reap();
}

void NatsServer::Stop() {
  GK_CHECK(running());
  kill(pid_, SIGTERM);
  Reap();
}

void NatsServer::Reap() {
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
}

void NatsServer::WipeStore() {
  GK_CHECK(!running());
  std::filesystem::remove_all(absl::StrCat(directory_, "/store"));
}

void NatsServer::KeepStore() {
  GK_CHECK(!running());
  const std::string kept = absl::StrCat(directory_, "/kept");
  std::filesystem::remove_all(kept);
  std::filesystem::copy(absl::StrCat(directory_, "/store"), kept,
                        std::filesystem::copy_options::recursive);
}

void NatsServer::PutStoreBack(bool only_messages) {
  GK_CHECK(!running());
  const std::filesystem::path kept = absl::StrCat(directory_, "/kept");
  const std::filesystem::path store = absl::StrCat(directory_, "/store");
  const auto put_back = [&](const std::filesystem::path& what) {
    std::filesystem::remove_all(store / what);
    std::filesystem::copy(kept / what, store / what, std::filesystem::copy_options::recursive);
  };
  if (!only_messages) return put_back("");
  for (const auto& entry : std::filesystem::recursive_directory_iterator(kept)) {
    if (entry.path().filename() == "msgs") put_back(std::filesystem::relative(entry.path(), kept));
  }
}

void NatsServer::Pause() {
  GK_CHECK(running());
  kill(pid_, SIGSTOP);
  int status = 0;
  GK_CHECK(waitpid(pid_, &status, WUNTRACED) == pid_ && WIFSTOPPED(status)) << status;
}

void NatsServer::Resume() {
  GK_CHECK(running());
  kill(pid_, SIGCONT);
}

std::string NatsServer::url() const { return absl::StrCat("nats://127.0.0.1:", port_); }

}  // namespace gaekju::runtime
