// mealkit.cc: the adapter of Mealkit: its contract, in terms of the contexts.

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "facade/facade.h"
#include "facade/lookup.h"
#include "facade/shops.h"
#include "gaekju/delivery/v1/delivery_service.pb.h"
#include "gaekju/facade/mealkit/v1/mealkit.pb.h"
#include "gaekju/notification/v1/notification_service.pb.h"
#include "gaekju/order/v1/order_service.pb.h"

namespace gaekju::facade {
namespace {

namespace v1 = gaekju::facade::mealkit::v1;
using DeliveryState = delivery::v1::Delivery;
using PaymentState = payment::v1::Payment;

// What a product costs whose seller names no price, and what a buyer is shown while catalog is down
// and its price was never seen. Should that be wrong, the step "stock" refuses it, and the order is
// taken back.
constexpr int32_t kPriceDefault = 10'000;
constexpr char kPaymentMethodDefault[] = "card";

// ---------------------------------------------------------------- words

// The documents have no word of its own for a payment's state; these are the shop's.
std::string PaymentWord(PaymentState::State state) {
  switch (state) {
    case PaymentState::STATE_CAPTURED:
      return "결제완료";
    case PaymentState::STATE_REFUNDED:
    case PaymentState::STATE_VOIDED:
      return "결제취소";
    case PaymentState::STATE_DECLINED:
      return "결제거절";
    case PaymentState::STATE_AWAITED:
      return "결제대기";
    default:
      return "";
  }
}

std::string DeliveryWord(DeliveryState::State state) {
  switch (state) {
    case DeliveryState::STATE_STARTED:
      return "배송시작";
    case DeliveryState::STATE_IN_TRANSIT:
      return "배송중";
    case DeliveryState::STATE_DELIVERED:
      return "배송도착";
    case DeliveryState::STATE_RECEIVED:
      return "배송완료";
    case DeliveryState::STATE_CANCELLED:
      return "배송취소";
    case DeliveryState::STATE_RETURNING:
      return "반송중";
    default:
      return "";
  }
}

// "STATE_CAPTURED" -> "CAPTURED".
std::string Code(const std::string& state_name) { return state_name.substr(sizeof("STATE_") - 1); }

// ---------------------------------------------------------------- shapes

v1::Order ToOrder(const Call& call, const order::v1::Order& order) {
  v1::Order shown;
  shown.set_id(Narrow(order.number()));
  shown.set_prod_id(ProductNumberOf(call, order.lines()));
  if (!order.lines().empty()) shown.set_prod_nm(order.lines(0).display_name());
  shown.set_qty(QuantityOf(order.lines()));
  shown.set_status(StatusOf(order));
  shown.set_status_code(order.status_code());
  shown.set_correlation_id(order.order_id());
  *shown.mutable_links() = call.Links(absl::StrCat("/orders/", order.number()));
  return shown;
}

v1::Product ToProduct(const Call& call, const catalog::v1::Product& product) {
  v1::Product shown;
  const int32_t number = call.ProductNumber(product.product_id());
  shown.set_id(number);
  shown.set_prod_nm(product.display_name());
  shown.set_qty(Narrow(product.available_count()));
  shown.set_price(Narrow(product.unit_price().minor_units()));
  *shown.mutable_links() = call.Links(absl::StrCat("/products/", number));
  return shown;
}

v1::Payment ToPayment(const Call& call, const Numbered<PaymentState>& numbered) {
  const auto& [number, payment] = numbered;
  v1::Payment shown;
  shown.set_id(number);
  shown.set_order_id(number);
  shown.set_amount(payment.amount().minor_units());
  shown.set_status(PaymentWord(payment.state()));
  shown.set_status_code(Code(PaymentState::State_Name(payment.state())));
  shown.set_correlation_id(payment.order_id());
  *shown.mutable_links() = call.Links(absl::StrCat("/payments/", number));
  return shown;
}

v1::Delivery ToDelivery(const Call& call, const Numbered<DeliveryState>& numbered) {
  const auto& [number, delivery] = numbered;
  v1::Delivery shown;
  shown.set_id(number);
  shown.set_order_id(number);
  shown.set_prod_id(ProductNumberOf(call, delivery.lines()));
  shown.set_qty(QuantityOf(delivery.lines()));
  shown.set_status(DeliveryWord(delivery.state()));
  shown.set_status_code(Code(DeliveryState::State_Name(delivery.state())));
  shown.set_correlation_id(delivery.order_id());
  *shown.mutable_links() = call.Links(absl::StrCat("/deliveries/", number));
  return shown;
}

v1::Notification ToNotification(const Call& call, const NumberedNotice& numbered) {
  const auto& [number, notice] = numbered;
  v1::Notification shown;
  shown.set_id(Narrow(notice.number()));
  shown.set_order_id(number);
  shown.set_receiver(notice.recipient() == notification::v1::RECIPIENT_SELLER ? "seller" : "buyer");
  shown.set_code(notice.code());
  shown.set_message(notice.text().ko());
  shown.set_create_time(TimeText(notice.create_time()));
  shown.set_correlation_id(notice.order_id());
  *shown.mutable_links() = call.Links(absl::StrCat("/notifications/", notice.number()));
  return shown;
}

v1::SellerPage ToSellerPage(const Call& call, const view::v1::OrderView& view) {
  v1::SellerPage shown;
  shown.set_id(Narrow(view.number()));
  shown.set_order_id(Narrow(view.number()));
  shown.set_prod_id(ProductNumberOf(call, view.lines()));
  if (!view.lines().empty()) shown.set_prod_nm(view.lines(0).display_name());
  shown.set_qty(QuantityOf(view.lines()));
  shown.set_status(StatusOf(view));
  shown.set_status_code(view.status_code());
  shown.set_cancel_time(TimeText(view.cancel_time()));
  shown.set_correlation_id(view.order_id());
  *shown.mutable_links() = call.Links(absl::StrCat("/sellerpages/", view.number()));
  return shown;
}

v1::MyPage ToMyPage(const Call& call, const view::v1::OrderView& view) {
  v1::MyPage shown;
  shown.set_id(Narrow(view.number()));
  shown.set_order_id(Narrow(view.number()));
  shown.set_prod_id(ProductNumberOf(call, view.lines()));
  if (!view.lines().empty()) shown.set_prod_nm(view.lines(0).display_name());
  shown.set_qty(QuantityOf(view.lines()));
  shown.set_status(StatusOf(view));
  shown.set_status_code(view.status_code());
  shown.set_payment_status(PaymentWord(view.payment_state()));
  shown.set_delivery_status(DeliveryWord(view.delivery_state()));
  shown.set_correlation_id(view.order_id());
  *shown.mutable_links() = call.Links(absl::StrCat("/mypages/", view.number()));
  return shown;
}

// ---------------------------------------------------------------- orders

// The catalog's id of what is ordered. While catalog is down, an unknown name is taken for an id:
// an order needs no catalog, and "stock" refuses what there is not.
absl::StatusOr<std::string> OrderedProduct(Call& call, const v1::CreateOrderRequest& request) {
  if (request.prod_id() > 0) return call.ProductId(int64_t{request.prod_id()});
  if (request.prod_id() < 0 || request.prod_nm().empty()) {
    return Error(absl::StatusCode::kInvalidArgument, "PRODUCT_MISSING",
                 "say which product: prodId or prodNm", "prodId");
  }
  absl::StatusOr<std::string> product_id = ProductIdByName(call, request.prod_nm());
  if (IsUnreachable(product_id.status())) return call.ProductId(request.prod_nm());
  return product_id;
}

absl::StatusOr<v1::Order> CreateOrder(Call& call, const v1::CreateOrderRequest& request) {
  const int32_t quantity = request.has_qty() ? request.qty() : 1;
  if (quantity < 1 || quantity > 1'000'000) {
    return Error(absl::StatusCode::kInvalidArgument, "QUANTITY_INVALID", "qty is 1 to 1,000,000",
                 "qty");
  }
  if (request.price() < 0) {
    return Error(absl::StatusCode::kInvalidArgument, "NEGATIVE", "price is not negative", "price");
  }
  const absl::StatusOr<std::string> product_id = OrderedProduct(call, request);
  if (!product_id.ok()) return product_id.status();
  // What the buyer was shown. An order does without the catalog, so that it is taken while that is
  // down.
  const absl::StatusOr<catalog::v1::Product> product = LastSeenProduct(call, *product_id);
  if (!product.ok() && !IsUnreachable(product.status())) return product.status();
  const int64_t price = request.has_price() ? request.price()
                        : product.ok()      ? product->unit_price().minor_units()
                                            : kPriceDefault;

  order::v1::PlaceOrderRequest wanted;
  wanted.set_customer_name(request.customer_name());
  wanted.set_delivery_address(request.address());
  wanted.set_payment_method(request.payment_method().empty() ? kPaymentMethodDefault
                                                             : request.payment_method());
  type::v1::LineItem& line = *wanted.add_lines();
  line.set_product_id(*product_id);
  line.set_display_name(product.ok() ? product->display_name() : request.prod_nm());
  line.set_quantity(quantity);
  wanted.mutable_expected_total()->set_currency_code("KRW");
  wanted.mutable_expected_total()->set_minor_units(price * quantity);

  return Created(call, call.PlaceOrder(std::move(wanted)), ToOrder);
}

absl::StatusOr<v1::Order> UpdateOrder(Call& call, const StatusRequest& request) {
  if (!IsWord(request.status(), {"주문취소", "취소", "배송취소", "cancelled", "canceled",
                                 "order cancelled", "order canceled", "ORDER_CANCELLED"})) {
    return UnknownStatus(request.status(), "주문취소");
  }
  return Shown(call, call.CancelOrder(request.id()), ToOrder);
}

// ---------------------------------------------------------------- products

absl::StatusOr<v1::Product> CreateProduct(Call& call, const v1::CreateProductRequest& request) {
  if (request.prod_nm().empty()) {
    return Error(absl::StatusCode::kInvalidArgument, "NAME_MISSING", "a product has a name",
                 "prodNm");
  }
  return Created(
      call,
      RegisterProduct(call, {.name = request.prod_nm(),
                             .price = request.has_price() ? request.price() : kPriceDefault,
                             .count = request.qty()}),
      ToProduct);
}

absl::StatusOr<v1::Product> UpdateProduct(Call& call, const v1::UpdateProductRequest& request) {
  if (!request.has_qty()) {
    return Error(absl::StatusCode::kInvalidArgument, "QUANTITY_MISSING",
                 "say how many are left: only that can be changed", "qty");
  }
  return Shown(call, SetStock(call, request.id(), request.qty()), ToProduct);
}

// ---------------------------------------------------------------- deliveries, notices

absl::StatusOr<v1::Delivery> UpdateDelivery(Call& call, const StatusRequest& request) {
  if (!IsWord(request.status(),
              {"배송완료", "delivery completed", "completed", "DELIVERY_COMPLETED", "RECEIVED"})) {
    return UnknownStatus(request.status(), "배송완료");
  }
  auto delivery = OfOrder<DeliveryState>(call, request.id());
  if (!delivery.ok()) return delivery.status();
  delivery::v1::ConfirmReceiptRequest receipt;
  receipt.set_delivery_id(delivery->resource.delivery_id());
  auto confirmed =
      call.Ask<delivery::v1::ConfirmReceiptResponse>("delivery", "ConfirmReceipt", receipt);
  if (!confirmed.ok()) return confirmed.status();
  delivery->resource = std::move(*confirmed->mutable_delivery());
  return Shown(call, delivery, ToDelivery);
}

absl::StatusOr<v1::Notifications> ListNotifications(Call& call,
                                                    const v1::ListNotificationsRequest& request) {
  PageRequest page;
  page.set_size(request.size());
  page.set_cursor(request.cursor());
  absl::StatusOr<std::string> order_id = "";
  if (request.order_id() > 0) order_id = call.OrderIdOf(request.order_id());
  if (!order_id.ok()) return order_id.status();
  auto shown = ShownPage<v1::Notifications>(call, "/notifications", request.size(),
                                            NoticesOf(call, page, *order_id), ToNotification,
                                            &v1::Notifications::Embedded::add_notifications);
  if (shown.ok() && request.order_id() > 0) {
    const std::string filter = absl::StrCat("orderId=", request.order_id());
    auto& links = *shown->mutable_links();
    absl::StrAppend(links.mutable_self()->mutable_href(), "?", filter);
    if (links.has_next()) absl::StrAppend(links.mutable_next()->mutable_href(), "&", filter);
  }
  return shown;
}

// ---------------------------------------------------------------- pages

absl::StatusOr<view::v1::OrderView> CancelledView(Call& call, int64_t number) {
  absl::StatusOr<view::v1::OrderView> view = call.ViewByNumber(number);
  if (view.ok() && !view->cancelled()) {
    return Error(absl::StatusCode::kNotFound, "CANCEL_UNKNOWN",
                 absl::StrCat("nobody asked to cancel order ", number));
  }
  return view;
}

}  // namespace

Shop MealkitShop() {
  Shop shop("mealkit", "gaekju.facade.mealkit.v1.MealkitService");
  // Placing waits for payment, a cancel for the seller's notice: neither holds the other up.
  shop.On("CreateOrder", "payment", CreateOrder);
  shop.Item("GetOrder", "order", &Call::OrderByNumber, ToOrder);
  shop.Collection<v1::Orders>("ListOrders", "order", "/orders", &Call::Orders, ToOrder,
                              &v1::Orders::Embedded::add_orders);
  shop.Item("DeleteOrder", "notification", &Call::CancelOrder, ToOrder);
  shop.On("UpdateOrder", "notification", UpdateOrder);
  shop.On("CreateProduct", "catalog", CreateProduct);
  shop.Item("GetProduct", "catalog", ProductByNumber, ToProduct);
  shop.Collection<v1::Products>("ListProducts", "catalog", "/products", ProductsOfShop, ToProduct,
                                &v1::Products::Embedded::add_products);
  shop.On("UpdateProduct", "catalog", UpdateProduct);
  shop.Item("GetPayment", "payment", OfOrder<PaymentState>, ToPayment);
  shop.Collection<v1::Payments>("ListPayments", "payment", "/payments", OfOrders<PaymentState>,
                                ToPayment, &v1::Payments::Embedded::add_payments);
  shop.Item("GetDelivery", "delivery", OfOrder<DeliveryState>, ToDelivery);
  shop.Collection<v1::Deliveries>("ListDeliveries", "delivery", "/deliveries",
                                  OfOrders<DeliveryState>, ToDelivery,
                                  &v1::Deliveries::Embedded::add_deliveries);
  shop.On("UpdateDelivery", "delivery", UpdateDelivery);
  shop.Item("GetNotification", "notification", NoticeByNumber, ToNotification);
  shop.On("ListNotifications", "notification", ListNotifications);
  shop.Item("GetSellerPage", "view", CancelledView, ToSellerPage);
  shop.Collection<v1::SellerPages>("ListSellerPages", "view", "/sellerpages", &Call::CancelledViews,
                                   ToSellerPage, &v1::SellerPages::Embedded::add_sellerpages);
  shop.Item("GetMyPage", "view", &Call::ViewByNumber, ToMyPage);
  shop.Collection<v1::MyPages>("ListMyPages", "view", "/mypages", &Call::Views, ToMyPage,
                               &v1::MyPages::Embedded::add_mypages);
  // The document prints none; these are its sibling's.
  shop.DocumentPorts({8081, 8082, 8083, 8084, 8085, 8086, 8087, 8088});
  shop.Example("http POST http://localhost:8088/orders prodId=1 qty=5");
  return shop;
}

}  // namespace gaekju::facade
