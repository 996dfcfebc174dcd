// byte_buffer.h: a message's bytes as gRPC carries them.
//
//   grpc::ByteBuffer bytes = ToByteBuffer(request.SerializeAsString());
//   if (!Parse(bytes, &response)) …
#ifndef GAEKJU_RUNTIME_BYTE_BUFFER_H_
#define GAEKJU_RUNTIME_BYTE_BUFFER_H_

#include <string>
#include <utility>

#include "google/protobuf/message.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/slice.h"

namespace gaekju::runtime {

inline grpc::ByteBuffer ToByteBuffer(std::string payload) {
  if (payload.size() <= 16384) {  // a copy is cheaper than a reference-counted owner
    grpc::Slice slice(payload.data(), payload.size());
    return grpc::ByteBuffer(&slice, 1);
  }
  auto* owned = new std::string(std::move(payload));
  grpc::Slice slice(
      owned->data(), owned->size(), [](void* owner) { delete static_cast<std::string*>(owner); },
      owned);
  return grpc::ByteBuffer(&slice, 1);
}

// The bytes in one piece: without a copy when they came in one, as those of small messages do.
inline bool ToSlice(const grpc::ByteBuffer& bytes, grpc::Slice* slice) {
  return bytes.TrySingleSlice(slice).ok() || bytes.DumpToSingleSlice(slice).ok();
}

inline bool Parse(const grpc::ByteBuffer& bytes, google::protobuf::Message* message) {
  grpc::Slice slice;
  return ToSlice(bytes, &slice) &&
         message->ParseFromArray(slice.begin(), static_cast<int>(slice.size()));
}

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_BYTE_BUFFER_H_
