// Files that flags name and that may be replaced while the program runs: certificates, keys, tokens.
//
// Replace such a file in one step (write another, then rename it over the old one, as Kubernetes does with a symlink),
// so that no reader sees half of it.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"

namespace switchyard {

// A file and the flag that named it, for errors. The path is empty when the flag was not given.
struct FlagFile {
  std::string flag;  // "--tls_cert"
  std::string path;

  bool given() const { return !path.empty(); }
};

// The whole text. NotFound names flag and path when it cannot be read; InvalidArgument when it is over 1 MiB.
absl::StatusOr<std::string> ReadFlagFile(const FlagFile& file);

// Identifies a state of a file: equal stamps mean that it has not been written or replaced in between. Symlinks are
// followed; all fields are zero when there is no file.
struct FileStamp {
  uint64_t device = 0;
  uint64_t inode = 0;
  int64_t size = 0;
  int64_t modified_ns = 0;
  int64_t changed_ns = 0;

  bool operator==(const FileStamp&) const = default;
};
FileStamp StampOf(const std::string& path);

}  // namespace switchyard
