// Measures AllToAllV between two ranks that are threads: the time of one call, and the bytes per second that each rank
// sends to the other.
#include <benchmark/benchmark.h>
#include <signal.h>

#include <thread>
#include <vector>

#include "moe/exchange/gloo/gloo_communicator.h"
#include "moe/exchange/in_process.h"
#include "moe/exchange/shm/shm_communicator.h"
#include "moe/exchange/tcp/tcp_communicator.h"
#include "moe/exchange/testing.h"

namespace switchyard {
namespace {

void ExchangeBlocks(benchmark::State& state, CommunicatorFactory& factory) {
  signal(SIGPIPE, SIG_IGN);
  const auto group = FormGroup(factory, 2);
  const std::vector<size_t> sizes(2, state.range(0));
  std::vector<std::vector<std::byte>> sent(2, std::vector<std::byte>(2 * state.range(0)));
  std::vector<std::vector<std::byte>> received = sent;
  const auto exchange = [&](int rank) {
    return group[rank]->AllToAllV(sent[rank].data(), sizes, received[rank].data(), sizes, nullptr);
  };
  std::thread peer([&] {
    while (exchange(1).ok()) {
    }
  });
  for (auto _ : state) {
    if (absl::Status done = exchange(0); !done.ok()) state.SkipWithError(done.ToString().c_str());
  }
  group[0]->Abort();
  peer.join();
  state.SetBytesProcessed(state.iterations() * state.range(0));
}

void BM_InProcess(benchmark::State& state) { ExchangeBlocks(state, *CreateInProcessFactory()); }
BENCHMARK(BM_InProcess)->RangeMultiplier(8)->Range(1 << 10, 16 << 20)->UseRealTime();

void BM_Gloo(benchmark::State& state) { ExchangeBlocks(state, *CreateGlooFactory()); }
BENCHMARK(BM_Gloo)->RangeMultiplier(8)->Range(1 << 10, 16 << 20)->UseRealTime();

void BM_Shm(benchmark::State& state) { ExchangeBlocks(state, *CreateShmFactory()); }
BENCHMARK(BM_Shm)->RangeMultiplier(8)->Range(1 << 10, 16 << 20)->UseRealTime();

void BM_Tcp(benchmark::State& state) { ExchangeBlocks(state, *CreateTcpFactory()); }
BENCHMARK(BM_Tcp)->RangeMultiplier(8)->Range(1 << 10, 16 << 20)->UseRealTime();

}  // namespace
}  // namespace switchyard

BENCHMARK_MAIN();
