#include "base/task_queue.h"

#include <utility>

namespace switchyard {

TaskQueue::~TaskQueue() {
  std::thread last;
  {
    MutexLock lock(&mu_);
    last = std::move(thread_);
  }
  if (last.joinable()) last.join();
}

void TaskQueue::Add(std::function<void()> task) {
  std::thread ended;  // has ended, or is about to because it found no task
  {
    MutexLock lock(&mu_);
    tasks_.push_back(std::move(task));
    if (running_) return;
    running_ = true;
    ended = std::move(thread_);
    thread_ = std::thread([this] { Run(); });
  }
  if (ended.joinable()) ended.join();
}

void TaskQueue::Run() {
  while (true) {
    std::function<void()> task;
    {
      MutexLock lock(&mu_);
      if (tasks_.empty()) {
        running_ = false;
        return;
      }
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

}  // namespace switchyard
