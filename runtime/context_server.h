// context_server.h: wires one context: database -> migrations -> turns -> outbox -> relay -> bus,
// and the service that callers see.
//
//   ContextServer server(spec, {.config = &config, .rpc = &rpc, .client = client.get(), .metrics =
//   &metrics}); server.Register();                                     // before rpc.Start()
//   absl::Status status = server.Start(stop_requested);    // waits for the database, as long as it
//   takes … server.Drain(absl::Seconds(10));
//
// Ready means that requests can be decided: the database is there. A bus that is down makes nothing
// unready: what it should carry waits in the outbox, and that is what the outbox is for.
//
// Thread-safe. What Start builds lives until the destructor; REQUIRES: `rpc` has been shut down by
// then.
#ifndef GAEKJU_RUNTIME_CONTEXT_SERVER_H_
#define GAEKJU_RUNTIME_CONTEXT_SERVER_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "flow/turn.h"
#include "runtime/config.h"
#include "runtime/metrics.h"
#include "runtime/migrate.h"
#include "runtime/pg.h"
#include "runtime/rpc_client.h"
#include "runtime/rpc_server.h"

namespace gaekju::runtime {

class ContextServer {
 public:
  // A service beside the context's own, for what needs no turn.
  struct Further {
    std::string service;  // "gaekju.storefront.v1.StorefrontService", unary methods only
    // Called once the context is made, on a thread of the connections for reads; `pg` is null when
    // there is none to be had. Answers from memory, or by a look into the database.
    std::function<flow::Answer(const google::protobuf::MethodDescriptor& method,
                               const google::protobuf::Message& request, PgConnection* pg)>
        answer;
  };
  struct Spec {
    std::string name;     // "payment"
    std::string service;  // "gaekju.payment.v1.PaymentService"
    std::vector<Migration> migrations;
    // Makes the context once the migrations have been applied. Errors: UNAVAILABLE (asked again),
    // anything else ends Start.
    std::function<absl::StatusOr<std::shared_ptr<const flow::Context>>(const PgOptions& pg)> make;
    // Called every few seconds on a connection for reads, to set metrics that only the database
    // knows. May be null.
    std::function<void(PgConnection& pg, Metrics& metrics)> observe;
    std::vector<Further> further;  // ready when the context is
    // Each row that a turn has committed, before the next turn begins: TurnOutputs::observe. May be
    // null.
    std::function<void(const flow::Table& table, const std::string& key,
                       const google::protobuf::Message& row)>
        observe_committed;
  };
  // What the contexts of a process share. All outlive the server.
  struct Shared {
    const ServerConfig* config = nullptr;
    RpcServer* rpc = nullptr;
    RpcClient* client = nullptr;
    Metrics* metrics = nullptr;
  };

  ContextServer(Spec spec, Shared shared);
  ~ContextServer();
  ContextServer(const ContextServer&) = delete;
  ContextServer& operator=(const ContextServer&) = delete;

  // Adds the services to `rpc`; until Start has returned its calls are answered UNAVAILABLE.
  void Register();
  // Applies migrations and starts everything. Errors: CANCELLED (`stop` returned true while waiting
  // for the database), FAILED_PRECONDITION, INVALID_ARGUMENT, NOT_FOUND (the configuration is
  // wrong; the message says what to do).
  absl::Status Start(const std::function<bool()>& stop);
  bool ready() const;
  // Not ready any more; finishes the requests that wait, hands the outbox to the bus, stops. False
  // when something was left after `timeout`: that is nothing lost, because the outbox keeps it and
  // callers ask again.
  bool Drain(absl::Duration timeout);

  const std::string& name() const;

 private:
  struct Core;
  std::unique_ptr<Core> core_;
};

// The options of a context's connections to its database.
PgOptions PgOptionsOf(const ServerConfig& config, absl::string_view context);

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_CONTEXT_SERVER_H_
