// The stream to one worker, as the group and the links see it: they send messages and close it.
#pragma once

#include "base/status.h"
#include "proto/worker.pb.h"

namespace switchyard {

// Thread-safe.
class WorkerChannel {
 public:
  virtual ~WorkerChannel() = default;
  // Queues the message; it is dropped when the stream has ended.
  virtual void Send(worker::FrontMessage message) = 0;
  // Ends the stream once the messages queued before are delivered. The worker sees `why` as the stream's status.
  virtual void Close(const absl::Status& why) = 0;
};

}  // namespace switchyard
