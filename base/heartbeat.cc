#include "base/heartbeat.h"

#include <pthread.h>

namespace switchyard {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr int kPeerBits = 32;

thread_local Heartbeat* this_thread = nullptr;

uint64_t Pack(Heartbeat::Activity activity, int peer) {
  return static_cast<uint64_t>(activity) << kPeerBits | static_cast<uint32_t>(peer);
}

// A counter that only one thread writes needs no read-modify-write instruction.
void Increment(std::atomic<int64_t>& counter) { counter.store(counter.load(kRelaxed) + 1, kRelaxed); }

int64_t CpuMillis(clockid_t clock) {
  timespec time{};
  if (clock_gettime(clock, &time) != 0) return 0;  // the thread has ended
  return int64_t{time.tv_sec} * 1000 + time.tv_nsec / 1'000'000;
}

}  // namespace

void Heartbeat::WatchThisThread() {
  this_thread = this;
  doing_.store(Pack(Activity::kIdle, kNoPeer), kRelaxed);
  if (pthread_getcpuclockid(pthread_self(), &cpu_clock_) != 0) cpu_clock_ = CLOCK_PROCESS_CPUTIME_ID;
  is_watching_.store(true, std::memory_order_release);
}

Heartbeat::View Heartbeat::Look() const {
  if (!is_watching()) return {};
  const uint64_t doing = doing_.load(kRelaxed);
  return {.moves = beats_.load(kRelaxed) + CpuMillis(cpu_clock_),
          .activity = static_cast<Activity>(doing >> kPeerBits),
          .peer = static_cast<int>(static_cast<uint32_t>(doing)),
          .num_waits = num_waits_.load(kRelaxed),
          .epoch = Epoch{epoch_.load(kRelaxed)},
          .step = StepId{step_.load(kRelaxed)}};
}

void Heartbeat::SetStep(Epoch epoch, StepId step) {
  epoch_.store(epoch.value, kRelaxed);
  step_.store(step.value, kRelaxed);
}

void Heartbeat::Beat() {
  if (this_thread != nullptr) Increment(this_thread->beats_);
}

Heartbeat::Doing::Doing(Activity activity, int peer) {
  if (this_thread == nullptr) return;
  before_ = this_thread->doing_.load(kRelaxed);
  if (activity == Activity::kWaiting || activity == Activity::kConnecting) Increment(this_thread->num_waits_);
  Increment(this_thread->beats_);
  this_thread->doing_.store(Pack(activity, peer), kRelaxed);
}

Heartbeat::Doing::~Doing() {
  if (this_thread == nullptr) return;
  Increment(this_thread->beats_);
  this_thread->doing_.store(before_, kRelaxed);
}

}  // namespace switchyard
