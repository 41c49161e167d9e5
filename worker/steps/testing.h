// Helpers for tests of steps: a small layer with its reference, and a device made of threads.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "base/notification.h"
#include "base/tensor/buffer.h"
#include "moe/exchange/communicator.h"
#include "moe/experts/expert_engine.h"
#include "moe/gating/routing.h"
#include "moe/plan/placement.h"
#include "moe/weights/weight_source.h"

namespace switchyard {

// A layer of six gated experts of width 40, for rows of 24 fp32 elements.
class TestLayer {
 public:
  TestLayer();

  const LayerSpec& spec() const { return source_->spec().layers[0]; }
  // A CPU engine with the experts of one rank, as layer 0.
  std::unique_ptr<ExpertEngine> MakeEngine(const Placement& placement, int rank) const;
  HostMatrix RandomRows(int64_t num_rows, uint32_t seed) const;
  // Fails the test at the first element that differs from the reference.
  void ExpectReference(ConstMatrixView rows, const Routing& routing, ConstMatrixView output) const;

 private:
  std::unique_ptr<WeightSource> source_;
  std::vector<ExpertWeights> experts_;
};

// Runs the enqueued work in order, on a thread of its own. Thread-safe.
class FakeStream {
 public:
  FakeStream();
  ~FakeStream();  // runs the remaining work first

  void Enqueue(std::function<void()> work);
  DeviceStream handle() { return DeviceStream(this); }
  static FakeStream& Of(DeviceStream handle) { return *static_cast<FakeStream*>(handle.handle()); }

 private:
  void Loop();

  Mutex mu_;
  CondVar changed_;
  std::deque<std::function<void()>> work_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

// A host engine behind two streams and two lanes. It is asynchronous like a GPU's engine, and copies rows in and out.
class FakeDeviceEngine final : public ExpertEngine {
 public:
  static constexpr int kNumLanes = 2;

  // Each scratch buffer has `scratch_bytes` bytes, and never grows.
  FakeDeviceEngine(std::unique_ptr<ExpertEngine> host, size_t scratch_bytes);

  // Make later RunExperts calls fail with `why` when they are enqueued, or when they run.
  void FailEnqueueing(absl::Status why) { enqueue_failure_ = std::move(why); }
  void FailRunning(absl::Status why) { run_failure_ = std::move(why); }
  // Makes CheckDevice return `why`.
  void LoseDevice(absl::Status why) { device_status_ = std::move(why); }

  DType compute_dtype() const override { return host_->compute_dtype(); }
  absl::Status AddLayer(const LayerSpec& spec, int num_slots) override { return host_->AddLayer(spec, num_slots); }
  absl::Status LoadExpert(LayerId layer, int slot, const ExpertWeights& weights) override {
    return host_->LoadExpert(layer, slot, weights);
  }
  int64_t weight_bytes() const override { return host_->weight_bytes(); }
  absl::StatusOr<std::byte*> ScratchBytes(Scratch purpose, size_t num_bytes) override;
  DeviceStream stream() const override { return compute_->handle(); }
  DeviceStream exchange_stream() const override { return exchange_->handle(); }
  absl::Status Order(DeviceStream earlier, DeviceStream later) override;
  int num_lanes() const override { return kNumLanes; }
  absl::StatusOr<ConstMatrixView> BeginStep(int lane, ConstMatrixView home_rows) override;
  absl::StatusOr<MatrixView> StepOutput(int lane, MatrixView output) override;
  absl::Status EndStep(int lane, ConstMatrixView step_output, MatrixView output) override;
  absl::Status WaitStep(int lane) override;
  absl::Status CheckDevice() override { return device_status_; }
  absl::Status GatherSendRows(const RankPlanView& plan, ConstMatrixView home_rows, MatrixView send_rows) override;
  absl::Status RunExperts(LayerId layer, const RankPlanView& plan, ConstMatrixView received,
                          MatrixView partial_sums) override;
  absl::Status Combine(const RankPlanView& plan, ConstMatrixView returned, MatrixView output) override;

 private:
  struct FakeLane {
    HostBuffer rows_in, rows_out;
    std::shared_ptr<Notification> done;  // null until EndStep
    absl::Status status;                 // first error of the step's work; the compute stream writes it before `done`
  };

  // Enqueues work on the compute stream. It is skipped if earlier work of the step has failed.
  void Enqueue(std::function<absl::Status()> work);

  const std::unique_ptr<ExpertEngine> host_;
  std::array<std::vector<std::byte>, 4> scratch_;
  std::array<FakeLane, kNumLanes> lanes_;
  int lane_ = 0;  // lane of the step being enqueued
  absl::Status enqueue_failure_, run_failure_, device_status_;
  // Declared last, so that remaining work runs while the other members still exist.
  const std::unique_ptr<FakeStream> exchange_ = std::make_unique<FakeStream>();
  const std::unique_ptr<FakeStream> compute_ = std::make_unique<FakeStream>();
};

// A host communicator whose exchanges run on the stream that they are given. It must outlive the enqueued exchanges.
class FakeDeviceCommunicator final : public Communicator {
 public:
  explicit FakeDeviceCommunicator(Communicator* host) : host_(host) {}

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  const std::string& address() const override { return host_->address(); }
  absl::Status Connect(std::span<const std::string> addresses) override { return host_->Connect(addresses); }
  absl::Status AllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                         std::span<const size_t> recv_bytes, DeviceStream stream) override;
  absl::Status Health() override;
  void Abort() override { host_->Abort(); }

  int num_exchanges() const { return num_exchanges_; }

 private:
  Communicator* const host_;
  int num_exchanges_ = 0;  // number of exchanges enqueued
  Mutex mu_;
  absl::Status health_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard
