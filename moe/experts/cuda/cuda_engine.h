// ExpertEngine on one NVIDIA GPU (sm_80 and newer): Switchyard's own grouped GEMM on Hopper for bf16 and fp16, cuBLAS
// for fp32, fp64 and other GPUs.
//
// All engines of one device share a CudaDevice: its streams, its lanes and its workspace. A worker makes one.
#pragma once

#include <cstdint>
#include <memory>

#include "moe/experts/expert_engine.h"

namespace switchyard {

struct CudaDeviceOptions {
  int device_idx = 0;

  // The most bytes of device memory that weights and workspace may take together; 0 for all free memory.
  int64_t memory_limit = 0;

  // How many multiprocessors the exchange may take, and how many Switchyard's own matrix kernels leave to it in a step
  // that runs on several ranks in chunks. 0 leaves none and lets NCCL choose, which was fastest in the measurements of
  // docs/gpu.md.
  int exchange_multiprocessors = 0;
};

struct CudaEngineOptions {
  // fp64, fp32, fp16 or bf16.
  DType compute_dtype = DType::kBF16;

  // Lets fp32 products round their inputs to TF32 (10 bits of mantissa), several times faster.
  bool allow_tf32 = false;

  // For tests and comparisons: uses cuBLAS where Switchyard's own kernels would run.
  bool force_cublas = false;
};

class CudaDevice;

// Number of GPUs that this process can use; 0 without a driver.
int NumCudaDevices();

// Opens a GPU and makes it current for the calling thread. FAILED_PRECONDITION when there is no such GPU.
absl::StatusOr<std::shared_ptr<CudaDevice>> OpenCudaDevice(const CudaDeviceOptions& options);

absl::StatusOr<std::unique_ptr<ExpertEngine>> CreateCudaEngine(std::shared_ptr<CudaDevice> device,
                                                               const CudaEngineOptions& options);

}  // namespace switchyard
