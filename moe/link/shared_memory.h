// Memory shared between the front and a worker on the same host: a sealed memfd.
//
// The creator seals its size, so that neither side can truncate it while the other uses it; Attach() checks the seals
// before it maps the memory. The peer may write any contents, so the reader must check them.
#pragma once

#include <cstddef>

#include "base/status.h"
#include "base/unique_fd.h"

namespace switchyard {

// Move-only owner of one mapping; the bytes may be used from any thread.
class SharedMemory {
 public:
  // Zero-filled; pages take physical memory when first touched.
  static absl::StatusOr<SharedMemory> Create(size_t num_bytes);

  // Maps a memfd received from the creator. FailedPrecondition unless it is sealed against resizing and at least
  // `num_bytes` long.
  static absl::StatusOr<SharedMemory> Attach(UniqueFd fd, size_t num_bytes);

  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&&) = delete;
  ~SharedMemory();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  int fd() const { return fd_.get(); }

 private:
  SharedMemory(UniqueFd fd, std::byte* data, size_t size) : fd_(std::move(fd)), data_(data), size_(size) {}

  UniqueFd fd_;
  std::byte* data_;
  size_t size_;
};

}  // namespace switchyard
