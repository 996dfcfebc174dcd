// outbox.h: the append-only log of what a context publishes, written in the same transaction as its
// resources.
//
// A row is one message of the bus. An incarnation is the life of one writer connection; its rows
// are numbered 1, 2, 3… in the order in which they are committed, because one connection commits
// one transaction after the other. So a reader that goes by (incarnation, seq) skips nothing and
// waits for nobody, however many writers there are. A session advisory lock, held by the writer
// connection, says that an incarnation lives. Who obtains the lock may finish the log.
#ifndef GAEKJU_RUNTIME_OUTBOX_H_
#define GAEKJU_RUNTIME_OUTBOX_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/pg.h"

namespace gaekju::runtime {

struct OutboxRow {
  int64_t incarnation = 0;
  int64_t seq = 0;
  int64_t time_us = 0;
  std::string subject;
  std::vector<std::pair<std::string, std::string>> headers;
  std::vector<std::string> resources;  // "<table>/<key>" of the events inside
  std::string body;
};

// Headers as one text, "name: value" lines with backslash escapes, readable in psql.
std::string PackHeaders(const std::vector<std::pair<std::string, std::string>>& headers);
std::vector<std::pair<std::string, std::string>> UnpackHeaders(absl::string_view packed);

// Starts an incarnation whose life is that of `pg`. Returns its number.
absl::StatusOr<int64_t> StartIncarnation(PgConnection& pg, int64_t now_us);

// Adds the INSERT of `rows` to the connection's next Run.
void AddOutboxInsert(PgConnection& pg, const std::vector<OutboxRow>& rows);

// Reads at most `limit` rows with a seq above `after_seq`, in order.
absl::StatusOr<std::vector<OutboxRow>> ReadOutbox(PgConnection& pg, int64_t incarnation,
                                                  int64_t after_seq, int limit);

// The advisory lock of an incarnation.
int64_t IncarnationLock(int64_t incarnation);

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_OUTBOX_H_
