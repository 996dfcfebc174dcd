// load.cc: `gaekju load`: places orders as fast as they are answered, waits until they have all
// ended, and checks every one of them.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <iostream>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "app/audit.h"
#include "app/command.h"
#include "app/contracts.h"
#include "app/rpc.h"
#include "app/seed.h"
#include "app/shops.h"
#include "app/targets.h"
#include "gaekju/catalog/v1/catalog_service.pb.h"
#include "gaekju/order/v1/order_service.pb.h"
#include "gaekju/view/v1/view.pb.h"
#include "google/rpc/code.pb.h"
#include "runtime/pg.h"
#include "services/catalog/catalog.h"
#include "services/order/order.h"
#include "services/payment/payment.h"
#include "services/view/view.h"

ABSL_DECLARE_FLAG(std::string, storefronts);
ABSL_FLAG(std::string, storefront, "",
          "the shops to buy in, each in turn: names with commas between, or 'all'; empty: the only "
          "one there is");
ABSL_FLAG(int64_t, orders, 10000, "how many orders to place; 0 with --seconds");
ABSL_FLAG(double, seconds, 0,
          "load: place orders for so long instead; simulate: stop after so long");
ABSL_FLAG(int, clients, 256,
          "orders under way at a time: each is answered before its client places the next");
ABSL_FLAG(int, concurrency, 0, "the same as --clients");
ABSL_FLAG(int, products, 1000, "how many products there are to choose from");
ABSL_FLAG(bool, hot, false, "everybody buys the same product");
ABSL_FLAG(int, lines, 1, "products per order");
ABSL_FLAG(int64_t, stock, 1000000000, "how many there are of each product");
ABSL_FLAG(int, customers, 1000, "how many different buyers");
ABSL_FLAG(int64_t, warmup, 500,
          "orders placed before the measurement; checked, but not counted in the figures");
ABSL_FLAG(double, cancel_ratio, 0,
          "this part of the orders is cancelled as soon as it is acknowledged");
ABSL_FLAG(double, decline_ratio, 0, "this part of the orders is paid with a card that is declined");
ABSL_FLAG(uint64_t, seed, 0, "decides all that is drawn; 0: from the clock (it is printed)");
ABSL_FLAG(std::string, currency, "KRW", "currency of the products");
ABSL_FLAG(absl::Duration, call_deadline, absl::Seconds(10), "deadline of one attempt at an order");
ABSL_FLAG(absl::Duration, retry_for, absl::Seconds(60),
          "an attempt that nobody answered is made again, with the same request_id, for so long");
ABSL_FLAG(absl::Duration, finish_timeout, absl::Seconds(120),
          "how long the acknowledged orders may take to end");
ABSL_FLAG(bool, verify, true, "check all databases afterwards");
ABSL_FLAG(bool, json, false, "print the result as one JSON object");

namespace gaekju::app {
namespace {

using order::v1::Order;

constexpr int kStreamsPerConnection = 500;  // half of what a server takes from one connection

// What one order went through, as its client saw it.
struct Attempted {
  int64_t number = 0;
  absl::Time start;
  bool declined = false;
  bool to_cancel = false;
};

struct Acked {
  std::string order_id;
  bool declined = false;   // its card is one that is declined
  bool cancelled = false;  // the cancel was acknowledged
  bool cancel_unknown = false;
  bool warmup = false;
  bool waits = false;  // for people, and for nothing else: as far as it goes by itself
};

// What the clients have to do next. gRPC's threads only add to it.
class Work {
 public:
  void Add(std::function<void()> job) {
    std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
    if (jobs_.size() == 1) wake_.notify_one();
  }
  // Runs what there is, or waits for it, until `deadline`.
  void Run(absl::Time deadline) {
    std::deque<std::function<void()>> jobs;
    {
      std::unique_lock lock(mutex_);
      wake_.wait_until(lock, absl::ToChronoTime(deadline), [this] { return !jobs_.empty(); });
      jobs.swap(jobs_);
    }
    for (auto& job : jobs) job();
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> jobs_;
};

// Whether the answer leaves open what happened, so that the same may be asked again.
bool IsUnknown(int code) {
  switch (code) {
    case google::rpc::UNAVAILABLE:
    case google::rpc::DEADLINE_EXCEEDED:
    case google::rpc::UNKNOWN:
    case google::rpc::CANCELLED:
    case google::rpc::INTERNAL:
    case google::rpc::RESOURCE_EXHAUSTED:
      return true;
    default:
      return false;
  }
}

// Whether only people can move an order on: nothing is asked, and something waits for their answer.
// What has not been asked waits behind that, because a step is asked when those before it are done.
bool WaitsForPeople(const order::v1::OrderRecord& record) {
  if (record.order().state() != Order::STATE_PLACED) return false;
  bool waits = false;
  for (const order::v1::Task& task : record.saga().tasks()) {
    if (task.state() == order::v1::TASK_STATE_ASKED ||
        task.undo_state() == order::v1::TASK_STATE_ASKED)
      return false;
    waits |= task.state() == order::v1::TASK_STATE_PENDING;
  }
  return waits;
}

double Percentile(std::vector<int64_t>& sorted_us, double q) {
  if (sorted_us.empty()) return 0;
  const size_t i = std::min(sorted_us.size() - 1,
                            static_cast<size_t>(q * static_cast<double>(sorted_us.size())));
  return static_cast<double>(sorted_us[i]) / 1000;
}

class Load {
 public:
  Load(Targets targets, RpcCaller& caller) : targets_(std::move(targets)), caller_(caller) {}
  int Run();

 private:
  int64_t PriceOf(size_t product) const { return (static_cast<int64_t>(product) % 100 + 1) * 100; }
  absl::Status FindShops();
  absl::Status MakeDemos();
  absl::Status CreateProducts();
  void PlaceNext();
  void Place(std::shared_ptr<Attempted> order);
  void Placed(std::shared_ptr<Attempted> order, runtime::UnaryResult result);
  bool Refused(const std::string& reason, bool declined, bool acked);
  void Cancel(size_t index, absl::Time start);
  void ClientDone();
  void Place(int64_t count, double seconds);
  bool MorePlaces() const;
  void Progress(bool force);
  runtime::PgConnection* Database(const std::string& context);
  bool CheckFinished(size_t limit);
  bool FindWaiting(const std::vector<size_t>& placed);
  absl::Status WaitForEnd();
  absl::StatusOr<std::vector<std::string>> Verify(AuditReport* report);
  void ReadTurns(std::map<std::string, std::pair<double, double>>* turns);

  const Targets targets_;
  RpcCaller& caller_;
  Work work_;
  std::string directory_;  // of storefronts; empty when unknown
  std::vector<std::string> shops_;
  std::vector<std::string> products_;
  std::string run_;
  std::mt19937_64 random_;

  bool warming_up_ = true;
  int64_t to_place_ = 0;
  absl::Time place_until_ = absl::InfiniteFuture();
  int64_t placed_ = 0, next_number_ = 0;
  int clients_left_ = 0;
  int64_t failed_ = 0, declined_ = 0, retried_ = 0, cancel_refused_ = 0, unknown_ = 0;
  std::map<std::string, int64_t> failures_;  // by status and reason
  std::vector<int64_t> latencies_us_;
  std::vector<Acked> acked_;
  int64_t measured_acked_ = 0;
  absl::Time first_request_, last_ack_, last_finish_ = absl::InfinitePast();
  int64_t finished_ = 0;
  absl::Time next_progress_, last_progress_;
  int64_t last_progress_acked_ = 0;
  std::map<std::string, std::unique_ptr<runtime::PgConnection>> databases_;
  std::vector<size_t> unfinished_;
  std::map<std::string, int64_t> rejected_;  // by reason
  int64_t rejected_later_ = 0;               // of them, those that had been acknowledged
};

absl::Status Load::FindShops() {
  directory_ = absl::GetFlag(FLAGS_storefronts).empty() ? targets_.storefronts
                                                        : absl::GetFlag(FLAGS_storefronts);
  const std::string wanted = absl::GetFlag(FLAGS_storefront);
  if (!wanted.empty() && wanted != "all") {
    shops_ = absl::StrSplit(wanted, ',', absl::SkipEmpty());
    if (shops_.empty()) return absl::InvalidArgumentError("--storefront names none");
    return absl::OkStatus();
  }
  shops_ = ShopsIn(directory_);
  if (shops_.empty())
    return absl::NotFoundError(absl::StrCat("there are no storefronts in '", directory_,
                                            "'; name their directory with --storefronts"));
  if (wanted.empty() && shops_.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("there are several storefronts: --storefront=", absl::StrJoin(shops_, "|"),
                     ", or --storefront=all for each in turn"));
  }
  return absl::OkStatus();
}

// What the shops' flows may need beside products: dealers …
absl::Status Load::MakeDemos() {
  if (directory_.empty()) return absl::OkStatus();
  for (const std::string& shop : shops_) {
    auto demo = ReadDemo(directory_, shop);
    if (!demo.ok()) return demo.status();
    absl::Status status = MakeDemo(caller_, *demo, absl::GetFlag(FLAGS_retry_for));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Load::CreateProducts() {
  const int count = absl::GetFlag(FLAGS_hot) ? 1 : absl::GetFlag(FLAGS_products);
  for (int i = 0; i < count; ++i) products_.push_back(absl::StrCat("load-", run_, "-", i));
  constexpr int kInFlightMax = 256;
  std::mutex mutex;
  std::condition_variable ended;
  int in_flight = 0;
  std::vector<int> again;
  google::rpc::Status failure;
  std::vector<int> left(static_cast<size_t>(count));
  std::iota(left.begin(), left.end(), 0);
  // Idempotent by their ids: what nobody answered is asked again.
  const absl::Time deadline = absl::Now() + absl::GetFlag(FLAGS_retry_for);
  for (;;) {
    for (int i : left) {
      catalog::v1::CreateProductRequest request;
      request.set_product_id(products_[static_cast<size_t>(i)]);
      request.set_display_name(absl::StrCat("Load ", i));
      request.mutable_unit_price()->set_currency_code(absl::GetFlag(FLAGS_currency));
      request.mutable_unit_price()->set_minor_units(PriceOf(static_cast<size_t>(i)));
      request.set_available_count(absl::GetFlag(FLAGS_stock));
      {
        std::unique_lock lock(mutex);
        ended.wait(lock, [&] { return in_flight < kInFlightMax; });
        ++in_flight;
      }
      caller_.Start("catalog", "gaekju.catalog.v1.CatalogService.CreateProduct", request,
                    absl::GetFlag(FLAGS_call_deadline), [&, i](runtime::UnaryResult result) {
                      std::lock_guard lock(mutex);
                      if (result.status.code() != 0) {
                        failure = result.status;
                        again.push_back(i);
                      }
                      --in_flight;
                      ended.notify_all();
                    });
    }
    std::unique_lock lock(mutex);
    ended.wait(lock, [&] { return in_flight == 0; });
    if (again.empty()) return absl::OkStatus();
    if (!IsUnknown(failure.code()) || absl::Now() > deadline) {
      return absl::UnavailableError(
          absl::StrCat("the products cannot be created: ", DescribeRpcStatus(failure)));
    }
    left = std::exchange(again, {});
    lock.unlock();
    absl::SleepFor(absl::Milliseconds(200));
  }
}

bool Load::MorePlaces() const {
  return to_place_ > 0 ? placed_ < to_place_ : absl::Now() < place_until_;
}

void Load::PlaceNext() {
  if (!MorePlaces()) return ClientDone();
  ++placed_;
  auto order = std::make_shared<Attempted>();
  order->number = next_number_++;
  order->start = absl::Now();
  std::uniform_real_distribution<double> ratio(0, 1);
  order->to_cancel = ratio(random_) < absl::GetFlag(FLAGS_cancel_ratio);
  order->declined = ratio(random_) < absl::GetFlag(FLAGS_decline_ratio);
  Place(std::move(order));
}

void Load::Place(std::shared_ptr<Attempted> order) {
  // Everything follows from the order's number, so that another attempt asks for the same.
  order::v1::PlaceOrderRequest request;
  request.set_storefront(shops_[static_cast<size_t>(order->number) % shops_.size()]);
  request.set_request_id(absl::StrCat(run_, "-", order->number));
  request.set_customer_id(
      absl::StrCat("load-", run_, "-", order->number % absl::GetFlag(FLAGS_customers)));
  request.set_customer_name("Load");
  request.set_delivery_address("1 Loopback Street");
  request.set_payment_method(order->declined ? payment::kDeclinedMethod : "card");
  const uint64_t spread = static_cast<uint64_t>(order->number) * 0x9e3779b97f4a7c15u;
  // Somewhere in Korea.
  request.mutable_delivery_location()->set_latitude(33.2 + static_cast<double>(spread % 510) / 100);
  request.mutable_delivery_location()->set_longitude(126.1 +
                                                     static_cast<double>(spread / 510 % 330) / 100);
  const uint64_t first = spread % products_.size();
  const int lines = std::min<int>(absl::GetFlag(FLAGS_lines), static_cast<int>(products_.size()));
  int64_t total = 0;
  for (int i = 0; i < lines; ++i) {
    const size_t product = (first + static_cast<uint64_t>(i)) % products_.size();
    auto* line = request.add_lines();
    line->set_product_id(products_[product]);
    line->set_display_name(absl::StrCat("Load ", product));
    line->set_quantity(1);
    total += PriceOf(product);
  }
  request.mutable_expected_total()->set_currency_code(absl::GetFlag(FLAGS_currency));
  request.mutable_expected_total()->set_minor_units(total);
  caller_.Start("order", "gaekju.order.v1.OrderService.PlaceOrder", request,
                absl::GetFlag(FLAGS_call_deadline), [this, order](runtime::UnaryResult result) {
                  work_.Add([this, order, result = std::move(result)]() mutable {
                    Placed(order, std::move(result));
                  });
                });
}

void Load::Placed(std::shared_ptr<Attempted> order, runtime::UnaryResult result) {
  const absl::Time now = absl::Now();
  const int code = result.status.code();
  if (code == 0) {
    order::v1::PlaceOrderResponse response;
    if (!response.ParseFromString(result.payload) || response.order().order_id().empty()) {
      ++failed_;
      ++failures_["an answer without an order"];
      return PlaceNext();
    }
    // Some shops keep what they refuse readable, and answer with it.
    if (response.order().state() == Order::STATE_REJECTING ||
        response.order().state() == Order::STATE_REJECTED) {
      if (!Refused(response.order().reject_reason(), order->declined, /*acked=*/false)) {
        ++failed_;
        ++failures_["a card that is good was declined"];
      }
      return PlaceNext();
    }
    if (!warming_up_) {
      latencies_us_.push_back(absl::ToInt64Microseconds(now - order->start));
      ++measured_acked_;
    }
    last_ack_ = now;
    unfinished_.push_back(acked_.size());
    acked_.push_back({.order_id = response.order().order_id(),
                      .declined = order->declined,
                      .warmup = warming_up_});
    if (order->to_cancel) return Cancel(acked_.size() - 1, now);
    return PlaceNext();
  }
  const std::string reason = flow::ReasonOf(result.status);
  if (reason == "PAYMENT_DECLINED" && order->declined) {
    ++declined_;
    return PlaceNext();
  }
  // Nobody knows whether it worked: the same request again says it, and never makes two orders.
  const bool unknown = IsUnknown(code);
  if (unknown && now - order->start < absl::GetFlag(FLAGS_retry_for)) {
    ++retried_;
    // A pause without a thread: a call that ends at once would otherwise spin.
    std::thread([this, order] {
      absl::SleepFor(absl::Milliseconds(100));
      work_.Add([this, order] { Place(order); });
    }).detach();
    return;
  }
  if (unknown) ++unknown_;
  ++failed_;
  ++failures_[DescribeRpcStatus(result.status)];
  PlaceNext();
}

// Counts an order that the shop refused, after its answer when `acked`. False: it had no reason to.
bool Load::Refused(const std::string& reason, bool declined, bool acked) {
  if (reason == "PAYMENT_DECLINED") {
    if (!declined) return false;
    ++declined_;
  } else {
    ++rejected_[reason];
  }
  rejected_later_ += acked ? 1 : 0;
  return true;
}

void Load::Cancel(size_t index, absl::Time start) {
  order::v1::CancelOrderRequest request;
  request.set_order_id(acked_[index].order_id);
  caller_.Start("order", "gaekju.order.v1.OrderService.CancelOrder", request,
                absl::GetFlag(FLAGS_call_deadline),
                [this, index, start](runtime::UnaryResult result) {
                  work_.Add([this, index, start, result = std::move(result)] {
                    const int code = result.status.code();
                    if (code == 0) {
                      acked_[index].cancelled = true;
                    } else if (code == google::rpc::FAILED_PRECONDITION) {
                      ++cancel_refused_;
                    } else if (absl::Now() - start < absl::GetFlag(FLAGS_retry_for)) {
                      ++retried_;
                      std::thread([this, index, start] {
                        absl::SleepFor(absl::Milliseconds(100));
                        work_.Add([this, index, start] { Cancel(index, start); });
                      }).detach();
                      return;
                    } else {
                      acked_[index].cancel_unknown = true;
                      ++failures_[absl::StrCat("cancel: ", DescribeRpcStatus(result.status))];
                    }
                    PlaceNext();
                  });
                });
}

void Load::ClientDone() { --clients_left_; }

void Load::Place(int64_t count, double seconds) {
  const int wanted = absl::GetFlag(FLAGS_concurrency) > 0 ? absl::GetFlag(FLAGS_concurrency)
                                                          : absl::GetFlag(FLAGS_clients);
  to_place_ = seconds > 0 ? 0 : count;
  place_until_ = absl::Now() + absl::Seconds(seconds);
  placed_ = 0;
  clients_left_ = wanted;
  last_progress_ = absl::Now();
  next_progress_ = absl::Now() + absl::Seconds(1);
  for (int i = 0; i < wanted; ++i) work_.Add([this] { PlaceNext(); });
  while (clients_left_ > 0) {
    work_.Run(absl::Now() + absl::Milliseconds(200));
    Progress(false);
  }
}

// A line a second for a person, every five seconds for a file.
void Load::Progress(bool force) {
  const absl::Time now = absl::Now();
  if (!force && now < next_progress_) return;
  static const bool kTerminal = isatty(STDERR_FILENO) != 0;
  const absl::Duration period = kTerminal ? absl::Seconds(1) : absl::Seconds(5);
  next_progress_ = now + period;
  const double seconds = std::max(1e-3, absl::ToDoubleSeconds(now - last_progress_));
  last_progress_ = now;
  CheckFinished(5000);
  const int64_t acked = static_cast<int64_t>(acked_.size());
  std::cerr << absl::StrFormat(
      "%s %d acknowledged (%.0f/s), %d failed, %d attempts repeated, %d finished\n",
      warming_up_ ? "warming up:" : "placing:   ", acked,
      static_cast<double>(acked - last_progress_acked_) / seconds, failed_, retried_,
      acked - static_cast<int64_t>(unfinished_.size()));
  last_progress_acked_ = acked;
}

// The connection to a context's database; null when there is none to be had now.
runtime::PgConnection* Load::Database(const std::string& context) {
  auto& connection = databases_[context];
  if (connection == nullptr || !connection->ok()) {
    runtime::PgOptions options;
    options.conninfo = targets_.dsns.at(context);
    options.application_name = "gaekju-load";
    auto pg = runtime::PgConnection::Connect(options);
    connection = pg.ok() ? *std::move(pg) : nullptr;
  }
  return connection.get();
}

// An order has finished when its view shows the end of its saga, that row is written last; or when
// only people can move it on. Looks at the oldest `limit` of those that had not ended. False when
// the database did not answer.
bool Load::CheckFinished(size_t limit) {
  constexpr size_t kChunk = 2000;
  runtime::PgConnection* views = Database("view");
  if (views == nullptr) return false;
  limit = std::min(limit, unfinished_.size());
  std::vector<size_t> still, placed;
  size_t begin = 0;
  bool answered = true;
  for (; begin < limit && answered; begin += std::min(kChunk, limit - begin)) {
    const size_t end = std::min(limit, begin + kChunk);
    runtime::PgArray keys = runtime::PgArray::Text();
    for (size_t i = begin; i < end; ++i) keys.Add(acked_[unfinished_[i]].order_id);
    auto rows = views->Query(
        absl::StrCat("SELECT key, body FROM ", view::kOrderViews.name, " WHERE key = ANY($1)"),
        runtime::PgParams().Array(std::move(keys)));
    if (!rows.ok()) {
      answered = false;
      break;
    }
    const absl::Time seen = absl::Now();
    absl::flat_hash_map<std::string, Order::State> states;
    view::v1::OrderView row;
    for (int i = 0; i < rows->rows(); ++i) {
      const absl::string_view body = rows->Bytes(i, 1);
      if (row.ParseFromArray(body.data(), static_cast<int>(body.size())))
        states[std::string(rows->Bytes(i, 0))] = row.order_state();
    }
    const size_t before = still.size();
    for (size_t i = begin; i < end; ++i) {
      const Acked& order = acked_[unfinished_[i]];
      const auto found = states.find(order.order_id);
      const Order::State state = found == states.end() ? Order::STATE_UNSPECIFIED : found->second;
      const bool ended = state == Order::STATE_CANCELLED || state == Order::STATE_REJECTED ||
                         (state == Order::STATE_COMPLETED && !order.cancelled);
      if (!ended) still.push_back(unfinished_[i]);
      if (state == Order::STATE_PLACED && !order.cancelled) placed.push_back(unfinished_[i]);
    }
    if (still.size() - before < end - begin) last_finish_ = seen;
  }
  still.insert(still.end(), unfinished_.begin() + static_cast<std::ptrdiff_t>(begin),
               unfinished_.end());
  unfinished_ = std::move(still);
  return answered && FindWaiting(placed);
}

// Takes those of the placed orders that only people can move on from the unfinished. A look at a
// few of the oldest tells whether there are any, so that shops that need nobody pay for no more.
bool Load::FindWaiting(const std::vector<size_t>& placed) {
  constexpr size_t kProbe = 32, kChunk = 1000;
  bool found_some = false;
  for (size_t begin = 0; begin < placed.size();) {
    const size_t end = std::min(placed.size(), begin + (begin == 0 ? kProbe : kChunk));
    runtime::PgConnection* orders = Database("order");
    if (orders == nullptr) return false;
    runtime::PgArray keys = runtime::PgArray::Text();
    for (size_t i = begin; i < end; ++i) keys.Add(acked_[placed[i]].order_id);
    auto rows = orders->Query(
        absl::StrCat("SELECT key, body FROM ", order::kOrders.name, " WHERE key = ANY($1)"),
        runtime::PgParams().Array(std::move(keys)));
    if (!rows.ok()) return false;
    absl::flat_hash_map<std::string, bool> waits;
    order::v1::OrderRecord record;
    for (int i = 0; i < rows->rows(); ++i) {
      const absl::string_view body = rows->Bytes(i, 1);
      if (record.ParseFromArray(body.data(), static_cast<int>(body.size())))
        waits[std::string(rows->Bytes(i, 0))] = WaitsForPeople(record);
    }
    for (size_t i = begin; i < end; ++i) {
      Acked& order = acked_[placed[i]];
      order.waits = waits.contains(order.order_id) && waits[order.order_id];
      found_some |= order.waits;
    }
    if (!found_some) return true;
    begin = end;
  }
  if (!found_some) return true;
  last_finish_ = absl::Now();
  unfinished_.erase(std::remove_if(unfinished_.begin(), unfinished_.end(),
                                   [this](size_t index) { return acked_[index].waits; }),
                    unfinished_.end());
  return true;
}

absl::Status Load::WaitForEnd() {
  const absl::Time deadline = absl::Now() + absl::GetFlag(FLAGS_finish_timeout);
  absl::Time next_line = absl::Now() + absl::Seconds(1);
  for (;;) {
    CheckFinished(unfinished_.size());
    if (unfinished_.empty()) return absl::OkStatus();
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat(unfinished_.size(), " acknowledged orders have not ended, such as ",
                       acked_[unfinished_.front()].order_id));
    }
    if (absl::Now() > next_line) {
      next_line = absl::Now() + absl::Seconds(1);
      std::cerr << "waiting:    " << unfinished_.size() << " orders have not ended\n";
    }
    absl::SleepFor(absl::Milliseconds(unfinished_.size() > 20000 ? 100 : 20));
  }
}

// What must hold of the acknowledged orders beside the invariants of every audit.
absl::StatusOr<std::vector<std::string>> Load::Verify(AuditReport* report) {
  AuditOptions options;
  options.settle = absl::Seconds(20);
  auto contracts = ContractsFromFlag();
  if (!contracts.ok()) return contracts.status();
  options.contracts = *contracts;
  auto audited = Audit(targets_.dsns, options);
  if (!audited.ok()) return audited.status();
  *report = *std::move(audited);
  std::vector<std::string> wrong;
  for (const auto& violation : report->violations) wrong.push_back(violation.text);

  auto connect = [&](const char* context) {
    runtime::PgOptions pg;
    pg.conninfo = targets_.dsns.at(context);
    pg.application_name = "gaekju-load";
    pg.statement_timeout_ms = 60000;
    return runtime::PgConnection::Connect(pg);
  };
  auto orders = connect("order");
  if (!orders.ok()) return orders.status();
  constexpr size_t kChunk = 5000;
  for (size_t begin = 0; begin < acked_.size(); begin += kChunk) {
    const size_t end = std::min(acked_.size(), begin + kChunk);
    runtime::PgArray keys = runtime::PgArray::Text();
    for (size_t i = begin; i < end; ++i) keys.Add(acked_[i].order_id);
    auto rows = (*orders)->Query(
        absl::StrCat("SELECT key, body FROM ", order::kOrders.name, " WHERE key = ANY($1)"),
        runtime::PgParams().Array(std::move(keys)));
    if (!rows.ok()) return rows.status();
    absl::flat_hash_map<std::string, order::v1::OrderRecord> records;
    for (int i = 0; i < rows->rows(); ++i) {
      const absl::string_view body = rows->Bytes(i, 1);
      auto& record = records[std::string(rows->Bytes(i, 0))];
      if (!record.ParseFromArray(body.data(), static_cast<int>(body.size())))
        wrong.push_back(absl::StrCat("order ", rows->Bytes(i, 0), " cannot be read"));
    }
    for (size_t i = begin; i < end; ++i) {
      const Acked& order = acked_[i];
      const auto found = records.find(order.order_id);
      if (found == records.end()) {
        wrong.push_back(
            absl::StrCat("order ", order.order_id, " was acknowledged and does not exist"));
        continue;
      }
      const Order& made = found->second.order();
      // The shop asks some contexts only afterwards.
      if (made.state() == Order::STATE_REJECTED &&
          Refused(made.reject_reason(), order.declined, /*acked=*/true))
        continue;
      if (!order.cancelled && WaitsForPeople(found->second)) continue;
      const int expected = order.cancelled ? Order::STATE_CANCELLED : Order::STATE_COMPLETED;
      if (made.state() != expected &&
          !(order.cancel_unknown && made.state() == Order::STATE_CANCELLED)) {
        wrong.push_back(absl::StrCat("order ", order.order_id, " of ", made.storefront(), " is ",
                                     Order::State_Name(made.state()), ", expected ",
                                     Order::State_Name(expected)));
      }
    }
  }
  // One order per request, whatever was asked again. Failed attempts of which nobody knows may have
  // made one each.
  auto count = (*orders)->Query(
      "SELECT count(*)::bigint FROM orders WHERE customer_id LIKE $1 AND state = ANY($2)", [&] {
        runtime::PgArray states = runtime::PgArray::Int();
        for (int state : {Order::STATE_COMPLETED, Order::STATE_CANCELLED, Order::STATE_PLACED,
                          Order::STATE_CANCELLING, Order::STATE_CANCEL_REQUESTED}) {
          states.AddInt(state);
        }
        return runtime::PgParams().Text(absl::StrCat("load-", run_, "-%")).Array(std::move(states));
      }());
  if (!count.ok()) return count.status();
  const int64_t made = count->Int(0, 0);
  const int64_t acked = static_cast<int64_t>(acked_.size()) - rejected_later_;
  if (made < acked || made > acked + unknown_) {
    wrong.push_back(absl::StrCat(made, " orders stand for ", acked, " acknowledged requests (",
                                 unknown_, " unknown)"));
  }
  // Stock: nothing appears, nothing vanishes.
  auto catalog = connect("catalog");
  if (!catalog.ok()) return catalog.status();
  runtime::PgArray keys = runtime::PgArray::Text();
  for (const std::string& product : products_) keys.Add(product);
  auto stock = (*catalog)->Query(
      "SELECT key, available_count, reserved_count FROM products WHERE key = ANY($1) AND "
      "available_count + reserved_count <> $2",
      runtime::PgParams().Array(std::move(keys)).Int(absl::GetFlag(FLAGS_stock)));
  if (!stock.ok()) return stock.status();
  for (int i = 0; i < stock->rows(); ++i) {
    wrong.push_back(absl::StrCat("product ", stock->Bytes(i, 0), ": ", stock->Int(i, 1),
                                 " available and ", stock->Int(i, 2), " reserved are not the ",
                                 absl::GetFlag(FLAGS_stock), " there were"));
  }
  return wrong;
}

void Load::ReadTurns(std::map<std::string, std::pair<double, double>>* turns) {
  for (const auto& [context, address] : targets_.metrics) {
    auto page = FetchMetrics(address);
    if (page.ok())
      (*turns)[context] = {MetricSum(*page, "gaekju_turn_size_sum"),
                           MetricSum(*page, "gaekju_turn_size_count")};
  }
}

int Load::Run() {
  uint64_t seed = absl::GetFlag(FLAGS_seed);
  if (seed == 0) seed = static_cast<uint64_t>(absl::ToUnixMicros(absl::Now()));
  random_.seed(seed);
  run_ = absl::StrCat(absl::Hex(absl::ToUnixMicros(absl::Now())));
  std::cerr << "seed " << seed << ", run " << run_ << "\n";
  for (const char* context : {"view", "order", "catalog"}) {
    if (!targets_.dsns.contains(context))
      return Fail("load",
                  absl::StrCat("needs the database of ", context, ": --database, or --data"), 2);
  }
  if (absl::Status status = FindShops(); !status.ok()) return Fail("load", status.message(), 2);
  if (absl::Status status = MakeDemos(); !status.ok()) return Fail("load", status.message());
  if (absl::Status status = CreateProducts(); !status.ok()) return Fail("load", status.message());

  if (absl::GetFlag(FLAGS_warmup) > 0) Place(absl::GetFlag(FLAGS_warmup), 0);
  if (acked_.empty() && failed_ > 0) {
    return Fail("load", absl::StrCat("no order was taken: ", failures_.begin()->first));
  }
  warming_up_ = false;
  failed_ = declined_ = retried_ = 0;
  rejected_.clear();
  std::map<std::string, std::pair<double, double>> turns_before, turns_after;
  ReadTurns(&turns_before);
  first_request_ = absl::Now();
  Place(absl::GetFlag(FLAGS_orders), absl::GetFlag(FLAGS_seconds));
  Progress(true);
  const absl::Status ended = WaitForEnd();
  ReadTurns(&turns_after);
  int64_t waiting = 0;
  for (const Acked& order : acked_) {
    finished_ += order.warmup ? 0 : 1;
    waiting += order.waits ? 1 : 0;
  }
  for (size_t index : unfinished_) finished_ -= acked_[index].warmup ? 0 : 1;

  std::vector<std::string> wrong;
  if (!ended.ok()) wrong.emplace_back(ended.message());
  AuditReport report;
  std::string verified = "skipped";
  if (absl::GetFlag(FLAGS_verify)) {
    auto found = Verify(&report);
    if (!found.ok()) {
      wrong.push_back(absl::StrCat("the databases cannot be checked: ", found.status().message()));
    } else {
      wrong.insert(wrong.end(), found->begin(), found->end());
    }
    verified = wrong.empty() ? "yes" : "no";
  }

  std::sort(latencies_us_.begin(), latencies_us_.end());
  const double ack_seconds = std::max(1e-6, absl::ToDoubleSeconds(last_ack_ - first_request_));
  const double all_seconds = std::max(1e-6, absl::ToDoubleSeconds(last_finish_ - first_request_));
  double turn_requests = 0, turn_count = 0;
  std::map<std::string, double> mean_turns;
  for (const auto& [context, after] : turns_after) {
    const auto& before = turns_before[context];
    const double requests = after.first - before.first, turns = after.second - before.second;
    if (turns <= 0 || requests < 0) continue;  // it was restarted meanwhile, and counts from zero
    mean_turns[context] = requests / turns;
    turn_requests += requests;
    turn_count += turns;
  }
  const double mean_turn = turn_count > 0 ? turn_requests / turn_count : 0;
  for (const auto& [failure, count] : failures_)
    std::cerr << "failed " << count << " times: " << failure << "\n";
  int64_t rejected = 0;
  for (const auto& [reason, count] : rejected_) {
    rejected += count;
    std::cerr << "refused " << count << " times: " << reason << "\n";
  }
  for (size_t i = 0; i < wrong.size() && i < 20; ++i) std::cerr << "wrong: " << wrong[i] << "\n";
  if (wrong.size() > 20) std::cerr << "… and " << wrong.size() - 20 << " more\n";
  if (!mean_turns.empty()) {
    std::cerr << "mean turns: "
              << absl::StrJoin(mean_turns, " ",
                               [](std::string* out, const auto& one) {
                                 absl::StrAppendFormat(out, "%s=%.1f", one.first, one.second);
                               })
              << "\n";
  }
  const double orders_per_s = static_cast<double>(finished_) / all_seconds;
  const double ack_per_s = static_cast<double>(measured_acked_) / ack_seconds;
  const double p50 = Percentile(latencies_us_, 0.5), p99 = Percentile(latencies_us_, 0.99),
               p999 = Percentile(latencies_us_, 0.999);
  if (absl::GetFlag(FLAGS_json)) {
    std::cout << absl::StrFormat(
        "{\"orders_per_s\":%.1f,\"ack_per_s\":%.1f,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"p999_ms\":%."
        "3f,\"acked\":%d,\"failed\":%d,"
        "\"finished\":%d,\"waiting\":%d,\"rejected\":%d,\"declined\":%d,\"retried\":%d,"
        "\"cancel_refused\":%d,\"mean_turn\":%.1f,"
        "\"verified\":\"%s\",\"wrong\":%d,"
        "\"seed\":%d,\"run\":\"%s\",\"mean_turns\":{%s}}\n",
        orders_per_s, ack_per_s, p50, p99, p999, measured_acked_, failed_, finished_, waiting,
        rejected, declined_, retried_, cancel_refused_, mean_turn, verified, wrong.size(), seed,
        run_, absl::StrJoin(mean_turns, ",", [](std::string* out, const auto& one) {
          absl::StrAppendFormat(out, "\"%s\":%.1f", one.first, one.second);
        }));
  } else {
    std::cout << absl::StrFormat(
        "orders_per_s=%.0f ack_per_s=%.0f p50_ms=%.1f p99_ms=%.1f p999_ms=%.1f acked=%d failed=%d "
        "finished=%d waiting=%d rejected=%d mean_turn=%.1f verified=%s\n",
        orders_per_s, ack_per_s, p50, p99, p999, measured_acked_, failed_, finished_, waiting,
        rejected, mean_turn, verified);
  }
  return wrong.empty() ? 0 : 1;
}

int RunLoad(const std::vector<std::string>& arguments) {
  if (!arguments.empty())
    return Fail("load", absl::StrCat("takes no '", arguments[0], "'; see gaekju load --help"), 2);
  const int clients = absl::GetFlag(FLAGS_concurrency) > 0 ? absl::GetFlag(FLAGS_concurrency)
                                                           : absl::GetFlag(FLAGS_clients);
  if (clients < 1 || clients > 100000)
    return Fail("load", "--clients is not between 1 and 100000", 2);
  if (absl::GetFlag(FLAGS_products) < 1) return Fail("load", "--products is less than 1", 2);
  if (absl::GetFlag(FLAGS_orders) < 1 && absl::GetFlag(FLAGS_seconds) <= 0)
    return Fail("load", "--orders is less than 1", 2);
  auto targets = FindTargets();
  if (!targets.ok()) return Fail("load", targets.status().message());
  auto caller = RpcCaller::Create(targets->peers, 1 + clients / kStreamsPerConnection);
  if (!caller.ok()) return Fail("load", caller.status().message(), 2);
  return Load(*std::move(targets), **caller).Run();
}

}  // namespace

Command LoadCommand() {
  std::vector<std::string> flags = {
      "storefront",     "storefronts",   "orders", "seconds",  "clients",       "concurrency",
      "products",       "hot",           "lines",  "stock",    "customers",     "warmup",
      "cancel_ratio",   "decline_ratio", "seed",   "currency", "call_deadline", "retry_for",
      "finish_timeout", "contracts",     "verify", "json"};
  for (const std::string& flag : TargetFlags()) flags.push_back(flag);
  return {
      .name = "load",
      .summary = "place many orders, measure them, and check every one",
      .usage =
          "Usage: gaekju load [--storefront=S[,S…]|all] [--orders=N | --seconds=S] [--clients=C] "
          "[--products=N | --hot] [FLAGS]\n"
          "\n"
          "Makes the shops' demo calls (dealers …) and products of its own, places orders in a "
          "closed loop, waits until every\n"
          "acknowledged one has ended or waits for nobody but people, audits all databases, and "
          "prints one line:\n"
          "\n"
          "  orders_per_s=…  orders acknowledged and finished / (last finish - first request); "
          "finished: the view row shows the end,\n"
          "                  or nothing is under way but a person's answer\n"
          "  ack_per_s=…     orders acknowledged / (last acknowledgement - first request)\n"
          "  p50_ms=… p99_ms=… p999_ms=…   from an order's first attempt to its acknowledgement\n"
          "  acked=… failed=… finished=…   without the warm-up\n"
          "  waiting=…       of all: those that wait for people;   rejected=…  refused by the "
          "shop, "
          "at once or later, such as for want of stock\n"
          "  mean_turn=…     requests decided per transaction, over all contexts\n"
          "  verified=yes    each acknowledged order exists once, has ended as it should, is paid "
          "once; stock, ledger and views agree\n"
          "\n"
          "Exit code 1: something is wrong. Attempts that nobody answers are repeated with the "
          "same request_id.\n",
      .flags = flags,
      .run = RunLoad};
}

}  // namespace gaekju::app
