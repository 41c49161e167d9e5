// Tests which calls the front makes to the CUDA driver and what it refuses before. The driver here is a fake whose
// memory is the test's own. tests/conformance/cuda_shared_memory_test.py uses the real one.
#include "server/api/client_memory/cuda_shared_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <set>

namespace switchyard {
namespace {

using testing::HasSubstr;

constexpr int kInvalidValue = 1, kNoDevice = 100, kInvalidContext = 201;
constexpr size_t kAllocation = 4096;

// State of the fake driver: two GPUs, and one allocation that can be opened by any handle that begins with 'A'.
struct Gpus {
  CudaResult init_result = 0;
  int num_devices = 2;
  std::vector<CudaContext> stack;
  std::set<CudaDeviceHandle> retained;
  int num_open = 0;
  int num_calls_without_context = 0;
  std::vector<std::byte> allocation = std::vector<std::byte>(kAllocation);

  CudaPointer base() const { return reinterpret_cast<CudaPointer>(allocation.data()); }
  CudaResult InContext() {
    if (!stack.empty()) return 0;
    ++num_calls_without_context;
    return kInvalidContext;
  }
};

Gpus* gpus = nullptr;

CudaDriver FakeDriver() {
  CudaDriver driver;
  driver.init = [](unsigned) { return gpus->init_result; };
  driver.get_device_count = [](int* count) { return *count = gpus->num_devices, 0; };
  driver.get_device = [](CudaDeviceHandle* device, int ordinal) { return *device = 10 + ordinal, 0; };
  driver.retain_primary_context = [](CudaContext* context, CudaDeviceHandle device) {
    EXPECT_TRUE(gpus->retained.insert(device).second) << "one context for each device";
    *context = gpus;
    return 0;
  };
  driver.release_primary_context = [](CudaDeviceHandle device) {
    return gpus->retained.erase(device) == 1 ? 0 : kInvalidValue;
  };
  driver.push_context = [](CudaContext context) { return gpus->stack.push_back(context), 0; };
  driver.pop_context = [](CudaContext* context) {
    *context = gpus->stack.back();
    gpus->stack.pop_back();
    return 0;
  };
  driver.open_ipc_handle = [](CudaPointer* pointer, CudaIpcHandle handle, unsigned) {
    if (handle.bytes[0] != 'A') return kInvalidValue;
    ++gpus->num_open;
    *pointer = gpus->base() + static_cast<CudaPointer>(handle.bytes[1]);  // the region may begin within the allocation
    return gpus->InContext();
  };
  driver.close_ipc_handle = [](CudaPointer) { return --gpus->num_open, gpus->InContext(); };
  driver.get_address_range = [](CudaPointer* base, size_t* num_bytes, CudaPointer) {
    *base = gpus->base();
    *num_bytes = kAllocation;
    return gpus->InContext();
  };
  driver.copy_to_host = [](void* to, CudaPointer from, size_t num_bytes) {
    std::memcpy(to, reinterpret_cast<const void*>(from), num_bytes);
    return gpus->InContext();
  };
  driver.copy_to_device = [](CudaPointer to, const void* from, size_t num_bytes) {
    std::memcpy(reinterpret_cast<void*>(to), from, num_bytes);
    return gpus->InContext();
  };
  driver.get_error_name = [](CudaResult result, const char** name) {
    *name = result == kNoDevice ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_INVALID_VALUE";
    return 0;
  };
  return driver;
}

std::string Handle(char begin = 0) {
  std::string handle(64, '\0');
  handle[0] = 'A';
  handle[1] = begin;
  return handle;
}

class CudaSharedMemoryTest : public testing::Test {
 protected:
  void SetUp() override { gpus = &gpus_; }
  void TearDown() override {
    devices_ = nullptr;
    EXPECT_EQ(gpus_.num_open, 0);
    EXPECT_EQ(gpus_.num_calls_without_context, 0);
    EXPECT_TRUE(gpus_.stack.empty());
    EXPECT_TRUE(gpus_.retained.empty());
  }

  void Create() {
    auto devices = CudaDevices::Create(FakeDriver());
    ASSERT_TRUE(devices.ok()) << devices.status();
    devices_ = *std::move(devices);
  }
  void ExpectRefused(const std::string& handle, int64_t device_id, uint64_t byte_size, const std::string& text) {
    const absl::Status status = devices_->Open(handle, device_id, byte_size).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
    EXPECT_EQ(gpus_.num_open, 0);
  }

  Gpus gpus_;
  std::shared_ptr<CudaDevices> devices_;
};

TEST_F(CudaSharedMemoryTest, CopiesInAndOut) {
  Create();
  auto region = devices_->Open(Handle(16), 1, 100);
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_EQ((*region)->info().kind, MemoryKind::kCuda);
  EXPECT_EQ((*region)->info().device_id, 1);
  const std::string sent = "rows";
  ASSERT_TRUE((*region)->Write(3, {reinterpret_cast<const std::byte*>(sent.data()), 4}).ok());
  EXPECT_EQ(std::memcmp(gpus_.allocation.data() + 19, "rows", 4), 0);
  std::vector<std::byte> read(4);
  ASSERT_TRUE((*region)->Read(3, read).ok());
  EXPECT_EQ(std::memcmp(read.data(), "rows", 4), 0);
}

TEST_F(CudaSharedMemoryTest, RegionsKeepTheDevicesAndShareTheirContext) {
  Create();
  RegionPtr first = *devices_->Open(Handle(), 0, 100), second = *devices_->Open(Handle(), 0, 100);
  devices_ = nullptr;
  first = nullptr;
  EXPECT_EQ(gpus_.num_open, 1);
  EXPECT_EQ(gpus_.retained.size(), 1);
  std::vector<std::byte> read(4);
  EXPECT_TRUE(second->Read(0, read).ok());
}

TEST_F(CudaSharedMemoryTest, WhatIsWrongIsNamed) {
  Create();
  for (const size_t num_bytes : {0, 63, 65, 88}) {
    ExpectRefused(std::string(num_bytes, 'A'), 0, 100,
                  absl::StrCat("raw_handle: expected the 64 bytes of a cudaIpcMemHandle_t, found ", num_bytes));
  }
  ExpectRefused(std::string(64, 'x'), 0, 100, "raw_handle: cannot be opened on GPU 0: CUDA_ERROR_INVALID_VALUE (1)");
  for (const int64_t device_id : {int64_t{-1}, int64_t{2}, int64_t{1} << 32, std::numeric_limits<int64_t>::min()}) {
    ExpectRefused(Handle(), device_id, 100, absl::StrCat("device_id: expected 0 to 1, found ", device_id));
  }
  ExpectRefused(Handle(), 0, 0, "byte_size: expected 1 or more");
}

TEST_F(CudaSharedMemoryTest, RegionsLieWithinTheirAllocation) {
  Create();
  EXPECT_TRUE(devices_->Open(Handle(), 0, kAllocation).ok());
  EXPECT_TRUE(devices_->Open(Handle(96), 0, kAllocation - 96).ok());
  ExpectRefused(Handle(), 0, kAllocation + 1,
                "byte_size: expected 4096 or less, the size of the allocation, found 4097");
  ExpectRefused(Handle(96), 0, kAllocation - 95, "byte_size: expected 4000 or less");
  ExpectRefused(Handle(96), 0, std::numeric_limits<uint64_t>::max(), "byte_size: expected 4000 or less");
}

TEST_F(CudaSharedMemoryTest, WithoutGpusItSaysWhy) {
  gpus_.init_result = kNoDevice;
  absl::Status status = CudaDevices::Create(FakeDriver()).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("CUDA does not start: CUDA_ERROR_NO_DEVICE (100)"));
  gpus_ = Gpus{.num_devices = 0};
  EXPECT_TRUE(absl::IsFailedPrecondition(CudaDevices::Create(FakeDriver()).status()));
}

TEST(CudaDriverTest, ALibraryThatIsNoDriverIsRefused) {
  EXPECT_THAT(std::string(LoadCudaDriver("libnowhere.so.7").status().message()), HasSubstr("libnowhere.so.7"));
  const absl::Status status = LoadCudaDriver("libm.so.6").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("the CUDA driver has no cuInit"));
}

}  // namespace
}  // namespace switchyard
