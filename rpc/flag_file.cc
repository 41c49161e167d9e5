#include "rpc/flag_file.h"

#include <sys/stat.h>

#include <fstream>

namespace switchyard {
namespace {

constexpr size_t kMaxBytes = 1 << 20;

int64_t Nanoseconds(const timespec& time) { return int64_t{1'000'000'000} * time.tv_sec + time.tv_nsec; }

}  // namespace

absl::StatusOr<std::string> ReadFlagFile(const FlagFile& file) {
  std::ifstream stream(file.path, std::ios::binary);
  std::string text(kMaxBytes + 1, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  // A folder can be opened, but not read.
  if (!stream.is_open() || stream.bad()) {
    return absl::NotFoundError(absl::StrCat(file.flag, "=", file.path, ": cannot be read"));
  }
  text.resize(static_cast<size_t>(stream.gcount()));
  if (text.size() <= kMaxBytes) return text;
  return absl::InvalidArgumentError(absl::StrCat(file.flag, "=", file.path, ": expected at most 1 MiB"));
}

FileStamp StampOf(const std::string& path) {
  struct stat found = {};
  if (stat(path.c_str(), &found) != 0) return {};
  return {found.st_dev, found.st_ino, found.st_size, Nanoseconds(found.st_mtim), Nanoseconds(found.st_ctim)};
}

}  // namespace switchyard
