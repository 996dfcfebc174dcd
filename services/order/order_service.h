// order_service.h: the storefronts that the order context serves: files in a directory, looked at
// about once a second, and every revision that some order runs under, kept in the context's
// database.
//
//   absl::StatusOr<std::unique_ptr<StorefrontBook>> book =
//       StorefrontBook::Open({.directory = "storefronts", .pg = pg_options});
//   std::unique_ptr<flow::Context> context = MakeOrderContext(book->get());
//
// A file is known by its content alone: a link that is set to another file is a change (Kubernetes
// swaps a ConfigMap so), a file that is written anew with the same text is none.
//   1. What two looks in a row find the same is taken: a half-written file waits.
//   2. A right text serves new orders once its revision is in the database. Orders that were placed
//      before keep theirs.
//   3. A wrong text is refused: logged once, listed with its mistakes; the storefront's last right
//      revision goes on, also after a restart.
//   4. A storefront whose file is gone takes no orders. Those it has go on.
//   5. A revision that was served and cannot be read any more (a context that it calls was told by
//      --contracts, and is not now) holds its orders as they are: told once, and listed. They go on
//      with the first process that can read it.
// docs/adr/0031 and 0072 say why.
//
// REQUIRES: the order context's migrations have been applied.
#ifndef GAEKJU_SERVICES_ORDER_ORDER_SERVICE_H_
#define GAEKJU_SERVICES_ORDER_ORDER_SERVICE_H_

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gaekju/storefront/v1/storefront.pb.h"
#include "gaekju/storefront/v1/storefront_service.pb.h"
#include "google/protobuf/descriptor.h"
#include "runtime/pg.h"
#include "services/order/order.h"

namespace gaekju::order {

struct StorefrontBookOptions {
  std::string directory;
  runtime::PgOptions pg;
  // Contexts that are not linked in; outlives the book.
  const google::protobuf::DescriptorPool* contracts =
      google::protobuf::DescriptorPool::generated_pool();
  // How often the directory is looked at. Zero: only by Poll().
  absl::Duration poll_period = absl::Seconds(1);
  // Asked before a right text opens for the first time or again; null: all may. UNAVAILABLE: not
  // decided yet, and asked again at the next look; nothing else waits for it, but for a first
  // start, which has nothing to serve before. Any other error refuses the text, with one mistake a
  // line. Called by one thread at once. What is open when the process ends is not asked about at
  // the next start: a restart takes no longer because of it.
  std::function<absl::Status(const flow::Plan& plan)> admit = {};
};

// Thread-safe.
class StorefrontBook : public PlanBook {
 public:
  // Reads every *.textproto in the directory. Errors: NOT_FOUND (no such directory),
  // INVALID_ARGUMENT (nothing can be served, and nothing ever was: every mistake of every file,
  // "<file>:<line>:<column>: …", or a directory without storefronts), those of PgConnection.
  static absl::StatusOr<std::unique_ptr<StorefrontBook>> Open(StorefrontBookOptions options);
  ~StorefrontBook() override;  // looks no more
  StorefrontBook(const StorefrontBook&) = delete;
  StorefrontBook& operator=(const StorefrontBook&) = delete;

  const flow::Plan* Current(const std::string& storefront) const override;
  // Null when the revision cannot be read here. Waits for the database when another replica's
  // revision is not known here yet.
  const flow::Plan* Pinned(const std::string& storefront,
                           const std::string& revision) const override;

  // Looks at the directory once, and sets orders going again that could not be read before. The
  // book's own thread does it.
  void Poll();

  // How a storefront stands, with the text of the revision that serves, or served last.
  struct Shop {
    storefront::v1::StorefrontListing listing;
    std::string text;
    storefront::v1::Storefront definition;
    const flow::Plan* plan = nullptr;  // null: it takes no orders
  };
  // By id.
  std::map<std::string, Shop> Shops() const;
  std::optional<Shop> FindShop(const std::string& storefront) const;

  // A storefront's text as a message; empty when it cannot be read.
  storefront::v1::Storefront Definition(const std::string& text) const;

 private:
  // What is known of a file. Absent: no text.
  struct File {
    std::optional<std::string> seen;    // at the last look
    std::optional<std::string> judged;  // what was taken, refused, or found gone
    bool again = false;                 // it could not be judged: the next look tries again
    bool undecided = false;             // `admit` wants to be asked again
  };

  explicit StorefrontBook(StorefrontBookOptions options) : options_(std::move(options)) {}
  absl::Status LoadShops();
  absl::Status Look(bool starting);
  // Whether the text is decided about; false: `admit` wants to be asked again.
  absl::StatusOr<bool> Judge(const std::string& file, const std::string& text, bool starting);
  bool Undecided();
  void Refuse(const std::string& file, const absl::Status& why, bool starting);
  void GoOn(const std::string& file);
  absl::Status Close(const std::string& storefront);
  // Plans that are known already are kept.
  const flow::Plan* Keep(std::unique_ptr<const flow::Plan> plan) const;
  // Since when the revision is open, microseconds since 1970.
  absl::StatusOr<int64_t> StoreOpened(const std::string& storefront, const std::string& revision,
                                      const std::string& text);
  // Errors: INVALID_ARGUMENT (the text cannot be read), those of PgConnection.
  absl::StatusOr<std::unique_ptr<flow::Plan>> Fetch(const std::string& revision_key) const;
  // Finds and tells what cannot be read of shops that have orders under way.
  absl::Status LookForUnreadable();
  // Sets orders going that some process could not read, but for shops that this one cannot.
  absl::Status Release();
  Shop WithUnreadable(const std::string& id, Shop shop) const;  // REQUIRES: mutex_

  const StorefrontBookOptions options_;
  mutable std::shared_mutex mutex_;
  // Guarded by mutex_. Plans are never removed: orders point at them.
  mutable std::map<std::string, std::unique_ptr<const flow::Plan>>
      by_key_;                                                          // "<storefront>@<revision>"
  mutable std::map<std::string, std::vector<std::string>> unreadable_;  // the same -> mistakes
  std::map<std::string, Shop> shops_;

  std::mutex poll_mutex_;                      // one look at a time
  std::map<std::string, File> files_;          // guarded by poll_mutex_; by name
  std::map<std::string, std::string> opened_;  // guarded by poll_mutex_; storefront -> revision, as
                                               // the database has them

  std::unique_ptr<runtime::PgConnection> release_pg_;  // guarded by poll_mutex_

  std::mutex stop_mutex_;
  std::condition_variable stopped_;
  bool stop_ = false;  // guarded by stop_mutex_
  std::thread watcher_;
};

// "<storefront>@<revision>", as the database calls a revision.
std::string RevisionKey(absl::string_view storefront, absl::string_view revision);

}  // namespace gaekju::order

#endif  // GAEKJU_SERVICES_ORDER_ORDER_SERVICE_H_
