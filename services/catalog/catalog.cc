#include "services/catalog/catalog.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "flow/mutant.h"
#include "flow/step.h"
#include "flow/values.h"
#include "gaekju/catalog/v1/catalog_events.pb.h"
#include "gaekju/catalog/v1/catalog_service.pb.h"
#include "google/rpc/code.pb.h"

namespace gaekju::catalog {

using flow::Answer;
using flow::Caller;
using flow::RowKey;
using flow::Turn;
using gaekju::catalog::v1::AdjustStockRequest;
using gaekju::catalog::v1::AdjustStockResponse;
using gaekju::catalog::v1::CreateProductRequest;
using gaekju::catalog::v1::CreateProductResponse;
using gaekju::catalog::v1::Product;
using gaekju::catalog::v1::ProductCreated;
using gaekju::catalog::v1::QuoteRequest;
using gaekju::catalog::v1::QuoteResponse;
using gaekju::catalog::v1::ReleaseRequest;
using gaekju::catalog::v1::ReleaseResponse;
using gaekju::catalog::v1::Reservation;
using gaekju::catalog::v1::ReserveRequest;
using gaekju::catalog::v1::ReserveResponse;
using gaekju::catalog::v1::StockAdjusted;
using gaekju::catalog::v1::StockChange;
using gaekju::catalog::v1::StockReleased;
using gaekju::catalog::v1::StockReserved;
using gaekju::type::v1::LineItem;
using gaekju::type::v1::Money;
using google::protobuf::Message;
using google::protobuf::RepeatedPtrField;
using google::rpc::FAILED_PRECONDITION;

const flow::Table kProducts = {
    "products",
    &Product::default_instance(),
    {{"available_count", "available_count"}, {"reserved_count", "reserved_count"}}};

const flow::Table kReservations = {"reservations",
                                   &Reservation::default_instance(),
                                   {{"order_id", "order_id"}, {"state", "state"}}};

const flow::Table kStockChanges = {"stock_changes", &StockChange::default_instance(), {}};

namespace {

constexpr char kDomain[] = "gaekju.catalog.v1.CatalogService";
constexpr size_t kDisplayNameSizeMax = 256;

// Rows as others may see them: without what only this context keeps.
Product Shown(const Product& product) {
  Product shown = product;
  shown.clear_request_fingerprint();
  return shown;
}

Reservation Shown(const Reservation& reservation) {
  Reservation shown = reservation;
  shown.clear_step();
  return shown;
}

template <class T>
bool Show(const Message& row, Message* out) {
  *static_cast<T*>(out) = Shown(static_cast<const T&>(row));
  return true;
}

template <class Response>
Answer DoneWithProduct(const Product& product) {
  Response response;
  *response.mutable_product() = Shown(product);
  return flow::Done(response);
}

// --- products

google::rpc::Status ValidateCreateProduct(const CreateProductRequest& request) {
  return flow::FieldChecks(kDomain)
      .Id("product_id", request.product_id())
      .Text("display_name", request.display_name(), kDisplayNameSizeMax)
      .Money("unit_price", request.unit_price(), /*minor_units_min=*/0)
      .Range("available_count", request.available_count(), 0, kStockCountMax)
      .status();
}

Answer CreateProduct(const CreateProductRequest& request, const Caller&, Turn& turn) {
  const uint64_t fingerprint = flow::Fingerprint(request);
  if (const Product* found = turn.Find<Product>(kProducts, request.product_id())) {
    if (found->request_fingerprint() != fingerprint) {
      return flow::Refuse(
          google::rpc::ALREADY_EXISTS, kDomain, "PRODUCT_EXISTS",
          absl::StrCat("product ", request.product_id(), " was created with other content"),
          "product_id");
    }
    return DoneWithProduct<CreateProductResponse>(*found);
  }
  Product& product = turn.Edit<Product>(kProducts, request.product_id());
  product.set_product_id(request.product_id());
  product.set_display_name(request.display_name());
  *product.mutable_unit_price() = request.unit_price();
  product.set_available_count(request.available_count());
  *product.mutable_create_time() = flow::ToTimestamp(turn.now_us());
  product.set_request_fingerprint(fingerprint);
  ProductCreated event;
  *event.mutable_product() = Shown(product);
  turn.Emit(kProducts, product.product_id(), event, /*order_id=*/"");
  return DoneWithProduct<CreateProductResponse>(product);
}

std::string StockChangeKey(const AdjustStockRequest& request) {
  return absl::StrCat(request.product_id(), "/", request.request_id());
}

google::rpc::Status ValidateAdjustStock(const AdjustStockRequest& request) {
  return flow::FieldChecks(kDomain)
      .Id("product_id", request.product_id())
      .Range("delta_count", request.delta_count(), -kStockCountMax, kStockCountMax)
      .That(request.delta_count() != 0, "delta_count", "must not be 0")
      .Id("request_id", request.request_id())
      .status();
}

Answer AdjustStock(const AdjustStockRequest& request, const Caller&, Turn& turn) {
  const std::string change_key = StockChangeKey(request);
  const uint64_t fingerprint = flow::Fingerprint(request);
  const Product* found = turn.Find<Product>(kProducts, request.product_id());
  if (const StockChange* change = turn.Find<StockChange>(kStockChanges, change_key)) {
    if (change->request_fingerprint() != fingerprint) {
      return flow::Refuse(google::rpc::ALREADY_EXISTS, kDomain, "REQUEST_ID_REUSED",
                          "the same request_id was used with another delta_count", "request_id");
    }
    GK_CHECK(found != nullptr) << change_key;
    return DoneWithProduct<AdjustStockResponse>(*found);
  }
  if (found == nullptr) {
    return flow::Refuse(google::rpc::NOT_FOUND, kDomain, "PRODUCT_UNKNOWN",
                        absl::StrCat("no product ", request.product_id()), "product_id");
  }
  const int64_t available_count = found->available_count() + request.delta_count();
  if (available_count < 0) {
    return flow::Refuse(FAILED_PRECONDITION, kDomain, "STOCK_SHORT",
                        absl::StrCat("only ", found->available_count(), " left"), "delta_count");
  }
  if (available_count > kStockCountMax) {
    return flow::Refuse(FAILED_PRECONDITION, kDomain, "STOCK_FULL",
                        absl::StrCat("at most ", kStockCountMax, " can be in stock"),
                        "delta_count");
  }
  StockChange& change = turn.Edit<StockChange>(kStockChanges, change_key);
  change.set_change_key(change_key);
  change.set_request_fingerprint(fingerprint);
  Product& product = turn.Edit<Product>(kProducts, request.product_id());
  product.set_available_count(available_count);
  StockAdjusted event;
  *event.mutable_product() = Shown(product);
  event.set_delta_count(request.delta_count());
  turn.Emit(kProducts, product.product_id(), event, /*order_id=*/"");
  return DoneWithProduct<AdjustStockResponse>(product);
}

// --- prices

// What lines cost, or why they cannot be sold.
struct Price {
  Answer refusal;  // kRefused, or the rest holds
  Money amount;
  std::vector<LineItem> lines;      // merged by product, with name and unit price
  std::vector<std::string> fields;  // where the request first names each: "lines[1]"
  bool refused() const { return refusal.kind == Answer::Kind::kRefused; }
};

Price Refused(int code, absl::string_view reason, absl::string_view message,
              absl::string_view field) {
  Price price;
  price.refusal = flow::Refuse(code, kDomain, reason, message, field);
  return price;
}

bool IsSet(const Money& money) {
  return money.minor_units() != 0 || !money.currency_code().empty();
}

// Quote and Reserve have the same fields. Checks in this order: every product is known, then its
// currency, then the sum fits, then it is what the buyer was shown.
template <class Request>
google::rpc::Status ValidatePricing(const Request& request) {
  flow::FieldChecks checks(kDomain);
  checks.Id("order_id", request.order_id())
      .Id("step_id", request.step_id())
      .Lines("lines", request.lines())
      .Currency("currency_code", request.currency_code());
  if (IsSet(request.expected_total())) {
    checks.Money("expected_total", request.expected_total(), /*minor_units_min=*/0);
  }
  return checks.status();
}

template <class Request>
Price PriceOf(const Request& request, const Turn& turn) {
  Price price;
  absl::flat_hash_map<std::string, size_t> index_by_product;
  for (int i = 0; i < request.lines_size(); ++i) {
    const LineItem& asked = request.lines(i);
    const std::string field = absl::StrCat("lines[", i, "]");
    const Product* product = turn.Find<Product>(kProducts, asked.product_id());
    if (product == nullptr) {
      return Refused(google::rpc::NOT_FOUND, "PRODUCT_UNKNOWN",
                     absl::StrCat("no product ", asked.product_id()),
                     absl::StrCat(field, ".product_id"));
    }
    const auto [it, inserted] =
        index_by_product.try_emplace(asked.product_id(), price.lines.size());
    if (!inserted) {
      LineItem& line = price.lines[it->second];
      line.set_quantity(line.quantity() +
                        asked.quantity());  // at most 100 lines of 1,000,000: fits
      continue;
    }
    LineItem line;
    line.set_product_id(asked.product_id());
    line.set_display_name(product->display_name());
    line.set_quantity(asked.quantity());
    *line.mutable_unit_price() = product->unit_price();
    price.lines.push_back(std::move(line));
    price.fields.push_back(field);
  }
  int64_t total = 0;
  for (size_t i = 0; i < price.lines.size(); ++i) {
    const LineItem& line = price.lines[i];
    if (line.unit_price().currency_code() != request.currency_code()) {
      return Refused(
          FAILED_PRECONDITION, "CURRENCY_MISMATCH",
          absl::StrCat(line.product_id(), " is priced in ", line.unit_price().currency_code(),
                       ", not ", request.currency_code()),
          absl::StrCat(price.fields[i], ".product_id"));
    }
  }
  for (size_t i = 0; i < price.lines.size(); ++i) {
    const LineItem& line = price.lines[i];
    int64_t line_total = 0;
    if (__builtin_mul_overflow(line.unit_price().minor_units(), int64_t{line.quantity()},
                               &line_total) ||
        __builtin_add_overflow(total, line_total, &total)) {
      return Refused(google::rpc::OUT_OF_RANGE, "AMOUNT_TOO_LARGE",
                     "the total does not fit into 64 bits",
                     absl::StrCat(price.fields[i], ".quantity"));
    }
  }
  price.amount.set_currency_code(request.currency_code());
  price.amount.set_minor_units(total);
  const Money& expected = request.expected_total();
  if (!IsSet(expected)) return price;
  if (expected.currency_code() != request.currency_code()) {
    return Refused(FAILED_PRECONDITION, "CURRENCY_MISMATCH",
                   absl::StrCat("the total is in ", request.currency_code(), ", not ",
                                expected.currency_code()),
                   "expected_total.currency_code");
  }
  if (expected.minor_units() != total) {
    return Refused(FAILED_PRECONDITION, "PRICE_CHANGED",
                   absl::StrCat("the total is ", total, ", not ", expected.minor_units()),
                   "expected_total.minor_units");
  }
  return price;
}

void AddProductKeys(const RepeatedPtrField<LineItem>& lines, std::vector<RowKey>* keys) {
  for (const LineItem& line : lines) keys->push_back({&kProducts, line.product_id()});
}

template <class Response>
Answer DoneWithPrice(const Price& price) {
  Response response;
  *response.mutable_amount() = price.amount;
  for (const LineItem& line : price.lines) *response.add_lines() = line;
  return flow::Done(response);
}

Answer Quote(const QuoteRequest& request, const Caller&, Turn& turn) {
  const Price price = PriceOf(request, turn);
  return price.refused() ? price.refusal : DoneWithPrice<QuoteResponse>(price);
}

// --- stock

// Why the priced lines cannot be taken; kDone when they can.
Answer ShortOf(const Price& price, const Turn& turn) {
  for (size_t i = 0; i < price.lines.size(); ++i) {
    const LineItem& line = price.lines[i];
    const int64_t available_count =
        turn.Find<Product>(kProducts, line.product_id())->available_count();
    if (available_count < line.quantity() && !GK_MUTANT(last_unit_sold_twice)) {
      return flow::Refuse(FAILED_PRECONDITION, kDomain, "STOCK_SHORT",
                          absl::StrCat("only ", available_count, " of ", line.product_id(),
                                       " left, not ", line.quantity()),
                          absl::StrCat(price.fields[i], ".quantity"));
    }
  }
  return {};
}

// Takes `sign` times the lines from what is available.
void MoveStock(const RepeatedPtrField<LineItem>& lines, int sign, Turn& turn) {
  for (const LineItem& line : lines) {
    Product& product = turn.Edit<Product>(kProducts, line.product_id());
    const int64_t count = int64_t{sign} * line.quantity();
    product.set_available_count(product.available_count() - count);
    if (sign > 0 || !GK_MUTANT(release_keeps_the_reserved_count))
      product.set_reserved_count(product.reserved_count() + count);
    if (sign < 0 && GK_MUTANT(stock_restored_twice))
      product.set_available_count(product.available_count() - count);
    GK_CHECK(product.available_count() >= 0 && product.reserved_count() >= 0)
        << product.product_id() << " " << product.available_count() << " "
        << product.reserved_count();
  }
}

template <class Event>
void EmitEvent(const Reservation& reservation, Turn& turn) {
  Event event;
  *event.mutable_reservation() = Shown(reservation);
  turn.Emit(kReservations, reservation.reservation_id(), event, reservation.order_id());
}

Answer Reserve(const ReserveRequest& request, const Caller&, Reservation& reservation, Turn& turn) {
  reservation.set_reservation_id(flow::StepKey(request.order_id(), request.step_id()));
  reservation.set_order_id(request.order_id());
  const Price price = PriceOf(request, turn);
  const Answer refusal = price.refused() ? price.refusal : ShortOf(price, turn);
  if (refusal.kind == Answer::Kind::kRefused) {
    reservation.set_state(Reservation::STATE_REFUSED);
    return refusal;
  }
  for (const LineItem& line : price.lines) *reservation.add_lines() = line;
  *reservation.mutable_amount() = price.amount;
  reservation.set_state(Reservation::STATE_HELD);
  if (!GK_MUTANT(reserve_takes_no_stock)) MoveStock(reservation.lines(), +1, turn);
  EmitEvent<StockReserved>(reservation, turn);
  return DoneWithPrice<ReserveResponse>(price);
}

Answer Release(Reservation& reservation, Turn& turn) {
  GK_CHECK(reservation.state() == Reservation::STATE_HELD) << reservation.reservation_id();
  if (!GK_MUTANT(released_stock_still_held)) reservation.set_state(Reservation::STATE_RELEASED);
  if (!GK_MUTANT(stock_never_restored)) MoveStock(reservation.lines(), -1, turn);
  EmitEvent<StockReleased>(reservation, turn);
  return flow::Done(ReleaseResponse());
}

// Nothing was taken: a refused reservation stays refused, one that never came leaves a tombstone.
// No stock moved, so no event.
void Void(const ReleaseRequest& request, Reservation& reservation, Turn&) {
  if (reservation.state() == Reservation::STATE_REFUSED) return;
  reservation.set_reservation_id(flow::StepKey(request.order_id(), request.step_id()));
  reservation.set_order_id(request.order_id());
  reservation.set_state(Reservation::STATE_RELEASED);
}

flow::Context MakeContext() {
  flow::Context context;
  context.name = "catalog";
  context.service = kDomain;
  context.tables = {&kProducts, &kReservations, &kStockChanges};
  context.handlers = {
      std::make_shared<flow::FunctionHandler<CreateProductRequest>>(
          absl::StrCat(kDomain, ".CreateProduct"), ValidateCreateProduct,
          [](const CreateProductRequest& request, const Caller&, std::vector<RowKey>* keys) {
            keys->push_back({&kProducts, request.product_id()});
          },
          CreateProduct),
      std::make_shared<flow::FunctionHandler<AdjustStockRequest>>(
          absl::StrCat(kDomain, ".AdjustStock"), ValidateAdjustStock,
          [](const AdjustStockRequest& request, const Caller&, std::vector<RowKey>* keys) {
            keys->push_back({&kProducts, request.product_id()});
            keys->push_back({&kStockChanges, StockChangeKey(request)});
          },
          AdjustStock),
      std::make_shared<flow::FunctionHandler<QuoteRequest>>(
          absl::StrCat(kDomain, ".Quote"), ValidatePricing<QuoteRequest>,
          [](const QuoteRequest& request, const Caller&, std::vector<RowKey>* keys) {
            AddProductKeys(request.lines(), keys);
          },
          Quote),
      flow::StepHandler<Reservation, ReserveRequest>(
          absl::StrCat(kDomain, ".Reserve"), kReservations, ValidatePricing<ReserveRequest>,
          [](const ReserveRequest& request, std::vector<RowKey>* keys) {
            AddProductKeys(request.lines(), keys);
          },
          Reserve),
      flow::UndoHandler<Reservation, ReleaseRequest>(
          absl::StrCat(kDomain, ".Release"), kReservations,
          [](const Reservation& reservation, std::vector<RowKey>* keys) {
            AddProductKeys(reservation.lines(), keys);
          },
          Release, Void),
  };
  context.gets = {
      {absl::StrCat(kDomain, ".GetProduct"), &kProducts, "product_id", "product", Show<Product>},
      {absl::StrCat(kDomain, ".GetReservation"), &kReservations, "reservation_id", "reservation",
       Show<Reservation>}};
  context.lists = {{absl::StrCat(kDomain, ".ListProducts"), &kProducts,
                    /*filters=*/{"product_ids"}, "products",
                    /*newest_first=*/false, Show<Product>, /*series=*/"series"}};
  return context;
}

}  // namespace

const flow::Context& CatalogContext() {
  static const flow::Context* const context = new flow::Context(MakeContext());
  return *context;
}

}  // namespace gaekju::catalog
