#include "moe/plan/placement.h"

#include <cassert>
#include <cstddef>
#include <utility>

namespace switchyard {
namespace {

std::vector<int> EvenRanks(int num_experts, int num_ranks) {
  std::vector<int> rank_of_expert(num_experts);
  for (int rank = 0; rank < num_ranks; ++rank) {
    const int64_t begin = int64_t{num_experts} * rank / num_ranks;
    const int64_t end = int64_t{num_experts} * (rank + 1) / num_ranks;
    for (int64_t expert = begin; expert < end; ++expert) rank_of_expert[expert] = rank;
  }
  return rank_of_expert;
}

}  // namespace

Placement Placement::Even(int num_experts, int num_ranks, int num_shared) {
  return Placement(EvenRanks(num_experts, num_ranks), num_ranks, num_shared);
}

Placement::Placement(std::vector<int> rank_of_expert, int num_ranks, int num_shared)
    : experts_of_rank_(num_ranks), num_shared_(num_shared) {
  assert(num_ranks > 0);
  places_.reserve(rank_of_expert.size());
  for (std::size_t expert = 0; expert < rank_of_expert.size(); ++expert) {
    const int rank = rank_of_expert[expert];
    assert(rank >= 0 && rank < num_ranks);
    std::vector<int>& experts = experts_of_rank_[rank];
    places_.push_back({rank, static_cast<int>(experts.size())});
    experts.push_back(static_cast<int>(expert));
  }
  for (std::vector<int>& experts : experts_of_rank_) {
    for (int shared = 0; shared < num_shared; ++shared) experts.push_back(num_experts() + shared);
  }
}

}  // namespace switchyard
