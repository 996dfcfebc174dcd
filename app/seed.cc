// seed.cc: `gaekju seed`: puts the demo products of the Fashion shop on sale.

#include <iostream>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "app/command.h"
#include "app/rpc.h"
#include "app/up_file.h"
#include "gaekju/catalog/v1/catalog_service.pb.h"
#include "gaekju/store/v1/store_service.pb.h"

ABSL_DECLARE_FLAG(std::string, data);
ABSL_DECLARE_FLAG(std::string, peers);

namespace gaekju::app {

std::string PeersOf(const UpFile& up);

namespace {

// The course's catalogue: the i-th costs i×10,000 won, and there are i×1,000,000 of it
// (scenarios.md 5.5.1).
constexpr const char* kProducts[] = {"TV", "MASK", "NOTEBOOK", "TABLE", "CLOCK"};

absl::Status Seed(RpcCaller& caller) {
  int64_t i = 0;
  for (const char* id : kProducts) {
    ++i;
    catalog::v1::CreateProductRequest product;
    product.set_product_id(id);
    product.set_display_name(id);
    product.mutable_unit_price()->set_currency_code("KRW");
    product.mutable_unit_price()->set_minor_units(i * 10'000);
    product.set_available_count(i * 1'000'000);
    catalog::v1::CreateProductResponse created;
    absl::Status status =
        caller.Call("catalog", "gaekju.catalog.v1.CatalogService.CreateProduct", product, &created);
    // ALREADY_EXISTS: the seller has a product of that name, with another price.
    if (!status.ok() && !absl::IsAlreadyExists(status)) return status;

    store::v1::RegisterItemRequest item;
    item.set_storefront("fashion");
    item.set_product_id(id);
    item.set_display_name(id);
    store::v1::RegisterItemResponse registered;
    status = caller.Call("store", "gaekju.store.v1.StoreService.RegisterItem", item, &registered);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

int RunSeed(const std::vector<std::string>& arguments) {
  if (!arguments.empty()) return Fail("seed", absl::StrCat("takes no '", arguments[0], "'"), 2);
  std::string peers = absl::GetFlag(FLAGS_peers);
  if (peers.empty()) {
    auto up = ReadUpFile(absl::GetFlag(FLAGS_data).empty() ? DefaultDataDirectory()
                                                           : absl::GetFlag(FLAGS_data));
    if (!up.ok()) return Fail("seed", up.status().message());
    peers = PeersOf(*up);
  }
  auto caller = RpcCaller::Create(peers);
  if (!caller.ok()) return Fail("seed", caller.status().message(), 2);
  if (absl::Status status = Seed(**caller); !status.ok()) return Fail("seed", status.message());
  std::cout << "on sale: TV, MASK, NOTEBOOK, TABLE, CLOCK\n";
  return 0;
}

}  // namespace

Command SeedCommand() {
  return {.name = "seed",
          .summary = "put five demo products on sale (gaekju up does it once)",
          .usage =
              "Usage: gaekju seed [--data=DIR | --peers=catalog=HOST:PORT,store=HOST:PORT]\n"
              "\n"
              "Creates TV, MASK, NOTEBOOK, TABLE and CLOCK in the catalog and on the shelf of the "
              "storefront 'fashion'. Idempotent.\n",
          .flags = {"data", "peers"},
          .run = RunSeed};
}

}  // namespace gaekju::app
