#include "services/order/verdict.h"

#include "absl/time/clock.h"
#include "services/order/order_service.h"

namespace gaekju::order {

absl::StatusOr<std::optional<Verdict>> FindVerdict(const runtime::PgOptions& options,
                                                   absl::string_view storefront,
                                                   absl::string_view revision) {
  auto pg = runtime::PgConnection::Connect(options);
  if (!pg.ok()) return pg.status();
  auto rows = (*pg)->Query(
      "SELECT verdict, checker_version, budget_ms, told FROM storefront_verdicts WHERE key = $1",
      runtime::PgParams().Text(RevisionKey(storefront, revision)));
  if (!rows.ok()) return rows.status();
  if (rows->rows() == 0) return std::optional<Verdict>();
  return std::optional<Verdict>({.kind = static_cast<Verdict::Kind>(rows->Int(0, 0)),
                                 .checker_version = static_cast<int>(rows->Int(0, 1)),
                                 .budget_ms = rows->Int(0, 2),
                                 .told = std::string(rows->Bytes(0, 3))});
}

absl::Status KeepVerdict(const runtime::PgOptions& options, absl::string_view storefront,
                         absl::string_view revision, const Verdict& verdict) {
  auto pg = runtime::PgConnection::Connect(options);
  if (!pg.ok()) return pg.status();
  return (*pg)
      ->Query(
          "INSERT INTO storefront_verdicts AS v "
          "(key, verdict, checker_version, budget_ms, told, decide_time_us) "
          "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (key) DO UPDATE SET "
          "verdict = excluded.verdict, checker_version = excluded.checker_version, "
          "budget_ms = excluded.budget_ms, told = excluded.told, "
          "decide_time_us = excluded.decide_time_us "
          // Replicas of two releases: what the newer one found stays.
          "WHERE v.checker_version <= excluded.checker_version",
          runtime::PgParams()
              .Text(RevisionKey(storefront, revision))
              .Int(static_cast<int64_t>(verdict.kind))
              .Int(verdict.checker_version)
              .Int(verdict.budget_ms)
              .Text(verdict.told)
              .Int(absl::ToUnixMicros(absl::Now())))
      .status();
}

}  // namespace gaekju::order
