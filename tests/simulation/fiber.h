// A thread of the simulated world: a function with a stack of its own, which runs until it blocks and goes on when it
// is resumed. So the code of a worker's step thread, which blocks in an exchange, runs as it is on the one thread of
// the simulation.
//
// Stacks are used again by later fibers. One thread uses all fibers.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <functional>
#include <memory>

namespace switchyard::simulation {

class Fiber {
 public:
  // Does not run before the first Resume.
  explicit Fiber(std::function<void()> body);
  // The body has returned, or was never begun.
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Runs the body until it blocks or returns. Not from the body itself.
  void Resume();
  // From the body: goes back to the caller of Resume.
  void Block();
  bool is_done() const { return is_done_; }
  bool is_running() const { return is_running_; }

 private:
  static void Start(unsigned high, unsigned low);

  std::function<void()> body_;
  std::unique_ptr<std::byte[]> stack_;
  ucontext_t here_{}, caller_{};
  bool is_begun_ = false, is_running_ = false, is_done_ = false;
  // What AddressSanitizer wants to know of the switches.
  void* fake_stack_ = nullptr;
  const void* caller_stack_ = nullptr;
  size_t caller_stack_bytes_ = 0;
};

}  // namespace switchyard::simulation
