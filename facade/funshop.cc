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
  shown.set_card_no(call.ShowCard(order.payment_method()));
  shown.set_status(OrderWord(order.state()));
  *shown.mutable_links() = call.Links(absl::StrCat("/orders/", order.number()));
  return shown;
}

v1::Payment ToPayment(const Call& call, const Numbered<Payment>& numbered) {
  const auto& [number, payment] = numbered;
  v1::Payment shown;
  shown.set_id(number);
  shown.set_order_id(number);
  shown.set_card_no(call.ShowCard(payment.payment_method()));
  shown.set_status(PaymentWord(payment.state()));
  *shown.mutable_links() = call.Links(absl::StrCat("/paymentLists/", number));
  return shown;
}

v1::Cart ToCart(const Call& call, const Numbered<Cart>& numbered) {
  const auto& [number, cart] = numbered;
  v1::Cart shown;
  shown.set_id(number);
  shown.set_order_id(number);
  shown.set_status(CartWord(cart.state()));
  *shown.mutable_links() = call.Links(absl::StrCat("/carts/", number));
  return shown;
}

v1::Cancellation ToCancellation(const Call& call, const Numbered<Cart>& cart) {
  v1::Cancellation shown;
  shown.set_id(cart.number);
  shown.set_order_id(cart.number);
  shown.set_status(kCartCanceled);
  *shown.mutable_links() = call.Links(absl::StrCat("/cancellations/", cart.number));
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

absl::StatusOr<v1::Order> CreateOrder(Call& call, const v1::CreateOrderRequest& request) {
  const bool cancels = MeansCancel(request.status());
  if (cancels && request.id() <= 0) {
    return Error(absl::StatusCode::kInvalidArgument, "ORDER_MISSING",
                 "say which order is canceled: id is its number", "id");
  }
  return Created(call, cancels ? call.CancelOrder(request.id()) : PlaceOrder(call, request),
                 ToOrder);
}

absl::StatusOr<v1::Order> UpdateOrder(Call& call, const StatusRequest& request) {
  if (!MeansCancel(request.status())) return UnknownStatus(request.status(), kCanceled);
  return Shown(call, call.CancelOrder(request.id()), ToOrder);
}

// ---------------------------------------------------------------- payments

absl::StatusOr<v1::Payment> CreatePayment(Call& call, const v1::CreatePaymentRequest& request) {
  if (request.card_no().empty()) {
    return Error(absl::StatusCode::kInvalidArgument, "CARD_MISSING", "say how it is paid",
                 "cardNo");
  }
  absl::StatusOr<Numbered<Payment>> payment = OfOrder<Payment>(call, request.order_id());
  if (!payment.ok()) return payment.status();
  payment::v1::PayRequest pay;
  pay.set_payment_id(payment->resource.payment_id());
  pay.set_payment_method(call.HideCard(request.card_no()));
  auto paid = call.Ask<payment::v1::PayResponse>("payment", "Pay", pay);
  if (!paid.ok()) return paid.status();
  payment->resource = std::move(*paid->mutable_payment());
  return Created(call, payment, ToPayment);
}

// ---------------------------------------------------------------- carts and their cancellations

// Whether the cart was ever filled: a cancel that overtakes it leaves one that never was.
bool WasFilled(const Cart& cart) { return cart.has_create_time(); }

bool WasCancelled(const Cart& cart) { return cart.state() == Cart::STATE_CANCELLED; }

absl::StatusOr<Numbered<Cart>> FilledCart(Call& call, int64_t number) {
  return OfOrderIf<Cart>(call, number, WasFilled, "CART_UNKNOWN",
                         absl::StrCat("order ", number, " has no cart"));
}

absl::StatusOr<Numbered<Cart>> CancelledCart(Call& call, int64_t number) {
  return OfOrderIf<Cart>(call, number, WasCancelled, "CANCELLATION_UNKNOWN",
                         absl::StrCat("the cart of order ", number, " is not cancelled"));
}

}  // namespace

Shop FunshopShop() {
  Shop shop("funshop", "gaekju.facade.funshop.v1.FunshopService");
  shop.On("CreateOrder", "payment", CreateOrder);
  shop.Item("GetOrder", "order", &Call::OrderByNumber, ToOrder);
  shop.Collection<v1::Orders>("ListOrders", "order", "/orders", &Call::Orders, ToOrder,
                              &v1::Orders::Embedded::add_orders);
  shop.Item("DeleteOrder", "order", &Call::CancelOrder, ToOrder);
  shop.On("UpdateOrder", "order", UpdateOrder);
  shop.On("CreatePayment", "payment", CreatePayment);
  shop.Item("GetPayment", "payment", OfOrder<Payment>, ToPayment);
  shop.Collection<v1::PaymentLists>("ListPayments", "payment", "/paymentLists", OfOrders<Payment>,
                                    ToPayment, &v1::PaymentLists::Embedded::add_payment_lists);
  shop.Item("GetCart", "cart", FilledCart, ToCart);
  shop.Collection<v1::Carts>("ListCarts", "cart", "/carts", OfOrders<Cart, WasFilled>, ToCart,
                             &v1::Carts::Embedded::add_carts);
  shop.Item("GetCancellation", "cart", CancelledCart, ToCancellation);
  shop.Collection<v1::Cancellations>("ListCancellations", "cart", "/cancellations",
                                     OfOrders<Cart, WasCancelled>, ToCancellation,
                                     &v1::Cancellations::Embedded::add_cancellations);
  shop.Item("GetMyPage", "view", &Call::ViewByNumber, ToMyPage);
  shop.Collection<v1::MyPages>("ListMyPages", "view", "/mypages", &Call::Views, ToMyPage,
                               &v1::MyPages::Embedded::add_mypages);
  shop.DocumentPorts({8080, 8081, 8082, 8083, 8084, 8088});
  shop.Example("http :8088/orders id=1 name=David cardNo=12345678999 status=ordered");
  return shop;
}

}  // namespace gaekju::facade
