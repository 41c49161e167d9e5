// Tests what the CUDA engine promises besides right results, through the ExpertEngine interface alone: several steps in
// flight, the same bytes for the same step, NaN that stays in its row, loading from several threads, and refusals.
// Needs a GPU and no files. Tests whose names begin with "Small" have shapes tiny enough for compute-sanitizer.
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

#include "base/tensor/convert.h"
#include "moe/experts/cuda/cuda_engine.h"
#include "moe/experts/cuda/engine_fixture.h"
#include "moe/experts/cuda/testing.h"
#include "moe/experts/reference.h"
#include "moe/gpu/memory.h"

namespace switchyard {
namespace {

using testing::Contains;
using testing::Ge;
using testing::HasSubstr;

class ContractTest : public EngineVariantTest {
 protected:
  // Checks that steps of different shapes, layers and skews in flight at once give the same bytes as each step alone.
  void StepsInFlight(const std::vector<LayerSpec>& specs, const std::vector<int64_t>& row_counts) const;
};

// A step whose rows and outputs are page-locked, so that the calls that copy them do not block.
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

void ContractTest::StepsInFlight(const std::vector<LayerSpec>& specs, const std::vector<int64_t>& row_counts) const {
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
  // A second thread waits for the steps in turn, like a worker's completion thread.
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
    EXPECT_EQ(EnqueueStep(*engine, static_cast<int>(i) % num_lanes, LayerId{step.layer}, specs[step.layer],
                          step.routing, step.rows, step.output, Way::kInPlace),
              absl::OkStatus());
    begun.release();
  }
  waiter.join();
  for (size_t i = 0; i < steps.size(); ++i) {
    EXPECT_EQ(std::memcmp(steps[i].output.data, steps[i].expected.data(), steps[i].expected.size()), 0) << "step " << i;
  }
}

class SmallContractTest : public ContractTest {};
INSTANTIATE_TEST_SUITE_P(Small, SmallContractTest, EngineVariants(), VariantName);

class CudaContractTest : public ContractTest {};
INSTANTIATE_TEST_SUITE_P(All, CudaContractTest, EngineVariants(), VariantName);

TEST_P(SmallContractTest, StepsInFlight) {
  StepsInFlight({TestSpec(32, 24, 4, 2), TestSpec(24, 40, 6, 3, {Activation::kRelu, false, true})}, {3, 1, 40, 17});
}

TEST_P(CudaContractTest, StepsInFlight) {
  StepsInFlight({TestSpec(256, 128, 16, 4), TestSpec(100, 70, 5, 2), TestSpec(512, 256, 8, 2, {Activation::kGelu})},
                {1, 2000, 16, 300, 7, 128, 4096, 9, 64});
}

TEST_P(CudaContractTest, SameStepGivesSameBytes) {
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

TEST_P(CudaContractTest, PageLockedRowsGiveTheSameBytes) {
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
    ASSERT_EQ(EnqueueStep(*engine, engine->num_lanes() - 1, LayerId{0}, layer.spec, routing,
                          {pinned.data(), dtype(), num_rows, 256}, output, Way::kInPlace),
              absl::OkStatus());
    ASSERT_EQ(engine->WaitStep(engine->num_lanes() - 1), absl::OkStatus());
    EXPECT_EQ(std::memcmp(output.data, expected.data(), num_bytes), 0) << num_rows << " rows";
  }
}

TEST_P(CudaContractTest, ARowDoesNotDependOnItsBatchBeyondRounding) {
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

TEST_P(CudaContractTest, NanStaysInItsRowAndInItsStep) {
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
  // A step whose rows are all NaN leaves the workspace full of NaN, which must not reach later steps.
  RunStep(*engine, layer, routing, NanMatrix(dtype(), kRows, kDim).view());
  for (const int64_t num_rows : {1, 5, 130}) {
    RunAndCompare(*engine, layer, SkewedRouting(num_rows, 2, 8, Skew::kSomeEmpty, 2));
  }
}

TEST_P(CudaContractTest, NanStaysInItsRowThroughEveryFormula) {
  constexpr int64_t kRows = 40, kDim = 64;
  std::vector<ExpertSpec> experts = {{.limit = 1, .up_offset = 1}, {.weighs_input = true}};
  for (const Activation activation :
       {Activation::kGelu, Activation::kRelu, Activation::kGeluTanh, Activation::kQuickGelu}) {
    for (const bool gated : {true, false}) experts.push_back({.activation = activation, .gated = gated});
  }
  for (const ExpertSpec& expert : experts) {
    SCOPED_TRACE(testing::Message() << ActivationName(expert.activation) << " gated " << expert.gated);
    const TestLayer layer = Layer(TestSpec(kDim, 48, 4, 2, expert));
    const auto engine = Loaded(layer, kRows);
    HostMatrix rows = RandomRows(dtype(), kRows, kDim, 1);
    std::memset(rows.view().row(3), 0xff, rows.view().row_bytes());
    const HostMatrix output = RunStep(*engine, layer, SkewedRouting(kRows, 2, 4, Skew::kUniform, 1), rows.view());
    EXPECT_EQ(CountNans(output.view().Rows(3, 1)), kDim);
    EXPECT_EQ(CountNans(output.view()), kDim);
  }
}

TEST_P(CudaContractTest, ThreadsLoadAtOnce) {
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

TEST_P(CudaContractTest, WeightBytesStayNearTheRawSize) {
  const TestLayer layer = Layer(TestSpec(1024, 512, 4, 2));
  const auto engine = Loaded(layer, 16);
  const int64_t raw = 4 * ExpertBytes(layer.spec, dtype());
  EXPECT_GE(engine->weight_bytes(), raw);
  EXPECT_LE(engine->weight_bytes(), 1.05 * raw);
}

// ---------------------------------------------------------------------------------------------------------------------
// Refusals

class SmallRefusalTest : public GpuTest {};

// All whole numbers in the text.
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

TEST_F(SmallRefusalTest, TooLittleMemoryIsRefusedWithTheBytes) {
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

TEST_F(SmallRefusalTest, MoreThanTheDeviceHasIsRefused) {
  const auto engine = CreateCudaEngine(device_, {}).value();
  ASSERT_EQ(engine->AddLayer(TestSpec(16384, 65536, 512, 2), 512), absl::OkStatus());  // 3 TB
  EXPECT_EQ(engine->Reserve(1024).code(), absl::StatusCode::kResourceExhausted);
}

TEST(SmallRefusalWithoutGpuTest, NoSuchDevice) {
  const absl::Status refused = OpenCudaDevice({.device_idx = NumCudaDevices()}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
}

TEST_F(SmallRefusalTest, StepsLargerThanReserved) {
  const TestLayer layer(TestSpec(32, 24, 4, 2), {}, 1);
  const auto engine = LoadedEngine(device_, {}, {&layer}, 16);
  const HostMatrix rows = RandomRows(DType::kBF16, 17, 32, 1);
  HostMatrix output = NanMatrix(DType::kBF16, 17, 32);
  const absl::Status refused =
      EnqueueStep(*engine, 0, LayerId{0}, layer.spec, SkewedRouting(17, 2, 4, Skew::kUniform, 1), rows.view(),
                  output.view(), Way::kInPlace);
  EXPECT_FALSE(refused.ok());
  EXPECT_THAT(std::string(refused.message()), HasSubstr("17"));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("16"));
  RunAndCompare(*engine, layer, SkewedRouting(16, 2, 4, Skew::kUniform, 1));  // the engine still works
}

TEST_F(SmallRefusalTest, WrongLayersSlotsAndWeights) {
  const TestLayer layer(TestSpec(32, 24, 4, 2), {}, 1);
  const auto engine = CreateCudaEngine(device_, {}).value();
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
  broken = layer.experts[0];
  broken.gate_bias = layer.experts[0].up.matrix.Rows(0, 1);
  expect_refused(LayerId{0}, 0, broken, "bias");
}

TEST_F(SmallRefusalTest, GatedBiasedExpertsWithoutGateBias) {
  const TestLayer layer(TestSpec(32, 24, 4, 2, {.biased = true}), {}, 1);
  const auto engine = CreateCudaEngine(device_, {}).value();
  ASSERT_EQ(engine->AddLayer(layer.spec, 2), absl::OkStatus());
  ASSERT_EQ(engine->Reserve(16), absl::OkStatus());
  ExpertWeights broken = layer.experts[0];
  broken.gate_bias = {};
  const absl::Status refused = engine->LoadExpert(LayerId{0}, 0, broken);
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("gate bias"));
}

TEST_F(SmallRefusalTest, FormulasWithoutCode) {
  const auto engine = CreateCudaEngine(device_, {}).value();
  const absl::Status refused =
      engine->AddLayer(TestSpec(32, 24, 4, 2, {.activation = Activation::kGelu, .limit = 7}), 4);
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("layer 3: limit"));
}

TEST_F(SmallRefusalTest, ShapesThatDoNotFitThePlan) {
  const TestLayer layer(TestSpec(32, 24, 4, 2), {}, 1);
  const auto engine = LoadedEngine(device_, {}, {&layer}, 16);
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
