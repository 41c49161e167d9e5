#include "moe/experts/cuda/cuda_device.h"

#include <cublas_v2.h>

#include <algorithm>
#include <utility>

#include "base/logging/logging.h"
#include "moe/experts/cuda/cublas_status.h"
#include "moe/gpu/cuda_status.h"

namespace switchyard {
namespace {

// Left free for allocations that CUDA, cuBLAS and NCCL make by themselves.
constexpr int64_t kSpareBytes = 512 << 20;

// Up to this size it is faster to let kernels access host memory directly than to start a copy.
constexpr size_t kDirectBytes = 64 << 10;
// Up to this size tables are copied on the compute stream, which saves waiting for another stream.
constexpr size_t kInlineTableBytes = 32 << 10;

constexpr size_t kTableAlignment = 16;

// "7.5 GiB (8053063680 bytes)"
std::string Bytes(int64_t num_bytes) {
  return absl::StrCat(static_cast<double>(num_bytes / (1 << 20)) / 1024.0, " GiB (", num_bytes, " bytes)");
}

absl::Status CheckRoom(const char* what, ConstMatrixView rows, const DeviceBuffer& buffer) {
  if (rows.size_bytes() <= buffer.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("a step with ", rows.num_rows, " rows of ", what, ", room for ",
                                                 buffer.size() / rows.row_bytes(), " was reserved"));
}

// Bytes by which a buffer of `size` bytes must grow.
int64_t Growth(size_t size, int64_t needed) { return std::max<int64_t>(0, needed - static_cast<int64_t>(size)); }

template <typename Buffer>
absl::Status Grow(Buffer& buffer, int64_t num_bytes) {
  if (static_cast<int64_t>(buffer.size()) >= num_bytes) return absl::OkStatus();
  const size_t old_bytes = buffer.size();
  buffer = Buffer();  // freed first, because both may not fit
  auto grown = Buffer::Allocate(num_bytes);
  if (!grown.ok()) {
    // Other engines continue with a buffer of the old size.
    SY_ASSIGN_OR_RETURN(buffer, Buffer::Allocate(old_bytes));
    return grown.status();
  }
  buffer = *std::move(grown);
  return absl::OkStatus();
}

}  // namespace

int NumCudaDevices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  (void)cudaGetLastError();
  return 0;
}

absl::StatusOr<std::shared_ptr<CudaDevice>> OpenCudaDevice(const CudaDeviceOptions& options) {
  return CudaDevice::Open(options);
}

absl::StatusOr<std::shared_ptr<CudaDevice>> CudaDevice::Open(const CudaDeviceOptions& options) {
  if (options.exchange_multiprocessors < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("exchange_multiprocessors: expected 0 or more, got ", options.exchange_multiprocessors));
  }
  int count = 0;
  SY_CUDA(cudaGetDeviceCount(&count));
  if (options.device_idx < 0 || options.device_idx >= count) {
    return absl::FailedPreconditionError(
        absl::StrCat("there is no GPU ", options.device_idx, ": this process sees ", count));
  }
  std::shared_ptr<CudaDevice> device(new CudaDevice(options));
  SY_RETURN_IF_ERROR(device->Initialize());
  return device;
}

absl::Status CudaDevice::Initialize() {
  SY_RETURN_IF_ERROR(MakeCurrent());
  cudaDeviceProp properties{};
  SY_CUDA(cudaGetDeviceProperties(&properties, options_.device_idx));
  if (properties.major < 8) {
    return absl::FailedPreconditionError(absl::StrCat("GPU ", options_.device_idx, " (", properties.name,
                                                      ") has compute capability ", properties.major, ".",
                                                      properties.minor, "; 8.0 or newer is needed"));
  }
  has_wgmma_ = properties.major == 9 && properties.minor == 0;  // sm_90a code runs on no other architecture
  num_multiprocessors_ = properties.multiProcessorCount;
  SY_ASSIGN_OR_RETURN(compute_, CudaStream::Create());
  SY_ASSIGN_OR_RETURN(exchange_, CudaStream::Create(/*high_priority=*/true));
  SY_ASSIGN_OR_RETURN(upload_, CudaStream::Create(/*high_priority=*/true));
  SY_ASSIGN_OR_RETURN(download_, CudaStream::Create(/*high_priority=*/true));
  SY_ASSIGN_OR_RETURN(order_, CudaEvent::Create());
  for (Lane& lane : lanes_) {
    SY_ASSIGN_OR_RETURN(lane.done, CudaEvent::Create());
  }
  SY_CUBLAS(cublasCreate(&cublas_));
  SY_CUBLAS(cublasSetStream(cublas_, compute_.get()));
  spdlog::info("GPU {}: {}, {} multiprocessors, {:.1f} GiB", options_.device_idx, properties.name, num_multiprocessors_,
               static_cast<double>(properties.totalGlobalMem) / (1 << 30));
  return absl::OkStatus();
}

CudaDevice::~CudaDevice() {
  if (!MakeCurrent().ok()) return;
  (void)cudaDeviceSynchronize();  // no work may still use the memory that is freed next
  if (cublas_ != nullptr) (void)cublasDestroy(cublas_);
}

absl::Status CudaDevice::MakeCurrent() const {
  SY_CUDA(cudaSetDevice(options_.device_idx));
  return absl::OkStatus();
}

absl::Status CudaDevice::Order(cudaStream_t earlier, cudaStream_t later) {
  if (earlier == later) return absl::OkStatus();
  SY_CUDA(cudaEventRecord(order_.get(), earlier));
  SY_CUDA(cudaStreamWaitEvent(later, order_.get()));
  return absl::OkStatus();
}

absl::Status CudaDevice::CheckFits(const DeviceNeeds& needs, int64_t growth) const {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  SY_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
  const int64_t needed = needs.weight_bytes + growth;
  const int64_t free = std::max<int64_t>(0, static_cast<int64_t>(free_bytes) - kSpareBytes);
  const int64_t allowed = options_.memory_limit > 0 ? options_.memory_limit - used_bytes_ : free;
  if (needed <= std::min(free, allowed)) return absl::OkStatus();
  std::string message = absl::StrCat("GPU ", options_.device_idx, ": weights need ", Bytes(needs.weight_bytes),
                                     ", buffers for the largest step ", Bytes(growth), ": ", Bytes(needed),
                                     " in all; free are ", Bytes(free));
  if (options_.memory_limit > 0) {
    absl::StrAppend(&message, ", and the memory limit of ", Bytes(options_.memory_limit), " leaves ",
                    Bytes(std::max<int64_t>(0, allowed)));
  }
  absl::StrAppend(&message, ". Use more GPUs, or a smaller --max_batch_rows");
  return absl::ResourceExhaustedError(message);
}

absl::Status CudaDevice::Reserve(const DeviceNeeds& needs) {
  SY_RETURN_IF_ERROR(MakeCurrent());
  int64_t growth = 0;
  for (int i = 0; i < kNumWorkspaces; ++i) growth += Growth(workspaces_[i].size(), needs.workspace_bytes[i]);
  const Lane& lane = lanes_.front();
  growth += kNumLanes *
            (2 * Growth(lane.rows_in.size(), needs.row_bytes) + Growth(lane.device_tables.size(), needs.table_bytes));
  SY_RETURN_IF_ERROR(CheckFits(needs, growth));
  for (int i = 0; i < kNumWorkspaces; ++i) SY_RETURN_IF_ERROR(Grow(workspaces_[i], needs.workspace_bytes[i]));
  for (Lane& each : lanes_) SY_RETURN_IF_ERROR(GrowLane(each, needs));
  used_bytes_ += needs.weight_bytes + growth;
  return absl::OkStatus();
}

absl::Status CudaDevice::GrowLane(Lane& lane, const DeviceNeeds& needs) {
  SY_RETURN_IF_ERROR(Grow(lane.rows_in, needs.row_bytes));
  SY_RETURN_IF_ERROR(Grow(lane.rows_out, needs.row_bytes));
  SY_RETURN_IF_ERROR(Grow(lane.host_tables, needs.table_bytes));
  return Grow(lane.device_tables, needs.table_bytes);
}

absl::StatusOr<std::byte*> CudaDevice::Get(Workspace purpose, size_t num_bytes) const {
  const DeviceBuffer& buffer = workspaces_[static_cast<size_t>(purpose)];
  if (num_bytes <= buffer.size()) return buffer.data();
  return absl::InvalidArgumentError(absl::StrCat("a step needs ", num_bytes, " bytes of workspace ",
                                                 static_cast<int>(purpose), ", reserved are ", buffer.size()));
}

absl::StatusOr<ConstMatrixView> CudaDevice::BeginStep(int lane_idx, ConstMatrixView home_rows) {
  if (lane_idx < 0 || lane_idx >= kNumLanes) {
    return absl::InvalidArgumentError(absl::StrCat("lane ", lane_idx, " of ", kNumLanes));
  }
  SY_RETURN_IF_ERROR(MakeCurrent());
  current_lane_ = lane_idx;
  Lane& lane = lanes_[lane_idx];
  lane.table_end = lane.uploaded = 0;
  if (home_rows.size_bytes() == 0) return home_rows;
  if (home_rows.size_bytes() <= kDirectBytes && IsDeviceReachable(home_rows.data)) return home_rows;
  SY_RETURN_IF_ERROR(CheckRoom("rows", home_rows, lane.rows_in));
  SY_CUDA(cudaMemcpyAsync(lane.rows_in.data(), home_rows.data, home_rows.size_bytes(), cudaMemcpyHostToDevice,
                          upload_.get()));
  SY_RETURN_IF_ERROR(Order(upload_.get(), compute_.get()));
  return ConstMatrixView{lane.rows_in.data(), home_rows.dtype, home_rows.num_rows, home_rows.num_cols};
}

absl::StatusOr<MatrixView> CudaDevice::StepOutput(int lane_idx, MatrixView output) {
  const Lane& lane = lanes_[lane_idx];
  if (output.size_bytes() <= kDirectBytes && IsDeviceReachable(output.data)) return output;
  SY_RETURN_IF_ERROR(CheckRoom("output", output, lane.rows_out));
  return MatrixView{lane.rows_out.data(), output.dtype, output.num_rows, output.num_cols};
}

absl::Status CudaDevice::EndStep(int lane_idx, ConstMatrixView step_output, MatrixView output) {
  const Lane& lane = lanes_[lane_idx];
  cudaStream_t last = compute_.get();
  if (step_output.data != output.data) {
    SY_RETURN_IF_ERROR(Order(compute_.get(), download_.get()));
    SY_CUDA(
        cudaMemcpyAsync(output.data, step_output.data, output.size_bytes(), cudaMemcpyDeviceToHost, download_.get()));
    last = download_.get();
  }
  SY_CUDA(cudaEventRecord(lane.done.get(), last));
  return absl::OkStatus();
}

absl::Status CudaDevice::WaitStep(int lane_idx) {
  SY_RETURN_IF_ERROR(MakeCurrent());
  SY_CUDA(cudaEventSynchronize(lanes_[lane_idx].done.get()));
  return absl::OkStatus();
}

absl::StatusOr<std::byte*> CudaDevice::NewTable(size_t num_bytes) {
  Lane& lane = lanes_[current_lane_];
  const size_t begin = (lane.table_end + kTableAlignment - 1) / kTableAlignment * kTableAlignment;
  if (num_bytes > lane.host_tables.size() || begin > lane.host_tables.size() - num_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a step needs more than the ", lane.host_tables.size(), " bytes of tables that were reserved"));
  }
  lane.table_end = begin + num_bytes;
  return lane.host_tables.data() + begin;
}

const std::byte* CudaDevice::OnDevice(const std::byte* table) const {
  const Lane& lane = lanes_[current_lane_];
  return lane.device_tables.data() + (table - lane.host_tables.data());
}

absl::Status CudaDevice::UploadTables() {
  Lane& lane = lanes_[current_lane_];
  const size_t num_bytes = lane.table_end - lane.uploaded;
  if (num_bytes == 0) return absl::OkStatus();
  const cudaStream_t stream = num_bytes <= kInlineTableBytes ? compute_.get() : upload_.get();
  SY_CUDA(cudaMemcpyAsync(lane.device_tables.data() + lane.uploaded, lane.host_tables.data() + lane.uploaded, num_bytes,
                          cudaMemcpyHostToDevice, stream));
  lane.uploaded = lane.table_end;
  return Order(stream, compute_.get());
}

}  // namespace switchyard
