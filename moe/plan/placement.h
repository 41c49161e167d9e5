// Which rank holds each expert of a layer.
#pragma once

#include <cstdint>
#include <vector>

namespace switchyard {

// An expert's place: `slot` counts the experts of this layer on that rank from 0.
struct ExpertPlace {
  int rank = 0;
  int slot = 0;
};

// Constant after construction, so freely shared between threads.
class Placement {
 public:
  // Consecutive experts on each rank, counts differing by at most one; with more ranks than experts some ranks hold
  // none (they still are home to rows).
  static Placement Even(int num_experts, int num_ranks);

  // `rank_of_expert[e]` in [0, num_ranks); slots follow the expert order.
  Placement(std::vector<int> rank_of_expert, int num_ranks);

  int num_ranks() const { return static_cast<int>(experts_of_rank_.size()); }
  int num_experts() const { return static_cast<int>(places_.size()); }
  const ExpertPlace& place(int expert_idx) const { return places_[expert_idx]; }
  // Expert indices in slot order.
  const std::vector<int>& experts_of(int rank) const { return experts_of_rank_[rank]; }

 private:
  std::vector<ExpertPlace> places_;
  std::vector<std::vector<int>> experts_of_rank_;
};

}  // namespace switchyard
