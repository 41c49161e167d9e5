// Compares the CUDA engine, through the ExpertEngine interface alone, with the float64 reference: every kind of expert,
// shape, routing and number of ranks. Needs a GPU and no files. Tests whose names begin with "Small" have shapes tiny
// enough for compute-sanitizer.
#include "moe/experts/cuda/cuda_engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "moe/experts/cuda/engine_fixture.h"
#include "moe/experts/cuda/testing.h"
#include "moe/experts/reference.h"

namespace switchyard {
namespace {

constexpr Activation kActivations[] = {Activation::kSilu, Activation::kGelu, Activation::kRelu, Activation::kGeluTanh,
                                       Activation::kQuickGelu};

class EngineTest : public EngineVariantTest {
 protected:
  // Tests every activation, gated and plain, with and without biases, in both ways.
  void EveryKindOfExpert(int64_t dim, int64_t width, const std::vector<int64_t>& row_counts) const {
    for (const Activation activation : kActivations) {
      for (const bool gated : {true, false}) {
        for (const bool biased : {true, false}) {
          SCOPED_TRACE(testing::Message() << ActivationName(activation) << " gated " << gated << " biased " << biased);
          BothWays(TestSpec(dim, width, 6, 3, {.activation = activation, .gated = gated, .biased = biased}),
                   row_counts);
        }
      }
    }
  }

  void BothWays(const LayerSpec& spec, const std::vector<int64_t>& row_counts) const {
    const TestLayer layer = Layer(spec);
    const auto engine = Loaded(layer, 128);
    for (const int64_t num_rows : row_counts) {
      const Routing routing =
          WithShared(spec, SkewedRouting(num_rows, spec.gate.top_k, spec.num_experts, Skew::kUniform, 6));
      RunAndCompare(*engine, layer, routing, Way::kInPlace);
      RunAndCompare(*engine, layer, routing, Way::kAllPhases);
    }
  }

  // Gate and up have magnitudes around 1, so the limits bind for many of them, few or none.
  void ClampedExperts(int64_t dim, int64_t width, const std::vector<int64_t>& row_counts) const {
    for (const Activation activation : {Activation::kSilu, Activation::kQuickGelu}) {
      for (const double limit : {0.0, 0.5, 7.0}) {
        SCOPED_TRACE(testing::Message() << ActivationName(activation) << " limit " << limit);
        ExpertSpec expert{.activation = activation, .biased = limit != 7, .limit = limit, .up_offset = 1};
        BothWays(TestSpec(dim, width, 6, 3, expert), row_counts);
        expert.up_offset = 0;
        BothWays(TestSpec(dim, width, 6, 3, expert), row_counts);
      }
    }
  }

  // With biases, weighing the input and weighing the output give different results. The second layer has one expert for
  // all rows, so its rows could stay in place if they were not weighed.
  void WeighedInputs(int64_t dim, int64_t width, const std::vector<int64_t>& row_counts) const {
    for (const bool gated : {true, false}) {
      SCOPED_TRACE(testing::Message() << "gated " << gated);
      const ExpertSpec expert{.gated = gated, .biased = true, .weighs_input = true};
      BothWays(TestSpec(dim, width, 6, 3, expert), row_counts);
      BothWays(TestSpec(dim, width, 1, 1, expert), row_counts);
    }
  }

  void SharedExperts(int64_t dim, int64_t width, const std::vector<int64_t>& row_counts) const {
    for (const int num_shared : {1, 3}) {
      for (const bool weighs_input : {false, true}) {
        SCOPED_TRACE(testing::Message() << num_shared << " shared, weighs input " << weighs_input);
        LayerSpec spec = TestSpec(dim, width, 6, 3, {.weighs_input = weighs_input});
        spec.num_shared = num_shared;
        BothWays(spec, row_counts);
      }
    }
  }

  void EverySkew(const LayerSpec& spec, const std::vector<int64_t>& row_counts) const {
    const TestLayer layer = Layer(spec);
    const auto engine = Loaded(layer, row_counts.back());
    for (const Skew skew : kSkews) {
      for (const int64_t num_rows : row_counts) {
        SCOPED_TRACE(testing::Message() << "skew " << static_cast<int>(skew) << ", " << num_rows << " rows");
        const Routing routing = SkewedRouting(num_rows, spec.gate.top_k, spec.num_experts, skew, 8 + num_rows);
        RunAndCompare(*engine, layer, routing, num_rows % 2 == 0 ? Way::kInPlace : Way::kAllPhases, kSample);
      }
    }
  }

  void DroppedChoices(const LayerSpec& spec, int64_t num_rows) const {
    const TestLayer layer = Layer(spec);
    const auto engine = Loaded(layer, num_rows);
    Routing routing = SkewedRouting(num_rows, 2, spec.num_experts, Skew::kUniform, 1);
    for (int64_t row_idx = 0; row_idx < num_rows; row_idx += 3) routing.expert_idx[row_idx * 2] = -1;
    RunAndCompare(*engine, layer, routing);
    for (int64_t row_idx = 0; row_idx < num_rows; row_idx += 6) routing.expert_idx[row_idx * 2 + 1] = -1;
    RunAndCompare(*engine, layer, routing);  // some rows have no choice left
    std::fill(routing.expert_idx.begin(), routing.expert_idx.end(), -1);
    RunAndCompare(*engine, layer, routing);
  }

  // Compares groups of several sizes with the reference.
  void Ranks(const LayerSpec& spec, const std::vector<int>& group_sizes, const std::vector<int64_t>& row_counts) const {
    const TestLayer layer = Layer(spec);
    for (const int num_ranks : group_sizes) {
      GroupOnOneGpu group(GetParam(), layer, num_ranks, row_counts.back());
      for (const int64_t num_rows : row_counts) {
        SCOPED_TRACE(testing::Message() << num_rows << " rows on " << num_ranks << " ranks");
        Routing routing =
            WithShared(spec, SkewedRouting(num_rows, spec.gate.top_k, spec.num_experts, Skew::kZipf, num_rows));
        if (num_rows > 4) routing.expert_idx[4 * spec.num_choices()] = -1;
        const HostMatrix rows = RandomRows(dtype(), num_rows, spec.hidden_dim, 5);
        for (const int num_chunks : {1, 3}) {
          const HostMatrix output = group.Run(rows.view(), routing, num_chunks);
          ExpectMatchesReference(output, layer, rows.view(), routing, kSample, NormTolerance(dtype()));
        }
      }
    }
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// Tiny shapes

class SmallEngineTest : public EngineTest {};
INSTANTIATE_TEST_SUITE_P(Small, SmallEngineTest, EngineVariants(), VariantName);

TEST_P(SmallEngineTest, EveryKindOfExpert) {
  EveryKindOfExpert(24, 40, {5});
  EveryKindOfExpert(64, 64, {20});
}

TEST_P(SmallEngineTest, ClampedExperts) { ClampedExperts(24, 40, {1, 20}); }

TEST_P(SmallEngineTest, WeighedInputs) { WeighedInputs(24, 40, {1, 20}); }

TEST_P(SmallEngineTest, SharedExperts) { SharedExperts(24, 40, {1, 20}); }

TEST_P(SmallEngineTest, EverySkew) { EverySkew(TestSpec(64, 48, 6, 3), {1, 2, 17, 70}); }

TEST_P(SmallEngineTest, OddWidths) {
  EverySkew(TestSpec(25, 9, 5, 2), {1, 19});
  EverySkew(TestSpec(100, 70, 5, 2), {1, 19});
}

TEST_P(SmallEngineTest, DroppedChoices) { DroppedChoices(TestSpec(32, 24, 4, 2), 30); }

TEST_P(SmallEngineTest, StepWithoutRows) {
  const TestLayer layer = Layer(TestSpec(32, 24, 4, 2));
  const auto engine = Loaded(layer, 8);
  RunAndCompare(*engine, layer, SkewedRouting(0, 2, 4, Skew::kUniform, 1));
  RunAndCompare(*engine, layer, SkewedRouting(0, 2, 4, Skew::kUniform, 1), Way::kAllPhases);
}

TEST_P(SmallEngineTest, Ranks) { Ranks(TestSpec(40, 24, 5, 2), {2, 3, 7}, {1, 2, 33}); }

// ---------------------------------------------------------------------------------------------------------------------
// Shapes as served

class CudaEngineTest : public EngineTest {};
INSTANTIATE_TEST_SUITE_P(All, CudaEngineTest, EngineVariants(), VariantName);

TEST_P(CudaEngineTest, EveryKindOfExpert) { EveryKindOfExpert(128, 192, {1, 9, 100}); }

TEST_P(CudaEngineTest, ClampedExperts) { ClampedExperts(128, 192, {1, 9, 100}); }

// The width of 2880 makes a small step's outputs come in parts, which have lists of their own.
TEST_P(CudaEngineTest, WeighedInputs) {
  WeighedInputs(128, 192, {1, 9, 100});
  WeighedInputs(128, 2880, {1, 5});
}

TEST_P(CudaEngineTest, SharedExperts) { SharedExperts(128, 192, {1, 9, 100}); }

TEST_P(CudaEngineTest, EverySkew) { EverySkew(TestSpec(256, 128, 8, 3), {1, 8, 17, 129, 300, 2000}); }

TEST_P(CudaEngineTest, EveryNumberOfRows) {
  const LayerSpec spec = TestSpec(256, 128, 16, 4);
  const TestLayer layer = Layer(spec);
  const auto engine = Loaded(layer, 32768);
  for (const int64_t num_rows : {1, 2, 3, 7, 8, 9, 16, 17, 64, 100, 128, 129, 255, 256, 257, 1000, 4096, 32768}) {
    SCOPED_TRACE(testing::Message() << num_rows << " rows");
    const Routing routing = SkewedRouting(num_rows, 4, 16, Skew::kUniform, static_cast<uint32_t>(num_rows));
    RunAndCompare(*engine, layer, routing, Way::kInPlace, kSample);
    RunAndCompare(*engine, layer, SkewedRouting(num_rows, 1, 16, Skew::kOneExpert, 1), Way::kAllPhases, kSample);
  }
}

TEST_P(CudaEngineTest, OddAndAlignedWidths) {
  for (const int64_t dim : {24, 100, 2048, 2880}) {
    for (const int64_t width : {8, 40, 70, 768}) {
      SCOPED_TRACE(testing::Message() << "D " << dim << ", H " << width);
      const TestLayer layer = TestLayer(TestSpec(dim, width, 4, 2), {dtype()}, 2, /*num_distinct=*/3);
      const auto engine = Loaded(layer, 300);
      for (const int64_t num_rows : {1, 5, 300}) {
        RunAndCompare(*engine, layer, SkewedRouting(num_rows, 2, 4, Skew::kZipf, 3), Way::kInPlace, 12);
      }
    }
  }
}

TEST_P(CudaEngineTest, EveryTopK) {
  const TestLayer layer = Layer(TestSpec(128, 96, 16, 16));
  const auto engine = Loaded(layer, 400);
  for (const int top_k : {1, 2, 5, 8, 16}) {
    for (const int64_t num_rows : {1, 33, 400}) {
      SCOPED_TRACE(testing::Message() << num_rows << " rows, k " << top_k);
      const Routing routing = SkewedRouting(num_rows, top_k, 16, Skew::kUniform, top_k);
      RunAndCompare(*engine, layer, routing, Way::kInPlace, kSample);
      RunAndCompare(*engine, layer, routing, Way::kAllPhases, kSample);
    }
  }
}

TEST_P(CudaEngineTest, ShapesOfRealLayers) {
  if (SizeOf(dtype()) > 2) GTEST_SKIP() << "the real layers are of 16-bit types";
  const LayerSpec specs[] = {TestSpec(2048, 768, 128, 8),
                             TestSpec(2048, 2048, 2, 2, {Activation::kRelu, /*gated=*/false, /*biased=*/true}),
                             TestSpec(4096, 1792, 8, 2), TestSpec(7168, 256, 64, 8)};
  for (const LayerSpec& spec : specs) {
    const TestLayer layer = TestLayer(spec, {dtype()}, 3, /*num_distinct=*/3);
    const auto engine = Loaded(layer, 8192);
    for (const int64_t num_rows : {1, 16, 128, 512, 1024, 8192}) {
      SCOPED_TRACE(testing::Message() << "D " << spec.hidden_dim << ", " << num_rows << " rows");
      const Routing routing = SkewedRouting(num_rows, spec.gate.top_k, spec.num_experts, Skew::kUniform, 4);
      RunAndCompare(*engine, layer, routing, Way::kInPlace, 8);
    }
  }
}

TEST_P(CudaEngineTest, DroppedChoices) { DroppedChoices(TestSpec(128, 96, 8, 2), 400); }

TEST_P(CudaEngineTest, Ranks) { Ranks(TestSpec(256, 128, 16, 4), {2, 3}, {1, 64, 1500}); }

TEST_P(CudaEngineTest, RanksWithSharedExperts) {
  LayerSpec spec = TestSpec(256, 128, 16, 4);
  spec.num_shared = 2;
  Ranks(spec, {2, 3}, {1, 64, 500});
  spec.num_experts = 2, spec.gate.top_k = 1;  // one of three ranks then holds only shared experts
  Ranks(spec, {3}, {1, 64});
}

TEST_P(CudaEngineTest, LayersAreIndependent) {
  const TestLayer first = Layer(TestSpec(128, 64, 6, 2), 1);
  const TestLayer second = Layer(TestSpec(128, 200, 4, 3, {Activation::kGelu, false, true}), 2);
  const TestLayer third = Layer(TestSpec(72, 64, 9, 2, {Activation::kRelu, true, false}), 3);
  const auto engine = LoadedEngine(device_, GetParam(), {&first, &second, &third}, 200);
  for (const int64_t num_rows : {1, 12, 200}) {
    int32_t id = 0;
    for (const TestLayer* layer : {&first, &second, &third}) {
      const Routing routing =
          SkewedRouting(num_rows, layer->spec.gate.top_k, layer->spec.num_experts, Skew::kUniform, 5);
      RunAndCompare(*engine, *layer, routing, Way::kInPlace, kSample, LayerId{id++});
    }
  }
}

TEST_P(CudaEngineTest, WeightsOfEveryStoredType) {
  const LayerSpec spec = TestSpec(72, 56, 4, 2, {Activation::kSilu, true, true});
  const Routing routing = SkewedRouting(30, 2, 4, Skew::kUniform, 3);
  const HostMatrix rows = RandomRows(dtype(), 30, 72, 1);
  for (const DType stored : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16}) {
    for (const bool transposed : {false, true}) {
      SCOPED_TRACE(testing::Message() << DTypeName(stored) << (transposed ? " transposed" : ""));
      const TestLayer layer(spec, {stored, transposed}, 4);
      const auto engine = Loaded(layer, 30);
      // The engine rounds the weights at load, but the reference uses the unrounded ones.
      const double rounding = SizeOf(stored) > SizeOf(dtype()) || stored != dtype() ? 2 * NormTolerance(dtype()) : 0;
      ExpectMatchesReference(RunStep(*engine, layer, routing, rows.view()), layer, rows.view(), routing, kAllRows,
                             NormTolerance(dtype()) + rounding);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The engine's ways to compute, compared with each other

class CudaEngineWaysTest : public GpuTest {};

TEST_F(CudaEngineWaysTest, OwnKernelsAgreeWithCublasOnEveryElement) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    const TestLayer layer(TestSpec(512, 256, 16, 4), {dtype}, 1);
    const auto own = LoadedEngine(device_, {.compute_dtype = dtype}, {&layer}, 32768);
    const auto cublas =
        LoadedEngine(OpenCudaDevice({}).value(), {.compute_dtype = dtype, .force_cublas = true}, {&layer}, 32768);
    for (const int64_t num_rows : {1, 16, 128, 1024, 32768}) {
      SCOPED_TRACE(testing::Message() << DTypeName(dtype) << ", " << num_rows << " rows");
      const HostMatrix rows = RandomRows(dtype, num_rows, 512, 1);
      const Routing routing = SkewedRouting(num_rows, 4, 16, Skew::kZipf, 2);
      ExpectClose(ToDoubles(RunStep(*own, layer, routing, rows.view()).view()),
                  ToDoubles(RunStep(*cublas, layer, routing, rows.view()).view()), NormTolerance(dtype));
    }
  }
}

TEST_F(CudaEngineWaysTest, Tf32OnlyOnRequest) {
  const TestLayer layer(TestSpec(512, 256, 8, 2), {DType::kF32}, 1);
  const Routing routing = SkewedRouting(600, 2, 8, Skew::kUniform, 2);
  const HostMatrix rows = RandomRows(DType::kF32, 600, 512, 1);
  const auto exact = LoadedEngine(device_, {.compute_dtype = DType::kF32}, {&layer}, 600);
  ExpectMatchesReference(RunStep(*exact, layer, routing, rows.view()), layer, rows.view(), routing, 64, 1e-5);
  const auto fast =
      LoadedEngine(OpenCudaDevice({}).value(), {.compute_dtype = DType::kF32, .allow_tf32 = true}, {&layer}, 600);
  ExpectMatchesReference(RunStep(*fast, layer, routing, rows.view()), layer, rows.view(), routing, 64, 2e-3);
}

}  // namespace
}  // namespace switchyard
