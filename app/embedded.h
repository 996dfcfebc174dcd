// embedded.h: the private PostgreSQL and nats-server of `gaekju up`: their programs, directories,
// configuration and start.
//
//   <data>/postgres    the cluster: one superuser "gaekju", a database per context, checksums,
//   password authentication <data>/run         its Unix socket <data>/nats        JetStream's
//   store; may be deleted while nats-server is down: the outboxes fill it again <data>/nats.conf,
//   <data>/secret (the password of both), <data>/log
//
// Everything listens on loopback only.
#ifndef GAEKJU_APP_EMBEDDED_H_
#define GAEKJU_APP_EMBEDDED_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "app/process.h"
#include "app/supervisor.h"

namespace gaekju::app {

struct EmbeddedPaths {
  explicit EmbeddedPaths(const std::string& data_directory);
  std::string data, postgres, run, nats, nats_conf, secret, log;
};

// Where the programs are. Errors: NOT_FOUND; the message says which package to install.
struct EmbeddedPrograms {
  std::string postgres, initdb, nats_server;
};
absl::StatusOr<EmbeddedPrograms> FindEmbeddedPrograms(const std::string& postgres_directory);

class EmbeddedPostgres {
 public:
  // `user`: whom to run it as, see UnprivilegedUser.
  EmbeddedPostgres(EmbeddedPaths paths, EmbeddedPrograms programs, std::optional<ProcessUser> user,
                   std::string password, int port);

  bool IsNew() const;
  // Makes the cluster when there is none. Errors: FAILED_PRECONDITION (of another major version; or
  // a directory on the way that `user` may not enter), ABORTED (initdb's words).
  absl::Status Prepare();
  ChildSpec Spec() const;
  bool Answers() const;
  absl::Status CreateDatabases(const std::vector<std::string>& names) const;
  // "postgresql://gaekju:…@127.0.0.1:24017/<database>", with the socket's directory where its path
  // is short enough for one.
  std::string Dsn(const std::string& database) const;
  int port() const { return port_; }

 private:
  absl::Status CheckDirectories() const;
  void EndOrphans() const;

  const EmbeddedPaths paths_;
  const EmbeddedPrograms programs_;
  const std::optional<ProcessUser> user_;
  const std::string password_;
  const int port_;
};

class EmbeddedNats {
 public:
  EmbeddedNats(EmbeddedPaths paths, EmbeddedPrograms programs, std::string password, int port);
  absl::Status Prepare();
  ChildSpec Spec() const;
  bool Answers() const;
  std::string Url() const;  // with user and password
  int port() const { return port_; }

 private:
  const EmbeddedPaths paths_;
  const EmbeddedPrograms programs_;
  const std::string password_;
  const int port_;
};

}  // namespace gaekju::app

#endif  // GAEKJU_APP_EMBEDDED_H_
