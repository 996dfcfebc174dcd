#include "runtime/log.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "google/protobuf/util/json_util.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"

namespace gaekju::runtime {
namespace {

std::string Line(LogFormat format, absl::string_view message,
                 std::initializer_list<LogField> fields = {}) {
  return FormatLogLine(format, 1'763'730'338'123'456, LogLevel::kInfo, message, fields.begin(),
                       fields.size());
}

TEST(Log, JsonLineHasTimeLevelMessageAndFields) {
  EXPECT_EQ(
      Line(LogFormat::kJson, "order placed",
           {{"order_id", "o1"}, {"took_ms", 12}, {"ok", true}, {"share", 0.5}, {"error", ""}}),
      R"({"ts":"2025-11-21T13:05:38.123456Z","level":"info","msg":"order placed","order_id":"o1","took_ms":12,"ok":true,"share":0.5})");
}

TEST(Log, TextLineQuotesOnlyWhatNeedsIt) {
  const std::string line =
      Line(LogFormat::kText, "order placed", {{"order_id", "o1"}, {"error", "no \"such\" row"}});
  EXPECT_THAT(line, testing::HasSubstr(R"( I order placed order_id=o1 error="no \"such\" row")"));
}

TEST(Log, TextLineStaysOneLine) {
  EXPECT_EQ(Line(LogFormat::kText, "a\nb", {{"k", "c\nd"}}).find('\n'), std::string::npos);
}

// Parses a line as a message that has two of its fields. (Not as a Struct: its map cannot be read
// under the thread sanitizer, of which the distribution's Protobuf knows nothing.)
google::rpc::RequestInfo ParseJson(const std::string& line) {
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  google::rpc::RequestInfo out;
  EXPECT_TRUE(google::protobuf::util::JsonStringToMessage(line, &out, options).ok()) << line;
  return out;
}

// Whatever bytes come from outside, the line is one JSON object with the field in it.
TEST(Log, EveryByteStringGivesJsonThatParses) {
  std::vector<std::string> texts = {"한글",
                                    "😀",
                                    "\xff\xfe",
                                    "a\xe2\x82",
                                    "\xc0\xaf",
                                    "\xed\xa0\x80",
                                    "\xf5\x80\x80\x80",
                                    "\xf0\x80\x80\x80",
                                    "\xe0\x80\x80",
                                    "q\"\\\n\t\r\x01\x7f",
                                    std::string("nul\0byte", 8)};
  for (int c = 0; c < 256; ++c) texts.push_back(std::string("x") + static_cast<char>(c) + "y");
  for (const std::string& text : texts) {
    const std::string line =
        Line(LogFormat::kJson, text, {{"request_id", text}, {"serving_data", "after"}});
    const auto parsed = ParseJson(line);
    EXPECT_EQ(line.find('\n'), std::string::npos);
    EXPECT_EQ(parsed.serving_data(), "after") << line;
  }
  EXPECT_EQ(ParseJson(Line(LogFormat::kJson, "m", {{"request_id", "한글 😀 \"\\\n"}})).request_id(),
            "한글 😀 \"\\\n");
}

TEST(Log, NumbersThatJsonHasNotAreNull) {
  EXPECT_THAT(Line(LogFormat::kJson, "m",
                   {{"a", std::nan("")}, {"b", std::numeric_limits<double>::infinity()}}),
              testing::HasSubstr(R"("a":null,"b":null)"));
}

TEST(Log, ConfigureNamesWhatItDoesNotKnow) {
  EXPECT_THAT(std::string(ConfigureLog("loud", "json").message()), testing::HasSubstr("\"loud\""));
  EXPECT_THAT(std::string(ConfigureLog("info", "xml").message()), testing::HasSubstr("\"xml\""));
}

TEST(Log, WritesToStderrWithCommonFieldsAndRespectsTheLevel) {
  ASSERT_TRUE(ConfigureLog("warning", "json", {{"context", "payment"}}).ok());
  testing::internal::CaptureStderr();
  LogInfo("unseen");
  LogWarning("seen", {{"peer", "order"}});
  LogError("overridden", {{"context", "view"}});
  const std::string written = testing::internal::GetCapturedStderr();
  ASSERT_TRUE(ConfigureLog("info", "json").ok());
  EXPECT_THAT(written, testing::Not(testing::HasSubstr("unseen")));
  EXPECT_THAT(
      written,
      testing::HasSubstr(R"("level":"warning","msg":"seen","context":"payment","peer":"order"})"));
  EXPECT_THAT(written, testing::HasSubstr(R"("msg":"overridden","context":"view"})"));
}

TEST(LogLimit, LetsOneThroughPerPeriodAndCountsTheRest) {
  LogLimit limit(3'600'000'000);
  EXPECT_EQ(limit.Allow(), 0);
  EXPECT_EQ(limit.Allow(), -1);
  EXPECT_EQ(limit.Allow(), -1);
  LogLimit always(0);
  EXPECT_EQ(always.Allow(), 0);
  EXPECT_EQ(always.Allow(), 0);
}

}  // namespace
}  // namespace gaekju::runtime
