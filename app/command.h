// command.h: the subcommands of `gaekju`, and what they have in common.
#ifndef GAEKJU_APP_COMMAND_H_
#define GAEKJU_APP_COMMAND_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace gaekju::app {

// One subcommand. `run` gets what is not a flag; its result is the process's exit code:
// 0 it worked, 1 it did not, 2 it was called wrongly, 78 it cannot work until the configuration
// changes.
struct Command {
  const char* name;
  const char* summary;             // one line, for the list
  const char* usage;               // everything before the flags
  std::vector<std::string> flags;  // the flags it has
  bool server_flags = false;       // and those of every server (runtime/config.h)
  int (*run)(const std::vector<std::string>& arguments);
};

Command ServeCommand();
Command UpCommand();
Command LoadCommand();
Command AuditCommand();
Command CallCommand();
Command CheckCommand();
Command SeedCommand();
Command SimulateCommand();
Command DeadCommand();
Command FacadeCommand();
Command GatewayConfigCommand();

// Prints "gaekju <command>: <message>" on stderr and returns `exit_code`.
int Fail(absl::string_view command, absl::string_view message, int exit_code = 1);

// The names of all flags that belong to servers.
std::vector<std::string> ServerFlags();

}  // namespace gaekju::app

#endif  // GAEKJU_APP_COMMAND_H_
