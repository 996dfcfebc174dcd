#include "runtime/testing/postgres.h"

#include <fcntl.h>
#include <glob.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "flow/check.h"
#include "runtime/pg.h"

namespace gaekju::runtime {
namespace {

constexpr auto kStartTimeout = std::chrono::seconds(60);

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// The folder with initdb and postgres; the newest version where there are several.
std::string BinDirectory() {
  glob_t found;
  std::memset(&found, 0, sizeof(found));
  const int result = glob("/usr/lib/postgresql/*/bin", 0, nullptr, &found);
  GK_CHECK(result == 0 && found.gl_pathc > 0) << "PostgreSQL's server is not installed";
  std::string newest = found.gl_pathv[found.gl_pathc - 1];
  globfree(&found);
  return newest;
}

}  // namespace

Postgres::Postgres() {
  const char* base = getenv("TMPDIR");
  std::string pattern = absl::StrCat(base != nullptr ? base : "/tmp", "/gaekju_pg_XXXXXX");
  GK_CHECK(mkdtemp(pattern.data()) != nullptr) << strerror(errno);
  directory_ = pattern;
  if (geteuid() == 0) {
    const passwd* user = getpwnam("postgres");
    GK_CHECK(user != nullptr) << "no user postgres";
    GK_CHECK(chown(directory_.c_str(), user->pw_uid, user->pw_gid) == 0) << strerror(errno);
  }
  const pid_t initdb = Spawn({"initdb", "-D", absl::StrCat(directory_, "/data"), "-U", "postgres",
                              "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"});
  int status = 0;
  while (waitpid(initdb, &status, 0) < 0 && errno == EINTR) {
  }
  GK_CHECK(status == 0) << "initdb failed\n" << ReadFile(absl::StrCat(directory_, "/log"));
  Start();
}

Postgres::~Postgres() {
  if (running()) Stop();
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

pid_t Postgres::Spawn(const std::vector<std::string>& args) {
  std::vector<std::string> command;
  if (geteuid() == 0) {
    command = {"setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups",
               "--pdeathsig=KILL"};
  }
  command.push_back(absl::StrCat(BinDirectory(), "/", args[0]));
  command.insert(command.end(), args.begin() + 1, args.end());
  std::vector<char*> argv;
  for (std::string& arg : command) argv.push_back(arg.data());
  argv.push_back(nullptr);
  const std::string log = absl::StrCat(directory_, "/log");
  const pid_t parent = getpid();
  const pid_t pid = fork();
  GK_CHECK(pid >= 0) << strerror(errno);
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    const int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    if (chdir(directory_.c_str()) != 0) _exit(1);
    execvp(argv[0], argv.data());
    _exit(127);
  }
  return pid;
}

void Postgres::Start() {
  GK_CHECK(!running());
  const std::string log = absl::StrCat(directory_, "/log");
  const auto give_up = std::chrono::steady_clock::now() + kStartTimeout;
  PgOptions options;
  options.conninfo = conninfo("postgres");
  while (true) {
    if (!running()) {
      // A crash costs a test nothing but the operating system's own, so no fsync.
      pid_ = Spawn({"postgres", "-D", absl::StrCat(directory_, "/data"), "-k", directory_, "-c",
                    "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=60", "-c",
                    "shared_buffers=64MB"});
    }
    if (PgConnection::Connect(options).ok()) return;
    int status = 0;
    // After a kill, backends may hold the old shared memory for a moment: it is tried again.
    if (waitpid(pid_, &status, WNOHANG) == pid_) pid_ = -1;
    GK_CHECK(std::chrono::steady_clock::now() < give_up) << "PostgreSQL does not answer\n"
                                                         << ReadFile(log);
    poll(nullptr, 0, 10);  // between two looks
  }
}

void Postgres::Kill() {
  GK_CHECK(running());
  kill(pid_, SIGKILL);
  Reap();
}

void Postgres::Stop() {
  GK_CHECK(running());
  kill(pid_, SIGQUIT);
  Reap();
}

void Postgres::Reap() {
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
}

std::string Postgres::conninfo(const std::string& database) const {
  return absl::StrCat("host=", directory_, " user=postgres dbname=", database);
}

std::string Postgres::CreateDatabase() {
  const std::string name = absl::StrCat("test_", ++database_count_);
  PgOptions options;
  options.conninfo = conninfo("postgres");
  auto pg = PgConnection::Connect(options);
  GK_CHECK(pg.ok()) << pg.status();
  const absl::Status created = (*pg)->Script(absl::StrCat("CREATE DATABASE ", name));
  GK_CHECK(created.ok()) << created;
  return conninfo(name);
}

}  // namespace gaekju::runtime
