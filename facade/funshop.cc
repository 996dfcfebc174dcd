// funshop.cc: the adapter of Funshop: its contract, in terms of the contexts.

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "facade/facade.h"
#include "facade/lookup.h"
#include "facade/shops.h"
#include "gaekju/facade/funshop/v1/funshop.pb.h"
#include "gaekju/order/v1/order_service.pb.h"
#include "gaekju/payment/v1/payment_service.pb.h"

namespace gaekju::facade {
namespace {

namespace v1 = gaekju::facade::funshop::v1;
using cart::v1::Cart;
using order::v1::Order;
using payment::v1::Payment;

// The document's words. An order has two, a cart and a payment their own: the storefront's status
// words tell of all three, and are the page's.
constexpr char kOrdered[] = "ordered";
constexpr char kCanceled[] = "canceled";
constexpr char kInYourCart[] = "In your cart";
constexpr char kPaymentComplete[] = "Payment Complete";
constexpr char kCartCanceled[] = "Cart Canceled";
// Orders of the document name no product: the shop sells this one.
constexpr int32_t kProductDefault = 1;

bool MeansCancel(absl::string_view status) {
  return IsWord(status, {kCanceled, "cancelled", "order canceled", "order cancelled"});
}

// ---------------------------------------------------------------- words

bool IsOver(Order::State state) {
  return state == Order::STATE_CANCELLING || state == Order::STATE_CANCELLED ||
         // Refused after it was taken: nobody paid in time.
         state == Order::STATE_REJECTING || state == Order::STATE_REJECTED;
}

const char* OrderWord(Order::State state) { return IsOver(state) ? kCanceled : kOrdered; }

const char* PaymentWord(Payment::State state) {
  switch (state) {
    case Payment::STATE_AWAITED:
      return "Into your cart";
    case Payment::STATE_CAPTURED:
      return kPaymentComplete;
    case Payment::STATE_DECLINED:
      return "Payment Declined";
    case Payment::STATE_REFUNDED:
    case Payment::STATE_VOIDED:
      return "Payment Canceled";
    default:
      return "";
  }
}

const char* CartWord(Cart::State state) {
  switch (state) {
    case Cart::STATE_WAITING:
      return kInYourCart;
    case Cart::STATE_PAID:
      return kPaymentComplete;
    case Cart::STATE_CANCELLED:
      return kCartCanceled;
    default:
      return "";
  }
}

// The page tells where the goods are: in the cart, paid or not, until they are taken out of it.
// (The document shows the page of a paid order as "In your cart", and its cart as "Payment
// Complete".)
const char* PageWord(const view::v1::OrderView& view) {
  if (view.cart_state() == Cart::STATE_CANCELLED) return kCartCanceled;
  if (view.cart_state() == Cart::STATE_UNSPECIFIED || IsOver(view.order_state())) {
    return OrderWord(view.order_state());
  }
  return kInYourCart;
}

// ---------------------------------------------------------------- shapes

v1::Order ToOrder(const Call& call, const Order& order) {
  v1::Order shown;
  shown.set_id(Narrow(order.number()));
  shown.set_name(order.customer_name());
  shown.set_card_no(order.payment_method());
  shown.set_status(OrderWord(order.state()));
  *shown.mutable_links() = call.Links(absl::StrCat("/orders/", order.number()));
  return shown;
}

v1::Payment ToPayment(const Call& call, int32_t number, const Payment& payment) {
  v1::Payment shown;
  shown.set_id(number);
  shown.set_order_id(number);
  shown.set_card_no(payment.payment_method());
  shown.set_status(PaymentWord(payment.state()));
  *shown.mutable_links() = call.Links(absl::StrCat("/paymentLists/", number));
  return shown;
}

v1::Cart ToCart(const Call& call, int32_t number, const Cart& cart) {
  v1::Cart shown;
  shown.set_id(number);
  shown.set_order_id(number);
  shown.set_status(CartWord(cart.state()));
  *shown.mutable_links() = call.Links(absl::StrCat("/carts/", number));
  return shown;
}

v1::Cancellation ToCancellation(const Call& call, int32_t number) {
  v1::Cancellation shown;
  shown.set_id(number);
  shown.set_order_id(number);
  shown.set_status(kCartCanceled);
  *shown.mutable_links() = call.Links(absl::StrCat("/cancellations/", number));
  return shown;
}

v1::MyPage ToMyPage(const Call& call, const view::v1::OrderView& view) {
  v1::MyPage shown;
  const int32_t number = Narrow(view.number());
  shown.set_id(number);
  shown.set_order_id(number);
  shown.mutable_cart_id()->set_null_value(google::protobuf::NULL_VALUE);
  if (!view.cart_id().empty()) shown.mutable_cart_id()->set_number_value(number);
  shown.mutable_cancellation_id()->set_null_value(google::protobuf::NULL_VALUE);
  if (view.cart_state() == Cart::STATE_CANCELLED) {
    shown.mutable_cancellation_id()->set_number_value(number);
  }
  shown.set_name(view.customer_name());
  shown.set_status(PageWord(view));
  shown.set_payment_status(PaymentWord(view.payment_state()));
  *shown.mutable_links() = call.Links(absl::StrCat("/mypages/", number));
  return shown;
}

// ---------------------------------------------------------------- orders

absl::StatusOr<Order> PlaceOrder(Call& call, const v1::CreateOrderRequest& request) {
  const int32_t quantity = request.has_qty() ? request.qty() : 1;
  if (quantity < 1 || quantity > 1'000'000) {
    return Error(absl::StatusCode::kInvalidArgument, "QUANTITY_INVALID", "qty is 1 to 1,000,000",
                 "qty");
  }
  if (request.product_id() < 0) {
    return Error(absl::StatusCode::kInvalidArgument, "PRODUCT_MISSING",
                 "productId is a product's number", "productId");
  }
  order::v1::PlaceOrderRequest wanted;
  wanted.set_customer_name(request.name());
  wanted.set_payment_method(request.card_no());
  type::v1::LineItem& line = *wanted.add_lines();
  line.set_product_id(
      call.ProductId(int64_t{request.product_id() == 0 ? kProductDefault : request.product_id()}));
  line.set_quantity(quantity);
  return call.PlaceOrder(std::move(wanted));
}

absl::StatusOr<v1::CreateOrderResponse> CreateOrder(Call& call,
                                                    const v1::CreateOrderRequest& request) {
  const bool cancels = MeansCancel(request.status());
  if (cancels && request.id() <= 0) {
    return Error(absl::StatusCode::kInvalidArgument, "ORDER_MISSING",
                 "say which order is canceled: id is its number", "id");
  }
  const absl::StatusOr<Order> order =
      cancels ? call.CancelOrder(request.id()) : PlaceOrder(call, request);
  if (!order.ok()) return order.status();
  call.Created(absl::StrCat("/orders/", order->number()));
  v1::CreateOrderResponse response;
  *response.mutable_order() = ToOrder(call, *order);
  return response;
}

absl::StatusOr<v1::GetOrderResponse> GetOrder(Call& call, const v1::GetOrderRequest& request) {
  const absl::StatusOr<Order> order = call.OrderByNumber(request.id());
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
  const absl::StatusOr<Order> order = call.CancelOrder(request.id());
  if (!order.ok()) return order.status();
  v1::DeleteOrderResponse response;
  *response.mutable_order() = ToOrder(call, *order);
  return response;
}

absl::StatusOr<v1::UpdateOrderResponse> UpdateOrder(Call& call,
                                                    const v1::UpdateOrderRequest& request) {
  if (!MeansCancel(request.status())) return UnknownStatus(request.status(), kCanceled);
  const absl::StatusOr<Order> order = call.CancelOrder(request.id());
  if (!order.ok()) return order.status();
  v1::UpdateOrderResponse response;
  *response.mutable_order() = ToOrder(call, *order);
  return response;
}

// ---------------------------------------------------------------- payments

absl::StatusOr<v1::CreatePaymentResponse> CreatePayment(Call& call,
                                                        const v1::CreatePaymentRequest& request) {
  if (request.card_no().empty()) {
    return Error(absl::StatusCode::kInvalidArgument, "CARD_MISSING", "say how it is paid",
                 "cardNo");
  }
  const absl::StatusOr<std::string> order_id = call.OrderIdOf(request.order_id());
  if (!order_id.ok()) return order_id.status();
  const absl::StatusOr<Payment> awaited = PaymentOf(call, *order_id);
  if (!awaited.ok()) return awaited.status();
  payment::v1::PayRequest pay;
  pay.set_payment_id(awaited->payment_id());
  pay.set_payment_method(request.card_no());
  const auto paid = call.Ask<payment::v1::PayResponse>("payment", "Pay", pay);
  if (!paid.ok()) return paid.status();
  call.Created(absl::StrCat("/paymentLists/", request.order_id()));
  v1::CreatePaymentResponse response;
  *response.mutable_payment() = ToPayment(call, request.order_id(), paid->payment());
  return response;
}

absl::StatusOr<v1::GetPaymentResponse> GetPayment(Call& call,
                                                  const v1::GetPaymentRequest& request) {
  const absl::StatusOr<std::string> order_id = call.OrderIdOf(request.id());
  if (!order_id.ok()) return order_id.status();
  const absl::StatusOr<Payment> payment = PaymentOf(call, *order_id);
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
    const absl::StatusOr<Payment> payment = PaymentOf(call, ref.order_id);
    if (absl::IsNotFound(payment.status())) continue;
    if (!payment.ok()) return payment.status();
    *shown->add_payment_lists() = ToPayment(call, ref.number, *payment);
  }
  *response.mutable_links() = call.PageLinks("/paymentLists", request.size(), next);
  return response;
}

// ---------------------------------------------------------------- carts and their cancellations

// Whether the cart was ever filled: a cancel that overtakes it leaves one that never was.
bool WasFilled(const Cart& cart) { return cart.has_create_time(); }

absl::StatusOr<Cart> FilledCartOf(Call& call, int32_t number) {
  const absl::StatusOr<std::string> order_id = call.OrderIdOf(number);
  if (!order_id.ok()) return order_id.status();
  absl::StatusOr<Cart> cart = CartOf(call, *order_id);
  if (cart.ok() && !WasFilled(*cart)) {
    return Error(absl::StatusCode::kNotFound, "CART_UNKNOWN",
                 absl::StrCat("order ", number, " has no cart"));
  }
  return cart;
}

absl::StatusOr<v1::GetCartResponse> GetCart(Call& call, const v1::GetCartRequest& request) {
  const absl::StatusOr<Cart> cart = FilledCartOf(call, request.id());
  if (!cart.ok()) return cart.status();
  v1::GetCartResponse response;
  *response.mutable_cart() = ToCart(call, request.id(), *cart);
  return response;
}

absl::StatusOr<v1::ListCartsResponse> ListCarts(Call& call, const v1::ListCartsRequest& request) {
  std::string next;
  const auto refs = OrderRefs(call, request.size(), request.cursor(), &next);
  if (!refs.ok()) return refs.status();
  v1::ListCartsResponse response;
  auto* shown = response.mutable_embedded();
  for (const OrderRef& ref : *refs) {
    const absl::StatusOr<Cart> cart = CartOf(call, ref.order_id);
    if (absl::IsNotFound(cart.status())) continue;
    if (!cart.ok()) return cart.status();
    if (WasFilled(*cart)) *shown->add_carts() = ToCart(call, ref.number, *cart);
  }
  *response.mutable_links() = call.PageLinks("/carts", request.size(), next);
  return response;
}

absl::StatusOr<v1::GetCancellationResponse> GetCancellation(
    Call& call, const v1::GetCancellationRequest& request) {
  const absl::StatusOr<std::string> order_id = call.OrderIdOf(request.id());
  if (!order_id.ok()) return order_id.status();
  const absl::StatusOr<Cart> cart = CartOf(call, *order_id);
  if (!cart.ok()) return cart.status();
  if (cart->state() != Cart::STATE_CANCELLED) {
    return Error(absl::StatusCode::kNotFound, "CANCELLATION_UNKNOWN",
                 absl::StrCat("the cart of order ", request.id(), " is not cancelled"));
  }
  v1::GetCancellationResponse response;
  *response.mutable_cancellation() = ToCancellation(call, request.id());
  return response;
}

absl::StatusOr<v1::ListCancellationsResponse> ListCancellations(
    Call& call, const v1::ListCancellationsRequest& request) {
  std::string next;
  const auto refs = OrderRefs(call, request.size(), request.cursor(), &next);
  if (!refs.ok()) return refs.status();
  v1::ListCancellationsResponse response;
  auto* shown = response.mutable_embedded();
  for (const OrderRef& ref : *refs) {
    const absl::StatusOr<Cart> cart = CartOf(call, ref.order_id);
    if (absl::IsNotFound(cart.status())) continue;
    if (!cart.ok()) return cart.status();
    if (cart->state() == Cart::STATE_CANCELLED) {
      *shown->add_cancellations() = ToCancellation(call, ref.number);
    }
  }
  *response.mutable_links() = call.PageLinks("/cancellations", request.size(), next);
  return response;
}

// ---------------------------------------------------------------- pages

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

Shop FunshopShop() {
  Shop shop("funshop", "gaekju.facade.funshop.v1.FunshopService");
  shop.On("CreateOrder", "payment", CreateOrder);
  shop.On("GetOrder", "order", GetOrder);
  shop.On("ListOrders", "order", ListOrders);
  shop.On("DeleteOrder", "order", DeleteOrder);
  shop.On("UpdateOrder", "order", UpdateOrder);
  shop.On("CreatePayment", "payment", CreatePayment);
  shop.On("GetPayment", "payment", GetPayment);
  shop.On("ListPayments", "payment", ListPayments);
  shop.On("GetCart", "cart", GetCart);
  shop.On("ListCarts", "cart", ListCarts);
  shop.On("GetCancellation", "cart", GetCancellation);
  shop.On("ListCancellations", "cart", ListCancellations);
  shop.On("GetMyPage", "view", GetMyPage);
  shop.On("ListMyPages", "view", ListMyPages);
  shop.DocumentPorts({8080, 8081, 8082, 8083, 8084, 8088});
  shop.Example("http :8088/orders id=1 name=David cardNo=12345678999 status=ordered");
  return shop;
}

}  // namespace gaekju::facade
