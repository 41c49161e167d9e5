#include "cli/tensor_io.h"

#include <algorithm>
#include <span>
#include <vector>

#include "absl/strings/str_join.h"
#include "base/tensor/convert.h"
#include "moe/weights/checkpoint/quoted.h"
#include "moe/weights/checkpoint/safetensors.h"

namespace switchyard {
namespace {

template <typename T>
TensorToWrite RoutingTensor(std::string name, std::string type, const Routing& routing, const std::vector<T>& values) {
  return {std::move(name), std::move(type), {routing.num_rows, routing.top_k}, std::as_bytes(std::span(values))};
}

absl::Status CheckIsMatrix(const TensorRef& ref, const TensorEntry& entry) {
  const std::string where = absl::StrCat(ref.path, ": tensor '", ref.key, "': ");
  if (!entry.type->element.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, "expected type F64, F32, F16 or BF16, found ", Quoted(entry.type->name)));
  }
  if (entry.shape.empty() || entry.bytes.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, "expected rows [T, D], found shape [", absl::StrJoin(entry.shape, ", "), "]"));
  }
  return absl::OkStatus();
}

absl::Status NoSuchTensor(const TensorRef& ref, const SafetensorsFile& file) {
  constexpr size_t kMaxShown = 20;
  const std::vector<std::string_view> names = file.names();
  std::string message = absl::StrCat(ref.path, ": no tensor '", ref.key, "'; there are:");
  for (size_t i = 0; i < std::min(names.size(), kMaxShown); ++i) absl::StrAppend(&message, " ", std::string(names[i]));
  if (names.size() > kMaxShown) absl::StrAppend(&message, " and ", names.size() - kMaxShown, " more");
  return absl::NotFoundError(message);
}

}  // namespace

absl::StatusOr<TensorRef> ParseTensorRef(std::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0 || colon + 1 == text.size()) {
    return absl::InvalidArgumentError(absl::StrCat("expected FILE.safetensors:KEY, found '", std::string(text), "'"));
  }
  return TensorRef{std::string(text.substr(0, colon)), std::string(text.substr(colon + 1))};
}

absl::StatusOr<HostMatrix> LoadMatrix(const TensorRef& ref) {
  SY_ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(ref.path));
  const TensorEntry* entry = file->Find(ref.key);
  if (entry == nullptr) return NoSuchTensor(ref, *file);
  SY_RETURN_IF_ERROR(CheckIsMatrix(ref, *entry));
  const DType dtype = *entry->type->element;
  const size_t num_elements = entry->bytes.size() / SizeOf(dtype);
  const int64_t num_cols = entry->shape.back();
  HostMatrix matrix = HostMatrix::Allocate(dtype, static_cast<int64_t>(num_elements) / num_cols, num_cols);
  ConvertElements(dtype, entry->bytes.data(), dtype, matrix.buffer.data(), num_elements);
  SY_RETURN_IF_ERROR(file->CheckIntact());
  return matrix;
}

absl::Status SaveResult(const TensorRef& ref, const ForwardResult& result) {
  std::vector<TensorToWrite> tensors = {MatrixToWrite(ref.key, result.rows.view())};
  const Routing& routing = result.routing;
  if (routing.top_k > 0) {
    tensors.push_back(RoutingTensor(ref.key + ".expert_ids", "I32", routing, routing.expert_idx));
    tensors.push_back(RoutingTensor(ref.key + ".expert_weights", "F32", routing, routing.weight));
  }
  return WriteSafetensors(ref.path, tensors);
}

HostMatrix ConvertTo(DType dtype, ConstMatrixView matrix) {
  HostMatrix converted = HostMatrix::Allocate(dtype, matrix.num_rows, matrix.num_cols);
  ConvertElements(matrix.dtype, matrix.data, dtype, converted.buffer.data(),
                  static_cast<size_t>(matrix.num_rows * matrix.num_cols));
  return converted;
}

}  // namespace switchyard
