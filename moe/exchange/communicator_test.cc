// Tests the promises of every Communicator on all host kinds: the in-process one, Gloo, shared memory and TCP.
#include "moe/exchange/communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <random>
#include <thread>

#include "base/clock.h"
#include "moe/exchange/gloo/gloo_communicator.h"
#include "moe/exchange/in_process.h"
#include "moe/exchange/shm/shm_communicator.h"
#include "moe/exchange/tcp/tcp_communicator.h"
#include "moe/exchange/testing.h"

namespace switchyard {
namespace {

using testing::AnyOf;
using testing::HasSubstr;

constexpr int64_t kPromptUs = 1'000'000;

enum class Kind { kInProcess, kGloo, kShm, kTcp };

std::unique_ptr<CommunicatorFactory> MakeFactory(Kind kind) {
  switch (kind) {
    case Kind::kInProcess:
      return CreateInProcessFactory();
    case Kind::kGloo:
      return CreateGlooFactory();
    case Kind::kShm:
      return CreateShmFactory();
    case Kind::kTcp:
      break;
  }
  return CreateTcpFactory();
}

std::string NameOf(const testing::TestParamInfo<Kind>& info) {
  constexpr const char* kNames[] = {"InProcess", "Gloo", "Shm", "Tcp"};
  return kNames[static_cast<int>(info.param)];
}

// Byte `idx` of the block from `source` to `destination`.
std::byte ByteOf(int source, int destination, size_t idx) {
  return static_cast<std::byte>((idx * 131 + source * 17 + destination * 29 + (idx >> 9)) & 0xff);
}

// sizes[source][destination]
using SizeMatrix = std::vector<std::vector<size_t>>;

std::vector<size_t> Column(const SizeMatrix& sizes, int destination) {
  std::vector<size_t> column;
  for (const std::vector<size_t>& row : sizes) column.push_back(row[destination]);
  return column;
}

std::vector<std::byte> SendBuffer(const SizeMatrix& sizes, int rank) {
  std::vector<std::byte> buffer;
  for (size_t peer = 0; peer < sizes.size(); ++peer) {
    for (size_t idx = 0; idx < sizes[rank][peer]; ++idx) buffer.push_back(ByteOf(rank, peer, idx));
  }
  return buffer;
}

std::vector<std::byte> ExpectedBuffer(const SizeMatrix& sizes, int rank) {
  std::vector<std::byte> buffer;
  for (size_t peer = 0; peer < sizes.size(); ++peer) {
    for (size_t idx = 0; idx < sizes[peer][rank]; ++idx) buffer.push_back(ByteOf(peer, rank, idx));
  }
  return buffer;
}

// One exchange on one rank. Checks every received byte, and that nothing was written behind them.
absl::Status ExchangeAndCompare(Communicator& communicator, const SizeMatrix& sizes) {
  const int rank = communicator.rank();
  const std::vector<std::byte> sent = SendBuffer(sizes, rank);
  const std::vector<std::byte> expected = ExpectedBuffer(sizes, rank);
  const std::byte guard{0xa5};
  std::vector<std::byte> received(expected.size() + 64, guard);
  SY_RETURN_IF_ERROR(
      communicator.AllToAllV(sent.data(), sizes[rank], received.data(), Column(sizes, rank), /*stream=*/nullptr));
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), received.begin()));
  EXPECT_EQ(std::count(received.begin() + expected.size(), received.end(), guard), 64);
  return absl::OkStatus();
}

absl::Status SendOneByteToAll(Communicator& communicator) {
  const std::vector<size_t> ones(communicator.size(), 1);
  std::vector<std::byte> sent(communicator.size()), received(communicator.size());
  return communicator.AllToAllV(sent.data(), ones, received.data(), ones, nullptr);
}

class CommunicatorTest : public testing::TestWithParam<Kind> {
 protected:
  static void SetUpTestSuite() { signal(SIGPIPE, SIG_IGN); }
  const std::unique_ptr<CommunicatorFactory> factory_ = MakeFactory(GetParam());
};

INSTANTIATE_TEST_SUITE_P(Kinds, CommunicatorTest,
                         testing::Values(Kind::kInProcess, Kind::kGloo, Kind::kShm, Kind::kTcp), NameOf);

TEST_P(CommunicatorTest, RandomSizesArriveByteExact) {
  for (const int size : {1, 2, 3, 5}) {
    const auto group = FormGroup(*factory_, size);
    std::mt19937 random(size);
    std::vector<SizeMatrix> rounds;
    for (int round = 0; round < 60; ++round) {
      SizeMatrix& sizes = rounds.emplace_back(size, std::vector<size_t>(size));
      for (auto& row : sizes) {
        for (size_t& bytes : row) bytes = random() % 3 == 0 ? 0 : random() % (1u << random() % 18);
      }
    }
    OnEveryRank(size, [&](int rank) {
      for (const SizeMatrix& sizes : rounds) {
        const absl::Status done = ExchangeAndCompare(*group[rank], sizes);
        ASSERT_TRUE(done.ok()) << done;
      }
    });
  }
}

TEST_P(CommunicatorTest, LargeUnevenBlocksArriveByteExact) {
  constexpr size_t kMiB = 1 << 20;
  const SizeMatrix sizes = {{1, 8 * kMiB, 0}, {8 * kMiB + 3, 0, 5}, {kMiB, 0, 3 * kMiB}};
  const auto group = FormGroup(*factory_, 3);
  OnEveryRank(3, [&](int rank) {
    for (int round = 0; round < 3; ++round) EXPECT_TRUE(ExchangeAndCompare(*group[rank], sizes).ok());
  });
}

TEST_P(CommunicatorTest, AllCountsMayBeZero) {
  const auto group = FormGroup(*factory_, 3);
  const std::vector<size_t> zeros(3, 0);
  OnEveryRank(3, [&](int rank) {
    EXPECT_TRUE(group[rank]->AllToAllV(nullptr, zeros, nullptr, zeros, nullptr).ok());
    EXPECT_TRUE(SendOneByteToAll(*group[rank]).ok());
  });
}

TEST_P(CommunicatorTest, RankMayLeaveAfterItsLastExchange) {
  for (int round = 0; round < 20; ++round) {
    auto group = FormGroup(*factory_, 3);
    const SizeMatrix sizes(3, std::vector<size_t>(3, 300'000));
    OnEveryRank(3, [&](int rank) {
      EXPECT_TRUE(ExchangeAndCompare(*group[rank], sizes).ok());
      group[rank].reset();
    });
  }
}

TEST_P(CommunicatorTest, CheckExchangePasses) {
  for (const int size : {1, 2, 4}) {
    const auto group = FormGroup(*factory_, size);
    OnEveryRank(size, [&](int rank) {
      const absl::Status checked = CheckExchange(*group[rank]);
      EXPECT_TRUE(checked.ok()) << checked;
    });
  }
}

TEST_P(CommunicatorTest, PrepareRefusesRanksThatDoNotExist) {
  for (const auto& [rank, size] : std::vector<std::pair<int, int>>{{0, 0}, {2, 2}, {-1, 2}, {0, -3}}) {
    EXPECT_EQ(factory_->Prepare(rank, size).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_P(CommunicatorTest, ConnectRefusesWrongAddresses) {
  const auto group = PrepareGroup(*factory_, 3);
  std::vector<std::string> addresses = AddressesOf(group);
  addresses.pop_back();
  EXPECT_EQ(group[0]->Connect(addresses).code(), absl::StatusCode::kInvalidArgument);
  addresses = AddressesOf(group);
  std::swap(addresses[1], addresses[2]);
  EXPECT_EQ(group[1]->Connect(addresses).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(CommunicatorTest, ExchangeNeedsConnect) {
  const auto group = PrepareGroup(*factory_, 2);
  EXPECT_EQ(SendOneByteToAll(*group[0]).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_P(CommunicatorTest, WrongNumberOfCountsIsRefused) {
  const auto group = FormGroup(*factory_, 1);
  const std::vector<size_t> two(2, 0);
  EXPECT_EQ(group[0]->AllToAllV(nullptr, two, nullptr, two, nullptr).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(CommunicatorTest, OwnCountsMustAgree) {
  const auto group = FormGroup(*factory_, 1);
  const std::vector<size_t> one(1, 1), two(1, 2);
  std::vector<std::byte> bytes(4);
  const absl::Status refused = group[0]->AllToAllV(bytes.data(), two, bytes.data() + 2, one, nullptr);
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(refused.message(), HasSubstr("expects 1"));
}

TEST_P(CommunicatorTest, AbortWakesBlockedCall) {
  for (int round = 0; round < 10; ++round) {
    const auto group = FormGroup(*factory_, 3);
    std::thread caller([&] {  // the others never call
      const absl::Status failed = SendOneByteToAll(*group[0]);
      EXPECT_EQ(failed.code(), absl::StatusCode::kAborted) << failed;
    });
    const SteadyTime aborted_at = Clock::Real().Now();
    group[0]->Abort();
    caller.join();
    EXPECT_LT(MicrosBetween(aborted_at, Clock::Real().Now()), kPromptUs);
  }
}

TEST_P(CommunicatorTest, AbortOfOneRankEndsTheOthersCalls) {
  for (int round = 0; round < 10; ++round) {
    const auto group = FormGroup(*factory_, 3);
    const SteadyTime begin = Clock::Real().Now();
    OnEveryRank(3, [&](int rank) {
      if (rank == 1) {
        group[1]->Abort();
        return;
      }
      const absl::Status failed = SendOneByteToAll(*group[rank]);
      EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable) << failed;
    });
    EXPECT_LT(MicrosBetween(begin, Clock::Real().Now()), kPromptUs);
  }
}

TEST_P(CommunicatorTest, AbortWakesLargeTransferInFlight) {
  const auto group = FormGroup(*factory_, 2);
  const SizeMatrix sizes(2, std::vector<size_t>(2, 4 << 20));
  std::thread aborter;
  OnEveryRank(2, [&](int rank) {
    absl::Status status;
    for (int round = 0; status.ok(); ++round) {
      if (round == 3 && rank == 0) aborter = std::thread([&] { group[0]->Abort(); });
      status = ExchangeAndCompare(*group[rank], sizes);
    }
    EXPECT_EQ(status.code(), rank == 0 ? absl::StatusCode::kAborted : absl::StatusCode::kUnavailable) << status;
  });
  aborter.join();
}

TEST_P(CommunicatorTest, EveryOperationFailsAfterAbort) {
  const auto group = FormGroup(*factory_, 2);
  group[0]->Abort();
  group[0]->Abort();
  EXPECT_EQ(SendOneByteToAll(*group[0]).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(SendOneByteToAll(*group[0]).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(CheckExchange(*group[0]).code(), absl::StatusCode::kAborted);
  EXPECT_FALSE(group[0]->Connect(AddressesOf(group)).ok());
  EXPECT_EQ(SendOneByteToAll(*group[1]).code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(SendOneByteToAll(*group[1]).ok());
  group[0]->Abort();
}

TEST_P(CommunicatorTest, ManyThreadsMayAbortAtOnce) {
  for (int round = 0; round < 10; ++round) {
    const auto group = FormGroup(*factory_, 2);
    std::thread caller([&] {
      while (SendOneByteToAll(*group[0]).ok()) {
      }
    });
    std::thread peer([&] {
      while (SendOneByteToAll(*group[1]).ok()) {
      }
    });
    OnEveryRank(4, [&](int) { group[0]->Abort(); });
    caller.join();
    peer.join();
  }
}

TEST_P(CommunicatorTest, AbortBeforeConnect) {
  auto group = PrepareGroup(*factory_, 2);
  group[0]->Abort();
  EXPECT_EQ(group[0]->Connect(AddressesOf(group)).code(), absl::StatusCode::kAborted);
}

TEST_P(CommunicatorTest, AbortWakesConnect) {
  for (int round = 0; round < 10; ++round) {
    const auto group = PrepareGroup(*factory_, 3);
    const std::vector<std::string> addresses = AddressesOf(group);
    const SteadyTime begin = Clock::Real().Now();
    std::thread connecting([&] { EXPECT_EQ(group[0]->Connect(addresses).code(), absl::StatusCode::kAborted); });
    group[0]->Abort();
    connecting.join();
    EXPECT_LT(MicrosBetween(begin, Clock::Real().Now()), kPromptUs);
  }
}

TEST_P(CommunicatorTest, PeerThatLeavesFailsTheOthersPromptly) {
  auto group = FormGroup(*factory_, 3);
  const SteadyTime begin = Clock::Real().Now();
  OnEveryRank(3, [&](int rank) {
    if (rank == 1) {
      group[1].reset();
      return;
    }
    const absl::Status failed = SendOneByteToAll(*group[rank]);
    EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable) << failed;
    // The survivor that notices first gives up, and the other may notice that instead of rank 1's leaving.
    const int other = 2 - rank;
    EXPECT_THAT(failed.message(), AnyOf(HasSubstr("rank 1"), HasSubstr(absl::StrCat(": rank ", other)))) << failed;
  });
  EXPECT_LT(MicrosBetween(begin, Clock::Real().Now()), kPromptUs);
  const auto next = FormGroup(*factory_, 3);
  OnEveryRank(3, [&](int rank) { EXPECT_TRUE(CheckExchange(*next[rank]).ok()); });
}

// Flips one received byte of one exchange.
class FlippingCommunicator final : public Communicator {
 public:
  FlippingCommunicator(Communicator* base, int exchange_idx, size_t byte_idx)
      : base_(base), exchange_idx_(exchange_idx), byte_idx_(byte_idx) {}
  int rank() const override { return base_->rank(); }
  int size() const override { return base_->size(); }
  const std::string& address() const override { return base_->address(); }
  absl::Status Connect(std::span<const std::string> addresses) override { return base_->Connect(addresses); }
  absl::Status AllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                         std::span<const size_t> recv_bytes, DeviceStream stream) override {
    SY_RETURN_IF_ERROR(base_->AllToAllV(send, send_bytes, recv, recv_bytes, stream));
    if (exchange_idx_-- == 0) recv[byte_idx_] ^= std::byte{0x10};
    return absl::OkStatus();
  }
  void Abort() override { base_->Abort(); }

 private:
  Communicator* const base_;
  int exchange_idx_;
  const size_t byte_idx_;
};

TEST_P(CommunicatorTest, CheckExchangeCatchesOneFlippedBit) {
  const auto group = FormGroup(*factory_, 2);
  OnEveryRank(2, [&](int rank) {
    FlippingCommunicator flipping(group[rank].get(), /*exchange_idx=*/2, /*byte_idx=*/70'000);
    const absl::Status checked = CheckExchange(rank == 0 ? flipping : *group[rank]);
    EXPECT_EQ(checked.code(), rank == 0 ? absl::StatusCode::kDataLoss : absl::StatusCode::kOk) << checked;
    EXPECT_THAT(checked.message(), HasSubstr(rank == 0 ? "from rank 1" : ""));
  });
}

TEST(InProcessTest, MismatchedCountsFailEveryRankAndNameBoth) {
  const auto factory = CreateInProcessFactory();
  const auto group = FormGroup(*factory, 2);
  OnEveryRank(2, [&](int rank) {
    const std::vector<size_t> sent(2, rank == 0 ? 2 : 1), expected(2, rank == 0 ? 2 : 1);
    std::vector<std::byte> out(4), in(4);
    const absl::Status failed = group[rank]->AllToAllV(out.data(), sent, in.data(), expected, nullptr);
    EXPECT_EQ(failed.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(failed.message(), HasSubstr("rank 0 sends rank 1 2 bytes, which expects 1"));
  });
}

TEST(InProcessTest, AddressOfNobodyIsRefused) {
  const auto factory = CreateInProcessFactory();
  const auto group = PrepareGroup(*factory, 2);
  const std::vector<std::string> addresses = {group[0]->address(), "nobody"};
  EXPECT_EQ(group[0]->Connect(addresses).code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace switchyard
