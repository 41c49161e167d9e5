// The step thread's inbox: control messages from the front and tasks of the worker's other threads, woken through a
// descriptor that can be polled together with the link's socket.
//
// Thread-safe: any thread pushes, the step thread pops.
#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <variant>

#include "base/mutex.h"
#include "base/unique_fd.h"
#include "proto/worker.pb.h"

namespace switchyard {

class Inbox {
 public:
  static absl::StatusOr<std::unique_ptr<Inbox>> Create();

  using Task = std::function<void()>;
  using Item = std::variant<worker::FrontMessage, Task>;

  // Dropped once closed.
  void Push(Item item);
  // Marks that nothing will come any more: `status` says why. What is there already is still popped first.
  void Close(absl::Status status);

  std::optional<Item> Pop();
  // Set once closed.
  std::optional<absl::Status> closed() const;

  // Readable when there is something to pop, or once closed.
  int wake_fd() const { return wake_fd_.get(); }

 private:
  explicit Inbox(UniqueFd wake_fd) : wake_fd_(std::move(wake_fd)) {}

  const UniqueFd wake_fd_;  // an eventfd that counts items, plus one for the closing
  mutable Mutex mu_;
  std::deque<Item> items_ ABSL_GUARDED_BY(mu_);
  std::optional<absl::Status> closed_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard
