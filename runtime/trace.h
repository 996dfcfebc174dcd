// trace.h: the W3C trace context (https://www.w3.org/TR/trace-context/) as it travels through gRPC
// metadata and NATS headers.
//
//   std::string traceparent = NewTraceparent();            // "00-<32 hex>-<16 hex>-01"
//   std::string child = ChildTraceparent(traceparent);     // the same trace, a new span
//
// Thread-safe.
#ifndef GAEKJU_RUNTIME_TRACE_H_
#define GAEKJU_RUNTIME_TRACE_H_

#include <string>

#include "absl/strings/string_view.h"

namespace gaekju::runtime {

// Version 00 (or a later one that begins like it), lower-case hex, neither id all zeros.
bool IsTraceparent(absl::string_view traceparent);
// A new trace. Random, not secret.
std::string NewTraceparent();
// The same trace and flags with a new span id; a new trace when `traceparent` is malformed.
std::string ChildTraceparent(absl::string_view traceparent);
// The 32 hex digits of the trace id, a view into `traceparent`; empty when it is malformed.
absl::string_view TraceIdOf(absl::string_view traceparent);

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_TRACE_H_
