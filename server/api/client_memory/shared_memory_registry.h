// The regions of memory that clients have registered, by their names.
//
// Every caller (server/api/calls/memory_owner.h) has names of its own: it finds, lists and removes what it registered
// itself, and cannot tell a name of somebody else from one that there is not. Both kinds of memory share the names.
//
// A request holds its regions: one that is removed meanwhile is closed when the last request lets go of it.
// Thread-safe.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "server/api/client_memory/shared_memory_region.h"

namespace switchyard {

// Each region holds a file descriptor, or address space of a GPU.
struct RegionLimits {
  size_t max_of_owner = 256;
  size_t max_of_all = 512;
};

class SharedMemoryRegistry {
 public:
  struct Entry {
    std::string name;
    RegionPtr region;
  };

  explicit SharedMemoryRegistry(RegionLimits limits = {}) : limits_(limits) {}

  // InvalidArgument unless `name` is 1 to 255 printable bytes, AlreadyExists when the caller has such a region.
  absl::Status CheckNewName(const std::string& owner, const std::string& name) const;

  // Errors as above; ResourceExhausted beyond the limits.
  absl::Status Add(const std::string& owner, const std::string& name, RegionPtr region);

  // NotFound does not repeat the name.
  absl::StatusOr<RegionPtr> Find(const std::string& owner, const std::string& name) const;

  // The caller's regions of one kind, all of them for an empty name. NotFound for a name that is not there.
  absl::StatusOr<std::vector<Entry>> List(const std::string& owner, MemoryKind kind, const std::string& name) const;

  // The same are removed; a name that is not there is not an error. InvalidArgument for one of the other kind.
  absl::Status Remove(const std::string& owner, MemoryKind kind, const std::string& name);

 private:
  using Regions = std::map<std::string, RegionPtr>;

  absl::Status CheckIsNew(const std::string& owner, const std::string& name) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckRoom(const std::string& owner) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const RegionLimits limits_;
  mutable Mutex mu_;
  std::map<std::string, Regions> by_owner_ ABSL_GUARDED_BY(mu_);  // of callers that have any
  size_t num_regions_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace switchyard
