// A checkpoint folder as published: config.json, and either model.safetensors or model.safetensors.index.json with the
// shards it names. Finds a tensor wherever it lies; knows nothing of what tensors mean.
//
// Opening maps every shard and checks its header. It reads no tensor data but the fingerprint's samples. A shard that
// is missing or damaged, and a tensor that is not in the shard that the index names for it, stop nothing as long as
// nobody asks for such a tensor: Find says then what is wrong.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "moe/weights/checkpoint/config_reader.h"
#include "moe/weights/checkpoint/safetensors.h"

namespace switchyard {

// A tensor and the file that maps it; both live as long as the checkpoint.
struct StoredTensor {
  const TensorEntry* entry = nullptr;
  const SafetensorsFile* file = nullptr;
};

// Immutable once open; thread-safe.
class Checkpoint {
 public:
  // NotFound when `folder`, its config.json or all of its weights are missing, InvalidArgument when one of these is
  // damaged; errors name the file.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& folder);

  const std::string& folder() const { return folder_; }
  const ConfigReader& config() const { return config_; }

  // entry == nullptr when no shard has it.
  StoredTensor Find(std::string_view name) const;
  // Whether the index names the tensor although Find does not find it.
  bool IsAbsent(std::string_view name) const { return absent_.contains(name); }
  // Why Find does not find a tensor that the index names: its shard's error, or InvalidArgument when the shard does not
  // have it. NotFound when the index, or the only file, does not name it at all.
  absl::Status WhyAbsent(std::string_view name) const;

  // A fingerprint of config.json's bytes, every shard's name, size and header (of one that does not open its name
  // alone), and samples of its tensors: equal for
  // equal checkpoints on any host, different when any setting, name, type, shape or offset differs. The samples tell
  // apart other weights of the same shapes, but not a change of single elements.
  uint64_t fingerprint() const { return fingerprint_; }

  // Identifies the shards as files of this host (inode, size and time of the last change) at the time of the call. A
  // value other than before means that a file was replaced or written to since. An error when a file is gone.
  absl::StatusOr<uint64_t> FileIdentity() const;

  // As SafetensorsFile::CheckIntact, of all shards.
  absl::Status CheckIntact() const;

 private:
  Checkpoint(std::string folder, ConfigReader config) : folder_(std::move(folder)), config_(std::move(config)) {}
  absl::Status OpenShards();
  absl::Status OpenSingleFile();
  absl::Status OpenIndexedShards();
  void AddIndexed(const std::string& tensor, const std::string& shard, const SafetensorsFile* file);
  absl::StatusOr<const SafetensorsFile*> OpenShard(const std::string& name);
  void FingerprintAll(std::string_view config_text);

  const std::string folder_;
  const ConfigReader config_;
  struct Shard {
    std::string name;
    std::unique_ptr<SafetensorsFile> file;
  };
  std::vector<Shard> shards_;  // by name
  std::map<std::string, StoredTensor, std::less<>> tensors_;
  std::map<std::string, std::string, std::less<>> absent_;  // tensors of the index that have none, and their shards
  std::map<std::string, absl::Status, std::less<>> broken_shards_;  // those that do not open, and why
  uint64_t fingerprint_ = 0;
};

}  // namespace switchyard
