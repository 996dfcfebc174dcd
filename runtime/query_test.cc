#include "runtime/query.h"

#include <condition_variable>
#include <future>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gaekju/payment/v1/payment.pb.h"
#include "gmock/gmock.h"
#include "google/rpc/code.pb.h"
#include "gtest/gtest.h"
#include "runtime/testing/postgres.h"
#include "runtime/testing/toy_context.h"
#include "runtime/turn_store.h"

namespace gaekju::runtime {
namespace {

using gaekju::payment::v1::GetPaymentRequest;
using gaekju::payment::v1::GetPaymentResponse;
using gaekju::payment::v1::ListPaymentsRequest;
using gaekju::payment::v1::ListPaymentsResponse;
using gaekju::payment::v1::Payment;
using Kind = flow::Answer::Kind;

constexpr char kOwnGet[] =
    "gaekju.order.v1.OrderService.GetOrder";  // its request has a customer_id

Postgres& Server() {
  static Postgres server;  // ends with the process
  return server;
}

class QueryTest : public testing::Test {
 protected:
  QueryTest() : context_(ToyContext()) {
    options_.pg.conninfo = Server().CreateDatabase();
    MakeToyTables(options_.pg);
    store_ = std::make_unique<TurnStore>(
        TurnStore::Options{options_.pg, context_.tables, nullptr, nullptr});
    GK_CHECK(store_->Connect().ok());
  }

  void Put(const std::string& key, const std::string& customer, int64_t amount,
           Payment::State state = Payment::STATE_CAPTURED) {
    flow::Turn turn(1);
    GK_CHECK(store_->Load({{&kToyCounters, key}}, &turn).ok());
    Payment& payment = turn.Edit<Payment>(kToyCounters, key);
    payment.set_payment_id(key);
    payment.set_customer_id(customer);
    payment.mutable_amount()->set_minor_units(amount);
    payment.set_state(state);
    std::vector<OutboxRow> rows;
    GK_CHECK(store_->Commit(turn, &rows).ok());
    if (queries_ != nullptr) queries_->Changed(kToyCounters, key);
  }

  QueryServer& Queries() {
    if (queries_ == nullptr) queries_ = std::make_unique<QueryServer>(context_, options_);
    return *queries_;
  }

  flow::Answer Execute(const std::string& method, const std::string& request,
                       int64_t deadline_us = 0) {
    std::promise<flow::Answer> promise;
    Queries().Execute(method, request, deadline_us,
                      [&](flow::Answer answer) { promise.set_value(std::move(answer)); });
    return promise.get_future().get();
  }
  flow::Answer Get(const std::string& key) {
    GetPaymentRequest request;
    request.set_payment_id(key);
    return Execute(kToyGet, request.SerializeAsString());
  }
  flow::Answer List(const ListPaymentsRequest& request) {
    return Execute(kToyList, request.SerializeAsString());
  }

  // All keys, page by page.
  std::vector<std::string> ListAll(ListPaymentsRequest request, int* pages = nullptr) {
    std::vector<std::string> keys;
    for (int page = 0; page < 100; ++page) {
      const flow::Answer answer = List(request);
      EXPECT_EQ(answer.kind, Kind::kDone) << answer.status.DebugString();
      ListPaymentsResponse response;
      EXPECT_TRUE(response.ParseFromString(answer.payload));
      EXPECT_LE(response.payments_size(), request.page_size() == 0 ? 50 : request.page_size());
      for (const Payment& payment : response.payments()) keys.push_back(payment.payment_id());
      if (pages != nullptr) *pages = page + 1;
      if (response.next_page_token().empty()) break;
      request.set_page_token(response.next_page_token());
    }
    return keys;
  }

  flow::Context context_;
  QueryServer::Options options_;
  std::unique_ptr<TurnStore> store_;
  std::unique_ptr<QueryServer> queries_;
};

TEST_F(QueryTest, GetFindsARow) {
  Put("a", "kim", 7);
  EXPECT_TRUE(Queries().Handles(kToyGet));
  EXPECT_FALSE(Queries().Handles("no.such.Method"));
  const flow::Answer answer = Get("a");
  ASSERT_EQ(answer.kind, Kind::kDone);
  GetPaymentResponse response;
  ASSERT_TRUE(response.ParseFromString(answer.payload));
  EXPECT_EQ(response.payment().amount().minor_units(), 7);
}

TEST_F(QueryTest, GetRefusals) {
  EXPECT_EQ(Get("nothing").status.code(), google::rpc::NOT_FOUND);
  EXPECT_EQ(Get("").status.code(), google::rpc::INVALID_ARGUMENT);
  EXPECT_EQ(Get(std::string("a\0", 2)).status.code(), google::rpc::INVALID_ARGUMENT);
  EXPECT_EQ(Get(std::string(2000, 'x')).status.code(), google::rpc::INVALID_ARGUMENT);
  EXPECT_EQ(Execute(kToyGet, "\xff\xff").status.code(), google::rpc::INVALID_ARGUMENT);
  GetPaymentRequest request;
  request.set_payment_id("a");
  EXPECT_EQ(Execute(kToyGet, request.SerializeAsString(), absl::ToUnixMicros(absl::Now()) - 1)
                .status.code(),
            google::rpc::UNAVAILABLE);
}

TEST_F(QueryTest, GetOfSomebodyElsesFindsNothing) {
  // GetOrder's request has a customer_id; the row's table has the column.
  static const flow::Table table = {"toy_counter", &Payment::default_instance(),
                                    kToyCounters.columns};
  context_.gets.push_back(
      {kOwnGet, &table, "order_id", "order",
       [](const google::protobuf::Message&, google::protobuf::Message*) { return true; }});
  Put("a", "kim", 7);
  const auto ask = [&](const std::string& customer) {
    // order_id = 1, customer_id = 2: both strings, written by hand to keep the order contract out
    // of this test.
    std::string bytes = std::string("\x0a\x01") + "a";
    if (!customer.empty())
      bytes += std::string("\x12") + static_cast<char>(customer.size()) + customer;
    return Execute(kOwnGet, bytes);
  };
  EXPECT_EQ(ask("").kind, Kind::kDone);
  EXPECT_EQ(ask("kim").kind, Kind::kDone);
  EXPECT_EQ(ask("lee").status.code(), google::rpc::NOT_FOUND);
}

TEST_F(QueryTest, HiddenRowsAreNotFoundAndPagesStayFull) {
  const auto project = [](const google::protobuf::Message& row, google::protobuf::Message* out) {
    out->CopyFrom(row);
    return static_cast<const Payment&>(row).state() != Payment::STATE_VOIDED;
  };
  context_.gets[0].project = project;
  context_.lists[0].project = project;
  for (int i = 0; i < 60; ++i) {
    Put(absl::StrCat("k", 100 + i), "kim", 1,
        i % 3 == 0 ? Payment::STATE_CAPTURED : Payment::STATE_VOIDED);
  }
  EXPECT_EQ(Get("k100").kind, Kind::kDone);
  EXPECT_EQ(Get("k101").status.code(), google::rpc::NOT_FOUND);
  ListPaymentsRequest request;
  request.set_page_size(5);
  int pages = 0;
  EXPECT_EQ(ListAll(request, &pages).size(), 20u);
  EXPECT_LE(pages, 5);
}

TEST_F(QueryTest, ListGoesThroughEveryRowOnce) {
  std::vector<std::string> keys;
  for (int i = 0; i < 120; ++i) {
    keys.push_back(absl::StrCat("k", 100 + i));
    Put(keys.back(), i % 2 == 0 ? "kim" : "lee", 1);
  }
  std::reverse(keys.begin(), keys.end());
  ListPaymentsRequest request;
  int pages = 0;
  EXPECT_EQ(ListAll(request, &pages), keys);
  EXPECT_EQ(pages, 3);
  request.set_page_size(40);
  EXPECT_EQ(ListAll(request, &pages), keys);
  EXPECT_EQ(pages, 3);  // the last page knows that it is the last
  request.set_customer_id("kim");
  EXPECT_EQ(ListAll(request).size(), 60u);
  request.set_customer_id("nobody");
  EXPECT_EQ(ListAll(request).size(), 0u);
}

TEST_F(QueryTest, ListOldestFirst) {
  context_.lists[0].newest_first = false;
  for (int i = 0; i < 7; ++i) Put(absl::StrCat("k", i), "kim", 1);
  ListPaymentsRequest request;
  request.set_page_size(2);
  EXPECT_THAT(ListAll(request), testing::ElementsAre("k0", "k1", "k2", "k3", "k4", "k5", "k6"));
}

TEST_F(QueryTest, ListOfTheseKeys) {
  context_.lists[0].filters.push_back("order_ids");  // no column: keys
  for (int i = 0; i < 6; ++i) Put(absl::StrCat("k", i), i % 2 == 0 ? "kim" : "lee", 1);
  ListPaymentsRequest request;
  for (const std::string key : {"k4", "k1", "nosuch", "k2", "k2"}) request.add_order_ids(key);
  EXPECT_THAT(ListAll(request), testing::ElementsAre("k4", "k2", "k1"));
  request.set_page_size(1);
  EXPECT_THAT(ListAll(request), testing::ElementsAre("k4", "k2", "k1"));
  request.set_customer_id("kim");
  EXPECT_THAT(ListAll(request), testing::ElementsAre("k4", "k2"));
  // A page of these is none of others, also where they are alike when put together.
  ListPaymentsResponse page;
  ASSERT_TRUE(page.ParseFromString(List(request).payload));
  request.set_page_token(page.next_page_token());
  request.mutable_order_ids(0)->append("k");
  request.mutable_order_ids(1)->erase(0, 1);
  EXPECT_EQ(List(request).status.code(), google::rpc::INVALID_ARGUMENT);
}

TEST_F(QueryTest, ListOfAsManyKeysAsAPageHasAndNoMore) {
  context_.lists[0].filters.push_back("order_ids");
  Put("k1", "kim", 1);
  ListPaymentsRequest request;
  for (int i = 0; i < 1000; ++i) request.add_order_ids(absl::StrCat("k", i));
  EXPECT_THAT(ListAll(request), testing::ElementsAre("k1"));
  request.add_order_ids("k1000");
  const flow::Answer answer = List(request);
  EXPECT_EQ(answer.status.code(), google::rpc::INVALID_ARGUMENT);
  EXPECT_THAT(answer.status.DebugString(), testing::HasSubstr("order_ids"));
}

TEST_F(QueryTest, ListOfASeriesIsByNumber) {
  context_.lists[0].newest_first = false;
  context_.lists[0].series = "order_id";  // any field with text will do
  for (const std::string key :
       {"a-10", "a-9", "a-1", "a-100", "a-", "a-x", "a-2", "b-1", "a", "aa-3"})
    Put(key, "kim", 1);
  ListPaymentsRequest request;
  request.set_order_id("a-");
  EXPECT_THAT(ListAll(request), testing::ElementsAre("a-1", "a-2", "a-9", "a-10", "a-100"));
  request.set_page_size(2);
  EXPECT_THAT(ListAll(request), testing::ElementsAre("a-1", "a-2", "a-9", "a-10", "a-100"));
  request.set_order_id("c-");
  EXPECT_THAT(ListAll(request), testing::ElementsAre());
  request.set_order_id("a-1");
  EXPECT_EQ(List(request).status.code(), google::rpc::INVALID_ARGUMENT);
  request.clear_order_id();
  EXPECT_EQ(ListAll(request).size(), 10u);
}

TEST_F(QueryTest, ListRefusals) {
  for (int i = 0; i < 3; ++i) Put(absl::StrCat("k", i), "kim", 1);
  ListPaymentsRequest request;
  request.set_page_size(1);
  flow::Answer answer = List(request);
  ListPaymentsResponse response;
  ASSERT_TRUE(response.ParseFromString(answer.payload));
  request.set_page_token(response.next_page_token());
  EXPECT_EQ(List(request).kind, Kind::kDone);
  request.set_customer_id("kim");  // another filter than the token's
  EXPECT_EQ(List(request).status.code(), google::rpc::INVALID_ARGUMENT);
  EXPECT_EQ(flow::ReasonOf(List(request).status), "FIELD_INVALID");
  for (const std::string token : {"x", "!!!", "AAAA"}) {
    request.set_page_token(token);
    EXPECT_EQ(List(request).status.code(), google::rpc::INVALID_ARGUMENT) << token;
  }
  request.clear_page_token();
  request.set_page_size(-1);
  EXPECT_EQ(List(request).status.code(), google::rpc::INVALID_ARGUMENT);
  request.set_page_size(1 << 30);
  EXPECT_EQ(List(request).kind, Kind::kDone);
}

TEST_F(QueryTest, DatabaseDownIsUnavailableAndComesBack) {
  Postgres own;
  options_.pg.conninfo = own.CreateDatabase();
  MakeToyTables(options_.pg);
  EXPECT_EQ(Get("a").status.code(), google::rpc::NOT_FOUND);
  own.Kill();
  // The backends outlive their postmaster for a moment.
  while (Get("a").status.code() != google::rpc::UNAVAILABLE) {
  }
  own.Start();
  // Connections are made anew every now and then.
  flow::Answer answer;
  do {
    answer = Get("a");
  } while (answer.status.code() == google::rpc::UNAVAILABLE);
  EXPECT_EQ(answer.status.code(), google::rpc::NOT_FOUND);
  queries_.reset();
}

class WatchTest : public QueryTest {
 protected:
  WatchTest() {
    context_.watches.push_back({kToyWatch, &kToyCounters, "order_id", "", nullptr, nullptr});
    // Refund's response has no field for a row; another method of the same shape has.
    context_.watches[0].method = kToyGet;
    context_.watches[0].key_field = "payment_id";
    context_.watches[0].response_field = "payment";
    context_.watches[0].ended = [](const google::protobuf::Message& row) {
      return static_cast<const Payment&>(row).state() == Payment::STATE_REFUNDED;
    };
    context_.gets.clear();
  }
  uint64_t Watch(const std::string& key) {
    GetPaymentRequest request;
    request.set_payment_id(key);
    return Queries().Watch(
        kToyGet, request.SerializeAsString(),
        [this](std::string bytes) {
          GetPaymentResponse response;
          ASSERT_TRUE(response.ParseFromString(bytes));
          std::lock_guard<std::mutex> lock(mutex_);
          amounts_.push_back(response.payment().amount().minor_units());
          wake_.notify_all();
        },
        [this](google::rpc::Status status) {
          std::lock_guard<std::mutex> lock(mutex_);
          ends_.push_back(status.code());
          wake_.notify_all();
        });
  }
  bool WaitFor(size_t updates, size_t ends) {
    std::unique_lock<std::mutex> lock(mutex_);
    return wake_.wait_for(lock, std::chrono::seconds(60),
                          [&] { return amounts_.size() >= updates && ends_.size() >= ends; });
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<int64_t> amounts_;
  std::vector<int> ends_;
};

TEST_F(WatchTest, TellsEachChangeUntilTheEnd) {
  options_.watch_interval = absl::Hours(1);
  Put("a", "kim", 1);
  EXPECT_TRUE(Queries().Watches(kToyGet));
  Watch("a");
  ASSERT_TRUE(WaitFor(1, 0));
  Put("a", "kim", 2);
  ASSERT_TRUE(WaitFor(2, 0));
  queries_->Changed(kToyCounters, "a");  // no change: no update
  Put("other", "kim", 9);
  Put("a", "kim", 3, Payment::STATE_REFUNDED);
  ASSERT_TRUE(WaitFor(3, 1));
  EXPECT_THAT(amounts_, testing::ElementsAre(1, 2, 3));
  EXPECT_THAT(ends_, testing::ElementsAre(0));
  queries_.reset();
  EXPECT_EQ(ends_.size(), 1u);
}

TEST_F(WatchTest, ChangesOfOtherReplicasAreSeenByPolling) {
  options_.watch_interval = absl::Milliseconds(5);
  Put("a", "kim", 1);
  Watch("a");
  ASSERT_TRUE(WaitFor(1, 0));
  auto queries = std::move(queries_);  // so that Put tells nobody
  Put("a", "kim", 2);
  ASSERT_TRUE(WaitFor(2, 0));
  queries.reset();
  EXPECT_THAT(ends_, testing::ElementsAre(static_cast<int>(google::rpc::UNAVAILABLE)));
}

TEST_F(WatchTest, RefusalsAndCancel) {
  Watch("");
  ASSERT_TRUE(WaitFor(0, 1));
  EXPECT_EQ(ends_[0], google::rpc::INVALID_ARGUMENT);
  Watch("nothing");
  ASSERT_TRUE(WaitFor(0, 2));
  EXPECT_EQ(ends_[1], google::rpc::NOT_FOUND);
  Put("a", "kim", 1);
  const uint64_t id = Watch("a");
  ASSERT_TRUE(WaitFor(1, 0));
  queries_->CancelWatch(id);
  Put("a", "kim", 2);
  queries_->CancelWatch(id);
  queries_.reset();
  EXPECT_EQ(amounts_.size(), 1u);
  EXPECT_EQ(ends_.size(), 2u);
}

}  // namespace
}  // namespace gaekju::runtime
