// The points of the protocol at which faults strike: before or after a message arrives, and between the parts of what a
// process does by itself.
#pragma once

#include <cstdint>
#include <string>

#include "proto/worker.pb.h"

namespace switchyard::simulation {

// Messages have the names of proto/worker.proto.
enum class Point : uint8_t {
  kWelcome,
  kPrepareGroup,
  kConnectGroup,
  kStep,
  kPing,
  kDrain,
  kEndGroup,
  kLoadModel,
  kUnloadModel,
  kHello,
  kLoadProgress,
  kModelLoaded,
  kModelFailed,
  kGroupAddress,
  kGroupReady,
  kGroupFailed,
  kStepResult,
  kPong,
  kModelUnloaded,
  kStreamEnd,    // of the stream between front and worker, on either side
  kExitNotice,   // of a local worker, to the front
  kPeerHello,    // of a rank that connects to another
  kPeerBlock,    // rows, or partial sums, on their way from rank to rank
  kPeerEnd,      // of the connection of two ranks
  kLoadBegins,   // on a worker
  kGather,       // a worker has gathered the rows that it sends
  kExperts,      // a worker's experts have computed
  kCombine,      // a worker has added the partial sums up
  kGroupFormed,  // the front knows that the group serves
  kGroupLost,    // the front knows that it does not
  kGate,         // the front routes a step's rows
  kAnswer,       // a request ends
  kNumPoints
};

const char* NameOf(Point point);
Point PointOf(const worker::FrontMessage& message);
Point PointOf(const worker::WorkerMessage& message);

}  // namespace switchyard::simulation
