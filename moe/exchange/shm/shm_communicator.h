// A Communicator between processes of one host and one user, through shared memory: two copies per byte and no system
// call while both sides are busy.
//
// Prepare() makes this rank's area (shm_area.h), a memfd that cannot shrink, and listens on a Unix socket of the
// abstract namespace. Connect() meets the peers there (peer_mesh.h), which proves that they are of this user and of
// this group's epoch, and passes them the area and an eventfd that wakes this rank. Afterwards the sockets only tell
// when a peer has gone, which ends within milliseconds every call that depends on it.
//
// Waiting. A rank that can go on with nothing looks again for `spin`, giving way to other threads, and then sleeps.
// Peers wake it only when it sleeps.
//
// Ranks that disagree about a count get INVALID_ARGUMENT naming both, or UNAVAILABLE when another rank notices first. A
// peer that is alive but silent for `exchange_timeout` ends the call with UNAVAILABLE.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>

#include "moe/exchange/communicator.h"

namespace switchyard {

struct ShmOptions {
  // The most memory of one ring, and of all rings that one rank sends through; a group of many ranks has smaller rings,
  // of at least 64 KiB.
  size_t max_ring_bytes = 1 << 20;
  size_t max_area_bytes = 16 << 20;
  // How long a rank looks for its peers' bytes before it sleeps.
  std::chrono::microseconds spin{50};
  // How long Connect() waits for the peers.
  std::chrono::milliseconds connect_timeout{10'000};
  // How long AllToAllV() waits for silent peers. A safety net: the supervisor of the group normally aborts it sooner.
  std::chrono::milliseconds exchange_timeout{60'000};
};

std::unique_ptr<CommunicatorFactory> CreateShmFactory(ShmOptions options = {});

}  // namespace switchyard
