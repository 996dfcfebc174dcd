// myshop.cc: 마이 샾's commands (its document; facade contract gaekju.facade.myshop.v1).
#include "facade/facade.h"
#include "facade/shops.h"
#include "gaekju/delivery/v1/delivery_service.pb.h"
#include "gaekju/facade/myshop/v1/myshop.pb.h"
#include "gaekju/notification/v1/notification_service.pb.h"

namespace gaekju::facade {
namespace {

namespace v1 = gaekju::facade::myshop::v1;
using delivery::v1::Delivery;

// The document's words for a delivery. A cancel is spelled as the document spells it, not as its
// code does.
constexpr char kShipped[] = "SHIPPED";
constexpr char kCancelled[] = "DeliveryCancelled";

v1::Order ToOrder(const Call& call, const order::v1::Order& order) {
  v1::Order out;
  out.set_id(static_cast<int32_t>(order.number()));
  if (order.lines_size() > 0) {
    out.set_product_id(call.ProductName(order.lines(0).product_id()));
    out.set_qty(order.lines(0).quantity());
  }
  out.set_status(StatusOf(order));
  *out.mutable_links() = call.Links(absl::StrCat("/orders/", order.number()));
  return out;
}

// --- orders
absl::StatusOr<v1::CreateOrderResponse> CreateOrder(Call& call,
                                                    const v1::CreateOrderRequest& request) {
  order::v1::PlaceOrderRequest place;
  place.set_customer_id(request.customer_id());
  type::v1::LineItem& line = *place.add_lines();
  line.set_product_id(call.ProductId(request.product_id()));
  line.set_quantity(request.qty());
  absl::StatusOr<order::v1::Order> order = call.PlaceOrder(std::move(place));
  if (!order.ok()) return order.status();
  call.Created(absl::StrCat("/orders/", order->number()));
  v1::CreateOrderResponse response;
  *response.mutable_order() = ToOrder(call, *order);
  return response;
}

absl::StatusOr<v1::GetOrderResponse> GetOrder(Call& call, const v1::GetOrderRequest& request) {
  absl::StatusOr<order::v1::Order> order = call.OrderByNumber(request.id());
  if (!order.ok()) return order.status();
  v1::GetOrderResponse response;
  *response.mutable_order() = ToOrder(call, *order);
  return response;
}

absl::StatusOr<v1::ListOrdersResponse> ListOrders(Call& call,
                                                  const v1::ListOrdersRequest& request) {
  std::string next;
  auto orders = call.Orders(request.size(), request.cursor(), &next);
  if (!orders.ok()) return orders.status();
  v1::ListOrdersResponse response;
  v1::OrdersEmbedded& embedded = *response.mutable_embedded();
  for (const order::v1::Order& order : *orders) *embedded.add_orders() = ToOrder(call, order);
  *response.mutable_links() = call.PageLinks("/orders", request.size(), next);
  return response;
}

absl::StatusOr<v1::DeleteOrderResponse> DeleteOrder(Call& call,
                                                    const v1::DeleteOrderRequest& request) {
  absl::StatusOr<order::v1::Order> order = call.CancelOrder(request.id());
  if (!order.ok()) return order.status();
  v1::DeleteOrderResponse response;
  *response.mutable_order() = ToOrder(call, *order);
  return response;
}

// --- deliveries and their cancellations: of the delivery context, so that they can be read while
// order is down
bool Began(const Delivery& delivery) { return delivery.has_start_time(); }
bool Cancelled(const Delivery& delivery) {
  return delivery.state() == Delivery::STATE_CANCELLED ||
         delivery.state() == Delivery::STATE_RETURNING;
}

v1::Delivery ToDelivery(const Call& call, int64_t number, const Delivery& delivery) {
  v1::Delivery out;
  out.set_id(static_cast<int32_t>(number));
  out.set_order_id(static_cast<int32_t>(number));
  out.set_status(Cancelled(delivery) ? kCancelled : kShipped);
  *out.mutable_links() = call.Links(absl::StrCat("/deliveries/", number));
  return out;
}

v1::Cancellation ToCancellation(const Call& call, int64_t number) {
  v1::Cancellation out;
  out.set_id(static_cast<int32_t>(number));
  out.set_order_id(static_cast<int32_t>(number));
  out.set_status(kCancelled);
  *out.mutable_links() = call.Links(absl::StrCat("/cancellations/", number));
  return out;
}

// A page that has at least one delivery that `wanted` wants, unless it is the last.
absl::StatusOr<std::vector<Delivery>> Deliveries(Call& call, bool (*wanted)(const Delivery&),
                                                 int32_t size, std::string cursor,
                                                 std::string* next) {
  return PageOf<Delivery, delivery::v1::ListDeliveriesRequest,
                delivery::v1::ListDeliveriesResponse>(
      call, "delivery", "ListDeliveries", size, std::move(cursor), next,
      [](const delivery::v1::ListDeliveriesResponse& page) -> const auto& {
        return page.deliveries();
      },
      [&call, wanted](const Delivery& delivery) {
        return delivery.storefront() == call.storefront() && wanted(delivery);
      });
}

absl::StatusOr<Delivery> DeliveryOf(Call& call, int64_t number, bool (*wanted)(const Delivery&),
                                    absl::string_view what) {
  absl::StatusOr<std::string> order_id = call.OrderIdOf(number);
  if (!order_id.ok()) return order_id.status();
  delivery::v1::ListDeliveriesRequest request;
  request.set_order_id(*order_id);
  auto response =
      call.Ask<delivery::v1::ListDeliveriesResponse>("delivery", "ListDeliveries", request);
  if (!response.ok()) return response.status();
  for (Delivery& delivery : *response->mutable_deliveries()) {
    if (wanted(delivery)) return std::move(delivery);
  }
  return Error(absl::StatusCode::kNotFound, "NOT_YET",
               absl::StrCat("order ", number, " has no ", what));
}

absl::StatusOr<v1::GetDeliveryResponse> GetDelivery(Call& call,
                                                    const v1::GetDeliveryRequest& request) {
  absl::StatusOr<Delivery> delivery = DeliveryOf(call, request.id(), Began, "delivery");
  if (!delivery.ok()) return delivery.status();
  v1::GetDeliveryResponse response;
  *response.mutable_delivery() = ToDelivery(call, request.id(), *delivery);
  return response;
}

absl::StatusOr<v1::ListDeliveriesResponse> ListDeliveries(
    Call& call, const v1::ListDeliveriesRequest& request) {
  std::string next;
  auto deliveries = Deliveries(call, Began, request.size(), request.cursor(), &next);
  if (!deliveries.ok()) return deliveries.status();
  v1::ListDeliveriesResponse response;
  v1::DeliveriesEmbedded& embedded = *response.mutable_embedded();
  for (const Delivery& delivery : *deliveries)
    *embedded.add_deliveries() = ToDelivery(call, call.NumberOf(delivery.order_id()), delivery);
  *response.mutable_links() = call.PageLinks("/deliveries", request.size(), next);
  return response;
}

absl::StatusOr<v1::CreateCancellationResponse> CreateCancellation(
    Call& call, const v1::CreateCancellationRequest& request) {
  absl::StatusOr<order::v1::Order> order = call.CancelOrder(request.order_id());
  if (!order.ok()) return order.status();
  call.Created(absl::StrCat("/cancellations/", order->number()));
  v1::CreateCancellationResponse response;
  *response.mutable_cancellation() = ToCancellation(call, order->number());
  return response;
}

absl::StatusOr<v1::GetCancellationResponse> GetCancellation(
    Call& call, const v1::GetCancellationRequest& request) {
  absl::StatusOr<Delivery> delivery = DeliveryOf(call, request.id(), Cancelled, "cancellation");
  if (!delivery.ok()) return delivery.status();
  v1::GetCancellationResponse response;
  *response.mutable_cancellation() = ToCancellation(call, request.id());
  return response;
}

absl::StatusOr<v1::ListCancellationsResponse> ListCancellations(
    Call& call, const v1::ListCancellationsRequest& request) {
  std::string next;
  auto deliveries = Deliveries(call, Cancelled, request.size(), request.cursor(), &next);
  if (!deliveries.ok()) return deliveries.status();
  v1::ListCancellationsResponse response;
  v1::CancellationsEmbedded& embedded = *response.mutable_embedded();
  for (const Delivery& delivery : *deliveries)
    *embedded.add_cancellations() = ToCancellation(call, call.NumberOf(delivery.order_id()));
  *response.mutable_links() = call.PageLinks("/cancellations", request.size(), next);
  return response;
}

// --- notices: of the notification context
using NotificationNotice = notification::v1::Notice;

v1::Notice ToNotice(Call& call, const NotificationNotice& notice) {
  v1::Notice out;
  out.set_id(static_cast<int32_t>(notice.number()));
  out.set_order_id(static_cast<int32_t>(call.NumberOf(notice.order_id())));
  out.set_noti_status(notice.text().ko());
  *out.mutable_links() = call.Links(absl::StrCat("/notices/", notice.number()));
  return out;
}

absl::StatusOr<v1::CreateNoticeResponse> CreateNotice(Call& call,
                                                      const v1::CreateNoticeRequest& request) {
  notification::v1::CreateNoticeRequest create;
  create.set_storefront(call.storefront());
  create.set_request_id(call.request_id());
  if (request.order_id() != 0) {
    absl::StatusOr<std::string> order_id = call.OrderIdOf(request.order_id());
    if (!order_id.ok()) return order_id.status();
    create.set_order_id(*order_id);
  }
  create.set_recipient(notification::v1::RECIPIENT_BUYER);
  create.mutable_text()->set_ko(request.noti_status());
  create.mutable_text()->set_en(request.noti_status());
  auto created =
      call.Ask<notification::v1::CreateNoticeResponse>("notification", "CreateNotice", create);
  if (!created.ok()) return created.status();
  call.Created(absl::StrCat("/notices/", created->notice().number()));
  v1::CreateNoticeResponse response;
  *response.mutable_notice() = ToNotice(call, created->notice());
  return response;
}

absl::StatusOr<v1::GetNoticeResponse> GetNotice(Call& call, const v1::GetNoticeRequest& request) {
  notification::v1::ListNoticesRequest list;
  list.set_storefront(call.storefront());
  list.set_number(request.id());
  list.set_page_size(1);
  const absl::Status unknown = Error(absl::StatusCode::kNotFound, "NOTICE_UNKNOWN",
                                     absl::StrCat("there is no notice ", request.id()));
  if (request.id() <= 0) return unknown;  // 0 would list all
  auto listed =
      call.Ask<notification::v1::ListNoticesResponse>("notification", "ListNotices", list);
  if (!listed.ok()) return listed.status();
  if (listed->notices().empty()) return unknown;
  v1::GetNoticeResponse response;
  *response.mutable_notice() = ToNotice(call, listed->notices(0));
  return response;
}

absl::StatusOr<v1::ListNoticesResponse> ListNotices(Call& call,
                                                    const v1::ListNoticesRequest& request) {
  notification::v1::ListNoticesRequest list;
  list.set_storefront(call.storefront());
  list.set_page_size(PageSize(request.size()));
  list.set_page_token(request.cursor());
  auto listed =
      call.Ask<notification::v1::ListNoticesResponse>("notification", "ListNotices", list);
  if (!listed.ok()) return listed.status();
  v1::ListNoticesResponse response;
  v1::NoticesEmbedded& embedded = *response.mutable_embedded();
  for (const NotificationNotice& notice : listed->notices())
    *embedded.add_notices() = ToNotice(call, notice);
  *response.mutable_links() = call.PageLinks("/notices", request.size(), listed->next_page_token());
  return response;
}

// --- the customer centre: of the view context
v1::MyPage ToMyPage(const Call& call, const view::v1::OrderView& view) {
  v1::MyPage out;
  out.set_id(static_cast<int32_t>(view.number()));
  out.set_order_id(static_cast<int32_t>(view.number()));
  if (view.lines_size() > 0) {
    out.set_product_id(call.ProductName(view.lines(0).product_id()));
    out.set_qty(view.lines(0).quantity());
  }
  out.set_status(StatusOf(view));
  for (const view::v1::NoticeView& notice : view.notices()) {
    if (notice.recipient() != notification::v1::RECIPIENT_SELLER)
      out.set_noti_status(notice.text().ko());
  }
  *out.mutable_links() = call.Links(absl::StrCat("/myPages/", view.number()));
  return out;
}

absl::StatusOr<v1::GetMyPageResponse> GetMyPage(Call& call, const v1::GetMyPageRequest& request) {
  absl::StatusOr<view::v1::OrderView> view = call.ViewByNumber(request.id());
  if (!view.ok()) return view.status();
  v1::GetMyPageResponse response;
  *response.mutable_my_page() = ToMyPage(call, *view);
  return response;
}

absl::StatusOr<v1::ListMyPagesResponse> ListMyPages(Call& call,
                                                    const v1::ListMyPagesRequest& request) {
  std::string next;
  auto views = call.Views(request.size(), request.cursor(), &next);
  if (!views.ok()) return views.status();
  v1::ListMyPagesResponse response;
  v1::MyPagesEmbedded& embedded = *response.mutable_embedded();
  for (const view::v1::OrderView& view : *views) *embedded.add_my_pages() = ToMyPage(call, view);
  *response.mutable_links() = call.PageLinks("/myPages", request.size(), next);
  return response;
}

}  // namespace

Shop MyshopShop() {
  Shop shop("myshop", "gaekju.facade.myshop.v1.MyshopService");
  shop.On("CreateOrder", "order", CreateOrder);
  shop.On("GetOrder", "order", GetOrder);
  shop.On("ListOrders", "order", ListOrders);
  shop.On("DeleteOrder", "order", DeleteOrder);
  shop.On("GetDelivery", "delivery", GetDelivery);
  shop.On("ListDeliveries", "delivery", ListDeliveries);
  shop.On("CreateCancellation", "order", CreateCancellation);
  shop.On("GetCancellation", "delivery", GetCancellation);
  shop.On("ListCancellations", "delivery", ListCancellations);
  shop.On("CreateNotice", "notification", CreateNotice);
  shop.On("GetNotice", "notification", GetNotice);
  shop.On("ListNotices", "notification", ListNotices);
  shop.On("GetMyPage", "view", GetMyPage);
  shop.On("ListMyPages", "view", ListMyPages);
  shop.DocumentPorts({8081, 8082, 8083, 8084, 8088});
  shop.Example("http POST http://localhost:8081/orders productId=1 qty=10");
  return shop;
}

}  // namespace gaekju::facade
