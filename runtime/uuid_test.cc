#include "runtime/uuid.h"

#include <chrono>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace gaekju::runtime {
namespace {

int64_t NowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

TEST(Uuid, IsVersion7WithTheTimeItWasMade) {
  const int64_t before = NowUs();
  const std::string uuid = NewUuid();
  const int64_t after = NowUs();
  ASSERT_EQ(uuid.size(), 36u) << uuid;
  EXPECT_EQ(uuid[14], '7') << uuid;
  EXPECT_NE(std::string("89ab").find(uuid[19]), std::string::npos) << uuid;
  EXPECT_GE(UuidTimeUs(uuid), before - 1000) << uuid;
  EXPECT_LE(UuidTimeUs(uuid), after + 1000) << uuid;
}

TEST(Uuid, GrowsWithinAThread) {
  std::string last = NewUuid();
  for (int i = 0; i < 100'000; ++i) {
    std::string next = NewUuid();
    ASSERT_LT(last, next) << "after " << i;
    last = std::move(next);
  }
}

TEST(Uuid, IsUniqueAndGrowsInEachOfManyThreads) {
  constexpr int kThreads = 4, kEach = 20'000;
  std::vector<std::vector<std::string>> made(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&made, t] {
      for (int i = 0; i < kEach; ++i) made[t].push_back(NewUuid());
    });
  }
  for (auto& thread : threads) thread.join();
  std::set<std::string> stamps;  // without the random part: the order must not rest on luck
  for (const auto& ids : made) {
    for (size_t i = 0; i < ids.size(); ++i) {
      if (i > 0) {
        ASSERT_LT(ids[i - 1].substr(0, 18), ids[i].substr(0, 18));
      }
      stamps.insert(ids[i].substr(0, 18));
    }
  }
  EXPECT_EQ(stamps.size(), size_t{kThreads} * kEach);
}

TEST(Uuid, TimeOfSomethingElseIsMinusOne) {
  EXPECT_EQ(UuidTimeUs("017f22e2-79b0-7cc3-98c4-dc0c0c07398f"),
            1645557742000'000);  // RFC 9562, A.6
  EXPECT_EQ(UuidTimeUs(""), -1);
  EXPECT_EQ(UuidTimeUs("017f22e2-79b0-4cc3-98c4-dc0c0c07398f"), -1);  // version 4
  EXPECT_EQ(UuidTimeUs("017f22e2-79b0-7cc3-18c4-dc0c0c07398f"), -1);  // another variant
  EXPECT_EQ(UuidTimeUs("017f22e2079b0-7cc3-98c4-dc0c0c07398f"), -1);
  EXPECT_EQ(UuidTimeUs("017g22e2-79b0-7cc3-98c4-dc0c0c07398f"), -1);
}

}  // namespace
}  // namespace gaekju::runtime
