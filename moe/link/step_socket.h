// The messages of a shared-memory link, over a Unix SOCK_SEQPACKET socket: one setup with the memory's descriptor, then
// steps one way and results the other. Rows and plans lie in the shared memory; messages only say where.
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

// Front to worker: run the step in `slot`, and write its rows to `output`.
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

// Worker to front: the step's output rows are where they were wanted, or it failed.
struct ResultMessage {
  Epoch epoch;
  StepId step_id;
  StepTimes times;
  absl::Status status;
};

// A connected pair of sockets: one end stays, the other is inherited by the worker.
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

// Messages longer than 512 bytes are cut.
absl::Status SendResult(int socket, const ResultMessage& result);
absl::StatusOr<ResultMessage> ReceiveResult(int socket);

}  // namespace switchyard
