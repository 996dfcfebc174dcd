// assignment_service.h: the dealers of the assignment context's database, in memory, kept in step.
//
//   auto book = std::make_shared<DealerBook>();
//   absl::Status status = book->Open(pg_options);       // reads all dealers: a million in seconds
//   std::unique_ptr<flow::Context> context = MakeAssignmentContext(book.get());
//   book->Observe(table, row);                          // after COMMIT, for each row written
//
// What this replica writes it observes before its next turn. What others write it reads within
// about a second. A turn that is given up is never observed, and one whose COMMIT nobody answered
// is read like another's. Until then the book is behind, which costs the buyer a dealer that is not
// the very nearest, and never a dealer's capacity: the decider looks at the rows.
//
// REQUIRES: the context's migrations have been applied. Thread-safe.
#ifndef GAEKJU_SERVICES_ASSIGNMENT_ASSIGNMENT_SERVICE_H_
#define GAEKJU_SERVICES_ASSIGNMENT_ASSIGNMENT_SERVICE_H_

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "flow/turn.h"
#include "runtime/pg.h"
#include "services/assignment/dealer_index.h"

namespace gaekju::assignment {

class DealerBook : public DealerFinder {
 public:
  struct Options {
    absl::Duration poll_interval = absl::Seconds(1);
    // How far before the poll before it a poll begins: rows become visible in the order of their
    // COMMITs, and not of update_time_us, which is when their turns began, by the clock of who
    // wrote them.
    absl::Duration look_back = absl::Seconds(2);
    // One poll in `wide_every` begins so far before the last of its kind: longer than a turn can
    // wait for locks and the disk, and than clocks may differ.
    absl::Duration look_back_wide = absl::Seconds(60);
    int wide_every = 10;
  };

  explicit DealerBook(Options options) : options_(options) {}
  DealerBook() : DealerBook(Options()) {}
  ~DealerBook() override;

  // Reads all dealers, and follows the table from then on. May be called again when it failed.
  // Errors: those of PgConnection.
  absl::Status Open(const runtime::PgOptions& pg);

  // A row was committed by this replica. Rows of other tables than dealers are ignored.
  void Observe(const flow::Table& table, const google::protobuf::Message& row);

  void Nearest(absl::string_view storefront, const gaekju::type::v1::Location* location, int count,
               std::vector<std::string>* dealer_ids) const override;

  int64_t size() const;
  // How often the table has been polled. For tests.
  int64_t poll_count() const;

 private:
  absl::Status ReadAll(runtime::PgConnection& pg);
  absl::Status ReadSince(runtime::PgConnection& pg, absl::Time since);
  void Learn(const std::vector<DealerIndex::Row>& rows);
  void Poll();

  const Options options_;
  runtime::PgOptions pg_options_;
  mutable std::shared_mutex index_mutex_;
  DealerIndex index_;       // guarded by index_mutex_
  absl::Time opened_time_;  // when the table was first read; of Open, then of the polling thread

  mutable std::mutex mutex_;
  // Guarded by mutex_:
  std::condition_variable wake_;
  bool stopping_ = false;
  int64_t poll_count_ = 0;

  std::thread poller_;
};

}  // namespace gaekju::assignment

#endif  // GAEKJU_SERVICES_ASSIGNMENT_ASSIGNMENT_SERVICE_H_
