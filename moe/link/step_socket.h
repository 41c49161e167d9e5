// The messages of a shared-memory link, over a Unix SOCK_SEQPACKET socket: one setup message with the memory's
// descriptor, then steps from front to worker and results back. Rows and plans are in the shared memory; messages only
// say where.
//
// Thread-safety: one thread sends and one thread receives on each end.
#pragma once

#include <cstdint>
#include <string>

#include "base/ids.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "moe/link/link_layout.h"

namespace switchyard {

// Front to worker: run the step in slot `slot` and write its rows to output `output`.
struct StepMessage {
  Epoch epoch;
  StepId step_id;
  LayerId layer;
  int32_t slot = 0;
  int32_t output = 0;
  int64_t num_home_rows = 0;
  int64_t plan_bytes = 0;
};

// Microseconds that each part of a step took on one rank.
struct StepTimes {
  int64_t dispatch_us = 0;
  int64_t expert_us = 0;
  int64_t combine_us = 0;
};

// Worker to front: the step's rows are in the output that was asked for, or the step failed.
struct ResultMessage {
  Epoch epoch;
  StepId step_id;
  StepTimes times;
  absl::Status status;
};

// A connected pair of sockets: the front keeps one end and the worker inherits the other.
struct SocketPair {
  UniqueFd front;
  UniqueFd worker;
};
absl::StatusOr<SocketPair> MakeSocketPair();

// All functions below return Unavailable when the other end is gone and InvalidArgument for a malformed message.

absl::Status SendSetup(int socket, const LinkLayout& layout, int memory_fd);

struct Setup {
  LinkLayout layout;
  UniqueFd memory_fd;
};
// Waits for the setup message.
absl::StatusOr<Setup> ReceiveSetup(int socket);

absl::Status SendStep(int socket, const StepMessage& step);
absl::StatusOr<StepMessage> ReceiveStep(int socket);

// A status message longer than 512 bytes is cut.
absl::Status SendResult(int socket, const ResultMessage& result);
absl::StatusOr<ResultMessage> ReceiveResult(int socket);

}  // namespace switchyard
