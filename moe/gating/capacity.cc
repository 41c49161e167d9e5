#include "moe/gating/capacity.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>
#include <vector>

namespace switchyard {
namespace {

// `rows` rounded down and limited to 0 to 1e15, more than any request has; NaN gives 0.
int64_t ToRows(double rows) {
  constexpr double kMany = 1e15;
  return rows > 0 ? static_cast<int64_t>(std::min(rows, kMany)) : 0;
}

int64_t AlignUp(int64_t rows, int64_t alignment) {
  return alignment > 1 ? (rows + alignment - 1) / alignment * alignment : rows;
}

// Tutel takes int(factor · rows per expert) before it multiplies by k.
int64_t TutelCapacity(const CapacitySpec& capacity, int top_k, int num_experts, int64_t num_rows, int64_t fullest) {
  const int64_t rows_per_expert = (num_rows + num_experts - 1) / num_experts;
  const int64_t limit = top_k * ToRows(std::fabs(capacity.factor) * static_cast<double>(rows_per_expert));
  if (capacity.factor > 0) return AlignUp(limit, capacity.alignment);
  return AlignUp(capacity.factor < 0 ? std::min(fullest, limit) : fullest, capacity.alignment);
}

// The choices of one request.
class Choices {
 public:
  Choices(int top_k, int64_t first_row, int64_t num_rows, Routing* routing)
      : top_k_(top_k), num_rows_(num_rows), stride_(routing->top_k) {
    expert_idx_ = routing->expert_idx.data() + first_row * stride_;
    weight_ = routing->weight.data() + first_row * stride_;
  }

  int64_t num_rows() const { return num_rows_; }
  int top_k() const { return top_k_; }
  int32_t expert(int64_t row_idx, int choice) const { return expert_idx_[row_idx * stride_ + choice]; }
  void Remove(int64_t row_idx, int choice) {
    expert_idx_[row_idx * stride_ + choice] = -1;
    weight_[row_idx * stride_ + choice] = 0;
  }
  float* weights(int64_t row_idx) { return weight_ + row_idx * stride_; }

 private:
  const int top_k_;
  const int64_t num_rows_, stride_;
  int32_t* expert_idx_;
  float* weight_;
};

int64_t FullestExpert(const Choices& choices, int num_experts) {
  std::vector<int64_t> num_chosen(num_experts);
  for (int64_t row_idx = 0; row_idx < choices.num_rows(); ++row_idx) {
    for (int j = 0; j < choices.top_k(); ++j) {
      if (const int32_t expert = choices.expert(row_idx, j); expert >= 0) ++num_chosen[expert];
    }
  }
  return *std::max_element(num_chosen.begin(), num_chosen.end());
}

// Rows in the order in which they get places.
std::vector<int64_t> RowOrder(const CapacitySpec& capacity, int64_t num_rows, std::span<const float> best_score) {
  std::vector<int64_t> order(num_rows);
  std::iota(order.begin(), order.end(), 0);
  if (!capacity.by_priority) return order;
  assert(static_cast<int64_t>(best_score.size()) >= num_rows);
  const auto priority = [&](int64_t row_idx) {
    return std::isnan(best_score[row_idx]) ? -INFINITY : best_score[row_idx];
  };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return priority(a) > priority(b); });
  return order;
}

// Removes the choices beyond capacity. Returns which rows lost one.
std::vector<bool> GivePlaces(const std::vector<int64_t>& order, int num_experts, int64_t capacity, Choices* choices) {
  std::vector<int64_t> num_given(num_experts);
  std::vector<bool> lost(choices->num_rows());
  for (int j = 0; j < choices->top_k(); ++j) {
    for (const int64_t row_idx : order) {
      const int32_t expert = choices->expert(row_idx, j);
      if (expert < 0 || num_given[expert]++ < capacity) continue;
      choices->Remove(row_idx, j);
      lost[row_idx] = true;
    }
  }
  return lost;
}

void Renormalize(const GateSpec& spec, float* weight, int top_k) {
  const double sum = std::accumulate(weight, weight + top_k, 0.0) / spec.scale;
  const double divisor = std::max(sum, spec.norm_min);
  if (divisor == 0) return;  // no expert is left, or none with a weight
  for (int j = 0; j < top_k; ++j) weight[j] = static_cast<float>(weight[j] / divisor);
}

}  // namespace

bool CanDropChoices(const CapacitySpec& capacity) {
  if (capacity.rule == CapacityRule::kTutel) return capacity.factor != 0;
  return capacity.rule != CapacityRule::kNone;
}

int64_t CapacityOf(const CapacitySpec& capacity, int top_k, int num_experts, int64_t num_rows, int64_t fullest) {
  switch (capacity.rule) {
    case CapacityRule::kNone:
      return num_rows;
    case CapacityRule::kFixed:
      return std::max<int64_t>(capacity.rows, 0);
    case CapacityRule::kFraction:
      return ToRows(std::ceil(capacity.factor * static_cast<double>(num_rows)));
    case CapacityRule::kTutel:
      return TutelCapacity(capacity, top_k, num_experts, num_rows, fullest);
  }
  return num_rows;
}

void ApplyCapacity(const GateSpec& spec, int top_k, int num_experts, int64_t first_row, int64_t num_rows,
                   std::span<const float> best_score, Routing* routing) {
  if (!CanDropChoices(spec.capacity) || num_rows == 0) return;
  Choices choices(top_k, first_row, num_rows, routing);
  const int64_t fullest = FullestExpert(choices, num_experts);
  const int64_t capacity = CapacityOf(spec.capacity, top_k, num_experts, num_rows, fullest);
  if (fullest <= capacity) return;
  const std::vector<bool> lost =
      GivePlaces(RowOrder(spec.capacity, num_rows, best_score), num_experts, capacity, &choices);
  if (!spec.capacity.renormalize) return;
  for (int64_t row_idx = 0; row_idx < num_rows; ++row_idx) {
    if (lost[row_idx]) Renormalize(spec, choices.weights(row_idx), top_k);
  }
}

}  // namespace switchyard
