// The regions of memory that clients have registered, by name.
//
// Every caller (server/api/calls/memory_owner.h) has its own names. It finds, lists and removes only regions that it
// registered itself, and cannot distinguish another caller's name from one that does not exist. Both kinds of memory
// share one set of names.
//
// A request holds its regions. A region that is removed meanwhile is closed when the last request lets go of it.
// Thread-safe.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "server/api/client_memory/shared_memory_region.h"

namespace switchyard {

// Limits, because each region holds a file descriptor, or address space of a GPU.
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

  // InvalidArgument unless `name` is 1 to 255 bytes without control characters. AlreadyExists when the caller has a
  // region of this name.
  absl::Status CheckNewName(const std::string& owner, const std::string& name) const;

  // Errors are those of CheckNewName; ResourceExhausted beyond the limits.
  absl::Status Add(const std::string& owner, const std::string& name, RegionPtr region);

  // The error NotFound does not repeat the name.
  absl::StatusOr<RegionPtr> Find(const std::string& owner, const std::string& name) const;

  // The caller's regions of one kind: the one called `name`, or all when the name is empty. NotFound for a name that
  // does not exist.
  absl::StatusOr<std::vector<Entry>> List(const std::string& owner, MemoryKind kind, const std::string& name) const;

  // Removes the regions that List would give. A name that does not exist is not an error. InvalidArgument when the
  // region is of the other kind.
  absl::Status Remove(const std::string& owner, MemoryKind kind, const std::string& name);

 private:
  using Regions = std::map<std::string, RegionPtr>;

  absl::Status CheckIsNew(const std::string& owner, const std::string& name) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckRoom(const std::string& owner) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const RegionLimits limits_;
  mutable Mutex mu_;
  std::map<std::string, Regions> by_owner_ ABSL_GUARDED_BY(mu_);  // only callers that have regions
  size_t num_regions_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace switchyard
