#include "check/explorer.h"

#include <ctime>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>

#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "flow/storefront.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace gaekju::check {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Fashion() {
  std::ifstream file("storefronts/fashion.textproto");
  EXPECT_TRUE(file.good());
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// Fashion with `from` replaced. Fails when it is not there.
std::string FashionBut(const std::string& from, const std::string& to) {
  const std::string text = Fashion();
  EXPECT_NE(text.find(from), std::string::npos) << from;
  return absl::StrReplaceAll(text, {{from, to}});
}

Report Check(const std::string& text, const Bounds& bounds = {}) {
  const auto plan = flow::ParseStorefront(text, "");
  EXPECT_TRUE(plan.ok()) << plan.status().message();
  if (!plan.ok()) return {};
  const std::clock_t start = std::clock();
  const auto report = Explore(*plan, bounds);
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
  bounds.fault_count_max = 0;
  bounds.refusal_count_max = 0;
  bounds.cancel_count_max = 1;
  return bounds;
}

TEST(Explore, FashionIsProvedWithoutFaults) {
  const Report report = Check(Fashion(), NoFaults());
  EXPECT_EQ(report.verdict, Verdict::kProved) << report.hazard;
  EXPECT_GT(report.ended_count, 0);
}

TEST(Explore, FashionIsProvedWithOneFault) {
  Bounds bounds;
  bounds.fault_count_max = 1;
  bounds.cancel_count_max = 1;
  EXPECT_EQ(Check(Fashion(), bounds).verdict, Verdict::kProved);
}

TEST(Explore, FashionIsProved) { EXPECT_EQ(Check(Fashion()).verdict, Verdict::kProved); }

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

TEST(Explore, AParcelThatLeavesBeforeThePaymentIsFound) {
  const Report report = Check(absl::StrReplaceAll(
      FashionBut("via: JETSTREAM after: \"accept\" }", "via: JETSTREAM after: \"quote\" }"),
      {{"step { undo: \"deliver\" after: \"accept\" }\n", ""}}));
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
  Bounds bounds;
  bounds.fault_count_max = 1;
  bounds.cancel_count_max = 1;
  EXPECT_EQ(Check(FashionWithStock("  step { undo: \"quote\" }\n"), bounds).verdict,
            Verdict::kProved);
}

TEST(Explore, OwnersWhoAnswerLaterAreProved) {
  Bounds bounds;
  bounds.fault_count_max = 1;
  bounds.cancel_count_max = 1;
  EXPECT_EQ(Check(FashionBut("CONFIRMATION_AUTOMATIC", "CONFIRMATION_MANUAL"), bounds).verdict,
            Verdict::kProved);
}

TEST(Explore, SaysTheSameEveryTime) {
  const std::string text = FashionBut("  step { undo: \"pay\" }\n", "");
  const Report one = Check(text), two = Check(text);
  EXPECT_EQ(one.trace, two.trace);
  EXPECT_EQ(one.state_count, two.state_count);
}

TEST(Explore, StopsAtItsBoundWithoutAProof) {
  Bounds bounds;
  bounds.state_count_max = 1000;
  const Report report = Check(Fashion(), bounds);
  EXPECT_EQ(report.verdict, Verdict::kUnfinished);
  EXPECT_GT(report.state_count, 1000);
}

}  // namespace
}  // namespace gaekju::check
