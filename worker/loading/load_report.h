// Reports the progress of loading: to the front every half second and, if the front did not start this worker, to the
// worker's own log.
#pragma once

#include <functional>
#include <optional>

#include "base/clock.h"
#include "base/progress.h"
#include "proto/worker.pb.h"
#include "worker/loading/model_loader.h"

namespace switchyard {

// Thread-safety: one thread at a time.
class LoadReport {
 public:
  // `send` sends a message to the front. `logs`: whether to write to the log too.
  LoadReport(std::function<void(worker::WorkerMessage)> send, bool logs) : send_(std::move(send)), logs_(logs) {}

  void Update(const LoadProgress& so_far);

 private:
  void Log(const LoadProgress& so_far, SteadyTime now);

  const std::function<void(worker::WorkerMessage)> send_;
  const bool logs_;
  SteadyTime last_report_;
  SteadyTime last_line_;
  std::optional<ProgressMeter> meter_;  // while something is being loaded
};

}  // namespace switchyard
