// dealer_finder.h: tells the decider which dealers to look at: nearest first.
// Pure. A finder may be out of date: the decider verifies each dealer in its row. What it says is
// who is near, which does not change, and who is believed to have room, which does.
//
//   FixedDealers finder({dealer_a, dealer_b});      // for tests, the checker and the simulator
//   std::vector<std::string> ids;
//   finder.Nearest("phones", &location, 3, &ids);
#ifndef GAEKJU_SERVICES_ASSIGNMENT_DEALER_FINDER_H_
#define GAEKJU_SERVICES_ASSIGNMENT_DEALER_FINDER_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "gaekju/assignment/v1/assignment.pb.h"
#include "gaekju/type/v1/type.pb.h"

namespace gaekju::assignment {

// A place as a vector of length 1 from the centre of the earth. The same place has the same vector,
// bit for bit: a pole at any longitude, and the antimeridian from either side.
struct UnitVector {
  double x = 0, y = 0, z = 0;
};
// REQUIRES: IsValid(location).
UnitVector ToUnitVector(const gaekju::type::v1::Location& location);
// The square of the chord between two places, 0 to 4: grows with the great-circle distance, so it
// orders by it. Between near places it is exact to well under a millimetre.
double SquaredChord(const UnitVector& a, const UnitVector& b);
// Metres along the great circle, on a sphere with the earth's mean radius (6,371,008.8 m, IUGG).
double Metres(double squared_chord);

// Within -90 to 90 and -180 to 180 degrees.
bool IsValid(const gaekju::type::v1::Location& location);
// Both 0 is nowhere, as the contract has it.
bool IsKnown(const gaekju::type::v1::Location& location);

// Thread-safe.
class DealerFinder {
 public:
  virtual ~DealerFinder() = default;
  // Appends up to `count` dealers of the storefront that are believed to have room, by distance
  // from `location`, those as near by id; all by id when `location` is null. Fewer: there are no
  // more.
  virtual void Nearest(absl::string_view storefront, const gaekju::type::v1::Location* location,
                       int count, std::vector<std::string>* dealer_ids) const = 0;
};

// Dealers that never change, sorted anew by each question, each believed to have room always.
class FixedDealers : public DealerFinder {
 public:
  explicit FixedDealers(std::vector<gaekju::assignment::v1::Dealer> dealers)
      : dealers_(std::move(dealers)) {}
  void Nearest(absl::string_view storefront, const gaekju::type::v1::Location* location, int count,
               std::vector<std::string>* dealer_ids) const override;

 private:
  const std::vector<gaekju::assignment::v1::Dealer> dealers_;
};

}  // namespace gaekju::assignment

#endif  // GAEKJU_SERVICES_ASSIGNMENT_DEALER_FINDER_H_
