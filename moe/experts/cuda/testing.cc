#include "moe/experts/cuda/testing.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <thread>
#include <utility>

#include "moe/experts/reference.h"
#include "moe/gpu/stream.h"
#include "moe/weights/synthetic_values.h"

namespace switchyard {
namespace {

using Scratch = ExpertEngine::Scratch;

// Relative probability of each expert to be chosen by a row.
std::vector<double> Odds(Skew skew, int num_experts) {
  std::vector<double> odds(num_experts, 1.0);
  for (int e = 0; e < num_experts; ++e) {
    if (skew == Skew::kZipf) odds[e] = std::pow(e + 1.0, -1.5);
    if (skew == Skew::kSomeEmpty && e % 3 == 1) odds[e] = 0.0;
  }
  return odds;
}

// Fills the matrix with NaN (0xff bytes, NaN in every type) before any work enqueued later writes there.
void FillWithNan(ExpertEngine& engine, MatrixView matrix) {
  if (matrix.size_bytes() == 0) return;
  cudaPointerAttributes attributes{};
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, matrix.data), cudaSuccess);
  if (attributes.type == cudaMemoryTypeDevice) {
    ASSERT_EQ(cudaMemsetAsync(matrix.data, 0xff, matrix.size_bytes(), ToCudaStream(engine.stream())), cudaSuccess);
  } else {
    std::memset(matrix.data, 0xff, matrix.size_bytes());
  }
}

absl::StatusOr<MatrixView> ScratchRows(ExpertEngine& engine, Scratch purpose, int64_t num_rows, int64_t num_cols) {
  MatrixView rows{nullptr, engine.compute_dtype(), num_rows, num_cols};
  SY_ASSIGN_OR_RETURN(rows.data, engine.ScratchBytes(purpose, rows.size_bytes()));
  FillWithNan(engine, rows);
  return rows;
}

absl::Status Compute(ExpertEngine& engine, LayerId layer, const RankPlanView& plan, ConstMatrixView home,
                     MatrixView output, Way way) {
  if (way == Way::kInPlace) return engine.RunExperts(layer, plan, home, output);
  const int64_t num_rows = plan.num_send_rows(), num_cols = home.num_cols;
  SY_ASSIGN_OR_RETURN(const MatrixView sent, ScratchRows(engine, Scratch::kSend, num_rows, num_cols));
  SY_RETURN_IF_ERROR(engine.GatherSendRows(plan, home, sent));
  SY_ASSIGN_OR_RETURN(const MatrixView partial, ScratchRows(engine, Scratch::kPartial, num_rows, num_cols));
  SY_RETURN_IF_ERROR(engine.RunExperts(layer, plan, sent, partial));
  return engine.Combine(plan, partial, output);
}

// Row indices to compare: all rows, or `count` rows including the first, the last and those at the edges of tiles.
std::vector<int64_t> SampleRows(int64_t num_rows, int64_t count) {
  std::set<int64_t> sample;
  for (const int64_t edge : {int64_t{0}, int64_t{63}, int64_t{64}, int64_t{127}, int64_t{128}, num_rows - 1}) {
    if (edge >= 0 && edge < num_rows) sample.insert(edge);
  }
  std::mt19937_64 random(num_rows);
  while (num_rows > count && static_cast<int64_t>(sample.size()) < count) sample.insert(random() % num_rows);
  for (int64_t row_idx = 0; num_rows <= count && row_idx < num_rows; ++row_idx) sample.insert(row_idx);
  return {sample.begin(), sample.end()};
}

// The reference output of the rows in `sample`. Converts only experts that these rows choose, to save time.
std::vector<double> ReferenceOf(const TestLayer& layer, ConstMatrixView rows, const Routing& routing,
                                std::span<const int64_t> sample) {
  HostMatrix chosen_rows = HostMatrix::Allocate(rows.dtype, static_cast<int64_t>(sample.size()), rows.num_cols);
  Routing chosen;
  chosen.Resize(static_cast<int64_t>(sample.size()), routing.top_k);
  std::map<int, int> index_of;
  std::vector<ExpertWeights> experts;
  for (size_t i = 0; i < sample.size(); ++i) {
    std::memcpy(chosen_rows.view().row(i), rows.row(sample[i]), rows.row_bytes());
    for (int j = 0; j < routing.top_k; ++j) {
      const int expert = routing.expert_idx[sample[i] * routing.top_k + j];
      chosen.weight[i * routing.top_k + j] = routing.weight[sample[i] * routing.top_k + j];
      if (expert >= 0 && index_of.emplace(expert, experts.size()).second) experts.push_back(layer.experts[expert]);
      chosen.expert_idx[i * routing.top_k + j] = expert < 0 ? -1 : index_of[expert];
    }
  }
  return ReferenceExperts(layer.spec, experts, chosen_rows.view(), chosen);
}

// Like ReferenceOf, on all cores.
std::vector<double> Reference(const TestLayer& layer, ConstMatrixView rows, const Routing& routing,
                              const std::vector<int64_t>& sample) {
  const size_t num_cores = std::max(1u, std::thread::hardware_concurrency());
  const size_t rows_per_task = (sample.size() + num_cores - 1) / num_cores;
  const size_t num_tasks = sample.empty() ? 0 : (sample.size() + rows_per_task - 1) / rows_per_task;
  std::vector<double> expected(sample.size() * rows.num_cols);
  std::atomic<size_t> next_task = 0;
  const auto work = [&] {
    for (size_t task = next_task++; task < num_tasks; task = next_task++) {
      const size_t begin = task * rows_per_task, count = std::min(rows_per_task, sample.size() - begin);
      const std::vector<double> part = ReferenceOf(layer, rows, routing, std::span(sample).subspan(begin, count));
      std::copy(part.begin(), part.end(), expected.begin() + static_cast<int64_t>(begin) * rows.num_cols);
    }
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < num_tasks; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  return expected;
}

}  // namespace

HostMatrix RandomMatrix(DType dtype, int64_t num_rows, int64_t num_cols, double scale, uint64_t key) {
  HostMatrix matrix = HostMatrix::Allocate(dtype, num_rows, num_cols);
  FillUniform(MixBits(key), static_cast<float>(scale * std::sqrt(3.0)), matrix.view());
  return matrix;
}

HostMatrix RandomRows(DType dtype, int64_t num_rows, int64_t num_cols, uint64_t key) {
  return RandomMatrix(dtype, num_rows, num_cols, 1.0, key ^ 0x5eed0000);
}

HostMatrix NanMatrix(DType dtype, int64_t num_rows, int64_t num_cols) {
  HostMatrix matrix = HostMatrix::Allocate(dtype, num_rows, num_cols);
  std::memset(matrix.buffer.data(), 0xff, matrix.view().size_bytes());
  return matrix;
}

std::string Bytes(const HostMatrix& matrix) {
  return {reinterpret_cast<const char*>(matrix.buffer.data()), matrix.view().size_bytes()};
}

TestLayer::TestLayer(const LayerSpec& layer_spec, StoredAs stored, uint64_t seed, int num_distinct) : spec(layer_spec) {
  const int num_sets = std::min(num_distinct, spec.num_stored_experts());
  std::vector<ExpertWeights> sets;
  for (int set = 0; set < num_sets; ++set) sets.push_back(MakeExpert(stored, seed * 1000 + set));
  for (int e = 0; e < spec.num_stored_experts(); ++e) experts.push_back(sets[e % num_sets]);
}

ExpertWeights TestLayer::MakeExpert(StoredAs stored, uint64_t key) {
  const int64_t dim = spec.hidden_dim, width = spec.expert_dim;
  ExpertWeights expert{.up = AddWeight(stored, width, dim, key * 8)};
  if (spec.expert.gated) expert.gate = AddWeight(stored, width, dim, key * 8 + 1);
  expert.down = AddWeight(stored, dim, width, key * 8 + 2);
  if (spec.expert.biased) {
    expert.up_bias = Add(RandomMatrix(stored.dtype, 1, width, 0.5, key * 8 + 3));
    if (spec.expert.gated) expert.gate_bias = Add(RandomMatrix(stored.dtype, 1, width, 0.5, key * 8 + 5));
    expert.down_bias = Add(RandomMatrix(stored.dtype, 1, dim, 0.5, key * 8 + 4));
  }
  return expert;
}

WeightView TestLayer::AddWeight(StoredAs stored, int64_t num_out, int64_t num_in, uint64_t key) {
  const int64_t num_rows = stored.transposed ? num_in : num_out, num_cols = stored.transposed ? num_out : num_in;
  const double scale = 1.0 / std::sqrt(static_cast<double>(num_in));
  return {Add(RandomMatrix(stored.dtype, num_rows, num_cols, scale, key)), stored.transposed};
}

ConstMatrixView TestLayer::Add(HostMatrix matrix) {
  owned.push_back(std::move(matrix));
  return std::as_const(owned.back()).view();
}

LayerSpec TestSpec(int64_t dim, int64_t width, int num_experts, int top_k, ExpertSpec expert) {
  LayerSpec spec{.name = "3", .hidden_dim = dim, .expert_dim = width, .num_experts = num_experts, .expert = expert};
  spec.gate.top_k = top_k;
  return spec;
}

Routing SkewedRouting(int64_t num_rows, int top_k, int num_experts, Skew skew, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(0.01, 1.0);
  const std::vector<double> odds = Odds(skew, num_experts);
  Routing routing;
  routing.Resize(num_rows, skew == Skew::kOneExpert ? 1 : top_k);
  std::vector<std::pair<double, int>> keys(num_experts);
  for (int64_t row_idx = 0; row_idx < num_rows; ++row_idx) {
    // The k largest of u^(1/odds), u uniform, are a weighted sample without replacement. Here their logarithms.
    for (int e = 0; e < num_experts; ++e) {
      keys[e] = {odds[e] > 0 ? std::log(uniform(random)) / odds[e] : -std::numeric_limits<double>::infinity(), e};
    }
    std::partial_sort(keys.begin(), keys.begin() + routing.top_k, keys.end(), std::greater<>());
    for (int j = 0; j < routing.top_k; ++j) {
      const size_t choice = row_idx * routing.top_k + j;
      routing.expert_idx[choice] = skew == Skew::kOneExpert ? num_experts / 2 : keys[j].second;
      routing.weight[choice] = static_cast<float>(uniform(random));
    }
  }
  return routing;
}

Routing WithShared(const LayerSpec& spec, const Routing& routed) {
  Routing routing;
  routing.Resize(routed.num_rows, routed.top_k + spec.num_shared);
  for (int64_t row_idx = 0; row_idx < routed.num_rows; ++row_idx) {
    for (int j = 0; j < routing.top_k; ++j) {
      const size_t choice = row_idx * routing.top_k + j, routed_choice = row_idx * routed.top_k + j;
      const bool is_shared = j >= routed.top_k;
      routing.expert_idx[choice] = is_shared ? spec.num_experts + j - routed.top_k : routed.expert_idx[routed_choice];
      routing.weight[choice] =
          is_shared ? 1.0f - 0.375f * static_cast<float>(row_idx % 2) : routed.weight[routed_choice];
    }
  }
  return routing;
}

Placement PlacementOf(const LayerSpec& spec, int num_ranks) {
  return Placement::Even(spec.num_experts, num_ranks, spec.num_shared);
}

std::unique_ptr<ExpertEngine> LoadedEngine(std::shared_ptr<CudaDevice> device, const CudaEngineOptions& options,
                                           const std::vector<const TestLayer*>& layers, int64_t max_rows, int rank,
                                           int num_ranks) {
  std::unique_ptr<ExpertEngine> engine = CreateCudaEngine(std::move(device), options).value();
  const auto experts_of = [&](const TestLayer& layer) { return PlacementOf(layer.spec, num_ranks).experts_of(rank); };
  for (const TestLayer* layer : layers) {
    EXPECT_EQ(engine->AddLayer(layer->spec, static_cast<int>(experts_of(*layer).size())), absl::OkStatus());
  }
  EXPECT_EQ(engine->Reserve(max_rows), absl::OkStatus());
  for (size_t i = 0; i < layers.size(); ++i) {
    const std::vector<int> experts = experts_of(*layers[i]);
    for (size_t slot = 0; slot < experts.size(); ++slot) {
      EXPECT_EQ(engine->LoadExpert(LayerId{static_cast<int32_t>(i)}, static_cast<int>(slot),
                                   layers[i]->experts[experts[slot]]),
                absl::OkStatus());
    }
  }
  return engine;
}

absl::Status EnqueueStep(ExpertEngine& engine, int lane, LayerId layer, const LayerSpec& spec, const Routing& routing,
                         ConstMatrixView rows, MatrixView output, Way way) {
  const StepPlan plan = PlanStep(routing, PlacementOf(spec, 1), {0, routing.num_rows});
  const RankPlanView view = plan.ranks[0].view();
  if (view.num_send_rows() != view.num_home_rows) way = Way::kAllPhases;
  SY_ASSIGN_OR_RETURN(const ConstMatrixView home, engine.BeginStep(lane, rows));
  SY_ASSIGN_OR_RETURN(const MatrixView step_output, engine.StepOutput(lane, output));
  FillWithNan(engine, step_output);
  SY_RETURN_IF_ERROR(Compute(engine, layer, view, home, step_output, way));
  return engine.EndStep(lane, step_output, output);
}

HostMatrix RunStep(ExpertEngine& engine, const TestLayer& layer, const Routing& routing, ConstMatrixView rows, Way way,
                   LayerId id) {
  HostMatrix output = NanMatrix(rows.dtype, rows.num_rows, rows.num_cols);
  EXPECT_EQ(EnqueueStep(engine, 0, id, layer.spec, routing, rows, output.view(), way), absl::OkStatus());
  EXPECT_EQ(engine.WaitStep(0), absl::OkStatus());
  return output;
}

double NormTolerance(DType compute) {
  switch (compute) {
    case DType::kF64:
      return 1e-12;
    case DType::kF32:
      return 1e-5;
    case DType::kF16:
      return 2e-3;
    case DType::kBF16:
      return 1e-2;
  }
  return 0;
}

void ExpectClose(const std::vector<double>& got, const std::vector<double>& expected, double tolerance) {
  ASSERT_EQ(got.size(), expected.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += (got[i] - expected[i]) * (got[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  EXPECT_LE(std::sqrt(difference), tolerance * std::sqrt(norm));
  const double rms = std::sqrt(norm / static_cast<double>(std::max<size_t>(1, got.size())));
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_NEAR(got[i], expected[i], 10 * tolerance * (std::abs(expected[i]) + rms)) << "element " << i;
  }
}

int64_t CountNans(ConstMatrixView matrix) {
  constexpr int64_t kRowsAtOnce = 64;
  int64_t count = 0;
  for (int64_t begin = 0; begin < matrix.num_rows; begin += kRowsAtOnce) {
    const std::vector<double> values = ToDoubles(matrix.Rows(begin, std::min(kRowsAtOnce, matrix.num_rows - begin)));
    count += std::count_if(values.begin(), values.end(), [](double value) { return std::isnan(value); });
  }
  return count;
}

void ExpectMatchesReference(const HostMatrix& output, const TestLayer& layer, ConstMatrixView rows,
                            const Routing& routing, int64_t sample_size, double tolerance) {
  ASSERT_EQ(CountNans(output.view()), 0);
  const std::vector<int64_t> sample = SampleRows(rows.num_rows, sample_size);
  std::vector<double> got;
  for (const int64_t row_idx : sample) {
    const std::vector<double> row = ToDoubles(output.view().Rows(row_idx, 1));
    got.insert(got.end(), row.begin(), row.end());
  }
  ExpectClose(got, Reference(layer, rows, routing, sample), tolerance);
}

void RunAndCompare(ExpertEngine& engine, const TestLayer& layer, const Routing& routing, Way way, int64_t sample_size,
                   LayerId id) {
  const DType dtype = engine.compute_dtype();
  const HostMatrix rows = RandomRows(dtype, routing.num_rows, layer.spec.hidden_dim, routing.num_rows);
  const HostMatrix output = RunStep(engine, layer, routing, rows.view(), way, id);
  ExpectMatchesReference(output, layer, rows.view(), routing, sample_size, NormTolerance(dtype));
}

GroupOnOneGpu::GroupOnOneGpu(const CudaEngineOptions& options, const TestLayer& layer, int num_ranks, int64_t max_rows)
    : layer_(layer), placement_(PlacementOf(layer.spec, num_ranks)) {
  for (int r = 0; r < num_ranks; ++r) {
    engines_.push_back(LoadedEngine(OpenCudaDevice({}).value(), options, {&layer_}, max_rows, r, num_ranks));
  }
}

HostMatrix GroupOnOneGpu::Run(ConstMatrixView rows, const Routing& routing, int num_chunks) {
  plan_ = PlanStep(routing, placement_, HomeOffsets(rows.num_rows, num_ranks()));
  chunks_.resize(num_ranks());
  for (int r = 0; r < num_ranks(); ++r) chunks_[r].Split(plan_.ranks[r].view(), num_chunks, r);
  const auto home = [&](auto view, int r) {
    return view.Rows(plan_.home_offsets[r], plan_.home_offsets[r + 1] - plan_.home_offsets[r]);
  };
  HostMatrix output = NanMatrix(rows.dtype, rows.num_rows, rows.num_cols);
  std::vector<Buffers> buffers(num_ranks());
  EXPECT_EQ(ForEachRank([&](int r) { return Dispatch(r, home(rows, r), &buffers[r]); }), absl::OkStatus());
  for (int chunk = 0; chunk < num_chunks; ++chunk) {
    Exchange(buffers, chunk, /*back=*/false);
    EXPECT_EQ(ForEachRank([&](int r) { return RunChunk(r, chunk, buffers[r]); }), absl::OkStatus());
    Exchange(buffers, chunk, /*back=*/true);
  }
  EXPECT_EQ(ForEachRank([&](int r) { return Finish(r, buffers[r].returned, home(output.view(), r)); }),
            absl::OkStatus());
  return output;
}

absl::Status GroupOnOneGpu::ForEachRank(const std::function<absl::Status(int)>& phase) {
  for (int r = 0; r < num_ranks(); ++r) SY_RETURN_IF_ERROR(phase(r));
  const cudaError_t error = cudaDeviceSynchronize();
  return error == cudaSuccess ? absl::OkStatus() : absl::InternalError(cudaGetErrorString(error));
}

absl::Status GroupOnOneGpu::Dispatch(int rank, ConstMatrixView home_rows, Buffers* buffers) {
  ExpertEngine& engine = *engines_[rank];
  const RankPlanView plan = plan_.ranks[rank].view();
  const int64_t num_send = plan.num_send_rows(), num_recv = plan.num_recv_rows();
  SY_ASSIGN_OR_RETURN(const ConstMatrixView home, engine.BeginStep(0, home_rows));
  SY_ASSIGN_OR_RETURN(buffers->send, ScratchRows(engine, Scratch::kSend, num_send, home_rows.num_cols));
  SY_ASSIGN_OR_RETURN(buffers->received, ScratchRows(engine, Scratch::kReceive, num_recv, home_rows.num_cols));
  SY_ASSIGN_OR_RETURN(buffers->partial, ScratchRows(engine, Scratch::kPartial, num_recv, home_rows.num_cols));
  SY_ASSIGN_OR_RETURN(buffers->returned, ScratchRows(engine, Scratch::kReturned, num_send, home_rows.num_cols));
  return engine.GatherSendRows(chunks_[rank].whole(), home, buffers->send);
}

absl::Status GroupOnOneGpu::RunChunk(int rank, int chunk, const Buffers& buffers) {
  const RankPlanView& plan = chunks_[rank].chunk(chunk);
  const int64_t begin = chunks_[rank].first_recv_row(chunk), count = plan.num_recv_rows();
  return engines_[rank]->RunExperts(LayerId{0}, plan, buffers.received.Rows(begin, count),
                                    buffers.partial.Rows(begin, count));
}

absl::Status GroupOnOneGpu::Finish(int rank, ConstMatrixView returned, MatrixView output) {
  ExpertEngine& engine = *engines_[rank];
  SY_ASSIGN_OR_RETURN(const MatrixView step_output, engine.StepOutput(0, output));
  FillWithNan(engine, step_output);
  SY_RETURN_IF_ERROR(engine.Combine(chunks_[rank].whole(), returned, step_output));
  SY_RETURN_IF_ERROR(engine.EndStep(0, step_output, output));
  return engine.WaitStep(0);
}

void GroupOnOneGpu::Exchange(const std::vector<Buffers>& buffers, int chunk, bool back) {
  for (int s = 0; s < num_ranks(); ++s) {
    for (int d = 0; d < num_ranks(); ++d) {
      const Buffers &source = buffers[s], &destination = buffers[d];
      CopyRows(back ? source.returned : source.send, s, back ? destination.partial : destination.received, d, chunk,
               back);
    }
  }
  // A copy from pageable memory may still be in progress when its call returns.
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

// Source s's rows for destination d lie at send_offsets[d] in the source's buffer and at recv_offsets[s] in the
// destination's. `back` reverses the direction.
void GroupOnOneGpu::CopyRows(MatrixView at_source, int source, MatrixView at_destination, int destination, int chunk,
                             bool back) {
  const RankPlanView &sent = chunks_[source].chunk(chunk), &received = chunks_[destination].chunk(chunk);
  const int64_t count = sent.send_offsets[destination + 1] - sent.send_offsets[destination];
  ASSERT_EQ(count, received.recv_offsets[source + 1] - received.recv_offsets[source]);
  if (count == 0) return;
  const MatrixView here = at_source.Rows(chunks_[source].first_send_row(chunk) + sent.send_offsets[destination], count);
  const MatrixView there =
      at_destination.Rows(chunks_[destination].first_recv_row(chunk) + received.recv_offsets[source], count);
  std::vector<std::byte> host(here.size_bytes());
  ASSERT_EQ(cudaMemcpy(host.data(), (back ? there : here).data, host.size(), cudaMemcpyDefault), cudaSuccess);
  ASSERT_EQ(cudaMemcpy((back ? here : there).data, host.data(), host.size(), cudaMemcpyDefault), cudaSuccess);
}

}  // namespace switchyard
