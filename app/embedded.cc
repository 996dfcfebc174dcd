#include "app/embedded.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libpq-fe.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "app/files.h"
#include "app/ports.h"

namespace gaekju::app {
namespace {

constexpr char kUser[] = "gaekju";
// sockaddr_un holds 107 bytes; PostgreSQL adds "/.s.PGSQL.65535".
constexpr size_t kSocketDirectoryBytesMax = 90;
// Between two PostgreSQL statements of people, not of us: the contexts set tighter ones themselves.
// What a shop on one small machine needs; fsync and full_page_writes stay on.
constexpr std::pair<const char*, const char*> kPostgresSettings[] = {
    {"shared_buffers", "256MB"},
    {"max_connections", "200"},
    {"max_wal_size", "4GB"},  // checkpoints by time, not by traffic
    {"checkpoint_timeout", "10min"},
    {"wal_compression", "lz4"},  // pages in the WAL after a checkpoint: half the bytes
    {"jit", "off"},              // statements of microseconds
    {"client_connection_check_interval", "1s"},
    {"log_min_duration_statement", "1s"},
    {"log_line_prefix", "%m [%p] %a %d "},
    {"log_timezone", "UTC"},
};

// Whether `user` (or we) may do `mode` (R_OK, X_OK bits) in a directory, by its mode bits.
bool MayEnter(const struct stat& info, const std::optional<ProcessUser>& user) {
  if (!user.has_value()) return true;  // we are that user; mkdir tells
  if (info.st_uid == user->uid) return (info.st_mode & S_IXUSR) != 0;
  if (info.st_gid == user->gid) return (info.st_mode & S_IXGRP) != 0;
  return (info.st_mode & S_IXOTH) != 0;
}

// Processes whose working directory is `directory`.
std::vector<pid_t> ProcessesIn(const std::string& directory) {
  std::vector<pid_t> found;
  std::unique_ptr<DIR, int (*)(DIR*)> processes(opendir("/proc"), closedir);
  if (processes == nullptr) return found;
  while (const dirent* process = readdir(processes.get())) {
    pid_t pid = 0;
    if (absl::SimpleAtoi(process->d_name, &pid) &&
        ReadLink(absl::StrCat("/proc/", pid, "/cwd")) == directory) {
      found.push_back(pid);
    }
  }
  return found;
}

std::string UrlEncode(const std::string& text) {
  std::string encoded;
  for (unsigned char c : text) {
    if (isalnum(c) || strchr("-_.~", c) != nullptr) {
      encoded.push_back(static_cast<char>(c));
    } else {
      absl::StrAppend(&encoded, "%", absl::Hex(c, absl::kZeroPad2));
    }
  }
  return encoded;
}

}  // namespace

EmbeddedPaths::EmbeddedPaths(const std::string& d)
    : data(d),
      postgres(d + "/postgres"),
      run(d + "/run"),
      nats(d + "/nats"),
      nats_conf(d + "/nats.conf"),
      secret(d + "/secret"),
      log(d + "/log") {}

absl::StatusOr<EmbeddedPrograms> FindEmbeddedPrograms(const std::string& postgres_directory) {
  // Debian keeps the server's programs out of PATH, by major version; the newest first.
  std::vector<std::string> directories;
  if (!postgres_directory.empty()) {
    directories.push_back(postgres_directory);
  } else {
    std::vector<std::pair<int, std::string>> versions;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator("/usr/lib/postgresql", error)) {
      int major = 0;
      if (absl::SimpleAtoi(entry.path().filename().string(), &major) &&
          FileExists(entry.path() / "bin/postgres")) {
        versions.emplace_back(-major, entry.path() / "bin");
      }
    }
    std::sort(versions.begin(), versions.end());
    for (const auto& [major, directory] : versions) directories.push_back(directory);
  }

  EmbeddedPrograms programs;
  std::vector<std::string> packages;
  for (const std::string& directory : directories) {
    if (FileExists(directory + "/postgres") && FileExists(directory + "/initdb")) {
      programs.postgres = directory + "/postgres";
      programs.initdb = directory + "/initdb";
      break;
    }
  }
  if (programs.postgres.empty() && postgres_directory.empty()) {
    programs.postgres = FindProgram("postgres", {}).value_or("");
    programs.initdb = FindProgram("initdb", {}).value_or("");
  }
  if (programs.postgres.empty() || programs.initdb.empty()) packages.push_back("postgresql");
  programs.nats_server =
      FindProgram("nats-server", {"/usr/sbin", "/usr/local/sbin", "/usr/local/bin"}).value_or("");
  if (programs.nats_server.empty()) packages.push_back("nats-server");
  if (!packages.empty()) {
    return absl::NotFoundError(absl::StrCat(
        "this machine has no ", absl::StrJoin(packages, " and no "), ". Install: ",
        geteuid() == 0 ? "" : "sudo ", "apt-get install ", absl::StrJoin(packages, " "),
        postgres_directory.empty()
            ? ""
            : absl::StrCat(" (--postgres_directory says ", postgres_directory, ")")));
  }
  return programs;
}

// ---------------------------------------------------------------- PostgreSQL
EmbeddedPostgres::EmbeddedPostgres(EmbeddedPaths paths, EmbeddedPrograms programs,
                                   std::optional<ProcessUser> user, std::string password, int port)
    : paths_(std::move(paths)),
      programs_(std::move(programs)),
      user_(std::move(user)),
      password_(std::move(password)),
      port_(port) {}

bool EmbeddedPostgres::IsNew() const { return !FileExists(paths_.postgres + "/PG_VERSION"); }

absl::Status EmbeddedPostgres::CheckDirectories() const {
  for (std::filesystem::path p = paths_.data;; p = p.parent_path()) {
    struct stat info;
    if (stat(p.c_str(), &info) == 0 && !MayEnter(info, user_)) {
      return absl::FailedPreconditionError(absl::StrCat(
          "PostgreSQL runs as user '", user_->name, "', who may not enter ", p.string(),
          ". Choose another directory with --data, or: chmod o+x ", p.string()));
    }
    if (p == p.root_path()) return absl::OkStatus();
  }
}

absl::Status EmbeddedPostgres::Prepare() {
  if (absl::Status status = CheckDirectories(); !status.ok()) return status;
  auto give = [&](const std::string& path) {
    if (user_.has_value() && chown(path.c_str(), user_->uid, user_->gid) != 0) {
      return absl::InternalError(
          absl::StrCat("cannot give ", path, " to ", user_->name, ": ", strerror(errno)));
    }
    return absl::OkStatus();
  };
  if (absl::Status status = MakeDirectory(paths_.run, 0700); !status.ok()) return status;
  if (absl::Status status = give(paths_.run); !status.ok()) return status;

  ProcessSpec version{.argv = {programs_.postgres, "--version"},
                      .output_path = paths_.log + "/postgres-version"};
  unlink(version.output_path.c_str());
  if (absl::Status status = RunProcess(version, absl::Seconds(10)); !status.ok()) return status;
  const std::string program_version =
      ReadFile(version.output_path).value_or("");  // "postgres (PostgreSQL) 15.20 (…)"
  unlink(version.output_path.c_str());
  if (!IsNew()) {
    const std::string cluster_major(
        absl::StripAsciiWhitespace(ReadFile(paths_.postgres + "/PG_VERSION").value_or("")));
    if (program_version.find(absl::StrCat(" ", cluster_major, ".")) == std::string::npos) {
      return absl::FailedPreconditionError(
          absl::StrCat(paths_.postgres, " was made by PostgreSQL ", cluster_major, ", but ",
                       programs_.postgres, " is ", absl::StripAsciiWhitespace(program_version),
                       ". Name the old one with --postgres_directory, or use pg_upgrade"));
    }
    return absl::OkStatus();
  }

  // Made beside its place and moved there whole, so that an interrupted initdb leaves nothing half
  // made.
  const std::string unfinished = paths_.postgres + ".unfinished";
  RemoveTree(unfinished);
  if (absl::Status status = MakeDirectory(unfinished, 0700); !status.ok()) return status;
  if (absl::Status status = give(unfinished); !status.ok()) return status;
  const std::string password_file = paths_.run + "/password";
  if (absl::Status status = WriteFile(password_file, password_ + "\n", 0600); !status.ok())
    return status;
  if (absl::Status status = give(password_file); !status.ok()) return status;
  const std::string output = paths_.log + "/initdb.log";
  unlink(output.c_str());
  absl::Status made =
      RunProcess({.argv = {programs_.initdb, "--pgdata", unfinished, "--data-checksums",
                           "--auth=scram-sha-256", "--pwfile", password_file, "--username", kUser,
                           "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions"},
                  .output_path = output,
                  .directory = paths_.run,
                  .user = user_},
                 absl::Minutes(3));
  unlink(password_file.c_str());
  if (!made.ok()) return made;
  if (rename(unfinished.c_str(), paths_.postgres.c_str()) != 0) {
    return absl::InternalError(absl::StrCat("cannot rename ", unfinished, ": ", strerror(errno)));
  }
  return absl::OkStatus();
}

// A supervisor that was killed, or a postmaster that was, may leave processes that are still
// ending; a machine that lost power leaves a postmaster.pid whose number may be somebody else's
// now, which PostgreSQL takes for itself. We hold the data directory's lock, so whatever of this
// cluster still runs is an orphan.
void EmbeddedPostgres::EndOrphans() const {
  const absl::Time kill_time = absl::Now() + absl::Seconds(5);
  const absl::Time deadline = absl::Now() + absl::Seconds(15);
  for (;;) {
    const std::vector<pid_t> orphans = ProcessesIn(paths_.postgres);
    if (orphans.empty() || absl::Now() > deadline) break;
    for (pid_t pid : orphans) kill(pid, absl::Now() > kill_time ? SIGKILL : SIGQUIT);
    absl::SleepFor(absl::Milliseconds(50));
  }
  // PostgreSQL's own guard against two servers on one cluster, its shared memory, stays in force.
  unlink((paths_.postgres + "/postmaster.pid").c_str());
}

ChildSpec EmbeddedPostgres::Spec() const {
  std::vector<std::string> argv = {programs_.postgres, "-D", paths_.postgres};
  auto set = [&](absl::string_view name, absl::string_view value) {
    argv.push_back("-c");
    argv.push_back(absl::StrCat(name, "=", value));
  };
  set("listen_addresses", "127.0.0.1");
  set("port", absl::StrCat(port_));
  set("unix_socket_directories", paths_.run.size() <= kSocketDirectoryBytesMax ? paths_.run : "");
  for (const auto& [name, value] : kPostgresSettings) set(name, value);
  ChildSpec spec{.name = "postgres"};
  spec.process = {
      .argv = argv,
      .output_path = paths_.log + "/postgres.log",
      .directory = paths_.run,
      .user = user_,
      // Immediate shutdown: backends and all; SIGKILL would leave them to find out by themselves.
      .death_signal = SIGQUIT};
  spec.before_start = [this] { EndOrphans(); };
  return spec;
}

std::string EmbeddedPostgres::Dsn(const std::string& database) const {
  if (paths_.run.size() <= kSocketDirectoryBytesMax) {
    return absl::StrCat("postgresql://", kUser, ":", password_, "@/", database,
                        "?host=", UrlEncode(paths_.run), "&port=", port_);
  }
  return absl::StrCat("postgresql://", kUser, ":", password_, "@127.0.0.1:", port_, "/", database);
}

bool EmbeddedPostgres::Answers() const { return PQping((Dsn("postgres")).c_str()) == PQPING_OK; }

absl::Status EmbeddedPostgres::CreateDatabases(const std::vector<std::string>& names) const {
  std::unique_ptr<PGconn, void (*)(PGconn*)> connection(PQconnectdb(Dsn("postgres").c_str()),
                                                        PQfinish);
  auto run = [&](const std::string& sql) {
    return std::unique_ptr<PGresult, void (*)(PGresult*)>(PQexec(connection.get(), sql.c_str()),
                                                          PQclear);
  };
  auto existing = run("SELECT datname FROM pg_database");
  if (PQresultStatus(existing.get()) != PGRES_TUPLES_OK) {
    return absl::UnavailableError(absl::StrCat("PostgreSQL: ", PQerrorMessage(connection.get())));
  }
  for (const std::string& name : names) {
    bool there = false;
    for (int row = 0; row < PQntuples(existing.get()); ++row)
      there |= name == PQgetvalue(existing.get(), row, 0);
    if (there) continue;
    auto created = run(absl::StrCat("CREATE DATABASE \"", name, "\""));
    if (PQresultStatus(created.get()) != PGRES_COMMAND_OK) {
      return absl::UnavailableError(absl::StrCat("PostgreSQL: ", PQerrorMessage(connection.get())));
    }
  }
  return absl::OkStatus();
}

// ---------------------------------------------------------------- nats-server
EmbeddedNats::EmbeddedNats(EmbeddedPaths paths, EmbeddedPrograms programs, std::string password,
                           int port)
    : paths_(std::move(paths)),
      programs_(std::move(programs)),
      password_(std::move(password)),
      port_(port) {}

absl::Status EmbeddedNats::Prepare() {
  if (absl::Status status = MakeDirectory(paths_.nats, 0700); !status.ok()) return status;
  return WriteFile(
      paths_.nats_conf,
      absl::StrCat("# Written by `gaekju up` at each start.\n"
                   "listen: \"127.0.0.1:",
                   port_, "\"\n",
                   "server_name: gaekju\n"
                   "authorization { user: ",
                   kUser, ", password: \"", password_, "\" }\n",
                   // Above the sum of the streams' limits (runtime/bus.h); not reserved on disk.
                   "jetstream { store_dir: \"", paths_.nats, "\", max_mem: 64M, max_file: 32G }\n"),
      0600);
}

ChildSpec EmbeddedNats::Spec() const {
  ChildSpec spec{.name = "nats"};
  spec.process = {.argv = {programs_.nats_server, "-c", paths_.nats_conf},
                  .output_path = paths_.log + "/nats.log",
                  .directory = paths_.data};
  // Somebody may have removed the store while it was down.
  spec.before_start = [this] { MakeDirectory(paths_.nats, 0700).IgnoreError(); };
  return spec;
}

bool EmbeddedNats::Answers() const { return PortAnswers(port_); }

std::string EmbeddedNats::Url() const {
  return absl::StrCat("nats://", kUser, ":", password_, "@127.0.0.1:", port_);
}

}  // namespace gaekju::app
