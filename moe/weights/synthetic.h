// Weights made up on the fly, for load tests and benchmarks of any size without a checkpoint on disk:
//
//   synthetic:dim=2048,hidden=2048,experts=2,topk=2,act=relu,glu=0,bias=1,layers=1,dtype=fp32,seed=0
//
// Every key may be left out; the values above are the defaults, Tutel's helloworld. (topk defaults to at most
// `experts`, and bias to 0 when glu=1, because gated experts have no biases.) As in Tutel, weights of more than one
// choice are renormalised. Layers are named "0", "1", ….
//
// A matrix's elements are uniform in ±sqrt(3 / fan_in), which keeps activations at unit scale, and each is a function
// of (seed, layer, expert, tensor, position) alone: every process sees the same weights whichever experts it reads, in
// any order. Types other than fp32 hold the same values, rounded.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "moe/weights/weight_source.h"

namespace switchyard {

inline constexpr std::string_view kSyntheticPrefix = "synthetic:";

struct SyntheticOptions {
  int64_t hidden_dim = 2048;  // dim
  int64_t expert_dim = 2048;  // hidden
  int num_experts = 2;        // experts
  int top_k = 2;              // topk
  Activation activation = Activation::kRelu;
  bool gated = false;  // glu
  bool biased = true;  // bias
  int num_layers = 1;  // layers
  DType dtype = DType::kF32;
  uint64_t seed = 0;

  // `text` follows "synthetic:" in a location. InvalidArgument names the key, what was found and what was expected.
  static absl::StatusOr<SyntheticOptions> Parse(std::string_view text);
  // Every key with its value, in the order above: equal for equal weights.
  std::string ToString() const;
};

std::unique_ptr<WeightSource> MakeSyntheticSource(const SyntheticOptions& options);

}  // namespace switchyard
