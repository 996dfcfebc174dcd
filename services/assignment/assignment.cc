#include "services/assignment/assignment.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flow/mutant.h"
#include "flow/step.h"
#include "flow/values.h"
#include "gaekju/assignment/v1/assignment_events.pb.h"
#include "gaekju/assignment/v1/assignment_service.pb.h"
#include "google/rpc/code.pb.h"

namespace gaekju::assignment {

using flow::Answer;
using flow::Caller;
using flow::RowKey;
using flow::Turn;
using flow::v1::Outcome;
using gaekju::assignment::v1::Assignment;
using gaekju::assignment::v1::AssignmentCancelled;
using gaekju::assignment::v1::AssignRequest;
using gaekju::assignment::v1::AssignResponse;
using gaekju::assignment::v1::AwaitPickupRequest;
using gaekju::assignment::v1::AwaitPickupResponse;
using gaekju::assignment::v1::ClosePickupRequest;
using gaekju::assignment::v1::ClosePickupResponse;
using gaekju::assignment::v1::ConfirmPickupRequest;
using gaekju::assignment::v1::ConfirmPickupResponse;
using gaekju::assignment::v1::CreateDealerRequest;
using gaekju::assignment::v1::CreateDealerResponse;
using gaekju::assignment::v1::Dealer;
using gaekju::assignment::v1::DealerAssigned;
using gaekju::assignment::v1::OrderPickedUp;
using gaekju::assignment::v1::PickupClosing;
using gaekju::assignment::v1::ReopenPickupRequest;
using gaekju::assignment::v1::ReopenPickupResponse;
using gaekju::assignment::v1::UnassignRequest;
using gaekju::assignment::v1::UnassignResponse;
using gaekju::type::v1::Location;
using google::protobuf::Message;
using google::rpc::FAILED_PRECONDITION;

const flow::Table kDealers = {"dealers",
                              &Dealer::default_instance(),
                              {{"storefront", "storefront"},
                               {"capacity", "capacity"},
                               {"assigned_count", "assigned_count"},
                               {"update_time_us", "update_time_us"}}};

const flow::Table kAssignments = {"assignments",
                                  &Assignment::default_instance(),
                                  {{"order_id", "order_id"},
                                   {"customer_id", "customer_id"},
                                   {"dealer_id", "dealer_id"},
                                   {"state", "state"}}};

const flow::Table kPickupClosings = {"pickup_closings", &PickupClosing::default_instance(), {}};

bool HasRoom(const Dealer& dealer) {
  return dealer.capacity() == 0 || dealer.assigned_count() < dealer.capacity() ||
         GK_MUTANT(dealer_over_capacity);
}

namespace {

constexpr char kDomain[] = "gaekju.assignment.v1.AssignmentService";
constexpr size_t kAgencyNameSizeMax = 256;
constexpr int64_t kCapacityMax = 1'000'000'000;

// Rows that a request loads and locks before it knows more: nearly always the first has room.
constexpr int kCandidatesFirst = 3;
// When all that were looked at turn out to be full, so many times as many are loaded. A turn of 512
// requests for the same dealers with room for one each then ends after 5 turns, of the 8 that the
// loop grants; a replica whose finder is far behind gets past 100,000 full dealers.
constexpr int kCandidatesGrowth = 4;
constexpr int kCandidatesMoreMax = 4096;

// Rows as others may see them: without what only this context keeps.
Dealer Shown(const Dealer& dealer) {
  Dealer shown = dealer;
  shown.clear_request_fingerprint();
  return shown;
}

Assignment Shown(const Assignment& assignment) {
  Assignment shown = assignment;
  shown.clear_step();
  shown.clear_pickup_step();
  shown.clear_pickup_closed_by();
  return shown;
}

// One that was closed before it was made is none yet.
bool IsMade(const Assignment& assignment) {
  return assignment.state() != Assignment::STATE_UNSPECIFIED &&
         assignment.state() != Assignment::STATE_REFUSED;
}

template <class T>
bool Show(const Message& row, Message* out) {
  *static_cast<T*>(out) = Shown(static_cast<const T&>(row));
  return true;
}

bool ShowAssignment(const Message& row, Message* out) {
  return static_cast<const Assignment&>(row).state() != Assignment::STATE_UNSPECIFIED &&
         Show<Assignment>(row, out);
}

template <class Event>
void EmitEvent(const Assignment& assignment, Turn& turn) {
  Event event;
  *event.mutable_assignment() = Shown(assignment);
  turn.Emit(kAssignments, assignment.assignment_id(), event, assignment.order_id());
}

// Where the buyer is; null when nobody knows.
template <class Request>
const Location* WhereIs(const Request& request) {
  return IsKnown(request.delivery_location()) ? &request.delivery_location() : nullptr;
}

// --- dealers

google::rpc::Status ValidateCreateDealer(const CreateDealerRequest& request) {
  return flow::FieldChecks(kDomain)
      .Id("dealer_id", request.dealer_id())
      .Storefront("storefront", request.storefront())
      .That(!request.agency_name().empty(), "agency_name", "must not be empty")
      .Text("agency_name", request.agency_name(), kAgencyNameSizeMax)
      .That(IsKnown(request.location()), "location", "must be set")
      .That(IsValid(request.location()), "location",
            "must be within -90 to 90 and -180 to 180 degrees")
      .Range("capacity", request.capacity(), 0, kCapacityMax)
      .status();
}

Answer DoneWithDealer(const Dealer& dealer) {
  CreateDealerResponse response;
  *response.mutable_dealer() = Shown(dealer);
  return flow::Done(response);
}

Answer CreateDealer(const CreateDealerRequest& request, const Caller&, Turn& turn) {
  const uint64_t fingerprint = flow::Fingerprint(request);
  if (const Dealer* found = turn.Find<Dealer>(kDealers, request.dealer_id())) {
    if (found->request_fingerprint() != fingerprint) {
      return flow::Refuse(
          google::rpc::ALREADY_EXISTS, kDomain, "DEALER_EXISTS",
          absl::StrCat("dealer ", request.dealer_id(), " was created with other content"),
          "dealer_id");
    }
    return DoneWithDealer(*found);
  }
  Dealer& dealer = turn.Edit<Dealer>(kDealers, request.dealer_id());
  dealer.set_dealer_id(request.dealer_id());
  dealer.set_storefront(request.storefront());
  dealer.set_agency_name(request.agency_name());
  *dealer.mutable_location() = request.location();
  dealer.set_capacity(request.capacity());
  *dealer.mutable_create_time() = flow::ToTimestamp(turn.now_us());
  dealer.set_update_time_us(turn.now_us());
  dealer.set_request_fingerprint(fingerprint);
  return DoneWithDealer(dealer);
}

// Gives the dealer one order more, or one fewer.
void MoveAssigned(const std::string& dealer_id, int by_count, Turn& turn) {
  Dealer& dealer = turn.Edit<Dealer>(kDealers, dealer_id);
  dealer.set_assigned_count(dealer.assigned_count() + by_count);
  GK_CHECK(dealer.assigned_count() >= 0 &&
           (dealer.capacity() == 0 || dealer.assigned_count() <= dealer.capacity()))
      << dealer_id << " has " << dealer.assigned_count() << " of " << dealer.capacity();
  // Grows with every change, whatever the clocks of the replicas say: of two readings of a row, the
  // later is known by it.
  dealer.set_update_time_us(std::max(turn.now_us(), dealer.update_time_us() + 1));
}

void HeldDealer(const Assignment& assignment, std::vector<RowKey>* keys) {
  if (assignment.state() == Assignment::STATE_ASSIGNED) {
    keys->push_back({&kDealers, assignment.dealer_id()});
  }
}

// --- the step: which dealer

// The nearest dealer with room: kDone with `dealer`; or kRefused; or kRetry with the rows to look
// at.
struct Choice {
  Answer answer;
  const Dealer* dealer = nullptr;
};

google::rpc::Status ValidateAssign(const AssignRequest& request) {
  return flow::FieldChecks(kDomain)
      .Storefront("storefront", request.storefront())
      .Reference("customer_id", request.customer_id())
      .Lines("lines", request.lines())
      .That(IsValid(request.delivery_location()), "delivery_location",
            "must be within -90 to 90 and -180 to 180 degrees")
      .status();
}

Choice Choose(const DealerFinder& finder, const AssignRequest& request, const Turn& turn) {
  Choice choice;
  std::vector<std::string> ids;
  for (int count = kCandidatesFirst;; count *= kCandidatesGrowth) {
    ids.clear();
    finder.Nearest(request.storefront(), WhereIs(request), count, &ids);
    int full_count = 0;
    for (const std::string& id : ids) {
      if (!turn.HasRow({&kDealers, id})) break;
      const Dealer* dealer = turn.Find<Dealer>(kDealers, id);
      if (dealer != nullptr && HasRoom(*dealer)) {
        choice.dealer = dealer;
        return choice;
      }
      ++full_count;
    }
    if (full_count < static_cast<int>(ids.size())) {
      // Nearer ones are full, and this one is not loaded. As many as that tells at once.
      const int more_count =
          std::min(std::max(full_count, 1) * kCandidatesGrowth, kCandidatesMoreMax);
      if (full_count + more_count > static_cast<int>(ids.size())) {
        ids.clear();
        finder.Nearest(request.storefront(), WhereIs(request), full_count + more_count, &ids);
      }
      choice.answer.kind = Answer::Kind::kRetry;
      for (std::string& id : ids) {
        RowKey key{&kDealers, std::move(id)};
        if (!turn.HasRow(key)) choice.answer.more_keys.push_back(std::move(key));
      }
      // The finder may learn something between two questions: then the answer has changed as well.
      if (!choice.answer.more_keys.empty()) return choice;
      choice.answer = {};
      continue;
    }
    if (static_cast<int>(ids.size()) < count) {
      choice.answer = flow::Refuse(
          FAILED_PRECONDITION, kDomain, "DEALERS_FULL",
          absl::StrCat("no dealer of ", request.storefront(), " has room for another order"));
      return choice;
    }
  }
}

Answer Assign(const AssignRequest& request, const Choice& choice, Assignment& assignment,
              Turn& turn) {
  assignment.set_assignment_id(flow::StepKey(request.order_id(), request.step_id()));
  assignment.set_order_id(request.order_id());
  assignment.set_storefront(request.storefront());
  assignment.set_customer_id(request.customer_id());
  *assignment.mutable_lines() = request.lines();
  if (choice.answer.kind == Answer::Kind::kRefused) {
    assignment.set_state(Assignment::STATE_REFUSED);
    return choice.answer;
  }
  const Dealer& dealer = *choice.dealer;
  assignment.set_dealer_id(dealer.dealer_id());
  assignment.set_agency_name(dealer.agency_name());
  if (const Location* location = WhereIs(request)) {
    assignment.set_distance_metres(
        Metres(SquaredChord(ToUnitVector(*location), ToUnitVector(dealer.location()))));
  }
  assignment.set_state(Assignment::STATE_ASSIGNED);
  *assignment.mutable_assign_time() = flow::ToTimestamp(turn.now_us());
  MoveAssigned(dealer.dealer_id(), +1, turn);
  EmitEvent<DealerAssigned>(assignment, turn);
  AssignResponse response;
  response.set_assignment_id(assignment.assignment_id());
  response.set_dealer_id(assignment.dealer_id());
  response.set_agency_name(assignment.agency_name());
  return flow::Done(response);
}

// The step of flow/step.h, but for one thing: which dealer has room may take more rows to tell
// (kRetry), and is told before the step's record is made.
std::shared_ptr<const flow::Handler> AssignHandler(const DealerFinder* finder) {
  const std::string name = absl::StrCat(kDomain, ".Assign");
  auto step = [name](const Choice& choice) {
    return flow::StepHandler<Assignment, AssignRequest>(
        name, kAssignments, ValidateAssign, /*more_keys=*/nullptr,
        [&choice](const AssignRequest& request, const Caller&, Assignment& assignment, Turn& turn) {
          return Assign(request, choice, assignment, turn);
        });
  };
  static const Choice* const kNone = new Choice();
  return std::make_shared<flow::FunctionHandler<AssignRequest>>(
      name,
      [checks = step(*kNone)](const AssignRequest& request) { return checks->Validate(request); },
      [finder](const AssignRequest& request, const Caller&, std::vector<RowKey>* keys) {
        keys->push_back({&kAssignments, flow::StepKey(request.order_id(), request.step_id())});
        std::vector<std::string> ids;
        finder->Nearest(request.storefront(), WhereIs(request), kCandidatesFirst, &ids);
        for (std::string& id : ids) keys->push_back({&kDealers, std::move(id)});
      },
      [finder, step](const AssignRequest& request, const Caller& caller, Turn& turn) {
        Choice choice;
        const auto* found = turn.Find<Assignment>(
            kAssignments, flow::StepKey(request.order_id(), request.step_id()));
        if (found == nullptr || !flow::WasAsked(found->step())) {
          choice = Choose(*finder, request, turn);
          if (choice.answer.kind == Answer::Kind::kRetry) return choice.answer;
        }
        return step(choice)->Handle(request, caller, turn);
      });
}

// --- its undo

Answer RefuseCancelled() {
  return flow::Refuse(FAILED_PRECONDITION, kDomain, "ASSIGNMENT_CANCELLED",
                      "the assignment was taken back", "assignment_id");
}

Answer Unassign(Assignment& assignment, Turn& turn) {
  // A buyer who has it no longer holds the dealer's room.
  if (assignment.state() == Assignment::STATE_ASSIGNED && !GK_MUTANT(room_never_given_back)) {
    MoveAssigned(assignment.dealer_id(), GK_MUTANT(room_given_back_twice) ? -2 : -1, turn);
  }
  assignment.set_state(Assignment::STATE_CANCELLED);
  *assignment.mutable_cancel_time() = flow::ToTimestamp(turn.now_us());
  if (assignment.pickup_step().outcome() == Outcome::OUTCOME_PENDING &&
      !GK_MUTANT(cancelled_pickup_still_awaited)) {
    flow::AnswerPendingStep(RefuseCancelled(), AwaitPickupResponse::descriptor()->full_name(),
                            assignment.mutable_pickup_step(), turn);
  }
  EmitEvent<AssignmentCancelled>(assignment, turn);
  return flow::Done(UnassignResponse());
}

// Nobody had it: a refused assignment stays refused, one that never came leaves a tombstone. No
// room is given back, so no event.
void Void(const UnassignRequest& request, Assignment& assignment, Turn& turn) {
  if (assignment.state() == Assignment::STATE_REFUSED) return;
  assignment.set_assignment_id(flow::StepKey(request.order_id(), request.step_id()));
  assignment.set_order_id(request.order_id());
  assignment.set_state(Assignment::STATE_CANCELLED);
  *assignment.mutable_cancel_time() = flow::ToTimestamp(turn.now_us());
}

// --- the pick-up

Answer NotFound(const std::string& assignment_id) {
  return flow::Refuse(google::rpc::NOT_FOUND, kDomain, "ASSIGNMENT_NOT_FOUND",
                      absl::StrCat("no assignment ", assignment_id), "assignment_id");
}

template <class Request>
void AssignmentKey(const Request& request, const Caller&, std::vector<RowKey>* keys) {
  keys->push_back({&kAssignments, request.assignment_id()});
}

google::rpc::Status ValidateAwaitPickup(const AwaitPickupRequest& request) {
  return flow::FieldChecks(kDomain)
      .Id("order_id", request.order_id())
      .Id("step_id", request.step_id())
      .Key("assignment_id", request.assignment_id())
      .status();
}

Answer PickedUp(const Assignment& assignment) {
  AwaitPickupResponse response;
  *response.mutable_pickup_time() = assignment.pickup_time();
  return flow::Done(response);
}

Answer AwaitPickup(const AwaitPickupRequest& request, const Caller& caller, Turn& turn) {
  const Assignment* found = turn.Find<Assignment>(kAssignments, request.assignment_id());
  if (found == nullptr || found->order_id() != request.order_id() || !IsMade(*found)) {
    return NotFound(request.assignment_id());
  }
  const uint64_t fingerprint = flow::Fingerprint(request);
  const flow::StepRecord& kept = found->pickup_step();
  if (kept.outcome() != Outcome::OUTCOME_UNSPECIFIED) {
    if (kept.request_fingerprint() != fingerprint) {
      return flow::Refuse(google::rpc::ALREADY_EXISTS, kDomain, "STEP_REUSED",
                          absl::StrCat("step ", kept.step_id(), " of order ", kept.order_id(),
                                       " waits for this pick-up"));
    }
    if (kept.outcome() == Outcome::OUTCOME_PENDING && !caller.reply_to.empty() &&
        kept.reply_to() != caller.reply_to) {
      turn.Edit<Assignment>(kAssignments, request.assignment_id())
          .mutable_pickup_step()
          ->set_reply_to(caller.reply_to);
    }
    return flow::RecordedAnswer(kept);
  }
  // For ever, so it needs no record.
  if (found->state() == Assignment::STATE_CANCELLED) return RefuseCancelled();
  Assignment& assignment = turn.Edit<Assignment>(kAssignments, request.assignment_id());
  flow::StepRecord* record = assignment.mutable_pickup_step();
  record->set_order_id(request.order_id());
  record->set_step_id(request.step_id());
  record->set_request_fingerprint(fingerprint);
  record->set_reply_to(caller.reply_to);
  const Answer answer =
      assignment.state() == Assignment::STATE_PICKED_UP && !GK_MUTANT(early_pickup_forgotten)
          ? PickedUp(assignment)
          : flow::Pending();
  flow::RecordAnswer(answer, record);
  return answer;
}

google::rpc::Status ValidateConfirmPickup(const ConfirmPickupRequest& request) {
  return flow::FieldChecks(kDomain).Key("assignment_id", request.assignment_id()).status();
}

Answer DoneWithAssignment(const Assignment& assignment) {
  ConfirmPickupResponse response;
  *response.mutable_assignment() = Shown(assignment);
  return flow::Done(response);
}

Answer ConfirmPickup(const ConfirmPickupRequest& request, const Caller&, Turn& turn) {
  const Assignment* found = turn.Find<Assignment>(kAssignments, request.assignment_id());
  if (found == nullptr || !IsMade(*found)) return NotFound(request.assignment_id());
  if (found->state() == Assignment::STATE_CANCELLED) return RefuseCancelled();
  if (found->state() == Assignment::STATE_PICKED_UP) return DoneWithAssignment(*found);
  if (!found->pickup_closed_by().empty() && !GK_MUTANT(closed_pickup_still_taken)) {
    return flow::Refuse(FAILED_PRECONDITION, kDomain, "PICKUP_CLOSED",
                        "the order is being cancelled; nobody picks it up any more",
                        "assignment_id");
  }
  Answer retry;
  retry.kind = Answer::Kind::kRetry;
  HeldDealer(*found, &retry.more_keys);
  if (!turn.HasRow(retry.more_keys[0])) return retry;
  Assignment& assignment = turn.Edit<Assignment>(kAssignments, request.assignment_id());
  if (!GK_MUTANT(pickup_keeps_the_room)) MoveAssigned(assignment.dealer_id(), -1, turn);
  assignment.set_state(Assignment::STATE_PICKED_UP);
  *assignment.mutable_pickup_time() = flow::ToTimestamp(turn.now_us());
  if (assignment.pickup_step().outcome() == Outcome::OUTCOME_PENDING &&
      !GK_MUTANT(pickup_not_told)) {
    flow::AnswerPendingStep(PickedUp(assignment), AwaitPickupResponse::descriptor()->full_name(),
                            assignment.mutable_pickup_step(), turn);
  }
  EmitEvent<OrderPickedUp>(assignment, turn);
  return DoneWithAssignment(assignment);
}

// --- the pick-up is closed before a cancel takes the assignment back

std::string AssignmentIdOf(const ClosePickupRequest& request) {
  return flow::StepKey(request.order_id(), request.assignment_step_id());
}

google::rpc::Status ValidateClosePickup(const ClosePickupRequest& request) {
  return flow::FieldChecks(kDomain).Id("assignment_step_id", request.assignment_step_id()).status();
}

// The assignment's row decides: the pick-up was first, or none comes any more. So it is written
// also where there is none yet.
Answer ClosePickup(const ClosePickupRequest& request, const Caller&, PickupClosing& closing,
                   Turn& turn) {
  const std::string assignment_id = AssignmentIdOf(request);
  closing.set_closing_id(flow::StepKey(request.order_id(), request.step_id()));
  closing.set_assignment_id(assignment_id);
  const Assignment* found = turn.Find<Assignment>(kAssignments, assignment_id);
  if (found != nullptr && found->has_pickup_time() && !GK_MUTANT(picked_up_still_closed)) {
    return flow::Refuse(FAILED_PRECONDITION, kDomain, "PICKED_UP",
                        "the buyer has picked it up; it is too late to cancel");
  }
  if (found == nullptr && GK_MUTANT(early_closing_forgotten))
    return flow::Done(ClosePickupResponse());
  Assignment& assignment = turn.Edit<Assignment>(kAssignments, assignment_id);
  assignment.set_assignment_id(assignment_id);
  assignment.set_order_id(request.order_id());
  assignment.set_pickup_closed_by(closing.closing_id());
  return flow::Done(ClosePickupResponse());
}

Answer ReopenPickup(PickupClosing& closing, Turn& turn) {
  Assignment& assignment = turn.Edit<Assignment>(kAssignments, closing.assignment_id());
  if (assignment.pickup_closed_by() == closing.closing_id()) assignment.clear_pickup_closed_by();
  return flow::Done(ReopenPickupResponse());
}

void VoidClosing(const ReopenPickupRequest& request, PickupClosing& closing, Turn&) {
  closing.set_closing_id(flow::StepKey(request.order_id(), request.step_id()));
}

}  // namespace

std::unique_ptr<flow::Context> MakeAssignmentContext(const DealerFinder* finder) {
  auto context = std::make_unique<flow::Context>();
  context->name = "assignment";
  context->service = kDomain;
  context->tables = {&kAssignments, &kDealers, &kPickupClosings};
  context->handlers = {
      std::make_shared<flow::FunctionHandler<CreateDealerRequest>>(
          absl::StrCat(kDomain, ".CreateDealer"), ValidateCreateDealer,
          [](const CreateDealerRequest& request, const Caller&, std::vector<RowKey>* keys) {
            keys->push_back({&kDealers, request.dealer_id()});
          },
          CreateDealer),
      AssignHandler(finder),
      flow::UndoHandler<Assignment, UnassignRequest>(absl::StrCat(kDomain, ".Unassign"),
                                                     kAssignments, HeldDealer, Unassign, Void),
      std::make_shared<flow::FunctionHandler<AwaitPickupRequest>>(
          absl::StrCat(kDomain, ".AwaitPickup"), ValidateAwaitPickup,
          AssignmentKey<AwaitPickupRequest>, AwaitPickup),
      std::make_shared<flow::FunctionHandler<ConfirmPickupRequest>>(
          absl::StrCat(kDomain, ".ConfirmPickup"), ValidateConfirmPickup,
          AssignmentKey<ConfirmPickupRequest>, ConfirmPickup),
      flow::StepHandler<PickupClosing, ClosePickupRequest>(
          absl::StrCat(kDomain, ".ClosePickup"), kPickupClosings, ValidateClosePickup,
          [](const ClosePickupRequest& request, std::vector<RowKey>* keys) {
            keys->push_back({&kAssignments, AssignmentIdOf(request)});
          },
          ClosePickup),
      flow::UndoHandler<PickupClosing, ReopenPickupRequest>(
          absl::StrCat(kDomain, ".ReopenPickup"), kPickupClosings,
          [](const PickupClosing& closing, std::vector<RowKey>* keys) {
            keys->push_back({&kAssignments, closing.assignment_id()});
          },
          ReopenPickup, VoidClosing),
  };
  context->gets = {
      {absl::StrCat(kDomain, ".GetDealer"), &kDealers, "dealer_id", "dealer", Show<Dealer>},
      {absl::StrCat(kDomain, ".GetAssignment"), &kAssignments, "assignment_id", "assignment",
       ShowAssignment}};
  context->lists = {{absl::StrCat(kDomain, ".ListDealers"),
                     &kDealers,
                     {"storefront"},
                     "dealers",
                     /*newest_first=*/false,
                     Show<Dealer>},
                    {absl::StrCat(kDomain, ".ListAssignments"),
                     &kAssignments,
                     {"order_id", "customer_id", "dealer_id", "order_ids"},
                     "assignments",
                     /*newest_first=*/true,
                     ShowAssignment}};
  return context;
}

}  // namespace gaekju::assignment
