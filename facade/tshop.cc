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
#include "google/api/httpbody.pb.h"

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

v1::Assignment ToAssignment(const Call& call, const Numbered<Assignment>& numbered) {
  const auto& [number, assignment] = numbered;
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

absl::StatusOr<v1::Reservation> CreateReservation(Call& call,
                                                  const v1::CreateReservationRequest& request) {
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
  return Created(call, call.PlaceOrder(std::move(wanted)), ToReservation);
}

// ---------------------------------------------------------------- agencies

// The assignment of a reservation; NOT_FOUND, too, when it was cancelled.
absl::StatusOr<Numbered<Assignment>> ShownAssignment(Call& call, int64_t number) {
  return OfOrderIf<Assignment>(call, number, IsShown, "ASSIGNMENT_UNKNOWN",
                               absl::StrCat("no agency has reservation ", number));
}

// Records the pick-up. FAILED_PRECONDITION when no agency has the reservation.
absl::StatusOr<Numbered<Assignment>> PickUp(Call& call, int32_t number) {
  absl::StatusOr<Numbered<Assignment>> assignment = ShownAssignment(call, number);
  if (ReasonOf(assignment.status()) == "ASSIGNMENT_UNKNOWN") {
    return Error(absl::StatusCode::kFailedPrecondition, "ASSIGNMENT_UNKNOWN",
                 absl::StrCat("no agency has reservation ", number, ", so nobody can pick it up"));
  }
  if (!assignment.ok()) return assignment.status();
  assignment::v1::ConfirmPickupRequest pickup;
  pickup.set_assignment_id(assignment->resource.assignment_id());
  auto confirmed =
      call.Ask<assignment::v1::ConfirmPickupResponse>("assignment", "ConfirmPickup", pickup);
  if (!confirmed.ok()) return confirmed.status();
  assignment->resource = std::move(*confirmed->mutable_assignment());
  return assignment;
}

absl::StatusOr<v1::Reservation> UpdateReservation(Call& call, const StatusRequest& request) {
  if (MeansCancel(request.status()))
    return Shown(call, call.CancelOrder(request.id()), ToReservation);
  if (!MeansPickup(request.status())) {
    return UnknownStatus(request.status(), "예약취소 or 수령완료");
  }
  const auto assignment = PickUp(call, request.id());
  if (!assignment.ok()) return assignment.status();
  // The order hears of it in a moment; whoever asks is told already.
  absl::StatusOr<v1::Reservation> shown =
      Shown(call, call.OrderByNumber(request.id()), ToReservation);
  if (shown.ok()) {
    shown->set_status(kPickedUp);
    shown->set_status_code(kPickedUpCode);
  }
  return shown;
}

absl::StatusOr<v1::Assignment> UpdateAssignment(Call& call, const StatusRequest& request) {
  if (!MeansPickup(request.status())) return UnknownStatus(request.status(), kPickedUp);
  return Shown(call, PickUp(call, request.id()), ToAssignment);
}

// ---------------------------------------------------------------- products

absl::StatusOr<v1::Product> CreateProduct(Call& call, const v1::CreateProductRequest& request) {
  return Created(
      call,
      RegisterProduct(call, {.number = request.product_id(),
                             .name = request.product_name(),
                             .price = request.has_price() ? request.price() : kPriceDefault,
                             .count = request.quantity()}),
      ToProduct);
}

absl::StatusOr<v1::Product> UpdateProduct(Call& call, const v1::UpdateProductRequest& request) {
  if (!request.has_quantity()) {
    return Error(absl::StatusCode::kInvalidArgument, "QUANTITY_MISSING",
                 "say how many are left: only that can be changed", "quantity");
  }
  return Shown(call, SetStock(call, request.product_id(), request.quantity()), ToProduct);
}

// The original took a unit here, in a GET: a retry took two. This one only looks.
absl::StatusOr<google::api::HttpBody> CheckProduct(Call& call,
                                                   const v1::CheckProductRequest& request) {
  return Shown(call, ProductByNumber(call, request.product_id()),
               [](const Call&, const catalog::v1::Product& product) {
                 google::api::HttpBody body;
                 body.set_content_type("text/plain;charset=UTF-8");
                 body.set_data(absl::StrCat(product.available_count()));
                 return body;
               });
}

}  // namespace

Shop TshopShop() {
  Shop shop("tshop", "gaekju.facade.tshop.v1.TshopService");
  shop.On("CreateReservation", "catalog", CreateReservation);
  shop.Item("GetReservation", "order", &Call::OrderByNumber, ToReservation);
  shop.Collection<v1::Reservations>("ListReservations", "order", "/reservations", &Call::Orders,
                                    ToReservation, &v1::Reservations::Embedded::add_reservations);
  shop.On("UpdateReservation", "order", UpdateReservation);
  shop.Item("GetAssignment", "assignment", ShownAssignment, ToAssignment);
  shop.Collection<v1::Assignments>("ListAssignments", "assignment", "/assignments",
                                   OfOrders<Assignment, IsShown>, ToAssignment,
                                   &v1::Assignments::Embedded::add_assignments);
  shop.On("UpdateAssignment", "assignment", UpdateAssignment);
  shop.On("CreateProduct", "catalog", CreateProduct);
  shop.Item("GetProduct", "catalog", ProductByNumber, ToProduct);
  shop.Collection<v1::Products>("ListProducts", "catalog", "/products", ProductsOfShop, ToProduct,
                                &v1::Products::Embedded::add_products);
  shop.On("UpdateProduct", "catalog", UpdateProduct);
  shop.On("CheckProduct", "catalog", CheckProduct);
  shop.Item("GetReservationPage", "view", &Call::ViewByNumber, ToPage);
  shop.Collection<v1::ReservationPages>("ListReservationPages", "view", "/reservationPages",
                                        &Call::Views, ToPage,
                                        &v1::ReservationPages::Embedded::add_reservation_pages);
  shop.DocumentPorts({8081, 8082, 8083, 8084, 8088});
  shop.Example("http POST localhost:8088/reservations productId=1");
  return shop;
}

}  // namespace gaekju::facade
