#include "tests/simulation/fiber.h"

#include <cassert>
#include <cstdint>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace switchyard::simulation {
namespace {

constexpr size_t kStackBytes = 256 << 10;

std::vector<std::unique_ptr<std::byte[]>>& FreeStacks() {
  static auto& stacks = *new std::vector<std::unique_ptr<std::byte[]>>;
  return stacks;
}

std::unique_ptr<std::byte[]> TakeStack() {
  if (FreeStacks().empty()) return std::make_unique_for_overwrite<std::byte[]>(kStackBytes);
  auto stack = std::move(FreeStacks().back());
  FreeStacks().pop_back();
  return stack;
}

// AddressSanitizer has to know on which stack the program is.
void BeforeSwitch([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* stack,
                  [[maybe_unused]] size_t num_bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake_stack, stack, num_bytes);
#endif
}
void AfterSwitch([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** stack,
                 [[maybe_unused]] size_t* num_bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, stack, num_bytes);
#endif
}

}  // namespace

Fiber::Fiber(std::function<void()> body) : body_(std::move(body)) {}

Fiber::~Fiber() {
  assert(!is_begun_ || is_done_);
  if (stack_ != nullptr) FreeStacks().push_back(std::move(stack_));
}

void Fiber::Start(unsigned high, unsigned low) {
  Fiber* const self = reinterpret_cast<Fiber*>(static_cast<uintptr_t>(high) << 32 | low);
  AfterSwitch(nullptr, &self->caller_stack_, &self->caller_stack_bytes_);
  self->body_();
  self->is_done_ = true;
  BeforeSwitch(nullptr, self->caller_stack_, self->caller_stack_bytes_);  // null: this stack is not used any more
  swapcontext(&self->here_, &self->caller_);
}

void Fiber::Resume() {
  assert(!is_running_);
  if (is_done_) return;
  if (!is_begun_) {
    is_begun_ = true;
    stack_ = TakeStack();
    getcontext(&here_);
    here_.uc_stack.ss_sp = stack_.get();
    here_.uc_stack.ss_size = kStackBytes;
    here_.uc_link = nullptr;
    const auto self = reinterpret_cast<uintptr_t>(this);
    makecontext(&here_, reinterpret_cast<void (*)()>(&Fiber::Start), 2, static_cast<unsigned>(self >> 32),
                static_cast<unsigned>(self));
  }
  is_running_ = true;
  void* fake_stack = nullptr;
  BeforeSwitch(&fake_stack, stack_.get(), kStackBytes);
  swapcontext(&caller_, &here_);
  AfterSwitch(fake_stack, nullptr, nullptr);
  is_running_ = false;
}

void Fiber::Block() {
  BeforeSwitch(&fake_stack_, caller_stack_, caller_stack_bytes_);
  swapcontext(&here_, &caller_);
  AfterSwitch(fake_stack_, &caller_stack_, &caller_stack_bytes_);
}

}  // namespace switchyard::simulation
