#include "services/order/order_service.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "flow/storefront.h"
#include "gaekju/order/v1/order.pb.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"
#include "google/protobuf/util/time_util.h"
#include "runtime/log.h"

namespace gaekju::order {
namespace {

namespace fs = std::filesystem;
using google::protobuf::TextFormat;
using google::protobuf::util::TimeUtil;
using storefront::v1::Storefront;
using storefront::v1::StorefrontListing;

constexpr char kExtension[] = ".textproto";
// At the start: looks until two in a row find the same, this far apart, and no more than so many.
constexpr auto kStartPause = std::chrono::milliseconds(50);
constexpr int kStartLooks_max = 20;

// What a directory holds: the text of each storefront file by name; nullopt: it cannot be read now.
using Texts = std::map<std::string, std::optional<std::string>>;

std::optional<std::string> ReadText(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file.is_open()) return std::nullopt;
  // One byte more than a storefront may have is enough to refuse it.
  std::string text(flow::kStorefrontBytes_max + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad()) return std::nullopt;
  text.resize(static_cast<size_t>(file.gcount()));
  return text;
}

absl::StatusOr<Texts> ReadDirectory(const std::string& directory) {
  std::error_code error;
  fs::directory_iterator entries(directory, error);
  Texts texts;
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    const fs::path& path = entries->path();
    const std::string name = path.filename().string();
    // Editors keep their own files beside, with a dot in front; Kubernetes its ..data.
    if (path.extension() != kExtension || name.front() == '.') continue;
    std::error_code ignored;
    if (fs::is_directory(path, ignored)) continue;
    texts[name] = ReadText(path);
  }
  if (error) {
    return absl::UnavailableError(
        absl::StrCat("cannot read the directory \"", directory, "\": ", error.message()));
  }
  return texts;
}

std::string IdOf(const std::string& file) { return fs::path(file).stem().string(); }

// Looks the messages in Any fields up among the contexts linked in, then in the further ones.
class AnyFinder : public TextFormat::Finder {
 public:
  explicit AnyFinder(const google::protobuf::DescriptorPool& contracts) : contracts_(contracts) {}
  const google::protobuf::Descriptor* FindAnyType(const google::protobuf::Message&,
                                                  const std::string&,
                                                  const std::string& name) const override {
    const auto* found =
        google::protobuf::DescriptorPool::generated_pool()->FindMessageTypeByName(name);
    return found != nullptr ? found : contracts_.FindMessageTypeByName(name);
  }

 private:
  const google::protobuf::DescriptorPool& contracts_;
};

// Mistakes are told by who parsed the text for serving.
class Silent : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int, int, const std::string&) override {}
};

void Describe(const std::string& id, const std::string& revision, int64_t opened_us,
              const Storefront& definition, StorefrontListing* listing) {
  listing->set_id(id);
  *listing->mutable_display_name() = definition.display_name();
  listing->set_currency_code(definition.currency_code());
  listing->set_revision(revision);
  *listing->mutable_open_time() = TimeUtil::MicrosecondsToTimestamp(opened_us);
}

}  // namespace

std::string RevisionKey(absl::string_view storefront, absl::string_view revision) {
  return absl::StrCat(storefront, "@", revision);
}

// ---------------------------------------------------------------- start and end
absl::StatusOr<std::unique_ptr<StorefrontBook>> StorefrontBook::Open(
    StorefrontBookOptions options) {
  std::error_code error;
  if (!fs::is_directory(options.directory, error)) {
    return absl::NotFoundError(absl::StrCat("there is no directory \"", options.directory,
                                            "\" with storefronts; name one with --storefronts"));
  }
  std::unique_ptr<StorefrontBook> book(new StorefrontBook(std::move(options)));
  if (absl::Status status = book->LoadShops(); !status.ok()) return status;
  const bool first = book->Shops().empty();
  if (absl::Status status = book->Look(/*starting=*/true); !status.ok()) return status;
  // A first start opens all its shops at once. Later ones serve what they have.
  while (first && book->Undecided()) {
    std::this_thread::sleep_for(kStartPause);
    if (absl::Status status = book->Look(/*starting=*/false); !status.ok()) return status;
  }

  // An order context that has orders starts whatever is in its directory: they have to go on.
  const std::map<std::string, Shop> shops = book->Shops();
  const bool served = std::any_of(shops.begin(), shops.end(), [](const auto& shop) {
    return !shop.second.listing.revision().empty();
  });
  if (!served) {
    std::vector<std::string> mistakes;
    for (const auto& [id, shop] : shops) {
      for (const std::string& mistake : shop.listing.refused().mistakes())
        mistakes.push_back(mistake);
    }
    if (mistakes.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", book->options_.directory, "\" holds no storefront (*.textproto)"));
    }
    return absl::InvalidArgumentError(absl::StrJoin(mistakes, "\n"));
  }
  if (absl::Status status = book->LookForUnreadable(); !status.ok()) return status;
  if (book->options_.poll_period > absl::ZeroDuration()) {
    book->watcher_ = std::thread([b = book.get()] {
      std::unique_lock<std::mutex> lock(b->stop_mutex_);
      while (!b->stopped_.wait_for(lock, absl::ToChronoMicroseconds(b->options_.poll_period),
                                   [b] { return b->stop_; })) {
        lock.unlock();
        b->Poll();
        lock.lock();
      }
    });
  }
  return book;
}

StorefrontBook::~StorefrontBook() {
  {
    std::lock_guard<std::mutex> lock(stop_mutex_);
    stop_ = true;
  }
  stopped_.notify_all();
  if (watcher_.joinable()) watcher_.join();
}

// What was served before this process: all of it closed, until its file is read.
absl::Status StorefrontBook::LoadShops() {
  auto pg = runtime::PgConnection::Connect(options_.pg);
  if (!pg.ok()) return pg.status();
  auto rows = (*pg)->Query(
      "SELECT DISTINCT ON (split_part(key, '@', 1)) key, body, opened_time_us, closed_time_us "
      "FROM storefront_revisions ORDER BY split_part(key, '@', 1), opened_time_us DESC, key");
  if (!rows.ok()) return rows.status();
  std::lock_guard<std::mutex> poll_lock(poll_mutex_);
  std::unique_lock lock(mutex_);
  for (int row = 0; row < rows->rows(); ++row) {
    const std::pair<std::string, std::string> key =
        absl::StrSplit(rows->Bytes(row, 0), absl::MaxSplits('@', 1));
    order::v1::StorefrontRevision stored;
    GK_CHECK(stored.ParseFromArray(rows->Bytes(row, 1).data(),
                                   static_cast<int>(rows->Bytes(row, 1).size())));
    Shop& shop = shops_[key.first];
    shop.text = stored.textproto();
    shop.definition = Definition(shop.text);
    Describe(key.first, key.second, rows->Int(row, 2), shop.definition, &shop.listing);
    shop.listing.set_state(StorefrontListing::STATE_CLOSED);
    opened_[key.first] = key.second;
    // One that was open has to be found gone; one that was closed has been.
    File& file = files_[absl::StrCat(key.first, kExtension)];
    if (rows->Int(row, 3) == 0) file.judged = shop.text;
  }
  return absl::OkStatus();
}

// ---------------------------------------------------------------- looking
void StorefrontBook::Poll() {
  absl::Status status = Look(/*starting=*/false);
  status.Update(Release());
  if (!status.ok()) {
    static runtime::LogLimit limit(30'000'000);
    if (limit.Allow() >= 0) {
      runtime::LogWarning("storefronts stay as they are for now; looking again",
                          {{"error", status.message()}});
    }
  }
}

absl::Status StorefrontBook::Look(bool starting) {
  std::lock_guard<std::mutex> poll_lock(poll_mutex_);
  absl::StatusOr<Texts> texts = ReadDirectory(options_.directory);
  if (!texts.ok()) return texts.status();
  for (int looks = 1; starting && looks < kStartLooks_max; ++looks) {
    std::this_thread::sleep_for(kStartPause);
    absl::StatusOr<Texts> again = ReadDirectory(options_.directory);
    if (!again.ok()) return again.status();
    if (*std::exchange(texts, std::move(again)) == *texts) break;
  }
  for (const auto& [name, text] : *texts) files_.try_emplace(name);
  absl::Status result;
  for (auto& [name, file] : files_) {
    const auto found = texts->find(name);
    std::optional<std::string> text;
    if (found != texts->end()) {
      if (!found->second.has_value()) {  // neither there nor gone: perhaps it is being replaced
        result = absl::UnavailableError(
            absl::StrCat("cannot read \"", options_.directory, "/", name, "\""));
        continue;
      }
      text = *found->second;
    }
    const bool settled = starting || file.seen == text;
    file.seen = text;
    const bool known = file.judged == text && !file.again && !(starting && text.has_value());
    if (!settled || known) continue;
    absl::StatusOr<bool> decided = true;
    if (text.has_value()) {
      decided = Judge(name, *text, starting);
    } else if (absl::Status closed = Close(IdOf(name)); !closed.ok()) {
      decided = closed;
    }
    file.judged = text;
    file.undecided = decided.ok() && !*decided;
    file.again = !decided.ok() || file.undecided;
    if (!decided.ok()) result = decided.status();
  }
  return result;
}

bool StorefrontBook::Undecided() {
  std::lock_guard<std::mutex> poll_lock(poll_mutex_);
  return std::any_of(files_.begin(), files_.end(),
                     [](const auto& file) { return file.second.undecided; });
}

// Errors: those of the database; the text is judged again then.
absl::StatusOr<bool> StorefrontBook::Judge(const std::string& file, const std::string& text,
                                           bool starting) {
  absl::StatusOr<flow::Plan> parsed = flow::ParseStorefront(text, file, *options_.contracts);
  if (!parsed.ok()) {
    Refuse(file, parsed.status(), starting);
    return true;
  }
  auto plan = std::make_unique<const flow::Plan>(*std::move(parsed));
  const std::string id = plan->storefront;
  const std::string revision = plan->revision;
  const bool admitted = starting && opened_.count(id) != 0 && opened_[id] == revision;
  if (options_.admit && !admitted) {
    if (absl::Status status = options_.admit(*plan); absl::IsUnavailable(status)) {
      if (starting) GoOn(file);
      return false;
    } else if (!status.ok()) {
      Refuse(file, status, starting);
      return true;
    }
  }
  // Before any order can have it.
  absl::StatusOr<int64_t> opened_us = StoreOpened(id, revision, text);
  if (!opened_us.ok()) return opened_us.status();
  opened_[id] = revision;
  Storefront definition = Definition(text);
  const flow::Plan* kept = Keep(std::move(plan));
  std::string before;
  {
    std::unique_lock lock(mutex_);
    Shop& shop = shops_[id];
    if (shop.plan != nullptr) before = shop.plan->revision;
    shop.text = text;
    shop.definition = std::move(definition);
    shop.plan = kept;
    Describe(id, revision, *opened_us, shop.definition, &shop.listing);
    shop.listing.set_state(StorefrontListing::STATE_OPEN);
    shop.listing.clear_refused();
  }
  if (before != revision || starting) {
    runtime::LogInfo("storefront open",
                     {{"storefront", id}, {"revision", revision}, {"revision_before", before}});
  }
  return true;
}

void StorefrontBook::Refuse(const std::string& file, const absl::Status& why, bool starting) {
  const std::string id = IdOf(file);
  {
    std::unique_lock lock(mutex_);
    Shop& shop = shops_[id];
    shop.listing.set_id(id);
    if (shop.listing.state() == StorefrontListing::STATE_UNSPECIFIED)
      shop.listing.set_state(StorefrontListing::STATE_CLOSED);
    storefront::v1::RefusedText& refused = *shop.listing.mutable_refused();
    refused.Clear();
    refused.set_file(file);
    *refused.mutable_refuse_time() =
        TimeUtil::MicrosecondsToTimestamp(absl::ToUnixMicros(absl::Now()));
    for (absl::string_view mistake : absl::StrSplit(why.message(), '\n', absl::SkipEmpty()))
      refused.add_mistakes(std::string(mistake));
  }
  if (starting) GoOn(file);
  std::shared_lock lock(mutex_);
  const Shop& shop = shops_[id];
  runtime::LogError(
      "storefront refused: its file is wrong",
      {{"file", absl::StrCat(options_.directory, "/", file)},
       {"storefront", id},
       {"mistakes", why.message()},
       {"serving", shop.plan == nullptr ? "nothing: it takes no orders"
                                        : absl::StrCat("revision ", shop.plan->revision)}});
}

// As if this process had been here when the file was changed: what was open then goes on.
void StorefrontBook::GoOn(const std::string& file) {
  if (!files_[file].judged.has_value()) return;
  const std::string id = IdOf(file);
  const std::optional<Shop> known = FindShop(id);
  if (!known.has_value() || known->text.empty() || known->plan != nullptr) return;
  absl::StatusOr<flow::Plan> last = flow::ParseStorefront(known->text, "", *options_.contracts);
  const flow::Plan* kept =
      last.ok() ? Keep(std::make_unique<const flow::Plan>(*std::move(last))) : nullptr;
  std::unique_lock lock(mutex_);
  Shop& shop = shops_[id];
  shop.plan = kept;
  if (kept != nullptr) shop.listing.set_state(StorefrontListing::STATE_OPEN);
}

absl::Status StorefrontBook::Close(const std::string& storefront) {
  std::string revision;
  bool was_open = false;
  {
    std::unique_lock lock(mutex_);
    const auto shop = shops_.find(storefront);
    if (shop == shops_.end()) return absl::OkStatus();
    revision = shop->second.listing.revision();
    was_open = std::exchange(shop->second.plan, nullptr) != nullptr;
    shop->second.listing.set_state(StorefrontListing::STATE_CLOSED);
    shop->second.listing.clear_refused();
    if (revision.empty()) shops_.erase(shop);  // it never was
  }
  if (was_open) {
    runtime::LogWarning("storefront closed: its file is gone; its orders go on",
                        {{"storefront", storefront}, {"revision", revision}});
  }
  if (revision.empty()) return absl::OkStatus();
  auto pg = runtime::PgConnection::Connect(options_.pg);
  if (!pg.ok()) return pg.status();
  return (*pg)
      ->Query(
          "UPDATE storefront_revisions SET closed_time_us = $2 WHERE key = $1 AND "
          "closed_time_us = 0",
          runtime::PgParams()
              .Text(RevisionKey(storefront, revision))
              .Int(absl::ToUnixMicros(absl::Now())))
      .status();
}

// ---------------------------------------------------------------- the database
absl::StatusOr<int64_t> StorefrontBook::StoreOpened(const std::string& storefront,
                                                    const std::string& revision,
                                                    const std::string& text) {
  auto pg = runtime::PgConnection::Connect(options_.pg);
  if (!pg.ok()) return pg.status();
  order::v1::StorefrontRevision stored;
  stored.set_revision_key(RevisionKey(storefront, revision));
  stored.set_textproto(text);
  // The one that is open already (a restart, another replica) keeps its time; any other becomes the
  // newest, also one that was open before and comes back.
  auto rows = (*pg)->Query(
      "INSERT INTO storefront_revisions AS r (key, version, body, opened_time_us) "
      "VALUES ($1, 0, $2, greatest($3, 1 + coalesce((SELECT max(opened_time_us) FROM "
      "storefront_revisions WHERE split_part(key, '@', 1) = $4), 0))) "
      "ON CONFLICT (key) DO UPDATE SET closed_time_us = 0, opened_time_us = CASE "
      "WHEN r.closed_time_us = 0 AND r.opened_time_us > 0 AND "
      "r.opened_time_us >= (SELECT max(opened_time_us) FROM "
      "storefront_revisions WHERE split_part(key, '@', 1) = $4) "
      "THEN r.opened_time_us ELSE excluded.opened_time_us END RETURNING opened_time_us",
      runtime::PgParams()
          .Text(stored.revision_key())
          .Bytes(stored.SerializeAsString())
          .Int(absl::ToUnixMicros(absl::Now()))
          .Text(storefront));
  if (!rows.ok()) return rows.status();
  GK_CHECK(rows->rows() == 1);
  return rows->Int(0, 0);
}

absl::StatusOr<std::unique_ptr<flow::Plan>> StorefrontBook::Fetch(
    const std::string& revision_key) const {
  auto pg = runtime::PgConnection::Connect(options_.pg);
  if (!pg.ok()) return pg.status();
  auto result = (*pg)->Query("SELECT body FROM storefront_revisions WHERE key = $1",
                             runtime::PgParams().Text(revision_key));
  if (!result.ok()) return result.status();
  order::v1::StorefrontRevision revision;
  GK_CHECK(result->rows() == 1) << "an order runs under " << revision_key
                                << ", which was never stored";
  GK_CHECK(revision.ParseFromArray(result->Bytes(0, 0).data(),
                                   static_cast<int>(result->Bytes(0, 0).size())));
  auto plan = flow::ParseStorefront(revision.textproto(), "", *options_.contracts);
  if (!plan.ok()) return absl::InvalidArgumentError(plan.status().message());
  return std::make_unique<flow::Plan>(*std::move(plan));
}

absl::Status StorefrontBook::LookForUnreadable() {
  auto pg = runtime::PgConnection::Connect(options_.pg);
  if (!pg.ok()) return pg.status();
  for (const auto& [id, shop] : Shops()) {
    if (shop.plan != nullptr || shop.listing.revision().empty()) continue;
    // Both by their partial indexes: an order under way has a time.
    auto rows = (*pg)->Query(
        "SELECT EXISTS(SELECT FROM orders WHERE due_time_us > 0 AND storefront = $1) OR "
        "EXISTS(SELECT FROM orders WHERE due_time_us < 0 AND storefront = $1)",
        runtime::PgParams().Text(id));
    if (!rows.ok()) return rows.status();
    if (rows->Bool(0, 0)) Pinned(id, shop.listing.revision());
  }
  return absl::OkStatus();
}

// Only the column is turned: the row's next turn has `body` follow. Rows that a turn has in hand
// are left to the next look.
absl::Status StorefrontBook::Release() {
  runtime::PgArray unreadable = runtime::PgArray::Text();
  {
    std::shared_lock lock(mutex_);
    for (const auto& [key, mistakes] : unreadable_) unreadable.Add(key.substr(0, key.find('@')));
  }
  std::lock_guard<std::mutex> poll_lock(poll_mutex_);
  if (release_pg_ == nullptr || !release_pg_->ok()) {
    auto pg = runtime::PgConnection::Connect(options_.pg);
    if (!pg.ok()) return pg.status();
    release_pg_ = *std::move(pg);
  }
  return release_pg_
      ->Query(
          "UPDATE orders SET due_time_us = -due_time_us WHERE key IN (SELECT key FROM orders "
          "WHERE due_time_us < 0 AND storefront <> ALL($1) LIMIT 1000 FOR UPDATE SKIP LOCKED)",
          runtime::PgParams().Array(std::move(unreadable)))
      .status();
}

// ---------------------------------------------------------------- what is known
const flow::Plan* StorefrontBook::Keep(std::unique_ptr<const flow::Plan> plan) const {
  const std::string key = RevisionKey(plan->storefront, plan->revision);
  std::unique_lock lock(mutex_);
  return by_key_.try_emplace(key, std::move(plan)).first->second.get();
}

const flow::Plan* StorefrontBook::Current(const std::string& storefront) const {
  std::shared_lock lock(mutex_);
  auto it = shops_.find(storefront);
  return it == shops_.end() ? nullptr : it->second.plan;
}

const flow::Plan* StorefrontBook::Pinned(const std::string& storefront,
                                         const std::string& revision) const {
  const std::string key = RevisionKey(storefront, revision);
  {
    std::shared_lock lock(mutex_);
    auto it = by_key_.find(key);
    if (it != by_key_.end()) return it->second.get();
    if (unreadable_.count(key) != 0) return nullptr;
  }
  while (true) {
    auto plan = Fetch(key);
    if (plan.ok()) return Keep(*std::move(plan));
    if (absl::IsInvalidArgument(plan.status())) {
      {
        std::unique_lock lock(mutex_);
        const std::vector<std::string> mistakes =
            absl::StrSplit(plan.status().message(), '\n', absl::SkipEmpty());
        if (!unreadable_.emplace(key, mistakes).second) return nullptr;
      }
      runtime::LogError(
          "a storefront revision cannot be read any more; its orders stay as they are",
          {{"storefront", storefront},
           {"revision", revision},
           {"mistakes", plan.status().message()},
           {"what_to_do",
            "start this process with the --contracts that the revision was served with"}});
      return nullptr;
    }
    std::this_thread::sleep_for(
        std::chrono::milliseconds(100));  // the turn cannot be decided without it
  }
}

StorefrontBook::Shop StorefrontBook::WithUnreadable(const std::string& id, Shop shop) const {
  const std::string prefix = RevisionKey(id, "");
  for (auto it = unreadable_.lower_bound(prefix);
       it != unreadable_.end() && absl::StartsWith(it->first, prefix); ++it) {
    storefront::v1::UnreadableRevision& revision = *shop.listing.add_unreadable();
    revision.set_revision(it->first.substr(prefix.size()));
    revision.mutable_mistakes()->Add(it->second.begin(), it->second.end());
  }
  return shop;
}

std::map<std::string, StorefrontBook::Shop> StorefrontBook::Shops() const {
  std::shared_lock lock(mutex_);
  std::map<std::string, Shop> shops;
  for (const auto& [id, shop] : shops_) shops[id] = WithUnreadable(id, shop);
  return shops;
}

std::optional<StorefrontBook::Shop> StorefrontBook::FindShop(const std::string& storefront) const {
  std::shared_lock lock(mutex_);
  const auto it = shops_.find(storefront);
  if (it == shops_.end()) return std::nullopt;
  return WithUnreadable(it->first, it->second);
}

Storefront StorefrontBook::Definition(const std::string& text) const {
  AnyFinder finder(*options_.contracts);
  Silent silent;
  TextFormat::Parser parser;
  parser.SetFinder(&finder);
  parser.RecordErrorsTo(&silent);
  Storefront definition;
  if (!parser.ParseFromString(text, &definition)) definition.Clear();
  return definition;
}

}  // namespace gaekju::order
