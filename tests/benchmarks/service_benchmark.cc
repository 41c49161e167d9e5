// Compares the speed of the whole service with the library it uses. A real front with one worker answers requests of
// 1024 bf16 rows for a layer of the size of Qwen3-30B-A3B's. In the same run, oneDNN alone computes the same GEMMs,
// with as many rows per expert as the service's own routing of the same rows gave.
//
//   ServiceRatios   in turn: oneDNN alone, one request at a time, two requests in flight. service_vs_onednn is the
//                   speed of one request at a time relative to oneDNN alone. It compares the fastest time of each,
//                   because other work on the host only slows them; the _median counters compare the medians. The
//                   memory is the resident memory at the end, in MiB; worker_rss_bound_mib is what the worker may take
//                   for its weights.
//
// Starts server/switchyard_server of its runfiles, so use `bazel run`. The front sets how its workers' OpenMP threads
// wait, which matters much on a busy host. For a fair ratio set the same for this process, whose settings the server
// then inherits: OMP_WAIT_POLICY=active GOMP_SPINCOUNT=20000, as docs/benchmarks/run_cpu.sh does.
#include <benchmark/benchmark.h>
#include <signal.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/tensor/float16.h"
#include "moe/experts/cpu/bare_onednn.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

constexpr int kRounds = 12;
constexpr int kRequestsPerSender = 2;
constexpr double kMiB = 1 << 20;

std::vector<std::string> ServerFlags() {
  return {absl::StrCat("--model=bench=synthetic:dim=", kBenchDim, ",hidden=", kBenchWidth, ",experts=", kBenchExperts,
                       ",topk=", kBenchTopK, ",act=silu,glu=1,bias=0,dtype=bf16"),
          "--local_workers=1"};
}

std::shared_ptr<const HostMatrix> NormalRows() {
  auto rows = std::make_shared<HostMatrix>(HostMatrix::Allocate(DType::kBF16, kBenchRows, kBenchDim));
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  auto* values = reinterpret_cast<uint16_t*>(rows->buffer.data());
  for (int64_t i = 0; i < kBenchRows * kBenchDim; ++i) values[i] = F32ToBF16(normal(random));
  return rows;
}

absl::StatusOr<double> ResidentMiB(pid_t pid) {
  std::ifstream status(absl::StrCat("/proc/", pid, "/status"));
  std::string key;
  while (status >> key) {
    double kib;
    if (key == "VmRSS:" && status >> kib) return kib / 1024;
  }
  return absl::NotFoundError(absl::StrCat("process ", pid, ": found no VmRSS in its status"));
}

// The serving front, the rows sent to it and the connection.
class Service {
 public:
  Service() : server_(OrDie(ServerProcess::Start(ServerFlags()))), client_(server_->Connect({.max_attempts = 1})) {}

  void Request() { OrEnd(Send(false)); }

  // Sends requests one after the other from each of two threads.
  void TwoInFlight() {
    const auto send = [&] {
      for (int i = 0; i < kRequestsPerSender; ++i) Request();
    };
    std::thread other(send);
    send();
    other.join();
  }

  std::vector<int64_t> RowsPerExpert() {
    const ForwardResult result = OrEnd(Send(true));
    std::vector<int64_t> counts(kBenchExperts);
    for (const int32_t expert_idx : result.routing.expert_idx) ++counts[expert_idx];
    return counts;
  }

  void CountMemory(benchmark::UserCounters* counters) {
    const v1::GetStatusResponse status = OrEnd(client_->GetStatus());
    const v1::Rank& rank = status.ranks(0);
    (*counters)["worker_rss_mib"] = OrEnd(ResidentMiB(rank.pid()));
    (*counters)["worker_rss_bound_mib"] = rank.weight_bytes() / kMiB * 1.15 + 150;
    (*counters)["front_rss_mib"] = OrEnd(ResidentMiB(server_->process().pid()));
  }

  void Stop() {
    client_.reset();
    const int exit_status = server_->Stop();
    if (exit_status != 0) OrDie(absl::InternalError(absl::StrCat("the server ended with status ", exit_status)));
  }

 private:
  // Like OrDie, but leaves no server behind.
  template <typename T>
  T OrEnd(absl::StatusOr<T> result) {
    if (!result.ok()) server_->process().Signal(SIGTERM);
    return OrDie(std::move(result));
  }

  absl::StatusOr<ForwardResult> Send(bool return_routing) {
    return client_->Forward(
        {.model = "bench", .layer = "0", .rows = rows_->view(), .rows_owner = rows_, .return_routing = return_routing});
  }

  const std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<Client> client_;
  const std::shared_ptr<const HostMatrix> rows_ = NormalRows();
};

struct Times {
  std::vector<double> seconds;

  double Fastest() const { return *std::min_element(seconds.begin(), seconds.end()); }
  double Median() const {
    std::vector<double> sorted = seconds;
    std::nth_element(sorted.begin(), sorted.begin() + sorted.size() / 2, sorted.end());
    return sorted[sorted.size() / 2];
  }
};

void CountTimes(const Times& library, const Times& single, const Times& two, benchmark::UserCounters* counters) {
  (*counters)["onednn_ms"] = library.Fastest() * 1e3;
  (*counters)["service_ms"] = single.Fastest() * 1e3;
  (*counters)["service_vs_onednn"] = library.Fastest() / single.Fastest();
  (*counters)["onednn_ms_median"] = library.Median() * 1e3;
  (*counters)["service_ms_median"] = single.Median() * 1e3;
  (*counters)["service_vs_onednn_median"] = library.Median() / single.Median();
  (*counters)["service_rows_per_s"] = kBenchRows / single.Fastest();
  (*counters)["service_rows_per_s_2_in_flight"] = 2 * kRequestsPerSender * kBenchRows / two.Fastest();
}

void ServiceRatios(benchmark::State& state) {
  Service service;
  BareOneDnn library(service.RowsPerExpert());
  library.Run();
  Times library_times, single, two;
  for (auto _ : state) {
    library_times.seconds.push_back(Seconds([&] { library.Run(); }));
    service.Request();  // not timed, because the library's threads still spin when it starts
    single.seconds.push_back(Seconds([&] { service.Request(); }));
    two.seconds.push_back(Seconds([&] { service.TwoInFlight(); }));
  }
  CountTimes(library_times, single, two, &state.counters);
  service.CountMemory(&state.counters);
  service.Stop();
}
BENCHMARK(ServiceRatios)->UseRealTime()->Unit(benchmark::kMillisecond)->Iterations(kRounds);

}  // namespace
}  // namespace switchyard

BENCHMARK_MAIN();
