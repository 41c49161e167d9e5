#include "moe/experts/custom_expert.h"

#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_join.h"
#include "base/mutex.h"

namespace switchyard {
namespace {

struct Registry {
  Mutex mu;
  std::map<std::string, HostExpertFactory> factories ABSL_GUARDED_BY(mu);
};

// Made at the first use, which may come before main, and never destroyed.
Registry& TheRegistry() {
  static Registry& registry = *new Registry;
  return registry;
}

}  // namespace

absl::Status RegisterCustomExpert(const std::string& name, const HostExpertFactory& factory) {
  if (name.empty() || factory == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("custom expert '", name, "': name and factory must not be empty"));
  }
  Registry& registry = TheRegistry();
  MutexLock lock(&registry.mu);
  if (registry.factories.try_emplace(name, factory).second) return absl::OkStatus();
  return absl::AlreadyExistsError(absl::StrCat("custom expert '", name, "' is registered already"));
}

absl::StatusOr<HostExpertFactory> FindCustomExpert(const std::string& name) {
  Registry& registry = TheRegistry();
  MutexLock lock(&registry.mu);
  const auto found = registry.factories.find(name);
  if (found != registry.factories.end()) return found->second;
  const std::string known =
      absl::StrJoin(registry.factories, ", ", [](std::string* out, const auto& entry) { out->append(entry.first); });
  return absl::NotFoundError(
      absl::StrCat("no custom expert '", name, "'; registered: ", known.empty() ? "none" : known));
}

}  // namespace switchyard
