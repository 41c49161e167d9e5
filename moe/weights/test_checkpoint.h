// A checkpoint in memory that a test takes from tests/testdata, damages or rearranges, and writes to a folder of its
// own.
#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "moe/weights/checkpoint/testing.h"
#include "moe/weights/weight_source.h"

namespace switchyard {

struct TestTensor {
  std::string type;
  std::vector<int64_t> shape;
  std::string bytes;
};

struct TestCheckpoint {
  nlohmann::json config;
  std::map<std::string, TestTensor> tensors;

  // The MoE part of tests/testdata/`name`.
  static TestCheckpoint Load(const std::string& name) {
    const std::string folder = "tests/testdata/" + name;
    TestCheckpoint checkpoint;
    checkpoint.config = nlohmann::json::parse(ReadFile(folder + "/config.json"));
    const auto file = SafetensorsFile::Open(folder + "/model.safetensors");
    EXPECT_TRUE(file.ok()) << file.status();
    for (std::string_view tensor_name : (*file)->names()) {
      if (!IsOfMoeLayer(tensor_name)) continue;
      const TensorEntry& entry = *(*file)->Find(tensor_name);
      checkpoint.tensors[std::string(tensor_name)] = {std::string(entry.type->name), entry.shape, BytesOf(entry.bytes)};
    }
    return checkpoint;
  }

  // Whether a tensor of any family's checkpoint is of a MoE layer, and so must be there.
  static bool IsOfMoeLayer(std::string_view name) {
    for (const char* part : {"experts.", ".gate.", ".router.", ".shared_expert", "e_score_correction_bias",
                             "input_linear", "output_linear", "gates."}) {
      if (name.find(part) != name.npos) return true;
    }
    return false;
  }

  // Writes the folder anew, with the tensors spread over `num_shards` files (one: no index), and returns it.
  std::string Write(int num_shards = 1) const {
    const std::string folder = TempPath("checkpoint");
    std::filesystem::remove_all(folder);
    std::filesystem::create_directory(folder);
    WriteFile(folder + "/config.json", config.dump());
    std::vector<std::vector<TensorToWrite>> shards(num_shards);
    nlohmann::json weight_map;
    for (const auto& [name, tensor] : tensors) {
      const int shard = static_cast<int>(weight_map.size()) % num_shards;
      shards[shard].push_back({name, tensor.type, tensor.shape, std::as_bytes(std::span(tensor.bytes))});
      weight_map[name] = ShardName(shard, num_shards);
    }
    for (int shard = 0; shard < num_shards; ++shard) {
      const absl::Status written = WriteSafetensors(folder + "/" + ShardName(shard, num_shards), shards[shard]);
      EXPECT_TRUE(written.ok()) << written;
    }
    if (num_shards > 1) {
      WriteFile(folder + "/model.safetensors.index.json", nlohmann::json{{"weight_map", weight_map}}.dump());
    }
    return folder;
  }

  absl::Status OpenError() const { return OpenWeightSource(Write()).status(); }

  static std::string ShardName(int shard, int num_shards) {
    return num_shards == 1 ? "model.safetensors" : absl::StrCat("model-", shard + 1, ".safetensors");
  }
};

// The router weights and the routed experts' matrices of every layer, as bytes, in a fixed order.
inline std::vector<std::string> AllWeights(WeightSource& source) {
  std::vector<std::string> all;
  const auto add = [&all](ConstMatrixView matrix) { all.push_back(BytesOf({matrix.data, matrix.size_bytes()})); };
  for (int layer_idx = 0; layer_idx < source.spec().layers.size(); ++layer_idx) {
    const auto router = source.ReadRouter(layer_idx);
    EXPECT_TRUE(router.ok()) << router.status();
    add(router->weight.view());
    for (int expert_idx = 0; expert_idx < source.spec().layers[layer_idx].num_experts; ++expert_idx) {
      const auto expert = source.ReadExpert(layer_idx, expert_idx);
      EXPECT_TRUE(expert.ok()) << expert.status();
      for (const WeightView& view : {expert->gate, expert->up, expert->down}) add(view.matrix);
      source.ReleaseExpert(layer_idx, expert_idx);
    }
  }
  return all;
}

}  // namespace switchyard
