#include "app/up_gateway.h"

#include "gtest/gtest.h"

namespace gaekju::app {
namespace {

TEST(AdaptedCommand, PutsTheListenerWhereTheDocumentsHostStands) {
  EXPECT_EQ(AdaptedCommand("http POST http://localhost:8081/orders productId=1 qty=10", 7),
            "http POST http://127.0.0.1:7/orders productId=1 qty=10");
  EXPECT_EQ(AdaptedCommand("http localhost:8088/reservations/1", 7),
            "http http://127.0.0.1:7/reservations/1");
  EXPECT_EQ(AdaptedCommand("http :8088/orders id=1 name=David", 7),
            "http http://127.0.0.1:7/orders id=1 name=David");
}

TEST(AdaptedCommand, LeavesValuesAlone) {
  EXPECT_EQ(AdaptedCommand("http POST http://a:1/notices text=\"http://b/c\"", 7),
            "http POST http://127.0.0.1:7/notices text=\"http://b/c\"");
  EXPECT_EQ(AdaptedCommand("http", 7), "http");
}

}  // namespace
}  // namespace gaekju::app
