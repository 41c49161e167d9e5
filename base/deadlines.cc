#include "base/deadlines.h"

#include <utility>

namespace switchyard {

Deadlines::Deadlines() : thread_([this] { Loop(); }) {}

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

void Deadlines::Loop() {
  while (true) {
    std::function<void()> expire;
    {
      MutexLock lock(&mu_);
      while (true) {
        if (stopping_) return;
        const SteadyTime now = Clock::Real().Now();
        if (!pending_.empty() && pending_.begin()->first.when <= now) break;
        wakes_at_ = pending_.empty() ? SteadyTime::max() : pending_.begin()->first.when;
        if (pending_.empty()) {
          earlier_.Wait(&mu_);
        } else {
          earlier_.WaitUntil(&mu_, wakes_at_);
        }
      }
      expire = std::move(pending_.begin()->second);
      pending_.erase(pending_.begin());
    }
    expire();
  }
}

}  // namespace switchyard
