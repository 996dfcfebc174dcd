// values.h: what the deciders of every context need of times, and the checks of a request's fields.
// Checks are made in the order in which they are written; the first that fails is the answer, and
// names its field.
//
//   return FieldChecks(kDomain)
//       .Id("product_id", request.product_id())
//       .Money("unit_price", request.unit_price(), /*minor_units_min=*/0)
//       .status();
//
// Pure. A FieldChecks belongs to one thread.
#ifndef GAEKJU_FLOW_VALUES_H_
#define GAEKJU_FLOW_VALUES_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "gaekju/type/v1/type.pb.h"
#include "google/protobuf/repeated_field.h"
#include "google/protobuf/timestamp.pb.h"
#include "google/rpc/status.pb.h"

namespace gaekju::flow {

// Microseconds since 1970, both ways.
google::protobuf::Timestamp ToTimestamp(int64_t time_us);
int64_t ToMicros(const google::protobuf::Timestamp& time);

// The INVALID_ARGUMENT refusals of a request, reason FIELD_INVALID.
class FieldChecks {
 public:
  // `domain`: the service, "gaekju.payment.v1.PaymentService".
  explicit FieldChecks(absl::string_view domain) : domain_(domain) {}

  // 1 to 64 bytes, without control characters and "/": it becomes a part of a row's key.
  FieldChecks& Id(absl::string_view field, absl::string_view value);
  // The same, but "/" is allowed: somebody else's name for a person or thing.
  FieldChecks& Reference(absl::string_view field, absl::string_view value);
  // A row's whole key, "<order_id>/<step_id>": 3 to 129 bytes without control characters.
  FieldChecks& Key(absl::string_view field, absl::string_view value);
  // 1 to 32 lower-case letters, digits and dashes.
  FieldChecks& Storefront(absl::string_view field, absl::string_view value);
  // At most `size_max` bytes.
  FieldChecks& Text(absl::string_view field, absl::string_view value, size_t size_max);
  // `min` to `max`, both included.
  FieldChecks& Range(absl::string_view field, int64_t value, int64_t min, int64_t max);
  // Three capital letters.
  FieldChecks& Currency(absl::string_view field, absl::string_view value);
  // A currency, and at least `minor_units_min`.
  FieldChecks& Money(absl::string_view field, const gaekju::type::v1::Money& money,
                     int64_t minor_units_min);
  // 1 to 100 lines, each with a product, 1 to 1,000,000 of it, and a name of at most 256 bytes.
  FieldChecks& Lines(absl::string_view field,
                     const google::protobuf::RepeatedPtrField<gaekju::type::v1::LineItem>& lines);
  // Anything else. `rule` completes "<field> …".
  FieldChecks& That(bool holds, absl::string_view field, absl::string_view rule);

  // Code 0, or the first failure.
  google::rpc::Status status() const { return status_; }

 private:
  const std::string domain_;
  google::rpc::Status status_;
};

}  // namespace gaekju::flow

#endif  // GAEKJU_FLOW_VALUES_H_
