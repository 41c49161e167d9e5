// The layers that GPU benchmarks measure, with random weights, rows and routing, and a check of the output. Failures
// end the program.
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

// k of E experts per row with weights that sum to 1, like the routing of random logits. Routings of the same seed begin
// with the same rows, whatever their number of rows.
Routing UniformRouting(int64_t num_rows, int top_k, int num_experts, uint32_t seed);

// A layer's weights on the host. The experts share two sets of weights in rotation.
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

// ‖output − expected‖ / ‖expected‖ over the first rows, as many as both have. Ends the program when the error is larger
// than rounding explains (1e-2); `what` names the place in the message.
double CheckedError(ConstMatrixView output, const std::vector<double>& expected, const std::string& what);

}  // namespace switchyard
