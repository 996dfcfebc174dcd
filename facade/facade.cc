#include "facade/facade.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "facade/backend.h"
#include "flow/turn.h"
#include "gaekju/view/v1/view_service.pb.h"
#include "google/rpc/code.pb.h"
#include "google/rpc/error_details.pb.h"
#include "runtime/uuid.h"

namespace gaekju::facade {
namespace {

constexpr char kDomain[] = "gaekju.facade";
constexpr char kStatusPayload[] = "type.googleapis.com/google.rpc.Status";
constexpr int32_t kPageSizeDefault = 100;
constexpr int32_t kPageSizeMax = 1000;  // of every context's list

absl::Status OrderUnknown(const std::string& storefront, int64_t number) {
  return Error(absl::StatusCode::kNotFound, "ORDER_UNKNOWN",
               absl::StrCat(storefront, " has no order ", number));
}

}  // namespace

int32_t PageSize(int32_t size) {
  return size <= 0 ? kPageSizeDefault : std::min(size, kPageSizeMax);
}

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

absl::Status OfCursor(const absl::Status& status) {
  const google::rpc::Status rpc = ToRpc(status);
  for (const google::protobuf::Any& any : rpc.details()) {
    google::rpc::BadRequest bad;
    if (absl::IsInvalidArgument(status) && any.UnpackTo(&bad) && bad.field_violations_size() > 0 &&
        bad.field_violations(0).field() == "page_token") {
      return Error(absl::StatusCode::kInvalidArgument, "CURSOR_INVALID",
                   "take the cursor from the page before", "cursor");
    }
  }
  return status;
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

absl::flat_hash_map<std::string, int64_t> Call::NumbersOf(
    const std::vector<std::string>& order_ids) {
  absl::flat_hash_map<std::string, int64_t> numbers;
  order::v1::ListOrdersRequest of_order;
  for (const std::string& order_id : order_ids) {
    if (order_id.empty() || numbers.contains(order_id)) continue;
    numbers[order_id] = backend_.NumberOf(order_id);
    if (numbers[order_id] == 0) of_order.add_order_ids(order_id);
  }
  const auto take = [&](const auto& found) {
    for (const auto& one : found) {
      Remember(one.order_id(), one.number());
      numbers[one.order_id()] = one.number();
    }
  };
  if (!of_order.order_ids().empty()) {
    of_order.set_page_size(kPageSizeMax);
    const auto orders = Ask<order::v1::ListOrdersResponse>("order", "ListOrders", of_order);
    if (orders.ok()) {
      take(orders->orders());
    } else if (IsUnreachable(orders.status())) {
      view::v1::ListOrderViewsRequest of_view;
      *of_view.mutable_order_ids() = of_order.order_ids();
      of_view.set_page_size(kPageSizeMax);
      const auto views = Ask<view::v1::ListOrderViewsResponse>("view", "ListOrderViews", of_view);
      if (views.ok()) take(views->order_views());
    }
  }
  absl::erase_if(numbers, [](const auto& entry) { return entry.second == 0; });
  return numbers;
}

int64_t Call::NumberOf(const std::string& order_id) {
  const auto numbers = NumbersOf({order_id});
  const auto it = numbers.find(order_id);
  return it == numbers.end() ? 0 : it->second;
}

absl::StatusOr<order::v1::Order> Call::PlaceOrder(order::v1::PlaceOrderRequest request) {
  request.set_storefront(storefront());
  request.set_request_id(request_id());
  request.set_customer_id(CustomerId(request.customer_id()));
  request.set_payment_method(HideCard(request.payment_method()));
  auto response = Ask<order::v1::PlaceOrderResponse>("order", "PlaceOrder", request);
  if (!response.ok()) return response.status();
  order::v1::Order order = std::move(*response->mutable_order());
  Remember(order.order_id(), order.number());
  return order;
}

std::string Call::HideCard(absl::string_view payment_method) const {
  return backend_.cards().Hide(payment_method, request_id());
}

std::string Call::ShowCard(absl::string_view payment_method) const {
  return backend_.cards().Show(payment_method);
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

namespace {

template <class Response, class Row, class Request>
absl::StatusOr<Page<Row>> Listed(Call& call, absl::string_view context, absl::string_view method,
                                 Request list, const PageRequest& request,
                                 google::protobuf::RepeatedPtrField<Row>* (Response::*rows)(),
                                 absl::Duration timeout = absl::Seconds(12)) {
  list.set_storefront(call.storefront());
  list.set_page_size(PageSize(request.size()));
  list.set_page_token(request.cursor());
  absl::StatusOr<Response> response = call.Ask<Response>(context, method, list, timeout);
  if (!response.ok()) return response.status();
  Page<Row> page{.rows = {}, .next = response->next_page_token()};
  for (Row& row : *((*response).*rows)()) {
    call.Remember(row.order_id(), row.number());
    page.rows.push_back(std::move(row));
  }
  return page;
}

}  // namespace

absl::StatusOr<Page<order::v1::Order>> Call::Orders(const PageRequest& request) {
  return OrdersWithin(request, absl::Seconds(12));
}

absl::StatusOr<Page<order::v1::Order>> Call::OrdersWithin(const PageRequest& request,
                                                          absl::Duration timeout) {
  return Listed(*this, "order", "ListOrders", order::v1::ListOrdersRequest(), request,
                &order::v1::ListOrdersResponse::mutable_orders, timeout);
}

absl::StatusOr<Page<view::v1::OrderView>> Call::Views(const PageRequest& request) {
  return Listed(*this, "view", "ListOrderViews", view::v1::ListOrderViewsRequest(), request,
                &view::v1::ListOrderViewsResponse::mutable_order_views);
}

absl::StatusOr<Page<view::v1::OrderView>> Call::CancelledViews(const PageRequest& request) {
  view::v1::ListOrderViewsRequest list;
  list.set_cancelled(true);
  return Listed(*this, "view", "ListOrderViews", std::move(list), request,
                &view::v1::ListOrderViewsResponse::mutable_order_views);
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

// ---------------------------------------------------------------- answering
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
