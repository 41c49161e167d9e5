// Moves large blocks between the windows of a direct exchange (direct_window.h) by the copy engines. These take no
// multiprocessors, so that the experts compute at full speed meanwhile. Streams wait for counts in memory, which takes
// none either, and has no time limit: Release() ends the waits.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/status.h"
#include "moe/exchange/direct/direct_window.h"
#include "moe/exchange/mesh/blocks.h"
#include "moe/gpu/stream.h"

namespace switchyard {

// Thread-compatible.
class LargeBlocks {
 public:
  // On the current device, for `rank`; windows[r] is rank r's window.
  static absl::StatusOr<LargeBlocks> Create(DirectWindow window, int rank, std::vector<std::byte*> windows);

  // Enqueues the large ones of the blocks, after all earlier work of `stream` and before all later work.
  absl::Status Enqueue(const Blocks<const std::byte>& send, const Blocks<std::byte>& recv, cudaStream_t stream);

  // Lets all waits end that are enqueued, as if the peers had come. A peer may write its count again, so this is called
  // until the enqueued work has ended.
  absl::Status Release();

 private:
  LargeBlocks(DirectWindow window, int rank, std::vector<std::byte*> windows)
      : window_(window), rank_(rank), windows_(std::move(windows)), sent_(window.size), received_(window.size) {}

  absl::Status EnqueuePieces(const Blocks<const std::byte>& send, const Blocks<std::byte>& recv);
  absl::Status Send(int peer, std::span<const std::byte> piece);
  absl::Status Receive(int peer, std::span<std::byte> piece);

  DirectWindow window_;
  int rank_ = 0;
  std::vector<std::byte*> windows_;
  CudaStream send_, receive_, release_;
  CudaEvent begun_, sent_all_, received_all_;
  std::vector<uint64_t> sent_, received_;  // pieces, by peer
};

}  // namespace switchyard
