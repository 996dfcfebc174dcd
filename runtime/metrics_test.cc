#include "runtime/metrics.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gaekju::runtime {
namespace {

using testing::HasSubstr;
using testing::Not;

std::string HttpGet(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string out;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request = "GET " + path + " HTTP/1.0\r\n\r\n";
    if (send(fd, request.data(), request.size(), MSG_NOSIGNAL) > 0) {
      char buffer[4096];
      for (ssize_t n; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) out.append(buffer, n);
    }
  }
  close(fd);
  return out;
}

TEST(Histogram, ABoundBelongsToItsBucket) {
  Histogram h({1, 2, 4});
  for (double value : {0.5, 1.0, 1.5, 2.0, 4.0, 4.1, 1000.0}) h.Observe(value);
  EXPECT_EQ(h.bucket(0), 2);
  EXPECT_EQ(h.bucket(1), 2);
  EXPECT_EQ(h.bucket(2), 1);
  EXPECT_EQ(h.bucket(3), 2);
  EXPECT_EQ(h.count(), 7);
  EXPECT_DOUBLE_EQ(h.sum(), 1013.1);
}

TEST(Metrics, LosesNoIncrementOfManyThreads) {
  Metrics metrics;
  Counter& counter = metrics.GetCounter("test_total", "A test.");
  Gauge& gauge = metrics.GetGauge("test", "A test.");
  Histogram& histogram = metrics.GetHistogram("test_size", "A test.", SizeBounds());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50'000; ++i) {
        counter.Add();
        gauge.Add(1);
        histogram.Observe(2);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(counter.value(), 200'000);
  EXPECT_EQ(gauge.value(), 200'000);
  EXPECT_EQ(histogram.count(), 200'000);
  EXPECT_EQ(histogram.sum(), 400'000);
}

TEST(Metrics, SameNameAndLabelsAreTheSameMetric) {
  Metrics metrics;
  EXPECT_EQ(&metrics.ForContext("order"), &metrics.ForContext("order"));
  EXPECT_NE(&metrics.ForContext("order"), &metrics.ForContext("payment"));
  EXPECT_EQ(&metrics.Sagas("fashion", "PLACED"), &metrics.Sagas("fashion", "PLACED"));
  EXPECT_EQ(&metrics.ServerMethod("a.B.C"), &metrics.ServerMethod("a.B.C"));
}

TEST(Metrics, PageShowsEachWithNameLabelsAndValue) {
  Metrics metrics;
  ContextMetrics& m = metrics.ForContext("payment");
  m.turn_size.Observe(3);
  m.dead_letters.Add(2);
  m.steps_refused.Add(5);
  m.outbox_lag_seconds.Set(1.5);
  metrics.ServerMethod("a.B.C").Ended(14, 0.001);
  metrics.Peer("order").breaker_state.Set(1);
  metrics.Sagas("fashion", "PLACED").Set(7);
  const std::string page = metrics.Text();
  EXPECT_THAT(page, HasSubstr("# TYPE gaekju_turn_size histogram"));
  EXPECT_THAT(page, HasSubstr(R"(gaekju_turn_size_bucket{context="payment",le="2"} 0)"));
  EXPECT_THAT(page, HasSubstr(R"(gaekju_turn_size_bucket{context="payment",le="4"} 1)"));
  EXPECT_THAT(page, HasSubstr(R"(gaekju_turn_size_bucket{context="payment",le="+Inf"} 1)"));
  EXPECT_THAT(page, HasSubstr(R"(gaekju_turn_size_sum{context="payment"} 3)"));
  EXPECT_THAT(page, HasSubstr(R"(gaekju_dead_letters_total{context="payment"} 2)"));
  EXPECT_THAT(page,
              HasSubstr(R"(gaekju_step_results_total{context="payment",outcome="refused"} 5)"));
  EXPECT_THAT(page, HasSubstr(R"(gaekju_outbox_lag_seconds{context="payment"} 1.5)"));
  EXPECT_THAT(page, HasSubstr(R"(gaekju_rpc_server_total{method="a.B.C",code="UNAVAILABLE"} 1)"));
  EXPECT_THAT(page, Not(HasSubstr(R"(method="a.B.C",code="OK")")));  // never answered
  EXPECT_THAT(page, HasSubstr(R"(gaekju_breaker_state{peer="order"} 1)"));
  EXPECT_THAT(page, HasSubstr(R"(gaekju_sagas{storefront="fashion",state="PLACED"} 7)"));
}

TEST(Metrics, CodeOutOfRangeCountsAsUnknown) {
  Metrics metrics;
  metrics.ServerMethod("a.B.C").Ended(99, 0.001);
  metrics.ServerMethod("a.B.C").Ended(-1, 0.001);
  EXPECT_EQ(metrics.ServerMethod("a.B.C").by_code[2]->value(), 2);
}

TEST(MetricsExposer, ServesThePageAndSaysWhenItCannot) {
  Metrics metrics;
  metrics.ForContext("view").consumed.Add(3);
  MetricsExposer exposer;
  const absl::StatusOr<int> port = exposer.Start("127.0.0.1:0", &metrics);
  ASSERT_TRUE(port.ok()) << port.status();
  EXPECT_THAT(HttpGet(*port, "/metrics"), HasSubstr(R"(gaekju_consumed_total{context="view"} 3)"));

  MetricsExposer second;
  const absl::StatusOr<int> taken = second.Start("127.0.0.1:" + std::to_string(*port), &metrics);
  ASSERT_FALSE(taken.ok());
  EXPECT_EQ(taken.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(taken.status().message()), HasSubstr("--metrics"));
}

}  // namespace
}  // namespace gaekju::runtime
