// The step thread's inbox: control messages from the front, woken through a descriptor that can be polled together with
// the link's socket.
//
// Thread-safe: any thread pushes, the step thread pops.
#pragma once

#include <deque>
#include <optional>

#include "moe/base/mutex.h"
#include "moe/base/unique_fd.h"
#include "proto/worker.pb.h"

namespace switchyard {

class Inbox {
 public:
  static absl::StatusOr<std::unique_ptr<Inbox>> Create();

  void Push(worker::FrontMessage message);
  // Marks that nothing will come any more: `status` says why. Messages already there are still popped first.
  void Close(absl::Status status);

  std::optional<worker::FrontMessage> Pop();
  // Set once closed.
  std::optional<absl::Status> closed() const;

  // Readable when there is something to pop, or once closed.
  int wake_fd() const { return wake_fd_.get(); }

 private:
  explicit Inbox(UniqueFd wake_fd) : wake_fd_(std::move(wake_fd)) {}

  const UniqueFd wake_fd_;  // an eventfd that counts messages, plus one for the closing
  mutable Mutex mu_;
  std::deque<worker::FrontMessage> messages_ ABSL_GUARDED_BY(mu_);
  std::optional<absl::Status> closed_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard
