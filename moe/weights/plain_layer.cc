#include "moe/weights/plain_layer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "base/tensor/convert.h"

namespace switchyard {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double Activated(Activation activation, double x) {
  const double cubic = x + 0.044715 * x * x * x;
  switch (activation) {
    case Activation::kSilu:
      return x * Sigmoid(x);
    case Activation::kGelu:
      return x * 0.5 * std::erfc(-x / std::numbers::sqrt2);
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * cubic));
    case Activation::kQuickGelu:
      return x * Sigmoid(1.702 * x);
  }
  return x;
}

double Dot(const double* a, const double* b, size_t size) { return std::inner_product(a, a + size, b, 0.0); }

// weight [out, in] · x + bias
Doubles Times(const Doubles& weight, const double* x, size_t num_in, const Doubles& bias) {
  Doubles y(weight.size() / num_in);
  for (size_t o = 0; o < y.size(); ++o) {
    y[o] = Dot(&weight[o * num_in], x, num_in) + (bias.empty() ? 0 : bias[o]);
  }
  return y;
}

void Normalize(Doubles::iterator begin, size_t size) {
  const double norm = std::sqrt(Dot(&*begin, &*begin, size));
  for (size_t i = 0; i < size; ++i) begin[i] /= norm;
}

Doubles Softmax(Doubles logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (double& value : logits) sum += value = std::exp(value - largest);
  for (double& value : logits) value /= sum;
  return logits;
}

// Indices of the values, largest first; equal ones in order.
std::vector<int> Ranked(const Doubles& values) {
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return values[a] > values[b]; });
  return order;
}

Doubles Widen(const std::vector<float>& values) { return {values.begin(), values.end()}; }

}  // namespace

Doubles ToDoubles(ConstMatrixView matrix) {
  if (matrix.data == nullptr) return {};
  Doubles values(matrix.num_rows * matrix.num_cols);
  ConvertElements(matrix.dtype, matrix.data, DType::kF64, reinterpret_cast<std::byte*>(values.data()), values.size());
  return values;
}

Doubles ToDoubles(const WeightView& weight) {
  const Doubles stored = ToDoubles(weight.matrix);
  if (!weight.transposed) return stored;
  const int64_t num_in = weight.matrix.num_rows, num_out = weight.matrix.num_cols;
  Doubles turned(stored.size());
  for (int64_t i = 0; i < num_in; ++i) {
    for (int64_t o = 0; o < num_out; ++o) turned[o * num_in + i] = stored[i * num_out + o];
  }
  return turned;
}

absl::StatusOr<PlainLayer> PlainLayer::Read(WeightSource& source, int layer_idx, int gate_idx) {
  PlainLayer layer;
  layer.spec_ = source.spec().layers[layer_idx];
  layer.gate_ = layer.spec_.gate_at(gate_idx);
  SY_ASSIGN_OR_RETURN(const RouterWeights router, source.ReadRouter(layer_idx, gate_idx));
  layer.router_ = ToDoubles(router.weight.view());
  layer.bias_ = Widen(router.bias);
  layer.correction_ = Widen(router.score_correction);
  layer.shared_gate_ = ToDoubles(router.shared_gate.view());
  layer.projector_ = ToDoubles(router.projector.view());
  layer.projector_bias_ = Widen(router.projector_bias);
  layer.logit_scale_ = router.logit_scale;
  for (int idx = 0; idx < layer.spec_.num_stored_experts(); ++idx) {
    SY_ASSIGN_OR_RETURN(const ExpertWeights weights, source.ReadExpert(layer_idx, idx));
    layer.experts_.push_back({ToDoubles(weights.up), ToDoubles(weights.gate), ToDoubles(weights.down),
                              ToDoubles(weights.up_bias), ToDoubles(weights.gate_bias), ToDoubles(weights.down_bias)});
    source.ReleaseExpert(layer_idx, idx);
  }
  return layer;
}

Doubles PlainLayer::Logits(const double* row) const {
  const size_t dim = spec_.hidden_dim;
  if (projector_.empty()) return Times(router_, row, dim, bias_);
  Doubles projected = Times(projector_, row, dim, projector_bias_);
  Normalize(projected.begin(), projected.size());
  Doubles directions = router_;
  for (int e = 0; e < spec_.num_experts; ++e) {
    Normalize(directions.begin() + e * projected.size(), projected.size());
  }
  Doubles logits = Times(directions, projected.data(), projected.size(), {});
  for (double& logit : logits) logit *= logit_scale_;
  return logits;
}

Doubles PlainLayer::Scores(const Doubles& logits) const {
  if (gate_.scoring != Scoring::kSigmoid) return Softmax(logits);
  Doubles scores;
  for (double logit : logits) scores.push_back(Sigmoid(logit));
  return scores;
}

void PlainLayer::ExcludeGroups(Doubles* choices) const {
  if (gate_.num_groups == 1) return;
  const size_t size = choices->size() / gate_.num_groups;
  Doubles group_scores;
  for (int group = 0; group < gate_.num_groups; ++group) {
    Doubles members(choices->begin() + group * size, choices->begin() + (group + 1) * size);
    std::sort(members.rbegin(), members.rend());
    group_scores.push_back(gate_.group_score == GroupScore::kMax ? members[0] : members[0] + members[1]);
  }
  const std::vector<int> ranked = Ranked(group_scores);
  for (int place = gate_.groups_kept; place < gate_.num_groups; ++place) {
    std::fill_n(choices->begin() + ranked[place] * size, size, gate_.excluded_score);
  }
}

PlainLayer::Choices PlainLayer::SparseMix(Doubles logits) const {
  const Doubles original = logits;
  Choices choices;
  for (int draw = 0; draw < 2; ++draw) {
    const int best = Ranked(logits)[0];
    const double largest = logits[best];
    double sum = 0;
    for (size_t e = 0; e < logits.size(); ++e) {
      const double distance = (largest - original[e]) / std::max(std::abs(original[e]), largest);
      if (distance <= 2 * gate_.jitter) sum += std::exp(logits[e] - largest);
    }
    choices.push_back({best, 1 / sum});
    logits[best] = -kInfinity;
  }
  return choices;
}

PlainLayer::Choices PlainLayer::Choose(const Doubles& logits, double* margin) const {
  const Doubles scores = Scores(logits);
  Doubles competing = scores;
  for (size_t e = 0; e < correction_.size(); ++e) competing[e] += correction_[e];
  ExcludeGroups(&competing);
  const std::vector<int> ranked = Ranked(competing);
  const int k = gate_.top_k;
  *margin = k < spec_.num_experts ? competing[ranked[k - 1]] - competing[ranked[k]] : kInfinity;
  if (gate_.scoring == Scoring::kSparseMixer) return SparseMix(logits);
  Choices choices;
  for (int j = 0; j < k; ++j) choices.push_back({ranked[j], scores[ranked[j]]});
  return choices;
}

void PlainLayer::Weigh(Choices* choices) const {
  double divisor = 1;
  const bool normalizes = gate_.normalizes_single || gate_.top_k > 1;
  double sum = 0, sum_of_powers = 0;
  for (const Choice& choice : *choices) {
    if (choice.dropped && gate_.capacity.renormalize) continue;
    sum += choice.weight;
    sum_of_powers += std::pow(std::abs(choice.weight), gate_.norm_order);
  }
  if (normalizes && gate_.normalization == Normalization::kSum) {
    divisor = std::max(sum + gate_.norm_epsilon, gate_.norm_min);
  }
  if (normalizes && gate_.normalization == Normalization::kPNorm) {
    divisor = std::pow(sum_of_powers, 1 / gate_.norm_order);
  }
  for (Choice& choice : *choices) choice.weight = choice.dropped ? 0 : choice.weight / divisor * gate_.scale;
}

int64_t PlainLayer::Capacity(const std::vector<Choices>& choices, int64_t num_rows) const {
  const CapacitySpec& capacity = gate_.capacity;
  if (capacity.rule == CapacityRule::kFixed) return capacity.rows;
  if (capacity.rule == CapacityRule::kFraction) return std::ceil(capacity.factor * num_rows);
  std::vector<int64_t> counts(spec_.num_experts);
  for (const Choices& row : choices) {
    for (const Choice& choice : row) ++counts[choice.expert_idx];
  }
  const int64_t fullest = *std::max_element(counts.begin(), counts.end());
  const int64_t per_expert = (num_rows + spec_.num_experts - 1) / spec_.num_experts;
  const auto bound = [&](double factor) { return gate_.top_k * static_cast<int64_t>(factor * per_expert); };
  int64_t places = capacity.factor > 0 ? bound(capacity.factor) : fullest;
  if (capacity.factor < 0) places = std::min(places, bound(-capacity.factor));
  return (places + capacity.alignment - 1) / capacity.alignment * capacity.alignment;
}

void PlainLayer::ApplyCapacity(std::vector<Choices>* choices, const std::vector<double>& best_scores) const {
  if (gate_.capacity.rule == CapacityRule::kNone) return;
  const int64_t places = Capacity(*choices, choices->size());
  std::vector<int> order(choices->size());
  std::iota(order.begin(), order.end(), 0);
  if (gate_.capacity.by_priority) order = Ranked(best_scores);
  std::vector<int64_t> taken(spec_.num_experts);
  for (int j = 0; j < gate_.top_k; ++j) {
    for (int row : order) {
      Choice& choice = (*choices)[row][j];
      choice.dropped = taken[choice.expert_idx]++ >= places;
    }
  }
}

void PlainLayer::AddExpert(const Expert& expert, double weight, const double* row, double* output) const {
  const ExpertSpec& spec = spec_.expert;
  Doubles input(row, row + spec_.hidden_dim);
  if (spec.weighs_input) {
    for (double& value : input) value *= weight;
  }
  const double limit = spec.limit == 0 ? kInfinity : spec.limit;
  Doubles inner = Times(expert.up, input.data(), input.size(), expert.up_bias);
  const Doubles gate = spec.gated ? Times(expert.gate, input.data(), input.size(), expert.gate_bias) : Doubles();
  for (size_t i = 0; i < inner.size(); ++i) {
    inner[i] = spec.gated ? Activated(spec.activation, std::min(gate[i], limit)) *
                                (std::clamp(inner[i], -limit, limit) + spec.up_offset)
                          : Activated(spec.activation, inner[i]);
  }
  const Doubles result = Times(expert.down, inner.data(), inner.size(), expert.down_bias);
  for (size_t i = 0; i < result.size(); ++i) output[i] += spec.weighs_input ? result[i] : weight * result[i];
}

double PlainLayer::SharedWeight(const double* row) const {
  return shared_gate_.empty() ? 1 : Sigmoid(Dot(shared_gate_.data(), row, spec_.hidden_dim));
}

PlainLayer::Routing PlainLayer::Route(const Doubles& rows) const {
  const int64_t num_rows = rows.size() / spec_.hidden_dim;
  Routing routing = {std::vector<Choices>(num_rows), std::vector<double>(num_rows)};
  Doubles best_scores;
  for (int64_t row = 0; row < num_rows; ++row) {
    const Doubles logits = Logits(&rows[row * spec_.hidden_dim]), scores = Scores(logits);
    routing.choices[row] = Choose(logits, &routing.margin[row]);
    best_scores.push_back(*std::max_element(scores.begin(), scores.end()));
  }
  ApplyCapacity(&routing.choices, best_scores);
  for (Choices& choices : routing.choices) {
    Weigh(&choices);
    for (size_t j = 0; j < gate_.experts_of_choices.size(); ++j) choices[j].expert_idx = gate_.experts_of_choices[j];
  }
  return routing;
}

Doubles PlainLayer::Forward(const Doubles& rows, const Routing& routing) const {
  Doubles output(rows.size());
  for (size_t row = 0; row < routing.choices.size(); ++row) {
    const double* x = &rows[row * spec_.hidden_dim];
    double* y = &output[row * spec_.hidden_dim];
    for (const Choice& choice : routing.choices[row]) {
      if (!choice.dropped) AddExpert(experts_[choice.expert_idx], choice.weight, x, y);
    }
    for (int idx = spec_.num_experts; idx < spec_.num_stored_experts(); ++idx) {
      AddExpert(experts_[idx], SharedWeight(x), x, y);
    }
  }
  return output;
}

}  // namespace switchyard
