// The kernel of the direct exchange: writes this rank's blocks into its peers' windows, and copies the blocks that the
// peers write into its own window to where they belong.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "base/status.h"
#include "moe/exchange/direct/direct_window.h"

namespace switchyard {

// Host memory that the kernel reads and writes. The host sets `is_aborted`; the kernel sets the rest, once, when it
// gives up. A kernel that has given up has neither sent nor received the rest of its blocks.
struct DirectState {
  enum Failure : uint32_t { kNone = 0, kAborted = 1, kSilent = 2, kWrongBlock = 3 };
  uint32_t is_aborted = 0;
  uint32_t failure = kNone;
  int32_t peer = -1;
  // Set with kWrongBlock.
  DirectInbox::Note found, expected;
};

struct DirectBlock {
  const std::byte* send = nullptr;
  uint64_t send_bytes = 0;
  std::byte* recv = nullptr;
  uint64_t recv_bytes = 0;
};

struct DirectExchange {
  DirectWindow window;
  int rank = 0;
  uint64_t number = 0;                  // of the exchange; the same on every rank
  std::byte* const* windows = nullptr;  // by rank, in device memory; this rank's own included
  DirectState* state = nullptr;
  uint64_t timeout_ns = 0;  // that a lane waits for its peer
  DirectBlock blocks[kMaxDirectRanks];
};

// Enqueues one exchange. Does nothing when there is nothing to move.
absl::Status EnqueueDirectExchange(const DirectExchange& exchange, cudaStream_t stream);

}  // namespace switchyard
