#include "runtime/outbox.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace gaekju::runtime {
namespace {

// Advisory locks share one space per database: "gkin" above, the incarnation below.
constexpr int64_t kLockBase = int64_t{0x676b696e} << 32;

// Between the resources of one row on their way into text[].
constexpr char kUnitSeparator[] = "\x1f";

constexpr char kInsertSql[] =
    "INSERT INTO outbox (incarnation, seq, time_us, subject, headers, resources, body) "
    "SELECT $1, u.seq, u.time_us, u.subject, u.headers, string_to_array(u.resources, chr(31)), "
    "u.body "
    "FROM unnest($2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::bytea[]) "
    "AS u(seq, time_us, subject, headers, resources, body)";

void Escape(absl::string_view text, std::string* out) {
  for (char c : text) {
    switch (c) {
      case '\\':
        out->append("\\\\");
        break;
      case '\n':
        out->append("\\n");
        break;
      case '\0':
        out->append("\\0");
        break;
      default:
        out->push_back(c);
    }
  }
}

std::string Unescape(absl::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 1 == text.size()) {
      out.push_back(text[i]);
      continue;
    }
    ++i;
    out.push_back(text[i] == 'n' ? '\n' : text[i] == '0' ? '\0' : text[i]);
  }
  return out;
}

}  // namespace

std::string PackHeaders(const std::vector<std::pair<std::string, std::string>>& headers) {
  std::string packed;
  for (const auto& [name, value] : headers) {
    packed.append(name);
    packed.append(": ");
    Escape(value, &packed);
    packed.push_back('\n');
  }
  return packed;
}

std::vector<std::pair<std::string, std::string>> UnpackHeaders(absl::string_view packed) {
  std::vector<std::pair<std::string, std::string>> headers;
  for (absl::string_view line : absl::StrSplit(packed, '\n', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> halves =
        absl::StrSplit(line, absl::MaxSplits(": ", 1));
    headers.emplace_back(std::string(halves.first), Unescape(halves.second));
  }
  return headers;
}

int64_t IncarnationLock(int64_t incarnation) { return kLockBase + incarnation; }

absl::StatusOr<int64_t> StartIncarnation(PgConnection& pg, int64_t now_us) {
  // The number is drawn first and locked before its row can be seen: nobody can take a living
  // incarnation for dead.
  auto number = pg.Query("SELECT nextval('outbox_incarnation_number')");
  if (!number.ok()) return number.status();
  const int64_t incarnation = number->Int(0, 0);
  pg.Add("SELECT pg_try_advisory_lock($1)", PgParams().Int(IncarnationLock(incarnation)));
  pg.Add("INSERT INTO outbox_incarnation (incarnation, started_us) VALUES ($1, $2)",
         PgParams().Int(incarnation).Int(now_us));
  auto results = pg.Run();
  if (!results.ok()) return results.status();
  if (!(*results)[0].Bool(0, 0)) {
    return absl::InternalError(
        absl::StrCat("somebody holds the lock of the new incarnation ", incarnation));
  }
  return incarnation;
}

void AddOutboxInsert(PgConnection& pg, const std::vector<OutboxRow>& rows) {
  PgArray seqs = PgArray::Int(), times = PgArray::Int();
  PgArray subjects = PgArray::Text(), headers = PgArray::Text(), resources = PgArray::Text();
  PgArray bodies = PgArray::Bytes();
  for (const OutboxRow& row : rows) {
    seqs.AddInt(row.seq);
    times.AddInt(row.time_us);
    subjects.Add(row.subject);
    headers.Add(PackHeaders(row.headers));
    resources.Add(absl::StrJoin(row.resources, kUnitSeparator));
    bodies.Add(row.body);
  }
  PgParams params;
  params.PushInt(rows.front().incarnation);
  params.Push(std::move(seqs)).Push(std::move(times)).Push(std::move(subjects));
  params.Push(std::move(headers)).Push(std::move(resources)).Push(std::move(bodies));
  pg.Add(kInsertSql, std::move(params));
}

absl::StatusOr<std::vector<OutboxRow>> ReadOutbox(PgConnection& pg, int64_t incarnation,
                                                  int64_t after_seq, int limit) {
  auto result = pg.Query(
      "SELECT seq, time_us, subject, headers, body FROM outbox WHERE incarnation = $1 AND seq > $2 "
      "ORDER BY seq LIMIT $3",
      PgParams().Int(incarnation).Int(after_seq).Int(limit));
  if (!result.ok()) return result.status();
  std::vector<OutboxRow> rows(static_cast<size_t>(result->rows()));
  for (int i = 0; i < result->rows(); ++i) {
    OutboxRow& row = rows[static_cast<size_t>(i)];
    row.incarnation = incarnation;
    row.seq = result->Int(i, 0);
    row.time_us = result->Int(i, 1);
    row.subject = std::string(result->Bytes(i, 2));
    row.headers = UnpackHeaders(result->Bytes(i, 3));
    row.body = std::string(result->Bytes(i, 4));
  }
  return rows;
}

}  // namespace gaekju::runtime
