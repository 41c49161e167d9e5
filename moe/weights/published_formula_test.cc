// Checks checkpoints that have no recorded reference: DBRX, fp8 and MXFP4. They are written here as they are published,
// and compared with each family's formula in plain float64 over the values that were written (not over the values that
// a source hands out).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "base/tensor/float16.h"
#include "moe/weights/plain_layer.h"
#include "moe/weights/test_checkpoint.h"

namespace switchyard {
namespace {

using nlohmann::json;
using testing::HasSubstr;

// Both sides sum in float64 over the same bf16 values.
constexpr double kTolerance = 1e-9;

class Values {
 public:
  // A bf16 number in [-1, 1].
  double Next() { return BF16ToF32(F32ToBF16(std::uniform_real_distribution<float>(-1, 1)(random_))); }
  Doubles Many(size_t count) {
    Doubles values(count);
    for (double& value : values) value = Next();
    return values;
  }
  uint8_t Byte() { return static_cast<uint8_t>(random_()); }

 private:
  std::mt19937 random_{20240611};
};

TestTensor BF16Tensor(std::vector<int64_t> shape, const Doubles& values) {
  TestTensor tensor = {"BF16", std::move(shape), ""};
  for (double value : values) {
    const uint16_t bits = F32ToBF16(static_cast<float>(value));
    tensor.bytes.append(reinterpret_cast<const char*>(&bits), sizeof(bits));
  }
  return tensor;
}

TestTensor F32Tensor(std::vector<int64_t> shape, const std::vector<float>& values) {
  return {"F32", std::move(shape), BytesOf(std::as_bytes(std::span(values)))};
}

TestTensor ByteTensor(std::string type, std::vector<int64_t> shape, const std::vector<uint8_t>& bytes) {
  return {std::move(type), std::move(shape), std::string(bytes.begin(), bytes.end())};
}

double Silu(double x) { return x / (1 + std::exp(-x)); }

// m[row, :] · x for a matrix of rows of x's length.
double RowTimes(const Doubles& m, int64_t row, const double* x, int64_t dim) {
  double sum = 0;
  for (int64_t i = 0; i < dim; ++i) sum += m[row * dim + i] * x[i];
  return sum;
}

std::vector<int> Best(const Doubles& values, int k) {
  std::vector<int> order;
  for (int e = 0; e < values.size(); ++e) order.push_back(e);
  std::sort(order.begin(), order.end(), [&](int a, int b) { return values[a] > values[b]; });
  order.resize(k);
  return order;
}

void ExpectSameAnswer(const TestCheckpoint& checkpoint, const Doubles& rows, const Doubles& expected) {
  const auto source = OpenWeightSource(checkpoint.Write());
  ASSERT_TRUE(source.ok()) << source.status();
  const auto layer = PlainLayer::Read(**source, 0);
  ASSERT_TRUE(layer.ok()) << layer.status();
  const Doubles output = layer->Forward(rows, layer->Route(rows));
  ASSERT_EQ(output.size(), expected.size());
  for (size_t i = 0; i < output.size(); ++i) {
    ASSERT_NEAR(output[i], expected[i], kTolerance * (1 + std::abs(expected[i]))) << i;
  }
}

// DbrxFFN: weights = softmax(x · routerᵀ), the k largest ÷ their p-norm; y = Σ weight · (silu(x · w1ᵀ) ⊙ (x · v1ᵀ)) ·
// w2 with w1, v1, w2 [F, D] of the expert's rows in [E · F, D].
struct Dbrx {
  int64_t num_experts = 6, dim = 16, inner = 10;
  int top_k = 3;
  Doubles router, w1, v1, w2;

  explicit Dbrx(Values* values)
      : router(values->Many(num_experts * dim)),
        w1(values->Many(num_experts * inner * dim)),
        v1(values->Many(num_experts * inner * dim)),
        w2(values->Many(num_experts * inner * dim)) {}

  TestCheckpoint Checkpoint() const {
    TestCheckpoint checkpoint;
    checkpoint.config = {{"model_type", "dbrx"},
                         {"d_model", dim},
                         {"n_layers", 1},
                         {"ffn_config",
                          {{"ffn_hidden_size", inner},
                           {"moe_num_experts", num_experts},
                           {"moe_top_k", top_k},
                           {"moe_normalize_expert_weights", 1.0},
                           {"ffn_act_fn", {{"name", "silu"}}}}}};
    const std::string path = "transformer.blocks.0.ffn.";
    checkpoint.tensors[path + "router.layer.weight"] = BF16Tensor({num_experts, dim}, router);
    checkpoint.tensors[path + "experts.mlp.w1"] = BF16Tensor({num_experts * inner, dim}, w1);
    checkpoint.tensors[path + "experts.mlp.v1"] = BF16Tensor({num_experts * inner, dim}, v1);
    checkpoint.tensors[path + "experts.mlp.w2"] = BF16Tensor({num_experts * inner, dim}, w2);
    return checkpoint;
  }

  Doubles Forward(const Doubles& rows, double norm_order) const {
    Doubles output(rows.size());
    for (size_t row = 0; row * dim < rows.size(); ++row) {
      const double* x = &rows[row * dim];
      Doubles scores;
      double sum = 0, norm = 0;
      for (int64_t e = 0; e < num_experts; ++e) sum += scores.emplace_back(std::exp(RowTimes(router, e, x, dim)));
      for (double& score : scores) score /= sum;
      const std::vector<int> chosen = Best(scores, top_k);
      for (int e : chosen) norm += std::pow(scores[e], norm_order);
      norm = norm_order == 0 ? 1 : std::pow(norm, 1 / norm_order);
      for (int e : chosen) {
        for (int64_t f = e * inner; f < (e + 1) * inner; ++f) {
          const double h = Silu(RowTimes(w1, f, x, dim)) * RowTimes(v1, f, x, dim) * scores[e] / norm;
          for (int64_t d = 0; d < dim; ++d) output[row * dim + d] += h * w2[f * dim + d];
        }
      }
    }
    return output;
  }
};

TEST(Dbrx, IsThePublishedFormula) {
  Values values;
  const Dbrx dbrx(&values);
  const Doubles rows = values.Many(9 * dbrx.dim);
  TestCheckpoint checkpoint = dbrx.Checkpoint();
  ExpectSameAnswer(checkpoint, rows, dbrx.Forward(rows, 1));
  checkpoint.config["ffn_config"]["moe_normalize_expert_weights"] = 2.0;
  ExpectSameAnswer(checkpoint, rows, dbrx.Forward(rows, 2));
  checkpoint.config["ffn_config"]["moe_normalize_expert_weights"] = nullptr;
  ExpectSameAnswer(checkpoint, rows, dbrx.Forward(rows, 0));
  // Keys that are not stored have transformers' defaults.
  checkpoint.config["ffn_config"].erase("moe_normalize_expert_weights");
  checkpoint.config["ffn_config"].erase("ffn_act_fn");
  ExpectSameAnswer(checkpoint, rows, dbrx.Forward(rows, 1));
}

TEST(Dbrx, DamageIsNamed) {
  Values values;
  const TestCheckpoint whole = Dbrx(&values).Checkpoint();
  for (const auto& [name, tensor] : whole.tensors) {
    TestCheckpoint damaged = whole;
    damaged.tensors.erase(name);
    EXPECT_THAT(std::string(damaged.OpenError().message()), HasSubstr(absl::StrCat("tensor '", name, "': found none")));
  }
  for (const char* key : {"ffn_hidden_size", "moe_num_experts", "moe_top_k"}) {
    TestCheckpoint damaged = whole;
    damaged.config["ffn_config"].erase(key);
    EXPECT_THAT(std::string(damaged.OpenError().message()),
                HasSubstr(absl::StrCat("ffn_config.", key, ": found no such key")));
    damaged.config["ffn_config"][key] = -1;
    EXPECT_THAT(std::string(damaged.OpenError().message()),
                HasSubstr(absl::StrCat("ffn_config.", key, ": found the number -1")));
  }
  TestCheckpoint without = whole;
  without.config.erase("ffn_config");
  EXPECT_THAT(std::string(without.OpenError().message()),
              HasSubstr("ffn_config: found no such key, expected an object"));
}

// A matrix [num_rows, num_cols] in fp8 with its scales, and the values that they stand for, rounded to bf16 as they are
// served.
struct Fp8Matrix {
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  Doubles values;

  Fp8Matrix(Values* random, int64_t num_rows, int64_t num_cols, int64_t block_rows, int64_t block_cols) {
    const int64_t scale_cols = (num_cols + block_cols - 1) / block_cols;
    const int64_t scale_rows = (num_rows + block_rows - 1) / block_rows;
    for (int64_t i = 0; i < scale_rows * scale_cols; ++i) {
      scales.push_back(static_cast<float>(0.003 * (1.5 + random->Next())));
    }
    for (int64_t row = 0; row < num_rows; ++row) {
      for (int64_t col = 0; col < num_cols; ++col) {
        uint8_t code = random->Byte();
        if ((code & 0x7f) == 0x7f) code = 0x38;  // not NaN: 1.0
        codes.push_back(code);
        const int exponent = (code >> 3) & 15, mantissa = code & 7;
        double value = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
        if (code & 128) value = -value;
        const float scaled = static_cast<float>(value) * scales[row / block_rows * scale_cols + col / block_cols];
        values.push_back(BF16ToF32(F32ToBF16(scaled)));
      }
    }
  }
};

// A layer of Qwen2-MoE's kind in plain float64: softmax, top-k, no normalisation; plus sigmoid(gate · x) · shared.
struct Fp8Layer {
  static constexpr int64_t kExperts = 3, kDim = 150, kInner = 136, kShared = 200, kBlockRows = 128, kBlockCols = 128;
  struct Expert {
    Fp8Matrix gate, up, down;
    int64_t width;
    Expert(Values* values, int64_t width_in)
        : gate(values, width_in, kDim, kBlockRows, kBlockCols),
          up(values, width_in, kDim, kBlockRows, kBlockCols),
          down(values, kDim, width_in, kBlockRows, kBlockCols),
          width(width_in) {}
    void Add(const double* x, double weight, double* y) const {
      Doubles h(width);
      for (int64_t f = 0; f < width; ++f) {
        h[f] = Silu(RowTimes(gate.values, f, x, kDim)) * RowTimes(up.values, f, x, kDim);
      }
      for (int64_t d = 0; d < kDim; ++d) y[d] += weight * RowTimes(down.values, d, h.data(), width);
    }
  };
  Doubles router, shared_gate;
  std::vector<Expert> experts;
  Expert shared;

  explicit Fp8Layer(Values* values)
      : router(values->Many(kExperts * kDim)), shared_gate(values->Many(kDim)), shared(values, kShared) {
    for (int64_t e = 0; e < kExperts; ++e) experts.emplace_back(values, kInner);
  }

  static void AddMatrix(const std::string& name, const Fp8Matrix& matrix, int64_t num_rows, int64_t num_cols,
                        TestCheckpoint* checkpoint) {
    checkpoint->tensors[name] = ByteTensor("F8_E4M3", {num_rows, num_cols}, matrix.codes);
    const std::vector<int64_t> shape = {(num_rows + kBlockRows - 1) / kBlockRows,
                                        (num_cols + kBlockCols - 1) / kBlockCols};
    checkpoint->tensors[name + "_scale_inv"] = F32Tensor(shape, matrix.scales);
  }

  static void AddExpert(const std::string& path, const Expert& expert, TestCheckpoint* checkpoint) {
    AddMatrix(path + ".gate_proj.weight", expert.gate, expert.width, kDim, checkpoint);
    AddMatrix(path + ".up_proj.weight", expert.up, expert.width, kDim, checkpoint);
    AddMatrix(path + ".down_proj.weight", expert.down, kDim, expert.width, checkpoint);
  }

  TestCheckpoint Checkpoint() const {
    TestCheckpoint checkpoint;
    checkpoint.config = {{"model_type", "qwen2_moe"},
                         {"hidden_size", kDim},
                         {"num_hidden_layers", 1},
                         {"num_experts", kExperts},
                         {"num_experts_per_tok", 2},
                         {"norm_topk_prob", false},
                         {"moe_intermediate_size", kInner},
                         {"shared_expert_intermediate_size", kShared},
                         {"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}}}};
    const std::string path = "model.layers.0.mlp.";
    checkpoint.tensors[path + "gate.weight"] = BF16Tensor({kExperts, kDim}, router);
    checkpoint.tensors[path + "shared_expert_gate.weight"] = BF16Tensor({1, kDim}, shared_gate);
    for (int64_t e = 0; e < kExperts; ++e) AddExpert(absl::StrCat(path, "experts.", e), experts[e], &checkpoint);
    AddExpert(path + "shared_expert", shared, &checkpoint);
    return checkpoint;
  }

  Doubles Forward(const Doubles& rows) const {
    Doubles output(rows.size());
    for (size_t begin = 0; begin < rows.size(); begin += kDim) {
      const double* x = &rows[begin];
      Doubles scores;
      double sum = 0;
      for (int64_t e = 0; e < kExperts; ++e) sum += scores.emplace_back(std::exp(RowTimes(router, e, x, kDim)));
      for (int e : Best(scores, 2)) experts[e].Add(x, scores[e] / sum, &output[begin]);
      shared.Add(x, 1 / (1 + std::exp(-RowTimes(shared_gate, 0, x, kDim))), &output[begin]);
    }
    return output;
  }
};

// Widths that are no multiple of a block, and a shared expert wider than one expert and narrower than two.
TEST(Fp8, BlocksAndScalesAreWidened) {
  Values values;
  const Fp8Layer layer(&values);
  const Doubles rows = values.Many(5 * Fp8Layer::kDim);
  TestCheckpoint checkpoint = layer.Checkpoint();
  ExpectSameAnswer(checkpoint, rows, layer.Forward(rows));
  EXPECT_EQ((*OpenWeightSource(checkpoint.Write()))->spec().dtype, DType::kBF16);
  // 128 × 128 is also the default when the config has no quantization_config.
  checkpoint.config.erase("quantization_config");
  ExpectSameAnswer(checkpoint, rows, layer.Forward(rows));
}

TEST(Fp8, DamageIsNamed) {
  Values values;
  const TestCheckpoint whole = Fp8Layer(&values).Checkpoint();
  const auto error_of = [](const TestCheckpoint& checkpoint) { return std::string(checkpoint.OpenError().message()); };
  for (const auto& [name, tensor] : whole.tensors) {
    if (!name.ends_with("_scale_inv")) continue;
    TestCheckpoint damaged = whole;
    damaged.tensors.erase(name);
    EXPECT_THAT(error_of(damaged), HasSubstr(absl::StrCat("tensor '", name, "': found none, expected shape [2, 2]")));
    damaged.tensors[name] = {"I32", tensor.shape, tensor.bytes};
    EXPECT_THAT(error_of(damaged), HasSubstr(absl::StrCat("tensor '", name, "': found I32")));
  }
  const std::string weight = "model.layers.0.mlp.experts.0.up_proj.weight";
  TestCheckpoint damaged = whole;
  damaged.tensors[weight].type = "F8_E5M2";
  EXPECT_THAT(error_of(damaged), HasSubstr(absl::StrCat("tensor '", weight, "': found F8_E5M2, expected F64, F32")));
  damaged = whole;
  damaged.config["quantization_config"]["quant_method"] = "gptq";
  EXPECT_THAT(error_of(damaged), HasSubstr("quantization_config.quant_method: found 'gptq', expected fp8 or mxfp4"));
  damaged.config["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {128}}};
  EXPECT_THAT(error_of(damaged), HasSubstr("quantization_config.weight_block_size: found 1 numbers, expected 2"));
}

// gpt-oss: experts' gate and up interleaved, MXFP4; everything else bf16.
struct Mxfp4Layer {
  static constexpr int64_t kExperts = 4, kDim = 64, kInner = 32;
  std::vector<uint8_t> gate_up_codes, gate_up_scales, down_codes, down_scales;
  Doubles router, router_bias, gate_up_bias, down_bias;
  Doubles gate_up, down;  // [E, 2I, D], [E, D, I]

  explicit Mxfp4Layer(Values* values)
      : router(values->Many(kExperts * kDim)),
        router_bias(values->Many(kExperts)),
        gate_up_bias(values->Many(kExperts * 2 * kInner)),
        down_bias(values->Many(kExperts * kDim)) {
    Draw(values, kExperts * 2 * kInner * kDim, &gate_up_codes, &gate_up_scales, &gate_up);
    Draw(values, kExperts * kDim * kInner, &down_codes, &down_scales, &down);
  }

  static void Draw(Values* random, int64_t count, std::vector<uint8_t>* codes, std::vector<uint8_t>* scales,
                   Doubles* values) {
    constexpr double kMagnitudes[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    for (int64_t i = 0; i < count; ++i) {
      if (i % 32 == 0) scales->push_back(122 + random->Byte() % 5);
      if (i % 2 == 0) codes->push_back(random->Byte());
      const int nibble = i % 2 == 0 ? codes->back() & 15 : codes->back() >> 4;
      const double magnitude = std::ldexp(kMagnitudes[nibble & 7], scales->back() - 127);
      values->push_back(nibble & 8 ? -magnitude : magnitude);
    }
  }

  TestCheckpoint Checkpoint() const {
    TestCheckpoint checkpoint;
    checkpoint.config = {{"model_type", "gpt_oss"},       {"hidden_size", kDim},
                         {"intermediate_size", kInner},   {"num_hidden_layers", 1},
                         {"num_local_experts", kExperts}, {"num_experts_per_tok", 2},
                         {"swiglu_limit", 7.0},           {"quantization_config", {{"quant_method", "mxfp4"}}}};
    const std::string path = "model.layers.0.mlp.";
    auto& tensors = checkpoint.tensors;
    tensors[path + "router.weight"] = BF16Tensor({kExperts, kDim}, router);
    tensors[path + "router.bias"] = BF16Tensor({kExperts}, router_bias);
    tensors[path + "experts.gate_up_proj_bias"] = BF16Tensor({kExperts, 2 * kInner}, gate_up_bias);
    tensors[path + "experts.down_proj_bias"] = BF16Tensor({kExperts, kDim}, down_bias);
    tensors[path + "experts.gate_up_proj_blocks"] =
        ByteTensor("U8", {kExperts, 2 * kInner, kDim / 32, 16}, gate_up_codes);
    tensors[path + "experts.gate_up_proj_scales"] = ByteTensor("U8", {kExperts, 2 * kInner, kDim / 32}, gate_up_scales);
    tensors[path + "experts.down_proj_blocks"] = ByteTensor("U8", {kExperts, kDim, kInner / 32, 16}, down_codes);
    tensors[path + "experts.down_proj_scales"] = ByteTensor("U8", {kExperts, kDim, kInner / 32}, down_scales);
    return checkpoint;
  }

  void AddExpert(int64_t e, const double* x, double weight, double* y) const {
    Doubles h(kInner);
    for (int64_t f = 0; f < kInner; ++f) {
      const int64_t gate_row = e * 2 * kInner + 2 * f, up_row = gate_row + 1;
      double gate = RowTimes(gate_up, gate_row, x, kDim) + gate_up_bias[gate_row];
      double up = RowTimes(gate_up, up_row, x, kDim) + gate_up_bias[up_row];
      gate = std::min(gate, 7.0);
      up = std::max(std::min(up, 7.0), -7.0);
      h[f] = (up + 1) * gate / (1 + std::exp(-1.702 * gate));
    }
    for (int64_t d = 0; d < kDim; ++d) {
      y[d] += weight * (RowTimes(down, e * kDim + d, h.data(), kInner) + down_bias[e * kDim + d]);
    }
  }

  Doubles Forward(const Doubles& rows) const {
    Doubles output(rows.size());
    for (size_t begin = 0; begin < rows.size(); begin += kDim) {
      const double* x = &rows[begin];
      Doubles logits;
      for (int64_t e = 0; e < kExperts; ++e) logits.push_back(RowTimes(router, e, x, kDim) + router_bias[e]);
      const std::vector<int> chosen = Best(logits, 2);
      const double first = std::exp(logits[chosen[0]]), second = std::exp(logits[chosen[1]]);
      AddExpert(chosen[0], x, first / (first + second), &output[begin]);
      AddExpert(chosen[1], x, second / (first + second), &output[begin]);
    }
    return output;
  }
};

TEST(Mxfp4, BlocksAndScalesAreWidened) {
  Values values;
  const Mxfp4Layer layer(&values);
  const Doubles rows = values.Many(7 * Mxfp4Layer::kDim);
  ExpectSameAnswer(layer.Checkpoint(), rows, layer.Forward(rows));
}

TEST(Mxfp4, DamageIsNamed) {
  Values values;
  const TestCheckpoint whole = Mxfp4Layer(&values).Checkpoint();
  const auto error_of = [](const TestCheckpoint& checkpoint) { return std::string(checkpoint.OpenError().message()); };
  for (const auto& [name, tensor] : whole.tensors) {
    TestCheckpoint damaged = whole;
    damaged.tensors.erase(name);
    EXPECT_THAT(error_of(damaged), HasSubstr(absl::StrCat("tensor '", name, "': found none, expected shape [")));
    damaged.tensors[name] = {tensor.type == "U8" ? "I8" : "I16", tensor.shape, tensor.bytes};
    EXPECT_THAT(error_of(damaged), HasSubstr(absl::StrCat("tensor '", name, "': found I")));
    damaged.tensors[name] = tensor;
    damaged.tensors[name].shape.push_back(1);
    EXPECT_THAT(error_of(damaged), HasSubstr(absl::StrCat("tensor '", name, "': found shape [")));
  }
}

}  // namespace
}  // namespace switchyard
