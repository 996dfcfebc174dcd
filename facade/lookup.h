// lookup.h: what several adapters look up in the contexts: a shop's products by number or name, and
// what belongs to an order.
//
//   auto order_id = call.OrderIdOf(request.id());
//   auto payment = PaymentOf(call, *order_id);          // NOT_FOUND -> 404
//   auto product = RegisterProduct(call, {.name = "밀키트", .price = 10'000, .count = 100});
//
// Thread-safe.
#ifndef GAEKJU_FACADE_LOOKUP_H_
#define GAEKJU_FACADE_LOOKUP_H_

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "facade/facade.h"
#include "gaekju/assignment/v1/assignment.pb.h"
#include "gaekju/cart/v1/cart.pb.h"
#include "gaekju/catalog/v1/catalog.pb.h"
#include "gaekju/delivery/v1/delivery.pb.h"
#include "gaekju/payment/v1/payment.pb.h"
#include "gaekju/type/v1/type.pb.h"
#include "google/protobuf/timestamp.pb.h"

namespace gaekju::facade {

// --- products
struct NewProduct {
  int32_t number = 0;  // 0: the next that is free
  std::string name = {};
  int64_t price = 0;  // won
  int64_t count = 0;
};
// Errors: ALREADY_EXISTS (the number is another product's), INVALID_ARGUMENT.
absl::StatusOr<catalog::v1::Product> RegisterProduct(Call& call, const NewProduct& product);
// Errors: NOT_FOUND.
absl::StatusOr<catalog::v1::Product> ProductByNumber(Call& call, int32_t number);
// Makes `count` the number of those that are left. Errors: NOT_FOUND, INVALID_ARGUMENT.
absl::StatusOr<catalog::v1::Product> SetStock(Call& call, int32_t number, int32_t count);
// A page of the shop's products, by number.
absl::StatusOr<std::vector<catalog::v1::Product>> ProductsOfShop(Call& call, int32_t size,
                                                                 const std::string& cursor,
                                                                 std::string* next_cursor);
// A product as catalog has it; or as it was last seen, while catalog cannot be reached within a
// second. Errors: NOT_FOUND; UNAVAILABLE when catalog is down and it was never seen.
absl::StatusOr<catalog::v1::Product> LastSeenProduct(Call& call, const std::string& product_id);
// The id of the shop's product of that name, of several the one with the least number; remembered,
// as names never change. Errors: NOT_FOUND PRODUCT_UNKNOWN; UNAVAILABLE when it is not remembered
// and catalog cannot be reached.
absl::StatusOr<std::string> ProductIdByName(Call& call, const std::string& name);

// --- what belongs to an order. Errors: NOT_FOUND.
absl::StatusOr<payment::v1::Payment> PaymentOf(Call& call, const std::string& order_id);
absl::StatusOr<delivery::v1::Delivery> DeliveryOf(Call& call, const std::string& order_id);
absl::StatusOr<cart::v1::Cart> CartOf(Call& call, const std::string& order_id);
// Of all states.
absl::StatusOr<assignment::v1::Assignment> AssignmentOf(Call& call, const std::string& order_id);

struct OrderRef {
  std::string order_id;
  int32_t number = 0;
};
// A page of the shop's orders, newest first: as order has them, or as view has while order cannot
// be reached.
absl::StatusOr<std::vector<OrderRef>> OrderRefs(Call& call, int32_t size, const std::string& cursor,
                                                std::string* next_cursor);

// --- shapes
// The number, or the nearest that fits.
int32_t Narrow(int64_t number);
// The lines' quantities together, of a shop that sells one product an order.
int32_t QuantityOf(const google::protobuf::RepeatedPtrField<type::v1::LineItem>& lines);
// The shop's number of what is ordered; 0 where the product is not the shop's own.
int32_t ProductNumberOf(const Call& call,
                        const google::protobuf::RepeatedPtrField<type::v1::LineItem>& lines);
// RFC 3339; empty when it is not set.
std::string TimeText(const google::protobuf::Timestamp& time);
// Whether `given` is one of the words, whatever the case of its Latin letters and the space around.
bool IsWord(absl::string_view given, std::initializer_list<absl::string_view> words);
// INVALID_ARGUMENT STATUS_UNKNOWN on the field "status". `known`: "예약취소 or 수령완료".
absl::Status UnknownStatus(absl::string_view given, absl::string_view known);

}  // namespace gaekju::facade

#endif  // GAEKJU_FACADE_LOOKUP_H_
