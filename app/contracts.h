// contracts.h: the contracts of contexts that are not linked in: `--contracts=FILE[,FILE…]`, each a
// descriptor set. With them a storefront may call a context that is written in any language.
//
//   auto pool = ContractsFromFlag();
//   if (!pool.ok()) return Fail("check", pool.status().message(), kInvalid);
//   auto plan = flow::ParseStorefront(text, name, **pool);
//
// A set is made by:  protoc --include_imports --descriptor_set_out=giftwrap.binpb giftwrap.proto
#ifndef GAEKJU_APP_CONTRACTS_H_
#define GAEKJU_APP_CONTRACTS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "google/protobuf/descriptor.h"

namespace gaekju::app {

// A pool of what is linked in and what the files hold. Of a file that both have, ours is taken, so
// that a set from an older release goes on working. Errors: INVALID_ARGUMENT, NOT_FOUND, with the
// file's name: it cannot be read, is no descriptor set, misses an import, contradicts another, has
// no step, or has a context whose name is taken.
absl::StatusOr<std::unique_ptr<google::protobuf::DescriptorPool>> LoadContracts(
    const std::vector<std::string>& files);

// The same with the files of --contracts, read once; lives as long as the program. Thread-safe.
absl::StatusOr<const google::protobuf::DescriptorPool*> ContractsFromFlag();
// The files of --contracts, as absolute paths.
std::vector<std::string> ContractFiles();

}  // namespace gaekju::app

#endif  // GAEKJU_APP_CONTRACTS_H_
