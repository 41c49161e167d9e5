// Layers, steps and comparisons for tests of the CUDA engine, all through the ExpertEngine interface.
//
// The reference is slow, so only a sample of the rows of large steps is compared. To check that the engine writes all
// other elements too, its output memory is filled with NaN beforehand.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/tensor/buffer.h"
#include "moe/experts/cuda/cuda_engine.h"
#include "moe/gating/routing.h"
#include "moe/plan/chunked_plan.h"
#include "moe/plan/step_plan.h"
#include "moe/weights/layer_spec.h"
#include "moe/weights/weight_source.h"

namespace switchyard {

// Uniform with unit variance times `scale`, rounded to the type, so that the reference sees what the engine sees.
HostMatrix RandomMatrix(DType dtype, int64_t num_rows, int64_t num_cols, double scale, uint64_t key);
HostMatrix RandomRows(DType dtype, int64_t num_rows, int64_t num_cols, uint64_t key);
// A matrix whose elements are all NaN.
HostMatrix NanMatrix(DType dtype, int64_t num_rows, int64_t num_cols);
std::string Bytes(const HostMatrix& matrix);

struct StoredAs {
  DType dtype = DType::kBF16;
  bool transposed = false;
};

// A layer with random weights. Its experts share `num_distinct` sets of weights in rotation. The default of 7 is
// coprime to the usual numbers of experts, so that a wrong slot shows.
struct TestLayer {
  TestLayer(const LayerSpec& layer_spec, StoredAs stored, uint64_t seed, int num_distinct = 7);

  LayerSpec spec;
  std::vector<ExpertWeights> experts;  // views of `owned`
  std::vector<HostMatrix> owned;

 private:
  ExpertWeights MakeExpert(StoredAs stored, uint64_t key);
  WeightView AddWeight(StoredAs stored, int64_t num_out, int64_t num_in, uint64_t key);
  ConstMatrixView Add(HostMatrix matrix);
};

LayerSpec TestSpec(int64_t dim, int64_t width, int num_experts, int top_k, ExpertSpec expert = {});

enum class Skew : uint8_t { kUniform, kZipf, kOneExpert, kSomeEmpty };

// k distinct experts per row, with weights that need not sum to 1. With kOneExpert all rows go to one expert, and k
// is 1.
Routing SkewedRouting(int64_t num_rows, int top_k, int num_experts, Skew skew, uint32_t seed);

// `routed` with the layer's shared experts as each row's last choices.
Routing WithShared(const LayerSpec& spec, const Routing& routed);

// Spreads the routed experts evenly over the ranks and puts the shared ones on every rank.
Placement PlacementOf(const LayerSpec& spec, int num_ranks);

// An engine with the experts that `rank` of `num_ranks` holds of every layer.
std::unique_ptr<ExpertEngine> LoadedEngine(std::shared_ptr<CudaDevice> device, const CudaEngineOptions& options,
                                           const std::vector<const TestLayer*>& layers, int64_t max_rows, int rank = 0,
                                           int num_ranks = 1);

// How a single rank computes a step: the experts read home rows and write output rows in place, or the step goes
// through all phases. EnqueueStep always takes all phases when some row is not sent, because only that is right then.
enum class Way : uint8_t { kInPlace, kAllPhases };

// Enqueues a step of a single rank. Destroys the plan before it returns, because engines must have copied it by then.
absl::Status EnqueueStep(ExpertEngine& engine, int lane, LayerId layer, const LayerSpec& spec, const Routing& routing,
                         ConstMatrixView rows, MatrixView output, Way way);

// Runs a step of a single rank on lane 0. A failure fails the test.
HostMatrix RunStep(ExpertEngine& engine, const TestLayer& layer, const Routing& routing, ConstMatrixView rows,
                   Way way = Way::kInPlace, LayerId id = {});

// The tolerance of ‖got − expected‖ / ‖expected‖.
double NormTolerance(DType compute);

// Fails the test unless `got` and `expected` agree in norm within `tolerance` and every single element within ten times
// that.
void ExpectClose(const std::vector<double>& got, const std::vector<double>& expected, double tolerance);

// Number of NaN elements. Correct outputs of finite rows have none.
int64_t CountNans(ConstMatrixView matrix);

inline constexpr int64_t kAllRows = std::numeric_limits<int64_t>::max();

// Fails the test unless the output has no NaN and `sample_size` of its rows agree with the reference.
void ExpectMatchesReference(const HostMatrix& output, const TestLayer& layer, ConstMatrixView rows,
                            const Routing& routing, int64_t sample_size, double tolerance);

// Runs a step of random rows and compares it with the reference.
void RunAndCompare(ExpertEngine& engine, const TestLayer& layer, const Routing& routing, Way way = Way::kInPlace,
                   int64_t sample_size = kAllRows, LayerId id = {});

// A group of ranks on one GPU, each with a CudaDevice of its own. Runs each phase on all ranks one after another; the
// exchanges are copies through host memory.
class GroupOnOneGpu {
 public:
  // `layer` must outlive it.
  GroupOnOneGpu(const CudaEngineOptions& options, const TestLayer& layer, int num_ranks, int64_t max_rows);

  // Runs a step in `num_chunks` chunks.
  HostMatrix Run(ConstMatrixView rows, const Routing& routing, int num_chunks = 1);

 private:
  struct Buffers {
    MatrixView send, received, partial, returned;
  };

  int num_ranks() const { return static_cast<int>(engines_.size()); }

  // Runs `phase` on every rank and returns when the GPU has finished all of them.
  absl::Status ForEachRank(const std::function<absl::Status(int)>& phase);
  absl::Status Dispatch(int rank, ConstMatrixView home_rows, Buffers* buffers);
  absl::Status Finish(int rank, ConstMatrixView returned, MatrixView output);
  absl::Status RunChunk(int rank, int chunk, const Buffers& buffers);
  // Copies a chunk's rows from every source's send-side buffer to every destination's receive-side buffer, or back.
  void Exchange(const std::vector<Buffers>& buffers, int chunk, bool back);
  void CopyRows(MatrixView at_source, int source, MatrixView at_destination, int destination, int chunk, bool back);

  const TestLayer& layer_;
  const Placement placement_;
  std::vector<std::unique_ptr<ExpertEngine>> engines_;
  StepPlan plan_;
  std::vector<ChunkedPlan> chunks_;  // by rank: plan_ in chunks
};

}  // namespace switchyard
