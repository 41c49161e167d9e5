#include "tests/simulation/plain_engine.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "tests/simulation/plain_model.h"

namespace switchyard::simulation {

PlainEngine::PlainEngine(const worker::ModelShare& share, uint64_t version, Worked worked)
    : version_(version), worked_(std::move(worked)) {
  for (const worker::LayerShare& layer : share.layers()) {
    layers_.emplace_back(layer.expert_idx().begin(), layer.expert_idx().end());
  }
}

void PlainEngine::Describe(worker::ModelLoaded* loaded) const {
  for (int layer_idx = 0; layer_idx < num_layers(); ++layer_idx) {
    worker::LayerDigests& digests = *loaded->add_layers();
    for (const int expert : layers_[layer_idx]) digests.add_digest(DigestOf(version_, layer_idx, expert));
  }
}

absl::StatusOr<std::byte*> PlainEngine::ScratchBytes(Scratch purpose, size_t num_bytes) {
  std::vector<std::byte>& scratch = scratch_[static_cast<size_t>(purpose)];
  if (scratch.size() < std::max<size_t>(num_bytes, 1)) scratch.resize(std::max<size_t>(num_bytes, 1));
  return scratch.data();
}

absl::Status PlainEngine::GatherSendRows(const RankPlanView& plan, ConstMatrixView home_rows, MatrixView send_rows) {
  for (int64_t i = 0; i < plan.num_send_rows(); ++i) {
    std::memcpy(send_rows.row(i), home_rows.row(plan.send_rows[i]), home_rows.row_bytes());
  }
  return worked_(Point::kGather);
}

absl::Status PlainEngine::RunExperts(LayerId layer, const RankPlanView& plan, ConstMatrixView received,
                                     MatrixView partial_sums) {
  const std::vector<int>& experts = layers_[layer.value];
  const auto width = static_cast<size_t>(received.num_cols);
  std::fill_n(partial_sums.as<float>(), partial_sums.num_rows * width, 0.0f);
  for (int slot = 0; slot < plan.num_slots(); ++slot) {
    for (int32_t pair = plan.expert_offsets[slot]; pair < plan.expert_offsets[slot + 1]; ++pair) {
      const std::span<const float> row(received.as<float>() + plan.pair_rows[pair] * width, width);
      if (row[0] == kStepPoison) return absl::InternalError("a row that the experts cannot take");
      if (row[0] == kDeadlyPoison) return Deadly();
      float* const sums = partial_sums.as<float>() + plan.pair_rows[pair] * width;
      for (size_t d = 0; d < width; ++d) {
        sums[d] += plan.pair_weights[pair] * ExpertOutput(version_, layer.value, experts[slot], row, d);
      }
    }
  }
  return worked_(Point::kExperts);
}

absl::Status PlainEngine::Combine(const RankPlanView& plan, ConstMatrixView returned, MatrixView output) {
  const auto width = static_cast<size_t>(output.num_cols);
  std::fill_n(output.as<float>(), output.num_rows * width, 0.0f);
  for (int64_t i = 0; i < plan.num_send_rows(); ++i) {
    float* const sums = output.as<float>() + plan.send_rows[i] * width;
    for (size_t d = 0; d < width; ++d) sums[d] += returned.as<float>()[i * width + d];
  }
  return worked_(Point::kCombine);
}

}  // namespace switchyard::simulation
