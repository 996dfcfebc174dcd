#include "sim/simulator.h"

#include <algorithm>
#include <deque>
#include <map>
#include <queue>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "flow/saga_rules.h"
#include "flow/storefront.h"
#include "flow/turn_run.h"
#include "gaekju/assignment/v1/assignment_service.pb.h"
#include "gaekju/catalog/v1/catalog_events.pb.h"
#include "gaekju/catalog/v1/catalog_service.pb.h"
#include "gaekju/delivery/v1/delivery_service.pb.h"
#include "gaekju/notification/v1/notification.pb.h"
#include "gaekju/notification/v1/notification_events.pb.h"
#include "gaekju/order/v1/order.pb.h"
#include "gaekju/order/v1/order_service.pb.h"
#include "gaekju/payment/v1/payment_service.pb.h"
#include "gaekju/store/v1/store_service.pb.h"
#include "google/rpc/code.pb.h"
#include "runtime/breaker.h"
#include "runtime/cloudevents.h"
#include "runtime/stream_loss.h"
#include "services/assignment/assignment.h"
#include "services/assignment/dealer_index.h"
#include "services/cart/cart.h"
#include "services/catalog/catalog.h"
#include "services/delivery/delivery.h"
#include "services/notification/notification.h"
#include "services/order/order.h"
#include "services/payment/payment.h"
#include "services/store/store.h"
#include "services/view/view.h"
#include "sim/database.h"
#include "sim/dice.h"
#include "sim/invariants.h"

namespace gaekju::sim {
namespace {

using flow::Answer;
using flow::RowKey;
using flow::Turn;
using google::protobuf::Message;
using order::v1::Order;
using order::v1::OrderRecord;

constexpr int64_t kMillisecond = 1'000;
constexpr int64_t kSecond = 1'000'000;
constexpr int64_t kMinute = 60 * kSecond;
constexpr int64_t kStart_us = 1'800'000'000'000'000;
// How the runtime is set when nobody sets it (runtime/bus.h, relay.h, turn_loop.h).
constexpr int64_t kAckWait = 5 * kSecond;
constexpr int64_t kNakDelay = 1 * kSecond;
constexpr int64_t kDuplicateWindow = 120 * kSecond;
constexpr int64_t kTimerInterval = 200 * kMillisecond;
constexpr size_t kTimerKeysMax = 512;
constexpr int64_t kAnswerTravel = 20 * kMillisecond;
constexpr int64_t kSaveInterval = 200 * kMillisecond;
constexpr int64_t kCheckpointInterval = 10 * kSecond;
constexpr int64_t kRollbackMargin = 5 * kMinute;
constexpr int64_t kTakeoverInterval = 1 * kSecond;
constexpr int kInFlightMax = 1024;
constexpr int kItemRetriesMax = 8;
// Everything has to be settled this long after the last fault and the last thing that anybody does:
// a dozen steps in a row that are each asked again after the longest backoff.
constexpr int64_t kSettleMax = 3 * 3600 * kSecond;
constexpr int kBuyerTriesMax = 6;
// Whoever asks knows after this long what came of it, or that nothing will.
constexpr int64_t kPatienceMax = 15 * kSecond;
constexpr int64_t kDealerPoll = 500 * kMillisecond;

constexpr const char* kContexts[] = {"assignment", "cart",    "catalog", "delivery", "notification",
                                     "order",      "payment", "store",   "view"};
constexpr const char* kFaultNames[kFaultCount] = {
    "lose", "duplicate", "delay",       "crash", "abort", "ambiguous", "bus_down",
    "wipe", "rollback",  "unreachable", "late",  "slow",  "clock",     "revision"};
constexpr const char* kStreams[] = {runtime::kCommandsStreamName, runtime::kAnswersStreamName,
                                    runtime::kEventsStreamName};

std::string Last(absl::string_view name) { return std::string(name.substr(name.rfind('.') + 1)); }

struct RpcResult {
  google::rpc::Status status;
  bool pending = false;
  std::string payload;
};

struct Item : flow::TurnItem {
  uint64_t ticket = 0;
  int64_t deadline_us = 0;  // of the context's clock
  std::string tag;          // what it is, the same in every run
  std::function<void(Answer)> done;
  std::function<void(bool processed)> settled;
};
using Items = std::vector<std::unique_ptr<Item>>;

// A call under way, as its caller sees it.
struct Pending {
  bool ended = false;
  std::function<void(RpcResult)> done;
  int node = -1;  // where it waits
  int64_t generation = 0;
  uint64_t ticket = 0;
};

struct BusMessage {
  int stream = 0;
  uint64_t seq = 0;
  std::string subject;
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
  uint64_t key = 0;  // of what is in it, for the dice
};

struct Stream {
  int64_t created_ns = 0;
  int64_t last_seq = 0;
  // The duplicate window: by message id.
  struct Known {
    int64_t seq = 0;
    int64_t time_us = 0;
    const Database* db = nullptr;  // whose row it is
    int64_t incarnation = 0;
    int64_t row_seq = 0;
  };
  absl::flat_hash_map<std::string, Known> ids;
  std::vector<std::string> msg_ids;  // of the message with sequence 1, 2, …
};

// A durable consumer: what it has not acknowledged.
struct Consumer {
  int context = 0;
  int stream = 0;
  std::string subject;  // empty: all
  std::map<uint64_t, std::shared_ptr<const BusMessage>> pending;
  int64_t delivered_seq = 0;  // what comes up to here is not delivered any more
};

// What one node's relay keeps in memory.
struct RelayMemory {
  bool is_checked = false;
  bool compare_is_due = false;
  bool save_is_due = false;
  int64_t epoch = 0;
  int64_t generation = 0;
  int64_t backoff_us = 20 * kMillisecond;
  int in_flight = 0;
  int64_t last_checkpoint_us = 0;
  struct Log {
    int64_t published_seq = 0;
    int64_t next_seq = 1;
    std::map<int64_t, int64_t>
        in_flight;  // seq -> position of its stream when it was sent; 0 when sent before
    std::set<int64_t> stored;
    int64_t fresh_after = 0;  // rows above were never sent by anybody
  };
  std::map<int64_t, Log> logs;
  runtime::StreamPositions positions;
  std::map<std::string, int64_t> lost_after;
};

class Simulation;

// The storefronts that one order process has read.
class NodeBook : public order::PlanBook {
 public:
  explicit NodeBook(const Shops& shops) : shops_(shops) {}
  const flow::Plan* Current(const std::string& storefront) const override {
    const auto it = current.find(storefront);
    return it == current.end() ? nullptr : it->second;
  }
  const flow::Plan* Pinned(const std::string& storefront,
                           const std::string& revision) const override {
    return shops_.Find(storefront, revision);
  }
  std::map<std::string, const flow::Plan*> current;

 private:
  const Shops& shops_;
};

// One process of a context.
struct Node {
  int id = 0;  // from 1
  int context = 0;
  std::string name;  // "order", or "order#2" of a second replica
  std::unique_ptr<NodeBook> book;
  std::unique_ptr<assignment::DealerIndex> dealers;
  std::unique_ptr<flow::Context> own;
  const flow::Context* rules = nullptr;
  std::unique_ptr<flow::TurnRunner> runner;
  Database* db = nullptr;

  bool alive = false;
  int64_t generation = 0;
  int64_t clock_offset_us = 0;
  int64_t last_now_us = 0;
  int64_t incarnation = 0;
  int turn_items_max = 512;
  std::deque<std::unique_ptr<Item>> queue;
  flow::Waiters<Item> waiters;
  bool busy = false;
  Items items;  // of the running turn
  std::unique_ptr<Turn> turn;
  std::set<std::string> timer_keys;
  int64_t poll_at_us = 0;  // 0: none is planned
  std::vector<std::shared_ptr<Pending>> open;
  std::map<std::string, runtime::Breaker> breakers;
  RelayMemory relay;
};

// What one buyer does.
struct Buyer {
  int number = 0;
  std::string name;  // "o3": of the order
  std::string shop;
  order::v1::PlaceOrderRequest request;
  int tries = 0;
  bool settled = false;
  std::string order_id;  // once it is acknowledged
  int cancel_count = 0;  // that are planned
  int cancel_tries = 0;
  bool cancel_acknowledged = false;
  bool cancel_unanswered = false;  // was told to try again, and has given up
};

class Rows;

class Simulation {
 public:
  Simulation(const Shops& shops, const Settings& settings)
      : shops_(shops), settings_(settings), dice_(Mix(settings.seed)) {}

  Outcome Run();

 private:
  friend class Rows;
  using Action = std::function<void()>;

  // --- time
  void At(int64_t delay_us, Action action) {
    events_.push({now_us_ + std::max<int64_t>(delay_us, 0), ++event_number_, std::move(action)});
  }
  // Not when the process has died meanwhile.
  void AtNode(Node& node, int64_t delay_us, Action action) {
    At(delay_us, [&node, generation = node.generation, action = std::move(action)] {
      if (node.alive && node.generation == generation) action();
    });
  }
  int64_t Latency(uint64_t key) { return dice_.Between("latency", key, 100, 3000); }
  int64_t ClockOf(const Node& node) const { return now_us_ + node.clock_offset_us; }

  // --- chance
  bool Strikes(Fault fault, uint64_t key, const std::function<std::string()>& what);
  void Struck(Fault fault, uint32_t id) {
    outcome_.faults.push_back({fault, id});
    ++outcome_.fault_counts[static_cast<int>(fault)];
    Note(id);
    if (settings_.on_fault) settings_.on_fault(outcome_.faults.back());
  }
  double Rate(Fault fault) const { return rates_[static_cast<int>(fault)]; }

  // --- telling
  template <class... Parts>
  void Tell(const Parts&... parts) {
    if (!settings_.tell) return;
    const int64_t t = now_us_ - kStart_us;
    settings_.tell(
        absl::StrCat(absl::StrFormat("%10.3f  ", static_cast<double>(t) / 1e6), parts...));
  }
  void Note(uint64_t what) {
    outcome_.trace_hash = Mix(outcome_.trace_hash ^ what, static_cast<uint64_t>(now_us_));
  }
  void Violate(std::string text) {
    Tell("VIOLATED: ", text);
    outcome_.violations.push_back(std::move(text));
    stop_ = true;
  }

  // --- setting up
  void Draw();
  void MakeContexts();
  void Setup(const std::string& context, const Message& request);
  void MakeGoods();
  void PlanOrders();
  void PlanGoods();
  void PlanFaults();

  // --- contexts
  int ContextIndex(absl::string_view name) const;
  Node* LiveNode(int context, uint64_t key);
  Node& AnyNode(int context);
  void StartNode(Node& node);
  void Crash(Node& node, const std::string& when);
  void Enqueue(Node& node, std::unique_ptr<Item> item);
  void Pump(Node& node);
  void BeginTurn(Node& node);
  void CommitTurn(Node& node);
  bool WriteTurn(Node& node);
  void FinishTurn(Node& node);
  void Rerun(Node& node, int64_t delay_us);
  struct Finished;
  void HandOut(Node& node, Finished& finished);
  void MakeCall(Node& node, flow::Call call);
  void PlanPoll(Node& node);
  void Poll(Node& node);
  void Look(Node& node, Turn& turn);

  // --- calls
  void Rpc(const std::string& method, std::string payload, const std::string& tag,
           const std::string& uuid, int64_t timeout_us, std::function<void(RpcResult)> done);
  void Arrive(const std::shared_ptr<Pending>& pending, const std::string& method,
              const std::string& payload, const std::string& tag, const std::string& uuid,
              int64_t timeout_us, bool answer_is_lost);
  void End(const std::shared_ptr<Pending>& pending, RpcResult result) {
    if (std::exchange(pending->ended, true)) return;
    pending->done(std::move(result));
  }
  static RpcResult Unavailable(absl::string_view why) {
    RpcResult result;
    result.status.set_code(google::rpc::UNAVAILABLE);
    result.status.set_message(std::string(why));
    return result;
  }

  // --- bus and relay
  void Publish(Node& node, const OutboxRow& row, int64_t incarnation, std::string id, uint64_t key,
               std::function<void(absl::StatusOr<int64_t>)> done);
  void Store(const OutboxRow& row, int stream, uint64_t key);
  void Deliver(int consumer, int64_t created_ns, uint64_t seq, bool in_turn);
  void Take(Node& node, int consumer, std::shared_ptr<const BusMessage> message);
  void Ack(int consumer, std::shared_ptr<const BusMessage> message);
  void BusUp();
  void RelayPump(Node& node);
  void RelayStored(Node& node, int64_t incarnation, int64_t seq, const char* stream,
                   absl::StatusOr<int64_t> stored);
  void PlanCompare(Node& node, int64_t delay_us);
  void Compare(Node& node);
  void Adopt(Node& node, int64_t epoch);
  void MendConsumers();
  void PlanSave(Node& node);
  void Save(Node& node);
  void TakeOver(Node& node);
  void Resend(const flow::Resend& resend);

  // --- people
  void Place(Buyer& buyer);
  void Cancel(Buyer& buyer, bool is_stranger);
  bool TryAgainAtRest();
  void ChangePrice(const std::string& product_id, int64_t minor_units);
  void People(const Node& node, const flow::Table& table, const std::string& key,
              const Message& row);
  void Act(const std::string& who, const std::string& method, const Message& request,
           int64_t delay_us, int tries_left = kBuyerTriesMax);

  // --- properties
  void RunToRest();
  std::vector<std::string> Unsettled();
  void CheckEnd();

  const Shops& shops_;
  const Settings& settings_;
  Dice dice_;
  Outcome outcome_;
  bool stop_ = false;

  struct Event {
    int64_t time_us;
    int64_t number;
    Action action;
  };
  struct Later {
    bool operator()(const Event& a, const Event& b) const {
      return std::tie(a.time_us, a.number) > std::tie(b.time_us, b.number);
    }
  };
  std::priority_queue<Event, std::vector<Event>, Later> events_;
  int64_t event_number_ = 0;
  int64_t now_us_ = kStart_us;
  int64_t horizon_us_ = 0;   // when the last order comes, and faults end
  int64_t last_act_us_ = 0;  // when the last person does something
  std::array<double, kFaultCount> rates_ = {};
  absl::flat_hash_map<uint64_t, uint32_t> chances_;

  std::vector<std::unique_ptr<Database>> databases_;  // by context
  std::vector<std::unique_ptr<Node>> nodes_;
  uint64_t next_ticket_ = 1;

  bool bus_down_ = false;
  int64_t connection_ = 1;  // grows whenever the bus comes back
  Stream streams_[3];
  std::vector<Consumer> consumers_;
  int64_t resends_ = 0;

  std::vector<std::unique_ptr<Buyer>> buyers_;
  // Of each product: what there was when it was made, and what has come and gone by hand since.
  std::map<std::string, int64_t> stock_;
  std::map<std::string, std::vector<std::string>> products_;  // by storefront
  absl::flat_hash_set<std::string> seen_;                     // what people have noticed
  // The events that a view has to show: by order, the last version of each "<source>/<resource>".
  std::map<std::string, std::map<std::string, int64_t>> told_;
  absl::flat_hash_set<std::string> shown_types_;
  std::map<std::string, std::set<int>> said_no_;  // which of an order's cancels somebody refused
  bool at_rest_ = false;  // the house is whole, and nobody may be told to try again
};

// ---------------------------------------------------------------- chance

bool Simulation::Strikes(Fault fault, uint64_t key, const std::function<std::string()>& what) {
  const double rate = Rate(fault);
  if (rate <= 0 || now_us_ > horizon_us_) return false;
  const uint64_t purpose = Mix(static_cast<uint64_t>(fault) + 1, key);
  const uint64_t draw = Mix(Mix(settings_.seed, purpose), ++chances_[purpose]);
  if (static_cast<double>(draw >> 11) * 0x1p-53 >= rate) return false;
  const auto id = static_cast<uint32_t>(Mix(draw) >> 32);
  if (settings_.only_faults.has_value() && !settings_.only_faults->contains(id)) return false;
  Struck(fault, id);
  if (settings_.tell) Tell("  !! ", FaultName(fault), ": ", what());
  return true;
}

// ---------------------------------------------------------------- setting up

void Simulation::Draw() {
  horizon_us_ = kStart_us + dice_.Spread("horizon", 0, 2 * kSecond, 20 * kMinute);
  if (settings_.no_faults) return;
  // Each kind is off in half of the seeds, and from rare to frequent in the others.
  for (int i = 0; i < kFaultCount; ++i) {
    const auto fault = static_cast<Fault>(i);
    if (!settings_.faults.empty() && !settings_.faults.contains(fault)) continue;
    if (settings_.faults.empty() && dice_.Chance("off", i, 0.5)) continue;
    rates_[i] = static_cast<double>(dice_.Spread("rate", i, 5, 300)) / 1000;
    if (fault == Fault::kCrash) rates_[i] /= 4;
  }
}

int Simulation::ContextIndex(absl::string_view name) const {
  for (int i = 0; i < static_cast<int>(std::size(kContexts)); ++i) {
    if (kContexts[i] == name) return i;
  }
  return -1;
}

Node& Simulation::AnyNode(int context) {
  for (auto& node : nodes_) {
    if (node->context == context) return *node;
  }
  GK_CHECK(false) << context;
  return *nodes_[0];
}

Node* Simulation::LiveNode(int context, uint64_t key) {
  std::vector<Node*> alive;
  for (auto& node : nodes_) {
    if (node->context == context && node->alive) alive.push_back(node.get());
  }
  if (alive.empty()) return nullptr;
  if (alive.size() == 1) return alive[0];
  return alive[dice_.Draw("replica", key) % alive.size()];
}

void Simulation::MakeContexts() {
  for (Stream& stream : streams_) stream.created_ns = now_us_ * 1000;
  std::map<std::string, const flow::Plan*> current;
  for (const Shops::Shop& shop : shops_.all()) {
    current[shop.id] = shop.plans[dice_.Draw("plan", HashOf(shop.id)) % shop.plans.size()].get();
  }
  const bool has_replicas = dice_.Chance("replicas", 0, 0.3);
  for (int context = 0; context < static_cast<int>(std::size(kContexts)); ++context) {
    const std::string name = kContexts[context];
    const int count = has_replicas && dice_.Chance("replicas", context + 1, 0.4) ? 2 : 1;
    for (int replica = 0; replica < count; ++replica) {
      auto node = std::make_unique<Node>();
      node->id = static_cast<int>(nodes_.size()) + 1;
      node->context = context;
      node->name = replica == 0 ? name : absl::StrCat(name, "#", replica + 1);
      node->turn_items_max = static_cast<int>(dice_.Spread("turn", node->id, 1, 512));
      if (name == "order") {
        node->book = std::make_unique<NodeBook>(shops_);
        node->book->current = current;
        node->own = order::MakeOrderContext(node->book.get());
      } else if (name == "assignment") {
        node->dealers = std::make_unique<assignment::DealerIndex>();
        node->own = assignment::MakeAssignmentContext(node->dealers.get());
      }
      node->rules = name == "cart"           ? &cart::CartContext()
                    : name == "catalog"      ? &catalog::CatalogContext()
                    : name == "delivery"     ? &delivery::DeliveryContext()
                    : name == "notification" ? &notification::NotificationContext()
                    : name == "payment"      ? &payment::PaymentContext()
                    : name == "store"        ? &store::StoreContext()
                    : name == "view"         ? &view::ViewContext()
                                             : node->own.get();
      node->runner = std::make_unique<flow::TurnRunner>(*node->rules, kItemRetriesMax);
      if (replica == 0) {
        databases_.push_back(std::make_unique<Database>(*node->rules));
        consumers_.push_back({context, 0, absl::StrCat("gaekju.command.", name), {}});
        if (node->rules->on_result) {
          consumers_.push_back({context, 1, absl::StrCat("gaekju.answer.", name), {}});
        }
        if (!node->rules->events.empty()) consumers_.push_back({context, 2, "", {}});
      }
      node->db = databases_[context].get();
      nodes_.push_back(std::move(node));
    }
  }
  for (const auto& handler : view::ViewContext().events) {
    // A notice is shown once, whatever came before it.
    if (handler->name() != notification::v1::NoticeSent::descriptor()->full_name())
      shown_types_.insert(handler->name());
  }
  for (auto& node : nodes_) StartNode(*node);
}

// One request before anything else happens.
void Simulation::Setup(const std::string& context, const Message& request) {
  Node& node = AnyNode(ContextIndex(context));
  const flow::Handler* handler = nullptr;
  for (const auto& known : node.rules->handlers) {
    if (known->request().GetDescriptor() == request.GetDescriptor()) handler = known.get();
  }
  GK_CHECK(handler != nullptr) << request.GetTypeName();
  auto item = std::make_unique<Item>();
  item->handler = handler;
  item->message.reset(request.New());
  item->message->CopyFrom(request);
  node.items.push_back(std::move(item));
  node.turn = std::make_unique<Turn>(now_us_);
  node.db->Load(node.runner->Keys(node.items), node.turn.get());
  node.runner->Handle(node.items, *node.turn);
  GK_CHECK(node.items[0]->answer.kind == Answer::Kind::kDone)
      << node.items[0]->answer.status.ShortDebugString();
  GK_CHECK(WriteTurn(node));
  node.items.clear();
  node.turn = nullptr;
}

void Simulation::MakeGoods() {
  for (const Shops::Shop& shop : shops_.all()) {
    const uint64_t key = HashOf(shop.id);
    const int64_t count = dice_.Between("products", key, 1, 3);
    for (int i = 1; i <= count; ++i) {
      catalog::v1::CreateProductRequest product;
      product.set_product_id(absl::StrCat(shop.id, "-", i));
      product.set_display_name(absl::StrCat("P", i));
      product.mutable_unit_price()->set_currency_code(shop.plans[0]->currency_code);
      product.mutable_unit_price()->set_minor_units(dice_.Between("price", Mix(key, i), 1, 50) *
                                                    100);
      // Often less than is asked for.
      product.set_available_count(dice_.Spread("stock", Mix(key, i), 1, 60) -
                                  dice_.Between("none", Mix(key, i), 0, 1));
      Setup("catalog", product);
      stock_[product.product_id()] = product.available_count();
      products_[shop.id].push_back(product.product_id());
      store::v1::RegisterItemRequest item;
      item.set_storefront(shop.id);
      item.set_product_id(product.product_id());
      Setup("store", item);
    }
    for (int64_t i = dice_.Between("dealers", key, 1, 5); i > 0; --i) {
      assignment::v1::CreateDealerRequest dealer;
      dealer.set_dealer_id(absl::StrCat(shop.id, "-d", i));
      dealer.set_storefront(shop.id);
      dealer.set_agency_name(absl::StrCat("A", i));
      dealer.mutable_location()->set_latitude(
          35 + static_cast<double>(dice_.Between("place", key, 0, 30)) / 10);
      dealer.mutable_location()->set_longitude(
          127 + static_cast<double>(dice_.Between("place", key, 0, 20)) / 10);
      dealer.set_capacity(dice_.Between("capacity", Mix(key, i), 1, 8));
      Setup("assignment", dealer);
    }
  }
}

void Simulation::PlanOrders() {
  const int count = settings_.order_count > 0 ? settings_.order_count
                                              : static_cast<int>(dice_.Spread("orders", 0, 1, 40));
  const int shop_count =
      static_cast<int>(dice_.Between("shops", 0, 1, static_cast<int64_t>(shops_.all().size())));
  const size_t first_shop = dice_.Draw("shops", 1);
  const bool is_rush = dice_.Chance("rush", 0, 0.3);  // all at once
  for (int i = 0; i < count; ++i) {
    if (settings_.only_orders.has_value() && !settings_.only_orders->contains(i)) continue;
    const uint64_t key = Mix(0x6f72646572, static_cast<uint64_t>(i));
    buyers_.push_back(std::make_unique<Buyer>());
    Buyer& buyer = *buyers_.back();
    buyer.number = i;
    buyer.name = absl::StrCat("o", i);
    const Shops::Shop& shop =
        shops_.all()[(first_shop + dice_.Draw("shop", key) % shop_count) % shops_.all().size()];
    buyer.shop = shop.id;
    order::v1::PlaceOrderRequest& request = buyer.request;
    request.set_storefront(shop.id);
    request.set_request_id(absl::StrCat("r-", buyer.name));
    request.set_customer_id(absl::StrCat("c", i % 7));
    request.set_customer_name(buyer.name);
    request.set_delivery_address("Seoul");
    const auto& products = products_[shop.id];
    int64_t total = 0;
    // The first is the hot one.
    const size_t product =
        dice_.Chance("hot", key, 0.6) ? 0 : dice_.Draw("product", key) % products.size();
    for (size_t line = 0; line < products.size(); ++line) {
      if (line != product && !dice_.Chance("more", key, 0.2)) continue;
      auto* item = request.add_lines();
      item->set_product_id(products[line]);
      item->set_quantity(static_cast<int>(
          dice_.Between("quantity", key, 1, dice_.Chance("many", key, 0.2) ? 5 : 1)));
      const auto row = databases_[ContextIndex("catalog")]->Find<catalog::v1::Product>(
          catalog::kProducts, products[line]);
      total += row->unit_price().minor_units() * item->quantity();
    }
    const double card = static_cast<double>(dice_.Between("card", key, 0, 99));
    request.set_payment_method(card < 10 ? "card-declined" : card < 25 ? "" : "card");
    const bool needs_total = std::any_of(
        shop.plans[0]->inputs.begin(), shop.plans[0]->inputs.end(),
        [](const flow::PlanInput& input) { return input.field->name() == "expected_total"; });
    if (needs_total || dice_.Chance("total", key, 0.3)) {
      request.mutable_expected_total()->set_currency_code(shop.plans[0]->currency_code);
      request.mutable_expected_total()->set_minor_units(
          dice_.Chance("wrong", key, 0.1) ? total + 100 : total);
    }
    if (dice_.Chance("where", key, 0.8)) {
      request.mutable_delivery_location()->set_latitude(
          35 + static_cast<double>(dice_.Between("where", key, 0, 30)) / 10);
      request.mutable_delivery_location()->set_longitude(
          127 + static_cast<double>(dice_.Between("where", key, 0, 20)) / 10);
    }
    buyer.cancel_count =
        dice_.Chance("cancels", key, 0.45) ? (dice_.Chance("twice", key, 0.3) ? 2 : 1) : 0;
    outcome_.orders.push_back(i);
    ++outcome_.order_count;
    const int64_t start = is_rush ? dice_.Between("start", key, 0, 5 * kMillisecond)
                                  : dice_.Between("start", key, 0, horizon_us_ - kStart_us);
    At(start, [this, &buyer] { Place(buyer); });
  }
  last_act_us_ = horizon_us_;
  PlanGoods();
}

// What the sellers do meanwhile.
void Simulation::PlanGoods() {
  const bool has_changes = dice_.Chance("changes", 0, 0.5);
  if (!has_changes) return;
  for (const auto& [product_id, made] : stock_) {
    const uint64_t key = HashOf(product_id);
    for (int64_t i = dice_.Between("deliveries", key, 0, 2); i > 0; --i) {
      catalog::v1::AdjustStockRequest change;
      change.set_product_id(product_id);
      change.set_request_id(absl::StrCat("change-", i));
      const int64_t count = dice_.Spread("came", key, 1, 20);
      change.set_delta_count(dice_.Chance("taken", key, 0.3) ? -count : count);
      Act(absl::StrCat("the seller of ", product_id),
          "gaekju.catalog.v1.CatalogService.AdjustStock", change,
          dice_.Between("comes", key, 0, horizon_us_ - kStart_us));
    }
    for (int64_t i = dice_.Between("prices", key, 0, 2); i > 0; --i) {
      const int64_t minor_units = dice_.Between("price", Mix(key, 7), 1, 50) * 100;
      At(dice_.Between("dearer", key, 0, horizon_us_ - kStart_us),
         [this, product_id = product_id, minor_units] { ChangePrice(product_id, minor_units); });
    }
  }
}

// By hand, in the catalog's table: no request changes a price.
void Simulation::ChangePrice(const std::string& product_id, int64_t minor_units) {
  constexpr int kHand = -1;  // an owner of locks that is no node
  Database& db = *databases_[ContextIndex("catalog")];
  const std::vector<RowKey> keys = {{&catalog::kProducts, product_id}};
  if (!db.Lock(keys, kHand)) {
    return At(kMillisecond, [=, this] { ChangePrice(product_id, minor_units); });
  }
  Turn turn(now_us_);
  db.Load(keys, &turn);
  auto& product = turn.Edit<catalog::v1::Product>(catalog::kProducts, product_id);
  product.mutable_unit_price()->set_minor_units(minor_units);
  GK_CHECK(db.Commit(turn, db.NewIncarnation(), {}).ok());
  db.Unlock(kHand);
  Tell(product_id, " costs ", minor_units, " from now on");
}

void Simulation::PlanFaults() {
  const int64_t length = horizon_us_ - kStart_us;
  auto plan = [&](Fault fault, int count_max, std::function<void(uint64_t)> strike) {
    if (Rate(fault) <= 0) return;
    const auto kind = static_cast<uint64_t>(fault);
    const int64_t count = dice_.Between("count", kind, 1, count_max);
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t key = Mix(kind, static_cast<uint64_t>(i));
      const auto id = static_cast<uint32_t>(Mix(Mix(settings_.seed, key), 0x7075) >> 32);
      if (settings_.only_faults.has_value() && !settings_.only_faults->contains(id)) continue;
      At(dice_.Between("when", key, 0, length), [this, fault, id, key, strike] {
        Struck(fault, id);
        strike(key);
      });
    }
  };
  auto take_bus_down = [this](uint64_t key, const char* what, std::function<void()> damage) {
    if (bus_down_) return;
    bus_down_ = true;
    Tell("  !! the bus goes down", what);
    damage();
    At(dice_.Spread("down", key, 100 * kMillisecond, 2 * kMinute), [this] { BusUp(); });
  };
  plan(Fault::kBusDown, 3, [=](uint64_t key) { take_bus_down(key, "", [] {}); });
  plan(Fault::kWipe, 2, [=, this](uint64_t key) {
    take_bus_down(key, ", and forgets everything", [this] {
      for (Stream& stream : streams_) stream = {};
      for (Consumer& consumer : consumers_) {
        consumer.pending.clear();
        consumer.delivered_seq = 0;
      }
    });
  });
  plan(Fault::kRollback, 2, [=, this](uint64_t key) {
    take_bus_down(key, ", and forgets its newest messages", [this, key] {
      for (int i = 0; i < 3; ++i) {
        const int64_t last_seq = streams_[i].last_seq;
        streams_[i].last_seq -= std::min(last_seq, dice_.Spread("rollback", Mix(key, i), 1, 200));
        streams_[i].msg_ids.resize(streams_[i].last_seq);
        // Of what is lost, the duplicate window still knows what relays have put down as published:
        // only a new epoch brings that back. (nats-server itself makes its window anew from what it
        // has; this is as bad as it could be.)
        absl::erase_if(streams_[i].ids, [&](const auto& id) {
          const Stream::Known& known = id.second;
          if (known.seq <= streams_[i].last_seq) return false;
          const auto log = known.db->outbox.find(known.incarnation);
          return log == known.db->outbox.end() || log->second.published_seq < known.row_seq;
        });
        for (Consumer& consumer : consumers_) {
          if (consumer.stream != i) continue;
          consumer.pending.erase(
              consumer.pending.upper_bound(static_cast<uint64_t>(streams_[i].last_seq)),
              consumer.pending.end());
          // The server may know how far the consumer was, and not what it was given.
          const bool is_ahead = dice_.Chance("ahead", Mix(key, Mix(i, consumer.context)), 0.5);
          consumer.delivered_seq = is_ahead ? last_seq : 0;
        }
      }
    });
  });
  plan(Fault::kCrash, 6, [this](uint64_t key) {
    Node& node = *nodes_[dice_.Draw("who", key) % nodes_.size()];
    if (node.alive) Crash(node, "between turns");
  });
  plan(Fault::kClock, 4, [this](uint64_t key) {
    Node& node = *nodes_[dice_.Draw("who", key) % nodes_.size()];
    const int64_t jump = dice_.Spread("jump", key, kMillisecond, 10 * kMinute);
    node.clock_offset_us += dice_.Chance("back", key, 0.5) ? -jump : jump;
    Tell("  !! the clock of ", node.name, " is off by ", node.clock_offset_us / kMillisecond,
         " ms");
    if (node.alive) PlanPoll(node);
  });
  plan(Fault::kRevision, 3, [this](uint64_t key) {
    const Shops::Shop& shop = shops_.all()[dice_.Draw("which", key) % shops_.all().size()];
    const flow::Plan* next = shop.plans[dice_.Draw("plan", key) % shop.plans.size()].get();
    for (auto& node : nodes_) {
      if (node->book == nullptr) continue;
      At(dice_.Between("reads", key, 0, 3 * kSecond), [this, &node, next, id = shop.id] {
        Tell("  !! ", node->name, " reads revision ", next->revision, " of ", id);
        node->book->current[id] = next;
      });
    }
  });
}

// ---------------------------------------------------------------- contexts

void Simulation::StartNode(Node& node) {
  node.alive = true;
  node.incarnation = node.db->NewIncarnation();
  node.db->outbox[node.incarnation].owner = node.id;
  node.relay = {};
  node.relay.epoch = node.db->epoch;
  node.relay.logs[node.incarnation];
  node.breakers.clear();
  node.last_now_us = 0;
  if (node.dealers != nullptr) {
    for (const auto& [key, row] : node.db->Rows(assignment::kDealers)) {
      assignment::v1::Dealer dealer;
      GK_CHECK(dealer.ParseFromString(row.body));
      node.dealers->Put(assignment::DealerIndex::RowOf(dealer));
    }
  }
  PlanCompare(node, dice_.Between("connect", node.id, 0, 50 * kMillisecond));
  AtNode(node, kTakeoverInterval, [this, &node] { TakeOver(node); });
  PlanPoll(node);
}

void Simulation::Crash(Node& node, const std::string& when) {
  Tell("  !! ", node.name, " dies ", when);
  node.alive = false;
  ++node.generation;
  node.db->Unlock(node.id);
  node.queue.clear();
  node.waiters.TakeIf([](const Item&) { return true; });
  node.items.clear();
  node.turn = nullptr;
  node.busy = false;
  node.timer_keys.clear();
  node.poll_at_us = 0;
  for (auto& pending : std::exchange(node.open, {})) {
    if (!pending->ended)
      At(Latency(node.id), [this, pending] { End(pending, Unavailable("the connection broke")); });
  }
  for (auto& [incarnation, log] : node.db->outbox) {
    if (log.owner == node.id) log.owner = 0;
  }
  node.relay = {};
  for (auto& other : nodes_) {
    if (other->context != node.context || !other->alive) continue;
    AtNode(*other, kTakeoverInterval, [this, &other] { TakeOver(*other); });
  }
  At(dice_.Spread("restart", node.id, 50 * kMillisecond, 40 * kSecond), [this, &node] {
    Tell(node.name, " starts again");
    StartNode(node);
    Pump(node);
  });
}

void Simulation::Enqueue(Node& node, std::unique_ptr<Item> item) {
  node.queue.push_back(std::move(item));
  Pump(node);
}

void Simulation::Pump(Node& node) {
  if (!node.alive || node.busy || node.queue.empty()) return;
  node.busy = true;
  AtNode(node, dice_.Between("pump", node.id, 20, 200), [this, &node] {
    while (!node.queue.empty() && static_cast<int>(node.items.size()) < node.turn_items_max) {
      node.items.push_back(std::move(node.queue.front()));
      node.queue.pop_front();
    }
    BeginTurn(node);
  });
}

void Simulation::BeginTurn(Node& node) {
  const int64_t clock_us = ClockOf(node);
  // As TurnLoop::DropExpired.
  Items expired;
  for (auto& item : node.items) {
    if (item->deadline_us != 0 && item->deadline_us - kAnswerTravel <= clock_us)
      expired.push_back(std::move(item));
  }
  node.items.erase(std::remove(node.items.begin(), node.items.end(), nullptr), node.items.end());
  for (auto& item : expired) {
    item->done(flow::Refuse(google::rpc::UNAVAILABLE, node.rules->service, "OVERLOADED",
                            "not decided before the deadline"));
  }
  if (node.items.empty()) {
    node.busy = false;
    return Pump(node);
  }
  const std::vector<RowKey> keys = node.runner->Keys(node.items);
  if (!node.db->Lock(keys, node.id)) return Rerun(node, dice_.Between("lock", node.id, 100, 2000));
  node.last_now_us = std::max(node.last_now_us, clock_us);
  node.turn = std::make_unique<Turn>(node.last_now_us);
  node.db->Load(keys, node.turn.get());
  node.runner->Handle(node.items, *node.turn);
  uint64_t key = node.context;
  for (const auto& item : node.items) key ^= HashOf(item->tag);
  int64_t took_us = dice_.Between("commit", key, 200, 5000);
  if (Strikes(Fault::kSlow, key, [&] { return absl::StrCat("a turn of ", node.name); })) {
    took_us += dice_.Spread("slow", key, 10 * kMillisecond, 30 * kSecond);
  }
  AtNode(node, took_us, [this, &node] { CommitTurn(node); });
}

void Simulation::Rerun(Node& node, int64_t delay_us) {
  node.db->Unlock(node.id);
  node.turn = nullptr;
  AtNode(node, delay_us, [this, &node] { BeginTurn(node); });
}

void Simulation::CommitTurn(Node& node) {
  uint64_t key = node.context;
  for (const auto& item : node.items) key ^= HashOf(item->tag);
  const auto who = [&] { return absl::StrCat(node.name, ", deciding ", node.items[0]->tag); };
  if (Strikes(Fault::kCrash, Mix(key, 1), who)) return Crash(node, "before its commit");
  if (Strikes(Fault::kAbort, key, who)) return Rerun(node, dice_.Between("rerun", key, 100, 50000));
  if (Strikes(Fault::kAmbiguous, key, who)) {
    if (dice_.Chance("happened", key, 0.5)) {
      Tell("     and it did happen");
      WriteTurn(node);
    }
    // A new connection, and so a new incarnation; the old one's rows are for whoever takes it over.
    node.db->outbox[node.incarnation].owner = 0;
    node.relay.logs.erase(node.incarnation);
    node.incarnation = node.db->NewIncarnation();
    node.db->outbox[node.incarnation].owner = node.id;
    node.relay.logs[node.incarnation];
    AtNode(node, kTakeoverInterval, [this, &node] { TakeOver(node); });
    return Rerun(node, dice_.Between("reconnect", key, 20 * kMillisecond, 2 * kSecond));
  }
  if (!WriteTurn(node)) return Rerun(node, dice_.Between("conflict", key, 100, 5000));
  if (stop_) return;
  if (Strikes(Fault::kCrash, Mix(key, 2), who))
    return Crash(node, "after its commit, before any answer");
  FinishTurn(node);
}

// False when another replica has made one of the rows meanwhile.
bool Simulation::WriteTurn(Node& node) {
  Turn& turn = *node.turn;
  std::vector<OutboxRow> rows;
  if (!turn.envelopes().empty()) {
    auto& log = node.db->outbox[node.incarnation];
    const std::string id_prefix = absl::StrCat(node.incarnation, "-", log.rows.size() + 1);
    for (auto& message : runtime::EncodeTurn(node.rules->name, turn.envelopes(), id_prefix)) {
      Note(HashOf(message.body));
      OutboxRow& row = rows.emplace_back();
      row.subject = std::move(message.subject);
      row.headers = std::move(message.headers);
      row.resources = std::move(message.resources);
      row.body = std::move(message.body);
    }
  }
  if (!node.db->Commit(turn, node.incarnation, std::move(rows)).ok()) return false;
  ++outcome_.turn_count;
  outcome_.item_count += static_cast<int64_t>(node.items.size());
  for (const auto& item : node.items) {
    Note(HashOf(item->tag));
    if (!settings_.tell || item->tag.empty()) continue;
    const char* said = "";
    switch (item->answer.kind) {
      case Answer::Kind::kDone:
        said = item->kind == Item::Kind::kRequest || item->kind == Item::Kind::kCommand ? ": done"
                                                                                        : "";
        break;
      case Answer::Kind::kRefused:
        said = ": refused, ";
        break;
      case Answer::Kind::kPending:
        said = ": a person will answer";
        break;
      case Answer::Kind::kWait:
        said = ": waits";
        break;
      case Answer::Kind::kRetry:
        said = ": looks at more rows";
        break;
    }
    Tell(node.name, " decides ", item->tag, said,
         item->answer.kind == Answer::Kind::kRefused ? flow::ReasonOf(item->answer.status) : "");
  }
  Look(node, turn);
  PlanPoll(node);
  return true;
}

// What holds in every state, and what people see.
void Simulation::Look(Node& node, Turn& turn) {
  for (const flow::Envelope& envelope : turn.envelopes()) {
    if (envelope.kind != flow::Envelope::Kind::kEvent) continue;
    if (envelope.type == catalog::v1::StockAdjusted::descriptor()->full_name()) {
      catalog::v1::StockAdjusted adjusted;
      GK_CHECK(adjusted.ParseFromString(envelope.payload));
      stock_[adjusted.product().product_id()] += adjusted.delta_count();
    }
    if (envelope.order_id.empty() || !shown_types_.contains(envelope.type)) continue;
    int64_t& version =
        told_[envelope.order_id][absl::StrCat(node.rules->name, "/", envelope.resource)];
    version = std::max(version, envelope.version);
  }
  std::map<std::string, int64_t> sums;
  for (const RowKey& key : turn.order()) {
    const Turn::Row& row = turn.row(key);
    if (!row.dirty) continue;
    if (key.table == &payment::kLedgerEntries) {
      const auto& entry = static_cast<const payment::v1::LedgerEntry&>(*row.body);
      sums[entry.transaction_id()] += entry.amount();
    } else if (key.table == &order::kOrders) {
      const auto& record = static_cast<const OrderRecord&>(*row.body);
      const flow::Plan* plan =
          shops_.Find(record.order().storefront(), record.order().storefront_revision());
      google::rpc::Status refusal;
      if (refusal.ParseFromString(record.saga().cancel_refusal()) && refusal.code() != 0 &&
          refusal.code() != google::rpc::UNAVAILABLE)
        said_no_[key.key].insert(record.saga().cancel_round());
      const std::string wrong = plan == nullptr ? "" : flow::BrokenSagaRule(*plan, record);
      if (!wrong.empty())
        Violate(absl::StrCat("order ", key.key, " (", Order::State_Name(record.order().state()),
                             "): ", wrong));
    } else if (key.table == &catalog::kProducts) {
      const auto& product = static_cast<const catalog::v1::Product&>(*row.body);
      const auto made = stock_.find(key.key);
      if (product.available_count() < 0 ||
          (made != stock_.end() &&
           product.available_count() + product.reserved_count() != made->second)) {
        Violate(absl::StrCat("of product ", key.key, ", ", product.available_count(),
                             " are left and ", product.reserved_count(), " reserved, of ",
                             made == stock_.end() ? 0 : made->second));
      }
    } else if (key.table == &assignment::kDealers) {
      const auto& dealer = static_cast<const assignment::v1::Dealer&>(*row.body);
      if (dealer.assigned_count() < 0 ||
          (dealer.capacity() > 0 && dealer.assigned_count() > dealer.capacity())) {
        Violate(absl::StrCat("dealer ", key.key, " has ", dealer.assigned_count(),
                             " orders, and room for ", dealer.capacity()));
      }
      for (auto& other : nodes_) {
        if (other->context != node.context) continue;
        // Its own commits are seen at once, those of others when they are polled.
        const auto row_now = assignment::DealerIndex::RowOf(dealer);
        if (other.get() == &node) {
          other->dealers->Put(row_now);
        } else {
          At(dice_.Between("dealers", other->id, 0, kDealerPoll),
             [&other, row_now] { other->dealers->Put(row_now); });
        }
      }
    }
    People(node, *key.table, key.key, *row.body);
  }
  for (const auto& [transaction, sum] : sums) {
    if (sum != 0) Violate(absl::StrCat("the entries of ", transaction, " sum to ", sum));
  }
}

struct Simulation::Finished {
  flow::TurnEnd<Item> end;
  std::vector<flow::Call> calls;
  std::vector<flow::Resend> resends;
  uint64_t key = 0;
};

void Simulation::FinishTurn(Node& node) {
  auto finished = std::make_shared<Finished>();
  for (const auto& item : node.items) finished->key ^= HashOf(item->tag);
  finished->calls = std::move(node.turn->calls());
  finished->resends = std::move(node.turn->resends());
  finished->end = flow::EndTurn(std::move(node.items), std::move(node.turn->resolved()),
                                &node.waiters, [](const Item&) { return false; });
  node.items.clear();
  node.turn = nullptr;
  node.db->Unlock(node.id);
  node.busy = false;
  for (const auto& item : finished->end.timers) node.timer_keys.erase(item->timer_key);
  for (auto it = finished->end.again.rbegin(); it != finished->end.again.rend(); ++it) {
    node.queue.push_front(std::move(*it));
  }
  AtNode(node, 10, [this, &node, finished] { HandOut(node, *finished); });
  Pump(node);
}

// As TurnLoop::HandOut, in its order.
void Simulation::HandOut(Node& node, Finished& finished) {
  RelayPump(node);
  for (auto& [item, answer] : finished.end.answered) item->done(std::move(answer));
  if (Strikes(Fault::kCrash, Mix(finished.key, 3), [&] { return node.name; })) {
    return Crash(node, "after its answers, before its calls and acks");
  }
  for (flow::Call& call : finished.calls) MakeCall(node, std::move(call));
  for (auto& item : finished.end.settled) {
    if (!item->settled) continue;
    if (item->kind == Item::Kind::kEvent && item->answer.kind == Answer::Kind::kRefused) {
      Violate(absl::StrCat(node.name, " can never take ", item->tag, ": ",
                           item->answer.status.message()));
    }
    item->settled(true);
  }
  for (const flow::Resend& resend : finished.resends) {
    const uint64_t key = HashOf(resend.resource);
    if (bus_down_ || Strikes(Fault::kLose, key,
                             [&] { return absl::StrCat("the request for ", resend.resource); }))
      continue;
    At(Latency(key), [this, resend] { Resend(resend); });
  }
}

void Simulation::MakeCall(Node& node, flow::Call call) {
  ++outcome_.call_count;
  const std::string tag =
      absl::StrCat(call.context, ".", Last(call.method), " of ", call.order_id, "/", call.step_id);
  auto done = [this, &node, generation = node.generation, tag, call](RpcResult result) {
    if (!node.alive || node.generation != generation) return;
    auto item = std::make_unique<Item>();
    item->kind = Item::Kind::kResult;
    item->result =
        flow::ResultOfCall(call, result.status, result.pending, std::move(result.payload));
    item->caller.traceparent = call.traceparent;
    item->tag =
        absl::StrCat("the answer of ", tag,
                     item->result.unreachable
                         ? ": unreachable"
                         : absl::StrCat(": ", flow::v1::Outcome_Name(item->result.outcome)));
    Enqueue(node, std::move(item));
  };
  runtime::Breaker& breaker =
      node.breakers.try_emplace(call.context, runtime::BreakerOptions{}).first->second;
  const auto ticket = breaker.Admit(now_us_);
  if (ticket == 0) return AtNode(node, 1, [done] { done(Unavailable("circuit open")); });
  Rpc(call.method, call.payload, tag, "", call.timeout_us,
      [this, &node, generation = node.generation, &breaker, ticket, done](RpcResult result) {
        if (!node.alive || node.generation != generation) return;
        breaker.Ended(ticket, result.status.code() != google::rpc::UNAVAILABLE, now_us_);
        done(std::move(result));
      });
}

void Simulation::PlanPoll(Node& node) {
  const int64_t due_us = node.db->NextDue();
  if (!node.alive || due_us == 0) return;
  const int64_t due_at_us = due_us - node.clock_offset_us;
  int64_t at_us = std::max(due_at_us, now_us_);
  at_us += kTimerInterval - (at_us + node.id * 7919) % kTimerInterval;
  if (node.poll_at_us != 0 && node.poll_at_us <= at_us) return;
  node.poll_at_us = at_us;
  AtNode(node, at_us - now_us_, [this, &node, at_us] {
    if (node.poll_at_us != at_us) return;
    node.poll_at_us = 0;
    Poll(node);
  });
}

void Simulation::Poll(Node& node) {
  // Parked callers whose time has passed.
  const int64_t clock_us = ClockOf(node);
  for (const std::string& key : node.db->Due(clock_us, kTimerKeysMax)) {
    if (!node.timer_keys.insert(key).second) continue;
    auto item = std::make_unique<Item>();
    item->kind = Item::Kind::kTimer;
    item->timer_key = key;
    item->tag = absl::StrCat("that the time of ", key, " has come");
    Enqueue(node, std::move(item));
  }
  PlanPoll(node);
}

// ---------------------------------------------------------------- calls

void Simulation::Rpc(const std::string& method, std::string payload, const std::string& tag,
                     const std::string& uuid, int64_t timeout_us,
                     std::function<void(RpcResult)> done) {
  const uint64_t key = HashOf(tag);
  auto pending = std::make_shared<Pending>();
  pending->done = std::move(done);
  At(timeout_us, [this, pending] {
    if (pending->ended) return;
    // The caller hangs up.
    if (pending->node >= 0) {
      Node& node = *nodes_[pending->node];
      if (node.alive && node.generation == pending->generation) node.waiters.Take(pending->ticket);
    }
    End(pending, Unavailable("no answer before the deadline"));
  });
  bool answer_is_lost = false;
  if (Strikes(Fault::kUnreachable, key, [&] { return tag; })) {
    switch (dice_.Draw("how", key) % 3) {
      case 0:
        return At(Latency(key), [this, pending] { End(pending, Unavailable("nobody there")); });
      case 1:
        return;
      default:
        answer_is_lost = true;
    }
  }
  int64_t latency_us = Latency(key);
  if (Strikes(Fault::kLate, key, [&] { return tag; })) {
    latency_us = timeout_us + dice_.Spread("late", key, kMillisecond, 2 * kMinute);
  }
  At(latency_us,
     [this, pending, method, payload = std::move(payload), tag, uuid, timeout_us, answer_is_lost] {
       Arrive(pending, method, payload, tag, uuid, timeout_us, answer_is_lost);
     });
}

void Simulation::Arrive(const std::shared_ptr<Pending>& pending, const std::string& method,
                        const std::string& payload, const std::string& tag, const std::string& uuid,
                        int64_t timeout_us, bool answer_is_lost) {
  const uint64_t key = HashOf(tag);
  auto reply = [this, pending, key, answer_is_lost](RpcResult result) {
    if (answer_is_lost) return;
    At(Latency(key),
       [this, pending, result = std::move(result)]() mutable { End(pending, std::move(result)); });
  };
  // "gaekju.payment.v1.PaymentService.Capture"
  const std::string context = method.substr(7, method.find('.', 7) - 7);
  Node* node = LiveNode(ContextIndex(context), key);
  if (node == nullptr) return reply(Unavailable("nobody there"));
  const flow::Handler* handler = node->runner->FindHandler(method);
  GK_CHECK(handler != nullptr) << method;
  auto item = std::make_unique<Item>();
  item->handler = handler;
  item->message.reset(handler->request().New());
  GK_CHECK(item->message->ParseFromString(payload)) << method;
  RpcResult refusal;
  refusal.status = handler->Validate(*item->message);
  if (refusal.status.code() != 0) return reply(std::move(refusal));
  item->caller.request_uuid = uuid;
  item->deadline_us = ClockOf(*node) + timeout_us;
  item->tag = tag;
  item->ticket = next_ticket_++;
  item->done = [reply](Answer answer) {
    RpcResult result;
    result.status = std::move(answer.status);
    result.pending = answer.kind == Answer::Kind::kPending;
    result.payload = std::move(answer.payload);
    reply(std::move(result));
  };
  pending->node = node->id - 1;
  pending->generation = node->generation;
  pending->ticket = item->ticket;
  node->open.push_back(pending);
  if (node->open.size() > 64) {
    node->open.erase(std::remove_if(node->open.begin(), node->open.end(),
                                    [](const auto& p) { return p->ended; }),
                     node->open.end());
  }
  Enqueue(*node, std::move(item));
}

// ---------------------------------------------------------------- the bus

void Simulation::Publish(Node& node, const OutboxRow& row, int64_t incarnation, std::string id,
                         uint64_t key, std::function<void(absl::StatusOr<int64_t>)> done) {
  ++outcome_.message_count;
  const auto fail = [this, &node, done](int64_t delay_us) {
    AtNode(node, delay_us, [done] { done(absl::UnavailableError("not stored")); });
  };
  const auto what = [&] {
    return absl::StrCat("publishing ", node.name, "'s ", id, " to ", row.subject);
  };
  if (bus_down_) return fail(dice_.Between("outage", key, kMillisecond, 5 * kSecond));
  if (Strikes(Fault::kLose, Mix(key, 1), what)) return fail(5 * kSecond);
  const bool ack_is_lost = Strikes(Fault::kLose, Mix(key, 2),
                                   [&] { return absl::StrCat("the bus's answer to ", what()); });
  AtNode(node, Latency(key),
         [this, &node, row, incarnation, id = std::move(id), key, done, fail, ack_is_lost,
          connection = connection_] {
           if (bus_down_ || connection != connection_)
             return fail(dice_.Between("outage", key, kMillisecond, 5 * kSecond));
           const std::string name = runtime::StreamOf(row.subject);
           const int index = static_cast<int>(
               std::find(std::begin(kStreams), std::end(kStreams), name) - std::begin(kStreams));
           Stream& stream = streams_[index];
           const auto known = stream.ids.find(id);
           int64_t seq;
           if (known != stream.ids.end() && now_us_ - known->second.time_us < kDuplicateWindow) {
             seq = known->second.seq;
           } else {
             seq = ++stream.last_seq;
             stream.ids[id] = {seq, now_us_, node.db, incarnation, row.seq};
             stream.msg_ids.push_back(id);
             Store(row, index, key);
           }
           if (ack_is_lost) return fail(5 * kSecond);
           AtNode(node, Latency(key), [done, seq] { done(seq); });
         });
}

void Simulation::Store(const OutboxRow& row, int index, uint64_t key) {
  auto message = std::make_shared<BusMessage>();
  message->stream = index;
  message->seq = static_cast<uint64_t>(streams_[index].last_seq);
  message->subject = row.subject;
  message->headers = row.headers;
  message->body = row.body;
  message->key = key;
  for (int i = 0; i < static_cast<int>(consumers_.size()); ++i) {
    Consumer& consumer = consumers_[i];
    if (consumer.stream != index ||
        (!consumer.subject.empty() && consumer.subject != row.subject) ||
        streams_[index].last_seq <= consumer.delivered_seq)
      continue;
    if (index != 2 && Strikes(Fault::kLose, Mix(key, 3), [&] {
          return absl::StrCat("a message to ", row.subject, ", for ever");
        }))
      continue;
    consumer.pending[message->seq] = message;
    int64_t delay_us = Latency(key);
    if (Strikes(Fault::kDelay, key, [&] { return absl::StrCat("a message to ", row.subject); })) {
      delay_us += dice_.Spread("delay", key, kMillisecond, kMinute);
    }
    const int64_t created_ns = streams_[index].created_ns;
    At(delay_us, [this, i, created_ns, seq = message->seq] { Deliver(i, created_ns, seq, true); });
    if (Strikes(Fault::kDuplicate, key,
                [&] { return absl::StrCat("a message to ", row.subject); })) {
      At(delay_us + dice_.Spread("again", key, 1, kMinute), [this, i, created_ns, message] {
        Node* node = LiveNode(consumers_[i].context, message->key);
        if (node != nullptr && streams_[message->stream].created_ns == created_ns)
          Take(*node, i, message);
      });
    }
  }
}

// `in_turn`: of the chain that goes on until the message is acknowledged.
void Simulation::Deliver(int index, int64_t created_ns, uint64_t seq, bool in_turn) {
  Consumer& consumer = consumers_[index];
  if (streams_[consumer.stream].created_ns != created_ns) return;
  const auto it = consumer.pending.find(seq);
  if (it == consumer.pending.end()) return;
  const std::shared_ptr<const BusMessage> message = it->second;
  Node* node = bus_down_ ? nullptr : LiveNode(consumer.context, message->key);
  int64_t next_us = kAckWait;
  if (node == nullptr) {
    next_us = kSecond;
  } else if (!Strikes(Fault::kLose, Mix(message->key, 4),
                      [&] { return absl::StrCat("a delivery to ", node->name); })) {
    Take(*node, index, message);
  }
  if (in_turn)
    At(next_us, [this, index, created_ns, seq] { Deliver(index, created_ns, seq, true); });
}

// As Intake::Take.
void Simulation::Take(Node& node, int index, std::shared_ptr<const BusMessage> message) {
  auto envelopes = runtime::DecodeMessage(message->subject, message->headers, message->body);
  if (!envelopes.ok())
    return Violate(absl::StrCat("a dead letter: ", envelopes.status().message()));
  struct Settlement {
    int open = 0;
  };
  auto settlement = std::make_shared<Settlement>();
  settlement->open = static_cast<int>(envelopes->size()) + 1;
  auto settled = [this, &node, generation = node.generation, settlement, index, message](bool) {
    if (--settlement->open > 0 || node.generation != generation) return;
    Ack(index, message);
  };
  for (auto& decoded : *envelopes) {
    flow::Envelope& envelope = decoded.envelope;
    auto item = std::make_unique<Item>();
    item->settled = settled;
    item->caller.traceparent = envelope.traceparent;
    const std::string about =
        absl::StrCat(envelope.order_id, "/", envelope.step_id, envelope.undo ? " (undo)" : "");
    if (envelope.kind == flow::Envelope::Kind::kAnswer) {
      item->kind = Item::Kind::kResult;
      item->result.order_id = envelope.order_id;
      item->result.step_id = envelope.step_id;
      item->result.undo = envelope.undo;
      item->result.outcome = envelope.outcome;
      item->result.payload = std::move(envelope.payload);
      item->tag =
          absl::StrCat("the answer of ", about, ": ", flow::v1::Outcome_Name(envelope.outcome));
      Enqueue(node, std::move(item));
      continue;
    }
    const bool is_command = envelope.kind == flow::Envelope::Kind::kCommand;
    item->handler = is_command ? node.runner->FindHandler(envelope.type)
                               : node.runner->FindEvent(envelope.type);
    if (item->handler == nullptr) {
      if (is_command) Violate(absl::StrCat(node.name, " does not know ", envelope.type));
      settled(true);
      continue;
    }
    item->message.reset(item->handler->request().New());
    GK_CHECK(item->message->ParseFromString(envelope.payload)) << envelope.type;
    if (is_command) {
      item->kind = Item::Kind::kCommand;
      item->caller.reply_to = envelope.reply_to;
      item->order_id = envelope.order_id;
      item->step_id = envelope.step_id;
      item->undo = envelope.undo;
      item->tag = absl::StrCat(Last(envelope.type), " of ", about);
      item->caller.request_uuid = absl::StrCat("u", Mix(HashOf(item->tag)));
    } else {
      item->kind = Item::Kind::kEvent;
      item->tag = absl::StrCat(Last(envelope.type), " ", envelope.resource, "@", envelope.version);
      item->caller.event = {decoded.source,    decoded.id,       envelope.type,   envelope.resource,
                            envelope.order_id, envelope.version, envelope.time_us};
    }
    Enqueue(node, std::move(item));
  }
  settled(true);
}

// An ack of an earlier life of the stream, in which the sequence was another message's, is held
// back (runtime/bus.cc).
void Simulation::Ack(int index, std::shared_ptr<const BusMessage> message) {
  const auto is_pending = [this, index, message] {
    const auto& pending = consumers_[index].pending;
    const auto it = pending.find(message->seq);
    return !bus_down_ && it != pending.end() && it->second == message;
  };
  if (!is_pending()) return;
  if (Strikes(Fault::kLose, Mix(message->key, 5),
              [&] { return absl::StrCat("an ack of ", kContexts[consumers_[index].context]); })) {
    return;
  }
  At(Latency(message->key), [this, index, message, is_pending] {
    if (is_pending()) consumers_[index].pending.erase(message->seq);
  });
}

void Simulation::BusUp() {
  bus_down_ = false;
  ++connection_;
  Tell("the bus is back");
  for (Stream& stream : streams_) {
    if (stream.created_ns == 0) stream.created_ns = now_us_ * 1000;
  }
  for (auto& node : nodes_) {
    if (!node->alive) continue;
    node->relay.is_checked = false;
    PlanCompare(*node, dice_.Between("connect", node->id, 0, 2 * kSecond));
  }
}

// ---------------------------------------------------------------- the relay

void Simulation::RelayPump(Node& node) {
  RelayMemory& relay = node.relay;
  if (!relay.is_checked) return;
  for (auto& [incarnation, log] : relay.logs) {
    const auto& rows = node.db->outbox[incarnation].rows;
    for (; log.next_seq <= static_cast<int64_t>(rows.size()) && relay.in_flight < kInFlightMax;
         ++log.next_seq) {
      const int64_t seq = log.next_seq;
      if (log.in_flight.contains(seq) || log.stored.contains(seq) || seq <= log.published_seq)
        continue;
      const OutboxRow& row = rows[seq - 1];
      const char* stream = runtime::StreamOf(row.subject);
      const bool is_fresh = seq > log.fresh_after;
      log.in_flight[seq] = is_fresh ? relay.positions[stream].last_seq : 0;
      log.fresh_after = std::max(log.fresh_after, seq);
      ++relay.in_flight;
      Publish(node, row, incarnation,
              runtime::OutboxMessageId(node.rules->name, incarnation, seq, relay.epoch),
              Mix(HashOf(row.subject), HashOf(row.body)),
              [this, &node, generation = relay.generation, incarnation = incarnation, seq,
               stream](absl::StatusOr<int64_t> stored) {
                if (node.relay.generation != generation) return;
                RelayStored(node, incarnation, seq, stream, std::move(stored));
              });
    }
  }
}

// As Relay::Core::Stored.
void Simulation::RelayStored(Node& node, int64_t incarnation, int64_t seq, const char* stream,
                             absl::StatusOr<int64_t> stored) {
  RelayMemory& relay = node.relay;
  --relay.in_flight;
  const auto found = relay.logs.find(incarnation);
  if (found == relay.logs.end()) return;
  RelayMemory::Log& log = found->second;
  const auto sent = log.in_flight.find(seq);
  if (sent == log.in_flight.end()) return;
  const int64_t position_at_send = sent->second;
  log.in_flight.erase(sent);
  if (!stored.ok()) {
    log.next_seq = std::min(log.next_seq, seq);
    relay.is_checked = false;
    PlanCompare(node, relay.backoff_us);
    relay.backoff_us = std::min(relay.backoff_us * 2, 2 * kSecond);
    return;
  }
  runtime::StreamPosition& position = relay.positions[stream];
  if (*stored <= position_at_send) {
    const auto lost = relay.lost_after.try_emplace(stream, *stored - 1).first;
    lost->second = std::min(lost->second, *stored - 1);
    relay.is_checked = false;
    PlanCompare(node, 0);
  } else if (*stored > position.last_seq) {
    position.last_seq = *stored;
    position.msg_id = runtime::OutboxMessageId(node.rules->name, incarnation, seq, relay.epoch);
  }
  relay.backoff_us = 20 * kMillisecond;
  log.stored.insert(seq);
  while (!log.stored.empty() && *log.stored.begin() == log.published_seq + 1) {
    ++log.published_seq;
    log.stored.erase(log.stored.begin());
  }
  PlanSave(node);
  RelayPump(node);
}

void Simulation::PlanCompare(Node& node, int64_t delay_us) {
  if (std::exchange(node.relay.compare_is_due, true)) return;
  AtNode(node, delay_us, [this, &node] {
    node.relay.compare_is_due = false;
    Compare(node);
  });
}

// As NatsBus does at every connect, before anything is published over it.
void Simulation::MendConsumers() {
  for (Consumer& consumer : consumers_) {
    const int64_t last_seq = streams_[consumer.stream].last_seq;
    const int64_t ack_floor = consumer.pending.empty()
                                  ? consumer.delivered_seq
                                  : static_cast<int64_t>(consumer.pending.begin()->first) - 1;
    const int64_t start =
        runtime::RestartOfConsumer(consumer.delivered_seq, ack_floor, last_seq, last_seq);
    if (start > 0) consumer.delivered_seq = start - 1;
  }
}

// As Relay::Core::Compare and GoBack.
void Simulation::Compare(Node& node) {
  RelayMemory& relay = node.relay;
  Database& db = *node.db;
  if (bus_down_) return PlanCompare(node, 100 * kMillisecond);
  runtime::StreamPositions known = db.positions;
  if (db.epoch == relay.epoch) runtime::MergePositions(relay.positions, &known);
  MendConsumers();
  runtime::StreamsNow present;
  for (int i = 0; i < 3; ++i)
    present[kStreams[i]] = {streams_[i].created_ns, /*first_seq=*/1, streams_[i].last_seq};
  const runtime::MessageIdAt message_id_at = [this](const std::string& stream,
                                                    int64_t seq) -> absl::StatusOr<std::string> {
    const auto index = std::find(std::begin(kStreams), std::end(kStreams), stream);
    const std::vector<std::string>& msg_ids = streams_[index - std::begin(kStreams)].msg_ids;
    return seq <= static_cast<int64_t>(msg_ids.size()) ? msg_ids[seq - 1] : "";
  };
  const std::string why = *runtime::FindLoss(known, relay.lost_after, present, message_id_at);
  if (!why.empty()) {
    Tell(node.name, " finds that ", why, ", and publishes again");
    for (const auto& [stream, last_seq] : relay.lost_after)
      present[stream].last_seq = std::min(present[stream].last_seq, last_seq);
    std::map<std::string, std::vector<runtime::StreamPosition>> acknowledged;
    for (const auto& [stream, position] : known) acknowledged[stream].push_back(position);
    for (const auto& checkpoint : db.checkpoints) {
      for (const auto& [stream, position] : checkpoint.positions)
        acknowledged[stream].push_back(position);
    }
    const runtime::StreamPositions left =
        *runtime::WhatIsLeft(acknowledged, present, message_id_at);
    db.epoch = runtime::EpochAfterLoss(db.epoch);
    int64_t newest_us = 0;
    for (const auto& checkpoint : db.checkpoints)
      newest_us = std::max(newest_us, checkpoint.time_us);
    std::erase_if(db.checkpoints, [&](const Database::Checkpoint& checkpoint) {
      if (checkpoint.time_us > newest_us - kRollbackMargin) return true;
      for (const auto& [stream, position] : checkpoint.positions) {
        const auto it = left.find(stream);
        if (it == left.end() || it->second.created_ns != position.created_ns ||
            it->second.last_seq < position.last_seq) {
          return true;
        }
      }
      return false;
    });
    for (auto& [incarnation, log] : db.outbox) {
      int64_t seq = 0;
      for (const auto& checkpoint : db.checkpoints) {
        const auto it = checkpoint.published.find(incarnation);
        if (it != checkpoint.published.end()) seq = std::max(seq, it->second);
      }
      if (seq < log.published_seq) {
        log.published_seq = seq;
        log.closed = false;
      }
    }
    db.positions = left;
    relay.positions = left;
    Adopt(node, db.epoch);
    // The others see the epoch when they save their next checkpoint.
    for (auto& other : nodes_) {
      if (other->db == &db && other->alive && other.get() != &node)
        AtNode(*other, kCheckpointInterval, [this, &other] { Save(*other); });
    }
  } else {
    if (db.epoch != relay.epoch) Adopt(node, db.epoch);
    for (const auto& [stream, now] : present) {
      runtime::StreamPosition& mine = relay.positions[stream];
      if (mine.created_ns != now.created_ns) mine = {now.created_ns, 0, ""};
      const auto it = known.find(stream);
      if (it != known.end() && it->second.created_ns == now.created_ns &&
          it->second.last_seq > mine.last_seq)
        mine = it->second;
    }
  }
  relay.is_checked = true;
  TakeOver(node);
  RelayPump(node);
}

void Simulation::Adopt(Node& node, int64_t epoch) {
  RelayMemory& relay = node.relay;
  relay.epoch = epoch;
  ++relay.generation;
  relay.in_flight = 0;
  relay.lost_after.clear();
  for (auto& [incarnation, log] : relay.logs) {
    const int64_t published = node.db->outbox[incarnation].published_seq;
    log = {};
    log.published_seq = published;
    log.next_seq = published + 1;
    log.fresh_after = static_cast<int64_t>(node.db->outbox[incarnation].rows.size());
  }
}

void Simulation::PlanSave(Node& node) {
  if (std::exchange(node.relay.save_is_due, true)) return;
  AtNode(node, kSaveInterval, [this, &node] {
    node.relay.save_is_due = false;
    Save(node);
  });
}

// As Relay::Core::Save and CloseFinished.
void Simulation::Save(Node& node) {
  RelayMemory& relay = node.relay;
  Database& db = *node.db;
  if (db.epoch != relay.epoch) {  // another relay went back
    relay.is_checked = false;
    return PlanCompare(node, 0);
  }
  Database::Checkpoint checkpoint;
  for (auto& [incarnation, log] : relay.logs) {
    Database::Log& kept = db.outbox[incarnation];
    kept.published_seq = std::max(kept.published_seq, log.published_seq);
    checkpoint.published[incarnation] = kept.published_seq;
  }
  for (const auto& [stream, position] : relay.positions) {
    if (position.last_seq == 0) continue;
    runtime::StreamPosition& kept = db.positions[stream];
    if (kept.created_ns != position.created_ns || kept.last_seq < position.last_seq)
      kept = position;
  }
  const bool finished = std::any_of(relay.logs.begin(), relay.logs.end(), [&](const auto& log) {
    return log.first != node.incarnation &&
           log.second.published_seq == static_cast<int64_t>(db.outbox[log.first].rows.size());
  });
  if (finished || now_us_ - relay.last_checkpoint_us >= kCheckpointInterval) {
    relay.last_checkpoint_us = now_us_;
    checkpoint.time_us = now_us_;
    checkpoint.positions = relay.positions;
    db.checkpoints.push_back(std::move(checkpoint));
  }
  if (!relay.is_checked) return;
  for (auto it = relay.logs.begin(); it != relay.logs.end();) {
    Database::Log& kept = db.outbox[it->first];
    if (it->first != node.incarnation &&
        kept.published_seq == static_cast<int64_t>(kept.rows.size())) {
      kept.closed = true;
      kept.owner = 0;
      it = relay.logs.erase(it);
    } else {
      ++it;
    }
  }
}

void Simulation::TakeOver(Node& node) {
  for (auto& [incarnation, log] : node.db->outbox) {
    if (log.closed || log.owner != 0) continue;
    log.owner = node.id;
    RelayMemory::Log& mine = node.relay.logs[incarnation];
    mine = {};
    mine.published_seq = log.published_seq;
    mine.next_seq = log.published_seq + 1;
    mine.fresh_after = static_cast<int64_t>(log.rows.size());
  }
  PlanSave(node);
  RelayPump(node);
}

void Simulation::Resend(const flow::Resend& resend) {
  Node* node = LiveNode(ContextIndex(resend.source), HashOf(resend.resource));
  if (node == nullptr || bus_down_) return;
  if (!node->relay.is_checked)
    return AtNode(*node, 100 * kMillisecond, [this, resend] { Resend(resend); });
  for (const auto& [incarnation, log] : node->db->outbox) {
    for (const OutboxRow& row : log.rows) {
      if (std::find(row.resources.begin(), row.resources.end(), resend.resource) ==
          row.resources.end())
        continue;
      Publish(*node, row, /*incarnation=*/0,
              absl::StrCat(runtime::OutboxMessageId(node->rules->name, incarnation, row.seq,
                                                    node->relay.epoch),
                           ":r", ++resends_),
              Mix(HashOf(row.body), 6), [](absl::StatusOr<int64_t>) {});
    }
  }
}

// ---------------------------------------------------------------- people

void Simulation::Place(Buyer& buyer) {
  const uint64_t key = HashOf(buyer.name);
  const int number = ++buyer.tries;
  last_act_us_ = std::max(last_act_us_, now_us_ + kPatienceMax);
  Tell(buyer.name, ": the buyer orders ", buyer.request.lines(0).quantity(), " of ",
       buyer.request.lines(0).product_id(),
       number > 1 ? absl::StrCat(", for the ", number, ". time") : "");
  Rpc("gaekju.order.v1.OrderService.PlaceOrder", buyer.request.SerializeAsString(),
      absl::StrCat("PlaceOrder ", buyer.name), absl::StrCat(buyer.name, "-", number),
      dice_.Between("patience", key, kSecond, 10 * kSecond), [this, &buyer, key](RpcResult result) {
        if (result.status.code() == google::rpc::UNAVAILABLE ||
            result.status.code() == google::rpc::ABORTED) {
          Tell(buyer.name, ": the buyer is told: ", result.status.message());
          if (buyer.tries % kBuyerTriesMax == 0) {
            if (at_rest_)
              Violate(absl::StrCat(
                  buyer.name,
                  " tries again when the house is whole, and is told: ", result.status.message()));
            return;
          }
          const int64_t wait_us = dice_.Spread("again", key, 100 * kMillisecond, 30 * kSecond);
          last_act_us_ = std::max(last_act_us_, now_us_ + wait_us + 10 * kSecond);
          At(wait_us, [this, &buyer] { Place(buyer); });
          return;
        }
        buyer.settled = true;
        if (result.status.code() != 0) {
          Tell(buyer.name, ": the buyer is refused: ", flow::ReasonOf(result.status));
          return;
        }
        order::v1::PlaceOrderResponse response;
        GK_CHECK(response.ParseFromString(result.payload));
        buyer.order_id = response.order().order_id();
        Tell(buyer.name, ": the buyer has ordered: ", buyer.order_id);
        const auto record =
            databases_[ContextIndex("order")]->Find<OrderRecord>(order::kOrders, buyer.order_id);
        if (record == nullptr)
          return Violate(
              absl::StrCat("order ", buyer.order_id, " was acknowledged, and does not exist"));
        int64_t wait_us = 0;
        for (int i = 0; i < buyer.cancel_count; ++i) {
          // At once, soon, or long after everything is done; some press twice.
          if (i > 0 && dice_.Chance("presses twice", key, 0.5)) {
            wait_us += dice_.Between("presses", key, 0, 50 * kMillisecond);
          } else {
            wait_us = dice_.Spread("cancel", key, kMillisecond, 30 * kMinute);
          }
          last_act_us_ = std::max(last_act_us_, now_us_ + wait_us + 10 * kSecond);
          At(wait_us, [this, &buyer] { Cancel(buyer, false); });
        }
        if (dice_.Chance("stranger", key, 0.05)) {
          At(dice_.Spread("stranger", key, kMillisecond, kMinute),
             [this, &buyer] { Cancel(buyer, true); });
        }
      });
}

void Simulation::Cancel(Buyer& buyer, bool is_stranger) {
  const uint64_t key = HashOf(buyer.name);
  order::v1::CancelOrderRequest request;
  request.set_order_id(buyer.order_id);
  request.set_customer_id(is_stranger ? "somebody-else" : buyer.request.customer_id());
  Tell(buyer.name, is_stranger ? ": a stranger cancels" : ": the buyer cancels");
  if (!is_stranger) ++buyer.cancel_tries;
  last_act_us_ = std::max(last_act_us_, now_us_ + kPatienceMax);
  Rpc("gaekju.order.v1.OrderService.CancelOrder", request.SerializeAsString(),
      absl::StrCat("CancelOrder ", buyer.name), "",
      dice_.Between("patience", key, kSecond, 10 * kSecond),
      [this, &buyer, key, is_stranger](RpcResult result) {
        if (is_stranger) {
          if (result.status.code() == 0)
            Violate(absl::StrCat("a stranger cancelled ", buyer.order_id));
          return;
        }
        buyer.cancel_unanswered = result.status.code() == google::rpc::UNAVAILABLE;
        // A person may be needed for that an earlier cancel is taken back.
        if (at_rest_ && buyer.cancel_unanswered && buyer.cancel_tries >= kBuyerTriesMax &&
            flow::ReasonOf(result.status) != "CANCEL_BUSY") {
          Violate(absl::StrCat(buyer.name, " cancels again when the house is whole, and is told: ",
                               result.status.message()));
        }
        if (buyer.cancel_unanswered && buyer.cancel_tries < kBuyerTriesMax &&
            (at_rest_ || dice_.Chance("insist", key, 0.7))) {
          const int64_t wait_us = dice_.Spread("again", key, 100 * kMillisecond, 30 * kSecond);
          last_act_us_ = std::max(last_act_us_, now_us_ + wait_us + 10 * kSecond);
          At(wait_us, [this, &buyer] { Cancel(buyer, false); });
        }
        Tell(buyer.name, ": the cancel is ",
             result.status.code() == 0 ? "taken"
                                       : absl::StrCat("refused: ", flow::ReasonOf(result.status)));
        if (result.status.code() == 0) buyer.cancel_acknowledged = true;
      });
}

// Everything has come to rest: whoever was told to try again, and has given up, does so once more.
bool Simulation::TryAgainAtRest() {
  if (std::exchange(at_rest_, true)) return false;
  // By then whatever was down is up again.
  const int64_t whole_us = std::max<int64_t>(horizon_us_ + 3 * kMinute - now_us_, 0);
  bool any = false;
  for (auto& owned : buyers_) {
    Buyer& buyer = *owned;
    const bool cancels = buyer.cancel_unanswered && !buyer.order_id.empty();
    if (buyer.settled && !cancels) continue;
    any = true;
    buyer.cancel_tries = 0;
    const int64_t wait_us = whole_us + dice_.Between("at rest", HashOf(buyer.name), 0, kMinute);
    last_act_us_ = std::max(last_act_us_, now_us_ + wait_us + 15 * kSecond);
    At(wait_us, [this, &buyer] { buyer.settled ? Cancel(buyer, false) : Place(buyer); });
  }
  return any;
}

void Simulation::Act(const std::string& who, const std::string& method, const Message& request,
                     int64_t delay_us, int tries_left) {
  last_act_us_ = std::max(last_act_us_, now_us_ + delay_us + 15 * kSecond);
  std::shared_ptr<Message> copy(request.New());
  copy->CopyFrom(request);
  At(delay_us, [this, who, method, copy, tries_left] {
    const std::string tag = absl::StrCat(Last(method), " by ", who);
    Tell(who, ": ", Last(method));
    Rpc(method, copy->SerializeAsString(), tag, "", 5 * kSecond,
        [this, who, method, copy, tries_left, tag](RpcResult result) {
          if (result.status.code() == google::rpc::UNAVAILABLE && tries_left > 0) {
            Act(who, method, *copy,
                dice_.Spread("again", HashOf(tag), 100 * kMillisecond, 20 * kSecond),
                tries_left - 1);
          }
        });
  });
}

void Simulation::People(const Node&, const flow::Table& table, const std::string& key,
                        const Message& row) {
  const uint64_t luck = HashOf(key);
  auto first_time = [&](absl::string_view what) {
    return seen_.insert(absl::StrCat(what, " ", key)).second;
  };
  auto delay = [&](absl::string_view what) {
    return dice_.Spread(what, luck, 100 * kMillisecond, 20 * kMinute);
  };
  if (&table == &store::kAcceptances) {
    const auto& acceptance = static_cast<const store::v1::Acceptance&>(row);
    if (acceptance.state() == store::v1::Acceptance::STATE_WAITING && first_time("accept") &&
        dice_.Chance("owner", luck, 0.85)) {
      store::v1::AnswerOrderRequest answer;
      answer.set_acceptance_id(key);
      answer.set_accept(dice_.Chance("accepts", luck, 0.8));
      Act(absl::StrCat("the owner, for ", key), "gaekju.store.v1.StoreService.AnswerOrder", answer,
          delay("owner"));
      if (dice_.Chance("twice", luck, 0.1)) {
        Act(absl::StrCat("the owner, for ", key), "gaekju.store.v1.StoreService.AnswerOrder",
            answer, delay("owner"));
      }
    }
    if (acceptance.state() == store::v1::Acceptance::STATE_CANCEL_WAITING &&
        first_time("confirm") && dice_.Chance("owner", luck, 0.85)) {
      store::v1::ConfirmCancelRequest confirm;
      confirm.set_acceptance_id(key);
      Act(absl::StrCat("the owner, for ", key), "gaekju.store.v1.StoreService.ConfirmCancel",
          confirm, delay("owner"));
    }
  } else if (&table == &payment::kPayments) {
    const auto& payment = static_cast<const payment::v1::Payment&>(row);
    if (payment.state() != payment::v1::Payment::STATE_AWAITED || !first_time("pay")) return;
    payment::v1::PayRequest pay;
    pay.set_payment_id(key);
    pay.set_customer_id(payment.customer_id());
    int64_t wait_us = delay("pay");
    if (dice_.Chance("declined", luck, 0.2)) {
      pay.set_payment_method("card-declined");
      Act(absl::StrCat("the buyer, for ", key), "gaekju.payment.v1.PaymentService.Pay", pay,
          wait_us);
      wait_us += delay("pay");
    }
    if (dice_.Chance("pays", luck, 0.8)) {
      pay.set_payment_method("card");
      // Some only after half an hour: too late.
      if (dice_.Chance("too late", luck, 0.1)) wait_us += 30 * kMinute;
      Act(absl::StrCat("the buyer, for ", key), "gaekju.payment.v1.PaymentService.Pay", pay,
          wait_us);
    }
  } else if (&table == &delivery::kDeliveries) {
    const auto& delivery = static_cast<const delivery::v1::Delivery&>(row);
    if (delivery.state() != delivery::v1::Delivery::STATE_STARTED || !first_time("courier")) return;
    delivery::v1::RecordProgressRequest progress;
    progress.set_delivery_id(key);
    for (auto state :
         {delivery::v1::Delivery::STATE_IN_TRANSIT, delivery::v1::Delivery::STATE_DELIVERED}) {
      if (!dice_.Chance("courier", luck, 0.8)) continue;
      progress.set_state(state);
      Act(absl::StrCat("the courier, for ", key),
          "gaekju.delivery.v1.DeliveryService.RecordProgress", progress, delay("courier"));
    }
    if (dice_.Chance("receives", luck, 0.75)) {
      delivery::v1::ConfirmReceiptRequest receipt;
      receipt.set_delivery_id(key);
      receipt.set_customer_id(delivery.customer_id());
      Act(absl::StrCat("the buyer, for ", key), "gaekju.delivery.v1.DeliveryService.ConfirmReceipt",
          receipt, delay("receives"));
    }
  } else if (&table == &assignment::kAssignments) {
    const auto& assignment = static_cast<const assignment::v1::Assignment&>(row);
    if (assignment.state() != assignment::v1::Assignment::STATE_ASSIGNED || !first_time("pick-up"))
      return;
    if (!dice_.Chance("picks up", luck, 0.75)) return;
    assignment::v1::ConfirmPickupRequest pickup;
    pickup.set_assignment_id(key);
    Act(absl::StrCat("the buyer, for ", key),
        "gaekju.assignment.v1.AssignmentService.ConfirmPickup", pickup, delay("picks up"));
  }
}

// ---------------------------------------------------------------- properties

// The rows in memory, for the invariants.
class Rows : public RowSource {
 public:
  explicit Rows(const Simulation& simulation) : simulation_(simulation) {}
  bool Has(const std::string&) const override { return true; }
  absl::Status Scan(
      const std::string& context, const flow::Table& table,
      const std::function<void(const std::string& key, const Message& row)>& row) override {
    const std::unique_ptr<Message> message(table.prototype->New());
    const auto& db = *simulation_.databases_[simulation_.ContextIndex(context)];
    for (const auto& [key, stored] : db.Rows(table)) {
      GK_CHECK(message->ParseFromString(stored.body)) << key;
      row(key, *message);
    }
    return absl::OkStatus();
  }

 private:
  const Simulation& simulation_;
};

bool Ended(const Order& order) {
  return order.state() == Order::STATE_COMPLETED || order.state() == Order::STATE_CANCELLED ||
         order.state() == Order::STATE_REJECTED;
}

// What is not as it will have to be once everything has come to rest.
std::vector<std::string> Simulation::Unsettled() {
  std::vector<std::string> wrong;
  outcome_.ended_count = outcome_.waiting_count = 0;
  for (const auto& [key, row] : databases_[ContextIndex("order")]->Rows(order::kOrders)) {
    OrderRecord record;
    GK_CHECK(record.ParseFromString(row.body));
    bool asks = false, person = false;
    std::string whom;
    for (const auto& task : record.saga().tasks()) {
      const bool undoing = task.undo_state() != order::v1::TASK_STATE_UNSPECIFIED;
      const auto state = undoing ? task.undo_state() : task.state();
      // An order that is over waits for nobody, but for its notices.
      if (state == order::v1::TASK_STATE_PENDING) person = true;
      if (state == order::v1::TASK_STATE_ASKED &&
          (undoing ? task.undo_retry_time_us() : task.retry_time_us()) != 0) {
        asks = true;
        absl::StrAppend(&whom, whom.empty() ? "" : ", ", task.step_id(), undoing ? "'s undo" : "");
      }
    }
    const bool ended = Ended(record.order());
    ++(ended ? outcome_.ended_count : outcome_.waiting_count);
    if (asks)
      wrong.push_back(absl::StrCat("order ", key, " (", Order::State_Name(record.order().state()),
                                   ") still asks for ", whom));
    if (!ended && !person && !asks) {
      wrong.push_back(absl::StrCat("order ", key, " (", Order::State_Name(record.order().state()),
                                   ") never ends, and waits for nobody"));
    }
  }
  if (!wrong.empty()) return wrong;
  Rows rows(*this);
  InvariantOptions options;
  options.now_us = now_us_ + AnyNode(ContextIndex("order")).clock_offset_us;
  options.overdue_us = kMinute;
  options.plan = [this](const std::string& key) {
    const size_t at = key.find('@');
    return shops_.Find(key.substr(0, at), key.substr(at + 1));
  };
  const auto report = CheckInvariants(&rows, options);
  GK_CHECK(report.ok()) << report.status();
  for (const auto& violation : report->violations) wrong.push_back(violation.text);
  for (const auto& [order_id, versions] : told_) {
    const auto view =
        databases_[ContextIndex("view")]->Find<view::v1::OrderView>(view::kOrderViews, order_id);
    for (const auto& [resource, version] : versions) {
      int64_t shown = 0;
      if (view != nullptr) {
        const auto applied = view->applied_versions().find(resource);
        if (applied != view->applied_versions().end()) shown = applied->second;
      }
      if (shown != version) {
        wrong.push_back(absl::StrCat("the view of order ", order_id, " knows ", shown,
                                     " events of ", resource, ", and there were ", version));
      }
    }
  }
  for (auto& db : databases_) {
    for (const auto& [incarnation, log] : db->outbox) {
      if (log.published_seq < static_cast<int64_t>(log.rows.size())) {
        wrong.push_back(absl::StrCat("an outbox holds ",
                                     static_cast<int64_t>(log.rows.size()) - log.published_seq,
                                     " messages that were never published"));
      }
    }
  }
  return wrong;
}

// What holds at the end, whatever was settled when.
void Simulation::CheckEnd() {
  std::map<std::string, int> live;  // by buyer's order
  const auto& orders = databases_[ContextIndex("order")]->Rows(order::kOrders);
  std::map<std::string, Order> by_id;
  std::set<std::pair<std::string, int64_t>> numbers;
  for (const auto& [key, row] : orders) {
    OrderRecord record;
    GK_CHECK(record.ParseFromString(row.body));
    by_id[key] = record.order();
    if (!numbers.emplace(record.order().storefront(), record.order().number()).second) {
      Violate(absl::StrCat("order ", key, " has the number of another, ", record.order().number()));
    }
    // What a saga asks is well-formed.
    if (record.order().reject_reason() == "FIELD_INVALID")
      Violate(
          absl::StrCat("order ", key, " was refused because a step was asked for what cannot be"));
    if (record.order().state() != Order::STATE_REJECTED &&
        record.order().state() != Order::STATE_REJECTING &&
        ++live[record.order().customer_name()] > 1) {
      Violate(absl::StrCat("request_id of ", record.order().customer_name(),
                           " made two orders, the second is ", key));
    }
  }
  for (const auto& buyer : buyers_) {
    if (buyer->order_id.empty()) continue;
    const auto it = by_id.find(buyer->order_id);
    if (it == by_id.end()) {
      Violate(absl::StrCat("order ", buyer->order_id, " was acknowledged, and is gone"));
      continue;
    }
    if (!buyer->cancel_acknowledged || it->second.state() == Order::STATE_CANCELLED ||
        it->second.state() == Order::STATE_CANCELLING)
      continue;
    // A cancel that was taken may still be refused by a step that the buyer did not wait for.
    const flow::Plan* plan = shops_.Find(it->second.storefront(), it->second.storefront_revision());
    const bool all_wait = std::all_of(plan->steps.begin() + plan->place_count,
                                      plan->steps.begin() + plan->flow_count(),
                                      [](const flow::PlanStep& step) { return step.buyer_waits; });
    if (all_wait)
      Violate(absl::StrCat("the cancel of ", buyer->order_id, " was taken, and the order is ",
                           Order::State_Name(it->second.state())));
  }
  int64_t notices = 0;
  std::map<std::pair<std::string, int>, size_t> told_of_cancel;  // by order and step
  const auto& notification = *databases_[ContextIndex("notification")];
  for (const auto& [key, row] : notification.Rows(notification::kNotices)) {
    notification::v1::Notice notice;
    GK_CHECK(notice.ParseFromString(row.body));
    if (!notice.has_create_time()) continue;
    ++notices;
    const size_t slash = key.find('/');
    const auto order = by_id.find(key.substr(0, slash));
    if (order == by_id.end()) continue;
    const flow::Plan* plan =
        shops_.Find(order->second.storefront(), order->second.storefront_revision());
    const int step = plan->StepIndex(key.substr(slash + 1, key.find('.', slash) - slash - 1));
    // What has to be taken back is asked anew, and all that comes with it.
    const bool may_be_told_again = std::any_of(
        plan->steps.begin() + plan->place_count, plan->steps.begin() + plan->flow_count(),
        [step](const flow::PlanStep& other) {
          return !other.undo_method.empty() &&
                 std::find(other.after.begin(), other.after.end(), step) == other.after.end();
        });
    if (step >= plan->place_count && !may_be_told_again) ++told_of_cancel[{order->first, step}];
  }
  const auto logged = static_cast<int64_t>(notification.Rows(notification::kNoticeLog).size());
  // A cancel that nobody said no to is one, however often it is asked: who was told is not told
  // again.
  for (const auto& [told, count] : told_of_cancel) {
    if (count > 1 + said_no_[told.first].size())
      Violate(absl::StrCat("of a cancel of ", told.first, ", somebody was told ", count, " times"));
  }
  if (logged != notices) Violate(absl::StrCat(logged, " notices were told, of ", notices));
}

// Until everything that was planned is done, and has come to rest.
void Simulation::RunToRest() {
  int64_t check_at_us = 0, wait_us = 2 * kSecond;
  while (!stop_ && !events_.empty()) {
    // The earliest moves out of the queue before it acts.
    Event event = std::move(const_cast<Event&>(events_.top()));
    events_.pop();
    const int64_t quiet_us = std::max(horizon_us_, last_act_us_);
    if (event.time_us > quiet_us && event.time_us > check_at_us) {
      now_us_ = std::max(quiet_us, check_at_us);
      const std::vector<std::string> wrong = Unsettled();
      if (quiet_us == std::max(horizon_us_, last_act_us_)) {
        if (!wrong.empty() && now_us_ > quiet_us + kSettleMax) {
          for (const std::string& text : wrong) Violate(text);
        }
        if (wrong.empty() || stop_) return events_.push(std::move(event));
      }
      check_at_us = now_us_ + wait_us;
      wait_us = std::min(wait_us * 2, 10 * kMinute);
      events_.push(std::move(event));
      continue;
    }
    now_us_ = event.time_us;
    event.action();
  }
  if (stop_) return;
  for (const std::string& text : Unsettled()) Violate(text);
}

Outcome Simulation::Run() {
  Draw();
  MakeContexts();
  MakeGoods();
  PlanOrders();
  PlanFaults();
  do {
    RunToRest();
  } while (!stop_ && TryAgainAtRest());
  if (!stop_) CheckEnd();
  outcome_.virtual_us = now_us_ - kStart_us;
  return std::move(outcome_);
}

}  // namespace

absl::string_view FaultName(Fault fault) { return kFaultNames[static_cast<int>(fault)]; }

std::optional<Fault> FaultOfName(absl::string_view name) {
  for (int i = 0; i < kFaultCount; ++i) {
    if (kFaultNames[i] == name) return static_cast<Fault>(i);
  }
  return std::nullopt;
}

absl::StatusOr<Shops> Shops::Parse(const std::vector<File>& files) {
  Shops shops;
  for (const File& file : files) {
    Shop shop;
    auto add = [&](const std::string& text) -> absl::Status {
      auto plan = flow::ParseStorefront(text, file.name);
      if (!plan.ok()) return plan.status();
      for (const flow::PlanStep& step : plan->steps) {
        if (std::find(std::begin(kContexts), std::end(kContexts), step.context) ==
            std::end(kContexts)) {
          return absl::FailedPreconditionError(
              absl::StrCat(file.name, ": step \"", step.id, "\" calls ", step.context,
                           ", whose decisions are not in this program"));
        }
      }
      shop.id = plan->storefront;
      shop.plans.push_back(std::make_shared<const flow::Plan>(*std::move(plan)));
      return absl::OkStatus();
    };
    if (absl::Status status = add(file.text); !status.ok()) return status;
    if (absl::Status status = add(absl::StrCat(file.text, "\n# again\n")); !status.ok())
      return status;
    if (absl::StrContains(file.text, "CONFIRMATION_AUTOMATIC")) {
      absl::Status status =
          add(absl::StrReplaceAll(file.text, {{"CONFIRMATION_AUTOMATIC", "CONFIRMATION_MANUAL"}}));
      if (!status.ok()) return status;
    }
    shops.shops_.push_back(std::move(shop));
  }
  return shops;
}

const flow::Plan* Shops::Find(const std::string& storefront, const std::string& revision) const {
  for (const Shop& shop : shops_) {
    if (shop.id != storefront) continue;
    for (const auto& plan : shop.plans) {
      if (plan->revision == revision) return plan.get();
    }
  }
  return nullptr;
}

Outcome Simulate(const Shops& shops, const Settings& settings) {
  GK_CHECK(!shops.all().empty());
  return Simulation(shops, settings).Run();
}

}  // namespace gaekju::sim
