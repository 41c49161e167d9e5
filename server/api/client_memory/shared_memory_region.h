// One range of memory that a client shares with this server: of a POSIX shared memory object, or of a GPU's memory.
//
// The client may change or resize the memory at any time. So it is never mapped or computed upon in place: bytes are
// copied out before the rest of a request is checked, and copied in when its answer is complete. When the memory is too
// short for a copy by then, that request fails.
//
// Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/status.h"

namespace switchyard {

enum class MemoryKind { kSystem, kCuda };

// "system" or "cuda".
const char* KindName(MemoryKind kind);

struct RegionInfo {
  MemoryKind kind = MemoryKind::kSystem;
  uint64_t byte_size = 0;
  // For system memory: the object's name, and where the region begins in it.
  std::string key;
  uint64_t offset = 0;
  // For a GPU's memory.
  int64_t device_id = 0;
};

class SharedMemoryRegion {
 public:
  explicit SharedMemoryRegion(RegionInfo info) : info_(std::move(info)) {}
  virtual ~SharedMemoryRegion() = default;
  SharedMemoryRegion(const SharedMemoryRegion&) = delete;
  SharedMemoryRegion& operator=(const SharedMemoryRegion&) = delete;

  const RegionInfo& info() const { return info_; }

  // InvalidArgument unless the region contains [offset, offset + num_bytes).
  absl::Status CheckRange(uint64_t offset, uint64_t num_bytes) const;

  // Copy a range that CheckRange has passed. FailedPrecondition when the memory has become too short; other errors when
  // it cannot be copied. Some of the bytes may have been copied then.
  virtual absl::Status Read(uint64_t offset, std::span<std::byte> to) const = 0;
  virtual absl::Status Write(uint64_t offset, std::span<const std::byte> from) const = 0;

 private:
  const RegionInfo info_;
};

using RegionPtr = std::shared_ptr<const SharedMemoryRegion>;

}  // namespace switchyard
