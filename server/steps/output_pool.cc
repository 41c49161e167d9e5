#include "server/steps/output_pool.h"

#include <utility>

namespace switchyard {

OutputPool::OutputPool(int num_outputs, int max_steps, std::vector<std::shared_ptr<const void>> memory)
    : max_lent_(num_outputs - max_steps), memory_(std::move(memory)), steps_(num_outputs, kNoStep) {
  for (int output = num_outputs - 1; output >= 0; --output) free_.push_back(output);
}

int OutputPool::Take(StepId step) {
  MutexLock lock(&mu_);
  const int output = free_.back();
  free_.pop_back();
  steps_[output] = step;
  return output;
}

bool OutputPool::BelongsTo(int output, StepId step) const {
  MutexLock lock(&mu_);
  return steps_[output] == step;
}

void OutputPool::Return(int output, StepId step) {
  MutexLock lock(&mu_);
  if (steps_[output] != step) return;
  steps_[output] = kNoStep;
  free_.push_back(output);
}

int OutputPool::num_free() const {
  MutexLock lock(&mu_);
  return static_cast<int>(free_.size());
}

std::shared_ptr<const void> OutputPool::Lend(int output, StepId step) {
  {
    MutexLock lock(&mu_);
    if (num_lent_ == max_lent_ || steps_[output] != step) return nullptr;
    ++num_lent_;
    steps_[output] = kNoStep;
  }
  return {this, [self = shared_from_this(), output](const void*) { self->EndLoan(output); }};
}

void OutputPool::EndLoan(int output) {
  MutexLock lock(&mu_);
  --num_lent_;
  free_.push_back(output);
}

}  // namespace switchyard
