#include "moe/weights/checkpoint/checkpoint.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/match.h"
#include "base/unique_fd.h"
#include "moe/weights/checkpoint/fingerprint.h"
#include "moe/weights/checkpoint/quoted.h"
#include "moe/weights/checkpoint/strict_json.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr char kConfigName[] = "config.json";
constexpr char kSingleFileName[] = "model.safetensors";
constexpr char kIndexName[] = "model.safetensors.index.json";
// Published indexes of the largest models are below 20 MB.
constexpr size_t kMaxTextBytes = 100'000'000;

absl::StatusOr<size_t> RegularFileSize(int fd) {
  struct stat info;
  if (fstat(fd, &info) != 0) return ErrnoStatus(errno, "stat");
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError("not a regular file");
  const auto num_bytes = static_cast<size_t>(info.st_size);
  if (num_bytes <= kMaxTextBytes) return num_bytes;
  return absl::InvalidArgumentError(absl::StrCat("found ", num_bytes, " bytes, expected at most ", kMaxTextBytes));
}

absl::StatusOr<std::string> ReadWholeFile(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return ErrnoStatus(errno, "open");
  SY_ASSIGN_OR_RETURN(const size_t num_bytes, RegularFileSize(fd.get()));
  std::string text(num_bytes, '\0');
  size_t num_read = 0;
  while (num_read < num_bytes) {
    const ssize_t got = read(fd.get(), text.data() + num_read, num_bytes - num_read);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "read");
    if (got == 0) return absl::InvalidArgumentError("the file shrank while it was read");
    num_read += got;
  }
  return text;
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  auto text = ReadWholeFile(path);
  if (!text.ok()) return Annotate(text.status(), path);
  return text;
}

bool Exists(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0;
}

// A shard is a file of the folder itself: an index of unknown origin must not make this process open any other path.
bool IsPlainShardName(const std::string& name) {
  return absl::EndsWith(name, ".safetensors") && name.front() != '.' && !absl::StrContains(name, '/') &&
         !absl::StrContains(name, '\0');
}

using WeightMap = std::map<std::string, std::string>;  // tensor to shard

absl::StatusOr<WeightMap> ParseWeightMap(std::string_view text) {
  SY_ASSIGN_OR_RETURN(const json root, ParseStrictJson(text));
  const auto found = root.find("weight_map");
  if (found == root.end() || !found->is_object() || found->empty()) {
    return absl::InvalidArgumentError("weight_map: expected an object of tensor names and shard names");
  }
  WeightMap weight_map;
  for (const auto& [tensor, shard] : found->items()) {
    if (!shard.is_string() || !IsPlainShardName(shard.get_ref<const std::string&>())) {
      return absl::InvalidArgumentError(absl::StrCat("weight_map: ", Quoted(tensor), ": found ", Described(shard),
                                                     ", expected the name of a .safetensors file in this folder"));
    }
    weight_map[tensor] = shard.get<std::string>();
  }
  return weight_map;
}

// Adds a few bytes from the middle of some tensors: few enough to cost nothing on a cold disk.
void AddSamples(const SafetensorsFile& file, Fingerprint* fingerprint) {
  constexpr size_t kSamples = 64, kSampleBytes = 64;
  const std::vector<std::string_view> names = file.names();
  const size_t step = std::max<size_t>(names.size() / kSamples, 1);
  for (size_t i = 0; i < names.size(); i += step) {
    const std::span<const std::byte> bytes = file.Find(names[i])->bytes;
    const auto sample = bytes.subspan(bytes.size() / 2, std::min(kSampleBytes, bytes.size() - bytes.size() / 2));
    fingerprint->AddRaw({reinterpret_cast<const char*>(sample.data()), sample.size()});
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& folder) {
  SY_ASSIGN_OR_RETURN(const std::string config_text, ReadText(absl::StrCat(folder, "/", kConfigName)));
  SY_ASSIGN_OR_RETURN(ConfigReader config, ConfigReader::Parse(absl::StrCat(folder, "/", kConfigName), config_text));
  auto checkpoint = std::unique_ptr<Checkpoint>(new Checkpoint(folder, std::move(config)));
  SY_RETURN_IF_ERROR(checkpoint->OpenShards());
  checkpoint->FingerprintAll(config_text);
  return checkpoint;
}

// A folder with both is read as transformers reads it: the single file wins.
absl::Status Checkpoint::OpenShards() {
  if (Exists(absl::StrCat(folder_, "/", kSingleFileName))) return OpenSingleFile();
  if (Exists(absl::StrCat(folder_, "/", kIndexName))) return OpenIndexedShards();
  return absl::NotFoundError(
      absl::StrCat(folder_, ": found neither ", kSingleFileName, " nor ", kIndexName, ", expected one of them"));
}

absl::Status Checkpoint::OpenSingleFile() {
  SY_ASSIGN_OR_RETURN(const SafetensorsFile* file, OpenShard(kSingleFileName));
  for (std::string_view name : file->names()) tensors_[std::string(name)] = {file->Find(name), file};
  return absl::OkStatus();
}

absl::Status Checkpoint::OpenIndexedShards() {
  const std::string path = absl::StrCat(folder_, "/", kIndexName);
  SY_ASSIGN_OR_RETURN(const std::string text, ReadText(path));
  const absl::StatusOr<WeightMap> weight_map = ParseWeightMap(text);
  if (!weight_map.ok()) return Annotate(weight_map.status(), path);
  std::map<std::string, const SafetensorsFile*> files;
  for (const auto& [tensor, shard] : *weight_map) files[shard] = nullptr;
  for (auto& [shard, file] : files) {
    const absl::StatusOr<const SafetensorsFile*> opened = OpenShard(shard);
    if (opened.ok()) {
      file = *opened;
    } else {
      broken_shards_[shard] = opened.status();
    }
  }
  if (shards_.empty()) return broken_shards_.begin()->second;
  for (const auto& [tensor, shard] : *weight_map) AddIndexed(tensor, shard, files[shard]);
  return absl::OkStatus();
}

void Checkpoint::AddIndexed(const std::string& tensor, const std::string& shard, const SafetensorsFile* file) {
  const TensorEntry* const entry = file == nullptr ? nullptr : file->Find(tensor);
  if (entry == nullptr) {
    absent_[tensor] = shard;
  } else {
    tensors_[tensor] = {entry, file};
  }
}

absl::Status Checkpoint::WhyAbsent(std::string_view name) const {
  const auto absent = absent_.find(name);
  if (absent == absent_.end()) {
    return absl::NotFoundError(absl::StrCat(folder_, ": tensor ", Quoted(name), ": found none"));
  }
  const std::string& shard = absent->second;
  const auto broken = broken_shards_.find(shard);
  if (broken != broken_shards_.end()) return Annotate(broken->second, absl::StrCat("tensor ", Quoted(name)));
  return absl::InvalidArgumentError(absl::StrCat(folder_, "/", kIndexName, ": weight_map: tensor ", Quoted(name),
                                                 " is not in ", Quoted(shard), ", the shard named for it"));
}

absl::StatusOr<const SafetensorsFile*> Checkpoint::OpenShard(const std::string& name) {
  SY_ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(absl::StrCat(folder_, "/", name)));
  shards_.push_back({name, std::move(file)});
  return shards_.back().file.get();
}

StoredTensor Checkpoint::Find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? StoredTensor{} : found->second;
}

void Checkpoint::FingerprintAll(std::string_view config_text) {
  Fingerprint fingerprint;
  fingerprint.Add(config_text);
  for (const Shard& shard : shards_) {
    fingerprint.Add(shard.name);
    fingerprint.AddNumber(shard.file->size_bytes());
    fingerprint.Add(shard.file->header_bytes());
    AddSamples(*shard.file, &fingerprint);
  }
  for (const auto& [name, why] : broken_shards_) fingerprint.Add(name);
  fingerprint_ = fingerprint.value();
}

absl::Status Checkpoint::CheckIntact() const {
  for (const Shard& shard : shards_) SY_RETURN_IF_ERROR(shard.file->CheckIntact());
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> Checkpoint::FileIdentity() const {
  Fingerprint identity;
  for (const Shard& shard : shards_) {
    struct stat info;
    if (stat(shard.file->path().c_str(), &info) != 0) return ErrnoStatus(errno, shard.file->path());
    for (const auto number : {static_cast<int64_t>(info.st_ino), static_cast<int64_t>(info.st_size),
                              static_cast<int64_t>(info.st_mtim.tv_sec), static_cast<int64_t>(info.st_mtim.tv_nsec)}) {
      identity.AddNumber(static_cast<uint64_t>(number));
    }
  }
  return identity.value();
}

}  // namespace switchyard
