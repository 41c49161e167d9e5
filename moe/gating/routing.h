// Which experts compute each row, and with what weight.
#pragma once

#include <cstdint>
#include <vector>

namespace switchyard {

// The k choices of each of T rows; row-major [T, k]. Within a row the experts are distinct, best score first, then the
// shared ones. A choice that was not made, or was lost to capacity, is expert -1 with weight 0.
struct Routing {
  int64_t num_rows = 0;
  int top_k = 0;
  std::vector<int32_t> expert_idx;
  std::vector<float> weight;

  void Resize(int64_t rows, int k) {
    num_rows = rows;
    top_k = k;
    expert_idx.resize(static_cast<size_t>(rows) * k);
    weight.resize(static_cast<size_t>(rows) * k);
  }
};

}  // namespace switchyard
