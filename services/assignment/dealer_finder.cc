#include "services/assignment/dealer_finder.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace gaekju::assignment {

using gaekju::assignment::v1::Dealer;
using gaekju::type::v1::Location;

namespace {

constexpr double kEarthRadiusMetres = 6371008.8;  // IUGG mean radius R1
constexpr double kRadiansPerDegree = 3.14159265358979323846 / 180;

}  // namespace

bool IsValid(const Location& location) {
  // Written so that a NaN fails.
  return location.latitude() >= -90 && location.latitude() <= 90 && location.longitude() >= -180 &&
         location.longitude() <= 180;
}

bool IsKnown(const Location& location) {
  return location.latitude() != 0 || location.longitude() != 0;
}

UnitVector ToUnitVector(const Location& location) {
  if (location.latitude() == 90) return {0, 0, 1};
  if (location.latitude() == -90) return {0, 0, -1};
  const double latitude = location.latitude() * kRadiansPerDegree;
  const double longitude = location.longitude() * kRadiansPerDegree;
  const bool antimeridian = location.longitude() == 180 || location.longitude() == -180;
  const double radius = std::cos(latitude);
  return {radius * (antimeridian ? -1 : std::cos(longitude)),
          radius * (antimeridian ? 0 : std::sin(longitude)), std::sin(latitude)};
}

double SquaredChord(const UnitVector& a, const UnitVector& b) {
  const double x = a.x - b.x, y = a.y - b.y, z = a.z - b.z;
  return x * x + y * y + z * z;
}

double Metres(double squared_chord) {
  return 2 * kEarthRadiusMetres * std::asin(std::min(1.0, std::sqrt(squared_chord) / 2));
}

void FixedDealers::Nearest(absl::string_view storefront, const Location* location, int count,
                           std::vector<std::string>* dealer_ids) const {
  std::vector<std::pair<double, std::string>> found;
  for (const Dealer& dealer : dealers_) {
    if (dealer.storefront() != storefront) continue;
    found.emplace_back(location == nullptr
                           ? 0
                           : SquaredChord(ToUnitVector(*location), ToUnitVector(dealer.location())),
                       dealer.dealer_id());
  }
  std::sort(found.begin(), found.end());
  for (auto& [distance, id] : found) {
    if (count-- <= 0) break;
    dealer_ids->push_back(std::move(id));
  }
}

}  // namespace gaekju::assignment
