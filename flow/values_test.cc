#include "flow/values.h"

#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "flow/turn.h"
#include "google/rpc/code.pb.h"
#include "google/rpc/error_details.pb.h"

namespace gaekju::flow {
namespace {

using gaekju::type::v1::LineItem;
using gaekju::type::v1::Money;

std::string FieldOf(const google::rpc::Status& status) {
  google::rpc::BadRequest bad;
  for (const auto& detail : status.details()) {
    if (detail.UnpackTo(&bad)) return bad.field_violations(0).field();
  }
  return "";
}

Money Won(int64_t minor_units, const std::string& currency_code = "KRW") {
  Money money;
  money.set_currency_code(currency_code);
  money.set_minor_units(minor_units);
  return money;
}

google::protobuf::RepeatedPtrField<LineItem> Lines(
    const std::vector<std::pair<std::string, int32_t>>& lines) {
  google::protobuf::RepeatedPtrField<LineItem> out;
  for (const auto& [product_id, quantity] : lines) {
    LineItem* line = out.Add();
    line->set_product_id(product_id);
    line->set_quantity(quantity);
  }
  return out;
}

TEST(Timestamp, RoundTrips) {
  for (int64_t time_us : {int64_t{0}, int64_t{1}, int64_t{-1}, int64_t{1700000000123456}}) {
    EXPECT_EQ(ToMicros(ToTimestamp(time_us)), time_us);
    EXPECT_GE(ToTimestamp(time_us).nanos(), 0);
  }
}

TEST(FieldChecks, NameTheFieldThatIsWrong) {
  using Check = std::function<FieldChecks&(FieldChecks&)>;
  struct Case {
    const char* what;
    std::string field;  // empty: allowed
    Check check;
  };
  const std::string nul("a\0b", 3);
  const Case cases[] = {{"an id", "", [](auto& c) -> auto& {return c.Id("id", "p-1.x_한");
}
}  // namespace
, {"64 bytes", "", [](auto& c) -> auto& {return c.Id("id", std::string(64, 'x'));
}  // namespace gaekju::flow
}
, {"65 bytes", "id", [](auto& c) -> auto& {return c.Id("id", std::string(65, 'x'));
}
}
, {"no id", "id", [](auto& c) -> auto& {return c.Id("id", "");
}
}
, {"a slash", "id", [](auto& c) -> auto& {return c.Id("id", "a/b");
}
}
, {"a NUL", "id", [&](auto& c) -> auto& {return c.Id("id", nul);
}
}
, {"a line break", "id", [](auto& c) -> auto& {return c.Id("id", "a\n");
}
}
, {"a slash in a name", "", [](auto& c) -> auto& {return c.Reference("who", "https://x/1");
}
}
, {"a NUL in a name", "who", [&](auto& c) -> auto& {return c.Reference("who", nul);
}
}
, {"no name", "who", [](auto& c) -> auto& {return c.Reference("who", "");
}
}
, {"a key", "", [](auto& c) -> auto& {return c.Key("k", "o1/pay");
}
}
, {"half a key", "k", [](auto& c) -> auto& {return c.Key("k", "o1pay");
}
}
, {"a key of three", "k", [](auto& c) -> auto& {return c.Key("k", "o1/pay/x");
}
}
, {"a storefront", "", [](auto& c) -> auto& {return c.Storefront("s", "fun-shop2");
}
}
, {"capitals", "s", [](auto& c) -> auto& {return c.Storefront("s", "Funshop");
}
}
, {"no storefront", "s", [](auto& c) -> auto& {return c.Storefront("s", "");
}
}
, {"33 bytes", "s", [](auto& c) -> auto& {return c.Storefront("s", std::string(33, 'x'));
}
}
, {"text", "", [](auto& c) -> auto& {return c.Text("t", "abc", 3);
}
}
, {"long text", "t", [](auto& c) -> auto& {return c.Text("t", "abcd", 3);
}
}
, {"lowest", "", [](auto& c) -> auto& {return c.Range("n", 1, 1, 3);
}
}
, {"highest", "", [](auto& c) -> auto& {return c.Range("n", 3, 1, 3);
}
}
, {"too low", "n", [](auto& c) -> auto& {return c.Range("n", 0, 1, 3);
}
}
, {"too high", "n", [](auto& c) -> auto& {return c.Range("n", 4, 1, 3);
}
}
, {"money", "", [](auto& c) -> auto& {return c.Money("m", Won(1), 1);
}
}
, {"nothing", "m.minor_units", [](auto& c) -> auto& {return c.Money("m", Won(0), 1);
}
}
, {"won", "m.currency_code", [](auto& c) -> auto& {return c.Money("m", Won(1, "krw"), 1);
}
}
, {"KR", "m.currency_code", [](auto& c) -> auto& {return c.Money("m", Won(1, "KR"), 1);
}
}
, {"a line", "", [](auto& c) -> auto& {return c.Lines("lines", Lines({{"p", 1}}));
}
}
, {"no lines", "lines", [](auto& c) -> auto& {return c.Lines("lines", Lines({}));
}
}
, {"101 lines", "lines",
   [](auto& c) -> auto& {return c.Lines(
                   "lines", Lines(std::vector<std::pair<std::string, int32_t>>(101, {"p", 1})));
}
}
, {"a nameless product", "lines[1].product_id",
   [](auto& c) -> auto& {return c.Lines("lines", Lines({{"p", 1}, {"", 1}}));
}
}
, {"none of it", "lines[1].quantity",
   [](auto& c) -> auto& {return c.Lines("lines", Lines({{"p", 1}, {"q", 0}}));
}
}
, {"less than none", "lines[0].quantity",
   [](auto& c) -> auto& {return c.Lines("lines", Lines({{"p", -1}}));
}
}
, {"a million and one", "lines[0].quantity",
   [](auto& c) -> auto& {return c.Lines("lines", Lines({{"p", 1000001}}));
}
}
, {"anything", "x", [](auto& c) -> auto& {return c.That(false, "x", "must be so");
}
}
,
}
;
for (const Case& c : cases) {
  FieldChecks checks("test");
  const google::rpc::Status status = c.check(checks).status();
  EXPECT_EQ(FieldOf(status), c.field) << c.what;
  EXPECT_EQ(status.code(), c.field.empty() ? 0 : google::rpc::INVALID_ARGUMENT) << c.what;
  EXPECT_EQ(ReasonOf(status), c.field.empty() ? "" : "FIELD_INVALID") << c.what;
}
}

TEST(FieldChecks, TheFirstFailureIsTheAnswer) {
  EXPECT_EQ(FieldOf(FieldChecks("test").Id("a", "ok").Id("b", "").Id("c", "").status()), "b");
}

}  // namespace
}  // namespace gaekju::flow
