// A checkpoint folder as published: config.json, and either model.safetensors or model.safetensors.index.json with the
// shards it names. Finds a tensor wherever it lies; knows nothing of what tensors mean.
//
// Opening maps every shard and checks its header, and checks the index against the shards. It reads no tensor data but
// the fingerprint's samples.
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
  // NotFound when `folder` or one of its files is missing, InvalidArgument when one is damaged; errors name the file.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& folder);

  const std::string& folder() const { return folder_; }
  const ConfigReader& config() const { return config_; }

  // entry == nullptr when no shard has it.
  StoredTensor Find(std::string_view name) const;

  // A fingerprint of config.json's bytes, every shard's name, size and header, and samples of its tensors: equal for
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
  uint64_t fingerprint_ = 0;
};

}  // namespace switchyard
