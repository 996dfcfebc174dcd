// dealer_index.h: all dealers in memory, and the nearest ones with room among a million in
// microseconds.
// Pure. For each storefront a few k-d trees over unit vectors, the largest first: dealers are added
// to a short list, which becomes a tree when it is long, together with all trees that are not much
// larger. So every tree is balanced, and each dealer is sorted O(log n) times in all. A node knows
// the box around its dealers and the least id among those with room, so a city of full dealers is
// passed over as one node, and a million dealers in one place are told apart by id as fast.
//
//   DealerIndex index;
//   index.PutAll(std::move(rows));               // at start
//   index.Put(row);                              // whenever a row is read or was written
//   index.Nearest("phones", &location, 3, &ids);
//
// Invariants:
// 1. Of the rows of a dealer, that with the greatest update_time_us counts, in whatever order they
//    come.
// 2. Nearest is what sorting all dealers with room by (SquaredChord, dealer_id) would say, bit for
//    bit.
//
// Threads may read together; who writes is alone.
#ifndef GAEKJU_SERVICES_ASSIGNMENT_DEALER_INDEX_H_
#define GAEKJU_SERVICES_ASSIGNMENT_DEALER_INDEX_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/hash/hash.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "services/assignment/dealer_finder.h"

namespace gaekju::assignment {

class DealerIndex : public DealerFinder {
 public:
  // What the index keeps of a dealer. The first three never change.
  struct Row {
    std::string dealer_id;
    std::string storefront;
    gaekju::type::v1::Location location;
    bool has_room = true;
    int64_t update_time_us = 0;
  };
  static Row RowOf(const gaekju::assignment::v1::Dealer& dealer);

  DealerIndex() = default;
  DealerIndex(const DealerIndex&) = delete;
  DealerIndex& operator=(const DealerIndex&) = delete;

  // Adds the dealer, or learns whether it has room now. REQUIRES: IsValid(location).
  void Put(const Row& row) { PutAll({&row, 1}); }
  // The same for many, much faster than one by one.
  void PutAll(absl::Span<const Row> rows);

  void Nearest(absl::string_view storefront, const gaekju::type::v1::Location* location, int count,
               std::vector<std::string>* dealer_ids) const override;

  int64_t size() const { return static_cast<int64_t>(dealers_.size()); }

 private:
  using DealerNumber = uint32_t;  // in dealers_
  static constexpr DealerNumber kNobody = UINT32_MAX;

  struct Point {
    UnitVector at;
    DealerNumber dealer = kNobody;
    bool has_room = false;
  };
  struct Node {
    UnitVector low, high;
    DealerNumber best = kNobody;                 // the least id among those with room
    int32_t parent = -1, left = -1, right = -1;  // left < 0: a leaf
    uint32_t begin = 0, end = 0;                 // its points
  };
  struct Tree {
    std::vector<Point> points;  // leaf by leaf
    std::vector<Node> nodes;    // the root first
    std::vector<int32_t> leaves;
  };
  struct Shop {
    std::vector<Point> recent;
    std::vector<Tree> trees;  // by size, each more than twice the next
  };
  struct Known {
    std::string id;
    int64_t update_time_us = 0;
    Shop* shop = nullptr;
    int32_t tree = -1;  // in the shop's trees; -1: in `recent`
    uint32_t position = 0;
  };
  // Dealers by id, without keeping the ids twice.
  struct ById {
    using is_transparent = void;
    const std::vector<Known>* dealers;
    absl::string_view Id(DealerNumber dealer) const { return (*dealers)[dealer].id; }
    static absl::string_view Id(absl::string_view id) { return id; }
    template <class T>
    size_t operator()(const T& key) const {
      return absl::Hash<absl::string_view>()(Id(key));
    }
    template <class A, class B>
    bool operator()(const A& a, const B& b) const {
      return Id(a) == Id(b);
    }
  };

  bool IdLess(DealerNumber a, DealerNumber b) const { return dealers_[a].id < dealers_[b].id; }
  // Of two, that with the lesser id; kNobody is the greatest.
  DealerNumber Better(DealerNumber a, DealerNumber b) const;
  void SetRoom(const Known& dealer, bool has_room);
  DealerNumber BestOf(const Tree& tree, const Node& node) const;
  void MergeRecent(Shop& shop);
  Tree Build(std::vector<Point> points) const;
  int32_t BuildNode(Tree& tree, uint32_t begin, uint32_t end, int32_t parent) const;

  std::vector<Known> dealers_;
  absl::flat_hash_set<DealerNumber, ById, ById> by_id_{0, ById{&dealers_}, ById{&dealers_}};
  absl::flat_hash_map<std::string, std::unique_ptr<Shop>> shops_;
};

}  // namespace gaekju::assignment

#endif  // GAEKJU_SERVICES_ASSIGNMENT_DEALER_INDEX_H_
