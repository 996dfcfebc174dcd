#include "services/order/storefront_service.h"

#include <map>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "flow/check.h"
#include "gaekju/order/v1/order.pb.h"
#include "gaekju/storefront/v1/storefront_service.pb.h"
#include "google/rpc/code.pb.h"

namespace gaekju::order {
namespace {

namespace shown = gaekju::storefront::v1;
using flow::Answer;

constexpr int kPageSizeDefault = 100;
constexpr int kPageSize_max = 1000;
constexpr int64_t kRetryAfter_us = 1'000'000;

Answer List(const StorefrontBook& book, const shown::ListStorefrontsRequest& request) {
  if (request.page_size() < 0 || request.page_size() > kPageSize_max) {
    return flow::Refuse(google::rpc::INVALID_ARGUMENT, kStorefrontService, "FIELD_INVALID",
                        absl::StrCat("page_size must be 0 to ", kPageSize_max), "page_size");
  }
  // A page's token is the id that it ended with.
  std::string after;
  if (!request.page_token().empty() &&
      (!absl::WebSafeBase64Unescape(request.page_token(), &after) || after.empty())) {
    return flow::Refuse(google::rpc::INVALID_ARGUMENT, kStorefrontService, "FIELD_INVALID",
                        "page_token is not of this method", "page_token");
  }
  const int size = request.page_size() > 0 ? request.page_size() : kPageSizeDefault;
  const std::map<std::string, StorefrontBook::Shop> shops = book.Shops();
  shown::ListStorefrontsResponse response;
  for (auto it = shops.upper_bound(after); it != shops.end(); ++it) {
    if (response.storefronts_size() == size) {
      response.set_next_page_token(absl::WebSafeBase64Escape(response.storefronts(size - 1).id()));
      break;
    }
    *response.add_storefronts() = it->second.listing;
  }
  return flow::Done(response);
}

Answer Get(const StorefrontBook& book, const shown::GetStorefrontRequest& request,
           runtime::PgConnection* pg) {
  std::optional<StorefrontBook::Shop> shop = book.FindShop(request.storefront());
  if (!shop.has_value()) {
    return flow::Refuse(google::rpc::NOT_FOUND, kStorefrontService, "STOREFRONT_UNKNOWN",
                        absl::StrCat("there is no storefront \"", request.storefront(), "\""),
                        "storefront");
  }
  shown::GetStorefrontResponse response;
  *response.mutable_listing() = shop->listing;
  if (request.revision().empty() || request.revision() == shop->listing.revision()) {
    response.set_revision(shop->listing.revision());
    response.set_textproto(std::move(shop->text));
    *response.mutable_definition() = std::move(shop->definition);
    return flow::Done(response);
  }
  const auto unavailable = [] {
    Answer answer;
    answer.kind = Answer::Kind::kRefused;
    answer.status =
        flow::MakeStatus(google::rpc::UNAVAILABLE, kStorefrontService, "DATABASE_UNAVAILABLE",
                         "the database cannot be reached; try again", /*field=*/"", kRetryAfter_us);
    return answer;
  };
  if (pg == nullptr) return unavailable();
  auto rows =
      pg->Query("SELECT body FROM storefront_revisions WHERE key = $1",
                runtime::PgParams().Text(RevisionKey(request.storefront(), request.revision())));
  if (!rows.ok()) return unavailable();
  order::v1::StorefrontRevision stored;
  if (rows->rows() == 0) {
    return flow::Refuse(google::rpc::NOT_FOUND, kStorefrontService, "REVISION_UNKNOWN",
                        absl::StrCat("storefront \"", request.storefront(),
                                     "\" never had the revision \"", request.revision(), "\""),
                        "revision");
  }
  GK_CHECK(
      stored.ParseFromArray(rows->Bytes(0, 0).data(), static_cast<int>(rows->Bytes(0, 0).size())));
  response.set_revision(request.revision());
  response.set_textproto(stored.textproto());
  *response.mutable_definition() = book.Definition(stored.textproto());
  return flow::Done(response);
}

}  // namespace

Answer AnswerStorefronts(const StorefrontBook& book,
                         const google::protobuf::MethodDescriptor& method,
                         const google::protobuf::Message& request, runtime::PgConnection* pg) {
  if (method.name() == "ListStorefronts")
    return List(book, static_cast<const shown::ListStorefrontsRequest&>(request));
  if (method.name() == "GetStorefront")
    return Get(book, static_cast<const shown::GetStorefrontRequest&>(request), pg);
  return flow::Refuse(
      google::rpc::UNIMPLEMENTED, kStorefrontService, "METHOD_UNIMPLEMENTED",
      absl::StrCat(std::string(method.full_name()), " is in the contract, but not here"));
}

}  // namespace gaekju::order
