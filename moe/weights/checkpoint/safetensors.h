// One .safetensors file, memory-mapped read-only, and a writer of such files.
//
//   SY_ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open("model.safetensors"));
//   if (const TensorEntry* entry = file->Find("model.layers.0.mlp.gate.weight")) Use(entry->shape, entry->bytes);
//
// Opening checks the whole header against the file's size (safetensors_header.h lists the rules) and reads no tensor,
// so it costs the same for any size of weights. Tensors' bytes may lie at any address: the format does not align them.
//
// The size is read once, at open. If another process truncates the file afterwards, PopulatePages returns an error. An
// access without PopulatePages before it, or after a later truncation, gets zeros (fault_guard.h), so ask CheckIntact
// after the last access and before using what was read. Replace checkpoints by renaming, as WriteSafetensors does.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/tensor/tensor.h"
#include "moe/weights/checkpoint/fault_guard.h"
#include "moe/weights/checkpoint/safetensors_header.h"

namespace switchyard {

struct TensorEntry {
  const StoredType* type = nullptr;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // in the mapping: valid as long as the file is open
};

// Immutable once open; every const function may be called from several threads.
class SafetensorsFile {
 public:
  // NotFound and the like for system errors, InvalidArgument for a damaged file; errors begin with `path`.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  // nullptr when there is no such tensor. The entry lives as long as the file.
  const TensorEntry* Find(std::string_view name) const;
  // Every name, sorted.
  std::vector<std::string_view> names() const;
  // The texts under "__metadata__".
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  const std::string& path() const { return path_; }
  size_t size_bytes() const { return mapping_.size(); }
  // The length field and the JSON, as stored.
  std::string_view header_bytes() const { return header_bytes_; }

  // Reads these bytes into memory, so that using them waits for nothing, and keeps them there until ReleasePages has
  // been called as often. DATA_LOSS names the bytes when the file no longer has them or its disk fails.
  absl::Status PopulatePages(std::span<const std::byte> bytes) const;

  // DATA_LOSS when bytes that were read since the file was opened may not have been the file's.
  absl::Status CheckIntact() const;

  // Gives the memory of these bytes back to the system; a later access reads them from the file again. Up to 2 MiB
  // around them go too, except what PopulatePages still keeps, so that nothing stays resident after the last tensor.
  void ReleasePages(std::span<const std::byte> bytes) const;

 private:
  // A range of windows, which are parts of one size that the mapping is divided into by address.
  struct Windows {
    size_t begin = 0;
    size_t end = 0;
  };

  SafetensorsFile(std::string path, std::span<const std::byte> mapping);
  absl::Status ReadHeader();
  Windows WindowsOf(std::span<const std::byte> bytes) const;
  bool EndUse(size_t window) const;
  void DropWindows(Windows windows) const;

  const std::string path_;
  const std::span<const std::byte> mapping_;
  std::optional<FaultGuard> guard_;  // always set, until the end
  std::string_view header_bytes_;
  std::map<std::string, TensorEntry, std::less<>> tensors_;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, StoredType, std::less<>> unknown_types_;  // entries point into it
  // By window: how often it was populated and not yet released.
  const std::unique_ptr<std::atomic<uint32_t>[]> window_uses_;
};

struct TensorToWrite {
  std::string name;
  std::string type;  // as the format spells it: "BF16"
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // little-endian, row-major
};

// A tensor whose bytes are made while the file is written, so that it may be larger than memory.
struct StreamedTensor {
  std::string name;
  std::string type;
  std::vector<int64_t> shape;
  uint64_t num_bytes = 0;
  // Fills `out` with the bytes from `begin` on. Called in order, with pieces of kStreamBytes and a shorter last one.
  std::function<void(uint64_t begin, std::span<std::byte> out)> fill;
};
inline constexpr size_t kStreamBytes = 4 << 20;

// A matrix as a tensor of rank 2 over the same bytes.
TensorToWrite MatrixToWrite(std::string name, ConstMatrixView matrix);

// Writes `path` anew: a file beside it first, which is then renamed over it, so that a reader sees the old file or the
// whole new one. Data begins on a multiple of 8 bytes and wider types come first, so that every tensor is aligned to
// its element. InvalidArgument when a shape does not fit its bytes, a type is unknown or a name is given twice.
absl::Status WriteSafetensors(const std::string& path, std::span<const TensorToWrite> tensors,
                              const std::map<std::string, std::string>& metadata = {});
absl::Status WriteStreamedSafetensors(const std::string& path, std::span<const StreamedTensor> tensors,
                                      const std::map<std::string, std::string>& metadata = {});

}  // namespace switchyard
