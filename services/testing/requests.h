// requests.h: requests as the tests of contexts make them, and what these read from the answers.
//
//   testing::Batch batch;                                // what one turn takes
//   batch.Add(Capture("o1"));
//   batch.Add(Refund("o2"));
//   batch.Run(payments, testing::From("order"));
//
//   testing::ExpectNamesTheField(payments, Capture(),    // good, but for one field
//                                {{"order_id", [](auto* r) { r->clear_order_id(); }}});
#ifndef GAEKJU_SERVICES_TESTING_REQUESTS_H_
#define GAEKJU_SERVICES_TESTING_REQUESTS_H_

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "flow/turn.h"
#include "google/rpc/code.pb.h"
#include "google/rpc/error_details.pb.h"
#include "services/testing/turn_harness.h"

namespace gaekju::testing {

// Whoever has somewhere to send a later answer to, as a saga has.
inline flow::Caller From(const std::string& reply_to) {
  flow::Caller caller;
  caller.reply_to = reply_to;
  return caller;
}

// The field that a refusal names; empty when it names none.
inline std::string FieldOf(const flow::Answer& answer) {
  google::rpc::BadRequest bad;
  for (const auto& detail : answer.status.details()) {
    if (detail.UnpackTo(&bad)) return bad.field_violations(0).field();
  }
  return "";
}

// Requests of several kinds, for one turn.
class Batch {
 public:
  template <class Request>
  void Add(const Request& request) {
    requests_.push_back(std::make_unique<Request>(request));
  }
  size_t size() const { return requests_.size(); }
  const google::protobuf::Message& operator[](size_t i) const { return *requests_[i]; }

  // The answers, in the order of the requests.
  std::vector<flow::Answer> Run(TurnHarness& harness, const flow::Caller& caller = {}) const {
    std::vector<TurnHarness::Item> items;
    for (const auto& request : requests_)
      items.push_back({&harness.HandlerFor(*request), request.get(), caller});
    return harness.RunTurn(items);
  }

 private:
  std::vector<std::unique_ptr<google::protobuf::Message>> requests_;
};

template <class Request>
struct Spoiled {
  const char* field;  // that the refusal names
  std::function<void(Request*)> spoil;
};

// Each of these is refused with INVALID_ARGUMENT that names its field, and leaves no trace.
template <class Request>
void ExpectNamesTheField(TurnHarness& harness, const Request& good,
                         const std::vector<Spoiled<std::type_identity_t<Request>>>& cases) {
  for (const auto& [field, spoil] : cases) {
    Request request = good;
    spoil(&request);
    SCOPED_TRACE(request.ShortDebugString());
    const flow::Answer answer = harness.Call(request);
    EXPECT_EQ(answer.status.code(), google::rpc::INVALID_ARGUMENT);
    EXPECT_EQ(FieldOf(answer), field);
    EXPECT_EQ(harness.written_count(), 0);
  }
}

}  // namespace gaekju::testing

#endif  // GAEKJU_SERVICES_TESTING_REQUESTS_H_
