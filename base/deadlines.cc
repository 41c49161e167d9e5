#include "base/deadlines.h"

#include <utility>

namespace switchyard {

Deadlines::Deadlines(Threads threads, const Clock& clock) : clock_(clock) {
  if (threads == Threads::kOwn) thread_ = std::thread([this] { Loop(); });
}

Deadlines::~Deadlines() { Stop(); }

void Deadlines::Stop() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    earlier_.Signal();
  }
  if (thread_.joinable()) thread_.join();
}

void Deadlines::Add(const Key& key, std::function<void()> expire) {
  MutexLock lock(&mu_);
  pending_.emplace(key, std::move(expire));
  if (key.when < wakes_at_) earlier_.Signal();
}

bool Deadlines::Remove(const Key& key) {
  std::function<void()> removed;  // destroyed, with everything it captured, after the lock is released
  MutexLock lock(&mu_);
  const auto it = pending_.find(key);
  if (it == pending_.end()) return false;
  removed = std::move(it->second);
  pending_.erase(it);
  return true;
}

SteadyTime Deadlines::NextLocked() const { return pending_.empty() ? SteadyTime::max() : pending_.begin()->first.when; }

SteadyTime Deadlines::next() const {
  MutexLock lock(&mu_);
  return NextLocked();
}

std::function<void()> Deadlines::TakeDue() {
  if (stopping_ || pending_.empty() || NextLocked() > clock_.Now()) return nullptr;
  std::function<void()> due = std::move(pending_.begin()->second);
  pending_.erase(pending_.begin());
  return due;
}

void Deadlines::RunDue() {
  while (true) {
    std::function<void()> expire;
    {
      MutexLock lock(&mu_);
      expire = TakeDue();
    }
    if (expire == nullptr) return;
    expire();
  }
}

void Deadlines::Loop() {
  while (true) {
    std::function<void()> expire;
    {
      MutexLock lock(&mu_);
      while (true) {
        if (stopping_) return;
        if ((expire = TakeDue()) != nullptr) break;
        wakes_at_ = NextLocked();
        if (pending_.empty()) {
          earlier_.Wait(&mu_);
        } else {
          earlier_.WaitFor(&mu_, wakes_at_ - clock_.Now());
        }
      }
    }
    expire();
  }
}

}  // namespace switchyard
