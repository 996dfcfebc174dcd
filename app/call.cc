// call.cc: `gaekju call`: calls any RPC with JSON, for machines without grpcurl.

#include <unistd.h>

#include <iostream>
#include <iterator>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "app/command.h"
#include "app/context_list.h"
#include "app/methods.h"
#include "app/up_file.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/dynamic_message.h"
#include "google/protobuf/util/json_util.h"
#include "google/rpc/code.pb.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"
#include "runtime/byte_buffer.h"

ABSL_DECLARE_FLAG(std::string, data);
ABSL_FLAG(std::string, address, "",
          "host:port to call; empty: where `gaekju up` on --data serves the context");
ABSL_FLAG(std::string, pick, "", "print only this field of the answer, such as order.order_id");
ABSL_FLAG(absl::Duration, deadline, absl::Seconds(10),
          "how long the call may take; a stream ends with it");

namespace gaekju::app {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

std::string Json(const Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  std::string text;
  const auto status = google::protobuf::util::MessageToJsonString(message, &text, options);
  return status.ok() ? text : absl::StrCat(status.ToString(), "\n");
}

// The field at `path` as text; the message's JSON where it is a message.
absl::StatusOr<std::string> Pick(const Message& message, const std::string& path) {
  const Message* at = &message;
  const std::vector<std::string> names = absl::StrSplit(path, '.');
  for (size_t i = 0; i < names.size(); ++i) {
    const FieldDescriptor* field = at->GetDescriptor()->FindFieldByName(names[i]);
    if (field == nullptr) field = at->GetDescriptor()->FindFieldByCamelcaseName(names[i]);
    if (field == nullptr || field->is_repeated()) {
      return absl::InvalidArgumentError(absl::StrCat("--pick=", path, ": ",
                                                     at->GetDescriptor()->full_name(),
                                                     " has no single field '", names[i], "'"));
    }
    const auto* reflection = at->GetReflection();
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      at = &reflection->GetMessage(*at, field);
      if (i + 1 == names.size()) return Json(*at);
      continue;
    }
    if (i + 1 < names.size())
      return absl::InvalidArgumentError(
          absl::StrCat("--pick=", path, ": ", names[i], " holds no fields"));
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_STRING:
        return reflection->GetString(*at, field);
      case FieldDescriptor::CPPTYPE_ENUM:
        return reflection->GetEnum(*at, field)->name();
      case FieldDescriptor::CPPTYPE_INT64:
        return absl::StrCat(reflection->GetInt64(*at, field));
      case FieldDescriptor::CPPTYPE_INT32:
        return absl::StrCat(reflection->GetInt32(*at, field));
      case FieldDescriptor::CPPTYPE_BOOL:
        return reflection->GetBool(*at, field) ? "true" : "false";
      default:
        return absl::InvalidArgumentError(
            absl::StrCat("--pick=", path, ": not text, a number or a bool"));
    }
  }
  return absl::InvalidArgumentError("--pick is empty");
}

int PrintError(const grpc::Status& status) {
  std::cerr << google::rpc::Code_Name(static_cast<google::rpc::Code>(status.error_code())) << ": "
            << status.error_message() << "\n";
  google::rpc::Status details;
  if (details.ParseFromString(status.error_details())) {
    for (const auto& detail : details.details()) std::cerr << Json(detail);
  }
  return 1;
}

int RunCall(const std::vector<std::string>& arguments) {
  if (arguments.empty() || arguments.size() > 2) {
    return Fail("call", "needs CONTEXT.METHOD and a request in JSON; see gaekju call --help", 2);
  }
  auto found = FindMethod(arguments[0]);
  if (!found.ok()) return Fail("call", found.status().message(), 2);
  const std::string& context = found->context;
  const google::protobuf::MethodDescriptor* method = found->descriptor;

  std::string json = arguments.size() > 1 ? arguments[1] : "{}";
  if (json == "-")
    json.assign(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
  auto* factory = google::protobuf::MessageFactory::generated_factory();
  std::unique_ptr<Message> request(factory->GetPrototype(method->input_type())->New());
  if (const auto parsed = google::protobuf::util::JsonStringToMessage(json, request.get());
      !parsed.ok()) {
    return Fail("call",
                absl::StrCat("the request is no ", method->input_type()->full_name(), ": ",
                             std::string(parsed.message())),
                2);
  }

  std::string address = absl::GetFlag(FLAGS_address);
  if (address.empty()) {
    const std::string data =
        absl::GetFlag(FLAGS_data).empty() ? DefaultDataDirectory() : absl::GetFlag(FLAGS_data);
    auto up = ReadUpFile(data);
    if (!up.ok()) return Fail("call", up.status().message());
    if (!up->contexts.contains(context)) return Fail("call", UnknownContext(context));
    address = up->contexts[context].address();
  }

  auto channel = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  grpc::GenericStub stub(channel);
  grpc::ClientContext client_context;
  client_context.set_deadline(absl::ToChronoTime(absl::Now() + absl::GetFlag(FLAGS_deadline)));
  grpc::CompletionQueue queue;
  auto next = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  // One way for unary calls and streams: a stream of which a unary call is the shortest.
  auto stream = stub.PrepareCall(
      &client_context, absl::StrCat("/", method->service()->full_name(), "/", method->name()),
      &queue);
  stream->StartCall(nullptr);
  if (next()) {
    stream->WriteLast(runtime::ToByteBuffer(request->SerializeAsString()), grpc::WriteOptions(),
                      nullptr);
    next();
  }
  std::unique_ptr<Message> response(factory->GetPrototype(method->output_type())->New());
  std::string bad;
  for (;;) {
    grpc::ByteBuffer buffer;
    stream->Read(&buffer, nullptr);
    if (!next()) break;
    if (!runtime::Parse(buffer, response.get())) {
      bad = absl::StrCat("the answer is no ", method->output_type()->full_name());
      break;
    }
    if (absl::GetFlag(FLAGS_pick).empty()) {
      std::cout << Json(*response) << std::flush;
      continue;
    }
    auto picked = Pick(*response, absl::GetFlag(FLAGS_pick));
    if (!picked.ok()) {
      bad = std::string(picked.status().message());
      break;
    }
    std::cout << *picked << std::endl;
  }
  if (!bad.empty()) client_context.TryCancel();
  grpc::Status status;
  stream->Finish(&status, nullptr);
  next();
  if (!bad.empty()) return Fail("call", bad);
  if (!status.ok()) return PrintError(status);
  const auto& trailers = client_context.GetServerTrailingMetadata();
  if (auto outcome = trailers.find("gaekju-outcome"); outcome != trailers.end()) {
    std::cerr << "outcome: " << outcome->second << "\n";
  }
  return 0;
}

}  // namespace

Command CallCommand() {
  return {.name = "call",
          .summary = "call an RPC with JSON: gaekju call order.GetOrder '{\"order_id\":\"…\"}'",
          .usage =
              "Usage: gaekju call CONTEXT.METHOD ['JSON' | -] [--pick=FIELD] [--address=HOST:PORT "
              "| --data=DIR]\n"
              "\n"
              "Calls an RPC and prints the answer as JSON; of a stream, every message. '-' reads "
              "the request from standard input.\n"
              "A refusal is printed on standard error with its details, and the exit code is 1.\n"
              "\n"
              "  gaekju call order.ListOrders '{\"customer_id\":\"cust1\"}'\n"
              "  gaekju call order.WatchOrder '{\"order_id\":\"…\"}' --deadline=1m\n",
          .flags = {"data", "address", "pick", "deadline"},
          .run = RunCall};
}

}  // namespace gaekju::app
