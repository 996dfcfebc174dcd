// turn_run.h: what a shell does with a batch of requests between taking them and answering them:
// which rows they touch, each handler in order, the answers of commands, and what becomes of each
// item once the turn is committed. The runtime's loop runs it over PostgreSQL, the simulator over
// rows in memory; so a turn that the simulator has seen is a turn of production.
//
//   TurnRunner runner(context, /*item_retries_max=*/8);
//   Turn turn(now_us);
//   absl::Status status = store.Load(runner.Keys(items), &turn);        // the shell's
//   runner.Handle(items, turn);
//   status = store.Commit(turn);                                        // the shell's; not OK: all
//   again, from Load TurnEnd<Item> end = EndTurn(std::move(items), std::move(turn.resolved()),
//   &waiters);  // only now anybody is told
//
// Promises:
// 1. Items are handled in their order, and each sees what the earlier ones of its turn have
// changed.
// 2. Running a turn again, from Load, with the same items is safe at any time before EndTurn.
// 3. Who waits is parked before the turn's own resolutions are looked at: a later item of the same
// turn may resolve
//    what an earlier one waits for.
//
// Pure. A runner may be used by several threads; a turn and its items belong to one.
#ifndef GAEKJU_FLOW_TURN_RUN_H_
#define GAEKJU_FLOW_TURN_RUN_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "flow/turn.h"

namespace gaekju::flow {

// One thing that a turn decides. A shell derives its own from it: who asked, and how they are
// answered.
struct TurnItem {
  enum class Kind { kRequest, kCommand, kEvent, kResult, kTimer };
  Kind kind = Kind::kRequest;
  const Handler* handler = nullptr;                    // kRequest, kCommand, kEvent
  std::unique_ptr<google::protobuf::Message> message;  // the same
  Caller caller;
  std::string order_id, step_id;  // kCommand
  bool undo = false;
  StepResult result;      // kResult
  std::string timer_key;  // kTimer

  // Of the runner:
  bool has_keys = false;
  std::vector<RowKey> keys;
  bool is_bad = false;  // refused without a handler: `answer` is the refusal
  Answer answer;        // after Handle
  int retries = 0;
};

class TurnRunner {
 public:
  // A B-tree entry of PostgreSQL holds at most 2,704 bytes.
  static constexpr size_t kKeyBytesMax = 1024;

  // `context` outlives the runner. `item_retries_max`: kRetry answers that one item may have.
  TurnRunner(const Context& context, int item_retries_max);

  // By the full name of the method or of the event's message; null when the context has none.
  const Handler* FindHandler(absl::string_view method) const;
  const Handler* FindEvent(absl::string_view type) const;

  // The rows that the items touch, each once. Commands are validated here; requests were when they
  // came.
  template <class Item>
  std::vector<RowKey> Keys(const std::vector<std::unique_ptr<Item>>& items) const {
    std::vector<RowKey> keys;
    absl::flat_hash_set<RowKey> seen;
    for (const auto& item : items) {
      CollectKeys(*item);
      for (const RowKey& key : item->keys) {
        if (seen.insert(key).second) keys.push_back(key);
      }
    }
    return keys;
  }
  // Decides one. REQUIRES: the rows of Keys() are in the turn.
  void Handle(TurnItem& item, Turn& turn) const;
  // Decides them all, as if one after the other.
  template <class Item>
  void Handle(const std::vector<std::unique_ptr<Item>>& items, Turn& turn) const {
    for (const auto& item : items) Handle(*item, turn);
  }

 private:
  void CollectKeys(TurnItem& item) const;
  void AnswerCommand(const TurnItem& item, Turn& turn) const;

  const Context& context_;
  const int item_retries_max_;
  absl::flat_hash_map<std::string, const Handler*> handlers_;
  absl::flat_hash_map<std::string, const Handler*> events_;
  absl::flat_hash_map<const Handler*, std::string> response_types_;
};

// Who waits until a turn resolves a key. Item is a TurnItem with a `uint64_t ticket` of its own.
template <class Item>
class Waiters {
 public:
  void Park(std::string key, std::unique_ptr<Item> item) {
    const uint64_t ticket = item->ticket;
    by_ticket_[ticket] = by_key_.emplace(std::move(key), std::move(item));
  }
  // Takes out all who wait for `key`, in the order in which they came.
  std::vector<std::unique_ptr<Item>> Resolve(const std::string& key) {
    std::vector<std::unique_ptr<Item>> found;
    const auto [first, last] = by_key_.equal_range(key);
    for (auto it = first; it != last; ++it) {
      by_ticket_.erase(it->second->ticket);
      found.push_back(std::move(it->second));
    }
    by_key_.erase(first, last);
    return found;
  }
  // Takes one out; null when it does not wait.
  std::unique_ptr<Item> Take(uint64_t ticket) {
    const auto it = by_ticket_.find(ticket);
    if (it == by_ticket_.end()) return nullptr;
    std::unique_ptr<Item> item = std::move(it->second->second);
    by_key_.erase(it->second);
    by_ticket_.erase(it);
    return item;
  }
  // Takes out all for whom `is_gone` holds.
  template <class Predicate>
  std::vector<std::unique_ptr<Item>> TakeIf(Predicate is_gone) {
    std::vector<std::unique_ptr<Item>> found;
    for (auto it = by_key_.begin(); it != by_key_.end();) {
      if (is_gone(*it->second)) {
        by_ticket_.erase(it->second->ticket);
        found.push_back(std::move(it->second));
        it = by_key_.erase(it);
      } else {
        ++it;
      }
    }
    return found;
  }
  // What is waited for, each key once, in order, from the first after `after`; at most `count_max`.
  std::vector<std::string> KeysAfter(const std::string& after, size_t count_max) const {
    std::vector<std::string> keys;
    for (auto it = by_key_.upper_bound(after); it != by_key_.end() && keys.size() < count_max;
         it = by_key_.upper_bound(it->first)) {
      keys.push_back(it->first);
    }
    return keys;
  }
  bool empty() const { return by_key_.empty(); }
  size_t size() const { return by_key_.size(); }

 private:
  using ByKey = std::multimap<std::string, std::unique_ptr<Item>>;
  ByKey by_key_;
  absl::flat_hash_map<uint64_t, typename ByKey::iterator> by_ticket_;
};

// What becomes of a committed turn's items.
template <class Item>
struct TurnEnd {
  std::vector<std::unique_ptr<Item>> again;    // to the head of the queue, in this order
  std::vector<std::unique_ptr<Item>> timers;   // done
  std::vector<std::unique_ptr<Item>> settled;  // commands, events and results: ack them
  std::vector<std::pair<std::unique_ptr<Item>, Answer>> answered;
};

// REQUIRES: the turn that handled the items is committed. `is_gone(item)`: whoever asked has hung
// up, and is not parked.
template <class Item, class IsGone>
TurnEnd<Item> EndTurn(std::vector<std::unique_ptr<Item>> items,
                      std::vector<std::pair<std::string, Answer>> resolved, Waiters<Item>* waiters,
                      IsGone is_gone) {
  TurnEnd<Item> end;
  for (auto& item : items) {
    if (item->kind == TurnItem::Kind::kTimer) {
      end.timers.push_back(std::move(item));
    } else if (item->answer.kind == Answer::Kind::kRetry) {
      end.again.push_back(std::move(item));
    } else if (item->kind != TurnItem::Kind::kRequest) {
      end.settled.push_back(std::move(item));
    } else if (item->answer.kind != Answer::Kind::kWait) {
      Answer answer = std::move(item->answer);
      end.answered.emplace_back(std::move(item), std::move(answer));
    } else if (!is_gone(*item)) {
      std::string key = std::move(item->answer.wait_key);
      waiters->Park(std::move(key), std::move(item));
    }
  }
  for (auto& [key, answer] : resolved) {
    for (auto& item : waiters->Resolve(key)) end.answered.emplace_back(std::move(item), answer);
  }
  return end;
}

// The answer to a plain call, as the context that made it sees it: which codes are a refusal, and
// which say nothing of whether it worked.
StepResult ResultOfCall(const Call& call, const google::rpc::Status& status, bool pending,
                        std::string payload);

}  // namespace gaekju::flow

#endif  // GAEKJU_FLOW_TURN_RUN_H_
