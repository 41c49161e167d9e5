#include "moe/weights/checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "base/unique_fd.h"

namespace switchyard {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are read in place and the format is little-endian");

constexpr uint64_t kLengthBytes = 8;
// Touching one page maps its cached neighbours too, as far as the huge page they may share. Releasing whole windows
// leaves nothing behind; releasing bare pages would keep some 100 KB of every expert resident.
constexpr uintptr_t kFaultWindowBytes = 2 << 20;

absl::StatusOr<std::span<const std::byte>> MapFile(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat(path, ": open"));
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, absl::StrCat(path, ": stat"));
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  const auto num_bytes = static_cast<size_t>(info.st_size);
  if (num_bytes < kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": found ", num_bytes, " bytes, expected at least ", kLengthBytes, ", the header's length"));
  }
  void* mapping = mmap(nullptr, num_bytes, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (mapping == MAP_FAILED) return ErrnoStatus(errno, absl::StrCat(path, ": mmap of ", num_bytes, " bytes"));
  return std::span(static_cast<const std::byte*>(mapping), num_bytes);
}

uintptr_t AddressOf(std::span<const std::byte> bytes) { return reinterpret_cast<uintptr_t>(bytes.data()); }

// Windows that `bytes` lie in, in whole or in part, counted from address 0.
uintptr_t FirstWindow(std::span<const std::byte> bytes) { return AddressOf(bytes) / kFaultWindowBytes; }
uintptr_t EndWindow(std::span<const std::byte> bytes) {
  return (AddressOf(bytes) + bytes.size() + kFaultWindowBytes - 1) / kFaultWindowBytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  SY_ASSIGN_OR_RETURN(const std::span<const std::byte> mapping, MapFile(path));
  auto file = std::unique_ptr<SafetensorsFile>(new SafetensorsFile(path, mapping));
  SY_RETURN_IF_ERROR(Annotate(file->ReadHeader(), path));
  return file;
}

SafetensorsFile::SafetensorsFile(std::string path, std::span<const std::byte> mapping)
    : path_(std::move(path)),
      mapping_(mapping),
      guard_(mapping),
      window_uses_(std::make_unique<std::atomic<uint32_t>[]>(EndWindow(mapping) - FirstWindow(mapping))) {}

SafetensorsFile::~SafetensorsFile() {
  guard_.reset();
  munmap(const_cast<std::byte*>(mapping_.data()), mapping_.size());
}

absl::Status SafetensorsFile::CheckIntact() const {
  if (guard_->intact()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(path_, ": the file became shorter than ", mapping_.size(),
                                          " bytes while it was read, or its disk fails"));
}

absl::Status SafetensorsFile::ReadHeader() {
  uint64_t length = 0;
  std::memcpy(&length, mapping_.data(), kLengthBytes);
  const uint64_t max_length = std::min(mapping_.size() - kLengthBytes, kMaxSafetensorsHeaderBytes);
  if (length > max_length) {
    return absl::InvalidArgumentError(absl::StrCat("header length: found ", length, ", expected at most ", max_length,
                                                   " (the file has ", mapping_.size(), " bytes)"));
  }
  header_bytes_ = {reinterpret_cast<const char*>(mapping_.data()), kLengthBytes + length};
  const std::span<const std::byte> data = mapping_.subspan(header_bytes_.size());
  SY_ASSIGN_OR_RETURN(SafetensorsHeader header,
                      ParseSafetensorsHeader(header_bytes_.substr(kLengthBytes), data.size()));
  SY_RETURN_IF_ERROR(CheckIntact());
  metadata_ = std::move(header.metadata);
  unknown_types_ = std::move(header.unknown_types);
  for (auto& [name, record] : header.tensors) {
    tensors_[name] = {record.type, std::move(record.shape), data.subspan(record.begin, record.end - record.begin)};
  }
  return absl::OkStatus();
}

const TensorEntry* SafetensorsFile::Find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

std::vector<std::string_view> SafetensorsFile::names() const {
  std::vector<std::string_view> names;
  for (const auto& [name, entry] : tensors_) names.push_back(name);
  return names;
}

SafetensorsFile::Windows SafetensorsFile::WindowsOf(std::span<const std::byte> bytes) const {
  const uintptr_t first = FirstWindow(mapping_);
  return {FirstWindow(bytes) - first, EndWindow(bytes) - first};
}

absl::Status SafetensorsFile::PopulatePages(std::span<const std::byte> bytes) const {
  if (bytes.empty()) return absl::OkStatus();
  const Windows windows = WindowsOf(bytes);
  for (size_t window = windows.begin; window < windows.end; ++window) window_uses_[window].fetch_add(1);
  static const uintptr_t page_bytes = sysconf(_SC_PAGESIZE);
  const uintptr_t begin = AddressOf(bytes) / page_bytes * page_bytes;
  const size_t num_bytes = AddressOf(bytes) + bytes.size() - begin;
  if (madvise(reinterpret_cast<void*>(begin), num_bytes, MADV_POPULATE_READ) == 0) return absl::OkStatus();
  // With these errors, an access would kill the process. After any other, such as from a kernel before 5.14, accesses
  // read the pages themselves.
  const int error = errno;
  if (error != EFAULT && error != EHWPOISON) return absl::OkStatus();
  ReleasePages(bytes);
  const size_t offset = bytes.data() - mapping_.data();
  return absl::DataLossError(absl::StrCat(path_, ": bytes ", offset, " to ", offset + bytes.size(), " of ",
                                          mapping_.size(), " cannot be read: the file became shorter or its disk ",
                                          "fails"));
}

// Ends one use of the window; returns whether none is left. A release without a populate before it ends no use.
bool SafetensorsFile::EndUse(size_t window) const {
  uint32_t uses = window_uses_[window].load();
  while (uses > 0 && !window_uses_[window].compare_exchange_weak(uses, uses - 1)) {
  }
  return uses <= 1;
}

void SafetensorsFile::DropWindows(Windows windows) const {
  if (windows.begin == windows.end) return;
  const uintptr_t first = FirstWindow(mapping_);
  const uintptr_t begin = std::max((first + windows.begin) * kFaultWindowBytes, AddressOf(mapping_));
  const uintptr_t end = std::min((first + windows.end) * kFaultWindowBytes, AddressOf(mapping_) + mapping_.size());
  // An error does not matter: nothing was ever written to this mapping, and pages that stay do no harm. If another
  // thread populates the pages at this moment, its first access reads them again.
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void SafetensorsFile::ReleasePages(std::span<const std::byte> bytes) const {
  if (bytes.empty()) return;
  const Windows windows = WindowsOf(bytes);
  Windows unused = {windows.begin, windows.begin};
  for (size_t window = windows.begin; window < windows.end; ++window) {
    if (EndUse(window)) {
      unused.end = window + 1;
    } else {
      DropWindows(unused);
      unused = {window + 1, window + 1};
    }
  }
  DropWindows(unused);
}

}  // namespace switchyard
