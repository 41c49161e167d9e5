// Measures the exchanges between GPUs beside NCCL itself, between processes with a GPU each.
//
//   device_exchange_benchmark --ranks=2 --max_ctas=0,4,8,16 --out=exchange.jsonl
//
// Every rank sends every rank, itself included, the same number of bytes. The columns are microseconds of GPU time per
// exchange on the slowest rank, the median of repetitions. The exchanges run back to back and are enqueued ahead, so
// that the host's time is not measured:
//   peers     bare ncclSend/ncclRecv in a group on a blocking communicator, to the peers only
//   bare      the same with the rank's own block in the group: the same bytes as AllToAllV moves
//   ours      AllToAllV over NCCL
//   ours+copy AllToAllV over NCCL with the own block copied outside the group
//   direct    AllToAllV of the direct exchange
// `ratio` is ours over bare. Then come, for bare, ours and direct, the host's time to enqueue one exchange, and the
// time from the call until the host knows that a single exchange is done, on idle GPUs. Each variant's bytes are
// checked in the same run. One JSON object per line goes to --out.
#include <cuda_runtime.h>
#include <nccl.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <span>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/clock.h"
#include "moe/exchange/direct/direct_communicator.h"
#include "moe/exchange/nccl/nccl_communicator.h"
#include "moe/exchange/nccl/nccl_status.h"
#include "moe/exchange/rank_process.h"
#include "moe/gpu/cuda_status.h"
#include "moe/gpu/memory.h"
#include "moe/gpu/stream.h"

namespace switchyard {
namespace {

constexpr size_t kMinBytes = size_t{4} << 10;
constexpr size_t kMaxBytes = size_t{64} << 20;
constexpr int kNumRepetitions = 15;
constexpr size_t kBusyBytes = size_t{256} << 20;

// The ranks' connection besides NCCL: the parent collects a packet from every rank and sends all of them to every rank.
class Gathering {
 public:
  Gathering(PacketChannel* channel, int size) : channel_(channel), size_(size) {}

  absl::StatusOr<std::vector<std::string>> Gather(const std::string& packet) {
    SY_RETURN_IF_ERROR(channel_->Send(packet));
    return channel_->ReceiveAll(size_);
  }
  absl::Status Barrier() { return Gather("here").status(); }

 private:
  PacketChannel* const channel_;
  const int size_;
};

constexpr char kFinished[] = "finished";

// The parent's side of Gathering, until the ranks have finished.
absl::Status ServeGatherings(std::vector<RankProcess>& ranks) {
  std::vector<std::string> packets;
  while (packets != std::vector<std::string>(ranks.size(), kFinished)) {
    packets.clear();
    for (RankProcess& rank : ranks) {
      SY_ASSIGN_OR_RETURN(std::string packet, rank.channel().Receive(std::chrono::minutes(5)));
      packets.push_back(std::move(packet));
    }
    for (RankProcess& rank : ranks) SY_RETURN_IF_ERROR(rank.channel().SendAll(packets));
  }
  return absl::OkStatus();
}

// Uses NCCL as its documentation shows.
class BareNccl {
 public:
  static absl::StatusOr<std::unique_ptr<BareNccl>> Join(int rank, int size, int max_ctas, Gathering& gathering) {
    ncclUniqueId id{};
    if (rank == 0) SY_RETURN_IF_ERROR(NcclStatus(ncclGetUniqueId(&id), "ncclGetUniqueId", nullptr));
    SY_ASSIGN_OR_RETURN(const std::vector<std::string> ids,
                        gathering.Gather(std::string(id.internal, sizeof(id.internal))));
    std::memcpy(id.internal, ids[0].data(), sizeof(id.internal));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    if (max_ctas > 0) config.maxCTAs = max_ctas;
    auto bare = std::make_unique<BareNccl>(rank, size);
    SY_RETURN_IF_ERROR(
        NcclStatus(ncclCommInitRankConfig(&bare->comm_, size, id, rank, &config), "ncclCommInitRankConfig", nullptr));
    return bare;
  }
  BareNccl(int rank, int size) : rank_(rank), size_(size) {}
  BareNccl(const BareNccl&) = delete;
  BareNccl& operator=(const BareNccl&) = delete;
  ~BareNccl() {
    if (comm_ != nullptr) (void)ncclCommAbort(comm_);
  }

  absl::Status AllToAll(const std::byte* send, std::byte* recv, size_t bytes, bool with_own, cudaStream_t stream) {
    SY_RETURN_IF_ERROR(NcclStatus(ncclGroupStart(), "ncclGroupStart", comm_));
    for (int peer = 0; peer < size_; ++peer) {
      if (peer == rank_ && !with_own) continue;
      SY_RETURN_IF_ERROR(
          NcclStatus(ncclSend(send + peer * bytes, bytes, ncclUint8, peer, comm_, stream), "ncclSend", comm_));
      SY_RETURN_IF_ERROR(
          NcclStatus(ncclRecv(recv + peer * bytes, bytes, ncclUint8, peer, comm_, stream), "ncclRecv", comm_));
    }
    return NcclStatus(ncclGroupEnd(), "ncclGroupEnd", comm_);
  }

 private:
  const int rank_;
  const int size_;
  ncclComm_t comm_ = nullptr;
};

absl::StatusOr<std::unique_ptr<Communicator>> JoinOurs(int rank, int size,
                                                       const std::unique_ptr<CommunicatorFactory>& factory,
                                                       Gathering& gathering) {
  SY_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> ours, factory->Prepare(rank, size));
  SY_ASSIGN_OR_RETURN(const std::vector<std::string> addresses, gathering.Gather(ours->address()));
  SY_RETURN_IF_ERROR(ours->Connect(addresses));
  SY_RETURN_IF_ERROR(CheckExchange(*ours));
  return ours;
}

struct Timing {
  double gpu_us = 0;
  double host_us = 0;
  double done_us = 0;
};

Timing Median(std::vector<Timing> timings) {
  const auto median = [&](double Timing::*field) {
    std::nth_element(timings.begin(), timings.begin() + timings.size() / 2, timings.end(),
                     [&](const Timing& a, const Timing& b) { return a.*field < b.*field; });
    return timings[timings.size() / 2].*field;
  };
  Timing result;
  result.gpu_us = median(&Timing::gpu_us);
  result.host_us = median(&Timing::host_us);
  return result;
}

// One rank's buffers, stream and clock.
class Bench {
 public:
  // Enqueues one exchange of `bytes` per rank from send() to recv().
  using Exchange = std::function<absl::Status(size_t bytes)>;

  static absl::StatusOr<std::unique_ptr<Bench>> Create(int rank, int size, Gathering* gathering) {
    auto bench = std::make_unique<Bench>(rank, size, gathering);
    SY_CUDA(cudaSetDevice(rank));
    SY_ASSIGN_OR_RETURN(bench->stream_, CudaStream::Create());
    SY_ASSIGN_OR_RETURN(bench->begin_, CudaEvent::Create(/*timed=*/true));
    SY_ASSIGN_OR_RETURN(bench->end_, CudaEvent::Create(/*timed=*/true));
    SY_ASSIGN_OR_RETURN(bench->send_, DeviceBuffer::Allocate(size * kMaxBytes));
    SY_ASSIGN_OR_RETURN(bench->recv_, DeviceBuffer::Allocate(size * kMaxBytes));
    SY_ASSIGN_OR_RETURN(bench->busy_, DeviceBuffer::Allocate(kBusyBytes));
    SY_RETURN_IF_ERROR(bench->FillSend());
    return bench;
  }
  Bench(int rank, int size, Gathering* gathering) : rank_(rank), size_(size), gathering_(gathering) {}

  cudaStream_t stream() const { return stream_.get(); }
  std::byte* send() const { return send_.data(); }
  std::byte* recv() const { return recv_.data(); }

  // Runs an exchange once and checks the received bytes. `skipped` is a rank whose block is not exchanged, or -1.
  absl::Status Check(const Exchange& exchange, size_t bytes, int skipped) {
    SY_CUDA(cudaMemsetAsync(recv(), 0, size_ * bytes, stream()));
    SY_RETURN_IF_ERROR(exchange(bytes));
    std::vector<std::byte> received(size_ * bytes);
    SY_CUDA(cudaMemcpyAsync(received.data(), recv(), received.size(), cudaMemcpyDeviceToHost, stream()));
    SY_CUDA(cudaStreamSynchronize(stream()));
    for (int peer = 0; peer < size_; ++peer) {
      if (peer == skipped) continue;
      const std::byte* expected = Pattern(peer).data() + rank_ * bytes;
      if (std::memcmp(received.data() + peer * bytes, expected, bytes) == 0) continue;
      return absl::DataLossError(absl::StrCat("rank ", rank_, ": wrong bytes from rank ", peer, " of ", bytes));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Timing> Measure(const Exchange& exchange, size_t bytes) {
    const int num_exchanges = bytes >= (size_t{4} << 20) ? 10 : 40;
    SY_ASSIGN_OR_RETURN(const Repetition warm_up, RunOnce(exchange, bytes, num_exchanges, /*num_busy=*/0));
    // Keeps the GPU busy for 1.5 times as long as enqueueing takes on an idle GPU.
    int num_busy = static_cast<int>(1.5 * warm_up.timing.host_us * num_exchanges / kBusyUs) + 20;
    std::vector<Timing> timings;
    while (static_cast<int>(timings.size()) < kNumRepetitions) {
      SY_ASSIGN_OR_RETURN(const Repetition repetition, RunOnce(exchange, bytes, num_exchanges, num_busy));
      timings.push_back(repetition.timing);
      if (repetition.host_was_late) num_busy += num_busy / 4;
    }
    Timing timing = Median(std::move(timings));
    SY_ASSIGN_OR_RETURN(timing.done_us, TimeUntilDone(exchange, bytes));
    return timing;
  }

 private:
  // The median over single exchanges, which keep the ranks in step.
  absl::StatusOr<double> TimeUntilDone(const Exchange& exchange, size_t bytes) {
    constexpr int kExchanges = 200;
    std::vector<double> times;
    for (int i = 0; i < kExchanges; ++i) {
      const SteadyTime began = Clock::Real().Now();
      SY_RETURN_IF_ERROR(exchange(bytes));
      SY_CUDA(cudaStreamSynchronize(stream()));
      times.push_back(std::chrono::duration<double, std::micro>(Clock::Real().Now() - began).count());
    }
    std::nth_element(times.begin(), times.begin() + kExchanges / 2, times.end());
    return times[kExchanges / 2];
  }

  static constexpr double kBusyUs = 60;  // microseconds that a memset of kBusyBytes takes at least

  struct Repetition {
    Timing timing;
    bool host_was_late = false;  // the GPU began the exchanges before the last was enqueued
  };

  // Keeps the GPU busy first, so that all exchanges are enqueued when it reaches them. An untimed exchange before them
  // makes the ranks start together.
  absl::StatusOr<Repetition> RunOnce(const Exchange& exchange, size_t bytes, int num_exchanges, int num_busy) {
    SY_RETURN_IF_ERROR(gathering_->Barrier());
    for (int idx = 0; idx < num_busy; ++idx) SY_CUDA(cudaMemsetAsync(busy_.data(), idx, busy_.size(), stream()));
    SY_RETURN_IF_ERROR(exchange(bytes));
    SY_CUDA(cudaEventRecord(begin_.get(), stream()));
    const SteadyTime began = Clock::Real().Now();
    for (int idx = 0; idx < num_exchanges; ++idx) SY_RETURN_IF_ERROR(exchange(bytes));
    const int64_t host_us = MicrosBetween(began, Clock::Real().Now());
    SY_CUDA(cudaEventRecord(end_.get(), stream()));
    Repetition repetition;
    repetition.host_was_late = cudaEventQuery(begin_.get()) == cudaSuccess;
    (void)cudaGetLastError();
    SY_CUDA(cudaStreamSynchronize(stream()));
    float gpu_ms = 0;
    SY_CUDA(cudaEventElapsedTime(&gpu_ms, begin_.get(), end_.get()));
    repetition.timing = {.gpu_us = 1000.0 * gpu_ms / num_exchanges,
                         .host_us = static_cast<double>(host_us) / num_exchanges};
    return repetition;
  }

  // The bytes in the send buffer of `rank`: random, and the same in every process.
  const std::vector<std::byte>& Pattern(int rank) {
    if (patterns_.empty()) patterns_.resize(size_);
    std::vector<std::byte>& pattern = patterns_[rank];
    if (pattern.empty()) {
      pattern.resize(size_ * kMaxBytes);
      std::mt19937_64 random(rank + 1);
      for (size_t at = 0; at < pattern.size(); at += sizeof(uint64_t)) {
        const uint64_t word = random();
        std::memcpy(pattern.data() + at, &word, sizeof(word));
      }
    }
    return pattern;
  }

  absl::Status FillSend() {
    SY_CUDA(cudaMemcpy(send(), Pattern(rank_).data(), send_.size(), cudaMemcpyHostToDevice));
    SY_CUDA(cudaDeviceSynchronize());
    return absl::OkStatus();
  }

  const int rank_;
  const int size_;
  Gathering* const gathering_;
  std::vector<std::vector<std::byte>> patterns_;
  CudaStream stream_;
  CudaEvent begin_, end_;
  DeviceBuffer send_, recv_, busy_;
};

// The communicators for one value of max_ctas, and the ways to exchange with them.
struct Variants {
  std::unique_ptr<BareNccl> bare;
  std::unique_ptr<Communicator> ours;
  std::unique_ptr<Communicator> ours_copying;
  std::unique_ptr<Communicator> direct;

  static absl::StatusOr<Variants> Join(int rank, int size, int max_ctas, Gathering& gathering) {
    Variants variants;
    NcclOptions options{.device_idx = rank, .max_ctas = max_ctas};
    SY_ASSIGN_OR_RETURN(variants.ours, JoinOurs(rank, size, CreateNcclFactory(options), gathering));
    options.max_self_send_bytes = 0;
    SY_ASSIGN_OR_RETURN(variants.ours_copying, JoinOurs(rank, size, CreateNcclFactory(options), gathering));
    SY_ASSIGN_OR_RETURN(variants.direct, JoinOurs(rank, size, CreateDirectFactory({.device_idx = rank}), gathering));
    SY_ASSIGN_OR_RETURN(variants.bare, BareNccl::Join(rank, size, max_ctas, gathering));
    return variants;
  }

  Bench::Exchange Bare(Bench& bench, bool with_own) const {
    return [&, with_own](size_t bytes) {
      return bare->AllToAll(bench.send(), bench.recv(), bytes, with_own, bench.stream());
    };
  }
  static Bench::Exchange Ours(Bench& bench, Communicator& communicator) {
    return [&](size_t bytes) {
      const std::vector<size_t> sizes(communicator.size(), bytes);
      return communicator.AllToAllV(bench.send(), sizes, bench.recv(), sizes, ToDeviceStream(bench.stream()));
    };
  }
};

// The slowest rank's figures.
absl::StatusOr<Timing> SlowestOf(const Timing& timing, Gathering& gathering) {
  SY_ASSIGN_OR_RETURN(const std::vector<std::string> packets,
                      gathering.Gather(absl::StrCat(timing.gpu_us, " ", timing.host_us, " ", timing.done_us)));
  Timing slowest;
  for (const std::string& packet : packets) {
    const std::vector<std::string> numbers = absl::StrSplit(packet, ' ');
    Timing one;
    if (numbers.size() != 3 || !absl::SimpleAtod(numbers[0], &one.gpu_us) ||
        !absl::SimpleAtod(numbers[1], &one.host_us) || !absl::SimpleAtod(numbers[2], &one.done_us)) {
      return absl::InternalError(absl::StrCat("not a timing: ", packet));
    }
    slowest.gpu_us = std::max(slowest.gpu_us, one.gpu_us);
    slowest.host_us = std::max(slowest.host_us, one.host_us);
    slowest.done_us = std::max(slowest.done_us, one.done_us);
  }
  return slowest;
}

struct Row {
  int num_ranks = 0;
  int max_ctas = 0;
  size_t bytes = 0;
  Timing peers, bare, ours, ours_copying, direct;

  double ratio() const { return ours.gpu_us / bare.gpu_us; }
};

absl::StatusOr<Row> MeasureRow(Bench& bench, const Variants& variants, int rank, Gathering& gathering, Row row) {
  struct Column {
    Bench::Exchange exchange;
    int skipped;
    Timing* timing;
  };
  const Column columns[] = {{variants.Bare(bench, /*with_own=*/false), rank, &row.peers},
                            {variants.Bare(bench, /*with_own=*/true), -1, &row.bare},
                            {Variants::Ours(bench, *variants.ours), -1, &row.ours},
                            {Variants::Ours(bench, *variants.ours_copying), -1, &row.ours_copying},
                            {Variants::Ours(bench, *variants.direct), -1, &row.direct}};
  for (const Column& column : columns) {
    SY_RETURN_IF_ERROR(bench.Check(column.exchange, row.bytes, column.skipped));
    SY_ASSIGN_OR_RETURN(const Timing timing, bench.Measure(column.exchange, row.bytes));
    SY_ASSIGN_OR_RETURN(*column.timing, SlowestOf(timing, gathering));
  }
  return row;
}

void PrintHeader() {
  std::printf("%8s %10s | %8s %8s %8s %8s %8s %6s | %8s %8s %8s | %8s %8s %8s\n", "max_ctas", "bytes", "peers us",
              "bare us", "ours us", "+copy us", "direct", "ratio", "bare", "ours", "direct", "bare", "ours", "direct");
  std::printf("%8s %10s | %53s | %26s | %26s\n", "", "", "GPU time", "host: enqueue", "host: until done");
}

void Print(const Row& row, std::ofstream& out) {
  std::printf("%8d %10zu | %8.1f %8.1f %8.1f %8.1f %8.1f %6.2f | %8.1f %8.1f %8.1f | %8.1f %8.1f %8.1f\n", row.max_ctas,
              row.bytes, row.peers.gpu_us, row.bare.gpu_us, row.ours.gpu_us, row.ours_copying.gpu_us, row.direct.gpu_us,
              row.ratio(), row.bare.host_us, row.ours.host_us, row.direct.host_us, row.bare.done_us, row.ours.done_us,
              row.direct.done_us);
  std::fflush(stdout);
  out << absl::StrFormat(
             R"({"benchmark":"device_exchange","ranks":%d,"max_ctas":%d,"bytes_per_rank":%d,"peers_us":%.2f,)"
             R"("bare_us":%.2f,"ours_us":%.2f,"ours_copy_us":%.2f,"direct_us":%.2f,"ratio":%.3f,"bare_host_us":%.2f,)"
             R"("ours_host_us":%.2f,"direct_host_us":%.2f,"bare_done_us":%.2f,"ours_done_us":%.2f,)"
             R"("direct_done_us":%.2f})",
             row.num_ranks, row.max_ctas, row.bytes, row.peers.gpu_us, row.bare.gpu_us, row.ours.gpu_us,
             row.ours_copying.gpu_us, row.direct.gpu_us, row.ratio(), row.bare.host_us, row.ours.host_us,
             row.direct.host_us, row.bare.done_us, row.ours.done_us, row.direct.done_us)
      << std::endl;
}

struct Settings {
  int num_ranks = 2;
  std::vector<int> max_ctas = {0, 4, 8, 16};
  std::string out_path = "device_exchange.jsonl";
};

absl::Status RunRank(int rank, const Settings& settings, PacketChannel& channel) {
  const int size = settings.num_ranks;
  Gathering gathering(&channel, size);
  SY_ASSIGN_OR_RETURN(const std::unique_ptr<Bench> bench, Bench::Create(rank, size, &gathering));
  std::ofstream out;
  if (rank == 0) {
    out.open(settings.out_path);
    if (!out) return absl::InvalidArgumentError(absl::StrCat("cannot write ", settings.out_path));
    PrintHeader();
  }
  for (const int max_ctas : settings.max_ctas) {
    SY_ASSIGN_OR_RETURN(const Variants variants, Variants::Join(rank, size, max_ctas, gathering));
    for (size_t bytes = kMinBytes; bytes <= kMaxBytes; bytes *= 4) {
      SY_ASSIGN_OR_RETURN(const Row row, MeasureRow(*bench, variants, rank, gathering,
                                                    {.num_ranks = size, .max_ctas = max_ctas, .bytes = bytes}));
      if (rank == 0) Print(row, out);
    }
    SY_RETURN_IF_ERROR(gathering.Barrier());  // no rank leaves before all have finished
  }
  out.close();
  return gathering.Gather(kFinished).status();
}

// Passes the parent's settings on to a rank.
std::vector<std::string> Encode(int rank, const Settings& settings) {
  return {absl::StrCat(rank), absl::StrCat(settings.num_ranks), absl::StrJoin(settings.max_ctas, ","),
          settings.out_path};
}

int RunChild(RankChild& child) {
  Settings settings;
  int rank = 0;
  bool understood =
      absl::SimpleAtoi(child.arguments.at(0), &rank) && absl::SimpleAtoi(child.arguments.at(1), &settings.num_ranks);
  settings.max_ctas.clear();
  for (const absl::string_view text : absl::StrSplit(child.arguments.at(2), ',')) {
    understood = absl::SimpleAtoi(text, &settings.max_ctas.emplace_back()) && understood;
  }
  if (!understood) return 2;
  settings.out_path = child.arguments.at(3);
  const absl::Status status = RunRank(rank, settings, child.channel);
  if (status.ok()) return 0;
  std::fprintf(stderr, "rank %d: %s\n", rank, status.ToString().c_str());
  return 1;
}

absl::Status RunParent(const Settings& settings) {
  int num_gpus = 0;
  SY_CUDA(cudaGetDeviceCount(&num_gpus));
  if (num_gpus < settings.num_ranks) {
    return absl::FailedPreconditionError(
        absl::StrCat("--ranks=", settings.num_ranks, " needs as many GPUs; there are ", num_gpus));
  }
  std::vector<RankProcess> ranks;
  for (int rank = 0; rank < settings.num_ranks; ++rank) {
    SY_ASSIGN_OR_RETURN(RankProcess process, RankProcess::Start(Encode(rank, settings)));
    ranks.push_back(std::move(process));
  }
  return ServeGatherings(ranks);
}

int Main(int argc, char** argv) {
  if (std::optional<RankChild> child = RankChild::FromArguments(argc, argv)) return RunChild(*child);
  Settings settings;
  CLI::App app("Exchanges between GPUs: AllToAllV beside bare NCCL");
  app.add_option("--ranks", settings.num_ranks, "Processes, one per GPU")->check(CLI::Range(2, 64));
  app.add_option("--max_ctas", settings.max_ctas, "Multiprocessors for NCCL; 0 for its own choice")->delimiter(',');
  app.add_option("--out", settings.out_path, "Where to write the figures, one JSON object per line");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = RunParent(settings);
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return 1;
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) { return switchyard::Main(argc, argv); }
