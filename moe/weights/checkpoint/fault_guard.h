// Keeps this process alive when a file that it has mapped becomes shorter, or its disk fails.
//
// The system then answers an access to the bytes that are gone with SIGBUS, which would end the process. Inside a
// guarded mapping the access and all that follow, up to the mapping's end, get zeros instead, and the guard says that
// the mapping is damaged: whoever has read from it asks intact() before using what was read. Guarding costs nothing
// while nothing is damaged.
//
// The first guard installs a handler of SIGBUS, which passes on what happens outside guarded mappings.
#pragma once

#include <cstddef>
#include <span>

namespace switchyard {

// Thread-safe. Ends before the mapping does.
class FaultGuard {
 public:
  // `mapping` begins on a page.
  explicit FaultGuard(std::span<const std::byte> mapping);
  ~FaultGuard();
  FaultGuard(const FaultGuard&) = delete;
  FaultGuard& operator=(const FaultGuard&) = delete;

  // Whether every access so far has got the file's bytes.
  bool intact() const;

 private:
  struct Range;
  class Handler;

  Range* const range_;
};

}  // namespace switchyard
