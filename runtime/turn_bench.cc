// turn_bench.cc: turns a second of the loop alone, with a real PostgreSQL and no bus. Prints
// items/s, the mean turn and where its time goes.
//
//   build/release/runtime/turn_bench [items] [rows] [wait]    # 200000 items over 10000 rows, at
//   most `wait` (2000) at once
#include <sys/resource.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/testing/postgres.h"
#include "runtime/testing/toy_context.h"
#include "runtime/turn_loop.h"

int main(int argc, char** argv) {
  using namespace gaekju::runtime;
  const int items = argc > 1 ? std::atoi(argv[1]) : 200000;
  const int rows = argc > 2 ? std::atoi(argv[2]) : 10000;
  const int at_once = argc > 3 ? std::atoi(argv[3]) : 2000;
  Postgres postgres;
  TurnLoop::Options options;
  options.pg.conninfo = postgres.CreateDatabase();
  MakeToyTables(options.pg);
  const gaekju::flow::Context context = ToyContext();

  std::mutex mutex;
  std::condition_variable wake;
  int open = 0, finished = 0;
  int64_t turns = 0, load_us = 0, handle_us = 0, commit_us = 0;
  TurnOutputs outputs;
  outputs.turn = [&](const TurnStats& stats) {
    ++turns;
    load_us += stats.load_us;
    handle_us += stats.handle_us;
    commit_us += stats.commit_us;
  };
  TurnLoop loop(context, options, outputs);
  loop.Start();
  const absl::Time start = absl::Now();
  for (int i = 0; i < items; ++i) {
    {
      std::unique_lock<std::mutex> lock(mutex);
      wake.wait(lock, [&] { return open < at_once; });
      ++open;
    }
    Request request;
    request.handler = loop.FindHandler(kToyCapture);
    request.message = ToyRequest(absl::StrCat("order-", i), absl::StrCat("customer-", i % rows));
    request.done = [&](gaekju::flow::Answer) {
      std::lock_guard<std::mutex> lock(mutex);
      --open;
      ++finished;
      wake.notify_one();
    };
    loop.Submit(std::move(request));
  }
  {
    std::unique_lock<std::mutex> lock(mutex);
    wake.wait(lock, [&] { return finished == items; });
  }
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  loop.Drain(absl::Seconds(10));
  rusage own;
  getrusage(RUSAGE_SELF, &own);
  std::printf(
      "%.0f items/s, %.0f items a turn, us a turn: load %.0f handle %.0f commit %.0f; own CPU %.1f "
      "us an item\n",
      items / seconds, static_cast<double>(items) / static_cast<double>(turns),
      static_cast<double>(load_us) / static_cast<double>(turns),
      static_cast<double>(handle_us) / static_cast<double>(turns),
      static_cast<double>(commit_us) / static_cast<double>(turns),
      (static_cast<double>(own.ru_utime.tv_sec + own.ru_stime.tv_sec) * 1e6 +
       static_cast<double>(own.ru_utime.tv_usec + own.ru_stime.tv_usec)) /
          items);
  return 0;
}
