// Checkpoint folders as weight sources, over the real (tiny) checkpoints of tests/testdata and damaged copies of them.
#include "moe/weights/weight_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/tensor/convert.h"
#include "moe/weights/test_checkpoint.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

std::unique_ptr<WeightSource> Open(const std::string& location) {
  auto source = OpenWeightSource(location);
  EXPECT_TRUE(source.ok()) << source.status();
  return *std::move(source);
}

float Element(ConstMatrixView matrix, int64_t row, int64_t col) {
  float value = 0;
  const std::byte* element = matrix.row(row) + col * SizeOf(matrix.dtype);
  ConvertElements(matrix.dtype, element, DType::kF32, reinterpret_cast<std::byte*>(&value), 1);
  return value;
}

void ExpectShape(ConstMatrixView matrix, int64_t num_rows, int64_t num_cols) {
  EXPECT_EQ(matrix.num_rows, num_rows);
  EXPECT_EQ(matrix.num_cols, num_cols);
}

TEST(Qwen3Moe, SpecIsTheConfigs) {
  const auto source = Open("tests/testdata/jargon-moe");
  const ModelSpec& spec = source->spec();
  EXPECT_EQ(spec.family, "qwen3_moe");
  EXPECT_EQ(spec.dtype, DType::kBF16);
  ASSERT_EQ(spec.layers.size(), 4u);
  const LayerSpec& layer = spec.layers[3];
  EXPECT_EQ(layer.name, "3");
  EXPECT_EQ(layer.hidden_dim, 128);
  EXPECT_EQ(layer.expert_dim, 128);
  EXPECT_EQ(layer.num_experts, 16);
  EXPECT_EQ(layer.gate.scoring, Scoring::kSoftmax);
  EXPECT_EQ(layer.gate.top_k, 4);
  EXPECT_EQ(layer.gate.normalization, Normalization::kSum);
  EXPECT_EQ(layer.expert.activation, Activation::kSilu);
  EXPECT_TRUE(layer.expert.gated);
  EXPECT_FALSE(layer.expert.biased);
  EXPECT_EQ(ExpertBytes(layer, spec.dtype), 3 * 128 * 128 * 2);
}

// Expected values were read from the file by an independent program.
TEST(Qwen3Moe, WeightsAreTheFiles) {
  const auto source = Open("tests/testdata/jargon-moe");
  const auto router = source->ReadRouter(3);
  ASSERT_TRUE(router.ok()) << router.status();
  ExpectShape(router->weight.view(), 16, 128);
  EXPECT_EQ(Element(router->weight.view(), 0, 1), -0.0035858154296875f);
  EXPECT_EQ(Element(router->weight.view(), 15, 127), 0.048583984375f);
  const auto expert = source->ReadExpert(3, 7);
  ASSERT_TRUE(expert.ok()) << expert.status();
  EXPECT_EQ(Element(expert->up.matrix, 0, 1), 0.05126953125f);
  EXPECT_EQ(Element(expert->up.matrix, 127, 127), -0.0859375f);
  EXPECT_EQ(Element(expert->gate.matrix, 1, 0), -0.01953125f);
  EXPECT_EQ(Element(expert->down.matrix, 0, 0), 0.00150299072265625f);
  EXPECT_FALSE(expert->up.transposed);
  EXPECT_EQ(expert->up_bias.data, nullptr);
  EXPECT_EQ(expert->down_bias.data, nullptr);
}

TEST(Mixtral, SpecAndWeightsAreTheFiles) {
  const auto source = Open("tests/testdata/golden_mixtral");
  const ModelSpec& spec = source->spec();
  EXPECT_EQ(spec.family, "mixtral");
  EXPECT_EQ(spec.dtype, DType::kF32);
  ASSERT_EQ(spec.layers.size(), 2u);
  EXPECT_EQ(spec.layers[1].name, "1");
  EXPECT_EQ(spec.layers[1].gate.top_k, 2);
  EXPECT_EQ(spec.layers[1].gate.normalization, Normalization::kSum);
  const auto expert = source->ReadExpert(1, 5);
  ASSERT_TRUE(expert.ok()) << expert.status();
  ExpectShape(expert->gate.matrix, 96, 64);
  ExpectShape(expert->up.matrix, 96, 64);
  ExpectShape(expert->down.matrix, 64, 96);
  EXPECT_EQ(Element(expert->gate.matrix, 1, 0), 0.12451171875f);
  EXPECT_EQ(Element(expert->up.matrix, 0, 1), 0.1259765625f);
  EXPECT_EQ(Element(expert->down.matrix, 63, 95), -0.08642578125f);
  EXPECT_EQ(Element(source->ReadRouter(1)->weight.view(), 7, 63), -0.1181640625f);
}

TEST(CheckpointSource, IndexesOutOfRangeAreRefused) {
  const auto source = Open("tests/testdata/golden_mixtral");
  EXPECT_TRUE(absl::IsInvalidArgument(source->ReadRouter(2).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(source->ReadRouter(-1).status()));
  const auto beyond = source->ReadExpert(1, 8);
  EXPECT_EQ(beyond.status().message(), "layer 1: expert index: found 8, expected 0 to 7");
}

class EachFamily : public testing::TestWithParam<const char*> {
 protected:
  TestCheckpoint Load() const { return TestCheckpoint::Load(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(All, EachFamily, testing::Values("golden_qwen3_moe", "golden_mixtral"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(EachFamily, ShardsHoldTheSameAsOneFile) {
  const TestCheckpoint checkpoint = Load();
  const std::vector<std::string> expected = AllWeights(*Open(checkpoint.Write()));
  EXPECT_EQ(AllWeights(*Open(checkpoint.Write(3))), expected);
}

// The checkpoint with all experts of a layer in two tensors: gate_up [E, 2H, D], the gate's rows first; down [E, D, H].
TestCheckpoint Fused(const TestCheckpoint& from, bool under_mlp) {
  TestCheckpoint fused;
  fused.config = from.config;
  const bool mixtral = from.config["model_type"] == "mixtral";
  const std::vector<std::string> parts = mixtral ? std::vector<std::string>{"w1", "w3", "w2"}
                                                 : std::vector<std::string>{"gate_proj", "up_proj", "down_proj"};
  for (int layer = 0; layer < 2; ++layer) {
    const std::string path = absl::StrCat("model.layers.", layer, mixtral ? ".block_sparse_moe" : ".mlp");
    const std::string to = under_mlp ? absl::StrCat("model.layers.", layer, ".mlp") : path;
    fused.tensors[to + ".gate.weight"] = from.tensors.at(path + ".gate.weight");
    TestTensor& gate_up = fused.tensors[to + ".experts.gate_up_proj"];
    TestTensor& down = fused.tensors[to + ".experts.down_proj"];
    for (int expert = 0; expert < 8; ++expert) {
      const auto tensor = [&](int part) {
        return from.tensors.at(absl::StrCat(path, ".experts.", expert, ".", parts[part], ".weight"));
      };
      gate_up = {tensor(0).type, {8, 2 * 96, 64}, gate_up.bytes + tensor(0).bytes + tensor(1).bytes};
      down = {tensor(2).type, {8, 64, 96}, down.bytes + tensor(2).bytes};
    }
  }
  return fused;
}

TEST_P(EachFamily, FusedExpertsEqualSeparateOnes) {
  const TestCheckpoint separate = Load();
  const std::vector<std::string> expected = AllWeights(*Open(separate.Write()));
  EXPECT_EQ(AllWeights(*Open(Fused(separate, false).Write())), expected);
  EXPECT_EQ(AllWeights(*Open(Fused(separate, true).Write())), expected);
}

TEST_P(EachFamily, EveryFusedTensorIsCheckedAtOpen) {
  const TestCheckpoint whole = Fused(Load(), true);
  for (const auto& [name, tensor] : whole.tensors) {
    TestCheckpoint missing = whole;
    missing.tensors.erase(name);
    EXPECT_THAT(std::string(missing.OpenError().message()), HasSubstr("': found none")) << name;

    TestCheckpoint misshapen = whole;
    std::swap(misshapen.tensors[name].shape[0], misshapen.tensors[name].shape[1]);
    EXPECT_THAT(std::string(misshapen.OpenError().message()),
                HasSubstr(absl::StrCat("tensor '", name, "': found shape")));
  }
}

TEST_P(EachFamily, ReadsWithoutAlignment) {
  TestCheckpoint checkpoint = Load();
  const std::vector<std::string> expected = AllWeights(*Open(checkpoint.Write()));
  // An odd number of bytes before every other tensor: the header, padded by hand.
  const std::string path = checkpoint.Write() + "/model.safetensors";
  const std::string whole = ReadFile(path);
  uint64_t length = 0;
  std::memcpy(&length, whole.data(), sizeof(length));
  WriteFile(path, FileBytes(whole.substr(8, length) + " ", whole.substr(8 + length)));
  const auto source = Open(TempPath("checkpoint"));
  EXPECT_EQ(AllWeights(*source), expected);
  const auto expert = source->ReadExpert(0, 0);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(expert->up.matrix.data) % SizeOf(expert->up.matrix.dtype), 0u);
}

TEST_P(EachFamily, EveryRequiredTensorIsCheckedAtOpen) {
  const TestCheckpoint whole = Load();
  ASSERT_EQ(whole.tensors.size(), 2u * (1 + 8 * 3));
  for (const auto& [name, tensor] : whole.tensors) {
    TestCheckpoint missing = whole;
    missing.tensors.erase(name);
    EXPECT_TRUE(absl::IsNotFound(missing.OpenError())) << name;
    EXPECT_THAT(std::string(missing.OpenError().message()), HasSubstr(absl::StrCat("tensor '", name, "': found none")));

    TestCheckpoint renamed = missing;
    renamed.tensors[name + "s"] = tensor;
    EXPECT_THAT(std::string(renamed.OpenError().message()), HasSubstr(absl::StrCat("tensor '", name, "'")));

    TestCheckpoint misshapen = whole;
    misshapen.tensors[name].shape = {tensor.shape[0] * 2, tensor.shape[1] / 2};
    EXPECT_THAT(
        std::string(misshapen.OpenError().message()),
        HasSubstr(absl::StrCat("tensor '", name, "': found shape [", tensor.shape[0] * 2, ", ", tensor.shape[1] / 2,
                               "], expected shape [", tensor.shape[0], ", ", tensor.shape[1], "]")));

    TestCheckpoint mistyped = whole;
    mistyped.tensors[name].type = tensor.type == "F32" ? "I32" : "I16";
    EXPECT_THAT(std::string(mistyped.OpenError().message()), HasSubstr(absl::StrCat("tensor '", name, "': found I")));
  }
}

TEST_P(EachFamily, ExpertsAgreeOnATypeAndTheRouterMayDiffer) {
  TestCheckpoint checkpoint = Load();
  for (auto& [name, tensor] : checkpoint.tensors) {
    if (!absl::StrContains(name, ".gate.")) continue;
    tensor.type = "F64";
    tensor.bytes = std::string(tensor.shape[0] * tensor.shape[1] * 8, '\0');
  }
  const auto source = Open(checkpoint.Write());
  EXPECT_EQ(source->ReadRouter(0)->weight.dtype, DType::kF64);
  EXPECT_NE(source->spec().dtype, DType::kF64);

  TestCheckpoint mixed = Load();
  for (auto& [name, tensor] : mixed.tensors) {
    if (!absl::StrContains(name, "layers.1.") || !absl::StrContains(name, "experts.7.")) continue;
    tensor.type = "F64";
    tensor.bytes = std::string(tensor.shape[0] * tensor.shape[1] * 8, '\0');
    break;
  }
  EXPECT_THAT(std::string(mixed.OpenError().message()),
              testing::AllOf(HasSubstr("found fp64, expected "), HasSubstr("as in 'model.layers.0.")));
}

TEST_P(EachFamily, ConfigKeysAreChecked) {
  const TestCheckpoint whole = Load();
  const bool mixtral = whole.config["model_type"] == "mixtral";
  const std::string width = mixtral ? "intermediate_size" : "moe_intermediate_size";
  for (const std::string& key :
       {std::string("model_type"), std::string("hidden_size"), width, std::string("num_hidden_layers"),
        std::string("num_experts_per_tok"), std::string("num_local_experts")}) {
    for (const nlohmann::json& bad :
         {nlohmann::json(nullptr), nlohmann::json(-1), nlohmann::json(2.5), nlohmann::json("x"),
          nlohmann::json::array(), nlohmann::json(uint64_t{1} << 63), nlohmann::json(1 << 21)}) {
      TestCheckpoint damaged = whole;
      damaged.config[key] = bad;
      const absl::Status error = damaged.OpenError();
      EXPECT_TRUE(absl::IsInvalidArgument(error)) << key << " " << bad << ": " << error;
      EXPECT_THAT(std::string(error.message()), HasSubstr(absl::StrCat("config.json: ", key, ": found "))) << bad;
      EXPECT_THAT(std::string(error.message()), HasSubstr(", expected ")) << bad;
    }
    TestCheckpoint without = whole;
    without.config.erase(key);
    EXPECT_THAT(std::string(without.OpenError().message()), HasSubstr(absl::StrCat(key, ": found no such key")));
  }
}

// A flip is refused with an error, or changes a key that serving does not read.
TEST_P(EachFamily, EveryFlippedConfigByteIsRefusedOrHarmless) {
  const std::string folder = Load().Write();
  const std::string config = ReadFile(folder + "/config.json");
  const std::vector<std::string> expected = AllWeights(*Open(folder));
  for (size_t pos = 0; pos < config.size(); ++pos) {
    for (int bit : {0, 2, 5}) {
      std::string damaged = config;
      damaged[pos] ^= static_cast<char>(1 << bit);
      WriteFile(folder + "/config.json", damaged);
      const auto source = OpenWeightSource(folder);
      if (!source.ok()) {
        EXPECT_THAT(std::string(source.status().message()), testing::StartsWith(folder));
      } else if ((*source)->spec().layers.size() == 2) {
        ASSERT_EQ(AllWeights(**source), expected) << damaged;
      }
    }
  }
}

// One setting of the config changed; part of the error that follows.
struct ConfigCase {
  const char* key;
  nlohmann::json value;
  const char* message;
};

TEST(Qwen3Moe, SettingsBeyondWhatIsKnownAreRefused) {
  const ConfigCase cases[] = {
      {"num_experts_per_tok", 9, "num_experts_per_tok: found the number 9, expected a whole number from 1 to 8"},
      {"num_experts_per_tok", 0, "num_experts_per_tok: found the number 0"},
      {"num_experts", 9, "num_experts: found 9, expected 8 as in num_local_experts"},
      {"num_local_experts", 0, "found a model without MoE layers"},
      {"num_hidden_layers", 0, "found a model without MoE layers"},
      {"num_hidden_layers", 3, "tensor 'model.layers.2.mlp.gate.weight': found none"},
      {"mlp_only_layers", {0, 1}, "found a model without MoE layers"},
      {"mlp_only_layers", {2}, "mlp_only_layers: found the number 2, expected whole numbers from 0 to 1"},
      {"mlp_only_layers", {"1"}, "mlp_only_layers: found the string '1'"},
      {"mlp_only_layers", 1, "mlp_only_layers: found the number 1, expected a list"},
      {"decoder_sparse_step", 0, "decoder_sparse_step: found the number 0, expected a whole number from 1"},
      {"norm_topk_prob", 1, "norm_topk_prob: found the number 1, expected true or false"},
      {"hidden_act", "mish", "hidden_act: found 'mish', expected one of silu, swish, gelu, gelu_new"},
      {"hidden_act", 3, "hidden_act: found the number 3, expected a string"},
      {"model_type", "llama",
       "model_type: found 'llama', expected one of dbrx, deepseek_v2, deepseek_v3, ernie4_5_moe, "},
  };
  const TestCheckpoint whole = TestCheckpoint::Load("golden_qwen3_moe");
  for (const ConfigCase& bad : cases) {
    TestCheckpoint damaged = whole;
    damaged.config[bad.key] = bad.value;
    EXPECT_THAT(std::string(damaged.OpenError().message()), HasSubstr(bad.message)) << bad.key << " " << bad.value;
  }
}

TEST(Qwen3Moe, OptionalSettingsAreFollowed) {
  TestCheckpoint checkpoint = TestCheckpoint::Load("golden_qwen3_moe");
  checkpoint.config["num_experts"] = 8;
  EXPECT_TRUE(checkpoint.OpenError().ok()) << "both keys, agreeing";
  checkpoint.config.erase("num_local_experts");
  checkpoint.config.erase("hidden_act");
  checkpoint.config["norm_topk_prob"] = false;
  checkpoint.config["decoder_sparse_step"] = 2;
  checkpoint.config["mlp_only_layers"] = nullptr;
  const auto source = Open(checkpoint.Write());
  ASSERT_EQ(source->spec().layers.size(), 1u);
  EXPECT_EQ(source->spec().layers[0].name, "1");
  EXPECT_EQ(source->spec().layers[0].gate.normalization, Normalization::kNone);
  checkpoint.config["decoder_sparse_step"] = 1;
  checkpoint.config["mlp_only_layers"] = {1};
  EXPECT_EQ(Open(checkpoint.Write())->spec().layers[0].name, "0");
}

TEST(Qwen3Moe, DenseLayersNeedNoExperts) {
  TestCheckpoint checkpoint = TestCheckpoint::Load("golden_qwen3_moe");
  std::erase_if(checkpoint.tensors, [](const auto& item) { return absl::StrContains(item.first, "layers.0."); });
  EXPECT_TRUE(absl::IsNotFound(checkpoint.OpenError()));
  checkpoint.config["mlp_only_layers"] = {0};
  EXPECT_TRUE(checkpoint.OpenError().ok()) << checkpoint.OpenError();
}

TEST(Checkpoint, MissingAndDamagedFilesAreNamed) {
  EXPECT_TRUE(absl::IsNotFound(OpenWeightSource("no/such/folder").status()));
  const std::string folder = TestCheckpoint::Load("golden_qwen3_moe").Write();
  const auto message = [&] { return std::string(OpenWeightSource(folder).status().message()); };
  const std::string config = ReadFile(folder + "/config.json");
  for (const char* damaged : {"", "[]", "{", "{\"a\":1,\"a\":2}", "nonsense"}) {
    WriteFile(folder + "/config.json", damaged);
    EXPECT_THAT(message(), HasSubstr("config.json: ")) << damaged;
  }
  WriteFile(folder + "/config.json", "{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}");
  EXPECT_THAT(message(), HasSubstr("nested deeper than 64"));
  WriteFile(folder + "/config.json", config);
  EXPECT_EQ(message(), "");
  std::filesystem::remove(folder + "/model.safetensors");
  EXPECT_THAT(message(), HasSubstr("found neither model.safetensors nor model.safetensors.index.json"));
}

TEST(Checkpoint, TheIndexMustTellTheTruthAndStayInItsFolder) {
  const TestCheckpoint checkpoint = TestCheckpoint::Load("golden_qwen3_moe");
  const std::string folder = checkpoint.Write(2);
  const std::string path = folder + "/model.safetensors.index.json";
  const nlohmann::json index = nlohmann::json::parse(ReadFile(path));
  const std::string tensor = checkpoint.tensors.begin()->first;
  const auto message_with = [&](const nlohmann::json& shard) {
    nlohmann::json damaged = index;
    damaged["weight_map"][tensor] = shard;
    WriteFile(path, damaged.dump());
    return std::string(OpenWeightSource(folder).status().message());
  };
  EXPECT_EQ(message_with("model-1.safetensors"), "");
  for (const nlohmann::json& shard :
       {nlohmann::json("../model-1.safetensors"), nlohmann::json("/model.safetensors"),
        nlohmann::json("a/b.safetensors"), nlohmann::json(""), nlohmann::json(".."), nlohmann::json("model-1.bin"),
        nlohmann::json(1), nlohmann::json(std::string("a\0.safetensors", 14)), nlohmann::json(".safetensors")}) {
    EXPECT_THAT(message_with(shard), HasSubstr("expected the name of a .safetensors file in this folder")) << shard;
  }
  EXPECT_THAT(message_with("model-9.safetensors"), HasSubstr("model-9.safetensors: open"));
  EXPECT_THAT(message_with("model-2.safetensors"),
              HasSubstr("is not in 'model-2.safetensors', the shard named for it"));
  for (const char* damaged : {"{}", "{\"weight_map\":[]}", "{\"weight_map\":{}}", "[]", "{"}) {
    WriteFile(path, damaged);
    EXPECT_THAT(std::string(OpenWeightSource(folder).status().message()), HasSubstr("index.json: ")) << damaged;
  }
}

// Everything about tensors that nobody reads is somebody else's business.
TEST(Checkpoint, TensorsThatAreNotNeededStopNothing) {
  TestCheckpoint checkpoint = TestCheckpoint::Load("golden_qwen3_moe");
  checkpoint.tensors["lm_head.weight"] = {"U8", {4}, "abcd"};
  const std::string folder = checkpoint.Write(2);
  const std::string path = folder + "/model.safetensors.index.json";
  nlohmann::json index = nlohmann::json::parse(ReadFile(path));
  index["weight_map"]["not.in.its.shard"] = "model-1.safetensors";
  index["weight_map"]["of.a.shard.that.is.missing"] = "model-7.safetensors";
  index["weight_map"]["of.a.shard.that.is.damaged"] = "model-8.safetensors";
  WriteFile(folder + "/model-8.safetensors", "nonsense");
  WriteFile(path, index.dump());
  const auto source = OpenWeightSource(folder);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_TRUE((*source)->ReadExpert(0, 0).ok());
  EXPECT_TRUE((*source)->FileIdentity().ok());
  // A needed tensor in the damaged shard is named, with what is wrong with the shard.
  const std::string needed = "model.layers.0.mlp.experts.1.up_proj.weight";
  ASSERT_TRUE(index["weight_map"].contains(needed));
  index["weight_map"][needed] = "model-8.safetensors";
  WriteFile(path, index.dump());
  EXPECT_THAT(std::string(OpenWeightSource(folder).status().message()),
              testing::AllOf(HasSubstr(needed), HasSubstr("model-8.safetensors: header length")));
}

TEST(Checkpoint, ANeededTensorOfATypeThatIsNotKnownIsNamed) {
  const std::string folder = TestCheckpoint::Load("golden_qwen3_moe").Write();
  const std::string path = folder + "/model.safetensors";
  std::string bytes = ReadFile(path);
  const std::string name = "model.layers.0.mlp.experts.1.up_proj.weight";
  const size_t tensor = bytes.find(name);
  ASSERT_NE(tensor, std::string::npos);
  const size_t type = bytes.rfind("BF16", bytes.find('}', tensor));
  ASSERT_NE(type, std::string::npos);
  bytes.replace(type, 4, "BF61");
  WriteFile(path, bytes);
  const std::string message(OpenWeightSource(folder).status().message());
  EXPECT_THAT(message, testing::AllOf(HasSubstr("BF61"), HasSubstr("expected F64"))) << message;
}

TEST(Checkpoint, FingerprintTellsCheckpointsApart) {
  TestCheckpoint checkpoint = TestCheckpoint::Load("golden_qwen3_moe");
  const uint64_t original = Open(checkpoint.Write())->spec().fingerprint;
  EXPECT_EQ(Open(checkpoint.Write())->spec().fingerprint, original);
  EXPECT_NE(Open(checkpoint.Write(2))->spec().fingerprint, original);
  checkpoint.config["norm_topk_prob"] = false;
  EXPECT_NE(Open(checkpoint.Write())->spec().fingerprint, original);
  checkpoint.config["norm_topk_prob"] = true;
  EXPECT_EQ(Open(checkpoint.Write())->spec().fingerprint, original);
  checkpoint.tensors["extra"] = {"U8", {1}, "x"};
  EXPECT_NE(Open(checkpoint.Write())->spec().fingerprint, original);
}

}  // namespace
}  // namespace switchyard
