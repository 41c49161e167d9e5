#include "moe/experts/reference.h"

#include <cmath>
#include <numbers>

#include "base/tensor/convert.h"

namespace switchyard {
namespace {

using Vector = std::vector<double>;

double Activate(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kGelu:
      return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    case Activation::kRelu:
      return x < 0.0 ? 0.0 : x;
    case Activation::kGeluTanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
    case Activation::kQuickGelu:
      return x / (1.0 + std::exp(-1.702 * x));
  }
  return x;
}

// Both return NaN for NaN.
double AtMost(double x, double limit) { return x > limit ? limit : x; }
double AtLeast(double x, double limit) { return x < limit ? limit : x; }

// act(min(gate, limit)) · (clamp(up, ±limit) + up_offset)
double Gated(const ExpertSpec& spec, double gate, double up) {
  if (spec.limit != 0) {
    gate = AtMost(gate, spec.limit);
    up = AtLeast(AtMost(up, spec.limit), -spec.limit);
  }
  return Activate(spec.activation, gate) * (up + spec.up_offset);
}

// W · x + bias, with W [out, in]; an empty `bias` means no bias.
Vector Linear(const Vector& weight, const Vector& bias, std::span<const double> x) {
  const size_t num_out = weight.size() / x.size();
  Vector y(num_out, 0.0);
  for (size_t o = 0; o < num_out; ++o) {
    for (size_t i = 0; i < x.size(); ++i) y[o] += weight[o * x.size() + i] * x[i];
    if (!bias.empty()) y[o] += bias[o];
  }
  return y;
}

struct ReferenceExpert {
  Vector up, gate, down, up_bias, gate_bias, down_bias;

  explicit ReferenceExpert(const ExpertWeights& weights)
      : up(ToDoubles(weights.up)),
        gate(ToDoubles(weights.gate)),
        down(ToDoubles(weights.down)),
        up_bias(ToDoubles(weights.up_bias)),
        gate_bias(ToDoubles(weights.gate_bias)),
        down_bias(ToDoubles(weights.down_bias)) {}

  Vector operator()(const ExpertSpec& spec, std::span<const double> x) const {
    Vector inner = Linear(up, up_bias, x);
    if (spec.gated) {
      const Vector gates = Linear(gate, gate_bias, x);
      for (size_t i = 0; i < inner.size(); ++i) inner[i] = Gated(spec, gates[i], inner[i]);
    } else {
      for (double& value : inner) value = Activate(spec.activation, value);
    }
    return Linear(down, down_bias, inner);
  }
};

}  // namespace

Vector ToDoubles(ConstMatrixView matrix) {
  if (matrix.data == nullptr) return {};
  Vector values(static_cast<size_t>(matrix.num_rows) * matrix.num_cols);
  ConvertElements(matrix.dtype, matrix.data, DType::kF64, reinterpret_cast<std::byte*>(values.data()), values.size());
  return values;
}

Vector ToDoubles(const WeightView& weight) {
  const Vector stored = ToDoubles(weight.matrix);
  if (!weight.transposed) return stored;
  const int64_t num_in = weight.matrix.num_rows, num_out = weight.matrix.num_cols;
  Vector turned(stored.size());
  for (int64_t i = 0; i < num_in; ++i) {
    for (int64_t o = 0; o < num_out; ++o) turned[o * num_in + i] = stored[i * num_out + o];
  }
  return turned;
}

Vector ReferenceExperts(const LayerSpec& layer, std::span<const ExpertWeights> experts, ConstMatrixView rows,
                        const Routing& routing) {
  const std::vector<ReferenceExpert> reference(experts.begin(), experts.end());
  const Vector x = ToDoubles(rows);
  const size_t dim = layer.hidden_dim;
  Vector output(x.size(), 0.0);
  for (int64_t row_idx = 0; row_idx < rows.num_rows; ++row_idx) {
    for (int j = 0; j < routing.top_k; ++j) {
      const size_t choice = row_idx * routing.top_k + j;
      if (routing.expert_idx[choice] < 0) continue;
      const double weight = routing.weight[choice];
      Vector row(x.begin() + row_idx * dim, x.begin() + (row_idx + 1) * dim);
      if (layer.expert.weighs_input) {
        for (double& value : row) value *= weight;
      }
      const Vector y = reference[routing.expert_idx[choice]](layer.expert, row);
      for (size_t i = 0; i < dim; ++i) output[row_idx * dim + i] += layer.expert.weighs_input ? y[i] : weight * y[i];
    }
  }
  return output;
}

}  // namespace switchyard
