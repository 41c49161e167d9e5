#include "moe/experts/cpu/cpu_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "base/tensor/convert.h"
#include "moe/experts/reference.h"
#include "moe/plan/step_plan.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

HostMatrix FromDoubles(const std::vector<double>& values, DType dtype, int64_t num_rows, int64_t num_cols) {
  HostMatrix matrix = HostMatrix::Allocate(dtype, num_rows, num_cols);
  ConvertElements(DType::kF64, reinterpret_cast<const std::byte*>(values.data()), dtype, matrix.buffer.data(),
                  values.size());
  return matrix;
}

// Multiples of 1/64, exact in every type, so that the engine and the reference see the same numbers.
HostMatrix RandomMatrix(DType dtype, int64_t num_rows, int64_t num_cols, double scale, std::mt19937* random) {
  std::vector<double> values(num_rows * num_cols);
  for (double& value : values) value = scale * (static_cast<int>((*random)() % 129) - 64) / 64.0;
  return FromDoubles(values, dtype, num_rows, num_cols);
}

// A layer's experts with random weights, in memory that the views point into.
struct Weights {
  Weights(const LayerSpec& layer, DType dtype, bool transposed, uint32_t seed) {
    std::mt19937 random(seed);
    const auto add = [&](int64_t num_out, int64_t num_in) {
      owned.push_back(RandomMatrix(dtype, transposed ? num_in : num_out, transposed ? num_out : num_in, 0.25, &random));
      return WeightView{std::as_const(owned.back()).view(), transposed};
    };
    const auto add_bias = [&](int64_t num_cols) {
      owned.push_back(RandomMatrix(dtype, 1, num_cols, 1.0, &random));
      return std::as_const(owned.back()).view();
    };
    for (int e = 0; e < layer.num_stored_experts(); ++e) {
      ExpertWeights expert{.up = add(layer.expert_dim, layer.hidden_dim)};
      if (layer.expert.gated) expert.gate = add(layer.expert_dim, layer.hidden_dim);
      expert.down = add(layer.hidden_dim, layer.expert_dim);
      if (layer.expert.biased) {
        expert.up_bias = add_bias(layer.expert_dim);
        if (layer.expert.gated) expert.gate_bias = add_bias(layer.expert_dim);
        expert.down_bias = add_bias(layer.hidden_dim);
      }
      experts.push_back(expert);
    }
  }
  std::vector<HostMatrix> owned;
  std::vector<ExpertWeights> experts;
};

LayerSpec SmallLayer(ExpertSpec expert = {}) {
  return {.name = "3", .hidden_dim = 33, .expert_dim = 57, .num_experts = 6, .expert = expert};
}

enum class Skew { kUniform, kZipf, kOneExpert, kSomeEmpty };

// k distinct experts per row; weights need not sum to 1.
Routing RandomRouting(int64_t num_rows, int top_k, int num_experts, Skew skew, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<double> odds(num_experts, 1.0);
  for (int e = 0; e < num_experts; ++e) {
    if (skew == Skew::kZipf) odds[e] = std::pow(e + 1.0, -1.5);
    if (skew == Skew::kSomeEmpty && e % 2 == 1) odds[e] = 0.0;
    if (skew == Skew::kOneExpert && e != 2) odds[e] = 0.0;
  }
  if (skew == Skew::kOneExpert) top_k = 1;
  Routing routing;
  routing.Resize(num_rows, top_k);
  std::uniform_real_distribution<double> uniform(0.01, 1.0);
  for (int64_t row_idx = 0; row_idx < num_rows; ++row_idx) {
    std::vector<double> left = odds;
    for (int j = 0; j < top_k; ++j) {
      const int chosen = std::discrete_distribution<int>(left.begin(), left.end())(random);
      left[chosen] = 0.0;
      routing.expert_idx[row_idx * top_k + j] = chosen;
      routing.weight[row_idx * top_k + j] = static_cast<float>(uniform(random));
    }
  }
  return routing;
}

// `routed` with the layer's shared experts as last choices. Their weights are 1 in even rows and 0.625 in odd ones.
Routing RoutingWithShared(const LayerSpec& layer, const Routing& routed) {
  Routing routing;
  routing.Resize(routed.num_rows, routed.top_k + layer.num_shared);
  for (int64_t row_idx = 0; row_idx < routed.num_rows; ++row_idx) {
    for (int j = 0; j < routing.top_k; ++j) {
      const size_t choice = row_idx * routing.top_k + j, routed_choice = row_idx * routed.top_k + j;
      const bool is_shared = j >= routed.top_k;
      routing.expert_idx[choice] = is_shared ? layer.num_experts + j - routed.top_k : routed.expert_idx[routed_choice];
      routing.weight[choice] = is_shared ? 1.0f - 0.375f * (row_idx % 2) : routed.weight[routed_choice];
    }
  }
  return routing;
}

std::unique_ptr<ExpertEngine> NewEngine(DType compute) {
  return CreateCpuEngine({.compute_dtype = compute, .num_threads = 2}).value();
}

// An engine with the experts that `placement` gives to `rank`.
std::unique_ptr<ExpertEngine> LoadedEngine(DType compute, const LayerSpec& layer, const Weights& weights,
                                           const Placement& placement, int rank) {
  std::unique_ptr<ExpertEngine> engine = NewEngine(compute);
  const std::vector<int>& experts = placement.experts_of(rank);
  EXPECT_TRUE(engine->AddLayer(layer, experts.size()).ok());
  for (size_t slot = 0; slot < experts.size(); ++slot) {
    const absl::Status status = engine->LoadExpert(LayerId{0}, slot, weights.experts[experts[slot]]);
    EXPECT_TRUE(status.ok()) << status;
  }
  return engine;
}

MatrixView ScratchRows(ExpertEngine& engine, ExpertEngine::Scratch purpose, int64_t num_rows, int64_t num_cols) {
  MatrixView view{nullptr, engine.compute_dtype(), num_rows, num_cols};
  view.data = engine.ScratchBytes(purpose, view.size_bytes()).value();
  return view;
}

// Runs whole steps of a group in one process. The exchanges are copies between the ranks' scratch.
class GroupInProcess {
 public:
  GroupInProcess(DType compute, const LayerSpec& layer, const Weights& weights, int num_ranks)
      : layer_(layer), placement_(Placement::Even(layer.num_experts, num_ranks, layer.num_shared)) {
    for (int r = 0; r < num_ranks; ++r) engines_.push_back(LoadedEngine(compute, layer, weights, placement_, r));
  }

  HostMatrix Run(ConstMatrixView rows, const Routing& routing) {
    const int num_ranks = engines_.size();
    plan_ = PlanStep(routing, placement_, HomeOffsets(rows.num_rows, num_ranks));
    HostMatrix output = HostMatrix::Allocate(rows.dtype, rows.num_rows, rows.num_cols);
    // Elements that are never written stay NaN.
    std::fill_n(output.buffer.data(), output.view().size_bytes(), std::byte{0xff});
    ForEachRank([&](int r, const RankPlanView& plan) {
      return engines_[r]->GatherSendRows(plan, Home(rows, r), Buffer(r, kSend, plan.num_send_rows()));
    });
    Exchange(kSend, kReceive, /*back=*/false);
    ForEachRank([&](int r, const RankPlanView& plan) {
      const MatrixView partial = Buffer(r, kPartial, plan.num_recv_rows());
      return engines_[r]->RunExperts(LayerId{0}, plan, Buffer(r, kReceive, plan.num_recv_rows()), partial);
    });
    Exchange(kPartial, kReturned, /*back=*/true);
    ForEachRank([&](int r, const RankPlanView& plan) {
      return engines_[r]->Combine(plan, Buffer(r, kReturned, plan.num_send_rows()), Home(output.view(), r));
    });
    return output;
  }

  ExpertEngine& engine(int rank) { return *engines_[rank]; }

 private:
  using Scratch = ExpertEngine::Scratch;
  static constexpr Scratch kSend = Scratch::kSend, kReceive = Scratch::kReceive, kPartial = Scratch::kPartial,
                           kReturned = Scratch::kReturned;

  void ForEachRank(const std::function<absl::Status(int, const RankPlanView&)>& phase) {
    for (size_t r = 0; r < engines_.size(); ++r) {
      const absl::Status status = phase(r, plan_.ranks[r].view());
      ASSERT_TRUE(status.ok()) << status;
    }
  }

  template <typename View>
  View Home(View rows, int rank) const {
    return rows.Rows(plan_.home_offsets[rank], plan_.home_offsets[rank + 1] - plan_.home_offsets[rank]);
  }

  MatrixView Buffer(int rank, Scratch purpose, int64_t num_rows) {
    return ScratchRows(*engines_[rank], purpose, num_rows, layer_.hidden_dim);
  }

  // Source s's rows for destination d lie at send_offsets[d] in the source's buffer and at recv_offsets[s] in the
  // destination's. `back` reverses the direction.
  void Exchange(Scratch from, Scratch to, bool back) {
    const int num_ranks = engines_.size();
    for (int s = 0; s < num_ranks; ++s) {
      for (int d = 0; d < num_ranks; ++d) {
        const RankPlanView source = plan_.ranks[s].view(), destination = plan_.ranks[d].view();
        const int64_t count = source.send_offsets[d + 1] - source.send_offsets[d];
        ASSERT_EQ(count, destination.recv_offsets[s + 1] - destination.recv_offsets[s]);
        const MatrixView at_source =
            Buffer(s, back ? to : from, source.num_send_rows()).Rows(source.send_offsets[d], count);
        const MatrixView at_destination =
            Buffer(d, back ? from : to, destination.num_recv_rows()).Rows(destination.recv_offsets[s], count);
        const MatrixView& out = back ? at_source : at_destination;
        if (count > 0) std::memcpy(out.data, (back ? at_destination : at_source).data, out.size_bytes());
      }
    }
  }

  const LayerSpec layer_;
  const Placement placement_;
  std::vector<std::unique_ptr<ExpertEngine>> engines_;
  StepPlan plan_;
};

// |difference| <= rtol · (|expected| + the layer's largest output)
double Tolerance(DType compute) {
  if (compute == DType::kF64) return 1e-12;
  return compute == DType::kF32 ? 1e-5 : 1e-2;
}

void ExpectClose(const HostMatrix& output, const std::vector<double>& expected) {
  const std::vector<double> got = ToDoubles(output.view());
  ASSERT_EQ(got.size(), expected.size());
  double largest = 0.0;
  for (const double value : expected) largest = std::max(largest, std::abs(value));
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_NEAR(got[i], expected[i], Tolerance(output.dtype) * (std::abs(expected[i]) + largest))
        << "row " << i / output.num_cols << " column " << i % output.num_cols;
  }
}

void ExpectMatchesReference(GroupInProcess& group, const LayerSpec& layer, const Weights& weights, DType compute,
                            const Routing& routing) {
  std::mt19937 random(99);
  const HostMatrix rows = RandomMatrix(compute, routing.num_rows, layer.hidden_dim, 1.0, &random);
  const HostMatrix output = group.Run(rows.view(), routing);
  ExpectClose(output, ReferenceExperts(layer, weights.experts, rows.view(), routing));
}

class CpuEngineTest : public testing::TestWithParam<DType> {};

INSTANTIATE_TEST_SUITE_P(All, CpuEngineTest, testing::Values(DType::kF64, DType::kF32, DType::kBF16),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

// Compares few and many rows per expert with the reference, on one rank and on two.
void ExpectRightOnRanks(DType compute, const LayerSpec& layer) {
  const Weights weights(layer, compute, /*transposed=*/false, 5);
  for (const int num_ranks : {1, 2}) {
    GroupInProcess group(compute, layer, weights, num_ranks);
    for (const int64_t num_rows : {1, 20, 300}) {
      const Routing routed = RandomRouting(num_rows, 3, layer.num_experts, Skew::kUniform, 6);
      ExpectMatchesReference(group, layer, weights, compute, RoutingWithShared(layer, routed));
    }
  }
}

constexpr Activation kActivations[] = {Activation::kSilu, Activation::kGelu, Activation::kRelu, Activation::kGeluTanh,
                                       Activation::kQuickGelu};

TEST_P(CpuEngineTest, EveryKindOfExpertOnOneAndTwoRanks) {
  for (const Activation activation : kActivations) {
    for (const bool gated : {true, false}) {
      for (const bool biased : {true, false}) {
        SCOPED_TRACE(testing::Message() << ActivationName(activation) << " gated " << gated << " biased " << biased);
        ExpectRightOnRanks(GetParam(), SmallLayer({.activation = activation, .gated = gated, .biased = biased}));
      }
    }
  }
}

// Inputs and weights are chosen so that gate and up lie within ±6. The limits here bind for most values, a few or none.
TEST_P(CpuEngineTest, ClampedExperts) {
  for (const Activation activation : {Activation::kSilu, Activation::kQuickGelu}) {
    for (const double limit : {0.0, 0.25, 1.0, 7.0}) {
      for (const double up_offset : {0.0, 1.0}) {
        SCOPED_TRACE(testing::Message() << ActivationName(activation) << " limit " << limit << " + " << up_offset);
        ExpectRightOnRanks(
            GetParam(),
            SmallLayer({.activation = activation, .biased = limit != 1.0, .limit = limit, .up_offset = up_offset}));
      }
    }
  }
}

TEST_P(CpuEngineTest, WeightsOfTheInput) {
  for (const bool gated : {true, false}) {
    for (const double limit : {0.0, 0.5}) {
      if (!gated && limit != 0) continue;
      SCOPED_TRACE(testing::Message() << "gated " << gated << " limit " << limit);
      // With biases, weighing the input and weighing the output give different results for every activation.
      ExpectRightOnRanks(GetParam(),
                         SmallLayer({.gated = gated, .biased = true, .limit = limit, .weighs_input = true}));
    }
  }
}

TEST_P(CpuEngineTest, SharedExpertsComputeEveryRow) {
  for (const int num_shared : {1, 3}) {
    for (const bool weighs_input : {false, true}) {
      SCOPED_TRACE(testing::Message() << num_shared << " shared, weighs input " << weighs_input);
      LayerSpec layer = SmallLayer({.biased = true, .weighs_input = weighs_input});
      layer.num_shared = num_shared;
      ExpectRightOnRanks(GetParam(), layer);
      layer.num_experts = 4;
      const Weights weights(layer, GetParam(), /*transposed=*/false, 5);
      GroupInProcess group(GetParam(), layer, weights, 6);  // two of the six ranks hold only shared experts
      Routing routing = RoutingWithShared(layer, RandomRouting(31, 2, 4, Skew::kZipf, 6));
      for (int64_t row_idx = 0; row_idx < 31; row_idx += 3) routing.expert_idx[row_idx * routing.top_k] = -1;
      ExpectMatchesReference(group, layer, weights, GetParam(), routing);
    }
  }
}

// Like the transformers library: a weight times a bf16 row is rounded to bf16 before anything is computed with it.
TEST(CpuEngine, WeighedInputsAreRoundedToTheirType) {
  LayerSpec layer{.name = "0", .hidden_dim = 1, .expert_dim = 1, .num_experts = 1};
  layer.expert = {.activation = Activation::kRelu, .gated = false, .weighs_input = true};
  const HostMatrix three = FromDoubles({3}, DType::kBF16, 1, 1), one = FromDoubles({1}, DType::kBF16, 1, 1),
                   row = FromDoubles({1.0078125}, DType::kBF16, 1, 1);
  auto engine = NewEngine(DType::kBF16);
  ASSERT_TRUE(engine->AddLayer(layer, 1).ok());
  ASSERT_TRUE(engine->LoadExpert(LayerId{0}, 0, {.up = {three.view()}, .down = {one.view()}}).ok());
  const Routing routing{.num_rows = 1, .top_k = 1, .expert_idx = {0}, .weight = {0.77734375f}};
  const StepPlan plan = PlanStep(routing, Placement::Even(1, 1), {0, 1});
  HostMatrix output = HostMatrix::Allocate(DType::kBF16, 1, 1);
  ASSERT_TRUE(engine->RunExperts(LayerId{0}, plan.ranks[0].view(), row.view(), output.view()).ok());
  // 0.77734375 · 1.0078125 = 0.78341675 is rounded to 0.78515625. Three times that is 2.35546875, rounded to 2.359375.
  // Three times the unrounded product would be rounded to 2.34375.
  EXPECT_EQ(ToDoubles(output.view())[0], 2.359375);
}

TEST_P(CpuEngineTest, EverySkewAndNumberOfRows) {
  const LayerSpec layer = SmallLayer();
  const Weights weights(layer, GetParam(), /*transposed=*/false, 7);
  GroupInProcess one(GetParam(), layer, weights, 1), two(GetParam(), layer, weights, 2),
      many(GetParam(), layer, weights, 9);
  for (const Skew skew : {Skew::kUniform, Skew::kZipf, Skew::kOneExpert, Skew::kSomeEmpty}) {
    for (const int64_t num_rows : {0, 1, 2, 3, 17, 64, 129, 300}) {
      SCOPED_TRACE(testing::Message() << "skew " << static_cast<int>(skew) << ", " << num_rows << " rows");
      const Routing routing = RandomRouting(num_rows, 3, layer.num_experts, skew, 8 + num_rows);
      ExpectMatchesReference(one, layer, weights, GetParam(), routing);
      ExpectMatchesReference(two, layer, weights, GetParam(), routing);
      ExpectMatchesReference(many, layer, weights, GetParam(), routing);
    }
  }
}

TEST_P(CpuEngineTest, WeightsOfEveryStoredType) {
  const LayerSpec layer = SmallLayer({Activation::kSilu, true, true});
  const Routing routing = RandomRouting(11, 2, layer.num_experts, Skew::kUniform, 3);
  for (const DType stored : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16}) {
    for (const bool transposed : {false, true}) {
      SCOPED_TRACE(testing::Message() << DTypeName(stored) << (transposed ? " transposed" : ""));
      const Weights weights(layer, stored, transposed, 4);
      GroupInProcess group(GetParam(), layer, weights, 1);
      ExpectMatchesReference(group, layer, weights, GetParam(), routing);
    }
  }
}

TEST_P(CpuEngineTest, DroppedChoicesAddNothing) {
  const LayerSpec layer = SmallLayer();
  const Weights weights(layer, GetParam(), false, 7);
  Routing routing = RandomRouting(40, 2, layer.num_experts, Skew::kUniform, 1);
  for (int64_t row_idx = 0; row_idx < 40; row_idx += 3) routing.expert_idx[row_idx * 2] = -1;
  for (int64_t row_idx = 0; row_idx < 40; row_idx += 6) routing.expert_idx[row_idx * 2 + 1] = -1;  // no choice left
  for (const int num_ranks : {1, 2}) {
    GroupInProcess group(GetParam(), layer, weights, num_ranks);
    ExpectMatchesReference(group, layer, weights, GetParam(), routing);
  }
}

TEST_P(CpuEngineTest, ARowDoesNotDependOnItsBatchBeyondRounding) {
  const LayerSpec layer = SmallLayer();
  const Weights weights(layer, GetParam(), false, 7);
  GroupInProcess group(GetParam(), layer, weights, 1);
  std::mt19937 random(3);
  const HostMatrix rows = RandomMatrix(GetParam(), 200, layer.hidden_dim, 1.0, &random);
  const Routing routing = RandomRouting(200, 2, layer.num_experts, Skew::kZipf, 1);
  const HostMatrix together = group.Run(rows.view(), routing);
  for (const int64_t row_idx : {0, 55, 199}) {
    Routing alone{.num_rows = 1, .top_k = 2};
    alone.expert_idx.assign(&routing.expert_idx[row_idx * 2], &routing.expert_idx[row_idx * 2] + 2);
    alone.weight.assign(&routing.weight[row_idx * 2], &routing.weight[row_idx * 2] + 2);
    ExpectClose(group.Run(rows.view().Rows(row_idx, 1), alone), ToDoubles(together.view().Rows(row_idx, 1)));
  }
}

TEST_P(CpuEngineTest, NanStaysInItsRow) {
  std::vector<ExpertSpec> experts = {{.limit = 1, .up_offset = 1}, {.weighs_input = true}};
  for (const Activation activation : kActivations) {
    for (const bool gated : {true, false}) experts.push_back({.activation = activation, .gated = gated});
  }
  for (const ExpertSpec& expert : experts) {
    SCOPED_TRACE(testing::Message() << ActivationName(expert.activation) << " gated " << expert.gated);
    const LayerSpec layer = SmallLayer(expert);
    const Weights weights(layer, GetParam(), false, 7);
    GroupInProcess group(GetParam(), layer, weights, 2);
    std::vector<double> values(8 * layer.hidden_dim, 0.5);
    values[3 * layer.hidden_dim + 5] = std::numeric_limits<double>::quiet_NaN();
    const HostMatrix rows = FromDoubles(values, GetParam(), 8, layer.hidden_dim);
    const HostMatrix output = group.Run(rows.view(), RandomRouting(8, 2, layer.num_experts, Skew::kUniform, 1));
    const std::vector<double> got = ToDoubles(output.view());
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(std::isnan(got[i]), static_cast<int64_t>(i) / layer.hidden_dim == 3) << i / layer.hidden_dim;
    }
  }
}

TEST_P(CpuEngineTest, LayersAreIndependent) {
  const LayerSpec first = SmallLayer();
  LayerSpec second = SmallLayer({Activation::kGelu, false, true});
  second.expert_dim = 20;
  const Weights first_weights(first, GetParam(), false, 1), second_weights(second, GetParam(), false, 2);
  const Placement placement = Placement::Even(6, 1);
  auto engine = LoadedEngine(GetParam(), first, first_weights, placement, 0);
  ASSERT_TRUE(engine->AddLayer(second, 6).ok());
  for (int e = 0; e < 6; ++e) ASSERT_TRUE(engine->LoadExpert(LayerId{1}, e, second_weights.experts[e]).ok());

  std::mt19937 random(3);
  const HostMatrix rows = RandomMatrix(GetParam(), 10, first.hidden_dim, 1.0, &random);
  const Routing routing = RandomRouting(10, 2, 6, Skew::kUniform, 4);
  const StepPlan plan = PlanStep(routing, placement, HomeOffsets(10, 1));
  HostMatrix output = HostMatrix::Allocate(GetParam(), 10, first.hidden_dim);
  for (const int layer : {1, 0}) {
    ASSERT_TRUE(engine->RunExperts(LayerId{layer}, plan.ranks[0].view(), rows.view(), output.view()).ok());
    ExpectClose(output, layer == 0 ? ReferenceExperts(first, first_weights.experts, rows.view(), routing)
                                   : ReferenceExperts(second, second_weights.experts, rows.view(), routing));
  }
}

TEST_P(CpuEngineTest, CompilingAtLoadChangesNoResult) {
  for (const ExpertSpec& expert : {ExpertSpec{}, ExpertSpec{.gated = false}, ExpertSpec{.biased = true, .limit = 1}}) {
    const LayerSpec layer = SmallLayer(expert);
    const Weights weights(layer, GetParam(), false, 7);
    auto engine = CreateCpuEngine({.compute_dtype = GetParam(), .num_threads = 1, .compile_at_load = true}).value();
    ASSERT_TRUE(engine->AddLayer(layer, 6).ok());
    for (int e = 0; e < 6; ++e) ASSERT_TRUE(engine->LoadExpert(LayerId{0}, e, weights.experts[e]).ok());
    std::mt19937 random(3);
    const HostMatrix rows = RandomMatrix(GetParam(), 10, layer.hidden_dim, 1.0, &random);
    const Routing routing = RandomRouting(10, 2, 6, Skew::kUniform, 4);
    const StepPlan plan = PlanStep(routing, Placement::Even(6, 1), HomeOffsets(10, 1));
    HostMatrix output = HostMatrix::Allocate(GetParam(), 10, layer.hidden_dim);
    ASSERT_TRUE(engine->RunExperts(LayerId{0}, plan.ranks[0].view(), rows.view(), output.view()).ok());
    ExpectClose(output, ReferenceExperts(layer, weights.experts, rows.view(), routing));
  }
}

TEST_P(CpuEngineTest, WeightBytesStayNearTheRawSize) {
  const LayerSpec layer{.name = "0", .hidden_dim = 1024, .expert_dim = 512, .num_experts = 2};
  const Weights weights(layer, GetParam(), false, 1);
  const auto engine = LoadedEngine(GetParam(), layer, weights, Placement::Even(2, 1), 0);
  const int64_t raw = 2 * 3 * 1024 * 512 * SizeOf(GetParam());
  EXPECT_GE(engine->weight_bytes(), raw);
  EXPECT_LE(engine->weight_bytes(), 1.05 * raw);
}

TEST(CpuEngine, RefusesFp16NamingWhatThereIs) {
  const absl::Status status = CreateCpuEngine({.compute_dtype = DType::kF16}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("fp64, fp32 or bf16"));
}

TEST(CpuEngine, RefusesWrongLayersSlotsAndWeights) {
  const LayerSpec layer = SmallLayer();
  const Weights weights(layer, DType::kF32, false, 1);
  auto engine = NewEngine(DType::kF32);
  ASSERT_TRUE(engine->AddLayer(layer, 2).ok());
  const auto message = [&](LayerId id, int slot, const ExpertWeights& expert) {
    const absl::Status status = engine->LoadExpert(id, slot, expert);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message(LayerId{1}, 0, weights.experts[0]), HasSubstr("layer id 1"));
  EXPECT_THAT(message(LayerId{0}, 2, weights.experts[0]), HasSubstr("slot 2"));
  ExpertWeights broken = weights.experts[0];
  broken.gate = {};
  EXPECT_THAT(message(LayerId{0}, 0, broken), HasSubstr("layer 3, expert in slot 0: gate: missing"));
  broken = weights.experts[0];
  broken.down.transposed = true;
  EXPECT_THAT(message(LayerId{0}, 0, broken), HasSubstr("down: maps 33 to 57, expected 57 to 33"));
  broken = weights.experts[0];
  broken.up_bias = weights.experts[0].up.matrix.Rows(0, 1);
  EXPECT_THAT(message(LayerId{0}, 0, broken), HasSubstr("up_bias: present in a layer without one"));
  broken = weights.experts[0];
  broken.gate_bias = weights.experts[0].up.matrix.Rows(0, 1);
  EXPECT_THAT(message(LayerId{0}, 0, broken), HasSubstr("gate_bias: present"));
}

TEST(CpuEngine, RefusesGatedBiasedExpertsWithoutGateBias) {
  const LayerSpec layer = SmallLayer({.biased = true});
  Weights weights(layer, DType::kF32, false, 1);
  auto engine = NewEngine(DType::kF32);
  ASSERT_TRUE(engine->AddLayer(layer, 1).ok());
  weights.experts[0].gate_bias = {};
  EXPECT_THAT(std::string(engine->LoadExpert(LayerId{0}, 0, weights.experts[0]).message()),
              HasSubstr("layer 3, expert in slot 0: gate_bias: missing"));
}

TEST(CpuEngine, RefusesFormulasItLacks) {
  const absl::Status status = NewEngine(DType::kF32)->AddLayer(SmallLayer({.gated = false, .limit = 7}), 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("layer 3: limit"));
}

TEST(CpuEngine, RefusesStepsThatDoNotFit) {
  const LayerSpec layer = SmallLayer();
  const Weights weights(layer, DType::kF32, false, 1);
  auto engine = NewEngine(DType::kF32);
  ASSERT_TRUE(engine->AddLayer(layer, 6).ok());
  const StepPlan plan = PlanStep(RandomRouting(4, 2, 6, Skew::kUniform, 1), Placement::Even(6, 1), HomeOffsets(4, 1));
  const RankPlanView view = plan.ranks[0].view();
  HostMatrix rows = HostMatrix::Allocate(DType::kF32, 4, 33), narrow = HostMatrix::Allocate(DType::kF32, 4, 32);
  HostMatrix bf16 = HostMatrix::Allocate(DType::kBF16, 4, 33), few = HostMatrix::Allocate(DType::kF32, 3, 33);
  HostMatrix out = HostMatrix::Allocate(DType::kF32, 4, 33);

  EXPECT_EQ(engine->RunExperts(LayerId{0}, view, rows.view(), out.view()).code(),
            absl::StatusCode::kFailedPrecondition);  // no expert is loaded yet
  for (int e = 0; e < 6; ++e) ASSERT_TRUE(engine->LoadExpert(LayerId{0}, e, weights.experts[e]).ok());
  EXPECT_TRUE(engine->RunExperts(LayerId{0}, view, rows.view(), out.view()).ok());
  for (const ConstMatrixView bad :
       {ConstMatrixView(narrow.view()), ConstMatrixView(bf16.view()), ConstMatrixView(few.view())}) {
    EXPECT_EQ(engine->RunExperts(LayerId{0}, view, bad, out.view()).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(engine->GatherSendRows(view, bad, out.view()).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(engine->Combine(view, bad, out.view()).code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(engine->RunExperts(LayerId{1}, view, rows.view(), out.view()).code(), absl::StatusCode::kInvalidArgument);
  const StepPlan other = PlanStep(RandomRouting(4, 2, 5, Skew::kUniform, 1), Placement::Even(5, 1), HomeOffsets(4, 1));
  EXPECT_THAT(std::string(engine->RunExperts(LayerId{0}, other.ranks[0].view(), rows.view(), out.view()).message()),
              HasSubstr("5 expert slots, this rank 6"));
}

}  // namespace
}  // namespace switchyard
