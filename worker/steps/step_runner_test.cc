#include "worker/steps/step_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/tensor/buffer.h"
#include "moe/exchange/in_process.h"
#include "moe/exchange/testing.h"
#include "moe/plan/testing.h"
#include "worker/steps/testing.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

class StepRunnerTest : public testing::Test {
 protected:
  // This rank's share of a step of the test's layer.
  RankStep ShareOf(const StepPlan& plan, int rank, MatrixView rows, MatrixView output) const {
    const int64_t begin = plan.home_offsets[rank], count = plan.home_offsets[rank + 1] - begin;
    return {.layer = LayerId{0},
            .hidden_dim = layer_.spec().hidden_dim,
            .plan = plan.ranks[rank].view(),
            .home_rows = rows.Rows(begin, count),
            .output = output.Rows(begin, count)};
  }

  // Runs a step on a group of engines and compares every output row with the reference.
  void RunAndCompare(const Routing& routing, const Placement& placement, uint32_t seed) {
    const int num_ranks = placement.num_ranks();
    HostMatrix rows = layer_.RandomRows(routing.num_rows, seed);
    HostMatrix output = layer_.RandomRows(routing.num_rows, seed + 1000);
    const StepPlan plan = PlanStep(routing, placement, HomeOffsets(routing.num_rows, num_ranks));
    const auto factory = CreateInProcessFactory();
    const auto group = FormGroup(*factory, num_ranks);
    OnEveryRank(num_ranks, [&](int rank) {
      const auto engine = layer_.MakeEngine(placement, rank);
      RankStep step = ShareOf(plan, rank, rows.view(), output.view());
      step.engine = engine.get();
      step.communicator = group[rank].get();
      StepTimes times;
      const absl::Status done = StepRunner().Run(step, &times);
      EXPECT_TRUE(done.ok()) << done;
    });
    layer_.ExpectReference(rows.view(), routing, output.view());
  }

  // Like RunAndCompare, but on asynchronous engines and with the step cut into chunks.
  void RunInChunksAndCompare(const Routing& routing, const Placement& placement, int num_chunks) {
    const int num_ranks = placement.num_ranks();
    HostMatrix rows = layer_.RandomRows(routing.num_rows, 7);
    HostMatrix output = layer_.RandomRows(routing.num_rows, 8);
    StepPlan plan = PlanStep(routing, placement, HomeOffsets(routing.num_rows, num_ranks));
    for (RankPlan& rank : plan.ranks) rank.num_chunks = num_chunks;
    const auto factory = CreateInProcessFactory();
    const auto group = FormGroup(*factory, num_ranks);
    OnEveryRank(num_ranks, [&](int rank) {
      FakeDeviceCommunicator communicator(group[rank].get());
      FakeDeviceEngine engine(layer_.MakeEngine(placement, rank), rows.view().size_bytes() * num_ranks);
      RankStep step = ShareOf(plan, rank, rows.view(), output.view());
      step.engine = &engine;
      step.communicator = &communicator;
      StepTimes times;
      const absl::Status done = StepRunner().Run(step, &times);
      EXPECT_TRUE(done.ok()) << done;
      // Two exchanges (out and back) for every chunk except the rank's own. A single rank that computes every row
      // exchanges nothing.
      const bool computes_all = num_ranks == 1 && plan.ranks[0].view().num_recv_rows() == routing.num_rows;
      EXPECT_EQ(communicator.num_exchanges(), computes_all ? 0 : 2 * std::max(1, num_chunks - 1));
    });
    layer_.ExpectReference(rows.view(), routing, output.view());
  }

  const TestLayer layer_;
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

TEST_F(StepRunnerTest, ChunksOnAsynchronousEnginesAgreeWithReference) {
  for (const int num_ranks : {1, 2, 3}) {
    for (const int num_chunks : {1, 2, 3, 4, 8}) {
      for (const int64_t num_rows : {1, 5, 64}) {
        SCOPED_TRACE(absl::StrCat(num_rows, " rows on ", num_ranks, " ranks in ", num_chunks, " chunks"));
        RunInChunksAndCompare(RandomRouting(num_rows, 2, 6, num_chunks), Placement::Even(6, num_ranks), num_chunks);
      }
    }
  }
}

// Six experts on `num_ranks` ranks. Every row chooses two experts of the rank that is `shift` ranks after its home.
Routing RoutingToOneRank(int64_t num_rows, int num_ranks, int shift) {
  Routing routing;
  routing.Resize(num_rows, 2);
  const std::vector<int64_t> home_offsets = HomeOffsets(num_rows, num_ranks);
  for (int home = 0; home < num_ranks; ++home) {
    const int first_expert = (home + shift) % num_ranks * 6 / num_ranks;
    for (int64_t choice = 2 * home_offsets[home]; choice < 2 * home_offsets[home + 1]; ++choice) {
      routing.expert_idx[choice] = static_cast<int32_t>(first_expert + choice % 2);
      routing.weight[choice] = 0.3f + 0.4f * static_cast<float>(choice % 2);
    }
  }
  return routing;
}

TEST_F(StepRunnerTest, ChunksWithEmptyBlocksAgreeWithReference) {
  for (const int num_ranks : {1, 2, 3}) {
    const Placement placement = Placement::Even(6, num_ranks);
    for (const int num_chunks : {2, 3, 8}) {
      for (int shift = 0; shift < num_ranks; ++shift) {
        SCOPED_TRACE(absl::StrCat("shift ", shift, " on ", num_ranks, " ranks in ", num_chunks, " chunks"));
        Routing routing = RoutingToOneRank(31, num_ranks, shift);
        RunInChunksAndCompare(routing, placement, num_chunks);
        for (int64_t choice = 0; choice < 2 * 31; choice += 3) routing.expert_idx[choice] = -1;
        for (int64_t choice = 20; choice < 30; ++choice) routing.expert_idx[choice] = -1;  // rows without any expert
        RunInChunksAndCompare(routing, placement, num_chunks);
      }
    }
  }
}

TEST_F(StepRunnerTest, HostEnginesTakeEveryStepInOneChunk) {
  const Routing routing = RandomRouting(20, 2, 6, 1);
  const Placement placement = Placement::Even(6, 2);
  StepPlan plan = PlanStep(routing, placement, HomeOffsets(20, 2));
  for (RankPlan& rank : plan.ranks) rank.num_chunks = 4;
  HostMatrix rows = layer_.RandomRows(20, 1), output = layer_.RandomRows(20, 2);
  const auto factory = CreateInProcessFactory();
  const auto group = FormGroup(*factory, 2);
  OnEveryRank(2, [&](int rank) {
    const auto engine = layer_.MakeEngine(placement, rank);
    RankStep step = ShareOf(plan, rank, rows.view(), output.view());
    step.engine = engine.get();
    step.communicator = group[rank].get();
    StepTimes times;
    EXPECT_TRUE(StepRunner().Run(step, &times).ok());
  });
  layer_.ExpectReference(rows.view(), routing, output.view());
}

// Fails in one phase, and counts the calls that move rows.
class FailingEngine final : public ExpertEngine {
 public:
  enum class Phase { kScratch, kGather, kExperts, kCombine, kNone };
  explicit FailingEngine(Phase failing) : failing_(failing) {}

  DType compute_dtype() const override { return DType::kF32; }
  absl::Status AddLayer(const LayerSpec&, int) override { return absl::OkStatus(); }
  absl::Status LoadExpert(LayerId, int, const ExpertWeights&) override { return absl::OkStatus(); }
  int64_t weight_bytes() const override { return 0; }
  absl::StatusOr<std::byte*> ScratchBytes(Scratch purpose, size_t num_bytes) override {
    ++num_copies;
    SY_RETURN_IF_ERROR(Enter(Phase::kScratch));
    HostBuffer& buffer = buffers_[static_cast<int>(purpose)];
    buffer.EnsureSize(num_bytes);
    return buffer.data();
  }
  DeviceStream stream() const override { return nullptr; }
  absl::Status GatherSendRows(const RankPlanView&, ConstMatrixView, MatrixView) override {
    ++num_copies;
    return Enter(Phase::kGather);
  }
  absl::Status RunExperts(LayerId, const RankPlanView&, ConstMatrixView, MatrixView) override {
    return Enter(Phase::kExperts);
  }
  absl::Status Combine(const RankPlanView&, ConstMatrixView, MatrixView) override {
    ++num_copies;
    return Enter(Phase::kCombine);
  }

  int num_copies = 0;  // calls that move rows, or ask for room to move them to

 private:
  absl::Status Enter(Phase phase) const {
    return phase == failing_ ? absl::InternalError("out of order") : absl::OkStatus();
  }

  const Phase failing_;
  HostBuffer buffers_[4];
};

// The ranks' statuses after a step on two ranks in which rank 0 fails in `phase` or has an output of `output_cols`
// columns.
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
    statuses[rank] = StepRunner().Run({.engine = &engine,
                                       .communicator = group[rank].get(),
                                       .layer = LayerId{0},
                                       .hidden_dim = 16,
                                       .plan = plan.ranks[rank].view(),
                                       .home_rows = rows.view(),
                                       .output = output.view()},
                                      &times);
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
  const absl::Status refused = StepRunner().Run({.engine = &engine,
                                                 .communicator = group[0].get(),
                                                 .layer = LayerId{0},
                                                 .hidden_dim = 16,
                                                 .plan = plan.ranks[0].view(),
                                                 .home_rows = rows.view(),
                                                 .output = rows.view()},
                                                &times);
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
  EXPECT_TRUE(StepRunner()
                  .Run({.engine = &engine,
                        .communicator = group[0].get(),
                        .layer = LayerId{0},
                        .hidden_dim = 16,
                        .plan = plan.ranks[0].view(),
                        .home_rows = rows.view(),
                        .output = output.view()},
                       &times)
                  .ok());
  EXPECT_EQ(engine.num_copies, 0);
}

}  // namespace
}  // namespace switchyard
