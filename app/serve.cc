// serve.cc: `gaekju serve`: one or more contexts as one process on one gRPC port.

#include <iostream>
#include <thread>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "app/command.h"
#include "app/context_list.h"
#include "app/contracts.h"
#include "app/serving.h"
#include "app/supervisor.h"
#include "flow/check.h"
#include "runtime/config.h"
#include "runtime/context_server.h"
#include "runtime/log.h"
#include "runtime/rpc_client.h"
#include "runtime/rpc_server.h"

ABSL_FLAG(std::string, storefronts, "",
          "directory of storefront files (*.textproto); the order context serves them");

namespace gaekju::app {
namespace {

int RunServe(const std::vector<std::string>& arguments) {
  std::vector<std::string> names = arguments;
  if (names.size() == 1 && names[0] == "all") names = ContextNames();
  if (names.empty()) {
    return Fail("serve",
                absl::StrCat("needs the names of contexts, or 'all'. There are: ",
                             absl::StrJoin(ContextNames(), ", ")),
                2);
  }
  for (const std::string& name : names) {
    if (!IsContext(name)) return Fail("serve", UnknownContext(name), 2);
  }
  const runtime::ServerConfig config = runtime::ServerConfigFromFlags();
  if (auto contracts = ContractsFromFlag(); !contracts.ok())
    return Fail("serve", contracts.status().message(), kConfigExitCode);
  const std::string label = absl::StrJoin(names, ",");
  StopSignal stop;  // before any thread starts
  const auto metrics = BeginServing(config);
  if (!metrics.ok()) return Fail("serve", metrics.status().message(), kConfigExitCode);

  runtime::RpcServer rpc(runtime::RpcServerOptionsOf(config), *metrics);
  auto client = runtime::RpcClient::Create(runtime::RpcClientOptionsOf(config), *metrics);
  if (!client.ok()) return Fail("serve", client.status().message(), kConfigExitCode);

  std::vector<std::unique_ptr<runtime::ContextServer>> servers;
  for (const std::string& name : names) {
    servers.push_back(std::make_unique<runtime::ContextServer>(
        ContextSpec(name, absl::GetFlag(FLAGS_storefronts)),
        runtime::ContextServer::Shared{
            .config = &config, .rpc = &rpc, .client = client->get(), .metrics = *metrics}));
    servers.back()->Register();
  }
  if (absl::Status status = rpc.Start(); !status.ok()) {
    return Fail("serve", absl::StrCat(status.message(), " (--listen)"), kConfigExitCode);
  }
  runtime::LogInfo("serving gRPC",
                   {{"context", label}, {"listen", config.listen}, {"port", rpc.port()}});

  absl::Status started;
  for (auto& server : servers) {
    started = server->Start([&] { return stop.requested(); });
    if (!started.ok()) {
      started = absl::Status(started.code(), absl::StrCat(server->name(), ": ", started.message()));
      break;
    }
  }
  if (started.ok()) {
    bool told = false;
    while (!stop.Wait(told ? 1000 : 20)) {
      if (told) continue;
      told = std::all_of(servers.begin(), servers.end(),
                         [](const auto& server) { return server->ready(); });
      if (told) TellReady();
    }
  }

  runtime::LogInfo("stopping", {{"context", label}});
  const absl::Time deadline = absl::Now() + config.drain_timeout;
  auto left = [&] { return std::max(absl::Milliseconds(200), deadline - absl::Now()); };
  for (auto& server : servers) server->Drain(left());
  rpc.Shutdown(left());
  client->reset();  // its callbacks point into the servers
  servers.clear();
  if (!started.ok() && !absl::IsCancelled(started))
    return Fail("serve", started.message(), kConfigExitCode);
  runtime::LogInfo("stopped", {{"context", label}});
  return 0;
}

}  // namespace

Command ServeCommand() {
  return {.name = "serve",
          .summary = "serve one or more contexts: gRPC, PostgreSQL, JetStream",
          .usage =
              "Usage: gaekju serve CONTEXT… [FLAGS]     gaekju serve all [FLAGS]\n"
              "\n"
              "Serves the contexts on one gRPC port. Each has a database of its own ({context} in "
              "--database), whose tables it makes and\n"
              "brings up to date at start. Neither PostgreSQL, NATS nor other contexts need to be "
              "there first. SIGTERM finishes what has\n"
              "begun and ends with 0. Exit code 78: the configuration is wrong.\n",
          .flags = {"storefronts", "contracts", "check_seconds", "open_unproved"},
          .server_flags = true,
          .run = RunServe};
}

}  // namespace gaekju::app
