// Regions of POSIX shared memory objects, which any process of the host may create with shm_open.
#pragma once

#include <string>

#include "server/api/client_memory/shared_memory_region.h"

namespace switchyard {

// Opens the range [offset, offset + byte_size) of the object that `key` names: "/name" or "name", as shm_open takes it,
// at most 255 bytes. Names that libraries of the server's own processes use are refused. InvalidArgument has the same
// message for an object that does not exist, that this process may not read and write, that is no memory, or that is
// too short, so that no caller learns from it which objects exist.
absl::StatusOr<RegionPtr> OpenSystemMemory(const std::string& key, uint64_t offset, uint64_t byte_size);

}  // namespace switchyard
