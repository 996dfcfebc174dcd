#include "check/explorer.h"

#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "check/node_table.h"
#include "check/world.h"
#include "flow/step.h"
#include "flow/storefront.h"
#include "flow/turn.h"
#include "gaekju/assignment/v1/assignment_service.pb.h"
#include "gaekju/cart/v1/cart_service.pb.h"
#include "gaekju/catalog/v1/catalog_service.pb.h"
#include "gaekju/delivery/v1/delivery_service.pb.h"
#include "gaekju/order/v1/order.pb.h"
#include "gaekju/payment/v1/payment.pb.h"
#include "gaekju/payment/v1/payment_service.pb.h"
#include "gaekju/store/v1/store_service.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/assignment/assignment.h"
#include "services/cart/cart.h"
#include "services/catalog/catalog.h"
#include "services/delivery/delivery.h"
#include "services/order/order.h"
#include "services/payment/payment.h"
#include "services/store/store.h"

namespace gaekju::check {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Shop(const std::string& name) {
  std::ifstream file(absl::StrCat("storefronts/", name, ".textproto"));
  EXPECT_TRUE(file.good()) << name;
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string Fashion() { return Shop("fashion"); }

// A shop with `from` replaced. Fails when it is not there.
std::string ShopBut(const std::string& name, const std::string& from, const std::string& to) {
  const std::string text = Shop(name);
  EXPECT_NE(text.find(from), std::string::npos) << from;
  return absl::StrReplaceAll(text, {{from, to}});
}

std::string FashionBut(const std::string& from, const std::string& to) {
  return ShopBut("fashion", from, to);
}

Report Check(const std::string& text, const Bounds& bounds = {},
             const std::vector<const flow::Context*>& contexts = {}, const Budget& budget = {}) {
  const auto plan = flow::ParseStorefront(text, "");
  EXPECT_TRUE(plan.ok()) << plan.status().message();
  if (!plan.ok()) return {};
  const std::clock_t start = std::clock();
  const auto report = Explore(*plan, bounds, budget, nullptr, contexts);
  const double seconds = static_cast<double>(std::clock() - start + 1) / CLOCKS_PER_SEC;  // of CPU
  EXPECT_TRUE(report.ok()) << report.status().message();
  if (!report.ok()) return {};
  std::cout << report->state_count << " states, " << report->transition_count
            << " transitions, depth " << report->depth << ", " << report->ended_count << " ends, "
            << report->turn_count << " turns, " << seconds << " s, "
            << static_cast<int64_t>(report->state_count / seconds) << " states/s\n";
  if (report->verdict == Verdict::kViolated) {
    std::cout << report->hazard << ": " << report->sentence << "\n  "
              << absl::StrJoin(report->trace, "\n  ")
              << "\n  held: " << absl::StrJoin(report->held, "; ") << "\n";
  }
  return *report;
}

Bounds NoFaults() {
  Bounds bounds;
  bounds.counted = true;
  bounds.fault_count_max = 0;
  bounds.refusal_count_max = 0;
  bounds.cancel_count_max = 1;
  return bounds;
}

// Each of every kind, and `faults` in all.
Bounds Faults(int faults, int cancels = 2) {
  Bounds bounds;
  bounds.counted = true;
  bounds.fault_count_max = faults;
  bounds.cancel_count_max = cancels;
  return bounds;
}

TEST(Explore, FashionIsProvedWithoutFaults) {
  const Report report = Check(Fashion(), NoFaults());
  EXPECT_EQ(report.verdict, Verdict::kProved) << report.hazard;
  EXPECT_GT(report.ended_count, 0);
}

// That early asks count as duplicates hides nothing here.
TEST(Explore, FashionIsProvedWithFreeRetries) {
  Bounds bounds = NoFaults();
  bounds.asks_early_freely = true;
  const Report full = Check(Fashion(), bounds);
  EXPECT_EQ(full.verdict, Verdict::kProved) << full.hazard;
  EXPECT_GT(full.state_count, 100 * Check(Fashion(), NoFaults()).state_count);
}

TEST(Explore, FreeRetriesFindWhatDuplicatesFind) {
  for (const char* undo :
       {"  step { undo: \"pay\" }\n", "  step { undo: \"deliver\" after: \"accept\" }\n"}) {
    Bounds bounds = NoFaults();
    const Report reduced = Check(FashionBut(undo, ""), bounds);
    bounds.asks_early_freely = true;
    const Report full = Check(FashionBut(undo, ""), bounds);
    EXPECT_EQ(full.hazard, reduced.hazard);
    EXPECT_EQ(full.held, reduced.held);
    EXPECT_EQ(full.trace.size(), reduced.trace.size());
  }
}

TEST(Explore, FashionIsProvedWithOneFault) {
  EXPECT_EQ(Check(Fashion(), Faults(1)).verdict, Verdict::kProved);
}

TEST(Explore, FashionIsProved) {
  const Report report = Check(Fashion());
  EXPECT_EQ(report.verdict, Verdict::kProved);
  EXPECT_FALSE(report.counted);  // for any number of faults
}

TEST(Explore, EveryStorefrontIsProvedWhateverGoesWrong) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("storefronts")) {
    if (entry.path().extension() != ".textproto") continue;
    const std::string name = entry.path().stem().string();
    std::cout << name << ": ";
    const Report report = Check(Shop(name));
    EXPECT_EQ(report.verdict, Verdict::kProved) << name << ": " << report.hazard;
    EXPECT_FALSE(report.counted) << name;
    EXPECT_GT(report.ended_count, 3) << name;
    ++count;
  }
  EXPECT_GE(count, 5);
}

TEST(Explore, NoticesChangeNothing) {
  for (const char* name : {"mealkit", "tshop"}) {
    const std::string text = Shop(name);
    ASSERT_NE(text.find("\nnotice {"), std::string::npos);
    const Report with = Check(text, NoFaults());
    const Report without = Check(text.substr(0, text.find("\nnotice {")), NoFaults());
    EXPECT_EQ(with.state_count, without.state_count);
    EXPECT_EQ(with.transition_count, without.transition_count);
    EXPECT_EQ(with.verdict, without.verdict);
  }
}

TEST(Explore, WhatEachShopsCancelTakesBackIsNeeded) {
  const struct {
    const char* name;
    const char* undo;
    const char* held;
  } kUndos[] = {
      {"funshop", "  step { undo: \"pay\" after: \"cart\" }\n", "payment: 1000 KRW kept"},
      {"mealkit", "  step { undo: \"stock\" after: \"pay\" }\n", "catalog: 1 units reserved"},
      {"mealkit", "  step { undo: \"deliver\" after: \"pay\" }\n",
       "delivery: \"deliver\" (delivery.Start) is done"},
      {"tshop", "  step { undo: \"stock\" after: \"assign\" }\n", "catalog: 1 units reserved"},
  };
  for (const auto& [name, undo, held] : kUndos) {
    // What is told of what is taken back goes too.
    std::string text = ShopBut(name, undo, "");
    text = text.substr(0, text.find("\nnotice {"));
    const Report report = Check(text);
    EXPECT_EQ(report.verdict, Verdict::kViolated) << undo;
    EXPECT_EQ(report.hazard, "empty compensation");
    EXPECT_THAT(report.held, Contains(held));
  }
}

TEST(Explore, ADealersPlaceThatNoCancelGivesBackIsFound) {
  const Report report = Check(ShopBut("tshop",
                                      "  step { undo: \"assign\" after: \"close-pickup\" }\n  step "
                                      "{ undo: \"stock\" after: \"assign\" "
                                      "}\n",
                                      "  step { undo: \"stock\" after: \"close-pickup\" }\n"));
  EXPECT_EQ(report.verdict, Verdict::kViolated);
  EXPECT_EQ(report.hazard, "empty compensation");
  EXPECT_THAT(report.held, Contains("assignment: \"assign\" (assignment.Assign) is done"));
}

// What the buyer has, and the order has not heard of, is not given back: the cancel has to close it
// first, and that of the right step.
TEST(Explore, GoodsThatTheBuyerKeepsAreFound) {
  const struct {
    const char* name;
    const char* was;
    const char* is;
    const char* person;
  } kCancels[] = {
      {"tshop", "{ undo: \"assign\" after: \"close-pickup\" }", "{ undo: \"assign\" }",
       "the buyer picks it up"},
      {"tshop", "assignment_step_id: \"assign\"", "assignment_step_id: \"pickup\"",
       "the buyer picks it up"},
      {"mealkit", "{ undo: \"pay\" after: \"close-receipt\" }",
       "{ undo: \"pay\" after: \"tell-seller\" }", "the buyer confirms the receipt"},
      {"mealkit", "shipment_step_id: \"deliver\"", "shipment_step_id: \"receive\"",
       "the buyer confirms the receipt"},
  };
  for (const auto& [name, was, is, person] : kCancels) {
    const Report report = Check(ShopBut(name, was, is));
    EXPECT_EQ(report.verdict, Verdict::kViolated) << is;
    EXPECT_EQ(report.hazard, "goods kept") << is;
    EXPECT_THAT(report.sentence, HasSubstr("and the buyer has the goods")) << is;
    EXPECT_THAT(report.trace, Contains(HasSubstr(person))) << is;
    EXPECT_LE(report.trace.size(), 18u) << is;
  }
}

// A receipt is closed also of what has not been paid, and so has not left.
TEST(Explore, AReceiptThatIsClosedIsNoParcel) {
  const Report report = Check(R"(
    id: "later" currency_code: "KRW"
    place {
      step { id: "stock" call: "catalog.Reserve" via: GRPC }
      step { id: "pay" call: "payment.Capture" via: JETSTREAM after: "stock" }
      step { id: "ship" call: "delivery.Start" via: JETSTREAM after: "pay" }
      step { id: "receive" call: "delivery.AwaitReceipt" via: JETSTREAM after: "ship" }
    }
    cancel {
      step {
        id: "close" call: "delivery.CloseReceipt" via: JETSTREAM
        with { [type.googleapis.com/gaekju.delivery.v1.CloseReceiptRequest] { shipment_step_id: "ship" } }
      }
      step { undo: "ship" after: "close" }
      step { undo: "pay" after: "ship" }
      step { undo: "stock" after: "ship" }
    })");
  EXPECT_EQ(report.verdict, Verdict::kProved);
}

TEST(Explore, MoneyThatNoCancelGivesBackIsFound) {
  const Report report = Check(FashionBut("  step { undo: \"pay\" }\n", ""));
  EXPECT_EQ(report.verdict, Verdict::kViolated);
  EXPECT_EQ(report.hazard, "empty compensation");
  EXPECT_THAT(report.sentence, HasSubstr("\"pay\" (payment.Capture) still stands"));
  EXPECT_THAT(report.held, Contains("payment: 1000 KRW kept"));
  EXPECT_LE(report.trace.size(), 12u);
}

TEST(Explore, AParcelThatNoCancelStopsIsFound) {
  const Report report = Check(FashionBut("  step { undo: \"deliver\" after: \"accept\" }\n", ""));
  EXPECT_EQ(report.verdict, Verdict::kViolated);
  EXPECT_EQ(report.hazard, "empty compensation");
  EXPECT_THAT(report.held, ElementsAre("delivery: \"deliver\" (delivery.Start) is done"));
}

// A command would wait for the order to be taken, and so for the payment.
TEST(Explore, AParcelThatLeavesBeforeThePaymentIsFound) {
  const Report report =
      Check(FashionBut("via: JETSTREAM after: \"accept\" }", "via: GRPC after: \"quote\" }"));
  EXPECT_EQ(report.verdict, Verdict::kViolated);
  EXPECT_EQ(report.hazard, "unpaid goods shipped");
  EXPECT_THAT(report.sentence, HasSubstr("wait for the one that is paid"));
  EXPECT_THAT(report.held, Contains("delivery: \"deliver\" (delivery.Start) is done"));
}

// The shop with its stock: the goods are taken before they are paid.
std::string FashionWithStock(const std::string& release) {
  return absl::StrReplaceAll(
      FashionBut("catalog.Quote\"  ", "catalog.Reserve\""),
      {{"  step { undo: \"pay\" }\n", "  step { undo: \"pay\" }\n" + release}});
}

TEST(Explore, StockThatNoCancelGivesBackIsFound) {
  const Report report = Check(FashionWithStock(""));
  EXPECT_EQ(report.verdict, Verdict::kViolated);
  EXPECT_EQ(report.hazard, "empty compensation");
  EXPECT_THAT(report.held, Contains("catalog: 1 units reserved"));
}

TEST(Explore, StockThatIsGivenBackIsProved) {
  EXPECT_EQ(Check(FashionWithStock("  step { undo: \"quote\" }\n")).verdict, Verdict::kProved);
}

TEST(Explore, OwnersWhoAnswerLaterAreProved) {
  EXPECT_EQ(Check(FashionBut("CONFIRMATION_AUTOMATIC", "CONFIRMATION_MANUAL")).verdict,
            Verdict::kProved);
}

TEST(Explore, SaysTheSameForAnyNumberOfThreads) {
  for (const std::string& text : {Shop("tshop"), FashionBut("  step { undo: \"pay\" }\n", "")}) {
    for (const Bounds& bounds : {Bounds(), Faults(1)}) {
      Budget budget;
      budget.thread_count = 1;
      const Report one = Check(text, bounds, {}, budget);
      for (int threads : {2, 5}) {
        budget.thread_count = threads;
        const Report some = Check(text, bounds, {}, budget);
        EXPECT_EQ(some.verdict, one.verdict);
        EXPECT_EQ(some.trace, one.trace);
        EXPECT_EQ(some.moves, one.moves);
        EXPECT_EQ(some.state_count, one.state_count);
        EXPECT_EQ(some.transition_count, one.transition_count);
        EXPECT_EQ(some.ended_count, one.ended_count);
        EXPECT_EQ(some.depth, one.depth);
      }
    }
  }
}

TEST(Explore, StopsAtItsBudgetWithoutAProof) {
  Budget states;
  states.state_count_max = 1000;
  Report report = Check(Fashion(), {}, {}, states);
  EXPECT_EQ(report.verdict, Verdict::kUnfinished);
  EXPECT_GT(report.state_count, 1000);
  EXPECT_EQ(report.ran_out, "more than 1000 states");

  Budget time;
  time.seconds_max = 1e-6;
  report = Check(Fashion(), {}, {}, time);
  EXPECT_EQ(report.verdict, Verdict::kUnfinished);
  EXPECT_THAT(report.ran_out, HasSubstr(" s"));

  Budget memory;
  memory.bytes_max = 1000;
  report = Check(Fashion(), {}, {}, memory);
  EXPECT_EQ(report.verdict, Verdict::kUnfinished);
  EXPECT_THAT(report.ran_out, HasSubstr("MiB"));
}

TEST(Explore, RefusesBoundsThatItCannotCount) {
  const auto plan = flow::ParseStorefront(Fashion(), "");
  Bounds bounds;
  bounds.cancel_count_max = 8;
  EXPECT_EQ(Explore(*plan, bounds).status().code(), absl::StatusCode::kInvalidArgument);
}

// ---- the two ways of looking

struct Broken {
  const char* shop;
  const char* from;
  const char* to;
};
const Broken kBroken[] = {
    {"fashion", "  step { undo: \"pay\" }\n", ""},
    {"fashion", "  step { undo: \"deliver\" after: \"accept\" }\n", ""},
    {"fashion", "via: JETSTREAM after: \"accept\" }", "via: GRPC after: \"quote\" }"},
    {"funshop", "    expires_after { seconds: 1800 }\n", ""},
    {"tshop", "  step { undo: \"stock\" after: \"assign\" }\n", ""},
};

// Looking with any number of faults says of a storefront what looking with few counted ones says:
// the same of a right one, and of a broken one. (It could also find more, with more faults.)
TEST(Explore, AnyNumberOfFaultsFindsWhatFewFind) {
  for (const char* name : {"fashion", "myshop", "tshop"}) {
    const Report any = Check(Shop(name)), few = Check(Shop(name), Faults(1, 1));
    EXPECT_EQ(any.verdict, Verdict::kProved) << name;
    EXPECT_EQ(few.verdict, Verdict::kProved) << name;
    EXPECT_FALSE(any.counted);
    EXPECT_TRUE(few.counted);
  }
  for (const auto& [shop, from, to] : kBroken) {
    std::string text = ShopBut(shop, from, to);
    text = text.substr(0, text.find("\nnotice {"));
    const Report any = Check(text), few = Check(text, Faults(0));
    EXPECT_EQ(any.verdict, few.verdict) << from;
    EXPECT_EQ(any.hazard, few.hazard) << from;
    EXPECT_EQ(any.trace, few.trace) << from;  // the story is one with as few faults as possible
  }
}

// All rows (of all contexts together) that a storefront can come to.
absl::flat_hash_set<Node> RowsWithin(World& world, Network network, const Bounds& bounds) {
  World::Worker worker;
  absl::flat_hash_set<Node> seen = {Node()}, rows;
  std::vector<Node> todo = {Node()};
  while (!todo.empty()) {
    const Node node = todo.back();
    todo.pop_back();
    rows.insert(world.Settled(node, /*everything_is_lost=*/true));
    world.Expand(worker, node, network, bounds, [&](const Node& next, uint64_t, const Move&) {
      if (seen.insert(next).second) todo.push_back(next);
    });
  }
  return rows;
}

// The claim that README.md argues: nothing that counted faults lead to is missed.
TEST(Explore, AnyNumberOfFaultsComesToAllThatFewComeTo) {
  for (const char* name : {"fashion", "myshop", "tshop"}) {
    const auto plan = flow::ParseStorefront(Shop(name), "");
    World world(*plan);
    ASSERT_TRUE(world.Prepare({}).ok());
    const auto any = RowsWithin(world, Network::kAny, Bounds());
    const auto few = RowsWithin(world, Network::kCounted, Faults(1));
    std::cout << name << ": " << few.size() << " of " << any.size() << " rows\n";
    EXPECT_GT(few.size(), 100u);
    EXPECT_GE(any.size(), few.size());
    for (const Node& rows : few) ASSERT_TRUE(any.contains(rows)) << name;
  }
}

// ---- stories

Replayed Again(const std::string& text, const Report& report) {
  const auto plan = flow::ParseStorefront(text, "");
  EXPECT_TRUE(plan.ok()) << plan.status().message();
  const auto replayed = Replay(*plan, report.moves, report.counted);
  EXPECT_TRUE(replayed.ok()) << replayed.status();
  return *replayed;
}

TEST(Replay, EndsInTheSameViolation) {
  for (const auto& [shop, from, to] : kBroken) {
    std::string text = ShopBut(shop, from, to);
    text = text.substr(0, text.find("\nnotice {"));
    const Report report = Check(text);
    if (report.verdict == Verdict::kProved) continue;  // an order that nobody pays may stay
    const Replayed replayed = Again(text, report);
    EXPECT_EQ(replayed.differs_at, -1);
    EXPECT_EQ(replayed.hazard, report.hazard);
    EXPECT_EQ(replayed.sentence, report.sentence);
    EXPECT_EQ(replayed.trace, report.trace);
    EXPECT_EQ(replayed.held, report.held);
  }
}

TEST(Replay, SaysWhereAnotherStorefrontGoesAnotherWay) {
  const Report report = Check(FashionBut("  step { undo: \"pay\" }\n", ""));
  ASSERT_EQ(report.verdict, Verdict::kViolated);
  // The right one goes on where the broken one ended: nothing is violated there.
  const Replayed right = Again(Fashion(), report);
  EXPECT_TRUE(right.differs_at >= 0 || right.hazard.empty());
  const Replayed other = Again(Shop("tshop"), report);
  EXPECT_GE(other.differs_at, 1);
  EXPECT_LT(other.differs_at, static_cast<int>(report.moves.size()));
  EXPECT_FALSE(other.instead.empty());
  EXPECT_EQ(static_cast<int>(other.trace.size()), other.differs_at);
}

TEST(Replay, StoriesAreInTheShopsWords) {
  const Report report = Check(FashionBut("  step { undo: \"pay\" }\n", ""));
  EXPECT_THAT(report.trace, Contains(HasSubstr("«배달취소 / DeliveryCancelled»")));
  EXPECT_THAT(report.moves[0], "take people the buyer places an order");
}

// ---- contexts with a mistake: what the properties are for

using HandleFn =
    std::function<flow::Answer(const flow::Handler& right, const google::protobuf::Message& request,
                               const flow::Caller& caller, flow::Turn& turn)>;

// Decides as another handler does, except in Handle.
class WrongHandler : public flow::Handler {
 public:
  WrongHandler(std::shared_ptr<const flow::Handler> right, HandleFn handle)
      : right_(std::move(right)), handle_(std::move(handle)) {}
  const std::string& name() const override { return right_->name(); }
  const google::protobuf::Message& request() const override { return right_->request(); }
  google::rpc::Status Validate(const google::protobuf::Message& request) const override {
    return right_->Validate(request);
  }
  void Keys(const google::protobuf::Message& request, const flow::Caller& caller,
            std::vector<flow::RowKey>* keys) const override {
    right_->Keys(request, caller, keys);
  }
  flow::Answer Handle(const google::protobuf::Message& request, const flow::Caller& caller,
                      flow::Turn& turn) const override {
    return handle_(*right_, request, caller, turn);
  }

 private:
  const std::shared_ptr<const flow::Handler> right_;
  const HandleFn handle_;
};

flow::Context Wrong(const flow::Context& right, const std::string& method, HandleFn handle) {
  flow::Context context = right;
  bool found = false;
  for (auto& handler : context.handlers) {
    if (!absl::EndsWith(handler->name(), "." + method)) continue;
    handler = std::make_shared<WrongHandler>(handler, handle);
    found = true;
  }
  EXPECT_TRUE(found) << method;
  return context;
}

TEST(Explore, AnUndoWithoutTombstoneLetsAStepHang) {
  const flow::Context context =
      Wrong(delivery::DeliveryContext(), "Cancel",
            [](const auto& right, const auto& request, const auto& caller, auto& turn) {
              const auto& cancel = static_cast<const delivery::v1::CancelRequest&>(request);
              const auto key = flow::StepKey(cancel.order_id(), cancel.step_id());
              if (turn.FindRow(delivery::kDeliveries, key) == nullptr)
                return flow::Done(delivery::v1::CancelResponse());
              return right.Handle(request, caller, turn);
            });
  const Report report = Check(Fashion(), NoFaults(), {&context});  // reordering is no fault
  EXPECT_EQ(report.hazard, "hanging");
  EXPECT_THAT(report.held, ElementsAre("delivery: \"deliver\" (delivery.Start) is done"));
}

// Books `amount` on one account, and on another its opposite when `both`.
void Book(int64_t amount, bool both, const std::string& name, flow::Turn& turn) {
  for (int side = 0; side < (both ? 2 : 1); ++side) {
    auto& entry =
        turn.Append<payment::v1::LedgerEntry>(payment::kLedgerEntries, absl::StrCat(name, side));
    entry.set_account(side == 0 ? payment::kMerchantAccount : "customer:c1");
    entry.set_amount(side == 0 ? amount : -amount);
  }
}

TEST(Explore, ACaptureThatIsDoneTwiceIsFound) {
  const flow::Context context =
      Wrong(payment::PaymentContext(), "Capture",
            [](const auto& right, const auto& request, const auto& caller, auto& turn) {
              const auto& capture = static_cast<const payment::v1::CaptureRequest&>(request);
              const auto* found = turn.template Find<payment::v1::Payment>(
                  payment::kPayments, flow::StepKey(capture.order_id(), capture.step_id()));
              if (found != nullptr && found->state() == payment::v1::Payment::STATE_CAPTURED)
                Book(1000, true, "again", turn);
              return right.Handle(request, caller, turn);
            });
  EXPECT_EQ(Check(Fashion(), NoFaults(), {&context}).verdict,
            Verdict::kProved);  // as long as nothing comes twice
  const Report report = Check(Fashion(), {}, {&context});
  EXPECT_EQ(report.hazard, "non-idempotence");
  EXPECT_TRUE(report.counted);  // with a story that can happen so
  EXPECT_EQ(report.sentence, "payment has taken 2000, and the price is 1000");
  EXPECT_THAT(report.held, Contains("payment: 2000 KRW kept"));
}

TEST(Explore, ALedgerThatDoesNotSumToZeroIsFound) {
  const flow::Context context =
      Wrong(payment::PaymentContext(), "Refund",
            [](const auto& right, const auto& request, const auto& caller, auto& turn) {
              Book(1, false, "wrong", turn);
              return right.Handle(request, caller, turn);
            });
  const Report report = Check(Fashion(), NoFaults(), {&context});
  EXPECT_EQ(report.hazard, "books out of balance");
  EXPECT_EQ(report.sentence, "payment: the ledger sums to 1");
}

TEST(Explore, ARefundOfNothingIsFound) {
  const flow::Context context =
      Wrong(payment::PaymentContext(), "Refund",
            [](const auto&, const auto& request, const auto&, auto& turn) {
              const auto& refund = static_cast<const payment::v1::RefundRequest&>(request);
              auto& payment = turn.template Edit<payment::v1::Payment>(
                  payment::kPayments, flow::StepKey(refund.order_id(), refund.step_id()));
              payment.mutable_step()->set_undo(flow::Outcome::OUTCOME_DONE);
              return flow::Done(payment::v1::RefundResponse());
            });
  const Report report = Check(Fashion(), NoFaults(), {&context});
  EXPECT_EQ(report.hazard, "empty compensation");
  EXPECT_THAT(report.held, Contains("payment: 1000 KRW kept"));
}

TEST(Explore, AnOrderThatNobodyEndsIsStuck) {
  const flow::Context context =
      Wrong(store::StoreContext(), "AcceptOrder",
            [](const auto&, const auto&, const auto&, auto&) { return flow::Pending(); });
  const Report report = Check(Fashion(), NoFaults(), {&context});
  EXPECT_EQ(report.hazard, "stuck");
  EXPECT_THAT(report.sentence, HasSubstr("PLACED and can never end"));
  EXPECT_THAT(report.sentence, HasSubstr("it waits for \"accept\" (store.AcceptOrder)"));
}

TEST(Explore, AStepThatIsAnsweredAndNotDoneIsFound) {
  const flow::Context context =
      Wrong(store::StoreContext(), "AcceptOrder", [](const auto&, const auto&, const auto&, auto&) {
        return flow::Done(store::v1::AcceptOrderResponse());
      });
  EXPECT_EQ(Check(Fashion(), NoFaults(), {&context}).hazard, "step missing");
}

TEST(Explore, StockThatAReleaseForgetsIsFound) {
  const flow::Context context =
      Wrong(catalog::CatalogContext(), "Release",
            [](const auto&, const auto& request, const auto&, auto& turn) {
              const auto& release = static_cast<const catalog::v1::ReleaseRequest&>(request);
              turn.template Edit<catalog::v1::Reservation>(
                      catalog::kReservations, flow::StepKey(release.order_id(), release.step_id()))
                  .mutable_step()
                  ->set_undo(flow::Outcome::OUTCOME_DONE);
              return flow::Done(catalog::v1::ReleaseResponse());
            });
  const Report report =
      Check(FashionWithStock("  step { undo: \"quote\" }\n"), NoFaults(), {&context});
  EXPECT_EQ(report.hazard, "stock drift");
  EXPECT_THAT(report.held, ElementsAre("catalog: 1 units reserved"));
}

TEST(Explore, ADealersPlaceThatIsForgottenIsFound) {
  assignment::v1::Dealer dealer;
  dealer.set_dealer_id("d1");
  dealer.set_storefront("tshop");
  dealer.mutable_location()->set_latitude(37.5);
  dealer.mutable_location()->set_longitude(127);
  const assignment::FixedDealers dealers({dealer});
  const auto right = assignment::MakeAssignmentContext(&dealers);
  const flow::Context context =
      Wrong(*right, "Unassign", [](const auto&, const auto& request, const auto&, auto& turn) {
        const auto& unassign = static_cast<const assignment::v1::UnassignRequest&>(request);
        auto& row = turn.template Edit<assignment::v1::Assignment>(
            assignment::kAssignments, flow::StepKey(unassign.order_id(), unassign.step_id()));
        row.set_state(assignment::v1::Assignment::STATE_CANCELLED);
        row.mutable_step()->set_undo(flow::Outcome::OUTCOME_DONE);
        return flow::Done(assignment::v1::UnassignResponse());
      });
  const Report report = Check(Shop("tshop"), NoFaults(), {&context});
  EXPECT_EQ(report.hazard, "books out of balance");
  EXPECT_EQ(report.sentence,
            "assignment: dealers' places are made or lost: of 1, 0 are free, and 0 orders are "
            "assigned");
}

TEST(Explore, ACartThatIsCheckedOutAndNotPaidIsFound) {
  const flow::Context context =
      Wrong(cart::CartContext(), "CheckOut", [](const auto&, const auto&, const auto&, auto&) {
        return flow::Done(cart::v1::CheckOutResponse());
      });
  const Report report = Check(Shop("funshop"), NoFaults(), {&context});
  EXPECT_EQ(report.hazard, "step missing");
  EXPECT_EQ(report.sentence, "the order is completed, and its cart still waits for the payment");
}

// ---- an order context with a mistake: one that does something to each order that it decides on

class OneShop : public order::PlanBook {
 public:
  explicit OneShop(const std::string& text) : plan_(*flow::ParseStorefront(text, "")) {}
  const flow::Plan* Current(const std::string&) const override { return &plan_; }
  const flow::Plan* Pinned(const std::string&, const std::string&) const override { return &plan_; }

 private:
  const flow::Plan plan_;
};

using SpoilFn = std::function<void(order::v1::OrderRecord* record)>;

void Spoil(const SpoilFn& spoil, flow::Turn& turn) {
  const auto* record = turn.Find<order::v1::OrderRecord>(order::kOrders, "o1");
  if (record == nullptr) return;
  order::v1::OrderRecord spoilt = *record;
  spoil(&spoilt);
  turn.Edit<order::v1::OrderRecord>(order::kOrders, "o1") = spoilt;
}

flow::Context WrongOrder(const flow::Context& right, SpoilFn spoil) {
  flow::Context context = right;
  for (auto& handler : context.handlers) {
    handler = std::make_shared<WrongHandler>(
        handler, [spoil](const auto& handler, const auto& request, const auto& caller, auto& turn) {
          const flow::Answer answer = handler.Handle(request, caller, turn);
          if (answer.kind != flow::Answer::Kind::kRetry) Spoil(spoil, turn);
          return answer;
        });
  }
  context.on_result = [&right, spoil](const flow::StepResult& result, flow::Turn& turn) {
    right.on_result(result, turn);
    Spoil(spoil, turn);
  };
  return context;
}

// Without a fault, and with a message taken twice, nothing would show: only when all is lost.
TEST(Explore, ARetryThatIsForgottenIsStuck) {
  const OneShop book(Fashion());
  const auto right = order::MakeOrderContext(&book);
  const flow::Context context = WrongOrder(*right, [](order::v1::OrderRecord* record) {
    record->mutable_saga()->mutable_tasks(2)->set_retry_time_us(0);  // accept
  });
  EXPECT_EQ(Check(Fashion(), NoFaults(), {&context}).verdict, Verdict::kProved);
  const Report report = Check(Fashion(), {}, {&context});
  EXPECT_EQ(report.hazard, "stuck");
  EXPECT_THAT(report.sentence, HasSubstr("it waits for \"accept\" (store.AcceptOrder)"));
  EXPECT_TRUE(report.counted);
  EXPECT_THAT(report.trace, Contains(HasSubstr("wiped")).Times(1));
}

TEST(Explore, AnOrderThatALateAnswerReopensIsFound) {
  const OneShop book(Fashion());
  const auto right = order::MakeOrderContext(&book);
  // Once cancelled, it asks the store's cancel again, and is cancelled again once that answers.
  flow::Context context = *right;
  context.on_result = [&right](const flow::StepResult& result, flow::Turn& turn) {
    const auto* record = turn.Find<order::v1::OrderRecord>(order::kOrders, "o1");
    const bool late = record->order().state() == order::v1::Order::STATE_CANCELLED &&
                      record->saga().tasks(2).undo_state() == order::v1::TASK_STATE_DONE;
    right->on_result(result, turn);
    if (!late) return;
    auto& task =
        *turn.Edit<order::v1::OrderRecord>(order::kOrders, "o1").mutable_saga()->mutable_tasks(2);
    task.set_undo_state(order::v1::TASK_STATE_ASKED);
    task.set_undo_retry_time_us(1);
  };
  const Report report = Check(Fashion(), {}, {&context});
  EXPECT_EQ(report.hazard, "reopened");
  EXPECT_THAT(report.sentence, HasSubstr("sets it going again, although nobody asked"));
  const auto plan = flow::ParseStorefront(Fashion(), "");
  EXPECT_EQ(Replay(*plan, report.moves, report.counted, {&context})->hazard, "reopened");
}

TEST(Explore, APaymentThatNobodyCanMakeIsStuckUnlessItExpires) {
  const flow::Context context =
      Wrong(payment::PaymentContext(), "Pay", [](const auto&, const auto&, const auto&, auto&) {
        return flow::Refuse(9, "test", "NO", "no");
      });
  EXPECT_EQ(Check(Shop("funshop"), NoFaults(), {&context}).verdict, Verdict::kProved);
  const Report report = Check(ShopBut("funshop", "    expires_after { seconds: 1800 }\n", ""),
                              NoFaults(), {&context});
  EXPECT_EQ(report.hazard, "stuck");
  EXPECT_THAT(report.sentence, HasSubstr("it waits for \"pay\" (payment.Capture)"));
}

}  // namespace
}  // namespace gaekju::check
