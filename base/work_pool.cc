#include "base/work_pool.h"

#include <algorithm>

#include "base/process/container_limits.h"

namespace switchyard {
namespace {

constexpr int kSpins = 1000;  // some 20 to 50 µs of pauses

void Pause() { __builtin_ia32_pause(); }

}  // namespace

WorkPool::WorkPool(int num_threads)
    : num_threads_(num_threads),
      num_spins_(num_threads <= OwnCpuShare().num_cores && !OwnCpuShare().is_limited() ? kSpins : 0) {}

WorkPool::~WorkPool() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    loop_began_.SignalAll();
  }
  for (std::thread& helper : helpers_) helper.join();
}

void WorkPool::StartHelpers() {
  for (int worker = 1; worker < num_threads_; ++worker) helpers_.emplace_back([this, worker] { Help(worker); });
}

void WorkPool::Run(int64_t num_tasks, Body body) {
  if (num_tasks <= 1 || num_threads_ <= 1) {
    for (int64_t task = 0; task < num_tasks; ++task) body(task, 0);
    return;
  }
  if (helpers_.empty()) StartHelpers();
  {
    MutexLock lock(&mu_);
    body_ = &body;
    num_tasks_ = num_tasks;
    next_task_ = 0;
    ++num_loops_;
    WakeSome();
  }
  TakeTasks(num_tasks, body, 0);
  {
    MutexLock lock(&mu_);
    body_ = nullptr;  // helpers that have not joined yet will not join
  }
  AwaitHelpers();
}

void WorkPool::TakeTasks(int64_t num_tasks, const Body& body, int worker) {
  for (;;) {
    const int64_t task = next_task_.fetch_add(1, std::memory_order_relaxed);
    if (task >= num_tasks) return;
    body(task, worker);
  }
}

void WorkPool::AwaitHelpers() {
  for (int i = 0; i < num_spins_; ++i) {
    if (num_helping_.load(std::memory_order_acquire) == 0) return;
    Pause();
  }
  MutexLock lock(&mu_);
  while (num_helping_ > 0) helpers_done_.Wait(&mu_);
}

// Each thread that joins wakes two more, so that no thread makes all the system calls.
void WorkPool::WakeSome() {
  for (int i = 0; i < std::min(num_sleeping_, 2); ++i) loop_began_.Signal();
}

void WorkPool::AwaitLoop(uint64_t last_loop) {
  for (int i = 0; i < num_spins_; ++i) {
    if (num_loops_.load(std::memory_order_acquire) != last_loop || stopping_) return;
    Pause();
  }
  MutexLock lock(&mu_);
  ++num_sleeping_;
  while (num_loops_ == last_loop && !stopping_) loop_began_.Wait(&mu_);
  --num_sleeping_;
}

void WorkPool::Help(int worker) {
  uint64_t last_loop = 0;
  for (;;) {
    AwaitLoop(last_loop);
    if (stopping_) return;
    const Body* body;
    int64_t num_tasks;
    {
      MutexLock lock(&mu_);
      last_loop = num_loops_;
      body = body_;
      num_tasks = num_tasks_;
      if (body == nullptr || next_task_ >= num_tasks) continue;
      ++num_helping_;
      WakeSome();
    }
    TakeTasks(num_tasks, *body, worker);
    MutexLock lock(&mu_);
    if (--num_helping_ == 0) helpers_done_.Signal();
  }
}

}  // namespace switchyard
