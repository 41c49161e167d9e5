#include "server/api/client_memory/system_shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "base/unique_fd.h"

namespace switchyard {
namespace {

constexpr size_t kMaxKeyBytes = 255;

// Prefixes of the objects that NCCL, the C library (semaphores), CUDA's services and OpenMP make for processes such as
// the front and its workers.
constexpr const char* kReserved[] = {"nccl-", "sem.", "cuda.shm.", "__KMP_"};

// The object's name without the leading slash.
absl::StatusOr<std::string> ParseKey(const std::string& key) {
  const std::string name(absl::StripPrefix(key, "/"));
  const bool is_name = !name.empty() && name.size() <= kMaxKeyBytes && name != "." && name != ".." &&
                       name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
  if (is_name) return name;
  return absl::InvalidArgumentError(absl::StrCat("key: expected the name of a POSIX shared memory object: 1 to ",
                                                 kMaxKeyBytes, " bytes, without a slash but the first"));
}

bool IsReserved(const std::string& name) {
  for (const char* prefix : kReserved) {
    if (absl::StartsWith(name, prefix)) return true;
  }
  return false;
}

// Whether `fd` is a memory object of at least offset + byte_size bytes.
bool IsLongEnough(int fd, uint64_t offset, uint64_t byte_size) {
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) return false;
  const auto size = static_cast<uint64_t>(info.st_size);
  return byte_size <= size && offset <= size - byte_size;
}

absl::Status Shrunk(size_t num_bytes, uint64_t offset) {
  return absl::FailedPreconditionError(absl::StrCat("shared memory: expected ", num_bytes, " bytes at offset ", offset,
                                                    ", but the object is shorter than when it was registered"));
}

// Copies with pread and pwrite. When the object has become too short they fail, whereas accesses to a mapping would
// kill the process.
class SystemRegion final : public SharedMemoryRegion {
 public:
  SystemRegion(RegionInfo info, UniqueFd fd) : SharedMemoryRegion(std::move(info)), fd_(std::move(fd)) {}

  absl::Status Read(uint64_t offset, std::span<std::byte> to) const override {
    size_t done = 0;
    while (done < to.size()) {
      const ssize_t count = pread(fd_.get(), to.data() + done, to.size() - done, Position(offset + done));
      if (count == 0) return Shrunk(to.size(), offset);
      if (count < 0 && errno != EINTR) return ErrnoStatus(errno, "reading shared memory");
      if (count > 0) done += static_cast<size_t>(count);
    }
    return absl::OkStatus();
  }

  absl::Status Write(uint64_t offset, std::span<const std::byte> from) const override {
    // A write beyond the end would make the object longer. If the object shrinks after this check, nothing worse than
    // that happens.
    if (!IsLongEnough(fd_.get(), info().offset + offset, from.size())) return Shrunk(from.size(), offset);
    size_t done = 0;
    while (done < from.size()) {
      const ssize_t count = pwrite(fd_.get(), from.data() + done, from.size() - done, Position(offset + done));
      if (count < 0 && errno != EINTR) return ErrnoStatus(errno, "writing shared memory");
      if (count > 0) done += static_cast<size_t>(count);
    }
    return absl::OkStatus();
  }

 private:
  off_t Position(uint64_t offset) const { return static_cast<off_t>(info().offset + offset); }

  const UniqueFd fd_;
};

}  // namespace

absl::StatusOr<RegionPtr> OpenSystemMemory(const std::string& key, uint64_t offset, uint64_t byte_size) {
  SY_ASSIGN_OR_RETURN(const std::string name, ParseKey(key));
  if (byte_size == 0) return absl::InvalidArgumentError("byte_size: expected 1 or more, found 0");
  UniqueFd fd;
  if (!IsReserved(name)) fd.reset(shm_open(absl::StrCat("/", name).c_str(), O_RDWR, 0));
  if (!fd.valid() || !IsLongEnough(fd.get(), offset, byte_size)) {
    return absl::InvalidArgumentError(
        absl::StrCat("key: expected a shared memory object that this server may read and write, with at least ",
                     byte_size, " bytes from offset ", offset));
  }
  RegionInfo info{MemoryKind::kSystem, byte_size, key, offset};
  return std::make_shared<SystemRegion>(std::move(info), std::move(fd));
}

}  // namespace switchyard
