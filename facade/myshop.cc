// myshop.cc: 마이 샾's commands (its document; facade contract gaekju.facade.myshop.v1).
#include "facade/facade.h"
#include "facade/lookup.h"
#include "facade/shops.h"
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
  out.set_id(Narrow(order.number()));
  if (order.lines_size() > 0) {
    out.set_product_id(call.ProductName(order.lines(0).product_id()));
    out.set_qty(order.lines(0).quantity());
  }
  out.set_status(StatusOf(order));
  *out.mutable_links() = call.Links(absl::StrCat("/orders/", order.number()));
  return out;
}

// --- orders
absl::StatusOr<v1::Order> CreateOrder(Call& call, const v1::CreateOrderRequest& request) {
  order::v1::PlaceOrderRequest place;
  place.set_customer_id(request.customer_id());
  type::v1::LineItem& line = *place.add_lines();
  line.set_product_id(call.ProductId(request.product_id()));
  line.set_quantity(request.qty());
  return Created(call, call.PlaceOrder(std::move(place)), ToOrder);
}

// --- deliveries and their cancellations: of the delivery context, so that they can be read while
// order is down
bool Began(const Delivery& delivery) { return delivery.has_start_time(); }
bool Cancelled(const Delivery& delivery) {
  return delivery.state() == Delivery::STATE_CANCELLED ||
         delivery.state() == Delivery::STATE_RETURNING;
}

v1::Delivery ToDelivery(const Call& call, const Numbered<Delivery>& delivery) {
  v1::Delivery out;
  out.set_id(delivery.number);
  out.set_order_id(delivery.number);
  out.set_status(Cancelled(delivery.resource) ? kCancelled : kShipped);
  *out.mutable_links() = call.Links(absl::StrCat("/deliveries/", delivery.number));
  return out;
}

v1::Cancellation CancellationOf(const Call& call, int64_t number) {
  v1::Cancellation out;
  out.set_id(Narrow(number));
  out.set_order_id(Narrow(number));
  out.set_status(kCancelled);
  *out.mutable_links() = call.Links(absl::StrCat("/cancellations/", number));
  return out;
}

v1::Cancellation ToCancellation(const Call& call, const Numbered<Delivery>& delivery) {
  return CancellationOf(call, delivery.number);
}

absl::StatusOr<Numbered<Delivery>> BegunDelivery(Call& call, int64_t number) {
  return OfOrderIf<Delivery>(call, number, Began, "NOT_YET",
                             absl::StrCat("order ", number, " has no delivery"));
}

absl::StatusOr<Numbered<Delivery>> CancelledDelivery(Call& call, int64_t number) {
  return OfOrderIf<Delivery>(call, number, Cancelled, "NOT_YET",
                             absl::StrCat("order ", number, " has no cancellation"));
}

absl::StatusOr<v1::Cancellation> CreateCancellation(Call& call,
                                                    const v1::CreateCancellationRequest& request) {
  return Created(call, call.CancelOrder(request.order_id()),
                 [](const Call& c, const order::v1::Order& order) {
                   return CancellationOf(c, order.number());
                 });
}

// --- notices: of the notification context
v1::Notice ToNotice(const Call& call, const NumberedNotice& notice) {
  v1::Notice out;
  out.set_id(Narrow(notice.resource.number()));
  out.set_order_id(notice.number);
  out.set_noti_status(notice.resource.text().ko());
  *out.mutable_links() = call.Links(absl::StrCat("/notices/", notice.resource.number()));
  return out;
}

absl::StatusOr<v1::Notice> CreateNotice(Call& call, const v1::CreateNoticeRequest& request) {
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
  const auto created =
      call.Ask<notification::v1::CreateNoticeResponse>("notification", "CreateNotice", create);
  return Created(call, created, [&](const Call& c, const auto& made) {
    return ToNotice(c, {request.order_id(), made.notice()});
  });
}

// --- the customer centre: of the view context
v1::MyPage ToMyPage(const Call& call, const view::v1::OrderView& view) {
  v1::MyPage out;
  out.set_id(Narrow(view.number()));
  out.set_order_id(Narrow(view.number()));
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

}  // namespace

Shop MyshopShop() {
  Shop shop("myshop", "gaekju.facade.myshop.v1.MyshopService");
  shop.On("CreateOrder", "order", CreateOrder);
  shop.Item("GetOrder", "order", &Call::OrderByNumber, ToOrder);
  shop.Collection<v1::Orders>("ListOrders", "order", "/orders", &Call::Orders, ToOrder,
                              &v1::Orders::Embedded::add_orders);
  shop.Item("DeleteOrder", "order", &Call::CancelOrder, ToOrder);
  shop.Item("GetDelivery", "delivery", BegunDelivery, ToDelivery);
  shop.Collection<v1::Deliveries>("ListDeliveries", "delivery", "/deliveries",
                                  OfOrders<Delivery, Began>, ToDelivery,
                                  &v1::Deliveries::Embedded::add_deliveries);
  shop.On("CreateCancellation", "order", CreateCancellation);
  shop.Item("GetCancellation", "delivery", CancelledDelivery, ToCancellation);
  shop.Collection<v1::Cancellations>("ListCancellations", "delivery", "/cancellations",
                                     OfOrders<Delivery, Cancelled>, ToCancellation,
                                     &v1::Cancellations::Embedded::add_cancellations);
  shop.On("CreateNotice", "notification", CreateNotice);
  shop.Item("GetNotice", "notification", NoticeByNumber, ToNotice);
  shop.Collection<v1::Notices>("ListNotices", "notification", "/notices", Notices, ToNotice,
                               &v1::Notices::Embedded::add_notices);
  shop.Item("GetMyPage", "view", &Call::ViewByNumber, ToMyPage);
  shop.Collection<v1::MyPages>("ListMyPages", "view", "/myPages", &Call::Views, ToMyPage,
                               &v1::MyPages::Embedded::add_my_pages);
  shop.DocumentPorts({8081, 8082, 8083, 8084, 8088});
  shop.Example("http POST http://localhost:8081/orders productId=1 qty=10");
  return shop;
}

}  // namespace gaekju::facade
