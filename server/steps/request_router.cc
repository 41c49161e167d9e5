#include "server/steps/request_router.h"

#include <algorithm>

#include "moe/gating/capacity.h"
#include "moe/gating/score_stats.h"

namespace switchyard {
namespace {

constexpr int64_t kBlockBytes = 16 << 20;

// See GateSpec::experts_of_choices; dropped choices stay dropped.
void SendToFixedExperts(const std::vector<int32_t>& experts, int top_k, Routing* routing) {
  const int count = std::min(static_cast<int>(experts.size()), top_k);
  for (int64_t row = 0; row < routing->num_rows; ++row) {
    for (int choice = 0; choice < count; ++choice) {
      int32_t& expert = routing->expert_idx[row * routing->top_k + choice];
      if (expert >= 0) expert = experts[choice];
    }
  }
}

}  // namespace

absl::Status RequestRouter::Route(Request& request) {
  const LayerSpec& spec = request.ask.layer->spec;
  request.outcome.routing.Resize(request.ask.num_rows, request.ask.num_choices());
  ScoreStats stats;
  stats.Reset(request.ask.num_rows, spec.num_experts);
  SY_RETURN_IF_ERROR(GateAll(request, &stats));
  // The balance loss counts the gate's choices before any is dropped.
  if (request.ask.return_balance_loss) {
    request.outcome.balance_loss =
        BalanceLoss(request.outcome.routing, 0, request.ask.num_rows, stats.score_sum, spec.num_experts);
  }
  GateSpec gate = spec.gate_at(request.ask.gate_idx);
  gate.capacity = request.ask.capacity;
  ApplyCapacity(gate, request.ask.top_k, spec.num_experts, 0, request.ask.num_rows, stats.best_score,
                &request.outcome.routing);
  SendToFixedExperts(gate.experts_of_choices, request.ask.top_k, &request.outcome.routing);
  request.progress.is_routed = true;
  return absl::OkStatus();
}

absl::Status RequestRouter::GateAll(Request& request, ScoreStats* stats) {
  const int64_t width = request.ask.layer->spec.hidden_dim;
  const int64_t row_bytes = width * static_cast<int64_t>(sizeof(float));
  const int64_t block_rows = std::max<int64_t>(kBlockBytes / row_bytes, 1);
  Gate& gate = *request.ask.layer->gates[request.ask.gate_idx];
  ChunkedRows rows = request.progress.rows;  // a cursor over the same bytes
  for (int64_t begin = 0; begin < request.ask.num_rows; begin += block_rows) {
    const int64_t count = std::min(block_rows, request.ask.num_rows - begin);
    rows_.EnsureSize(count * row_bytes);
    rows.ReadNext(request.ask.dtype, count * width, DType::kF32, rows_.data());
    SY_RETURN_IF_ERROR(gate.Route({rows_.data(), DType::kF32, count, width}, begin, request.ask.top_k,
                                  &request.outcome.routing, stats));
  }
  return absl::OkStatus();
}

void CopyChoices(const Routing& from, int64_t from_row, int64_t num_rows, int64_t to_row, Routing* to) {
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t source = (from_row + row) * from.top_k, target = (to_row + row) * to->top_k;
    for (int choice = 0; choice < to->top_k; ++choice) {
      const bool is_there = choice < from.top_k;
      to->expert_idx[target + choice] = is_there ? from.expert_idx[source + choice] : -1;
      to->weight[target + choice] = is_there ? from.weight[source + choice] : 0.0f;
    }
  }
}

}  // namespace switchyard
