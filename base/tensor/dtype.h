// Element types of rows and weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/status.h"

namespace switchyard {

enum class DType : uint8_t { kF64 = 1, kF32 = 2, kF16 = 3, kBF16 = 4 };

// Bytes of one element.
size_t SizeOf(DType dtype);

// "fp64", "fp32", "fp16", "bf16": the names that flags, logs and error messages use.
std::string_view DTypeName(DType dtype);

// The inverse of DTypeName; InvalidArgument lists the names there are.
absl::StatusOr<DType> ParseDType(std::string_view name);

}  // namespace switchyard
