#include "server/api/calls/request_checks.h"

#include <algorithm>
#include <cmath>

#include "server/config/options.h"

namespace switchyard {
namespace {

constexpr double kMaxCapacityFactor = 1e6;

absl::Status CheckWish(const GateWish& wish, const LayerSpec& spec) {
  if (wish.gate_idx < 0 || wish.gate_idx >= spec.num_gates()) {
    return absl::InvalidArgumentError(absl::StrCat("gate_index: the layer has ", spec.num_gates(),
                                                   " gates, expected 0 to ", spec.num_gates() - 1, ", found ",
                                                   wish.gate_idx));
  }
  if (wish.top_k < 0 || wish.top_k > spec.num_experts) {
    return absl::InvalidArgumentError(absl::StrCat("top_k: expected 1 to ", spec.num_experts,
                                                   " experts, or 0 for the gate's own number, found ", wish.top_k));
  }
  const GateSpec& gate = spec.gate_at(static_cast<int>(wish.gate_idx));
  if (gate.scoring == Scoring::kSparseMixer && wish.top_k > gate.top_k) {
    return absl::InvalidArgumentError(
        absl::StrCat("top_k: this gate (sparsemixer) draws ", gate.top_k, " experts at most, found ", wish.top_k));
  }
  if (wish.capacity_factor.has_value() && !(std::abs(*wish.capacity_factor) <= kMaxCapacityFactor)) {
    return absl::InvalidArgumentError(absl::StrCat("capacity_factor: expected a number from ", -kMaxCapacityFactor,
                                                   " to ", kMaxCapacityFactor, ", found ", *wish.capacity_factor));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ChooseGate(const GateWish& wish, int64_t max_batch_rows, Request* request) {
  const LayerSpec& spec = request->ask.layer->spec;
  SY_RETURN_IF_ERROR(CheckWish(wish, spec));
  const GateSpec& gate = spec.gate_at(static_cast<int>(wish.gate_idx));
  request->ask.gate_idx = static_cast<int>(wish.gate_idx);
  request->ask.top_k = wish.top_k > 0 ? static_cast<int>(wish.top_k) : gate.top_k;
  request->ask.capacity = gate.capacity;
  if (wish.capacity_factor.has_value()) {
    request->ask.capacity.rule = CapacityRule::kTutel;
    request->ask.capacity.factor = *wish.capacity_factor;
  }
  const int usual = spec.num_choices();
  request->ask.row_cost = (request->ask.num_choices() + usual - 1) / usual;
  const int64_t most = std::min(max_batch_rows, request->ask.layer->on_group.max_batch_rows);
  if (request->ask.row_cost <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("top_k: ", request->ask.top_k, " is more than steps of ", most,
                                                 " rows have room for (--max_batch_rows=", max_batch_rows, ")"));
}

absl::Status ChooseQueueing(const QueueWish& wish, const char* timeout_name, Request* request) {
  if (wish.priority < 0) {
    return absl::InvalidArgumentError(absl::StrCat("priority: expected 0 or more, found ", wish.priority));
  }
  if (wish.timeout_us < 0) {
    return absl::InvalidArgumentError(absl::StrCat(timeout_name, ": expected 0 or more, found ", wish.timeout_us));
  }
  constexpr auto kLowest = static_cast<int64_t>(Priority::kBackground);
  if (wish.priority > 0) request->ask.priority = static_cast<Priority>(std::min(wish.priority, kLowest));
  request->ask.queue_timeout = std::chrono::microseconds(std::min(wish.timeout_us, kLongestTimeoutUs));
  return absl::OkStatus();
}

}  // namespace switchyard
