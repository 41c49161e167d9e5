#pragma once

#include "absl/synchronization/mutex.h"

namespace switchyard {

// Call this at the beginning of main. The system's abseil looks for deadlocks at every lock, gRPC's included, in a
// graph that has a lock of its own, which all threads share. Therefore only tests keep the detection on.
inline void StopLookingForDeadlocks() { absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore); }

}  // namespace switchyard
