// A Communicator over TCP, for processes on different hosts.
//
// Ranks meet as peer_mesh.h says: a stranger at the listening socket, a connection that is dropped and one of another
// epoch cost nothing or a retry, never the process. Rows and nonces travel in clear, so whoever can read or change the
// network between the hosts can read or change rows.
//
// The thread that calls AllToAllV moves all bytes; there are no other threads. Ranks that disagree about a count get
// INVALID_ARGUMENT naming both, or UNAVAILABLE when another rank notices first. A peer that is alive but silent for
// `exchange_timeout` ends the call with UNAVAILABLE.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "moe/exchange/communicator.h"

namespace switchyard {

struct TcpOptions {
  // IPv4 or IPv6 address to listen on, as digits; peers must be able to reach it.
  std::string bind_host = "127.0.0.1";
  // How long Connect() waits for the peers.
  std::chrono::milliseconds connect_timeout{10'000};
  // How long AllToAllV() waits for silent peers. A safety net: the supervisor of the group normally aborts it sooner.
  std::chrono::milliseconds exchange_timeout{60'000};
};

std::unique_ptr<CommunicatorFactory> CreateTcpFactory(TcpOptions options = {});

}  // namespace switchyard
