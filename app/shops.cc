#include "app/shops.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <tuple>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "app/files.h"
#include "gaekju/type/v1/type.pb.h"
#include "google/api/field_behavior.pb.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"

namespace gaekju::app {
namespace {

namespace v1 = gaekju::storefront::v1;
using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::TextFormat;

struct Mistake {
  int line, column;  // from 0
  std::string what;
  bool operator<(const Mistake& o) const {
    return std::tie(line, column) < std::tie(o.line, o.column);
  }
};

class Mistakes : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, int column, const std::string& text) override {
    found_.push_back({std::max(line, 0), std::max(column, 0), text});
  }
  void AddWarning(int, int, const std::string&) override {}
  void Add(TextFormat::ParseLocation at, const std::string& what) {
    AddError(at.line, at.column, what);
  }
  bool empty() const { return found_.empty(); }
  absl::Status ToStatus(const std::string& file_name) {
    std::stable_sort(found_.begin(), found_.end());
    return absl::InvalidArgumentError(
        absl::StrJoin(found_, "\n", [&](std::string* out, const Mistake& mistake) {
          absl::StrAppend(out, file_name, ":", mistake.line + 1, ":", mistake.column + 1, ": ",
                          mistake.what);
        }));
  }

 private:
  std::vector<Mistake> found_;
};

// The text of a singular string field of that name, empty when there is none.
std::string TextOf(const Message& message, const char* name) {
  const FieldDescriptor* field = message.GetDescriptor()->FindFieldByName(name);
  if (field == nullptr || field->is_repeated() ||
      field->cpp_type() != FieldDescriptor::CPPTYPE_STRING)
    return "";
  return message.GetReflection()->GetString(message, field);
}

// The price that a call gives to its product; null when it gives none.
const type::v1::Money* PriceIn(const Message& request) {
  const FieldDescriptor* field = request.GetDescriptor()->FindFieldByName("unit_price");
  if (field == nullptr || field->message_type() != type::v1::Money::descriptor()) return nullptr;
  return &static_cast<const type::v1::Money&>(request.GetReflection()->GetMessage(request, field));
}

std::string JsonText(absl::string_view text) {
  return absl::StrCat("\"", absl::Utf8SafeCEscape(text), "\"");
}

bool IsRequired(const FieldDescriptor& field) {
  const auto& options = field.options();
  for (int i = 0; i < options.ExtensionSize(google::api::field_behavior); ++i) {
    if (options.GetExtension(google::api::field_behavior, i) == google::api::REQUIRED) return true;
  }
  return false;
}

}  // namespace

std::string FindStorefronts() {
  const std::filesystem::path binary =
      std::filesystem::path(ReadLink("/proc/self/exe")).parent_path();
  for (const std::filesystem::path& candidate :
       {std::filesystem::path("storefronts"), binary / "../../../storefronts",
        binary / "../share/gaekju/storefronts"}) {
    if (std::filesystem::is_directory(candidate)) return candidate;
  }
  return "";
}

std::vector<std::string> ShopsIn(const std::string& storefronts) {
  std::vector<std::string> shops;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(storefronts, error)) {
    if (entry.path().extension() == ".textproto") shops.push_back(entry.path().stem());
  }
  std::sort(shops.begin(), shops.end());
  return shops;
}

absl::StatusOr<Demo> ParseDemo(absl::string_view text, const std::string& file_name) {
  Mistakes mistakes;
  if (text.size() > kDemoBytes_max) {
    mistakes.AddError(0, 0, absl::StrCat("is longer than ", kDemoBytes_max, " bytes"));
    return mistakes.ToStatus(file_name);
  }
  v1::Demo file;
  TextFormat::ParseInfoTree tree;
  TextFormat::Parser parser;
  parser.RecordErrorsTo(&mistakes);
  parser.WriteLocationsTo(&tree);
  if (!parser.ParseFromString(std::string(text), &file)) {
    if (mistakes.empty()) mistakes.AddError(0, 0, "is no gaekju.storefront.v1.Demo");
    return mistakes.ToStatus(file_name);
  }
  const Descriptor* demo_call = v1::DemoCall::descriptor();
  const FieldDescriptor* call_field = v1::Demo::descriptor()->FindFieldByName("call");
  Demo demo;
  for (int i = 0; i < file.call_size(); ++i) {
    const TextFormat::ParseLocation at = tree.GetLocation(call_field, i);
    const TextFormat::ParseInfoTree* inside = tree.GetTreeForNested(call_field, i);
    auto place_of = [&](const char* field) {
      if (inside == nullptr) return at;
      const auto found = inside->GetLocation(demo_call->FindFieldByName(field), -1);
      return found.line < 0 ? at : found;
    };
    auto method = FindMethod(file.call(i).call());
    if (!method.ok()) {
      mistakes.Add(place_of("call"), std::string(method.status().message()));
      continue;
    }
    const Descriptor* input = method->descriptor->input_type();
    const auto& request = file.call(i).request();
    const std::string type = request.type_url().substr(request.type_url().rfind('/') + 1);
    if (type != input->full_name()) {
      mistakes.Add(place_of("request"),
                   absl::StrCat(file.call(i).call(), " takes a ", input->full_name(), ", not ",
                                type.empty() ? "nothing" : "a " + type));
      continue;
    }
    std::shared_ptr<Message> message(
        google::protobuf::MessageFactory::generated_factory()->GetPrototype(input)->New());
    if (!message->ParseFromString(request.value())) {
      mistakes.Add(place_of("request"), absl::StrCat("is no ", input->full_name()));
      continue;
    }
    demo.calls.push_back({*std::move(method), std::move(message),
                          absl::StrCat(file_name, ":", at.line + 1, ":", at.column + 1)});
  }
  if (!mistakes.empty()) return mistakes.ToStatus(file_name);
  return demo;
}

absl::StatusOr<Demo> ReadDemo(const std::string& storefronts, const std::string& shop) {
  const std::string path = absl::StrCat(storefronts, "/demo/", shop, ".textproto");
  if (!FileExists(path)) return Demo();
  absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return text.status();
  return ParseDemo(*text, path);
}

std::string Describe(const Demo& demo) {
  std::vector<std::string> products;
  std::vector<std::pair<std::string, int>> others;
  for (const DemoCall& call : demo.calls) {
    const std::string product = TextOf(*call.request, "product_id");
    if (!product.empty()) {
      if (std::find(products.begin(), products.end(), product) == products.end())
        products.push_back(product);
      continue;
    }
    const std::string what = absl::StrCat(call.method.context, ".", call.method.descriptor->name());
    if (others.empty() || others.back().first != what) others.emplace_back(what, 0);
    ++others.back().second;
  }
  std::vector<std::string> parts;
  if (!products.empty()) parts.push_back(absl::StrCat("on sale: ", absl::StrJoin(products, ", ")));
  for (const auto& [what, count] : others) parts.push_back(absl::StrCat(count, " × ", what));
  return parts.empty() ? "nothing to put in place" : absl::StrJoin(parts, "; ");
}

absl::StatusOr<std::string> OrderJson(const std::string& storefronts, const std::string& shop,
                                      const Demo& demo) {
  absl::StatusOr<std::string> text = ReadFile(absl::StrCat(storefronts, "/", shop, ".textproto"));
  if (!text.ok()) return text.status();
  v1::Storefront storefront;
  TextFormat::Parser parser;
  Mistakes mistakes;
  parser.RecordErrorsTo(&mistakes);
  if (!parser.ParseFromString(*text, &storefront)) return mistakes.ToStatus(shop);

  // What the steps read of an order; a price only where an order cannot be without.
  bool location = false, method = false, price = false;
  for (const v1::Step& step : storefront.place().step()) {
    for (const v1::FieldSource& from : step.from()) price |= from.order() == "expected_total";
    const auto found = FindMethod(step.call());
    if (!found.ok()) continue;  // a context of which only the order context knows
    const Descriptor* request = found->descriptor->input_type();
    location |= request->FindFieldByName("delivery_location") != nullptr;
    method |= request->FindFieldByName("payment_method") != nullptr;
    const FieldDescriptor* expected = request->FindFieldByName("expected_total");
    price |= expected != nullptr && IsRequired(*expected);
  }
  std::string product = "1";
  const type::v1::Money* unit_price = nullptr;
  for (const DemoCall& call : demo.calls) {
    if (TextOf(*call.request, "product_id").empty()) continue;
    product = TextOf(*call.request, "product_id");
    unit_price = PriceIn(*call.request);
    break;
  }
  type::v1::Money total;
  total.set_currency_code(storefront.currency_code());
  total.set_minor_units(10000);
  if (unit_price != nullptr) total = *unit_price;
  std::string json = absl::StrCat("{\"storefront\":", JsonText(shop),
                                  ",\"customer_id\":\"cust1\",\"customer_name\":\"jang\","
                                  "\"delivery_address\":\"seoul\"");
  if (location)
    absl::StrAppend(&json, ",\"delivery_location\":{\"latitude\":37.57,\"longitude\":126.98}");
  if (method) absl::StrAppend(&json, ",\"payment_method\":\"card\"");
  if (price) {
    absl::StrAppend(&json,
                    ",\"expected_total\":{\"currency_code\":", JsonText(total.currency_code()),
                    ",\"minor_units\":", total.minor_units(), "}");
  }
  absl::StrAppend(&json, ",\"lines\":[{\"product_id\":", JsonText(product), ",\"quantity\":1}]}");
  return json;
}

}  // namespace gaekju::app
