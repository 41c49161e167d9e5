#pragma once

#include "absl/synchronization/mutex.h"

namespace switchyard {

// For the beginning of main. The system's abseil looks for deadlocks at every lock, gRPC's included, in a graph under a
// lock of its own that all threads share; that is for tests, where it stays on.
inline void StopLookingForDeadlocks() { absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore); }

}  // namespace switchyard
