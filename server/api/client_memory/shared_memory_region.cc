#include "server/api/client_memory/shared_memory_region.h"

namespace switchyard {

const char* KindName(MemoryKind kind) { return kind == MemoryKind::kSystem ? "system" : "cuda"; }

absl::Status SharedMemoryRegion::CheckRange(uint64_t offset, uint64_t num_bytes) const {
  if (num_bytes <= info_.byte_size && offset <= info_.byte_size - num_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("shared memory: expected a range within the region's ",
                                                 info_.byte_size, " bytes, found ", num_bytes, " bytes at offset ",
                                                 offset));
}

}  // namespace switchyard
