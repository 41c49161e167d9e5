// A Communicator over TCP between host processes, with Gloo.
//
// Gloo's usual rendezvous needs a shared store. Here, Prepare() opens one listening socket per peer, address() gives
// the sockets' addresses, the code that forms the group carries these blobs, and Connect() joins the ranks. Connect()
// ends with a small exchange in which every rank names itself, so it returns only when every peer is really there.
//
// The process must ignore SIGPIPE, because Gloo writes to sockets whose peer may have died. A call ends at once when a
// peer dies that it still depends on. If a peer is alive but silent, or its counts disagree, the call ends after
// `exchange_timeout`.
//
// Gloo does not authenticate peers: it takes the first connection that comes for its peer's, and malformed data from a
// stranger ends the process. Bind to a network, or a loopback, that only the group can reach; other groups of CPUs
// should use shm/ or tcp/, which have no such limits.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "moe/exchange/communicator.h"

namespace switchyard {

struct GlooOptions {
  // IPv4 or IPv6 address to listen on, as digits; peers must be able to reach it.
  std::string bind_host = "127.0.0.1";
  // How long Connect() waits for each peer.
  std::chrono::milliseconds connect_timeout{10'000};
  // How long AllToAllV() waits for silent peers. A safety net: the supervisor of the group normally aborts it sooner.
  std::chrono::milliseconds exchange_timeout{60'000};
};

std::unique_ptr<CommunicatorFactory> CreateGlooFactory(GlooOptions options = {});

}  // namespace switchyard
