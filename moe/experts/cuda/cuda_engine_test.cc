// The CUDA engine through the ExpertEngine interface alone, against the float64 reference. Needs a GPU and no files.
// Tests whose names begin with "Small" have shapes tiny enough for compute-sanitizer.
#include "moe/experts/cuda/cuda_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cmath>
#include <cstring>
#include <semaphore>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "moe/cuda/memory.h"
#include "moe/experts/cuda/testing.h"
#include "moe/experts/reference.h"
#include "moe/tensor/convert.h"

namespace switchyard {
namespace {

using testing::Contains;
using testing::Ge;
using testing::HasSubstr;

// Rows of large steps that are compared.
constexpr int64_t kSample = 24;

constexpr Activation kActivations[] = {Activation::kSilu, Activation::kGelu, Activation::kRelu};
constexpr Skew kSkews[] = {Skew::kUniform, Skew::kZipf, Skew::kOneExpert, Skew::kSomeEmpty};

std::string VariantName(const testing::TestParamInfo<CudaEngineOptions>& info) {
  return std::string(DTypeName(info.param.compute_dtype)) + (info.param.force_cublas ? "Cublas" : "");
}

const auto kVariants =
    testing::Values(CudaEngineOptions{.compute_dtype = DType::kF64}, CudaEngineOptions{.compute_dtype = DType::kF32},
                    CudaEngineOptions{.compute_dtype = DType::kF16},
                    CudaEngineOptions{.compute_dtype = DType::kF16, .force_cublas = true},
                    CudaEngineOptions{.compute_dtype = DType::kBF16},
                    CudaEngineOptions{.compute_dtype = DType::kBF16, .force_cublas = true});

class EngineTest : public testing::TestWithParam<CudaEngineOptions> {
 protected:
  void SetUp() override {
    absl::StatusOr<std::shared_ptr<CudaDevice>> device = OpenCudaDevice({});
    ASSERT_EQ(device.status(), absl::OkStatus());
    device_ = *std::move(device);
  }

  DType dtype() const { return GetParam().compute_dtype; }

  TestLayer Layer(const LayerSpec& spec, uint64_t seed = 1) const { return TestLayer(spec, {dtype()}, seed); }

  std::unique_ptr<ExpertEngine> Loaded(const TestLayer& layer, int64_t max_rows) const {
    return LoadedEngine(device_, GetParam(), {&layer}, max_rows);
  }

  // Every activation, gated and plain, with and without biases, both ways through a step.
  void EveryKindOfExpert(int64_t dim, int64_t width, const std::vector<int64_t>& row_counts) const {
    for (const Activation activation : kActivations) {
      for (const bool gated : {true, false}) {
        for (const bool biased : {true, false}) {
          SCOPED_TRACE(testing::Message() << ActivationName(activation) << " gated " << gated << " biased " << biased);
          const TestLayer layer = Layer(TestSpec(dim, width, 6, 3, {activation, gated, biased}));
          const auto engine = Loaded(layer, 128);
          for (const int64_t num_rows : row_counts) {
            const Routing routing = SkewedRouting(num_rows, 3, 6, Skew::kUniform, 6);
            RunAndCompare(*engine, layer, routing, Way::kInPlace);
            RunAndCompare(*engine, layer, routing, Way::kAllPhases);
          }
        }
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
    RunAndCompare(*engine, layer, routing);  // some rows have nothing left
    std::fill(routing.expert_idx.begin(), routing.expert_idx.end(), -1);
    RunAndCompare(*engine, layer, routing);
  }

  // Groups of ranks agree with the reference, whatever each holds.
  void Ranks(const LayerSpec& spec, const std::vector<int>& group_sizes, const std::vector<int64_t>& row_counts) const {
    const TestLayer layer = Layer(spec);
    for (const int num_ranks : group_sizes) {
      Group group(GetParam(), layer, num_ranks, row_counts.back());
      for (const int64_t num_rows : row_counts) {
        SCOPED_TRACE(testing::Message() << num_rows << " rows on " << num_ranks << " ranks");
        Routing routing = SkewedRouting(num_rows, spec.gate.top_k, spec.num_experts, Skew::kZipf, num_rows);
        if (num_rows > 4) routing.expert_idx[4 * spec.gate.top_k] = -1;
        const HostMatrix rows = RandomRows(dtype(), num_rows, spec.hidden_dim, 5);
        for (const int num_chunks : {1, 3}) {
          const HostMatrix output = group.Run(rows.view(), routing, num_chunks);
          ExpectMatchesReference(output, layer, rows.view(), routing, kSample, NormTolerance(dtype()));
        }
      }
    }
  }

  // Steps of different shapes, layers and skews in flight at once give what each gives alone, byte for byte.
  void StepsInFlight(const std::vector<LayerSpec>& specs, const std::vector<int64_t>& row_counts) const;

  std::shared_ptr<CudaDevice> device_;  // one for each test
};

// A step whose rows and outputs are page-locked, so that copying them never waits.
struct InFlight {
  int layer = 0;
  Routing routing;
  PinnedBuffer memory;
  MatrixView rows, output;
  std::string expected;

  InFlight(int layer_idx, Routing step_routing, const HostMatrix& step_rows)
      : layer(layer_idx), routing(std::move(step_routing)) {
    const size_t num_bytes = step_rows.view().size_bytes();
    memory = PinnedBuffer::Allocate(2 * num_bytes).value();
    rows = {memory.data(), step_rows.dtype, step_rows.num_rows, step_rows.num_cols};
    output = rows;
    output.data += num_bytes;
    std::memcpy(rows.data, step_rows.buffer.data(), num_bytes);
    std::memset(output.data, 0xff, num_bytes);
  }
};

void EngineTest::StepsInFlight(const std::vector<LayerSpec>& specs, const std::vector<int64_t>& row_counts) const {
  std::vector<TestLayer> layers;
  for (const LayerSpec& spec : specs) layers.push_back(Layer(spec, layers.size() + 1));
  std::vector<const TestLayer*> pointers;
  for (const TestLayer& layer : layers) pointers.push_back(&layer);
  const auto engine =
      LoadedEngine(device_, GetParam(), pointers, *std::max_element(row_counts.begin(), row_counts.end()));
  std::vector<InFlight> steps;
  for (size_t i = 0; i < 3 * row_counts.size(); ++i) {
    const int layer = static_cast<int>(i % layers.size());
    const LayerSpec& spec = specs[layer];
    const int64_t num_rows = row_counts[i % row_counts.size()];
    InFlight& step = steps.emplace_back(
        layer, SkewedRouting(num_rows, spec.gate.top_k, spec.num_experts, kSkews[i % 4], static_cast<uint32_t>(i)),
        RandomRows(dtype(), num_rows, spec.hidden_dim, i));
    step.expected = Bytes(RunStep(*engine, layers[layer], step.routing, step.rows, Way::kInPlace, LayerId{layer}));
  }
  // Another thread waits for the steps in turn, as a worker's does.
  const int num_lanes = engine->num_lanes();
  std::counting_semaphore<> free_lanes(num_lanes), begun(0);
  std::thread waiter([&] {
    for (size_t i = 0; i < steps.size(); ++i) {
      begun.acquire();
      EXPECT_EQ(engine->WaitStep(static_cast<int>(i) % num_lanes), absl::OkStatus());
      free_lanes.release();
    }
  });
  for (size_t i = 0; i < steps.size(); ++i) {
    free_lanes.acquire();
    InFlight& step = steps[i];
    EXPECT_EQ(EnqueueStep(*engine, static_cast<int>(i) % num_lanes, LayerId{step.layer}, specs[step.layer].num_experts,
                          step.routing, step.rows, step.output, Way::kInPlace),
              absl::OkStatus());
    begun.release();
  }
  waiter.join();
  for (size_t i = 0; i < steps.size(); ++i) {
    EXPECT_EQ(std::memcmp(steps[i].output.data, steps[i].expected.data(), steps[i].expected.size()), 0) << "step " << i;
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Tiny shapes

class SmallEngineTest : public EngineTest {};
INSTANTIATE_TEST_SUITE_P(Small, SmallEngineTest, kVariants, VariantName);

TEST_P(SmallEngineTest, EveryKindOfExpert) {
  EveryKindOfExpert(24, 40, {5});
  EveryKindOfExpert(64, 64, {20});
}

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

TEST_P(SmallEngineTest, StepsInFlight) {
  StepsInFlight({TestSpec(32, 24, 4, 2), TestSpec(24, 40, 6, 3, {Activation::kRelu, false, true})}, {3, 1, 40, 17});
}

// ---------------------------------------------------------------------------------------------------------------------
// Shapes as served

class CudaEngineTest : public EngineTest {};
INSTANTIATE_TEST_SUITE_P(All, CudaEngineTest, kVariants, VariantName);

TEST_P(CudaEngineTest, EveryKindOfExpert) { EveryKindOfExpert(128, 192, {1, 9, 100}); }

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

TEST_P(CudaEngineTest, StepsInFlight) {
  StepsInFlight({TestSpec(256, 128, 16, 4), TestSpec(100, 70, 5, 2), TestSpec(512, 256, 8, 2, {Activation::kGelu})},
                {1, 2000, 16, 300, 7, 128, 4096, 9, 64});
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
      // The weights are rounded at load, which the reference does not see.
      const double rounding = SizeOf(stored) > SizeOf(dtype()) || stored != dtype() ? 2 * NormTolerance(dtype()) : 0;
      ExpectMatchesReference(RunStep(*engine, layer, routing, rows.view()), layer, rows.view(), routing, kAllRows,
                             NormTolerance(dtype()) + rounding);
    }
  }
}

TEST_P(CudaEngineTest, SameStepGivesSameBytes) {
  const TestLayer layer = Layer(TestSpec(256, 128, 16, 4));
  const auto engine = Loaded(layer, 4096);
  for (const int64_t num_rows : {1, 16, 200, 4096}) {
    const Routing routing = SkewedRouting(num_rows, 4, 16, Skew::kZipf, 7);
    const HostMatrix rows = RandomRows(dtype(), num_rows, 256, 1);
    const std::string first = Bytes(RunStep(*engine, layer, routing, rows.view()));
    RunStep(*engine, layer, SkewedRouting(333, 4, 16, Skew::kUniform, 9), RandomRows(dtype(), 333, 256, 2).view());
    EXPECT_TRUE(Bytes(RunStep(*engine, layer, routing, rows.view())) == first) << num_rows << " rows";
  }
}

TEST_P(CudaEngineTest, PageLockedRowsGiveTheSameBytes) {
  const TestLayer layer = Layer(TestSpec(256, 128, 16, 4));
  const auto engine = Loaded(layer, 1024);
  for (const int64_t num_rows : {1, 9, 1024}) {
    const Routing routing = SkewedRouting(num_rows, 4, 16, Skew::kUniform, 7);
    const HostMatrix rows = RandomRows(dtype(), num_rows, 256, 1);
    const std::string expected = Bytes(RunStep(*engine, layer, routing, rows.view()));
    const size_t num_bytes = rows.view().size_bytes();
    const PinnedBuffer pinned = PinnedBuffer::Allocate(2 * num_bytes).value();
    std::memcpy(pinned.data(), rows.buffer.data(), num_bytes);
    const MatrixView output{pinned.data() + num_bytes, dtype(), num_rows, 256};
    std::memset(output.data, 0xff, num_bytes);
    ASSERT_EQ(EnqueueStep(*engine, engine->num_lanes() - 1, LayerId{0}, 16, routing,
                          {pinned.data(), dtype(), num_rows, 256}, output, Way::kInPlace),
              absl::OkStatus());
    ASSERT_EQ(engine->WaitStep(engine->num_lanes() - 1), absl::OkStatus());
    EXPECT_EQ(std::memcmp(output.data, expected.data(), num_bytes), 0) << num_rows << " rows";
  }
}

TEST_P(CudaEngineTest, ARowDoesNotDependOnItsBatchBeyondRounding) {
  const TestLayer layer = Layer(TestSpec(256, 128, 16, 4));
  const auto engine = Loaded(layer, 2000);
  const HostMatrix rows = RandomRows(dtype(), 2000, 256, 3);
  const Routing routing = SkewedRouting(2000, 4, 16, Skew::kZipf, 1);
  const HostMatrix together = RunStep(*engine, layer, routing, rows.view());
  for (const int64_t row_idx : {0, 555, 1999}) {
    Routing alone{.num_rows = 1, .top_k = 4};
    alone.expert_idx.assign(&routing.expert_idx[row_idx * 4], &routing.expert_idx[row_idx * 4] + 4);
    alone.weight.assign(&routing.weight[row_idx * 4], &routing.weight[row_idx * 4] + 4);
    ExpectClose(ToDoubles(RunStep(*engine, layer, alone, rows.view().Rows(row_idx, 1)).view()),
                ToDoubles(together.view().Rows(row_idx, 1)), NormTolerance(dtype()));
  }
}

TEST_P(CudaEngineTest, NanStaysInItsRowAndInItsStep) {
  constexpr int64_t kRows = 300, kDim = 128;
  const TestLayer layer = Layer(TestSpec(kDim, 96, 8, 2));
  const auto engine = Loaded(layer, kRows);
  std::vector<double> values(kRows * kDim, 0.5);
  for (int64_t column = 0; column < kDim; ++column) values[3 * kDim + column] = NAN;
  HostMatrix rows = HostMatrix::Allocate(dtype(), kRows, kDim);
  ConvertElements(DType::kF64, reinterpret_cast<const std::byte*>(values.data()), dtype(), rows.buffer.data(),
                  values.size());
  const Routing routing = SkewedRouting(kRows, 2, 8, Skew::kUniform, 1);
  const HostMatrix output = RunStep(*engine, layer, routing, rows.view());
  EXPECT_EQ(CountNans(output.view().Rows(3, 1)), kDim);
  EXPECT_EQ(CountNans(output.view()), kDim);
  // A step that is all NaN leaves its workspace full of them.
  RunStep(*engine, layer, routing, NanMatrix(dtype(), kRows, kDim).view());
  for (const int64_t num_rows : {1, 5, 130}) {
    RunAndCompare(*engine, layer, SkewedRouting(num_rows, 2, 8, Skew::kSomeEmpty, 2));
  }
}

TEST_P(CudaEngineTest, ThreadsLoadAtOnce) {
  const TestLayer layer = TestLayer(TestSpec(256, 128, 64, 4), {DType::kF32}, 1);
  const auto engine = CreateCudaEngine(device_, GetParam()).value();
  ASSERT_EQ(engine->AddLayer(layer.spec, 64), absl::OkStatus());
  ASSERT_EQ(engine->Reserve(100), absl::OkStatus());
  std::atomic<int> next_slot = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < engine->load_threads(); ++i) {
    threads.emplace_back([&] {
      for (int slot = next_slot++; slot < 64; slot = next_slot++) {
        EXPECT_EQ(engine->LoadExpert(LayerId{0}, slot, layer.experts[slot]), absl::OkStatus());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const Routing routing = SkewedRouting(100, 4, 64, Skew::kUniform, 2);
  const HostMatrix rows = RandomRows(dtype(), 100, 256, 1);
  ExpectMatchesReference(RunStep(*engine, layer, routing, rows.view()), layer, rows.view(), routing, kAllRows,
                         2 * NormTolerance(dtype()));
}

TEST_P(CudaEngineTest, WeightBytesStayNearTheRawSize) {
  const TestLayer layer = Layer(TestSpec(1024, 512, 4, 2));
  const auto engine = Loaded(layer, 16);
  const int64_t raw = 4 * ExpertBytes(layer.spec, dtype());
  EXPECT_GE(engine->weight_bytes(), raw);
  EXPECT_LE(engine->weight_bytes(), 1.05 * raw);
}

// ---------------------------------------------------------------------------------------------------------------------
// Between the engine's own ways to compute

TEST(CudaEngineWaysTest, OwnKernelsAgreeWithCublasOnEveryElement) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    const TestLayer layer(TestSpec(512, 256, 16, 4), {dtype}, 1);
    const auto own = LoadedEngine(OpenCudaDevice({}).value(), {.compute_dtype = dtype}, {&layer}, 32768);
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

TEST(CudaEngineWaysTest, Tf32OnlyOnRequest) {
  const TestLayer layer(TestSpec(512, 256, 8, 2), {DType::kF32}, 1);
  const Routing routing = SkewedRouting(600, 2, 8, Skew::kUniform, 2);
  const HostMatrix rows = RandomRows(DType::kF32, 600, 512, 1);
  const auto exact = LoadedEngine(OpenCudaDevice({}).value(), {.compute_dtype = DType::kF32}, {&layer}, 600);
  ExpectMatchesReference(RunStep(*exact, layer, routing, rows.view()), layer, rows.view(), routing, 64, 1e-5);
  const auto fast =
      LoadedEngine(OpenCudaDevice({}).value(), {.compute_dtype = DType::kF32, .allow_tf32 = true}, {&layer}, 600);
  ExpectMatchesReference(RunStep(*fast, layer, routing, rows.view()), layer, rows.view(), routing, 64, 2e-3);
}

// ---------------------------------------------------------------------------------------------------------------------
// Refusals

// Every whole number in the text.
std::vector<int64_t> NumbersIn(absl::string_view text) {
  std::vector<int64_t> numbers;
  for (size_t i = 0; i < text.size();) {
    if (std::isdigit(static_cast<unsigned char>(text[i])) == 0) {
      ++i;
      continue;
    }
    int64_t number = 0;
    for (; i < text.size() && std::isdigit(static_cast<unsigned char>(text[i])) != 0; ++i) {
      number = number * 10 + (text[i] - '0');
    }
    numbers.push_back(number);
  }
  return numbers;
}

TEST(SmallRefusalTest, TooLittleMemoryIsRefusedWithTheBytes) {
  constexpr int64_t kLimit = 1 << 20;
  const LayerSpec spec = TestSpec(1024, 1024, 8, 2);
  const auto device = OpenCudaDevice({.memory_limit = kLimit}).value();
  const auto engine = CreateCudaEngine(device, {}).value();
  ASSERT_EQ(engine->AddLayer(spec, 8), absl::OkStatus());
  const absl::Status refused = engine->Reserve(1024);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  const std::vector<int64_t> numbers = NumbersIn(refused.message());
  const int64_t needed = 8 * ExpertBytes(spec, DType::kBF16);
  EXPECT_THAT(numbers, Contains(Ge(needed))) << refused;
  EXPECT_THAT(numbers, Contains(kLimit)) << refused;
}

TEST(SmallRefusalTest, MoreThanTheDeviceHasIsRefused) {
  const auto engine = CreateCudaEngine(OpenCudaDevice({}).value(), {}).value();
  ASSERT_EQ(engine->AddLayer(TestSpec(16384, 65536, 512, 2), 512), absl::OkStatus());  // 3 TB
  EXPECT_EQ(engine->Reserve(1024).code(), absl::StatusCode::kResourceExhausted);
}

TEST(SmallRefusalTest, NoSuchDevice) {
  const absl::Status refused = OpenCudaDevice({.device_idx = NumCudaDevices()}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
}

TEST(SmallRefusalTest, StepsLargerThanReserved) {
  const TestLayer layer(TestSpec(32, 24, 4, 2), {}, 1);
  const auto engine = LoadedEngine(OpenCudaDevice({}).value(), {}, {&layer}, 16);
  const HostMatrix rows = RandomRows(DType::kBF16, 17, 32, 1);
  HostMatrix output = NanMatrix(DType::kBF16, 17, 32);
  const absl::Status refused = EnqueueStep(*engine, 0, LayerId{0}, 4, SkewedRouting(17, 2, 4, Skew::kUniform, 1),
                                           rows.view(), output.view(), Way::kInPlace);
  EXPECT_FALSE(refused.ok());
  EXPECT_THAT(std::string(refused.message()), HasSubstr("17"));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("16"));
  RunAndCompare(*engine, layer, SkewedRouting(16, 2, 4, Skew::kUniform, 1));  // and nothing is lost
}

TEST(SmallRefusalTest, WrongLayersSlotsAndWeights) {
  const TestLayer layer(TestSpec(32, 24, 4, 2), {}, 1);
  const auto engine = CreateCudaEngine(OpenCudaDevice({}).value(), {}).value();
  ASSERT_EQ(engine->AddLayer(layer.spec, 2), absl::OkStatus());
  ASSERT_EQ(engine->Reserve(16), absl::OkStatus());
  const auto expect_refused = [&](LayerId id, int slot, const ExpertWeights& expert, const std::string& text) {
    const absl::Status status = engine->LoadExpert(id, slot, expert);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  };
  expect_refused(LayerId{1}, 0, layer.experts[0], "layer");
  expect_refused(LayerId{0}, 2, layer.experts[0], "slot");
  expect_refused(LayerId{0}, -1, layer.experts[0], "slot");
  ExpertWeights broken = layer.experts[0];
  broken.gate = {};
  expect_refused(LayerId{0}, 0, broken, "gate");
  broken = layer.experts[0];
  broken.down.transposed = true;
  expect_refused(LayerId{0}, 0, broken, "down");
  broken = layer.experts[0];
  broken.up_bias = layer.experts[0].up.matrix.Rows(0, 1);
  expect_refused(LayerId{0}, 0, broken, "bias");
}

TEST(SmallRefusalTest, ShapesThatDoNotFitThePlan) {
  const TestLayer layer(TestSpec(32, 24, 4, 2), {}, 1);
  const auto engine = LoadedEngine(OpenCudaDevice({}).value(), {}, {&layer}, 16);
  const StepPlan plan = PlanStep(SkewedRouting(8, 2, 4, Skew::kUniform, 1), Placement::Even(4, 1), {0, 8});
  const RankPlanView view = plan.ranks[0].view();
  const StepPlan other = PlanStep(SkewedRouting(8, 2, 5, Skew::kUniform, 1), Placement::Even(5, 1), {0, 8});
  const HostMatrix rows = RandomRows(DType::kBF16, 8, 32, 1);
  HostMatrix output = NanMatrix(DType::kBF16, 8, 32);
  const ConstMatrixView home = engine->BeginStep(0, rows.view()).value();
  const MatrixView out = engine->StepOutput(0, output.view()).value();

  const auto with = [](auto matrix, DType dtype, int64_t num_rows, int64_t num_cols) {
    matrix.dtype = dtype, matrix.num_rows = num_rows, matrix.num_cols = num_cols;
    return matrix;
  };
  const auto expect_refused = [](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  };
  expect_refused(engine->RunExperts(LayerId{0}, view, with(home, DType::kBF16, 8, 31), out));
  expect_refused(engine->RunExperts(LayerId{0}, view, with(home, DType::kBF16, 7, 32), out));
  expect_refused(engine->RunExperts(LayerId{0}, view, with(home, DType::kF16, 8, 32), out));
  expect_refused(engine->RunExperts(LayerId{0}, view, home, with(out, DType::kBF16, 7, 32)));
  expect_refused(engine->RunExperts(LayerId{0}, view, home, with(out, DType::kF32, 8, 32)));
  expect_refused(engine->RunExperts(LayerId{1}, view, home, out));
  expect_refused(engine->RunExperts(LayerId{0}, other.ranks[0].view(), home, out));
  expect_refused(engine->GatherSendRows(view, with(home, DType::kBF16, 7, 32), out));
  expect_refused(engine->GatherSendRows(view, home, with(out, DType::kBF16, 8, 31)));
  expect_refused(engine->Combine(view, with(home, DType::kBF16, 7, 32), out));
  expect_refused(engine->Combine(view, home, with(out, DType::kF16, 8, 32)));
  EXPECT_EQ(engine->CheckDevice(), absl::OkStatus());
  RunAndCompare(*engine, layer, SkewedRouting(16, 2, 4, Skew::kUniform, 1));
}

}  // namespace
}  // namespace switchyard
