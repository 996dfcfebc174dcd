#include "services/assignment/assignment_service.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "flow/check.h"
#include "runtime/log.h"
#include "services/assignment/assignment.h"

namespace gaekju::assignment {

using gaekju::assignment::v1::Dealer;
using google::protobuf::Message;

namespace {

constexpr int kPageRows = 50000;

// Takes the rows of a result (key, body) in.
absl::Status Parse(const runtime::PgResult& result, std::vector<DealerIndex::Row>* rows) {
  Dealer dealer;
  for (int i = 0; i < result.rows(); ++i) {
    const absl::string_view body = result.Bytes(i, 1);
    if (!dealer.ParseFromArray(body.data(), static_cast<int>(body.size())) ||
        dealer.dealer_id() != result.Bytes(i, 0) || !IsValid(dealer.location())) {
      return absl::DataLossError(
          absl::StrCat("row dealers/", result.Bytes(i, 0), " is no ", dealer.GetTypeName()));
    }
    rows->push_back(DealerIndex::RowOf(dealer));
  }
  return absl::OkStatus();
}

}  // namespace

DealerBook::~DealerBook() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    wake_.notify_all();
  }
  if (poller_.joinable()) poller_.join();
}

absl::Status DealerBook::Open(const runtime::PgOptions& options) {
  GK_CHECK(!poller_.joinable()) << "opened twice";
  pg_options_ = options;
  auto pg = runtime::PgConnection::Connect(pg_options_);
  if (!pg.ok()) return pg.status();
  const absl::Time start = absl::Now();
  if (absl::Status status = ReadAll(**pg); !status.ok()) return status;
  runtime::LogInfo("dealers read", {{"context", "assignment"},
                                    {"count", size()},
                                    {"seconds", absl::ToDoubleSeconds(absl::Now() - start)}});
  poller_ = std::thread([this] { Poll(); });
  return absl::OkStatus();
}

absl::Status DealerBook::ReadAll(runtime::PgConnection& pg) {
  // Page by page and so not one snapshot: what changes meanwhile, the first poll reads again.
  opened_time_ = absl::Now();
  const std::string sql =
      absl::StrCat("SELECT key, body FROM dealers WHERE key > $1 ORDER BY key LIMIT ", kPageRows);
  std::vector<DealerIndex::Row> rows;
  std::string after;
  for (;;) {
    auto page = pg.Query(sql, runtime::PgParams().Text(after));
    if (!page.ok()) return page.status();
    if (absl::Status status = Parse(*page, &rows); !status.ok()) return status;
    if (page->rows() < kPageRows) break;
    after = rows.back().dealer_id;
  }
  // In one go, so that one tree holds them all.
  Learn(rows);
  return absl::OkStatus();
}

absl::Status DealerBook::ReadSince(runtime::PgConnection& pg, absl::Time since) {
  static const std::string* const kSql = new std::string(absl::StrCat(
      "SELECT key, body, update_time_us FROM dealers WHERE (update_time_us, key) > ($1, $2) ORDER "
      "BY update_time_us, key LIMIT ",
      kPageRows));
  int64_t time_us = absl::ToUnixMicros(since);
  std::string key;
  for (;;) {
    auto page = pg.Query(*kSql, runtime::PgParams().Int(time_us).Text(key));
    if (!page.ok()) return page.status();
    std::vector<DealerIndex::Row> rows;
    if (absl::Status status = Parse(*page, &rows); !status.ok()) return status;
    Learn(rows);
    if (page->rows() < kPageRows) return absl::OkStatus();
    time_us = page->Int(page->rows() - 1, 2);
    key = rows.back().dealer_id;
  }
}

void DealerBook::Poll() {
  std::unique_ptr<runtime::PgConnection> pg;
  absl::Time last = opened_time_, last_wide = opened_time_;  // when polls that worked began
  bool failing = false;
  for (int64_t round = 0;; ++round) {
    absl::Status status;
    if (pg == nullptr || !pg->ok()) {
      auto connected = runtime::PgConnection::Connect(pg_options_);
      status = connected.status();
      pg = connected.ok() ? *std::move(connected) : nullptr;
    }
    if (pg != nullptr) {
      const bool wide = round % options_.wide_every == 0;
      const absl::Time now = absl::Now();
      status =
          ReadSince(*pg, wide ? last_wide - options_.look_back_wide : last - options_.look_back);
      if (status.ok()) last = now;
      if (status.ok() && wide) last_wide = now;
    }
    if (!status.ok() && !failing) {
      runtime::LogWarning("what other replicas assign cannot be read; going on",
                          {{"context", "assignment"}, {"error", status.message()}});
    }
    failing = !status.ok();
    std::unique_lock<std::mutex> lock(mutex_);
    if (status.ok()) ++poll_count_;
    if (wake_.wait_for(lock, absl::ToChronoMicroseconds(options_.poll_interval),
                       [this] { return stopping_; })) {
      return;
    }
  }
}

void DealerBook::Learn(const std::vector<DealerIndex::Row>& rows) {
  std::unique_lock<std::shared_mutex> lock(index_mutex_);
  index_.PutAll(rows);
}

void DealerBook::Observe(const flow::Table& table, const Message& row) {
  if (&table != &kDealers) return;
  const DealerIndex::Row dealer = DealerIndex::RowOf(static_cast<const Dealer&>(row));
  std::unique_lock<std::shared_mutex> lock(index_mutex_);
  index_.Put(dealer);
}

void DealerBook::Nearest(absl::string_view storefront, const gaekju::type::v1::Location* location,
                         int count, std::vector<std::string>* dealer_ids) const {
  std::shared_lock<std::shared_mutex> lock(index_mutex_);
  index_.Nearest(storefront, location, count, dealer_ids);
}

int64_t DealerBook::size() const {
  std::shared_lock<std::shared_mutex> lock(index_mutex_);
  return index_.size();
}

int64_t DealerBook::poll_count() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return poll_count_;
}

}  // namespace gaekju::assignment
