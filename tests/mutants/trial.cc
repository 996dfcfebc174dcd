#include "tests/mutants/trial.h"

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace gaekju::mutants {
namespace {

[[noreturn]] void End(const std::string& why) {
  std::cerr << why << std::endl;
  std::exit(kWrongCall);
}

std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c == '\n' ? ' ' : c;
  }
  return quoted + "\"";
}

}  // namespace

Trial ReadTrial(int argc, char** argv) {
  Trial trial;
  for (int i = 1; i < argc; ++i) {
    absl::string_view arg = argv[i];
    if (absl::ConsumePrefix(&arg, "--seconds=")) {
      if (!absl::SimpleAtod(arg, &trial.seconds_max)) End(absl::StrCat("not seconds: ", arg));
    } else if (absl::ConsumePrefix(&arg, "--seeds=")) {
      const std::pair<std::string, std::string> range =
          absl::StrSplit(arg, absl::MaxSplits('-', 1));
      if (!absl::SimpleAtoi(range.first, &trial.first_seed) ||
          !absl::SimpleAtoi(range.second, &trial.last_seed))
        End(absl::StrCat("not seeds: ", arg));
    } else {
      std::ifstream file{std::string(arg)};
      std::stringstream text;
      text << file.rdbuf();
      if (!file.good()) End(absl::StrCat("cannot read ", arg));
      trial.files.push_back({std::string(arg), text.str()});
    }
  }
  if (trial.files.empty()) End("names no storefront");
  return trial;
}

void Say(const std::vector<std::pair<std::string, std::string>>& fields) {
  std::string line = "{";
  for (const auto& [key, value] : fields)
    absl::StrAppend(&line, line == "{" ? "" : ", ", Quoted(key), ": ", Quoted(value));
  std::cout << line << "}" << std::endl;
}

}  // namespace gaekju::mutants
