// A MoE layer in plain float64, for tests: it follows the formulas of layer_spec.h and weight_source.h as directly as
// possible, and uses nothing but a WeightSource's answers.
#pragma once

#include <string>
#include <vector>

#include "moe/weights/weight_source.h"

namespace switchyard {

using Doubles = std::vector<double>;

Doubles ToDoubles(ConstMatrixView matrix);
// [out, in], whichever way it is stored.
Doubles ToDoubles(const WeightView& weight);

// One layer with all its weights, read from a source.
class PlainLayer {
 public:
  static absl::StatusOr<PlainLayer> Read(WeightSource& source, int layer_idx, int gate_idx = 0);

  struct Choice {
    int expert_idx = 0;
    double weight = 0;
    bool dropped = false;
  };
  struct Routing {
    std::vector<std::vector<Choice>> choices;  // per row, best first
    std::vector<double> margin;  // per row: the k-th best choice minus the next; rows near 0 may route either way
  };
  // `rows` is [T, D], as is the result. The rows are one request.
  Routing Route(const Doubles& rows) const;
  Doubles Forward(const Doubles& rows, const Routing& routing) const;

 private:
  using Choices = std::vector<Choice>;
  struct Expert {
    Doubles up, gate, down, up_bias, gate_bias, down_bias;
  };

  Doubles Logits(const double* row) const;
  Doubles Scores(const Doubles& logits) const;
  Choices Choose(const Doubles& logits, double* margin) const;
  Choices SparseMix(Doubles logits) const;
  void ExcludeGroups(Doubles* choices) const;
  void Weigh(Choices* choices) const;
  void ApplyCapacity(std::vector<Choices>* choices, const std::vector<double>& best_scores) const;
  int64_t Capacity(const std::vector<Choices>& choices, int64_t num_rows) const;
  void AddExpert(const Expert& expert, double weight, const double* row, double* output) const;
  double SharedWeight(const double* row) const;

  LayerSpec spec_;
  GateSpec gate_;
  Doubles router_, bias_, correction_, shared_gate_, projector_, projector_bias_;
  double logit_scale_ = 1;
  std::vector<Expert> experts_;
};

}  // namespace switchyard
