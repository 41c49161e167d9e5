#include "moe/weights/checkpoint/fault_guard.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>

namespace switchyard {

// A signal handler reads these while any thread may change them, so they are never freed, but used again.
struct FaultGuard::Range {
  std::atomic<bool> is_used{true};
  std::atomic<uintptr_t> begin{0};  // both 0 while there is no mapping
  std::atomic<uintptr_t> end{0};
  std::atomic<bool> is_damaged{false};
  Range* next = nullptr;  // constant
};

// The data of the SIGBUS handler. Everything in it is safe in a signal handler.
class FaultGuard::Handler {
 public:
  static Range* Add() {
    static const bool installed = Install();
    (void)installed;
    for (Range* range = ranges.load(); range != nullptr; range = range->next) {
      if (!range->is_used.exchange(true)) return range;
    }
    auto* const range = new Range;
    range->next = ranges.load();
    while (!ranges.compare_exchange_weak(range->next, range)) {
    }
    return range;
  }

 private:
  static bool Install() {
    page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    struct sigaction action = {};
    action.sa_sigaction = OnFault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    return sigaction(SIGBUS, &action, &previous) == 0;
  }

  static void OnFault(int signal, siginfo_t* info, void* context) {
    const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
    for (Range* range = ranges.load(); range != nullptr; range = range->next) {
      if (address < range->begin.load() || address >= range->end.load()) continue;
      range->is_damaged.store(true);
      if (PutZeros(address, range->end.load())) return;
    }
    PassOn(signal, info, context);
  }

  // From the page of `address` on, so that a long tensor is not a fault for every page.
  static bool PutZeros(uintptr_t address, uintptr_t end) {
    const int error = errno;
    const uintptr_t begin = address / page_bytes * page_bytes;
    const void* const zeros = mmap(reinterpret_cast<void*>(begin), end - begin, PROT_READ,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    errno = error;
    return zeros != MAP_FAILED;
  }

  static void PassOn(int signal, siginfo_t* info, void* context) {
    if ((previous.sa_flags & SA_SIGINFO) != 0) return previous.sa_sigaction(signal, info, context);
    if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) return previous.sa_handler(signal);
    ::signal(signal, SIG_DFL);  // the access is tried again, and then ends the process
  }

  static inline std::atomic<Range*> ranges{nullptr};
  static inline uintptr_t page_bytes = 0;
  static inline struct sigaction previous = {};
};

FaultGuard::FaultGuard(std::span<const std::byte> mapping) : range_(Handler::Add()) {
  range_->is_damaged.store(false);
  range_->begin.store(reinterpret_cast<uintptr_t>(mapping.data()));
  range_->end.store(reinterpret_cast<uintptr_t>(mapping.data()) + mapping.size());
}

FaultGuard::~FaultGuard() {
  range_->end.store(0);
  range_->begin.store(0);
  range_->is_used.store(false);
}

bool FaultGuard::intact() const { return !range_->is_damaged.load(); }

}  // namespace switchyard
