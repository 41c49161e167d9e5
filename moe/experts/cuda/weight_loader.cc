#include "moe/experts/cuda/weight_loader.h"

#include <algorithm>
#include <cstring>

#include "moe/gpu/cuda_status.h"

namespace switchyard {
namespace {

// Large enough that a copy runs at the bus's speed.
constexpr size_t kStageBytes = 8 << 20;

// The number of rows of a matrix that fit a stage: a multiple of 8, because stretches of transposed matrices must begin
// at multiples of 8.
absl::StatusOr<int64_t> RowsPerStage(ConstMatrixView matrix) {
  const int64_t rows = static_cast<int64_t>(kStageBytes / matrix.row_bytes()) / 8 * 8;
  if (rows > 0) return rows;
  return absl::InvalidArgumentError(
      absl::StrCat("rows of ", matrix.row_bytes(), " bytes, at most ", kStageBytes / 8, " are possible"));
}

}  // namespace

int64_t WeightLoader::StagingBytes() { return kNumLoaders * 2 * static_cast<int64_t>(kStageBytes); }

absl::StatusOr<std::unique_ptr<WeightLoader>> WeightLoader::Create() { return std::make_unique<WeightLoader>(); }

absl::StatusOr<std::unique_ptr<WeightLoader::Loader>> WeightLoader::CreateLoader() {
  auto loader = std::make_unique<Loader>();
  SY_ASSIGN_OR_RETURN(loader->stream, CudaStream::Create());
  for (Stage& stage : loader->stages) {
    SY_ASSIGN_OR_RETURN(stage.host, PinnedBuffer::Allocate(kStageBytes));
    SY_ASSIGN_OR_RETURN(stage.device, DeviceBuffer::Allocate(kStageBytes));
    SY_ASSIGN_OR_RETURN(stage.done, CudaEvent::Create());
  }
  return loader;
}

absl::StatusOr<std::unique_ptr<WeightLoader::Loader>> WeightLoader::Take() {
  {
    MutexLock lock(&mu_);
    if (!idle_.empty()) {
      auto loader = std::move(idle_.back());
      idle_.pop_back();
      return loader;
    }
  }
  return CreateLoader();
}

absl::Status WeightLoader::Load(const std::vector<MatrixLoad>& matrices, const std::vector<BiasLoad>& biases) {
  SY_ASSIGN_OR_RETURN(auto loader, Take());
  SY_RETURN_IF_ERROR(LoadAll(*loader, matrices, biases));
  MutexLock lock(&mu_);
  idle_.push_back(std::move(loader));
  return absl::OkStatus();
}

absl::Status WeightLoader::LoadAll(Loader& loader, const std::vector<MatrixLoad>& matrices,
                                   const std::vector<BiasLoad>& biases) {
  for (const MatrixLoad& load : matrices) SY_RETURN_IF_ERROR(LoadMatrix(loader, load));
  for (const BiasLoad& load : biases) SY_RETURN_IF_ERROR(LoadBias(loader, load));
  SY_CUDA(cudaStreamSynchronize(loader.stream.get()));
  return absl::OkStatus();
}

// Copies to the next stage on the device. The caller must enqueue the kernel that reads it and record the stage's
// `done` before the call after next, which uses the same stage again.
absl::StatusOr<const std::byte*> WeightLoader::Upload(Loader& loader, const std::byte* data, size_t num_bytes) {
  Stage& stage = loader.stages[loader.next];
  SY_CUDA(cudaEventSynchronize(stage.done.get()));
  std::memcpy(stage.host.data(), data, num_bytes);
  SY_CUDA(
      cudaMemcpyAsync(stage.device.data(), stage.host.data(), num_bytes, cudaMemcpyHostToDevice, loader.stream.get()));
  return stage.device.data();
}

absl::Status WeightLoader::LoadMatrix(Loader& loader, const MatrixLoad& load) {
  const ConstMatrixView matrix = load.source.matrix;
  SY_ASSIGN_OR_RETURN(const int64_t rows_per_stage, RowsPerStage(matrix));
  for (int64_t row = 0; row < matrix.num_rows; row += rows_per_stage) {
    const ConstMatrixView stretch = matrix.Rows(row, std::min(rows_per_stage, matrix.num_rows - row));
    SY_ASSIGN_OR_RETURN(const std::byte* data, Upload(loader, stretch.data, stretch.size_bytes()));
    SY_RETURN_IF_ERROR(PackRows({matrix.dtype, data, row, stretch.num_rows, matrix.num_cols, load.source.transposed},
                                load.target, loader.stream.get()));
    SY_CUDA(cudaEventRecord(loader.stages[loader.next].done.get(), loader.stream.get()));
    loader.next ^= 1;
  }
  return absl::OkStatus();
}

absl::Status WeightLoader::LoadBias(Loader& loader, const BiasLoad& load) {
  SY_ASSIGN_OR_RETURN(const std::byte* data, Upload(loader, load.source.data, load.source.size_bytes()));
  SY_RETURN_IF_ERROR(PackBias(load.source.dtype, data, load.source.num_cols, load.place, load.first_row, load.out_dtype,
                              load.out, loader.stream.get()));
  SY_CUDA(cudaEventRecord(loader.stages[loader.next].done.get(), loader.stream.get()));
  loader.next ^= 1;
  return absl::OkStatus();
}

}  // namespace switchyard
