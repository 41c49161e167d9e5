// The oneDNN primitives of all linears of one shape [K → N] and compute type (fp32 or bf16).
//
// The library chooses the weights' layout once, for a typical number of rows. The layout is the same for every linear
// of the shape: weights, like all data, are bound at execution. A primitive is compiled for each variant at its first
// use.
//
// Thread-safety: one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>

#include "absl/container/flat_hash_map.h"
#include "base/status.h"
#include "base/tensor/dtype.h"
#include "dnnl.hpp"
#include "moe/weights/layer_spec.h"

namespace switchyard {

// oneDNN's name of fp32 or bf16.
dnnl::memory::data_type DnnlType(DType dtype);

// The properties in which the primitives of one shape differ.
struct MatmulVariant {
  int64_t num_rows = 0;
  DType y_dtype = DType::kF32;
  bool biased = false;
  std::optional<Activation> activation;
  std::optional<DType> multiplier;  // its type, when there is one

  friend bool operator==(const MatmulVariant&, const MatmulVariant&) = default;
  template <typename H>
  friend H AbslHashValue(H state, const MatmulVariant& v) {
    return H::combine(std::move(state), v.num_rows, v.y_dtype, v.biased, v.activation, v.multiplier);
  }
};

// A compiled primitive with its argument list; the memories get their pointers before every execution.
struct MatmulKernel {
  dnnl::matmul primitive;
  dnnl::memory x, weights, bias, multiplier, y, scratchpad;
  size_t scratchpad_bytes = 0;
  std::unordered_map<int, dnnl::memory> arguments;  // share the memories above
};

class MatmulShape {
 public:
  // UNIMPLEMENTED when oneDNN has no code for `compute` on this CPU.
  static absl::StatusOr<std::unique_ptr<MatmulShape>> Create(const dnnl::engine& engine, DType compute,
                                                             int64_t in_features, int64_t out_features);

  DType compute_dtype() const { return compute_; }
  int64_t in_features() const { return in_features_; }
  int64_t out_features() const { return out_features_; }

  // The packed layout; its dimensions are [K, N].
  const dnnl::memory::desc& weights_desc() const { return weights_desc_; }

  // Valid as long as this object.
  absl::StatusOr<MatmulKernel*> KernelFor(const MatmulVariant& variant);

 private:
  MatmulShape(const dnnl::engine& engine, DType compute, int64_t in_features, int64_t out_features)
      : engine_(engine), compute_(compute), in_features_(in_features), out_features_(out_features) {}

  absl::Status ChooseLayout();
  bool AcceptsLayout(int64_t num_rows, const dnnl::memory::desc& weights_desc) const;
  dnnl::memory::desc RowsDesc(int64_t num_rows, int64_t num_cols, DType dtype) const;
  dnnl::matmul::primitive_desc Describe(const MatmulVariant& variant, const dnnl::memory::desc& weights_desc) const;
  std::unique_ptr<MatmulKernel> Compile(const MatmulVariant& variant) const;

  // Constant after construction.
  const dnnl::engine engine_;
  const DType compute_;
  const int64_t in_features_;
  const int64_t out_features_;
  dnnl::memory::desc weights_desc_;

  absl::flat_hash_map<MatmulVariant, std::unique_ptr<MatmulKernel>> kernels_;
};

}  // namespace switchyard
