#include "moe/weights/checkpoint_source.h"

#include <cstring>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_join.h"
#include "moe/weights/checkpoint.h"
#include "moe/weights/family.h"
#include "moe/weights/quoted.h"
#include "moe/weights/source_index.h"

namespace switchyard {
namespace {

struct StoredMatrix {
  ConstMatrixView matrix;
  const SafetensorsFile* file = nullptr;
};

struct StoredExpert {
  StoredMatrix up, gate, down;
};

struct StoredLayer {
  StoredMatrix router;
  std::vector<StoredExpert> experts;
};

// Finds the tensors of blocks, checking name, type and shape of each.
class TensorResolver {
 public:
  explicit TensorResolver(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  absl::StatusOr<StoredLayer> Resolve(const MoeBlock& block) {
    const LayerSpec& spec = block.spec;
    const std::string path = ChoosePath(block.paths);
    StoredLayer layer;
    SY_ASSIGN_OR_RETURN(layer.router, Matrix(RouterName(path), spec.num_experts, spec.hidden_dim));
    const std::string experts = path + ".experts";
    const bool fused = Has(experts + ".gate_up_proj") || Has(experts + ".down_proj");
    SY_RETURN_IF_ERROR(fused ? ResolveFused(spec, experts, &layer) : ResolveEach(block, experts, &layer));
    return layer;
  }

  // Of every expert resolved so far; there is at least one once a block has been resolved.
  DType experts_dtype() const { return *experts_dtype_; }

 private:
  static std::string RouterName(const std::string& path) { return path + ".gate.weight"; }

  bool Has(const std::string& name) const { return checkpoint_.Find(name).entry != nullptr; }

  std::string ChoosePath(const std::vector<std::string>& paths) const {
    for (const std::string& path : paths) {
      if (Has(RouterName(path))) return path;
    }
    return paths.front();
  }

  absl::Status ResolveEach(const MoeBlock& block, const std::string& experts, StoredLayer* layer) {
    const int64_t hidden = block.spec.hidden_dim, inner = block.spec.expert_dim;
    for (int idx = 0; idx < block.spec.num_experts; ++idx) {
      const auto name = [&](const std::string& part) { return absl::StrCat(experts, ".", idx, ".", part, ".weight"); };
      StoredExpert expert;
      SY_ASSIGN_OR_RETURN(expert.gate, ExpertMatrix(name(block.projections.gate), inner, hidden));
      SY_ASSIGN_OR_RETURN(expert.up, ExpertMatrix(name(block.projections.up), inner, hidden));
      SY_ASSIGN_OR_RETURN(expert.down, ExpertMatrix(name(block.projections.down), hidden, inner));
      layer->experts.push_back(expert);
    }
    return absl::OkStatus();
  }

  absl::Status ResolveFused(const LayerSpec& spec, const std::string& experts, StoredLayer* layer) {
    const int64_t hidden = spec.hidden_dim, inner = spec.expert_dim;
    // As matrices whose rows are those of all experts, one expert after the other.
    SY_ASSIGN_OR_RETURN(const StoredMatrix gate_up,
                        StackedMatrix(experts + ".gate_up_proj", spec.num_experts, 2 * inner, hidden));
    SY_ASSIGN_OR_RETURN(const StoredMatrix down,
                        StackedMatrix(experts + ".down_proj", spec.num_experts, hidden, inner));
    for (int64_t idx = 0; idx < spec.num_experts; ++idx) {
      StoredExpert expert;
      expert.gate = {gate_up.matrix.Rows(idx * 2 * inner, inner), gate_up.file};
      expert.up = {gate_up.matrix.Rows(idx * 2 * inner + inner, inner), gate_up.file};
      expert.down = {down.matrix.Rows(idx * hidden, hidden), down.file};
      layer->experts.push_back(expert);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<StoredMatrix> ExpertMatrix(const std::string& name, int64_t num_rows, int64_t num_cols) {
    SY_ASSIGN_OR_RETURN(const StoredMatrix stored, Matrix(name, num_rows, num_cols));
    SY_RETURN_IF_ERROR(CheckSameType(name, stored));
    return stored;
  }

  absl::StatusOr<StoredMatrix> StackedMatrix(const std::string& name, int64_t count, int64_t num_rows,
                                             int64_t num_cols) {
    SY_ASSIGN_OR_RETURN(StoredMatrix stored, Tensor(name, {count, num_rows, num_cols}));
    stored.matrix.num_rows = count * num_rows;
    stored.matrix.num_cols = num_cols;
    SY_RETURN_IF_ERROR(CheckSameType(name, stored));
    return stored;
  }

  absl::StatusOr<StoredMatrix> Matrix(const std::string& name, int64_t num_rows, int64_t num_cols) const {
    SY_ASSIGN_OR_RETURN(StoredMatrix stored, Tensor(name, {num_rows, num_cols}));
    stored.matrix.num_rows = num_rows;
    stored.matrix.num_cols = num_cols;
    return stored;
  }

  // The named tensor of this shape; the caller says how it is laid out as a matrix.
  absl::StatusOr<StoredMatrix> Tensor(const std::string& name, const std::vector<int64_t>& shape) const {
    const StoredTensor stored = checkpoint_.Find(name);
    if (stored.entry == nullptr) {
      return absl::NotFoundError(
          absl::StrCat(checkpoint_.folder(), ": tensor ", Quoted(name), ": found none, expected ", Shown(shape)));
    }
    if (!stored.entry->type->element) {
      return Wrong(name, stored, std::string(stored.entry->type->name), "F64, F32, F16 or BF16");
    }
    if (stored.entry->shape != shape) return Wrong(name, stored, Shown(stored.entry->shape), Shown(shape));
    return StoredMatrix{{stored.entry->bytes.data(), *stored.entry->type->element, 0, 0}, stored.file};
  }

  absl::Status CheckSameType(const std::string& name, const StoredMatrix& stored) {
    if (!experts_dtype_) {
      experts_dtype_ = stored.matrix.dtype;
      first_expert_tensor_ = name;
    }
    if (stored.matrix.dtype == *experts_dtype_) return absl::OkStatus();
    return Wrong(name, {nullptr, stored.file}, std::string(DTypeName(stored.matrix.dtype)),
                 absl::StrCat(std::string(DTypeName(*experts_dtype_)), " as in ", Quoted(first_expert_tensor_)));
  }

  static std::string Shown(const std::vector<int64_t>& shape) {
    return absl::StrCat("shape [", absl::StrJoin(shape, ", "), "]");
  }

  static absl::Status Wrong(const std::string& name, const StoredTensor& stored, const std::string& found,
                            const std::string& expected) {
    return absl::InvalidArgumentError(
        absl::StrCat(stored.file->path(), ": tensor ", Quoted(name), ": found ", found, ", expected ", expected));
  }

  const Checkpoint& checkpoint_;
  std::optional<DType> experts_dtype_;
  std::string first_expert_tensor_;
};

bool IsAligned(ConstMatrixView matrix) { return reinterpret_cast<uintptr_t>(matrix.data) % SizeOf(matrix.dtype) == 0; }

class CheckpointSource final : public WeightSource {
 public:
  CheckpointSource(std::unique_ptr<Checkpoint> checkpoint, ModelSpec spec, std::vector<StoredLayer> layers)
      : checkpoint_(std::move(checkpoint)), spec_(std::move(spec)), layers_(std::move(layers)) {}

  const ModelSpec& spec() const override { return spec_; }

  absl::StatusOr<RouterWeights> ReadRouter(int layer_idx) override {
    SY_RETURN_IF_ERROR(CheckLayerIndex(spec_, layer_idx));
    const StoredMatrix& stored = layers_[layer_idx].router;
    RouterWeights router = {Copy(stored.matrix)};
    Release(stored);
    return router;
  }

  absl::StatusOr<ExpertWeights> ReadExpert(int layer_idx, int expert_idx) override {
    SY_RETURN_IF_ERROR(CheckExpertIndex(spec_, layer_idx, expert_idx));
    const StoredExpert& stored = layers_[layer_idx].experts[expert_idx];
    std::vector<HostMatrix>& copies = copies_[{layer_idx, expert_idx}];
    copies.clear();
    ExpertWeights weights;
    weights.up.matrix = Aligned(stored.up.matrix, &copies);
    weights.gate.matrix = Aligned(stored.gate.matrix, &copies);
    weights.down.matrix = Aligned(stored.down.matrix, &copies);
    if (copies.empty()) copies_.erase({layer_idx, expert_idx});
    return weights;
  }

  void ReleaseExpert(int layer_idx, int expert_idx) override {
    if (!CheckExpertIndex(spec_, layer_idx, expert_idx).ok()) return;
    const StoredExpert& stored = layers_[layer_idx].experts[expert_idx];
    for (const StoredMatrix* matrix : {&stored.up, &stored.gate, &stored.down}) Release(*matrix);
    copies_.erase({layer_idx, expert_idx});
  }

 private:
  static HostMatrix Copy(ConstMatrixView matrix) {
    HostMatrix copy = HostMatrix::Allocate(matrix.dtype, matrix.num_rows, matrix.num_cols);
    std::memcpy(copy.buffer.data(), matrix.data, matrix.size_bytes());
    return copy;
  }

  // `matrix` itself, or an aligned copy kept in `copies`.
  static ConstMatrixView Aligned(ConstMatrixView matrix, std::vector<HostMatrix>* copies) {
    if (IsAligned(matrix)) return matrix;
    copies->push_back(Copy(matrix));
    return std::as_const(copies->back()).view();
  }

  static void Release(const StoredMatrix& stored) {
    stored.file->ReleasePages({stored.matrix.data, stored.matrix.size_bytes()});
  }

  const std::unique_ptr<Checkpoint> checkpoint_;
  const ModelSpec spec_;
  const std::vector<StoredLayer> layers_;
  absl::flat_hash_map<std::pair<int, int>, std::vector<HostMatrix>> copies_;  // by layer and expert
};

}  // namespace

absl::StatusOr<std::unique_ptr<WeightSource>> OpenCheckpointSource(const std::string& folder) {
  SY_ASSIGN_OR_RETURN(auto checkpoint, Checkpoint::Open(folder));
  SY_ASSIGN_OR_RETURN(const std::vector<MoeBlock> blocks, ReadMoeBlocks(checkpoint->config()));
  TensorResolver resolver(*checkpoint);
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
