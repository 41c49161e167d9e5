#include "server/api/kserve/kserve_memory.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <limits>
#include <random>

#include "base/unique_fd.h"

namespace switchyard {
namespace {

using testing::HasSubstr;
using testing::Not;

class KserveMemoryTest : public testing::Test {
 protected:
  void SetUp() override {
    const UniqueFd fd(shm_open(key_.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600));
    ASSERT_EQ(ftruncate(fd.get(), 1000), 0);
    inference::SystemSharedMemoryRegisterRequest request;
    request.set_name("secret");
    request.set_key(key_);
    request.set_offset(100);
    request.set_byte_size(900);
    ASSERT_TRUE(RegisterMemory(me_, request).ok());
    Set("shared_memory_region").set_string_param("secret");
    Set("shared_memory_byte_size").set_int64_param(300);
    Set("shared_memory_offset").set_int64_param(600);
  }
  void TearDown() override { shm_unlink(key_.c_str()); }

  inference::InferParameter& Set(const char* name) { return parameters_[name]; }
  void ExpectError(absl::StatusCode code, const std::string& text) { ExpectError(me_, code, text); }
  void ExpectError(const MemoryAccess& access, absl::StatusCode code, const std::string& text) {
    const absl::Status status = FindPlace(parameters_, access).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("secret")));
  }
  void ExpectInvalid(const std::string& text) { ExpectError(absl::StatusCode::kInvalidArgument, text); }

  const std::string key_ = absl::StrCat("/switchyard_kserve_memory_test_", std::random_device()());
  ClientMemory memory_{1 << 20};
  const MemoryAccess me_ = {&memory_, "me"};
  InferParameters parameters_;
};

TEST_F(KserveMemoryTest, PlacesOfTensors) {
  const auto place = FindPlace(parameters_, me_);
  ASSERT_TRUE(place.ok()) << place.status();
  ASSERT_TRUE(place->has_value());
  EXPECT_EQ((*place)->offset, 600);
  EXPECT_EQ((*place)->byte_size, 300);
  InferParameters described;
  DescribePlace(**place, 200, &described);
  EXPECT_EQ(described["shared_memory_region"].string_param(), "secret");
  EXPECT_EQ(described["shared_memory_byte_size"].int64_param(), 200);
  EXPECT_EQ(described["shared_memory_offset"].int64_param(), 600);
  parameters_.erase("shared_memory_offset");
  EXPECT_EQ((*FindPlace(parameters_, me_))->offset, 0);
  parameters_.erase("shared_memory_region");
  EXPECT_FALSE(FindPlace(parameters_, me_)->has_value());
}

TEST_F(KserveMemoryTest, RangesOutsideTheRegionAreRefused) {
  Set("shared_memory_offset").set_int64_param(601);
  ExpectInvalid("expected a range within the region's 900 bytes, found 300 bytes at offset 601");
  for (const uint64_t offset : {std::numeric_limits<uint64_t>::max(), std::numeric_limits<uint64_t>::max() - 299,
                                uint64_t{1} << 63, uint64_t{std::numeric_limits<int64_t>::max()}}) {
    Set("shared_memory_offset").set_uint64_param(offset);
    ExpectInvalid("expected a range within the region");
  }
  Set("shared_memory_offset").set_int64_param(-1);
  ExpectInvalid("parameters shared_memory_offset: expected 0 or more, found -1");
  Set("shared_memory_offset").set_int64_param(0);
  Set("shared_memory_byte_size").set_uint64_param(std::numeric_limits<uint64_t>::max());
  ExpectInvalid("expected a range within the region");
  Set("shared_memory_byte_size").set_int64_param(0);
  ExpectInvalid("parameters shared_memory_byte_size: expected 1 or more, found 0");
  parameters_.erase("shared_memory_byte_size");
  ExpectInvalid("parameters shared_memory_byte_size: expected 1 or more, found 0");
}

TEST_F(KserveMemoryTest, ParametersOfTheWrongKindAreNamed) {
  Set("shared_memory_byte_size").set_string_param("300");
  ExpectInvalid("parameters shared_memory_byte_size: expected an integer, found a string");
  Set("shared_memory_region").set_int64_param(1);
  ExpectInvalid("parameters shared_memory_region: expected a string, found an integer");
}

TEST_F(KserveMemoryTest, ARegionOfAnotherCallerIsLikeOneThatThereIsNot) {
  const MemoryAccess you = {&memory_, "you"};
  ExpectError(you, absl::StatusCode::kNotFound,
              "parameters shared_memory_region: no such shared memory region is registered");
  const absl::Status forbidden = FindPlace(parameters_, you).status();
  Set("shared_memory_region").set_string_param("nothing");
  EXPECT_EQ(FindPlace(parameters_, you).status(), forbidden);
}

TEST_F(KserveMemoryTest, WhatIsNotAllowedNamesTheFlag) {
  const MemoryAccess none;
  ExpectError(none, absl::StatusCode::kUnimplemented, "--allow_client_shm");
  inference::SystemSharedMemoryStatusResponse status;
  for (const absl::Status& refused : {ListMemory(none, inference::SystemSharedMemoryStatusRequest(), &status),
                                      RegisterMemory(none, inference::SystemSharedMemoryRegisterRequest()),
                                      RegisterMemory(none, inference::CudaSharedMemoryRegisterRequest()),
                                      UnregisterMemory(none, inference::SystemSharedMemoryUnregisterRequest()),
                                      UnregisterMemory(none, inference::CudaSharedMemoryUnregisterRequest())}) {
    EXPECT_TRUE(absl::IsUnimplemented(refused)) << refused;
    EXPECT_THAT(std::string(refused.message()), HasSubstr("--allow_client_shm"));
  }
}

TEST_F(KserveMemoryTest, StatusShowsTheCallersRegions) {
  inference::SystemSharedMemoryStatusResponse response;
  ASSERT_TRUE(ListMemory(me_, inference::SystemSharedMemoryStatusRequest(), &response).ok());
  ASSERT_EQ(response.regions_size(), 1);
  const auto& region = response.regions().at("secret");
  EXPECT_EQ(region.name(), "secret");
  EXPECT_EQ(region.key(), key_);
  EXPECT_EQ(region.offset(), 100);
  EXPECT_EQ(region.byte_size(), 900);
  inference::CudaSharedMemoryStatusResponse cuda;
  ASSERT_TRUE(ListMemory(me_, inference::CudaSharedMemoryStatusRequest(), &cuda).ok());
  EXPECT_EQ(cuda.regions_size(), 0);
  inference::CudaSharedMemoryStatusRequest named;
  named.set_name("secret");
  EXPECT_TRUE(absl::IsNotFound(ListMemory(me_, named, &cuda)));
  ASSERT_TRUE(UnregisterMemory(me_, inference::SystemSharedMemoryUnregisterRequest()).ok());
  response.Clear();
  ASSERT_TRUE(ListMemory(me_, inference::SystemSharedMemoryStatusRequest(), &response).ok());
  EXPECT_EQ(response.regions_size(), 0);
}

}  // namespace
}  // namespace switchyard
