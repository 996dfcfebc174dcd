#include "services/assignment/dealer_index.h"

#include <algorithm>
#include <utility>

#include "flow/check.h"
#include "services/assignment/assignment.h"

namespace gaekju::assignment {

using gaekju::assignment::v1::Dealer;
using gaekju::type::v1::Location;

namespace {

// Fewer make the tree deeper, more make a leaf slower to look through.
constexpr uint32_t kLeafPoints = 16;
// So many are looked through one by one.
constexpr size_t kRecentMax = 64;

using Axis = double UnitVector::*;
constexpr std::array<Axis, 3> kAxes = {&UnitVector::x, &UnitVector::y, &UnitVector::z};

// The point of the box that is nearest to `to`.
UnitVector Clamp(const UnitVector& to, const UnitVector& low, const UnitVector& high) {
  return {std::clamp(to.x, low.x, high.x), std::clamp(to.y, low.y, high.y),
          std::clamp(to.z, low.z, high.z)};
}

}  // namespace

DealerIndex::Row DealerIndex::RowOf(const Dealer& dealer) {
  return {dealer.dealer_id(), dealer.storefront(), dealer.location(), HasRoom(dealer),
          dealer.update_time_us()};
}

// ---------------------------------------------------------------- writing

void DealerIndex::PutAll(absl::Span<const Row> rows) {
  std::vector<Shop*> grown;
  for (const Row& row : rows) {
    if (const auto found = by_id_.find(absl::string_view(row.dealer_id)); found != by_id_.end()) {
      Known& known = dealers_[*found];
      if (row.update_time_us <= known.update_time_us) continue;
      known.update_time_us = row.update_time_us;
      SetRoom(known, row.has_room);
      continue;
    }
    GK_CHECK(IsValid(row.location)) << row.dealer_id;
    std::unique_ptr<Shop>& shop = shops_[row.storefront];
    if (shop == nullptr) shop = std::make_unique<Shop>();
    const DealerNumber number = static_cast<DealerNumber>(dealers_.size());
    dealers_.push_back({row.dealer_id, row.update_time_us, shop.get(), /*tree=*/-1,
                        static_cast<uint32_t>(shop->recent.size())});
    by_id_.insert(number);
    shop->recent.push_back({ToUnitVector(row.location), number, row.has_room});
    if (shop->recent.size() == kRecentMax + 1) grown.push_back(shop.get());
  }
  for (Shop* shop : grown) MergeRecent(*shop);
}

DealerIndex::DealerNumber DealerIndex::Better(DealerNumber a, DealerNumber b) const {
  if (a == kNobody) return b;
  if (b == kNobody) return a;
  return IdLess(a, b) ? a : b;
}

DealerIndex::DealerNumber DealerIndex::BestOf(const Tree& tree, const Node& node) const {
  if (node.left >= 0) {
    return Better(tree.nodes[static_cast<size_t>(node.left)].best,
                  tree.nodes[static_cast<size_t>(node.right)].best);
  }
  DealerNumber best = kNobody;
  for (uint32_t i = node.begin; i < node.end; ++i) {
    if (tree.points[i].has_room) best = Better(best, tree.points[i].dealer);
  }
  return best;
}

void DealerIndex::SetRoom(const Known& dealer, bool has_room) {
  if (dealer.tree < 0) {
    dealer.shop->recent[dealer.position].has_room = has_room;
    return;
  }
  Tree& tree = dealer.shop->trees[static_cast<size_t>(dealer.tree)];
  Point& point = tree.points[dealer.position];
  if (point.has_room == has_room) return;
  point.has_room = has_room;
  for (int32_t n = tree.leaves[dealer.position / kLeafPoints]; n >= 0;) {
    Node& node = tree.nodes[static_cast<size_t>(n)];
    const DealerNumber best = BestOf(tree, node);
    if (best == node.best) return;  // nor does anything change above
    node.best = best;
    n = node.parent;
  }
}

void DealerIndex::MergeRecent(Shop& shop) {
  std::vector<Point> points = std::exchange(shop.recent, {});
  while (!shop.trees.empty() && shop.trees.back().points.size() <= 2 * points.size()) {
    const std::vector<Point>& smaller = shop.trees.back().points;
    points.insert(points.end(), smaller.begin(), smaller.end());
    shop.trees.pop_back();
  }
  shop.trees.push_back(Build(std::move(points)));
  const Tree& tree = shop.trees.back();
  for (uint32_t i = 0; i < tree.points.size(); ++i) {
    Known& known = dealers_[tree.points[i].dealer];
    known.tree = static_cast<int32_t>(shop.trees.size() - 1);
    known.position = i;
  }
}

DealerIndex::Tree DealerIndex::Build(std::vector<Point> points) const {
  Tree tree;
  tree.points = std::move(points);
  const size_t leaf_count = (tree.points.size() + kLeafPoints - 1) / kLeafPoints;
  tree.leaves.resize(leaf_count);
  tree.nodes.reserve(2 * leaf_count);
  BuildNode(tree, 0, static_cast<uint32_t>(tree.points.size()), /*parent=*/-1);
  return tree;
}

int32_t DealerIndex::BuildNode(Tree& tree, uint32_t begin, uint32_t end, int32_t parent) const {
  const auto number = static_cast<int32_t>(tree.nodes.size());
  Node node;
  node.parent = parent;
  node.begin = begin;
  node.end = end;
  node.low = node.high = tree.points[begin].at;
  for (uint32_t i = begin + 1; i < end; ++i) {
    for (const Axis axis : kAxes) {
      node.low.*axis = std::min(node.low.*axis, tree.points[i].at.*axis);
      node.high.*axis = std::max(node.high.*axis, tree.points[i].at.*axis);
    }
  }
  tree.nodes.push_back(node);
  if (end - begin <= kLeafPoints) {
    tree.leaves[begin / kLeafPoints] = number;
  } else {
    const Axis widest = *std::max_element(kAxes.begin(), kAxes.end(), [&](Axis a, Axis b) {
      return node.high.*a - node.low.*a < node.high.*b - node.low.*b;
    });
    // Between two whole leaves, so that a point's leaf is told by its position.
    const uint32_t leaf_count = (end - begin + kLeafPoints - 1) / kLeafPoints;
    const uint32_t middle = begin + leaf_count / 2 * kLeafPoints;
    const auto first = tree.points.begin();
    std::nth_element(
        first + begin, first + middle, first + end,
        [widest](const Point& a, const Point& b) { return a.at.*widest < b.at.*widest; });
    const int32_t left = BuildNode(tree, begin, middle, number);
    const int32_t right = BuildNode(tree, middle, end, number);
    tree.nodes[static_cast<size_t>(number)].left = left;
    tree.nodes[static_cast<size_t>(number)].right = right;
  }
  Node& built = tree.nodes[static_cast<size_t>(number)];
  built.best = BestOf(tree, built);
  return number;
}

// ---------------------------------------------------------------- reading

void DealerIndex::Nearest(absl::string_view storefront, const Location* location, int count,
                          std::vector<std::string>* dealer_ids) const {
  const auto found = shops_.find(storefront);
  if (found == shops_.end()) return;
  const Shop& shop = *found->second;
  const UnitVector from = location == nullptr ? UnitVector() : ToUnitVector(*location);
  // A dealer, or a node, which holds nothing before (distance, least id).
  struct Entry {
    double distance;  // squared chord
    DealerNumber best;
    const Tree* tree;  // null: a dealer
    int32_t node;
  };
  std::vector<Entry> heap;
  heap.reserve(128);
  const auto after = [this](const Entry& a, const Entry& b) {
    if (a.distance != b.distance) return a.distance > b.distance;
    return IdLess(b.best, a.best);
  };
  const auto push = [&](const Entry& entry) {
    heap.push_back(entry);
    std::push_heap(heap.begin(), heap.end(), after);
  };
  const auto push_point = [&](const Point& point) {
    if (!point.has_room) return;
    push({location == nullptr ? 0 : SquaredChord(from, point.at), point.dealer, nullptr, 0});
  };
  const auto push_node = [&](const Tree& tree, int32_t n) {
    const Node& node = tree.nodes[static_cast<size_t>(n)];
    if (node.best == kNobody) return;
    // Not farther than any point in the box also after rounding, because each operation of
    // SquaredChord is monotonic.
    const double distance =
        location == nullptr ? 0 : SquaredChord(from, Clamp(from, node.low, node.high));
    push({distance, node.best, &tree, n});
  };
  for (const Point& point : shop.recent) push_point(point);
  for (const Tree& tree : shop.trees) push_node(tree, 0);
  while (count > 0 && !heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), after);
    const Entry entry = heap.back();
    heap.pop_back();
    if (entry.tree == nullptr) {
      dealer_ids->push_back(dealers_[entry.best].id);
      --count;
      continue;
    }
    const Node& node = entry.tree->nodes[static_cast<size_t>(entry.node)];
    if (node.left >= 0) {
      push_node(*entry.tree, node.left);
      push_node(*entry.tree, node.right);
    } else {
      for (uint32_t i = node.begin; i < node.end; ++i) push_point(entry.tree->points[i]);
    }
  }
}

}  // namespace gaekju::assignment
