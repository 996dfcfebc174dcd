#include "services/assignment/assignment_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <sstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "flow/check.h"
#include "gaekju/assignment/v1/assignment_service.pb.h"
#include "runtime/testing/eventually.h"
#include "runtime/testing/postgres.h"
#include "runtime/turn_loop.h"
#include "services/assignment/assignment.h"

namespace gaekju::assignment {
namespace {

using gaekju::assignment::v1::AssignRequest;
using gaekju::assignment::v1::AssignResponse;
using gaekju::assignment::v1::CreateDealerRequest;
using gaekju::assignment::v1::Dealer;
using gaekju::assignment::v1::UnassignRequest;
using google::protobuf::Message;
using runtime::Eventually;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr char kService[] = "gaekju.assignment.v1.AssignmentService.";

// What the shell makes of the context, without gRPC and the bus.
class Replica {
 public:
  Replica(const runtime::PgOptions& pg, DealerBook::Options book_options,
          std::function<void(const char*)> failpoint = nullptr)
      : book_(book_options), context_(MakeAssignmentContext(&book_)) {
    const absl::Status status = book_.Open(pg);
    GK_CHECK(status.ok()) << status;
    runtime::TurnLoop::Options options;
    options.pg = pg;
    options.failpoint = std::move(failpoint);
    runtime::TurnOutputs outputs;
    outputs.observe = [this](const flow::Table& table, const std::string&, const Message& row) {
      book_.Observe(table, row);
    };
    loop_ = std::make_unique<runtime::TurnLoop>(*context_, std::move(options), std::move(outputs));
    loop_->Start();
  }

  void Submit(const std::string& method, std::unique_ptr<Message> message,
              std::function<void(flow::Answer)> done) {
    runtime::Request request;
    request.handler = loop_->FindHandler(kService + method);
    GK_CHECK(request.handler != nullptr) << method;
    request.message = std::move(message);
    request.done = std::move(done);
    loop_->Submit(std::move(request));
  }
  flow::Answer Call(const std::string& method, const Message& message) {
    std::mutex mutex;
    std::condition_variable wake;
    bool answered = false;
    flow::Answer result;
    std::unique_ptr<Message> copy(message.New());
    copy->CopyFrom(message);
    Submit(method, std::move(copy), [&](flow::Answer answer) {
      std::lock_guard<std::mutex> lock(mutex);
      result = std::move(answer);
      answered = true;
      wake.notify_all();
    });
    std::unique_lock<std::mutex> lock(mutex);
    wake.wait(lock, [&] { return answered; });
    return result;
  }
  std::vector<std::string> Nearest() const {
    std::vector<std::string> ids;
    book_.Nearest("tshop", nullptr, 1000, &ids);
    return ids;
  }
  DealerBook& book() { return book_; }

 private:
  DealerBook book_;
  const std::unique_ptr<flow::Context> context_;
  std::unique_ptr<runtime::TurnLoop> loop_;
};

CreateDealerRequest Create(const std::string& dealer_id, int64_t capacity = 1) {
  CreateDealerRequest request;
  request.set_dealer_id(dealer_id);
  request.set_storefront("tshop");
  request.set_agency_name(dealer_id);
  request.mutable_location()->set_latitude(37.5);
  request.mutable_location()->set_longitude(127);
  request.set_capacity(capacity);
  return request;
}

AssignRequest Assign(const std::string& order_id) {
  AssignRequest request;
  request.set_order_id(order_id);
  request.set_step_id("assign");
  request.set_storefront("tshop");
  request.set_customer_id("cust1");
  auto* line = request.add_lines();
  line->set_product_id("p1");
  line->set_quantity(1);
  request.mutable_delivery_location()->set_latitude(37.6);
  request.mutable_delivery_location()->set_longitude(127);
  return request;
}

UnassignRequest Unassign(const std::string& order_id) {
  UnassignRequest request;
  request.set_order_id(order_id);
  request.set_step_id("assign");
  return request;
}

std::string DealerOf(const flow::Answer& answer) {
  AssignResponse response;
  if (answer.kind != flow::Answer::Kind::kDone || !response.ParseFromString(answer.payload))
    return flow::ReasonOf(answer.status);
  return response.dealer_id();
}

class DealerBookTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { postgres_ = new runtime::Postgres(); }
  static void TearDownTestSuite() {
    delete postgres_;
    postgres_ = nullptr;
  }
  void SetUp() override {
    pg_.conninfo = postgres_->CreateDatabase();
    auto connected = runtime::PgConnection::Connect(pg_);
    ASSERT_TRUE(connected.ok()) << connected.status();
    sql_ = *std::move(connected);
    for (const char* path :
         {"runtime/migrations/0001_outbox.sql", "runtime/migrations/0002_incarnation_start.sql",
          "services/assignment/migrations/0001_create.sql"}) {
      std::ifstream file(path);
      std::stringstream text;
      text << file.rdbuf();
      ASSERT_FALSE(text.str().empty()) << path << ": run from the root of the repository";
      ASSERT_TRUE(sql_->Script(text.str()).ok()) << path;
    }
  }
  int64_t Count(const std::string& sql) {
    auto result = sql_->Query(sql);
    GK_CHECK(result.ok()) << result.status();
    return result->Int(0, 0);
  }

  static runtime::Postgres* postgres_;
  runtime::PgOptions pg_;
  std::unique_ptr<runtime::PgConnection> sql_;
  // Long enough never to come in a test that is about something else.
  const DealerBook::Options never_{.poll_interval = absl::Hours(1)};
  const DealerBook::Options soon_{.poll_interval = absl::Milliseconds(20)};
};
runtime::Postgres* DealerBookTest::postgres_ = nullptr;

TEST_F(DealerBookTest, WhatATurnWroteIsKnownToTheNext) {
  Replica replica(pg_, never_);
  ASSERT_TRUE(Eventually([&] { return replica.book().poll_count() == 1; }));
  for (const char* id : {"d1", "d2"}) replica.Call("CreateDealer", Create(id));
  EXPECT_THAT(replica.Nearest(), ElementsAre("d1", "d2"));
  EXPECT_EQ(DealerOf(replica.Call("Assign", Assign("o1"))), "d1");
  EXPECT_THAT(replica.Nearest(), ElementsAre("d2"));
  EXPECT_EQ(DealerOf(replica.Call("Assign", Assign("o2"))), "d2");
  EXPECT_THAT(replica.Nearest(), IsEmpty());
  EXPECT_EQ(DealerOf(replica.Call("Assign", Assign("o3"))), "DEALERS_FULL");
  replica.Call("Unassign", Unassign("o1"));
  EXPECT_THAT(replica.Nearest(), ElementsAre("d1"));
}

TEST_F(DealerBookTest, AllDealersAreReadAtStart) {
  {
    Replica replica(pg_, never_);
    for (const char* id : {"d1", "d2", "d3"}) replica.Call("CreateDealer", Create(id));
    replica.Call("Assign", Assign("o1"));
  }
  Replica replica(pg_, never_);
  EXPECT_THAT(replica.Nearest(), ElementsAre("d2", "d3"));
  EXPECT_EQ(replica.book().size(), 3);
}

TEST_F(DealerBookTest, WhatAnotherReplicaWroteIsReadSoon) {
  Replica one(pg_, soon_), other(pg_, soon_);
  for (const char* id : {"d1", "d2"}) one.Call("CreateDealer", Create(id));
  ASSERT_TRUE(Eventually([&] { return other.Nearest() == std::vector<std::string>{"d1", "d2"}; }));
  EXPECT_EQ(DealerOf(other.Call("Assign", Assign("o1"))), "d1");
  ASSERT_TRUE(Eventually([&] { return one.Nearest() == std::vector<std::string>{"d2"}; }));
  one.Call("Unassign", Unassign("o1"));
  ASSERT_TRUE(Eventually([&] { return other.Nearest() == std::vector<std::string>{"d1", "d2"}; }));
}

TEST_F(DealerBookTest, ATurnThatIsGivenUpLeavesTheBookAsItWas) {
  std::atomic<bool> breaks{false};
  Replica replica(pg_, never_, [&](const char* point) {
    // The turn has decided, and its connection dies: nothing of it was committed.
    if (std::string(point) != "before_commit" || !breaks.exchange(false)) return;
    auto result = sql_->Query(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> "
        "pg_backend_pid() AND datname = current_database()");
    GK_CHECK(result.ok()) << result.status();
  });
  replica.Call("CreateDealer", Create("d1"));
  replica.Call("CreateDealer", Create("d2"));
  breaks = true;
  EXPECT_EQ(DealerOf(replica.Call("Assign", Assign("o1"))), "d1") << "run again, as if never run";
  EXPECT_FALSE(breaks);
  EXPECT_THAT(replica.Nearest(), ElementsAre("d2"));
  EXPECT_EQ(DealerOf(replica.Call("Assign", Assign("o2"))), "d2");
}

TEST_F(DealerBookTest, AnAnswerLostAfterTheCommitIsReadFromTheTable) {
  std::atomic<bool> breaks{false};
  Replica replica(pg_, soon_, [&](const char* point) {
    if (std::string(point) != "commit_sent" || !breaks) return;
    // Committed for sure, before the connection dies.
    while (Count("SELECT count(*) FROM assignments") == 0) absl::SleepFor(absl::Milliseconds(1));
    breaks = false;
    Count(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> "
        "pg_backend_pid() AND datname = current_database()");
  });
  replica.Call("CreateDealer", Create("d1"));
  replica.Call("CreateDealer", Create("d2"));
  breaks = true;
  EXPECT_EQ(DealerOf(replica.Call("Assign", Assign("o1"))), "d1");
  ASSERT_TRUE(Eventually([&] { return replica.Nearest() == std::vector<std::string>{"d2"}; }));
}

TEST_F(DealerBookTest, ReplicasThatFightForTheSameDealersNeverFillOneTwice) {
  constexpr int kOrders = 400, kDealers = 150;
  // They hear of each other only through the rows.
  Replica one(pg_, never_);
  for (int i = 0; i < kDealers; ++i) one.Call("CreateDealer", Create(absl::StrCat("d", 100 + i)));
  Replica other(pg_, never_);
  std::mutex mutex;
  std::condition_variable wake;
  int answered = 0;
  std::map<std::string, int> by_dealer;
  for (int i = 0; i < kOrders; ++i) {
    (i % 2 == 0 ? one : other)
        .Submit("Assign", std::make_unique<AssignRequest>(Assign(absl::StrCat("o", i))),
                [&](flow::Answer answer) {
                  std::lock_guard<std::mutex> lock(mutex);
                  ++answered;
                  ++by_dealer[DealerOf(answer)];
                  wake.notify_all();
                });
  }
  {
    std::unique_lock<std::mutex> lock(mutex);
    wake.wait(lock, [&] { return answered == kOrders; });
  }
  EXPECT_EQ(by_dealer["DEALERS_FULL"], kOrders - kDealers);
  EXPECT_EQ(by_dealer.size(), kDealers + 1u);
  EXPECT_EQ(Count("SELECT count(*) FROM dealers WHERE assigned_count = 1"), kDealers);
  EXPECT_EQ(Count("SELECT count(*) FROM assignments WHERE state = 1"), kDealers);
}

}  // namespace
}  // namespace gaekju::assignment
