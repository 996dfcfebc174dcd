#include "services/view/view.h"

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "flow/mutant.h"
#include "flow/values.h"
#include "gaekju/assignment/v1/assignment_events.pb.h"
#include "gaekju/cart/v1/cart_events.pb.h"
#include "gaekju/delivery/v1/delivery_events.pb.h"
#include "gaekju/notification/v1/notification_events.pb.h"
#include "gaekju/order/v1/order_events.pb.h"
#include "gaekju/payment/v1/payment_events.pb.h"
#include "gaekju/store/v1/store_events.pb.h"
#include "gaekju/view/v1/view_service.pb.h"
#include "google/rpc/code.pb.h"

namespace gaekju::view {

using flow::Answer;
using flow::Caller;
using flow::EventInfo;
using flow::RowKey;
using flow::Turn;
using gaekju::assignment::v1::Assignment;
using gaekju::cart::v1::Cart;
using gaekju::delivery::v1::Delivery;
using gaekju::notification::v1::Notice;
using gaekju::notification::v1::NoticeSent;
using gaekju::order::v1::Order;
using gaekju::payment::v1::Payment;
using gaekju::store::v1::Acceptance;
using gaekju::view::v1::GetOrderTimelineRequest;
using gaekju::view::v1::GetOrderTimelineResponse;
using gaekju::view::v1::NoticeView;
using gaekju::view::v1::OrderView;
using gaekju::view::v1::ParkedEvent;
using gaekju::view::v1::TimelineEntry;
using google::protobuf::Message;

const flow::Table kOrderViews = {"order_views",
                                 &OrderView::default_instance(),
                                 {{"storefront", "storefront"},
                                  {"customer_id", "customer_id"},
                                  {"number", "number"},
                                  {"cancelled", "cancelled"},
                                  {"gap_due_time_us", "gap_due_time_us"}}};

namespace {

constexpr char kDomain[] = "gaekju.view.v1.ViewService";

// An order that its own context has not told of yet (or never will, because it was refused) is not
// to be seen.
bool IsVisible(const OrderView& view) {
  return view.order_state() != Order::STATE_UNSPECIFIED &&
         view.order_state() != Order::STATE_PLACING;
}

bool Show(const Message& row, Message* out) {
  const auto& view = static_cast<const OrderView&>(row);
  if (!IsVisible(view)) return false;
  auto* shown = static_cast<OrderView*>(out);
  *shown = view;
  shown->clear_applied_versions();
  shown->clear_parked();
  shown->clear_gap_due_time_us();
  return true;
}

// --- what each kind of event tells

void ApplyOrder(const Order& order, OrderView* view) {
  view->set_storefront(order.storefront());
  view->set_number(order.number());
  view->set_customer_id(order.customer_id());
  view->set_customer_name(order.customer_name());
  *view->mutable_lines() = order.lines();
  *view->mutable_total() = order.total();
  view->set_order_state(order.state());
  view->set_status_code(order.status_code());
  *view->mutable_status_text() = order.status_text();
  *view->mutable_place_time() = order.place_time();
  if (view->delivery_id().empty()) view->set_delivery_address(order.delivery_address());
  // The first stays, also when the cancel was refused later on.
  if (order.has_cancel_time() && !view->cancelled()) {
    view->set_cancelled(true);
    *view->mutable_cancel_time() = order.cancel_time();
  }
}

void ApplyPayment(const Payment& payment, OrderView* view) {
  view->set_payment_id(payment.payment_id());
  view->set_payment_state(payment.state());
}

void ApplyAcceptance(const Acceptance& acceptance, OrderView* view) {
  view->set_acceptance_state(acceptance.state());
}

void ApplyDelivery(const Delivery& delivery, OrderView* view) {
  view->set_delivery_id(delivery.delivery_id());
  view->set_delivery_address(delivery.delivery_address());
  view->set_delivery_state(delivery.state());
}

void ApplyCart(const Cart& cart, OrderView* view) {
  view->set_cart_id(cart.cart_id());
  view->set_cart_state(cart.state());
}

void ApplyAssignment(const Assignment& assignment, OrderView* view) {
  view->set_assignment_id(assignment.assignment_id());
  view->set_assignment_state(assignment.state());
  view->set_agency_name(assignment.agency_name());
}

struct EventKind {
  const Message* prototype;
  std::function<void(const Message& event, OrderView* view)> apply;
};

class EventKinds {
 public:
  EventKinds() {
    Add(&order::v1::OrderPlaced::order, ApplyOrder);
    Add(&order::v1::OrderCompleted::order, ApplyOrder);
    Add(&order::v1::OrderStatusChanged::order, ApplyOrder);
    Add(&order::v1::OrderCancelled::order, ApplyOrder);
    Add(&order::v1::OrderCancelRefused::order, ApplyOrder);
    Add(&order::v1::OrderCancelCompleted::order, ApplyOrder);
    Add(&order::v1::OrderRejected::order, ApplyOrder);
    Add(&payment::v1::PaymentCaptured::payment, ApplyPayment);
    Add(&payment::v1::PaymentRefunded::payment, ApplyPayment);
    Add(&store::v1::StoreAccepted::acceptance, ApplyAcceptance);
    Add(&store::v1::StoreDeclined::acceptance, ApplyAcceptance);
    Add(&store::v1::StoreCancelled::acceptance, ApplyAcceptance);
    Add(&delivery::v1::DeliveryStarted::delivery, ApplyDelivery);
    Add(&delivery::v1::DeliveryProgressed::delivery, ApplyDelivery);
    Add(&delivery::v1::DeliveryReceived::delivery, ApplyDelivery);
    Add(&delivery::v1::DeliveryCancelled::delivery, ApplyDelivery);
    Add(&delivery::v1::DeliveryReturned::delivery, ApplyDelivery);
    Add(&cart::v1::CartFilled::cart, ApplyCart);
    Add(&cart::v1::CartPaid::cart, ApplyCart);
    Add(&cart::v1::CartCancelled::cart, ApplyCart);
    Add(&assignment::v1::DealerAssigned::assignment, ApplyAssignment);
    Add(&assignment::v1::OrderPickedUp::assignment, ApplyAssignment);
    Add(&assignment::v1::AssignmentCancelled::assignment, ApplyAssignment);
  }

  const std::map<std::string, EventKind>& all() const { return kinds_; }
  const EventKind& Get(const std::string& type) const {
    auto it = kinds_.find(type);
    GK_CHECK(it != kinds_.end()) << type;
    return it->second;
  }

 private:
  template <class Event, class Resource>
  void Add(const Resource& (Event::*resource)() const, void (*apply)(const Resource&, OrderView*)) {
    const Message& prototype = Event::default_instance();
    kinds_[prototype.GetTypeName()] = {
        &prototype, [resource, apply](const Message& event, OrderView* view) {
          apply((static_cast<const Event&>(event).*resource)(), view);
        }};
  }

  std::map<std::string, EventKind> kinds_;
};

const EventKinds& Kinds() {
  static const EventKinds* const kinds = new EventKinds();
  return *kinds;
}

// --- order among events

std::string ResourceKey(const EventInfo& info) {
  return absl::StrCat(info.source, "/", info.resource);
}

// 0 when nothing of it has been applied.
int64_t AppliedVersion(const OrderView& view, const std::string& resource) {
  auto it = view.applied_versions().find(resource);
  return it == view.applied_versions().end() ? 0 : it->second;
}

// An order may have several resources of one kind (a second round of a step is a resource of its
// own). The one whose key sorts last is shown, whichever tells last, so that the row does not
// depend on how events arrive.
bool IsShown(const OrderView& view, const std::string& resource) {
  const std::string kind =
      resource.substr(0, resource.find('/', resource.find('/') + 1) + 1);  // "<source>/<table>/"
  return std::none_of(view.applied_versions().begin(), view.applied_versions().end(),
                      [&](const auto& applied) {
                        return absl::StartsWith(applied.first, kind) && applied.first > resource;
                      });
}

// By time; at the same time by source; else in the order in which they were applied, which is a
// resource's own.
void AddToTimeline(const EventInfo& info, OrderView* view) {
  auto* timeline = view->mutable_timeline();
  for (const TimelineEntry& entry : *timeline) {
    if (entry.source() == info.source && entry.event_id() == info.id) return;
  }
  TimelineEntry* entry = timeline->Add();
  *entry->mutable_event_time() = flow::ToTimestamp(info.time_us);
  entry->set_event_type(info.type);
  entry->set_source(info.source);
  entry->set_event_id(info.id);
  const std::pair<int64_t, std::string> own(info.time_us, info.source);
  for (int i = timeline->size() - 1; i > 0; --i) {
    const TimelineEntry& before = timeline->Get(i - 1);
    if (std::pair<int64_t, std::string>(flow::ToMicros(before.event_time()), before.source()) <=
        own)
      break;
    timeline->SwapElements(i - 1, i);
  }
  if (timeline->size() > kTimelineMax) timeline->DeleteSubrange(0, 1);
}

void Touch(int64_t time_us, OrderView* view) {
  if (time_us > flow::ToMicros(view->update_time()))
    *view->mutable_update_time() = flow::ToTimestamp(time_us);
}

// REQUIRES: the event is the next of its resource.
void Apply(const Message& event, const EventInfo& info, OrderView* view) {
  const std::string resource = ResourceKey(info);
  const bool is_next = info.version == AppliedVersion(*view, resource) + 1 ||
                       GK_MUTANT(old_event_applied) || GK_MUTANT(gap_passed_over);
  GK_CHECK(is_next) << resource << "@" << info.version;
  (*view->mutable_applied_versions())[resource] = info.version;
  if (IsShown(*view, resource)) Kinds().Get(info.type).apply(event, view);
  AddToTimeline(info, view);
  Touch(info.time_us, view);
}

EventInfo InfoOf(const ParkedEvent& parked) {
  EventInfo info;
  info.source = parked.resource().substr(0, parked.resource().find('/'));
  info.resource = parked.resource().substr(parked.resource().find('/') + 1);
  info.id = parked.event_id();
  info.type = parked.event_type();
  info.version = parked.version();
  info.time_us = flow::ToMicros(parked.event_time());
  return info;
}

// Applies what waited for the event just applied.
void Drain(const std::string& resource, OrderView* view) {
  auto* parked = view->mutable_parked();
  for (int i = 0; i < parked->size();) {
    if (parked->Get(i).resource() != resource || GK_MUTANT(parked_event_forgotten) ||
        parked->Get(i).version() != AppliedVersion(*view, resource) + 1) {
      ++i;
      continue;
    }
    ParkedEvent next;
    next.Swap(parked->Mutable(i));
    parked->DeleteSubrange(i, 1);
    std::unique_ptr<Message> event(Kinds().Get(next.event_type()).prototype->New());
    GK_CHECK(event->ParseFromString(next.payload())) << resource << "@" << next.version();
    Apply(*event, InfoOf(next), view);
    i = 0;  // one that was passed over may be next now
  }
  if (parked->empty()) view->set_gap_due_time_us(0);
}

void AskAgain(const OrderView& view, const std::string& resource, Turn& turn) {
  const size_t slash = resource.find('/');
  turn.RequestResend(
      {resource.substr(0, slash), resource.substr(slash + 1), AppliedVersion(view, resource) + 1});
}

// Where a full row makes room for an event of `resource`: an index in `parked`, or -1 to leave the
// newcomer out. What is left out comes again with the missing ones, as long as the row knows that
// some are missing: so the highest of each resource stays.
int RoomFor(const OrderView& view, const std::string& resource, int64_t version) {
  int highest = -1;
  for (int i = 0; i < view.parked_size(); ++i) {
    if (view.parked(i).resource() != resource) continue;
    if (view.parked(i).version() > version) return -1;
    if (highest < 0 || view.parked(i).version() > view.parked(highest).version()) highest = i;
  }
  if (highest >= 0) return highest;
  for (int i = 0; i < view.parked_size(); ++i) {
    for (int j = 0; j < view.parked_size(); ++j) {
      if (view.parked(j).resource() == view.parked(i).resource() &&
          view.parked(j).version() > view.parked(i).version()) {
        return i;
      }
    }
  }
  return -1;
}

// REQUIRES: events before this one are missing.
void Park(const Message& event, const EventInfo& info, Turn& turn) {
  const std::string resource = ResourceKey(info);
  bool gap_is_known = false;
  if (const OrderView* found = turn.Find<OrderView>(kOrderViews, info.order_id)) {
    for (const ParkedEvent& parked : found->parked()) {
      if (parked.resource() != resource) continue;
      if (parked.version() == info.version) return;
      gap_is_known = true;
    }
    if (found->parked_size() >= kParkedMax && RoomFor(*found, resource, info.version) < 0) return;
  }
  OrderView& view = turn.Edit<OrderView>(kOrderViews, info.order_id);
  view.set_order_id(info.order_id);
  ParkedEvent* parked = view.parked_size() < kParkedMax
                            ? view.add_parked()
                            : view.mutable_parked(RoomFor(view, resource, info.version));
  parked->set_resource(resource);
  parked->set_version(info.version);
  parked->set_event_type(info.type);
  parked->set_event_id(info.id);
  *parked->mutable_event_time() = flow::ToTimestamp(info.time_us);
  parked->set_payload(event.SerializeAsString());
  if (!gap_is_known) AskAgain(view, resource, turn);
  if (view.gap_due_time_us() == 0) view.set_gap_due_time_us(turn.now_us() + kGapRetryMinUs);
}

Answer HandleEvent(const Message& event, const Caller& caller, Turn& turn) {
  EventInfo info = caller.event;
  info.type = event.GetTypeName();
  if (info.source.empty() || info.resource.empty() || info.order_id.empty() || info.version <= 0) {
    return flow::Refuse(
        google::rpc::INVALID_ARGUMENT, kDomain, "EVENT_INCOMPLETE",
        absl::StrCat(info.type, " ", info.id, " lacks its source, resource, order or version"));
  }
  const std::string resource = ResourceKey(info);
  const OrderView* found = turn.Find<OrderView>(kOrderViews, info.order_id);
  const int64_t applied = found == nullptr ? 0 : AppliedVersion(*found, resource);
  if (info.version > applied + 1 && !GK_MUTANT(gap_passed_over)) {
    Park(event, info, turn);
  } else if (info.version > applied || GK_MUTANT(old_event_applied)) {
    OrderView& view = turn.Edit<OrderView>(kOrderViews, info.order_id);
    view.set_order_id(info.order_id);
    Apply(event, info, &view);
    Drain(resource, &view);
  }
  return {};
}

// --- notices

// A notice is told once and never changes, so it waits for none before it; its number is its order.
// It leaves nothing behind but itself: an order may have any number of them.
Answer HandleNotice(const Message& event, const Caller& caller, Turn& turn) {
  const Notice& notice = static_cast<const NoticeSent&>(event).notice();
  const EventInfo& info = caller.event;
  if (info.order_id.empty()) return {};  // about no order
  const std::pair<int64_t, std::string> own(notice.number(), notice.notice_id());
  auto place_of = [](const NoticeView& shown) {
    return std::pair<int64_t, std::string>(shown.number(), shown.notice_id());
  };
  if (const OrderView* found = turn.Find<OrderView>(kOrderViews, info.order_id)) {
    for (const NoticeView& shown : found->notices()) {
      if (shown.notice_id() == notice.notice_id() && !GK_MUTANT(notice_shown_twice)) return {};
    }
    if (found->notices_size() >= kNoticesMax && own < place_of(found->notices(0)) &&
        info.time_us <= flow::ToMicros(found->update_time())) {
      return {};
    }
  }
  OrderView& view = turn.Edit<OrderView>(kOrderViews, info.order_id);
  view.set_order_id(info.order_id);
  Touch(info.time_us, &view);
  auto* notices = view.mutable_notices();
  NoticeView* shown = notices->Add();
  shown->set_notice_id(notice.notice_id());
  shown->set_number(notice.number());
  shown->set_recipient(notice.recipient());
  shown->set_code(notice.code());
  *shown->mutable_text() = notice.text();
  *shown->mutable_create_time() = notice.create_time();
  for (int i = notices->size() - 1; i > 0 && own < place_of(notices->Get(i - 1)); --i)
    notices->SwapElements(i - 1, i);
  if (notices->size() > kNoticesMax) notices->DeleteSubrange(0, 1);
  return {};
}

// What is made of an event of this type.
class EventHandler : public flow::Handler {
 public:
  using Take = Answer (*)(const Message& event, const Caller& caller, Turn& turn);

  EventHandler(const Message& prototype, Take take) : prototype_(prototype), take_(take) {}
  const std::string& name() const override { return prototype_.GetDescriptor()->full_name(); }
  const Message& request() const override { return prototype_; }
  void Keys(const Message&, const Caller& caller, std::vector<RowKey>* keys) const override {
    if (!caller.event.order_id.empty()) keys->push_back({&kOrderViews, caller.event.order_id});
  }
  Answer Handle(const Message& event, const Caller& caller, Turn& turn) const override {
    return take_(event, caller, turn);
  }

 private:
  const Message& prototype_;
  const Take take_;
};

// --- the gap timer

// A row from before the view kept these: what its timeline and versions tell of them.
void FillIn(OrderView* view) {
  for (const TimelineEntry& entry : view->timeline()) {
    if (view->cancelled()) break;
    if (entry.event_type() != order::v1::OrderCancelled::descriptor()->full_name()) continue;
    view->set_cancelled(true);
    *view->mutable_cancel_time() = entry.event_time();
  }
  if (!view->payment_id().empty()) return;
  std::string last;
  for (const auto& [resource, version] : view->applied_versions()) {
    if (absl::StartsWith(resource, "payment/payments/")) last = std::max(last, resource);
  }
  view->set_payment_id(std::string(absl::StripPrefix(last, "payment/payments/")));
}

// Of a row that misses nothing, the column said otherwise: a migration's way to have every row
// written once more.
void AskForGaps(absl::string_view key, Turn& turn) {
  const OrderView* found = turn.Find<OrderView>(kOrderViews, key);
  if (found == nullptr || found->gap_due_time_us() > turn.now_us()) return;
  OrderView& view = turn.Edit<OrderView>(kOrderViews, key);
  FillIn(&view);
  if (view.gap_due_time_us() == 0) return;
  std::set<std::string> resources;
  int64_t oldest_us = turn.now_us();
  for (const ParkedEvent& parked : view.parked()) {
    resources.insert(parked.resource());
    oldest_us = std::min(oldest_us, flow::ToMicros(parked.event_time()));
  }
  for (const std::string& resource : resources) AskAgain(view, resource, turn);
  view.set_gap_due_time_us(
      resources.empty()
          ? 0
          : turn.now_us() + std::clamp(turn.now_us() - oldest_us, kGapRetryMinUs, kGapRetryMaxUs));
}

// --- reads

Answer GetOrderTimeline(const GetOrderTimelineRequest& request, const Caller&, Turn& turn) {
  const OrderView* view = turn.Find<OrderView>(kOrderViews, request.order_id());
  if (view == nullptr || !IsVisible(*view) ||
      (!request.customer_id().empty() && request.customer_id() != view->customer_id())) {
    return flow::Refuse(google::rpc::NOT_FOUND, kDomain, "ORDER_NOT_FOUND",
                        absl::StrCat("no order ", request.order_id()), "order_id");
  }
  GetOrderTimelineResponse response;
  *response.mutable_entries() = view->timeline();
  return flow::Done(response);
}

flow::Context MakeContext() {
  flow::Context context;
  context.name = "view";
  context.service = kDomain;
  context.tables = {&kOrderViews};
  // A handler, because its answer is no row but a list within one.
  context.handlers = {std::make_shared<flow::FunctionHandler<GetOrderTimelineRequest>>(
      absl::StrCat(kDomain, ".GetOrderTimeline"),
      [](const GetOrderTimelineRequest& request) {
        return flow::FieldChecks(kDomain).Id("order_id", request.order_id()).status();
      },
      [](const GetOrderTimelineRequest& request, const Caller&, std::vector<RowKey>* keys) {
        keys->push_back({&kOrderViews, request.order_id()});
      },
      GetOrderTimeline)};
  for (const auto& [type, kind] : Kinds().all()) {
    context.events.push_back(std::make_shared<EventHandler>(*kind.prototype, HandleEvent));
  }
  context.events.push_back(
      std::make_shared<EventHandler>(NoticeSent::default_instance(), HandleNotice));
  context.gets = {
      {absl::StrCat(kDomain, ".GetOrderView"), &kOrderViews, "order_id", "order_view", Show}};
  context.lists = {{absl::StrCat(kDomain, ".ListOrderViews"),
                    &kOrderViews,
                    {"storefront", "customer_id", "number", "cancelled", "order_ids"},
                    "order_views",
                    /*newest_first=*/true,
                    Show}};
  context.timer = {&kOrderViews, "gap_due_time_us",
                   [](absl::string_view key, std::vector<RowKey>* keys) {
                     keys->push_back({&kOrderViews, std::string(key)});
                   },
                   AskForGaps};
  return context;
}

}  // namespace

const flow::Context& ViewContext() {
  static const flow::Context* const context = new flow::Context(MakeContext());
  return *context;
}

}  // namespace gaekju::view
