// gateway.h: the configuration of the Envoy in front: one listener a shop, with the paths of its
// document at its root, and one for the contexts' own REST.
//
//   GatewayOptions options{.facade = "127.0.0.1:50070", .peers = {{"order", "127.0.0.1:50051"}, …},
//                          .listeners = {{.name = "api", .ports = {8000}},
//                                        {.name = "fashion", .ports = {8005, 8080}}},
//                          .descriptor_path = "/…/gateway.binpb", .admin_port = 9901};
//   WriteFile("/…/gateway.binpb", GatewayDescriptors(ContextServices(names)));
//   WriteFile("/…/envoy.json", *GatewayBootstrap(options));   // envoy -c /…/envoy.json
//
// What Envoy does: JSON <-> gRPC by google.api.http, gRPC-Web, CORS, HTTP statuses (a small Lua
// filter). What it lets through: the shops' methods, and of the contexts only what a role may call
// (the authorization option): a step's call is for the order context alone.
#ifndef GAEKJU_FACADE_GATEWAY_H_
#define GAEKJU_FACADE_GATEWAY_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace gaekju::facade {

struct GatewayListener {
  std::string name;        // a shop of Shops(), or "api"
  std::vector<int> ports;  // the first is its own, the others lead to the same
};

// The origins that may call from a browser: those of a developer's own machine.
inline constexpr char kLocalOrigins[] = R"(https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?)";

struct GatewayOptions {
  std::string facade = {};                        // host:port
  std::map<std::string, std::string> peers = {};  // context -> host:port
  std::vector<GatewayListener> listeners = {};
  std::string bind = "127.0.0.1";  // of the listeners; the admin interface is on loopback always
  std::string cors_origins = kLocalOrigins;  // RE2, of the whole origin; empty: none
  std::string descriptor_path = {};
  int admin_port = 0;  // 0: any
};

// Envoy's bootstrap, as JSON. Errors: INVALID_ARGUMENT (a listener without a port, or that is
// neither a shop nor "api"; an address that is not host:port).
absl::StatusOr<std::string> GatewayBootstrap(const GatewayOptions& options);

// The descriptors of every contract behind the gateway, and of the details of errors, as a
// serialized google.protobuf.FileDescriptorSet. `contexts`: their names.
std::string GatewayDescriptors(const std::vector<std::string>& contexts);

}  // namespace gaekju::facade

#endif  // GAEKJU_FACADE_GATEWAY_H_
