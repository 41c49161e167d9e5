// The bounds of a front's Welcome, checked before anything is sized by it.
#pragma once

#include "base/status.h"
#include "proto/worker.pb.h"

namespace switchyard {

// As many as a front can be told to have (--local_workers, --await_workers).
inline constexpr int kMaxRanks = 1024;

// InvalidArgument when the group is too large, or this worker's rank is none of it.
absl::Status CheckWelcome(const worker::Welcome& welcome);

}  // namespace switchyard
