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
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "gaekju/assignment/v1/assignment_service.pb.h"
#include "gaekju/cart/v1/cart_service.pb.h"
#include "gaekju/catalog/v1/catalog_service.pb.h"
#include "gaekju/delivery/v1/delivery_service.pb.h"
#include "gaekju/notification/v1/notification_service.pb.h"
#include "gaekju/payment/v1/payment_service.pb.h"
#include "google/protobuf/util/time_util.h"

namespace gaekju::facade {
namespace {

using catalog::v1::Product;
using type::v1::LineItem;
using Lines = google::protobuf::RepeatedPtrField<LineItem>;

constexpr int kPageSizeMax = 1000;  // of every context's list
// How many pages of orders are looked through for one that has anything of what is asked for.
constexpr int kPagesTried = 10;
// How long a page waits for order before view is asked instead.
constexpr absl::Duration kOrderPatience = absl::Seconds(2);
constexpr char kViewCursor[] = "view.";
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

// What the ids of the shop's products begin with: "myshop-".
std::string SeriesOf(const Call& call) { return absl::StrCat(call.shop(), "-"); }

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

// Where the contexts keep what belongs to an order.
template <class Resource>
struct Kept;

template <class Request_, class Response_>
struct KeptIn {
  using Request = Request_;
  using Response = Response_;
};
template <>
struct Kept<payment::v1::Payment>
    : KeptIn<payment::v1::ListPaymentsRequest, payment::v1::ListPaymentsResponse> {
  static constexpr char kContext[] = "payment", kMethod[] = "ListPayments";
  static auto& Rows(Response& response) { return *response.mutable_payments(); }
};
template <>
struct Kept<delivery::v1::Delivery>
    : KeptIn<delivery::v1::ListDeliveriesRequest, delivery::v1::ListDeliveriesResponse> {
  static constexpr char kContext[] = "delivery", kMethod[] = "ListDeliveries";
  static auto& Rows(Response& response) { return *response.mutable_deliveries(); }
};
template <>
struct Kept<cart::v1::Cart> : KeptIn<cart::v1::ListCartsRequest, cart::v1::ListCartsResponse> {
  static constexpr char kContext[] = "cart", kMethod[] = "ListCarts";
  static auto& Rows(Response& response) { return *response.mutable_carts(); }
};
template <>
struct Kept<assignment::v1::Assignment>
    : KeptIn<assignment::v1::ListAssignmentsRequest, assignment::v1::ListAssignmentsResponse> {
  static constexpr char kContext[] = "assignment", kMethod[] = "ListAssignments";
  static auto& Rows(Response& response) { return *response.mutable_assignments(); }
};

// Everything that a request lists, page by page.
template <class Response, class Request, class Use>
absl::Status ForEachPage(Call& call, absl::string_view context, absl::string_view method,
                         Request request, Use use, absl::Duration patience = absl::Seconds(12)) {
  request.set_page_size(kPageSizeMax);
  do {
    absl::StatusOr<Response> page = call.Ask<Response>(context, method, request, patience);
    if (!page.ok()) return page.status();
    use(*page);
    request.set_page_token(page->next_page_token());
  } while (!request.page_token().empty());
  return absl::OkStatus();
}

// The newest wanted one of each of these orders.
template <class Resource>
absl::StatusOr<absl::flat_hash_map<std::string, Resource>> ByOrder(
    Call& call, const std::vector<std::string>& order_ids, Wanted<Resource> wanted) {
  using Source = Kept<Resource>;
  absl::flat_hash_map<std::string, Resource> found;
  if (order_ids.empty()) return found;  // none would list all
  typename Source::Request request;
  for (const std::string& order_id : order_ids) request.add_order_ids(order_id);
  const absl::Status status = ForEachPage<typename Source::Response>(
      call, Source::kContext, Source::kMethod, std::move(request), [&](auto& page) {
        for (Resource& row : Source::Rows(page)) {
          if (wanted(row)) found.try_emplace(row.order_id(), std::move(row));
        }
      });
  if (!status.ok()) return status;
  return found;
}

// A page of the shop's orders, newest first: as order has them, or as view has while order does not
// answer. The cursor tells of which of them it is: neither knows the other's.
absl::StatusOr<Page<Numbered<std::string>>> OrderRefs(Call& call, const PageRequest& request) {
  Page<Numbered<std::string>> refs;
  const auto take = [&](const auto& page) {
    for (const auto& row : page.rows) refs.rows.push_back({Narrow(row.number()), row.order_id()});
    refs.next = page.next;
  };
  PageRequest of_view = request;
  absl::string_view cursor = request.cursor();
  if (!absl::ConsumePrefix(&cursor, kViewCursor)) {
    const auto orders = call.OrdersWithin(request, kOrderPatience);
    if (orders.ok()) {
      take(*orders);
      return refs;
    }
    if (!IsUnreachable(orders.status()) || !cursor.empty()) return orders.status();
  }
  of_view.set_cursor(std::string(cursor));
  const auto views = call.Views(of_view);
  if (!views.ok()) return views.status();
  take(*views);
  if (!refs.next.empty()) refs.next = absl::StrCat(kViewCursor, refs.next);
  return refs;
}

absl::StatusOr<notification::v1::ListNoticesResponse> AskForNotices(
    Call& call, notification::v1::ListNoticesRequest request) {
  request.set_storefront(call.storefront());
  return call.Ask<notification::v1::ListNoticesResponse>("notification", "ListNotices", request);
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

absl::StatusOr<Page<Product>> ProductsOfShop(Call& call, const PageRequest& request) {
  catalog::v1::ListProductsRequest list;
  list.set_series(SeriesOf(call));
  list.set_page_size(PageSize(request.size()));
  list.set_page_token(request.cursor());
  auto listed = call.Ask<catalog::v1::ListProductsResponse>("catalog", "ListProducts", list);
  if (!listed.ok()) return listed.status();
  Page<Product> page{.rows = {}, .next = listed->next_page_token()};
  for (Product& product : *listed->mutable_products()) {
    if (IsOfShop(call, product)) page.rows.push_back(std::move(product));
  }
  return page;
}

absl::StatusOr<std::vector<Product>> ProductsOf(Call& call,
                                                const std::vector<std::string>& product_ids) {
  std::vector<Product> products;
  if (product_ids.empty()) return products;  // none would list all
  catalog::v1::ListProductsRequest list;
  for (const std::string& product_id : product_ids) list.add_product_ids(product_id);
  const absl::Status status = ForEachPage<catalog::v1::ListProductsResponse>(
      call, "catalog", "ListProducts", std::move(list), [&](auto& page) {
        for (Product& product : *page.mutable_products()) products.push_back(std::move(product));
      });
  if (!status.ok()) return status;
  return products;
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
  catalog::v1::ListProductsRequest list;
  list.set_series(SeriesOf(call));
  const absl::Status status = ForEachPage<catalog::v1::ListProductsResponse>(
      call, "catalog", "ListProducts", std::move(list),
      [&call](const auto& page) {
        for (const Product& product : page.products()) {
          if (IsOfShop(call, product)) Seen().Put(call.shop(), product);
        }
      },
      kLookPatience);
  if (!status.ok()) return status;
  if (std::string known = Seen().IdByName(call.shop(), name); !known.empty()) return known;
  return Error(absl::StatusCode::kNotFound, "PRODUCT_UNKNOWN",
               absl::StrCat("there is no product called \"", name, "\""), "prodNm");
}

// ---------------------------------------------------------------- what belongs to an order

template <class Resource>
absl::StatusOr<Numbered<Resource>> OfOrderIf(Call& call, int64_t number, Wanted<Resource> wanted,
                                             absl::string_view reason, absl::string_view message) {
  const absl::StatusOr<std::string> order_id = call.OrderIdOf(number);
  if (!order_id.ok()) return order_id.status();
  auto found = ByOrder<Resource>(call, {*order_id}, wanted);
  if (!found.ok()) return found.status();
  const auto it = found->find(*order_id);
  if (it == found->end()) return Error(absl::StatusCode::kNotFound, reason, message);
  return Numbered<Resource>{Narrow(number), std::move(it->second)};
}

template <class Resource>
absl::StatusOr<Numbered<Resource>> OfOrder(Call& call, int64_t number) {
  const std::string context = Kept<Resource>::kContext;
  return OfOrderIf<Resource>(call, number, Any<Resource>,
                             absl::StrCat(absl::AsciiStrToUpper(context), "_UNKNOWN"),
                             absl::StrCat(context, " has nothing of this order (yet)"));
}

template <class Resource>
absl::StatusOr<Page<Numbered<Resource>>> OfOrdersIf(Call& call, const PageRequest& request,
                                                    Wanted<Resource> wanted) {
  Page<Numbered<Resource>> page;
  PageRequest part = request;
  int tried = 0;
  do {
    const auto refs = OrderRefs(call, part);
    if (!refs.ok()) return refs.status();
    std::vector<std::string> order_ids;
    for (const auto& ref : refs->rows) order_ids.push_back(ref.resource);
    auto found = ByOrder<Resource>(call, order_ids, wanted);
    if (!found.ok()) return found.status();
    for (const auto& ref : refs->rows) {
      const auto it = found->find(ref.resource);
      if (it != found->end()) page.rows.push_back({ref.number, std::move(it->second)});
    }
    page.next = refs->next;
    part.set_cursor(refs->next);
  } while (page.rows.empty() && !page.next.empty() && ++tried < kPagesTried);
  return page;
}

// For each kind of what belongs to an order.
#define GK_OF_ORDER(Resource)                                                                  \
  template absl::StatusOr<Numbered<Resource>> OfOrderIf(Call&, int64_t, Wanted<Resource>,      \
                                                        absl::string_view, absl::string_view); \
  template absl::StatusOr<Numbered<Resource>> OfOrder(Call&, int64_t);                         \
  template absl::StatusOr<Page<Numbered<Resource>>> OfOrdersIf(Call&, const PageRequest&,      \
                                                               Wanted<Resource>);
GK_OF_ORDER(payment::v1::Payment)
GK_OF_ORDER(delivery::v1::Delivery)
GK_OF_ORDER(cart::v1::Cart)
GK_OF_ORDER(assignment::v1::Assignment)
#undef GK_OF_ORDER

// ---------------------------------------------------------------- notices

absl::StatusOr<NumberedNotice> NoticeByNumber(Call& call, int64_t number) {
  const absl::Status unknown = Error(absl::StatusCode::kNotFound, "NOTICE_UNKNOWN",
                                     absl::StrCat("there is no notice ", number));
  if (number <= 0) return unknown;  // 0 would list all
  notification::v1::ListNoticesRequest request;
  request.set_number(number);
  auto found = AskForNotices(call, std::move(request));
  if (!found.ok()) return found.status();
  if (found->notices().empty()) return unknown;
  NumberedNotice notice{0, std::move(*found->mutable_notices(0))};
  notice.number = Narrow(call.NumberOf(notice.resource.order_id()));
  return notice;
}

absl::StatusOr<Page<NumberedNotice>> NoticesOf(Call& call, const PageRequest& request,
                                               const std::string& order_id) {
  notification::v1::ListNoticesRequest list;
  list.set_page_size(PageSize(request.size()));
  list.set_page_token(request.cursor());
  list.set_order_id(order_id);
  auto found = AskForNotices(call, std::move(list));
  if (!found.ok()) return found.status();
  std::vector<std::string> order_ids;
  for (const auto& notice : found->notices()) order_ids.push_back(notice.order_id());
  const auto numbers = call.NumbersOf(order_ids);
  Page<NumberedNotice> page{.rows = {}, .next = found->next_page_token()};
  for (auto& notice : *found->mutable_notices()) {
    const auto it = numbers.find(notice.order_id());
    page.rows.push_back({it == numbers.end() ? 0 : Narrow(it->second), std::move(notice)});
  }
  return page;
}

absl::StatusOr<Page<NumberedNotice>> Notices(Call& call, const PageRequest& request) {
  return NoticesOf(call, request, "");
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
