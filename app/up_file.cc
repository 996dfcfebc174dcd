#include "app/up_file.h"

#include <stdlib.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "app/files.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"

namespace gaekju::app {
namespace {

using google::protobuf::Struct;

void Put(Struct* json, const std::string& name, const std::string& value) {
  (*json->mutable_fields())[name].set_string_value(value);
}
void Put(Struct* json, const std::string& name, int value) {
  (*json->mutable_fields())[name].set_number_value(value);
}
void Put(Struct* json, const std::string& name, bool value) {
  (*json->mutable_fields())[name].set_bool_value(value);
}
Struct* PutObject(Struct* json, const std::string& name) {
  return (*json->mutable_fields())[name].mutable_struct_value();
}

const google::protobuf::Value& Find(const Struct& json, const std::string& name) {
  static const google::protobuf::Value* const kNone = new google::protobuf::Value();
  auto it = json.fields().find(name);
  return it == json.fields().end() ? *kNone : it->second;
}
int IntOf(const Struct& json, const std::string& name) {
  return static_cast<int>(Find(json, name).number_value());
}
std::string TextOf(const Struct& json, const std::string& name) {
  return Find(json, name).string_value();
}

UpFile::Server ServerOf(const Struct& json, const std::string& url_name) {
  return {.pid = IntOf(json, "pid"),
          .port = IntOf(json, "port"),
          .url = TextOf(json, url_name),
          .store = TextOf(json, "store"),
          .log = TextOf(json, "log")};
}

}  // namespace

std::string UpFile::Context::address() const { return absl::StrCat("127.0.0.1:", port); }

std::string UpFilePath(const std::string& data_directory) { return data_directory + "/up.json"; }

absl::Status WriteUpFile(const UpFile& up) {
  Struct json;
  Put(&json, "pid", static_cast<int>(up.pid));
  Put(&json, "data", up.data);
  Put(&json, "storefronts", up.storefronts);
  Put(&json, "ready", up.ready);
  Struct* postgres = PutObject(&json, "postgres");
  Put(postgres, "pid", static_cast<int>(up.postgres.pid));
  Put(postgres, "port", up.postgres.port);
  Put(postgres, "dsn", up.postgres.url);
  Put(postgres, "log", up.postgres.log);
  Struct* nats = PutObject(&json, "nats");
  Put(nats, "pid", static_cast<int>(up.nats.pid));
  Put(nats, "port", up.nats.port);
  Put(nats, "url", up.nats.url);
  Put(nats, "store", up.nats.store);
  Put(nats, "log", up.nats.log);
  Struct* contexts = PutObject(&json, "contexts");
  for (const auto& [name, context] : up.contexts) {
    Struct* entry = PutObject(contexts, name);
    Put(entry, "pid", static_cast<int>(context.pid));
    Put(entry, "ready", context.ready);
    Put(entry, "address", context.address());
    Put(entry, "port", context.port);
    Put(entry, "metrics", context.metrics);
    Put(entry, "dsn", context.dsn);
    Put(entry, "log", context.log);
    Put(entry, "starts", context.start_count);
  }
  for (const auto& [name, server] :
       {std::pair<const char*, const UpFile::Server&>("facade", up.facade),
        {"gateway", up.gateway}}) {
    Struct* entry = PutObject(&json, name);
    Put(entry, "pid", static_cast<int>(server.pid));
    Put(entry, "port", server.port);
    Put(entry, "log", server.log);
  }
  Struct* web = PutObject(&json, "web");
  for (const auto& [name, port] : up.web) Put(web, name, port);
  std::string text;
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  const auto printed = google::protobuf::util::MessageToJsonString(json, &text, options);
  if (!printed.ok()) return absl::InternalError(printed.ToString());
  return WriteFile(UpFilePath(up.data), text, 0600);
}

absl::StatusOr<UpFile> ReadUpFile(const std::string& data_directory) {
  const std::string path = UpFilePath(data_directory);
  absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) {
    return absl::NotFoundError(
        absl::StrCat("no shop runs in ", data_directory, " (", text.status().message(),
                     "). Start one with `gaekju up`, or name its directory with --data"));
  }
  Struct json;
  if (!google::protobuf::util::JsonStringToMessage(*text, &json).ok() ||
      !json.fields().contains("contexts")) {
    return absl::InvalidArgumentError(absl::StrCat(path, " was not written by `gaekju up`"));
  }
  UpFile up;
  up.pid = IntOf(json, "pid");
  up.data = TextOf(json, "data");
  up.storefronts = TextOf(json, "storefronts");
  up.ready = Find(json, "ready").bool_value();
  up.postgres = ServerOf(Find(json, "postgres").struct_value(), "dsn");
  up.nats = ServerOf(Find(json, "nats").struct_value(), "url");
  up.facade = ServerOf(Find(json, "facade").struct_value(), "url");
  up.gateway = ServerOf(Find(json, "gateway").struct_value(), "url");
  for (const auto& [name, value] : Find(json, "web").struct_value().fields())
    up.web[name] = static_cast<int>(value.number_value());
  for (const auto& [name, value] : Find(json, "contexts").struct_value().fields()) {
    const Struct& entry = value.struct_value();
    up.contexts[name] = {.pid = IntOf(entry, "pid"),
                         .ready = Find(entry, "ready").bool_value(),
                         .port = IntOf(entry, "port"),
                         .metrics = TextOf(entry, "metrics"),
                         .dsn = TextOf(entry, "dsn"),
                         .log = TextOf(entry, "log"),
                         .start_count = IntOf(entry, "starts")};
  }
  return up;
}

std::string DefaultDataDirectory() {
  if (geteuid() == 0) return "/var/lib/gaekju";
  if (const char* state = getenv("XDG_STATE_HOME"); state != nullptr && *state != '\0') {
    return absl::StrCat(state, "/gaekju");
  }
  const char* home = getenv("HOME");
  return absl::StrCat(home == nullptr ? "/tmp" : home, "/.local/state/gaekju");
}

}  // namespace gaekju::app
