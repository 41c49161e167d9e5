#include "cli/histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace switchyard {

// Values share a bucket when they have the same leading one bit and the same 7 bits after it. Values below 256 have no
// further bits, so each has a bucket of its own, whose number is the value.
int LatencyHistogram::BucketOf(int64_t value_ns) {
  const int width = std::bit_width(static_cast<uint64_t>(value_ns));
  const int shift = std::max(0, width - (kSubBits + 1));
  return (shift << kSubBits) + static_cast<int>(value_ns >> shift);
}

int64_t LatencyHistogram::LastValueOf(int bucket) {
  const int shift = std::max(0, (bucket >> kSubBits) - 1);
  const int64_t leading = bucket - (shift << kSubBits);
  return (leading << shift) + ((int64_t{1} << shift) - 1);
}

void LatencyHistogram::Record(std::chrono::nanoseconds latency) {
  const int64_t value_ns = std::max<int64_t>(0, latency.count());
  ++counts_[BucketOf(value_ns)];
  ++count_;
  max_ns_ = std::max(max_ns_, value_ns);
  sum_ns_ += static_cast<double>(value_ns);
}

void LatencyHistogram::Add(const LatencyHistogram& other) {
  for (int bucket = 0; bucket < kNumBuckets; ++bucket) counts_[bucket] += other.counts_[bucket];
  count_ += other.count_;
  max_ns_ = std::max(max_ns_, other.max_ns_);
  sum_ns_ += other.sum_ns_;
}

std::chrono::nanoseconds LatencyHistogram::mean() const {
  if (count_ == 0) return std::chrono::nanoseconds(0);
  return std::chrono::nanoseconds(std::llround(sum_ns_ / static_cast<double>(count_)));
}

std::chrono::nanoseconds LatencyHistogram::Percentile(double percent) const {
  const auto wanted = static_cast<int64_t>(std::ceil(percent / 100 * static_cast<double>(count_)));
  int64_t seen = 0;
  for (int bucket = 0; bucket < kNumBuckets; ++bucket) {
    seen += counts_[bucket];
    if (seen > 0 && seen >= wanted) return std::chrono::nanoseconds(std::min(LastValueOf(bucket), max_ns_));
  }
  return std::chrono::nanoseconds(0);
}

}  // namespace switchyard
