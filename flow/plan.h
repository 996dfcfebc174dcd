// plan.h: a storefront file as the saga runs it: validated, with every name resolved. Made by
// flow/storefront.h. Immutable and thread-safe; an order keeps the plan of its storefront's
// revision for ever.
#ifndef GAEKJU_FLOW_PLAN_H_
#define GAEKJU_FLOW_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "gaekju/storefront/v1/storefront.pb.h"
#include "google/protobuf/descriptor.h"

namespace gaekju::flow {

// Copies one field into a step's request. Compiled once, when the storefront loads.
struct FieldCopy {
  enum class From { kOrder, kAnswer };
  From from = From::kOrder;
  int step = -1;  // kAnswer: index in Plan::steps of the step whose answer has the field
  const google::protobuf::FieldDescriptor* source = nullptr;
  const google::protobuf::FieldDescriptor* target = nullptr;
};

// When a word of the shop holds, or a notice is sent: one of the three is set.
struct PlanTrigger {
  gaekju::storefront::v1::Stage stage = gaekju::storefront::v1::STAGE_UNSPECIFIED;
  int done = -1;    // index in Plan::steps, of a step of place or cancel
  int undone = -1;  // index in Plan::steps, of a place step
};

// A step of `place`, a step of `cancel` that is not an undo, or a notice.
struct PlanStep {
  std::string id;
  bool in_cancel = false;
  bool is_notice = false;
  PlanTrigger when;         // only of a notice, which waits for this instead of `after`
  std::string context;      // "payment"
  std::string method;       // full name
  std::string undo_method;  // full name; empty: nothing to undo
  const google::protobuf::Descriptor* request = nullptr;
  const google::protobuf::Descriptor* response = nullptr;
  const google::protobuf::Descriptor* undo_request = nullptr;  // null: nothing to undo
  const google::protobuf::Descriptor* undo_response = nullptr;
  gaekju::storefront::v1::Via via = gaekju::storefront::v1::VIA_UNSPECIFIED;
  bool buyer_waits = false;  // GRPC, and after GRPC steps only
  bool fail_on_unavailable = false;
  int64_t deadline_us = 2000000;  // of one attempt over gRPC
  int64_t expires_after_us = 0;   // 0: never
  std::vector<int> after;         // indexes in Plan::steps; place after place, cancel after cancel
  std::vector<int>
      after_undo;  // only in cancel: indexes in Plan::steps of place steps whose undo comes first
  std::vector<FieldCopy> copies;  // order_id and step_id are not among them
  std::string constants;          // serialized request with the storefront's constants; merged last
};

// An undo that the cancel flow names.
struct PlanUndo {
  int step = -1;  // index in Plan::steps, of a place step
  gaekju::storefront::v1::Via via = gaekju::storefront::v1::JETSTREAM;
  bool buyer_waits = false;     // via GRPC, and after only what the buyer waits for
  std::vector<int> after;       // indexes in Plan::steps, of cancel steps
  std::vector<int> after_undo;  // indexes in Plan::steps, of place steps whose undo comes first
};

// A shop's word for where an order stands.
struct PlanStatus {
  PlanTrigger when;
  std::string code;
  std::string ko;
  std::string en;
};

// A field of the order that the buyer has to give, because a step's request requires it.
struct PlanInput {
  const google::protobuf::FieldDescriptor* field = nullptr;  // of gaekju.order.v1.Order
  std::string step;                                          // the first that needs it
};

// A storefront's revision. Invariants: the steps of place come first, then those of cancel, then
// the notices; `after` has no cycle; at least one place step.
struct Plan {
  std::string storefront;
  std::string revision;  // 16 hex digits: FNV-1a of the file's text
  std::string currency_code;
  std::vector<PlanStep> steps;  // place_count of place, then those of cancel, then notice_count
  int place_count = 0;
  int notice_count = 0;
  bool has_cancel = false;
  std::vector<PlanUndo> cancel_undos;
  // Once one of these is done it is too late to cancel: indexes in `steps`, of place steps.
  std::vector<int> unless_done;
  // What a caller is told whom a step keeps waiting in vain; without words when the file has none.
  gaekju::type::v1::LocalizedText place_try_later;
  gaekju::type::v1::LocalizedText cancel_try_later;
  std::vector<PlanStatus> statuses;
  std::vector<PlanInput> inputs;      // by field number, each field once
  bool rejected_is_readable = false;  // has a word for Stage REJECTED

  // The steps before this are asked because the order needs them; those from it on are notices.
  int flow_count() const { return static_cast<int>(steps.size()) - notice_count; }
  int StepIndex(const std::string& id) const {
    for (size_t i = 0; i < steps.size(); ++i) {
      if (steps[i].id == id) return static_cast<int>(i);
    }
    return -1;
  }
};

}  // namespace gaekju::flow

#endif  // GAEKJU_FLOW_PLAN_H_
