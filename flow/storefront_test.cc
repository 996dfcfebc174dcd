#include "flow/storefront.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <random>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "flow/check.h"
#include "flow/request.h"
#include "flow/turn.h"
#include "gaekju/assignment/v1/assignment_service.pb.h"
#include "gaekju/catalog/v1/catalog_service.pb.h"
#include "gaekju/delivery/v1/delivery_service.pb.h"
#include "gaekju/flow/v1/step.pb.h"
#include "gaekju/notification/v1/notification_service.pb.h"
#include "gaekju/payment/v1/payment_service.pb.h"
#include "gaekju/store/v1/store_service.pb.h"
#include "gmock/gmock.h"
#include "google/api/field_behavior.pb.h"
#include "google/protobuf/descriptor.pb.h"
#include "google/protobuf/dynamic_message.h"
#include "google/protobuf/text_format.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"

namespace gaekju::flow {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::DescriptorPool;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::TextFormat;
using google::protobuf::util::MessageDifferencer;
namespace v1 = gaekju::storefront::v1;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file.good()) << path;
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// A context that is not linked in, and contracts with a mistake each.
// clang-format off
constexpr char kGiftContract[] = R"(
  name: "gaekju/gift/v1/gift_service.proto"
  package: "gaekju.gift.v1"
  syntax: "proto3"
  dependency: "gaekju/flow/v1/step.proto"
  dependency: "gaekju/type/v1/type.proto"
  dependency: "google/api/field_behavior.proto"
  message_type { name: "WrapRequest"
    field { name: "order_id" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING
            options { [google.api.field_behavior]: REQUIRED } }
    field { name: "step_id" number: 2 label: LABEL_OPTIONAL type: TYPE_STRING
            options { [google.api.field_behavior]: REQUIRED } }
    field { name: "customer_name" number: 7 label: LABEL_OPTIONAL type: TYPE_STRING
            options { [google.api.field_behavior]: REQUIRED } }
    field { name: "lines" number: 4 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".gaekju.type.v1.LineItem" }
    field { name: "note" number: 5 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "storefront" number: 6 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "status_code" number: 8 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "number" number: 9 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "lined" number: 10 label: LABEL_OPTIONAL type: TYPE_BOOL }
    field { name: "paper" number: 11 label: LABEL_REPEATED type: TYPE_INT32 }
  }
  message_type { name: "WrapResponse"
    field { name: "ribbon" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "amount" number: 2 label: LABEL_OPTIONAL type: TYPE_INT64 }
    field { name: "paper" number: 3 label: LABEL_REPEATED type: TYPE_INT32 }
  }
  message_type { name: "UnwrapRequest"
    field { name: "order_id" number: 3 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "step_id" number: 4 label: LABEL_OPTIONAL type: TYPE_STRING }
  }
  message_type { name: "TieRequest"
    field { name: "order_id" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "step_id" number: 2 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "ribbon" number: 3 label: LABEL_OPTIONAL type: TYPE_STRING
            options { [google.api.field_behavior]: REQUIRED } }
    field { name: "paper" number: 4 label: LABEL_REPEATED type: TYPE_INT32 }
  }
  message_type { name: "Empty" }
  message_type { name: "NumberRequest"
    field { name: "order_id" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "step_id" number: 2 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "number" number: 3 label: LABEL_OPTIONAL type: TYPE_STRING
            options { [google.api.field_behavior]: REQUIRED } }
  }
  message_type { name: "LineRequest"
    field { name: "order_id" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "step_id" number: 2 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "lines" number: 3 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".gaekju.type.v1.LineItem"
            options { [google.api.field_behavior]: REQUIRED } }
  }
  message_type { name: "StatusRequest"
    field { name: "order_id" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "step_id" number: 2 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "status_code" number: 3 label: LABEL_OPTIONAL type: TYPE_STRING
            options { [google.api.field_behavior]: REQUIRED } }
  }
  service { name: "GiftService"
    method { name: "Wrap" input_type: ".gaekju.gift.v1.WrapRequest" output_type: ".gaekju.gift.v1.WrapResponse"
             options { [gaekju.flow.v1.step] { undo: "Unwrap" } } }
    method { name: "Unwrap" input_type: ".gaekju.gift.v1.UnwrapRequest" output_type: ".gaekju.gift.v1.Empty" }
    method { name: "Tie" input_type: ".gaekju.gift.v1.TieRequest" output_type: ".gaekju.gift.v1.Empty"
             options { [gaekju.flow.v1.step] { nothing_to_undo: true } } }
    method { name: "NeedsNumber" input_type: ".gaekju.gift.v1.NumberRequest" output_type: ".gaekju.gift.v1.Empty"
             options { [gaekju.flow.v1.step] { nothing_to_undo: true } } }
    method { name: "NeedsOneLine" input_type: ".gaekju.gift.v1.LineRequest" output_type: ".gaekju.gift.v1.Empty"
             options { [gaekju.flow.v1.step] { nothing_to_undo: true } } }
    method { name: "NeedsStatus" input_type: ".gaekju.gift.v1.StatusRequest" output_type: ".gaekju.gift.v1.Empty"
             options { [gaekju.flow.v1.step] { nothing_to_undo: true } } }
    method { name: "NoIds" input_type: ".gaekju.gift.v1.Empty" output_type: ".gaekju.gift.v1.Empty"
             options { [gaekju.flow.v1.step] { nothing_to_undo: true } } }
    method { name: "UndoUnknown" input_type: ".gaekju.gift.v1.UnwrapRequest" output_type: ".gaekju.gift.v1.Empty"
             options { [gaekju.flow.v1.step] { undo: "Unrwap" } } }
    method { name: "UndoNeedsMore" input_type: ".gaekju.gift.v1.UnwrapRequest" output_type: ".gaekju.gift.v1.Empty"
             options { [gaekju.flow.v1.step] { undo: "Tie" } } }
    method { name: "SaysNothing" input_type: ".gaekju.gift.v1.UnwrapRequest" output_type: ".gaekju.gift.v1.Empty"
             options { [gaekju.flow.v1.step] {} } }
    method { name: "SaysBoth" input_type: ".gaekju.gift.v1.UnwrapRequest" output_type: ".gaekju.gift.v1.Empty"
             options { [gaekju.flow.v1.step] { undo: "Unwrap" nothing_to_undo: true } } }
    method { name: "Streams" input_type: ".gaekju.gift.v1.UnwrapRequest" output_type: ".gaekju.gift.v1.Empty"
             server_streaming: true
             options { [gaekju.flow.v1.step] { nothing_to_undo: true } } }
  }
)";
// clang-format on

// The contexts that are linked in, and gift.
const DescriptorPool& GiftPool() {
  static const DescriptorPool* pool = [] {
    auto* made = new DescriptorPool(DescriptorPool::generated_pool());
    google::protobuf::FileDescriptorProto file;
    GK_CHECK(TextFormat::ParseFromString(kGiftContract, &file));
    GK_CHECK(made->BuildFile(file) != nullptr);
    return made;
  }();
  return *pool;
}

// A notice with words that says when.
std::string Tell(const std::string& when) {
  return absl::StrCat("notice { ", when,
                      " with { [type.googleapis.com/gaekju.notification.v1.NotifyRequest] "
                      "{ text { ko: \"x\" en: \"x\" }  } } }");
}

// A step that fills its request from fields of other names.
std::string From(const std::string& from) {
  return absl::StrCat(R"(step { id: "pay" call: "payment.Capture" via: GRPC from { )", from,
                      " } }");
}

// A whole storefront around what a row is about. Line 1 is the id, line 2 the currency, line 3
// opens place; a row's steps begin in line 4.
std::string Shop(const std::string& place, const std::string& after_place = "") {
  return absl::StrCat("id: \"shop\"\ncurrency_code: \"KRW\"\nplace {\n", place, "\n}\n",
                      after_place);
}

const char kQuote[] = R"(step { id: "quote" call: "catalog.Quote" via: GRPC })";
const char kPay[] = R"(step { id: "pay" call: "payment.Capture" via: GRPC after: "quote" })";

std::string QuotePay(const std::string& more) {
  return absl::StrCat(kQuote, "\n", kPay, "\n", more);
}

// A row about what stands after place: in line 8 and on.
std::string After(const std::string& after_place) { return Shop(QuotePay(""), after_place); }

struct Mistake {
  std::string name;
  std::string text;
  std::string error;  // with "shop.textproto:" left out of each line
};

// clang-format off
const Mistake kMistakes[] = {
{"EmptyFile", "",
 R"(1:1: id is missing; write id: "shop"
1:1: currency_code is missing; write currency_code: "KRW", or another ISO 4217 code
1:1: place has no step; write place { step { id: "…" call: "<context>.<Method>" via: GRPC } })"},
{"IdMissing",
 R"(currency_code: "KRW" place { step { id: "quote" call: "catalog.Quote" via: GRPC } })",
 R"(1:1: id is missing; write id: "shop")"},
{"IdOfOtherFile", R"(  id: "bench"
currency_code: "KRW" place { step { id: "quote" call: "catalog.Quote" via: GRPC } })",
 R"(1:3: id "bench" is not the file's name; write id: "shop", or rename the file to bench.textproto)"},
{"IdWithCapitals", R"(id: "Shop"
currency_code: "KRW" place { step { id: "quote" call: "catalog.Quote" via: GRPC } })",
 R"(1:1: id "Shop" will not do; write 1 to 32 lower-case letters, digits and dashes: id: "shop")"},
{"IdTooLong", R"(id: "abcdefghijklmnopqrstuvwxyz0123456"
currency_code: "KRW" place { step { id: "quote" call: "catalog.Quote" via: GRPC } })",
 R"(1:1: id "abcdefghijklmnopqrstuvwxyz0123456" will not do; write 1 to 32 lower-case letters, digits and dashes: id: "shop")"},
{"CurrencyMissing", R"(id: "shop"
place { step { id: "quote" call: "catalog.Quote" via: GRPC } })",
 R"(1:1: currency_code is missing; write currency_code: "KRW", or another ISO 4217 code)"},
{"CurrencyInSmallLetters", R"(id: "shop"
currency_code: "krw"
place { step { id: "quote" call: "catalog.Quote" via: GRPC } })",
 R"(2:1: currency_code "krw": write the three capital letters of an ISO 4217 code, e.g. "KRW")"},
{"PlaceMissing", R"(id: "shop" currency_code: "KRW")",
 R"(1:1: place has no step; write place { step { id: "…" call: "<context>.<Method>" via: GRPC } })"},
{"PlaceEmpty", R"(id: "shop" currency_code: "KRW"
place {})",
 R"(2:1: place has no step; write place { step { id: "…" call: "<context>.<Method>" via: GRPC } })"},
{"DisplayNameNotUtf8", R"(id: "shop" currency_code: "KRW"
display_name { ko: "\xff" en: "Shop" }
place { step { id: "quote" call: "catalog.Quote" via: GRPC } })",
 R"(2:1: display_name is not UTF-8; write the letters themselves)"},
{"UnknownField", R"(id: "shop" currency_code: "KRW"
place { step { id: "quote" cal: "catalog.Quote" via: GRPC } })",
 R"(2:28: unknown field "cal"; did you mean "call"? Step has: id, call, undo, via, after, on_unavailable, expires_after, deadline, with, from)"},
{"UnknownFieldsAreAllReported", R"(id: "shop" currency: "KRW"
place { step { name: "quote" call: "catalog.Quote" via: GRPC } }
plaice { step { id: "x" } })",
 R"(1:12: unknown field "currency". Storefront has: id, display_name, currency_code, place, cancel, status, notice
2:16: unknown field "name". Step has: id, call, undo, via, after, on_unavailable, expires_after, deadline, with, from
3:1: unknown field "plaice"; did you mean "place"? Storefront has: id, display_name, currency_code, place, cancel, status, notice)"},
{"UnknownExtension", R"(id: "shop" currency_code: "KRW"
[some.extension]: 1
place { step { id: "quote" call: "catalog.Quote" via: GRPC } })",
 R"(2:1: unknown field [some.extension]; only `with` takes a name in brackets: with { [type.googleapis.com/<type>] { … } })"},
{"UnknownVia", R"(id: "shop" currency_code: "KRW"
place { step { id: "quote" call: "catalog.Quote" via: JETSTREM } })",
 R"(2:55: via: unknown value "JETSTREM"; did you mean "JETSTREAM"? It is one of: GRPC, JETSTREAM)"},
{"UnknownStage", R"(id: "shop" currency_code: "KRW"
place { step { id: "quote" call: "catalog.Quote" via: GRPC } }
status { stage: CANCELED code: "X" text { ko: "x" en: "x" } })",
 R"(3:17: stage: unknown value "CANCELED"; did you mean "CANCELLED"? It is one of: PLACED, COMPLETED, CANCELLING, CANCELLED, REJECTED)"},
{"UnknownEnumInConstants", R"(id: "shop" currency_code: "KRW"
place { step { id: "a" call: "store.AcceptOrder" via: GRPC
  with { [type.googleapis.com/gaekju.store.v1.AcceptOrderRequest] { acceptance: CONFIRMATION_MANUEL } } } })",
 R"(3:81: acceptance: unknown value "CONFIRMATION_MANUEL"; did you mean "CONFIRMATION_MANUAL"? It is one of: CONFIRMATION_AUTOMATIC, CONFIRMATION_MANUAL)"},
{"UnknownEnumBehindConstants", R"(id: "shop" currency_code: "KRW"
place { step { id: "a" call: "store.AcceptOrder"
  with { [type.googleapis.com/gaekju.store.v1.AcceptOrderRequest] { acceptance: CONFIRMATION_MANUAL } }
  via: JETSTREM } })",
 R"(4:8: via: unknown value "JETSTREM"; did you mean "JETSTREAM"? It is one of: GRPC, JETSTREAM)"},
{"UnknownFieldInConstants", R"(id: "shop" currency_code: "KRW"
place { step { id: "a" call: "store.AcceptOrder" via: GRPC
  with { [type.googleapis.com/gaekju.store.v1.AcceptOrderRequest] { aceptance: CONFIRMATION_MANUAL } } } })",
 R"(3:69: unknown field "aceptance"; did you mean "acceptance"? AcceptOrderRequest has: order_id, step_id, storefront, lines, acceptance, cancel_confirmation)"},
{"FieldTwice", R"(id: "shop" currency_code: "KRW"
place { step { id: "quote" call: "catalog.Quote" via: GRPC call: "catalog.Quote" } })",
 R"(2:60: "call" is given twice; leave one out)"},
{"TwoOfOneof", R"(id: "shop" currency_code: "KRW"
place { step { id: "quote" call: "catalog.Quote" via: GRPC } }
status { stage: PLACED done: "quote" code: "X" text { ko: "x" en: "x" } })",
 R"(3:24: "done" and "stage" are given together; leave one out)"},
{"ConstantsOfUnknownType", R"(id: "shop" currency_code: "KRW"
place { step { id: "a" call: "store.AcceptOrder" via: GRPC with { [type.googleapis.com/gaekju.store.v1.Accept] {} } } })",
 R"(2:67: unknown type "gaekju.store.v1.Accept"; write the full name of the request that the step's call takes)"},
{"ConstantsOfOtherPrefix", R"(id: "shop" currency_code: "KRW"
place { step { id: "a" call: "store.AcceptOrder" via: GRPC with { [gaekju/gaekju.store.v1.AcceptOrderRequest] {} } } })",
 R"(2:67: unknown type "gaekju/gaekju.store.v1.AcceptOrderRequest"; write [type.googleapis.com/gaekju.store.v1.AcceptOrderRequest])"},
{"ConstantsWithoutPrefix", R"(id: "shop" currency_code: "KRW"
place { step { id: "a" call: "store.AcceptOrder" via: GRPC with { [gaekju.store.v1.AcceptOrderRequest] {} } } })",
 R"(2:102: expected "/", found "]"; write [type.googleapis.com/<the type's full name>])"},
{"ConstantsTwice", R"(id: "shop" currency_code: "KRW"
place { step { id: "a" call: "store.AcceptOrder" via: GRPC with {
  [type.googleapis.com/gaekju.store.v1.AcceptOrderRequest] {}
  [type.googleapis.com/gaekju.store.v1.AcceptOrderRequest] {} } } })",
 R"(4:63: `with` has two messages; leave one out)"},
{"TextWithoutQuotes", R"(id: shop)", R"(1:5: expected a text in quotes, found shop; write "shop")"},
{"TextNotClosed", R"(id: "shop
currency_code: "KRW")",
 R"(1:10: a text ends on the line it begins on; close it with a quote)"},
{"NumberForText", R"(id: 12)", R"(1:5: expected a text in quotes, found 12; write "12")"},
{"BraceMissing", R"(id: "shop" currency_code: "KRW"
place { step { id: "quote" call: "catalog.Quote" via: GRPC })",
 R"(2:61: expected a field's name, found the end of the file; is a "}" missing?)"},
{"BraceTooMany", R"(id: "shop" currency_code: "KRW"
place { step { id: "quote" call: "catalog.Quote" via: GRPC } } })",
 R"(2:64: expected a field's name, found "}")"},
{"NoTextproto", R"({"id": "shop"})", R"(1:1: expected a field's name, found "{")"},
{"Yaml", R"(id: "shop"
place:
  - step: x)", R"(3:3: expected "{", found "-")"},
{"StepIdMissing", Shop(R"(step { call: "catalog.Quote" via: GRPC })"),
 R"(4:1: step 1 of place: id is missing; write id: "…", a name of your own for this step)"},
{"StepIdTooLong",
 Shop(R"(step { id: "abcdefghijklmnopqrstuvwxyz0123456" call: "catalog.Quote" via: GRPC })"),
 R"(4:8: step "abcdefghijklmnopqrstuvwxyz0123456": this id will not do; write 1 to 32 lower-case letters, digits, dashes and underscores)"},
{"StepIdWithDot", Shop(R"(step { id: "quote.2" call: "catalog.Quote" via: GRPC })"),
 R"(4:8: step "quote.2": this id will not do; write 1 to 32 lower-case letters, digits, dashes and underscores)"},
{"StepIdTwice", Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC }
step { id: "quote" call: "catalog.Quote" via: GRPC })"),
 R"(5:8: step "quote": there is another step of this id in line 4; write another id)"},
{"StepIdTwiceAcrossFlows",
 Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC })", R"(cancel { step { id: "quote" call: "catalog.Quote" via: GRPC } })"),
 R"(6:17: step "quote": there is another step of this id in line 4; write another id)"},
{"CallMissing", Shop(R"(step { id: "quote" via: GRPC })"),
 R"(4:1: step "quote": call is missing; write call: "<context>.<Method>", e.g. "payment.Capture")"},
{"CallWithoutDot", Shop(R"(step { id: "quote" call: "quote" via: GRPC })"),
 R"(4:20: step "quote": call "quote" is not "<context>.<Method>", e.g. "payment.Capture")"},
{"CallEndsInDot", Shop(R"(step { id: "quote" call: "catalog." via: GRPC })"),
 R"(4:20: step "quote": call "catalog." is not "<context>.<Method>", e.g. "payment.Capture")"},
{"UnknownMethod", Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC }
step {
  id: "pay"
  call: "payment.Captur"
  via: GRPC
  after: "quote"
})"),
 R"(7:3: step "pay": unknown call "payment.Captur"; did you mean "payment.Capture"? It has: Capture)"},
{"UnknownMethodLikeNone", Shop(R"(step { id: "quote" call: "catalog.Frobnicate" via: GRPC })"),
 R"(4:20: step "quote": unknown call "catalog.Frobnicate". It has: Quote, Reserve)"},
{"UnknownContext", Shop(R"(step { id: "pay" call: "paymnt.Capture" via: GRPC })"),
 R"(4:18: step "pay": unknown context "paymnt" in call "paymnt.Capture"; did you mean "payment"? There are: …)"},
{"UnknownContextLikeNone", Shop(R"(step { id: "pay" call: "telepathy.Send" via: GRPC })"),
 R"(4:18: step "pay": unknown context "telepathy" in call "telepathy.Send". There are: …)"},
{"UnknownFullMethod",
 Shop(R"(step { id: "pay" call: "gaekju.catalog.v1.CatalogService.Qoute" via: GRPC })"),
 R"(4:18: step "pay": unknown call "gaekju.catalog.v1.CatalogService.Qoute"; did you mean "gaekju.catalog.v1.CatalogService.Quote"? It has: Quote, Reserve)"},
{"UnknownService", Shop(R"(step { id: "pay" call: "acme.pay.v1.PayService.Capture" via: GRPC })"),
 R"(4:18: step "pay": unknown service "acme.pay.v1.PayService" in call "acme.pay.v1.PayService.Capture"; is its contract in the descriptor set?)"},
{"CallOfUndo", Shop(R"(step { id: "pay" call: "payment.Refund" via: GRPC })"),
 R"(4:18: step "pay": call "payment.Refund" is not a step but takes payment.Capture back: write it in cancel as undo: "<step>". It has: Capture)"},
{"CallOfQuery", Shop(R"(step { id: "pay" call: "payment.GetPayment" via: GRPC })"),
 R"(4:18: step "pay": call "payment.GetPayment" is not a step. It has: Capture)"},
{"CallOfContextWithoutSteps", Shop(R"(step { id: "view" call: "order.PlaceOrder" via: GRPC })"),
 R"(4:19: step "view": call "order.PlaceOrder" is not a step. It has: nothing that would do)"},
{"ContractWithoutIds", Shop(R"(step { id: "a" call: "gift.NoIds" via: GRPC })"),
 R"(4:16: step "a": its contract is wrong: gaekju.gift.v1.Empty has no `string order_id`; add it
4:16: step "a": its contract is wrong: gaekju.gift.v1.Empty has no `string step_id`; add it)"},
{"ContractOfUnknownUndo", Shop(R"(step { id: "a" call: "gift.UndoUnknown" via: GRPC })"),
 R"(4:16: step "a": its contract is wrong: gaekju.gift.v1.GiftService.UndoUnknown is undone by "Unrwap", which GiftService does not have)"},
{"ContractOfUndoThatNeedsMore", Shop(R"(step { id: "a" call: "gift.UndoNeedsMore" via: GRPC })"),
 R"(4:16: step "a": its contract is wrong: gaekju.gift.v1.TieRequest requires ribbon, but an undo is told only order_id and step_id; keep what it needs when the step is done)"},
{"ContractSaysNothingOfUndo", Shop(R"(step { id: "a" call: "gift.SaysNothing" via: GRPC })"),
 R"(4:16: step "a": its contract is wrong: the step option of gaekju.gift.v1.GiftService.SaysNothing has to have one of undo and nothing_to_undo)"},
{"ContractSaysBoth", Shop(R"(step { id: "a" call: "gift.SaysBoth" via: GRPC })"),
 R"(4:16: step "a": its contract is wrong: the step option of gaekju.gift.v1.GiftService.SaysBoth has to have one of undo and nothing_to_undo)"},
{"ContractStreams", Shop(R"(step { id: "a" call: "gift.Streams" via: GRPC })"),
 R"(4:16: step "a": its contract is wrong: gaekju.gift.v1.GiftService.Streams streams; a step is a unary RPC)"},
{"ViaMissing", Shop(R"(  step { id: "quote" call: "catalog.Quote" })"),
 R"(4:3: step "quote": via is missing; write via: GRPC (a call) or via: JETSTREAM (a command, nobody waits))"},
{"ViaUnspecified", Shop(R"(  step { id: "quote" call: "catalog.Quote" via: VIA_UNSPECIFIED })"),
 R"(4:44: step "quote": via is missing; write via: GRPC (a call) or via: JETSTREAM (a command, nobody waits))"},
{"ViaUnknownNumber", Shop(R"(step { id: "quote" call: "catalog.Quote" via: 7 })"),
 R"(4:42: step "quote": via: 7 is unknown; write via: GRPC (a call) or via: JETSTREAM (a command, nobody waits))"},
{"AfterUnknown", Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC }
step { id: "pay" call: "payment.Capture" via: GRPC after: "qoute" })"),
 R"(5:52: step "pay": after: unknown step "qoute"; did you mean "quote"? place has: quote)"},
{"AfterUnknownInList", Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC }
step { id: "pay" call: "payment.Capture" via: GRPC after: ["quote", "stock"] })"),
 R"(5:69: step "pay": after: unknown step "stock". place has: quote)"},
{"AfterUnknownTwiceInList", Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC after: ["stock",
    "stock"] })"),
 R"(4:60: step "quote": after: unknown step "stock". place has: nothing that would do
5:5: step "quote": after: unknown step "stock". place has: nothing that would do)"},
{"AfterEmpty", Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC after: "" })"),
 R"(4:52: step "quote": after: unknown step "". place has: nothing that would do)"},
{"AfterUnknownLikeItself",
 Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC after: "qoute" })"),
 R"(4:52: step "quote": after: unknown step "qoute". place has: nothing that would do)"},
{"AfterTwice", Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC }
step { id: "pay" call: "payment.Capture" via: GRPC after: "quote" after: "quote" })"),
 R"(5:67: step "pay": after: "quote" is named twice; leave one out)"},
{"AfterStepOfCancel",
 Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC after: "tell" })", R"(cancel { step { id: "tell" call: "catalog.Quote" via: GRPC } })"),
 R"(4:52: step "quote": after: "tell" is a step of cancel; a step of place waits for steps of place)"},
{"CancelAfterStepThatIsNotUndone", Shop(QuotePay(R"(step { id: "deliver" call: "delivery.Start" via: JETSTREAM after: "pay" })"), R"(cancel {
  step { undo: "pay" after: "deliver" }
})"),
 R"(9:22: undo "pay": after: cancel does not undo "deliver"; add step { undo: "deliver" }, or leave it out)"},
{"CancelAfterUnknown", After(R"(cancel {
  step { undo: "pay" after: "tel" }
  step { id: "tell" call: "catalog.Quote" via: GRPC }
})"),
 R"(9:22: undo "pay": after: unknown step "tel"; did you mean "tell"? cancel has: tell)"},
{"CycleOfOne", Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC after: "quote" })"),
 R"(4:52: step "quote": waits for itself: step "quote" after step "quote"; leave one `after` out)"},
{"CycleOfThree", Shop(R"(step { id: "a" call: "catalog.Quote" via: GRPC }
step { id: "b" call: "catalog.Quote" via: GRPC after: "a" after: "d" }
step { id: "c" call: "catalog.Quote" via: GRPC after: "b" }
step { id: "d" call: "catalog.Quote" via: GRPC after: "c" }
step { id: "e" call: "catalog.Quote" via: GRPC after: "d" })"),
 R"(5:59: step "b": waits for itself: step "b" after step "d" after step "c" after step "b"; leave one `after` out)"},
{"CycleThatOthersWaitFor", Shop(R"(step { id: "a" call: "catalog.Quote" via: GRPC after: "c" }
step { id: "b" call: "catalog.Quote" via: GRPC after: "c" }
step { id: "c" call: "catalog.Quote" via: GRPC after: "b" })"),
 R"(5:48: step "b": waits for itself: step "b" after step "c" after step "b"; leave one `after` out)"},
{"CyclesAreAllReported", Shop(R"(step { id: "a" call: "catalog.Quote" via: GRPC after: "b" }
step { id: "b" call: "catalog.Quote" via: GRPC after: "a" }
step { id: "c" call: "catalog.Quote" via: GRPC after: "c" })"),
 R"(4:48: step "a": waits for itself: step "a" after step "b" after step "a"; leave one `after` out
6:48: step "c": waits for itself: step "c" after step "c"; leave one `after` out)"},
{"CycleInCancel", After(R"(cancel {
  step { undo: "pay" after: "tell" }
  step { id: "tell" call: "catalog.Quote" via: GRPC after: "pay" }
})"),
 R"(9:22: undo "pay": waits for itself: undo "pay" after step "tell" after undo "pay"; leave one `after` out)"},
{"UndoInPlace", Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC }
step { undo: "quote" })"),
 R"(5:8: step 2 of place: undo stands in cancel only; write here what is to be done: call: "<context>.<Method>")"},
{"CallAndUndo", After(R"(cancel {
  step { id: "x" call: "catalog.Quote" undo: "pay" via: GRPC }
})"),
 R"(9:40: step "x": has both call and undo; a step of cancel has one of them)"},
{"NeitherCallNorUndo", After(R"(cancel {
  step { id: "x" via: GRPC }
})"),
 R"(9:3: step "x": has neither call nor undo; write call: "<context>.<Method>" or undo: "<step of place>")"},
{"UndoUnknown", After(R"(cancel {
  step { undo: "pya" }
})"),
 R"(9:10: undo "pya": there is no such step in place; did you mean "pay"? place has: quote, pay)"},
{"UndoOfStepOfCancel", After(R"(cancel {
  step { id: "tell" call: "gift.Wrap" via: GRPC }
  step { undo: "tell" }
})"),
 R"(10:10: undo "tell": there is no such step in place. place has: quote, pay)"},
{"UndoTwice", After(R"(cancel {
  step { undo: "pay" }
  step { undo: "pay" via: GRPC }
})"),
 R"(10:10: undo "pay": is undone twice; leave one out)"},
{"UndoOfNothing", After(R"(cancel {
  step { undo: "quote" }
})"),
 R"(9:10: undo "quote": its call Quote has nothing to undo; leave this out)"},
{"UndoWithTooMuch", After(R"(cancel {
  step {
    undo: "pay"
    id: "x"
    expires_after { seconds: 1 }
    deadline { seconds: 1 }
    with { [type.googleapis.com/gaekju.payment.v1.RefundRequest] {} }
  }
})"),
 R"(11:5: undo "pay": an undo goes by its step's id; leave id out
12:5: undo "pay": an undo is asked until it is done; leave expires_after out
13:5: undo "pay": an undo has its step's deadline; leave deadline out
14:5: undo "pay": an undo is told only its order and step; leave with out)"},
{"UndoViaUnknown", After(R"(cancel {
  step { undo: "pay" via: 3 }
})"),
 R"(9:22: undo "pay": via: 3 is unknown; write via: GRPC (a call) or via: JETSTREAM (a command, nobody waits))"},
{"UndoFails", After(R"(cancel {
  step { undo: "pay" via: GRPC on_unavailable: FAIL }
})"),
 R"(9:32: undo "pay": on_unavailable: FAIL is not for an undo, which is asked until it is done; leave it out)"},
{"UndoByCommandDefers", After(R"(cancel {
  step { undo: "pay" on_unavailable: DEFER }
})"),
 R"(9:22: undo "pay": on_unavailable is for via: GRPC, a command waits until its context is back; leave it out)"},
{"OnUnavailableOfCommand",
 Shop(R"(step { id: "quote" call: "catalog.Quote" via: JETSTREAM on_unavailable: DEFER })"),
 R"(4:57: step "quote": on_unavailable is for via: GRPC, a command waits until its context is back; leave it out)"},
{"OnUnavailableUnknown",
 Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC on_unavailable: 9 })"),
 R"(4:52: step "quote": on_unavailable: 9 is unknown; write FAIL or DEFER)"},
{"FailWhereNobodyWaits", Shop(R"(step { id: "quote" call: "catalog.Quote" via: JETSTREAM }
step { id: "pay" call: "payment.Capture" via: GRPC after: "quote" on_unavailable: FAIL })"),
 R"(5:67: step "pay": on_unavailable: FAIL is told to the buyer, who does not wait here, nor for step "quote"; write DEFER, or leave it out)"},
{"ExpiryOfZero",
 Shop(R"(step { id: "quote" call: "catalog.Quote" via: JETSTREAM expires_after {} })"),
 R"(4:57: step "quote": expires_after has to be above 0; write e.g. expires_after { seconds: 1800 })"},
{"ExpiryNegative",
 Shop(R"(step { id: "quote" call: "catalog.Quote" via: JETSTREAM expires_after { seconds: -5 } })"),
 R"(4:57: step "quote": expires_after has to be above 0; write e.g. expires_after { seconds: 1800 })"},
{"ExpiryTooLong",
 Shop(R"(step { id: "quote" call: "catalog.Quote" via: JETSTREAM expires_after { seconds: 9223372036854 } })"),
 R"(4:57: step "quote": expires_after has to be above 0; write e.g. expires_after { seconds: 1800 })"},
{"ExpiryAboveAYear",
 Shop(R"(step { id: "quote" call: "catalog.Quote" via: JETSTREAM expires_after { seconds: 31622401 } })"),
 R"(4:57: step "quote": expires_after is above 366 days; write less, or leave it out to wait for ever)"},
{"DeadlineTooShort",
 Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC deadline { nanos: 9999999 } })"),
 R"(4:52: step "quote": deadline has to be from 10 ms to 60 s; write e.g. deadline { seconds: 2 })"},
{"DeadlineTooLong",
 Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC deadline { seconds: 60 nanos: 1000 } })"),
 R"(4:52: step "quote": deadline has to be from 10 ms to 60 s; write e.g. deadline { seconds: 2 })"},
{"DeadlineOfCommand",
 Shop(R"(step { id: "quote" call: "catalog.Quote" via: JETSTREAM deadline { seconds: 1 } })"),
 R"(4:57: step "quote": deadline is for via: GRPC, a command has none; leave it out)"},
{"UndoAndCallInPlace",
 Shop(R"(step { id: "quote" call: "catalog.Quote" undo: "quote" via: GRPC })"),
 R"(4:42: step "quote": undo stands in cancel only; write here what is to be done: call: "<context>.<Method>")"},
{"ConstantsEmpty", Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC with {} })"),
 R"(4:52: step "quote": with is empty; write with { [type.googleapis.com/gaekju.catalog.v1.QuoteRequest] { … } }, or leave it out)"},
{"ConstantsOfOtherRequest",
 Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC with { [type.googleapis.com/gaekju.payment.v1.CaptureRequest] {} } })"),
 R"(4:52: step "quote": with has the type "type.googleapis.com/gaekju.payment.v1.CaptureRequest"; write with { [type.googleapis.com/gaekju.catalog.v1.QuoteRequest] { … } })"},
{"ConstantOrderId", Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC
  with { [type.googleapis.com/gaekju.catalog.v1.QuoteRequest] {
    order_id: "x"
    step_id: "" } } })"),
 R"(6:5: step "quote": order_id is given by the saga; leave it out
7:5: step "quote": step_id is given by the saga; leave it out)"},
{"ConstantRequiredAndEmpty", Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC
  with { [type.googleapis.com/gaekju.catalog.v1.QuoteRequest] { currency_code: "" } } })"),
 R"(5:65: step "quote": currency_code is required and cannot be empty; write a value, or leave it out to have it filled from the order)"},
{"ConstantNotUtf8", Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC
  with { [type.googleapis.com/gaekju.catalog.v1.QuoteRequest] { currency_code: "\xff" } } })"),
 R"(5:3: step "quote": with cannot be read as gaekju.catalog.v1.QuoteRequest (is a text not UTF-8?); write with { [type.googleapis.com/gaekju.catalog.v1.QuoteRequest] { … } })"},
{"ConstantBytesMalformed", Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC
  with { type_url: "type.googleapis.com/gaekju.catalog.v1.QuoteRequest" value: "\377" } })"),
 R"(5:3: step "quote": with cannot be read as gaekju.catalog.v1.QuoteRequest (is a text not UTF-8?); write with { [type.googleapis.com/gaekju.catalog.v1.QuoteRequest] { … } })"},
{"FieldThatNobodySupplies", Shop(R"(step { id: "pay" call: "payment.Capture" via: GRPC })"),
 R"(4:18: step "pay": its request needs amount (gaekju.type.v1.Money), and nothing supplies it. The order has: … Wait for a step that answers amount, or write with { [type.googleapis.com/gaekju.payment.v1.CaptureRequest] { amount: … } })"},
{"FieldThatAnotherStepAnswers", Shop(R"(step { id: "quote" call: "catalog.Quote" via: GRPC }
step { id: "pay" call: "payment.Capture" via: GRPC })"),
 R"(5:18: step "pay": its request needs amount (gaekju.type.v1.Money), and nothing supplies it. The order has: … Write after: "quote", which answers amount)"},
{"FieldThatOnlyALaterStepAnswers", Shop(R"(step { id: "pay" call: "payment.Capture" via: GRPC }
step { id: "quote" call: "catalog.Quote" via: GRPC after: "pay" })"),
 R"(4:18: step "pay": its request needs amount (gaekju.type.v1.Money), and nothing supplies it. The order has: … Wait for a step that answers amount, or write with { [type.googleapis.com/gaekju.payment.v1.CaptureRequest] { amount: … } })"},
{"FieldOfOtherTypeInAnswer", Shop(R"(step { id: "wrap" call: "gift.Wrap" via: GRPC }
step { id: "pay" call: "payment.Capture" via: GRPC after: "wrap" })"),
 R"(5:18: step "pay": its request needs amount (gaekju.type.v1.Money), and nothing supplies it. "wrap" answers amount as another type: int64. "wrap" answers: ribbon (string), amount (int64), paper (repeated int32). The order has: … Wait for a step that answers amount, or write with { [type.googleapis.com/gaekju.payment.v1.CaptureRequest] { amount: … } })"},
{"FieldOfOtherTypeInOrder", Shop(R"(step { id: "a" call: "gift.NeedsNumber" via: GRPC })"),
 R"(4:16: step "a": its request needs number (string), and nothing supplies it. The order has number as another type: int64. The order has: … Wait for a step that answers number, or write with { [type.googleapis.com/gaekju.gift.v1.NumberRequest] { number: … } })"},
{"FieldThatIsRepeatedInOrder", Shop(R"(step { id: "a" call: "gift.NeedsOneLine" via: GRPC })"),
 R"(4:16: step "a": its request needs lines (gaekju.type.v1.LineItem), and nothing supplies it. The order has lines as another type: repeated gaekju.type.v1.LineItem. The order has: … Wait for a step that answers lines, or write with { [type.googleapis.com/gaekju.gift.v1.LineRequest] { lines: … } })"},
{"FieldThatChanges", Shop(R"(step { id: "a" call: "gift.NeedsStatus" via: GRPC })"),
 R"(4:16: step "a": its request needs status_code (string), and nothing supplies it. The order's status_code changes while the order runs, and a step that is asked again must be told the same. The order has: … Wait for a step that answers status_code, or write with { [type.googleapis.com/gaekju.gift.v1.StatusRequest] { status_code: … } })"},
{"StatusWithoutWhen", After(R"(status { code: "X" text { ko: "x" en: "x" } })"),
 R"(8:1: status "X": says not when it holds; write stage: PLACED, done: "<step>" or undone: "<step>")"},
{"StatusOfUnknownStageNumber", After(R"(status { stage: 17 code: "X" text { ko: "x" en: "x" } })"),
 R"(8:10: status "X": this stage is unknown; write PLACED, COMPLETED, CANCELLING, CANCELLED or REJECTED)"},
{"StatusOfNoStage",
 After(R"(status { stage: STAGE_UNSPECIFIED code: "X" text { ko: "x" en: "x" } })"),
 R"(8:10: status "X": this stage is unknown; write PLACED, COMPLETED, CANCELLING, CANCELLED or REJECTED)"},
{"StatusDoneUnknown", After(R"(status { done: "pray" code: "X" text { ko: "x" en: "x" } })"),
 R"(8:10: status "X": done: unknown step "pray"; did you mean "pay"? There are: quote, pay)"},
{"StatusUndoneUnknown", After(R"(status { undone: "deliver" code: "X" text { ko: "x" en: "x" } })"),
 R"(8:10: status "X": undone: unknown step of place "deliver". place has: quote, pay)"},
{"StatusCodeEndsInUnderscore",
 After(R"(status { stage: PLACED code: "PLACED_" text { ko: "x" en: "x" } })"),
 R"(8:24: status "PLACED_": this code is not UPPER_SNAKE_CASE; write e.g. code: "ORDER_PLACED")"},
{"StatusDoneEmpty", After(R"(status { done: "" code: "X" text { ko: "x" en: "x" } })"),
 R"(8:10: status "X": done: unknown step "". There are: quote, pay)"},
{"StatusUndoneOfCancel", After(R"(cancel { step { id: "tell" call: "gift.Wrap" via: GRPC } }
status { undone: "tell" code: "X" text { ko: "x" en: "x" } })"),
 R"(9:10: status "X": undone: unknown step of place "tell". place has: quote, pay)"},
{"StatusUndoneOfNothing", After(R"(status { undone: "quote" code: "X" text { ko: "x" en: "x" } })"),
 R"(8:10: status "X": undone: "quote" has nothing to undo, so this never holds; leave it out)"},
{"StatusCodeMissing", After(R"(status { stage: PLACED text { ko: "x" en: "x" } })"),
 R"(8:1: status 1: code is missing; write code: "ORDER_PLACED", or what it is)"},
{"StatusCodeInSmallLetters",
 After(R"(status { stage: PLACED code: "OrderPlaced" text { ko: "x" en: "x" } })"),
 R"(8:24: status "OrderPlaced": this code is not UPPER_SNAKE_CASE; write e.g. code: "ORDER_PLACED")"},
{"StatusTextMissing", After(R"(status { stage: PLACED code: "X" })"),
 R"(8:1: status "X": text has no ko; write text { ko: "…" en: "…" })"},
{"StatusTextWithoutKorean", After(R"(status { stage: PLACED code: "X" text { en: "x" } })"),
 R"(8:34: status "X": text has no ko; write text { ko: "…" en: "…" })"},
{"StatusTextWithoutEnglish", After(R"(status { stage: PLACED code: "X" text { ko: "x" } })"),
 R"(8:34: status "X": text has no en; write text { ko: "…" en: "…" })"},
{"StatusTextNotUtf8", After(R"(status { stage: PLACED code: "X" text { ko: "\xff" en: "x" } })"),
 R"(8:34: status "X": text is not UTF-8; write the letters themselves)"},
{"NoticeWithoutId", After(Tell(R"(stage: PLACED)")),
 R"(8:1: notice 1: id is missing; write id: "…", a name of your own for this notice)"},
{"NoticeIdOfAStep", After(Tell(R"(id: "pay" stage: PLACED)")),
 R"(8:10: notice "pay": there is another step of this id in line 5; write another id)"},
{"NoticeIdTwice",
 After(absl::StrCat(Tell(R"(id: "tell" stage: PLACED)"), "\n", Tell(R"(id: "tell" stage: COMPLETED)"))),
 R"(9:10: notice "tell": there is another notice of this id in line 8; write another id)"},
{"UndoBeforeARefusal", After(R"(cancel {
  step { id: "ask" call: "gift.Wrap" via: GRPC }
  step { id: "told" call: "gift.Wrap" via: GRPC after: "pay" }
  step { undo: "pay" }
})"),
 R"(11:10: undo "pay": does not wait for step "ask", which may still refuse the cancel: what is taken back would be taken back all the same; write after: "ask")"},
{"GoodsKept", Shop(QuotePay(R"(step { id: "ship" call: "delivery.Start" via: JETSTREAM after: "pay" }
  step { id: "receive" call: "delivery.AwaitReceipt" via: JETSTREAM after: "ship" })"), R"(cancel {
  unless_done: "receive"
  step { undo: "pay" } })"),
 R"(9:1: cancel: goods kept: a person answers "receive", and the order hears of it later; a cancel in between would give back what the person has. Close it first: write step { id: "close-receive" call: "delivery.CloseReceipt" via: JETSTREAM with { [type.googleapis.com/gaekju.delivery.v1.CloseReceiptRequest] { shipment_step_id: "…" } } }, and let every undo wait for it (after))"},
{"GoodsClosedTooLate", Shop(QuotePay(R"(step { id: "ship" call: "delivery.Start" via: JETSTREAM after: "pay" }
  step { id: "receive" call: "delivery.AwaitReceipt" via: JETSTREAM after: "ship" })"), R"(cancel {
  step { id: "close" call: "delivery.CloseReceipt" via: JETSTREAM after: "ship" with { [type.googleapis.com/gaekju.delivery.v1.CloseReceiptRequest] { shipment_step_id: "ship" } } }
  step { undo: "ship" } })"),
 R"(9:1: cancel: goods kept: a person answers "receive", and the order hears of it later; a cancel in between would give back what the person has. It is closed too late, after an undo; write step { id: "close-receive" call: "delivery.CloseReceipt" via: JETSTREAM with { [type.googleapis.com/gaekju.delivery.v1.CloseReceiptRequest] { shipment_step_id: "…" } } }, and let every undo wait for it (after))"},
{"WordsOfPlaceBehindThoseOfCancel", Shop(QuotePay(R"(step { id: "deliver" call: "delivery.Start" via: JETSTREAM after: "pay" })"), R"(cancel { unless_done: "deliver" step { undo: "pay" } }
status { stage: CANCELLED code: "DEAD" text { ko: "x" en: "Dead" } }
status { done: "deliver" code: "SENT" text { ko: "x" en: "Sent" } }
status { done: "pay" code: "PAID" text { ko: "x" en: "Paid" } })"),
 R"(11:1: status "PAID": a cancelled order would still read "Paid", because the last word that holds is shown; move this above status "DEAD")"},
{"NoticeWithoutWhen", After(Tell(R"(id: "tell")")),
 R"(8:1: notice "tell": says not when it holds; write stage: PLACED, done: "<step>" or undone: "<step>")"},
{"NoticeOfNoStage", After(Tell(R"(id: "tell" stage: STAGE_UNSPECIFIED)")),
 R"(8:21: notice "tell": this stage is unknown; write PLACED, COMPLETED, CANCELLING, CANCELLED or REJECTED)"},
{"NoticeDoneUnknown", After(Tell(R"(id: "tell" done: "pray")")),
 R"(8:21: notice "tell": done: unknown step "pray"; did you mean "pay"? There are: quote, pay)"},
{"NoticeOfANotice",
 After(absl::StrCat(Tell(R"(id: "a" stage: PLACED)"), "\n", Tell(R"(id: "b" done: "a")"))),
 R"(9:18: notice "b": done: unknown step "a"; did you mean "pay"? There are: quote, pay)"},
{"NoticeUndoneOfNothing", After(Tell(R"(id: "tell" undone: "quote")")),
 R"(8:21: notice "tell": undone: "quote" has nothing to undo, so this never holds; leave it out)"},
{"NoticeOfRefusedOrdersThatHaveNeverBeen", After(Tell(R"(id: "tell" stage: REJECTED)")),
 R"(8:21: notice "tell": stage: refused orders have never been in this storefront, so nobody is told of them; write a status word for stage: REJECTED, or leave this out)"},
{"NoticeUnknownCall", After(R"(notice { id: "tell" stage: PLACED call: "gift.Tye" })"),
 R"(8:35: notice "tell": unknown call "gift.Tye"; did you mean "gift.Tie"? It has: Wrap, Tie, NeedsNumber, NeedsOneLine, NeedsStatus, NoIds, UndoUnknown, UndoNeedsMore, SaysNothing, SaysBoth, Streams)"},
{"NoticeThatTakesSomething",
 After(R"(notice { id: "tell" stage: PLACED call: "catalog.Reserve" })"),
 R"(8:35: notice "tell": call "catalog.Reserve" takes something, which "Release" takes back; a notice takes nothing: write a step of place or cancel)"},
{"NoticeWithoutText", After(R"(notice { id: "tell" stage: PLACED })"),
 R"(8:1: notice "tell": its request needs text (gaekju.type.v1.LocalizedText), and nothing supplies it. The order has: … Tell of a step of place that answers text, or write with { [type.googleapis.com/gaekju.notification.v1.NotifyRequest] { text: … } })"},
{"NoticeOfFieldThatAStepAnswers",
 Shop(QuotePay(R"(step { id: "wrap" call: "gift.Wrap" via: JETSTREAM })"), R"(notice { id: "tell" stage: PLACED call: "gift.Tie" })"),
 R"(8:35: notice "tell": its request needs ribbon (string), and nothing supplies it. The order has: … Write done: "wrap", which answers ribbon)"},
{"NoticeOfStepOfCancelIsNotToldItsAnswer", After(R"(cancel { step { id: "wrap" call: "gift.Wrap" via: GRPC } }
notice { id: "tell" done: "wrap" call: "gift.Tie" })"),
 R"(9:34: notice "tell": its request needs ribbon (string), and nothing supplies it. The order has: … Tell of a step of place that answers ribbon, or write with { [type.googleapis.com/gaekju.gift.v1.TieRequest] { ribbon: … } })"},
{"NoticeWithOtherConstants",
 After(R"(notice { id: "tell" stage: PLACED with { [type.googleapis.com/gaekju.gift.v1.TieRequest] { ribbon: "r" } } })"),
 R"(8:1: notice "tell": its request needs text (gaekju.type.v1.LocalizedText), and nothing supplies it. The order has: … Tell of a step of place that answers text, or write with { [type.googleapis.com/gaekju.notification.v1.NotifyRequest] { text: … } }
8:35: notice "tell": with has the type "type.googleapis.com/gaekju.gift.v1.TieRequest"; write with { [type.googleapis.com/gaekju.notification.v1.NotifyRequest] { … } })"},
{"AfterANotice",
 Shop(QuotePay(R"(step { id: "deliver" call: "delivery.Start" via: JETSTREAM after: "tell" })"), Tell(R"(id: "tell" stage: PLACED)")),
 R"(6:60: step "deliver": after: "tell" is a notice, which nobody waits for; make it a step, or leave it out)"},
{"UnlessDoneUnknown", After(R"(cancel { unless_done: "pray" step { undo: "pay" } })"),
 R"(8:10: unless_done: unknown step of place "pray"; did you mean "pay"? place has: quote, pay)"},
{"UnlessDoneTwice",
 After(R"(cancel { unless_done: "pay" step { undo: "pay" } unless_done: "pay" })"),
 R"(8:50: unless_done: "pay" is named twice; leave one out)"},
{"UnlessDoneInPlace", R"(id: "shop" currency_code: "KRW"
place { unless_done: "quote" step { id: "quote" call: "catalog.Quote" via: GRPC } })",
 R"(2:9: unless_done stands in cancel only; leave it out)"},
{"TryLaterWithoutEnglish", R"(id: "shop" currency_code: "KRW"
place { try_later { ko: "x" } step { id: "quote" call: "catalog.Quote" via: GRPC } })",
 R"(2:9: try_later has no en; write try_later { ko: "…" en: "…" })"},
{"TryLaterNotUtf8", R"(id: "shop" currency_code: "KRW"
place { try_later { ko: "x" en: "\xff" } step { id: "quote" call: "catalog.Quote" via: GRPC } })",
 R"(2:9: try_later is not UTF-8; write the letters themselves)"},
{"TryLaterThatIsNeverTold",
 After(R"(cancel { try_later { ko: "x" en: "x" } step { undo: "pay" via: GRPC } })"),
 R"(8:10: try_later: the caller waits for no step of cancel that fails when it cannot be reached; leave it out)"},
{"FromUnknownField", Shop(From(R"(field: "amont" order: "expected_total")")),
 R"(4:18: step "pay": its request needs amount (gaekju.type.v1.Money), and nothing supplies it. The order has: … Wait for a step that answers amount, or write with { [type.googleapis.com/gaekju.payment.v1.CaptureRequest] { amount: … } }
4:59: step "pay": from: unknown field "amont"; did you mean "amount"? CaptureRequest has: customer_id, amount, payment_method, missing_method)"},
{"FromUnknownOrderField", Shop(From(R"(field: "amount" order: "expected_totl")")),
 R"(4:75: step "pay": from: the order has no "expected_totl"; did you mean "expected_total"? Of type gaekju.type.v1.Money it has: expected_total)"},
{"FromOfOtherType", Shop(From(R"(field: "amount" order: "number")")),
 R"(4:75: step "pay": from: the order's number is int64, but amount is gaekju.type.v1.Money)"},
{"FromThatChanges", Shop(From(R"(field: "amount" order: "total")")),
 R"(4:75: step "pay": from: the order's total changes while the order runs, and a step that is asked again must be told the same; leave it out)"},
{"FromTwice",
 Shop(From(R"(field: "amount" order: "expected_total" } from { field: "amount" order: "expected_total")")),
 R"(4:108: step "pay": from: "amount" is filled twice; leave one out)"},
{"FromOfTheSaga",
 Shop(From(R"(field: "amount" order: "expected_total" } from { field: "order_id" order: "customer_id")")),
 R"(4:108: step "pay": from: order_id is given by the saga; leave it out)"},
{"FromOfAnUndo",
 After(R"(cancel { step { undo: "pay" from { field: "amount" order: "expected_total" } } })"),
 R"(8:29: undo "pay": an undo is told only its order and step; leave from out)"},
{"SeveralMistakes", R"(id: "Shop"
currency_code: "won"
place {
  step { id: "quote" call: "catalog.Qoute" via: GRPC }
  step { id: "pay" call: "payment.Capture" after: "quote" }
  step { id: "deliver" call: "delivery.Start" via: GRPC after: "pay" deadline { seconds: 90 } }
}
status { stage: PLACED code: "placed" text { ko: "주문" } })",
 R"(1:1: id "Shop" will not do; write 1 to 32 lower-case letters, digits and dashes: id: "shop"
2:1: currency_code "won": write the three capital letters of an ISO 4217 code, e.g. "KRW"
4:22: step "quote": unknown call "catalog.Qoute"; did you mean "catalog.Quote"? It has: Quote, Reserve
5:3: step "pay": via is missing; write via: GRPC (a call) or via: JETSTREAM (a command, nobody waits)
6:70: step "deliver": deadline has to be from 10 ms to 60 s; write e.g. deadline { seconds: 2 }
8:24: status "placed": this code is not UPPER_SNAKE_CASE; write e.g. code: "ORDER_PLACED"
8:39: status "placed": text has no en; write text { ko: "…" en: "…" })"},
{"MistakesStandInTheOrderOfTheText", R"(status { stage: PLACED code: "placed" text { ko: "주문" en: "Placed" } }
cancel { step { undo: "pay" } }
place { step { id: "quote" call: "catalog.Qoute" via: GRPC } }
id: "Shop" currency_code: "KRW")",
 R"(1:24: status "placed": this code is not UPPER_SNAKE_CASE; write e.g. code: "ORDER_PLACED"
2:17: undo "pay": there is no such step in place. place has: quote
3:28: step "quote": unknown call "catalog.Qoute"; did you mean "catalog.Quote"? It has: Quote, Reserve
4:1: id "Shop" will not do; write 1 to 32 lower-case letters, digits and dashes: id: "shop")"},
{"TabsCountToEight", R"(id: "shop" currency_code: "KRW"
place {
	step { id: "quote"	call: "catalog.Qoute" via: GRPC }
})",
 R"(3:33: step "quote": unknown call "catalog.Qoute"; did you mean "catalog.Quote"? It has: Quote, Reserve)"},
};
// clang-format on

// ---- mistakes

// The lists of what the order has and of which contexts there are would change with every field of
// Order and every context; a test each has them.
std::string WithoutLists(const std::string& error) {
  return std::regex_replace(
      std::regex_replace(error, std::regex("The order has: [^.]*(\\.[a-zA-Z][^.]*)*\\. "),
                         "The order has: … "),
      std::regex("(unknown context .* There are: ).*"), "$1…");
}

class StorefrontMistake : public testing::TestWithParam<Mistake> {};

TEST_P(StorefrontMistake, IsToldWithItsPlace) {
  const absl::StatusOr<Plan> plan = ParseStorefront(GetParam().text, "shop.textproto", GiftPool());
  ASSERT_FALSE(plan.ok()) << GetParam().text;
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string error = WithoutLists(std::string(plan.status().message()));
  EXPECT_EQ(absl::StrReplaceAll(error, {{"shop.textproto:", ""}}), GetParam().error)
      << GetParam().text;
  for (absl::string_view line : absl::StrSplit(error, '\n')) {
    EXPECT_TRUE(absl::StartsWith(line, "shop.textproto:")) << line;
  }
}

INSTANTIATE_TEST_SUITE_P(, StorefrontMistake, testing::ValuesIn(kMistakes),
                         [](const auto& row) { return row.param.name; });

TEST(StorefrontMistakes, OfAContextListThoseThatAreLinkedIn) {
  const auto plan =
      ParseStorefront(Shop(R"(step { id: "pay" call: "telepathy.Send" via: GRPC })"), "");
  ASSERT_FALSE(plan.ok());
  EXPECT_THAT(std::string(plan.status().message()),
              testing::ContainsRegex("There are: .*catalog, .*delivery, .*payment, store"));
}

TEST(StorefrontMistakes, OfARequiredFieldListWhatThereIs) {
  const auto plan = ParseStorefront(Shop(kPay), "shop.textproto");
  ASSERT_FALSE(plan.ok());
  const auto lone =
      ParseStorefront(Shop(R"(step { id: "pay" call: "payment.Capture" via: GRPC })"), "");
  ASSERT_FALSE(lone.ok());
  EXPECT_THAT(
      std::string(lone.status().message()),
      testing::AllOf(testing::StartsWith("storefront:4:18: step \"pay\": its request needs amount"),
                     testing::HasSubstr("customer_id (string), "),
                     testing::HasSubstr("lines (repeated gaekju.type.v1.LineItem), "),
                     testing::Not(testing::HasSubstr("status_code")),
                     testing::Not(testing::HasSubstr(" total "))));
}

TEST(StorefrontMistakes, NameTheFileAsItWasGiven) {
  const auto plan = ParseStorefront("id: \"x\"", "some/folder/shop.textproto");
  EXPECT_THAT(std::string(plan.status().message()),
              testing::StartsWith("some/folder/shop.textproto:1:1: id \"x\" is not"));
}

TEST(StorefrontMistakes, OfEncodingAreTold) {
  const auto plan = ParseStorefront("id: \"shop\"\n# caf\xe9\n", "shop.textproto");
  EXPECT_EQ(plan.status().message(),
            "shop.textproto:2:6: this is not UTF-8; save the file as UTF-8");
  for (absl::string_view bad : {"\xc0\xaf", "\xe0\x80\x80", "\xed\xa0\x80", "\xf0\x80\x80\x80",
                                "\xf4\x90\x80\x80", "\xf5", "\xe1\x80", "\xe1\x80z", "\xc3"}) {
    EXPECT_THAT(std::string(ParseStorefront(absl::StrCat("#", bad), "").status().message()),
                testing::StartsWith("storefront:1:2: this is not UTF-8"));
  }
  for (absl::string_view good : {"é", "객주", "😀", "\xf4\x8f\xbf\xbf", "\xed\x9f\xbf"}) {
    EXPECT_THAT(std::string(ParseStorefront(absl::StrCat("#", good), "").status().message()),
                testing::StartsWith("storefront:1:1: id is missing"));
  }
}

TEST(StorefrontMistakes, OfSizeAreTold) {
  EXPECT_EQ(ParseStorefront(std::string(kStorefrontBytes_max + 1, '\n'), "").status().message(),
            "storefront:1:1: the file has 262145 bytes; at most 262144");
  std::string steps, words, names;
  for (int i = 0; i < 101; ++i) {
    absl::StrAppend(&steps, "step { id: \"s", i, "\" call: \"catalog.Quote\" via: GRPC }\n");
    absl::StrAppend(&words, "status { stage: PLACED code: \"X\" text { ko: \"x\" en: \"x\" } }\n");
    absl::StrAppend(&names, " after: \"x\"");
  }
  EXPECT_EQ(ParseStorefront(Shop(steps, words), "").status().message(),
            "storefront:1:1: place and cancel have 101 steps; at most 100\n"
            "storefront:1:1: there are 101 status words; at most 100");
  EXPECT_EQ(
      ParseStorefront(
          Shop(absl::StrCat("step { id: \"a\" call: \"catalog.Quote\" via: GRPC", names, " }")), "")
          .status()
          .message(),
      "storefront:4:48: step \"a\": after names 101 steps; at most 100");
  std::string unknown;
  for (int i = 0; i < 300; ++i) absl::StrAppend(&unknown, "a: 1\n");
  const auto many = ParseStorefront(unknown, "");
  EXPECT_THAT(std::string(many.status().message()),
              testing::EndsWith("\nstorefront: and 200 more"));
}

TEST(StorefrontMistakes, OfDepthAreTold) {
  for (const char* level :
       {"a {", "a <", "x: [", "with { [type.googleapis.com/google.protobuf.Any] "}) {
    std::string text = "id: \"{{{\" # {{{\n";
    while (text.size() < kStorefrontBytes_max - 100) text += level;
    EXPECT_THAT(
        std::string(ParseStorefront(text, "").status().message()),
        testing::MatchesRegex("storefront:2:[0-9]+: this is nested too deep; at most 64 levels"));
  }
  // Within the limit, the parser has the word.
  std::string text;
  for (int i = 0; i < 64; ++i) text += "x {";
  EXPECT_THAT(std::string(ParseStorefront(text, "").status().message()),
              testing::HasSubstr("unknown field \"x\""));
  EXPECT_THAT(std::string(ParseStorefront("id: '\\'{' # }", "").status().message()),
              testing::HasSubstr("will not do"));
}

// ---- good files

std::string Names(const Plan& plan, const std::vector<int>& steps) {
  std::vector<std::string> names;
  for (int i : steps) names.push_back(plan.steps.at(i).id);
  return absl::StrJoin(names, ",");
}

std::string WhenOf(const Plan& plan, const PlanTrigger& when) {
  return when.done >= 0     ? "done " + plan.steps.at(when.done).id
         : when.undone >= 0 ? "undone " + plan.steps.at(when.undone).id
                            : v1::Stage_Name(when.stage);
}

// A plan as text, one step, undo, word or notice a line.
std::string Dump(const Plan& plan) {
  std::vector<std::string> lines = {absl::StrCat(
      plan.storefront, " ", plan.currency_code, " place=", plan.place_count,
      plan.has_cancel ? " cancel" : "", plan.rejected_is_readable ? " rejected_is_readable" : "")};
  for (const PlanStep& step : plan.steps) {
    std::vector<std::string> copies;
    for (const FieldCopy& copy : step.copies) {
      copies.push_back(absl::StrCat(
          copy.target->name(), "<",
          copy.from == FieldCopy::From::kOrder ? "order" : plan.steps.at(copy.step).id,
          copy.source->name() == copy.target->name() ? ""
                                                     : absl::StrCat(".", copy.source->name())));
      EXPECT_EQ(copy.target->containing_type(), step.request);
    }
    EXPECT_EQ(step.undo_request == nullptr, step.undo_method.empty());
    EXPECT_EQ(step.undo_response == nullptr, step.undo_method.empty());
    lines.push_back(absl::StrCat(
        step.is_notice   ? absl::StrCat("notice ", WhenOf(plan, step.when), " ")
        : step.in_cancel ? "cancel "
                         : "place ",
        step.id, " ", step.context, " ", step.method, " undo=", step.undo_method, " ",
        v1::Via_Name(step.via), step.buyer_waits ? " waits" : "",
        step.fail_on_unavailable ? " fails" : "", " ", step.deadline_us, "us",
        step.expires_after_us > 0 ? absl::StrCat(" expires=", step.expires_after_us, "us") : "",
        " after=", Names(plan, step.after), " after_undo=", Names(plan, step.after_undo), " ",
        absl::StrJoin(copies, ","), step.constants.empty() ? "" : " with"));
  }
  for (const PlanUndo& undo : plan.cancel_undos) {
    lines.push_back(absl::StrCat("undo ", plan.steps.at(undo.step).id, " ", v1::Via_Name(undo.via),
                                 undo.buyer_waits ? " waits" : "",
                                 " after=", Names(plan, undo.after),
                                 " after_undo=", Names(plan, undo.after_undo)));
  }
  for (const PlanStatus& status : plan.statuses) {
    lines.push_back(absl::StrCat("status ", WhenOf(plan, status.when), " ", status.code, " ",
                                 status.ko, " ", status.en));
  }
  return absl::StrJoin(lines, "\n") + "\n";
}

Plan Good(const std::string& text, const std::string& file_name = "",
          const DescriptorPool& pool = GiftPool()) {
  absl::StatusOr<Plan> plan = ParseStorefront(text, file_name, pool);
  EXPECT_TRUE(plan.ok()) << plan.status().message();
  return plan.ok() ? *std::move(plan) : Plan();
}

TEST(Storefront, FashionIsThisPlan) {
  const Plan plan =
      Good(ReadFile("storefronts/fashion.textproto"), "storefronts/fashion.textproto");
  EXPECT_EQ(Dump(plan),
            R"(fashion KRW place=4 cancel
place quote catalog gaekju.catalog.v1.CatalogService.Quote undo= GRPC waits fails 2000000us after= after_undo= lines<order,currency_code<order,expected_total<order
place pay payment gaekju.payment.v1.PaymentService.Capture undo=gaekju.payment.v1.PaymentService.Refund GRPC waits fails 2000000us after=quote after_undo= customer_id<order,payment_method<order,amount<quote
place accept store gaekju.store.v1.StoreService.AcceptOrder undo=gaekju.store.v1.StoreService.CancelAcceptance JETSTREAM 2000000us after=pay after_undo= storefront<order,lines<quote with
place deliver delivery gaekju.delivery.v1.DeliveryService.Start undo=gaekju.delivery.v1.DeliveryService.Cancel JETSTREAM 2000000us after=accept after_undo= storefront<order,customer_id<order,customer_name<order,delivery_address<order,lines<quote
undo accept JETSTREAM after= after_undo=
undo deliver JETSTREAM after= after_undo=accept
undo pay JETSTREAM after= after_undo=
status PLACED ORDER_PLACED 주문 OrderPlaced
status done accept STORE_ACCEPTED 점주승인 StoreAccepted
status done deliver DELIVERY_STARTED 배달시작 DeliveryStarted
status CANCELLING ORDER_CANCELLED 주문취소 OrderCancelled
status undone accept STORE_CANCELLED 취소승인 StoreCancelled
status undone deliver DELIVERY_CANCELLED 배달취소 DeliveryCancelled
)");
  store::v1::AcceptOrderRequest constants;
  ASSERT_TRUE(constants.ParseFromString(plan.steps[2].constants));
  EXPECT_EQ(constants.acceptance(), store::v1::CONFIRMATION_AUTOMATIC);
  EXPECT_EQ(constants.cancel_confirmation(), store::v1::CONFIRMATION_AUTOMATIC);
}

TEST(Storefront, TheRequestResponseVariantWaitsForTheParcel) {
  const Plan plan = Good(ReadFile("tests/storefronts/fashion-reqres.textproto"),
                         "tests/storefronts/fashion-reqres.textproto");
  ASSERT_EQ(plan.steps.size(), 3u);
  EXPECT_EQ(plan.steps[2].method, "gaekju.delivery.v1.DeliveryService.Start");
  EXPECT_TRUE(plan.steps[2].buyer_waits);
  EXPECT_TRUE(plan.steps[2].fail_on_unavailable);
  EXPECT_EQ(Names(plan, plan.steps[2].after), "pay");
}

TEST(Storefront, TheBenchDoesTheWorkOfItsPeersAndTakesItBack) {
  const Plan plan =
      Good(ReadFile("bench/storefronts/bench.textproto"), "bench/storefronts/bench.textproto");
  std::vector<std::string> steps;
  for (const PlanStep& step : plan.steps)
    steps.push_back(absl::StrCat(step.id, step.buyer_waits ? "!" : ""));
  EXPECT_EQ(absl::StrJoin(steps, " "), "reserve! pay! accept deliver");
  EXPECT_EQ(plan.cancel_undos.size(), 4u);
}

TEST(Storefront, EveryFileInStorefrontsIsGood) {
  int count = 0;
  for (const char* folder : {"storefronts", "bench/storefronts"}) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().extension() != ".textproto") continue;
      ++count;
      const auto plan = ParseStorefront(ReadFile(entry.path()), entry.path().string());
      EXPECT_TRUE(plan.ok()) << plan.status().message();
    }
  }
  EXPECT_GE(count, 2);
}

// The example of storefronts/README.md and the mistake it shows.
TEST(Storefront, TheReadmeTellsTheTruth) {
  std::string example, mistake;
  for (const std::string& line :
       std::vector<std::string>(absl::StrSplit(ReadFile("storefronts/README.md"), '\n'))) {
    if (!absl::StartsWith(line, "    ") && !line.empty()) continue;
    if (absl::StartsWith(line, "    storefronts/")) {
      mistake = line.substr(4);
    } else if (!example.empty() || !line.empty()) {
      absl::StrAppend(&example, line.empty() ? line : line.substr(4), "\n");
    }
  }
  EXPECT_EQ(Good(example, "storefronts/mealkit.textproto").steps.size(), 4u);
  const auto plan =
      ParseStorefront(absl::StrReplaceAll(example, {{"payment.Capture", "payment.Captur"}}),
                      "storefronts/mealkit.textproto");
  EXPECT_EQ(plan.status().message(), mistake);
}

// Everything that a file may say, and each default.
constexpr char kEverything[] = R"(
  place {
    step { id: "quote" call: "gaekju.catalog.v1.CatalogService.Quote" via: GRPC deadline { nanos: 10000000 } on_unavailable: FAIL }
    step { id: "wrap" call: "gift.Wrap" via: GRPC after: ["quote"] on_unavailable: DEFER deadline { seconds: 60 }
           with { [type.googleapis.com/gaekju.gift.v1.WrapRequest] { note: "to Mina" storefront: "" } } }
    step { id: "ask" call: "store.AcceptOrder" via: JETSTREAM after: "quote" expires_after { seconds: 1800 nanos: 1500 } }
    step { id: "pay" call: "payment.Capture" via: GRPC after: "wrap" after: "ask" }
    step { id: "tie" call: "gift.Tie" via: JETSTREAM after: "pay" }
    step { id: "check" call: "catalog.Quote" via: GRPC }
  }
  cancel {
    step { id: "tell" call: "catalog.Quote" via: GRPC }
    step { undo: "wrap" via: GRPC after: "tell" }
    step { undo: "pay" via: GRPC after: "ask" }
    step { id: "told" call: "gift.Tie" via: GRPC after: "wrap" with { [type.googleapis.com/gaekju.gift.v1.TieRequest] { ribbon: "r" } } }
    step { id: "late" call: "catalog.Quote" via: GRPC after: "pay" after: "told" }
    step { undo: "ask" via: JETSTREAM on_unavailable: ON_UNAVAILABLE_UNSPECIFIED }
  }
  status { stage: REJECTED code: "NO" text { ko: "예약불가" en: "No" } }
  status { done: "told" code: "TOLD_2" text { ko: "전달" en: "Told" } }
)";

TEST(Storefront, EverythingThatAFileMaySayIsThisPlan) {
  // As a stored revision: no undo waits for "tell", which a file is not forgiven.
  const Plan plan = Good(absl::StrCat("id: \"every-1\" currency_code: \"USD\"", kEverything), "");
  EXPECT_EQ(Dump(plan),
            R"(every-1 USD place=6 cancel rejected_is_readable
place quote catalog gaekju.catalog.v1.CatalogService.Quote undo= GRPC waits fails 10000us after= after_undo= lines<order,currency_code<order,expected_total<order
place wrap gift gaekju.gift.v1.GiftService.Wrap undo=gaekju.gift.v1.GiftService.Unwrap GRPC waits 60000000us after=quote after_undo= customer_name<order,lines<quote with
place ask store gaekju.store.v1.StoreService.AcceptOrder undo=gaekju.store.v1.StoreService.CancelAcceptance JETSTREAM 2000000us expires=1800000001us after=quote after_undo= storefront<order,lines<quote
place pay payment gaekju.payment.v1.PaymentService.Capture undo=gaekju.payment.v1.PaymentService.Refund GRPC 2000000us after=wrap,ask after_undo= customer_id<order,payment_method<order,amount<quote
place tie gift gaekju.gift.v1.GiftService.Tie undo= JETSTREAM 2000000us after=pay after_undo= ribbon<wrap,paper<wrap
place check catalog gaekju.catalog.v1.CatalogService.Quote undo= GRPC waits fails 2000000us after= after_undo= lines<order,currency_code<order,expected_total<order
cancel tell catalog gaekju.catalog.v1.CatalogService.Quote undo= GRPC waits fails 2000000us after= after_undo= lines<order,currency_code<order,expected_total<order
cancel told gift gaekju.gift.v1.GiftService.Tie undo= GRPC waits fails 2000000us after= after_undo=wrap  with
cancel late catalog gaekju.catalog.v1.CatalogService.Quote undo= GRPC 2000000us after=told after_undo=pay lines<order,currency_code<order,expected_total<order
undo wrap GRPC waits after=tell after_undo=
undo pay GRPC after= after_undo=ask
undo ask JETSTREAM after= after_undo=
status REJECTED NO 예약불가 No
status done told TOLD_2 전달 Told
)");
}

// Notices, and what a flow says as a whole.
constexpr char kTelling[] = R"(
  id: "tell" currency_code: "KRW"
  place {
    try_later { ko: "잠시 후" en: "Later" }
    step { id: "pay" call: "payment.Capture" via: GRPC from { field: "amount" order: "expected_total" } }
    step { id: "wrap" call: "gift.Wrap" via: JETSTREAM after: "pay" with { [type.googleapis.com/gaekju.gift.v1.WrapRequest] { note: "n" } } from { field: "note" order: "delivery_address" } }
    step { id: "deliver" call: "delivery.Start" via: JETSTREAM after: "wrap" }
    step { id: "receive" call: "delivery.AwaitReceipt" via: JETSTREAM after: "deliver" }
  }
  cancel {
    unless_done: ["receive", "deliver"]
    try_later { ko: "나중에" en: "Not now" }
    step { id: "ask" call: "gift.Tie" via: GRPC with { [type.googleapis.com/gaekju.gift.v1.TieRequest] { ribbon: "r" } } }
    step { undo: "pay" after: "ask" }
  }
  status { stage: REJECTED code: "NO" text { ko: "예약불가" en: "No" } }
  notice { id: "a" stage: REJECTED with { [type.googleapis.com/gaekju.notification.v1.NotifyRequest] { code: "A" text { ko: "ㄱ" en: "a" } } } }
  notice { id: "b" done: "deliver" call: "gift.Tie" }
  notice { id: "c" undone: "pay" call: "gift.Tie" with { [type.googleapis.com/gaekju.gift.v1.TieRequest] { ribbon: "r" } } }
  notice { id: "d" done: "ask" call: "gift.Tie" with { [type.googleapis.com/gaekju.gift.v1.TieRequest] { ribbon: "r" } } }
)";

TEST(Storefront, NoticesAreStepsThatComeAfterTheFlowsAndAreToldWhatTheirStepsKnow) {
  const Plan plan = Good(kTelling);
  EXPECT_EQ(plan.notice_count, 4);
  EXPECT_EQ(plan.flow_count(), 5);
  EXPECT_EQ(Dump(plan),
            R"(tell KRW place=4 cancel rejected_is_readable
place pay payment gaekju.payment.v1.PaymentService.Capture undo=gaekju.payment.v1.PaymentService.Refund GRPC waits fails 2000000us after= after_undo= customer_id<order,amount<order.expected_total,payment_method<order
place wrap gift gaekju.gift.v1.GiftService.Wrap undo=gaekju.gift.v1.GiftService.Unwrap JETSTREAM 2000000us after=pay after_undo= lines<order,storefront<order,customer_name<order with
place deliver delivery gaekju.delivery.v1.DeliveryService.Start undo=gaekju.delivery.v1.DeliveryService.Cancel JETSTREAM 2000000us after=wrap after_undo= storefront<order,customer_id<order,customer_name<order,delivery_address<order,lines<order
place receive delivery gaekju.delivery.v1.DeliveryService.AwaitReceipt undo= JETSTREAM 2000000us after=deliver after_undo= delivery_id<deliver
cancel ask gift gaekju.gift.v1.GiftService.Tie undo= GRPC waits fails 2000000us after= after_undo=  with
notice REJECTED a notification gaekju.notification.v1.NotificationService.Notify undo= JETSTREAM 2000000us after= after_undo= storefront<order,number<order,customer_id<order,customer_name<order,lines<order with
notice done deliver b gift gaekju.gift.v1.GiftService.Tie undo= JETSTREAM 2000000us after= after_undo= ribbon<wrap,paper<wrap
notice undone pay c gift gaekju.gift.v1.GiftService.Tie undo= JETSTREAM 2000000us after= after_undo=  with
notice done ask d gift gaekju.gift.v1.GiftService.Tie undo= JETSTREAM 2000000us after= after_undo=  with
undo pay JETSTREAM after=ask after_undo=
status REJECTED NO 예약불가 No
)");
  EXPECT_EQ(Names(plan, plan.unless_done), "receive,deliver");
  EXPECT_EQ(plan.place_try_later.ko(), "잠시 후");
  EXPECT_EQ(plan.place_try_later.en(), "Later");
  EXPECT_EQ(plan.cancel_try_later.ko(), "나중에");
  EXPECT_EQ(plan.cancel_try_later.en(), "Not now");
}

TEST(Storefront, KnowsWhatTheBuyerHasToGive) {
  const Plan plan = Good(kTelling);
  std::vector<std::string> inputs;
  for (const PlanInput& input : plan.inputs)
    inputs.push_back(absl::StrCat(input.field->name(), "<", input.step));
  EXPECT_EQ(
      absl::StrJoin(inputs, " "),
      "storefront<deliver customer_id<pay customer_name<wrap lines<deliver expected_total<pay");
}

TEST(Storefront, WithoutCancelOrWordsIsAPlanToo) {
  EXPECT_EQ(Dump(Good(Shop(kQuote), "shop.textproto")),
            "shop KRW place=1\nplace quote catalog gaekju.catalog.v1.CatalogService.Quote undo= "
            "GRPC waits fails 2000000us after= "
            "after_undo= lines<order,currency_code<order,expected_total<order\n");
  EXPECT_TRUE(Good(Shop(kQuote, "cancel {}")).has_cancel);
}

TEST(Storefront, MayBeginWithAByteOrderMarkAndEndLinesWithCarriageReturns) {
  const std::string text = absl::StrReplaceAll(Shop(QuotePay("")), {{"\n", "\r\n"}});
  EXPECT_EQ(Dump(Good("\xef\xbb\xbf" + text)), Dump(Good(Shop(QuotePay("")))));
  const auto bad =
      ParseStorefront("\xef\xbb\xbfid: \"shop\" currency_code: \"k\"\r\nplace { step { " +
                          std::string(kQuote).substr(7) + " }",
                      "");
  EXPECT_EQ(bad.status().message().substr(0, 33), "storefront:1:12: currency_code \"k");
}

TEST(Storefront, ARevisionIsAHashOfTheText) {
  const std::string text = Shop(kQuote);
  const Plan plan = Good(text);
  EXPECT_EQ(plan.revision.size(), 16u);
  EXPECT_EQ(plan.revision, Good(text, "shop.textproto").revision);
  EXPECT_NE(plan.revision, Good(text + "# a word\n").revision);
  // FNV-1a of "a" is a published value (draft-eastlake-fnv); leading zeros stay.
  EXPECT_EQ(FingerprintBytes("a"), 0xaf63dc4c8601ec8cu);
  std::string with_zero = text;
  while (FingerprintBytes(with_zero) >> 60 != 0) with_zero += "#\n";
  EXPECT_EQ(Good(with_zero).revision.size(), 16u);
  EXPECT_EQ(Good(with_zero).revision[0], '0');
}

// The contexts as a descriptor set that is loaded at start has them: nothing shared with what is
// linked in.
const DescriptorPool& SeparatePool() {
  static const DescriptorPool* pool = [] {
    auto* made = new DescriptorPool();
    std::function<void(const google::protobuf::FileDescriptor&)> add =
        [&](const google::protobuf::FileDescriptor& file) {
          if (made->FindFileByName(std::string(file.name())) != nullptr) return;
          for (int i = 0; i < file.dependency_count(); ++i) add(*file.dependency(i));
          google::protobuf::FileDescriptorProto proto;
          file.CopyTo(&proto);
          GK_CHECK(made->BuildFile(proto) != nullptr) << file.name();
        };
    add(*GiftPool().FindFileByName("gaekju/gift/v1/gift_service.proto"));
    for (const char* service : {"catalog", "payment", "store", "delivery", "order"}) {
      add(*DescriptorPool::generated_pool()->FindFileByName(
          absl::StrCat("gaekju/", service, "/v1/", service, "_service.proto")));
    }
    return made;
  }();
  return *pool;
}

TEST(Storefront, TakesFurtherContextsFromADescriptorSet) {
  const std::string text = absl::StrCat("id: \"every-1\" currency_code: \"USD\"", kEverything);
  const Plan plan = Good(text, "", SeparatePool());
  EXPECT_EQ(Dump(plan), Dump(Good(text)));
  EXPECT_EQ(plan.steps[0].request,
            catalog::v1::QuoteRequest::descriptor());  // linked in: no dynamic messages
  EXPECT_EQ(plan.steps[1].request->file()->pool(), &SeparatePool());
  const auto unknown = ParseStorefront(text, "");
  EXPECT_THAT(std::string(unknown.status().message()),
              testing::HasSubstr("unknown type \"gaekju.gift.v1.WrapRequest\""));
}

TEST(Storefront, TheNearestStepSupplies) {
  // Two quotes before pay: the nearer one; of two that are equally near, the one named first.
  const char* second = R"(step { id: "again" call: "catalog.Quote" via: GRPC after: "quote" })";
  const char* pay = R"(step { id: "pay" call: "payment.Capture" via: GRPC after: "%" })";
  auto amount_from = [&](const std::string& after) {
    const Plan plan = Good(
        Shop(absl::StrCat(kQuote, second, R"(step { id: "other" call: "catalog.Quote" via: GRPC })",
                          absl::StrReplaceAll(pay, {{"%", after}}))));
    const PlanStep& step = plan.steps.at(3);
    for (const FieldCopy& copy : step.copies) {
      if (copy.target->name() == "amount") return plan.steps[copy.step].id;
    }
    return std::string();
  };
  EXPECT_EQ(amount_from("quote"), "quote");
  EXPECT_EQ(amount_from("again"), "again");
  EXPECT_EQ(amount_from("other\" after: \"again"), "other");
  EXPECT_EQ(amount_from("again\" after: \"other"), "again");
}

// ---- requests

order::v1::Order SomeOrder() {
  order::v1::Order order;
  GK_CHECK(
      TextFormat::ParseFromString(R"pb(
                                    order_id: "0190"
                                    storefront: "fashion"
                                    number: 7
                                    customer_id: "cust1"
                                    customer_name: "jang"
                                    delivery_address: "seoul"
                                    lines { product_id: "1" display_name: "Outwear-1" quantity: 1 }
                                    lines {
                                      product_id: "2"
                                      quantity: 300
                                      unit_price { currency_code: "KRW" minor_units: 5000 }
                                    }
                                    payment_method: "card"
                                    expected_total { currency_code: "KRW" minor_units: 20000 }
                                    currency_code: "KRW"
                                    state: STATE_PLACED
                                    status_code: "ORDER_PLACED"
                                    create_time { seconds: 5 })pb",
                                  &order));
  return order;
}

// What a step is asked when every step that it waits for has answered so.
std::string Built(const Plan& plan, const PlanStep& step, const order::v1::Order& order,
                  const std::string& answer = "") {
  return BuildRequest(
      plan, step, order, [&](int) -> const std::string& { return answer; }, step.id);
}

template <class Request>
Request RequestOf(const Plan& plan, const char* step_id, const order::v1::Order& order,
                  const std::string& answer = "") {
  Request request;
  EXPECT_TRUE(
      request.ParseFromString(Built(plan, plan.steps.at(plan.StepIndex(step_id)), order, answer)));
  return request;
}

TEST(BuildRequest, AConstantWinsOverEverything) {
  for (const DescriptorPool* pool : {&GiftPool(), &SeparatePool()}) {
    const Plan plan = Good(Shop(absl::StrCat(kQuote, R"(
    step { id: "pay" call: "payment.Capture" via: GRPC after: "quote"
      with { [type.googleapis.com/gaekju.payment.v1.CaptureRequest] { amount { minor_units: 5 } payment_method: "" } } })")),
                           "", *pool);
    order::v1::Order order;
    order.set_customer_id("c");
    order.set_payment_method("card");
    catalog::v1::QuoteResponse quote;
    quote.mutable_amount()->set_currency_code("KRW");
    quote.mutable_amount()->set_minor_units(20000);
    const auto request =
        RequestOf<payment::v1::CaptureRequest>(plan, "pay", order, quote.SerializeAsString());
    EXPECT_EQ(request.amount().minor_units(), 5);
    EXPECT_EQ(request.amount().currency_code(), "");  // the whole field is the storefront's
    EXPECT_EQ(request.payment_method(), "");          // an empty constant is one too
    EXPECT_EQ(request.customer_id(), "c");
  }
}

TEST(BuildRequest, AFieldOfAnotherNameIsTheOrders) {
  const Plan plan = Good(kTelling);
  order::v1::Order order = SomeOrder();
  order.mutable_expected_total()->set_currency_code("KRW");
  order.mutable_expected_total()->set_minor_units(777);
  const auto pay = RequestOf<payment::v1::CaptureRequest>(plan, "pay", order);
  EXPECT_EQ(pay.amount().minor_units(), 777);
  EXPECT_EQ(pay.customer_id(), order.customer_id());
}

TEST(BuildRequest, FromWinsOverAnAnswerOfTheFieldsName) {
  const std::string pay = R"(step { id: "pay" call: "payment.Capture" via: GRPC after: "quote" )";
  EXPECT_THAT(Dump(Good(Shop(absl::StrCat(kQuote, "\n", pay, "}")))),
              testing::HasSubstr("amount<quote"));
  EXPECT_THAT(Dump(Good(Shop(absl::StrCat(
                  kQuote, "\n", pay, R"(from { field: "amount" order: "expected_total" } })")))),
              testing::HasSubstr("amount<order.expected_total"));
}

TEST(BuildRequest, TellsWhereTheBuyerIs) {
  const Plan plan = Good(ReadFile("storefronts/tshop.textproto"));
  order::v1::Order order = SomeOrder();
  order.mutable_delivery_location()->set_latitude(37.5);
  const auto assign = RequestOf<assignment::v1::AssignRequest>(plan, "assign", order);
  EXPECT_EQ(assign.delivery_location().latitude(), 37.5);
}

// What a notice tells of the step that it is sent for stands in its words: here the agency.
TEST(BuildRequest, TellsANoticeWhatItsStepAnswered) {
  const Plan plan = Good(ReadFile("storefronts/tshop.textproto"));
  assignment::v1::AssignResponse answer;
  answer.set_agency_name("대리점_3");
  const std::string bytes = answer.SerializeAsString(), none;
  for (const char* id : {"tell-accepted", "tell-picked-up"}) {
    const PlanStep& notice = plan.steps.at(plan.StepIndex(id));
    notification::v1::NotifyRequest request;
    ASSERT_TRUE(request.ParseFromString(BuildRequest(
        plan, notice, SomeOrder(),
        [&](int step) -> const std::string& {
          return plan.steps[step].id == "assign" ? bytes : none;
        },
        id)));
    EXPECT_EQ(request.agency_name(), "대리점_3") << id;
    EXPECT_EQ(request.step_id(), id);
  }
}

TEST(BuildRequest, FillsEveryStepOfFashion) {
  const Plan plan = Good(ReadFile("storefronts/fashion.textproto"));
  const order::v1::Order order = SomeOrder();
  catalog::v1::QuoteResponse quote;
  GK_CHECK(TextFormat::ParseFromString(R"pb(
                                         amount { currency_code: "KRW" minor_units: 20000 }
                                         lines {
                                           product_id: "1"
                                           display_name: "Outwear-1"
                                           quantity: 1
                                           unit_price { currency_code: "KRW" minor_units: 20000 }
                                         })pb",
                                       &quote));
  const std::vector<std::string> answers = {quote.SerializeAsString(), "", "", ""};
  auto answer_of = [&](int step) -> const std::string& { return answers.at(step); };
  auto expect = [&](int step, Message* want, const char* text) {
    ASSERT_TRUE(TextFormat::ParseFromString(text, want));
    std::unique_ptr<Message> got(want->New());
    const std::string bytes =
        BuildRequest(plan, plan.steps[step], order, answer_of, plan.steps[step].id);
    ASSERT_TRUE(got->ParseFromString(bytes));
    EXPECT_TRUE(MessageDifferencer::Equals(*got, *want)) << got->DebugString();
    EXPECT_EQ(bytes, BuildRequest(plan, plan.steps[step], order, answer_of, plan.steps[step].id));
    EXPECT_EQ(bytes.size(), want->ByteSizeLong());
  };
  catalog::v1::QuoteRequest quote_request;
  expect(0, &quote_request, R"pb(
    order_id: "0190"
    step_id: "quote"
    lines { product_id: "1" display_name: "Outwear-1" quantity: 1 }
    lines {
      product_id: "2"
      quantity: 300
      unit_price { currency_code: "KRW" minor_units: 5000 }
    }
    currency_code: "KRW"
    expected_total { currency_code: "KRW" minor_units: 20000 })pb");
  payment::v1::CaptureRequest capture;
  expect(1, &capture, R"pb(
    order_id: "0190"
    step_id: "pay"
    customer_id: "cust1"
    amount { currency_code: "KRW" minor_units: 20000 }
    payment_method: "card")pb");
  store::v1::AcceptOrderRequest accept;
  expect(2, &accept, R"pb(
    order_id: "0190"
    step_id: "accept"
    storefront: "fashion"
    lines {
      product_id: "1"
      display_name: "Outwear-1"
      quantity: 1
      unit_price { currency_code: "KRW" minor_units: 20000 }
    }
    acceptance: CONFIRMATION_AUTOMATIC
    cancel_confirmation: CONFIRMATION_AUTOMATIC)pb");
  delivery::v1::StartRequest start;
  expect(3, &start, R"pb(
    order_id: "0190"
    step_id: "deliver"
    storefront: "fashion"
    customer_id: "cust1"
    customer_name: "jang"
    delivery_address: "seoul"
    lines {
      product_id: "1"
      display_name: "Outwear-1"
      quantity: 1
      unit_price { currency_code: "KRW" minor_units: 20000 }
    })pb");
}

TEST(BuildRequest, IsTheSameWhateverHasHappenedToTheOrder) {
  const Plan plan = Good(absl::StrCat("id: \"e\" currency_code: \"USD\"", kEverything));
  const order::v1::Order before = SomeOrder();
  order::v1::Order after = before;
  after.set_state(order::v1::Order::STATE_CANCELLING);
  after.set_status_code("X");
  after.mutable_status_text()->set_ko("x");
  after.mutable_total()->set_minor_units(3);
  after.mutable_place_time()->set_seconds(9);
  after.mutable_cancel_time()->set_seconds(9);
  after.mutable_end_time()->set_seconds(9);
  after.set_reject_reason("R");
  for (const PlanStep& step : plan.steps)
    EXPECT_EQ(Built(plan, step, before), Built(plan, step, after));
  // Every other field of Order is fixed; a new one has to be sorted into one of the two
  // (flow/request.cc).
  EXPECT_EQ(order::v1::Order::descriptor()->field_count(), 21);
}

TEST(BuildRequest, FillsRequestsOfContextsThatAreNotLinkedIn) {
  const Plan plan =
      Good(absl::StrCat("id: \"e\" currency_code: \"USD\"", kEverything), "", SeparatePool());
  google::protobuf::DynamicMessageFactory factory;
  const order::v1::Order order = SomeOrder();
  const std::string quote = [] {
    catalog::v1::QuoteResponse response;
    response.add_lines()->set_product_id("9");
    return response.SerializeAsString();
  }();
  std::unique_ptr<Message> wrapped(factory.GetPrototype(plan.steps[1].response)->New());
  ASSERT_TRUE(TextFormat::ParseFromString(R"pb(ribbon: "red"
                                               amount: -1
                                               paper: [ 1, -2, 300 ])pb",
                                          wrapped.get()));
  const std::string wrap = wrapped->SerializeAsString();
  auto answer_of = [&](int step) -> const std::string& { return step == 0 ? quote : wrap; };
  auto built = [&](int step) {
    std::unique_ptr<Message> request(factory.GetPrototype(plan.steps[step].request)->New());
    EXPECT_TRUE(request->ParseFromString(
        BuildRequest(plan, plan.steps[step], order, answer_of, plan.steps[step].id + ".2")));
    EXPECT_TRUE(request->GetReflection()->GetUnknownFields(*request).empty());
    return request->ShortDebugString();
  };
  EXPECT_EQ(
      built(1),
      R"(order_id: "0190" step_id: "wrap.2" lines { product_id: "9" } note: "to Mina" customer_name: "jang")");
  EXPECT_EQ(built(4),
            R"(order_id: "0190" step_id: "tie.2" ribbon: "red" paper: 1 paper: -2 paper: 300)");
}

TEST(BuildRequest, OfAnUndoNamesOrderAndStep) {
  const Plan plan = Good(absl::StrCat("id: \"e\" currency_code: \"USD\"", kEverything));
  payment::v1::RefundRequest refund;
  ASSERT_TRUE(refund.ParseFromString(BuildUndoRequest(plan.steps[3], "0190", "pay")));
  EXPECT_EQ(refund.ShortDebugString(), R"(order_id: "0190" step_id: "pay")");
  google::protobuf::DynamicMessageFactory factory;
  std::unique_ptr<Message> unwrap(factory.GetPrototype(plan.steps[1].undo_request)->New());
  ASSERT_TRUE(unwrap->ParseFromString(BuildUndoRequest(plan.steps[1], "0190", "wrap")));
  EXPECT_EQ(unwrap->ShortDebugString(), R"(order_id: "0190" step_id: "wrap")");
}

TEST(BuildRequest, KeepsWhatAnAnswerSaysInSeveralPieces) {
  // A parser merges the occurrences of a message field; so must the callee's.
  const Plan plan = Good(Shop(QuotePay("")));
  catalog::v1::QuoteResponse a, b;
  a.mutable_amount()->set_currency_code("KRW");
  b.mutable_amount()->set_minor_units(5);
  const auto request = RequestOf<payment::v1::CaptureRequest>(
      plan, "pay", SomeOrder(), a.SerializeAsString() + b.SerializeAsString());
  EXPECT_EQ(request.amount().ShortDebugString(), R"(currency_code: "KRW" minor_units: 5)");
}

// ---- random inputs

uint64_t Seed() {
  const char* given = std::getenv("GAEKJU_SEED");
  const uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  std::cout << "GAEKJU_SEED=" << seed << std::endl;
  return seed;
}

std::vector<std::string> GoodTexts() {
  return {ReadFile("storefronts/fashion.textproto"),
          ReadFile("bench/storefronts/bench.textproto"),
          ReadFile("storefronts/funshop.textproto"),
          ReadFile("storefronts/mealkit.textproto"),
          ReadFile("storefronts/myshop.textproto"),
          ReadFile("storefronts/tshop.textproto"),
          ReadFile("tests/storefronts/fashion-reqres.textproto"),
          kTelling,
          absl::StrCat("id: \"every-1\" currency_code: \"USD\"", kEverything)};
}

TEST(StorefrontAtRandom, NeverCrashesAndAlwaysNamesAPlace) {
  std::mt19937_64 random(Seed());
  auto below = [&](size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random); };
  const std::vector<std::string> texts = GoodTexts();
  // clang-format off
  std::vector<std::string> words = {
      "{", "}", "[", "]", "<", ">", ":", ",", "\"", "'", "\\", "#", "-1", "0",
      "99999999999999999999", "\xff", std::string(1, '\0'), "\t", "\n",
      R"(undo: "pay")", R"(after: "accept")", R"(after: "pay")", "via: GRPC", "step {", "notice {",
      R"(id: "pay")", "stage: REJECTED", R"(done: "tell")", R"(unless_done: "pay")",
      R"(from { field: "amount" order: "expected_total" })", R"(try_later { ko: "x" })", "status {",
      "[type.googleapis.com/gaekju.store.v1.AcceptOrderRequest] {}",
      "with { [type.googleapis.com/google.protobuf.Any] {} }", "on_unavailable: FAIL"};
  // clang-format on
  for (const std::string& text : texts) {
    for (absl::string_view word : absl::StrSplit(text, absl::ByAnyChar(" \n"), absl::SkipEmpty()))
      words.emplace_back(word);
  }
  int good = 0;
  constexpr int kRounds = 4000;
  for (int round = 0; round < kRounds; ++round) {
    std::string text = texts[below(texts.size())];
    for (size_t edits = 1 + below(4); edits > 0 && !text.empty(); --edits) {
      const size_t at = below(text.size());
      const size_t size = std::min(text.size() - at, 1 + below(below(8) == 0 ? 200 : 12));
      switch (below(6)) {
        case 0:
          text.erase(at, size);
          break;
        case 1:
          text[at] = static_cast<char>(below(256));
          break;
        case 2:
          text.insert(at, words[below(words.size())]);
          break;
        case 3:
          text.insert(below(text.size()), text.substr(at, size));
          break;
        case 4: {  // a word for another
          const size_t start = text.find_first_of(" \n", at);
          const size_t end =
              start == std::string::npos ? start : text.find_first_of(" \n", start + 1);
          if (end != std::string::npos)
            text.replace(start + 1, end - start - 1, words[below(words.size())]);
          break;
        }
        default:
          text.resize(at);
          break;
      }
    }
    const auto plan = ParseStorefront(text, "", below(2) == 0 ? GiftPool() : SeparatePool());
    if (plan.ok()) {
      ++good;
      Dump(*plan);
      const order::v1::Order order = SomeOrder();
      for (const PlanStep& step : plan->steps) Built(*plan, step, order, text);
      continue;
    }
    for (const std::string& line :
         std::vector<std::string>(absl::StrSplit(plan.status().message(), '\n'))) {
      int line_number = 0, column = 0;
      if (std::sscanf(line.c_str(), "storefront:%d:%d: ", &line_number, &column) != 2) {
        // A text's own line breaks stand in some mistakes; the first line always has its place.
        EXPECT_TRUE(absl::StartsWith(plan.status().message(), "storefront:"))
            << plan.status().message() << "\n"
            << text;
        continue;
      }
      const int lines = 1 + static_cast<int>(std::count(text.begin(), text.end(), '\n'));
      EXPECT_TRUE(line_number >= 1 && line_number <= lines && column >= 1) << line << "\n" << text;
    }
  }
  std::cout << good << " of " << kRounds << " are still good" << std::endl;
  EXPECT_GT(good, 0);
  EXPECT_LT(good, kRounds);
}

TEST(BuildRequestAtRandom, SplicesWhatParsingWouldCopy) {
  std::mt19937_64 random(Seed());
  auto below = [&](size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random); };
  auto text = [&] {
    return std::string(below(3) * below(100), static_cast<char>('a' + below(26)));
  };
  const Plan plan = Good(ReadFile("storefronts/fashion.textproto"));
  auto fill_lines = [&](auto* lines) {
    for (size_t i = below(6); i > 0; --i) {
      auto* line = lines->Add();
      line->set_product_id(text());
      line->set_quantity(static_cast<int32_t>(below(1000000)));
      if (below(2)) line->mutable_unit_price()->set_minor_units(static_cast<int64_t>(random()));
    }
  };
  for (int round = 0; round < 2000; ++round) {
    order::v1::Order order = SomeOrder();
    order.set_customer_id(text());
    order.set_payment_method(text());
    order.set_delivery_address(text());
    order.clear_lines();
    fill_lines(order.mutable_lines());
    catalog::v1::QuoteResponse quote;
    if (below(4))
      quote.mutable_amount()->set_minor_units(static_cast<int64_t>(random() >> below(64)));
    fill_lines(quote.mutable_lines());
    const std::string answer = quote.SerializeAsString();
    const auto capture = RequestOf<payment::v1::CaptureRequest>(plan, "pay", order, answer);
    payment::v1::CaptureRequest want_capture;
    want_capture.set_order_id(order.order_id());
    want_capture.set_step_id("pay");
    want_capture.set_customer_id(order.customer_id());
    want_capture.set_payment_method(order.payment_method());
    if (quote.has_amount()) *want_capture.mutable_amount() = quote.amount();
    ASSERT_TRUE(MessageDifferencer::Equals(capture, want_capture)) << capture.DebugString();
    const auto start = RequestOf<delivery::v1::StartRequest>(plan, "deliver", order, answer);
    delivery::v1::StartRequest want_start;
    want_start.set_order_id(order.order_id());
    want_start.set_step_id("deliver");
    want_start.set_storefront(order.storefront());
    want_start.set_customer_id(order.customer_id());
    want_start.set_customer_name(order.customer_name());
    want_start.set_delivery_address(order.delivery_address());
    *want_start.mutable_lines() = quote.lines();
    ASSERT_TRUE(MessageDifferencer::Equals(start, want_start)) << start.DebugString();
  }
}

TEST(BuildRequestAtRandom, SurvivesMalformedAnswers) {
  std::mt19937_64 random(Seed());
  auto below = [&](size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random); };
  const Plan plan = Good(ReadFile("storefronts/fashion.textproto"));
  catalog::v1::QuoteResponse quote;
  quote.mutable_amount()->set_minor_units(20000);
  for (int i = 0; i < 3; ++i) quote.add_lines()->set_product_id("product");
  const std::string good = quote.SerializeAsString();
  const order::v1::Order order = SomeOrder();
  for (int round = 0; round < 20000; ++round) {
    std::string answer = good;
    for (size_t edits = below(4); edits > 0; --edits)
      answer[below(answer.size())] = static_cast<char>(below(256));
    answer.resize(below(answer.size() + 1));
    for (const PlanStep& step : plan.steps) {
      // Whatever is spliced are whole fields: the request's own fields around it stay readable.
      const std::string bytes = Built(plan, step, order, answer);
      EXPECT_EQ(bytes, Built(plan, step, order, answer));
      EXPECT_THAT(bytes, testing::EndsWith(step.constants));
    }
  }
}

}  // namespace
}  // namespace gaekju::flow
