// audit_command.cc: `gaekju audit`.

#include <iostream>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "app/audit.h"
#include "app/command.h"
#include "app/contracts.h"
#include "app/targets.h"

ABSL_FLAG(absl::Duration, settle, absl::Seconds(10),
          "how long views and overdue sagas may take to come right before they count as wrong");

namespace gaekju::app {
namespace {

int RunAudit(const std::vector<std::string>& arguments) {
  if (!arguments.empty())
    return Fail("audit", absl::StrCat("takes no '", arguments[0], "'; see gaekju audit --help"), 2);
  auto targets = FindTargets();
  if (!targets.ok()) return Fail("audit", targets.status().message());
  AuditOptions options;
  options.settle = absl::GetFlag(FLAGS_settle);
  auto contracts = ContractsFromFlag();
  if (!contracts.ok()) return Fail("audit", contracts.status().message(), 2);
  options.contracts = *contracts;
  auto report = Audit(targets->dsns, options);
  if (!report.ok()) return Fail("audit", report.status().message());
  for (const auto& violation : report->violations) std::cout << violation.text << "\n";
  if (report->violation_count > static_cast<int64_t>(report->violations.size())) {
    std::cout << "… and " << report->violation_count - report->violations.size() << " more\n";
  }
  std::cout << "orders=" << report->order_count << " steps=" << report->step_count
            << " payments=" << report->payment_count
            << " ledger_entries=" << report->ledger_entry_count
            << " products=" << report->product_count << " views=" << report->view_count
            << " violations=" << report->violation_count << "\n";
  for (const auto& [state, count] : report->orders_by_state) {
    std::cout << "  " << gaekju::order::v1::Order::State_Name(state) << " " << count << "\n";
  }
  return report->violation_count == 0 ? 0 : 1;
}

}  // namespace

Command AuditCommand() {
  return {
      .name = "audit",
      .summary = "check every invariant over the live databases",
      .usage =
          "Usage: gaekju audit [--data=DIR | --database='postgresql://…/{context}'] "
          "[--settle=10s]\n"
          "\n"
          "Reads all databases and lists what is wrong; exit code 1 then. Changes nothing, and may "
          "run beside traffic.\n"
          "\n"
          "  1. A rejected or cancelled order holds nothing.      4. Stock is what orders hold, "
          "and never below zero.\n"
          "  2. A completed order holds what its flow says.       5. Every saga goes on until it "
          "ends; no orphans.\n"
          "  3. The ledger sums to zero, per order the price.     6. Views equal their sources.\n",
      .flags = {"data", "database", "settle", "contracts"},
      .run = RunAudit};
}

}  // namespace gaekju::app
