// pool.h: as many threads as the machine has cores, doing one thing at a time together.
//
//   Pool pool(2);
//   pool.Run(jobs.size(), [&](int thread, int job) { … });   // every job once; returns when all
//   are done
//
// Which thread does which job is left to chance; jobs are begun in their order.
#ifndef GAEKJU_CHECK_POOL_H_
#define GAEKJU_CHECK_POOL_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace gaekju::check {

class Pool {
 public:
  using Job = std::function<void(int thread, int job)>;

  explicit Pool(int thread_count) {
    for (int i = 1; i < thread_count; ++i) threads_.emplace_back([this, i] { Serve(i); });
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  int size() const { return static_cast<int>(threads_.size()) + 1; }

  void Run(int job_count, const Job& job) {
    if (threads_.empty() || job_count < 2) {
      for (int i = 0; i < job_count; ++i) job(0, i);
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      job_count_ = job_count;
      next_ = 0;
      busy_ = static_cast<int>(threads_.size());
      ++round_;
    }
    wake_.notify_all();
    Work(0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void Work(int thread) {
    for (int i = next_++; i < job_count_; i = next_++) (*job_)(thread, i);
  }
  void Serve(int thread) {
    int64_t seen = 0;
    while (true) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || round_ != seen; });
        if (stopping_) return;
        seen = round_;
      }
      Work(thread);
      std::lock_guard<std::mutex> lock(mutex_);
      if (--busy_ == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const Job* job_ = nullptr;
  int job_count_ = 0;
  std::atomic<int> next_{0};
  int busy_ = 0;
  int64_t round_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;  // the last: they use the others
};

}  // namespace gaekju::check

#endif  // GAEKJU_CHECK_POOL_H_
