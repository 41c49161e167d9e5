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

// Shared experts, which every row takes, are on every rank, and a row's shared experts are computed at its home. Their
// indices and slots follow those of the other experts.
//
// Constant after construction, so freely shared between threads.
class Placement {
 public:
  // Places consecutive experts on each rank, in numbers that differ by at most one. With more ranks than experts some
  // ranks hold none, but are still home to rows.
  static Placement Even(int num_experts, int num_ranks, int num_shared = 0);

  // `rank_of_expert[e]` in [0, num_ranks); slots follow the expert order.
  Placement(std::vector<int> rank_of_expert, int num_ranks, int num_shared = 0);

  int num_ranks() const { return static_cast<int>(experts_of_rank_.size()); }
  // Without the shared ones.
  int num_experts() const { return static_cast<int>(places_.size()); }
  int num_shared() const { return num_shared_; }
  // The place of an expert for a row whose home is rank `home`.
  ExpertPlace place(int expert_idx, int home) const {
    if (expert_idx < num_experts()) return places_[expert_idx];
    return {home, first_shared_slot(home) + expert_idx - num_experts()};
  }
  int first_shared_slot(int rank) const { return static_cast<int>(experts_of_rank_[rank].size()) - num_shared_; }
  // Expert indices in slot order, the shared ones last.
  const std::vector<int>& experts_of(int rank) const { return experts_of_rank_[rank]; }

 private:
  std::vector<ExpertPlace> places_;
  std::vector<std::vector<int>> experts_of_rank_;
  int num_shared_ = 0;
};

}  // namespace switchyard
