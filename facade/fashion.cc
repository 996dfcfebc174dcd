// fashion.cc: the clothes shop's commands (its document; facade contract gaekju.facade.fashion.v1).
#include <algorithm>
#include <limits>

#include "facade/facade.h"
#include "facade/shops.h"
#include "gaekju/catalog/v1/catalog_service.pb.h"
#include "gaekju/delivery/v1/delivery_service.pb.h"
#include "gaekju/facade/fashion/v1/fashion.pb.h"
#include "gaekju/store/v1/store_service.pb.h"

namespace gaekju::facade {
namespace {

namespace v1 = gaekju::facade::fashion::v1;
using delivery::v1::Delivery;

// The names of the document's events, which its view shows as states.
constexpr char kOrderPlaced[] = "OrderPlaced";
constexpr char kOrderCancelled[] = "OrderCancelled";
constexpr char kDeliveryStarted[] = "DeliveryStarted";
constexpr char kDeliveryCancelled[] = "DeliveryCancelled";
constexpr char kCurrency[] = "KRW";

int32_t Clamped(int64_t value) {
  return static_cast<int32_t>(std::clamp<int64_t>(value, 0, std::numeric_limits<int32_t>::max()));
}

// --- orders
v1::Order ToOrder(const Call& call, const order::v1::Order& order) {
  v1::Order out;
  out.set_id(static_cast<int32_t>(order.number()));
  if (order.lines_size() > 0) {
    out.set_product_id(call.ProductNumber(order.lines(0).product_id()));
    out.set_qty(order.lines(0).quantity());
    out.set_product_name(order.lines(0).display_name());
  }
  out.set_status(StatusOf(order));
  out.set_customer_id(order.customer_id());
  out.set_customer_name(order.customer_name());
  out.set_customer_addr(order.delivery_address());
  *out.mutable_links() = call.Links(absl::StrCat("/orders/", order.number()));
  return out;
}

absl::StatusOr<v1::CreateOrderResponse> CreateOrder(Call& call,
                                                    const v1::CreateOrderRequest& request) {
  order::v1::PlaceOrderRequest place;
  place.set_customer_id(request.customer_id());
  place.set_customer_name(request.customer_name());
  place.set_delivery_address(request.customer_addr());
  type::v1::LineItem& line = *place.add_lines();
  line.set_product_id(call.ProductId(request.product_id()));
  line.set_display_name(request.product_name());
  const int32_t quantity = request.qty() != 0 ? request.qty() : request.quantity();
  line.set_quantity(quantity != 0 ? quantity : 1);
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

// --- the order view
v1::OrderStatus ToOrderStatus(const Call& call, const view::v1::OrderView& view) {
  v1::OrderStatus out;
  out.set_id(static_cast<int32_t>(view.number()));
  if (view.lines_size() > 0) {
    out.set_product_id(call.ProductNumber(view.lines(0).product_id()));
    out.set_qty(view.lines(0).quantity());
    out.set_product_name(view.lines(0).display_name());
  }
  using order::v1::Order;
  const bool cancelled =
      view.order_state() == Order::STATE_CANCELLING || view.order_state() == Order::STATE_CANCELLED;
  out.set_order_status(cancelled ? kOrderCancelled : kOrderPlaced);
  switch (view.delivery_state()) {
    case Delivery::STATE_STARTED:
    case Delivery::STATE_IN_TRANSIT:
    case Delivery::STATE_DELIVERED:
    case Delivery::STATE_RECEIVED:
      out.set_delivery_status(kDeliveryStarted);
      break;
    case Delivery::STATE_CANCELLED:
    case Delivery::STATE_RETURNING:
      out.set_delivery_status(kDeliveryCancelled);
      break;
    default:
      break;
  }
  if (!out.delivery_status().empty()) out.set_delivery_id(out.id());
  out.set_status(StatusOf(view));
  *out.mutable_links() = call.Links(absl::StrCat("/orderStatuses/", view.number()));
  return out;
}

absl::StatusOr<v1::GetOrderStatusResponse> GetOrderStatus(
    Call& call, const v1::GetOrderStatusRequest& request) {
  absl::StatusOr<view::v1::OrderView> view = call.ViewByNumber(request.id());
  if (!view.ok()) return view.status();
  v1::GetOrderStatusResponse response;
  *response.mutable_order_status() = ToOrderStatus(call, *view);
  return response;
}

absl::StatusOr<v1::ListOrderStatusesResponse> ListOrderStatuses(
    Call& call, const v1::ListOrderStatusesRequest& request) {
  std::string next;
  auto views = call.Views(request.size(), request.cursor(), &next);
  if (!views.ok()) return views.status();
  v1::ListOrderStatusesResponse response;
  v1::OrderStatusesEmbedded& embedded = *response.mutable_embedded();
  for (const view::v1::OrderView& view : *views)
    *embedded.add_order_statuses() = ToOrderStatus(call, view);
  *response.mutable_links() = call.PageLinks("/orderStatuses", request.size(), next);
  return response;
}

// --- deliveries: of the delivery context
bool Began(const Delivery& delivery) { return delivery.has_start_time(); }

v1::Delivery ToDelivery(const Call& call, int64_t number, const Delivery& delivery) {
  v1::Delivery out;
  out.set_id(static_cast<int32_t>(number));
  out.set_order_id(static_cast<int32_t>(number));
  if (delivery.lines_size() > 0) {
    out.set_product_id(call.ProductNumber(delivery.lines(0).product_id()));
    out.set_product_name(delivery.lines(0).display_name());
    out.set_quantity(delivery.lines(0).quantity());
  }
  out.set_customer_id(delivery.customer_id());
  out.set_customer_name(delivery.customer_name());
  out.set_delivery_address(delivery.delivery_address());
  const bool cancelled = delivery.state() == Delivery::STATE_CANCELLED ||
                         delivery.state() == Delivery::STATE_RETURNING;
  out.set_delivery_state(cancelled ? kDeliveryCancelled : kDeliveryStarted);
  *out.mutable_links() = call.Links(absl::StrCat("/deliveries/", number));
  return out;
}

absl::StatusOr<v1::GetDeliveryResponse> GetDelivery(Call& call,
                                                    const v1::GetDeliveryRequest& request) {
  absl::StatusOr<std::string> order_id = call.OrderIdOf(request.id());
  if (!order_id.ok()) return order_id.status();
  delivery::v1::ListDeliveriesRequest list;
  list.set_order_id(*order_id);
  auto listed = call.Ask<delivery::v1::ListDeliveriesResponse>("delivery", "ListDeliveries", list);
  if (!listed.ok()) return listed.status();
  for (const Delivery& delivery : listed->deliveries()) {
    if (!Began(delivery)) continue;
    v1::GetDeliveryResponse response;
    *response.mutable_delivery() = ToDelivery(call, request.id(), delivery);
    return response;
  }
  return Error(absl::StatusCode::kNotFound, "NOT_YET",
               absl::StrCat("order ", request.id(), " has no delivery"));
}

absl::StatusOr<v1::ListDeliveriesResponse> ListDeliveries(
    Call& call, const v1::ListDeliveriesRequest& request) {
  std::string next;
  auto deliveries =
      PageOf<Delivery, delivery::v1::ListDeliveriesRequest, delivery::v1::ListDeliveriesResponse>(
          call, "delivery", "ListDeliveries", request.size(), request.cursor(), &next,
          [](const delivery::v1::ListDeliveriesResponse& page) -> const auto& {
            return page.deliveries();
          },
          [&call](const Delivery& delivery) {
            return delivery.storefront() == call.storefront() && Began(delivery);
          });
  if (!deliveries.ok()) return deliveries.status();
  v1::ListDeliveriesResponse response;
  v1::DeliveriesEmbedded& embedded = *response.mutable_embedded();
  for (const Delivery& delivery : *deliveries)
    *embedded.add_deliveries() = ToDelivery(call, call.NumberOf(delivery.order_id()), delivery);
  *response.mutable_links() = call.PageLinks("/deliveries", request.size(), next);
  return response;
}

// --- products: on the store's shelf, with the catalog's price and stock
v1::Product ToProduct(Call& call, const catalog::v1::Product& product) {
  call.RememberPrice(product.product_id(), product.unit_price());
  v1::Product out;
  out.set_id(call.ProductNumber(product.product_id()));
  out.set_product_id(product.product_id());
  out.set_name(product.display_name());
  out.set_price(Clamped(product.unit_price().minor_units()));
  out.set_stock(Clamped(product.available_count()));
  *out.mutable_links() =
      call.Links(absl::StrCat("/products/", call.ProductName(product.product_id())));
  return out;
}

absl::StatusOr<catalog::v1::Product> ProductOf(Call& call, const std::string& product_id) {
  catalog::v1::GetProductRequest request;
  request.set_product_id(product_id);
  auto response = call.Ask<catalog::v1::GetProductResponse>("catalog", "GetProduct", request);
  if (!response.ok()) return response.status();
  return std::move(*response->mutable_product());
}

absl::StatusOr<v1::CreateProductResponse> CreateProduct(Call& call,
                                                        const v1::CreateProductRequest& request) {
  if (request.id() <= 0) {
    return Error(absl::StatusCode::kInvalidArgument, "PRODUCT_ID_MISSING",
                 "a product needs a number of its own, from 1", "id");
  }
  catalog::v1::CreateProductRequest create;
  create.set_product_id(call.ProductId(int64_t{request.id()}));
  create.set_display_name(request.name());
  create.mutable_unit_price()->set_currency_code(kCurrency);
  create.mutable_unit_price()->set_minor_units(request.price());
  create.set_available_count(request.stock());
  auto created = call.Ask<catalog::v1::CreateProductResponse>("catalog", "CreateProduct", create);
  if (!created.ok()) return created.status();
  store::v1::RegisterItemRequest item;
  item.set_storefront(call.storefront());
  item.set_product_id(create.product_id());
  item.set_display_name(request.name());
  // Both are idempotent: whoever is told that the store cannot be reached asks again.
  auto registered = call.Ask<store::v1::RegisterItemResponse>("store", "RegisterItem", item);
  if (!registered.ok()) return registered.status();
  call.Created(absl::StrCat("/products/", request.id()));
  v1::CreateProductResponse response;
  *response.mutable_product() = ToProduct(call, created->product());
  return response;
}

absl::StatusOr<v1::GetProductResponse> GetProduct(Call& call,
                                                  const v1::GetProductRequest& request) {
  absl::StatusOr<catalog::v1::Product> product =
      ProductOf(call, call.ProductId(int64_t{request.id()}));
  if (!product.ok()) return product.status();
  v1::GetProductResponse response;
  *response.mutable_product() = ToProduct(call, *product);
  return response;
}

absl::StatusOr<v1::ListProductsResponse> ListProducts(Call& call,
                                                      const v1::ListProductsRequest& request) {
  store::v1::ListItemsRequest list;
  list.set_storefront(call.storefront());
  list.set_page_size(PageSize(request.size()));
  list.set_page_token(request.cursor());
  auto items = call.Ask<store::v1::ListItemsResponse>("store", "ListItems", list);
  if (!items.ok()) return items.status();
  v1::ListProductsResponse response;
  v1::ProductsEmbedded& embedded = *response.mutable_embedded();
  for (const store::v1::Item& item : items->items()) {
    absl::StatusOr<catalog::v1::Product> product = ProductOf(call, item.product_id());
    if (product.ok()) {
      *embedded.add_products() = ToProduct(call, *product);
    } else if (!absl::IsNotFound(product.status())) {  // on the shelf, and never given a price
      return product.status();
    }
  }
  *response.mutable_links() = call.PageLinks("/products", request.size(), items->next_page_token());
  return response;
}

}  // namespace

Shop FashionShop() {
  Shop shop("fashion", "gaekju.facade.fashion.v1.FashionService");
  shop.On("CreateOrder", "order", CreateOrder);
  shop.On("GetOrder", "order", GetOrder);
  shop.On("ListOrders", "order", ListOrders);
  shop.On("DeleteOrder", "order", DeleteOrder);
  shop.On("GetOrderStatus", "view", GetOrderStatus);
  shop.On("ListOrderStatuses", "view", ListOrderStatuses);
  shop.On("GetDelivery", "delivery", GetDelivery);
  shop.On("ListDeliveries", "delivery", ListDeliveries);
  shop.On("CreateProduct", "catalog", CreateProduct);
  shop.On("GetProduct", "catalog", GetProduct);
  shop.On("ListProducts", "store", ListProducts);
  shop.StripPrefix("/api/fashion-order");
  shop.DocumentPorts({8080, 8081, 8082});
  shop.Example("http http://fashion-order:8080/orders productId=1 productName=\"Outwear-1\" qty=1");
  return shop;
}

}  // namespace gaekju::facade
