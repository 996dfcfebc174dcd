// order_service.h: the storefronts that the order context serves: files in a directory, and every
// revision that some order runs under, kept in the context's database.
//
//   absl::StatusOr<std::unique_ptr<StorefrontBook>> book = StorefrontBook::Open("storefronts",
//   pg_options); std::unique_ptr<flow::Context> context = MakeOrderContext(book->get());
//
// REQUIRES: the order context's migrations have been applied.
#ifndef GAEKJU_SERVICES_ORDER_ORDER_SERVICE_H_
#define GAEKJU_SERVICES_ORDER_ORDER_SERVICE_H_

#include <map>
#include <memory>
#include <shared_mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "google/protobuf/descriptor.h"
#include "runtime/pg.h"
#include "services/order/order.h"

namespace gaekju::order {

// Thread-safe.
class StorefrontBook : public PlanBook {
 public:
  // Reads every *.textproto in `directory`, and stores their revisions before any order can have
  // them. Contexts that are not linked in are looked up in `contracts`, which outlives the book.
  // Errors: INVALID_ARGUMENT (every mistake of every file, "<file>:<line>:<column>: …", or a
  // directory without storefronts), NOT_FOUND (no such directory), those of PgConnection.
  static absl::StatusOr<std::unique_ptr<StorefrontBook>> Open(
      const std::string& directory, runtime::PgOptions pg,
      const google::protobuf::DescriptorPool& contracts =
          *google::protobuf::DescriptorPool::generated_pool());

  const flow::Plan* Current(const std::string& storefront) const override;
  // Waits for the database when another replica's revision is not known here yet.
  const flow::Plan* Pinned(const std::string& storefront,
                           const std::string& revision) const override;

  // The ids of the storefronts, sorted.
  std::vector<std::string> Storefronts() const;

 private:
  StorefrontBook(runtime::PgOptions pg, const google::protobuf::DescriptorPool& contracts)
      : pg_(std::move(pg)), contracts_(contracts) {}
  absl::Status Store(const std::map<std::string, std::string>& texts_by_key);
  absl::StatusOr<std::unique_ptr<flow::Plan>> Fetch(const std::string& revision_key) const;

  const runtime::PgOptions pg_;
  const google::protobuf::DescriptorPool& contracts_;
  mutable std::shared_mutex mutex_;
  // Plans are never removed: orders point at them.
  mutable std::map<std::string, std::unique_ptr<const flow::Plan>>
      by_key_;                                        // "<storefront>@<revision>"
  std::map<std::string, const flow::Plan*> current_;  // by storefront
};

}  // namespace gaekju::order

#endif  // GAEKJU_SERVICES_ORDER_ORDER_SERVICE_H_
