#include "services/cart/cart.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flow/mutant.h"
#include "flow/step.h"
#include "flow/values.h"
#include "gaekju/cart/v1/cart_events.pb.h"
#include "gaekju/cart/v1/cart_service.pb.h"
#include "google/rpc/code.pb.h"

namespace gaekju::cart {

using flow::Answer;
using flow::Caller;
using flow::RowKey;
using flow::Turn;
using gaekju::cart::v1::Cart;
using gaekju::cart::v1::CartCancelled;
using gaekju::cart::v1::CartFilled;
using gaekju::cart::v1::CartPaid;
using gaekju::cart::v1::CheckOutRequest;
using gaekju::cart::v1::CheckOutResponse;
using gaekju::cart::v1::EmptyRequest;
using gaekju::cart::v1::EmptyResponse;
using gaekju::cart::v1::FillRequest;
using gaekju::cart::v1::FillResponse;
using google::protobuf::Message;

const flow::Table kCarts = {
    "carts",
    &Cart::default_instance(),
    {{"order_id", "order_id"}, {"customer_id", "customer_id"}, {"state", "state"}}};

namespace {

constexpr char kDomain[] = "gaekju.cart.v1.CartService";

// The cart as others may see it: without what only this context keeps.
Cart Shown(const Cart& cart) {
  Cart shown = cart;
  shown.clear_step();
  return shown;
}

bool Show(const Message& row, Message* out) {
  *static_cast<Cart*>(out) = Shown(static_cast<const Cart&>(row));
  return true;
}

template <class Event>
void EmitEvent(const Cart& cart, Turn& turn) {
  Event event;
  *event.mutable_cart() = Shown(cart);
  turn.Emit(kCarts, cart.cart_id(), event, cart.order_id());
}

// --- the step and its undo

google::rpc::Status ValidateFill(const FillRequest& request) {
  return flow::FieldChecks(kDomain)
      .Storefront("storefront", request.storefront())
      .Reference("customer_id", request.customer_id())
      .Lines("lines", request.lines())
      .status();
}

Answer Fill(const FillRequest& request, const Caller&, Cart& cart, Turn& turn) {
  cart.set_cart_id(flow::StepKey(request.order_id(), request.step_id()));
  cart.set_order_id(request.order_id());
  cart.set_storefront(request.storefront());
  cart.set_customer_id(request.customer_id());
  *cart.mutable_lines() = request.lines();
  cart.set_state(Cart::STATE_WAITING);
  *cart.mutable_create_time() = flow::ToTimestamp(turn.now_us());
  EmitEvent<CartFilled>(cart, turn);
  FillResponse response;
  response.set_cart_id(cart.cart_id());
  return flow::Done(response);
}

// A paid cart is emptied too: the money is payment's to return.
Answer Empty(Cart& cart, Turn& turn) {
  GK_CHECK(cart.state() == Cart::STATE_WAITING || cart.state() == Cart::STATE_PAID)
      << cart.cart_id();
  if (!GK_MUTANT(paid_cart_not_emptied) || cart.state() != Cart::STATE_PAID)
    cart.set_state(Cart::STATE_CANCELLED);
  *cart.mutable_cancel_time() = flow::ToTimestamp(turn.now_us());
  EmitEvent<CartCancelled>(cart, turn);
  return flow::Done(EmptyResponse());
}

// Nothing was ever in it, so nothing was taken out: a tombstone, and no event.
void Void(const EmptyRequest& request, Cart& cart, Turn& turn) {
  cart.set_cart_id(flow::StepKey(request.order_id(), request.step_id()));
  cart.set_order_id(request.order_id());
  cart.set_state(Cart::STATE_CANCELLED);
  *cart.mutable_cancel_time() = flow::ToTimestamp(turn.now_us());
}

// --- the payment

google::rpc::Status ValidateCheckOut(const CheckOutRequest& request) {
  auto status = flow::ValidateStepIds(request.order_id(), request.step_id(), kDomain);
  if (status.code() != 0) return status;
  return flow::FieldChecks(kDomain).Key("cart_id", request.cart_id()).status();
}

// Keeps no record of the step: the cart's state is one, and its undo is the cart's own.
Answer CheckOut(const CheckOutRequest& request, const Caller&, Turn& turn) {
  const Cart* found = turn.Find<Cart>(kCarts, request.cart_id());
  if (found == nullptr || found->order_id() != request.order_id()) {
    return flow::Refuse(google::rpc::NOT_FOUND, kDomain, "CART_NOT_FOUND",
                        absl::StrCat("the order has no cart ", request.cart_id()), "cart_id");
  }
  if (found->state() == Cart::STATE_CANCELLED && !GK_MUTANT(emptied_cart_paid)) {
    return flow::Refuse(google::rpc::FAILED_PRECONDITION, kDomain, "CART_CANCELLED",
                        "the cart was emptied", "cart_id");
  }
  if ((found->state() == Cart::STATE_WAITING || GK_MUTANT(emptied_cart_paid)) &&
      !GK_MUTANT(check_out_pays_nothing)) {
    Cart& cart = turn.Edit<Cart>(kCarts, request.cart_id());
    cart.set_state(Cart::STATE_PAID);
    *cart.mutable_pay_time() = flow::ToTimestamp(turn.now_us());
    EmitEvent<CartPaid>(cart, turn);
  }
  return flow::Done(CheckOutResponse());
}

flow::Context MakeContext() {
  flow::Context context;
  context.name = "cart";
  context.service = kDomain;
  context.tables = {&kCarts};
  context.handlers = {
      flow::StepHandler<Cart, FillRequest>(absl::StrCat(kDomain, ".Fill"), kCarts, ValidateFill,
                                           /*more_keys=*/nullptr, Fill),
      flow::UndoHandler<Cart, EmptyRequest>(absl::StrCat(kDomain, ".Empty"), kCarts,
                                            /*held_rows=*/nullptr, Empty, Void),
      std::make_shared<flow::FunctionHandler<CheckOutRequest>>(
          absl::StrCat(kDomain, ".CheckOut"), ValidateCheckOut,
          [](const CheckOutRequest& request, const Caller&, std::vector<RowKey>* keys) {
            keys->push_back({&kCarts, request.cart_id()});
          },
          CheckOut),
  };
  context.gets = {{absl::StrCat(kDomain, ".GetCart"), &kCarts, "cart_id", "cart", Show}};
  context.lists = {{absl::StrCat(kDomain, ".ListCarts"),
                    &kCarts,
                    {"order_id", "customer_id", "order_ids"},
                    "carts",
                    /*newest_first=*/true,
                    Show}};
  return context;
}

}  // namespace

const flow::Context& CartContext() {
  static const flow::Context* const context = new flow::Context(MakeContext());
  return *context;
}

}  // namespace gaekju::cart
