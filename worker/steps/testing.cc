#include "worker/steps/testing.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "moe/experts/cpu/cpu_engine.h"
#include "moe/experts/reference.h"

namespace switchyard {
namespace {

RankPlan CopyOf(const RankPlanView& plan) {
  const auto copy = []<typename T>(std::span<const T> values) { return std::vector<T>(values.begin(), values.end()); };
  return {.num_home_rows = plan.num_home_rows,
          .num_chunks = plan.num_chunks,
          .send_offsets = copy(plan.send_offsets),
          .send_rows = copy(plan.send_rows),
          .recv_offsets = copy(plan.recv_offsets),
          .expert_offsets = copy(plan.expert_offsets),
          .pair_rows = copy(plan.pair_rows),
          .pair_weights = copy(plan.pair_weights)};
}

}  // namespace

TestLayer::TestLayer()
    : source_(OpenWeightSource("synthetic:dim=24,hidden=40,experts=6,topk=2,act=silu,glu=1,bias=0,dtype=fp32,seed=3")
                  .value()) {
  for (int expert = 0; expert < spec().num_experts; ++expert) {
    experts_.push_back(source_->ReadExpert(0, expert).value());
  }
}

std::unique_ptr<ExpertEngine> TestLayer::MakeEngine(const Placement& placement, int rank) const {
  auto engine = CreateCpuEngine({.compute_dtype = DType::kF32, .num_threads = 1}).value();
  const std::vector<int>& experts = placement.experts_of(rank);
  EXPECT_TRUE(engine->AddLayer(spec(), static_cast<int>(experts.size())).ok());
  for (size_t slot = 0; slot < experts.size(); ++slot) {
    EXPECT_TRUE(engine->LoadExpert(LayerId{0}, static_cast<int>(slot), experts_[experts[slot]]).ok());
  }
  return engine;
}

HostMatrix TestLayer::RandomRows(int64_t num_rows, uint32_t seed) const {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  HostMatrix rows = HostMatrix::Allocate(DType::kF32, num_rows, spec().hidden_dim);
  for (int64_t i = 0; i < num_rows * spec().hidden_dim; ++i) rows.view().as<float>()[i] = normal(random);
  return rows;
}

void TestLayer::ExpectReference(ConstMatrixView rows, const Routing& routing, ConstMatrixView output) const {
  const std::vector<double> expected = ReferenceExperts(spec(), experts_, rows, routing);
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(output.as<float>()[i], expected[i], 1e-4 * (1 + std::abs(expected[i]))) << "element " << i;
  }
}

FakeStream::FakeStream() : thread_([this] { Loop(); }) {}

FakeStream::~FakeStream() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }
  thread_.join();
}

void FakeStream::Enqueue(std::function<void()> work) {
  MutexLock lock(&mu_);
  work_.push_back(std::move(work));
  changed_.SignalAll();
}

void FakeStream::Loop() {
  while (true) {
    std::function<void()> work;
    {
      MutexLock lock(&mu_);
      while (work_.empty() && !stopping_) changed_.Wait(&mu_);
      if (work_.empty()) return;
      work = std::move(work_.front());
      work_.pop_front();
    }
    work();
  }
}

FakeDeviceEngine::FakeDeviceEngine(std::unique_ptr<ExpertEngine> host, size_t scratch_bytes) : host_(std::move(host)) {
  for (auto& buffer : scratch_) buffer.resize(scratch_bytes);
}

absl::StatusOr<std::byte*> FakeDeviceEngine::ScratchBytes(Scratch purpose, size_t num_bytes) {
  auto& buffer = scratch_[static_cast<size_t>(purpose)];
  if (num_bytes > buffer.size()) return absl::InternalError("the test's scratch is too small");
  return buffer.data();
}

absl::Status FakeDeviceEngine::Order(DeviceStream earlier, DeviceStream later) {
  auto event = std::make_shared<Notification>();
  FakeStream::Of(earlier).Enqueue([event] { event->Notify(); });
  FakeStream::Of(later).Enqueue([event] { event->WaitForNotification(); });
  return absl::OkStatus();
}

void FakeDeviceEngine::Enqueue(std::function<absl::Status()> work) {
  compute_->Enqueue([&lane = lanes_[lane_], work = std::move(work)] {
    if (lane.status.ok()) lane.status = work();
  });
}

absl::StatusOr<ConstMatrixView> FakeDeviceEngine::BeginStep(int lane, ConstMatrixView home_rows) {
  lane_ = lane;
  FakeLane& mine = lanes_[lane];
  mine.done = nullptr;
  mine.rows_in.EnsureSize(home_rows.size_bytes());
  mine.rows_out.EnsureSize(home_rows.size_bytes());
  std::byte* const to = mine.rows_in.data();
  compute_->Enqueue([&mine] { mine.status = absl::OkStatus(); });
  Enqueue([home_rows, to] {
    if (home_rows.num_rows > 0) std::memcpy(to, home_rows.data, home_rows.size_bytes());
    return absl::OkStatus();
  });
  return ConstMatrixView{to, home_rows.dtype, home_rows.num_rows, home_rows.num_cols};
}

absl::StatusOr<MatrixView> FakeDeviceEngine::StepOutput(int lane, MatrixView output) {
  return MatrixView{lanes_[lane].rows_out.data(), output.dtype, output.num_rows, output.num_cols};
}

absl::Status FakeDeviceEngine::EndStep(int lane, ConstMatrixView step_output, MatrixView output) {
  Enqueue([step_output, output] {
    if (output.num_rows > 0) std::memcpy(output.data, step_output.data, output.size_bytes());
    return absl::OkStatus();
  });
  lanes_[lane].done = std::make_shared<Notification>();
  compute_->Enqueue([done = lanes_[lane].done] { done->Notify(); });
  return absl::OkStatus();
}

absl::Status FakeDeviceEngine::WaitStep(int lane) {
  if (lanes_[lane].done == nullptr) return absl::OkStatus();
  lanes_[lane].done->WaitForNotification();
  return lanes_[lane].status;
}

absl::Status FakeDeviceEngine::GatherSendRows(const RankPlanView& plan, ConstMatrixView home_rows,
                                              MatrixView send_rows) {
  Enqueue([this, copy = CopyOf(plan), home_rows, send_rows] {
    return host_->GatherSendRows(copy.view(), home_rows, send_rows);
  });
  return absl::OkStatus();
}

absl::Status FakeDeviceEngine::RunExperts(LayerId layer, const RankPlanView& plan, ConstMatrixView received,
                                          MatrixView partial_sums) {
  SY_RETURN_IF_ERROR(enqueue_failure_);
  Enqueue([this, layer, copy = CopyOf(plan), received, partial_sums, failure = run_failure_] {
    return failure.ok() ? host_->RunExperts(layer, copy.view(), received, partial_sums) : failure;
  });
  return absl::OkStatus();
}

absl::Status FakeDeviceEngine::Combine(const RankPlanView& plan, ConstMatrixView returned, MatrixView output) {
  Enqueue([this, copy = CopyOf(plan), returned, output] { return host_->Combine(copy.view(), returned, output); });
  return absl::OkStatus();
}

absl::Status FakeDeviceCommunicator::AllToAllV(const std::byte* send, std::span<const size_t> send_bytes,
                                               std::byte* recv, std::span<const size_t> recv_bytes,
                                               DeviceStream stream) {
  SY_RETURN_IF_ERROR(Health());
  ++num_exchanges_;
  FakeStream::Of(stream).Enqueue([this, send, recv, sent = std::vector<size_t>(send_bytes.begin(), send_bytes.end()),
                                  received = std::vector<size_t>(recv_bytes.begin(), recv_bytes.end())] {
    const absl::Status done = host_->AllToAllV(send, sent, recv, received, nullptr);
    MutexLock lock(&mu_);
    if (health_.ok()) health_ = done;
  });
  return absl::OkStatus();
}

absl::Status FakeDeviceCommunicator::Health() {
  MutexLock lock(&mu_);
  return health_;
}

}  // namespace switchyard
