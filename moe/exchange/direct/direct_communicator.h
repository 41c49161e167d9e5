// A Communicator between GPUs of one host that reach each other's memory: kernels write rows straight into the
// destination's window (direct_window.h) and count them there, so no proxy thread, host or library is involved.
//
// Prepare() makes this rank's window and listens on a Unix socket. Connect() meets the peers there
// (moe/exchange/mesh/peer_mesh.h), which proves that they are of this user and of this group's epoch, and passes them
// the window. AllToAllV enqueues on the caller's stream, which must be on this rank's GPU, and returns: one kernel for
// the small blocks, and copies by the copy engines for the large ones (large_blocks.h). The bytes move when the stream
// reaches them on both sides. A group of one rank copies its block.
//
// Ending. A kernel that waits for a peer looks at the communicator's state every few microseconds. After Abort() it
// quits, and so do those enqueued behind it; without Abort() it quits when the peer is silent for `exchange_timeout`.
// Copies wait until Abort(), which ends their waits. It returns when everything that was enqueued has ended. Exchanges
// that have quit look finished on the stream, but their bytes did not arrive, so call Health() before using them.
// Memory of this rank's that a peer still writes is the window alone, and that outlives the communicator until the peer
// has let go of it (moe/gpu/shared_memory.h). So no rank need wait for another to leave, and a new group, which has new
// windows, never sees a write of an old one.
//
// Ranks that disagree about a count get INVALID_ARGUMENT naming both, from Health().
#pragma once

#include <chrono>
#include <memory>

#include "moe/exchange/communicator.h"

namespace switchyard {

struct DirectOptions {
  // This process's GPU, as the CUDA runtime counts them.
  int device_idx = 0;
  // How long Connect() waits for the peers.
  std::chrono::milliseconds connect_timeout{20'000};
  // How long an exchange waits for a silent peer. A safety net: the supervisor of the group normally aborts it sooner.
  std::chrono::milliseconds exchange_timeout{20'000};
};

// Prepare() is FAILED_PRECONDITION for a GPU that cannot share memory and for more than kMaxDirectRanks ranks.
std::unique_ptr<CommunicatorFactory> CreateDirectFactory(DirectOptions options = {});

}  // namespace switchyard
