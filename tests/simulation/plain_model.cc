#include "tests/simulation/plain_model.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace switchyard::simulation {
namespace {

uint64_t HashOf(uint64_t version, int layer_idx, int expert) {
  return Mix(version * 1000003 + static_cast<uint64_t>(layer_idx) * 1009 + static_cast<uint64_t>(expert) + 1);
}

uint64_t HashOf(std::span<const float> row) {
  uint64_t hash = 7;
  for (const float value : row) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    hash = Mix(hash + bits);
  }
  return hash;
}

// In [-1, 1).
float Unit(uint64_t hash) { return static_cast<float>(hash >> 40) * 0x1p-23f - 1; }

class PlainGate final : public Gate {
 public:
  PlainGate(const LayerSpec& spec, std::function<void()> on_route) : spec_(spec), on_route_(std::move(on_route)) {}
  bool Accepts(DType dtype) const override { return dtype == DType::kF32; }
  absl::Status Route(ConstMatrixView rows, int64_t first_row, int top_k, Routing* routing, ScoreStats*) override {
    on_route_();
    for (int64_t i = 0; i < rows.num_rows; ++i) {
      const std::span<const float> row(rows.Rows(i, 1).as<float>(), rows.num_cols);
      if (row[0] == kGatePoison) return absl::InternalError("a row that the gate cannot take");
      const std::vector<Choice> choices = ChooseExperts(row, spec_, top_k);
      for (int j = 0; j < routing->top_k; ++j) {
        const int64_t at = (first_row + i) * routing->top_k + j;
        const bool is_there = j < static_cast<int>(choices.size());
        routing->expert_idx[at] = is_there ? choices[j].expert : -1;
        routing->weight[at] = is_there ? choices[j].weight : 0.0f;
      }
    }
    return absl::OkStatus();
  }

 private:
  const LayerSpec spec_;
  const std::function<void()> on_route_;
};

Placement RandomPlacement(int num_experts, int num_ranks, int num_shared, Random& random) {
  if (random.Chance(50)) return Placement::Even(num_experts, num_ranks, num_shared);
  std::vector<int> rank_of_expert(num_experts);
  for (int& rank : rank_of_expert) rank = static_cast<int>(random.Below(num_ranks));
  return Placement(rank_of_expert, num_ranks, num_shared);
}

}  // namespace

std::shared_ptr<ServedModel> MakeModel(ModelId id, const std::string& name, const ModelShape& shape, uint64_t version,
                                       LayerId first_layer, const ModelMaking& making, Random& random) {
  auto model = std::make_shared<ServedModel>();
  model->id = id;
  model->name = name;
  model->location = absl::StrCat(version);
  model->spec.fingerprint = static_cast<uint64_t>(shape.hidden_dim);  // all that a worker has to know beside its share
  for (int i = 0; i < shape.num_layers; ++i) {
    LayerSpec spec;
    spec.name = absl::StrCat(i);
    spec.hidden_dim = shape.hidden_dim;
    spec.num_experts = shape.num_experts;
    spec.num_shared = shape.num_shared;
    spec.gate.top_k = shape.top_k;
    model->spec.layers.push_back(spec);
    std::vector<std::unique_ptr<Gate>> gates;
    gates.push_back(std::make_unique<PlainGate>(spec, making.on_route));
    model->layers.push_back(std::unique_ptr<ServedLayer>(
        new ServedLayer{LayerId{first_layer.value + i},
                        name,
                        spec,
                        std::move(gates),
                        {FirstPlacement(RandomPlacement(shape.num_experts, making.num_ranks, shape.num_shared, random)),
                         DType::kF32}}));
    model->layers.back()->on_group.max_batch_rows = making.max_batch_rows;
  }
  return model;
}

uint64_t VersionOf(const std::string& location) {
  uint64_t version = 0;
  (void)absl::SimpleAtoi(location, &version);
  return version;
}

std::vector<Choice> ChooseExperts(std::span<const float> row, const LayerSpec& spec, int top_k) {
  const int k = std::min(top_k == 0 ? spec.gate.top_k : top_k, spec.num_experts);
  uint64_t hash = HashOf(row);
  std::vector<Choice> choices;
  while (static_cast<int>(choices.size()) < k) {
    hash = Mix(hash + 1);
    const int expert = static_cast<int>(hash % static_cast<uint64_t>(spec.num_experts));
    const bool is_known =
        std::any_of(choices.begin(), choices.end(), [&](const Choice& each) { return each.expert == expert; });
    if (!is_known) choices.push_back({expert, 0.25f + static_cast<float>(hash >> 62) * 0.25f});
  }
  for (int i = 0; i < spec.num_shared; ++i) choices.push_back({spec.num_experts + i, 1.0f});
  return choices;
}

float ExpertOutput(uint64_t version, int layer_idx, int expert, std::span<const float> row, size_t d) {
  const uint64_t hash = Mix(HashOf(version, layer_idx, expert) + d);
  return Unit(hash) * row[d] + Unit(Mix(hash)) * row[(d + 1) % row.size()];
}

uint64_t DigestOf(uint64_t version, int layer_idx, int expert) { return HashOf(version, layer_idx, expert); }

std::vector<double> RightAnswer(uint64_t version, int layer_idx, const LayerSpec& spec, int top_k,
                                std::span<const float> row) {
  std::vector<double> answer(row.size(), 0.0);
  for (const auto& [expert, weight] : ChooseExperts(row, spec, top_k)) {
    for (size_t d = 0; d < row.size(); ++d) {
      answer[d] += static_cast<double>(weight) * ExpertOutput(version, layer_idx, expert, row, d);
    }
  }
  return answer;
}

}  // namespace switchyard::simulation
