// A latency histogram of fixed size. Buckets are exact below 256 ns and at most 1/128 of their value wide above. So a
// percentile is never too low and at most 0.8 % too high, however many samples there are and however widely they
// spread.
//
// Not thread-safe.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>

namespace switchyard {

class LatencyHistogram {
 public:
  // A negative latency counts as 0.
  void Record(std::chrono::nanoseconds latency);
  // Adds all samples of `other`.
  void Add(const LatencyHistogram& other);

  int64_t count() const { return count_; }
  std::chrono::nanoseconds max() const { return std::chrono::nanoseconds(max_ns_); }
  // 0 when there are no samples; the same holds for the percentiles.
  std::chrono::nanoseconds mean() const;

  // The smallest recorded value that at least `percent` of the samples do not exceed, rounded up to the end of its
  // bucket. 0 < percent ≤ 100.
  std::chrono::nanoseconds Percentile(double percent) const;

 private:
  static constexpr int kSubBits = 7;  // 128 buckets per power of two
  static constexpr int kNumBuckets = (63 - kSubBits + 1) << kSubBits;

  static int BucketOf(int64_t value_ns);
  static int64_t LastValueOf(int bucket);

  std::array<int64_t, kNumBuckets> counts_{};
  int64_t count_ = 0;
  int64_t max_ns_ = 0;
  double sum_ns_ = 0;
};

}  // namespace switchyard
