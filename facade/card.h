// card.h: what the contexts are told instead of a card number, so that none of them keeps one or
// tells one on the bus.
//
//   const absl::StatusOr<CardBox> box = CardBox::Of(key);   // 64 hex digits; none without a key
//   box->Hide("12345678999", request_id)   // "card:*******8999:lGz4…", which only the key opens
//   box->Show("card:*******8999:lGz4…")    // "12345678999"; without the key "*******8999"
//   box->Hide("card-declined", "…")        // no number: as it is
//
// AES-128-SIV (RFC 5297) with the number and a nonce made of the request's id: the same request
// gives the same text, so that it stays idempotent; two requests with one card have nothing in
// common but the last digits. The length of the number shows. Thread-safe.
#ifndef GAEKJU_FACADE_CARD_H_
#define GAEKJU_FACADE_CARD_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace gaekju::facade {

class CardBox {
 public:
  // One without a key: what it hides cannot be had again.
  CardBox() = default;
  // `key`: 64 hex digits, as of `openssl rand -hex 32`, with white space around. Errors:
  // INVALID_ARGUMENT.
  static absl::StatusOr<CardBox> Of(absl::string_view key);

  // What stands for a payment method behind the facade. A card number is digits, with spaces and
  // hyphens between them; anything else stands for itself.
  std::string Hide(absl::string_view method, absl::string_view request_id) const;
  // The number, or its last four digits where the key is another or none; what is no hidden number
  // as it is.
  std::string Show(absl::string_view method) const;

 private:
  std::string key_;  // 32 bytes, or empty
};

}  // namespace gaekju::facade

#endif  // GAEKJU_FACADE_CARD_H_
