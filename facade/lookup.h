// lookup.h: what several adapters look up in the contexts: a shop's products by number or name,
// what belongs to an order, and notices.
//
//   shop.Item("GetPayment", "payment", OfOrder<payment::v1::Payment>, ToPayment);
//   shop.Collection<v1::Payments>("ListPayments", "payment", "/payments",
//                                 OfOrders<payment::v1::Payment>, ToPayment, …);
//   auto product = RegisterProduct(call, {.name = "밀키트", .price = 10'000, .count = 100});
//
// A page costs its contexts a question each, however many rows it has.
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
#include "gaekju/notification/v1/notification.pb.h"
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
absl::StatusOr<Page<catalog::v1::Product>> ProductsOfShop(Call& call, const PageRequest& request);
// These products, at most 1,000, of those that there are.
absl::StatusOr<std::vector<catalog::v1::Product>> ProductsOf(
    Call& call, const std::vector<std::string>& product_ids);
// A product as catalog has it; or as it was last seen, while catalog cannot be reached within a
// second. Errors: NOT_FOUND; UNAVAILABLE when catalog is down and it was never seen.
absl::StatusOr<catalog::v1::Product> LastSeenProduct(Call& call, const std::string& product_id);
// The id of the shop's product of that name, of several the one with the least number; remembered,
// as names never change. Errors: NOT_FOUND PRODUCT_UNKNOWN; UNAVAILABLE when it is not remembered
// and catalog cannot be reached.
absl::StatusOr<std::string> ProductIdByName(Call& call, const std::string& name);

// --- what belongs to an order: its Payment, Delivery, Cart or Assignment, called by the order's
// number
template <class Resource>
struct Numbered {
  int32_t number = 0;
  Resource resource;
};
// Which of them a shop shows. A cancel that overtakes what it undoes leaves some that never were.
template <class Resource>
using Wanted = bool (*)(const Resource&);

// The newest wanted one of that order. Errors: NOT_FOUND `reason` with the message; NOT_FOUND
// ORDER_UNKNOWN.
template <class Resource>
absl::StatusOr<Numbered<Resource>> OfOrderIf(Call& call, int64_t number, Wanted<Resource> wanted,
                                             absl::string_view reason, absl::string_view message);
// As above, of any state. Errors: NOT_FOUND PAYMENT_UNKNOWN, DELIVERY_UNKNOWN …
template <class Resource>
absl::StatusOr<Numbered<Resource>> OfOrder(Call& call, int64_t number);
// Those of a page of orders, newest order first, as order has them, or view while order does not
// answer. With none on it only where ten pages in a row have none, or the last.
template <class Resource>
absl::StatusOr<Page<Numbered<Resource>>> OfOrdersIf(Call& call, const PageRequest& request,
                                                    Wanted<Resource> wanted);
template <class Resource>
bool Any(const Resource&) {
  return true;
}
template <class Resource, Wanted<Resource> wanted = Any<Resource>>
absl::StatusOr<Page<Numbered<Resource>>> OfOrders(Call& call, const PageRequest& request) {
  return OfOrdersIf<Resource>(call, request, wanted);
}

// --- notices; the number is their order's, 0 when they are about none
using NumberedNotice = Numbered<notification::v1::Notice>;
// The shop's notice of that number. Errors: NOT_FOUND NOTICE_UNKNOWN.
absl::StatusOr<NumberedNotice> NoticeByNumber(Call& call, int64_t number);
// A page of the shop's notices, newest first; of that order where one is given.
absl::StatusOr<Page<NumberedNotice>> NoticesOf(Call& call, const PageRequest& request,
                                               const std::string& order_id);
absl::StatusOr<Page<NumberedNotice>> Notices(Call& call, const PageRequest& request);

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
