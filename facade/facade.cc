#include "facade/facade.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "facade/backend.h"
#include "flow/turn.h"
#include "gaekju/catalog/v1/catalog_service.pb.h"
#include "gaekju/view/v1/view_service.pb.h"
#include "google/rpc/code.pb.h"
#include "runtime/uuid.h"

namespace gaekju::facade {
namespace {

constexpr char kDomain[] = "gaekju.facade";
constexpr char kStatusPayload[] = "type.googleapis.com/google.rpc.Status";
constexpr int32_t kPageSizeDefault = 100;

absl::Status OrderUnknown(const std::string& storefront, int64_t number) {
  return Error(absl::StatusCode::kNotFound, "ORDER_UNKNOWN",
               absl::StrCat(storefront, " has no order ", number));
}

}  // namespace

int32_t PageSize(int32_t size) { return size <= 0 ? kPageSizeDefault : std::min(size, 1000); }

// ---------------------------------------------------------------- errors
absl::Status FromRpc(const google::rpc::Status& status) {
  if (status.code() == 0) return absl::OkStatus();
  absl::Status out(static_cast<absl::StatusCode>(status.code()), status.message());
  out.SetPayload(kStatusPayload, absl::Cord(status.SerializeAsString()));
  return out;
}

google::rpc::Status ToRpc(const absl::Status& status) {
  google::rpc::Status out;
  if (status.ok()) return out;
  if (const auto payload = status.GetPayload(kStatusPayload);
      payload && out.ParseFromString(std::string(*payload))) {
    return out;
  }
  return flow::MakeStatus(static_cast<int>(status.code()), kDomain, "FACADE_FAILED",
                          status.message());
}

absl::Status Error(absl::StatusCode code, absl::string_view reason, absl::string_view message,
                   absl::string_view field) {
  return FromRpc(flow::MakeStatus(static_cast<int>(code), kDomain, reason, message, field));
}

bool IsUnreachable(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsResourceExhausted(status);
}

std::string ReasonOf(const absl::Status& status) { return flow::ReasonOf(ToRpc(status)); }

// ---------------------------------------------------------------- who and what
const std::string& Call::storefront() const { return backend_.StorefrontOf(shop_); }

const std::string& Call::request_id() const {
  if (state_.request_id.empty()) {
    state_.request_id = state_.Header("idempotency-key");
    if (state_.request_id.empty()) state_.request_id = runtime::NewUuid();
  }
  return state_.request_id;
}

std::string Call::CustomerId(absl::string_view given) {
  return given.empty() ? "guest" : std::string(given);
}

absl::Duration Call::time_left() const {
  return std::max(absl::FromUnixMicros(state_.context.deadline_us) - absl::Now(),
                  absl::Milliseconds(1));
}

absl::Status Call::Ask(absl::string_view context, absl::string_view method,
                       const google::protobuf::Message& request,
                       google::protobuf::Message* response, absl::Duration timeout) {
  return backend_.Ask(state_, context, method, request, response, std::min(timeout, time_left()));
}

// ---------------------------------------------------------------- orders
void Call::Remember(const std::string& order_id, int64_t number) {
  backend_.Remember(storefront(), order_id, number);
}

absl::StatusOr<order::v1::Order> Call::OrderByNumber(int64_t number) {
  if (number <= 0) return OrderUnknown(storefront(), number);  // 0 would list all
  if (const auto known = backend_.OrderIdOf(storefront(), number)) {
    order::v1::GetOrderRequest request;
    request.set_order_id(*known);
    auto response = Ask<order::v1::GetOrderResponse>("order", "GetOrder", request);
    if (response.ok()) return std::move(*response->mutable_order());
    if (absl::IsNotFound(response.status())) return OrderUnknown(storefront(), number);
    return response.status();
  }
  order::v1::ListOrdersRequest request;
  request.set_storefront(storefront());
  request.set_number(number);
  request.set_page_size(1);
  auto response = Ask<order::v1::ListOrdersResponse>("order", "ListOrders", request);
  if (!response.ok()) return response.status();
  if (response->orders().empty()) return OrderUnknown(storefront(), number);
  order::v1::Order order = std::move(*response->mutable_orders(0));
  Remember(order.order_id(), order.number());
  return order;
}

absl::StatusOr<view::v1::OrderView> Call::ViewByNumber(int64_t number) {
  if (number <= 0) return OrderUnknown(storefront(), number);
  view::v1::ListOrderViewsRequest request;
  request.set_storefront(storefront());
  request.set_number(number);
  request.set_page_size(1);
  auto response = Ask<view::v1::ListOrderViewsResponse>("view", "ListOrderViews", request);
  if (!response.ok()) return response.status();
  if (response->order_views().empty()) return OrderUnknown(storefront(), number);
  view::v1::OrderView view = std::move(*response->mutable_order_views(0));
  Remember(view.order_id(), view.number());
  return view;
}

absl::StatusOr<std::string> Call::OrderIdOf(int64_t number) {
  if (const auto known = backend_.OrderIdOf(storefront(), number)) return *known;
  absl::StatusOr<order::v1::Order> order = OrderByNumber(number);
  if (order.ok()) return order->order_id();
  if (!IsUnreachable(order.status())) return order.status();
  absl::StatusOr<view::v1::OrderView> view = ViewByNumber(number);
  if (view.ok()) return view->order_id();
  // The view is a little late: that it does not know the order says nothing.
  return order.status();
}

int64_t Call::NumberOf(const std::string& order_id) {
  if (order_id.empty()) return 0;
  if (const int64_t known = backend_.NumberOf(order_id); known != 0) return known;
  order::v1::GetOrderRequest request;
  request.set_order_id(order_id);
  int64_t number = 0;
  if (auto order = Ask<order::v1::GetOrderResponse>("order", "GetOrder", request); order.ok()) {
    number = order->order().number();
  } else if (IsUnreachable(order.status())) {
    view::v1::GetOrderViewRequest view_request;
    view_request.set_order_id(order_id);
    auto view = Ask<view::v1::GetOrderViewResponse>("view", "GetOrderView", view_request);
    if (view.ok()) number = view->order_view().number();
  }
  if (number != 0) Remember(order_id, number);
  return number;
}

absl::StatusOr<order::v1::Order> Call::PlaceOrder(order::v1::PlaceOrderRequest request) {
  request.set_storefront(storefront());
  request.set_request_id(request_id());
  request.set_customer_id(CustomerId(request.customer_id()));
  auto response = Ask<order::v1::PlaceOrderResponse>("order", "PlaceOrder", request);
  if (!response.ok()) return response.status();
  order::v1::Order order = std::move(*response->mutable_order());
  Remember(order.order_id(), order.number());
  return order;
}

absl::StatusOr<order::v1::Order> Call::CancelOrder(int64_t number) {
  absl::StatusOr<std::string> order_id = OrderIdOf(number);
  if (!order_id.ok()) return order_id.status();
  order::v1::CancelOrderRequest request;
  request.set_order_id(*order_id);
  auto response = Ask<order::v1::CancelOrderResponse>("order", "CancelOrder", request);
  if (!response.ok()) return response.status();
  return std::move(*response->mutable_order());
}

absl::StatusOr<std::vector<order::v1::Order>> Call::Orders(int32_t size, const std::string& cursor,
                                                           std::string* next_cursor) {
  order::v1::ListOrdersRequest request;
  request.set_storefront(storefront());
  request.set_page_size(PageSize(size));
  request.set_page_token(cursor);
  auto response = Ask<order::v1::ListOrdersResponse>("order", "ListOrders", request);
  if (!response.ok()) return response.status();
  *next_cursor = response->next_page_token();
  std::vector<order::v1::Order> orders;
  for (order::v1::Order& order : *response->mutable_orders()) {
    Remember(order.order_id(), order.number());
    orders.push_back(std::move(order));
  }
  return orders;
}

absl::StatusOr<std::vector<view::v1::OrderView>> Call::Views(int32_t size,
                                                             const std::string& cursor,
                                                             std::string* next_cursor,
                                                             bool cancelled) {
  view::v1::ListOrderViewsRequest request;
  request.set_storefront(storefront());
  request.set_page_size(PageSize(size));
  request.set_page_token(cursor);
  request.set_cancelled(cancelled);
  auto response = Ask<view::v1::ListOrderViewsResponse>("view", "ListOrderViews", request);
  if (!response.ok()) return response.status();
  *next_cursor = response->next_page_token();
  std::vector<view::v1::OrderView> views;
  for (view::v1::OrderView& view : *response->mutable_order_views()) {
    Remember(view.order_id(), view.number());
    views.push_back(std::move(view));
  }
  return views;
}

// ---------------------------------------------------------------- products
std::string Call::ProductId(absl::string_view number) const {
  int64_t value = 0;
  if (!absl::SimpleAtoi(number, &value)) return std::string(number);
  return absl::StrCat(shop_, "-", value);
}

std::string Call::ProductId(int64_t number) const { return absl::StrCat(shop_, "-", number); }

std::string Call::ProductName(absl::string_view product_id) const {
  absl::string_view rest = product_id;
  int64_t value = 0;
  if (absl::ConsumePrefix(&rest, absl::StrCat(shop_, "-")) && absl::SimpleAtoi(rest, &value))
    return std::string(rest);
  return std::string(product_id);
}

int32_t Call::ProductNumber(absl::string_view product_id) const {
  int32_t value = 0;
  return absl::SimpleAtoi(ProductName(product_id), &value) ? value : 0;
}

absl::StatusOr<type::v1::Money> Call::Price(const std::string& product_id) {
  catalog::v1::GetProductRequest request;
  request.set_product_id(product_id);
  // Whoever waits for the price waits for the order too; so not long.
  auto response =
      Ask<catalog::v1::GetProductResponse>("catalog", "GetProduct", request, absl::Seconds(1));
  if (response.ok()) {
    RememberPrice(product_id, response->product().unit_price());
    return response->product().unit_price();
  }
  if (!IsUnreachable(response.status())) return response.status();
  if (const auto known = backend_.PriceOf(product_id)) return *known;
  return response.status();
}

void Call::RememberPrice(const std::string& product_id, const type::v1::Money& price) {
  backend_.RememberPrice(product_id, price);
}

// ---------------------------------------------------------------- answering
void Call::Created(absl::string_view path) {
  SetHttpStatus(201);
  SetHeader("location", Url(path));
}

void Call::SetHttpStatus(int status) { SetHeader(kStatusHeader, absl::StrCat(status)); }

void Call::SetHeader(absl::string_view name, absl::string_view value) {
  for (auto& [known, old] : state_.headers) {
    if (known == name) {
      old = std::string(value);
      return;
    }
  }
  state_.headers.emplace_back(std::string(name), std::string(value));
}

std::string Call::Url(absl::string_view path) const {
  const std::string host = state_.Header(kHostHeader);
  if (host.empty())
    return std::string(path);  // a gRPC caller, which did not come through a listener
  const std::string scheme = state_.Header("x-forwarded-proto");
  return absl::StrCat(scheme == "https" ? "https" : "http", "://", host,
                      state_.Header(kPrefixHeader), path);
}

hal::v1::Links Call::Links(absl::string_view path) const {
  hal::v1::Links links;
  links.mutable_self()->set_href(Url(path));
  return links;
}

hal::v1::Links Call::PageLinks(absl::string_view path, int32_t size,
                               const std::string& next_cursor) const {
  hal::v1::Links links = Links(path);
  if (!next_cursor.empty()) {
    links.mutable_next()->set_href(
        Url(absl::StrCat(path, "?size=", PageSize(size), "&cursor=", PercentEncode(next_cursor))));
  }
  return links;
}

std::string StatusOf(const order::v1::Order& order) { return order.status_text().ko(); }
std::string StatusOf(const view::v1::OrderView& view) { return view.status_text().ko(); }

}  // namespace gaekju::facade
