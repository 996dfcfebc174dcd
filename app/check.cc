// check.cc: `gaekju check`: proves storefronts, or tells the shortest way to break them.

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <optional>
#include <sstream>
#include <utility>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "app/command.h"
#include "app/contracts.h"
#include "check/explorer.h"
#include "flow/storefront.h"
#include "gaekju/storefront/v1/storefront.pb.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/text_format.h"
#include "google/protobuf/util/json_util.h"

ABSL_FLAG(
    int, faults, -1,
    "count what goes wrong with messages and processes: up to so many, of all kinds together; "
    "-1: any number, uncounted");
ABSL_FLAG(int, duplicates, -1, "counted: how many messages are taken twice (0 to 7; 2)");
ABSL_FLAG(int, losses, -1, "counted: how many messages are lost (0 to 7; 2)");
ABSL_FLAG(int, unreachable, -1, "counted: how many calls find nobody (0 to 7; 2)");
ABSL_FLAG(int, crashes, -1, "counted: how often the order process dies (0 to 7; 3)");
ABSL_FLAG(int, wipes, -1, "counted: how often the bus's store is wiped (0 to 3; 1)");
ABSL_FLAG(int, refusals, 15, "how many steps are refused (0 to 15)");
ABSL_FLAG(int, cancels, 2, "how often the buyer cancels (0 to 7)");
ABSL_FLAG(int, threads, 0, "threads that explore; 0: one a core");
ABSL_FLAG(int64_t, states_max, 1'000'000'000, "give up, without a proof, after this many states");
ABSL_FLAG(int, memory_max, 16384, "give up, without a proof, after this many MiB");
ABSL_FLAG(double, seconds_max, 0,
          "give up, without a proof, after this many seconds a file; 0: as long as it takes");
ABSL_DECLARE_FLAG(bool, json);  // load.cc: one object a file, on a line of its own
ABSL_FLAG(std::string, trace_out, "",
          "write what is found of the last violated file here, as JSON");
ABSL_FLAG(std::string, replay, "",
          "take the story in this file of --trace_out again, step by step");

namespace gaekju::app {
namespace {

constexpr int kProved = 0, kViolated = 1, kInvalid = 2, kUnfinished = 3;

bool Counted() {
  for (const int bound : {absl::GetFlag(FLAGS_faults), absl::GetFlag(FLAGS_duplicates),
                          absl::GetFlag(FLAGS_losses), absl::GetFlag(FLAGS_unreachable),
                          absl::GetFlag(FLAGS_crashes), absl::GetFlag(FLAGS_wipes)}) {
    if (bound >= 0) return true;
  }
  return false;
}

check::Bounds BoundsFromFlags() {
  check::Bounds bounds;
  bounds.counted = Counted();
  const auto set = [](int flag, int* bound) {
    if (flag >= 0) *bound = flag;
  };
  set(absl::GetFlag(FLAGS_faults), &bounds.fault_count_max);
  set(absl::GetFlag(FLAGS_duplicates), &bounds.duplicate_count_max);
  set(absl::GetFlag(FLAGS_losses), &bounds.loss_count_max);
  set(absl::GetFlag(FLAGS_unreachable), &bounds.unreachable_count_max);
  set(absl::GetFlag(FLAGS_crashes), &bounds.crash_count_max);
  set(absl::GetFlag(FLAGS_wipes), &bounds.wipe_count_max);
  bounds.refusal_count_max = absl::GetFlag(FLAGS_refusals);
  bounds.cancel_count_max = absl::GetFlag(FLAGS_cancels);
  return bounds;
}

check::Budget BudgetFromFlags() {
  check::Budget budget;
  budget.thread_count = absl::GetFlag(FLAGS_threads);
  budget.state_count_max = absl::GetFlag(FLAGS_states_max);
  budget.bytes_max = int64_t{absl::GetFlag(FLAGS_memory_max)} << 20;
  budget.seconds_max = absl::GetFlag(FLAGS_seconds_max);
  return budget;
}

// "any number of losses, …, any steps refused and up to 2 cancels".
std::string Say(const check::Bounds& b) {
  const std::string people = absl::StrCat(
      b.refusal_count_max >= 15 ? std::string("any steps refused")
                                : absl::StrCat("up to ", b.refusal_count_max, " steps refused"),
      " and up to ", b.cancel_count_max, " cancels");
  if (!b.counted) {
    return absl::StrCat(
        "any number of losses, repetitions, late and lost calls, crashes and wiped buses, ",
        people);
  }
  return absl::StrFormat(
      "up to %d faults in all (%d repetitions, %d losses, %d unreachable calls, %d crashes, %d "
      "wiped buses), %s",
      b.fault_count_max, b.duplicate_count_max, b.loss_count_max, b.unreachable_count_max,
      b.crash_count_max, b.wipe_count_max, people);
}

// ---- JSON

std::string Quoted(const std::string& text) {
  std::string out = "\"";
  for (const unsigned char c : text) {
    if (c == '"' || c == '\\') {
      absl::StrAppend(&out, "\\", std::string(1, static_cast<char>(c)));
    } else if (c < 0x20) {
      absl::StrAppend(&out, absl::StrFormat("\\u%04x", c));
    } else {
      out += static_cast<char>(c);
    }
  }
  return out + "\"";
}

std::string QuotedList(const std::vector<std::string>& list) {
  return absl::StrCat(
      "[", absl::StrJoin(list, ",", [](std::string* o, const auto& s) { *o += Quoted(s); }), "]");
}

const char* VerdictName(check::Verdict verdict) {
  switch (verdict) {
    case check::Verdict::kProved:
      return "proved";
    case check::Verdict::kViolated:
      return "violated";
    case check::Verdict::kUnfinished:
      return "unfinished";
  }
  return "?";
}

// The keys are told in check/README.md; none is renamed or leaves.
std::string Json(const std::string& file, const flow::Plan& plan, const check::Bounds& b,
                 const check::Report& r) {
  return absl::StrCat(
      "{\"file\":", Quoted(file), ",\"storefront\":", Quoted(plan.storefront),
      ",\"revision\":", Quoted(plan.revision), ",\"verdict\":", Quoted(VerdictName(r.verdict)),
      ",\"counted\":", r.counted ? "true" : "false", ",\"bounds\":{\"faults\":", b.fault_count_max,
      ",\"duplicates\":", b.duplicate_count_max, ",\"losses\":", b.loss_count_max,
      ",\"unreachable\":", b.unreachable_count_max, ",\"crashes\":", b.crash_count_max,
      ",\"wipes\":", b.wipe_count_max, ",\"refusals\":", b.refusal_count_max,
      ",\"cancels\":", b.cancel_count_max, "},\"ran_out\":", Quoted(r.ran_out),
      ",\"hazard\":", Quoted(r.hazard), ",\"sentence\":", Quoted(r.sentence),
      ",\"trace\":", QuotedList(r.trace), ",\"moves\":", QuotedList(r.moves),
      ",\"held\":", QuotedList(r.held), ",\"states\":", r.state_count,
      ",\"transitions\":", r.transition_count, ",\"ends\":", r.ended_count,
      ",\"turns\":", r.turn_count, ",\"depth\":", r.depth, ",\"bytes\":", r.bytes,
      ",\"threads\":", r.thread_count, ",\"seconds\":", absl::StrFormat("%.3f", r.seconds),
      ",\"states_per_second\":",
      static_cast<int64_t>(static_cast<double>(r.state_count) / std::max(r.seconds, 1e-6)), "}");
}

std::string JsonOfInvalid(const std::string& file, absl::string_view error) {
  return absl::StrCat("{\"file\":", Quoted(file),
                      ",\"verdict\":\"invalid\",\"error\":", Quoted(std::string(error)), "}");
}

// ---- what is read

absl::StatusOr<std::string> ReadText(const std::string& name) {
  std::ifstream file(name);
  std::stringstream text;
  text << file.rdbuf();
  if (!file.good()) return absl::NotFoundError(absl::StrCat("cannot read ", name));
  return text.str();
}

struct Storefront {
  flow::Plan plan;
  std::string title;  // its names, for the story
};

class NoErrors : public google::protobuf::io::ErrorCollector {
  void AddError(int, google::protobuf::io::ColumnNumber, const std::string&) override {}
};

absl::StatusOr<Storefront> ReadStorefront(const std::string& name) {
  const auto text = ReadText(name);
  if (!text.ok()) return text.status();
  const auto contracts = ContractsFromFlag();
  if (!contracts.ok()) return contracts.status();
  auto plan = flow::ParseStorefront(*text, name, **contracts);
  if (!plan.ok()) return plan.status();
  Storefront storefront{*std::move(plan), ""};
  storefront.title = storefront.plan.storefront;
  storefront::v1::Storefront file;
  google::protobuf::TextFormat::Parser parser;
  NoErrors quiet;
  parser.RecordErrorsTo(&quiet);
  if (parser.ParseFromString(*text, &file) && !file.display_name().ko().empty()) {
    storefront.title = file.display_name().ko();
    if (!file.display_name().en().empty() && file.display_name().en() != file.display_name().ko())
      absl::StrAppend(&storefront.title, " / ", file.display_name().en());
  }
  return storefront;
}

// ---- what is said

// One line of a terminal that is written again and again, or now and then a line of a log.
class Progress {
 public:
  explicit Progress(std::string name)
      : name_(std::move(name)), terminal_(isatty(STDERR_FILENO) == 1) {}
  ~Progress() { Clear(); }
  void Say(const check::Report& so_far) {
    if (so_far.seconds < next_) return;
    next_ = so_far.seconds + (terminal_ ? 0.2 : 5);
    const std::string line = absl::StrFormat(
        "%s: %d states, depth %d, %.0f states/s, %d MiB", name_, so_far.state_count, so_far.depth,
        static_cast<double>(so_far.state_count) / std::max(so_far.seconds, 1e-6),
        so_far.bytes >> 20);
    if (terminal_) {
      std::cerr << "\r\033[K" << line << std::flush;
      dirty_ = true;
    } else {
      std::cerr << line << "\n";
    }
  }
  void Clear() {
    if (dirty_) std::cerr << "\r\033[K" << std::flush;
    dirty_ = false;
  }

 private:
  const std::string name_;
  const bool terminal_;
  double next_ = 1;  // short ones say nothing
  bool dirty_ = false;
};

void SayStory(const std::vector<std::string>& trace, const std::vector<std::string>& held) {
  int number = 0;
  for (const std::string& line : trace) std::cout << absl::StrFormat("%4d. %s\n", ++number, line);
  std::cout << (held.empty() ? "At the end nothing is held.\n" : "At the end is held:\n");
  for (const std::string& line : held) std::cout << "      " << line << "\n";
}

int CheckFile(const std::string& name, const check::Bounds& bounds, const check::Budget& budget) {
  const bool json = absl::GetFlag(FLAGS_json);
  const auto invalid = [&](const absl::Status& status, bool with_name) {
    if (json) {
      std::cout << JsonOfInvalid(name, status.message()) << "\n";
      return kInvalid;
    }
    return Fail(
        "check",
        with_name ? absl::StrCat(name, ": ", status.message()) : std::string(status.message()),
        kInvalid);
  };
  const auto storefront = ReadStorefront(name);
  if (!storefront.ok()) {
    if (json || storefront.status().code() != absl::StatusCode::kInvalidArgument)
      return invalid(storefront.status(), false);
    std::cerr << storefront.status().message() << "\n";
    return kInvalid;
  }
  Progress progress(name);
  const auto report =
      check::Explore(storefront->plan, bounds, budget,
                     [&progress](const check::Report& so_far) { progress.Say(so_far); });
  progress.Clear();
  if (!report.ok()) return invalid(report.status(), true);
  const std::string object = Json(name, storefront->plan, bounds, *report);
  const std::string trace_out = absl::GetFlag(FLAGS_trace_out);
  if (!trace_out.empty() && report->verdict == check::Verdict::kViolated) {
    std::ofstream file(trace_out);
    file << object << "\n";
    if (!file.flush().good())
      return Fail("check", absl::StrCat("cannot write ", trace_out), kInvalid);
  }
  const int exit_code = report->verdict == check::Verdict::kProved     ? kProved
                        : report->verdict == check::Verdict::kViolated ? kViolated
                                                                       : kUnfinished;
  if (json) {
    std::cout << object << "\n";
    return exit_code;
  }
  const std::string size = absl::StrFormat(
      "%d states, %d transitions, depth %d, %.2f s, %.0f states/s, %d threads, %d MiB",
      report->state_count, report->transition_count, report->depth, report->seconds,
      static_cast<double>(report->state_count) / std::max(report->seconds, 1e-6),
      report->thread_count, report->bytes >> 20);
  switch (report->verdict) {
    case check::Verdict::kProved:
      std::cout << absl::StrFormat("%s: proved with %s: %s\n", name, Say(bounds), size);
      break;
    case check::Verdict::kUnfinished:
      std::cout << absl::StrFormat(
          "%s: not proved: nothing found, but there is more to it: %s: %s\n", name, report->ran_out,
          size);
      break;
    case check::Verdict::kViolated:
      std::cout << name << " (" << storefront->title << "): " << report->hazard << ": "
                << report->sentence << "\n";
      SayStory(report->trace, report->held);
      std::cout << "(" << size << ")\n";
      break;
  }
  std::cout << std::flush;
  return exit_code;
}

// ---- stories again

int ReplayTrace(const std::string& name, const std::vector<std::string>& files) {
  const auto text = ReadText(name);
  if (!text.ok()) return Fail("check", text.status().message(), kInvalid);
  google::protobuf::Struct trace;
  if (!google::protobuf::util::JsonStringToMessage(*text, &trace).ok() ||
      !trace.fields().contains("moves") || !trace.fields().contains("file")) {
    return Fail("check", absl::StrCat(name, " was not written by --trace_out"), kInvalid);
  }
  const auto& fields = trace.fields();
  const auto text_of = [&fields](const char* key) {
    return fields.contains(key) ? fields.at(key).string_value() : "";
  };
  const std::string file = files.empty() ? text_of("file") : files[0];
  const auto storefront = ReadStorefront(file);
  if (!storefront.ok()) return Fail("check", storefront.status().message(), kInvalid);
  std::vector<std::string> moves;
  for (const auto& move : fields.at("moves").list_value().values())
    moves.push_back(move.string_value());
  const bool counted = fields.contains("counted") && fields.at("counted").bool_value();
  const auto replayed = check::Replay(storefront->plan, moves, counted);
  if (!replayed.ok()) return Fail("check", replayed.status().message(), kInvalid);
  const bool changed = text_of("revision") != storefront->plan.revision;
  const char* why = changed ? "the storefront has changed since" : "the program has changed since";
  if (replayed->differs_at >= 0) {
    SayStory(replayed->trace, replayed->held);
    std::cout << absl::StrFormat(
        "%s: differs at move %d: \"%s\" cannot happen there (%s). What can:\n", file,
        replayed->differs_at + 1, moves[replayed->differs_at], why);
    for (const std::string& move : replayed->instead) std::cout << "      " << move << "\n";
    return kProved;
  }
  if (replayed->hazard != text_of("hazard")) {
    SayStory(replayed->trace, replayed->held);
    std::cout << absl::StrFormat(
        "%s: differs at its end: %s, and was \"%s\" (%s)\n", file,
        replayed->hazard.empty()
            ? "nothing is violated"
            : absl::StrCat("it is \"", replayed->hazard, "\": ", replayed->sentence),
        text_of("hazard"), why);
    return replayed->hazard.empty() ? kProved : kViolated;
  }
  std::cout << file << " (" << storefront->title << "): " << replayed->hazard << ": "
            << replayed->sentence << "\n";
  SayStory(replayed->trace, replayed->held);
  std::cout << "(the same story" << (changed ? ", although the storefront has changed" : "")
            << ")\n";
  return kViolated;
}

int RunCheck(const std::vector<std::string>& files) {
  const std::string replay = absl::GetFlag(FLAGS_replay);
  if (!replay.empty()) return ReplayTrace(replay, files);
  if (files.empty()) return Fail("check", "names no file; see gaekju check --help", kInvalid);
  const check::Bounds bounds = BoundsFromFlags();
  const check::Budget budget = BudgetFromFlags();
  bool seen[4] = {};
  for (const std::string& file : files) seen[CheckFile(file, bounds, budget)] = true;
  for (const int exit_code : {kViolated, kInvalid, kUnfinished}) {
    if (seen[exit_code]) return exit_code;
  }
  return kProved;
}

}  // namespace

Command CheckCommand() {
  return {
      .name = "check",
      .summary = "prove storefronts, or tell the shortest way to break them",
      .usage =
          "Usage: gaekju check FILE... [--json] [--trace_out=TRACE]\n"
          "       gaekju check FILE... --faults=3 [--losses=1 --crashes=0 ...]\n"
          "       gaekju check --replay=TRACE [FILE]\n"
          "\n"
          "Runs every life that one order can have under the storefront's flows: messages in any "
          "order, twice, lost,\n"
          "calls that are given up and arrive later or never, crashes, a wiped bus, refusals, "
          "people "
          "who answer or never\n"
          "do, and a buyer who cancels at any time. What goes wrong with messages is not counted: "
          "a "
          "proof is one for any\n"
          "number of faults. Given one of --faults, --duplicates, --losses, --unreachable, "
          "--crashes "
          "and --wipes, each\n"
          "fault is counted, and a proof is one within those bounds (--faults: of all kinds "
          "together, "
          "3).\n"
          "\n"
          "What breaks is told as a story with as few faults as possible, and as short as "
          "possible. "
          "--replay takes it\n"
          "again: it ends in the same violation (exit code 1), or goes another way, because the "
          "storefront or the program\n"
          "has changed, and says where (0, when nothing is violated any more).\n"
          "\n"
          "Exit code 0: every file is proved. 1: one is violated. 2: one is no storefront, or "
          "calls a "
          "context of\n"
          "--contracts, whose decisions are not in this program. 3: the budget (--states_max, "
          "--memory_max, --seconds_max)\n"
          "ran out: nothing was found, and nothing is proved.\n",
      .flags = {"contracts", "faults", "duplicates", "losses", "unreachable", "crashes", "wipes",
                "refusals", "cancels", "threads", "states_max", "memory_max", "seconds_max", "json",
                "trace_out", "replay"},
      .run = RunCheck};
}

}  // namespace gaekju::app
