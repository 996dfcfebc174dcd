#include "facade/card.h"

#include <openssl/evp.h>
#include <openssl/sha.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "flow/check.h"

namespace gaekju::facade {
namespace {

constexpr char kPrefix[] = "card:";
constexpr char kCipher[] = "AES-128-SIV";
constexpr size_t kKeyBytes = 32;  // of AES-128-SIV: two keys of 16
constexpr size_t kNonceBytes = 12;
constexpr int kTagBytes = 16;
constexpr size_t kDigitsShown = 4;

bool IsDigit(char c) { return absl::ascii_isdigit(static_cast<unsigned char>(c)); }

bool IsCardNumber(absl::string_view text) {
  return std::any_of(text.begin(), text.end(), IsDigit) &&
         std::all_of(text.begin(), text.end(),
                     [](char c) { return IsDigit(c) || c == ' ' || c == '-'; });
}

// "12345678999" -> "*******8999"; of a number that is hardly longer than what is shown nothing.
std::string Masked(absl::string_view number) {
  std::string masked(number);
  const size_t shown = number.size() > 2 * kDigitsShown ? kDigitsShown : 0;
  std::replace_if(masked.begin(), masked.end() - static_cast<std::ptrdiff_t>(shown), IsDigit, '*');
  return masked;
}

const unsigned char* Bytes(absl::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

struct FreeContext {
  void operator()(EVP_CIPHER_CTX* context) const { EVP_CIPHER_CTX_free(context); }
};
using Context = std::unique_ptr<EVP_CIPHER_CTX, FreeContext>;

// Begins with key and nonce; `tag` when it opens.
Context Begin(const std::string& key, absl::string_view nonce, absl::string_view tag) {
  static EVP_CIPHER* const cipher = EVP_CIPHER_fetch(nullptr, kCipher, nullptr);
  GK_CHECK(cipher != nullptr) << "OpenSSL has no " << kCipher;
  Context context(EVP_CIPHER_CTX_new());
  const bool opens = !tag.empty();
  std::string expected(tag);
  int size = 0;
  GK_CHECK(EVP_CipherInit_ex2(context.get(), cipher, Bytes(key), nullptr, opens ? 0 : 1, nullptr));
  GK_CHECK(!opens || EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_SET_TAG, kTagBytes,
                                         expected.data()) > 0);
  GK_CHECK(EVP_CipherUpdate(context.get(), nullptr, &size, Bytes(nonce),
                            static_cast<int>(nonce.size())) > 0);
  return context;
}

// nonce, tag and cipher text together.
std::string Seal(const std::string& key, absl::string_view nonce, absl::string_view plain) {
  const Context context = Begin(key, nonce, "");
  std::string sealed(plain.size(), '\0');
  std::string tag(kTagBytes, '\0');
  int size = 0;
  GK_CHECK(EVP_EncryptUpdate(context.get(), reinterpret_cast<unsigned char*>(sealed.data()), &size,
                             Bytes(plain), static_cast<int>(plain.size())) > 0);
  GK_CHECK(EVP_EncryptFinal_ex(context.get(), nullptr, &size) > 0);
  GK_CHECK(EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_GET_TAG, kTagBytes, tag.data()) > 0);
  return absl::StrCat(nonce, tag, sealed);
}

std::optional<std::string> Open(const std::string& key, absl::string_view box) {
  if (box.size() <= kNonceBytes + kTagBytes) return std::nullopt;
  const Context context =
      Begin(key, box.substr(0, kNonceBytes), box.substr(kNonceBytes, kTagBytes));
  const absl::string_view sealed = box.substr(kNonceBytes + kTagBytes);
  std::string plain(sealed.size(), '\0');
  int size = 0;
  if (EVP_DecryptUpdate(context.get(), reinterpret_cast<unsigned char*>(plain.data()), &size,
                        Bytes(sealed), static_cast<int>(sealed.size())) <= 0) {
    return std::nullopt;
  }
  return plain;
}

}  // namespace

absl::StatusOr<CardBox> CardBox::Of(absl::string_view key) {
  key = absl::StripAsciiWhitespace(key);
  CardBox box;
  if (key.size() != 2 * kKeyBytes ||
      !std::all_of(key.begin(), key.end(), [](unsigned char c) { return absl::ascii_isxdigit(c); }))
    return absl::InvalidArgumentError(absl::StrCat("a card key is ", 2 * kKeyBytes, " hex digits"));
  box.key_ = absl::HexStringToBytes(key);
  return box;
}

std::string CardBox::Hide(absl::string_view method, absl::string_view request_id) const {
  if (!IsCardNumber(method)) return std::string(method);
  const std::string masked = absl::StrCat(kPrefix, Masked(method));
  if (key_.empty()) return masked;
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(Bytes(request_id), request_id.size(), digest);
  const absl::string_view nonce(reinterpret_cast<const char*>(digest), kNonceBytes);
  return absl::StrCat(masked, ":", absl::WebSafeBase64Escape(Seal(key_, nonce, method)));
}

std::string CardBox::Show(absl::string_view method) const {
  absl::string_view rest = method;
  if (!absl::ConsumePrefix(&rest, kPrefix)) return std::string(method);
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(rest, absl::MaxSplits(':', 1));
  std::string box;
  if (!key_.empty() && absl::WebSafeBase64Unescape(parts.second, &box)) {
    if (std::optional<std::string> number = Open(key_, box)) return *std::move(number);
  }
  return std::string(parts.first);
}

}  // namespace gaekju::facade
