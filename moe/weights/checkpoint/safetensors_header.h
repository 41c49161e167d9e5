// The header of a .safetensors file, parsed and checked without touching the tensors' bytes.
//
// The file is: 8 bytes, the header's length N in little-endian order; N bytes of JSON,
//   {"NAME": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, …, "__metadata__": {"key": "text", …}}
// padded with spaces; then the tensors' bytes. data_offsets [begin, end) count from the end of the header.
//
// A header is accepted when every shape has at most kMaxSafetensorsRank whole numbers and needs exactly end − begin
// bytes of its dtype, the tensors cover the data from its first byte to its last without hole or overlap, no name
// occurs twice, and the JSON holds nothing else. A dtype that is not known here, because the format has grown, is no
// error: that tensor's shape is not compared with its bytes, and nobody can compute with it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/tensor/dtype.h"

namespace switchyard {

inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr size_t kMaxSafetensorsRank = 32;

// An element type that the format defines.
struct StoredType {
  std::string_view name;         // as files spell it: "BF16"
  size_t num_bytes = 0;          // of one element; 0 for a type that is not known here
  std::optional<DType> element;  // set when matrices of this type can be computed with
};

// nullptr when the format has no such type.
const StoredType* FindStoredType(std::string_view name);
const StoredType& StoredTypeOf(DType dtype);

// Where one tensor lies.
struct TensorRecord {
  const StoredType* type = nullptr;  // static, or one of SafetensorsHeader::unknown_types
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // in bytes from the first byte after the header
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::map<std::string, TensorRecord, std::less<>> tensors;
  std::map<std::string, std::string> metadata;
  // By name. Records, and the types' own names, point into this map, which stays valid while it is moved.
  std::map<std::string, StoredType, std::less<>> unknown_types;
};

// Parses `json`, the header without its length, of a file with `num_data_bytes` bytes after the header. Pure.
// InvalidArgument names the tensor and the rule, what was found and what was expected; the caller adds the file.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json, uint64_t num_data_bytes);

}  // namespace switchyard
