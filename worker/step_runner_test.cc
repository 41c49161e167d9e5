#include "worker/step_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "moe/exchange/in_process.h"
#include "moe/exchange/testing.h"
#include "moe/experts/cpu/cpu_engine.h"
#include "moe/experts/reference.h"
#include "moe/plan/testing.h"
#include "moe/tensor/buffer.h"
#include "moe/weights/weight_source.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

// A small layer with its weights, and rows to compute.
class StepRunnerTest : public testing::Test {
 protected:
  void SetUp() override {
    auto source =
        OpenWeightSource("synthetic:dim=24,hidden=40,experts=6,topk=2,act=silu,glu=1,bias=0,dtype=fp32,seed=3");
    ASSERT_TRUE(source.ok()) << source.status();
    source_ = std::move(*source);
    for (int expert = 0; expert < layer().num_experts; ++expert) experts_.push_back(*source_->ReadExpert(0, expert));
  }

  const LayerSpec& layer() const { return source_->spec().layers[0]; }

  // An engine with the experts of one rank.
  std::unique_ptr<ExpertEngine> Engine(const Placement& placement, int rank) const {
    auto engine = CreateCpuEngine({.compute_dtype = DType::kF32, .num_threads = 1});
    EXPECT_TRUE(engine.ok()) << engine.status();
    const std::vector<int>& experts = placement.experts_of(rank);
    EXPECT_TRUE((*engine)->AddLayer(layer(), experts.size()).ok());
    for (size_t slot = 0; slot < experts.size(); ++slot) {
      EXPECT_TRUE((*engine)->LoadExpert(LayerId{0}, slot, experts_[experts[slot]]).ok());
    }
    return std::move(*engine);
  }

  HostMatrix RandomRows(int64_t num_rows, uint32_t seed) const {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    HostMatrix rows = HostMatrix::Allocate(DType::kF32, num_rows, layer().hidden_dim);
    for (int64_t i = 0; i < num_rows * layer().hidden_dim; ++i) rows.view().as<float>()[i] = normal(random);
    return rows;
  }

  // Runs a step on a group of engines and compares every output row with the reference.
  void RunAndCompare(const Routing& routing, const Placement& placement, uint32_t seed) {
    const int num_ranks = placement.num_ranks();
    HostMatrix rows = RandomRows(routing.num_rows, seed);
    HostMatrix output = HostMatrix::Allocate(DType::kF32, routing.num_rows, layer().hidden_dim);
    const StepPlan plan = PlanStep(routing, placement, HomeOffsets(routing.num_rows, num_ranks));
    const auto factory = CreateInProcessFactory();
    const auto group = FormGroup(*factory, num_ranks);
    OnEveryRank(num_ranks, [&](int rank) {
      const auto engine = Engine(placement, rank);
      const int64_t begin = plan.home_offsets[rank], count = plan.home_offsets[rank + 1] - begin;
      StepTimes times;
      const absl::Status done = StepRunner(engine.get(), group[rank].get())
                                    .Run(LayerId{0}, layer().hidden_dim, plan.ranks[rank].view(),
                                         rows.view().Rows(begin, count), output.view().Rows(begin, count), &times);
      EXPECT_TRUE(done.ok()) << done;
    });
    const std::vector<double> expected = ReferenceExperts(layer(), experts_, rows.view(), routing);
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(output.view().as<float>()[i], expected[i], 1e-4 * (1 + std::abs(expected[i]))) << "element " << i;
    }
  }

  std::unique_ptr<WeightSource> source_;
  std::vector<ExpertWeights> experts_;
};

TEST_F(StepRunnerTest, AgreesWithReferenceOnOneToFourRanks) {
  for (int num_ranks = 1; num_ranks <= 4; ++num_ranks) {
    for (const int64_t num_rows : {1, 3, 50}) {
      SCOPED_TRACE(absl::StrCat(num_rows, " rows on ", num_ranks, " ranks"));
      const Routing routing = RandomRouting(num_rows, 2, 6, num_ranks);
      RunAndCompare(routing, Placement::Even(6, num_ranks), 11);
      RunAndCompare(routing, RandomPlacement(6, num_ranks, num_rows), 12);
    }
  }
}

TEST_F(StepRunnerTest, DroppedRowsComeOutZero) {
  for (int num_ranks = 1; num_ranks <= 3; ++num_ranks) {
    Routing routing = RandomRouting(9, 2, 6, 4);
    for (const int choice : {0, 1, 6, 16, 17}) routing.expert_idx[choice] = -1;
    RunAndCompare(routing, Placement::Even(6, num_ranks), 13);
  }
}

// Fails in one phase, counts the others.
class FailingEngine final : public ExpertEngine {
 public:
  enum class Phase { kScratch, kGather, kExperts, kCombine, kNone };
  explicit FailingEngine(Phase failing) : failing_(failing) {}

  DType compute_dtype() const override { return DType::kF32; }
  absl::Status AddLayer(const LayerSpec&, int) override { return absl::OkStatus(); }
  absl::Status LoadExpert(LayerId, int, const ExpertWeights&) override { return absl::OkStatus(); }
  int64_t weight_bytes() const override { return 0; }
  absl::StatusOr<std::byte*> ScratchBytes(Scratch purpose, size_t num_bytes) override {
    SY_RETURN_IF_ERROR(Enter(Phase::kScratch));
    HostBuffer& buffer = buffers_[static_cast<int>(purpose)];
    buffer.EnsureSize(num_bytes);
    return buffer.data();
  }
  DeviceStream stream() const override { return nullptr; }
  absl::Status GatherSendRows(const RankPlanView&, ConstMatrixView, MatrixView) override {
    ++num_gathers;
    return Enter(Phase::kGather);
  }
  absl::Status RunExperts(LayerId, const RankPlanView&, ConstMatrixView, MatrixView) override {
    return Enter(Phase::kExperts);
  }
  absl::Status Combine(const RankPlanView&, ConstMatrixView, MatrixView) override { return Enter(Phase::kCombine); }

  int num_gathers = 0;

 private:
  absl::Status Enter(Phase phase) const {
    return phase == failing_ ? absl::InternalError("out of order") : absl::OkStatus();
  }

  const Phase failing_;
  HostBuffer buffers_[4];
};

// Statuses of a two-rank step whose rank 0 fails in a phase, or is given too narrow an output.
std::vector<absl::Status> RunFailing(FailingEngine::Phase phase, int64_t output_cols) {
  const Placement placement = Placement::Even(4, 2);
  const StepPlan plan = PlanStep(RandomRouting(8, 2, 4, 1), placement, HomeOffsets(8, 2));
  const auto factory = CreateInProcessFactory();
  const auto group = FormGroup(*factory, 2);
  std::vector<absl::Status> statuses(2);
  OnEveryRank(2, [&](int rank) {
    FailingEngine engine(rank == 0 ? phase : FailingEngine::Phase::kNone);
    HostMatrix rows = HostMatrix::Allocate(DType::kF32, 4, 16);
    HostMatrix output = HostMatrix::Allocate(DType::kF32, 4, rank == 0 ? output_cols : 16);
    StepTimes times;
    statuses[rank] = StepRunner(&engine, group[rank].get())
                         .Run(LayerId{0}, 16, plan.ranks[rank].view(), rows.view(), output.view(), &times);
  });
  return statuses;
}

TEST(StepRunnerFailureTest, LocalFailureDoesNotLeavePeersWaiting) {
  using Phase = FailingEngine::Phase;
  for (const Phase phase : {Phase::kScratch, Phase::kGather, Phase::kExperts}) {
    const std::vector<absl::Status> statuses = RunFailing(phase, 16);
    EXPECT_EQ(statuses[0].code(), absl::StatusCode::kInternal) << statuses[0];
    EXPECT_EQ(statuses[1].code(), absl::StatusCode::kUnavailable) << statuses[1];
  }
}

TEST(StepRunnerFailureTest, FailureAfterTheLastExchangeIsThisRanksOwn) {
  const std::vector<absl::Status> statuses = RunFailing(FailingEngine::Phase::kCombine, 16);
  EXPECT_EQ(statuses[0].code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(statuses[1].ok()) << statuses[1];
}

TEST(StepRunnerFailureTest, WrongShapeIsNamedAndEndsTheStep) {
  const std::vector<absl::Status> statuses = RunFailing(FailingEngine::Phase::kNone, 15);
  EXPECT_EQ(statuses[0].code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(statuses[0].message(), HasSubstr("output rows: expected [4, 16] fp32, got [4, 15] fp32"));
  EXPECT_EQ(statuses[1].code(), absl::StatusCode::kUnavailable);
}

TEST(StepRunnerFailureTest, PlanForAnotherGroupIsRefused) {
  const auto factory = CreateInProcessFactory();
  const auto group = FormGroup(*factory, 1);
  const StepPlan plan = PlanStep(RandomRouting(8, 2, 4, 1), Placement::Even(4, 2), HomeOffsets(8, 2));
  FailingEngine engine(FailingEngine::Phase::kNone);
  HostMatrix rows = HostMatrix::Allocate(DType::kF32, 4, 16);
  StepTimes times;
  const absl::Status refused =
      StepRunner(&engine, group[0].get()).Run(LayerId{0}, 16, plan.ranks[0].view(), rows.view(), rows.view(), &times);
  EXPECT_THAT(refused.message(), HasSubstr("for 2 ranks, the group has 1"));
}

TEST(StepRunnerFailureTest, LoneRankThatSendsAllRowsCopiesNone) {
  const auto factory = CreateInProcessFactory();
  const auto group = FormGroup(*factory, 1);
  const Routing routing = RandomRouting(4, 2, 4, 1);
  const StepPlan plan = PlanStep(routing, Placement::Even(4, 1), HomeOffsets(4, 1));
  FailingEngine engine(FailingEngine::Phase::kNone);
  HostMatrix rows = HostMatrix::Allocate(DType::kF32, 4, 16), output = HostMatrix::Allocate(DType::kF32, 4, 16);
  StepTimes times;
  EXPECT_TRUE(StepRunner(&engine, group[0].get())
                  .Run(LayerId{0}, 16, plan.ranks[0].view(), rows.view(), output.view(), &times)
                  .ok());
  EXPECT_EQ(engine.num_gathers, 0);
}

}  // namespace
}  // namespace switchyard
