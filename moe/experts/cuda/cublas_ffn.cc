// ExpertFfn with cuBLAS: one product per expert and matrix, in order, and separate kernels for activation and biases.
#include <cublas_v2.h>

#include "moe/experts/cuda/cublas_status.h"
#include "moe/experts/cuda/expert_ffn.h"
#include "moe/experts/cuda/kernels/row_kernels.h"

namespace switchyard {
namespace {

cudaDataType_t CudaType(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return CUDA_R_64F;
    case DType::kF32:
      return CUDA_R_32F;
    case DType::kF16:
      return CUDA_R_16F;
    case DType::kBF16:
      break;
  }
  return CUDA_R_16BF;
}

class CublasFfn final : public ExpertFfn {
 public:
  CublasFfn(CudaDevice* device, DType dtype, bool allow_tf32)
      : device_(device), dtype_(dtype), allow_tf32_(allow_tf32), element_bytes_(SizeOf(dtype)) {}

  int64_t ProductBytesPerPair(const FfnShape& shape) const override { return shape.up_rows * element_bytes_; }
  int64_t TableBytes(int64_t, int) const override { return 0; }
  PackTarget TargetOf(const CudaLayer& layer, int slot, Part part) const override;
  absl::StatusOr<int> MakeTables(const CudaLayer&, const RankPlanView&, int64_t) override { return 1; }
  absl::Status Run(const CudaLayer& layer, const FfnStep& step) override;

 private:
  absl::Status RunExpert(const CudaLayer& layer, const FfnStep& step, std::byte* products, int slot);
  // out[n, rows] = in[n, cols] · weights[rows, cols]^T, all row-major and contiguous.
  absl::Status Multiply(const void* weights, const void* in, void* out, int64_t n, int64_t rows, int64_t cols);
  cublasComputeType_t ComputeType() const;

  CudaDevice* const device_;
  const DType dtype_;
  const bool allow_tf32_;
  const int64_t element_bytes_;
};

// Matrices are row-major, and gate's rows come before up's.
PackTarget CublasFfn::TargetOf(const CudaLayer& layer, int slot, Part part) const {
  const FfnShape& shape = layer.shape;
  PackTarget target;
  target.dtype = dtype_;
  if (part == Part::kDown) {
    target.weights = layer.down.data() + slot * shape.down_elements() * element_bytes_;
    target.pitch = shape.hidden_pitch;
  } else {
    target.weights = layer.up.data() + slot * shape.up_elements() * element_bytes_;
    target.pitch = shape.row_pitch;
    target.first_row = layer.spec.expert.gated && part == Part::kUp ? shape.hidden_pitch : 0;
  }
  return target;
}

cublasComputeType_t CublasFfn::ComputeType() const {
  if (dtype_ == DType::kF64) return CUBLAS_COMPUTE_64F;
  if (dtype_ == DType::kF32 && allow_tf32_) return CUBLAS_COMPUTE_32F_FAST_TF32;
  return CUBLAS_COMPUTE_32F;
}

absl::Status CublasFfn::Multiply(const void* weights, const void* in, void* out, int64_t n, int64_t rows,
                                 int64_t cols) {
  const float one32 = 1.0f, zero32 = 0.0f;
  const double one64 = 1.0, zero64 = 0.0;
  const bool wide = dtype_ == DType::kF64;
  const void* one = wide ? static_cast<const void*>(&one64) : &one32;
  const void* zero = wide ? static_cast<const void*>(&zero64) : &zero32;
  const cudaDataType_t type = CudaType(dtype_);
  // cuBLAS is column-major, so it sees every matrix transposed.
  SY_CUBLAS(cublasGemmEx(device_->cublas(), CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(rows), static_cast<int>(n),
                         static_cast<int>(cols), one, weights, type, static_cast<int>(cols), in, type,
                         static_cast<int>(cols), zero, out, type, static_cast<int>(rows), ComputeType(),
                         CUBLAS_GEMM_DEFAULT));
  return absl::OkStatus();
}

absl::Status CublasFfn::RunExpert(const CudaLayer& layer, const FfnStep& step, std::byte* products, int slot) {
  const FfnShape& shape = layer.shape;
  const int64_t begin = step.plan->expert_offsets[slot];
  const int64_t num_rows = step.plan->expert_offsets[slot + 1] - begin;
  if (num_rows == 0) return absl::OkStatus();
  const int64_t bias_bytes = dtype_ == DType::kF64 ? 8 : 4;
  const bool biased = layer.spec.expert.biased;
  auto row_of = [&](void* matrix, int64_t pitch) {
    return static_cast<std::byte*>(matrix) + begin * pitch * element_bytes_;
  };
  ActivateArgs activate;
  activate.dtype = dtype_;
  activate.form = InnerFormOf(layer.spec.expert);
  activate.swish = SwishConstantsOf<double>(layer.spec.expert);
  activate.gated = layer.spec.expert.gated;
  activate.products = row_of(products, shape.up_rows);
  activate.product_pitch = shape.up_rows;
  activate.out = row_of(step.hidden, shape.hidden_pitch);
  activate.pitch = shape.hidden_pitch;
  activate.width = shape.expert_dim;
  activate.num_rows = num_rows;
  activate.bias = biased ? layer.up_bias.data() + slot * shape.up_rows * bias_bytes : nullptr;
  SY_RETURN_IF_ERROR(Multiply(layer.up.data() + slot * shape.up_elements() * element_bytes_,
                              row_of(step.grouped, shape.row_pitch), row_of(products, shape.up_rows), num_rows,
                              shape.up_rows, shape.row_pitch));
  SY_RETURN_IF_ERROR(ActivateRows(activate, device_->compute()));
  std::byte* const outputs = row_of(step.outputs, shape.row_pitch);
  SY_RETURN_IF_ERROR(Multiply(layer.down.data() + slot * shape.down_elements() * element_bytes_,
                              row_of(step.hidden, shape.hidden_pitch), outputs, num_rows, shape.row_pitch,
                              shape.hidden_pitch));
  if (!biased) return absl::OkStatus();
  ActivateArgs add_bias;
  add_bias.dtype = dtype_;
  add_bias.products = outputs;
  add_bias.product_pitch = shape.row_pitch;
  add_bias.out = outputs;
  add_bias.pitch = shape.row_pitch;
  add_bias.width = shape.hidden_dim;
  add_bias.num_rows = num_rows;
  add_bias.bias = layer.down_bias.data() + slot * shape.row_pitch * bias_bytes;
  return ActivateRows(add_bias, device_->compute());
}

absl::Status CublasFfn::Run(const CudaLayer& layer, const FfnStep& step) {
  SY_ASSIGN_OR_RETURN(std::byte * products,
                      device_->Get(Workspace::kProducts, step.plan->num_pairs() * ProductBytesPerPair(layer.shape)));
  for (int slot = 0; slot < step.plan->num_slots(); ++slot) {
    SY_RETURN_IF_ERROR(RunExpert(layer, step, products, slot));
  }
  return absl::OkStatus();
}

}  // namespace

std::unique_ptr<ExpertFfn> CreateCublasFfn(CudaDevice* device, DType dtype, bool allow_tf32) {
  return std::make_unique<CublasFfn>(device, dtype, allow_tf32);
}

}  // namespace switchyard
