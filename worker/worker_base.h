// The parts of a worker that outlive its sessions with fronts.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>

#include "base/heartbeat.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "moe/link/link_layout.h"
#include "moe/link/shared_memory.h"
#include "worker/device.h"
#include "worker/loading/kept_parts.h"
#include "worker/options.h"
#include "worker/steps/worker_metrics.h"

namespace switchyard {

// The shared-memory link of a worker that a front started; empty for others.
struct StepLink {
  LinkLayout layout;
  std::optional<SharedMemory> memory;
  UniqueFd socket;
};

// The order of the members is the order of their lives: the device may have locked the link's memory, and engines end
// before their device. Constant while a session runs, except for what is thread-safe.
struct WorkerBase {
  WorkerOptions options;
  uint64_t instance = 0;  // Hello.instance
  StepLink link;
  std::unique_ptr<Device> device;
  Heartbeat step_heartbeat;
  WorkerMetrics metrics;
  KeptParts kept;          // between sessions: everything that was loaded
  int previous_rank = -1;  // the rank in the last session that had one
  int64_t num_streams = 0;
  std::atomic<bool> has_front{false};  // that has welcomed the worker
};

}  // namespace switchyard
