// facade.cc: `gaekju facade`, the shops as their documents know them; and `gaekju gateway-config`,
// the configuration of the Envoy in front.

#include "facade/facade.h"

#include <iostream>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "app/command.h"
#include "app/context_list.h"
#include "app/files.h"
#include "app/serving.h"
#include "app/supervisor.h"
#include "facade/backend.h"
#include "facade/gateway.h"
#include "runtime/config.h"
#include "runtime/log.h"
#include "runtime/rpc_client.h"
#include "runtime/rpc_server.h"

ABSL_FLAG(
    std::string, facade_storefronts, "",
    "storefronts that shops of the facade sell in, where it is not the one of their own name: "
    "SHOP=STOREFRONT,…");
ABSL_FLAG(std::string, facade_card_key_file, "",
          "file with the key of card numbers, 64 hex digits as of `openssl rand -hex 32`; without "
          "it, nobody reads more of a number again than its last four digits");
ABSL_FLAG(int, facade_lane_threads, 32,
          "how many requests of the facade may wait for one context at a time; more queue");
ABSL_FLAG(std::string, facade_at, "127.0.0.1:50049", "where `gaekju facade` is, host:port");
ABSL_FLAG(std::string, gateway_listen, "",
          "ports of the gateway's listeners: api=8000,SHOP=8001,…; a name may come again, for more "
          "ports");
ABSL_FLAG(std::string, gateway_bind, "127.0.0.1", "address that the gateway's listeners bind");
ABSL_FLAG(int, gateway_admin, 0, "port of Envoy's admin interface, on loopback; 0: any");
ABSL_FLAG(std::string, cors_origins, gaekju::facade::kLocalOrigins,
          "regular expression (RE2) of the origins whose pages may call the gateway; empty: none");
ABSL_FLAG(bool, list, false,
          "print the shops instead: name, the ports of its document, and a command of it, a line "
          "each, between tabs");
ABSL_FLAG(std::string, out, ".", "directory that gateway-config writes to");
ABSL_DECLARE_FLAG(std::string, peers);

namespace gaekju::app {
namespace {

// "a=1,b=2"; INVALID_ARGUMENT names `flag`.
absl::StatusOr<std::vector<std::pair<std::string, std::string>>> Pairs(absl::string_view text,
                                                                       absl::string_view flag) {
  std::vector<std::pair<std::string, std::string>> pairs;
  for (absl::string_view one : absl::StrSplit(text, ',', absl::SkipWhitespace())) {
    std::pair<std::string, std::string> pair = absl::StrSplit(one, absl::MaxSplits('=', 1));
    if (pair.first.empty() || pair.second.empty())
      return absl::InvalidArgumentError(
          absl::StrCat("--", flag, ": \"", one, "\" is not NAME=VALUE"));
    pairs.push_back(std::move(pair));
  }
  return pairs;
}

int RunFacade(const std::vector<std::string>& arguments) {
  if (!arguments.empty()) return Fail("facade", absl::StrCat("takes no '", arguments[0], "'"), 2);
  const runtime::ServerConfig config = runtime::ServerConfigFromFlags();
  facade::BackendOptions options;
  options.lane_threads_max = absl::GetFlag(FLAGS_facade_lane_threads);
  if (options.lane_threads_max < 1)
    return Fail("facade", "--facade_lane_threads must be at least 1", kConfigExitCode);
  if (const std::string file = absl::GetFlag(FLAGS_facade_card_key_file); !file.empty()) {
    const absl::StatusOr<std::string> key = ReadFile(file);
    if (!key.ok()) return Fail("facade", key.status().message(), kConfigExitCode);
    absl::StatusOr<facade::CardBox> cards = facade::CardBox::Of(*key);
    if (!cards.ok()) {
      return Fail("facade", absl::StrCat(file, ": ", cards.status().message()), kConfigExitCode);
    }
    options.cards = *std::move(cards);
  }
  const auto storefronts = Pairs(absl::GetFlag(FLAGS_facade_storefronts), "facade_storefronts");
  if (!storefronts.ok()) return Fail("facade", storefronts.status().message(), kConfigExitCode);
  for (const auto& [shop, storefront] : *storefronts) {
    const auto& shops = facade::Shops();
    if (std::none_of(shops.begin(), shops.end(),
                     [&](const facade::Shop& one) { return one.id() == shop; })) {
      return Fail("facade", absl::StrCat("--facade_storefronts: there is no shop '", shop, "'"),
                  kConfigExitCode);
    }
    options.storefronts[shop] = storefront;
  }
  StopSignal stop;  // before any thread starts
  const auto metrics = BeginServing(config);
  if (!metrics.ok()) return Fail("facade", metrics.status().message(), kConfigExitCode);

  runtime::RpcServerOptions rpc_options = runtime::RpcServerOptionsOf(config);
  rpc_options.deadline_ms_default = std::max(rpc_options.deadline_ms_default, facade::kDeadlineMs);
  rpc_options.headers = {"idempotency-key",   "accept-language",     facade::kHostHeader,
                         facade::kPathHeader, facade::kPrefixHeader, "x-forwarded-proto"};
  runtime::RpcServer rpc(rpc_options, *metrics);
  runtime::RpcClientOptions client_options = runtime::RpcClientOptionsOf(config);
  // A context also answers UNAVAILABLE for another that it needs: five refused cancels must not
  // close the way to the order context. What waits is bounded by the lanes.
  client_options.breaker.enabled = false;
  auto client = runtime::RpcClient::Create(std::move(client_options), *metrics);
  if (!client.ok()) return Fail("facade", client.status().message(), kConfigExitCode);
  facade::Backend backend(client->get(), std::move(options));
  for (const facade::Shop& shop : facade::Shops()) backend.Serve(shop, rpc);
  if (absl::Status status = rpc.Start(); !status.ok())
    return Fail("facade", absl::StrCat(status.message(), " (--listen)"), kConfigExitCode);
  rpc.SetReady(true);
  runtime::LogInfo("serving the facade", {{"listen", config.listen}, {"port", rpc.port()}});
  TellReady();
  while (!stop.Wait(1000)) {
  }
  runtime::LogInfo("stopping", {{"context", "facade"}});
  rpc.SetReady(false);
  rpc.Shutdown(config.drain_timeout);
  backend.Stop();
  runtime::LogInfo("stopped", {{"context", "facade"}});
  return 0;
}

int RunGatewayConfig(const std::vector<std::string>& arguments) {
  constexpr char kName[] = "gateway-config";
  if (!arguments.empty()) return Fail(kName, absl::StrCat("takes no '", arguments[0], "'"), 2);
  if (absl::GetFlag(FLAGS_list)) {
    for (const facade::Shop& shop : facade::Shops()) {
      std::cout << shop.id() << "\t" << absl::StrJoin(shop.document_ports(), ",") << "\t"
                << shop.example() << "\n";
    }
    return 0;
  }
  const std::string directory = AbsolutePath(absl::GetFlag(FLAGS_out));
  facade::GatewayOptions options;
  options.facade = absl::GetFlag(FLAGS_facade_at);
  options.bind = absl::GetFlag(FLAGS_gateway_bind);
  options.cors_origins = absl::GetFlag(FLAGS_cors_origins);
  options.admin_port = absl::GetFlag(FLAGS_gateway_admin);
  options.descriptor_path = directory + "/gateway.binpb";
  for (const std::string& name : ContextNames())
    options.peers[name] = absl::StrCat(name, ":50051");  // as runtime's --peer_default
  const auto peers = Pairs(absl::GetFlag(FLAGS_peers), "peers");
  if (!peers.ok()) return Fail(kName, peers.status().message(), 2);
  for (const auto& [name, address] : *peers) {
    if (IsContext(name)) options.peers[name] = address;
  }
  // StorefrontService is served beside the order context's own.
  options.peers["storefront"] = options.peers["order"];
  std::vector<std::string> packages = ContextNames();
  packages.push_back("storefront");
  const auto ports = Pairs(absl::GetFlag(FLAGS_gateway_listen), "gateway_listen");
  if (!ports.ok()) return Fail(kName, ports.status().message(), 2);
  for (const auto& [name, text] : *ports) {
    int port = 0;
    if (!absl::SimpleAtoi(text, &port) || port < 1 || port > 65535)
      return Fail(kName, absl::StrCat("--gateway_listen: ", name, "=", text, " is no port"), 2);
    auto known = std::find_if(options.listeners.begin(), options.listeners.end(),
                              [&, &name = name](const auto& one) { return one.name == name; });
    if (known == options.listeners.end()) {
      options.listeners.push_back({.name = name, .ports = {}});
      known = std::prev(options.listeners.end());
    }
    known->ports.push_back(port);
  }
  if (options.listeners.empty())
    return Fail(kName, "needs --gateway_listen=api=PORT,SHOP=PORT,…", 2);
  const absl::StatusOr<std::string> bootstrap = facade::GatewayBootstrap(options);
  if (!bootstrap.ok()) return Fail(kName, bootstrap.status().message(), 2);
  for (const absl::Status& status :
       {WriteFile(options.descriptor_path, facade::GatewayDescriptors(packages), 0644),
        WriteFile(directory + "/envoy.json", *bootstrap, 0644)}) {
    if (!status.ok()) return Fail(kName, status.message());
  }
  std::cout << directory << "/envoy.json\n";
  return 0;
}

}  // namespace

Command FacadeCommand() {
  return {.name = "facade",
          .summary = "serve the five shops as their documents know them",
          .usage =
              "Usage: gaekju facade [FLAGS]\n"
              "\n"
              "Serves a small typed gRPC contract per shop (proto/gaekju/facade) by calling the "
              "contexts. Keeps nothing. Envoy in front\n"
              "makes the documents' HTTP of it: see `gaekju gateway-config`; `gaekju up` starts "
              "both.\n",
          .flags = {"facade_storefronts", "facade_lane_threads", "facade_card_key_file"},
          .server_flags = true,
          .run = RunFacade};
}

Command GatewayConfigCommand() {
  return {.name = "gateway-config",
          .summary = "write the configuration of the Envoy in front of the facade",
          .usage =
              "Usage: gaekju gateway-config --gateway_listen=api=8000,SHOP=8001,… [--out=DIR]\n"
              "\n"
              "Writes DIR/envoy.json and DIR/gateway.binpb (the descriptors), for `envoy -c "
              "DIR/envoy.json`: one listener a shop, with the\n"
              "paths of its document, and `api` with the contexts' own REST (/v1/…). Prints the "
              "file's path.\n",
          .flags = {"facade_at", "gateway_listen", "gateway_bind", "gateway_admin", "cors_origins",
                    "list", "out", "peers"},
          .run = RunGatewayConfig};
}

}  // namespace gaekju::app
