// up.cc: `gaekju up`: everything that a shop needs, on one machine, from nothing.

#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <iostream>
#include <set>

#include "absl/cleanup/cleanup.h"
#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "app/command.h"
#include "app/context_list.h"
#include "app/contracts.h"
#include "app/embedded.h"
#include "app/files.h"
#include "app/ports.h"
#include "app/process.h"
#include "app/shops.h"
#include "app/supervisor.h"
#include "app/up_file.h"
#include "app/up_gateway.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"

ABSL_FLAG(std::string, data, "",
          "directory of everything that `gaekju up` keeps; empty: /var/lib/gaekju for root, else "
          "~/.local/state/gaekju");
ABSL_FLAG(
    int, port_base, 50051,
    "gRPC port of the first context; the others follow. 0: free ports, the same after a restart");
ABSL_FLAG(bool, verbose, false,
          "show the logs of all processes, each line with its process's name");
ABSL_FLAG(bool, demo, true,
          "put in place what a shop is shown with (demo/<storefront>.textproto), once for each");
ABSL_FLAG(std::string, postgres_directory, "",
          "where postgres and initdb are; empty: the newest of this machine");
ABSL_FLAG(std::string, postgres_user, "postgres", "whom PostgreSQL runs as when this runs as root");
ABSL_DECLARE_FLAG(std::string, storefronts);
ABSL_DECLARE_FLAG(std::string, peers);
ABSL_DECLARE_FLAG(double, check_seconds);
ABSL_DECLARE_FLAG(bool, open_unproved);

namespace gaekju::app {
namespace {

// How long each may take to serve, and to stop; then it is a failure, or killed.
constexpr absl::Duration kStartTimeout = absl::Seconds(60);
constexpr absl::Duration kStopTimeout = absl::Seconds(20);

// Lines for people, on stderr, with the time since the start.
class Progress {
 public:
  void Line(const std::string& text) const {
    std::cerr << absl::StrFormat("[%5.1f s] %s\n", absl::ToDoubleSeconds(absl::Now() - start_),
                                 text);
  }

 private:
  const absl::Time start_ = absl::Now();
};

// The lock on a data directory; held until the process ends.
absl::StatusOr<int> LockData(const std::string& data) {
  const std::string path = data + "/lock";
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0)
    return absl::InternalError(absl::StrCat("cannot write in ", data, ": ", strerror(errno)));
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const std::string pid(absl::StripAsciiWhitespace(ReadFile(path).value_or("?")));
    close(fd);
    return absl::AlreadyExistsError(absl::StrCat("`gaekju up` with pid ", pid, " already runs on ",
                                                 data, ". Stop it with: kill ", pid,
                                                 ". Or name another directory with --data"));
  }
  const std::string pid = absl::StrCat(getpid(), "\n");
  if (ftruncate(fd, 0) != 0 || write(fd, pid.data(), pid.size()) < 0) {
    return absl::InternalError(absl::StrCat("cannot write ", path, ": ", strerror(errno)));
  }
  return fd;
}

// The password of the private servers, made once.
absl::StatusOr<std::string> Secret(const std::string& path) {
  if (absl::StatusOr<std::string> secret = ReadFile(path); secret.ok()) {
    return std::string(absl::StripAsciiWhitespace(*secret));
  }
  const std::string secret = RandomHex(16);
  if (absl::Status status = WriteFile(path, secret + "\n", 0600); !status.ok()) return status;
  return secret;
}

// Server flags that were given to `up`, by command line or environment, for its children.
absl::StatusOr<std::vector<std::string>> PassedOnFlags() {
  std::vector<std::string> passed;
  for (const std::string& name : ServerFlags()) {
    const absl::CommandLineFlag* flag = absl::FindCommandLineFlag(name);
    if (flag == nullptr || flag->CurrentValue() == flag->DefaultValue()) continue;
    for (const char* own : {"listen", "database", "nats", "peer_default", "metrics"}) {
      if (name == own) {
        return absl::InvalidArgumentError(absl::StrCat(
            "--", name, " is chosen by `up` itself; to choose it, run `gaekju serve`"));
      }
    }
    if (name != "peers") passed.push_back(absl::StrCat("--", name, "=", flag->CurrentValue()));
  }
  return passed;
}

std::string Quoted(const std::string& text) {
  return text.find_first_of(" '\"$\\") == std::string::npos ? text : absl::StrCat("'", text, "'");
}

// How people call us: as they did, when that is a path below here.
std::string OwnCommand(const std::string& program) {
  std::error_code error;
  const std::string relative = std::filesystem::relative(program, error).string();
  if (!error && !absl::StartsWith(relative, "..")) return Quoted("./" + relative);
  return Quoted(program);
}

class Up {
 public:
  int Run();

 private:
  absl::Status Prepare();
  absl::Status StartServers();
  absl::Status StartContexts();
  absl::Status SeedDemo();
  void TellOfStorefronts(absl::string_view log_line);
  void Write();
  void PrintCommands();
  bool StopAll();

  Progress progress_;
  Supervisor supervisor_;
  std::string program_;
  std::string data_;
  std::string storefronts_;
  std::string peers_;
  std::vector<std::string> passed_on_;
  std::unique_ptr<EmbeddedPaths> paths_;
  std::unique_ptr<EmbeddedPostgres> postgres_;
  std::unique_ptr<EmbeddedNats> nats_;
  std::unique_ptr<UpGateway> gateway_;
  Child* postgres_child_ = nullptr;
  Child* nats_child_ = nullptr;
  std::map<std::string, Child*> contexts_;
  std::map<std::string, int> ports_, metrics_ports_;
  std::set<std::string> closed_;  // storefronts whose file was refused, and that never were open
  bool ready_ = false;
};

absl::Status Up::Prepare() {
  program_ = ReadLink("/proc/self/exe");
  data_ = AbsolutePath(absl::GetFlag(FLAGS_data).empty() ? DefaultDataDirectory()
                                                         : absl::GetFlag(FLAGS_data));
  absl::StatusOr<std::vector<std::string>> passed_on = PassedOnFlags();
  if (!passed_on.ok()) return passed_on.status();
  passed_on_ = *std::move(passed_on);

  storefronts_ = absl::GetFlag(FLAGS_storefronts);
  if (storefronts_.empty()) storefronts_ = FindStorefronts();
  if (storefronts_.empty() || !std::filesystem::is_directory(storefronts_)) {
    return absl::NotFoundError(
        absl::StrCat("there is no directory of storefronts",
                     storefronts_.empty() ? "" : absl::StrCat(" ", storefronts_),
                     ". Name it with --storefronts"));
  }
  storefronts_ = AbsolutePath(storefronts_);

  if (auto contracts = ContractsFromFlag(); !contracts.ok()) return contracts.status();
  for (absl::string_view peer :
       absl::StrSplit(absl::GetFlag(FLAGS_peers), ',', absl::SkipWhitespace())) {
    const absl::string_view name = absl::StripAsciiWhitespace(peer.substr(0, peer.find('=')));
    if (IsContext(name)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--peers: `up` itself chooses where ", name, " is; name only others"));
    }
  }

  absl::StatusOr<EmbeddedPrograms> programs =
      FindEmbeddedPrograms(absl::GetFlag(FLAGS_postgres_directory));
  if (!programs.ok()) return programs.status();
  absl::StatusOr<std::optional<ProcessUser>> user =
      UnprivilegedUser(absl::GetFlag(FLAGS_postgres_user));
  if (!user.ok()) return user.status();

  // PostgreSQL's user has to pass through; what is secret inside has its own mode.
  if (absl::Status status = MakeDirectory(data_, 0711); !status.ok()) return status;
  absl::StatusOr<int> lock = LockData(data_);
  if (!lock.ok()) return lock.status();
  unlink(UpFilePath(data_).c_str());  // of one that was killed: what it says is not so any more
  paths_ = std::make_unique<EmbeddedPaths>(data_);
  if (absl::Status status = MakeDirectory(paths_->log, 0755); !status.ok()) return status;
  absl::StatusOr<std::string> secret = Secret(paths_->secret);
  if (!secret.ok()) return secret.status();

  PortBook book(data_ + "/ports");
  const int port_base = absl::GetFlag(FLAGS_port_base);
  if (port_base < 0 || port_base + ContextNames().size() > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("--port_base=", port_base, " is no port"));
  }
  int next = port_base;
  for (const std::string& name : ContextNames()) {
    absl::StatusOr<int> port =
        port_base == 0 ? book.Private(name) : book.Fixed(name, next++, "--port_base");
    if (!port.ok()) return port.status();
    ports_[name] = *port;
  }
  gateway_ = std::make_unique<UpGateway>(program_, data_, paths_->log);
  const std::string binary = std::filesystem::path(program_).parent_path();
  if (absl::Status status = gateway_->Prepare(
          book, &next, {storefronts_ + "/../.venv/bin", binary + "/../../../.venv/bin", binary});
      !status.ok()) {
    return status;
  }
  for (const std::string& name : ContextNames()) {
    absl::StatusOr<int> port = book.Private(name + "-metrics");
    if (!port.ok()) return port.status();
    metrics_ports_[name] = *port;
  }
  absl::StatusOr<int> postgres_port = book.Private("postgres");
  if (!postgres_port.ok()) return postgres_port.status();
  absl::StatusOr<int> nats_port = book.Private("nats");
  if (!nats_port.ok()) return nats_port.status();
  if (absl::Status status = book.Save(); !status.ok()) return status;
  peers_ = absl::StrJoin(ports_, ",",
                         [](std::string* out, const std::pair<const std::string, int>& peer) {
                           absl::StrAppend(out, peer.first, "=127.0.0.1:", peer.second);
                         });
  // Contexts of --contracts, which somebody else runs.
  if (!absl::GetFlag(FLAGS_peers).empty())
    absl::StrAppend(&peers_, ",", absl::GetFlag(FLAGS_peers));

  postgres_ =
      std::make_unique<EmbeddedPostgres>(*paths_, *programs, *user, *secret, *postgres_port);
  nats_ = std::make_unique<EmbeddedNats>(*paths_, *programs, *secret, *nats_port);
  return absl::OkStatus();
}

absl::Status Up::StartServers() {
  if (postgres_->IsNew())
    progress_.Line(absl::StrCat("making a PostgreSQL cluster in ", paths_->postgres));
  if (absl::Status status = postgres_->Prepare(); !status.ok()) return status;
  if (absl::Status status = nats_->Prepare(); !status.ok()) return status;

  postgres_child_ = supervisor_.Add(postgres_->Spec());
  nats_child_ = supervisor_.Add(nats_->Spec());
  for (Child* child : {postgres_child_, nats_child_}) {
    if (absl::Status status = supervisor_.Start(child); !status.ok()) return status;
  }
  // Not started means ended already, or ended again and again: its log tells why.
  auto wait = [&](Child* child, const std::string& name,
                  std::function<bool()> answers) -> absl::Status {
    absl::Status status =
        supervisor_.WaitFor([&] { return child->start_count > 3 || (child->pid > 0 && answers()); },
                            kStartTimeout, "the start of " + name);
    if (status.ok() && child->start_count > 3)
      status = absl::AbortedError(name + " does not start");
    if (status.ok() || absl::IsCancelled(status)) return status;
    const std::string& log = child->spec.process.output_path;
    return absl::Status(status.code(), absl::StrCat(status.message(), ". The end of ", log, ":\n",
                                                    LastLines(log, 12)));
  };
  if (absl::Status status =
          wait(postgres_child_, "PostgreSQL", [&] { return postgres_->Answers(); });
      !status.ok()) {
    return status;
  }
  if (absl::Status status = postgres_->CreateDatabases(ContextNames()); !status.ok()) return status;
  progress_.Line(
      absl::StrCat("PostgreSQL on 127.0.0.1:", postgres_->port(), ", a database per context"));
  if (absl::Status status = wait(nats_child_, "nats-server", [&] { return nats_->Answers(); });
      !status.ok()) {
    return status;
  }
  progress_.Line(absl::StrCat("nats-server on 127.0.0.1:", nats_->port()));
  return absl::OkStatus();
}

absl::Status Up::StartContexts() {
  for (const std::string& name : ContextNames()) {
    ChildSpec spec{.name = name};
    spec.process.argv = {program_,
                         "serve",
                         name,
                         absl::StrCat("--listen=127.0.0.1:", ports_[name]),
                         absl::StrCat("--metrics=127.0.0.1:", metrics_ports_[name]),
                         "--peers=" + peers_,
                         "--storefronts=" + storefronts_};
    if (name == "order" && !ContractFiles().empty())
      spec.process.argv.push_back("--contracts=" + absl::StrJoin(ContractFiles(), ","));
    if (name == "order") {
      spec.process.argv.push_back(
          absl::StrCat("--check_seconds=", absl::GetFlag(FLAGS_check_seconds)));
      if (absl::GetFlag(FLAGS_open_unproved)) spec.process.argv.push_back("--open_unproved");
      spec.on_log_line = [this](absl::string_view line) { TellOfStorefronts(line); };
    }
    for (const std::string& flag : passed_on_) spec.process.argv.push_back(flag);
    // By environment, because everybody may read a command line.
    spec.process.environment = {{"GAEKJU_DATABASE", postgres_->Dsn(name)},
                                {"GAEKJU_NATS", nats_->Url()}};
    spec.process.output_path = absl::StrCat(paths_->log, "/", name, ".log");
    spec.tells_ready = true;
    contexts_[name] = supervisor_.Add(std::move(spec));
    if (absl::Status status = supervisor_.Start(contexts_[name]); !status.ok()) return status;
  }
  auto waiting = [&] {
    std::vector<std::string> names;
    for (const std::string& name : ContextNames()) {
      if (!contexts_[name]->ready) names.push_back(name);
    }
    return names;
  };
  absl::Status status = supervisor_.WaitFor([&] { return waiting().empty(); }, kStartTimeout,
                                            "the start of the contexts");
  if (absl::IsDeadlineExceeded(status)) {
    std::string text(status.message());
    for (const std::string& name : waiting()) {
      const std::string& log = contexts_[name]->spec.process.output_path;
      absl::StrAppend(&text, ".\n", name, " does not serve. The end of ", log, ":\n",
                      LastLines(log, 8));
    }
    return absl::DeadlineExceededError(text);
  }
  if (!status.ok()) return status;
  progress_.Line(absl::StrCat(absl::StrJoin(ContextNames(), ", "), " serve gRPC on 127.0.0.1 (",
                              absl::StrJoin(ContextNames(), ", ",
                                            [&](std::string* out, const std::string& name) {
                                              absl::StrAppend(out, ports_[name]);
                                            }),
                              ")"));
  return absl::OkStatus();
}

// Once for each shop; what did not work is tried again the next time.
absl::Status Up::SeedDemo() {
  const std::string marker = data_ + "/demo";
  std::set<std::string> done =
      absl::StrSplit(ReadFile(marker).value_or(""), '\n', absl::SkipEmpty());
  for (const std::string& shop : ShopsIn(storefronts_)) {
    if (done.contains(shop)) continue;
    if (absl::GetFlag(FLAGS_demo)) {
      ChildSpec spec{.name = "seed"};
      spec.process.argv = {program_, "seed", shop, "--peers=" + peers_,
                           "--storefronts=" + storefronts_};
      spec.process.output_path = paths_->log + "/seed.log";
      unlink(spec.process.output_path.c_str());
      const absl::Status status = RunProcess(spec.process, absl::Seconds(60));
      progress_.Line(std::string(absl::StripAsciiWhitespace(
          ReadFile(spec.process.output_path).value_or(std::string(status.message())))));
      if (absl::IsCancelled(status)) return status;
      if (!status.ok()) continue;
    }
    done.insert(shop);
  }
  return WriteFile(marker, absl::StrJoin(done, "\n"), 0644);
}

// What the order context says of its storefronts is told here too: a shop that does not open is
// what its owner has come to see.
void Up::TellOfStorefronts(absl::string_view log_line) {
  if (!absl::StrContains(log_line, "storefront")) return;
  google::protobuf::Struct line;
  if (!google::protobuf::util::JsonStringToMessage(std::string(log_line), &line).ok()) return;
  const auto field = [&line](const char* name) {
    const auto it = line.fields().find(name);
    return it == line.fields().end() ? "" : it->second.string_value();
  };
  const auto tell = [this](absl::string_view what, absl::string_view lines) {
    progress_.Line(absl::StrCat(what, lines.empty() ? "" : ":\n          ",
                                absl::StrReplaceAll(lines, {{"\n", "\n          "}})));
  };
  const std::string message = field("msg"), storefront = field("storefront");
  if (absl::StartsWith(message, "storefront refused")) {
    if (absl::StartsWith(field("serving"), "nothing")) closed_.insert(storefront);
    tell(absl::StrCat("storefront ", storefront, " is refused, and serves ", field("serving")),
         field("mistakes"));
  } else if (absl::StartsWith(message, "storefront is open ")) {
    tell(absl::StrCat("storefront ", storefront, ": ", message), field("reason"));
  } else if (message == "storefront open") {
    closed_.erase(storefront);
    if (ready_) tell(absl::StrCat("storefront ", storefront, " is open"), "");
  } else if (message == "proving a storefront before it opens") {
    tell(absl::StrCat("proving storefront ", storefront, " before it opens"), "");
  }
}

void Up::Write() {
  UpFile up{.pid = getpid(), .data = data_, .storefronts = storefronts_, .ready = ready_};
  up.postgres = {.pid = postgres_child_ == nullptr ? 0 : postgres_child_->pid,
                 .port = postgres_->port(),
                 .url = postgres_->Dsn("postgres"),
                 .log = paths_->log + "/postgres.log"};
  up.nats = {.pid = nats_child_ == nullptr ? 0 : nats_child_->pid,
             .port = nats_->port(),
             .url = nats_->Url(),
             .store = paths_->nats,
             .log = paths_->log + "/nats.log"};
  for (const std::string& name : ContextNames()) {
    const auto it = contexts_.find(name);
    const Child* child = it == contexts_.end() ? nullptr : it->second;
    up.contexts[name] = {.pid = child == nullptr ? 0 : child->pid,
                         .ready = child != nullptr && child->ready,
                         .port = ports_[name],
                         .metrics = absl::StrCat("127.0.0.1:", metrics_ports_[name]),
                         .dsn = postgres_->Dsn(name),
                         .log = absl::StrCat(paths_->log, "/", name, ".log"),
                         .start_count = child == nullptr ? 0 : child->start_count};
  }
  gateway_->Fill(&up);
  if (absl::Status status = WriteUpFile(up); !status.ok())
    progress_.Line(std::string(status.message()));
}

void Up::PrintCommands() {
  const bool grpcurl = FindProgram("grpcurl", {}).ok();
  const std::string own = absl::StrCat(
      OwnCommand(program_), " call",
      data_ == AbsolutePath(DefaultDataDirectory()) ? "" : absl::StrCat(" --data=", Quoted(data_)));
  auto grpcurl_call = [&](const std::string& json, const char* context, const char* method) {
    return absl::StrCat("grpcurl -plaintext -d ", json, " 127.0.0.1:", ports_[context], " ",
                        method);
  };
  std::string orders;
  supervisor_.ReadLogs();
  for (const std::string& shop : ShopsIn(storefronts_)) {
    if (closed_.contains(shop)) continue;
    absl::StatusOr<Demo> demo = ReadDemo(storefronts_, shop);
    absl::StatusOr<std::string> json = OrderJson(storefronts_, shop, demo.ok() ? *demo : Demo());
    if (!json.ok()) continue;  // the order context has told what is wrong with it
    const std::string call =
        grpcurl
            ? absl::StrCat(grpcurl_call(absl::StrCat("'", *json, "'"), "order",
                                        "gaekju.order.v1.OrderService/PlaceOrder"),
                           " | tee /dev/stderr | sed -n 's/.*\"orderId\": \"\\(.*\\)\".*/\\1/p'")
            : absl::StrCat(own, " order.PlaceOrder '", *json, "' --pick=order.order_id");
    absl::StrAppend(&orders, "  ORDER=$(", call, ")\n");
  }
  const std::string by_order = R"('{"order_id":"'$ORDER'"}')";
  const std::string look =
      grpcurl ? grpcurl_call(by_order, "view", "gaekju.view.v1.ViewService/GetOrderView")
              : absl::StrCat(own, " view.GetOrderView ", by_order);
  const std::string cancel =
      grpcurl ? grpcurl_call(by_order, "order", "gaekju.order.v1.OrderService/CancelOrder")
              : absl::StrCat(own, " order.CancelOrder ", by_order);
  std::cout << "\nThe shops are open. Place an order in one of them:\n\n"
            << orders << "\nLook at it, cancel it:\n\n  " << look << "\n  " << cancel << "\n"
            << gateway_->Commands(ShopsIn(storefronts_)) << "\nLogs: " << paths_->log
            << "   Ctrl-C stops everything; the data stays in " << data_ << "\n"
            << std::endl;
}

bool Up::StopAll() {
  progress_.Line("stopping");
  bool clean = supervisor_.Stop(gateway_->children(), SIGTERM, kStopTimeout);
  // Whoever takes orders first, while those it calls still answer.
  std::vector<Child*> others;
  for (const auto& [name, child] : contexts_) {
    if (name != "order") others.push_back(child);
  }
  if (contexts_.contains("order"))
    clean &= supervisor_.Stop({contexts_["order"]}, SIGTERM, kStopTimeout);
  clean &= supervisor_.Stop(others, SIGTERM, kStopTimeout);
  if (!contexts_.empty()) progress_.Line("the contexts have finished what they had begun");
  if (nats_child_ != nullptr) clean &= supervisor_.Stop({nats_child_}, SIGTERM, kStopTimeout);
  // SIGINT: a fast shutdown, with a checkpoint.
  if (postgres_child_ != nullptr)
    clean &= supervisor_.Stop({postgres_child_}, SIGINT, absl::Seconds(60));
  unlink(UpFilePath(data_).c_str());
  progress_.Line(clean ? "stopped" : "stopped; something had to be killed, which loses nothing");
  return clean;
}

int Up::Run() {
  supervisor_.on_line = [this](const std::string& line) { progress_.Line(line); };
  supervisor_.echo = absl::GetFlag(FLAGS_verbose);
  if (absl::Status status = Prepare(); !status.ok()) {
    return Fail("up", status.message(), absl::IsInvalidArgument(status) ? 2 : 1);
  }
  supervisor_.on_change = [this] { Write(); };
  absl::Status status = StartServers();
  if (status.ok()) status = StartContexts();
  if (status.ok()) status = SeedDemo();
  if (status.ok()) {
    status = gateway_->Start(supervisor_, peers_, passed_on_,
                             [this](const std::string& line) { progress_.Line(line); });
  }
  if (status.ok()) {
    ready_ = true;
    Write();
    PrintCommands();
    supervisor_.RunUntilStopped();
  }
  StopAll();
  if (!status.ok() && !absl::IsCancelled(status)) return Fail("up", status.message());
  return 0;
}

int RunUp(const std::vector<std::string>& arguments) {
  if (!arguments.empty())
    return Fail("up", absl::StrCat("takes no '", arguments[0], "'; see gaekju up --help"), 2);
  return Up().Run();
}

}  // namespace

Command UpCommand() {
  return {.name = "up",
          .summary = "run a whole shop on this machine: PostgreSQL, nats-server and every context",
          .usage =
              "Usage: gaekju up [--data=DIR] [--port_base=N] [--storefronts=DIR] [--verbose] "
              "[--nodemo]\n"
              "\n"
              "Starts a private PostgreSQL and nats-server on loopback and one process per "
              "context, starts again what ends, and\n"
              "stops all of it on Ctrl-C. The data stays in its directory; the next `gaekju up` "
              "goes on with it. Flags of\n"
              "`gaekju serve` are passed on to the contexts. DIR/up.json says what runs where.\n",
          .flags = {"data", "port_base", "storefronts", "contracts", "verbose", "demo",
                    "check_seconds", "open_unproved", "postgres_directory", "postgres_user",
                    "gateway", "envoy", "web_port_base", "document_ports"},
          .server_flags = true,
          .run = RunUp};
}

}  // namespace gaekju::app
