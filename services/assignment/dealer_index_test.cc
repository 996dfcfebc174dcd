#include "services/assignment/dealer_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "absl/strings/str_cat.h"
#include "services/assignment/dealer_finder.h"
#include "services/testing/property.h"

namespace gaekju::assignment {
namespace {

using gaekju::assignment::v1::Dealer;
using gaekju::type::v1::Location;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

Location At(double latitude, double longitude) {
  Location location;
  location.set_latitude(latitude);
  location.set_longitude(longitude);
  return location;
}

DealerIndex::Row Row(const std::string& id, const Location& location, bool has_room = true,
                     int64_t update_time_us = 1, const std::string& storefront = "tshop") {
  return {id, storefront, location, has_room, update_time_us};
}

std::vector<std::string> Nearest(const DealerFinder& finder, const Location* location, int count,
                                 const std::string& storefront = "tshop") {
  std::vector<std::string> ids;
  finder.Nearest(storefront, location, count, &ids);
  return ids;
}

double MetresBetween(const Location& a, const Location& b) {
  return Metres(SquaredChord(ToUnitVector(a), ToUnitVector(b)));
}

TEST(Distance, IsAlongTheGreatCircle) {
  // A quarter and half of the circle, and two cities: Seoul to Busan is 325.1 km by haversine.
  const double circle = 2 * M_PI * 6371008.8;
  EXPECT_NEAR(MetresBetween(At(0, 0), At(0, 90)), circle / 4, 1e-3);
  EXPECT_NEAR(MetresBetween(At(90, 0), At(-90, 0)), circle / 2, 1e-3);
  EXPECT_NEAR(MetresBetween(At(37.5665, 126.9780), At(35.1796, 129.0756)), 325.1e3, 500);
  // A step of 1e-7 degrees, about a centimetre, is told.
  EXPECT_NEAR(MetresBetween(At(37.5, 127), At(37.5 + 1e-7, 127)), 0.0111, 1e-4);
}

TEST(Distance, OnePlaceIsOnePointHoweverItIsWritten) {
  EXPECT_EQ(MetresBetween(At(90, 0), At(90, 137.5)), 0);
  EXPECT_EQ(MetresBetween(At(-90, -20), At(-90, 137.5)), 0);
  EXPECT_EQ(MetresBetween(At(12.3, 180), At(12.3, -180)), 0);
  EXPECT_LT(MetresBetween(At(12.3, 179.9999), At(12.3, -179.9999)), 25);
}

TEST(Distance, LocationsAreChecked) {
  EXPECT_TRUE(IsValid(At(90, 180)));
  EXPECT_TRUE(IsValid(At(-90, -180)));
  for (const Location& location : {At(90.1, 0), At(-90.1, 0), At(0, 180.1), At(0, -180.1),
                                   At(NAN, 0), At(0, NAN), At(INFINITY, 0)}) {
    EXPECT_FALSE(IsValid(location)) << location.ShortDebugString();
  }
  EXPECT_FALSE(IsKnown(Location()));
  EXPECT_TRUE(IsKnown(At(0, 1e-9)));
}

TEST(DealerIndex, NearestFirstAndTheLeastIdOfThoseAsNear) {
  DealerIndex index;
  const Location seoul = At(37.5665, 126.9780), busan = At(35.1796, 129.0756);
  index.Put(Row("b", seoul));
  index.Put(Row("c", busan));
  index.Put(Row("a", seoul));
  index.Put(Row("other", seoul, true, 1, "funshop"));
  EXPECT_THAT(Nearest(index, &seoul, 9), ElementsAre("a", "b", "c"));
  EXPECT_THAT(Nearest(index, &busan, 2), ElementsAre("c", "a"));
  EXPECT_THAT(Nearest(index, nullptr, 9), ElementsAre("a", "b", "c"));
  EXPECT_THAT(Nearest(index, &seoul, 9, "nobody"), IsEmpty());
  EXPECT_EQ(index.size(), 4);
}

TEST(DealerIndex, AcrossTheAntimeridianAndThePoles) {
  DealerIndex index;
  index.Put(Row("fiji", At(-17, 179.5)));
  index.Put(Row("samoa", At(-13.8, -172)));
  index.Put(Row("north", At(89.9, 170)));
  index.Put(Row("south", At(-89.9, 10)));
  const Location east = At(-17, -179.5), pole = At(90, 0), behind = At(89.95, -10);
  EXPECT_THAT(Nearest(index, &east, 1), ElementsAre("fiji"));
  EXPECT_THAT(Nearest(index, &pole, 1), ElementsAre("north"));
  EXPECT_THAT(Nearest(index, &behind, 1), ElementsAre("north"));
}

TEST(DealerIndex, TheLaterRowCountsInWhateverOrderTheyCome) {
  DealerIndex index;
  const Location seoul = At(37.5, 127);
  index.Put(Row("a", seoul, /*has_room=*/true, 5));
  index.Put(Row("a", seoul, /*has_room=*/false, 7));
  index.Put(Row("a", seoul, /*has_room=*/true, 6));
  index.Put(Row("a", seoul, /*has_room=*/true, 7));
  EXPECT_THAT(Nearest(index, &seoul, 1), IsEmpty());
  index.Put(Row("a", seoul, /*has_room=*/true, 8));
  EXPECT_THAT(Nearest(index, &seoul, 1), ElementsAre("a"));
  EXPECT_EQ(index.size(), 1);
}

TEST(DealerIndex, ManyInOnePlaceAndAllButOneFull) {
  // Ends within the time of a test only because what is full, or has greater ids, is passed over in
  // whole subtrees.
  constexpr int kCount = 200000;
  DealerIndex index;
  std::vector<DealerIndex::Row> rows;
  const Location seoul = At(37.5, 127);
  for (int i = 0; i < kCount; ++i) rows.push_back(Row(absl::StrCat("d", 1000000 + i), seoul));
  index.PutAll(rows);
  for (int i = 0; i < 20000; ++i) {
    ASSERT_THAT(Nearest(index, &seoul, 1), ElementsAre(rows[static_cast<size_t>(i)].dealer_id));
    index.Put(Row(rows[static_cast<size_t>(i)].dealer_id, seoul, false, 2));
  }
  for (int i = 20000; i < kCount - 1; ++i) {
    index.Put(Row(rows[static_cast<size_t>(i)].dealer_id, seoul, false, 2));
  }
  for (int i = 0; i < 20000; ++i) {
    ASSERT_THAT(Nearest(index, &seoul, 5), ElementsAre(rows.back().dealer_id));
  }
}

// What the index does, done in the plainest way.
class AllOfThem {
 public:
  void Put(const DealerIndex::Row& row) {
    auto [it, inserted] = rows_.try_emplace(row.dealer_id, row);
    if (inserted || row.update_time_us <= it->second.update_time_us) return;
    it->second.has_room = row.has_room;
    it->second.update_time_us = row.update_time_us;
  }
  std::vector<std::string> Nearest(const std::string& storefront, const Location* location,
                                   size_t count) const {
    std::vector<std::pair<double, std::string>> found;
    for (const auto& [id, row] : rows_) {
      if (row.storefront != storefront || !row.has_room) continue;
      const double distance =
          location == nullptr ? 0
                              : SquaredChord(ToUnitVector(*location), ToUnitVector(row.location));
      found.emplace_back(distance, id);
    }
    std::sort(found.begin(), found.end());
    std::vector<std::string> ids;
    for (size_t i = 0; i < std::min(count, found.size()); ++i) ids.push_back(found[i].second);
    return ids;
  }
  size_t size() const { return rows_.size(); }

 private:
  std::map<std::string, DealerIndex::Row> rows_;
};

TEST(DealerIndexProperty, AsIfAllHadBeenSorted) {
  for (const uint64_t seed : testing::Seeds(60)) {
    SCOPED_TRACE(testing::Replay(seed));
    std::mt19937_64 random(seed);
    const auto any = [&](double low, double high) {
      return low + (high - low) * static_cast<double>(random() >> 11) * 0x1p-53;
    };
    // Cities, some of them on the edges of the map, and the middle of nowhere. A coarse grid makes
    // dealers that are exactly as near.
    const Location cities[] = {At(37.5, 127),   At(90, 0),     At(-90, 0),
                               At(0, 180),      At(10, -180),  At(any(-90, 90), any(-180, 180)),
                               At(1e-9, -1e-9), At(-33, 151.2)};
    const auto place = [&] {
      switch (testing::Pick(random, 4)) {
        case 0:
          return At(any(-90, 90), any(-180, 180));
        case 1:
          return At(testing::Pick(random, 19) * 10 - 90, testing::Pick(random, 37) * 10 - 180);
        case 2:
          return cities[testing::Pick(random, 8)];
        default: {
          const Location& city = cities[testing::Pick(random, 8)];
          return At(std::clamp(city.latitude() + any(-0.1, 0.1), -90.0, 90.0),
                    std::clamp(city.longitude() + any(-0.1, 0.1), -180.0, 180.0));
        }
      }
    };
    DealerIndex index;
    AllOfThem all;
    std::vector<DealerIndex::Row> rows;
    for (int step = 0; step < 40; ++step) {
      // Some come at once, others one by one; names are in no order.
      std::vector<DealerIndex::Row> more;
      for (int i = testing::Pick(random, step == 0 ? 1000 : 60); i > 0; --i) {
        if (!rows.empty() && testing::Pick(random, 2) == 0) {  // one that is known, changed
          DealerIndex::Row row = rows[random() % rows.size()];
          row.has_room = testing::Pick(random, 4) == 0;
          row.update_time_us = testing::Pick(random, 100);
          more.push_back(row);
        } else {
          rows.push_back(Row(absl::StrCat("d", random() % 100000), place(),
                             testing::Pick(random, 3) > 0, testing::Pick(random, 100),
                             testing::Pick(random, 5) > 0 ? "tshop" : "funshop"));
          more.push_back(rows.back());
        }
      }
      for (const auto& row : more) all.Put(row);
      if (testing::Pick(random, 2) == 0) {
        index.PutAll(more);
      } else {
        for (const auto& row : more) index.Put(row);
      }
      ASSERT_EQ(index.size(), static_cast<int64_t>(all.size()));
      for (int i = 0; i < 10; ++i) {
        const Location from = place();
        const Location* location = testing::Pick(random, 8) == 0 ? nullptr : &from;
        const int count = testing::Pick(random, 10) == 0 ? 5000 : 1 + testing::Pick(random, 20);
        const std::string storefront = testing::Pick(random, 4) > 0 ? "tshop" : "funshop";
        ASSERT_EQ(Nearest(index, location, count, storefront),
                  all.Nearest(storefront, location, static_cast<size_t>(count)))
            << from.ShortDebugString() << ", " << count;
      }
    }
  }
}

}  // namespace
}  // namespace gaekju::assignment
