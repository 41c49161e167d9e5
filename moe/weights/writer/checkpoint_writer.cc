#include "moe/weights/writer/checkpoint_writer.h"

#include <cmath>
#include <fstream>

#include "base/ceil_div.h"
#include "moe/weights/checkpoint/fingerprint.h"
#include "moe/weights/checkpoint/safetensors.h"
#include "moe/weights/families/family.h"
#include "moe/weights/storage/quantized.h"
#include "moe/weights/synthetic_values.h"

namespace switchyard {
namespace {

constexpr int64_t kFp8Block = 128;
constexpr uint8_t kFp8Nan = 0x7f;
constexpr float kFp8Largest = 448;
constexpr float kMxfp4Largest = 6;
uint64_t KeyOf(uint64_t seed, const std::string& name, uint64_t begin) {
  Fingerprint fingerprint;
  fingerprint.AddNumber(seed);
  fingerprint.Add(name);
  fingerprint.AddNumber(begin);
  return MixBits(fingerprint.value());
}

// Every piece of a tensor has a stream of its own.
void FillBytes(uint64_t key, std::span<std::byte> out) {
  for (size_t i = 0; i < out.size(); i += sizeof(uint64_t)) {
    const uint64_t bits = MixBits(key + i);
    std::copy_n(reinterpret_cast<const std::byte*>(&bits), std::min(sizeof(bits), out.size() - i), &out[i]);
  }
}

void FillFp8(uint64_t key, std::span<std::byte> out) {
  FillBytes(key, out);
  for (std::byte& code : out) {
    if ((code & std::byte{kFp8Nan}) == std::byte{kFp8Nan}) code ^= std::byte{1};
  }
}

// Exponents of scales up to bound / 6, over four powers of two.
void FillExponents(uint64_t key, float bound, std::span<std::byte> out) {
  const int largest = 127 + static_cast<int>(std::floor(std::log2(bound / kMxfp4Largest)));
  FillBytes(key, out);
  for (std::byte& exponent : out) exponent = std::byte(largest - (std::to_integer<int>(exponent) & 3));
}

void FillFloats(uint64_t key, DType dtype, float bound, std::span<std::byte> out) {
  FillUniform(key, bound, {out.data(), dtype, 1, static_cast<int64_t>(out.size() / SizeOf(dtype))});
}

// Positive, in (bound / 2, bound).
void FillScales(uint64_t key, float bound, std::span<std::byte> out) {
  FillFloats(key, DType::kF32, bound / 4, out);
  auto* scales = reinterpret_cast<float*>(out.data());
  for (size_t i = 0; i < out.size() / sizeof(float); ++i) scales[i] += 0.75f * bound;
}

// The tensors of a checkpoint, planned from the names that its family gives.
class Plan {
 public:
  explicit Plan(const CheckpointOptions& options) : options_(options) {}

  absl::Status Begin() {
    is_fp8_ = options_.dtype == "fp8";
    is_mxfp4_ = options_.dtype == "mxfp4";
    if (is_fp8_ || is_mxfp4_) return absl::OkStatus();
    SY_ASSIGN_OR_RETURN(dtype_, ParseDType(options_.dtype));
    return absl::OkStatus();
  }

  absl::Status AddBlock(const MoeBlock& block) {
    path_ = block.paths.front().empty() ? "" : block.paths.front() + ".";
    for (const GateNames& gate : block.names.gates) AddGate(gate, block.spec);
    if (block.spec.shared_gated) AddPlain(block.names.shared_gate, {1, block.spec.hidden_dim});
    SY_RETURN_IF_ERROR(AddExperts(block));
    if (block.spec.num_shared > 0) {
      SY_RETURN_IF_ERROR(
          AddProjections(block.names.shared->path, block.names.shared->projections, block.spec, block.spec.shared_dim));
    }
    return absl::OkStatus();
  }

  const std::vector<StreamedTensor>& tensors() const { return tensors_; }

 private:
  using Shape = StackedNames::Shape;
  using Fill = std::function<void(uint64_t key, std::span<std::byte> out)>;

  void Add(const std::string& name, std::string_view type, const std::vector<int64_t>& shape, Fill fill) {
    uint64_t num_bytes = FindStoredType(type)->num_bytes;
    for (int64_t dim : shape) num_bytes *= dim;
    const std::string full = path_ + name;
    tensors_.push_back({full, std::string(type), shape, num_bytes,
                        [fill = std::move(fill), full, seed = options_.seed](uint64_t begin, std::span<std::byte> out) {
                          fill(KeyOf(seed, full, begin), out);
                        }});
  }

  // Uniform within 1 / sqrt(last dimension), so that outputs are of the order of inputs.
  void AddPlain(const std::string& name, const std::vector<int64_t>& shape) { AddPlain(name, shape, shape.back()); }
  void AddPlain(const std::string& name, const std::vector<int64_t>& shape, int64_t num_in) {
    const float bound = 1 / std::sqrt(static_cast<float>(num_in));
    Add(name, StoredTypeOf(dtype_).name, shape,
        [dtype = dtype_, bound](uint64_t key, std::span<std::byte> out) { FillFloats(key, dtype, bound, out); });
  }

  void AddGate(const GateNames& names, const LayerSpec& spec) {
    AddPlain(names.weight.front(), {spec.num_experts, spec.hidden_dim});
    if (!names.bias.empty()) AddPlain(names.bias.front(), {spec.num_experts});
    if (names.score_correction.empty()) return;
    std::vector<int64_t> shape = {spec.num_experts};
    if (names.correction_is_row) shape.insert(shape.begin(), 1);
    Add(names.score_correction.front(), "F32", shape,
        [](uint64_t key, std::span<std::byte> out) { FillFloats(key, DType::kF32, 0.05f, out); });
  }

  absl::Status AddExperts(const MoeBlock& block) {
    // A standard stack is another form of experts that are published one by one; any other stack is the published form.
    const bool is_published_stacked = !block.names.stacked.empty() && block.names.stacked.front().inner_in_major;
    if (!block.names.each || is_published_stacked) return AddStacked(block.names.stacked.front(), block.spec);
    for (int idx = 0; idx < block.spec.num_experts; ++idx) {
      SY_RETURN_IF_ERROR(AddProjections(absl::StrCat(block.names.each->prefix, idx), block.names.each->projections,
                                        block.spec, block.spec.expert_dim));
    }
    return absl::OkStatus();
  }

  absl::Status AddProjections(const std::string& path, const ProjectionNames& names, const LayerSpec& spec,
                              int64_t width) {
    if (is_mxfp4_) return Unfit();
    const auto add = [&](const std::string& part, int64_t num_out, int64_t num_in) {
      AddWeight(absl::StrCat(path, ".", part, ".weight"), num_out, num_in);
      if (spec.expert.biased) AddPlain(absl::StrCat(path, ".", part, ".bias"), {num_out});
    };
    if (spec.expert.gated) add(names.gate, width, spec.hidden_dim);
    add(names.up, width, spec.hidden_dim);
    add(names.down, spec.hidden_dim, width);
    return absl::OkStatus();
  }

  void AddWeight(const std::string& name, int64_t num_out, int64_t num_in) {
    if (!is_fp8_) return AddPlain(name, {num_out, num_in});
    AddFp8(name, {num_out, num_in}, {CeilDiv(num_out, kFp8Block), CeilDiv(num_in, kFp8Block)});
  }

  void AddFp8(const std::string& name, const std::vector<int64_t>& shape, const std::vector<int64_t>& scales_shape) {
    const float bound = 1 / std::sqrt(static_cast<float>(shape.back()));
    Add(name, "F8_E4M3", shape, &FillFp8);
    Add(name + "_scale_inv", "F32", scales_shape,
        [bound](uint64_t key, std::span<std::byte> out) { FillScales(key, bound / kFp8Largest, out); });
  }

  absl::Status AddStacked(const StackedNames& names, const LayerSpec& spec) {
    const int64_t count = spec.num_experts, inner = spec.expert_dim, hidden = spec.hidden_dim;
    if (!names.gate_up.empty()) {
      SY_RETURN_IF_ERROR(AddStack(names.gate_up, names, names.inner_in_major, count, 2 * inner, hidden));
    } else {
      if (spec.expert.gated) {
        SY_RETURN_IF_ERROR(AddStack(names.gate, names, names.inner_in_major, count, inner, hidden));
      }
      SY_RETURN_IF_ERROR(AddStack(names.up, names, names.inner_in_major, count, inner, hidden));
    }
    SY_RETURN_IF_ERROR(AddStack(names.down, names, names.down_in_major, count, hidden, inner));
    if (!spec.expert.biased) return absl::OkStatus();
    const bool both = !names.gate_up.empty();
    AddPlain(both ? names.gate_up_bias : names.up_bias, {count, both ? 2 * inner : inner});
    AddPlain(names.down_bias, {count, hidden});
    return absl::OkStatus();
  }

  absl::Status AddStack(const std::string& name, const StackedNames& names, bool in_major, int64_t count,
                        int64_t num_out, int64_t num_in) {
    if (is_mxfp4_) return AddMxfp4(name, names, count, num_out, num_in);
    if (is_fp8_) {
      if (in_major || names.shape != Shape::kPerExpert) return Unfit();
      AddFp8(name, {count, num_out, num_in}, {count, CeilDiv(num_out, kFp8Block), CeilDiv(num_in, kFp8Block)});
      return absl::OkStatus();
    }
    const int64_t rows = in_major ? num_in : num_out, cols = in_major ? num_out : num_in;
    if (names.shape == Shape::kPerExpert) AddPlain(name, {count, rows, cols}, num_in);
    if (names.shape == Shape::kTall) AddPlain(name, {count * rows, cols}, num_in);
    if (names.shape == Shape::kFlat) AddPlain(name, {count * rows * cols}, num_in);
    return absl::OkStatus();
  }

  absl::Status AddMxfp4(const std::string& name, const StackedNames& names, int64_t count, int64_t num_out,
                        int64_t num_in) {
    if (!names.may_be_mxfp4) return Unfit();
    if (num_in % kMxfp4Group != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("dtype: found mxfp4 with rows of ", num_in, ", expected a multiple of ", kMxfp4Group));
    }
    const float bound = 1 / std::sqrt(static_cast<float>(num_in));
    Add(name + "_blocks", "U8", {count, num_out, num_in / kMxfp4Group, kMxfp4GroupBytes}, &FillBytes);
    Add(name + "_scales", "U8", {count, num_out, num_in / kMxfp4Group},
        [bound](uint64_t key, std::span<std::byte> out) { FillExponents(key, bound, out); });
    return absl::OkStatus();
  }

  absl::Status Unfit() const {
    return absl::InvalidArgumentError(
        absl::StrCat("dtype: found ", options_.dtype, ", which no checkpoint of ", options_.family, " is stored as"));
  }

  const CheckpointOptions& options_;
  bool is_fp8_ = false, is_mxfp4_ = false;
  DType dtype_ = DType::kBF16;  // of tensors that are not quantised
  std::string path_;
  std::vector<StreamedTensor> tensors_;
};

absl::Status WriteText(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  return file.good() ? absl::OkStatus() : absl::UnavailableError(absl::StrCat(path, ": cannot be written"));
}

// Consecutive tensors, as many as fit a shard; at least one.
std::vector<std::vector<StreamedTensor>> Shards(const std::vector<StreamedTensor>& tensors, int64_t max_bytes) {
  std::vector<std::vector<StreamedTensor>> shards(1);
  uint64_t num_bytes = 0;
  for (const StreamedTensor& tensor : tensors) {
    if (!shards.back().empty() && num_bytes + tensor.num_bytes > max_bytes) {
      shards.emplace_back();
      num_bytes = 0;
    }
    shards.back().push_back(tensor);
    num_bytes += tensor.num_bytes;
  }
  return shards;
}

std::string Padded(size_t number) {
  const std::string digits = std::to_string(number);
  return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
}

}  // namespace

absl::Status WriteCheckpoint(const std::string& folder, const CheckpointOptions& options) {
  SY_ASSIGN_OR_RETURN(const nlohmann::json config, MakeConfig(options));
  SY_ASSIGN_OR_RETURN(const ConfigReader reader, ConfigReader::Parse("config.json", config.dump()));
  SY_ASSIGN_OR_RETURN(const std::vector<MoeBlock> blocks, ReadMoeBlocks(reader));
  Plan plan(options);
  SY_RETURN_IF_ERROR(plan.Begin());
  for (const MoeBlock& block : blocks) SY_RETURN_IF_ERROR(plan.AddBlock(block));
  SY_RETURN_IF_ERROR(WriteText(folder + "/config.json", config.dump(2)));
  const auto shards = Shards(plan.tensors(), options.max_shard_bytes);
  if (shards.size() == 1) return WriteStreamedSafetensors(folder + "/model.safetensors", shards[0]);
  nlohmann::json weight_map;
  for (size_t idx = 0; idx < shards.size(); ++idx) {
    const std::string name = absl::StrCat("model-", Padded(idx + 1), "-of-", Padded(shards.size()), ".safetensors");
    for (const StreamedTensor& tensor : shards[idx]) weight_map[tensor.name] = name;
    SY_RETURN_IF_ERROR(WriteStreamedSafetensors(absl::StrCat(folder, "/", name), shards[idx]));
  }
  return WriteText(folder + "/model.safetensors.index.json", nlohmann::json{{"weight_map", weight_map}}.dump());
}

}  // namespace switchyard
