// A worker's part of a plain model, as the engine that the worker's step runner drives. It takes simulated time for its
// work.
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "moe/experts/expert_engine.h"
#include "proto/worker.pb.h"
#include "tests/simulation/point.h"

namespace switchyard::simulation {

class PlainEngine final : public ExpertEngine {
 public:
  // What the worker does when a part of a step is done: it lets time pass and faults strike. An error fails the step.
  using Worked = std::function<absl::Status(Point point)>;

  // `version` is what the worker has read from the files.
  PlainEngine(const worker::ModelShare& share, uint64_t version, Worked worked);

  int num_slots(int layer_idx) const { return static_cast<int>(layers_[layer_idx].size()); }
  int num_layers() const { return static_cast<int>(layers_.size()); }
  // Digests of the experts of all layers.
  void Describe(worker::ModelLoaded* loaded) const;

  DType compute_dtype() const override { return DType::kF32; }
  absl::Status AddLayer(const LayerSpec&, int) override { return absl::OkStatus(); }
  absl::Status LoadExpert(LayerId, int, const ExpertWeights&) override { return absl::OkStatus(); }
  int64_t weight_bytes() const override { return 1; }
  absl::StatusOr<std::byte*> ScratchBytes(Scratch purpose, size_t num_bytes) override;
  DeviceStream stream() const override { return nullptr; }
  absl::Status GatherSendRows(const RankPlanView& plan, ConstMatrixView home_rows, MatrixView send_rows) override;
  absl::Status RunExperts(LayerId layer, const RankPlanView& plan, ConstMatrixView received,
                          MatrixView partial_sums) override;
  absl::Status Combine(const RankPlanView& plan, ConstMatrixView returned, MatrixView output) override;

 private:
  const uint64_t version_;
  const Worked worked_;
  std::vector<std::vector<int>> layers_;  // the experts by slot
  std::array<std::vector<std::byte>, 4> scratch_;
};

// A step poisons the worker's process when it returns this.
inline absl::Status Deadly() { return absl::AbortedError("a row that ends the process"); }

}  // namespace switchyard::simulation
