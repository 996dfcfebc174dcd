// postgres.h: a real PostgreSQL for tests, in a temporary directory, reached over a Unix socket in
// it.
//
//   Postgres postgres;                                    // runs
//   std::string conninfo = postgres.CreateDatabase();     // empty, of a fresh name
//   postgres.Kill();                                      // kill -9 of the postmaster
//   postgres.Start();                                     // recovers
//
// Root runs it as the user `postgres`, because PostgreSQL refuses root. Ends with the test, also
// when the test crashes. Not thread-safe. Aborts with the server's log when it cannot be started.
#ifndef GAEKJU_RUNTIME_TESTING_POSTGRES_H_
#define GAEKJU_RUNTIME_TESTING_POSTGRES_H_

#include <sys/types.h>

#include <string>
#include <vector>

namespace gaekju::runtime {

class Postgres {
 public:
  Postgres();   // initdb, start
  ~Postgres();  // stops it and removes its directory
  Postgres(const Postgres&) = delete;
  Postgres& operator=(const Postgres&) = delete;

  // Starts it again; returns when it accepts clients. REQUIRES: it is not running.
  void Start();
  // SIGKILL to the postmaster; returns when it is gone. Its backends end by themselves.
  void Kill();
  // SIGQUIT ("immediate"): no clean shutdown; returns when it is gone.
  void Stop();

  // The address of a new, empty database.
  std::string CreateDatabase();
  std::string conninfo(const std::string& database) const;
  bool running() const { return pid_ > 0; }

 private:
  pid_t Spawn(const std::vector<std::string>& args);
  void Reap();

  std::string directory_;
  pid_t pid_ = -1;
  int database_count_ = 0;
};

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_TESTING_POSTGRES_H_
