#include "moe/experts/cpu/bare_onednn.h"

#include <algorithm>

namespace switchyard {
namespace {

dnnl::memory::desc Rows(int64_t num_rows, int64_t num_cols) {
  return dnnl::memory::desc({num_rows, num_cols}, dnnl::memory::data_type::bf16, dnnl::memory::format_tag::ab);
}

HostBuffer Weights(const dnnl::memory::desc& desc, uint64_t seed) {
  HostBuffer buffer(desc.get_size());
  FillRandom(&buffer, seed + 7);
  return buffer;
}

}  // namespace

void FillRandom(HostBuffer* buffer, uint64_t seed) {
  auto* values = reinterpret_cast<uint16_t*>(buffer->data());
  for (size_t i = 0; i < buffer->size() / 2; ++i) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    values[i] = static_cast<uint16_t>(0x3c00 | (seed & 0x81ff));
  }
}

HostMatrix RandomBf16(int64_t num_rows, int64_t num_cols, uint64_t seed) {
  HostMatrix matrix = HostMatrix::Allocate(DType::kBF16, num_rows, num_cols);
  FillRandom(&matrix.buffer, seed);
  return matrix;
}

BareOneDnn::BareOneDnn(std::vector<int64_t> rows_per_expert)
    : counts_(std::move(rows_per_expert)), engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
  gate_up_desc_ = WeightsDesc(kBenchDim, 2 * kBenchWidth);
  down_desc_ = WeightsDesc(kBenchWidth, kBenchDim);
  const int64_t most = *std::max_element(counts_.begin(), counts_.end());
  x_ = RandomBf16(most, kBenchDim, 3), inner_ = RandomBf16(most, 2 * kBenchWidth, 4);
  y_ = RandomBf16(most, kBenchDim, 5);
  for (int e = 0; e < kBenchExperts; ++e) {
    gate_up_.push_back(Weights(gate_up_desc_, e));
    down_.push_back(Weights(down_desc_, 1000 + e));
    primitives_.try_emplace(counts_[e], counts_[e] > 0 ? MakePair(counts_[e]) : Pair{});
  }
}

void BareOneDnn::Run() {
  for (int e = 0; e < kBenchExperts; ++e) {
    if (counts_[e] == 0) continue;
    const Pair& pair = primitives_.at(counts_[e]);
    Execute(pair.gate_up, gate_up_desc_, x_, gate_up_[e], inner_, counts_[e], kBenchDim, 2 * kBenchWidth);
    Execute(pair.down, down_desc_, inner_, down_[e], y_, counts_[e], kBenchWidth, kBenchDim);
  }
}

BareOneDnn::Desc BareOneDnn::WeightsDesc(int64_t k, int64_t n) const {
  const Desc any({k, n}, dnnl::memory::data_type::bf16, dnnl::memory::format_tag::any);
  const dnnl::matmul::desc product(Rows(64, k), any, Rows(64, n));
  return dnnl::matmul::primitive_desc(product, engine_).weights_desc();
}

dnnl::matmul BareOneDnn::Make(int64_t m, int64_t k, int64_t n, const Desc& weights) const {
  const dnnl::matmul::desc product(Rows(m, k), weights, Rows(m, n));
  return dnnl::matmul(dnnl::matmul::primitive_desc(product, engine_));
}

BareOneDnn::Pair BareOneDnn::MakePair(int64_t m) const {
  return {Make(m, kBenchDim, 2 * kBenchWidth, gate_up_desc_), Make(m, kBenchWidth, kBenchDim, down_desc_)};
}

void BareOneDnn::Execute(const dnnl::matmul& primitive, const Desc& weights_desc, HostMatrix& x, HostBuffer& weights,
                         HostMatrix& y, int64_t m, int64_t k, int64_t n) {
  primitive.execute(stream_, {{DNNL_ARG_SRC, dnnl::memory(Rows(m, k), engine_, x.buffer.data())},
                              {DNNL_ARG_WEIGHTS, dnnl::memory(weights_desc, engine_, weights.data())},
                              {DNNL_ARG_DST, dnnl::memory(Rows(m, n), engine_, y.buffer.data())}});
}

}  // namespace switchyard
