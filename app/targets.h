// targets.h: where a running shop is, for the commands that drive or check it: from `gaekju up`'s
// file, or from flags.
#ifndef GAEKJU_APP_TARGETS_H_
#define GAEKJU_APP_TARGETS_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace gaekju::app {

struct Targets {
  std::string peers;                           // "order=127.0.0.1:50051,…"
  std::map<std::string, std::string> dsns;     // context -> libpq connection string
  std::map<std::string, std::string> metrics;  // context -> host:port
  std::string nats_url;
  std::string storefronts;  // a directory; may be empty
};

// --peers, --database and --nats when they are set, else what runs on --data. Errors: NOT_FOUND
// (says how to start a shop).
absl::StatusOr<Targets> FindTargets();
// Of that only the bus: --nats when it is set.
absl::StatusOr<std::string> FindNats();
// The flags that FindTargets reads.
std::vector<std::string> TargetFlags();

// GET http://<address>/metrics. Errors: UNAVAILABLE.
absl::StatusOr<std::string> FetchMetrics(const std::string& address);
// The sum of a metric over all its labels; 0 when the page has none.
double MetricSum(const std::string& page, const std::string& name);

}  // namespace gaekju::app

#endif  // GAEKJU_APP_TARGETS_H_
