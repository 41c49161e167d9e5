// Rows to load a server with: several distinct blocks of random normal values. They vary so that neither gates nor
// caches see the same rows over and over, and nothing is ever zero.
#pragma once

#include <memory>
#include <vector>

#include "base/tensor/buffer.h"

namespace switchyard {

// Immutable once made; thread-safe.
class Payloads {
 public:
  // Up to 8 blocks [num_rows, num_cols], fewer (at least 2) when they are large. The same seed gives the same values.
  static Payloads Make(DType dtype, int64_t num_rows, int64_t num_cols, uint64_t seed);

  // Block number `idx`, modulo the number of blocks.
  const std::shared_ptr<const HostMatrix>& Get(int64_t idx) const { return blocks_[idx % blocks_.size()]; }
  size_t size() const { return blocks_.size(); }

 private:
  std::vector<std::shared_ptr<const HostMatrix>> blocks_;
};

}  // namespace switchyard
