// Experts of your own: a C++ class that computes what a checkpoint's experts compute, chosen by its name
// (CpuEngineOptions::custom_expert), for models whose formula ExpertSpec cannot say.
//
// The engine keeps all that surrounds an expert: which rows are its, the routing weights (of the input where
// ExpertSpec::weighs_input says so, of the output otherwise), sums over experts and ranks. A custom expert sees rows
// and returns rows. It replaces every expert of every layer, shared ones too.
//
// Write a class derived from HostExpert and a factory that makes one from an expert's tensors, and register the
// factory:
//
//   absl::StatusOr<std::unique_ptr<HostExpert>> MakeMine(const HostExpertContext&, const LayerSpec&,
//                                                        const ExpertWeights&);
//   const absl::Status registered = RegisterCustomExpert("mine", MakeMine);
//
// in a file of a library with alwayslink = 1 that the worker links, or call RegisterCustomExpert in its main.
// moe/experts/cpu/squared_relu_expert.cc is a whole one.
//
// Lifetime. Tensors may be used until the factory returns and not afterwards: what the expert needs it copies or packs.
// Experts end before their engine; HostExpertContext::linear outlives them.
//
// Thread-safety. An engine calls one thing at a time: a factory, or Run of one expert. Several engines of a process may
// call a factory, and Run of their own experts, at once; so a factory must be thread-safe, and experts that share state
// beyond an engine's guard it. RegisterCustomExpert and FindCustomExpert are thread-safe.
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

  // Writes every element of y [N, D], of SumDType(compute type), = expert(x), not weighted. x [N, D] is of the compute
  // type and does not overlap y; N >= 1 is anything. A row's result must not depend on the other rows, beyond rounding,
  // and NaN in a row must stay in it. An error fails the step for all of its requests.
  virtual absl::Status Run(ConstMatrixView x, MatrixView y) = 0;

  // Bytes held for weights, packing included.
  virtual int64_t weight_bytes() const = 0;

  // Does ahead whatever the first Runs would do once (compiling code). Servers call it after loading.
  virtual absl::Status Prepare() { return absl::OkStatus(); }
};

// What an engine offers to the experts it holds.
struct HostExpertContext {
  DType compute_dtype = DType::kF32;  // fp64, fp32 or bf16
  LinearContext* linear = nullptr;    // for PackedLinear; its num_threads() are the threads that Run may use
};

// Makes one expert. `weights` has the tensors that `layer.expert` promises; errors name the tensor, and the engine puts
// layer and slot before them.
using HostExpertFactory = std::function<absl::StatusOr<std::unique_ptr<HostExpert>>(
    const HostExpertContext& context, const LayerSpec& layer, const ExpertWeights& weights)>;

// INVALID_ARGUMENT for an empty name or factory, ALREADY_EXISTS for a name that is taken.
absl::Status RegisterCustomExpert(const std::string& name, HostExpertFactory factory);

// NOT_FOUND lists the names that there are.
absl::StatusOr<HostExpertFactory> FindCustomExpert(const std::string& name);

}  // namespace switchyard
