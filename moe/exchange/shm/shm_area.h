// The shared memory of one rank: everything that it writes and its peers read.
//
//   sleep word | written[peer] … | consumed[peer] … | ring to peer 0 | ring to peer 1 | …
//
// written[p] counts the bytes that the rank has put into its ring to p, consumed[p] those that it has taken from p's
// ring to itself. Both only grow. The sleep word is odd while the rank sleeps, and another odd number each time. Only
// the owner writes to its area, but nothing keeps a broken peer from it, so readers check what they read.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/ceil_div.h"

namespace switchyard {

// Blocks and their headers begin at multiples of this, and the counters count in it.
inline constexpr size_t kShmLine = 64;

// A view; whoever maps the memory owns it.
class ShmArea {
 public:
  ShmArea(std::byte* base, int size, size_t ring_bytes) : base_(base), size_(size), ring_bytes_(ring_bytes) {}

  // `ring_bytes` is a multiple of the page size.
  static size_t TotalBytes(int size, size_t ring_bytes) { return CountersBytes(size) + ring_bytes * size; }

  std::atomic<uint64_t>& sleep_word() const { return Counter(0); }
  std::atomic<uint64_t>& written(int peer) const { return Counter(1 + peer); }
  std::atomic<uint64_t>& consumed(int peer) const { return Counter(1 + size_ + peer); }
  std::byte* ring(int peer) const { return base_ + CountersBytes(size_) + ring_bytes_ * peer; }

 private:
  static constexpr size_t kPageBytes = 4096;
  static_assert(std::atomic<uint64_t>::is_always_lock_free && sizeof(std::atomic<uint64_t>) == sizeof(uint64_t));

  static size_t CountersBytes(int size) { return CeilDiv(kShmLine * (1 + 2 * size), kPageBytes) * kPageBytes; }
  std::atomic<uint64_t>& Counter(int idx) const {
    return *reinterpret_cast<std::atomic<uint64_t>*>(base_ + kShmLine * idx);
  }

  std::byte* const base_;
  const int size_;
  const size_t ring_bytes_;
};

}  // namespace switchyard
