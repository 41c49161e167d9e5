#include "cli/payloads.h"

#include <algorithm>
#include <tuple>

#include "base/tensor/convert.h"
#include "cli/random.h"

namespace switchyard {
namespace {

constexpr size_t kMaxBlocks = 8;
constexpr size_t kMinBlocks = 2;
constexpr size_t kTotalBytes = size_t{256} << 20;

HostMatrix RandomBlock(DType dtype, int64_t num_rows, int64_t num_cols, uint64_t* state) {
  HostMatrix block = HostMatrix::Allocate(dtype, num_rows, num_cols);
  std::vector<float> row(static_cast<size_t>(num_cols + num_cols % 2));
  for (int64_t row_idx = 0; row_idx < num_rows; ++row_idx) {
    for (size_t i = 0; i < row.size(); i += 2) std::tie(row[i], row[i + 1]) = NextNormals(state);
    ConvertElements(DType::kF32, reinterpret_cast<const std::byte*>(row.data()), dtype, block.view().row(row_idx),
                    static_cast<size_t>(num_cols));
  }
  return block;
}

}  // namespace

Payloads Payloads::Make(DType dtype, int64_t num_rows, int64_t num_cols, uint64_t seed) {
  const size_t block_bytes = static_cast<size_t>(num_rows) * static_cast<size_t>(num_cols) * SizeOf(dtype);
  const size_t num_blocks = std::clamp(kTotalBytes / std::max<size_t>(1, block_bytes), kMinBlocks, kMaxBlocks);
  Payloads payloads;
  uint64_t state = seed;
  for (size_t i = 0; i < num_blocks; ++i) {
    payloads.blocks_.push_back(std::make_shared<const HostMatrix>(RandomBlock(dtype, num_rows, num_cols, &state)));
  }
  return payloads;
}

}  // namespace switchyard
