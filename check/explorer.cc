#include "check/explorer.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "check/node_table.h"
#include "check/pool.h"
#include "check/world.h"

namespace gaekju::check {
namespace {

using Clock = std::chrono::steady_clock;
using Levels = std::array<uint32_t, NodeTable::kShards>;  // of each shard

constexpr uint32_t kTaskNodes = 512;
constexpr int kBatchTasks = 64;
// Of a search for the story of a violation that is known.
constexpr int64_t kStoryStatesMax = 20'000'000;
constexpr char kReopened[] = "reopened";
constexpr char kAllLost[] = "everything that is under way is lost";

// Of the parts of a report that are shared by all searches of one exploration.
class Exploration {
 public:
  Exploration(const flow::Plan& plan, const Budget& budget,
              const std::function<void(const Report&)>& progress)
      : budget_(budget),
        progress_(progress),
        start_(Clock::now()),
        world_(plan),
        pool_(Threads(budget)),
        workers_(pool_.size()) {}

  absl::Status Prepare(const std::vector<const flow::Context*>& contexts) {
    return world_.Prepare(contexts);
  }
  Report Explore(const Bounds& bounds);
  Replayed Replay(const std::vector<std::string>& moves, bool counted);

 private:
  // What one thread does at a time: expand some states of one shard.
  struct Successor {
    Node node;
    uint32_t parent;
    uint64_t hash;
  };
  struct Task {
    int shard = 0;
    uint32_t begin = 0, end = 0;
    std::array<std::vector<Successor>, NodeTable::kShards> found;
    int64_t transitions = 0, ended = 0;
    int64_t bad = -1;  // the best violating state: with the fewest faults, then the first
    int bad_faults = 0;
    bool bad_reopens = false;  // what is bad is a move from there
  };

  // What a thread found last. Most successors were just found from a neighbour too; those need not
  // travel to their shard again.
  struct Seen {
    uint64_t hash = 0;
    Node node;
  };
  static constexpr size_t kRecent = 2048;

  static int Threads(const Budget& budget) {
    if (budget.thread_count > 0) return budget.thread_count;
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
  double Seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  Report Search(Network network, const Bounds& bounds, int64_t state_count_max);
  void ExpandTask(World::Worker& worker, const NodeTable& nodes, Network network,
                  const Bounds& bounds, bool only_look, std::vector<Seen>* recent, Task* task);
  // Of what ran out; empty: nothing.
  std::string RanOut(const NodeTable& nodes, int64_t state_count_max) const;
  int64_t Bytes(const NodeTable& nodes) const;
  // A state from which the order can never end; -1: none.
  int64_t FindStuck(const NodeTable& nodes, const std::vector<Levels>& levels, bool all_lost);
  using CanEnd = absl::flat_hash_set<Node>;
  bool EndsFrom(World::Worker& worker, const Node& settled, CanEnd* known);
  void Tell(const NodeTable& nodes, uint32_t ref, Network network, const Bounds& bounds,
            Report* report);
  void TellReopening(const Node& node, Network network, const Bounds& bounds, Report* report);

  const Budget budget_;
  const std::function<void(const Report&)> progress_;
  const Clock::time_point start_;
  World world_;
  Pool pool_;
  std::vector<World::Worker> workers_;
};

// ---------------------------------------------------------------- the search

void Exploration::ExpandTask(World::Worker& worker, const NodeTable& nodes, Network network,
                             const Bounds& bounds, bool only_look, std::vector<Seen>* recent,
                             Task* task) {
  std::string sentence;
  const auto offer = [task](uint32_t ref, const Node& node, bool reopens) {
    if (task->bad >= 0 && node.faults() >= task->bad_faults) return;
    task->bad = ref;
    task->bad_faults = node.faults();
    task->bad_reopens = reopens;
  };
  for (uint32_t i = task->begin; i < task->end; ++i) {
    const Node& node = nodes.At(task->shard, i);
    task->ended += world_.Ended(node, network);
    if (!world_.Violation(node, network, &sentence).empty()) {
      offer(NodeTable::Ref(task->shard, i), node, false);
      continue;
    }
    if (only_look) continue;
    const uint32_t parent = NodeTable::Ref(task->shard, i);
    const bool ended = world_.OrderEnded(node);
    world_.Expand(worker, node, network, bounds,
                  [&](const Node& next, uint64_t hash, const Move& move) {
                    if (ended && !world_.Reopens(node, next, move).empty())
                      offer(parent, node, true);
                    ++task->transitions;
                    Seen& seen = (*recent)[hash >> 20 & (kRecent - 1)];
                    if (seen.hash == hash && seen.node == next) return;
                    seen = {hash, next};
                    task->found[NodeTable::ShardOf(hash)].push_back({next, parent, hash});
                  });
  }
}

int64_t Exploration::Bytes(const NodeTable& nodes) const {
  int64_t bytes = nodes.bytes() + world_.bytes();
  for (const World::Worker& worker : workers_) bytes += worker.bytes();
  return bytes;
}

std::string Exploration::RanOut(const NodeTable& nodes, int64_t state_count_max) const {
  if (world_.full()) return "the numbers for the contexts' rows are used up";
  if (nodes.size() > state_count_max) return absl::StrCat("more than ", state_count_max, " states");
  if (Bytes(nodes) > budget_.bytes_max)
    return absl::StrCat("more than ", budget_.bytes_max >> 20, " MiB");
  if (budget_.seconds_max > 0 && Seconds() > budget_.seconds_max)
    return absl::StrCat("more than ", budget_.seconds_max, " s");
  return "";
}

// Breadth first, level by level. A batch of the level is expanded, by all threads, into what each
// task finds for each shard; then each shard takes in what is for it, in the order of the tasks. So
// the order of a shard, and which parent a state has, are the same for any number of threads.
Report Exploration::Search(Network network, const Bounds& bounds, int64_t state_count_max) {
  Report report;
  report.counted = network == Network::kCounted;
  report.thread_count = pool_.size();
  NodeTable nodes;
  {
    const Node first;
    const uint64_t hash = world_.HashOf(first);
    nodes.Insert(NodeTable::ShardOf(hash), first, hash, 0);
  }
  std::vector<Levels> levels(1);  // where each level begins
  levels[0].fill(0);
  std::vector<Task> tasks(kBatchTasks);
  std::vector<std::vector<Seen>> recent(workers_.size(), std::vector<Seen>(kRecent));
  const auto fill = [&] {
    report.state_count = nodes.size();
    report.turn_count = world_.turn_count();
    report.bytes = Bytes(nodes);
    report.seconds = Seconds();
  };
  for (bool found = false;;) {
    const Levels begin = levels.back();
    Levels end;
    for (int s = 0; s < NodeTable::kShards; ++s) end[s] = nodes.size(s);
    int64_t bad = -1;
    int bad_faults = 0;
    bool bad_reopens = false;
    int shard = 0;
    uint32_t at = begin[0];
    while (shard < NodeTable::kShards) {
      int count = 0;
      for (; count < kBatchTasks && shard < NodeTable::kShards;) {
        if (at >= end[shard]) {
          if (++shard < NodeTable::kShards) at = begin[shard];
          continue;
        }
        Task& task = tasks[count++];
        task.shard = shard;
        task.begin = at;
        task.end = at = std::min(end[shard], at + kTaskNodes);
        task.transitions = task.ended = 0;
        task.bad = -1;
        for (auto& of_shard : task.found) of_shard.clear();
      }
      pool_.Run(count, [&](int thread, int i) {
        ExpandTask(workers_[thread], nodes, network, bounds, found, &recent[thread], &tasks[i]);
      });
      for (int i = 0; i < count; ++i) {
        const Task& task = tasks[i];
        if (!found) report.transition_count += task.transitions;
        report.ended_count += task.ended;
        if (task.bad >= 0 && (bad < 0 || task.bad_faults < bad_faults)) {
          bad = task.bad;
          bad_faults = task.bad_faults;
          bad_reopens = task.bad_reopens;
        }
      }
      found = bad >= 0;
      if (found) continue;
      pool_.Run(NodeTable::kShards, [&](int, int s) {
        for (int i = 0; i < count; ++i) {
          const std::vector<Successor>& of_shard = tasks[i].found[s];
          constexpr size_t kAhead = 8;
          for (size_t k = 0; k < of_shard.size(); ++k) {
            if (k + kAhead < of_shard.size()) nodes.Prefetch(s, of_shard[k + kAhead].hash);
            nodes.Insert(s, of_shard[k].node, of_shard[k].hash, of_shard[k].parent);
          }
        }
      });
      if (report.ran_out = RanOut(nodes, state_count_max); !report.ran_out.empty()) {
        fill();
        return report;
      }
      if (progress_) {
        fill();
        progress_(report);
      }
    }
    if (found) {
      fill();
      report.state_count = 0;  // without those of the next level
      for (uint32_t size : end) report.state_count += size;
      report.verdict = Verdict::kViolated;
      const auto ref = static_cast<uint32_t>(bad);
      Tell(nodes, ref, network, bounds, &report);
      if (bad_reopens) {
        TellReopening(nodes[ref], network, bounds, &report);
      } else {
        report.hazard = world_.Violation(nodes[ref], network, &report.sentence);
      }
      return report;
    }
    int64_t more = 0;
    for (int s = 0; s < NodeTable::kShards; ++s) more += nodes.size(s) - end[s];
    if (more == 0) break;
    levels.push_back(end);
    ++report.depth;
  }
  // With faults, everything under way may be lost at any time.
  const bool all_lost = network == Network::kAny || bounds.fault_count_max > 0;
  const int64_t stuck = FindStuck(nodes, levels, all_lost);
  fill();
  if (stuck < 0) {
    report.verdict = Verdict::kProved;
    return report;
  }
  const Node& node = nodes[static_cast<uint32_t>(stuck)];
  report.verdict = Verdict::kViolated;
  report.hazard = "stuck";
  report.sentence = world_.StuckSentence(node);
  Tell(nodes, static_cast<uint32_t>(stuck), network, bounds, &report);
  if (all_lost && node.flight != 0) report.trace.push_back(kAllLost);
  return report;
}

// ---------------------------------------------------------------- that every order can end

// Whether an end can be reached from `settled` by what happens by itself. What is known to reach
// one is remembered.
bool Exploration::EndsFrom(World::Worker& worker, const Node& settled, CanEnd* known) {
  if (known->contains(settled)) return true;
  Bounds nothing;
  nothing.fault_count_max = nothing.refusal_count_max = nothing.cancel_count_max = 0;
  struct Frame {
    Node node;
    std::vector<Node> next;
  };
  std::vector<Frame> path;
  CanEnd visited;
  const auto visit = [&](const Node& node) {
    visited.insert(node);
    path.push_back({node, {}});
    std::vector<Node>& next = path.back().next;
    world_.Expand(worker, node, Network::kCounted, nothing,
                  [&](const Node& to, uint64_t, const Move& move) {
                    if (move.fair()) next.push_back(to);
                  });
    std::reverse(next.begin(), next.end());
  };
  visit(settled);
  while (!path.empty()) {
    const Node node = path.back().node;
    if (world_.Ended(node, Network::kCounted) || known->contains(node)) {
      for (const Frame& frame : path) known->insert(frame.node);
      return true;
    }
    if (path.back().next.empty()) {
      path.pop_back();
      continue;
    }
    const Node next = path.back().next.back();
    path.back().next.pop_back();
    if (!visited.contains(next)) visit(next);
  }
  return false;
}

int64_t Exploration::FindStuck(const NodeTable& nodes, const std::vector<Levels>& levels,
                               bool all_lost) {
  std::vector<CanEnd> known(workers_.size()), stuck(workers_.size()), looked(workers_.size());
  pool_.Run(NodeTable::kShards, [&](int thread, int s) {
    for (uint32_t i = 0; i < nodes.size(s); ++i) {
      if (!nodes.At(s, i).started) continue;
      const Node settled = world_.Settled(nodes.At(s, i), all_lost);
      if (!looked[thread].insert(settled).second) continue;
      if (!EndsFrom(workers_[thread], settled, &known[thread])) stuck[thread].insert(settled);
    }
  });
  CanEnd all;
  for (const CanEnd& of_thread : stuck) all.insert(of_thread.begin(), of_thread.end());
  if (all.empty()) return -1;
  // The first at which nothing is in flight tells most.
  int64_t first = -1;
  for (size_t level = 0; level < levels.size(); ++level) {
    for (int s = 0; s < NodeTable::kShards; ++s) {
      const uint32_t end = level + 1 < levels.size() ? levels[level + 1][s] : nodes.size(s);
      for (uint32_t i = levels[level][s]; i < end; ++i) {
        const Node& node = nodes.At(s, i);
        if (!node.started || !all.contains(world_.Settled(node, all_lost))) continue;
        if (node.flight == 0) return NodeTable::Ref(s, i);
        if (first < 0) first = NodeTable::Ref(s, i);
      }
    }
  }
  return first;
}

// ---------------------------------------------------------------- the story

void Exploration::Tell(const NodeTable& nodes, uint32_t ref, Network network, const Bounds& bounds,
                       Report* report) {
  std::vector<Node> path;
  while (nodes[ref].started) {
    path.push_back(nodes[ref]);
    ref = nodes.parent(ref);
  }
  path.push_back(nodes[ref]);
  std::reverse(path.begin(), path.end());
  for (size_t i = 1; i < path.size(); ++i) {
    bool told = false;
    world_.Expand(workers_[0], path[i - 1], network, bounds,
                  [&](const Node& next, uint64_t, const Move& move) {
                    if (told || !(next == path[i])) return;
                    told = true;
                    report->trace.push_back(world_.Line(path[i - 1], path[i], move));
                    report->moves.push_back(world_.Label(move));
                  });
  }
  report->held = world_.HeldBy(path.back());
}

void Exploration::TellReopening(const Node& node, Network network, const Bounds& bounds,
                                Report* report) {
  report->hazard = kReopened;
  world_.Expand(workers_[0], node, network, bounds,
                [&](const Node& next, uint64_t, const Move& move) {
                  if (!report->sentence.empty()) return;
                  report->sentence = world_.Reopens(node, next, move);
                  if (report->sentence.empty()) return;
                  report->trace.push_back(world_.Line(node, next, move));
                  report->moves.push_back(world_.Label(move));
                  report->held = world_.HeldBy(next);
                });
}

Report Exploration::Explore(const Bounds& bounds) {
  if (bounds.counted) return Search(Network::kCounted, bounds, budget_.state_count_max);
  Report any = Search(Network::kAny, bounds, budget_.state_count_max);
  if (any.verdict != Verdict::kViolated) return any;
  // The story, with as few faults as possible.
  const int64_t states_max = std::min(budget_.state_count_max, kStoryStatesMax);
  for (int faults = 0; faults <= bounds.fault_count_max; ++faults) {
    Bounds few = bounds;
    few.fault_count_max = faults;
    Report story = Search(Network::kCounted, few, states_max);
    if (story.verdict == Verdict::kViolated) return story;
    if (story.verdict == Verdict::kUnfinished) break;
  }
  any.seconds = Seconds();
  return any;
}

Replayed Exploration::Replay(const std::vector<std::string>& moves, bool counted) {
  const Network network = counted ? Network::kCounted : Network::kAny;
  Bounds bounds;
  bounds.fault_count_max = 35;
  bounds.duplicate_count_max = bounds.loss_count_max = bounds.unreachable_count_max =
      bounds.crash_count_max = bounds.cancel_count_max = 7;
  bounds.wipe_count_max = 3;
  Replayed replayed;
  Node node;
  std::string reopens;  // of the last move
  for (size_t i = 0; i < moves.size(); ++i) {
    bool taken = false;
    Node to;
    world_.Expand(workers_[0], node, network, bounds,
                  [&](const Node& next, uint64_t, const Move& move) {
                    if (taken) return;
                    const std::string label = world_.Label(move);
                    replayed.instead.push_back(label);
                    if (label != moves[i]) return;
                    taken = true;
                    replayed.trace.push_back(world_.Line(node, next, move));
                    reopens = world_.Reopens(node, next, move);
                    to = next;
                  });
    if (!taken) {
      replayed.differs_at = static_cast<int>(i);
      return replayed;
    }
    node = to;
    replayed.instead.clear();
  }
  replayed.held = world_.HeldBy(node);
  // A move is judged before the state that it leads to, as in the search.
  if (!reopens.empty()) {
    replayed.hazard = kReopened;
    replayed.sentence = reopens;
  } else {
    replayed.hazard = world_.Violation(node, network, &replayed.sentence);
  }
  CanEnd known;
  if (replayed.hazard.empty() && node.started &&
      !EndsFrom(workers_[0], world_.Settled(node, true), &known)) {
    replayed.hazard = "stuck";
    replayed.sentence = world_.StuckSentence(node);
  }
  return replayed;
}

absl::Status CheckBounds(const Bounds& b) {
  const std::pair<int, int> limits[] = {{b.duplicate_count_max, 7},   {b.loss_count_max, 7},
                                        {b.unreachable_count_max, 7}, {b.crash_count_max, 7},
                                        {b.wipe_count_max, 3},        {b.refusal_count_max, 15},
                                        {b.cancel_count_max, 7}};
  for (const auto& [bound, max] : limits) {
    if (bound < 0 || bound > max) {
      return absl::InvalidArgumentError(
          "a bound is out of range: up to 7 duplicates, 7 losses, 7 unreachable calls, 7 crashes, "
          "3 wipes, 15 refusals and 7 cancels can be counted");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Report> Explore(const flow::Plan& plan, const Bounds& bounds, const Budget& budget,
                               const std::function<void(const Report&)>& progress,
                               const std::vector<const flow::Context*>& contexts) {
  if (absl::Status status = CheckBounds(bounds); !status.ok()) return status;
  const auto exploration = std::make_unique<Exploration>(plan, budget, progress);
  if (absl::Status status = exploration->Prepare(contexts); !status.ok()) return status;
  return exploration->Explore(bounds);
}

absl::StatusOr<Replayed> Replay(const flow::Plan& plan, const std::vector<std::string>& moves,
                                bool counted, const std::vector<const flow::Context*>& contexts) {
  Budget one;
  one.thread_count = 1;
  const auto exploration = std::make_unique<Exploration>(plan, one, nullptr);
  if (absl::Status status = exploration->Prepare(contexts); !status.ok()) return status;
  return exploration->Replay(moves, counted);
}

}  // namespace gaekju::check
