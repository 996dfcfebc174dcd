#include "app/context_list.h"

#include <utility>

#include "app/assignment_migrations.h"
#include "app/cart_migrations.h"
#include "app/catalog_migrations.h"
#include "app/contracts.h"
#include "app/delivery_migrations.h"
#include "app/gate.h"
#include "app/notification_migrations.h"
#include "app/order_migrations.h"
#include "app/payment_migrations.h"
#include "app/store_migrations.h"
#include "app/view_migrations.h"
#include "flow/check.h"
#include "services/assignment/assignment.h"
#include "services/assignment/assignment_service.h"
#include "services/cart/cart.h"
#include "services/catalog/catalog.h"
#include "services/delivery/delivery.h"
#include "services/notification/notification.h"
#include "services/order/order.h"
#include "services/order/order_service.h"
#include "services/order/storefront_service.h"
#include "services/payment/payment.h"
#include "services/store/store.h"
#include "services/view/view.h"

namespace gaekju::app {
namespace {

using ContextPtr = std::shared_ptr<const flow::Context>;
using Make = std::function<absl::StatusOr<ContextPtr>(const runtime::PgOptions& pg)>;

// A context that needs nothing from outside, and lives as long as the program.
Make Plain(const flow::Context& (*context)()) {
  return [context](const runtime::PgOptions&) -> absl::StatusOr<ContextPtr> {
    return ContextPtr(ContextPtr(), &context());
  };
}

// The assignment context, and the dealers it knows.
Make Assignments(std::shared_ptr<assignment::DealerBook> book) {
  return [book = std::move(book)](const runtime::PgOptions& pg) -> absl::StatusOr<ContextPtr> {
    if (absl::Status status = book->Open(pg); !status.ok()) return status;
    return ContextPtr(assignment::MakeAssignmentContext(book.get()));
  };
}

// The order context and the storefronts it serves.
struct Orders {
  std::unique_ptr<Gate> gate;                   // outlives the book, which asks it
  std::unique_ptr<order::StorefrontBook> book;  // null until the context is made
  std::unique_ptr<flow::Context> context;
};

absl::StatusOr<ContextPtr> MakeOrders(const std::string& storefronts, const runtime::PgOptions& pg,
                                      const std::shared_ptr<Orders>& orders) {
  auto contracts = ContractsFromFlag();
  if (!contracts.ok()) return contracts.status();
  if (orders->gate == nullptr) {
    auto options = GateOptionsFromFlags(pg);
    if (!options.ok()) return options.status();
    orders->gate = std::make_unique<Gate>(*std::move(options));
  }
  Gate& gate = *orders->gate;
  auto book = order::StorefrontBook::Open(
      {.directory = storefronts,
       .pg = pg,
       .contracts = *contracts,
       .admit = [&gate](const flow::Plan& plan) { return gate.Admit(plan); }});
  if (!book.ok()) return book.status();
  orders->book = *std::move(book);
  for (const auto& [id, shop] : orders->book->Shops()) {
    if (shop.plan != nullptr) gate.Review(*shop.plan);
  }
  orders->context = order::MakeOrderContext(orders->book.get());
  return ContextPtr(orders, orders->context.get());
}

void ObserveStorefronts(const order::StorefrontBook& book, runtime::Metrics& metrics) {
  for (const auto& [id, shop] : book.Shops()) {
    metrics
        .GetGauge("storefront_open", "1: the storefront takes orders. 0: it is closed.",
                  {{"storefront", id}})
        .Set(shop.plan != nullptr ? 1 : 0);
    metrics
        .GetGauge("storefront_refused",
                  "1: the storefront's file is wrong, and its last right text goes on.",
                  {{"storefront", id}})
        .Set(shop.listing.has_refused() ? 1 : 0);
  }
}

// The sagas under way, by storefront and state: those with a due time, so that the partial index is
// all that is read.
void ObserveOrders(runtime::PgConnection& pg, runtime::Metrics& metrics) {
  auto rows = pg.Query(
      "SELECT storefront, state, count(*)::bigint FROM orders WHERE due_time_us > 0 GROUP BY "
      "storefront, state");
  if (!rows.ok()) return;
  using order::v1::Order;
  std::map<std::pair<std::string, int>, int64_t> counts;
  for (int row = 0; row < rows->rows(); ++row) {
    counts[{std::string(rows->Bytes(row, 0)), static_cast<int>(rows->Int(row, 1))}] =
        rows->Int(row, 2);
  }
  // A state that has emptied since the last look has to go to 0.
  static auto* const seen = new std::map<std::pair<std::string, int>, int64_t>();
  for (auto& [key, count] : *seen) count = 0;
  for (const auto& [key, count] : counts) (*seen)[key] = count;
  for (const auto& [key, count] : *seen) {
    metrics.Sagas(key.first, Order::State_Name(key.second)).Set(static_cast<double>(count));
  }
}

// Those that stay as they are, because no process could read the revision they were placed under.
void ObserveHeldOrders(runtime::PgConnection& pg, runtime::Metrics& metrics) {
  auto rows = pg.Query(
      "SELECT storefront, count(*)::bigint FROM orders WHERE due_time_us < 0 GROUP BY storefront");
  if (!rows.ok()) return;
  static auto* const seen = new std::map<std::string, int64_t>();
  for (auto& [storefront, count] : *seen) count = 0;
  for (int row = 0; row < rows->rows(); ++row)
    (*seen)[std::string(rows->Bytes(row, 0))] = rows->Int(row, 1);
  for (const auto& [storefront, count] : *seen) {
    metrics
        .GetGauge("orders_held",
                  "Orders that wait for somebody who can read their storefront revision.",
                  {{"storefront", storefront}})
        .Set(static_cast<double>(count));
  }
}

}  // namespace

runtime::ContextServer::Spec ContextSpec(absl::string_view name, const std::string& storefronts) {
  runtime::ContextServer::Spec spec;
  spec.name = std::string(name);
  spec.service = ServiceOf(name);
  auto is = [&](absl::string_view known, const std::vector<runtime::Migration>& migrations,
                Make make) {
    if (name != known) return;
    spec.migrations = migrations;
    spec.make = std::move(make);
  };
  if (name == "order") {
    auto orders = std::make_shared<Orders>();
    is("order", order::OrderMigrations(), [storefronts, orders](const runtime::PgOptions& pg) {
      return MakeOrders(storefronts, pg, orders);
    });
    spec.further.push_back(
        {order::kStorefrontService,
         [orders](const google::protobuf::MethodDescriptor& method,
                  const google::protobuf::Message& request, runtime::PgConnection* pg) {
           return order::AnswerStorefronts(*orders->book, method, request, pg);
         }});
    spec.observe = [orders](runtime::PgConnection& pg, runtime::Metrics& metrics) {
      ObserveOrders(pg, metrics);
      ObserveHeldOrders(pg, metrics);
      ObserveStorefronts(*orders->book, metrics);
      orders->gate->Observe(metrics);
    };
  }
  is("payment", payment::PaymentMigrations(), Plain(payment::PaymentContext));
  is("catalog", catalog::CatalogMigrations(), Plain(catalog::CatalogContext));
  is("store", store::StoreMigrations(), Plain(store::StoreContext));
  is("delivery", delivery::DeliveryMigrations(), Plain(delivery::DeliveryContext));
  is("cart", cart::CartMigrations(), Plain(cart::CartContext));
  is("notification", notification::NotificationMigrations(),
     Plain(notification::NotificationContext));
  is("view", view::ViewMigrations(), Plain(view::ViewContext));
  if (name == "assignment") {
    auto book = std::make_shared<assignment::DealerBook>();
    is("assignment", assignment::AssignmentMigrations(), Assignments(book));
    spec.observe_committed = [book](const flow::Table& table, const std::string&,
                                    const google::protobuf::Message& row) {
      book->Observe(table, row);
    };
  }
  GK_CHECK(spec.make != nullptr) << name;
  return spec;
}

}  // namespace gaekju::app
