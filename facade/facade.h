// facade.h: what the shops' adapters are made of: typed methods over a blocking client of the
// contexts.
//
// An adapter is one file, facade/<shop>.cc, and one line in facade/shops.cc:
//
//   namespace gaekju::facade {
//   namespace { namespace v1 = gaekju::facade::myshop::v1;
//
//   v1::Order ToOrder(const Call& call, const order::v1::Order& order);       // how it is shown
//   absl::StatusOr<v1::Order> CreateOrder(Call& call, const v1::CreateOrderRequest& request) {
//     …
//     return Created(call, call.PlaceOrder(std::move(wanted)), ToOrder);      // 201, Location
//   } }
//
//   Shop MyshopShop() {
//     Shop shop("myshop", "gaekju.facade.myshop.v1.MyshopService");
//     shop.On("CreateOrder", "order", CreateOrder);     // "order": the lane, see below
//     shop.Item("GetOrder", "order", &Call::OrderByNumber, ToOrder);
//     shop.Collection<v1::Orders>("ListOrders", "order", "/orders", &Call::Orders, ToOrder,
//                                 &v1::Orders::Embedded::add_orders);
//     return shop;
//   }
//   }
//
// What is looked up is a StatusOr: NOT_FOUND becomes 404, and details are kept.
//
// Lanes. A handler runs on a thread of its lane and may block there. A lane is named after the
// context that its handlers mostly wait for, and has its own few threads and a bounded queue: a
// slow context fills its own lane only. Beyond the queue a caller is told RESOURCE_EXHAUSTED (429).
//
// Errors. A handler returns an absl::Status; where it came from a context it carries that context's
// google.rpc.Status with all details, and reaches the caller whole. The gateway makes 400, 404,
// 409, 429, 503 … of it, and a body {timestamp, status, error, message, path, reason, …}
// (docs/adr).
//
// Stateless but for caches that any replica may lose. Handlers run concurrently.
#ifndef GAEKJU_FACADE_FACADE_H_
#define GAEKJU_FACADE_FACADE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "gaekju/facade/hal/v1/hal.pb.h"
#include "gaekju/order/v1/order.pb.h"
#include "gaekju/order/v1/order_service.pb.h"
#include "gaekju/type/v1/type.pb.h"
#include "gaekju/view/v1/view.pb.h"
#include "google/protobuf/message.h"
#include "google/rpc/status.pb.h"

namespace gaekju::facade {

using hal::v1::ItemRequest;
using hal::v1::PageRequest;
using hal::v1::StatusRequest;

// A page of what a context has.
template <class Row>
struct Page {
  std::vector<Row> rows;
  std::string next;  // where the next page begins; empty on the last
};

class Backend;  // what all calls share: the client of the contexts, and the caches
struct CallState;

// --- errors
// A google.rpc.Status as an absl::Status that carries it whole, and back.
absl::Status FromRpc(const google::rpc::Status& status);
google::rpc::Status ToRpc(const absl::Status& status);
// An error of the facade itself: ErrorInfo with domain "gaekju.facade", and BadRequest when `field`
// is set. `code`: as INVALID_ARGUMENT (400), NOT_FOUND (404), FAILED_PRECONDITION (409).
absl::Status Error(absl::StatusCode code, absl::string_view reason, absl::string_view message,
                   absl::string_view field = "");
// Whether the context that was asked could not be reached (or is overloaded): the answer may be
// another later.
bool IsUnreachable(const absl::Status& status);
// The reason in its ErrorInfo, e.g. "STOCK_SHORT"; empty when it has none.
std::string ReasonOf(const absl::Status& status);

// One request of a web client under way. Belongs to the handler's thread.
class Call {
 public:
  Call(Backend& backend, const std::string& shop, CallState& state)
      : backend_(backend), shop_(shop), state_(state) {}
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // --- who and what
  // The shop: "myshop". It is the prefix of its product ids.
  const std::string& shop() const { return shop_; }
  // The storefront whose orders these are: the shop's, unless --facade_storefronts says another.
  const std::string& storefront() const;
  // What makes a create idempotent: the client's `idempotency-key` header, else a new one of this
  // call.
  const std::string& request_id() const;
  // `given`, or "guest": the documents' orders that name nobody.
  static std::string CustomerId(absl::string_view given);
  // The time that is left, for a call to a context; at least 1 ms.
  absl::Duration time_left() const;

  // --- asking the contexts
  // Asks a context and waits: `context` "order", `method` "PlaceOrder". `timeout` is cut to what is
  // left of the caller's deadline. Errors: the context's own, with all details; UNAVAILABLE and
  // DEADLINE_EXCEEDED when it does not answer.
  absl::Status Ask(absl::string_view context, absl::string_view method,
                   const google::protobuf::Message& request, google::protobuf::Message* response,
                   absl::Duration timeout = absl::Seconds(12));
  template <class Response>
  absl::StatusOr<Response> Ask(absl::string_view context, absl::string_view method,
                               const google::protobuf::Message& request,
                               absl::Duration timeout = absl::Seconds(12)) {
    Response response;
    if (absl::Status status = Ask(context, method, request, &response, timeout); !status.ok())
      return status;
    return response;
  }

  // --- orders
  // The order of that number in this storefront. Errors: NOT_FOUND ORDER_UNKNOWN.
  absl::StatusOr<order::v1::Order> OrderByNumber(int64_t number);
  // As above, as the view context has it: also while order is down, but a little late.
  absl::StatusOr<view::v1::OrderView> ViewByNumber(int64_t number);
  // The id of the order of that number: from memory, from order, or from view while order cannot be
  // reached. Errors: NOT_FOUND ORDER_UNKNOWN.
  absl::StatusOr<std::string> OrderIdOf(int64_t number);
  // The numbers of orders, at most 1,000: from memory, and those that are not there from order, or
  // from view while order cannot be reached, in one question. Without what nobody knows (now).
  absl::flat_hash_map<std::string, int64_t> NumbersOf(const std::vector<std::string>& order_ids);
  // As above, of one; 0 when nobody knows it, and of the empty id.
  int64_t NumberOf(const std::string& order_id);
  // Remembers it for OrderIdOf and NumbersOf; what returns orders here has done so.
  void Remember(const std::string& order_id, int64_t number);
  // Fills in storefront, request_id and a missing customer_id, hides a card number, and places it.
  absl::StatusOr<order::v1::Order> PlaceOrder(order::v1::PlaceOrderRequest request);
  // What the contexts are told instead of a card number, and the number again, or its last digits:
  // see card.h. Other ways to pay stand for themselves.
  std::string HideCard(absl::string_view payment_method) const;
  std::string ShowCard(absl::string_view payment_method) const;
  // As it is now after its cancel was accepted. Asking again changes nothing. Errors: NOT_FOUND
  // ORDER_UNKNOWN, and order's own.
  absl::StatusOr<order::v1::Order> CancelOrder(int64_t number);
  // A page of this storefront's orders, newest first.
  absl::StatusOr<Page<order::v1::Order>> Orders(const PageRequest& request);
  absl::StatusOr<Page<order::v1::Order>> OrdersWithin(const PageRequest& request,
                                                      absl::Duration timeout);
  // As above, as the view context has them.
  absl::StatusOr<Page<view::v1::OrderView>> Views(const PageRequest& request);
  // As above, only those whose cancel was accepted.
  absl::StatusOr<Page<view::v1::OrderView>> CancelledViews(const PageRequest& request);

  // --- products
  // The catalog's id of the shop's product: "1" or 1 -> "myshop-1". What is no number stays: "TV".
  std::string ProductId(absl::string_view number) const;
  std::string ProductId(int64_t number) const;
  // The shop's name for a product of the catalog: "myshop-1" -> "1"; "TV" -> "TV".
  std::string ProductName(absl::string_view product_id) const;
  // As a number; 0 where it is none.
  int32_t ProductNumber(absl::string_view product_id) const;

  // --- answering
  // Another HTTP status for a response that is no error, e.g. 204.
  void SetHttpStatus(int status);
  // A response header, lower-case name, printable ASCII.
  void SetHeader(absl::string_view name, absl::string_view value);
  // "http://localhost:8081/orders/1", by the Host that the client asked for.
  std::string Url(absl::string_view path) const;
  // The `_links` of a resource: only `self`.
  hal::v1::Links Links(absl::string_view path) const;
  // The `_links` of a page; `next` when there is a `next_cursor`.
  hal::v1::Links PageLinks(absl::string_view path, int32_t size,
                           const std::string& next_cursor) const;

 private:
  Backend& backend_;
  const std::string& shop_;
  CallState& state_;
};

// The size of a page: 100 when 0, never more than 1,000.
int32_t PageSize(int32_t size);

// What was found, as `shape(call, found)` shows it; or why there is nothing.
template <class Found, class Shape>
auto Shown(Call& call, const absl::StatusOr<Found>& found, Shape shape)
    -> absl::StatusOr<std::invoke_result_t<Shape, Call&, const Found&>> {
  if (!found.ok()) return found.status();
  return shape(call, *found);
}

// As Shown, and the response is 201 Created, with the resource's own link as Location.
template <class Found, class Shape>
auto Created(Call& call, const absl::StatusOr<Found>& found, Shape shape) {
  auto shown = Shown(call, found, shape);
  if (shown.ok()) {
    call.SetHttpStatus(201);
    call.SetHeader("location", shown->links().self().href());
  }
  return shown;
}

// An error of a list as a web client knows it: INVALID_ARGUMENT CURSOR_INVALID on the field
// "cursor" for one of a page_token, every other as it is.
absl::Status OfCursor(const absl::Status& status);

// A page as `shape(call, row)` shows its rows; `add` makes room for one:
// &v1::Orders::Embedded::add_orders.
template <class Collection, class Row, class Shape, class Embedded, class Resource>
absl::StatusOr<Collection> ShownPage(Call& call, absl::string_view path, int32_t size,
                                     const absl::StatusOr<Page<Row>>& page, Shape shape,
                                     Resource* (Embedded::*add)()) {
  if (!page.ok()) return OfCursor(page.status());
  Collection shown;
  Embedded& embedded = *shown.mutable_embedded();
  for (const Row& row : page->rows) *(embedded.*add)() = shape(call, row);
  *shown.mutable_links() = call.PageLinks(path, size, page->next);
  return shown;
}

// What the shop's own words say: Korean, which are the documents' words also where they are
// English.
std::string StatusOf(const order::v1::Order& order);
std::string StatusOf(const view::v1::OrderView& view);

// An adapter: the methods of one facade contract, and how each is answered.
class Shop {
 public:
  using Run = std::function<absl::Status(Call& call, const google::protobuf::Message& request,
                                         google::protobuf::Message* response)>;
  struct Method {
    std::string name, lane;
    Run run;
    const google::protobuf::Descriptor *request, *response;
  };

  // `id`: "myshop". `service`: the full name of its contract's service.
  Shop(std::string id, std::string service) : id_(std::move(id)), service_(std::move(service)) {}

  // Answers a method of the service. `lane`: the context that it mostly waits for.
  template <class Request, class Response>
  void On(const std::string& method, const std::string& lane,
          absl::StatusOr<Response> (*handler)(Call&, const Request&)) {
    Add<Request, Response>(method, lane, handler);
  }
  // Answers a method with the one resource that `find(call, number)` finds or ends, as
  // `shape(call, found)` shows it.
  template <class Find, class Shape>
  void Item(const std::string& method, const std::string& lane, Find find, Shape shape) {
    using Found = typename std::invoke_result_t<Find, Call&, int64_t>::value_type;
    Add<ItemRequest, std::invoke_result_t<Shape, Call&, const Found&>>(
        method, lane, [find, shape](Call& call, const ItemRequest& request) {
          return Shown(call, std::invoke(find, call, int64_t{request.id()}), shape);
        });
  }
  // Answers a method with the page that `find(call, request)` finds, of the collection at `path`;
  // else as ShownPage.
  template <class Shown, class Find, class Shape, class Embedded, class Resource>
  void Collection(const std::string& method, const std::string& lane, const std::string& path,
                  Find find, Shape shape, Resource* (Embedded::*add)()) {
    Add<PageRequest, Shown>(method, lane,
                            [path, find, shape, add](Call& call, const PageRequest& request) {
                              return ShownPage<Shown>(call, path, request.size(),
                                                      std::invoke(find, call, request), shape, add);
                            });
  }
  // Paths that begin with `prefix` are served as if it were not there: "/api/fashion-order".
  void StripPrefix(absl::string_view prefix) { prefixes_.emplace_back(prefix); }
  // The ports that the shop's document prints: `gaekju up --document_ports=<shop>` binds them.
  void DocumentPorts(std::vector<int> ports) { document_ports_ = std::move(ports); }
  // A command that its document prints, for `gaekju up` to show:
  // "http POST http://localhost:8081/orders productId=1 qty=10".
  void Example(std::string command) { example_ = std::move(command); }

  const std::string& id() const { return id_; }
  const std::string& service() const { return service_; }
  const std::vector<Method>& methods() const { return methods_; }
  const std::vector<std::string>& prefixes() const { return prefixes_; }
  const std::vector<int>& document_ports() const { return document_ports_; }
  const std::string& example() const { return example_; }

 private:
  template <class Request, class Response, class Handler>
  void Add(const std::string& method, const std::string& lane, Handler handler) {
    const auto run = [handler](Call& call, const google::protobuf::Message& request,
                               google::protobuf::Message* response) -> absl::Status {
      absl::StatusOr<Response> answer = handler(call, static_cast<const Request&>(request));
      if (!answer.ok()) return answer.status();
      static_cast<Response&>(*response) = *std::move(answer);
      return absl::OkStatus();
    };
    methods_.push_back({method, lane, run, Request::descriptor(), Response::descriptor()});
  }

  std::string id_, service_, example_;
  std::vector<Method> methods_;
  std::vector<std::string> prefixes_;
  std::vector<int> document_ports_;
};

// Every shop that has an adapter (facade/shops.cc).
const std::vector<Shop>& Shops();

}  // namespace gaekju::facade

#endif  // GAEKJU_FACADE_FACADE_H_
