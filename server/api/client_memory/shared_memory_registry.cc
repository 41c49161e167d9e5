#include "server/api/client_memory/shared_memory_registry.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"

namespace switchyard {
namespace {

constexpr size_t kMaxNameBytes = 255;

absl::Status CheckName(const std::string& name) {
  const auto is_control = [](char c) { return absl::ascii_iscntrl(static_cast<unsigned char>(c)); };
  if (!name.empty() && name.size() <= kMaxNameBytes && std::none_of(name.begin(), name.end(), is_control)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("name: expected 1 to ", kMaxNameBytes, " bytes without control characters"));
}

}  // namespace

absl::Status SharedMemoryRegistry::CheckNewName(const std::string& owner, const std::string& name) const {
  SY_RETURN_IF_ERROR(CheckName(name));
  MutexLock lock(&mu_);
  return CheckIsNew(owner, name);
}

absl::Status SharedMemoryRegistry::CheckIsNew(const std::string& owner, const std::string& name) const {
  const auto it = by_owner_.find(owner);
  if (it == by_owner_.end() || it->second.count(name) == 0) return absl::OkStatus();
  return absl::AlreadyExistsError(absl::StrCat("shared memory region '", name, "' already in manager"));
}

absl::Status SharedMemoryRegistry::CheckRoom(const std::string& owner) const {
  const auto it = by_owner_.find(owner);
  if (it != by_owner_.end() && it->second.size() >= limits_.max_of_owner) {
    return absl::ResourceExhaustedError(absl::StrCat("this caller has ", limits_.max_of_owner,
                                                     " shared memory regions registered, which is the limit"));
  }
  if (num_regions_ >= limits_.max_of_all) {
    return absl::ResourceExhaustedError(absl::StrCat("callers have ", limits_.max_of_all,
                                                     " shared memory regions registered in all, which is the limit"));
  }
  return absl::OkStatus();
}

absl::Status SharedMemoryRegistry::Add(const std::string& owner, const std::string& name, RegionPtr region) {
  SY_RETURN_IF_ERROR(CheckName(name));
  MutexLock lock(&mu_);
  SY_RETURN_IF_ERROR(CheckIsNew(owner, name));
  SY_RETURN_IF_ERROR(CheckRoom(owner));
  by_owner_[owner].emplace(name, std::move(region));
  ++num_regions_;
  return absl::OkStatus();
}

absl::StatusOr<RegionPtr> SharedMemoryRegistry::Find(const std::string& owner, const std::string& name) const {
  MutexLock lock(&mu_);
  const auto it = by_owner_.find(owner);
  if (it != by_owner_.end()) {
    const auto region = it->second.find(name);
    if (region != it->second.end()) return region->second;
  }
  return absl::NotFoundError("no such shared memory region is registered");
}

absl::StatusOr<std::vector<SharedMemoryRegistry::Entry>> SharedMemoryRegistry::List(const std::string& owner,
                                                                                    MemoryKind kind,
                                                                                    const std::string& name) const {
  std::vector<Entry> entries;
  MutexLock lock(&mu_);
  const auto it = by_owner_.find(owner);
  if (it != by_owner_.end()) {
    for (const auto& [region_name, region] : it->second) {
      const bool is_wanted = region->info().kind == kind && (name.empty() || region_name == name);
      if (is_wanted) entries.push_back({region_name, region});
    }
  }
  if (!name.empty() && entries.empty()) {
    return absl::NotFoundError(absl::StrCat("no such ", KindName(kind), " shared memory region is registered"));
  }
  return entries;
}

absl::Status SharedMemoryRegistry::Remove(const std::string& owner, MemoryKind kind, const std::string& name) {
  std::vector<RegionPtr> removed;  // closed after the lock is released
  MutexLock lock(&mu_);
  const auto it = by_owner_.find(owner);
  if (it == by_owner_.end()) return absl::OkStatus();
  Regions& regions = it->second;
  for (auto region = regions.begin(); region != regions.end();) {
    const auto current = region++;
    if (!name.empty() && current->first != name) continue;
    if (current->second->info().kind == kind) {
      removed.push_back(std::move(current->second));
      regions.erase(current);
    } else if (!name.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("shared memory region '", name, "' is one of ",
                                                     KindName(current->second->info().kind), " memory"));
    }
  }
  num_regions_ -= removed.size();
  if (regions.empty()) by_owner_.erase(it);
  return absl::OkStatus();
}

}  // namespace switchyard
