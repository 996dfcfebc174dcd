#include "sim/simulator.h"

#include <fstream>
#include <map>
#include <sstream>

#include "gaekju/catalog/v1/catalog_service.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/catalog/catalog.h"
#include "services/order/order.h"
#include "services/view/view.h"
#include "sim/database.h"
#include "sim/dice.h"
#include "sim/invariants.h"

namespace gaekju::sim {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

Shops ReadShops(const std::vector<std::string>& names) {
  std::vector<Shops::File> files;
  for (const std::string& name : names) {
    std::ifstream file("storefronts/" + name + ".textproto");
    std::stringstream text;
    text << file.rdbuf();
    EXPECT_TRUE(file.good()) << name;
    files.push_back({name + ".textproto", text.str()});
  }
  auto shops = Shops::Parse(files);
  EXPECT_TRUE(shops.ok()) << shops.status();
  return *std::move(shops);
}

const Shops& AllShops() {
  static const Shops* const shops =
      new Shops(ReadShops({"fashion", "funshop", "mealkit", "myshop", "tshop"}));
  return *shops;
}

TEST(Simulate, EachShopServesAllOrdersWhenNothingGoesWrong) {
  for (const char* name : {"fashion", "funshop", "mealkit", "myshop", "tshop"}) {
    const Shops shops = ReadShops({name});
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      Settings settings;
      settings.seed = seed;
      settings.no_faults = true;
      const Outcome outcome = Simulate(shops, settings);
      EXPECT_THAT(outcome.violations, IsEmpty()) << name << ", seed " << seed;
      EXPECT_GT(outcome.turn_count, outcome.order_count) << name << ", seed " << seed;
      EXPECT_GT(outcome.ended_count + outcome.waiting_count, 0) << name << ", seed " << seed;
    }
  }
}

TEST(Simulate, HoldsWhateverGoesWrong) {
  int64_t faults = 0, ended = 0;
  for (uint64_t seed = 1; seed <= 25; ++seed) {
    Settings settings;
    settings.seed = seed;
    const Outcome outcome = Simulate(AllShops(), settings);
    EXPECT_THAT(outcome.violations, IsEmpty()) << "seed " << seed;
    faults += static_cast<int64_t>(outcome.faults.size());
    ended += outcome.ended_count;
  }
  EXPECT_GT(faults, 1000);
  EXPECT_GT(ended, 100);
}

TEST(Simulate, ASeedReplaysByteForByte) {
  for (uint64_t seed : {3, 14, 40}) {
    std::vector<std::string> stories[2];
    uint64_t hashes[2];
    for (int i = 0; i < 2; ++i) {
      Settings settings;
      settings.seed = seed;
      settings.tell = [&](const std::string& line) { stories[i].push_back(line); };
      hashes[i] = Simulate(AllShops(), settings).trace_hash;
    }
    EXPECT_EQ(hashes[0], hashes[1]) << "seed " << seed;
    EXPECT_EQ(stories[0], stories[1]) << "seed " << seed;
    EXPECT_THAT(stories[0], Not(IsEmpty()));
    Settings silent;
    silent.seed = seed;
    EXPECT_EQ(Simulate(AllShops(), silent).trace_hash, hashes[0]) << "telling changes the run";
  }
}

TEST(Simulate, SeedsDiffer) {
  Settings one, two;
  one.seed = 1;
  two.seed = 2;
  EXPECT_NE(Simulate(AllShops(), one).trace_hash, Simulate(AllShops(), two).trace_hash);
}

TEST(Simulate, TakingAnOrderOutLeavesTheOthersTheirLuck) {
  Settings settings;
  settings.seed = 5;
  settings.order_count = 6;
  settings.no_faults = true;
  auto starts = [&] {
    std::vector<std::string> lines;
    settings.tell = [&](const std::string& line) {
      if (line.find("the buyer orders") != std::string::npos) lines.push_back(line);
    };
    Simulate(AllShops(), settings);
    return lines;
  };
  const std::vector<std::string> all = starts();
  settings.only_orders = {{2}};
  const std::vector<std::string> one = starts();
  ASSERT_FALSE(one.empty());
  EXPECT_THAT(all, ::testing::Contains(one[0]));
}

TEST(Shops, AFileThatIsNoStorefrontIsRefused) {
  EXPECT_FALSE(Shops::Parse({{"x.textproto", "nonsense"}}).ok());
}

// Fails when orders 3 and 7 meet fault 5.
Outcome FailsOfThree(const Settings& settings) {
  Outcome outcome;
  bool three = false, seven = false, five = false;
  for (int order = 0; order < 10; ++order) {
    if (settings.only_orders.has_value() && !settings.only_orders->contains(order)) continue;
    outcome.orders.push_back(order);
    three |= order == 3;
    seven |= order == 7;
  }
  for (uint32_t id = 1; id <= 20; ++id) {
    if (settings.only_faults.has_value() && !settings.only_faults->contains(id)) continue;
    outcome.faults.push_back({Fault::kLose, id});
    five |= id == 5;
  }
  if (three && seven && five) outcome.violations.push_back("wrong");
  return outcome;
}

TEST(Shrink, FindsTheLeastOrdersAndFaults) {
  const Settings least = Shrink({}, FailsOfThree({}), FailsOfThree);
  EXPECT_THAT(*least.only_orders, ElementsAre(3, 7));
  EXPECT_THAT(*least.only_faults, ElementsAre(5));
}

TEST(Dice, WhatIsDrawnForOneDoesNotChangeTheOther) {
  Dice alone(1), busy(1);
  busy.Draw("fault", 8);
  busy.Draw("latency", 7);
  EXPECT_EQ(alone.Draw("fault", 7), busy.Draw("fault", 7));
  EXPECT_NE(alone.Draw("fault", 7), alone.Draw("fault", 8));
  for (int i = 0; i < 1000; ++i) {
    const int64_t drawn = alone.Spread("spread", 1, 5, 500);
    EXPECT_GE(drawn, 5);
    EXPECT_LE(drawn, 500);
  }
}

TEST(Database, LockedRowsAreNobodyElses) {
  Database db(catalog::CatalogContext());
  const std::vector<flow::RowKey> keys = {{&catalog::kProducts, "p1"}};
  flow::Turn turn(1);
  ASSERT_TRUE(db.Lock(keys, 1));
  db.Load(keys, &turn);
  turn.Edit<catalog::v1::Product>(catalog::kProducts, "p1").set_available_count(3);
  ASSERT_TRUE(db.Commit(turn, db.NewIncarnation(), {}).ok());
  db.Unlock(1);
  EXPECT_EQ(db.Find<catalog::v1::Product>(catalog::kProducts, "p1")->available_count(), 3);
  ASSERT_TRUE(db.Lock(keys, 1));
  EXPECT_FALSE(db.Lock(keys, 2));
  db.Unlock(1);
  EXPECT_TRUE(db.Lock(keys, 2));
}

TEST(Database, ARowThatSomebodyElseMadeIsAConflict) {
  Database db(catalog::CatalogContext());
  const std::vector<flow::RowKey> keys = {{&catalog::kProducts, "p1"}};
  flow::Turn first(1), second(1);
  db.Load(keys, &first);
  db.Load(keys, &second);
  first.Edit<catalog::v1::Product>(catalog::kProducts, "p1");
  second.Edit<catalog::v1::Product>(catalog::kProducts, "p1");
  const int64_t incarnation = db.NewIncarnation();
  EXPECT_TRUE(db.Commit(first, incarnation, {}).ok());
  EXPECT_EQ(db.Commit(second, incarnation, {}).code(), absl::StatusCode::kAlreadyExists);
}

// Rows that a test has written down.
class WrittenRows : public RowSource {
 public:
  std::map<const flow::Table*, std::map<std::string, const google::protobuf::Message*>> rows;
  bool Has(const std::string& context) const override {
    return context == "order" || context == "catalog" || context == "view";
  }
  absl::Status Scan(const std::string&, const flow::Table& table,
                    const std::function<void(const std::string&, const google::protobuf::Message&)>&
                        row) override {
    for (const auto& [key, message] : rows[&table]) row(key, *message);
    return absl::OkStatus();
  }
};

TEST(Invariants, StockThatNobodyReservedIsFound) {
  catalog::v1::Product product;
  product.set_available_count(-1);
  product.set_reserved_count(2);
  WrittenRows rows;
  rows.rows[&catalog::kProducts]["p1"] = &product;
  const auto report = CheckInvariants(&rows, {});
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_EQ(report->violations.size(), 2u);
  EXPECT_THAT(report->violations[0].text, HasSubstr("product p1"));
}

TEST(Invariants, ALineThatAStepWasNotAskedForIsFound) {
  const flow::Plan& plan = *AllShops().all().back().plans[0];
  ASSERT_EQ(plan.steps[0].method, "gaekju.catalog.v1.CatalogService.Reserve");
  order::v1::OrderRecord record;
  record.set_due_time_us(1);
  record.mutable_order()->set_state(order::v1::Order::STATE_PLACED);
  catalog::v1::Reservation reservation;
  reservation.set_state(catalog::v1::Reservation::STATE_HELD);
  reservation.mutable_step()->set_outcome(flow::v1::OUTCOME_DONE);
  catalog::v1::Product products[2];
  WrittenRows rows;
  rows.rows[&order::kOrders]["o1"] = &record;
  rows.rows[&catalog::kReservations]["o1/" + plan.steps[0].id] = &reservation;
  for (int i = 0; i < 2; ++i) {
    const std::string id = i == 0 ? "p1" : "p2";
    record.mutable_order()->add_lines()->set_product_id(id);
    record.mutable_order()->mutable_lines(i)->set_quantity(i + 1);
    *reservation.add_lines() = record.order().lines(i);
    products[i].set_reserved_count(i + 1);
    rows.rows[&catalog::kProducts][id] = &products[i];
  }
  InvariantOptions options;
  options.plan = [&](const std::string&) { return &plan; };
  auto report = CheckInvariants(&rows, options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->violations, IsEmpty()) << report->violations[0].text;
  reservation.mutable_lines()->RemoveLast();
  products[1].set_reserved_count(0);
  report = CheckInvariants(&rows, options);
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_EQ(report->violations.size(), 1u);
  EXPECT_THAT(report->violations[0].text, HasSubstr("other lines"));
}

TEST(Invariants, AnEventThatAViewPassedOverIsFound) {
  view::v1::OrderView view;
  view.add_timeline();
  view.add_timeline();
  (*view.mutable_applied_versions())["order/orders/o1"] = 3;
  WrittenRows rows;
  rows.rows[&view::kOrderViews]["o1"] = &view;
  auto report = CheckInvariants(&rows, {});
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_EQ(report->violations.size(), 1u);
  EXPECT_THAT(report->violations[0].text, HasSubstr("counts 3 events, and its timeline shows 2"));
  view.add_timeline();
  report = CheckInvariants(&rows, {});
  EXPECT_THAT(report->violations, IsEmpty());
}

}  // namespace
}  // namespace gaekju::sim
