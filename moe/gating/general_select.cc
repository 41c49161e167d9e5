// Selects for one row at a time, in the order of GateSpec: scores, the values that experts compete by, the k largest,
// weights, normalisation, scale.
#include "moe/gating/general_select.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "moe/gating/fast_exp.h"
#include "moe/gating/top_keys.h"

namespace switchyard {
namespace {

// Working memory of one row. The padding behind the last expert keeps -inf as logit and kTaken as key.
struct RowScratch {
  RowScratch(int num_experts, int num_groups)
      : logits(PaddedSize(num_experts), -INFINITY),
        scores(PaddedSize(num_experts)),
        keys(PaddedSize(num_experts), kTaken),
        group_keys(num_groups),
        kept_groups(num_groups),
        is_kept(num_groups) {}
  int padded_size() const { return static_cast<int>(logits.size()); }

  std::vector<float> logits, scores;
  std::vector<int32_t> keys;
  std::vector<int32_t> group_keys, kept_groups;
  std::vector<uint8_t> is_kept;
};

struct Extremes {
  bool any_nan = false;
  float largest = 0;  // meaningless with NaN
};

// Fills logits and their keys.
SY_ALWAYS_INLINE Extremes LoadRow(const float* logits, int num_experts, RowScratch* scratch) {
  float* copy = scratch->logits.data();
  int32_t* keys = scratch->keys.data();
  int32_t any_nan = 0, largest = kTaken;
  for (int i = 0; i < num_experts; ++i) {
    copy[i] = logits[i];
    any_nan |= (std::bit_cast<int32_t>(logits[i]) & 0x7fffffff) > 0x7f800000 ? 1 : 0;
    keys[i] = KeyOf(logits[i]);
    largest = std::max(largest, keys[i]);
  }
  return {any_nan != 0, FloatOf(largest)};
}

SY_ALWAYS_INLINE void SoftmaxScores(float largest, RowScratch* scratch) {
  const float* logits = scratch->logits.data();
  float* scores = scratch->scores.data();
  const int size = scratch->padded_size();
  const float sum = SumOfExp(logits, size, largest);
  for (int i = 0; i < size; ++i) scores[i] = ExpOrZero(logits[i] - largest) / sum;
}

SY_ALWAYS_INLINE void SigmoidScores(RowScratch* scratch) {
  const float* logits = scratch->logits.data();
  float* scores = scratch->scores.data();
  for (int i = 0; i < scratch->padded_size(); ++i) scores[i] = Sigmoid(logits[i]);
}

SY_ALWAYS_INLINE int32_t GroupKey(const int32_t* keys, int group_size, GroupScore group_score) {
  int32_t best = kTaken, second = kTaken, num_best = 0;
  for (int i = 0; i < group_size; ++i) best = std::max(best, keys[i]);
  if (group_score == GroupScore::kMax || group_size == 1) return best;
  for (int i = 0; i < group_size; ++i) {
    num_best += keys[i] == best ? 1 : 0;
    second = std::max(second, keys[i] == best ? kTaken : keys[i]);
  }
  return KeyOf(FloatOf(best) + FloatOf(num_best > 1 ? best : second));
}

// Gives the experts of groups that are not among the best the key of the excluded score.
SY_ALWAYS_INLINE void ExcludeGroups(const GateSpec& spec, int num_experts, RowScratch* scratch) {
  const int group_size = num_experts / spec.num_groups;
  int32_t* keys = scratch->keys.data();
  for (int g = 0; g < spec.num_groups; ++g) {
    scratch->group_keys[g] = GroupKey(keys + g * group_size, group_size, spec.group_score);
  }
  TakeLargestK(scratch->group_keys.data(), spec.num_groups, spec.groups_kept, scratch->kept_groups.data());
  std::fill(scratch->is_kept.begin(), scratch->is_kept.end(), 0);
  for (int i = 0; i < spec.groups_kept; ++i) scratch->is_kept[scratch->kept_groups[i]] = 1;
  const int32_t excluded = KeyOf(spec.excluded_score);
  for (int g = 0; g < spec.num_groups; ++g) {
    if (!scratch->is_kept[g]) std::fill_n(keys + g * group_size, group_size, excluded);
  }
}

// Computes the keys that experts compete by. Without correction and groups they stay the keys of the logits.
SY_ALWAYS_INLINE void Compete(const GateSpec& spec, const float* correction, int num_experts, RowScratch* scratch) {
  const bool excludes = ExcludesGroups(spec);
  if (correction == nullptr && !excludes) return;
  const float* scores = scratch->scores.data();
  int32_t* keys = scratch->keys.data();
  if (correction == nullptr) {
    for (int i = 0; i < num_experts; ++i) keys[i] = KeyOf(scores[i]);
  } else {
    for (int i = 0; i < num_experts; ++i) keys[i] = KeyOf(scores[i] + correction[i]);
  }
  if (excludes) ExcludeGroups(spec, num_experts, scratch);
}

// The number that the weights are divided by.
double Divisor(const GateSpec& spec, const float* weight) {
  double sum = 0.0, largest = 0.0;
  if (spec.normalization == Normalization::kSum) {
    for (int j = 0; j < spec.top_k; ++j) sum += weight[j];
    return std::max(sum + spec.norm_epsilon, spec.norm_min);
  }
  for (int j = 0; j < spec.top_k; ++j) {
    const double size = std::fabs(weight[j]);
    largest = std::max(largest, size);
    sum += std::pow(size, spec.norm_order);
  }
  return std::isinf(spec.norm_order) ? largest : std::pow(sum, 1.0 / spec.norm_order);
}

void NormalizeAndScale(const GateSpec& spec, float* weight) {
  const double factor = Normalizes(spec) ? spec.scale / Divisor(spec, weight) : spec.scale;
  if (factor == 1.0) return;
  for (int j = 0; j < spec.top_k; ++j) weight[j] = static_cast<float>(weight[j] * factor);
}

// The softmax of the best among the experts near it (phimoe's sparsemixer without its noise). Experts drawn already
// have the logit -inf: their quotient inf/inf is NaN, which is not above the threshold, and their exponential is 0.
SY_ALWAYS_INLINE float ShareOfBest(const float* logits, int padded_size, float best, float threshold) {
  alignas(kLaneBytes) float sums[kLanes] = {};
  for (int begin = 0; begin < padded_size; begin += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float logit = logits[begin + lane], below = best - logit;
      const float size = logit < 0.0f ? -logit : logit;
      const bool is_far = below / (size < best ? best : size) > threshold;
      sums[lane] += is_far ? 0.0f : ExpOrZero(-below);
    }
  }
  float total = 0.0f;
  for (float sum : sums) total += sum;
  return 1.0f / total;
}

SY_ALWAYS_INLINE void MixSparsely(const GateSpec& spec, RowScratch* scratch, const int32_t* expert_idx, float* weight) {
  float* logits = scratch->logits.data();
  const float threshold = static_cast<float>(2 * spec.jitter);
  for (int j = 0; j < spec.top_k; ++j) {
    const float best = logits[expert_idx[j]];
    weight[j] = std::isinf(best) ? NAN : ShareOfBest(logits, scratch->padded_size(), best, threshold);
    logits[expert_idx[j]] = -INFINITY;
  }
}

// Computes the scores, and the keys that experts compete by. Returns false when there are no scores; the keys are then
// those of the logits.
SY_ALWAYS_INLINE bool ScoreRow(const GateSpec& spec, const float* correction, int num_experts, float largest,
                               RowScratch* scratch) {
  if (spec.scoring != Scoring::kSigmoid && std::isinf(largest)) return false;
  switch (spec.scoring) {
    case Scoring::kSoftmax:
      SoftmaxScores(largest, scratch);
      break;
    case Scoring::kSigmoid:
      SigmoidScores(scratch);
      break;
    case Scoring::kSparseMixer:
      return true;
  }
  Compete(spec, correction, num_experts, scratch);
  return true;
}

SY_ALWAYS_INLINE void WeighRow(const GateSpec& spec, RowScratch* scratch, const int32_t* expert_idx, float* weight) {
  if (spec.scoring == Scoring::kSparseMixer) {
    MixSparsely(spec, scratch, expert_idx, weight);
  } else {
    for (int j = 0; j < spec.top_k; ++j) weight[j] = scratch->scores[expert_idx[j]];
  }
  NormalizeAndScale(spec, weight);
}

using TakeLargestKFn = void (*)(int32_t* keys, int num_keys, int top_k, int32_t* expert_idx);

template <TakeLargestKFn kTakeLargestK>
SY_ALWAYS_INLINE void SelectRow(const GateSpec& spec, const float* correction, const float* logits, int num_experts,
                                RowScratch* scratch, int32_t* expert_idx, float* weight) {
  const Extremes extremes = LoadRow(logits, num_experts, scratch);
  if (extremes.any_nan) return FillNanRow(spec.top_k, expert_idx, weight);
  const bool has_scores = ScoreRow(spec, correction, num_experts, extremes.largest, scratch);
  kTakeLargestK(scratch->keys.data(), scratch->padded_size(), spec.top_k, expert_idx);
  if (has_scores) {
    WeighRow(spec, scratch, expert_idx, weight);
  } else {
    std::fill_n(weight, spec.top_k, NAN);
  }
}

template <TakeLargestKFn kTakeLargestK>
SY_ALWAYS_INLINE void SelectRows(const GateSpec& spec, const float* correction, const LogitRows& logits,
                                 const RoutingRows& out) {
  RowScratch scratch(logits.num_experts, spec.num_groups);
  for (int64_t row_idx = 0; row_idx < logits.num_rows; ++row_idx) {
    SelectRow<kTakeLargestK>(spec, correction, logits.row(row_idx), logits.num_experts, &scratch,
                             out.expert_idx + row_idx * out.stride, out.weight + row_idx * out.stride);
  }
}

// The same code for three generations of vector registers.
using SelectRowsFn = void (*)(const GateSpec&, const float*, const LogitRows&, const RoutingRows&);

SY_AVX512 void SelectRowsAvx512(const GateSpec& spec, const float* correction, const LogitRows& logits,
                                const RoutingRows& out) {
  SelectRows<TakeLargestKAvx512>(spec, correction, logits, out);
}

SY_AVX2 void SelectRowsAvx2(const GateSpec& spec, const float* correction, const LogitRows& logits,
                            const RoutingRows& out) {
  SelectRows<TakeLargestK>(spec, correction, logits, out);
}

void SelectRowsBaseline(const GateSpec& spec, const float* correction, const LogitRows& logits,
                        const RoutingRows& out) {
  SelectRows<TakeLargestK>(spec, correction, logits, out);
}

}  // namespace

void FillNanRow(int top_k, int32_t* expert_idx, float* weight) {
  for (int j = 0; j < top_k; ++j) {
    expert_idx[j] = j;
    weight[j] = NAN;
  }
}

void SelectExpertsGenerally(const GateSpec& spec, std::span<const float> score_correction, const LogitRows& logits,
                            const RoutingRows& out) {
  FastestOf<SelectRowsFn>(SelectRowsAvx512, SelectRowsAvx2, SelectRowsBaseline)(
      spec, score_correction.empty() ? nullptr : score_correction.data(), logits, out);
}

}  // namespace switchyard
