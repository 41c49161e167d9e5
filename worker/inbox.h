// The step thread's queue of control messages from the front and of tasks from the worker's other threads. It wakes the
// step thread through a descriptor that can be polled together with the link's socket.
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

  // Adds an item. Once the inbox is closed, drops it.
  void Push(Item item);
  // Marks that no more items will come; `status` is the reason. Items already in the inbox can still be popped.
  void Close(absl::Status status);

  std::optional<Item> Pop();
  // The reason, once the inbox is closed and empty.
  std::optional<absl::Status> closed() const;

  // Readable when there is an item to pop, or once the inbox is closed.
  int wake_fd() const { return wake_fd_.get(); }

 private:
  explicit Inbox(UniqueFd wake_fd) : wake_fd_(std::move(wake_fd)) {}

  const UniqueFd wake_fd_;  // an eventfd that counts items, plus one for the closing
  mutable Mutex mu_;
  std::deque<Item> items_ ABSL_GUARDED_BY(mu_);
  std::optional<absl::Status> closed_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard
