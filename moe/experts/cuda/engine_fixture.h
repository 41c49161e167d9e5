// Fixtures of the CUDA engine's tests. They open a device for each test, and skip the test where there is no GPU.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "moe/experts/cuda/cuda_engine.h"
#include "moe/experts/cuda/testing.h"

namespace switchyard {

class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    if (NumCudaDevices() == 0) GTEST_SKIP() << "needs a GPU, and CUDA finds none";
    absl::StatusOr<std::shared_ptr<CudaDevice>> device = OpenCudaDevice({});
    ASSERT_EQ(device.status(), absl::OkStatus());
    device_ = *std::move(device);
  }

  std::shared_ptr<CudaDevice> device_;
};

// The parameter is one of EngineVariants.
class EngineVariantTest : public GpuTest, public testing::WithParamInterface<CudaEngineOptions> {
 protected:
  DType dtype() const { return GetParam().compute_dtype; }

  TestLayer Layer(const LayerSpec& spec, uint64_t seed = 1) const { return TestLayer(spec, {dtype()}, seed); }

  std::unique_ptr<ExpertEngine> Loaded(const TestLayer& layer, int64_t max_rows) const {
    return LoadedEngine(device_, GetParam(), {&layer}, max_rows);
  }
};

// Every compute type; for fp16 and bf16 with our own kernels and with cuBLAS.
inline auto EngineVariants() {
  return testing::Values(CudaEngineOptions{.compute_dtype = DType::kF64},
                         CudaEngineOptions{.compute_dtype = DType::kF32},
                         CudaEngineOptions{.compute_dtype = DType::kF16},
                         CudaEngineOptions{.compute_dtype = DType::kF16, .force_cublas = true},
                         CudaEngineOptions{.compute_dtype = DType::kBF16},
                         CudaEngineOptions{.compute_dtype = DType::kBF16, .force_cublas = true});
}

inline std::string VariantName(const testing::TestParamInfo<CudaEngineOptions>& info) {
  return std::string(DTypeName(info.param.compute_dtype)) + (info.param.force_cublas ? "Cublas" : "");
}

inline constexpr Skew kSkews[] = {Skew::kUniform, Skew::kZipf, Skew::kOneExpert, Skew::kSomeEmpty};

// Number of rows that are compared in large steps.
inline constexpr int64_t kSample = 24;

}  // namespace switchyard
