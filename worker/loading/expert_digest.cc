#include "worker/loading/expert_digest.h"

#include <array>
#include <cstring>
#include <span>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace switchyard {
namespace {

constexpr size_t kLineBytes = 64, kBlockBytes = 4096, kLinesPerBlock = kBlockBytes / kLineBytes;
// Odd, so that successive blocks take every line once in kLinesPerBlock blocks.
constexpr size_t kLineStep = 29;

// The digest of one line of every block, and of the last bytes. Lines are gathered, because one long hash is faster
// than many short ones.
uint64_t AddSamples(std::span<const std::byte> bytes, uint64_t so_far) {
  std::array<std::byte, kBlockBytes> lines;
  size_t num_gathered = 0;
  const auto add = [&](const std::byte* line) {
    std::memcpy(&lines[num_gathered], line, kLineBytes);
    num_gathered += kLineBytes;
    if (num_gathered < lines.size()) return;
    so_far = XXH3_64bits_withSeed(lines.data(), num_gathered, so_far);
    num_gathered = 0;
  };
  const size_t num_blocks = bytes.size() / kBlockBytes;
  for (size_t block = 0; block < num_blocks; ++block) {
    add(&bytes[block * kBlockBytes + block * kLineStep % kLinesPerBlock * kLineBytes]);
  }
  add(&bytes[bytes.size() - kLineBytes]);
  return XXH3_64bits_withSeed(lines.data(), num_gathered, so_far);
}

uint64_t AddMatrix(ConstMatrixView matrix, bool transposed, uint64_t so_far) {
  const int64_t form[] = {matrix.num_rows, matrix.num_cols, static_cast<int64_t>(matrix.dtype), transposed};
  so_far = XXH3_64bits_withSeed(form, sizeof(form), so_far);
  if (matrix.data == nullptr) return so_far;
  const std::span<const std::byte> bytes(matrix.data, matrix.size_bytes());
  if (bytes.size() > kWholeBytes) return AddSamples(bytes, so_far);
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), so_far);
}

}  // namespace

uint64_t DigestOf(const ExpertWeights& weights) {
  uint64_t digest = 0;
  for (const WeightView* view : {&weights.up, &weights.gate, &weights.down}) {
    digest = AddMatrix(view->matrix, view->transposed, digest);
  }
  for (const ConstMatrixView* bias : {&weights.up_bias, &weights.gate_bias, &weights.down_bias}) {
    digest = AddMatrix(*bias, /*transposed=*/false, digest);
  }
  return digest;
}

}  // namespace switchyard
