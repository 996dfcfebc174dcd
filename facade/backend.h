// backend.h: what all calls of the facade share: the contexts' client, the lanes' threads, and the
// caches.
//
//   Backend backend(&client, {.storefronts = {{"fashion", "fashion-direct"}}});
//   for (const Shop& shop : Shops()) backend.Serve(shop, rpc);   // before rpc.Start()
//   rpc.Start();
//   …
//   backend.Stop();                                              // after rpc.Shutdown()
//
// Thread-safe.
#ifndef GAEKJU_FACADE_BACKEND_H_
#define GAEKJU_FACADE_BACKEND_H_

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "facade/card.h"
#include "facade/facade.h"
#include "runtime/rpc_client.h"
#include "runtime/rpc_server.h"

namespace gaekju::facade {

// Names of the headers by which the gateway tells the facade of the request, and the facade tells
// the gateway of the response. The gateway removes them from what clients send and get.
inline constexpr char kHostHeader[] = "x-gaekju-host";      // the client's Host
inline constexpr char kPathHeader[] = "x-gaekju-path";      // the path as it was asked
inline constexpr char kPrefixHeader[] = "x-gaekju-prefix";  // what was stripped of it
inline constexpr char kStatusHeader[] = "x-gaekju-status";  // the HTTP status to answer
inline constexpr char kErrorHeader[] = "x-gaekju-error";    // an error's body, percent-encoded

// The deadline of a caller that sets none, as the gateway.
inline constexpr int kDeadlineMs = 15'000;

struct CallState {
  runtime::CallContext context;
  std::string request_id;
  runtime::RpcHeaders headers;  // of the response
  // The last header of that name that the gateway passed on; empty without.
  std::string Header(absl::string_view name) const;
};

// Runs functions on a few threads of its own, started when they are needed.
class Lane {
 public:
  Lane(int threads_max, int waiting_max) : threads_max_(threads_max), waiting_max_(waiting_max) {}
  ~Lane() { Stop(); }
  // False when as many wait as may; `work` was not taken.
  bool Submit(std::function<void()> work);
  // Finishes what was taken.
  void Stop();

 private:
  void Loop();

  const int threads_max_, waiting_max_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> waiting_;
  int idle_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

struct BackendOptions {
  std::map<std::string, std::string> storefronts = {};  // shop -> storefront, where it is another
  // Of each lane. A thread costs its stack, who waits some 4 KiB; beyond them callers are told to
  // come back. Whoever has given up meanwhile is passed over.
  int lane_threads_max = 32;
  int lane_waiting_max = 8192;
  CardBox cards = {};
};

class Backend {
 public:
  // `client` must outlive it.
  Backend(runtime::RpcClient* client, BackendOptions options)
      : client_(client), options_(std::move(options)) {}
  ~Backend() { Stop(); }

  // Serves the shop's contract. REQUIRES: every method of the contract has a handler, and the
  // server has not started. `shop` must outlive the server.
  void Serve(const Shop& shop, runtime::RpcServer& server);
  void Stop();

  absl::Status Ask(const CallState& state, absl::string_view context, absl::string_view method,
                   const google::protobuf::Message& request, google::protobuf::Message* response,
                   absl::Duration timeout);
  const std::string& StorefrontOf(const std::string& shop) const;
  const CardBox& cards() const { return options_.cards; }

  void Remember(const std::string& storefront, const std::string& order_id, int64_t number);
  std::optional<std::string> OrderIdOf(const std::string& storefront, int64_t number);
  int64_t NumberOf(const std::string& order_id);

 private:
  Lane& LaneOf(const std::string& name);

  runtime::RpcClient* const client_;
  const BackendOptions options_;
  std::mutex mutex_;
  std::map<std::string, std::unique_ptr<Lane>> lanes_;
  // Neither ever changes once known. Emptied when they have grown too large.
  absl::flat_hash_map<std::string, std::string> order_ids_;  // by "<storefront>/<number>"
  absl::flat_hash_map<std::string, int64_t> numbers_;        // by order id
};

// --- HTTP
// The status that a web client gets for a google.rpc.Code. 409 for FAILED_PRECONDITION: the request
// was well-formed, and the resource's state forbids it.
int HttpStatusOf(int code);
// "Service Unavailable"
std::string HttpReasonOf(int status);
// The body of an error: {"timestamp": …, "status": 503, "error": "Service Unavailable",
// "message": …, "reason": …, "field": …, "path": …}. `language`: an Accept-Language; Korean unless
// it begins with "en".
std::string ErrorBody(const google::rpc::Status& status, absl::string_view path,
                      absl::string_view language, absl::Time now);
// Printable ASCII: every other byte, and '%', as %XX.
std::string PercentEncode(absl::string_view bytes);
// How long a caller should wait, in whole seconds; 0 when the status does not say.
int64_t RetryAfterSeconds(const google::rpc::Status& status);

}  // namespace gaekju::facade

#endif  // GAEKJU_FACADE_BACKEND_H_
