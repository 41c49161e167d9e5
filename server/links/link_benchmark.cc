// Measures a step of one row over a shared-memory link to a process that returns the row as it is: the time from
// submission until the reading thread reports the result. That thread submits the next step, as it does in the front.
// After a pause both sides may have gone to sleep. Reports medians and 99th percentiles in µs; Time is the mean.
#include <benchmark/benchmark.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/notification.h"
#include "base/process/deadlock_detection.h"
#include "moe/link/spin_wait.h"
#include "server/links/link.h"
#include "server/links/shm_link.h"

namespace switchyard {
namespace {

constexpr int64_t kRowBytes = 4096;
constexpr int kSteps = 2000;  // in one iteration
constexpr std::chrono::microseconds kSpin(1000);

// Plays the worker until the link closes: as Worker::Serve, but without its control stream and without computation.
void ServeSteps(UniqueFd socket) {
  const auto setup = ReceiveSetup(socket.get());
  if (!setup.ok()) return;
  const LinkLayout& layout = setup->layout;
  const auto memory = SharedMemory::Attach(UniqueFd(dup(setup->memory_fd.get())), layout.total_bytes());
  if (!memory.ok()) return;
  pollfd polled = {socket.get(), POLLIN, 0};
  SpinWait spin(kSpin);
  while (true) {
    spin.Until([&] { return poll(&polled, 1, 0) > 0; });
    const auto step = ReceiveStep(socket.get());
    if (!step.ok()) return;
    std::memcpy(memory->data() + layout.output_offset(step->output), memory->data() + layout.input_offset(step->slot),
                kRowBytes);
    if (!SendResult(socket.get(), {step->epoch, step->step_id, {}, absl::OkStatus()}).ok()) return;
  }
}

// A link to a child process, and a chain of steps over it.
class Chain {
 public:
  explicit Chain(std::chrono::microseconds pause)
      : pause_(pause), buffers_(*LinkBuffers::Create(LinkLayout::For(1, kRowBytes, kRowBytes, kRowBytes))) {
    SocketPair sockets = *MakeSocketPair();
    worker_ = fork();  // before this object starts threads
    if (worker_ == 0) {
      sockets.front = UniqueFd();
      ServeSteps(std::move(sockets.worker));
      _exit(0);
    }
    sockets.worker = UniqueFd();
    link_ = *ShmLink::Start(0, std::move(sockets.front), *buffers_, kSpin,
                            [this](int, const ResultMessage& result, const RowChunks*) { Next(result); });
  }
  ~Chain() {
    link_.reset();
    waitpid(worker_, nullptr, 0);
  }

  // Runs kSteps steps, and returns their times.
  std::vector<std::chrono::nanoseconds> Run() {
    times_.clear();
    Notification done;
    done_ = &done;
    Submit();
    done.WaitForNotification();
    return times_;
  }

 private:
  void Submit() {
    std::memset(buffers_->input(0), static_cast<int>(times_.size()), kRowBytes);
    begin_ = Clock::Real().Now();
    const StepSubmission step = {{Epoch{1}, StepId{static_cast<int64_t>(times_.size())}, LayerId{0}, 0, 0, 1, 0}, 0};
    if (!link_->connection()->Submit(step).ok()) std::abort();
  }
  void Next(const ResultMessage&) {
    times_.push_back(Clock::Real().Now() - begin_);
    if (times_.size() == kSteps) return done_->Notify();
    if (pause_.count() > 0) std::this_thread::sleep_for(pause_);
    Submit();
  }

  const std::chrono::microseconds pause_;
  const std::unique_ptr<LinkBuffers> buffers_;
  pid_t worker_ = -1;
  std::unique_ptr<ShmLink> link_;
  SteadyTime begin_;
  std::vector<std::chrono::nanoseconds> times_;
  Notification* done_ = nullptr;
};

void OneRow(benchmark::State& state) {
  Chain chain{std::chrono::microseconds(state.range(0))};
  std::vector<std::chrono::nanoseconds> all;
  for (auto _ : state) {
    const auto times = chain.Run();
    std::chrono::nanoseconds sum{0};
    for (const auto time : times) sum += time;
    state.SetIterationTime(std::chrono::duration<double>(sum).count() / kSteps);
    all.insert(all.end(), times.begin(), times.end());
  }
  std::sort(all.begin(), all.end());
  const auto micros = [&](double part) {
    return static_cast<double>(all[static_cast<size_t>(part * static_cast<double>(all.size() - 1))].count()) * 1e-3;
  };
  state.counters["p50_us"] = micros(0.5);
  state.counters["p99_us"] = micros(0.99);
}
BENCHMARK(OneRow)
    ->ArgName("pause_us")
    ->Arg(0)
    ->Arg(50)
    ->Arg(1000)
    ->UseManualTime()
    ->Iterations(5)
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  switchyard::StopLookingForDeadlocks();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
