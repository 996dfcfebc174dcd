#include "facade/lookup.h"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "gaekju/assignment/v1/assignment_service.pb.h"
#include "gaekju/cart/v1/cart_service.pb.h"
#include "gaekju/catalog/v1/catalog_service.pb.h"
#include "gaekju/delivery/v1/delivery_service.pb.h"
#include "gaekju/payment/v1/payment_service.pb.h"
#include "google/protobuf/util/time_util.h"

namespace gaekju::facade {
namespace {

using catalog::v1::Product;
using type::v1::LineItem;
using Lines = google::protobuf::RepeatedPtrField<LineItem>;

constexpr int kCatalogPage = 1000;
// How many numbers a registration tries that somebody else took in the meantime.
constexpr int kNumbersTried = 20;

// How long somebody who orders waits for what the catalog says of the product.
constexpr absl::Duration kLookPatience = absl::Seconds(1);

// What was last seen of products. Bounded, and begun anew when it is full: it is only a cache.
constexpr size_t kProductsSeenMax = 100'000;
class ProductsSeen {
 public:
  void Put(const std::string& shop, const Product& product) {
    absl::MutexLock lock(&mutex_);
    if (products_.size() >= kProductsSeenMax) {
      products_.clear();
      ids_.clear();
    }
    products_[product.product_id()] = product;
    std::string& id = ids_[absl::StrCat(shop, "/", product.display_name())];
    // Of two that are called alike the one that was there first: the shorter or lesser id.
    const auto rank = [](const std::string& text) { return std::make_pair(text.size(), text); };
    if (id.empty() || rank(product.product_id()) < rank(id)) id = product.product_id();
  }
  std::optional<Product> Get(const std::string& product_id) {
    absl::MutexLock lock(&mutex_);
    const auto it = products_.find(product_id);
    if (it == products_.end()) return std::nullopt;
    return it->second;
  }
  std::string IdByName(const std::string& shop, const std::string& name) {
    absl::MutexLock lock(&mutex_);
    const auto it = ids_.find(absl::StrCat(shop, "/", name));
    return it == ids_.end() ? "" : it->second;
  }

 private:
  absl::Mutex mutex_;
  std::map<std::string, Product> products_ ABSL_GUARDED_BY(mutex_);  // by id
  std::map<std::string, std::string> ids_ ABSL_GUARDED_BY(mutex_);   // by "<shop>/<name>"
};
ProductsSeen& Seen() {
  static auto* const seen = new ProductsSeen;
  return *seen;
}

bool IsOfShop(const Call& call, const Product& product) {
  const int32_t number = call.ProductNumber(product.product_id());
  return number > 0 && call.ProductId(int64_t{number}) == product.product_id();
}

absl::StatusOr<Product> GetProduct(Call& call, const std::string& product_id,
                                   absl::Duration patience = absl::Seconds(12)) {
  catalog::v1::GetProductRequest request;
  request.set_product_id(product_id);
  auto response =
      call.Ask<catalog::v1::GetProductResponse>("catalog", "GetProduct", request, patience);
  if (!response.ok()) return response.status();
  return std::move(*response->mutable_product());
}

absl::StatusOr<bool> IsTaken(Call& call, int64_t number) {
  const absl::StatusOr<Product> product = GetProduct(call, call.ProductId(number));
  if (absl::IsNotFound(product.status())) return false;
  if (!product.ok()) return product.status();
  return true;
}

// A free number above one that is taken: the next one, as long as numbers were given out here.
absl::StatusOr<int64_t> FreeNumber(Call& call) {
  int64_t taken = 0;
  int64_t free = 1;
  for (;; free *= 2) {
    const absl::StatusOr<bool> is_taken = IsTaken(call, free);
    if (!is_taken.ok()) return is_taken.status();
    if (!*is_taken) break;
    taken = free;
  }
  while (free - taken > 1) {
    const int64_t middle = taken + (free - taken) / 2;
    const absl::StatusOr<bool> is_taken = IsTaken(call, middle);
    if (!is_taken.ok()) return is_taken.status();
    (*is_taken ? taken : free) = middle;
  }
  return free;
}

absl::StatusOr<Product> CreateProduct(Call& call, const NewProduct& product, int64_t number) {
  catalog::v1::CreateProductRequest request;
  request.set_product_id(call.ProductId(number));
  request.set_display_name(product.name);
  request.mutable_unit_price()->set_currency_code("KRW");
  request.mutable_unit_price()->set_minor_units(product.price);
  request.set_available_count(product.count);
  auto response = call.Ask<catalog::v1::CreateProductResponse>("catalog", "CreateProduct", request);
  if (!response.ok()) return response.status();
  Seen().Put(call.shop(), response->product());
  return std::move(*response->mutable_product());
}

// All products of the shop, by number. The catalog lists those of all shops; the prefix of their
// ids tells whose they are.
absl::StatusOr<std::vector<Product>> AllProducts(Call& call, absl::Duration patience) {
  std::vector<Product> found;
  catalog::v1::ListProductsRequest request;
  request.set_page_size(kCatalogPage);
  do {
    auto page =
        call.Ask<catalog::v1::ListProductsResponse>("catalog", "ListProducts", request, patience);
    if (!page.ok()) return page.status();
    for (Product& product : *page->mutable_products()) {
      if (IsOfShop(call, product)) found.push_back(std::move(product));
    }
    request.set_page_token(page->next_page_token());
  } while (!request.page_token().empty());
  std::sort(found.begin(), found.end(), [&call](const Product& a, const Product& b) {
    return call.ProductNumber(a.product_id()) < call.ProductNumber(b.product_id());
  });
  return found;
}

// The first of what a context lists of an order.
template <class Request, class Response, class Resource>
absl::StatusOr<Resource> FirstOf(
    Call& call, absl::string_view context, absl::string_view method, const std::string& order_id,
    const google::protobuf::RepeatedPtrField<Resource>& (Response::*list)() const,
    absl::string_view reason) {
  Request request;
  request.set_order_id(order_id);
  absl::StatusOr<Response> response = call.Ask<Response>(context, method, request);
  if (!response.ok()) return response.status();
  if (((*response).*list)().empty()) {
    return Error(absl::StatusCode::kNotFound, reason,
                 absl::StrCat(context, " has nothing of this order (yet)"));
  }
  return ((*response).*list)().Get(0);
}

}  // namespace

// ---------------------------------------------------------------- products

absl::StatusOr<Product> RegisterProduct(Call& call, const NewProduct& product) {
  if (product.number < 0 || product.price < 0 || product.count < 0) {
    return Error(absl::StatusCode::kInvalidArgument, "NEGATIVE",
                 "a product's number, price and quantity are not negative");
  }
  if (product.number > 0) return CreateProduct(call, product, product.number);
  // One at a time: two that are registered at once and are alike would get one number, because
  // catalog takes the second for the first asked again. (Of two facades they still would.)
  static auto* const registering = new absl::Mutex;
  absl::MutexLock lock(registering);
  absl::StatusOr<int64_t> number = FreeNumber(call);
  if (!number.ok()) return number.status();
  absl::StatusOr<Product> created = CreateProduct(call, product, *number);
  for (int tried = 1; tried < kNumbersTried && absl::IsAlreadyExists(created.status()); ++tried) {
    created = CreateProduct(call, product, ++*number);
  }
  return created;
}

absl::StatusOr<Product> ProductByNumber(Call& call, int32_t number) {
  return GetProduct(call, call.ProductId(int64_t{number}));
}

absl::StatusOr<Product> SetStock(Call& call, int32_t number, int32_t count) {
  if (count < 0) {
    return Error(absl::StatusCode::kInvalidArgument, "NEGATIVE", "a stock is not negative");
  }
  absl::StatusOr<Product> product = ProductByNumber(call, number);
  if (!product.ok() || product->available_count() == count) return product;
  catalog::v1::AdjustStockRequest request;
  request.set_product_id(product->product_id());
  request.set_delta_count(count - product->available_count());
  request.set_request_id(call.request_id());
  auto response = call.Ask<catalog::v1::AdjustStockResponse>("catalog", "AdjustStock", request);
  if (!response.ok()) return response.status();
  return std::move(*response->mutable_product());
}

absl::StatusOr<std::vector<Product>> ProductsOfShop(Call& call, int32_t size,
                                                    const std::string& cursor,
                                                    std::string* next_cursor) {
  int32_t after = 0;
  if (!cursor.empty() && !absl::SimpleAtoi(cursor, &after)) {
    return Error(absl::StatusCode::kInvalidArgument, "CURSOR_INVALID",
                 "take the cursor from the page before", "cursor");
  }
  absl::StatusOr<std::vector<Product>> all = AllProducts(call, absl::Seconds(12));
  if (!all.ok()) return all.status();
  const size_t page_size = PageSize(size);
  std::vector<Product> page;
  for (Product& product : *all) {
    if (call.ProductNumber(product.product_id()) <= after) continue;
    if (page.size() == page_size) {
      *next_cursor = absl::StrCat(call.ProductNumber(page.back().product_id()));
      break;
    }
    page.push_back(std::move(product));
  }
  return page;
}

absl::StatusOr<Product> LastSeenProduct(Call& call, const std::string& product_id) {
  absl::StatusOr<Product> product = GetProduct(call, product_id, kLookPatience);
  if (product.ok()) {
    Seen().Put(call.shop(), *product);
  } else if (IsUnreachable(product.status())) {
    if (std::optional<Product> seen = Seen().Get(product_id)) return *std::move(seen);
  }
  return product;
}

absl::StatusOr<std::string> ProductIdByName(Call& call, const std::string& name) {
  if (std::string known = Seen().IdByName(call.shop(), name); !known.empty()) return known;
  const absl::StatusOr<std::vector<Product>> all = AllProducts(call, kLookPatience);
  if (!all.ok()) return all.status();
  for (const Product& product : *all) Seen().Put(call.shop(), product);
  for (const Product& product : *all) {
    if (product.display_name() == name) return product.product_id();
  }
  return Error(absl::StatusCode::kNotFound, "PRODUCT_UNKNOWN",
               absl::StrCat("there is no product called \"", name, "\""), "prodNm");
}

// ---------------------------------------------------------------- what belongs to an order

absl::StatusOr<payment::v1::Payment> PaymentOf(Call& call, const std::string& order_id) {
  return FirstOf<payment::v1::ListPaymentsRequest>(call, "payment", "ListPayments", order_id,
                                                   &payment::v1::ListPaymentsResponse::payments,
                                                   "PAYMENT_UNKNOWN");
}

absl::StatusOr<delivery::v1::Delivery> DeliveryOf(Call& call, const std::string& order_id) {
  return FirstOf<delivery::v1::ListDeliveriesRequest>(
      call, "delivery", "ListDeliveries", order_id,
      &delivery::v1::ListDeliveriesResponse::deliveries, "DELIVERY_UNKNOWN");
}

absl::StatusOr<cart::v1::Cart> CartOf(Call& call, const std::string& order_id) {
  return FirstOf<cart::v1::ListCartsRequest>(call, "cart", "ListCarts", order_id,
                                             &cart::v1::ListCartsResponse::carts, "CART_UNKNOWN");
}

absl::StatusOr<assignment::v1::Assignment> AssignmentOf(Call& call, const std::string& order_id) {
  return FirstOf<assignment::v1::ListAssignmentsRequest>(
      call, "assignment", "ListAssignments", order_id,
      &assignment::v1::ListAssignmentsResponse::assignments, "ASSIGNMENT_UNKNOWN");
}

absl::StatusOr<std::vector<OrderRef>> OrderRefs(Call& call, int32_t size, const std::string& cursor,
                                                std::string* next_cursor) {
  std::vector<OrderRef> refs;
  const auto orders = call.Orders(size, cursor, next_cursor);
  if (orders.ok()) {
    for (const auto& order : *orders) refs.push_back({order.order_id(), Narrow(order.number())});
    return refs;
  }
  if (!IsUnreachable(orders.status())) return orders.status();
  const auto views = call.Views(size, cursor, next_cursor);
  if (!views.ok()) return views.status();
  for (const auto& view : *views) refs.push_back({view.order_id(), Narrow(view.number())});
  return refs;
}

// ---------------------------------------------------------------- shapes

int32_t Narrow(int64_t number) {
  return static_cast<int32_t>(std::clamp<int64_t>(number, std::numeric_limits<int32_t>::min(),
                                                  std::numeric_limits<int32_t>::max()));
}

int32_t QuantityOf(const Lines& lines) {
  int64_t sum = 0;
  for (const LineItem& line : lines) sum += line.quantity();
  return Narrow(sum);
}

int32_t ProductNumberOf(const Call& call, const Lines& lines) {
  return lines.empty() ? 0 : call.ProductNumber(lines.Get(0).product_id());
}

std::string TimeText(const google::protobuf::Timestamp& time) {
  if (time.seconds() == 0 && time.nanos() == 0) return "";
  return google::protobuf::util::TimeUtil::ToString(time);
}

bool IsWord(absl::string_view given, std::initializer_list<absl::string_view> words) {
  given = absl::StripAsciiWhitespace(given);
  return std::any_of(words.begin(), words.end(), [given](absl::string_view word) {
    return absl::EqualsIgnoreCase(given, word);
  });
}

absl::Status UnknownStatus(absl::string_view given, absl::string_view known) {
  return Error(absl::StatusCode::kInvalidArgument, "STATUS_UNKNOWN",
               absl::StrCat("the status can become ", known, ", not \"", given, "\""), "status");
}

}  // namespace gaekju::facade
