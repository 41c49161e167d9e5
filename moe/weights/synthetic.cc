#include "moe/weights/synthetic.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "moe/weights/checkpoint/fingerprint.h"
#include "moe/weights/checkpoint/quoted.h"
#include "moe/weights/source_index.h"
#include "moe/weights/synthetic_values.h"

namespace switchyard {
namespace {

constexpr char kKnownKeys[] = "dim, hidden, experts, topk, act, glu, bias, layers, dtype or seed";
// One expert or one router: far beyond any real one, and below a size that would abort an allocation outright.
constexpr int64_t kMaxTensorBytes = int64_t{16} << 30;

using KeyValues = std::map<std::string, std::string, std::less<>>;

absl::Status BadValue(std::string_view key, std::string_view found, std::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat("synthetic: ", std::string(key), ": found ", Quoted(found), ", expected ", std::string(expected)));
}

bool IsKnownKey(std::string_view key) {
  constexpr std::array<std::string_view, 10> kKeys = {"dim", "hidden", "experts", "topk",  "act",
                                                      "glu", "bias",   "layers",  "dtype", "seed"};
  return std::find(kKeys.begin(), kKeys.end(), key) != kKeys.end();
}

absl::StatusOr<KeyValues> SplitOptions(std::string_view text) {
  KeyValues values;
  if (text.empty()) return values;
  const std::vector<std::string> options = absl::StrSplit(std::string(text), ',');
  for (const std::string& option : options) {
    const std::pair<std::string, std::string> pair = absl::StrSplit(option, absl::MaxSplits('=', 1));
    if (!IsKnownKey(pair.first)) {
      return absl::InvalidArgumentError(
          absl::StrCat("synthetic: unknown key ", Quoted(pair.first), ", expected ", kKnownKeys));
    }
    if (!values.insert(pair).second) {
      return absl::InvalidArgumentError(absl::StrCat("synthetic: ", pair.first, ": given twice, expected once"));
    }
  }
  return values;
}

// Replaces *value when the key is given.
template <typename Number>
absl::Status ReadNumber(const KeyValues& values, std::string_view key, Number min, Number max, Number* value) {
  const auto found = values.find(key);
  if (found == values.end()) return absl::OkStatus();
  Number number = 0;
  if (!absl::SimpleAtoi(found->second, &number) || number < min || number > max) {
    return BadValue(key, found->second, absl::StrCat("a whole number from ", min, " to ", max));
  }
  *value = number;
  return absl::OkStatus();
}

absl::Status ReadFlag(const KeyValues& values, std::string_view key, bool* value) {
  int number = *value ? 1 : 0;
  SY_RETURN_IF_ERROR(ReadNumber(values, key, 0, 1, &number));
  *value = number == 1;
  return absl::OkStatus();
}

absl::Status ReadSizes(const KeyValues& values, SyntheticOptions* options) {
  constexpr int64_t kMaxWidth = 1 << 20;
  SY_RETURN_IF_ERROR(ReadNumber<int64_t>(values, "dim", 1, kMaxWidth, &options->hidden_dim));
  SY_RETURN_IF_ERROR(ReadNumber<int64_t>(values, "hidden", 1, kMaxWidth, &options->expert_dim));
  SY_RETURN_IF_ERROR(ReadNumber(values, "experts", 1, 1 << 16, &options->num_experts));
  SY_RETURN_IF_ERROR(ReadNumber(values, "layers", 1, 10'000, &options->num_layers));
  options->top_k = std::min(options->top_k, options->num_experts);
  return ReadNumber(values, "topk", 1, options->num_experts, &options->top_k);
}

absl::Status ReadExpertForm(const KeyValues& values, SyntheticOptions* options) {
  SY_RETURN_IF_ERROR(ReadFlag(values, "glu", &options->gated));
  options->biased = !options->gated;
  SY_RETURN_IF_ERROR(ReadFlag(values, "bias", &options->biased));
  if (options->gated && options->biased) return BadValue("bias", "1", "0 when glu=1: gated experts have no biases");
  if (const auto act = values.find("act"); act != values.end()) {
    const absl::StatusOr<Activation> activation = ParseActivation(act->second);
    if (!activation.ok()) return BadValue("act", act->second, "relu, silu or gelu");
    options->activation = *activation;
  }
  return absl::OkStatus();
}

absl::Status ReadType(const KeyValues& values, DType* dtype) {
  const auto found = values.find("dtype");
  if (found == values.end()) return absl::OkStatus();
  const absl::StatusOr<DType> parsed = ParseDType(found->second);
  if (!parsed.ok()) return BadValue("dtype", found->second, "fp32, fp64, fp16 or bf16");
  *dtype = *parsed;
  return absl::OkStatus();
}

LayerSpec MakeLayerSpec(const SyntheticOptions& options, int layer_idx) {
  LayerSpec layer;
  layer.name = absl::StrCat(layer_idx);
  layer.hidden_dim = options.hidden_dim;
  layer.expert_dim = options.expert_dim;
  layer.num_experts = options.num_experts;
  layer.gate.top_k = options.top_k;
  if (options.top_k > 1) layer.gate.normalization = Normalization::kSum;
  layer.expert = {.activation = options.activation, .gated = options.gated, .biased = options.biased};
  return layer;
}

absl::Status CheckTensorSizes(const SyntheticOptions& options) {
  const int64_t expert_bytes = ExpertBytes(MakeLayerSpec(options, 0), options.dtype);
  const int64_t router_bytes = options.num_experts * options.hidden_dim * static_cast<int64_t>(SizeOf(options.dtype));
  const int64_t largest = std::max(expert_bytes, router_bytes);
  if (largest <= kMaxTensorBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("synthetic: dim, hidden, experts: found ", largest,
                                                 " bytes in one expert or router, expected at most ", kMaxTensorBytes));
}

enum class TensorId : uint64_t { kRouter = 0, kUp = 1, kGate = 2, kDown = 3, kUpBias = 4, kDownBias = 5 };

class SyntheticSource final : public WeightSource {
 public:
  SyntheticSource(const SyntheticOptions& options, ModelSpec spec) : seed_(options.seed), spec_(std::move(spec)) {}

  const ModelSpec& spec() const override { return spec_; }

  absl::StatusOr<RouterWeights> ReadRouter(int layer_idx, int gate_idx) override {
    SY_RETURN_IF_ERROR(CheckGateIndex(spec_, layer_idx, gate_idx));
    const LayerSpec& layer = spec_.layers[layer_idx];
    RouterWeights router{.weight = HostMatrix::Allocate(spec_.dtype, layer.num_experts, layer.hidden_dim)};
    Fill(layer_idx, 0, TensorId::kRouter, layer.hidden_dim, router.weight.view());
    return router;
  }

  absl::StatusOr<ExpertWeights> ReadExpert(int layer_idx, int expert_idx) override {
    SY_RETURN_IF_ERROR(CheckExpertIndex(spec_, layer_idx, expert_idx));
    const LayerSpec& layer = spec_.layers[layer_idx];
    const int64_t hidden = layer.hidden_dim, inner = layer.expert_dim;
    ExpertWeights weights;
    const auto make = [&](TensorId tensor, int64_t num_rows, int64_t num_cols, int64_t fan_in) {
      auto matrix = std::make_shared<HostMatrix>(HostMatrix::Allocate(spec_.dtype, num_rows, num_cols));
      Fill(layer_idx, expert_idx, tensor, fan_in, matrix->view());
      weights.owned.push_back(matrix);
      return std::as_const(*matrix).view();
    };
    weights.up.matrix = make(TensorId::kUp, inner, hidden, hidden);
    weights.down.matrix = make(TensorId::kDown, hidden, inner, inner);
    if (layer.expert.gated) weights.gate.matrix = make(TensorId::kGate, inner, hidden, hidden);
    if (layer.expert.biased) {
      weights.up_bias = make(TensorId::kUpBias, 1, inner, hidden);
      weights.down_bias = make(TensorId::kDownBias, 1, hidden, inner);
    }
    return weights;
  }

  void ReleaseExpert(int /*layer_idx*/, int /*expert_idx*/) override {}

 private:
  void Fill(int layer_idx, int expert_idx, TensorId tensor, int64_t fan_in, MatrixView matrix) const {
    uint64_t key = MixBits(seed_ + 1);
    for (const uint64_t part :
         {static_cast<uint64_t>(layer_idx), static_cast<uint64_t>(expert_idx), static_cast<uint64_t>(tensor)}) {
      key = MixBits(key + part + 1);
    }
    FillUniform(key, std::sqrt(3.0f / static_cast<float>(fan_in)), matrix);
  }

  const uint64_t seed_;
  const ModelSpec spec_;
};

}  // namespace

absl::StatusOr<SyntheticOptions> SyntheticOptions::Parse(std::string_view text) {
  SY_ASSIGN_OR_RETURN(const KeyValues values, SplitOptions(text));
  SyntheticOptions options;
  SY_RETURN_IF_ERROR(ReadSizes(values, &options));
  SY_RETURN_IF_ERROR(ReadExpertForm(values, &options));
  SY_RETURN_IF_ERROR(ReadType(values, &options.dtype));
  SY_RETURN_IF_ERROR(ReadNumber<uint64_t>(values, "seed", 0, std::numeric_limits<uint64_t>::max(), &options.seed));
  SY_RETURN_IF_ERROR(CheckTensorSizes(options));
  return options;
}

std::string SyntheticOptions::ToString() const {
  return absl::StrCat("dim=", hidden_dim, ",hidden=", expert_dim, ",experts=", num_experts, ",topk=", top_k,
                      ",act=", std::string(ActivationName(activation)), ",glu=", gated ? 1 : 0,
                      ",bias=", biased ? 1 : 0, ",layers=", num_layers, ",dtype=", std::string(DTypeName(dtype)),
                      ",seed=", seed);
}

std::unique_ptr<WeightSource> MakeSyntheticSource(const SyntheticOptions& options) {
  ModelSpec spec;
  spec.family = "synthetic";
  spec.dtype = options.dtype;
  for (int layer_idx = 0; layer_idx < options.num_layers; ++layer_idx) {
    spec.layers.push_back(MakeLayerSpec(options, layer_idx));
  }
  Fingerprint fingerprint;
  fingerprint.AddRaw(options.ToString());
  spec.fingerprint = fingerprint.value();
  return std::make_unique<SyntheticSource>(options, std::move(spec));
}

}  // namespace switchyard
