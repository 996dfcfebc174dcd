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

v1::Payment ToPayment(const Call& call, int32_t number, const payment::v1::Payment& payment) {
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

v1::Delivery ToDelivery(const Call& call, int32_t number, const delivery::v1::Delivery& delivery) {
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

v1::Notification ToNotification(Call& call, const notification::v1::Notice& notice) {
  v1::Notification shown;
  shown.set_id(Narrow(notice.number()));
  if (!notice.order_id().empty()) shown.set_order_id(Narrow(call.NumberOf(notice.order_id())));
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

absl::StatusOr<v1::CreateOrderResponse> CreateOrder(Call& call,
                                                    const v1::CreateOrderRequest& request) {
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

  const absl::StatusOr<order::v1::Order> order = call.PlaceOrder(std::move(wanted));
  if (!order.ok()) return order.status();
  call.Created(absl::StrCat("/orders/", order->number()));
  v1::CreateOrderResponse response;
  *response.mutable_order() = ToOrder(call, *order);
  return response;
}

absl::StatusOr<v1::GetOrderResponse> GetOrder(Call& call, const v1::GetOrderRequest& request) {
  const absl::StatusOr<order::v1::Order> order = call.OrderByNumber(request.id());
  if (!order.ok()) return order.status();
  v1::GetOrderResponse response;
  *response.mutable_order() = ToOrder(call, *order);
  return response;
}

absl::StatusOr<v1::ListOrdersResponse> ListOrders(Call& call,
                                                  const v1::ListOrdersRequest& request) {
  std::string next;
  const auto orders = call.Orders(request.size(), request.cursor(), &next);
  if (!orders.ok()) return orders.status();
  v1::ListOrdersResponse response;
  auto* shown = response.mutable_embedded();
  for (const auto& order : *orders) *shown->add_orders() = ToOrder(call, order);
  *response.mutable_links() = call.PageLinks("/orders", request.size(), next);
  return response;
}

absl::StatusOr<v1::DeleteOrderResponse> DeleteOrder(Call& call,
                                                    const v1::DeleteOrderRequest& request) {
  const absl::StatusOr<order::v1::Order> order = call.CancelOrder(request.id());
  if (!order.ok()) return order.status();
  v1::DeleteOrderResponse response;
  *response.mutable_order() = ToOrder(call, *order);
  return response;
}

absl::StatusOr<v1::UpdateOrderResponse> UpdateOrder(Call& call,
                                                    const v1::UpdateOrderRequest& request) {
  if (!IsWord(request.status(), {"주문취소", "취소", "배송취소", "cancelled", "canceled",
                                 "order cancelled", "order canceled", "ORDER_CANCELLED"})) {
    return UnknownStatus(request.status(), "주문취소");
  }
  const absl::StatusOr<order::v1::Order> order = call.CancelOrder(request.id());
  if (!order.ok()) return order.status();
  v1::UpdateOrderResponse response;
  *response.mutable_order() = ToOrder(call, *order);
  return response;
}

// ---------------------------------------------------------------- products

absl::StatusOr<v1::CreateProductResponse> CreateProduct(Call& call,
                                                        const v1::CreateProductRequest& request) {
  if (request.prod_nm().empty()) {
    return Error(absl::StatusCode::kInvalidArgument, "NAME_MISSING", "a product has a name",
                 "prodNm");
  }
  const auto product =
      RegisterProduct(call, {.name = request.prod_nm(),
                             .price = request.has_price() ? request.price() : kPriceDefault,
                             .count = request.qty()});
  if (!product.ok()) return product.status();
  v1::CreateProductResponse response;
  *response.mutable_product() = ToProduct(call, *product);
  call.Created(absl::StrCat("/products/", response.product().id()));
  return response;
}

absl::StatusOr<v1::GetProductResponse> GetProduct(Call& call,
                                                  const v1::GetProductRequest& request) {
  const auto product = ProductByNumber(call, request.id());
  if (!product.ok()) return product.status();
  v1::GetProductResponse response;
  *response.mutable_product() = ToProduct(call, *product);
  return response;
}

absl::StatusOr<v1::ListProductsResponse> ListProducts(Call& call,
                                                      const v1::ListProductsRequest& request) {
  std::string next;
  const auto products = ProductsOfShop(call, request.size(), request.cursor(), &next);
  if (!products.ok()) return products.status();
  v1::ListProductsResponse response;
  auto* shown = response.mutable_embedded();
  for (const auto& product : *products) *shown->add_products() = ToProduct(call, product);
  *response.mutable_links() = call.PageLinks("/products", request.size(), next);
  return response;
}

absl::StatusOr<v1::UpdateProductResponse> UpdateProduct(Call& call,
                                                        const v1::UpdateProductRequest& request) {
  if (!request.has_qty()) {
    return Error(absl::StatusCode::kInvalidArgument, "QUANTITY_MISSING",
                 "say how many are left: only that can be changed", "qty");
  }
  const auto product = SetStock(call, request.id(), request.qty());
  if (!product.ok()) return product.status();
  v1::UpdateProductResponse response;
  *response.mutable_product() = ToProduct(call, *product);
  return response;
}

// ---------------------------------------------------------------- payments, deliveries

absl::StatusOr<v1::GetPaymentResponse> GetPayment(Call& call,
                                                  const v1::GetPaymentRequest& request) {
  const absl::StatusOr<std::string> order_id = call.OrderIdOf(request.id());
  if (!order_id.ok()) return order_id.status();
  const auto payment = PaymentOf(call, *order_id);
  if (!payment.ok()) return payment.status();
  v1::GetPaymentResponse response;
  *response.mutable_payment() = ToPayment(call, request.id(), *payment);
  return response;
}

absl::StatusOr<v1::ListPaymentsResponse> ListPayments(Call& call,
                                                      const v1::ListPaymentsRequest& request) {
  std::string next;
  const auto refs = OrderRefs(call, request.size(), request.cursor(), &next);
  if (!refs.ok()) return refs.status();
  v1::ListPaymentsResponse response;
  auto* shown = response.mutable_embedded();
  for (const OrderRef& ref : *refs) {
    const auto payment = PaymentOf(call, ref.order_id);
    if (absl::IsNotFound(payment.status())) continue;
    if (!payment.ok()) return payment.status();
    *shown->add_payments() = ToPayment(call, ref.number, *payment);
  }
  *response.mutable_links() = call.PageLinks("/payments", request.size(), next);
  return response;
}

absl::StatusOr<v1::GetDeliveryResponse> GetDelivery(Call& call,
                                                    const v1::GetDeliveryRequest& request) {
  const absl::StatusOr<std::string> order_id = call.OrderIdOf(request.id());
  if (!order_id.ok()) return order_id.status();
  const auto delivery = DeliveryOf(call, *order_id);
  if (!delivery.ok()) return delivery.status();
  v1::GetDeliveryResponse response;
  *response.mutable_delivery() = ToDelivery(call, request.id(), *delivery);
  return response;
}

absl::StatusOr<v1::ListDeliveriesResponse> ListDeliveries(
    Call& call, const v1::ListDeliveriesRequest& request) {
  std::string next;
  const auto refs = OrderRefs(call, request.size(), request.cursor(), &next);
  if (!refs.ok()) return refs.status();
  v1::ListDeliveriesResponse response;
  auto* shown = response.mutable_embedded();
  for (const OrderRef& ref : *refs) {
    const auto delivery = DeliveryOf(call, ref.order_id);
    if (absl::IsNotFound(delivery.status())) continue;
    if (!delivery.ok()) return delivery.status();
    *shown->add_deliveries() = ToDelivery(call, ref.number, *delivery);
  }
  *response.mutable_links() = call.PageLinks("/deliveries", request.size(), next);
  return response;
}

absl::StatusOr<v1::UpdateDeliveryResponse> UpdateDelivery(
    Call& call, const v1::UpdateDeliveryRequest& request) {
  if (!IsWord(request.status(),
              {"배송완료", "delivery completed", "completed", "DELIVERY_COMPLETED", "RECEIVED"})) {
    return UnknownStatus(request.status(), "배송완료");
  }
  const absl::StatusOr<std::string> order_id = call.OrderIdOf(request.id());
  if (!order_id.ok()) return order_id.status();
  const auto delivery = DeliveryOf(call, *order_id);
  if (!delivery.ok()) return delivery.status();
  delivery::v1::ConfirmReceiptRequest receipt;
  receipt.set_delivery_id(delivery->delivery_id());
  const auto confirmed =
      call.Ask<delivery::v1::ConfirmReceiptResponse>("delivery", "ConfirmReceipt", receipt);
  if (!confirmed.ok()) return confirmed.status();
  v1::UpdateDeliveryResponse response;
  *response.mutable_delivery() = ToDelivery(call, request.id(), confirmed->delivery());
  return response;
}

// ---------------------------------------------------------------- notices

absl::StatusOr<v1::GetNotificationResponse> GetNotification(
    Call& call, const v1::GetNotificationRequest& request) {
  notification::v1::ListNoticesRequest wanted;
  wanted.set_storefront(call.storefront());
  wanted.set_number(request.id());
  const auto found =
      call.Ask<notification::v1::ListNoticesResponse>("notification", "ListNotices", wanted);
  if (!found.ok()) return found.status();
  if (request.id() <= 0 || found->notices().empty()) {
    return Error(absl::StatusCode::kNotFound, "NOTICE_UNKNOWN",
                 absl::StrCat("there is no notice ", request.id()));
  }
  v1::GetNotificationResponse response;
  *response.mutable_notification() = ToNotification(call, found->notices(0));
  return response;
}

absl::StatusOr<v1::ListNotificationsResponse> ListNotifications(
    Call& call, const v1::ListNotificationsRequest& request) {
  notification::v1::ListNoticesRequest wanted;
  wanted.set_storefront(call.storefront());
  wanted.set_page_size(PageSize(request.size()));
  wanted.set_page_token(request.cursor());
  if (request.order_id() > 0) {
    absl::StatusOr<std::string> order_id = call.OrderIdOf(request.order_id());
    if (!order_id.ok()) return order_id.status();
    wanted.set_order_id(*std::move(order_id));
  }
  const auto found =
      call.Ask<notification::v1::ListNoticesResponse>("notification", "ListNotices", wanted);
  if (!found.ok()) return found.status();
  v1::ListNotificationsResponse response;
  auto* shown = response.mutable_embedded();
  for (const auto& notice : found->notices()) {
    *shown->add_notifications() = ToNotification(call, notice);
  }
  const std::string& next = found->next_page_token();
  *response.mutable_links() = call.PageLinks("/notifications", request.size(), next);
  if (request.order_id() > 0) {
    const std::string filter = absl::StrCat("orderId=", request.order_id());
    auto& links = *response.mutable_links();
    absl::StrAppend(links.mutable_self()->mutable_href(), "?", filter);
    if (!next.empty()) absl::StrAppend(links.mutable_next()->mutable_href(), "&", filter);
  }
  return response;
}

// ---------------------------------------------------------------- pages

absl::StatusOr<v1::GetSellerPageResponse> GetSellerPage(Call& call,
                                                        const v1::GetSellerPageRequest& request) {
  const absl::StatusOr<view::v1::OrderView> view = call.ViewByNumber(request.id());
  if (!view.ok()) return view.status();
  if (!view->cancelled()) {
    return Error(absl::StatusCode::kNotFound, "CANCEL_UNKNOWN",
                 absl::StrCat("nobody asked to cancel order ", request.id()));
  }
  v1::GetSellerPageResponse response;
  *response.mutable_seller_page() = ToSellerPage(call, *view);
  return response;
}

absl::StatusOr<v1::ListSellerPagesResponse> ListSellerPages(
    Call& call, const v1::ListSellerPagesRequest& request) {
  std::string next;
  const auto views = call.Views(request.size(), request.cursor(), &next, /*cancelled=*/true);
  if (!views.ok()) return views.status();
  v1::ListSellerPagesResponse response;
  auto* shown = response.mutable_embedded();
  for (const auto& view : *views) *shown->add_sellerpages() = ToSellerPage(call, view);
  *response.mutable_links() = call.PageLinks("/sellerpages", request.size(), next);
  return response;
}

absl::StatusOr<v1::GetMyPageResponse> GetMyPage(Call& call, const v1::GetMyPageRequest& request) {
  const absl::StatusOr<view::v1::OrderView> view = call.ViewByNumber(request.id());
  if (!view.ok()) return view.status();
  v1::GetMyPageResponse response;
  *response.mutable_my_page() = ToMyPage(call, *view);
  return response;
}

absl::StatusOr<v1::ListMyPagesResponse> ListMyPages(Call& call,
                                                    const v1::ListMyPagesRequest& request) {
  std::string next;
  const auto views = call.Views(request.size(), request.cursor(), &next);
  if (!views.ok()) return views.status();
  v1::ListMyPagesResponse response;
  auto* shown = response.mutable_embedded();
  for (const auto& view : *views) *shown->add_mypages() = ToMyPage(call, view);
  *response.mutable_links() = call.PageLinks("/mypages", request.size(), next);
  return response;
}

}  // namespace

Shop MealkitShop() {
  Shop shop("mealkit", "gaekju.facade.mealkit.v1.MealkitService");
  // Placing waits for payment, a cancel for the seller's notice: neither holds the other up.
  shop.On("CreateOrder", "payment", CreateOrder);
  shop.On("GetOrder", "order", GetOrder);
  shop.On("ListOrders", "order", ListOrders);
  shop.On("DeleteOrder", "notification", DeleteOrder);
  shop.On("UpdateOrder", "notification", UpdateOrder);
  shop.On("CreateProduct", "catalog", CreateProduct);
  shop.On("GetProduct", "catalog", GetProduct);
  shop.On("ListProducts", "catalog", ListProducts);
  shop.On("UpdateProduct", "catalog", UpdateProduct);
  shop.On("GetPayment", "payment", GetPayment);
  shop.On("ListPayments", "payment", ListPayments);
  shop.On("GetDelivery", "delivery", GetDelivery);
  shop.On("ListDeliveries", "delivery", ListDeliveries);
  shop.On("UpdateDelivery", "delivery", UpdateDelivery);
  shop.On("GetNotification", "notification", GetNotification);
  shop.On("ListNotifications", "notification", ListNotifications);
  shop.On("GetSellerPage", "view", GetSellerPage);
  shop.On("ListSellerPages", "view", ListSellerPages);
  shop.On("GetMyPage", "view", GetMyPage);
  shop.On("ListMyPages", "view", ListMyPages);
  // The document prints none; these are its sibling's.
  shop.DocumentPorts({8081, 8082, 8083, 8084, 8085, 8086, 8087, 8088});
  shop.Example("http POST http://localhost:8088/orders prodId=1 qty=5");
  return shop;
}

}  // namespace gaekju::facade
