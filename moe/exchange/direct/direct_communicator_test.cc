// Tests that need only one GPU: ranks are threads that share it. Ranks as processes, with a GPU each, are tested in
// moe/exchange/device_processes_test.cc.
#include "moe/exchange/direct/direct_communicator.h"

#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
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

// Exchanges host bytes: send_bytes[r] to every rank r, and as many from it as it sends.
absl::Status Exchange(Communicator& communicator, const std::vector<size_t>& send_bytes,
                      const std::vector<size_t>& recv_bytes) {
  size_t to_send = 0, to_receive = 0;
  for (int peer = 0; peer < communicator.size(); ++peer) {
    to_send += send_bytes[peer];
    to_receive += recv_bytes[peer];
  }
  std::vector<std::byte> sent, received(to_receive);
  for (size_t idx = 0; idx < to_send; ++idx) sent.push_back(static_cast<std::byte>(idx * 131 + (idx >> 9)));
  return communicator.HostAllToAllV(sent.data(), send_bytes, received.data(), recv_bytes);
}

absl::Status ExchangeNothing(Communicator& communicator) {
  const std::vector<size_t> zeros(communicator.size());
  return communicator.AllToAllV(nullptr, zeros, nullptr, zeros, nullptr);
}

TEST_F(DirectCommunicatorTest, EveryByteArrivesWhateverTheNumberOfRanks) {
  for (const int size : {1, 2, 3, 5}) {
    const auto group = Form(size);
    OnEveryRank(size, [&](int rank) {
      const absl::Status checked = CheckExchange(*group[rank]);
      EXPECT_TRUE(checked.ok()) << checked;
    });
  }
}

// Blocks of every kind: a byte, one lane, all lanes, more pieces than there are slots, and those of the copy engines.
TEST_F(DirectCommunicatorTest, BlocksOfEverySizeArrive) {
  const auto group = Form(2);
  for (const size_t bytes : {size_t{1}, size_t{4096}, size_t{100'003}, kLargeBlockBytes - 16, kLargeBlockBytes,
                             kLargeBlockBytes + 7, 5 * kLargeSlots * DirectWindow::Of(2).large_slot_bytes() + 3}) {
    std::vector<std::byte> sent[2], received[2];
    OnEveryRank(2, [&](int rank) {
      const size_t other = bytes / 2 + 1;  // the two directions differ
      const std::vector<size_t> to = {rank == 0 ? 16 : other, rank == 0 ? bytes : 16};
      const std::vector<size_t> from = {rank == 0 ? 16 : bytes, rank == 0 ? other : 16};
      for (size_t idx = 0; idx < to[0] + to[1]; ++idx) {
        sent[rank].push_back(static_cast<std::byte>(idx * 131 + (idx >> 9) + rank));
      }
      received[rank].resize(from[0] + from[1]);
      const absl::Status done = group[rank]->HostAllToAllV(sent[rank].data(), to, received[rank].data(), from);
      ASSERT_TRUE(done.ok()) << done;
    });
    EXPECT_TRUE(std::equal(sent[0].begin() + 16, sent[0].end(), received[1].begin())) << bytes;
    EXPECT_TRUE(std::equal(received[0].begin() + 16, received[0].end(), sent[1].begin())) << bytes;
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

TEST_F(DirectCommunicatorTest, RanksThatDisagreeAboutACountAreNamed) {
  const auto group = Form(2, {.exchange_timeout = milliseconds(2000)});
  std::array<absl::Status, 2> ends;
  OnEveryRank(2, [&](int rank) {
    ends[rank] = rank == 0 ? Exchange(*group[0], {0, 4096}, {0, 16}) : Exchange(*group[1], {16, 0}, {4000, 0});
  });
  EXPECT_EQ(ends[1].code(), absl::StatusCode::kInvalidArgument) << ends[1];
  EXPECT_THAT(ends[1].message(), HasSubstr("rank 0 sends rank 1 4096 bytes, which expects 4000"));
}

TEST_F(DirectCommunicatorTest, SilentPeersTimeOutSmallAndLarge) {
  for (const size_t bytes : {size_t{4096}, 2 * kLargeBlockBytes}) {
    const auto group = Form(2, {.exchange_timeout = milliseconds(500)});
    const SteadyTime begin = Clock::Real().Now();
    const absl::Status failed = Exchange(*group[0], {0, bytes}, {0, bytes});
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
    EXPECT_EQ(Exchange(*group[0], {0, bytes}, {0, bytes}).code(), absl::StatusCode::kAborted);
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
  EXPECT_EQ(Exchange(*group[0], {0, kMiB}, {0, kMiB}).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const auto next = Form(2);
  OnEveryRank(2, [&](int rank) { EXPECT_TRUE(CheckExchange(*next[rank]).ok()); });
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
