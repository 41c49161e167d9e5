// Tests of every exchange between GPUs, with ranks as processes, one per GPU: exchanges checked byte for byte, aborts
// while ranks wait for each other, and a rank that is killed again and again. `--ranks=N` limits the number of ranks;
// without it all GPUs take part.
#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "base/clock.h"
#include "moe/exchange/direct/direct_communicator.h"
#include "moe/exchange/nccl/nccl_communicator.h"
#include "moe/exchange/rank_process.h"
#include "moe/gpu/cuda_status.h"
#include "moe/gpu/memory.h"
#include "moe/gpu/stream.h"

namespace switchyard {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr int64_t kPromptUs = 3'000'000;
constexpr int64_t kRecoveryUs = 3'000'000;

int64_t MicrosSince(SteadyTime begin) { return MicrosBetween(begin, Clock::Real().Now()); }

int64_t NumberOf(const std::string& text) {
  int64_t number = 0;
  EXPECT_TRUE(absl::SimpleAtoi(text, &number)) << text;
  return number;
}

// ---- The children's half. ----

// The arguments of a rank's process.
struct RankArguments {
  std::string exchange;  // "nccl" or "direct"
  std::string scenario;
  int rank = 0;
  int size = 1;
  std::vector<std::string> more;
};

RankArguments Decode(const std::vector<std::string>& arguments) {
  return {.exchange = arguments.at(0),
          .scenario = arguments.at(1),
          .rank = static_cast<int>(NumberOf(arguments.at(2))),
          .size = static_cast<int>(NumberOf(arguments.at(3))),
          .more = {arguments.begin() + 4, arguments.end()}};
}

std::unique_ptr<CommunicatorFactory> MakeFactory(const RankArguments& arguments, NcclOptions nccl = {}) {
  if (arguments.exchange == "direct") return CreateDirectFactory({.device_idx = arguments.rank});
  nccl.device_idx = arguments.rank;
  return CreateNcclFactory(nccl);
}

// Joins the group whose addresses the parent carries.
absl::StatusOr<std::unique_ptr<Communicator>> Join(CommunicatorFactory& factory, const RankArguments& arguments,
                                                   PacketChannel& channel) {
  SY_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> communicator, factory.Prepare(arguments.rank, arguments.size));
  SY_RETURN_IF_ERROR(channel.Send(communicator->address()));
  SY_ASSIGN_OR_RETURN(const std::vector<std::string> addresses, channel.ReceiveAll(arguments.size));
  SY_RETURN_IF_ERROR(communicator->Connect(addresses));
  return communicator;
}

// Fills the block that `source` sends `destination` in a round. Both ranks compute the same bytes, and no two blocks
// are alike.
void FillBlock(int source, int destination, int round, std::byte* block, size_t num_bytes) {
  std::mt19937_64 random(source * 1'000'003 + destination * 1009 + round);
  for (size_t begin = 0; begin < num_bytes; begin += sizeof(uint64_t)) {
    const uint64_t word = random();
    std::memcpy(block + begin, &word, std::min(sizeof(word), num_bytes - begin));
  }
}

// sizes[source][destination]
using SizeMatrix = std::vector<std::vector<size_t>>;

// Sizes from half of `base` to slightly more than `base`, and zero in a quarter of the cases.
SizeMatrix RandomSizes(int size, size_t base, uint32_t seed) {
  std::mt19937_64 random(seed);
  SizeMatrix sizes(size, std::vector<size_t>(size));
  for (std::vector<size_t>& row : sizes) {
    for (size_t& bytes : row) bytes = random() % 4 == 0 ? 0 : base - random() % (base / 2 + 1) + random() % 8;
  }
  return sizes;
}

std::vector<SizeMatrix> AllSizes(int size) {
  std::vector<SizeMatrix> all = {SizeMatrix(size, std::vector<size_t>(size, 0)),
                                 SizeMatrix(size, std::vector<size_t>(size, 64 * kMiB))};
  SizeMatrix& ring = all.emplace_back(size, std::vector<size_t>(size, 0));  // each rank sends to the next rank only
  for (int rank = 0; rank < size; ++rank) ring[rank][(rank + 1) % size] = kMiB + 13;
  for (const size_t base : {size_t{1}, size_t{17}, size_t{4096}, size_t{65537}, kMiB, 8 * kMiB, 64 * kMiB}) {
    for (uint32_t repeat = 0; repeat < 3; ++repeat) all.push_back(RandomSizes(size, base, base + repeat));
  }
  return all;
}

// The blocks that a rank sends, or receives, in a round, one after another.
struct HostBlocks {
  std::vector<size_t> sizes;
  std::vector<std::byte> bytes;
};

HostBlocks BlocksOf(const SizeMatrix& sizes, int rank, bool sending, int round) {
  HostBlocks blocks;
  for (int peer = 0; peer < static_cast<int>(sizes.size()); ++peer) {
    const int source = sending ? rank : peer;
    const int destination = sending ? peer : rank;
    const size_t num_bytes = sizes[source][destination];
    blocks.sizes.push_back(num_bytes);
    blocks.bytes.resize(blocks.bytes.size() + num_bytes);
    FillBlock(source, destination, round, blocks.bytes.data() + blocks.bytes.size() - num_bytes, num_bytes);
  }
  return blocks;
}

absl::Status Compare(const std::vector<std::byte>& expected, const std::vector<std::byte>& received) {
  const auto [wrong, got] = std::mismatch(expected.begin(), expected.end(), received.begin());
  if (wrong == expected.end()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("byte ", wrong - expected.begin(), " of ", expected.size(), " is ",
                                          static_cast<int>(*got), ", expected ", static_cast<int>(*wrong)));
}

// Checks every received byte, and that nothing was written behind them.
absl::Status ExchangeAndCompare(Communicator& communicator, const SizeMatrix& sizes, int round) {
  constexpr size_t kGuardBytes = 64;
  const HostBlocks sent = BlocksOf(sizes, communicator.rank(), /*sending=*/true, round);
  HostBlocks expected = BlocksOf(sizes, communicator.rank(), /*sending=*/false, round);
  expected.bytes.resize(expected.bytes.size() + kGuardBytes, std::byte{0xa5});
  std::vector<std::byte> received(expected.bytes.size());
  SY_ASSIGN_OR_RETURN(const CudaStream stream, CudaStream::Create());
  SY_ASSIGN_OR_RETURN(const DeviceBuffer from, DeviceBuffer::Allocate(sent.bytes.size()));
  SY_ASSIGN_OR_RETURN(const DeviceBuffer to, DeviceBuffer::Allocate(received.size()));
  if (from.size() > 0) {
    SY_CUDA(cudaMemcpyAsync(from.data(), sent.bytes.data(), from.size(), cudaMemcpyHostToDevice, stream.get()));
  }
  SY_CUDA(cudaMemsetAsync(to.data(), 0xa5, to.size(), stream.get()));
  SY_RETURN_IF_ERROR(
      communicator.AllToAllV(from.data(), sent.sizes, to.data(), expected.sizes, ToDeviceStream(stream.get())));
  SY_CUDA(cudaMemcpyAsync(received.data(), to.data(), to.size(), cudaMemcpyDeviceToHost, stream.get()));
  SY_CUDA(cudaStreamSynchronize(stream.get()));
  SY_RETURN_IF_ERROR(communicator.Health());
  return Annotate(Compare(expected.bytes, received), absl::StrCat("round ", round));
}

// more: max_ctas, max_self_send_bytes
absl::Status RunExchanges(const RankArguments& arguments, PacketChannel& channel) {
  const auto factory =
      MakeFactory(arguments, {.max_ctas = static_cast<int>(NumberOf(arguments.more.at(0))),
                              .max_self_send_bytes = static_cast<size_t>(NumberOf(arguments.more.at(1)))});
  SY_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> communicator, Join(*factory, arguments, channel));
  SY_RETURN_IF_ERROR(CheckExchange(*communicator));
  int round = 0;
  for (const SizeMatrix& sizes : AllSizes(arguments.size)) {
    SY_RETURN_IF_ERROR(ExchangeAndCompare(*communicator, sizes, round++));
  }
  SY_RETURN_IF_ERROR(channel.Send("exchanged"));
  return channel.Receive().status();  // no rank leaves before all have finished
}

// Rank 0 sends every other rank more than that expects.
absl::Status RunDisagreement(const RankArguments& arguments, PacketChannel& channel) {
  const auto factory = MakeFactory(arguments);
  SY_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> communicator, Join(*factory, arguments, channel));
  const bool is_liar = arguments.rank == 0;
  std::vector<size_t> send_sizes(arguments.size, is_liar ? 4096 : 16), recv_sizes(arguments.size, 16);
  if (!is_liar) recv_sizes[0] = 4000;
  send_sizes[arguments.rank] = recv_sizes[arguments.rank] = 0;
  const std::vector<std::byte> sent(arguments.size * 4096);
  std::vector<std::byte> received(arguments.size * 4096);
  const absl::Status exchanged = communicator->HostAllToAllV(sent.data(), send_sizes, received.data(), recv_sizes);
  SY_RETURN_IF_ERROR(channel.Send(is_liar ? "lied" : exchanged.ToString()));
  return channel.Receive().status();  // no rank leaves before all have finished
}

absl::Status ExpectAborted(absl::string_view call, const absl::Status& status) {
  if (absl::IsAborted(status)) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(call, " after Abort(): expected ABORTED, got ", status.ToString()));
}

// Device memory that must stay unchanged.
class Guarded {
 public:
  static absl::StatusOr<Guarded> Fill() {
    Guarded guarded;
    SY_ASSIGN_OR_RETURN(guarded.memory_, DeviceBuffer::Allocate(guarded.pattern_.size()));
    FillBlock(/*source=*/7, /*destination=*/7, /*round=*/7, guarded.pattern_.data(), guarded.pattern_.size());
    SY_CUDA(
        cudaMemcpy(guarded.memory_.data(), guarded.pattern_.data(), guarded.pattern_.size(), cudaMemcpyHostToDevice));
    SY_CUDA(cudaDeviceSynchronize());
    return guarded;
  }
  absl::Status Check() const {
    std::vector<std::byte> found(pattern_.size());
    SY_CUDA(cudaMemcpy(found.data(), memory_.data(), found.size(), cudaMemcpyDeviceToHost));
    return Annotate(Compare(pattern_, found), "device memory after an abort");
  }

 private:
  std::vector<std::byte> pattern_ = std::vector<std::byte>(16 * kMiB);
  DeviceBuffer memory_;
};

// Exchanges with peers that do not take part, until another thread aborts. If the peers are connected, the abort comes
// when the exchange's kernels wait on the GPU; otherwise it comes 100 ms into the call, in which NCCL waits for the
// peers to connect.
absl::Status ExchangeAlone(Communicator& communicator, bool connected) {
  SY_ASSIGN_OR_RETURN(const CudaStream stream, CudaStream::Create());
  const std::vector<size_t> sizes(communicator.size(), kMiB);
  SY_ASSIGN_OR_RETURN(const DeviceBuffer from, DeviceBuffer::Allocate(communicator.size() * kMiB));
  SY_ASSIGN_OR_RETURN(const DeviceBuffer to, DeviceBuffer::Allocate(communicator.size() * kMiB));
  std::atomic<bool> enqueued{false};
  std::thread supervisor([&, begin = Clock::Real().Now()] {
    while (!enqueued && (connected || MicrosSince(begin) < 100'000)) std::this_thread::yield();
    communicator.Abort();
  });
  const absl::Status exchanged =
      communicator.AllToAllV(from.data(), sizes, to.data(), sizes, ToDeviceStream(stream.get()));
  enqueued = true;
  const cudaError_t ended = cudaStreamSynchronize(stream.get());
  supervisor.join();
  SY_RETURN_IF_ERROR(CudaStatus(ended, "cudaStreamSynchronize"));
  if (connected) {
    SY_RETURN_IF_ERROR(exchanged);
  } else if (!exchanged.ok()) {
    SY_RETURN_IF_ERROR(ExpectAborted("the interrupted AllToAllV", exchanged));
  }
  return ExpectAborted("Health", communicator.Health());
}

// more: "warm" if the ranks have exchanged before, so that NCCL has connected them; otherwise "fresh"
absl::Status RunAbort(const RankArguments& arguments, PacketChannel& channel) {
  const bool warm = arguments.more.at(0) == "warm";
  SY_CUDA(cudaSetDevice(arguments.rank));
  SY_ASSIGN_OR_RETURN(const Guarded guarded, Guarded::Fill());
  const auto factory = MakeFactory(arguments);
  SY_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> communicator, Join(*factory, arguments, channel));
  if (warm) SY_RETURN_IF_ERROR(CheckExchange(*communicator));
  if (arguments.rank != 0) return channel.Receive().status();  // takes no part until the parent ends it
  const SteadyTime begin = Clock::Real().Now();
  SY_RETURN_IF_ERROR(ExchangeAlone(*communicator, /*connected=*/warm));
  const int64_t took_us = MicrosSince(begin);
  std::printf("%s: aborted within %.0f ms\n", arguments.more.at(0).c_str(), took_us / 1000.0);
  if (took_us > kPromptUs) return absl::DeadlineExceededError(absl::StrCat("the abort took ", took_us, " us"));
  communicator->Abort();
  SY_RETURN_IF_ERROR(ExpectAborted("CheckExchange", CheckExchange(*communicator)));
  SY_RETURN_IF_ERROR(
      ExpectAborted("Connect", communicator->Connect(std::vector<std::string>{communicator->address()})));
  return guarded.Check();
}

// Exchanges a little and compares the bytes, then exchanges 64 MiB with every peer until that fails.
absl::Status ExchangeUntilFailure(Communicator& communicator, PacketChannel& channel) {
  const int size = communicator.size();
  const SizeMatrix looked_at(size, std::vector<size_t>(size, kMiB + 5));
  SY_RETURN_IF_ERROR(ExchangeAndCompare(communicator, looked_at, /*round=*/0));
  SY_ASSIGN_OR_RETURN(const CudaStream stream, CudaStream::Create());
  const std::vector<size_t> sizes(size, 64 * kMiB);
  SY_ASSIGN_OR_RETURN(const DeviceBuffer from, DeviceBuffer::Allocate(sizes.size() * sizes[0]));
  SY_ASSIGN_OR_RETURN(const DeviceBuffer to, DeviceBuffer::Allocate(sizes.size() * sizes[0]));
  for (int round = 0;; ++round) {
    SY_RETURN_IF_ERROR(communicator.AllToAllV(from.data(), sizes, to.data(), sizes, ToDeviceStream(stream.get())));
    SY_CUDA(cudaStreamSynchronize(stream.get()));
    SY_RETURN_IF_ERROR(communicator.Health());
    if (round == 2) SY_RETURN_IF_ERROR(channel.Send("running"));
  }
}

// Joins a group and exchanges in it until the parent sends a packet, which ends the group.
absl::Status RunEpoch(CommunicatorFactory& factory, const RankArguments& arguments, PacketChannel& channel) {
  SY_ASSIGN_OR_RETURN(const std::unique_ptr<Communicator> communicator, Join(factory, arguments, channel));
  SY_RETURN_IF_ERROR(CheckExchange(*communicator));
  std::thread supervisor([&] {
    channel.Receive().status().IgnoreError();
    communicator->Abort();
  });
  const absl::Status ended = ExchangeUntilFailure(*communicator, channel);
  // A failure before the abort is sent to the parent at once, because the parent may be waiting for "running".
  if (!absl::IsAborted(ended)) channel.Send(ended.ToString()).IgnoreError();
  supervisor.join();
  return ExpectAborted("the exchange", ended);
}

// Sends "up". Then, for every "join" from the parent, takes part in a group and sends the device's free memory in MiB
// afterwards.
absl::Status RunServer(const RankArguments& arguments, PacketChannel& channel) {
  SY_CUDA(cudaSetDevice(arguments.rank));
  SY_ASSIGN_OR_RETURN(const Guarded guarded, Guarded::Fill());
  const auto factory = MakeFactory(arguments);
  SY_RETURN_IF_ERROR(channel.Send("up"));
  while (true) {
    SY_RETURN_IF_ERROR(channel.Receive(std::chrono::minutes(10)).status());
    SY_RETURN_IF_ERROR(RunEpoch(*factory, arguments, channel));
    SY_RETURN_IF_ERROR(guarded.Check());
    size_t free_bytes = 0, total_bytes = 0;
    SY_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
    SY_RETURN_IF_ERROR(channel.Send(absl::StrCat(free_bytes / kMiB)));
  }
}

int RunRank(RankChild& child) {
  const RankArguments arguments = Decode(child.arguments);
  absl::Status status = absl::InvalidArgumentError(absl::StrCat("no scenario ", arguments.scenario));
  if (arguments.scenario == "exchange") status = RunExchanges(arguments, child.channel);
  if (arguments.scenario == "disagree") status = RunDisagreement(arguments, child.channel);
  if (arguments.scenario == "abort") status = RunAbort(arguments, child.channel);
  if (arguments.scenario == "serve") status = RunServer(arguments, child.channel);
  if (!status.ok()) std::fprintf(stderr, "rank %d: %s\n", arguments.rank, status.ToString().c_str());
  return child.channel.Send(status.ToString()).ok() ? 0 : 1;
}

// ---- The parent's half. The parent only counts the GPUs and does not use them, so that the ranks have all of them.
// ----

int max_ranks = 0;  // 0 for all GPUs

int NumGpus() {
  int num_gpus = 0;
  return cudaGetDeviceCount(&num_gpus) == cudaSuccess ? num_gpus : 0;
}

class DeviceProcessesTest : public testing::TestWithParam<std::string> {
 protected:
  // The number of GPUs, or `max_ranks` if that is smaller.
  int NumRanks() const { return max_ranks > 0 ? std::min(max_ranks, NumGpus()) : NumGpus(); }

  // The reason why there cannot be `num_ranks` ranks; empty when there can.
  std::string WhyNot(int num_ranks) const {
    if (NumRanks() >= num_ranks) return "";
    const std::string allowed = max_ranks > 0 ? absl::StrCat(", of which --ranks allows ", max_ranks) : "";
    return absl::StrCat("needs ", num_ranks, " GPUs, one per rank; there are ", NumGpus(), allowed);
  }

  RankProcess Start(int rank, int size, const std::string& scenario, const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {GetParam(), scenario, absl::StrCat(rank), absl::StrCat(size)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    absl::StatusOr<RankProcess> process = RankProcess::Start(arguments);
    EXPECT_TRUE(process.ok()) << process.status();
    return std::move(process).value();
  }

  void StartAll(int size, const std::string& scenario, const std::vector<std::string>& more = {}) {
    ranks_.clear();
    for (int rank = 0; rank < size; ++rank) ranks_.push_back(Start(rank, size, scenario, more));
  }

  static std::string ReceiveFrom(RankProcess& rank) {
    const absl::StatusOr<std::string> packet = rank.channel().Receive();
    return packet.ok() ? *packet : packet.status().ToString();
  }

  std::vector<std::string> ReceiveFromAll() {
    std::vector<std::string> packets;
    for (RankProcess& rank : ranks_) packets.push_back(ReceiveFrom(rank));
    return packets;
  }

  void CarryAddresses() {
    const std::vector<std::string> addresses = ReceiveFromAll();
    for (const std::string& address : addresses) ASSERT_TRUE(absl::StartsWith(address, "SY")) << address;
    for (RankProcess& rank : ranks_) ASSERT_TRUE(rank.channel().SendAll(addresses).ok());
  }

  void ExpectAll(const std::string& packet) {
    ASSERT_EQ(ReceiveFromAll(), std::vector<std::string>(ranks_.size(), packet));
  }

  void FinishExchanges() {
    ASSERT_NO_FATAL_FAILURE(CarryAddresses());
    ASSERT_NO_FATAL_FAILURE(ExpectAll("exchanged"));
    for (RankProcess& rank : ranks_) ASSERT_TRUE(rank.channel().Send("leave").ok());
    ASSERT_NO_FATAL_FAILURE(ExpectAll("OK"));
  }

  // Returns when all ranks are exchanging.
  void FormGroup() {
    for (RankProcess& rank : ranks_) ASSERT_TRUE(rank.channel().Send("join").ok());
    ASSERT_NO_FATAL_FAILURE(CarryAddresses());
    ASSERT_NO_FATAL_FAILURE(ExpectAll("running"));
  }

  // Kills a rank and, when its connection breaks, tells the others to abort. Returns the others' free device memory in
  // MiB, in rank order.
  std::vector<int64_t> KillAndAbort(int victim) {
    ranks_[victim].Kill();
    EXPECT_THAT(ReceiveFrom(ranks_[victim]), testing::StartsWith("UNAVAILABLE"));
    std::vector<int64_t> free_mib;
    for (int rank = 0; rank < static_cast<int>(ranks_.size()); ++rank) {
      if (rank == victim) continue;
      EXPECT_TRUE(ranks_[rank].channel().Send("abort").ok());
    }
    for (int rank = 0; rank < static_cast<int>(ranks_.size()); ++rank) {
      if (rank != victim) free_mib.push_back(NumberOf(ReceiveFrom(ranks_[rank])));
    }
    return free_mib;
  }

  // Starts the replacement of a rank. Call it before the kill, because starting a process with a GPU takes longer than
  // forming a group.
  RankProcess StartReplacement(int victim) {
    RankProcess replacement = Start(victim, static_cast<int>(ranks_.size()), "serve");
    EXPECT_EQ(ReceiveFrom(replacement), "up");
    return replacement;
  }

  std::vector<RankProcess> ranks_;
};

TEST_P(DeviceProcessesTest, EveryByteArrives) {
  if (const std::string why = WhyNot(1); !why.empty()) GTEST_SKIP() << why;
  for (int size = 1; size <= NumRanks(); ++size) {
    SCOPED_TRACE(absl::StrCat(size, " ranks"));
    StartAll(size, "exchange", {"0", absl::StrCat(kMiB * kMiB)});
    ASSERT_NO_FATAL_FAILURE(FinishExchanges());
  }
}

TEST_P(DeviceProcessesTest, EveryByteArrivesOnFewMultiprocessorsWithOwnBlocksCopied) {
  if (GetParam() != "nccl") GTEST_SKIP() << "these are settings of NCCL";
  if (const std::string why = WhyNot(2); !why.empty()) GTEST_SKIP() << why;
  for (const size_t max_self_send_bytes : {size_t{0}, size_t{65536}}) {
    StartAll(NumRanks(), "exchange", {"4", absl::StrCat(max_self_send_bytes)});
    ASSERT_NO_FATAL_FAILURE(FinishExchanges());
  }
}

TEST_P(DeviceProcessesTest, RanksThatDisagreeAboutACountAreNamed) {
  if (GetParam() == "nccl") GTEST_SKIP() << "NCCL does not compare counts";
  if (const std::string why = WhyNot(2); !why.empty()) GTEST_SKIP() << why;
  StartAll(2, "disagree");
  ASSERT_NO_FATAL_FAILURE(CarryAddresses());
  EXPECT_EQ(ReceiveFrom(ranks_[0]), "lied");
  EXPECT_EQ(ReceiveFrom(ranks_[1]), "INVALID_ARGUMENT: rank 0 sends rank 1 4096 bytes, which expects 4000");
  for (RankProcess& rank : ranks_) ASSERT_TRUE(rank.channel().Send("leave").ok());
}

// "fresh": the ranks have not exchanged yet, so NCCL is still connecting them. "warm": kernels wait on the GPU.
TEST_P(DeviceProcessesTest, AbortEndsAnExchangeThatWaitsForAPeer) {
  if (const std::string why = WhyNot(2); !why.empty()) GTEST_SKIP() << why;
  for (const std::string state : {"fresh", "warm"}) {
    SCOPED_TRACE(state);
    StartAll(NumRanks(), "abort", {state});
    ASSERT_NO_FATAL_FAILURE(CarryAddresses());
    EXPECT_EQ(ReceiveFrom(ranks_[0]), "OK");
  }
}

TEST_P(DeviceProcessesTest, SurvivorsOfAKilledRankFormANewGroup) {
  if (const std::string why = WhyNot(2); !why.empty()) GTEST_SKIP() << why;
  constexpr int kNumCycles = 6;
  const int size = NumRanks();
  StartAll(size, "serve");
  ASSERT_NO_FATAL_FAILURE(ExpectAll("up"));
  ASSERT_NO_FATAL_FAILURE(FormGroup());
  std::vector<int64_t> free_mib;  // rank 0's free memory after each cycle that it survives
  for (int cycle = 0; cycle < kNumCycles; ++cycle) {
    const int victim = cycle + 1 < kNumCycles ? size - 1 : 0;  // in the last cycle rank 0, where the ranks meet
    RankProcess replacement = StartReplacement(victim);
    const SteadyTime killed_at = Clock::Real().Now();
    const std::vector<int64_t> free = KillAndAbort(victim);
    const int64_t aborted_us = MicrosSince(killed_at);
    if (victim != 0) free_mib.push_back(free[0]);
    ranks_[victim] = std::move(replacement);
    ASSERT_NO_FATAL_FAILURE(FormGroup());
    const int64_t recovered_us = MicrosSince(killed_at);
    std::printf("cycle %d: rank %d killed; survivors free after %.0f ms, exchanging again after %.0f ms; %s\n", cycle,
                victim, aborted_us / 1000.0, recovered_us / 1000.0, absl::StrCat(free[0], " MiB free").c_str());
    EXPECT_LT(recovered_us, kRecoveryUs);
  }
  // A peer that was killed may have rank 0's window of the last group for another moment.
  constexpr int64_t kOneWindowMib = 100;
  EXPECT_LT(free_mib.front() - free_mib.back(), 64 + kOneWindowMib) << "rank 0 loses memory from group to group";
}

INSTANTIATE_TEST_SUITE_P(Exchanges, DeviceProcessesTest, testing::Values("nccl", "direct"),
                         [](const auto& info) { return info.param; });

}  // namespace

int Main(int argc, char** argv) {
  if (std::optional<RankChild> child = RankChild::FromArguments(argc, argv)) return RunRank(*child);
  testing::InitGoogleTest(&argc, argv);
  constexpr char kRanks[] = "--ranks=";
  for (int idx = 1; idx < argc; ++idx) {
    if (absl::StartsWith(argv[idx], kRanks) && absl::SimpleAtoi(argv[idx] + sizeof(kRanks) - 1, &max_ranks)) continue;
    std::fprintf(stderr, "%s: expected --ranks=N\n", argv[idx]);
    return 2;
  }
  return RUN_ALL_TESTS();
}

}  // namespace switchyard

int main(int argc, char** argv) { return switchyard::Main(argc, argv); }
