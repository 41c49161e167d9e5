#include "moe/linear/matmul_shape.h"

#include <string>
#include <utility>

#include "moe/linear/dnnl_status.h"

namespace switchyard {
namespace {

using dnnl::memory;

// Rows an expert sees in a well-filled step; decides the layout.
constexpr int64_t kTypicalRows = 64;

dnnl::algorithm DnnlAlgorithm(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return dnnl::algorithm::eltwise_swish;
    case Activation::kGelu:
      return dnnl::algorithm::eltwise_gelu_erf;
    case Activation::kRelu:
      return dnnl::algorithm::eltwise_relu;
    case Activation::kGeluTanh:
      return dnnl::algorithm::eltwise_gelu_tanh;
    case Activation::kQuickGelu:
      return dnnl::algorithm::eltwise_swish;
  }
  return dnnl::algorithm::undef;
}

// The library's ReLU turns NaN into 0, so a damaged row would come out as a good one. With a slope for x below 0 it
// keeps NaN. The slope is so small that the values it lets through are lost in any sum.
constexpr float kReluSlope = 1e-30f;

// swish(x) = x · sigmoid(alpha · x); relu(x) = alpha · x below 0
float Alpha(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return 1.0f;
    case Activation::kQuickGelu:
      return 1.702f;
    case Activation::kRelu:
      return kReluSlope;
    case Activation::kGelu:
    case Activation::kGeluTanh:
      break;
  }
  return 0.0f;
}

dnnl::post_ops PostOps(const MatmulVariant& variant, const std::optional<memory::desc>& multiplier) {
  constexpr float kScale = 1.0f, kBeta = 0.0f;
  dnnl::post_ops ops;
  if (variant.activation.has_value()) {
    ops.append_eltwise(kScale, DnnlAlgorithm(*variant.activation), Alpha(*variant.activation), kBeta);
  }
  if (multiplier.has_value()) ops.append_binary(dnnl::algorithm::binary_mul, *multiplier);
  return ops;
}

}  // namespace

memory::data_type DnnlType(DType dtype) {
  return dtype == DType::kBF16 ? memory::data_type::bf16 : memory::data_type::f32;
}

absl::StatusOr<std::unique_ptr<MatmulShape>> MatmulShape::Create(const dnnl::engine& engine, DType compute,
                                                                 int64_t in_features, int64_t out_features) {
  auto shape = std::unique_ptr<MatmulShape>(new MatmulShape(engine, compute, in_features, out_features));
  const absl::Status status = shape->ChooseLayout();
  if (status.code() == absl::StatusCode::kUnimplemented) {
    return absl::UnimplementedError(absl::StrCat("linear: compute type ", std::string(DTypeName(compute)),
                                                 " is not available on this CPU, use fp32: ", status.message()));
  }
  SY_RETURN_IF_ERROR(status);
  return shape;
}

memory::desc MatmulShape::RowsDesc(int64_t num_rows, int64_t num_cols, DType dtype) const {
  return memory::desc({num_rows, num_cols}, DnnlType(dtype), memory::format_tag::ab);
}

absl::Status MatmulShape::ChooseLayout() {
  const MatmulVariant typical{.num_rows = kTypicalRows, .y_dtype = compute_};
  const memory::desc any({in_features_, out_features_}, DnnlType(compute_), memory::format_tag::any);
  SY_RETURN_IF_ERROR(SY_DNNL_CALL(weights_desc_ = Describe(typical, any).weights_desc()));
  if (AcceptsLayout(1, weights_desc_) && AcceptsLayout(4 * kTypicalRows, weights_desc_)) return absl::OkStatus();
  // If some numbers of rows cannot use that layout, they would need a second copy of the weights. Plain [N, K] needs
  // none, because all of them can read it.
  return SY_DNNL_CALL(weights_desc_ =
                          memory::desc({in_features_, out_features_}, DnnlType(compute_), memory::format_tag::ba));
}

bool MatmulShape::AcceptsLayout(int64_t num_rows, const memory::desc& weights_desc) const {
  return SY_DNNL_CALL(Describe({.num_rows = num_rows, .y_dtype = compute_}, weights_desc)).ok();
}

dnnl::matmul::primitive_desc MatmulShape::Describe(const MatmulVariant& variant,
                                                   const memory::desc& weights_desc) const {
  const memory::desc x = RowsDesc(variant.num_rows, in_features_, compute_);
  const memory::desc y = RowsDesc(variant.num_rows, out_features_, variant.y_dtype);
  const memory::desc bias = variant.biased ? RowsDesc(1, out_features_, DType::kF32) : memory::desc();
  std::optional<memory::desc> multiplier;
  if (variant.multiplier.has_value()) multiplier = RowsDesc(variant.num_rows, out_features_, *variant.multiplier);
  dnnl::primitive_attr attributes;
  attributes.set_post_ops(PostOps(variant, multiplier));
  // One scratchpad for all primitives instead of one inside each.
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return {dnnl::matmul::desc(x, weights_desc, bias, y), attributes, engine_};
}

std::unique_ptr<MatmulKernel> MatmulShape::Compile(const MatmulVariant& variant) const {
  const dnnl::matmul::primitive_desc description = Describe(variant, weights_desc_);
  auto kernel = std::make_unique<MatmulKernel>();
  kernel->primitive = dnnl::matmul(description);
  kernel->scratchpad_bytes = description.scratchpad_desc().get_size();
  const auto bind = [&](int argument, const memory::desc& desc, memory* out) {
    *out = memory(desc, engine_, DNNL_MEMORY_NONE);
    kernel->arguments.emplace(argument, *out);
  };
  bind(DNNL_ARG_SRC, description.src_desc(), &kernel->x);
  bind(DNNL_ARG_WEIGHTS, weights_desc_, &kernel->weights);
  bind(DNNL_ARG_DST, description.dst_desc(), &kernel->y);
  bind(DNNL_ARG_SCRATCHPAD, description.scratchpad_desc(), &kernel->scratchpad);
  if (variant.biased) bind(DNNL_ARG_BIAS, description.bias_desc(), &kernel->bias);
  if (variant.multiplier.has_value()) {
    const int post_op_idx = variant.activation.has_value() ? 1 : 0;
    bind(DNNL_ARG_ATTR_MULTIPLE_POST_OP(post_op_idx) | DNNL_ARG_SRC_1,
         RowsDesc(variant.num_rows, out_features_, *variant.multiplier), &kernel->multiplier);
  }
  return kernel;
}

absl::StatusOr<MatmulKernel*> MatmulShape::KernelFor(const MatmulVariant& variant) {
  std::unique_ptr<MatmulKernel>& kernel = kernels_[variant];
  if (kernel == nullptr) SY_RETURN_IF_ERROR(SY_DNNL_CALL(kernel = Compile(variant)));
  return kernel.get();
}

}  // namespace switchyard
