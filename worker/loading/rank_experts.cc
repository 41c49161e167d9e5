#include "worker/loading/rank_experts.h"

#include <algorithm>
#include <iterator>

namespace switchyard {

void RankExperts::Add(std::unique_ptr<ModelPart> part) {
  const LayerId first = part->first_layer();
  parts_[first] = std::move(part);
}

std::unique_ptr<ModelPart> RankExperts::Remove(ModelId id) {
  const auto found =
      std::find_if(parts_.begin(), parts_.end(), [&](const auto& each) { return each.second->id() == id; });
  if (found == parts_.end()) return nullptr;
  std::unique_ptr<ModelPart> part = std::move(found->second);
  parts_.erase(found);
  return part;
}

std::vector<std::unique_ptr<ModelPart>> RankExperts::RemoveAll() {
  std::vector<std::unique_ptr<ModelPart>> all;
  for (auto& [first, part] : parts_) all.push_back(std::move(part));
  parts_.clear();
  return all;
}

RankExperts::Place RankExperts::Find(LayerId layer) const {
  const auto after = parts_.upper_bound(layer);
  if (after == parts_.begin()) return {};
  const ModelPart& part = *std::prev(after)->second;
  const int32_t index = layer.value - part.first_layer().value;
  if (index >= static_cast<int32_t>(part.layers.size())) return {};
  return {&part, LayerId{index}};
}

int64_t RankExperts::weight_bytes() const {
  int64_t total = 0;
  for (const auto& [first, part] : parts_) total += part->engine->weight_bytes();
  return total;
}

absl::Status RankExperts::CheckDevice() const {
  for (const auto& [first, part] : parts_) SY_RETURN_IF_ERROR(part->engine->CheckDevice());
  return absl::OkStatus();
}

}  // namespace switchyard
