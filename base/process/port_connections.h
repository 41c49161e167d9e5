// The connections of one listening port, and how many descriptors they may take.
//
// A process that runs out of descriptors cannot accept, open a file or replace a worker. So every port leaves some of
// the process's descriptors alone: clients' connections the most, so that probes and workers are still accepted when
// clients have taken all of theirs, and the last ones belong to the process itself. A connection beyond that is closed
// as soon as it was accepted, and its peer knows at once.
//
// Descriptors get the lowest free number, so the number of a new one tells whether those below it are in use. No count
// has to be kept, and the limit may change at any time.
//
// Thread-safe.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "base/mutex.h"

namespace switchyard {

// In the order in which they are turned away when descriptors become scarce.
enum class PortKind { kClients, kHttp, kWorkers };

// "grpc", "http" or "worker".
const char* PortName(PortKind kind);

class PortConnections {
 public:
  struct Counts {
    std::string port;
    int64_t open = 0;
    int64_t refused = 0;  // since the start
  };

  explicit PortConnections(PortKind kind, int max_connections = std::numeric_limits<int>::max());
  ~PortConnections();
  PortConnections(const PortConnections&) = delete;
  PortConnections& operator=(const PortConnections&) = delete;

  // Whether the connection `fd`, which was just accepted, leaves enough descriptors and is not one too many.
  bool HasRoomFor(int fd);
  // Counts the connection as open until its descriptor is closed, by whomever.
  void Add(int fd);
  // Counts a connection that is turned away, and says why: "it has 64 connections, which is its limit".
  std::string Refuse();

  // Whether a connection that came now would find room.
  bool HasRoom();
  Counts counts();

  // The counts of all ports of this process.
  static std::vector<Counts> OfAllPorts();

 private:
  int64_t CountOpen() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool IsFull();

  const PortKind kind_;
  const int max_connections_;
  Mutex mu_;
  std::map<int, uint64_t> cookies_ ABSL_GUARDED_BY(mu_);  // the kernel's number of the socket that has a descriptor
  int64_t num_refused_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace switchyard
