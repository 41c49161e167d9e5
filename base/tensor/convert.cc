#include "base/tensor/convert.h"

#include <cstring>

#include "base/tensor/float16.h"

namespace switchyard {
namespace {

struct F64 {
  using Storage = double;
  static double Load(double value) { return value; }
  static double Store(double value) { return value; }
};
struct F32 {
  using Storage = float;
  static float Load(float value) { return value; }
  static float Store(double value) { return static_cast<float>(value); }
};
struct F16 {
  using Storage = uint16_t;
  static float Load(uint16_t value) { return F16ToF32(value); }
  static uint16_t Store(float value) { return F32ToF16(value); }
};
struct BF16 {
  using Storage = uint16_t;
  static float Load(uint16_t value) { return BF16ToF32(value); }
  static uint16_t Store(float value) { return F32ToBF16(value); }
};

template <typename From, typename To>
void ConvertLoop(const std::byte* src, std::byte* dst, size_t num_elements) {
  auto* out = reinterpret_cast<typename To::Storage*>(dst);
  for (size_t i = 0; i < num_elements; ++i) {
    typename From::Storage value;
    std::memcpy(&value, src + i * sizeof(value), sizeof(value));
    out[i] = To::Store(From::Load(value));
  }
}

template <typename From>
void ConvertFrom(const std::byte* src, DType to, std::byte* dst, size_t num_elements) {
  switch (to) {
    case DType::kF64:
      return ConvertLoop<From, F64>(src, dst, num_elements);
    case DType::kF32:
      return ConvertLoop<From, F32>(src, dst, num_elements);
    case DType::kF16:
      return ConvertLoop<From, F16>(src, dst, num_elements);
    case DType::kBF16:
      return ConvertLoop<From, BF16>(src, dst, num_elements);
  }
}

}  // namespace

void ConvertElements(DType from, const std::byte* src, DType to, std::byte* dst, size_t num_elements) {
  if (num_elements == 0) return;
  if (from == to) {
    std::memcpy(dst, src, num_elements * SizeOf(from));
    return;
  }
  switch (from) {
    case DType::kF64:
      return ConvertFrom<F64>(src, to, dst, num_elements);
    case DType::kF32:
      return ConvertFrom<F32>(src, to, dst, num_elements);
    case DType::kF16:
      return ConvertFrom<F16>(src, to, dst, num_elements);
    case DType::kBF16:
      return ConvertFrom<BF16>(src, to, dst, num_elements);
  }
}

}  // namespace switchyard
