#include "services/store/store.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flow/mutant.h"
#include "flow/step.h"
#include "flow/values.h"
#include "gaekju/store/v1/store_events.pb.h"
#include "gaekju/store/v1/store_service.pb.h"
#include "google/rpc/code.pb.h"

namespace gaekju::store {

using flow::Answer;
using flow::Caller;
using flow::RowKey;
using flow::Turn;
using gaekju::store::v1::Acceptance;
using gaekju::store::v1::AcceptOrderRequest;
using gaekju::store::v1::AcceptOrderResponse;
using gaekju::store::v1::AnswerOrderRequest;
using gaekju::store::v1::AnswerOrderResponse;
using gaekju::store::v1::CancelAcceptanceRequest;
using gaekju::store::v1::CancelAcceptanceResponse;
using gaekju::store::v1::Confirmation;
using gaekju::store::v1::ConfirmCancelRequest;
using gaekju::store::v1::ConfirmCancelResponse;
using gaekju::store::v1::Item;
using gaekju::store::v1::ItemRegistered;
using gaekju::store::v1::RegisterItemRequest;
using gaekju::store::v1::RegisterItemResponse;
using gaekju::store::v1::StoreAccepted;
using gaekju::store::v1::StoreCancelled;
using gaekju::store::v1::StoreDeclined;
using google::protobuf::Message;

const flow::Table kItems = {"items", &Item::default_instance(), {{"storefront", "storefront"}}};

const flow::Table kAcceptances = {
    "acceptances",
    &Acceptance::default_instance(),
    {{"order_id", "order_id"}, {"storefront", "storefront"}, {"state", "state"}}};

namespace {

constexpr char kDomain[] = "gaekju.store.v1.StoreService";
constexpr size_t kDisplayNameSizeMax = 256;

// The acceptance as others may see it: without what only this context keeps.
Acceptance Shown(const Acceptance& acceptance) {
  Acceptance shown = acceptance;
  shown.clear_step();
  return shown;
}

bool Show(const Message& row, Message* out) {
  *static_cast<Acceptance*>(out) = Shown(static_cast<const Acceptance&>(row));
  return true;
}

template <class Response>
Answer DoneWithAcceptance(const Acceptance& acceptance) {
  Response response;
  *response.mutable_acceptance() = Shown(acceptance);
  return flow::Done(response);
}

template <class Event>
void EmitEvent(const Acceptance& acceptance, Turn& turn) {
  Event event;
  *event.mutable_acceptance() = Shown(acceptance);
  turn.Emit(kAcceptances, acceptance.acceptance_id(), event, acceptance.order_id());
}

// --- items

std::string ItemKey(const RegisterItemRequest& request) {
  return absl::StrCat(request.storefront(), "/", request.product_id());
}

google::rpc::Status ValidateRegisterItem(const RegisterItemRequest& request) {
  return flow::FieldChecks(kDomain)
      .Storefront("storefront", request.storefront())
      .Id("product_id", request.product_id())
      .Text("display_name", request.display_name(), kDisplayNameSizeMax)
      .status();
}

Answer RegisterItem(const RegisterItemRequest& request, const Caller&, Turn& turn) {
  const std::string key = ItemKey(request);
  RegisterItemResponse response;
  const Item* found = turn.Find<Item>(kItems, key);
  if (found != nullptr && found->display_name() == request.display_name()) {
    *response.mutable_item() = *found;
    return flow::Done(response);
  }
  const bool is_new = found == nullptr;
  Item& item = turn.Edit<Item>(kItems, key);
  item.set_item_id(key);
  item.set_storefront(request.storefront());
  item.set_product_id(request.product_id());
  item.set_display_name(request.display_name());
  if (is_new) *item.mutable_create_time() = flow::ToTimestamp(turn.now_us());
  ItemRegistered event;
  *event.mutable_item() = item;
  turn.Emit(kItems, key, event, /*order_id=*/"");
  *response.mutable_item() = item;
  return flow::Done(response);
}

// --- the step and its undo

google::rpc::Status ValidateAcceptOrder(const AcceptOrderRequest& request) {
  return flow::FieldChecks(kDomain)
      .Storefront("storefront", request.storefront())
      .Lines("lines", request.lines())
      .That(v1::Confirmation_IsValid(request.acceptance()), "acceptance", "is not a Confirmation")
      .That(v1::Confirmation_IsValid(request.cancel_confirmation()), "cancel_confirmation",
            "is not a Confirmation")
      .status();
}

Answer Accept(Acceptance& acceptance, Turn& turn) {
  acceptance.set_state(Acceptance::STATE_ACCEPTED);
  *acceptance.mutable_accept_time() = flow::ToTimestamp(turn.now_us());
  if (!GK_MUTANT(acceptance_not_published)) EmitEvent<StoreAccepted>(acceptance, turn);
  AcceptOrderResponse response;
  response.set_acceptance_id(acceptance.acceptance_id());
  return flow::Done(response);
}

Answer AcceptOrder(const AcceptOrderRequest& request, const Caller&, Acceptance& acceptance,
                   Turn& turn) {
  acceptance.set_acceptance_id(flow::StepKey(request.order_id(), request.step_id()));
  acceptance.set_order_id(request.order_id());
  acceptance.set_storefront(request.storefront());
  *acceptance.mutable_lines() = request.lines();
  acceptance.set_cancel_confirmation(request.cancel_confirmation());
  *acceptance.mutable_create_time() = flow::ToTimestamp(turn.now_us());
  if (request.acceptance() == Confirmation::CONFIRMATION_MANUAL) {
    acceptance.set_state(Acceptance::STATE_WAITING);
    return flow::Pending();
  }
  return Accept(acceptance, turn);
}

Answer Cancel(Acceptance& acceptance, Turn& turn) {
  acceptance.set_state(Acceptance::STATE_CANCELLED);
  *acceptance.mutable_cancel_time() = flow::ToTimestamp(turn.now_us());
  EmitEvent<StoreCancelled>(acceptance, turn);
  return flow::Done(CancelAcceptanceResponse());
}

Answer CancelAccepted(Acceptance& acceptance, Turn& turn) {
  GK_CHECK(acceptance.state() == Acceptance::STATE_ACCEPTED) << acceptance.acceptance_id();
  if (acceptance.cancel_confirmation() == Confirmation::CONFIRMATION_MANUAL) {
    acceptance.set_state(Acceptance::STATE_CANCEL_WAITING);
    return flow::Pending();
  }
  return Cancel(acceptance, turn);
}

// Nothing was accepted, so nobody needs to confirm. A declined order was told already; of one that
// waits, or never came (FA-13: the cancel overtakes it), the store's confirmation is told all the
// same: whoever follows the order waits for it.
void CancelUnaccepted(const CancelAcceptanceRequest& request, Acceptance& acceptance, Turn& turn) {
  if (acceptance.state() == Acceptance::STATE_DECLINED) return;
  if (acceptance.state() == Acceptance::STATE_WAITING && GK_MUTANT(cancelled_order_can_be_accepted))
    return;
  acceptance.set_acceptance_id(flow::StepKey(request.order_id(), request.step_id()));
  acceptance.set_order_id(request.order_id());
  Cancel(acceptance, turn);
}

// --- the owner's answers

Answer NotFound(const std::string& acceptance_id) {
  return flow::Refuse(google::rpc::NOT_FOUND, kDomain, "ACCEPTANCE_NOT_FOUND",
                      absl::StrCat("no acceptance ", acceptance_id), "acceptance_id");
}

google::rpc::Status ValidateAnswerOrder(const AnswerOrderRequest& request) {
  return flow::FieldChecks(kDomain).Key("acceptance_id", request.acceptance_id()).status();
}

Answer AnswerOrder(const AnswerOrderRequest& request, const Caller&, Turn& turn) {
  const Acceptance* found = turn.Find<Acceptance>(kAcceptances, request.acceptance_id());
  if (found == nullptr) return NotFound(request.acceptance_id());
  if (found->state() != Acceptance::STATE_WAITING) {
    // The same answer again? What was accepted keeps its accept_time, also when it was cancelled
    // later.
    const bool same =
        request.accept() ? found->has_accept_time() : found->state() == Acceptance::STATE_DECLINED;
    if (same) return DoneWithAcceptance<AnswerOrderResponse>(*found);
    return flow::Refuse(google::rpc::FAILED_PRECONDITION, kDomain, "ALREADY_ANSWERED",
                        absl::StrCat("the order is ", Acceptance::State_Name(found->state())),
                        "accept");
  }
  Acceptance& acceptance = turn.Edit<Acceptance>(kAcceptances, request.acceptance_id());
  Answer step_answer;
  if (request.accept()) {
    step_answer = Accept(acceptance, turn);
  } else {
    acceptance.set_state(Acceptance::STATE_DECLINED);
    EmitEvent<StoreDeclined>(acceptance, turn);
    step_answer = flow::Refuse(google::rpc::FAILED_PRECONDITION, kDomain, "STORE_DECLINED",
                               "the store does not take the order");
    if (GK_MUTANT(declined_counts_as_accepted)) step_answer = flow::Done(AcceptOrderResponse());
  }
  flow::AnswerPendingStep(step_answer, AcceptOrderResponse::descriptor()->full_name(),
                          acceptance.mutable_step(), turn);
  return DoneWithAcceptance<AnswerOrderResponse>(acceptance);
}

google::rpc::Status ValidateConfirmCancel(const ConfirmCancelRequest& request) {
  return flow::FieldChecks(kDomain).Key("acceptance_id", request.acceptance_id()).status();
}

Answer ConfirmCancel(const ConfirmCancelRequest& request, const Caller&, Turn& turn) {
  const Acceptance* found = turn.Find<Acceptance>(kAcceptances, request.acceptance_id());
  if (found == nullptr) return NotFound(request.acceptance_id());
  if (found->state() == Acceptance::STATE_CANCELLED)
    return DoneWithAcceptance<ConfirmCancelResponse>(*found);
  if (found->state() != Acceptance::STATE_CANCEL_WAITING) {
    return flow::Refuse(google::rpc::FAILED_PRECONDITION, kDomain, "NO_CANCEL_WAITING",
                        absl::StrCat("the order is ", Acceptance::State_Name(found->state())),
                        "acceptance_id");
  }
  Acceptance& acceptance = turn.Edit<Acceptance>(kAcceptances, request.acceptance_id());
  const Answer undo_answer = Cancel(acceptance, turn);
  flow::AnswerPendingUndo(undo_answer, CancelAcceptanceResponse::descriptor()->full_name(),
                          acceptance.mutable_step(), turn);
  return DoneWithAcceptance<ConfirmCancelResponse>(acceptance);
}

template <class Request>
void AcceptanceKey(const Request& request, const Caller&, std::vector<RowKey>* keys) {
  keys->push_back({&kAcceptances, request.acceptance_id()});
}

flow::Context MakeContext() {
  flow::Context context;
  context.name = "store";
  context.service = kDomain;
  context.tables = {&kItems, &kAcceptances};
  context.handlers = {
      std::make_shared<flow::FunctionHandler<RegisterItemRequest>>(
          absl::StrCat(kDomain, ".RegisterItem"), ValidateRegisterItem,
          [](const RegisterItemRequest& request, const Caller&, std::vector<RowKey>* keys) {
            keys->push_back({&kItems, ItemKey(request)});
          },
          RegisterItem),
      flow::StepHandler<Acceptance, AcceptOrderRequest>(absl::StrCat(kDomain, ".AcceptOrder"),
                                                        kAcceptances, ValidateAcceptOrder,
                                                        /*more_keys=*/nullptr, AcceptOrder),
      flow::UndoHandler<Acceptance, CancelAcceptanceRequest>(
          absl::StrCat(kDomain, ".CancelAcceptance"), kAcceptances,
          /*held_rows=*/nullptr, CancelAccepted, CancelUnaccepted),
      std::make_shared<flow::FunctionHandler<AnswerOrderRequest>>(
          absl::StrCat(kDomain, ".AnswerOrder"), ValidateAnswerOrder,
          AcceptanceKey<AnswerOrderRequest>, AnswerOrder),
      std::make_shared<flow::FunctionHandler<ConfirmCancelRequest>>(
          absl::StrCat(kDomain, ".ConfirmCancel"), ValidateConfirmCancel,
          AcceptanceKey<ConfirmCancelRequest>, ConfirmCancel),
  };
  context.gets = {{absl::StrCat(kDomain, ".GetAcceptance"), &kAcceptances, "acceptance_id",
                   "acceptance", Show}};
  context.lists = {{absl::StrCat(kDomain, ".ListItems"),
                    &kItems,
                    {"storefront"},
                    "items",
                    /*newest_first=*/false,
                    /*project=*/nullptr},
                   {absl::StrCat(kDomain, ".ListAcceptances"),
                    &kAcceptances,
                    {"order_id", "storefront"},
                    "acceptances",
                    /*newest_first=*/true,
                    Show}};
  return context;
}

}  // namespace

const flow::Context& StoreContext() {
  static const flow::Context* const context = new flow::Context(MakeContext());
  return *context;
}

}  // namespace gaekju::store
