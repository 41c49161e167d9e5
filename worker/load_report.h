// Tells how loading goes: to the front every half second and, where the front logs elsewhere, in the log.
#pragma once

#include <functional>
#include <optional>

#include "base/clock.h"
#include "base/progress.h"
#include "proto/worker.pb.h"
#include "worker/model_loader.h"

namespace switchyard {

// One thread at a time.
class LoadReport {
 public:
  // `send` goes to the front.
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
