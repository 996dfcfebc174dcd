#include "app/shops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "app/files.h"
#include "gaekju/catalog/v1/catalog_service.pb.h"

namespace gaekju::app {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kProduct[] =
    "call {\n"
    "  call: \"catalog.CreateProduct\"\n"
    "  request {\n"
    "    [type.googleapis.com/gaekju.catalog.v1.CreateProductRequest] {\n"
    "      product_id: \"pen\" unit_price { currency_code: \"KRW\" minor_units: 700 }\n"
    "    }\n"
    "  }\n"
    "}\n";

// All mistakes of a demo, a line each.
std::string MistakesOf(const std::string& text) {
  const auto demo = ParseDemo(text, "demo/pens.textproto");
  return demo.ok() ? "" : std::string(demo.status().message());
}

TEST(Demo, ReadsItsCallsInTheirOrder) {
  const auto demo = ParseDemo(absl::StrCat("# pens\n", kProduct, kProduct), "demo/pens.textproto");
  ASSERT_TRUE(demo.ok()) << demo.status();
  ASSERT_EQ(demo->calls.size(), 2u);
  const DemoCall& call = demo->calls[1];
  EXPECT_EQ(call.method.context, "catalog");
  EXPECT_EQ(call.method.descriptor->full_name(), "gaekju.catalog.v1.CatalogService.CreateProduct");
  EXPECT_EQ(call.place, "demo/pens.textproto:10:1");
  const auto& request = static_cast<const catalog::v1::CreateProductRequest&>(*call.request);
  EXPECT_EQ(request.product_id(), "pen");
  EXPECT_EQ(Describe(*demo), "on sale: pen");
}

TEST(Demo, TellsEachMistakeWithItsPlace) {
  EXPECT_EQ(MistakesOf("call {\n  cal: \"catalog.CreateProduct\"\n}\n"),
            "demo/pens.textproto:2:6: Message type \"gaekju.storefront.v1.DemoCall\" has no field "
            "named \"cal\".");
  EXPECT_EQ(MistakesOf("call {"), "demo/pens.textproto:1:7: Expected identifier, got: ");
  const std::string both = MistakesOf(
      "call {\n  call: \"catalogue.CreateProduct\"\n}\n"
      "call { call: \"catalog.MakeProduct\" }\n");
  EXPECT_THAT(both, HasSubstr("pens.textproto:2:3: there is no context 'catalogue'"));
  EXPECT_THAT(both, HasSubstr("\ndemo/pens.textproto:4:8: catalog has no method 'MakeProduct'"));
  EXPECT_EQ(MistakesOf("call { call: \"catalog.CreateProduct\" }"),
            "demo/pens.textproto:1:1: catalog.CreateProduct takes a "
            "gaekju.catalog.v1.CreateProductRequest, not nothing");
  EXPECT_EQ(MistakesOf("call {\n  call: \"store.RegisterItem\"\n  request {\n"
                       "[type.googleapis.com/gaekju.catalog.v1.CreateProductRequest] {} } }"),
            "demo/pens.textproto:3:3: store.RegisterItem takes a "
            "gaekju.store.v1.RegisterItemRequest, not a gaekju.catalog.v1.CreateProductRequest");
  EXPECT_THAT(MistakesOf("call {\n  call: \"store.RegisterItem\"\n  request {\n"
                         "[type.googleapis.com/gaekju.store.v1.RegisterItm] {} } }"),
              HasSubstr("demo/pens.textproto:4:"));
  EXPECT_THAT(MistakesOf(std::string(kDemoBytes_max + 1, ' ')), HasSubstr("is longer than"));
}

class Shops : public ::testing::Test {
 protected:
  Shops() { std::filesystem::create_directories(directory_ + "/demo"); }
  ~Shops() override { RemoveTree(directory_); }
  void Put(const std::string& name, const std::string& text) {
    ASSERT_TRUE(WriteFile(directory_ + "/" + name, text, 0644).ok());
  }
  const std::string directory_ = absl::StrCat(::testing::TempDir(), "/shops-", RandomHex(8));
};

TEST_F(Shops, AreTheStorefrontFilesOfADirectory) {
  Put("pens.textproto", "");
  Put("books.textproto", "");
  Put("README.md", "");
  Put("demo/others.textproto", "");
  EXPECT_THAT(ShopsIn(directory_), ElementsAre("books", "pens"));
  EXPECT_THAT(ShopsIn(directory_ + "/nowhere"), IsEmpty());
}

TEST_F(Shops, AnOrderHasWhatTheStepsRead) {
  Put("pens.textproto",
      "id: \"pens\" currency_code: \"KRW\" place { step { id: \"s\" call: \"delivery.Start\" } }");
  auto json = OrderJson(directory_, "pens", Demo());
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ(*json,
            "{\"storefront\":\"pens\",\"customer_id\":\"cust1\",\"customer_name\":\"jang\","
            "\"delivery_address\":\"seoul\",\"lines\":[{\"product_id\":\"1\",\"quantity\":1}]}");

  Put("pens.textproto",
      "id: \"pens\" currency_code: \"KRW\" place { step { id: \"p\" call: \"payment.Capture\" "
      "from { field: \"amount\" order: \"expected_total\" } } "
      "step { id: \"a\" call: \"assignment.Assign\" } step { id: \"o\" call: \"other.Thing\" } }");
  Put("demo/pens.textproto", kProduct);
  const auto demo = ReadDemo(directory_, "pens");
  ASSERT_TRUE(demo.ok()) << demo.status();
  json = OrderJson(directory_, "pens", *demo);
  ASSERT_TRUE(json.ok()) << json.status();
  for (const char* part :
       {"\"payment_method\":\"card\"", "\"delivery_location\":{", "\"product_id\":\"pen\"",
        "\"expected_total\":{\"currency_code\":\"KRW\",\"minor_units\":700}"}) {
    EXPECT_THAT(*json, HasSubstr(part));
  }

  Put("pens.textproto", "id: pens");
  EXPECT_FALSE(OrderJson(directory_, "pens", Demo()).ok());
}

// Each shop of ours has a demo that can be read, and that is of contexts that there are.
TEST(StorefrontsOfOurs, CanBeShown) {
  const std::vector<std::string> shops = ShopsIn("storefronts");
  EXPECT_THAT(shops, testing::Not(IsEmpty()));
  for (const std::string& shop : shops) {
    const auto demo = ReadDemo("storefronts", shop);
    ASSERT_TRUE(demo.ok()) << demo.status();
    EXPECT_THAT(demo->calls, testing::Not(IsEmpty())) << shop;
    EXPECT_THAT(Describe(*demo), HasSubstr("on sale: ")) << shop;
    const auto json = OrderJson("storefronts", shop, *demo);
    EXPECT_TRUE(json.ok()) << json.status();
  }
}

}  // namespace
}  // namespace gaekju::app
