// Models small enough that their right answers can be computed for every row of every request.
//
// Element d of expert e's output is a[d] · x[d] + b[d] · x[d + 1], with a and b hashes of the weights' version, the
// layer and the expert. The gate hashes the row. So a row that was answered by another expert, with other weights, or
// from another row is told from the right one. Versions stand for what is in a checkpoint's files.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "server/models/served_model.h"
#include "tests/simulation/random.h"

namespace switchyard::simulation {

struct ModelShape {
  int64_t hidden_dim = 4;
  int num_experts = 2;
  int num_shared = 0;
  int top_k = 1;
  int num_layers = 1;
};

// Rows that begin with these are poison: they make the gate, the step, or the worker that computes it fail.
constexpr float kGatePoison = 1001, kStepPoison = 1002, kDeadlyPoison = 1003;

struct ModelMaking {
  int num_ranks = 1;
  int64_t max_batch_rows = 1;
  std::function<void()> on_route;  // called where a gate works, for what happens meanwhile on other threads
};
// Version `version` of the model `name`, placed at random on the ranks.
std::shared_ptr<ServedModel> MakeModel(ModelId id, const std::string& name, const ModelShape& shape, uint64_t version,
                                       LayerId first_layer, const ModelMaking& making, Random& random);
uint64_t VersionOf(const std::string& location);

struct Choice {
  int expert = 0;
  float weight = 0;
};
// The choices of a row, best first, shared experts last.
std::vector<Choice> ChooseExperts(std::span<const float> row, const LayerSpec& spec, int top_k);

// Element `d` of an expert's output.
float ExpertOutput(uint64_t version, int layer_idx, int expert, std::span<const float> row, size_t d);
// Of the expert's bytes, as workers report it.
uint64_t DigestOf(uint64_t version, int layer_idx, int expert);

// The right answer to a row.
std::vector<double> RightAnswer(uint64_t version, int layer_idx, const LayerSpec& spec, int top_k,
                                std::span<const float> row);

}  // namespace switchyard::simulation
