// simulate.cc: `gaekju simulate`: the shops' days in virtual time, seed by seed, on all cores.

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstring>
#include <iostream>
#include <limits>
#include <thread>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "app/command.h"
#include "app/files.h"
#include "app/shops.h"
#include "flow/check.h"
#include "sim/simulator.h"

ABSL_DECLARE_FLAG(uint64_t, seed);
ABSL_DECLARE_FLAG(double, seconds);
ABSL_DECLARE_FLAG(std::string, storefronts);
ABSL_FLAG(std::string, seeds, "", "simulate these, as 1-10000");
ABSL_FLAG(int, orders_each, 0, "orders of a seed; 0: drawn, 1 to 40");
ABSL_FLAG(std::string, fault, "",
          "only these faults, with commas: lose duplicate delay crash abort ambiguous bus_down "
          "wipe rollback unreachable late "
          "slow clock revision; none: nothing goes wrong");
ABSL_FLAG(bool, trace, false, "tell everything that happens; with --seed");
ABSL_FLAG(bool, shrink, true, "make a failing seed smaller before it is told");
ABSL_FLAG(int, processes, 0, "how many work; 0: one a core");
ABSL_FLAG(std::string, only_orders, "",
          "place only these orders of the seed, by number, with commas");
ABSL_FLAG(std::string, only_faults, "",
          "let only these faults strike, by id, with commas; - for none");

namespace gaekju::app {
namespace {

constexpr int kHeld = 0, kViolated = 1, kInvalid = 2;

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// ---- an outcome as lines of text, from one process to another

constexpr int kNumbers = 8;

std::string Encode(uint64_t seed, const sim::Outcome& o) {
  std::string text = absl::StrCat("D ", seed, " ", o.trace_hash);
  for (int64_t number : {o.virtual_us, o.order_count, o.turn_count, o.item_count, o.message_count,
                         o.call_count, o.ended_count, o.waiting_count}) {
    absl::StrAppend(&text, " ", number);
  }
  for (int64_t count : o.fault_counts) absl::StrAppend(&text, " ", count);
  absl::StrAppend(&text, "\nO ", absl::StrJoin(o.orders, ","), "\n");
  for (const std::string& violation : o.violations) {
    absl::StrAppend(&text, "V ", absl::StrJoin(absl::StrSplit(violation, '\n'), " "), "\n");
  }
  return text;
}

void Decode(absl::string_view line, uint64_t* seed, sim::Outcome* o) {
  if (line.size() < 2) return;
  const absl::string_view rest = line.substr(2);
  switch (line[0]) {
    case 'D': {
      const std::vector<absl::string_view> parts = absl::StrSplit(rest, ' ');
      GK_CHECK(parts.size() == 2 + kNumbers + sim::kFaultCount) << line;
      std::array<int64_t*, kNumbers> numbers = {&o->virtual_us,  &o->order_count,   &o->turn_count,
                                                &o->item_count,  &o->message_count, &o->call_count,
                                                &o->ended_count, &o->waiting_count};
      bool good = absl::SimpleAtoi(parts[0], seed) && absl::SimpleAtoi(parts[1], &o->trace_hash);
      for (int i = 0; i < kNumbers; ++i) good = good && absl::SimpleAtoi(parts[2 + i], numbers[i]);
      for (int i = 0; i < sim::kFaultCount; ++i) {
        good = good && absl::SimpleAtoi(parts[2 + kNumbers + i], &o->fault_counts[i]);
      }
      GK_CHECK(good) << line;
      break;
    }
    case 'O':
      for (absl::string_view part : absl::StrSplit(rest, ',', absl::SkipEmpty())) {
        int order = 0;
        if (absl::SimpleAtoi(part, &order)) o->orders.push_back(order);
      }
      break;
    case 'V':
      o->violations.emplace_back(rest);
      break;
    case 'F': {
      const std::vector<absl::string_view> parts = absl::StrSplit(rest, ' ');
      uint32_t id = 0;
      int fault = 0;
      if (parts.size() == 2 && absl::SimpleHexAtoi(parts[1], &id) &&
          absl::SimpleAtoi(parts[0], &fault)) {
        o->faults.push_back({static_cast<sim::Fault>(fault), id});
      }
      break;
    }
    default:
      break;
  }
}

void WriteAll(int fd, absl::string_view text) {
  while (!text.empty()) {
    const ssize_t count = write(fd, text.data(), text.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) _exit(3);
    text.remove_prefix(static_cast<size_t>(count));
  }
}

// A process that writes lines, read as they come.
struct Child {
  pid_t pid = -1;
  int fd = -1;
  std::string buffer;
  uint64_t seed = 0;  // that it is at
  sim::Outcome outcome;
  bool ended = false;

  // Calls `line` for each whole line there is; false at the end.
  bool Read(const std::function<void(absl::string_view)>& line) {
    char bytes[65536];
    ssize_t count;
    do {
      count = read(fd, bytes, sizeof bytes);
    } while (count < 0 && errno == EINTR);
    if (count <= 0) return false;
    buffer.append(bytes, static_cast<size_t>(count));
    size_t begin = 0;
    for (size_t end; (end = buffer.find('\n', begin)) != std::string::npos; begin = end + 1) {
      line(absl::string_view(buffer).substr(begin, end - begin));
    }
    buffer.erase(0, begin);
    return true;
  }
  // Its status, as waitpid has it.
  int Reap() {
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    close(fd);
    ended = true;
    return status;
  }
};

Child Fork(const std::function<void(int fd)>& work) {
  int ends[2];
  GK_CHECK(pipe(ends) == 0);
  std::cout.flush();
  Child child;
  child.pid = fork();
  GK_CHECK(child.pid >= 0);
  if (child.pid == 0) {
    close(ends[0]);
    work(ends[1]);
    _exit(0);
  }
  close(ends[1]);
  child.fd = ends[0];
  return child;
}

std::string HowItDied(int status) {
  return absl::StrCat("the program stopped itself (",
                      WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "it exited",
                      "): one of its checks failed");
}

// One simulation in a process of its own, because a check that fails ends it. `tell`: gets the
// story.
sim::Outcome RunApart(const sim::Shops& shops, sim::Settings settings,
                      const std::function<void(absl::string_view)>& tell) {
  Child child = Fork([&](int fd) {
    if (!tell) close(STDERR_FILENO);
    settings.on_fault = [fd](const sim::FaultRecord& fault) {
      WriteAll(fd,
               absl::StrCat("F ", static_cast<int>(fault.fault), " ", absl::Hex(fault.id), "\n"));
    };
    if (tell)
      settings.tell = [fd](const std::string& line) {
        WriteAll(fd, absl::StrCat("T ", line, "\n"));
      };
    WriteAll(fd, Encode(settings.seed, sim::Simulate(shops, settings)));
  });
  sim::Outcome outcome;
  uint64_t seed = 0;
  while (child.Read([&](absl::string_view line) {
    if (absl::StartsWith(line, "T ") && tell) return tell(line.substr(2));
    Decode(line, &seed, &outcome);
  })) {
  }
  const int status = child.Reap();
  if (status != 0) {
    outcome.violations.push_back(HowItDied(status));
    for (int i = 0; i < 64; ++i) outcome.orders.push_back(i);  // whichever there were
  }
  return outcome;
}

std::string ReplayCommand(const sim::Settings& settings, const std::vector<std::string>& files) {
  std::string command = absl::StrCat("gaekju simulate ", absl::StrJoin(files, " "),
                                     " --seed=", settings.seed, " --trace");
  if (settings.order_count > 0) absl::StrAppend(&command, " --orders-each=", settings.order_count);
  if (settings.no_faults) absl::StrAppend(&command, " --fault=none");
  if (!settings.faults.empty()) {
    absl::StrAppend(&command, " --fault=",
                    absl::StrJoin(settings.faults, ",", [](std::string* out, sim::Fault fault) {
                      absl::StrAppend(out, sim::FaultName(fault));
                    }));
  }
  if (settings.only_orders.has_value())
    absl::StrAppend(&command, " --only-orders=", absl::StrJoin(*settings.only_orders, ","));
  if (settings.only_faults.has_value()) {
    absl::StrAppend(
        &command, " --only-faults=",
        settings.only_faults->empty()
            ? "-"
            : absl::StrJoin(*settings.only_faults, ",", [](std::string* out, uint32_t id) {
                absl::StrAppend(out, absl::Hex(id));
              }));
  }
  return command;
}

// Tells why a seed fails, as short as it can be told.
void Explain(const sim::Shops& shops, sim::Settings settings,
             const std::vector<std::string>& files) {
  if (absl::GetFlag(FLAGS_shrink)) {
    const sim::Outcome first = RunApart(shops, settings, nullptr);
    int runs = 0;
    const auto start = Clock::now();
    settings = sim::Shrink(settings, first, [&](const sim::Settings& smaller) {
      if (SecondsSince(start) > 120) return sim::Outcome();  // small enough
      ++runs;
      return RunApart(shops, smaller, nullptr);
    });
    std::cout << absl::StrFormat("seed %d, made smaller in %d runs: %d orders, %d faults\n",
                                 settings.seed, runs, settings.only_orders->size(),
                                 settings.only_faults->size());
  }
  const sim::Outcome last =
      RunApart(shops, settings, [](absl::string_view line) { std::cout << line << "\n"; });
  for (const std::string& violation : last.violations)
    std::cout << "violated: " << violation << "\n";
  std::cout << "replay:   " << ReplayCommand(settings, files) << "\n";
}

struct Totals {
  int64_t seed_count = 0;
  sim::Outcome sum;
  void Add(const sim::Outcome& o) {
    ++seed_count;
    sum.virtual_us += o.virtual_us;
    sum.order_count += o.order_count;
    sum.turn_count += o.turn_count;
    sum.item_count += o.item_count;
    sum.message_count += o.message_count;
    sum.call_count += o.call_count;
    sum.ended_count += o.ended_count;
    sum.waiting_count += o.waiting_count;
    for (int i = 0; i < sim::kFaultCount; ++i) sum.fault_counts[i] += o.fault_counts[i];
  }
  std::string Line(double seconds) const {
    int64_t faults = 0;
    for (int64_t count : sum.fault_counts) faults += count;
    return absl::StrFormat("%d seeds, %.1f seeds/s, %d orders, %d faults; %.0f times real time",
                           seed_count, static_cast<double>(seed_count) / std::max(seconds, 1e-6),
                           sum.order_count, faults,
                           static_cast<double>(sum.virtual_us) / 1e6 / std::max(seconds, 1e-6));
  }
};

int RunSeeds(const sim::Shops& shops, const sim::Settings& settings, uint64_t first, uint64_t last,
             const std::vector<std::string>& files) {
  const double seconds_max = absl::GetFlag(FLAGS_seconds);
  uint64_t processes = static_cast<uint64_t>(
      std::max(1, absl::GetFlag(FLAGS_processes) > 0
                      ? absl::GetFlag(FLAGS_processes)
                      : static_cast<int>(std::thread::hardware_concurrency())));
  processes = std::min(processes, last - first + 1);
  const auto start = Clock::now();
  std::vector<Child> children;
  auto begin_at = [&](uint64_t from) {
    return Fork([&, from](int fd) {
      sim::Settings own = settings;
      for (uint64_t seed = from; seed <= last && seed >= from; seed += processes) {
        if (seconds_max > 0 && SecondsSince(start) > seconds_max) break;
        WriteAll(fd, absl::StrCat("S ", seed, "\n"));
        own.seed = seed;
        WriteAll(fd, absl::StrCat(Encode(seed, sim::Simulate(shops, own)), "E \n"));
      }
    });
  };
  for (uint64_t i = 0; i < processes; ++i) children.push_back(begin_at(first + i));
  Totals totals;
  std::vector<uint64_t> failing;
  auto progress_at = start + std::chrono::seconds(5);
  while (std::any_of(children.begin(), children.end(),
                     [](const Child& child) { return !child.ended; })) {
    std::vector<pollfd> polls;
    for (const Child& child : children) polls.push_back({child.ended ? -1 : child.fd, POLLIN, 0});
    poll(polls.data(), polls.size(), 1000);
    for (size_t i = 0; i < polls.size(); ++i) {
      if (polls[i].revents == 0) continue;
      Child& child = children[i];
      const bool goes_on = child.Read([&](absl::string_view line) {
        if (absl::StartsWith(line, "S ")) {
          GK_CHECK(absl::SimpleAtoi(line.substr(2), &child.seed)) << line;
          child.outcome = {};
        } else if (absl::StartsWith(line, "E ")) {
          totals.Add(child.outcome);
          if (!child.outcome.violations.empty()) {
            failing.push_back(child.seed);
            std::cout << "seed " << child.seed << ": " << child.outcome.violations[0] << std::endl;
          }
        } else {
          uint64_t seed = 0;
          Decode(line, &seed, &child.outcome);
        }
      });
      if (goes_on) continue;
      const int status = child.Reap();
      if (status == 0) continue;
      ++totals.seed_count;
      failing.push_back(child.seed);
      std::cout << "seed " << child.seed << ": " << HowItDied(status) << std::endl;
      const uint64_t next = child.seed + processes;
      if (failing.size() < 20 && next <= last) child = begin_at(next);
    }
    if (Clock::now() >= progress_at) {
      progress_at = Clock::now() + std::chrono::seconds(5);
      std::cerr << totals.Line(SecondsSince(start)) << ", " << failing.size() << " failing"
                << std::endl;
    }
  }
  const double seconds = SecondsSince(start);
  std::cout << totals.Line(seconds) << "\n";
  std::cout << absl::StrFormat(
      "%d turns of %d requests and messages, %d bus messages, %d calls; %d orders ended, %d wait "
      "for people\n",
      totals.sum.turn_count, totals.sum.item_count, totals.sum.message_count, totals.sum.call_count,
      totals.sum.ended_count, totals.sum.waiting_count);
  std::string kinds;
  for (int i = 0; i < sim::kFaultCount; ++i) {
    absl::StrAppend(&kinds, i == 0 ? "" : ", ", sim::FaultName(static_cast<sim::Fault>(i)), " ",
                    totals.sum.fault_counts[i]);
  }
  std::cout << "faults: " << kinds << "\n";
  if (failing.empty()) return kHeld;
  std::sort(failing.begin(), failing.end());
  std::cout << failing.size() << " of " << totals.seed_count
            << " seeds failed: " << absl::StrJoin(failing, " ") << "\n";
  sim::Settings one = settings;
  one.seed = failing[0];
  Explain(shops, one, files);
  return kViolated;
}

int RunSimulate(const std::vector<std::string>& arguments) {
  std::vector<std::string> files = arguments;
  if (files.empty()) {
    std::string directory = absl::GetFlag(FLAGS_storefronts);
    if (directory.empty()) directory = FindStorefronts();
    for (const std::string& shop : ShopsIn(directory))
      files.push_back(absl::StrCat(directory, "/", shop, ".textproto"));
    if (files.empty())
      return Fail("simulate", "finds no storefront; see gaekju simulate --help", kInvalid);
  }
  std::vector<sim::Shops::File> texts;
  for (const std::string& file : files) {
    auto text = ReadFile(file);
    if (!text.ok()) return Fail("simulate", text.status().message(), kInvalid);
    texts.push_back({file, *std::move(text)});
  }
  const auto shops = sim::Shops::Parse(texts);
  if (!shops.ok()) {
    std::cerr << shops.status().message() << "\n";
    return kInvalid;
  }

  sim::Settings settings;
  settings.order_count = absl::GetFlag(FLAGS_orders_each);
  for (absl::string_view name :
       absl::StrSplit(absl::GetFlag(FLAGS_fault), ',', absl::SkipEmpty())) {
    const auto fault = sim::FaultOfName(name);
    if (name == "none") {
      settings.no_faults = true;
    } else if (!fault.has_value()) {
      return Fail("simulate",
                  absl::StrCat("knows no fault \"", name, "\"; see gaekju simulate --help"),
                  kInvalid);
    } else {
      settings.faults.insert(*fault);
    }
  }
  if (!absl::GetFlag(FLAGS_only_orders).empty()) {
    settings.only_orders.emplace();
    for (absl::string_view part : absl::StrSplit(absl::GetFlag(FLAGS_only_orders), ',')) {
      int order = 0;
      if (!absl::SimpleAtoi(part, &order))
        return Fail("simulate", "--only-orders takes numbers, with commas", kInvalid);
      settings.only_orders->insert(order);
    }
  }
  if (!absl::GetFlag(FLAGS_only_faults).empty()) {
    settings.only_faults.emplace();
    for (absl::string_view part : absl::StrSplit(absl::GetFlag(FLAGS_only_faults), ',')) {
      uint32_t id = 0;
      if (part == "-") continue;
      if (!absl::SimpleHexAtoi(part, &id))
        return Fail("simulate", "--only-faults takes ids, with commas", kInvalid);
      settings.only_faults->insert(id);
    }
  }

  const std::string seeds = absl::GetFlag(FLAGS_seeds);
  uint64_t first = absl::GetFlag(FLAGS_seed), last = first;
  if (!seeds.empty()) {
    const std::pair<absl::string_view, absl::string_view> ends =
        absl::StrSplit(seeds, absl::MaxSplits('-', 1));
    if (!absl::SimpleAtoi(ends.first, &first) || !absl::SimpleAtoi(ends.second, &last) ||
        first > last) {
      return Fail("simulate", "--seeds takes a first and a last, as 1-10000", kInvalid);
    }
  } else if (first == 0) {
    first = static_cast<uint64_t>(std::chrono::system_clock::now().time_since_epoch().count()) %
                1'000'000'000 +
            1;
    last =
        absl::GetFlag(FLAGS_seconds) > 0 ? std::numeric_limits<uint64_t>::max() / 2 : first + 999;
    std::cout << "seeds from " << first << "\n";
  }
  if (first == last && absl::GetFlag(FLAGS_trace)) {
    settings.seed = first;
    const sim::Outcome outcome =
        RunApart(*shops, settings, [](absl::string_view line) { std::cout << line << "\n"; });
    for (const std::string& violation : outcome.violations)
      std::cout << "violated: " << violation << "\n";
    std::cout << absl::StrFormat("trace %016x, %d orders, %d faults, %.1f virtual s\n",
                                 outcome.trace_hash, outcome.order_count, outcome.faults.size(),
                                 static_cast<double>(outcome.virtual_us) / 1e6);
    return outcome.violations.empty() ? kHeld : kViolated;
  }
  return RunSeeds(*shops, settings, first, last,
                  arguments.empty() ? std::vector<std::string>() : files);
}

}  // namespace

Command SimulateCommand() {
  return {.name = "simulate",
          .summary =
              "run many orders of many buyers in virtual time, with everything that can go wrong",
          .usage =
              "Usage: gaekju simulate [FILE...] [--seed=N | --seeds=A-B] [--seconds=S]\n"
              "\n"
              "Simulates the storefronts of --storefronts (or the FILEs): all contexts with their "
              "turns, outbox, relay, bus, calls\n"
              "and databases, buyers, owners and couriers, and faults that each seed draws. What "
              "decides is the code that serves.\n"
              "A seed replays exactly. One that fails is made smaller, and told as a story with "
              "the command that replays it.\n"
              "Without --seed or --seeds: 1,000 seeds from a random one on, or as many as "
              "--seconds allows.\n"
              "Exit code 0: all that must hold held. 1: something is violated. 2: called wrongly, "
              "or a file is no storefront.\n",
          .flags = {"seed", "seeds", "seconds", "storefronts", "orders_each", "fault", "trace",
                    "shrink", "processes", "only_orders", "only_faults"},
          .run = RunSimulate};
}

}  // namespace gaekju::app
