// stable_vector.h: a vector that one thread at a time grows while others read it: elements never
// move. Growing is the caller's to guard; element i may be read by whoever learnt i after it was
// made (from a lock, a barrier or itself).
#ifndef GAEKJU_CHECK_STABLE_VECTOR_H_
#define GAEKJU_CHECK_STABLE_VECTOR_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "flow/check.h"

namespace gaekju::check {

// Chunk k holds kFirst << k elements, so that a small one is small, and a large one has few chunks.
template <class T>
class StableVector {
 public:
  StableVector() = default;
  StableVector(const StableVector&) = delete;
  StableVector& operator=(const StableVector&) = delete;
  ~StableVector() {
    for (auto& chunk : chunks_) delete[] chunk.load(std::memory_order_relaxed);
  }
  // The new element's index.
  uint32_t Add(T value) {
    const auto [chunk, at] = Place(size_);
    GK_CHECK(chunk < chunks_.size()) << "too many";
    if (at == 0) chunks_[chunk].store(new T[kFirst << chunk], std::memory_order_release);
    chunks_[chunk].load(std::memory_order_relaxed)[at] = std::move(value);
    return size_++;
  }
  const T& operator[](uint32_t i) const {
    const auto [chunk, at] = Place(i);
    return chunks_[chunk].load(std::memory_order_acquire)[at];
  }
  T& operator[](uint32_t i) {
    const auto [chunk, at] = Place(i);
    return chunks_[chunk].load(std::memory_order_acquire)[at];
  }
  // For whoever guards the growing.
  uint32_t size() const { return size_; }

 private:
  static constexpr size_t kFirst = 64;
  static std::pair<size_t, size_t> Place(uint32_t i) {
    const size_t n = size_t{i} / kFirst + 1;
    const size_t chunk = 63 - static_cast<size_t>(__builtin_clzll(n));
    return {chunk, i - kFirst * ((size_t{1} << chunk) - 1)};
  }
  std::array<std::atomic<T*>, 26> chunks_{};
  uint32_t size_ = 0;
};

}  // namespace gaekju::check

#endif  // GAEKJU_CHECK_STABLE_VECTOR_H_
