#include "runtime/trace.h"

#include <string>

#include "gtest/gtest.h"

namespace gaekju::runtime {
namespace {

constexpr char kExample[] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

TEST(Trace, KnowsATraceparent) {
  struct Case {
    const char* traceparent;
    bool valid;
  } const cases[] = {
      {kExample, true},
      {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", true},
      {"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", true},       // a later version
      {"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", true},  // may be longer
      {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
       false},  // version 00 may not
      {"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.more", false},
      {"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false},
      {"00-00000000000000000000000000000000-b7ad6b7169203331-01", false},
      {"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", false},
      {"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", false},
      {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0", false},
      {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x", false},
      {"00-0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331-01", false},
      {"", false},
  };
  for (const Case& c : cases) EXPECT_EQ(IsTraceparent(c.traceparent), c.valid) << c.traceparent;
}

TEST(Trace, ANewOneIsValidAndOfItsOwn) {
  const std::string a = NewTraceparent(), b = NewTraceparent();
  EXPECT_TRUE(IsTraceparent(a)) << a;
  EXPECT_NE(TraceIdOf(a), TraceIdOf(b));
}

TEST(Trace, AChildKeepsTheTraceAndChangesTheSpan) {
  const std::string child = ChildTraceparent(kExample);
  EXPECT_TRUE(IsTraceparent(child)) << child;
  EXPECT_EQ(TraceIdOf(child), "0af7651916cd43dd8448eb211c80319c");
  EXPECT_NE(child.substr(36, 16), std::string(kExample).substr(36, 16));
  EXPECT_EQ(child.substr(52), "-01");
}

TEST(Trace, AChildOfALaterVersionIsVersionZero) {
  const std::string child =
      ChildTraceparent("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more");
  EXPECT_EQ(child.substr(0, 3), "00-");
  EXPECT_EQ(child.size(), 55u);
}

TEST(Trace, AChildOfNonsenseIsANewTrace) {
  EXPECT_TRUE(IsTraceparent(ChildTraceparent("nonsense")));
  EXPECT_EQ(TraceIdOf("nonsense"), "");
}

}  // namespace
}  // namespace gaekju::runtime
