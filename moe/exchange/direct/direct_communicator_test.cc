// Tests that need only one process and one GPU: groups of one, refusals, and waiting for a peer that never comes. Only
// one rank at a time exchanges, because calls of one rank that wait for the GPU would wait for the other's kernel, too.
// Ranks that exchange are processes in moe/exchange/device_processes_test.cc.
#include "moe/exchange/direct/direct_communicator.h"

#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>
#include <vector>

#include "base/clock.h"
#include "moe/exchange/direct/direct_window.h"
#include "moe/exchange/testing.h"

namespace switchyard {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

constexpr int64_t kPromptUs = 3'000'000;
constexpr unsigned kHungSeconds = 90;  // SIGALRM ends a test that hangs

class DirectCommunicatorTest : public testing::Test {
 protected:
  void SetUp() override {
    int num_gpus = 0;
    const cudaError_t counted = cudaGetDeviceCount(&num_gpus);
    if (counted != cudaSuccess || num_gpus == 0) {
      GTEST_SKIP() << "needs a GPU; cudaGetDeviceCount: " << cudaGetErrorString(counted) << ", " << num_gpus << " GPUs";
    }
    alarm(kHungSeconds);
  }
  void TearDown() override { alarm(0); }

  std::vector<std::unique_ptr<Communicator>> Form(int size, DirectOptions options = {}) {
    return FormGroup(*CreateDirectFactory(options), size);
  }
};

// Rank 0 of two sends rank 1 so many bytes, and expects as many.
absl::Status ExchangeAlone(Communicator& communicator, size_t bytes) {
  const std::vector<std::byte> sent(bytes);
  std::vector<std::byte> received(bytes);
  const std::vector<size_t> sizes = {0, bytes};
  return communicator.HostAllToAllV(sent.data(), sizes, received.data(), sizes);
}

absl::Status ExchangeNothing(Communicator& communicator) {
  const std::vector<size_t> zeros(communicator.size());
  return communicator.AllToAllV(nullptr, zeros, nullptr, zeros, nullptr);
}

TEST_F(DirectCommunicatorTest, AGroupOfOneCopiesItsOwnBlock) {
  const auto group = Form(1);
  const absl::Status checked = CheckExchange(*group[0]);
  EXPECT_TRUE(checked.ok()) << checked;
  for (const size_t bytes : {size_t{1}, size_t{100'003}, 3 * kLargeBlockBytes + 7}) {
    std::vector<std::byte> sent, received(bytes);
    for (size_t idx = 0; idx < bytes; ++idx) sent.push_back(static_cast<std::byte>(idx * 131 + (idx >> 9)));
    const std::vector<size_t> sizes = {bytes};
    EXPECT_TRUE(group[0]->HostAllToAllV(sent.data(), sizes, received.data(), sizes).ok());
    EXPECT_EQ(sent, received);
  }
}

TEST_F(DirectCommunicatorTest, WrongCountsEndTheCommunicator) {
  const auto group = Form(1);
  const std::vector<size_t> one = {1}, two = {2};
  EXPECT_THAT(group[0]->AllToAllV(nullptr, one, nullptr, two, nullptr).message(),
              HasSubstr("rank 0 sends itself 1 bytes but expects 2"));
  EXPECT_EQ(ExchangeNothing(*group[0]).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(group[0]->Health().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(DirectCommunicatorTest, SilentPeersTimeOutSmallAndLarge) {
  for (const size_t bytes : {size_t{4096}, 2 * kLargeBlockBytes}) {
    const auto group = Form(2, {.exchange_timeout = milliseconds(500)});
    const SteadyTime begin = Clock::Real().Now();
    const absl::Status failed = ExchangeAlone(*group[0], bytes);
    EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable) << failed;
    EXPECT_LT(MicrosBetween(begin, Clock::Real().Now()), kPromptUs);
  }
}

TEST_F(DirectCommunicatorTest, AbortEndsExchangesThatWaitSmallAndLarge) {
  for (const size_t bytes : {size_t{4096}, 8 * kLargeSlots * DirectWindow::Of(2).large_slot_bytes()}) {
    const auto group = Form(2);
    const SteadyTime begin = Clock::Real().Now();
    std::thread supervisor([&] {
      while (MicrosBetween(begin, Clock::Real().Now()) < 200'000) std::this_thread::yield();
      group[0]->Abort();
    });
    EXPECT_EQ(ExchangeAlone(*group[0], bytes).code(), absl::StatusCode::kAborted);
    supervisor.join();
    EXPECT_LT(MicrosBetween(begin, Clock::Real().Now()), kPromptUs);
    EXPECT_EQ(ExchangeNothing(*group[0]).code(), absl::StatusCode::kAborted);
    EXPECT_EQ(group[0]->Health().code(), absl::StatusCode::kAborted);
  }
}

// A peer that has not heard of the end yet writes to memory that is still there.
TEST_F(DirectCommunicatorTest, APeerThatGoesHarmsNobodyWhoStillWrites) {
  auto group = Form(2, {.exchange_timeout = milliseconds(300)});
  group[1].reset();
  constexpr size_t kMiB = size_t{1} << 20;
  EXPECT_EQ(ExchangeAlone(*group[0], kMiB).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  Form(2);
}

TEST_F(DirectCommunicatorTest, ConnectNeedsEveryAddressAndComesOnce) {
  const auto factory = CreateDirectFactory({.connect_timeout = milliseconds(500)});
  EXPECT_EQ(factory->Prepare(0, kMaxDirectRanks + 1).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(factory->Prepare(2, 2).status().code(), absl::StatusCode::kInvalidArgument);
  const auto alone = Form(1);
  EXPECT_EQ(alone[0]->Connect(AddressesOf(alone)).code(), absl::StatusCode::kFailedPrecondition);
  for (const std::string& peer : {std::string(), std::string("nobody"), std::string(1000, '\xff')}) {
    const auto communicator = *factory->Prepare(0, 2);
    EXPECT_EQ(ExchangeNothing(*communicator).code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(communicator->Connect(std::vector<std::string>{communicator->address(), peer}).code(),
              absl::StatusCode::kInvalidArgument);
  }
  const auto group = PrepareGroup(*factory, 2);
  EXPECT_EQ(group[0]->Connect(AddressesOf(group)).code(), absl::StatusCode::kUnavailable);
}

TEST_F(DirectCommunicatorTest, AGpuThatIsNotThereIsRefused) {
  EXPECT_FALSE(CreateDirectFactory({.device_idx = 1000})->Prepare(0, 1).ok());
}

}  // namespace
}  // namespace switchyard
