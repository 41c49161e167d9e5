// The layers that benchmarks of the GPU measure, with random weights, rows and routing, and a check of what comes out.
// Failures end the program.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/tensor/buffer.h"
#include "moe/experts/expert_engine.h"
#include "moe/gating/routing.h"
#include "moe/weights/layer_spec.h"
#include "moe/weights/weight_source.h"

namespace switchyard {

struct BenchShape {
  std::string key, name;
  LayerSpec spec;
  std::vector<int64_t> rows;  // per step
};

// Mixtral 8x7B, Qwen3-30B-A3B, DeepSeek-V3 and Tutel's helloworld.
const std::vector<BenchShape>& BenchShapes();

HostMatrix RandomBf16(int64_t num_rows, int64_t num_cols, double scale, uint64_t key);

// k of E experts with weights that sum to 1, as random logits would give. The first rows of equal seeds are equal,
// however many follow.
Routing UniformRouting(int64_t num_rows, int top_k, int num_experts, uint32_t seed);

// A layer's weights on the host: experts take turns with two sets of them.
class BenchWeights {
 public:
  explicit BenchWeights(const LayerSpec& spec);

  ExpertWeights Expert(int expert_idx) const;

  // Loads expert experts[s] into every slot s of layer 0, with as many threads as the engine allows.
  void LoadInto(ExpertEngine* engine, const std::vector<int>& experts) const;

  // Output rows [T, D] of the float64 reference, for a few rows and their routing.
  std::vector<double> Reference(ConstMatrixView rows, Routing routing) const;

 private:
  struct Set {
    HostMatrix up, gate, down, up_bias, gate_bias, down_bias;
  };

  const LayerSpec spec_;
  std::vector<Set> sets_;
};

// ‖output − expected‖ / ‖expected‖ of the first rows, as many as there are in both. Ends the program when that is more
// than roundings explain; `what` says where.
double CheckedError(ConstMatrixView output, const std::vector<double>& expected, const std::string& what);

}  // namespace switchyard
