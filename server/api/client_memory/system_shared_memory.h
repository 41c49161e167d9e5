// Regions of POSIX shared memory objects, which any process of the host may create with shm_open.
#pragma once

#include <string>

#include "server/api/client_memory/shared_memory_region.h"

namespace switchyard {

// The range [offset, offset + byte_size) of the object that `key` names: "/name" or "name", as shm_open takes it, at
// most 255 bytes. Names that libraries of the server's own processes use are refused. InvalidArgument says the same of
// an object that there is not, that this process may not read and write, that is no memory, or that is too short:
// nobody learns from it what there is.
absl::StatusOr<RegionPtr> OpenSystemMemory(const std::string& key, uint64_t offset, uint64_t byte_size);

}  // namespace switchyard
