#include "worker/steps/step_pipeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "moe/exchange/in_process.h"
#include "moe/exchange/testing.h"
#include "moe/plan/testing.h"
#include "worker/steps/testing.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

constexpr int kNumExperts = 6;

// The parts of a step that all ranks share.
struct SharedStep {
  SharedStep(const TestLayer& layer, const Placement& placement, int64_t num_rows, int num_chunks, uint32_t seed)
      : routing(RandomRouting(num_rows, 2, kNumExperts, seed)),
        plan(PlanStep(routing, placement, HomeOffsets(num_rows, placement.num_ranks()))),
        rows(layer.RandomRows(num_rows, seed)),
        output(layer.RandomRows(num_rows, seed + 1000)) {
    for (RankPlan& rank : plan.ranks) rank.num_chunks = num_chunks;
  }

  RankStep ForRank(int rank, ExpertEngine* engine, Communicator* communicator) {
    const int64_t begin = plan.home_offsets[rank], count = plan.home_offsets[rank + 1] - begin;
    return {.engine = engine,
            .communicator = communicator,
            .layer = LayerId{0},
            .hidden_dim = rows.view().num_cols,
            .plan = plan.ranks[rank].view(),
            .home_rows = rows.view().Rows(begin, count),
            .output = output.view().Rows(begin, count)};
  }

  Routing routing;
  StepPlan plan;
  HostMatrix rows, output;
};

// The reports in order. Read them only after all steps have been reported.
struct Reports {
  StepDoneFn ForStep(int idx) {
    return [this, idx](const absl::Status& status, const StepTimes&) {
      MutexLock lock(&mu);
      order.push_back(idx);
      statuses.push_back(status);
      threads.push_back(std::this_thread::get_id());
    };
  }
  Mutex mu;
  std::vector<int> order;
  std::vector<absl::Status> statuses;
  std::vector<std::thread::id> threads;
};

class StepPipelineTest : public testing::Test {
 protected:
  static void NeverLost(const absl::Status& why) { ADD_FAILURE() << why; }

  std::unique_ptr<FakeDeviceEngine> MakeDevice(const Placement& placement, int rank) const {
    constexpr size_t kScratchBytes = 64 << 10;
    return std::make_unique<FakeDeviceEngine>(layer_.MakeEngine(placement, rank), kScratchBytes);
  }

  const TestLayer layer_;
  const std::unique_ptr<CommunicatorFactory> factory_ = CreateInProcessFactory();
};

TEST_F(StepPipelineTest, ManyStepsThroughTwoLanesComeOutRightAndInOrder) {
  for (const int num_ranks : {1, 2, 3}) {
    const Placement placement = Placement::Even(kNumExperts, num_ranks);
    std::vector<SharedStep> steps;
    for (int i = 0; i < 30; ++i) steps.emplace_back(layer_, placement, 1 + i * 7 % 40, 1 << i % 3, i);
    const auto group = FormGroup(*factory_, num_ranks);
    OnEveryRank(num_ranks, [&](int rank) {
      FakeDeviceCommunicator communicator(group[rank].get());
      const auto engine = MakeDevice(placement, rank);
      Reports reports;
      StepPipeline pipeline(engine->num_lanes(), NeverLost);
      for (size_t i = 0; i < steps.size(); ++i) {
        pipeline.Submit(steps[i].ForRank(rank, engine.get(), &communicator), reports.ForStep(static_cast<int>(i)));
      }
      pipeline.Drain();
      ASSERT_EQ(reports.order.size(), steps.size());
      for (size_t i = 0; i < steps.size(); ++i) {
        EXPECT_EQ(reports.order[i], static_cast<int>(i));
        EXPECT_TRUE(reports.statuses[i].ok()) << reports.statuses[i];
        EXPECT_NE(reports.threads[i], std::this_thread::get_id());
      }
    });
    for (SharedStep& step : steps) layer_.ExpectReference(step.rows.view(), step.routing, step.output.view());
  }
}

TEST_F(StepPipelineTest, HostEnginesReportOnTheSubmittingThreadBeforeSubmitReturns) {
  const Placement placement = Placement::Even(kNumExperts, 1);
  const auto group = FormGroup(*factory_, 1);
  const auto engine = layer_.MakeEngine(placement, 0);
  SharedStep step(layer_, placement, 9, 1, 1);
  Reports reports;
  StepPipeline pipeline(/*num_lanes=*/0, NeverLost);
  pipeline.Submit(step.ForRank(0, engine.get(), group[0].get()), reports.ForStep(0));
  ASSERT_EQ(reports.order.size(), 1);
  EXPECT_TRUE(reports.statuses[0].ok());
  EXPECT_EQ(reports.threads[0], std::this_thread::get_id());
  layer_.ExpectReference(step.rows.view(), step.routing, step.output.view());
  pipeline.Refuse(absl::InternalError("odd"), reports.ForStep(1));
  EXPECT_EQ(reports.statuses.at(1), absl::InternalError("odd"));
}

// Simulates the loss of a peer: its rows never come, until the communicator is aborted, as the next epoch does.
TEST_F(StepPipelineTest, StepsThatWaitForAPeerEndWhenAborted) {
  const Placement placement = Placement::Even(kNumExperts, 2);
  const auto group = FormGroup(*factory_, 2);
  FakeDeviceCommunicator communicator(group[0].get());
  const auto engine = MakeDevice(placement, 0);
  SharedStep step(layer_, placement, 12, 2, 1);
  Reports reports;
  {
    StepPipeline pipeline(engine->num_lanes(), NeverLost);
    for (int i = 0; i < 2; ++i) {
      pipeline.Submit(step.ForRank(0, engine.get(), &communicator), reports.ForStep(i));
    }
    std::thread aborter([&] { communicator.Abort(); });
    // More steps than lanes: one of these waits for a lane until the abort.
    for (int i = 2; i < 5; ++i) {
      pipeline.Submit(step.ForRank(0, engine.get(), &communicator), reports.ForStep(i));
    }
    aborter.join();
  }  // the pipeline's destructor drains it
  EXPECT_EQ(reports.order, (std::vector<int>{0, 1, 2, 3, 4}));
  for (const absl::Status& status : reports.statuses) EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
}

TEST_F(StepPipelineTest, ARefusedStepIsReportedInItsTurn) {
  const Placement placement = Placement::Even(kNumExperts, 1);
  const auto group = FormGroup(*factory_, 1);
  FakeDeviceCommunicator communicator(group[0].get());
  const auto engine = MakeDevice(placement, 0);
  SharedStep step(layer_, placement, 12, 1, 1);
  Reports reports;
  StepPipeline pipeline(engine->num_lanes(), NeverLost);
  for (int i = 0; i < 12; ++i) {
    if (i % 3 == 1) {
      pipeline.Refuse(absl::InternalError("odd"), reports.ForStep(i));
    } else {
      pipeline.Submit(step.ForRank(0, engine.get(), &communicator), reports.ForStep(i));
    }
  }
  pipeline.Drain();
  ASSERT_EQ(reports.order.size(), 12);
  for (int i = 0; i < 12; ++i) {
    EXPECT_EQ(reports.order[i], i);
    EXPECT_EQ(reports.statuses[i].ok(), i % 3 != 1);
  }
}

TEST_F(StepPipelineTest, AFailureToEnqueueFreesItsLaneAndAborts) {
  const Placement placement = Placement::Even(kNumExperts, 1);
  const auto group = FormGroup(*factory_, 1);
  FakeDeviceCommunicator communicator(group[0].get());
  const auto engine = MakeDevice(placement, 0);
  engine->FailEnqueueing(absl::InternalError("no such kernel"));
  SharedStep step(layer_, placement, 12, 1, 1);
  Reports reports;
  StepPipeline pipeline(engine->num_lanes(), NeverLost);
  for (int i = 0; i < 5; ++i) pipeline.Submit(step.ForRank(0, engine.get(), &communicator), reports.ForStep(i));
  pipeline.Drain();
  ASSERT_EQ(reports.statuses.size(), 5);
  for (const absl::Status& status : reports.statuses) EXPECT_THAT(status.message(), HasSubstr("no such kernel"));
  const std::byte nothing{};
  const size_t no_bytes = 0;
  std::byte none;
  EXPECT_TRUE(absl::IsAborted(group[0]->AllToAllV(&nothing, {&no_bytes, 1}, &none, {&no_bytes, 1}, nullptr)));
}

TEST_F(StepPipelineTest, ALostDeviceIsToldOnceTheStepIsReported) {
  const Placement placement = Placement::Even(kNumExperts, 1);
  const auto group = FormGroup(*factory_, 1);
  FakeDeviceCommunicator communicator(group[0].get());
  const auto engine = MakeDevice(placement, 0);
  engine->FailRunning(absl::InternalError("illegal address"));
  engine->LoseDevice(absl::InternalError("the device is lost"));
  SharedStep step(layer_, placement, 12, 1, 1);
  Reports reports;
  std::vector<absl::Status> lost;
  size_t reported_before = 0;
  StepPipeline pipeline(engine->num_lanes(), [&](const absl::Status& why) {
    reported_before = reports.order.size();
    lost.push_back(why);
  });
  pipeline.Submit(step.ForRank(0, engine.get(), &communicator), reports.ForStep(0));
  pipeline.Drain();
  EXPECT_THAT(reports.statuses.at(0).message(), HasSubstr("illegal address"));
  EXPECT_EQ(lost, std::vector<absl::Status>{absl::InternalError("the device is lost")});
  EXPECT_EQ(reported_before, 1);
}

}  // namespace
}  // namespace switchyard
