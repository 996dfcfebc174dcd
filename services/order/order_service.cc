#include "services/order/order_service.h"

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "flow/storefront.h"
#include "gaekju/order/v1/order.pb.h"

namespace gaekju::order {
namespace {

namespace fs = std::filesystem;

std::string RevisionKey(absl::string_view storefront, absl::string_view revision) {
  return absl::StrCat(storefront, "@", revision);
}

}  // namespace

absl::StatusOr<std::unique_ptr<StorefrontBook>> StorefrontBook::Open(
    const std::string& directory, runtime::PgOptions pg,
    const google::protobuf::DescriptorPool& contracts) {
  std::error_code error;
  if (!fs::is_directory(directory, error)) {
    return absl::NotFoundError(absl::StrCat("there is no directory \"", directory,
                                            "\" with storefronts; name one with --storefronts"));
  }
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    if (entry.path().extension() == ".textproto") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  if (files.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", directory, "\" holds no storefront (*.textproto)"));
  }
  std::unique_ptr<StorefrontBook> book(new StorefrontBook(std::move(pg), contracts));
  std::map<std::string, std::string> texts;
  std::vector<std::string> mistakes;
  for (const fs::path& path : files) {
    std::ifstream file(path, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(file)),
                           std::istreambuf_iterator<char>());
    if (!file.good() && !file.eof())
      return absl::UnavailableError(absl::StrCat("cannot read ", path.string()));
    auto plan = flow::ParseStorefront(text, path.string(), contracts);
    if (!plan.ok()) {
      mistakes.emplace_back(plan.status().message());
      continue;
    }
    const std::string key = RevisionKey(plan->storefront, plan->revision);
    texts[key] = text;
    auto kept = std::make_unique<const flow::Plan>(*std::move(plan));
    book->current_[kept->storefront] = kept.get();
    book->by_key_[key] = std::move(kept);
  }
  if (!mistakes.empty()) return absl::InvalidArgumentError(absl::StrJoin(mistakes, "\n"));
  if (absl::Status status = book->Store(texts); !status.ok()) return status;
  return book;
}

absl::Status StorefrontBook::Store(const std::map<std::string, std::string>& texts_by_key) {
  auto pg = runtime::PgConnection::Connect(pg_);
  if (!pg.ok()) return pg.status();
  auto keys = runtime::PgArray::Text();
  auto bodies = runtime::PgArray::Bytes();
  for (const auto& [key, text] : texts_by_key) {
    order::v1::StorefrontRevision revision;
    revision.set_revision_key(key);
    revision.set_textproto(text);
    keys.Add(key);
    bodies.AddMessage(revision);
  }
  return (*pg)
      ->Query(
          "INSERT INTO storefront_revisions (key, version, body) SELECT key, 0, body "
          "FROM unnest($1::text[], $2::bytea[]) AS r (key, body) ON CONFLICT (key) DO NOTHING",
          runtime::PgParams().Array(std::move(keys)).Array(std::move(bodies)))
      .status();
}

absl::StatusOr<std::unique_ptr<flow::Plan>> StorefrontBook::Fetch(
    const std::string& revision_key) const {
  auto pg = runtime::PgConnection::Connect(pg_);
  if (!pg.ok()) return pg.status();
  auto result = (*pg)->Query("SELECT body FROM storefront_revisions WHERE key = $1",
                             runtime::PgParams().Text(revision_key));
  if (!result.ok()) return result.status();
  order::v1::StorefrontRevision revision;
  GK_CHECK(result->rows() == 1) << "an order runs under " << revision_key
                                << ", which was never stored";
  GK_CHECK(revision.ParseFromArray(result->Bytes(0, 0).data(),
                                   static_cast<int>(result->Bytes(0, 0).size())));
  auto plan = flow::ParseStorefront(revision.textproto(), "", contracts_);
  GK_CHECK(plan.ok()) << revision_key
                      << " was served and cannot be read any more: " << plan.status();
  return std::make_unique<flow::Plan>(*std::move(plan));
}

const flow::Plan* StorefrontBook::Current(const std::string& storefront) const {
  std::shared_lock lock(mutex_);
  auto it = current_.find(storefront);
  return it == current_.end() ? nullptr : it->second;
}

const flow::Plan* StorefrontBook::Pinned(const std::string& storefront,
                                         const std::string& revision) const {
  const std::string key = RevisionKey(storefront, revision);
  {
    std::shared_lock lock(mutex_);
    auto it = by_key_.find(key);
    if (it != by_key_.end()) return it->second.get();
  }
  while (true) {
    auto plan = Fetch(key);
    if (plan.ok()) {
      std::unique_lock lock(mutex_);
      return by_key_.try_emplace(key, std::move(*plan)).first->second.get();
    }
    std::this_thread::sleep_for(
        std::chrono::milliseconds(100));  // the turn cannot be decided without it
  }
}

std::vector<std::string> StorefrontBook::Storefronts() const {
  std::shared_lock lock(mutex_);
  std::vector<std::string> ids;
  for (const auto& [id, plan] : current_) ids.push_back(id);
  return ids;
}

}  // namespace gaekju::order
