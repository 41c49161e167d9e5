// Communicator::HostAllToAllV for communicators between GPUs.
#pragma once

#include <chrono>
#include <cstddef>
#include <span>

#include "base/status.h"
#include "moe/exchange/communicator.h"

namespace switchyard {

// Copies the blocks to the current GPU, exchanges them there and copies them back. Ends the communicator, with
// UNAVAILABLE, when the peers are silent for `timeout`.
absl::Status HostAllToAllVThroughDevice(Communicator& communicator, const std::byte* send,
                                        std::span<const size_t> send_bytes, std::byte* recv,
                                        std::span<const size_t> recv_bytes, std::chrono::milliseconds timeout);

}  // namespace switchyard
