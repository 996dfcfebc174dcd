// assignment_bench.cc: how long it takes to find a dealer, among ten thousand and among a million.
// Dealers stand as people live: in cities, large and small. Buyers, too; each order takes a place
// with its dealer for a while, so that some dealers near a buyer are full.
//
//   assignment_bench             # finding and deciding in memory, then Assign through real turns
//   assignment_bench --memory    # only in memory; needs no PostgreSQL
//
// Prints a line for each, and the ratios of the million to the ten thousand.
#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <deque>
#include <fstream>
#include <memory>
#include <mutex>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "flow/check.h"
#include "gaekju/assignment/v1/assignment_service.pb.h"
#include "runtime/log.h"
#include "runtime/testing/postgres.h"
#include "runtime/turn_loop.h"
#include "services/assignment/assignment.h"
#include "services/assignment/assignment_service.h"

namespace gaekju::assignment {
namespace {

using gaekju::assignment::v1::AssignRequest;
using gaekju::assignment::v1::Dealer;
using gaekju::assignment::v1::UnassignRequest;
using gaekju::type::v1::Location;

constexpr int kSmall = 10'000, kLarge = 1'000'000;
constexpr char kService[] = "gaekju.assignment.v1.AssignmentService.";

// Where people live: 200 cities, the n-th with 1/n of the people of the first, and a tenth of all
// in the country.
class People {
 public:
  // The cities are always the same, who lives there is not.
  explicit People(uint64_t seed) {
    double total = 0;
    for (int i = 0; i < kCities; ++i) {
      centres_.push_back({33.2 + 5 * Unit(), 126.2 + 3.3 * Unit()});
      total += 1.0 / (i + 1);
      weights_.push_back(total);
    }
    random_.seed(seed);
  }
  Location Home() {
    Location location;
    if (Unit() < 0.1) {
      location.set_latitude(33.2 + 5 * Unit());
      location.set_longitude(126.2 + 3.3 * Unit());
      return location;
    }
    const auto city = static_cast<size_t>(
        std::lower_bound(weights_.begin(), weights_.end(), Unit() * weights_.back()) -
        weights_.begin());
    // About 10 km wide.
    const double distance = 0.05 * std::sqrt(-2 * std::log(1 - Unit())), angle = 2 * M_PI * Unit();
    location.set_latitude(centres_[city].first + distance * std::sin(angle));
    location.set_longitude(centres_[city].second + distance * std::cos(angle));
    return location;
  }

 private:
  static constexpr int kCities = 200;
  double Unit() { return static_cast<double>(random_() >> 11) * 0x1p-53; }
  std::mt19937_64 random_{42};
  std::vector<std::pair<double, double>> centres_;
  std::vector<double> weights_;
};

Dealer MakeDealer(int number, People& people) {
  Dealer dealer;
  dealer.set_dealer_id(absl::StrCat("dealer-", number));
  dealer.set_storefront("tshop");
  dealer.set_agency_name(absl::StrCat("대리점 ", number));
  *dealer.mutable_location() = people.Home();
  // A third each: one at a time, a few, as many as there are.
  dealer.set_capacity(number % 3 == 0 ? 0 : number % 3 == 1 ? 1 : 5);
  dealer.set_update_time_us(1);
  return dealer;
}

AssignRequest MakeRequest(int number, People& people) {
  AssignRequest request;
  request.set_order_id(absl::StrCat("order-", number));
  request.set_step_id("assign");
  request.set_storefront("tshop");
  request.set_customer_id("customer");
  auto* line = request.add_lines();
  line->set_product_id("tv");
  line->set_quantity(1);
  *request.mutable_delivery_location() = people.Home();
  return request;
}

UnassignRequest MakeUndo(const AssignRequest& request) {
  UnassignRequest undo;
  undo.set_order_id(request.order_id());
  undo.set_step_id(request.step_id());
  return undo;
}

struct Times {
  double p50 = 0, p99 = 0;  // microseconds
};

Times TimesOf(std::vector<double> us) {
  std::sort(us.begin(), us.end());
  return {us[us.size() / 2], us[us.size() * 99 / 100]};
}

double MicrosSince(absl::Time start) { return absl::ToDoubleMicroseconds(absl::Now() - start); }

// ---------------------------------------------------------------- in memory

// The keys of the request, and what is decided once their rows are loaded: all that Assign costs
// but the database.
class InMemory {
 public:
  explicit InMemory(int dealer_count) : dealer_count_(dealer_count) {
    People people(1);
    std::vector<DealerIndex::Row> rows;
    for (int i = 0; i < dealer_count; ++i) {
      Dealer dealer = MakeDealer(i, people);
      rows.push_back(DealerIndex::RowOf(dealer));
      dealers_.emplace(dealer.dealer_id(), std::move(dealer));
    }
    const absl::Time start = absl::Now();
    index_.PutAll(rows);
    build_s_ = MicrosSince(start) / 1e6;
    for (const auto& handler : context_->handlers) {
      if (handler->name() == absl::StrCat(kService, "Assign")) assign_ = handler.get();
    }
  }

  // So many orders; how long each took is kept as a round of its own.
  void Run(int order_count) {
    std::vector<double> us;
    for (int i = 0; i < order_count; ++i) us.push_back(AssignOne());
    rounds_.push_back(TimesOf(std::move(us)));
  }

  // The medians of the rounds.
  Times Print() const {
    std::vector<double> p50, p99;
    for (const Times& round : rounds_) {
      p50.push_back(round.p50);
      p99.push_back(round.p99);
    }
    const Times times = {TimesOf(p50).p50, TimesOf(p99).p50};
    std::printf(
        "in memory, %d dealers: find and decide p50 %.2f us, p99 %.2f us; %d of %d orders looked "
        "again; index built in %.2f s\n",
        dealer_count_, times.p50, times.p99, retry_count_, order_count_, build_s_);
    return times;
  }

 private:
  static constexpr size_t kOpen = 5'000;

  double AssignOne() {
    const AssignRequest request = MakeRequest(order_count_++, buyers_);
    std::vector<flow::RowKey> keys;
    absl::Time start = absl::Now();
    assign_->Keys(request, {}, &keys);
    double us = MicrosSince(start);
    for (;;) {
      flow::Turn turn(1'000'000);
      for (const flow::RowKey& key : keys) {
        std::unique_ptr<Dealer> row;
        if (key.table == &kDealers) row = std::make_unique<Dealer>(dealers_.at(key.key));
        turn.AddRow(key, 0, std::move(row));
      }
      start = absl::Now();
      const flow::Answer answer = assign_->Handle(request, {}, turn);
      us += MicrosSince(start);
      if (answer.kind == flow::Answer::Kind::kRetry) {
        ++retry_count_;
        keys.insert(keys.end(), answer.more_keys.begin(), answer.more_keys.end());
        continue;
      }
      GK_CHECK(answer.kind == flow::Answer::Kind::kDone) << flow::ReasonOf(answer.status);
      for (const flow::RowKey& key : turn.order()) {
        if (key.table != &kDealers || !turn.row(key).dirty) continue;
        Dealer& dealer = dealers_.at(key.key);
        dealer = static_cast<const Dealer&>(*turn.row(key).body);
        start = absl::Now();
        index_.Put(DealerIndex::RowOf(dealer));
        us += MicrosSince(start);
        open_.push_back(key.key);
      }
      break;
    }
    if (open_.size() > kOpen) {  // picked up
      Dealer& dealer = dealers_.at(open_.front());
      open_.pop_front();
      dealer.set_assigned_count(dealer.assigned_count() - 1);
      dealer.set_update_time_us(dealer.update_time_us() + 1);
      index_.Put(DealerIndex::RowOf(dealer));
    }
    return us;
  }

  const int dealer_count_;
  absl::flat_hash_map<std::string, Dealer> dealers_;
  DealerIndex index_;
  const std::unique_ptr<flow::Context> context_ = MakeAssignmentContext(&index_);
  const flow::Handler* assign_ = nullptr;
  People buyers_{2};
  std::deque<std::string> open_;  // the dealers of orders that are not picked up yet
  std::vector<Times> rounds_;
  int order_count_ = 0, retry_count_ = 0;
  double build_s_ = 0;
};

// ---------------------------------------------------------------- through turns

void RunScript(runtime::PgConnection& pg, const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  GK_CHECK(!text.str().empty()) << path << ": run from the root of the repository";
  const absl::Status status = pg.Script(text.str());
  GK_CHECK(status.ok()) << path << ": " << status;
}

void InsertDealers(runtime::PgConnection& pg, int dealer_count) {
  const runtime::TableSql sql(kDealers);
  People people(1);
  for (int done = 0; done < dealer_count;) {
    const int count = std::min(20'000, dealer_count - done);
    std::vector<std::string> keys(static_cast<size_t>(count));
    std::vector<flow::Turn::Row> rows(static_cast<size_t>(count));
    std::vector<std::pair<const std::string*, const flow::Turn::Row*>> refs;
    for (int i = 0; i < count; ++i, ++done) {
      auto dealer = std::make_unique<Dealer>(MakeDealer(done, people));
      keys[static_cast<size_t>(i)] = dealer->dealer_id();
      rows[static_cast<size_t>(i)].body = std::move(dealer);
      refs.emplace_back(&keys[static_cast<size_t>(i)], &rows[static_cast<size_t>(i)]);
    }
    auto result = pg.Query(sql.insert(), sql.Params(refs));
    GK_CHECK(result.ok()) << result.status();
  }
  GK_CHECK(pg.Query("ANALYZE dealers").ok());
}

// Assign after Assign through the turns of one loop, each taken back some orders later.
Times ThroughTurns(runtime::Postgres& postgres, int dealer_count) {
  constexpr int kOrders = 6'000, kOpen = 500;
  runtime::PgOptions pg;
  pg.conninfo = postgres.CreateDatabase();
  {
    runtime::PgOptions slow = pg;
    slow.statement_timeout_ms = 120'000;
    auto connected = runtime::PgConnection::Connect(slow);
    GK_CHECK(connected.ok()) << connected.status();
    RunScript(**connected, "runtime/migrations/0001_outbox.sql");
    RunScript(**connected, "runtime/migrations/0002_incarnation_start.sql");
    RunScript(**connected, "services/assignment/migrations/0001_create.sql");
    InsertDealers(**connected, dealer_count);
    GK_CHECK((*connected)->Query("CHECKPOINT").ok());
  }
  DealerBook book;
  const absl::Time open_start = absl::Now();
  const absl::Status opened = book.Open(pg);
  GK_CHECK(opened.ok()) << opened;
  const double open_s = MicrosSince(open_start) / 1e6;
  const auto context = MakeAssignmentContext(&book);
  runtime::TurnLoop::Options options;
  options.pg = pg;
  runtime::TurnOutputs outputs;
  outputs.observe = [&book](const flow::Table& table, const std::string&,
                            const google::protobuf::Message& row) { book.Observe(table, row); };
  runtime::TurnLoop loop(*context, options, outputs);
  loop.Start();
  std::mutex mutex;
  std::condition_variable wake;
  const auto call = [&](const char* method, const google::protobuf::Message& message) {
    bool answered = false;
    runtime::Request request;
    request.handler = loop.FindHandler(absl::StrCat(kService, method));
    request.message.reset(message.New());
    request.message->CopyFrom(message);
    request.done = [&](flow::Answer answer) {
      std::lock_guard<std::mutex> lock(mutex);
      GK_CHECK(answer.kind == flow::Answer::Kind::kDone) << flow::ReasonOf(answer.status);
      answered = true;
      wake.notify_one();
    };
    loop.Submit(std::move(request));
    std::unique_lock<std::mutex> lock(mutex);
    wake.wait(lock, [&] { return answered; });
  };
  People buyers(2);
  std::deque<UnassignRequest> open;
  std::vector<double> us;
  for (int i = 0; i < kOrders; ++i) {
    const AssignRequest request = MakeRequest(i, buyers);
    const absl::Time start = absl::Now();
    call("Assign", request);
    if (i >= kOpen) us.push_back(MicrosSince(start));
    open.push_back(MakeUndo(request));
    if (open.size() > kOpen) {
      call("Unassign", open.front());
      open.pop_front();
    }
  }
  loop.Drain(absl::Seconds(10));
  const Times times = TimesOf(us);
  std::printf(
      "through turns, %d dealers: Assign p50 %.0f us, p99 %.0f us; dealers read in %.2f s\n",
      dealer_count, times.p50, times.p99, open_s);
  return times;
}

void PrintRatios(const char* prefix, const Times& small, const Times& large) {
  std::printf("%sp50_ratio=%.2f %sp99_ratio=%.2f\n", prefix, large.p50 / small.p50, prefix,
              large.p99 / small.p99);
}

int Run(bool memory_only) {
  {
    // In turn, and medians: a machine that is busy with something else is so for both.
    InMemory small(kSmall), large(kLarge);
    for (int round = 0; round < 50; ++round) {
      small.Run(4'000);
      large.Run(4'000);
    }
    const Times small_times = small.Print();
    PrintRatios("", small_times, large.Print());
  }
  if (memory_only) return 0;
  runtime::Postgres postgres;
  const Times small_turns = ThroughTurns(postgres, kSmall);
  const Times large_turns = ThroughTurns(postgres, kLarge);
  PrintRatios("turn_", small_turns, large_turns);
  return 0;
}

}  // namespace
}  // namespace gaekju::assignment

int main(int argc, char** argv) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  GK_CHECK(gaekju::runtime::ConfigureLog("warning", "text").ok());
  if (argc == 1) return gaekju::assignment::Run(/*memory_only=*/false);
  if (argc == 2 && std::strcmp(argv[1], "--memory") == 0) {
    return gaekju::assignment::Run(/*memory_only=*/true);
  }
  const bool help = argc == 2 && std::strcmp(argv[1], "--help") == 0;
  std::fprintf(help ? stdout : stderr,
               "Usage: assignment_bench [--memory]\n\n"
               "How long it takes to find a dealer among 10,000 and among 1,000,000; prints "
               "p50_ratio=… and p99_ratio=…\n"
               "--memory: without PostgreSQL.\n");
  return help ? 0 : 2;
}
