#include "tests/simulation/point.h"

#include <array>

namespace switchyard::simulation {

const char* NameOf(Point point) {
  static constexpr std::array<const char*, static_cast<size_t>(Point::kNumPoints)> kNames = {
      "Welcome",      "PrepareGroup", "ConnectGroup", "StepRequest",  "Ping",          "Drain",       "EndGroup",
      "LoadModel",    "UnloadModel",  "Hello",        "LoadProgress", "ModelLoaded",   "ModelFailed", "GroupAddress",
      "GroupReady",   "GroupFailed",  "StepResult",   "Pong",         "ModelUnloaded", "stream ends", "exit notice",
      "peer's hello", "peer's block", "peer's end",   "load begins",  "gather",        "experts",     "combine",
      "group formed", "group lost",   "gate",         "answer"};
  return kNames[static_cast<size_t>(point)];
}

Point PointOf(const worker::FrontMessage& message) {
  switch (message.message_case()) {
    case worker::FrontMessage::kWelcome:
      return Point::kWelcome;
    case worker::FrontMessage::kPrepareGroup:
      return Point::kPrepareGroup;
    case worker::FrontMessage::kConnectGroup:
      return Point::kConnectGroup;
    case worker::FrontMessage::kStep:
      return Point::kStep;
    case worker::FrontMessage::kDrain:
      return Point::kDrain;
    case worker::FrontMessage::kEndGroup:
      return Point::kEndGroup;
    case worker::FrontMessage::kLoadModel:
      return Point::kLoadModel;
    case worker::FrontMessage::kUnloadModel:
      return Point::kUnloadModel;
    default:
      return Point::kPing;
  }
}

Point PointOf(const worker::WorkerMessage& message) {
  switch (message.message_case()) {
    case worker::WorkerMessage::kHello:
      return Point::kHello;
    case worker::WorkerMessage::kLoadProgress:
      return Point::kLoadProgress;
    case worker::WorkerMessage::kModelLoaded:
      return Point::kModelLoaded;
    case worker::WorkerMessage::kModelFailed:
      return Point::kModelFailed;
    case worker::WorkerMessage::kGroupAddress:
      return Point::kGroupAddress;
    case worker::WorkerMessage::kGroupReady:
      return Point::kGroupReady;
    case worker::WorkerMessage::kGroupFailed:
      return Point::kGroupFailed;
    case worker::WorkerMessage::kStepResult:
      return Point::kStepResult;
    case worker::WorkerMessage::kModelUnloaded:
      return Point::kModelUnloaded;
    default:
      return Point::kPong;
  }
}

}  // namespace switchyard::simulation
