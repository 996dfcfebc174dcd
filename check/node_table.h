// node_table.h: the states of the world that were reached, each once, by number, with the one that
// each was first reached from. 24 bytes a state, 4 for where it came from, and 8 a slot of the hash
// table: some 42 in all.
//
// Sharded by hash. One thread at a time inserts into a shard; several read while none does. A
// shard's order is that of its inserts, so that it does not depend on the number of threads.
#ifndef GAEKJU_CHECK_NODE_TABLE_H_
#define GAEKJU_CHECK_NODE_TABLE_H_

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "flow/check.h"

namespace gaekju::check {

inline constexpr int kOtherContextsMax = 7;

// A state of the world: a number for the order's rows, one for each other context's, one for the
// messages under way, and what has gone wrong so far.
struct Node {
  uint32_t flight = 0;                      // set of messages
  uint16_t others[kOtherContextsMax] = {};  // rows of the other contexts
  uint16_t order_low = 0;                   // rows of the order context
  uint8_t order_high = 0;
  uint8_t duplicates : 3 = 0, losses : 3 = 0, wipes : 2 = 0;
  uint8_t unreachable : 3 = 0, crashes : 3 = 0, place_waits : 1 = 0, cancel_waits : 1 = 0;
  uint8_t refusals : 4 = 0, cancels : 3 = 0, started : 1 = 0;

  uint32_t order() const { return uint32_t{order_high} << 16 | order_low; }
  void set_order(uint32_t order) {
    order_low = static_cast<uint16_t>(order);
    order_high = static_cast<uint8_t>(order >> 16);
  }
  // The last three bytes.
  uint32_t counts() const {
    uint32_t all = 0;
    std::memcpy(&all, reinterpret_cast<const char*>(this) + 21, 3);
    return all;
  }
  int faults() const { return duplicates + losses + wipes + unreachable + crashes; }
  bool operator==(const Node& o) const { return std::memcmp(this, &o, sizeof(Node)) == 0; }
  template <class H>
  friend H AbslHashValue(H h, const Node& n) {
    return H::combine_contiguous(std::move(h), reinterpret_cast<const unsigned char*>(&n),
                                 sizeof(n));
  }
};
static_assert(sizeof(Node) == 24);
inline constexpr uint32_t kOrderStatesMax = 1 << 24;
inline constexpr uint32_t kContextStatesMax = 1 << 16;

class NodeTable {
 public:
  static constexpr int kShardBits = 6;
  static constexpr int kShards = 1 << kShardBits;
  static constexpr uint32_t kShardSizeMax = (uint32_t{1} << (32 - kShardBits)) - 1;

  static int ShardOf(uint64_t hash) { return static_cast<int>(hash >> (64 - kShardBits)); }
  static uint32_t Ref(int shard, uint32_t i) {
    return static_cast<uint32_t>(shard) << (32 - kShardBits) | i;
  }

  void Prefetch(int shard, uint64_t hash) const {
    const Shard& s = shards_[shard];
    if (!s.slots.empty()) __builtin_prefetch(&s.slots[Tag(hash) & (s.slots.size() - 1)]);
  }
  // Whether the node is new. REQUIRES: `shard` is that of `hash`, and `hash` the same for equal
  // nodes.
  bool Insert(int shard, const Node& node, uint64_t hash, uint32_t parent) {
    Shard& s = shards_[shard];
    if ((uint64_t{s.size} + 1) * 4 > s.slots.size() * 3) Grow(&s);
    const uint32_t tag = Tag(hash);
    const size_t mask = s.slots.size() - 1;
    for (size_t at = tag & mask;; at = (at + 1) & mask) {
      const uint64_t slot = s.slots[at];
      if (slot == kEmpty) {
        GK_CHECK(s.size < kShardSizeMax) << "too many states";
        if (s.size % kChunk == 0) s.chunks.push_back(std::make_unique<Chunk>());
        s.chunks.back()->nodes[s.size % kChunk] = node;
        s.chunks.back()->parents[s.size % kChunk] = parent;
        s.slots[at] = uint64_t{s.size++} << 32 | tag;
        return true;
      }
      if (static_cast<uint32_t>(slot) == tag &&
          s.chunks[(slot >> 32) / kChunk]->nodes[(slot >> 32) % kChunk] == node) {
        return false;
      }
    }
  }
  const Node& operator[](uint32_t ref) const { return At(ref >> (32 - kShardBits), ref & kIndex); }
  const Node& At(uint32_t shard, uint32_t i) const {
    return shards_[shard].chunks[i / kChunk]->nodes[i % kChunk];
  }
  uint32_t parent(uint32_t ref) const {
    const uint32_t i = ref & kIndex;
    return shards_[ref >> (32 - kShardBits)].chunks[i / kChunk]->parents[i % kChunk];
  }
  uint32_t size(int shard) const { return shards_[shard].size; }
  int64_t size() const {
    int64_t all = 0;
    for (const Shard& s : shards_) all += s.size;
    return all;
  }
  int64_t bytes() const {
    int64_t all = 0;
    for (const Shard& s : shards_) {
      all += static_cast<int64_t>(s.slots.capacity() * sizeof(uint64_t) +
                                  s.chunks.size() * sizeof(Chunk));
    }
    return all;
  }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  static constexpr uint32_t kIndex = kShardSizeMax;
  static constexpr uint32_t kChunk = 256;
  struct Chunk {
    Node nodes[kChunk];
    uint32_t parents[kChunk];
  };
  struct Shard {
    std::vector<uint64_t> slots;  // index << 32 | tag
    std::vector<std::unique_ptr<Chunk>> chunks;
    uint32_t size = 0;
  };
  static uint32_t Tag(uint64_t hash) { return static_cast<uint32_t>(hash); }
  static void Grow(Shard* s) {
    std::vector<uint64_t> slots(s->slots.empty() ? 64 : s->slots.size() * 2, kEmpty);
    const size_t mask = slots.size() - 1;
    for (uint64_t slot : s->slots) {
      if (slot == kEmpty) continue;
      size_t at = static_cast<uint32_t>(slot) & mask;
      while (slots[at] != kEmpty) at = (at + 1) & mask;
      slots[at] = slot;
    }
    s->slots = std::move(slots);
  }
  std::array<Shard, kShards> shards_;
};

}  // namespace gaekju::check

#endif  // GAEKJU_CHECK_NODE_TABLE_H_
