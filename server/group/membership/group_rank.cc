#include "server/group/membership/group_rank.h"

#include <algorithm>

namespace switchyard {

int64_t GroupRank::weight_bytes() const {
  int64_t total = 0;
  for (const auto& [id, model] : models) total += model.weight_bytes;
  return total;
}

double GroupRank::load_fraction() const {
  if (is_absent()) return 0;
  int64_t done = 0, total = 0;
  bool has_all = true;
  for (const auto& [id, model] : models) {
    done += model.bytes_done;
    total += model.bytes_total;
    has_all = has_all && model.state != RankModel::State::kLoading;
  }
  if (has_all) return 1;
  return total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 0;
}

bool AllRanks(const GroupRanks& ranks, const std::function<bool(const GroupRank&)>& condition) {
  return std::all_of(ranks.begin(), ranks.end(), condition);
}

}  // namespace switchyard
