// A Communicator between GPUs, with NCCL: one process per GPU, one rank per process.
//
// AllToAllV enqueues one NCCL group of sends and receives on the caller's stream and returns as soon as it is enqueued:
// the bytes move when the stream comes to it. The stream must be of this rank's GPU. A group of one rank copies and
// never calls NCCL.
//
// Ending. NCCL tells nobody that a peer on the same host has died: the kernels of an exchange spin for ever. Whoever
// notices the death (the front does, by the broken stream) calls Abort() on every survivor, from any thread. It asks
// those kernels to quit, waits for them and gives everything back (about half a second); other memory of the device and
// other work on it stay as they are. What then passes as finished on the stream did not arrive, so ask Health() before
// using it. When a call returns ABORTED or another error, or Abort() has returned, nothing of this communicator touches
// memory any more. As long as Abort() runs, other calls wait for it.
//
// Threads: NCCL allows one thread at a time on a communicator, and ncclCommAbort frees it. So all calls to NCCL are
// made under one mutex, and none of them blocks: connecting and enqueueing are nonblocking calls that are then asked
// for their progress, the mutex being free between questions. Waiting for the GPU happens outside. Abort() thus needs
// only the mutex, wherever the calling thread is. It leaves the communicator's GPU current for the thread that called
// it.
//
// A rank that leaves takes memory with it that its peers' kernels may use until the last exchange is over on every
// rank: leave once all have finished, or when what the others have under way is lost anyway.
//
// Rank 0 opens a socket where the ranks meet, which NCCL closes once all have come, and not before: a group that never
// came together costs rank 0's process one idle thread and one socket.
#pragma once

#include <chrono>
#include <cstddef>
#include <limits>
#include <memory>
#include <string>

#include "moe/exchange/communicator.h"

namespace switchyard {

struct NcclOptions {
  // This process's GPU, as the CUDA runtime counts them.
  int device_idx = 0;

  // Where NCCL's sockets listen, in the syntax of NCCL_SOCKET_IFNAME; empty for NCCL's own choice. NCCL authenticates
  // nobody, so the default reaches this host only.
  std::string socket_interface = "=lo";

  // Appears in NCCL's own log.
  std::string name = "switchyard";

  // The most multiprocessors that an exchange may take from computing at the same time; 0 for NCCL's choice, which is
  // for speed. The same on every rank.
  int max_ctas = 0;

  // A rank's block for itself goes along in NCCL's kernel up to this size, and by a copy of its own beyond. The kernel
  // moves it while it moves the others'; a copy comes before.
  size_t max_self_send_bytes = std::numeric_limits<size_t>::max();

  // How long Connect() waits for the peers.
  std::chrono::milliseconds connect_timeout{20'000};

  // How long enqueueing may take, which is long only when a peer must be connected first. How long HostAllToAllV()
  // waits for the bytes, too. A safety net: whoever supervises the group aborts it sooner.
  std::chrono::milliseconds exchange_timeout{20'000};
};

// NCCL takes some settings from the environment alone, once per process. Those that nobody has set are set here, so
// call it before other threads read the environment: NCCL_SOCKET_IFNAME, and NCCL_NVLS_ENABLE=0, since NVLink multicast
// is the whole host's, not for one of its users to take unasked.
std::unique_ptr<CommunicatorFactory> CreateNcclFactory(NcclOptions options = {});

}  // namespace switchyard
