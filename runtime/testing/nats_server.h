// nats_server.h: a real nats-server with JetStream for tests, on a free port of 127.0.0.1, in a
// temporary directory.
//
//   NatsServer server;                      // runs
//   NatsBus bus({.urls = {server.url()}});
//   server.Kill();                          // kill -9
//   server.WipeStore();
//   server.Start();                         // the same port, an empty store
//
// Ends with the test, also when the test crashes. Not thread-safe. Aborts with the server's log
// when it cannot be started.
#ifndef GAEKJU_RUNTIME_TESTING_NATS_SERVER_H_
#define GAEKJU_RUNTIME_TESTING_NATS_SERVER_H_

#include <sys/types.h>

#include <string>

namespace gaekju::runtime {

class NatsServer {
 public:
  NatsServer();   // starts
  ~NatsServer();  // kills it and removes its directory
  NatsServer(const NatsServer&) = delete;
  NatsServer& operator=(const NatsServer&) = delete;

  // Starts it again on the same port and store; returns when it accepts clients. REQUIRES: it is
  // not running.
  void Start();
  // SIGKILL; returns when the process is gone.
  void Kill();
  // SIGTERM; returns when the process is gone.
  void Stop();
  // Deletes everything JetStream has stored. REQUIRES: it is not running.
  void WipeStore();
  // Keeps the store as it is now; and puts it back as it was then, as after a power cut that took
  // what was not on the disk yet: all of it, or the messages only, and consumers keep what they
  // know. REQUIRES: it is not running.
  void KeepStore();
  void PutStoreBack(bool only_messages);
  // SIGSTOP, returns when it has stopped; and SIGCONT: the connections stay, nothing answers.
  void Pause();
  void Resume();

  int port() const { return port_; }
  std::string url() const;
  bool running() const { return pid_ > 0; }
  const std::string& directory() const { return directory_; }

 private:
  void Reap();

  std::string directory_;
  int port_ = 0;
  pid_t pid_ = -1;
};

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_TESTING_NATS_SERVER_H_
