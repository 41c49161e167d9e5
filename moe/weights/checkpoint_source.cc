#include "moe/weights/checkpoint_source.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <utility>

#include "moe/weights/checkpoint/checkpoint.h"
#include "moe/weights/checkpoint/quoted.h"
#include "moe/weights/families/family.h"
#include "moe/weights/source_index.h"
#include "moe/weights/storage/tensor_resolver.h"

namespace switchyard {
namespace {

// Tutel bounds the learned temperature, so logits are cosines times at most 100.
constexpr double kMaxLogitScale = 100;

// [in, out] as [out, in].
HostMatrix Transposed(const HostMatrix& matrix) {
  HostMatrix turned = HostMatrix::Allocate(matrix.dtype, matrix.num_cols, matrix.num_rows);
  const size_t element_bytes = SizeOf(matrix.dtype);
  for (int64_t row = 0; row < matrix.num_rows; ++row) {
    for (int64_t col = 0; col < matrix.num_cols; ++col) {
      std::copy_n(matrix.view().row(row) + col * element_bytes, element_bytes,
                  turned.view().row(col) + row * element_bytes);
    }
  }
  return turned;
}

HostMatrix OutMajorCopy(const StoredMatrix& stored) {
  HostMatrix copy = CopyOf(stored, stored.dtype);
  return stored.transposed ? Transposed(copy) : std::move(copy);
}

std::array<const StoredMatrix*, 6> PartsOf(const StoredExpert& expert) {
  return {&expert.up, &expert.gate, &expert.down, &expert.up_bias, &expert.gate_bias, &expert.down_bias};
}

// Reads all parts into memory, or none.
absl::Status PopulateAll(std::span<const StoredMatrix* const> parts) {
  for (size_t i = 0; i < parts.size(); ++i) {
    const absl::Status populated = PopulateStored(*parts[i]);
    if (populated.ok()) continue;
    for (const StoredMatrix* before : parts.first(i)) ReleaseStored(*before);
    return populated;
  }
  return absl::OkStatus();
}

class CheckpointSource final : public WeightSource {
 public:
  CheckpointSource(std::unique_ptr<Checkpoint> checkpoint, ModelSpec spec, std::vector<StoredLayer> layers)
      : checkpoint_(std::move(checkpoint)), spec_(std::move(spec)), layers_(std::move(layers)) {}

  const ModelSpec& spec() const override { return spec_; }

  absl::StatusOr<RouterWeights> ReadRouter(int layer_idx, int gate_idx) override {
    SY_RETURN_IF_ERROR(CheckGateIndex(spec_, layer_idx, gate_idx));
    const StoredGate& gate = layers_[layer_idx].gates[gate_idx];
    const StoredMatrix& shared_gate = layers_[layer_idx].shared_gate;
    const std::array parts = {&gate.weight,    &gate.bias,           &gate.score_correction,
                              &gate.projector, &gate.projector_bias, &gate.temperature,
                              &shared_gate};
    SY_RETURN_IF_ERROR(PopulateAll(parts));
    RouterWeights router;
    router.weight = OutMajorCopy(gate.weight);
    router.bias = FloatsOf(gate.bias);
    router.score_correction = FloatsOf(gate.score_correction);
    if (shared_gate.present()) router.shared_gate = OutMajorCopy(shared_gate);
    if (gate.projector.present()) ReadCosine(gate, &router);
    for (const StoredMatrix* part : parts) ReleaseStored(*part);
    SY_RETURN_IF_ERROR(CheckIntact());
    return router;
  }

  absl::StatusOr<ExpertWeights> ReadExpert(int layer_idx, int expert_idx) override {
    SY_RETURN_IF_ERROR(CheckExpertIndex(spec_, layer_idx, expert_idx));
    const StoredExpert& stored = layers_[layer_idx].experts[expert_idx];
    SY_RETURN_IF_ERROR(PopulateAll(PartsOf(stored)));
    ExpertWeights weights;
    const auto view = [&](const StoredMatrix& part) { return ViewOf(part, spec_.dtype, &weights.owned); };
    weights.up = {view(stored.up), stored.up.transposed};
    weights.gate = {view(stored.gate), stored.gate.transposed};
    weights.down = {view(stored.down), stored.down.transposed};
    weights.up_bias = view(stored.up_bias);
    weights.gate_bias = view(stored.gate_bias);
    weights.down_bias = view(stored.down_bias);
    return weights;
  }

  void ReleaseExpert(int layer_idx, int expert_idx) override {
    if (!CheckExpertIndex(spec_, layer_idx, expert_idx).ok()) return;
    for (const StoredMatrix* part : PartsOf(layers_[layer_idx].experts[expert_idx])) ReleaseStored(*part);
  }

  absl::StatusOr<uint64_t> FileIdentity() const override { return checkpoint_->FileIdentity(); }

  absl::Status CheckIntact() const override { return checkpoint_->CheckIntact(); }

  std::optional<StoragePosition> PositionOf(int layer_idx, int expert_idx) const override {
    const StoredExpert& stored = layers_[layer_idx].experts[expert_idx];
    StoragePosition first = PositionIn(stored.up);
    for (const StoredMatrix* part : PartsOf(stored)) {
      if (part->present()) first = std::min(first, PositionIn(*part));
    }
    return first;
  }

 private:
  static StoragePosition PositionIn(const StoredMatrix& stored) {
    const auto* file_begin = reinterpret_cast<const std::byte*>(stored.file->header_bytes().data());
    return {stored.file->path(), static_cast<size_t>(stored.data - file_begin)};
  }

  static void ReadCosine(const StoredGate& gate, RouterWeights* router) {
    router->projector = OutMajorCopy(gate.projector);
    router->projector_bias = FloatsOf(gate.projector_bias);
    const double temperature = FloatsOf(gate.temperature)[0];
    router->logit_scale = static_cast<float>(std::exp(std::min(temperature, std::log(kMaxLogitScale))));
  }

  const std::unique_ptr<Checkpoint> checkpoint_;
  const ModelSpec spec_;
  const std::vector<StoredLayer> layers_;
};

// The rows and columns of an fp8 scale; refuses quantisations whose tensors this reader does not know.
absl::StatusOr<Fp8Blocks> ReadQuantization(const ConfigReader& config) {
  Fp8Blocks blocks;
  if (!config.Has("quantization_config")) return blocks;
  SY_ASSIGN_OR_RETURN(const ConfigReader quantization, config.Object("quantization_config"));
  SY_ASSIGN_OR_RETURN(const std::string method, quantization.Text("quant_method"));
  if (method != "fp8" && method != "mxfp4") {
    return quantization.Error("quant_method", absl::StrCat("found ", Quoted(method), ", expected fp8 or mxfp4"));
  }
  SY_ASSIGN_OR_RETURN(const std::vector<int64_t> sizes, quantization.IntList("weight_block_size", 1, 1 << 20));
  if (sizes.empty()) return blocks;
  if (sizes.size() != 2) {
    return quantization.Error("weight_block_size",
                              absl::StrCat("found ", sizes.size(), " numbers, expected 2: rows and columns"));
  }
  return Fp8Blocks{sizes[0], sizes[1]};
}

}  // namespace

absl::StatusOr<std::unique_ptr<WeightSource>> OpenCheckpointSource(const std::string& folder) {
  SY_ASSIGN_OR_RETURN(auto checkpoint, Checkpoint::Open(folder));
  SY_ASSIGN_OR_RETURN(const std::vector<MoeBlock> blocks, ReadMoeBlocks(checkpoint->config()));
  SY_ASSIGN_OR_RETURN(const Fp8Blocks fp8_blocks, ReadQuantization(checkpoint->config()));
  TensorResolver resolver(*checkpoint, fp8_blocks);
  ModelSpec spec;
  std::vector<StoredLayer> layers;
  for (const MoeBlock& block : blocks) {
    SY_ASSIGN_OR_RETURN(StoredLayer layer, resolver.Resolve(block));
    layers.push_back(std::move(layer));
    spec.layers.push_back(block.spec);
  }
  SY_ASSIGN_OR_RETURN(spec.family, checkpoint->config().Text("model_type"));
  spec.dtype = resolver.experts_dtype();
  spec.fingerprint = checkpoint->fingerprint();
  return std::make_unique<CheckpointSource>(std::move(checkpoint), std::move(spec), std::move(layers));
}

}  // namespace switchyard
