// Tests that need only one process and one GPU: groups of one, refusals, and waiting for a peer that never comes.
#include "moe/exchange/nccl/nccl_communicator.h"

#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>
#include <vector>

#include "base/clock.h"
#include "moe/exchange/nccl/nccl_address.h"
#include "moe/gpu/memory.h"
#include "moe/gpu/stream.h"

namespace switchyard {
namespace {

using std::chrono::milliseconds;
using testing::AllOf;
using testing::HasSubstr;

constexpr int64_t kPromptUs = 3'000'000;
constexpr unsigned kHungSeconds = 90;  // SIGALRM ends a test that hangs

class NcclCommunicatorTest : public testing::Test {
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

  std::unique_ptr<Communicator> Prepare(int rank, int size, NcclOptions options = {}) {
    absl::StatusOr<std::unique_ptr<Communicator>> communicator = CreateNcclFactory(options)->Prepare(rank, size);
    EXPECT_TRUE(communicator.ok()) << communicator.status();
    return std::move(communicator).value();
  }

  std::unique_ptr<Communicator> FormGroupOfOne() {
    std::unique_ptr<Communicator> communicator = Prepare(0, 1);
    const absl::Status connected = communicator->Connect(std::vector<std::string>{communicator->address()});
    EXPECT_TRUE(connected.ok()) << connected;
    return communicator;
  }

  // The addresses of rank 0 of two, and of a rank 1 on another GPU, which does not exist.
  std::vector<std::string> AddressesWithAGhost(const Communicator& communicator) {
    NcclAddress ghost = ParseNcclAddress(communicator.address(), 0, 2).value();
    ghost.rank = 1;
    ghost.unique_id.clear();
    for (uint8_t& byte : ghost.gpu) byte ^= 0xff;
    return {communicator.address(), EncodeNcclAddress(ghost)};
  }
};

absl::Status ExchangeNothing(Communicator& communicator) {
  const std::vector<size_t> zeros(communicator.size());
  return communicator.AllToAllV(nullptr, zeros, nullptr, zeros, nullptr);
}

TEST_F(NcclCommunicatorTest, GroupOfOneCopiesItsOwnBlock) {
  const auto communicator = FormGroupOfOne();
  const CudaStream stream = CudaStream::Create().value();
  for (const size_t num_bytes : {size_t{0}, size_t{1}, size_t{4097}, size_t{64} << 20}) {
    std::vector<std::byte> sent(num_bytes), received(num_bytes);
    for (size_t idx = 0; idx < num_bytes; ++idx) sent[idx] = static_cast<std::byte>(idx * 131 + (idx >> 9));
    const DeviceBuffer from = DeviceBuffer::Allocate(num_bytes).value();
    const DeviceBuffer to = DeviceBuffer::Allocate(num_bytes).value();
    if (num_bytes > 0) {
      ASSERT_EQ(cudaMemcpy(from.data(), sent.data(), num_bytes, cudaMemcpyHostToDevice), cudaSuccess);
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    }
    const std::vector<size_t> sizes = {num_bytes};
    const absl::Status done =
        communicator->AllToAllV(from.data(), sizes, to.data(), sizes, ToDeviceStream(stream.get()));
    ASSERT_TRUE(done.ok()) << done;
    ASSERT_EQ(cudaStreamSynchronize(stream.get()), cudaSuccess);
    EXPECT_TRUE(communicator->Health().ok());
    if (num_bytes > 0) {
      ASSERT_EQ(cudaMemcpy(received.data(), to.data(), num_bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    }
    EXPECT_EQ(sent, received);
  }
}

TEST_F(NcclCommunicatorTest, CheckExchangeNeedsNoDeviceMemoryFromItsCaller) {
  const auto communicator = FormGroupOfOne();
  const absl::Status checked = CheckExchange(*communicator);
  EXPECT_TRUE(checked.ok()) << checked;
}

TEST_F(NcclCommunicatorTest, WrongCountsEndTheCommunicator) {
  const auto communicator = FormGroupOfOne();
  const std::vector<size_t> one = {1}, two = {2}, both = {1, 1};
  EXPECT_THAT(communicator->AllToAllV(nullptr, one, nullptr, two, nullptr).message(),
              HasSubstr("rank 0 sends itself 1 bytes but expects 2"));
  EXPECT_EQ(ExchangeNothing(*communicator).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(communicator->Health().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(FormGroupOfOne()->AllToAllV(nullptr, both, nullptr, one, nullptr).message(),
              HasSubstr("expected 1 counts, got 2 to send and 1 to receive"));
}

TEST_F(NcclCommunicatorTest, ExchangeNeedsConnectWhichComesOnce) {
  const auto communicator = Prepare(0, 1);
  EXPECT_EQ(ExchangeNothing(*communicator).code(), absl::StatusCode::kFailedPrecondition);
  const std::vector<std::string> addresses = {communicator->address()};
  EXPECT_TRUE(communicator->Connect(addresses).ok());
  EXPECT_EQ(communicator->Connect(addresses).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(ExchangeNothing(*communicator).ok());
}

TEST_F(NcclCommunicatorTest, RanksOutsideTheGroupAndGpusThatAreNotThereAreRefused) {
  EXPECT_EQ(CreateNcclFactory()->Prepare(2, 2).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CreateNcclFactory()->Prepare(-1, 2).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CreateNcclFactory({.device_idx = 1000})->Prepare(0, 1).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(NcclCommunicatorTest, TwoRanksOnOneGpuAreRefused) {
  const auto first = Prepare(0, 2);
  const auto second = Prepare(1, 2);
  const std::vector<std::string> addresses = {first->address(), second->address()};
  const absl::Status refused = second->Connect(addresses);
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.message(), HasSubstr("ranks 0 and 1 are on the same GPU"));
}

TEST_F(NcclCommunicatorTest, CorruptAddressesAreRefused) {
  for (const std::string& peer : {std::string(), std::string("nobody"), std::string(1000, '\xff')}) {
    const auto communicator = Prepare(0, 2);
    const std::vector<std::string> addresses = {communicator->address(), peer};
    EXPECT_EQ(communicator->Connect(addresses).code(), absl::StatusCode::kInvalidArgument);
  }
  const auto communicator = Prepare(0, 2);
  const std::vector<std::string> alone = {communicator->address()};
  EXPECT_THAT(communicator->Connect(alone).message(), HasSubstr("expected 2 addresses, got 1"));
  const auto other = Prepare(0, 2);
  EXPECT_THAT(other->Connect(AddressesWithAGhost(*communicator)).message(), HasSubstr("not this rank's own"));
}

TEST_F(NcclCommunicatorTest, PeerThatNeverConnectsTimesOut) {
  const auto communicator = Prepare(0, 2, {.connect_timeout = milliseconds(500)});
  const SteadyTime begin = Clock::Real().Now();
  const absl::Status failed = communicator->Connect(AddressesWithAGhost(*communicator));
  EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(failed.message(), AllOf(HasSubstr("ncclCommInitRankConfig"), HasSubstr("within 500 ms")));
  EXPECT_LT(MicrosBetween(begin, Clock::Real().Now()), kPromptUs);
  EXPECT_EQ(ExchangeNothing(*communicator).code(), absl::StatusCode::kUnavailable);
}

// Aborts after several delays, to hit different stages of connecting.
TEST_F(NcclCommunicatorTest, AbortWakesConnect) {
  for (const int64_t delay_us : {0, 100, 1'000, 10'000, 100'000, 500'000}) {
    SCOPED_TRACE(delay_us);
    const auto communicator = Prepare(0, 2);
    const std::vector<std::string> addresses = AddressesWithAGhost(*communicator);
    const SteadyTime begin = Clock::Real().Now();
    std::thread supervisor([&] {
      while (MicrosBetween(begin, Clock::Real().Now()) < delay_us) std::this_thread::yield();
      communicator->Abort();
    });
    const absl::Status aborted = communicator->Connect(addresses);
    EXPECT_EQ(aborted.code(), absl::StatusCode::kAborted) << aborted;
    EXPECT_LT(MicrosBetween(begin, Clock::Real().Now()), kPromptUs);
    supervisor.join();
  }
}

TEST_F(NcclCommunicatorTest, EverythingAfterAbortIsAborted) {
  for (const bool connected : {false, true}) {
    const auto communicator = connected ? FormGroupOfOne() : Prepare(0, 1);
    communicator->Abort();
    communicator->Abort();
    EXPECT_EQ(communicator->Connect(std::vector<std::string>{communicator->address()}).code(),
              absl::StatusCode::kAborted);
    EXPECT_EQ(ExchangeNothing(*communicator).code(), absl::StatusCode::kAborted);
    EXPECT_EQ(CheckExchange(*communicator).code(), absl::StatusCode::kAborted);
    EXPECT_EQ(communicator->Health().code(), absl::StatusCode::kAborted);
  }
}

}  // namespace
}  // namespace switchyard
