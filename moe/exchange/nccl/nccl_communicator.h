// A Communicator between GPUs, with NCCL: one process per GPU, one rank per process.
//
// AllToAllV enqueues one NCCL group of sends and receives on the caller's stream and returns as soon as it is enqueued;
// the bytes move when the stream reaches it. The stream must be on this rank's GPU. A group of one rank copies its
// block and makes no NCCL communicator.
//
// Ending. NCCL does not report that a peer on the same host has died: the kernels of an exchange spin for ever. The
// supervisor that notices the death (the front, by the broken stream) has Abort() called on every survivor, from any
// thread. Abort() asks those kernels to quit, waits for them and releases all resources (about half a second). Other
// memory of the device and other work on it are not affected. The aborted exchanges then look finished on the stream,
// but their bytes did not arrive, so call Health() before using them. Once a call has returned ABORTED or another
// error, or Abort() has returned, this communicator touches no memory any more. While Abort() runs, other calls wait
// for it.
//
// Threads: NCCL allows one thread at a time on a communicator, and ncclCommAbort frees it. Therefore all calls to NCCL
// are made under one mutex, and none of them blocks: connecting and enqueueing are nonblocking calls whose progress is
// polled afterwards, with the mutex free between polls. Waiting for the GPU happens outside the mutex. Abort() thus
// needs only the mutex, wherever the calling thread is. It leaves the communicator's GPU current for the thread that
// called Abort().
//
// When a rank leaves, memory goes that its peers' kernels may use until the last exchange is over on every rank. A rank
// should leave once all ranks have finished, or when the others' exchanges in flight are lost anyway.
//
// Rank 0 opens a socket where the ranks meet. NCCL closes it only when all ranks have come, so a group that never came
// together costs rank 0's process one idle thread and one socket.
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

  // The interface that NCCL's sockets listen on, in the syntax of NCCL_SOCKET_IFNAME; empty for NCCL's own choice. NCCL
  // does not authenticate peers, so by default only this host can reach the sockets.
  std::string socket_interface = "=lo";

  // The communicator's name in NCCL's own log.
  std::string name = "switchyard";

  // The most multiprocessors that an exchange may take from concurrent computing; 0 for NCCL's choice, which favours
  // the exchange's speed. Must be the same on every rank.
  int max_ctas = 0;

  // Up to this size, NCCL's kernel moves a rank's block for itself, together with the other blocks. A larger one is
  // moved by a copy of its own, before the kernel.
  size_t max_self_send_bytes = std::numeric_limits<size_t>::max();

  // How long Connect() waits for the peers.
  std::chrono::milliseconds connect_timeout{20'000};

  // How long enqueueing may take (long only when NCCL must connect a peer first), and how long HostAllToAllV() waits
  // for the bytes. A safety net: the supervisor of the group normally aborts it sooner.
  std::chrono::milliseconds exchange_timeout{20'000};
};

// NCCL takes some settings only from the environment, once per process. This function sets two of them if they are not
// set: NCCL_SOCKET_IFNAME, and NCCL_NVLS_ENABLE=0, because NVLink multicast is shared by the whole host, and one of its
// users should not take it unasked. Call it before other threads read the environment.
std::unique_ptr<CommunicatorFactory> CreateNcclFactory(NcclOptions options = {});

}  // namespace switchyard
