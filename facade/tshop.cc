// tshop.cc: the adapter of Tshop: its contract, in terms of the contexts.

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "facade/facade.h"
#include "facade/lookup.h"
#include "facade/shops.h"
#include "gaekju/assignment/v1/assignment_service.pb.h"
#include "gaekju/facade/tshop/v1/tshop.pb.h"
#include "gaekju/order/v1/order_service.pb.h"

namespace gaekju::facade {
namespace {

namespace v1 = gaekju::facade::tshop::v1;
using assignment::v1::Assignment;

constexpr char kAccepted[] = "예약접수완료";
constexpr char kPickedUp[] = "수령완료";
constexpr char kPickedUpCode[] = "PICKED_UP";
// What a product costs whose seller names no price, in won. Nobody pays in this shop: the operator
// bills the phone later.
constexpr int32_t kPriceDefault = 1'000'000;

bool MeansCancel(absl::string_view status) {
  return IsWord(status, {"예약취소", "취소", "cancelled", "canceled", "cancel"});
}

bool MeansPickup(absl::string_view status) {
  return IsWord(status, {kPickedUp, "수령", kPickedUpCode, "picked up"});
}

// ---------------------------------------------------------------- shapes

v1::Reservation ToReservation(const Call& call, const order::v1::Order& order) {
  v1::Reservation shown;
  shown.set_reservation_id(Narrow(order.number()));
  shown.set_product_id(ProductNumberOf(call, order.lines()));
  shown.set_status(StatusOf(order));
  shown.set_status_code(order.status_code());
  *shown.mutable_links() = call.Links(absl::StrCat("/reservations/", order.number()));
  return shown;
}

// Whether an agency has the reservation, or had it until the buyer came.
bool IsShown(const Assignment& assignment) {
  return assignment.state() == Assignment::STATE_ASSIGNED ||
         assignment.state() == Assignment::STATE_PICKED_UP;
}

v1::Assignment ToAssignment(const Call& call, int32_t number, const Assignment& assignment) {
  v1::Assignment shown;
  shown.set_assignment_id(number);
  shown.set_reservation_id(number);
  shown.set_product_id(ProductNumberOf(call, assignment.lines()));
  shown.set_agency_name(assignment.agency_name());
  shown.set_status(assignment.state() == Assignment::STATE_PICKED_UP ? kPickedUp : kAccepted);
  shown.set_distance_metres(assignment.distance_metres());
  *shown.mutable_links() = call.Links(absl::StrCat("/assignments/", number));
  return shown;
}

v1::Product ToProduct(const Call& call, const catalog::v1::Product& product) {
  v1::Product shown;
  const int32_t number = call.ProductNumber(product.product_id());
  shown.set_product_id(number);
  shown.set_product_name(product.display_name());
  shown.set_quantity(Narrow(product.available_count()));
  shown.set_price(Narrow(product.unit_price().minor_units()));
  *shown.mutable_links() = call.Links(absl::StrCat("/products/", number));
  return shown;
}

v1::ReservationPage ToPage(const Call& call, const view::v1::OrderView& view) {
  v1::ReservationPage shown;
  shown.set_id(Narrow(view.number()));
  shown.set_reservation_id(Narrow(view.number()));
  shown.set_product_id(ProductNumberOf(call, view.lines()));
  shown.set_status(StatusOf(view));
  shown.set_agency_name(view.agency_name());
  *shown.mutable_links() = call.Links(absl::StrCat("/reservationPages/", view.number()));
  return shown;
}

// ---------------------------------------------------------------- reservations

absl::StatusOr<v1::CreateReservationResponse> CreateReservation(
    Call& call, const v1::CreateReservationRequest& request) {
  if (request.product_id() <= 0) {
    return Error(absl::StatusCode::kInvalidArgument, "PRODUCT_MISSING",
                 "say which product: productId is its number", "productId");
  }
  if (request.has_latitude() != request.has_longitude()) {
    return Error(absl::StatusCode::kInvalidArgument, "LOCATION_INCOMPLETE",
                 "a place has a latitude and a longitude",
                 request.has_latitude() ? "longitude" : "latitude");
  }
  order::v1::PlaceOrderRequest wanted;
  wanted.set_customer_name(request.customer_name());
  type::v1::LineItem& line = *wanted.add_lines();
  line.set_product_id(call.ProductId(int64_t{request.product_id()}));
  line.set_quantity(1);
  if (request.has_latitude()) {
    wanted.mutable_delivery_location()->set_latitude(request.latitude());
    wanted.mutable_delivery_location()->set_longitude(request.longitude());
  }
  // With no unit left the reservation comes back too, REJECTED: the shop has a word for it.
  const absl::StatusOr<order::v1::Order> order = call.PlaceOrder(std::move(wanted));
  if (!order.ok()) return order.status();
  call.Created(absl::StrCat("/reservations/", order->number()));
  v1::CreateReservationResponse response;
  *response.mutable_reservation() = ToReservation(call, *order);
  return response;
}

absl::StatusOr<v1::GetReservationResponse> GetReservation(
    Call& call, const v1::GetReservationRequest& request) {
  const absl::StatusOr<order::v1::Order> order = call.OrderByNumber(request.reservation_id());
  if (!order.ok()) return order.status();
  v1::GetReservationResponse response;
  *response.mutable_reservation() = ToReservation(call, *order);
  return response;
}

absl::StatusOr<v1::ListReservationsResponse> ListReservations(
    Call& call, const v1::ListReservationsRequest& request) {
  std::string next;
  const auto orders = call.Orders(request.size(), request.cursor(), &next);
  if (!orders.ok()) return orders.status();
  v1::ListReservationsResponse response;
  auto* shown = response.mutable_embedded();
  for (const auto& order : *orders) *shown->add_reservations() = ToReservation(call, order);
  *response.mutable_links() = call.PageLinks("/reservations", request.size(), next);
  return response;
}

// ---------------------------------------------------------------- agencies

// The assignment of a reservation; NOT_FOUND, too, when it was cancelled.
absl::StatusOr<Assignment> ShownAssignmentOf(Call& call, int32_t number) {
  const absl::StatusOr<std::string> order_id = call.OrderIdOf(number);
  if (!order_id.ok()) return order_id.status();
  absl::StatusOr<Assignment> assignment = AssignmentOf(call, *order_id);
  if (assignment.ok() && !IsShown(*assignment)) {
    return Error(absl::StatusCode::kNotFound, "ASSIGNMENT_UNKNOWN",
                 absl::StrCat("no agency has reservation ", number));
  }
  return assignment;
}

// Records the pick-up. FAILED_PRECONDITION when no agency has the reservation.
absl::StatusOr<Assignment> PickUp(Call& call, int32_t number) {
  const absl::StatusOr<Assignment> assignment = ShownAssignmentOf(call, number);
  if (ReasonOf(assignment.status()) == "ASSIGNMENT_UNKNOWN") {
    return Error(absl::StatusCode::kFailedPrecondition, "ASSIGNMENT_UNKNOWN",
                 absl::StrCat("no agency has reservation ", number, ", so nobody can pick it up"));
  }
  if (!assignment.ok()) return assignment.status();
  assignment::v1::ConfirmPickupRequest pickup;
  pickup.set_assignment_id(assignment->assignment_id());
  auto confirmed =
      call.Ask<assignment::v1::ConfirmPickupResponse>("assignment", "ConfirmPickup", pickup);
  if (!confirmed.ok()) return confirmed.status();
  return std::move(*confirmed->mutable_assignment());
}

absl::StatusOr<v1::UpdateReservationResponse> UpdateReservation(
    Call& call, const v1::UpdateReservationRequest& request) {
  v1::UpdateReservationResponse response;
  if (MeansCancel(request.status())) {
    const absl::StatusOr<order::v1::Order> order = call.CancelOrder(request.reservation_id());
    if (!order.ok()) return order.status();
    *response.mutable_reservation() = ToReservation(call, *order);
    return response;
  }
  if (!MeansPickup(request.status())) {
    return UnknownStatus(request.status(), "예약취소 or 수령완료");
  }
  const absl::StatusOr<Assignment> assignment = PickUp(call, request.reservation_id());
  if (!assignment.ok()) return assignment.status();
  // The order hears of it in a moment; whoever asks is told already.
  const absl::StatusOr<order::v1::Order> order = call.OrderByNumber(request.reservation_id());
  if (!order.ok()) return order.status();
  *response.mutable_reservation() = ToReservation(call, *order);
  response.mutable_reservation()->set_status(kPickedUp);
  response.mutable_reservation()->set_status_code(kPickedUpCode);
  return response;
}

absl::StatusOr<v1::GetAssignmentResponse> GetAssignment(Call& call,
                                                        const v1::GetAssignmentRequest& request) {
  const absl::StatusOr<Assignment> assignment = ShownAssignmentOf(call, request.assignment_id());
  if (!assignment.ok()) return assignment.status();
  v1::GetAssignmentResponse response;
  *response.mutable_assignment() = ToAssignment(call, request.assignment_id(), *assignment);
  return response;
}

absl::StatusOr<v1::ListAssignmentsResponse> ListAssignments(
    Call& call, const v1::ListAssignmentsRequest& request) {
  std::string next;
  const auto refs = OrderRefs(call, request.size(), request.cursor(), &next);
  if (!refs.ok()) return refs.status();
  v1::ListAssignmentsResponse response;
  auto* shown = response.mutable_embedded();
  for (const OrderRef& ref : *refs) {
    const absl::StatusOr<Assignment> assignment = AssignmentOf(call, ref.order_id);
    if (absl::IsNotFound(assignment.status())) continue;
    if (!assignment.ok()) return assignment.status();
    if (IsShown(*assignment)) {
      *shown->add_assignments() = ToAssignment(call, ref.number, *assignment);
    }
  }
  *response.mutable_links() = call.PageLinks("/assignments", request.size(), next);
  return response;
}

absl::StatusOr<v1::UpdateAssignmentResponse> UpdateAssignment(
    Call& call, const v1::UpdateAssignmentRequest& request) {
  if (!MeansPickup(request.status())) return UnknownStatus(request.status(), kPickedUp);
  const absl::StatusOr<Assignment> assignment = PickUp(call, request.assignment_id());
  if (!assignment.ok()) return assignment.status();
  v1::UpdateAssignmentResponse response;
  *response.mutable_assignment() = ToAssignment(call, request.assignment_id(), *assignment);
  return response;
}

// ---------------------------------------------------------------- products

absl::StatusOr<v1::CreateProductResponse> CreateProduct(Call& call,
                                                        const v1::CreateProductRequest& request) {
  const auto product =
      RegisterProduct(call, {.number = request.product_id(),
                             .name = request.product_name(),
                             .price = request.has_price() ? request.price() : kPriceDefault,
                             .count = request.quantity()});
  if (!product.ok()) return product.status();
  v1::CreateProductResponse response;
  *response.mutable_product() = ToProduct(call, *product);
  call.Created(absl::StrCat("/products/", response.product().product_id()));
  return response;
}

absl::StatusOr<v1::GetProductResponse> GetProduct(Call& call,
                                                  const v1::GetProductRequest& request) {
  const auto product = ProductByNumber(call, request.product_id());
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
  if (!request.has_quantity()) {
    return Error(absl::StatusCode::kInvalidArgument, "QUANTITY_MISSING",
                 "say how many are left: only that can be changed", "quantity");
  }
  const auto product = SetStock(call, request.product_id(), request.quantity());
  if (!product.ok()) return product.status();
  v1::UpdateProductResponse response;
  *response.mutable_product() = ToProduct(call, *product);
  return response;
}

// The original took a unit here, in a GET: a retry took two. This one only looks.
absl::StatusOr<v1::CheckProductResponse> CheckProduct(Call& call,
                                                      const v1::CheckProductRequest& request) {
  const auto product = ProductByNumber(call, request.product_id());
  if (!product.ok()) return product.status();
  v1::CheckProductResponse response;
  response.mutable_quantity()->set_content_type("text/plain;charset=UTF-8");
  response.mutable_quantity()->set_data(absl::StrCat(product->available_count()));
  return response;
}

// ---------------------------------------------------------------- pages

absl::StatusOr<v1::GetReservationPageResponse> GetReservationPage(
    Call& call, const v1::GetReservationPageRequest& request) {
  const absl::StatusOr<view::v1::OrderView> view = call.ViewByNumber(request.id());
  if (!view.ok()) return view.status();
  v1::GetReservationPageResponse response;
  *response.mutable_reservation_page() = ToPage(call, *view);
  return response;
}

absl::StatusOr<v1::ListReservationPagesResponse> ListReservationPages(
    Call& call, const v1::ListReservationPagesRequest& request) {
  std::string next;
  const auto views = call.Views(request.size(), request.cursor(), &next);
  if (!views.ok()) return views.status();
  v1::ListReservationPagesResponse response;
  auto* shown = response.mutable_embedded();
  for (const auto& view : *views) *shown->add_reservation_pages() = ToPage(call, view);
  *response.mutable_links() = call.PageLinks("/reservationPages", request.size(), next);
  return response;
}

}  // namespace

Shop TshopShop() {
  Shop shop("tshop", "gaekju.facade.tshop.v1.TshopService");
  shop.On("CreateReservation", "catalog", CreateReservation);
  shop.On("GetReservation", "order", GetReservation);
  shop.On("ListReservations", "order", ListReservations);
  shop.On("UpdateReservation", "order", UpdateReservation);
  shop.On("GetAssignment", "assignment", GetAssignment);
  shop.On("ListAssignments", "assignment", ListAssignments);
  shop.On("UpdateAssignment", "assignment", UpdateAssignment);
  shop.On("CreateProduct", "catalog", CreateProduct);
  shop.On("GetProduct", "catalog", GetProduct);
  shop.On("ListProducts", "catalog", ListProducts);
  shop.On("UpdateProduct", "catalog", UpdateProduct);
  shop.On("CheckProduct", "catalog", CheckProduct);
  shop.On("GetReservationPage", "view", GetReservationPage);
  shop.On("ListReservationPages", "view", ListReservationPages);
  shop.DocumentPorts({8081, 8082, 8083, 8084, 8088});
  shop.Example("http POST localhost:8088/reservations productId=1");
  return shop;
}

}  // namespace gaekju::facade
