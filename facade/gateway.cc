#include "facade/gateway.h"

#include <algorithm>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "facade/backend.h"
#include "facade/facade.h"
#include "flow/check.h"
#include "gaekju/auth/v1/authorization.pb.h"
#include "google/api/annotations.pb.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/descriptor.pb.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"
#include "google/rpc/error_details.pb.h"

namespace gaekju::facade {
namespace {

using google::protobuf::DescriptorPool;
using google::protobuf::FileDescriptor;
using google::protobuf::MethodDescriptor;
using google::protobuf::ServiceDescriptor;

constexpr char kApi[] = "api";
// The contexts' own default (runtime's --default_deadline).
constexpr int kContextDeadlineMs = 5000;
constexpr char kTryLater[] = "잠시 후 다시 시도해 주세요";

const ServiceDescriptor* ServiceOfContext(const std::string& context) {
  std::string name = context;
  if (!name.empty()) name[0] = absl::ascii_toupper(static_cast<unsigned char>(name[0]));
  return DescriptorPool::generated_pool()->FindServiceByName(
      absl::StrCat("gaekju.", context, ".v1.", name, "Service"));
}

std::string Quote(absl::string_view text) {
  google::protobuf::Value value;
  value.set_string_value(std::string(text));
  std::string out;
  GK_CHECK(google::protobuf::util::MessageToJsonString(value, &out).ok());
  return out;
}

// Runs before the transcoder on the way in and after it on the way out. On the way out a gRPC or
// gRPC-Web answer is left as it is.
constexpr char kLua[] = R"lua(
local prefixes = { $PREFIXES }
local own = { "x-gaekju-host", "x-gaekju-path", "x-gaekju-prefix", "x-gaekju-status", "x-gaekju-error",
              "x-gaekju-json" }
-- What a path may be asked by. The transcoder knows the methods and paths together, and would say 404.
local paths = { $PATHS }

local function allowed(path)
  local methods, listed = {}, {}
  for _, known in ipairs(paths) do
    if path:match(known[1]) then methods[known[2]] = true end
  end
  for method in pairs(methods) do table.insert(listed, method) end
  table.sort(listed)
  return methods, listed
end

function envoy_on_request(handle)
  local headers = handle:headers()
  for _, name in ipairs(own) do headers:remove(name) end
  local path = headers:get(":path") or "/"
  for _, prefix in ipairs(prefixes) do
    if path:sub(1, #prefix + 1) == prefix .. "/" then
      path = path:sub(#prefix + 1)
      headers:replace(":path", path)
      headers:replace("x-gaekju-prefix", prefix)
      break
    end
  end
  local function plain(text) return (text:gsub("[^\33-\126]", "?")) end
  headers:replace("x-gaekju-host", plain(headers:get(":authority") or ""))
  path = path:gsub("%?.*", "")
  headers:replace("x-gaekju-path", plain(path))
  local kind = headers:get("content-type") or ""
  if kind:sub(1, 16) == "application/grpc" then return end
  headers:replace("x-gaekju-json", "1")
  local method = headers:get(":method") or ""
  local methods, listed = allowed(path)
  if #listed > 0 and not methods[method] then
    local list = table.concat(listed, ", ")
    handle:respond({ [":status"] = "405", ["allow"] = list }, "this can be asked by " .. list)
  end
end

-- The whole body. Waiting for it ends what was known as the headers: they have to be asked for again.
local function whole(handle, always)
  local body = handle:body(always == true)
  return body, body and body:getBytes(0, body:length()) or ""
end

local function replace(handle, body, text)
  if not body then return end
  body:setBytes(text)
  handle:headers():replace("content-length", tostring(#text))
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local kind = headers:get("content-type") or ""
  local status = headers:get("x-gaekju-status")
  local err = headers:get("x-gaekju-error")
  for _, name in ipairs(own) do headers:remove(name) end
  if kind:sub(1, 16) == "application/grpc" then return end
  if status then
    headers:replace(":status", status)
  elseif kind == "application/json" and (headers:get(":status") == "400" or headers:get(":status") == "503") then
    -- A context's own error, as the transcoder has written it.
    local _, text = whole(handle)
    headers = handle:headers()
    if text:match('^{"code":9,') then headers:replace(":status", "409") end  -- FAILED_PRECONDITION
    local seconds = text:match('"retryDelay":"([%d.]+)s"')
    if seconds then headers:replace("retry-after", tostring(math.max(1, math.ceil(tonumber(seconds))))) end
  end
  if headers:get(":status") == "503" and headers:get("retry-after") == nil then
    headers:replace("retry-after", "1")
  end
  headers:remove("grpc-status")
  headers:remove("grpc-message")
  headers:remove("grpc-accept-encoding")
  headers:remove("grpc-status-details-bin")
  if err then
    local text = err:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end)
    headers:replace("content-type", "application/json;charset=UTF-8")
    headers:remove("trailer")
    replace(handle, whole(handle, true), text)
  elseif status == "204" then
    headers:remove("content-type")
    replace(handle, whole(handle, true), "")
  elseif kind == "application/json" and headers:get(":status"):sub(1, 1) == "2" then
    headers:replace("content-type", "$SUCCESS_TYPE")
  end
end
)lua";

// Errors that Envoy makes itself, in the shape of the facade's own.
std::string LocalReplies() {
  std::vector<std::string> mappers;
  for (const auto& [status, words] : std::map<int, std::string>{{400, "Bad Request"},
                                                                {403, "Forbidden"},
                                                                {404, "Not Found"},
                                                                {405, "Method Not Allowed"},
                                                                {408, "Request Timeout"},
                                                                {413, "Content Too Large"},
                                                                {415, "Unsupported Media Type"},
                                                                {429, "Too Many Requests"},
                                                                {500, "Internal Server Error"},
                                                                {502, "Bad Gateway"},
                                                                {503, "Service Unavailable"},
                                                                {504, "Gateway Timeout"}}) {
    mappers.push_back(absl::StrReplaceAll(
        R"json({
          "filter": {"andFilter": {"filters": [
            {"statusCodeFilter": {"comparison": {"op": "EQ",
              "value": {"defaultValue": $STATUS, "runtimeKey": "gaekju.none"}}}},
            {"headerFilter": {"header": {"name": "x-gaekju-json", "presentMatch": true}}}]}},
          "bodyFormatOverride": {
            "jsonFormat": {
              "timestamp": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%", "status": $STATUS,
              "error": $WORDS, "message": $MESSAGE, "path": "%REQ(X-GAEKJU-PATH)%"},
            "contentType": "application/json;charset=UTF-8"}})json",
        {{"$STATUS", absl::StrCat(status)},
         {"$WORDS", Quote(words)},
         // What stands behind the gateway is nobody's business but ours.
         {"$MESSAGE", Quote(status >= 500 ? kTryLater : "%LOCAL_REPLY_BODY%")}}));
  }
  return absl::StrCat("{\"mappers\":[", absl::StrJoin(mappers, ","), "]}");
}

std::string Cors(const GatewayOptions& options) {
  if (options.cors_origins.empty()) return "{}";
  // The origin is echoed when the rule matches it; "*" with credentials is what browsers refuse.
  return absl::StrReplaceAll(
      R"json({"envoy.filters.http.cors": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
        "allowOriginStringMatch": [{"safeRegex": {"regex": $ORIGINS}}],
        "allowMethods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
        "allowHeaders": "authorization, content-type, idempotency-key, accept-language, traceparent, x-grpc-web, x-user-agent, grpc-timeout",
        "exposeHeaders": "allow, location, retry-after, grpc-status, grpc-message, grpc-status-details-bin",
        "allowCredentials": true, "maxAge": "600"}})json",
      {{"$ORIGINS", Quote(options.cors_origins)}});
}

// A segment of a path template, or several, as a Lua pattern. A variable's value has no ':', which
// begins a verb.
std::string PatternOf(absl::string_view part) {
  std::string out;
  for (const char c : part) {
    if (c == '*') {
      out += "[^/:]+";
    } else if (absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '/' || c == '_') {
      out.push_back(c);
    } else {
      absl::StrAppend(&out, "%", std::string(1, c));
    }
  }
  return out;
}

// The methods and paths of a rule, each as a line of the Lua filter: {"^/orders/[^/:]+$", "GET"}.
void AddPaths(const google::api::HttpRule& rule, std::vector<std::string>* out) {
  const std::vector<std::pair<const char*, std::string>> bindings = {{"GET", rule.get()},
                                                                     {"POST", rule.post()},
                                                                     {"PUT", rule.put()},
                                                                     {"PATCH", rule.patch()},
                                                                     {"DELETE", rule.delete_()}};
  for (const auto& [method, path] : bindings) {
    if (path.empty()) continue;
    std::string pattern = "^";
    absl::string_view rest = path;
    while (!rest.empty()) {
      const size_t open = rest.find('{');
      absl::StrAppend(&pattern, PatternOf(rest.substr(0, open)));
      if (open == absl::string_view::npos) break;
      const size_t close = rest.find('}', open);
      GK_CHECK(close != absl::string_view::npos) << path;
      const absl::string_view variable = rest.substr(open + 1, close - open - 1);
      const size_t equals = variable.find('=');
      absl::StrAppend(
          &pattern,
          PatternOf(equals == absl::string_view::npos ? "*" : variable.substr(equals + 1)));
      rest = rest.substr(close + 1);
    }
    out->push_back(absl::StrCat("{ ", Quote(absl::StrCat(pattern, "$")), ", \"", method, "\" }"));
  }
  for (const auto& binding : rule.additional_bindings()) AddPaths(binding, out);
}

std::string RouteOf(const MethodDescriptor& method, const std::string& cluster,
                    int deadline_ms_default) {
  const auto& limits = method.options().GetExtension(gaekju::auth::v1::authorization);
  // A second more than the server gives itself, whose answer tells more than ours. Streams have no
  // end.
  const int timeout_ms = method.server_streaming()
                             ? 0
                             : std::max(limits.default_deadline_ms(), deadline_ms_default) + 1000;
  return absl::StrCat("{\"match\":{\"path\":",
                      Quote(absl::StrCat("/", std::string(method.service()->full_name()), "/",
                                         std::string(method.name()))),
                      "},\"route\":{\"cluster\":", Quote(cluster), ",\"timeout\":\"",
                      timeout_ms / 1000, ".", timeout_ms % 1000 / 100, "s\"",
                      method.server_streaming() ? ",\"idleTimeout\":\"600s\"" : "", "}}");
}

std::string Address(absl::string_view host, int port) {
  return absl::StrCat("{\"socketAddress\":{\"address\":", Quote(host), ",\"portValue\":", port,
                      "}}");
}

absl::StatusOr<std::string> Cluster(const std::string& name, const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port)) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", address, "\", where ", name, " is, is not host:port"));
  }
  return absl::StrReplaceAll(
      R"json({
        "name": $NAME, "type": "STRICT_DNS", "connectTimeout": "1s",
        "typedExtensionProtocolOptions": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
          "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
          "explicitHttpConfig": {"http2ProtocolOptions": {
            "connectionKeepalive": {"interval": "20s", "timeout": "5s"}}}}},
        "circuitBreakers": {"thresholds": [
          {"maxConnections": 1024, "maxPendingRequests": 4096, "maxRequests": 8192, "maxRetries": 0}]},
        "loadAssignment": {"clusterName": $NAME, "endpoints": [{"lbEndpoints": [
          {"endpoint": {"address": $ADDRESS}}]}]}})json",
      {{"$NAME", Quote(name)}, {"$ADDRESS", Address(address.substr(0, colon), port)}});
}

std::string Listener(const GatewayOptions& options, const GatewayListener& listener,
                     const std::vector<std::string>& services,
                     const std::vector<std::string>& routes, const std::vector<std::string>& paths,
                     const std::vector<std::string>& prefixes, const std::string& success_type) {
  std::vector<std::string> more;
  for (size_t i = 1; i < listener.ports.size(); ++i)
    more.push_back(absl::StrCat("{\"address\":", Address(options.bind, listener.ports[i]), "}"));
  const std::string lua = absl::StrReplaceAll(
      kLua, {{"$PREFIXES", absl::StrJoin(prefixes, ", ",
                                         [](std::string* out, const std::string& prefix) {
                                           absl::StrAppend(out, Quote(prefix));
                                         })},
             {"$PATHS", absl::StrJoin(paths, ", ")},
             {"$SUCCESS_TYPE", success_type}});
  return absl::StrReplaceAll(
      R"json({
        "name": $NAME, "address": $ADDRESS, "additionalAddresses": [$MORE],
        "perConnectionBufferLimitBytes": 1048576,
        "filterChains": [{"filters": [{
          "name": "envoy.filters.network.http_connection_manager",
          "typedConfig": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "statPrefix": $NAME, "codecType": "AUTO", "serverName": "gaekju",
            "useRemoteAddress": true, "normalizePath": true, "mergeSlashes": true,
            "commonHttpProtocolOptions": {"idleTimeout": "300s"},
            "requestHeadersTimeout": "10s", "requestTimeout": "30s", "streamIdleTimeout": "300s",
            "localReplyConfig": $LOCAL_REPLIES,
            "routeConfig": {"name": $NAME, "virtualHosts": [{
              "name": $NAME, "domains": ["*"], "typedPerFilterConfig": $CORS,
              "responseHeadersToAdd": [{"header": {"key": "vary", "value": "origin"}, "appendAction": "APPEND_IF_EXISTS_OR_ADD"}],
              "routes": [$ROUTES,
                {"match": {"prefix": "/", "headers": [{"name": "content-type", "stringMatch": {"prefix": "application/grpc"}}]},
                 "directResponse": {"status": 404, "body": {"inlineString": "there is nothing at this path"}}},
                {"match": {"prefix": "/"}, "route": {"cluster": "nowhere"}}]}]},
            "httpFilters": [
              {"name": "envoy.filters.http.health_check", "typedConfig": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck",
                "passThroughMode": false,
                "headers": [{"name": ":path", "stringMatch": {"exact": "/healthz"}}]}},
              {"name": "envoy.filters.http.cors", "typedConfig": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}},
              {"name": "envoy.filters.http.grpc_web", "typedConfig": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.grpc_web.v3.GrpcWeb"}},
              {"name": "envoy.filters.http.lua", "typedConfig": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
                "defaultSourceCode": {"inlineString": $LUA}}},
              {"name": "envoy.filters.http.grpc_json_transcoder", "typedConfig": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
                "protoDescriptor": $DESCRIPTORS, "services": [$SERVICES],
                "printOptions": {"alwaysPrintPrimitiveFields": true},
                "ignoreUnknownQueryParameters": true, "convertGrpcStatus": true,
                "maxRequestBodySize": 1048576, "maxResponseBodySize": 16777216,
                "requestValidationOptions": {"rejectUnknownMethod": true}}},
              {"name": "envoy.filters.http.router", "typedConfig": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router", "suppressEnvoyHeaders": true}}]}}]}]})json",
      {{"$NAME", Quote(listener.name)},
       {"$ADDRESS", Address(options.bind, listener.ports[0])},
       {"$MORE", absl::StrJoin(more, ",")},
       {"$LOCAL_REPLIES", LocalReplies()},
       {"$CORS", Cors(options)},
       {"$ROUTES", absl::StrJoin(routes, ",")},
       {"$LUA", Quote(lua)},
       {"$DESCRIPTORS", Quote(options.descriptor_path)},
       {"$SERVICES", absl::StrJoin(services, ",", [](std::string* out, const std::string& name) {
          absl::StrAppend(out, Quote(name));
        })}});
}

void AddFile(const FileDescriptor* file, std::set<const FileDescriptor*>* seen,
             google::protobuf::FileDescriptorSet* out) {
  if (!seen->insert(file).second) return;
  for (int i = 0; i < file->dependency_count(); ++i) AddFile(file->dependency(i), seen, out);
  google::protobuf::FileDescriptorProto& proto = *out->add_file();
  file->CopyTo(&proto);
  file->CopyJsonNameTo(&proto);  // "_links"; CopyTo leaves it out
}

}  // namespace

std::string GatewayDescriptors(const std::vector<std::string>& contexts) {
  google::protobuf::FileDescriptorSet files;
  std::set<const FileDescriptor*> seen;
  AddFile(google::rpc::ErrorInfo::descriptor()->file(), &seen, &files);
  for (const std::string& context : contexts) {
    if (const ServiceDescriptor* service = ServiceOfContext(context); service != nullptr)
      AddFile(service->file(), &seen, &files);
  }
  for (const Shop& shop : Shops()) {
    const auto* service = DescriptorPool::generated_pool()->FindServiceByName(shop.service());
    GK_CHECK(service != nullptr) << shop.service();
    AddFile(service->file(), &seen, &files);
  }
  return files.SerializeAsString();
}

absl::StatusOr<std::string> GatewayBootstrap(const GatewayOptions& options) {
  std::vector<std::string> listeners, clusters;
  for (const GatewayListener& listener : options.listeners) {
    if (listener.ports.empty())
      return absl::InvalidArgumentError(absl::StrCat(listener.name, " has no port"));
    std::vector<std::string> services, routes, paths, prefixes;
    const auto let_through = [&](const MethodDescriptor& method, const std::string& cluster,
                                 int deadline_ms_default) {
      routes.push_back(RouteOf(method, cluster, deadline_ms_default));
      AddPaths(method.options().GetExtension(google::api::http), &paths);
    };
    std::string success_type = "application/json";
    if (listener.name == kApi) {
      for (const auto& [context, address] : options.peers) {
        const ServiceDescriptor* service = ServiceOfContext(context);
        if (service == nullptr) continue;
        services.emplace_back(service->full_name());
        for (int i = 0; i < service->method_count(); ++i) {
          const MethodDescriptor& method = *service->method(i);
          if (!method.options().GetExtension(gaekju::auth::v1::authorization).roles().empty())
            let_through(method, context, kContextDeadlineMs);
        }
      }
    } else {
      const auto& shops = Shops();
      const auto shop = std::find_if(shops.begin(), shops.end(),
                                     [&](const Shop& one) { return one.id() == listener.name; });
      if (shop == shops.end()) {
        return absl::InvalidArgumentError(absl::StrCat(
            "there is no shop '", listener.name, "' behind the gateway; there are: ", kApi, ", ",
            absl::StrJoin(shops, ", ",
                          [](std::string* out, const Shop& one) { out->append(one.id()); })));
      }
      const auto* service = DescriptorPool::generated_pool()->FindServiceByName(shop->service());
      GK_CHECK(service != nullptr) << shop->service();
      services.push_back(shop->service());
      for (int i = 0; i < service->method_count(); ++i)
        let_through(*service->method(i), "facade", kDeadlineMs);
      prefixes = shop->prefixes();
      success_type = "application/hal+json;charset=UTF-8";
    }
    listeners.push_back(
        Listener(options, listener, services, routes, paths, prefixes, success_type));
  }
  std::map<std::string, std::string> upstreams = options.peers;
  upstreams["facade"] = options.facade;
  // Where a route leads that is only there to carry the CORS policy: what the transcoder knows has
  // routes of its own, and what it does not know it refuses.
  clusters.emplace_back(R"json({"name": "nowhere", "type": "STATIC", "connectTimeout": "1s"})json");
  for (const auto& [name, address] : upstreams) {
    absl::StatusOr<std::string> cluster = Cluster(name, address);
    if (!cluster.ok()) return cluster.status();
    clusters.push_back(*std::move(cluster));
  }
  const std::string text = absl::StrCat(
      "{\"node\":{\"id\":\"gaekju-gateway\",\"cluster\":\"gaekju\"},\"admin\":{\"address\":",
      Address("127.0.0.1", options.admin_port), "},\"staticResources\":{\"listeners\":[",
      absl::StrJoin(listeners, ","), "],\"clusters\":[", absl::StrJoin(clusters, ","), "]}}");
  // Parsed and printed again: what we write is JSON, and people can read it.
  google::protobuf::Struct parsed;
  const auto status = google::protobuf::util::JsonStringToMessage(text, &parsed);
  GK_CHECK(status.ok()) << status.ToString() << "\n" << text;
  google::protobuf::util::JsonPrintOptions print;
  print.add_whitespace = true;
  std::string out;
  GK_CHECK(google::protobuf::util::MessageToJsonString(parsed, &out, print).ok());
  return out;
}

}  // namespace gaekju::facade
