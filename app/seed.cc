// seed.cc: `gaekju seed`: makes the calls of shops' demo files.
#include "app/seed.h"

#include <algorithm>
#include <iostream>
#include <memory>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "app/command.h"
#include "app/up_file.h"

ABSL_DECLARE_FLAG(std::string, data);
ABSL_DECLARE_FLAG(std::string, peers);
ABSL_DECLARE_FLAG(std::string, storefronts);

namespace gaekju::app {

std::string PeersOf(const UpFile& up);

absl::Status MakeDemo(RpcCaller& caller, const Demo& demo, absl::Duration retry_for) {
  auto* factory = google::protobuf::MessageFactory::generated_factory();
  for (const DemoCall& call : demo.calls) {
    const auto* method = call.method.descriptor;
    const std::unique_ptr<google::protobuf::Message> answer(
        factory->GetPrototype(method->output_type())->New());
    const absl::Status status = caller.Call(call.method.context, method->full_name(), *call.request,
                                            answer.get(), retry_for);
    if (!status.ok() && !absl::IsAlreadyExists(status)) {
      return absl::Status(status.code(), absl::StrCat(call.place, ": ", call.method.context, ".",
                                                      method->name(), ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

namespace {

int RunSeed(const std::vector<std::string>& arguments) {
  std::string peers = absl::GetFlag(FLAGS_peers);
  std::string storefronts = absl::GetFlag(FLAGS_storefronts);
  if (peers.empty()) {
    auto up = ReadUpFile(absl::GetFlag(FLAGS_data).empty() ? DefaultDataDirectory()
                                                           : absl::GetFlag(FLAGS_data));
    if (!up.ok()) return Fail("seed", up.status().message());
    peers = PeersOf(*up);
    if (storefronts.empty()) storefronts = up->storefronts;
  }
  if (storefronts.empty()) storefronts = FindStorefronts();
  const std::vector<std::string> shops = ShopsIn(storefronts);
  if (shops.empty()) {
    return Fail("seed",
                absl::StrCat("there are no storefronts in '", storefronts,
                             "'. Name the directory with --storefronts"),
                2);
  }
  for (const std::string& shop : arguments) {
    if (std::find(shops.begin(), shops.end(), shop) == shops.end()) {
      return Fail("seed",
                  absl::StrCat("there is no storefront '", shop, "' in ", storefronts,
                               "; there are: ", absl::StrJoin(shops, ", ")),
                  2);
    }
  }
  auto caller = RpcCaller::Create(peers);
  if (!caller.ok()) return Fail("seed", caller.status().message(), 2);
  int failed = 0;
  for (const std::string& shop : arguments.empty() ? shops : arguments) {
    auto demo = ReadDemo(storefronts, shop);
    absl::Status status = demo.status();
    if (status.ok()) status = MakeDemo(**caller, *demo, absl::Seconds(20));
    if (status.ok()) {
      std::cout << shop << ": " << Describe(*demo) << std::endl;
    } else {
      failed = Fail("seed", status.message());
    }
  }
  return failed;
}

}  // namespace

Command SeedCommand() {
  return {.name = "seed",
          .summary = "put in place what the shops are shown with (gaekju up does it once)",
          .usage =
              "Usage: gaekju seed [STOREFRONT…] [--storefronts=DIR] [--data=DIR | "
              "--peers=catalog=HOST:PORT,…]\n"
              "\n"
              "Makes the calls of DIR/demo/<storefront>.textproto (message "
              "gaekju.storefront.v1.Demo), which create goods, dealers and\n"
              "whatever else a shop is shown with; of all storefronts in DIR, unless some are "
              "named. Prints a line per shop. What is\n"
              "there already stays as it is. A mistake in a file is told with its line and "
              "column.\n",
          .flags = {"data", "peers", "storefronts"},
          .run = RunSeed};
}

}  // namespace gaekju::app
