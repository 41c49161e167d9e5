// Finds the tensors of MoE blocks in a checkpoint, under the names that their family gives, and checks that each exists
// with the right type and shape. No tensor's bytes are read.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "moe/weights/checkpoint/checkpoint.h"
#include "moe/weights/families/family.h"
#include "moe/weights/storage/stored_matrix.h"

namespace switchyard {

// Where one gate is stored. Vectors are matrices of one row. present() is false for a matrix that the gate does not
// have.
struct StoredGate {
  StoredMatrix weight;  // linear: [E, D]; cosine: [E, P], transposed
  StoredMatrix bias, score_correction;
  StoredMatrix projector, projector_bias, temperature;  // of a cosine gate
};

struct StoredExpert {
  StoredMatrix up, gate, down;
  StoredMatrix up_bias, gate_bias, down_bias;
};

struct StoredLayer {
  std::vector<StoredGate> gates;
  StoredMatrix shared_gate;
  std::vector<StoredExpert> experts;  // routed, then shared
};

// Rows and columns of a matrix that share an fp8 scale.
struct Fp8Blocks {
  int64_t num_rows = 128;
  int64_t num_cols = 128;
};

// Not thread-safe. The results live as long as `checkpoint`.
class TensorResolver {
 public:
  TensorResolver(const Checkpoint& checkpoint, Fp8Blocks fp8_blocks)
      : checkpoint_(checkpoint), fp8_blocks_(fp8_blocks) {}

  // NotFound for a missing tensor, InvalidArgument for one of the wrong type or shape; errors name file and tensor,
  // what was found and what was expected.
  absl::StatusOr<StoredLayer> Resolve(const MoeBlock& block);

  // The type of all experts' matrices resolved so far; for quantised ones the type they are widened to. Valid once a
  // block has been resolved.
  DType experts_dtype() const { return *experts_dtype_; }

 private:
  // A tensor that holds one block [rows, cols] per expert, one after the other.
  struct Stack {
    StoredMatrix first;
    size_t scale_bytes = 0;  // of one expert's scales
    StoredMatrix At(int64_t expert_idx) const;
  };
  struct BlockShape {
    int64_t count, num_rows, num_cols;
    bool in_major;
    StackedNames::Shape shape;
  };

  absl::StatusOr<StoredLayer> TryResolve(const MoeBlock& block);
  bool Has(const std::string& name) const {
    return checkpoint_.Find(name).entry != nullptr || (counts_absent_ && checkpoint_.IsAbsent(name));
  }
  bool HasAny(const std::string& path, const StackedNames& names) const;
  std::string FirstOf(const std::string& path, const std::vector<std::string>& names) const;
  std::string ChoosePath(const MoeBlock& block) const;

  absl::StatusOr<StoredGate> ResolveGate(const std::string& path, const GateNames& names, const LayerSpec& spec) const;
  absl::Status ResolveCosine(const std::string& path, const GateNames& names, const LayerSpec& spec,
                             StoredGate* gate) const;
  absl::Status ResolveExperts(const std::string& path, const MoeBlock& block, StoredLayer* layer);
  absl::Status ResolveEach(const std::string& path, const EachNames& names, const LayerSpec& spec, StoredLayer* layer);
  absl::Status ResolveStacked(const std::string& path, const StackedNames& names, const LayerSpec& spec,
                              StoredLayer* layer);
  absl::Status ResolveStackedInner(const std::string& path, const StackedNames& names, const LayerSpec& spec,
                                   StoredLayer* layer);
  absl::Status ResolveStackedBiases(const std::string& path, const StackedNames& names, const LayerSpec& spec,
                                    StoredLayer* layer) const;
  absl::Status ResolveShared(const std::string& path, const SharedNames& names, const LayerSpec& spec,
                             StoredLayer* layer);
  // The expert whose projections are PATH.NAME.weight, of inner width `width`.
  absl::StatusOr<StoredExpert> ResolveExpert(const std::string& path, const ProjectionNames& names,
                                             const LayerSpec& spec, int64_t width);

  absl::StatusOr<Stack> FindStack(const std::string& name, const StackedNames& names, const BlockShape& shape);
  absl::StatusOr<Stack> FindMxfp4(const std::string& name, const BlockShape& shape);
  absl::StatusOr<StoredMatrix> FindWeight(const std::string& name, int64_t num_rows, int64_t num_cols);
  absl::Status AddFp8Scales(const std::string& name, const BlockShape& shape, Stack* stack) const;
  absl::Status CheckSameType(const std::string& name, const StoredMatrix& stored);

  // Unquantised tensors of exactly this shape, laid out as the matrix [num_rows, num_cols].
  absl::StatusOr<StoredMatrix> FindPlain(const std::string& name, const std::vector<int64_t>& shape, int64_t num_rows,
                                         int64_t num_cols) const;
  absl::StatusOr<StoredMatrix> FindVector(const std::string& name, int64_t size) const;
  // Any tensor of this shape; its type is for the caller to check.
  absl::StatusOr<StoredTensor> FindShaped(const std::string& name, const std::vector<int64_t>& shape) const;

  const Checkpoint& checkpoint_;
  const Fp8Blocks fp8_blocks_;
  // Whether tensors count as there that the index names and no shard has: so that an error names them, and not what
  // might have stood in their place.
  bool counts_absent_ = false;
  std::optional<DType> experts_dtype_;
  std::string first_expert_tensor_;
};

}  // namespace switchyard
