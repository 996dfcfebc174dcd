// Against a real nats-server, which is killed, paused and emptied. No sleeps: everything waits for
// a condition.
#include "runtime/bus.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <ctime>
#include <iostream>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/log.h"
#include "runtime/testing/eventually.h"
#include "runtime/testing/nats_server.h"

namespace gaekju::runtime {
namespace {

using ::testing::ElementsAre;
using ::testing::IsSupersetOf;
using ::testing::Pair;

constexpr auto kPatience =
    std::chrono::seconds(20);  // until a condition that does not come fails the test

// A value that is changed by the bus's threads, and waited on.
template <class T>
class Watched {
 public:
  template <class F>
  auto With(F f) {
    std::lock_guard<std::mutex> lock(mu_);
    struct Notify {
      std::condition_variable& changed;
      ~Notify() { changed.notify_all(); }
    } notify{changed_};
    return f(value_);
  }
  template <class F>
  bool Wait(F condition, std::chrono::milliseconds patience = kPatience) {
    std::unique_lock<std::mutex> lock(mu_);
    return changed_.wait_for(lock, patience, [&] { return condition(value_); });
  }
  T Get() {
    std::lock_guard<std::mutex> lock(mu_);
    return value_;
  }

 private:
  std::mutex mu_;
  std::condition_variable changed_;
  T value_{};
};

// What a consumer has got, by body, with how often.
struct Inbox {
  Watched<std::map<std::string, int>> bodies;
  DeliveryHandler Handler() {
    return [this](BusDelivery delivery) {
      bodies.With([&](auto& b) { ++b[delivery.body]; });
      delivery.Ack();
    };
  }
  bool WaitFor(const std::string& body) {
    return bodies.Wait([&](const auto& b) { return b.count(body) != 0; });
  }
  bool WaitForCount(size_t count) {
    return bodies.Wait([&](const auto& b) { return b.size() >= count; });
  }
};

class BusTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const char* level = getenv("GAEKJU_TEST_LOG");
    ASSERT_TRUE(ConfigureLog(level != nullptr ? level : "error", "text").ok());
  }

  NatsBusOptions Options(const std::string& name = "test") {
    NatsBusOptions o;
    o.urls = {server_.url()};
    o.name = name;
    o.publish_timeout = absl::Seconds(3);
    o.check_interval = absl::Milliseconds(200);
    o.reconnect_wait = absl::Milliseconds(20);
    o.ping_interval = absl::Milliseconds(300);
    return o;
  }

  static bool WaitConnected(Bus& bus) {
    return Eventually([&] { return bus.connected(); });
  }

  static absl::StatusOr<uint64_t> Publish(Bus& bus, const std::string& body,
                                          const std::string& msg_id = "",
                                          const std::string& subject = "gaekju.event.test") {
    auto result = std::make_shared<Watched<std::optional<absl::StatusOr<uint64_t>>>>();
    bus.Publish({subject, msg_id, {{"ce-id", body}}, body}, [result](absl::StatusOr<uint64_t> seq) {
      result->With([&](auto& r) { r = std::move(seq); });
    });
    if (!result->Wait([](const auto& r) { return r.has_value(); })) {
      return absl::InternalError("done was never called");
    }
    return *result->Get();
  }

  // Publishes until the server takes it, as a relay does.
  static bool PublishAtLast(Bus& bus, const std::string& body, const std::string& msg_id = "") {
    return Eventually([&] { return Publish(bus, body, msg_id).ok(); });
  }

  // Whether what the server tells of the consumer "view" of the events comes to hold that.
  static bool ConsumerSays(Bus& bus, const std::string& json) {
    const std::string ask = absl::StrCat("$JS.API.CONSUMER.INFO.", kEventsStream, ".view");
    return Eventually([&] {
      auto info = bus.Request(ask, "", absl::Seconds(5));
      return info.ok() && info->find(json) != info->npos;
    });
  }

  static ConsumerSpec Events(const std::string& durable = "view") {
    return {.stream = kEventsStream, .durable = durable, .filter_subject = "gaekju.event.*"};
  }

  NatsServer server_;
};

// ---------------------------------------------------------------- publishing

TEST_F(BusTest, PublishAnswersWithTheSequence) {
  NatsBus bus(Options());
  ASSERT_TRUE(WaitConnected(bus));
  EXPECT_EQ(*Publish(bus, "a"), 1u);
  EXPECT_EQ(*Publish(bus, "b"), 2u);
  EXPECT_EQ(bus.stats().published, 2u);
  EXPECT_EQ(bus.stats().in_flight, 0u);
}

TEST_F(BusTest, TheSameMsgIdIsStoredOnce) {
  NatsBus bus(Options());
  ASSERT_TRUE(WaitConnected(bus));
  EXPECT_EQ(*Publish(bus, "a", "test:1:1:0"), 1u);
  EXPECT_EQ(*Publish(bus, "a", "test:1:1:0"), 1u);
  EXPECT_EQ(*Publish(bus, "a", "test:1:1:1"), 2u);  // another epoch
  EXPECT_EQ(bus.stats().publish_duplicates, 1u);
}

TEST_F(BusTest, WhatCannotBePublishedSaysWhy) {
  NatsBus bus(Options());
  ASSERT_TRUE(WaitConnected(bus));
  EXPECT_EQ(Publish(bus, "x", "", "gaekju.*.test").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Publish(bus, "x", "", "a b").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Publish(bus, "x", "", "").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Publish(bus, "x", "two\r\nlines").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Publish(bus, std::string(2 << 20, 'x')).status().code(),
            absl::StatusCode::kInvalidArgument);  // a header
  EXPECT_EQ(Publish(bus, "x", "", "nobody.stores.this").status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(bus.stats().publish_failed, 6u);
}

TEST_F(BusTest, WithoutAServerEverythingAnswersAtOnceAndItConnectsWhenOneComes) {
  server_.Kill();
  NatsBus bus(Options());
  Inbox inbox;
  ASSERT_TRUE(bus.Consume(Events(), inbox.Handler()).ok());
  EXPECT_EQ(Publish(bus, "a").status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(bus.Streams().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(bus.PublishCore("a.b", "").code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(bus.Request("a.b", "", absl::Seconds(1)).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_FALSE(bus.connected());
  server_.Start();
  ASSERT_TRUE(PublishAtLast(bus, "a"));
  EXPECT_TRUE(inbox.WaitFor("a"));
}

// The server takes the bytes and never answers: every publish ends by its time limit.
TEST_F(BusTest, AcknowledgementsThatNeverComeEndByTheTimeLimit) {
  NatsBusOptions options = Options();
  options.publish_timeout = absl::Milliseconds(300);
  options.ping_interval = absl::Minutes(1);
  NatsBus bus(options);
  ASSERT_TRUE(WaitConnected(bus));
  server_.Pause();
  const auto start = std::chrono::steady_clock::now();
  Watched<std::map<absl::StatusCode, int>> results;
  for (int i = 0; i < 100; ++i) {
    bus.Publish({"gaekju.event.test", "", {}, "x"}, [&](absl::StatusOr<uint64_t> seq) {
      results.With([&](auto& r) { ++r[seq.status().code()]; });
    });
  }
  EXPECT_TRUE(results.Wait([](auto& r) { return r[absl::StatusCode::kDeadlineExceeded] == 100; }));
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(300));
  EXPECT_EQ(bus.stats().in_flight, 0u);
  server_.Resume();
  EXPECT_TRUE(PublishAtLast(bus, "y"));  // late acknowledgements of the hundred confuse nobody
}

// kill -9 between publishes and their acknowledgements: each gets exactly one answer.
TEST_F(BusTest, AServerKilledBeforeItAcknowledgesFailsWhatIsInFlight) {
  NatsBusOptions options = Options();
  options.publish_timeout = absl::Minutes(5);
  options.ping_interval = absl::Minutes(1);
  NatsBus bus(options);
  ASSERT_TRUE(WaitConnected(bus));
  server_.Pause();
  Watched<std::map<absl::StatusCode, int>> results;
  for (int i = 0; i < 500; ++i) {
    bus.Publish({"gaekju.event.test", "", {}, "x"}, [&](absl::StatusOr<uint64_t> seq) {
      results.With([&](auto& r) { ++r[seq.status().code()]; });
    });
  }
  ASSERT_TRUE(Eventually([&] { return bus.stats().in_flight > 0; }));
  server_.Kill();
  EXPECT_TRUE(results.Wait([](auto& r) { return r[absl::StatusCode::kUnavailable] == 500; }));
  server_.Start();
  EXPECT_TRUE(PublishAtLast(bus, "y"));
  EXPECT_EQ(results.With([](auto& r) { return r[absl::StatusCode::kOk]; }), 0);
}

// Half-open: the socket takes nothing more and nothing comes back.
TEST_F(BusTest, AStuckSocketNeverBlocksPublishAndIsGivenUp) {
  NatsBus bus(Options());
  ASSERT_TRUE(WaitConnected(bus));
  server_.Pause();
  std::atomic<int> done{0};
  const std::string megabyte(900'000, 'x');
  for (int i = 0; i < 50; ++i) {
    const auto start = std::chrono::steady_clock::now();
    bus.Publish({"gaekju.event.test", "", {}, megabyte}, [&](absl::StatusOr<uint64_t>) { ++done; });
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
  }
  EXPECT_TRUE(Eventually([&] { return done == 50; }));
  EXPECT_TRUE(Eventually([&] { return !bus.connected(); }));
  server_.Resume();
  EXPECT_TRUE(PublishAtLast(bus, "y"));
}

// ---------------------------------------------------------------- consuming

TEST_F(BusTest, DeliversSubjectHeadersBodyAndSequence) {
  NatsBus bus(Options());
  Watched<std::vector<BusDelivery>> deliveries;
  ASSERT_TRUE(bus.Consume({.stream = kAnswersStream,
                           .durable = "order",
                           .filter_subject = AnswerSubject("order")},
                          [&](BusDelivery d) {
                            d.Ack();
                            deliveries.With([&](auto& v) { v.push_back(std::move(d)); });
                          })
                  .ok());
  ASSERT_TRUE(WaitConnected(bus));
  ASSERT_TRUE(Publish(bus, "not ours", "", AnswerSubject("view")).ok());
  const std::string body("\0binary\xff", 8);
  Watched<bool> stored;
  bus.Publish({AnswerSubject("order"),
               "order:1:2:0",
               {{"ce-id", "i"}, {"traceparent", "tp"}, {"ce-empty", ""}},
               body},
              [&](absl::StatusOr<uint64_t> seq) { stored.With([&](bool& b) { b = *seq == 2; }); });
  ASSERT_TRUE(stored.Wait([](bool b) { return b; }));
  ASSERT_TRUE(deliveries.Wait([](const auto& v) { return v.size() == 1; }));
  const BusDelivery d = deliveries.Get()[0];
  EXPECT_EQ(d.stream, kAnswersStream);
  EXPECT_EQ(d.subject, "gaekju.answer.order");
  EXPECT_EQ(d.body, body);
  EXPECT_EQ(d.stream_seq, 2u);
  EXPECT_EQ(d.delivered, 1u);
  EXPECT_THAT(d.headers, IsSupersetOf({Pair("ce-id", "i"), Pair("traceparent", "tp"),
                                       Pair("Nats-Msg-Id", "order:1:2:0")}));
  EXPECT_TRUE(Eventually([&] { return bus.stats().acked == 1; }));
}

TEST_F(BusTest, ANakComesAgainAfterItsDelayAndAnAckDoesNot) {
  NatsBus bus(Options());
  struct Seen {
    std::vector<uint64_t> tries;
    std::vector<std::chrono::steady_clock::time_point> times;
  };
  Watched<Seen> seen;
  ASSERT_TRUE(bus.Consume(Events(),
                          [&](BusDelivery d) {
                            seen.With([&](Seen& s) {
                              s.tries.push_back(d.delivered);
                              s.times.push_back(std::chrono::steady_clock::now());
                            });
                            if (d.delivered < 3) {
                              d.Nak(absl::Milliseconds(150));
                              d.Ack();  // the first call counts
                            } else {
                              d.Ack();
                            }
                          })
                  .ok());
  ASSERT_TRUE(WaitConnected(bus));
  ASSERT_TRUE(Publish(bus, "a").ok());
  ASSERT_TRUE(seen.Wait([](const Seen& s) { return s.tries.size() == 3; }));
  ASSERT_TRUE(Eventually([&] { return bus.stats().acked == 1; }));
  const Seen s = seen.Get();
  EXPECT_THAT(s.tries, ElementsAre(1, 2, 3));
  EXPECT_GE(s.times[1] - s.times[0], std::chrono::milliseconds(140));
  EXPECT_GE(s.times[2] - s.times[1], std::chrono::milliseconds(140));
  EXPECT_EQ(bus.stats().naked, 2u);
  EXPECT_EQ(bus.stats().redelivered, 2u);
}

// A handler that is stuck for longer than ack_wait, with more waiting than may be unacknowledged.
TEST_F(BusTest, AStalledHandlerLosesNothing) {
  NatsBus bus(Options());
  ConsumerSpec spec = Events();
  spec.max_ack_pending = 8;
  spec.ack_wait = absl::Milliseconds(300);
  Watched<bool> go;
  Watched<std::map<std::string, int>> bodies;
  std::atomic<bool> again{false};
  ASSERT_TRUE(bus.Consume(spec,
                          [&](BusDelivery d) {
                            if (d.delivered > 1) again = true;
                            go.Wait([](bool b) { return b; });
                            bodies.With([&](auto& b) { ++b[d.body]; });
                            d.Ack();
                          })
                  .ok());
  ASSERT_TRUE(WaitConnected(bus));
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(Publish(bus, absl::StrCat(i)).ok());
  // Until the server has given it up once: the same message stands twice in the queue of the
  // subscription.
  NatsBus other(Options("other"));
  std::atomic<bool> redelivered{false};
  ASSERT_TRUE(other
                  .Consume(spec,
                           [&](BusDelivery d) {
                             if (d.delivered > 1) redelivered = true;
                             bodies.With([&](auto& b) { ++b[d.body]; });
                             d.Ack();
                           })
                  .ok());
  EXPECT_TRUE(Eventually([&] { return redelivered.load(); }));
  go.With([](bool& b) { b = true; });
  EXPECT_TRUE(bodies.Wait([](const auto& b) { return b.size() == 50; }));
}

TEST_F(BusTest, TwoOfOneDurableShareAndOthersGetAll) {
  NatsBus a(Options("a")), b(Options("b"));
  Inbox inbox_a, inbox_b, audit;
  ASSERT_TRUE(a.Consume(Events("view"), inbox_a.Handler()).ok());
  ASSERT_TRUE(b.Consume(Events("view"), inbox_b.Handler()).ok());
  ASSERT_TRUE(b.Consume(Events("audit"), audit.Handler()).ok());
  ASSERT_TRUE(WaitConnected(a));
  ASSERT_TRUE(WaitConnected(b));
  constexpr size_t kMessages = 200;
  for (size_t i = 0; i < kMessages; ++i) ASSERT_TRUE(Publish(a, absl::StrCat(i)).ok());
  ASSERT_TRUE(audit.WaitForCount(kMessages));
  ASSERT_TRUE(Eventually(
      [&] { return inbox_a.bodies.Get().size() + inbox_b.bodies.Get().size() == kMessages; }));
  std::map<std::string, int> shared = inbox_a.bodies.Get();
  EXPECT_GT(shared.size(), 0u);
  EXPECT_LT(shared.size(), kMessages);
  shared.merge(inbox_b.bodies.Get());
  EXPECT_EQ(shared.size(), kMessages);
}

// Deliveries that nobody settles.
struct Hands {
  Watched<std::vector<BusDelivery>> held;
  DeliveryHandler Handler() {
    return [this](BusDelivery d) { held.With([&](auto& v) { v.push_back(std::move(d)); }); };
  }
  bool WaitForCount(size_t count) {
    return held.Wait([&](const auto& v) { return v.size() >= count; });
  }
};

TEST_F(BusTest, AnUnackedMessageOfAProcessThatDiesGoesToAnother) {
  auto a = std::make_unique<NatsBus>(Options("a"));
  ConsumerSpec spec = Events();
  spec.ack_wait = absl::Milliseconds(300);
  Hands hands;
  ASSERT_TRUE(a->Consume(spec, hands.Handler()).ok());
  ASSERT_TRUE(WaitConnected(*a));
  ASSERT_TRUE(Publish(*a, "x").ok());
  ASSERT_TRUE(hands.WaitForCount(1));
  a->Close();
  NatsBus b(Options("b"));
  Inbox inbox;
  ASSERT_TRUE(b.Consume(spec, inbox.Handler()).ok());
  EXPECT_TRUE(inbox.WaitFor("x"));
}

// Slow, but alive: a database that is away must not bring every message again and again.
TEST_F(BusTest, WhatIsInHandLongerThanAckWaitDoesNotComeAgain) {
  NatsBus a(Options("a")), b(Options("b"));
  ConsumerSpec spec = Events();
  spec.ack_wait = absl::Seconds(1);
  Hands hands;  // of both
  ASSERT_TRUE(a.Consume(spec, hands.Handler()).ok());
  ASSERT_TRUE(b.Consume(spec, hands.Handler()).ok());
  ASSERT_TRUE(WaitConnected(a));
  ASSERT_TRUE(WaitConnected(b));
  constexpr size_t kMessages = 20;
  for (size_t i = 0; i < kMessages; ++i) ASSERT_TRUE(Publish(a, absl::StrCat(i)).ok());
  ASSERT_TRUE(hands.WaitForCount(kMessages));
  // A word at most every quarter of ack_wait each: twelve take three of them.
  ASSERT_TRUE(
      Eventually([&] { return a.stats().in_progress + b.stats().in_progress >= 12 * kMessages; }));
  EXPECT_EQ(hands.held.Get().size(), kMessages);
  EXPECT_EQ(a.stats().redelivered + b.stats().redelivered, 0u);
  for (const BusDelivery& d : hands.held.Get()) d.Ack();
  EXPECT_TRUE(Eventually([&] { return a.stats().acked + b.stats().acked == kMessages; }));
  EXPECT_TRUE(ConsumerSays(a, "\"num_ack_pending\":0"));
}

// A handler that forgets a delivery has not handled it.
TEST_F(BusTest, WhatIsDroppedWithoutAWordComesAgain) {
  NatsBus bus(Options());
  ConsumerSpec spec = Events();
  spec.ack_wait = absl::Milliseconds(300);
  Watched<std::vector<uint64_t>> tries;
  ASSERT_TRUE(bus.Consume(spec,
                          [&](BusDelivery d) {
                            tries.With([&](auto& v) { v.push_back(d.delivered); });
                            if (d.delivered == 3) d.Ack();
                          })
                  .ok());
  ASSERT_TRUE(WaitConnected(bus));
  ASSERT_TRUE(Publish(bus, "x").ok());
  EXPECT_TRUE(tries.Wait([](const auto& v) { return v.size() == 3; }));
  EXPECT_THAT(tries.Get(), ElementsAre(1, 2, 3));
}

// The process that the next test freezes: this binary, run again. It holds what it gets.
constexpr char kMemberUrl[] = "GAEKJU_BUS_TEST_MEMBER_URL";
TEST(BusMember, DISABLED_HoldsWhatItGets) {
  const char* url = getenv(kMemberUrl);
  ASSERT_NE(url, nullptr) << "run by AFrozenProcessLosesItsMessagesToAnother";
  NatsBusOptions options;
  options.urls = {url};
  NatsBus bus(options);
  Hands hands;
  ASSERT_TRUE(bus.Consume({.stream = kEventsStream,
                           .durable = "view",
                           .filter_subject = "gaekju.event.*",
                           .ack_wait = absl::Seconds(1)},
                          hands.Handler())
                  .ok());
  ASSERT_TRUE(hands.WaitForCount(1));
  constexpr char kGot[] = "got\n";
  ASSERT_EQ(write(STDERR_FILENO, kGot, sizeof(kGot) - 1), ssize_t{sizeof(kGot) - 1});
  while (true) pause();
}

TEST_F(BusTest, AFrozenProcessLosesItsMessagesToAnother) {
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  const pid_t member = fork();
  if (member == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(pipe_ends[1], STDERR_FILENO);
    setenv(kMemberUrl, server_.url().c_str(), 1);
    execl("/proc/self/exe", "bus_test", "--gtest_filter=BusMember.*",
          "--gtest_also_run_disabled_tests", nullptr);
    _exit(127);
  }
  ASSERT_GT(member, 0);
  close(pipe_ends[1]);
  struct Reap {
    pid_t pid;
    int fd;
    ~Reap() {
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
      close(fd);
    }
  } reap{member, pipe_ends[0]};

  NatsBus b(Options("b"));
  ASSERT_TRUE(WaitConnected(b));
  ASSERT_TRUE(Publish(b, "x").ok());
  std::string said;
  char byte;
  while (said.find("got\n") == said.npos && read(pipe_ends[0], &byte, 1) == 1) said += byte;
  ASSERT_THAT(said, testing::HasSubstr("got\n"));
  ASSERT_EQ(kill(member, SIGSTOP), 0);
  ConsumerSpec spec = Events();
  spec.ack_wait = absl::Seconds(1);
  Watched<uint64_t> delivered;
  ASSERT_TRUE(b.Consume(spec, [&](BusDelivery d) {
                 delivered.With([&](uint64_t& n) { n = d.delivered; });
                 d.Ack();
               }).ok());
  // The server still draws among both: now and then the frozen one gets it again.
  EXPECT_TRUE(delivered.Wait([](uint64_t n) { return n > 1; }));
}

// A durable that an older binary, or other flags, made.
TEST_F(BusTest, OtherSettingsChangeADurableInItsPlace) {
  ConsumerSpec spec = Events();
  spec.ack_wait = absl::Seconds(30);
  {
    NatsBus before(Options("before"));
    Hands hands;
    ASSERT_TRUE(before.Consume(spec, hands.Handler()).ok());
    ASSERT_TRUE(WaitConnected(before));
    for (const char* body : {"acked", "in hand", "in hand too"})
      ASSERT_TRUE(Publish(before, body).ok());
    ASSERT_TRUE(hands.WaitForCount(3));
    hands.held.Get()[0].Ack();
    ASSERT_TRUE(Eventually([&] { return before.stats().acked == 1; }));
    before.Close();
  }
  NatsBus after(Options("after"));
  spec.ack_wait = absl::Milliseconds(500);
  spec.max_ack_pending = 77;
  Inbox inbox;
  ASSERT_TRUE(after.Consume(spec, inbox.Handler()).ok());
  // Long before the old 30 s have passed.
  ASSERT_TRUE(inbox.WaitForCount(2));
  ASSERT_TRUE(Publish(after, "next").ok());
  ASSERT_TRUE(inbox.WaitFor("next"));
  EXPECT_THAT(inbox.bodies.Get(),
              ElementsAre(Pair("in hand", 1), Pair("in hand too", 1), Pair("next", 1)));
  EXPECT_EQ(after.stats().consumers_made, 0u);
  EXPECT_EQ(after.stats().consumers_updated, 1u);
  EXPECT_TRUE(ConsumerSays(after, "\"ack_wait\":500000000"));
  EXPECT_TRUE(ConsumerSays(after, "\"max_ack_pending\":77"));
}

TEST_F(BusTest, BadConsumersAreRefused) {
  NatsBus bus(Options());
  auto handler = [](BusDelivery) {};
  ConsumerSpec spec = Events("with.dot");
  EXPECT_EQ(bus.Consume(spec, handler).code(), absl::StatusCode::kInvalidArgument);
  spec = Events();
  spec.max_ack_pending = 0;
  EXPECT_EQ(bus.Consume(spec, handler).code(), absl::StatusCode::kInvalidArgument);
  spec = Events();
  spec.ack_wait = absl::ZeroDuration();
  EXPECT_EQ(bus.Consume(spec, handler).code(), absl::StatusCode::kInvalidArgument);
}

// ---------------------------------------------------------------- outages

TEST_F(BusTest, ConsumersOutliveRestartsAndKills) {
  NatsBus bus(Options());
  Inbox inbox;
  ASSERT_TRUE(bus.Consume(Events(), inbox.Handler()).ok());
  ASSERT_TRUE(PublishAtLast(bus, "0"));
  ASSERT_TRUE(inbox.WaitFor("0"));
  for (int round = 1; round <= 4; ++round) {
    ASSERT_TRUE(WaitConnected(bus));
    if (round % 2 == 0) {
      server_.Stop();
    } else {
      server_.Kill();
    }
    ASSERT_TRUE(Eventually([&] { return !bus.connected(); }));
    server_.Start();
    ASSERT_TRUE(PublishAtLast(bus, absl::StrCat(round)));
    ASSERT_TRUE(inbox.WaitFor(absl::StrCat(round))) << "round " << round;
  }
  EXPECT_TRUE(Eventually([&] { return bus.stats().connects == 5; }));
  EXPECT_EQ(bus.stats().consumers_made, 1u);
}

// The store is gone with everything in it. Within 2 s of the server's return messages flow again,
// without anybody's help.
TEST_F(BusTest, ConsumersOutliveAWipedStore) {
  NatsBus publisher(Options("publisher")), consumer(Options("consumer"));
  Inbox inbox;
  ASSERT_TRUE(consumer.Consume(Events(), inbox.Handler()).ok());
  ASSERT_TRUE(PublishAtLast(publisher, "0"));
  ASSERT_TRUE(inbox.WaitFor("0"));
  ASSERT_TRUE(WaitConnected(consumer));
  for (int round = 1; round <= 5; ++round) {
    server_.Kill();
    server_.WipeStore();
    server_.Start();
    const auto start = std::chrono::steady_clock::now();
    ASSERT_TRUE(PublishAtLast(publisher, absl::StrCat(round)));
    ASSERT_TRUE(inbox.WaitFor(absl::StrCat(round))) << "round " << round;
    const auto took = std::chrono::steady_clock::now() - start;
    EXPECT_LT(took, std::chrono::seconds(2)) << "round " << round;
    ASSERT_TRUE(
        WaitConnected(consumer));  // so that the answer to "make the consumer" has come, too
    std::cout << "flows " << std::chrono::duration_cast<std::chrono::milliseconds>(took).count()
              << " ms after the empty server is up\n";
  }
  EXPECT_EQ(consumer.stats().consumers_made, 6u);
}

// An administrator (or another process's bug) deletes a stream under a live connection.
TEST_F(BusTest, AStreamDeletedWhileConnectedComesBackAndIsAnnounced) {
  NatsBus bus(Options());
  Inbox inbox;
  ASSERT_TRUE(bus.Consume(Events(), inbox.Handler()).ok());
  Watched<int> announced;
  bus.OnConnect([&] { announced.With([](int& n) { ++n; }); });
  ASSERT_TRUE(announced.Wait([](int n) { return n == 1; }));
  ASSERT_TRUE(Publish(bus, "0").ok());
  ASSERT_TRUE(inbox.WaitFor("0"));
  const int64_t created_before = bus.Streams()->at(2).created_ns;
  auto deleted =
      bus.Request(absl::StrCat("$JS.API.STREAM.DELETE.", kEventsStream), "", absl::Seconds(5));
  ASSERT_TRUE(deleted.ok()) << deleted.status();
  ASSERT_TRUE(announced.Wait([](int n) { return n >= 2; }));
  ASSERT_TRUE(PublishAtLast(bus, "1"));
  EXPECT_TRUE(inbox.WaitFor("1"));
  EXPECT_GT(bus.Streams()->at(2).created_ns, created_before);
}

TEST_F(BusTest, StreamsTellsALostStoreFromAKeptOne) {
  NatsBus bus(Options());
  ASSERT_TRUE(PublishAtLast(bus, "a"));
  ASSERT_TRUE(Publish(bus, "b").ok());
  auto before = bus.Streams();
  ASSERT_TRUE(before.ok()) << before.status();
  ASSERT_EQ(before->size(), 4u);
  EXPECT_EQ(before->at(2).name, kEventsStream);
  EXPECT_EQ(before->at(2).last_seq, 2u);
  server_.Kill();
  server_.Start();
  ASSERT_TRUE(Eventually([&] { return bus.Streams().ok(); }));
  EXPECT_EQ(bus.Streams()->at(2).created_ns, before->at(2).created_ns);
  EXPECT_EQ(bus.Streams()->at(2).last_seq, 2u);
  server_.Kill();
  server_.WipeStore();
  server_.Start();
  ASSERT_TRUE(Eventually([&] { return bus.Streams().ok(); }));
  EXPECT_GT(bus.Streams()->at(2).created_ns, before->at(2).created_ns);
  EXPECT_EQ(bus.Streams()->at(2).last_seq, 0u);
}

TEST_F(BusTest, OnConnectIsCalledAfterEveryConnectWhenConsumersStand) {
  NatsBus bus(Options());
  Watched<int> connects;
  bus.OnConnect([&] { connects.With([](int& n) { ++n; }); });
  ASSERT_TRUE(connects.Wait([](int n) { return n == 1; }));
  Watched<int> late;
  bus.OnConnect([&] { late.With([](int& n) { ++n; }); });
  ASSERT_TRUE(late.Wait([](int n) { return n == 1; }));
  EXPECT_EQ(connects.Get(), 1);
  server_.Kill();
  server_.Start();
  EXPECT_TRUE(connects.Wait([](int n) { return n == 2; }));
  EXPECT_TRUE(late.Wait([](int n) { return n == 2; }));
}

// A message is handled while the server comes back with its store: the ack that was held back
// counts, and it does not come again.
TEST_F(BusTest, AnAckDuringAnOutageIsSentAfterIt) {
  NatsBus bus(Options());
  Watched<std::vector<BusDelivery>> deliveries;
  ConsumerSpec spec = Events();
  spec.ack_wait = absl::Minutes(5);
  ASSERT_TRUE(bus.Consume(spec,
                          [&](BusDelivery d) {
                            deliveries.With([&](auto& v) { v.push_back(std::move(d)); });
                          })
                  .ok());
  ASSERT_TRUE(PublishAtLast(bus, "a"));
  ASSERT_TRUE(deliveries.Wait([](const auto& v) { return v.size() == 1; }));
  server_.Kill();
  ASSERT_TRUE(Eventually([&] { return !bus.connected(); }));
  deliveries.Get()[0].Ack();
  server_.Start();
  ASSERT_TRUE(Eventually([&] { return bus.stats().acked == 1; }));
  EXPECT_TRUE(ConsumerSays(bus, "\"num_ack_pending\":0"));
}

// Sequence 1 of the lost stream was handled; sequence 1 of the new one is another message. The old
// ack must not settle the new message, which nobody has handled yet.
TEST_F(BusTest, AnAckForALostStreamDoesNotSettleAMessageOfTheNewOne) {
  NatsBus bus(Options());
  Watched<std::vector<BusDelivery>> deliveries;
  ConsumerSpec spec = Events();
  spec.ack_wait = absl::Seconds(1);
  ASSERT_TRUE(bus.Consume(spec,
                          [&](BusDelivery d) {
                            deliveries.With([&](auto& v) { v.push_back(std::move(d)); });
                          })
                  .ok());
  ASSERT_TRUE(PublishAtLast(bus, "old"));
  ASSERT_TRUE(deliveries.Wait([](const auto& v) { return v.size() == 1; }));
  server_.Kill();
  server_.WipeStore();
  server_.Start();
  ASSERT_TRUE(PublishAtLast(bus, "new"));
  ASSERT_TRUE(deliveries.Wait([](const auto& v) { return v.size() == 2; }));
  EXPECT_EQ(deliveries.Get()[1].stream_seq, deliveries.Get()[0].stream_seq);
  deliveries.Get()[0].Ack();
  EXPECT_TRUE(Eventually([&] { return bus.stats().stale_acks == 1; }));
  EXPECT_TRUE(ConsumerSays(bus, "\"num_ack_pending\":1"));  // "new": it is not settled
  EXPECT_EQ(deliveries.Get()[1].body, "new");
  deliveries.Get()[1].Ack();
  EXPECT_TRUE(Eventually([&] { return bus.stats().acked == 1; }));
  EXPECT_TRUE(ConsumerSays(bus, "\"num_ack_pending\":0"));
}

// As above, after a power cut: the stream is the same, and its newest message is gone.
TEST_F(BusTest, AnAckForALostEndDoesNotSettleTheMessageThatTookItsPlace) {
  NatsBus publisher(Options("publisher")), bus(Options());
  Watched<std::vector<BusDelivery>> deliveries;
  ConsumerSpec spec = Events();
  spec.ack_wait = absl::Minutes(5);
  ASSERT_TRUE(bus.Consume(spec,
                          [&](BusDelivery d) {
                            deliveries.With([&](auto& v) { v.push_back(std::move(d)); });
                          })
                  .ok());
  ASSERT_TRUE(PublishAtLast(publisher, "kept", "m1"));
  ASSERT_TRUE(deliveries.Wait([](const auto& v) { return v.size() == 1; }));
  server_.Stop();
  server_.KeepStore();
  server_.Start();
  ASSERT_TRUE(PublishAtLast(publisher, "old", "m2"));
  ASSERT_TRUE(deliveries.Wait([](const auto& v) { return v.size() == 2; }));
  server_.Kill();
  server_.PutStoreBack(/*only_messages=*/false);
  server_.Start();
  ASSERT_TRUE(PublishAtLast(publisher, "new", "m3"));
  ASSERT_TRUE(deliveries.Wait([](const auto& v) { return v.back().body == "new"; }));
  EXPECT_EQ(deliveries.Get().back().stream_seq, 2u);
  deliveries.Get()[1].Ack();
  EXPECT_TRUE(Eventually([&] { return bus.stats().stale_acks == 1; }));
  EXPECT_EQ(bus.stats().acked, 0u);
  deliveries.Get().back().Ack();
  EXPECT_TRUE(Eventually([&] { return bus.stats().acked == 1; }));
  EXPECT_TRUE(ConsumerSays(bus, "\"num_ack_pending\":1"));  // "kept"
}

// nats-server 2.9 leaves a consumer at the sequence that it has delivered, also when the stream's
// newest messages are gone: what takes their places would never be delivered.
TEST_F(BusTest, AConsumerThatIsAheadOfItsStreamBeginsWhereTheStreamEnds) {
  NatsBus publisher(Options("publisher"));
  Inbox inbox;
  {
    NatsBus bus(Options());
    ASSERT_TRUE(bus.Consume(Events(), inbox.Handler()).ok());
    ASSERT_TRUE(PublishAtLast(publisher, "a", "m1"));
    ASSERT_TRUE(inbox.WaitFor("a"));
    ASSERT_TRUE(ConsumerSays(bus, "\"ack_floor\":{\"consumer_seq\":1,\"stream_seq\":1"));
    server_.Stop();
    server_.KeepStore();
    server_.Start();
    for (int i = 2; i <= 5; ++i) {
      ASSERT_TRUE(PublishAtLast(publisher, absl::StrCat("lost", i), absl::StrCat("m", i)));
      ASSERT_TRUE(inbox.WaitFor(absl::StrCat("lost", i)));
    }
    ASSERT_TRUE(ConsumerSays(bus, "\"stream_seq\":5"));
  }
  server_.Stop();
  server_.PutStoreBack(/*only_messages=*/true);
  server_.Start();
  // Nobody of the consumer's runs: the publisher sees to it, before it publishes.
  ASSERT_TRUE(Eventually([&] { return publisher.stats().consumers_mended == 1; }));
  ASSERT_TRUE(PublishAtLast(publisher, "b", "m6"));
  EXPECT_EQ(*Publish(publisher, "c", "m7"), 3u);
  NatsBus bus(Options());
  ConsumerSpec spec = Events();
  spec.max_ack_pending = 77;  // may still be changed
  ASSERT_TRUE(bus.Consume(spec, inbox.Handler()).ok());
  EXPECT_TRUE(inbox.WaitFor("b"));
  EXPECT_TRUE(inbox.WaitFor("c"));
  EXPECT_EQ(inbox.bodies.Get().size(), 7u) << "nothing came twice";
  EXPECT_TRUE(Eventually([&] { return bus.stats().consumers_updated == 1; }));
}

TEST_F(BusTest, TellsWhichMessageHasASequence) {
  NatsBus bus(Options());
  ASSERT_TRUE(PublishAtLast(bus, "a", "m1"));
  ASSERT_TRUE(Publish(bus, "b").ok());
  EXPECT_EQ(*bus.MessageId(kEventsStream, 1), "m1");
  EXPECT_EQ(*bus.MessageId(kEventsStream, 2), "");
  EXPECT_EQ(*bus.MessageId(kEventsStream, 3), "");
  server_.Kill();
  EXPECT_FALSE(bus.MessageId(kEventsStream, 1).ok());
}

TEST_F(BusTest, WhatIsForOneConnectionIsNotSentOverAnother) {
  NatsBus bus(Options());
  ASSERT_TRUE(WaitConnected(bus));
  const uint64_t connection = bus.connection();
  ASSERT_NE(connection, 0u);
  const auto publish = [&](uint64_t over) {
    auto result = std::make_shared<Watched<std::optional<absl::StatusOr<uint64_t>>>>();
    bus.Publish({"gaekju.event.test", "", {}, "a", over}, [result](absl::StatusOr<uint64_t> seq) {
      result->With([&](auto& r) { r = std::move(seq); });
    });
    return result->Wait([](const auto& r) { return r.has_value(); }) && result->Get()->ok();
  };
  EXPECT_TRUE(publish(connection));
  server_.Kill();
  server_.Start();
  ASSERT_TRUE(Eventually([&] { return bus.connection() != 0 && bus.connection() != connection; }));
  EXPECT_FALSE(publish(connection));
  EXPECT_TRUE(publish(bus.connection()));
}

// ---------------------------------------------------------------- dead letters, core NATS

TEST_F(BusTest, ADeadLetterKeepsTheMessageAndSaysWhy) {
  NatsBus bus(Options());
  Watched<std::vector<BusDelivery>> dead;
  ASSERT_TRUE(
      bus.Consume(
             {.stream = kDeadStream, .durable = "undertaker", .filter_subject = "gaekju.dead.*"},
             [&](BusDelivery d) {
               d.Ack();
               dead.With([&](auto& v) { v.push_back(std::move(d)); });
             })
          .ok());
  ASSERT_TRUE(bus.Consume(Events(),
                          [&](BusDelivery d) {
                            bus.Publish(DeadLetter(d, "view", "no such\r\ntype"),
                                        [d](absl::StatusOr<uint64_t> seq) {
                                          if (seq.ok()) d.Ack();
                                        });
                          })
                  .ok());
  ASSERT_TRUE(WaitConnected(bus));
  ASSERT_TRUE(Publish(bus, "poison", "test:1:1:0").ok());
  ASSERT_TRUE(dead.Wait([](const auto& v) { return v.size() == 1; }));
  const BusDelivery d = dead.Get()[0];
  EXPECT_EQ(d.subject, "gaekju.dead.view");
  EXPECT_EQ(d.body, "poison");
  EXPECT_THAT(d.headers,
              IsSupersetOf({Pair("ce-id", "poison"), Pair("gaekju-dead-reason", "no such  type"),
                            Pair("gaekju-dead-subject", "gaekju.event.test"),
                            Pair("gaekju-dead-stream", kEventsStream), Pair("gaekju-dead-seq", "1"),
                            Pair("Nats-Msg-Id", "dead:view:test:1:1:0")}));
  EXPECT_TRUE(Eventually([&] { return bus.stats().acked == 2; }));
}

TEST_F(BusTest, CoreRequestsAreAnsweredByOneOfAGroup) {
  NatsBus a(Options("a")), b(Options("b")), client(Options("client"));
  std::atomic<int> asked{0};
  for (NatsBus* bus : {&a, &b}) {
    ASSERT_TRUE(WaitConnected(*bus));
    auto answer = [&asked, bus](CoreMessage m) {
      ++asked;
      if (m.reply_to.empty()) return;
      bus->PublishCore(m.reply_to, absl::StrCat("got ", m.body)).IgnoreError();
    };
    ASSERT_TRUE(bus->Subscribe(ResendSubject("payment"), "payment", answer).ok());
  }
  ASSERT_TRUE(WaitConnected(client));
  ASSERT_TRUE(Eventually(
      [&] { return client.Request(ResendSubject("payment"), "p", absl::Seconds(5)).ok(); }));
  asked = 0;
  for (int i = 0; i < 20; ++i) {
    auto answer = client.Request(ResendSubject("payment"), absl::StrCat(i), absl::Seconds(5));
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(*answer, absl::StrCat("got ", i));
  }
  EXPECT_EQ(asked, 20);
  ASSERT_TRUE(client.PublishCore(ResendSubject("payment"), "no answer wanted").ok());
  EXPECT_TRUE(Eventually([&] { return asked == 21; }));
  EXPECT_EQ(client.Request("nobody.listens", "", absl::Seconds(5)).status().code(),
            absl::StatusCode::kUnavailable);
  server_.Kill();
  server_.Start();  // subscriptions come back
  EXPECT_TRUE(Eventually(
      [&] { return client.Request(ResendSubject("payment"), "x", absl::Seconds(1)).ok(); }));
}

TEST_F(BusTest, ARequestWithoutAnAnswerEnds) {
  NatsBus bus(Options());
  ASSERT_TRUE(WaitConnected(bus));
  ASSERT_TRUE(bus.Subscribe("silent", "", [](CoreMessage) {}).ok());
  EXPECT_EQ(bus.Request("silent", "", absl::Milliseconds(50)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

// ---------------------------------------------------------------- the end

// Close while publishers publish, handlers handle and acks are on their way, also in an outage: all
// ends, each publish is answered once, and nothing of ours runs afterwards.
TEST_F(BusTest, CloseWhileBusyEndsEverything) {
  for (int round = 0; round < 6; ++round) {
    const bool outage = round % 3 == 2;
    auto bus = std::make_unique<NatsBus>(Options());
    std::atomic<bool> closed{false};
    std::atomic<int> after{0}, asked{0}, answered{0};
    Watched<std::vector<BusDelivery>> kept;
    ASSERT_TRUE(bus->Consume(Events(absl::StrCat("busy", round)),
                             [&](BusDelivery d) {
                               if (closed) ++after;
                               if (d.stream_seq % 2 == 0) d.Ack();
                               kept.With([&](auto& v) { v.push_back(std::move(d)); });
                             })
                    .ok());
    bus->OnConnect([&] {
      if (closed) ++after;
    });
    ASSERT_TRUE(WaitConnected(*bus));
    std::vector<std::thread> publishers;
    for (int p = 0; p < 3; ++p) {
      publishers.emplace_back([&] {
        while (!closed) {
          if (asked - answered > 1000) {
            std::this_thread::yield();
            continue;
          }
          ++asked;
          bus->Publish({"gaekju.event.test", "", {{"ce-id", "x"}}, "x"},
                       [&](absl::StatusOr<uint64_t>) { ++answered; });
        }
      });
    }
    ASSERT_TRUE(kept.Wait([](const auto& v) { return v.size() > 500; }));
    if (outage) server_.Kill();
    bus->Close();
    bus->Close();
    closed = true;
    for (std::thread& p : publishers) p.join();
    EXPECT_EQ(asked, answered);
    EXPECT_EQ(Publish(*bus, "late").status().code(), absl::StatusCode::kCancelled);
    EXPECT_FALSE(bus->connected());
    bus.reset();
    for (const BusDelivery& d : kept.Get()) d.Ack();  // after the bus is gone: nothing
    EXPECT_EQ(after, 0);
    if (outage) server_.Start();
  }
}

TEST_F(BusTest, CloseWithAServerThatDoesNotAnswerEnds) {
  auto bus = std::make_unique<NatsBus>(Options());
  Inbox inbox;
  ASSERT_TRUE(bus->Consume(Events(), inbox.Handler()).ok());
  ASSERT_TRUE(WaitConnected(*bus));
  server_.Pause();
  const auto start = std::chrono::steady_clock::now();
  bus.reset();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  server_.Resume();
}

TEST_F(BusTest, CloseBeforeEverConnectedEnds) {
  server_.Kill();
  for (int i = 0; i < 10; ++i) {
    NatsBus bus(Options());
    Inbox inbox;
    ASSERT_TRUE(bus.Consume(Events(), inbox.Handler()).ok());
  }
  server_.Start();
}

// Not a test of a promise: prints what this machine does.
TEST_F(BusTest, SpeedIsPrinted) {
  NatsBus publisher(Options("publisher")), consumer(Options("consumer"));
  std::atomic<int> got{0};
  ASSERT_TRUE(consumer
                  .Consume(Events(),
                           [&](BusDelivery d) {
                             ++got;
                             d.Ack();
                           })
                  .ok());
  ASSERT_TRUE(WaitConnected(publisher));
  ASSERT_TRUE(WaitConnected(consumer));
  for (auto [size, count] : {std::pair{200, 20'000}, std::pair{47'000, 3'000}}) {
    got = 0;
    Watched<int> window;
    const std::string body(size, 'x');
    const std::clock_t cpu = std::clock();
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < count; ++i) {
      ASSERT_TRUE(window.Wait([](int n) { return n < 1024; }));
      window.With([](int& n) { ++n; });
      publisher.Publish(
          {"gaekju.event.test", absl::StrCat(size, ":", i), {{"content-type", "a/b"}}, body},
          [&](absl::StatusOr<uint64_t>) { window.With([](int& n) { --n; }); });
    }
    ASSERT_TRUE(window.Wait([](int n) { return n == 0; }));
    ASSERT_TRUE(Eventually([&, n = count] { return got == n; }));
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::cout << size << " bytes: " << static_cast<int>(count / seconds)
              << " messages/s published, delivered and acked, "
              << static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC * 1e6 / count
              << " us of our CPU each\n";
  }
}

}  // namespace
}  // namespace gaekju::runtime
