#include "worker/accelerators.h"

#include <algorithm>
#include <vector>

namespace switchyard {
namespace {

std::vector<AcceleratorKind>& Kinds() {
  static std::vector<AcceleratorKind> kinds;
  return kinds;
}

}  // namespace

AcceleratorRegistration::AcceleratorRegistration(const AcceleratorKind& kind) { Kinds().push_back(kind); }

const AcceleratorKind* FindAccelerator(std::string_view name) {
  const auto& kinds = Kinds();
  const auto found =
      std::find_if(kinds.begin(), kinds.end(), [&](const AcceleratorKind& kind) { return kind.name == name; });
  return found == kinds.end() ? nullptr : &*found;
}

}  // namespace switchyard
