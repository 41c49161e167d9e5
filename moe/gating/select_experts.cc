// The plain case, softmax of the logits and the k largest, needs no scores of experts that are not chosen. It computes
// the exponentials of the k only, and the denominator over all experts only when the weights are not normalised,
// because normalising would cancel it. general_select.cc handles everything else.
#include "moe/gating/select_experts.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "moe/gating/fast_exp.h"
#include "moe/gating/general_select.h"
#include "moe/gating/top_keys.h"

namespace switchyard {
namespace {

// Working memory of one row; the padding behind the last expert holds kTaken and -inf throughout.
struct RowScratch {
  explicit RowScratch(int num_experts)
      : keys(PaddedSize(num_experts), kTaken), logits(PaddedSize(num_experts), -INFINITY) {}
  std::vector<int32_t> keys;
  std::vector<float> logits;
};

// The parts of a GateSpec that matter here.
struct PlainGate {
  int top_k = 1;
  bool divides_by_sum = false;
  float scale = 1;
};

// Fills the scratch with a row's logits and with integers in the same order. Returns whether any is NaN.
SY_ALWAYS_INLINE bool LoadRow(const float* logits, int num_experts, RowScratch* scratch) {
  int32_t* keys = scratch->keys.data();
  float* copy = scratch->logits.data();
  int32_t any_nan = 0;
  for (int i = 0; i < num_experts; ++i) {
    copy[i] = logits[i];
    const int32_t bits = std::bit_cast<int32_t>(logits[i] + 0.0f);
    any_nan |= (bits & 0x7fffffff) > 0x7f800000 ? 1 : 0;
    keys[i] = KeyOf(logits[i]);
  }
  return any_nan != 0;
}

// Softmax weights of the chosen experts.
SY_ALWAYS_INLINE void WeighRow(const PlainGate& gate, const RowScratch& scratch, const int32_t* expert_idx,
                               float* weight) {
  const float* logits = scratch.logits.data();
  const float largest = logits[expert_idx[0]];
  double sum_of_chosen = 0.0;  // exact enough for any number of choices
  for (int j = 0; j < gate.top_k; ++j) {
    weight[j] = ExpOrZero(logits[expert_idx[j]] - largest);
    sum_of_chosen += weight[j];
  }
  const float sum =
      gate.divides_by_sum ? static_cast<float>(sum_of_chosen) : SumOfExp(logits, scratch.logits.size(), largest);
  for (int j = 0; j < gate.top_k; ++j) weight[j] = weight[j] / sum * gate.scale;
}

using TakeLargestKFn = void (*)(int32_t* keys, int num_keys, int top_k, int32_t* expert_idx);

template <TakeLargestKFn kTakeLargestK>
SY_ALWAYS_INLINE void SelectRow(const PlainGate& gate, const float* logits, int num_experts, RowScratch* scratch,
                                int32_t* expert_idx, float* weight) {
  if (LoadRow(logits, num_experts, scratch)) return FillNanRow(gate.top_k, expert_idx, weight);
  kTakeLargestK(scratch->keys.data(), scratch->keys.size(), gate.top_k, expert_idx);
  if (std::isinf(logits[expert_idx[0]])) {
    std::fill_n(weight, gate.top_k, NAN);
  } else {
    WeighRow(gate, *scratch, expert_idx, weight);
  }
}

template <TakeLargestKFn kTakeLargestK>
SY_ALWAYS_INLINE void SelectRows(const PlainGate& gate, const LogitRows& logits, const RoutingRows& out) {
  RowScratch scratch(logits.num_experts);
  for (int64_t row_idx = 0; row_idx < logits.num_rows; ++row_idx) {
    SelectRow<kTakeLargestK>(gate, logits.row(row_idx), logits.num_experts, &scratch,
                             out.expert_idx + row_idx * out.stride, out.weight + row_idx * out.stride);
  }
}

// The same code for three generations of vector registers.
using SelectRowsFn = void (*)(const PlainGate&, const LogitRows&, const RoutingRows&);

SY_AVX512 void SelectRowsAvx512(const PlainGate& gate, const LogitRows& logits, const RoutingRows& out) {
  SelectRows<TakeLargestKAvx512>(gate, logits, out);
}

SY_AVX2 void SelectRowsAvx2(const PlainGate& gate, const LogitRows& logits, const RoutingRows& out) {
  SelectRows<TakeLargestK>(gate, logits, out);
}

void SelectRowsBaseline(const PlainGate& gate, const LogitRows& logits, const RoutingRows& out) {
  SelectRows<TakeLargestK>(gate, logits, out);
}

// Whether norm_epsilon and norm_min do not change a sum of softmax scores: the sum of the k largest is at least 1/E.
bool SumIsAboveBounds(const GateSpec& spec, int num_experts) {
  return spec.norm_epsilon >= 0 && spec.norm_epsilon * num_experts < 1e-9 && spec.norm_min * num_experts < 0.5;
}

bool IsPlain(const GateSpec& spec, std::span<const float> score_correction, int num_experts) {
  if (spec.scoring != Scoring::kSoftmax || !score_correction.empty() || ExcludesGroups(spec)) return false;
  if (!Normalizes(spec)) return true;
  return spec.normalization == Normalization::kSum && SumIsAboveBounds(spec, num_experts);
}

}  // namespace

void SelectExperts(const GateSpec& spec, std::span<const float> score_correction, const LogitRows& logits,
                   int64_t first_row, Routing* routing) {
  const size_t first = static_cast<size_t>(first_row) * routing->top_k;
  const RoutingRows out{routing->expert_idx.data() + first, routing->weight.data() + first, routing->top_k};
  if (!IsPlain(spec, score_correction, logits.num_experts)) {
    return SelectExpertsGenerally(spec, score_correction, logits, out);
  }
  const PlainGate gate{spec.top_k, Normalizes(spec), static_cast<float>(spec.scale)};
  FastestOf<SelectRowsFn>(SelectRowsAvx512, SelectRowsAvx2, SelectRowsBaseline)(gate, logits, out);
}

}  // namespace switchyard
