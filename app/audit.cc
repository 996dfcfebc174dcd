#include "app/audit.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "flow/plan.h"
#include "flow/storefront.h"
#include "runtime/pg.h"
#include "services/order/order.h"

namespace gaekju::app {
namespace {

constexpr int kPageRows = 5000;

// Reads tables of one database in one snapshot.
class Reader {
 public:
  static absl::StatusOr<std::unique_ptr<Reader>> Open(const std::string& dsn) {
    runtime::PgOptions options;
    options.conninfo = dsn;
    options.application_name = "gaekju-audit";
    options.statement_timeout_ms = 60000;
    options.idle_in_transaction_timeout_ms = 120000;
    auto pg = runtime::PgConnection::Connect(options);
    if (!pg.ok()) return pg.status();
    auto begun = (*pg)->Query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
    if (!begun.ok()) return begun.status();
    return std::unique_ptr<Reader>(new Reader(*std::move(pg)));
  }

  // Calls `row` for every row, in key order.
  absl::Status Scan(const flow::Table& table,
                    const std::function<void(const std::string& key,
                                             const google::protobuf::Message& row)>& row) {
    const std::string sql = absl::StrCat("SELECT key, body FROM ", table.name,
                                         " WHERE key > $1 ORDER BY key LIMIT ", kPageRows);
    std::string after;
    const std::unique_ptr<google::protobuf::Message> message(table.prototype->New());
    for (;;) {
      auto page = pg_->Query(sql, runtime::PgParams().Text(after));
      if (!page.ok()) return page.status();
      for (int i = 0; i < page->rows(); ++i) {
        after = std::string(page->Bytes(i, 0));
        const absl::string_view body = page->Bytes(i, 1);
        if (!message->ParseFromArray(body.data(), static_cast<int>(body.size()))) {
          return absl::DataLossError(
              absl::StrCat(table.name, " ", after, " is no ", message->GetTypeName()));
        }
        row(after, *message);
      }
      if (page->rows() < kPageRows) return absl::OkStatus();
    }
  }

 private:
  explicit Reader(std::unique_ptr<runtime::PgConnection> pg) : pg_(std::move(pg)) {}
  std::unique_ptr<runtime::PgConnection> pg_;
};

// The databases, each read in one snapshot, but for the orders, which are read before and after all
// others.
class Databases : public sim::RowSource {
 public:
  explicit Databases(const std::map<std::string, std::string>& dsns) : dsns_(dsns) {}

  bool Has(const std::string& context) const override { return dsns_.contains(context); }
  absl::Status Scan(const std::string& context, const flow::Table& table,
                    const std::function<void(const std::string& key,
                                             const google::protobuf::Message& row)>& row) override {
    // A table that was read before is read anew.
    Open& open = open_[context];
    if (open.reader == nullptr || !open.tables.insert(&table).second) {
      auto reader = Reader::Open(dsns_.at(context));
      if (!reader.ok()) return reader.status();
      open.reader = *std::move(reader);
      open.tables = {&table};
    }
    return open.reader->Scan(table, row);
  }

 private:
  struct Open {
    std::unique_ptr<Reader> reader;
    std::set<const flow::Table*> tables;
  };
  const std::map<std::string, std::string>& dsns_;
  std::map<std::string, Open> open_;
};

// The plans of all revisions that orders may run under.
class Plans {
 public:
  absl::Status Read(sim::RowSource& rows, const AuditOptions& options,
                    std::vector<AuditReport::Violation>* wrong) {
    return rows.Scan(
        "order", order::kStorefrontRevisions,
        [&](const std::string& key, const google::protobuf::Message& row) {
          const auto& revision = static_cast<const gaekju::order::v1::StorefrontRevision&>(row);
          auto plan = flow::ParseStorefront(revision.textproto(), "", *options.contracts);
          if (plan.ok()) {
            plans_.emplace(key, *std::move(plan));
            return;
          }
          const std::string subject = absl::StrCat("storefront ", key);
          wrong->push_back({2, subject,
                            absl::StrCat("invariant 2: ", subject,
                                         " cannot be read any more: ", plan.status().message())});
        });
  }
  const flow::Plan* Find(const std::string& key) const {
    const auto it = plans_.find(key);
    return it == plans_.end() ? nullptr : &it->second;
  }

 private:
  std::map<std::string, flow::Plan> plans_;
};

absl::StatusOr<AuditReport> AuditOnce(const std::map<std::string, std::string>& dsns,
                                      const AuditOptions& options) {
  if (!dsns.contains("order"))
    return absl::InvalidArgumentError("an audit needs the order context's database");
  Databases databases(dsns);
  Plans plans;
  std::vector<AuditReport::Violation> wrong;
  if (absl::Status status = plans.Read(databases, options, &wrong); !status.ok()) return status;
  auto report = sim::CheckInvariants(
      &databases, {.now_us = absl::ToUnixMicros(absl::Now()),
                   .overdue_us = absl::ToInt64Microseconds(options.overdue),
                   .plan = [&plans](const std::string& key) { return plans.Find(key); }});
  if (!report.ok()) return report;
  report->violation_count += static_cast<int64_t>(wrong.size());
  report->violations.insert(report->violations.end(), wrong.begin(), wrong.end());
  return report;
}

}  // namespace

absl::StatusOr<AuditReport> Audit(const std::map<std::string, std::string>& dsns,
                                  const AuditOptions& options) {
  const absl::Time deadline = absl::Now() + options.settle;
  std::optional<std::set<std::string>> suspects;
  for (;;) {
    absl::StatusOr<AuditReport> report = AuditOnce(dsns, options);
    if (!report.ok()) return report;
    // What was not wrong the time before may still be settling.
    const bool last = absl::Now() >= deadline;
    std::set<std::string> now;
    std::vector<AuditReport::Violation> lasting;
    for (AuditReport::Violation& violation : report->violations) {
      now.insert(violation.subject);
      if (!suspects.has_value() || suspects->contains(violation.subject))
        lasting.push_back(std::move(violation));
    }
    if (lasting.empty() || last) {
      report->violation_count = static_cast<int64_t>(lasting.size());
      std::sort(lasting.begin(), lasting.end(), [](const auto& a, const auto& b) {
        return std::tie(a.invariant, a.subject) < std::tie(b.invariant, b.subject);
      });
      if (static_cast<int>(lasting.size()) > options.violations_max)
        lasting.resize(options.violations_max);
      report->violations = std::move(lasting);
      return report;
    }
    suspects = std::move(now);
    absl::SleepFor(
        std::min(absl::Seconds(1), std::max(absl::Milliseconds(100), deadline - absl::Now())));
  }
}

}  // namespace gaekju::app
