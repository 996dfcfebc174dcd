// seed.h: puts in place what shops are shown with.
#ifndef GAEKJU_APP_SEED_H_
#define GAEKJU_APP_SEED_H_

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "app/rpc.h"
#include "app/shops.h"

namespace gaekju::app {

// Makes the demo's calls in their order. What is there already (ALREADY_EXISTS) is left as it is; a
// context that cannot be reached is asked again for so long. Errors: the call's, with its place.
absl::Status MakeDemo(RpcCaller& caller, const Demo& demo, absl::Duration retry_for);

}  // namespace gaekju::app

#endif  // GAEKJU_APP_SEED_H_
