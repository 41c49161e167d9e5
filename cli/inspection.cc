#include "cli/inspection.h"

#include <algorithm>

#include "moe/plan/placement.h"
#include "moe/weights/weight_source.h"

namespace switchyard {
namespace {

// How many copies of a step's rows a rank keeps: for steps on their way in and out, and as buffers of the exchange.
constexpr int64_t kRowBuffers = 8;

int64_t LayerBytes(const LayerSpec& layer, DType dtype) {
  return layer.num_stored_experts() * ExpertBytes(layer, dtype);
}

std::vector<RankShare> SharesOf(const ModelSpec& model, DType dtype, int num_ranks) {
  std::vector<RankShare> shares(num_ranks);
  for (const LayerSpec& layer : model.layers) {
    const Placement placement = Placement::Even(layer.num_experts, num_ranks, layer.num_shared);
    for (int rank = 0; rank < num_ranks; ++rank) {
      const auto num_experts = static_cast<int64_t>(placement.experts_of(rank).size());
      shares[rank].num_experts += num_experts;
      shares[rank].weight_bytes += num_experts * ExpertBytes(layer, dtype);
    }
  }
  return shares;
}

int64_t WorkingBytes(const ModelSpec& model, DType dtype, int64_t max_rows) {
  int64_t largest = 0;
  for (const LayerSpec& layer : model.layers) {
    const int64_t per_pair = 2 * layer.hidden_dim + layer.expert_dim;
    largest = std::max(largest, max_rows * (kRowBuffers * layer.hidden_dim + layer.num_choices() * per_pair));
  }
  return largest * static_cast<int64_t>(SizeOf(dtype));
}

int64_t LargestShare(const std::vector<RankShare>& shares) {
  int64_t largest = 0;
  for (const RankShare& share : shares) largest = std::max(largest, share.weight_bytes);
  return largest;
}

}  // namespace

int64_t Inspection::total_bytes() const {
  int64_t total = 0;
  for (const int64_t bytes : layer_bytes) total += bytes;
  return total;
}

absl::StatusOr<Inspection> Inspect(const std::string& location, const InspectOptions& options) {
  SY_ASSIGN_OR_RETURN(auto source, OpenWeightSource(location));
  Inspection inspection;
  inspection.model = source->spec();
  inspection.compute_dtype = inspection.model.dtype;
  if (options.compute_dtype != "auto") {
    SY_ASSIGN_OR_RETURN(inspection.compute_dtype, ParseDType(options.compute_dtype));
  }
  for (const LayerSpec& layer : inspection.model.layers) {
    inspection.layer_bytes.push_back(LayerBytes(layer, inspection.compute_dtype));
  }
  inspection.ranks = SharesOf(inspection.model, inspection.compute_dtype, options.num_ranks);
  inspection.working_bytes = WorkingBytes(inspection.model, inspection.compute_dtype, options.max_batch_rows);
  return inspection;
}

int FewestRanks(const Inspection& inspection, int64_t bytes_per_rank) {
  int most = 1;
  for (const LayerSpec& layer : inspection.model.layers) most = std::max(most, layer.num_experts);
  const int64_t for_weights = bytes_per_rank - inspection.working_bytes;
  for (int num_ranks = 1; num_ranks <= most; ++num_ranks) {
    const auto shares = SharesOf(inspection.model, inspection.compute_dtype, num_ranks);
    if (LargestShare(shares) <= for_weights) return num_ranks;
  }
  return 0;
}

}  // namespace switchyard
