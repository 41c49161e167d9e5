// One GPU that the engines of a worker share: its streams, lanes and workspace, and the accounting of its memory.
//
// Streams. The compute stream scatters, multiplies and adds rows. The exchange, uploads and downloads have streams of
// their own, so that those of one step overlap with the compute of another.
//
// Lanes. A step in flight owns a lane: device copies of its input and output rows, and an arena for the tables that its
// kernels read. Tables are written into page-locked memory and copied to the device.
//
// Workspace. Buffers that one step after another uses, in compute-stream order. They are sized at load for the largest
// step.
//
// Thread-safety: that of engines (moe/experts/expert_engine.h), which pass their calls on to this class.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "base/tensor/tensor.h"
#include "moe/experts/cuda/cuda_engine.h"
#include "moe/gpu/memory.h"
#include "moe/gpu/stream.h"

struct cublasContext;

namespace switchyard {

// The buffers that all steps share.
enum class Workspace : uint8_t {
  kSend = 0,  // the first four are ExpertEngine::Scratch
  kReceive = 1,
  kPartial = 2,
  kReturned = 3,
  kGrouped = 4,   // grouped rows
  kProducts = 5,  // products before the activation, where the activation is a kernel of its own
  kHidden = 6,    // activated rows
  kOutputs = 7,   // the experts' outputs, one row per pair
};
inline constexpr int kNumWorkspaces = 8;

// The memory that an engine needs to be reserved, so that no step allocates.
struct DeviceNeeds {
  int64_t weight_bytes = 0;
  std::array<int64_t, kNumWorkspaces> workspace_bytes{};
  int64_t row_bytes = 0;    // bytes of the rows of the largest step
  int64_t table_bytes = 0;  // bytes of its tables
};

class CudaDevice {
 public:
  static constexpr int kNumLanes = 3;

  static absl::StatusOr<std::shared_ptr<CudaDevice>> Open(const CudaDeviceOptions& options);
  ~CudaDevice();

  // Makes the device current for the calling thread.
  absl::Status MakeCurrent() const;
  bool has_wgmma() const { return has_wgmma_; }
  int num_multiprocessors() const { return num_multiprocessors_; }
  // How many multiprocessors persistent kernels may fill while the exchange runs. The number is even, because the
  // blocks of some kernels come in pairs.
  int multiprocessors_beside_exchange() const {
    return std::max(1, (num_multiprocessors_ - options_.exchange_multiprocessors) / 2) * 2;
  }

  cudaStream_t compute() const { return compute_.get(); }
  cudaStream_t exchange() const { return exchange_.get(); }
  cublasContext* cublas() const { return cublas_; }

  // Work enqueued on `later` after this call starts only after all work enqueued on `earlier` before it.
  absl::Status Order(cudaStream_t earlier, cudaStream_t later);

  // Makes sure that the needs of one more engine fit, and grows workspace and lanes; the caller allocates the weights.
  // RESOURCE_EXHAUSTED gives the bytes needed and free. Only while no step is in flight.
  absl::Status Reserve(const DeviceNeeds& needs);
  // Gives back the reservation of an engine's weights, which the engine has freed. Workspace and lanes stay.
  void Release(int64_t weight_bytes) { used_bytes_ -= weight_bytes; }

  // The first `num_bytes` of a workspace; INVALID_ARGUMENT if less was reserved.
  absl::StatusOr<std::byte*> Get(Workspace purpose, size_t num_bytes) const;
  size_t Size(Workspace purpose) const { return workspaces_[static_cast<size_t>(purpose)].size(); }

  // --- A step's life in a lane, as in moe/experts/expert_engine.h.
  absl::StatusOr<ConstMatrixView> BeginStep(int lane, ConstMatrixView home_rows);
  absl::StatusOr<MatrixView> StepOutput(int lane, MatrixView output);
  absl::Status EndStep(int lane, ConstMatrixView step_output, MatrixView output);
  absl::Status WaitStep(int lane);

  // Room for a table of the step begun last. The caller writes the table before UploadTables.
  absl::StatusOr<std::byte*> NewTable(size_t num_bytes);
  // The address that a table from NewTable will have on the device.
  const std::byte* OnDevice(const std::byte* table) const;
  // Copies the tables made since the last call to the device. Work enqueued on compute() after this call waits for
  // them.
  absl::Status UploadTables();

 private:
  struct Lane {
    DeviceBuffer rows_in;
    DeviceBuffer rows_out;
    PinnedBuffer host_tables;
    DeviceBuffer device_tables;
    CudaEvent done;
    size_t table_end = 0;
    size_t uploaded = 0;
  };

  explicit CudaDevice(const CudaDeviceOptions& options) : options_(options) {}
  absl::Status Initialize();
  absl::Status CheckFits(const DeviceNeeds& needs, int64_t growth) const;
  absl::Status GrowLane(Lane& lane, const DeviceNeeds& needs);

  const CudaDeviceOptions options_;
  // Constant after Open.
  bool has_wgmma_ = false;
  int num_multiprocessors_ = 0;
  cublasContext* cublas_ = nullptr;
  CudaStream compute_, exchange_, upload_, download_;
  CudaEvent order_;

  int64_t used_bytes_ = 0;
  std::array<DeviceBuffer, kNumWorkspaces> workspaces_;
  std::array<Lane, kNumLanes> lanes_;
  int current_lane_ = 0;
};

}  // namespace switchyard
