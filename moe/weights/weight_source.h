// Where weights come from: a checkpoint folder on disk, or a deterministic generator.
//
// A source is opened once per process. The front reads routers from it, a worker reads its own experts; neither touches
// bytes it does not need.
#pragma once

#include <compare>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/tensor/buffer.h"
#include "moe/weights/layer_spec.h"

namespace switchyard {

// A weight matrix as stored: a view into the source, row-major.
// `transposed` is false for [out_features, in_features] (the usual nn.Linear layout) and true for [in, out].
struct WeightView {
  ConstMatrixView matrix;
  bool transposed = false;
  bool present() const { return matrix.data != nullptr; }
};

// One expert's tensors. The views point into the source, or into `owned` where the stored bytes had to be brought into
// this form. They are valid as long as both, and until ReleaseExpert of the same expert.
struct ExpertWeights {
  WeightView up;              // [H, D]
  WeightView gate;            // [H, D], absent unless the layer is gated
  WeightView down;            // [D, H]
  ConstMatrixView up_bias;    // [1, H], data == nullptr unless biased
  ConstMatrixView gate_bias;  // [1, H], data == nullptr unless gated and biased
  ConstMatrixView down_bias;  // [1, D], data == nullptr unless biased
  std::vector<std::shared_ptr<const HostMatrix>> owned;
};

// The weights that a gate computes logits with.
//   linear:  logits = weight · x + bias
//   cosine:  p = projector · x + projector_bias;  logits = (p / |p|) · (weight_e / |weight_e|) · logit_scale  (Tutel)
struct RouterWeights {
  HostMatrix weight;                    // [E, D] in the checkpoint's type, or [E, P] of a cosine router; owned
  std::vector<float> bias;              // [E], or empty
  std::vector<float> score_correction;  // [E], or empty: added to the scores where experts compete (GateSpec)
  HostMatrix shared_gate;               // [1, D] where LayerSpec::shared_gated
  HostMatrix projector;                 // [P, D] of a cosine router, or without data
  std::vector<float> projector_bias;    // [P]
  float logit_scale = 1;
  bool is_cosine() const { return projector.num_rows > 0; }
};

// Where an expert is stored, for callers that read files from front to back.
struct StoragePosition {
  std::string_view file;  // lives as long as the source
  size_t offset = 0;      // of the expert's first byte
  // clang-tidy takes its comparisons with 0 for null pointers.
  auto operator<=>(const StoragePosition&) const = default;  // NOLINT(modernize-use-nullptr)
};

// Thread-safe.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  virtual const ModelSpec& spec() const = 0;

  // A value that changes when the files behind the source are replaced or written to, on this host; 0 when there are no
  // files. An error when a file is gone.
  virtual absl::StatusOr<uint64_t> FileIdentity() const { return 0; }

  // DATA_LOSS when weights that were read so far may not have been what the files hold, because a file became shorter
  // while it was read. Ask after the last use of an expert's views.
  virtual absl::Status CheckIntact() const { return absl::OkStatus(); }

  // Where an expert that the source has is stored; nullopt when experts are not stored in files.
  virtual std::optional<StoragePosition> PositionOf(int /*layer_idx*/, int /*expert_idx*/) const {
    return std::nullopt;
  }

  // `layer_idx` indexes spec().layers, `gate_idx` the layer's gates.
  virtual absl::StatusOr<RouterWeights> ReadRouter(int layer_idx, int gate_idx) = 0;
  absl::StatusOr<RouterWeights> ReadRouter(int layer_idx) { return ReadRouter(layer_idx, 0); }
  // `expert_idx` in [0, num_stored_experts()).
  virtual absl::StatusOr<ExpertWeights> ReadExpert(int layer_idx, int expert_idx) = 0;

  // Tells the source that the expert's views are no longer used, so that its memory may go.
  virtual void ReleaseExpert(int layer_idx, int expert_idx) = 0;
};

// Opens what `--model=NAME=LOCATION` names: a checkpoint folder (config.json with one model.safetensors, or an index of
// shards), or "synthetic:dim=…,hidden=…,experts=…,topk=…,act=relu|silu|gelu,glu=0|1,bias=0|1,layers=…,dtype=…,seed=…"
// whose defaults are Tutel's helloworld (2048, 2048, 2 experts, top-2, relu, bias).
// Everything is validated here: every tensor that serving will need exists with the right shape and type, so that a
// damaged checkpoint is refused before any worker loads. Errors name file, tensor or key, what was found and expected.
absl::StatusOr<std::unique_ptr<WeightSource>> OpenWeightSource(const std::string& location);

}  // namespace switchyard
