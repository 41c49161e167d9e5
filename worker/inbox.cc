#include "worker/inbox.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <memory>

namespace switchyard {

absl::StatusOr<std::unique_ptr<Inbox>> Inbox::Create() {
  UniqueFd wake_fd(eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE | EFD_NONBLOCK));
  if (!wake_fd.valid()) return ErrnoStatus(errno, "eventfd");
  return std::unique_ptr<Inbox>(new Inbox(std::move(wake_fd)));
}

void Inbox::Push(Item item) {
  {
    MutexLock lock(&mu_);
    if (closed_.has_value()) return;
    items_.push_back(std::move(item));
  }
  eventfd_write(wake_fd_.get(), 1);
}

void Inbox::Close(absl::Status status) {
  {
    MutexLock lock(&mu_);
    if (closed_.has_value()) return;
    closed_ = std::move(status);
  }
  eventfd_write(wake_fd_.get(), 1);
}

std::optional<Inbox::Item> Inbox::Pop() {
  MutexLock lock(&mu_);
  if (items_.empty()) return std::nullopt;
  eventfd_t count;
  eventfd_read(wake_fd_.get(), &count);
  Item item = std::move(items_.front());
  items_.pop_front();
  return item;
}

std::optional<absl::Status> Inbox::closed() const {
  MutexLock lock(&mu_);
  return items_.empty() ? closed_ : std::nullopt;
}

}  // namespace switchyard
