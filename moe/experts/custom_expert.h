// Custom experts: a C++ class that computes a checkpoint's experts, for models whose formula ExpertSpec cannot express.
// It is chosen by name (CpuEngineOptions::custom_expert).
//
// The engine still does everything around an expert: it selects the expert's rows, applies the routing weights (to the
// input where ExpertSpec::weighs_input is set, to the output otherwise) and sums over experts and ranks. A custom
// expert gets rows and returns rows. It replaces every expert of every layer, shared ones too.
//
// To add one, write a class derived from HostExpert and a factory that makes one from an expert's tensors, and register
// the factory:
//
//   absl::StatusOr<std::unique_ptr<HostExpert>> MakeMine(const HostExpertContext&, const LayerSpec&,
//                                                        const ExpertWeights&);
//   const absl::Status registered = RegisterCustomExpert("mine", MakeMine);
//
// in a file of a library with alwayslink = 1 that the worker links, or call RegisterCustomExpert in its main.
// moe/experts/cpu/squared_relu_expert.cc is a complete example.
//
// Lifetime. The tensors are valid only until the factory returns, so the expert copies or packs the ones that it needs.
// Experts are destroyed before their engine; HostExpertContext::linear outlives them.
//
// Thread-safety. One engine makes one call at a time: to a factory, or to Run of one expert. Several engines of a
// process may call a factory, and Run of their own experts, at once. A factory must therefore be thread-safe, and
// experts must guard state that they share with other engines' experts. RegisterCustomExpert and FindCustomExpert are
// thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "base/tensor/tensor.h"
#include "moe/linear/linear_context.h"
#include "moe/weights/layer_spec.h"
#include "moe/weights/weight_source.h"

namespace switchyard {

// Type of sums and of an expert's output: fp64 when computing in fp64, fp32 otherwise.
inline DType SumDType(DType compute) { return compute == DType::kF64 ? DType::kF64 : DType::kF32; }

class HostExpert {
 public:
  virtual ~HostExpert() = default;

  // Writes y = expert(x), unweighted: every element of y [N, D], whose type is SumDType(compute type). x [N, D] is of
  // the compute type and does not overlap y; N is any number from 1. Except for rounding, a row's result must not
  // depend on the other rows, and NaN in a row must stay in that row. An error fails the step for all of its requests.
  virtual absl::Status Run(ConstMatrixView x, MatrixView y) = 0;

  // Bytes held for weights, packing included.
  virtual int64_t weight_bytes() const = 0;

  // Does one-time work of the first Runs ahead of them (compiling code). Servers call it after loading.
  virtual absl::Status Prepare() { return absl::OkStatus(); }
};

// Provided by an engine to the experts that it holds.
struct HostExpertContext {
  DType compute_dtype = DType::kF32;  // fp64, fp32 or bf16
  LinearContext* linear = nullptr;    // for PackedLinear; Run may use linear->num_threads() threads
};

// Makes one expert. `weights` has the tensors that `layer.expert` promises. Errors name the tensor; the engine prefixes
// them with layer and slot.
using HostExpertFactory = std::function<absl::StatusOr<std::unique_ptr<HostExpert>>(
    const HostExpertContext& context, const LayerSpec& layer, const ExpertWeights& weights)>;

// INVALID_ARGUMENT for an empty name or factory, ALREADY_EXISTS for a name that is taken.
absl::Status RegisterCustomExpert(const std::string& name, const HostExpertFactory& factory);

// NOT_FOUND lists the registered names.
absl::StatusOr<HostExpertFactory> FindCustomExpert(const std::string& name);

}  // namespace switchyard
