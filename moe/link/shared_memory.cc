#include "moe/link/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace switchyard {
namespace {

constexpr int kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

absl::StatusOr<std::byte*> Map(int fd, size_t num_bytes) {
  void* address = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) return ErrnoStatus(errno, absl::StrCat("mmap of ", num_bytes, " shared bytes"));
  return static_cast<std::byte*>(address);
}

}  // namespace

absl::StatusOr<SharedMemory> SharedMemory::Create(size_t num_bytes) {
  UniqueFd fd(memfd_create("switchyard_link", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return ErrnoStatus(errno, "memfd_create");
  if (ftruncate(fd.get(), static_cast<off_t>(num_bytes)) != 0) {
    return ErrnoStatus(errno, absl::StrCat("sizing shared memory to ", num_bytes, " bytes"));
  }
  if (fcntl(fd.get(), F_ADD_SEALS, kSizeSeals) != 0) return ErrnoStatus(errno, "sealing shared memory");
  SY_ASSIGN_OR_RETURN(std::byte* const data, Map(fd.get(), num_bytes));
  return SharedMemory(std::move(fd), data, num_bytes);
}

absl::StatusOr<SharedMemory> SharedMemory::Attach(UniqueFd fd, size_t num_bytes) {
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & kSizeSeals) != kSizeSeals) {
    return absl::FailedPreconditionError("shared memory is not sealed against resizing");
  }
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, "fstat of shared memory");
  if (static_cast<size_t>(info.st_size) < num_bytes) {
    return absl::FailedPreconditionError(
        absl::StrCat("shared memory has ", info.st_size, " bytes, its layout needs ", num_bytes));
  }
  SY_ASSIGN_OR_RETURN(std::byte* const data, Map(fd.get(), num_bytes));
  return SharedMemory(std::move(fd), data, num_bytes);
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : fd_(std::move(other.fd_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

SharedMemory::~SharedMemory() {
  if (data_ != nullptr) munmap(data_, size_);
}

}  // namespace switchyard
