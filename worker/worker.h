// One rank of the group: joins the front, and serves it until the front tells the worker to drain. A worker that loses
// its front keeps its weights and joins the same front, or the one that comes in its place, anew.
//
// A worker that a front started ends with its front instead.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "http/http_server.h"
#include "worker/device.h"
#include "worker/join_attempts.h"
#include "worker/options.h"
#include "worker/session.h"
#include "worker/worker_base.h"
#include "worker/worker_end.h"

namespace switchyard {

class Worker {
 public:
  // Opens the device, and attaches to the link's memory if there is a link. `options` have been checked.
  static absl::StatusOr<std::unique_ptr<Worker>> Create(const WorkerOptions& options,
                                                        DeviceOpener open_device = OpenDevice);

  // Runs on the step thread (session.h) until the worker is drained, `stop_fd` becomes readable, or the worker cannot
  // go on.
  WorkerEnd Run(int stop_fd);

 private:
  Worker() = default;

  absl::Status AttachLink();
  // Unavailable, with the reason, while the worker is in no group. Thread-safe.
  absl::Status CheckInGroup() const;
  absl::Status StartHttp();
  // One session. Sets `welcomed_at` if it had its welcome.
  WorkerEnd Join(int stop_fd, SteadyTime welcome_due, std::optional<SteadyTime>* welcomed_at);
  // Whether any front has taken this worker.
  bool has_joined() const { return base_.previous_rank >= 0; }
  void TellThatFrontIsLost(const WorkerEnd& end, bool was_welcomed, std::chrono::milliseconds patience);

  WorkerBase base_;
  std::unique_ptr<HttpServer> http_;  // null unless options ask for it
  std::string last_told_;             // why the last attempt to join failed
};

}  // namespace switchyard
