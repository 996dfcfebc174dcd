// fashion.cc: the clothes shop's commands (its document; facade contract gaekju.facade.fashion.v1).
#include "facade/facade.h"
#include "facade/lookup.h"
#include "facade/shops.h"
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

// --- orders
v1::Order ToOrder(const Call& call, const order::v1::Order& order) {
  v1::Order out;
  out.set_id(Narrow(order.number()));
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

absl::StatusOr<v1::Order> CreateOrder(Call& call, const v1::CreateOrderRequest& request) {
  order::v1::PlaceOrderRequest place;
  place.set_customer_id(request.customer_id());
  place.set_customer_name(request.customer_name());
  place.set_delivery_address(request.customer_addr());
  type::v1::LineItem& line = *place.add_lines();
  line.set_product_id(call.ProductId(request.product_id()));
  line.set_display_name(request.product_name());
  const int32_t quantity = request.qty() != 0 ? request.qty() : request.quantity();
  line.set_quantity(quantity != 0 ? quantity : 1);
  return Created(call, call.PlaceOrder(std::move(place)), ToOrder);
}

// --- the order view
v1::OrderStatus ToOrderStatus(const Call& call, const view::v1::OrderView& view) {
  v1::OrderStatus out;
  out.set_id(Narrow(view.number()));
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

// --- deliveries: of the delivery context
bool Began(const Delivery& delivery) { return delivery.has_start_time(); }

v1::Delivery ToDelivery(const Call& call, const Numbered<Delivery>& shown) {
  const auto& [number, delivery] = shown;
  v1::Delivery out;
  out.set_id(number);
  out.set_order_id(number);
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

absl::StatusOr<Numbered<Delivery>> BegunDelivery(Call& call, int64_t number) {
  return OfOrderIf<Delivery>(call, number, Began, "NOT_YET",
                             absl::StrCat("order ", number, " has no delivery"));
}

// --- products: on the store's shelf, with the catalog's price and stock
v1::Product ToProduct(const Call& call, const catalog::v1::Product& product) {
  v1::Product out;
  out.set_id(call.ProductNumber(product.product_id()));
  out.set_product_id(product.product_id());
  out.set_name(product.display_name());
  out.set_price(Narrow(product.unit_price().minor_units()));
  out.set_stock(Narrow(product.available_count()));
  *out.mutable_links() =
      call.Links(absl::StrCat("/products/", call.ProductName(product.product_id())));
  return out;
}

absl::StatusOr<v1::Product> CreateProduct(Call& call, const v1::CreateProductRequest& request) {
  if (request.id() <= 0) {
    return Error(absl::StatusCode::kInvalidArgument, "PRODUCT_ID_MISSING",
                 "a product needs a number of its own, from 1", "id");
  }
  const auto product = RegisterProduct(call, {.number = request.id(),
                                              .name = request.name(),
                                              .price = request.price(),
                                              .count = request.stock()});
  if (!product.ok()) return product.status();
  store::v1::RegisterItemRequest item;
  item.set_storefront(call.storefront());
  item.set_product_id(product->product_id());
  item.set_display_name(request.name());
  // Both are idempotent: whoever is told that the store cannot be reached asks again.
  auto registered = call.Ask<store::v1::RegisterItemResponse>("store", "RegisterItem", item);
  if (!registered.ok()) return registered.status();
  return Created(call, product, ToProduct);
}

// What is on the shelf and has a price.
absl::StatusOr<Page<catalog::v1::Product>> ProductsOnTheShelf(Call& call,
                                                              const PageRequest& request) {
  store::v1::ListItemsRequest list;
  list.set_storefront(call.storefront());
  list.set_page_size(PageSize(request.size()));
  list.set_page_token(request.cursor());
  const auto items = call.Ask<store::v1::ListItemsResponse>("store", "ListItems", list);
  if (!items.ok()) return items.status();
  std::vector<std::string> product_ids;
  for (const store::v1::Item& item : items->items()) product_ids.push_back(item.product_id());
  auto products = ProductsOf(call, product_ids);
  if (!products.ok()) return products.status();
  return Page<catalog::v1::Product>{.rows = *std::move(products), .next = items->next_page_token()};
}

}  // namespace

Shop FashionShop() {
  Shop shop("fashion", "gaekju.facade.fashion.v1.FashionService");
  shop.On("CreateOrder", "order", CreateOrder);
  shop.Item("GetOrder", "order", &Call::OrderByNumber, ToOrder);
  shop.Collection<v1::Orders>("ListOrders", "order", "/orders", &Call::Orders, ToOrder,
                              &v1::Orders::Embedded::add_orders);
  shop.Item("DeleteOrder", "order", &Call::CancelOrder, ToOrder);
  shop.Item("GetOrderStatus", "view", &Call::ViewByNumber, ToOrderStatus);
  shop.Collection<v1::OrderStatuses>("ListOrderStatuses", "view", "/orderStatuses", &Call::Views,
                                     ToOrderStatus,
                                     &v1::OrderStatuses::Embedded::add_order_statuses);
  shop.Item("GetDelivery", "delivery", BegunDelivery, ToDelivery);
  shop.Collection<v1::Deliveries>("ListDeliveries", "delivery", "/deliveries",
                                  OfOrders<Delivery, Began>, ToDelivery,
                                  &v1::Deliveries::Embedded::add_deliveries);
  shop.On("CreateProduct", "catalog", CreateProduct);
  shop.Item("GetProduct", "catalog", ProductByNumber, ToProduct);
  shop.Collection<v1::Products>("ListProducts", "store", "/products", ProductsOnTheShelf, ToProduct,
                                &v1::Products::Embedded::add_products);
  shop.StripPrefix("/api/fashion-order");
  shop.DocumentPorts({8080, 8081, 8082});
  shop.Example("http http://fashion-order:8080/orders productId=1 productName=\"Outwear-1\" qty=1");
  return shop;
}

}  // namespace gaekju::facade
