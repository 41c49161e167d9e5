#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/unique_fd.h"
#include "moe/weights/checkpoint/quoted.h"
#include "moe/weights/checkpoint/safetensors.h"
#include "moe/weights/checkpoint/strict_json.h"

namespace switchyard {
namespace {

using nlohmann::json;

absl::Status WriteAll(int fd, const void* bytes, size_t num_bytes) {
  const auto* next = static_cast<const char*>(bytes);
  while (num_bytes > 0) {
    const ssize_t written = write(fd, next, num_bytes);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoStatus(errno, "write");
    next += written;
    num_bytes -= written;
  }
  return absl::OkStatus();
}

absl::Status WriteTensor(int fd, const StreamedTensor& tensor, std::span<std::byte> buffer) {
  for (uint64_t begin = 0; begin < tensor.num_bytes; begin += buffer.size()) {
    const std::span<std::byte> piece = buffer.first(std::min<uint64_t>(buffer.size(), tensor.num_bytes - begin));
    tensor.fill(begin, piece);
    SY_RETURN_IF_ERROR(WriteAll(fd, piece.data(), piece.size()));
  }
  return absl::OkStatus();
}

StreamedTensor Streamed(const TensorToWrite& tensor) {
  const std::span<const std::byte> bytes = tensor.bytes;
  return {tensor.name, tensor.type, tensor.shape, bytes.size(), [bytes](uint64_t begin, std::span<std::byte> out) {
            std::memcpy(out.data(), bytes.data() + begin, out.size());
          }};
}

absl::StatusOr<std::vector<const StreamedTensor*>> InFileOrder(std::span<const StreamedTensor> tensors) {
  std::vector<const StreamedTensor*> order;
  for (const StreamedTensor& tensor : tensors) {
    if (FindStoredType(tensor.type) == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(tensor.name), ": unknown dtype ", tensor.type));
    }
    order.push_back(&tensor);
  }
  std::stable_sort(order.begin(), order.end(), [](const StreamedTensor* a, const StreamedTensor* b) {
    return FindStoredType(a->type)->num_bytes > FindStoredType(b->type)->num_bytes;
  });
  return order;
}

absl::StatusOr<std::string> MakeHeader(const std::vector<const StreamedTensor*>& order,
                                       const std::map<std::string, std::string>& metadata) {
  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t begin = 0;
  for (const StreamedTensor* tensor : order) {
    if (header.contains(tensor->name)) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(tensor->name), ": this name is given twice"));
    }
    const uint64_t end = begin + tensor->num_bytes;
    header[tensor->name] = {{"dtype", tensor->type}, {"shape", tensor->shape}, {"data_offsets", {begin, end}}};
    begin = end;
  }
  SY_ASSIGN_OR_RETURN(std::string text, DumpJson(header));
  text.resize((text.size() + 7) / 8 * 8, ' ');
  // The reader's own rules decide what may be written.
  SY_RETURN_IF_ERROR(ParseSafetensorsHeader(text, begin).status());
  if (text.size() > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the header would have ", text.size(), " bytes, expected at most ", kMaxSafetensorsHeaderBytes));
  }
  return text;
}

absl::Status WriteFile(const std::string& path, const std::string& header,
                       const std::vector<const StreamedTensor*>& order) {
  const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!fd.valid()) return ErrnoStatus(errno, "open");
  const uint64_t length = header.size();
  SY_RETURN_IF_ERROR(WriteAll(fd.get(), &length, sizeof(length)));
  SY_RETURN_IF_ERROR(WriteAll(fd.get(), header.data(), header.size()));
  std::vector<std::byte> buffer(kStreamBytes);
  for (const StreamedTensor* tensor : order) {
    SY_RETURN_IF_ERROR(WriteTensor(fd.get(), *tensor, buffer));
  }
  return absl::OkStatus();
}

}  // namespace

TensorToWrite MatrixToWrite(std::string name, ConstMatrixView matrix) {
  return {std::move(name),
          std::string(StoredTypeOf(matrix.dtype).name),
          {matrix.num_rows, matrix.num_cols},
          std::span(matrix.data, matrix.size_bytes())};
}

absl::Status WriteStreamedSafetensors(const std::string& path, std::span<const StreamedTensor> tensors,
                                      const std::map<std::string, std::string>& metadata) {
  auto order = InFileOrder(tensors);
  if (!order.ok()) return Annotate(order.status(), path);
  const auto header = MakeHeader(*order, metadata);
  if (!header.ok()) return Annotate(header.status(), path);
  const std::string beside = absl::StrCat(path, ".", getpid(), ".tmp");
  absl::Status status = WriteFile(beside, *header, *order);
  if (status.ok() && rename(beside.c_str(), path.c_str()) != 0) status = ErrnoStatus(errno, "rename");
  if (!status.ok()) unlink(beside.c_str());
  return Annotate(status, path);
}

absl::Status WriteSafetensors(const std::string& path, std::span<const TensorToWrite> tensors,
                              const std::map<std::string, std::string>& metadata) {
  std::vector<StreamedTensor> streamed;
  for (const TensorToWrite& tensor : tensors) streamed.push_back(Streamed(tensor));
  return WriteStreamedSafetensors(path, streamed, metadata);
}

}  // namespace switchyard
