// main.cc: the `gaekju` binary: finds the subcommand, reads its flags, runs it.

#include <cstring>
#include <iostream>
#include <set>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "app/command.h"
#include "google/protobuf/stubs/common.h"
#include "runtime/config.h"

#ifndef GAEKJU_VERSION
#define GAEKJU_VERSION "unknown"
#endif

namespace gaekju::app {
namespace {

std::vector<Command> Commands() {
  return {UpCommand(),   ServeCommand(),    CheckCommand(),        CallCommand(),
          LoadCommand(), SimulateCommand(), AuditCommand(),        DeadCommand(),
          SeedCommand(), FacadeCommand(),   GatewayConfigCommand()};
}

std::string Overview() {
  std::string text =
      "gaekju: the backend of web shops whose rules are files.\n\nUsage: gaekju COMMAND [ARGS] "
      "[FLAGS]\n\n";
  for (const Command& command : Commands())
    absl::StrAppendFormat(&text, "  %-14s %s\n", command.name, command.summary);
  absl::StrAppend(&text, "  version        print the version\n",
                  "\n`gaekju COMMAND --help` tells its flags. Each flag can also be set by the "
                  "environment, as GAEKJU_<FLAG>.\n");
  return text;
}

// Flags of other commands were parsed too, because they are all in one program; to have given one
// is a mistake.
std::string ForeignFlag(const Command& command, int argc, char** argv) {
  std::set<std::string> own(command.flags.begin(), command.flags.end());
  if (command.server_flags) {
    for (const std::string& name : ServerFlags()) own.insert(name);
  }
  for (int i = 2; i < argc; ++i) {
    absl::string_view argument = argv[i];
    if (argument == "--") break;
    if (!absl::ConsumePrefix(&argument, "--")) continue;
    std::string name(argument.substr(0, argument.find('=')));
    for (char& c : name) c = c == '-' ? '_' : c;
    if (absl::FindCommandLineFlag(name) == nullptr && absl::StartsWith(name, "no"))
      name = name.substr(2);
    if (absl::FindCommandLineFlag(name) != nullptr && !own.contains(name)) return name;
  }
  return "";
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << Overview();
    return 2;
  }
  const std::string name = argv[1];
  if (name == "--help" || name == "-h" || name == "help") {
    std::cout << Overview();
    return 0;
  }
  if (name == "version" || name == "--version") {
    std::cout << "gaekju " << GAEKJU_VERSION << " (protobuf "
              << google::protobuf::internal::VersionString(GOOGLE_PROTOBUF_VERSION) << ")\n";
    return 0;
  }
  for (const Command& command : Commands()) {
    if (name != command.name) continue;
    // Without the subcommand.
    std::vector<const char*> rest = {argv[0]};
    for (int i = 2; i < argc; ++i) rest.push_back(argv[i]);
    auto line = runtime::ParseCommandLine(static_cast<int>(rest.size()), rest.data());
    if (!line.ok())
      return Fail(name, absl::StrCat(line.status().message(), "\nSee gaekju ", name, " --help"), 2);
    if (line->help) {
      std::vector<std::string> shown = command.flags;
      if (command.server_flags) {
        for (const std::string& flag : ServerFlags()) shown.push_back(flag);
      }
      std::cout << command.usage << "\n" << runtime::FlagHelp(shown);
      return 0;
    }
    if (const std::string foreign = ForeignFlag(command, argc, argv); !foreign.empty()) {
      return Fail(name, absl::StrCat("has no flag --", foreign, "; see gaekju ", name, " --help"),
                  2);
    }
    return command.run(line->arguments);
  }
  std::cerr << "gaekju has no command '" << name << "'.\n\n" << Overview();
  return 2;
}

}  // namespace

int Fail(absl::string_view command, absl::string_view message, int exit_code) {
  std::cerr << "gaekju " << command << ": " << message << std::endl;
  return exit_code;
}

std::vector<std::string> ServerFlags() {
  std::vector<std::string> names;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (absl::EndsWith(flag->Filename(), "runtime/config.cc")) names.emplace_back(name);
  }
  return names;
}

}  // namespace gaekju::app

int main(int argc, char** argv) { return gaekju::app::Main(argc, argv); }
