// Where a source keeps its experts, for those who want to read its files from front to back.
#pragma once

#include <compare>
#include <cstddef>
#include <string_view>

namespace switchyard {

struct StoragePosition {
  std::string_view file;  // lives as long as the source
  size_t offset = 0;      // of the expert's first byte
  auto operator<=>(const StoragePosition&) const = default;
};

// What a WeightSource is too when its experts lie in files. Thread-safe.
class StoredInFiles {
 public:
  virtual ~StoredInFiles() = default;
  // Of an expert that the source has.
  virtual StoragePosition PositionOf(int layer_idx, int expert_idx) const = 0;
};

}  // namespace switchyard
