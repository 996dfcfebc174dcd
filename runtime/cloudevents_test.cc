#include "runtime/cloudevents.h"

#include <chrono>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"
#include "io/cloudevents/v1/cloudevents.pb.h"

namespace gaekju::runtime {
namespace {

using flow::Envelope;
using ::io::cloudevents::v1::CloudEvent;
using ::io::cloudevents::v1::CloudEventBatch;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;
using Headers = std::vector<std::pair<std::string, std::string>>;

constexpr int64_t kNow = 1'795'266'338'123'456;  // 2026-11-21T13:05:38.123456Z

Envelope Command(const std::string& order_id = "order-1") {
  Envelope e;
  e.kind = Envelope::Kind::kCommand;
  e.to = "delivery";
  e.type = "gaekju.delivery.v1.DeliveryService.Request";
  e.order_id = order_id;
  e.step_id = "deliver";
  e.reply_to = "order";
  e.time_us = kNow;
  e.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
  e.payload = std::string("\0\1payload\xff", 10);
  return e;
}

Envelope Answer(flow::Outcome outcome = flow::v1::OUTCOME_DONE) {
  Envelope e;
  e.kind = Envelope::Kind::kAnswer;
  e.to = "order";
  e.type = "gaekju.delivery.v1.RequestResponse";
  e.order_id = "order-1";
  e.step_id = "deliver";
  e.undo = true;
  e.outcome = outcome;
  e.time_us = kNow;
  e.payload = "answer";
  return e;
}

Envelope Event(const std::string& resource = "payment/p-1", int64_t version = 1) {
  Envelope e;
  e.kind = Envelope::Kind::kEvent;
  e.type = "gaekju.payment.v1.PaymentCaptured";
  e.order_id = "order-1";
  e.resource = resource;
  e.version = version;
  e.time_us = kNow;
  e.payload = "event";
  return e;
}

void ExpectSame(const Envelope& a, const Envelope& b) {
  EXPECT_EQ(a.kind, b.kind);
  EXPECT_EQ(a.to, b.to);
  EXPECT_EQ(a.type, b.type);
  EXPECT_EQ(a.order_id, b.order_id);
  EXPECT_EQ(a.step_id, b.step_id);
  EXPECT_EQ(a.undo, b.undo);
  EXPECT_EQ(a.outcome, b.outcome);
  EXPECT_EQ(a.reply_to, b.reply_to);
  EXPECT_EQ(a.resource, b.resource);
  EXPECT_EQ(a.version, b.version);
  EXPECT_EQ(a.time_us, b.time_us);
  EXPECT_EQ(a.traceparent, b.traceparent);
  EXPECT_EQ(a.payload, b.payload);
}

std::vector<DecodedEnvelope> Decode(const EncodedMessage& m) {
  auto decoded = DecodeMessage(m.subject, m.headers, m.body);
  EXPECT_TRUE(decoded.ok()) << decoded.status();
  return decoded.ok() ? *std::move(decoded) : std::vector<DecodedEnvelope>();
}

TEST(EncodeTurn, OneEnvelopeIsBinaryMode) {
  std::vector<EncodedMessage> messages = EncodeTurn("order", {Command()}, "7-41");
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(messages[0].subject, "gaekju.command.delivery");
  EXPECT_EQ(messages[0].body, Command().payload);
  EXPECT_EQ(messages[0].event_count, 1u);
  EXPECT_THAT(messages[0].resources, ElementsAre());
  EXPECT_THAT(messages[0].headers,
              UnorderedElementsAre(
                  Pair("ce-id", "7-41.0"), Pair("ce-source", "/gaekju/order"),
                  Pair("ce-specversion", "1.0"),
                  Pair("ce-type", "gaekju.delivery.v1.DeliveryService.Request"),
                  Pair("ce-time", "2026-11-21T13:05:38.123456Z"), Pair("ce-subject", "order-1"),
                  Pair("ce-datacontenttype", "application/protobuf"), Pair("ce-orderid", "order-1"),
                  Pair("ce-stepid", "deliver"), Pair("ce-replyto", "order"),
                  Pair("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
                  Pair("content-type", "application/protobuf")));
}

TEST(EncodeTurn, SeveralForOneSubjectAreOneBatchThatGeneratedCodeReads) {
  std::vector<EncodedMessage> messages =
      EncodeTurn("payment", {Event("payment/p-1", 1), Event("payment/p-1", 2)}, "7-41");
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(messages[0].subject, "gaekju.event.payment");
  EXPECT_THAT(messages[0].headers,
              ElementsAre(Pair("content-type", "application/cloudevents-batch+protobuf")));
  EXPECT_THAT(messages[0].resources, ElementsAre("payment/p-1"));

  CloudEventBatch batch;
  ASSERT_TRUE(batch.ParseFromString(messages[0].body));
  ASSERT_EQ(batch.events_size(), 2);
  CloudEvent expected;
  expected.set_id("7-41.1");
  expected.set_source("/gaekju/payment");
  expected.set_spec_version("1.0");
  expected.set_type("gaekju.payment.v1.PaymentCaptured");
  auto& attributes = *expected.mutable_attributes();
  attributes["time"].mutable_ce_timestamp()->set_seconds(kNow / 1'000'000);
  attributes["time"].mutable_ce_timestamp()->set_nanos(123'456'000);
  attributes["subject"].set_ce_string("payment/p-1");
  attributes["orderid"].set_ce_string("order-1");
  attributes["version"].set_ce_integer(2);
  expected.set_binary_data("event");
  google::protobuf::util::MessageDifferencer differ;
  std::string difference;
  differ.ReportDifferencesToString(&difference);
  EXPECT_TRUE(differ.Compare(expected, batch.events(1))) << difference;
}

TEST(EncodeTurn, GroupsBySubjectAndKeepsTheOrderWithinOne) {
  std::vector<EncodedMessage> messages =
      EncodeTurn("order",
                 {Event("order/a", 1), Command("o-1"), Event("order/b", 1), Command("o-2"),
                  Answer(), Event("order/a", 2)},
                 "t");
  ASSERT_EQ(messages.size(), 3u);
  EXPECT_EQ(messages[0].subject, "gaekju.event.order");
  EXPECT_EQ(messages[1].subject, "gaekju.command.delivery");
  EXPECT_EQ(messages[2].subject, "gaekju.answer.order");
  EXPECT_THAT(messages[0].resources, ElementsAre("order/a", "order/b"));
  std::vector<std::string> ids, resources;
  for (const DecodedEnvelope& d : Decode(messages[0])) {
    ids.push_back(d.id);
    resources.push_back(absl::StrCat(d.envelope.resource, "@", d.envelope.version));
  }
  EXPECT_THAT(ids, ElementsAre("t.0", "t.2", "t.5"));
  EXPECT_THAT(resources, ElementsAre("order/a@1", "order/b@1", "order/a@2"));
}

TEST(EncodeTurn, SplitsAtTheLargestCountAndSize) {
  std::vector<Envelope> many(2 * kBatchEventsMax + 1, Event());
  for (size_t i = 0; i < many.size(); ++i) many[i].version = static_cast<int64_t>(i + 1);
  std::vector<EncodedMessage> messages = EncodeTurn("payment", many, "t");
  ASSERT_EQ(messages.size(), 3u);
  EXPECT_EQ(messages[0].event_count, kBatchEventsMax);
  EXPECT_EQ(messages[2].event_count, 1u);
  int64_t version = 0;
  for (const EncodedMessage& m : messages) {
    for (const DecodedEnvelope& d : Decode(m)) EXPECT_EQ(d.envelope.version, ++version);
  }
  EXPECT_EQ(version, static_cast<int64_t>(many.size()));

  std::vector<Envelope> large(5, Event());
  for (Envelope& e : large) e.payload.assign(100'000, 'x');
  large[2].payload.assign(600'000, 'x');  // alone it is more than a batch may have
  messages = EncodeTurn("payment", large, "t");
  size_t count = 0;
  for (const EncodedMessage& m : messages) {
    if (m.event_count > 1) {
      EXPECT_LE(m.body.size(), kBatchBytesMax);
    }
    count += Decode(m).size();
  }
  EXPECT_EQ(messages.size(), 3u);  // 2, 1, 2
  EXPECT_EQ(count, 5u);
}

TEST(EncodeTurn, OfNothingIsNothing) { EXPECT_TRUE(EncodeTurn("order", {}, "t").empty()); }

struct RoundTripCase {
  const char* name;
  Envelope envelope;
};

std::vector<RoundTripCase> RoundTripCases() {
  Envelope plain = Event();
  plain.order_id.clear();
  Envelope awkward = Event("payment/한글 \"quoted\" 100%\r\n", int64_t{1} << 40);
  awkward.order_id = "주문 %41";
  awkward.traceparent = "not a trace";
  Envelope ancient = Event();
  ancient.time_us = -1;
  Envelope no_payload = Command();
  no_payload.payload.clear();
  return {{"command", Command()},
          {"answer done", Answer()},
          {"answer refused", Answer(flow::v1::OUTCOME_REFUSED)},
          {"answer pending", Answer(flow::v1::OUTCOME_PENDING)},
          {"event", Event()},
          {"event of no order", plain},
          {"characters that headers do not hold, a version beyond 32 bits", awkward},
          {"a time before 1970", ancient},
          {"an empty payload", no_payload}};
}

TEST(RoundTrip, BothModes) {
  for (const RoundTripCase& c : RoundTripCases()) {
    SCOPED_TRACE(c.name);
    for (size_t count : {1, 3}) {
      std::vector<EncodedMessage> messages =
          EncodeTurn("payment", std::vector<Envelope>(count, c.envelope), "p");
      ASSERT_EQ(messages.size(), 1u);
      for (const auto& [name, value] : messages[0].headers) {
        for (char ch : value) EXPECT_TRUE(ch >= ' ' && ch < 127) << name;
      }
      std::vector<DecodedEnvelope> decoded = Decode(messages[0]);
      ASSERT_EQ(decoded.size(), count);
      for (size_t i = 0; i < count; ++i) {
        ExpectSame(decoded[i].envelope, c.envelope);
        EXPECT_EQ(decoded[i].source, "payment");
        EXPECT_EQ(decoded[i].id, absl::StrCat("p.", i));
      }
    }
  }
}

TEST(RoundTrip, Random) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937_64 random(seed);
  auto bytes = [&](size_t max) {
    std::string s(random() % (max + 1), 0);
    for (char& c : s) c = static_cast<char>(random());
    return s;
  };
  auto text = [&](size_t max) {
    constexpr const char* kCharacters[] = {
        "a", "Z", "0", " ", "%", "\"", "\n", "\x7f", "é", "값", "\xf0\x9f\x8e\x81"};
    std::string s;
    for (size_t i = random() % (max + 1); i > 0; --i) s += kCharacters[random() % 11];
    return s;
  };
  auto word = [&] { return absl::StrCat("w", random() % 3); };
  for (int round = 0; round < 300; ++round) {
    std::vector<Envelope> turn(random() % 20);
    for (Envelope& e : turn) {
      e.kind = static_cast<Envelope::Kind>(random() % 3);
      const bool event = e.kind == Envelope::Kind::kEvent;
      if (!event) e.to = word();
      e.type = "t" + text(20);
      e.order_id = event ? text(20) : "o" + text(20);
      e.time_us = static_cast<int64_t>(random() % 250'000'000'000'000'000);
      e.traceparent = text(10);
      e.payload = bytes(2000);
      if (event) {
        e.resource = text(10);
        e.version = static_cast<int64_t>(random() >> (1 + random() % 62));
      } else {
        e.step_id = "s" + text(5);
        e.undo = random() % 2;
        if (e.kind == Envelope::Kind::kCommand) e.reply_to = text(5);
        if (e.kind == Envelope::Kind::kAnswer)
          e.outcome = static_cast<flow::Outcome>(1 + random() % 3);
      }
    }
    size_t count = 0;
    for (const EncodedMessage& m : EncodeTurn("src", turn, "r")) {
      if (m.event_count > 1) {
        CloudEventBatch batch;
        ASSERT_TRUE(batch.ParseFromString(m.body));
        ASSERT_EQ(static_cast<size_t>(batch.events_size()), m.event_count);
      }
      for (const DecodedEnvelope& d : Decode(m)) {
        const size_t index = std::stoul(d.id.substr(2));
        ASSERT_LT(index, turn.size());
        ExpectSame(d.envelope, turn[index]);
        ++count;
      }
    }
    EXPECT_EQ(count, turn.size());
    if (HasFailure()) return;
  }
}

// Whatever bytes come: an answer, no crash (the sanitizers watch), and never more than there is.
TEST(DecodeMessage, SurvivesBrokenBytes) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937_64 random(seed);
  const EncodedMessage whole =
      EncodeTurn("payment", {Event(), Event("payment/p-2"), Event("payment/p-3")}, "t")[0];
  for (size_t size = 0; size < whole.body.size(); ++size) {
    auto decoded =
        DecodeMessage(whole.subject, whole.headers, absl::string_view(whole.body).substr(0, size));
    if (decoded.ok()) {
      EXPECT_LT(decoded->size(), 3u);
    }
  }
  size_t refused = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string body = whole.body;
    for (uint64_t i = 0, n = 1 + random() % 4; i < n; ++i)
      body[random() % body.size()] = static_cast<char>(random());
    if (!DecodeMessage(whole.subject, whole.headers, body).ok()) ++refused;
  }
  EXPECT_GT(refused, 0u);
}

TEST(ReadMessage, WhatCanBeReadStandsBesideWhatCannot) {
  flow::Envelope broken = Event("payment/p-2");
  broken.resource = "not \xff UTF-8";
  const EncodedMessage whole =
      EncodeTurn("payment", {Event(), broken, Event("payment/p-3")}, "t")[0];
  const std::vector<ReadEnvelope> read = ReadMessage(whole.subject, whole.headers, whole.body);
  ASSERT_EQ(read.size(), 3u);
  EXPECT_TRUE(read[0].status.ok() && read[2].status.ok());
  EXPECT_EQ(read[2].decoded.envelope.resource, "payment/p-3");
  EXPECT_EQ(read[1].status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(read[1].decoded.envelope.type, Event().type);
  EXPECT_FALSE(DecodeMessage(whole.subject, whole.headers, whole.body).ok());
  // Each part is a message by itself, and reads the same.
  for (const ReadEnvelope& one : read) {
    const std::vector<ReadEnvelope> again = ReadMessage(whole.subject, whole.headers, one.part);
    ASSERT_EQ(again.size(), 1u);
    EXPECT_EQ(again[0].status.ok(), one.status.ok());
    EXPECT_EQ(again[0].decoded.id, one.decoded.id);
    EXPECT_EQ(again[0].decoded.envelope.payload, one.decoded.envelope.payload);
  }
}

TEST(ReadMessage, OfABatchThatBreaksOffTheRestIsOnePart) {
  const EncodedMessage whole = EncodeTurn("payment", {Event(), Event("payment/p-2")}, "t")[0];
  const size_t first = ReadMessage(whole.subject, whole.headers, whole.body)[0].part.size();
  for (size_t cut = 1; cut < whole.body.size() - first; ++cut) {
    const absl::string_view body = absl::string_view(whole.body).substr(0, whole.body.size() - cut);
    const std::vector<ReadEnvelope> read = ReadMessage(whole.subject, whole.headers, body);
    ASSERT_EQ(read.size(), 2u) << cut;
    EXPECT_TRUE(read[0].status.ok());
    EXPECT_FALSE(read[1].status.ok());
    EXPECT_EQ(read[1].part.data(), read[0].part.data() + read[0].part.size());
    EXPECT_EQ(read[1].part.data() + read[1].part.size(), body.data() + body.size());
  }
}

// What a producer in another language may send, through generated code.
TEST(DecodeMessage, ReadsWhatOtherProducersWrite) {
  CloudEventBatch batch;
  CloudEvent& event = *batch.add_events();
  event.set_id("a");
  event.set_source("/gaekju/notification");
  event.set_spec_version("1.0");
  event.set_type("gaekju.notification.v1.NotifyResponse");
  auto& attributes = *event.mutable_attributes();
  attributes["orderid"].set_ce_string("order-1");
  attributes["stepid"].set_ce_string("notify");
  attributes["outcome"].set_ce_string("DONE");
  attributes["undo"].set_ce_string("TRUE");
  attributes["datacontenttype"].set_ce_string("application/protobuf; charset=none");
  attributes["somebodyelses"].set_ce_bytes("ignored");
  event.mutable_proto_data()->set_type_url(
      "type.googleapis.com/gaekju.notification.v1.NotifyResponse");
  event.mutable_proto_data()->set_value("payload");
  for (const char* content_type :
       {"application/cloudevents-batch+protobuf", "Application/CloudEvents-Batch+Protobuf; v=1"}) {
    auto decoded = DecodeMessage("gaekju.answer.order", {{"Content-Type", content_type}},
                                 batch.SerializeAsString());
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    ASSERT_EQ(decoded->size(), 1u);
    EXPECT_EQ((*decoded)[0].source, "notification");
    EXPECT_EQ((*decoded)[0].envelope.outcome, flow::v1::OUTCOME_DONE);
    EXPECT_EQ((*decoded)[0].envelope.payload, "payload");
    EXPECT_TRUE((*decoded)[0].envelope.undo);
  }
  auto structured =
      DecodeMessage("gaekju.answer.order", {{"content-type", "application/cloudevents+protobuf"}},
                    event.SerializeAsString());
  ASSERT_TRUE(structured.ok()) << structured.status();
  EXPECT_EQ(structured->at(0).envelope.payload, "payload");

  auto binary = DecodeMessage("gaekju.answer.order",
                              {{"CE-ID", "a"},
                               {"Ce-Source", "/gaekju/x"},
                               {"ce-specversion", "1.0"},
                               {"ce-type", "t"},
                               {"ce-orderid", "o%2D1"},
                               {"ce-stepid", "s"},
                               {"ce-outcome", "REFUSED"},
                               {"ce-time", "2026-11-21T22:05:38+09:00"},
                               {"ce-traceparent", "tp"}},
                              "body");
  ASSERT_TRUE(binary.ok()) << binary.status();
  EXPECT_EQ(binary->at(0).envelope.order_id, "o-1");
  EXPECT_EQ(binary->at(0).envelope.time_us, kNow - 123'456);
  EXPECT_EQ(binary->at(0).envelope.traceparent, "tp");
}

struct BadCase {
  const char* name;
  std::string subject;
  Headers headers;
  std::string body;
  const char* says;
};

TEST(DecodeMessage, SaysWhatIsWrong) {
  auto without = [](const Envelope& e, const std::string& name, const std::string& value = "") {
    Headers headers = EncodeTurn("payment", {e}, "t")[0].headers;
    std::erase_if(headers, [&](const auto& h) { return h.first == name; });
    if (!value.empty()) headers.emplace_back(name, value);
    return headers;
  };
  auto batch = [](auto change) {
    CloudEventBatch b;
    CloudEvent& e = *b.add_events();
    e.set_id("i");
    e.set_source("/gaekju/payment");
    e.set_spec_version("1.0");
    e.set_type("t");
    change(e);
    return b.SerializeAsString();
  };
  const Headers batch_headers = {{"content-type", kBatchContentType}};
  const std::string events = "gaekju.event.payment", commands = "gaekju.command.delivery",
                    answers = "gaekju.answer.order";
  const std::vector<BadCase> cases = {
      {"subject", "gaekju.dead.payment", without(Event(), ""), "", "subject"},
      {"subject without a name", "gaekju.event.", without(Event(), ""), "", "subject"},
      {"no headers at all", events, {}, "", "specversion"},
      {"no id", events, without(Event(), "ce-id"), "", "id is missing"},
      {"no type", events, without(Event(), "ce-type"), "", "type is missing"},
      {"no source", events, without(Event(), "ce-source"), "", "source is missing"},
      {"another's source", events, without(Event(), "ce-source", "/gaekju/order"), "", "source"},
      {"specversion", events, without(Event(), "ce-specversion", "0.3"), "", "specversion"},
      {"time", events, without(Event(), "ce-time", "yesterday"), "", "time"},
      {"version", events, without(Event(), "ce-version", "first"), "", "version"},
      {"negative version", events, without(Event(), "ce-version", "-1"), "", "version"},
      {"NUL", commands, without(Command(), "ce-orderid", "a%00b"), "", "UTF-8"},
      {"not UTF-8", commands, without(Command(), "ce-orderid", "a%FFb"), "", "UTF-8"},
      {"a surrogate", commands, without(Command(), "ce-stepid", "%ED%A0%80"), "", "UTF-8"},
      {"too long for what it is", events, without(Event(), "ce-subject", "%C0%80"), "", "UTF-8"},
      {"cut off", events, without(Event(), "ce-subject", "%E2%82"), "", "UTF-8"},
      {"no order", commands, without(Command(), "ce-orderid"), "", "orderid"},
      {"no step", commands, without(Command(), "ce-stepid"), "", "stepid"},
      {"no outcome", answers, without(Answer(), "ce-outcome"), "", "outcome"},
      {"outcome", answers, without(Answer(), "ce-outcome", "MAYBE"), "", "outcome"},
      {"JSON payload", events, without(Event(), "ce-datacontenttype", "application/json"), "{}",
       "datacontenttype"},
      {"JSON", events, {{"content-type", "application/cloudevents+json"}}, "{}", "content-type"},
      {"text", events, {{"content-type", "text/plain"}}, "hello", "content-type"},
      {"broken batch", events, batch_headers, "\x0a\x7f", "broken"},
      {"broken event", events, batch_headers, std::string("\x0a\x02\x0a\x7f", 4), "event 0"},
      {"text payload", events, batch_headers, batch([](CloudEvent& e) { e.set_text_data("x"); }),
       "text"},
      {"time of a batch", events, batch_headers, batch([](CloudEvent& e) {
         (*e.mutable_attributes())["time"].mutable_ce_timestamp()->set_nanos(-1);
       }),
       "time"},
      {"version of a batch", events, batch_headers,
       batch([](CloudEvent& e) { (*e.mutable_attributes())["version"].set_ce_integer(-5); }),
       "version"},
  };
  for (const BadCase& c : cases) {
    auto decoded = DecodeMessage(c.subject, c.headers, c.body);
    EXPECT_EQ(decoded.status().code(), absl::StatusCode::kInvalidArgument) << c.name;
    EXPECT_THAT(std::string(decoded.status().message()), HasSubstr(c.says)) << c.name;
  }
}

// Not a test of a promise: prints what the codec costs, so that a change that makes it slow is
// seen.
TEST(Speed, IsPrinted) {
  std::vector<Envelope> turn;
  for (int i = 0; i < 500; ++i) {
    Envelope e = Command(absl::StrCat("0198f0c2-7c1e-7000-8000-", 100000000000 + i));
    e.payload.assign(150, 'p');
    turn.push_back(e);
  }
  constexpr int kRounds = 100;
  size_t bytes = 0, decoded = 0;
  auto start = std::chrono::steady_clock::now();
  std::vector<EncodedMessage> messages;
  for (int i = 0; i < kRounds; ++i) {
    messages = EncodeTurn("order", turn, "7-41");
    bytes += messages[0].body.size();
  }
  auto middle = std::chrono::steady_clock::now();
  for (int i = 0; i < kRounds; ++i) decoded += Decode(messages[0]).size();
  auto end = std::chrono::steady_clock::now();
  EXPECT_EQ(decoded, 500u * kRounds);
  auto per = [&](auto d) {
    return std::chrono::duration<double, std::nano>(d).count() / (500.0 * kRounds);
  };
  std::cout << "encode " << per(middle - start) << " ns, decode " << per(end - middle)
            << " ns an envelope of " << bytes / (500.0 * kRounds) << " bytes\n";
}

}  // namespace
}  // namespace gaekju::runtime
