// Fixtures of the CUDA engine's tests. They skip where there is no GPU, with a device of their own for each test.
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

// One of EngineVariants.
class EngineVariantTest : public GpuTest, public testing::WithParamInterface<CudaEngineOptions> {
 protected:
  DType dtype() const { return GetParam().compute_dtype; }

  TestLayer Layer(const LayerSpec& spec, uint64_t seed = 1) const { return TestLayer(spec, {dtype()}, seed); }

  std::unique_ptr<ExpertEngine> Loaded(const TestLayer& layer, int64_t max_rows) const {
    return LoadedEngine(device_, GetParam(), {&layer}, max_rows);
  }
};

// Every compute type; both ways to compute where there are two.
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

// Rows of large steps that are compared.
inline constexpr int64_t kSample = 24;

}  // namespace switchyard
