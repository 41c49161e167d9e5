// Settings of single families beyond what their recorded checkpoints use, and other forms in which files come.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "moe/weights/families/family.h"
#include "moe/weights/golden_folders.h"
#include "moe/weights/plain_layer.h"
#include "moe/weights/test_checkpoint.h"

namespace switchyard {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::unique_ptr<WeightSource> Open(const TestCheckpoint& checkpoint) {
  auto source = OpenWeightSource(checkpoint.Write());
  EXPECT_TRUE(source.ok()) << source.status();
  return source.ok() ? *std::move(source) : nullptr;
}

TestCheckpoint Load(const std::string& name) { return TestCheckpoint::Load("golden_" + name); }

std::string ErrorOf(const TestCheckpoint& checkpoint) { return std::string(checkpoint.OpenError().message()); }

// Every tensor's name with `from` replaced.
TestCheckpoint Renamed(const TestCheckpoint& checkpoint, const std::string& from, const std::string& to) {
  TestCheckpoint renamed = {checkpoint.config, {}};
  for (const auto& [name, tensor] : checkpoint.tensors) {
    std::string new_name = name;
    if (const size_t pos = name.find(from); pos != name.npos) new_name.replace(pos, from.size(), to);
    renamed.tensors[new_name] = tensor;
  }
  return renamed;
}

std::vector<std::string> LayerNames(const TestCheckpoint& checkpoint) {
  std::vector<std::string> names;
  const auto source = Open(checkpoint);
  if (source == nullptr) return names;
  for (const LayerSpec& layer : source->spec().layers) names.push_back(layer.name);
  return names;
}

TEST(Families, LayersAreNamedByTheTransformersIndex) {
  EXPECT_THAT(LayerNames(Load("mixtral")), ElementsAre("0", "1"));
  EXPECT_THAT(LayerNames(Load("deepseek_v3")), ElementsAre("1"));
  EXPECT_THAT(LayerNames(Load("qwen3_moe_nonorm")), ElementsAre("1"));
  EXPECT_THAT(LayerNames(Load("switch_transformers")), ElementsAre("encoder.1", "decoder.1"));
  EXPECT_THAT(LayerNames(Load("nllb_moe")), ElementsAre("encoder.1", "decoder.1"));
  EXPECT_THAT(LayerNames(Load("tutel_top2_ffn")), ElementsAre("0"));
}

// Tensors of a layer behind the last one, where DeepSeek and GLM store the layers that predict further tokens.
TEST(Families, LayersBehindTheLastAreSkipped) {
  for (const char* name : {"deepseek_v3", "glm4_moe"}) {
    TestCheckpoint checkpoint = Load(name);
    const TestCheckpoint extra = Renamed(checkpoint, "layers.1.", "layers.2.");
    checkpoint.tensors.insert(extra.tensors.begin(), extra.tensors.end());
    EXPECT_THAT(LayerNames(checkpoint), ElementsAre("1")) << name;
  }
}

TEST(Families, SparseLayersFollowTheConfig) {
  TestCheckpoint jamba = Load("jamba");
  jamba.config["expert_layer_offset"] = 2;
  EXPECT_THAT(ErrorOf(jamba),
              HasSubstr("expert_layer_offset: found the number 2, expected a whole number from 0 to 1"));
  TestCheckpoint llama = Load("llama4");
  llama.config["moe_layers"] = {1};
  EXPECT_THAT(LayerNames(llama), ElementsAre("1"));
  llama.config.erase("moe_layers");
  EXPECT_THAT(LayerNames(llama), ElementsAre("0", "1"));
  llama.config["interleave_moe_layer_step"] = 2;
  EXPECT_THAT(LayerNames(llama), ElementsAre("1"));
  TestCheckpoint ernie = Load("ernie4_5_moe");
  ernie.config["moe_layer_end_index"] = -1;
  EXPECT_THAT(LayerNames(ernie), ElementsAre("1"));
  ernie.config["moe_layer_interval"] = 3;
  EXPECT_THAT(ErrorOf(ernie), HasSubstr("found a model without MoE layers"));
  TestCheckpoint switched = Load("switch_transformers");
  switched.config.erase("encoder_sparse_step");
  switched.config.erase("decoder_sparse_step");
  EXPECT_THAT(LayerNames(switched), ElementsAre("encoder.1", "decoder.1")) << "derived from the numbers of layers";
  switched.config["num_sparse_encoder_layers"] = 0;
  EXPECT_THAT(LayerNames(switched), ElementsAre("decoder.1"));
  TestCheckpoint deepseek = Load("deepseek_v3");
  deepseek.config["moe_layer_freq"] = 2;
  EXPECT_THAT(ErrorOf(deepseek), HasSubstr("found a model without MoE layers"));
}

// All experts of a layer in two tensors, as newer writers store what was published per expert.
TestCheckpoint Fused(const TestCheckpoint& from, const std::string& path, const ProjectionNames& names) {
  TestCheckpoint fused = from;
  TestTensor gate_up, down;
  for (int expert = 0; expert < 8; ++expert) {
    const auto take = [&](const std::string& part) {
      const auto node = fused.tensors.extract(absl::StrCat(path, ".experts.", expert, ".", part, ".weight"));
      EXPECT_FALSE(node.empty()) << path << " " << part;
      return node.mapped();
    };
    const TestTensor gate = take(names.gate), up = take(names.up), part = take(names.down);
    gate_up = {gate.type, {8, 2 * gate.shape[0], gate.shape[1]}, gate_up.bytes + gate.bytes + up.bytes};
    down = {part.type, {8, part.shape[0], part.shape[1]}, down.bytes + part.bytes};
  }
  fused.tensors[path + ".experts.gate_up_proj"] = gate_up;
  fused.tensors[path + ".experts.down_proj"] = down;
  return fused;
}

TEST(Families, ExpertsMayBeFusedWhereverTheyMayBeApart) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"deepseek_v2", "mlp"}, {"deepseek_v3", "mlp"},         {"ernie4_5_moe", "mlp"},
      {"glm4_moe", "mlp"},    {"jamba", "feed_forward"},      {"minimax_m2", "block_sparse_moe"},
      {"olmoe", "mlp"},       {"phimoe", "block_sparse_moe"}, {"qwen2_moe", "mlp"},
      {"qwen3_next", "mlp"}};
  for (const auto& [name, module] : cases) {
    SCOPED_TRACE(name);
    const TestCheckpoint apart = Load(name);
    const bool short_names = module == "block_sparse_moe";
    const ProjectionNames names = short_names ? ProjectionNames{"w1", "w3", "w2"} : ProjectionNames{};
    const TestCheckpoint fused = Fused(apart, "model.layers.1." + module, names);
    EXPECT_EQ(AllWeights(*Open(fused)), AllWeights(*Open(apart)));
  }
}

TEST(Families, KimiK2IsDeepseekV3) {
  TestCheckpoint checkpoint = Load("deepseek_v3");
  const std::vector<std::string> expected = AllWeights(*Open(checkpoint));
  checkpoint.config["model_type"] = "kimi_k2";
  const auto source = Open(checkpoint);
  EXPECT_EQ(source->spec().family, "kimi_k2");
  EXPECT_EQ(AllWeights(*source), expected);
}

TEST(Deepseek, GroupsMustFit) {
  const auto error = [](const char* family, const char* key, int value) {
    TestCheckpoint checkpoint = Load(family);
    checkpoint.config[key] = value;
    return ErrorOf(checkpoint);
  };
  EXPECT_THAT(error("deepseek_v3", "n_group", 3), HasSubstr("n_group: found 3, expected a divisor of the 8 experts"));
  EXPECT_THAT(error("deepseek_v3", "n_group", 8), HasSubstr("n_group: found 8, expected groups of at least 2 experts"));
  EXPECT_THAT(error("deepseek_v3", "topk_group", 5), HasSubstr("topk_group: found the number 5"));
  EXPECT_THAT(error("deepseek_v2", "num_experts_per_tok", 5),
              HasSubstr("topk_group: found 2 groups of 2 experts, expected at least the 5 chosen ones"));
  TestCheckpoint checkpoint = Load("deepseek_v2");
  checkpoint.config["topk_method"] = "greedy";
  checkpoint.config["n_group"] = nullptr;
  checkpoint.config["topk_group"] = nullptr;
  EXPECT_EQ(Open(checkpoint)->spec().layers[0].gate.num_groups, 1);
  checkpoint.config["topk_method"] = "noaux_tc";
  EXPECT_THAT(ErrorOf(checkpoint), HasSubstr("topk_method: found 'noaux_tc', expected greedy or group_limited_greedy"));
}

TEST(Deepseek, ExpertsOfOtherGroupsNeverWinInV3) {
  EXPECT_EQ(Open(Load("deepseek_v3"))->spec().layers[0].gate.excluded_score, -INFINITY);
  EXPECT_EQ(Open(Load("deepseek_v2"))->spec().layers[0].gate.excluded_score, 0);
}

TEST(Llama4, TheTextPartMayBeNested) {
  const TestCheckpoint bare = Load("llama4");
  const std::vector<std::string> expected = AllWeights(*Open(bare));
  TestCheckpoint nested = Renamed(bare, "model.layers.", "language_model.model.layers.");
  nested.config = {{"model_type", "llama4"}, {"text_config", bare.config}};
  EXPECT_EQ(AllWeights(*Open(nested)), expected);
  nested.config["text_config"].erase("hidden_size");
  EXPECT_THAT(ErrorOf(nested), HasSubstr("config.json: text_config.hidden_size: found no such key"));
}

TEST(Phimoe, SparsemixerDrawsTwo) {
  TestCheckpoint checkpoint = Load("phimoe");
  checkpoint.config["num_experts_per_tok"] = 3;
  EXPECT_THAT(ErrorOf(checkpoint), HasSubstr("num_experts_per_tok: found 3, expected 2"));
}

TEST(GptOss, TheFormulaIsFixed) {
  TestCheckpoint checkpoint = Load("gpt_oss");
  checkpoint.config["swiglu_limit"] = 5.5;
  EXPECT_EQ(Open(checkpoint)->spec().layers[0].expert.limit, 5.5);
  checkpoint.config["swiglu_alpha"] = 1.5;
  EXPECT_THAT(ErrorOf(checkpoint), HasSubstr("swiglu_alpha: found 1.5, expected 1.702"));
}

TEST(Nllb, CapacityFollowsTheConfig) {
  TestCheckpoint checkpoint = Load("nllb_moe");
  const auto capacity = [&] { return Open(checkpoint)->spec().layers[0].gate.capacity; };
  checkpoint.config["moe_eval_capacity_token_fraction"] = 0.25;
  checkpoint.config["batch_prioritized_routing"] = true;
  EXPECT_EQ(capacity().rule, CapacityRule::kFraction);
  EXPECT_EQ(capacity().factor, 0.25);
  EXPECT_TRUE(capacity().by_priority);
  EXPECT_TRUE(capacity().renormalize);
  checkpoint.config["moe_eval_capacity_token_fraction"] = -1.0;
  checkpoint.config["normalize_router_prob_before_dropping"] = true;
  EXPECT_EQ(capacity().rule, CapacityRule::kFixed);
  EXPECT_EQ(capacity().rows, 64);
  EXPECT_FALSE(capacity().renormalize);
  checkpoint.config["expert_capacity"] = nullptr;
  EXPECT_EQ(capacity().rule, CapacityRule::kTutel);
  checkpoint.config["second_expert_policy"] = "sampling";
  EXPECT_THAT(ErrorOf(checkpoint), HasSubstr("second_expert_policy: found 'sampling', expected all"));
}

TEST(Nllb, TheProgramThatWroteItDecidesWhereChoicesGo) {
  TestCheckpoint checkpoint = Load("nllb_moe");
  const auto experts = [&] { return Open(checkpoint)->spec().layers[0].gate.experts_of_choices; };
  checkpoint.config["transformers_version"] = "5.17.0";
  EXPECT_THAT(experts(), ElementsAre(1, 0));
  checkpoint.config["transformers_version"] = "4.57.1";
  EXPECT_THAT(experts(), IsEmpty());
  checkpoint.config["transformers_version"] = nullptr;
  EXPECT_THAT(experts(), IsEmpty());
}

TEST(EncoderDecoder, RoutersMayHaveABias) {
  for (const char* name : {"nllb_moe", "switch_transformers"}) {
    TestCheckpoint checkpoint = Load(name);
    checkpoint.config["router_bias"] = true;
    EXPECT_THAT(ErrorOf(checkpoint), HasSubstr("router.classifier.bias': found none, expected shape [8]"));
    std::vector<std::string> routers;
    for (const auto& [tensor, value] : checkpoint.tensors) {
      if (tensor.ends_with("classifier.weight")) routers.push_back(tensor);
    }
    const std::vector<float> bias = {1, 2, 3, 4, 5, 6, 7, 8};
    for (const std::string& router : routers) {
      const std::string bias_name = router.substr(0, router.size() - 6) + "bias";
      checkpoint.tensors[bias_name] = {"F32", {8}, BytesOf(std::as_bytes(std::span(bias)))};
    }
    EXPECT_EQ(Open(checkpoint)->ReadRouter(0)->bias, bias) << name;
  }
}

TEST(Ernie, BiasesOfSharedExpertsAreAddedOnce) {
  TestCheckpoint checkpoint = Load("ernie4_5_moe");
  checkpoint.config["use_bias"] = true;
  EXPECT_THAT(ErrorOf(checkpoint), HasSubstr("gate_proj.bias': found none, expected shape [96]"));
  // Two shared experts of width 96 as one of 192, all its elements bf16 1.0.
  checkpoint.config["moe_num_shared_experts"] = 2;
  const auto ones = [](std::vector<int64_t> shape) {
    int64_t count = 1;
    for (int64_t dim : shape) count *= dim;
    std::string bytes;
    for (int64_t i = 0; i < count; ++i) bytes += std::string("\x80\x3f", 2);
    return TestTensor{"BF16", std::move(shape), std::move(bytes)};
  };
  const auto add_expert = [&](const std::string& path, int64_t width) {
    for (const char* part : {"gate_proj", "up_proj"}) {
      checkpoint.tensors[absl::StrCat(path, part, ".weight")] = ones({width, 64});
      checkpoint.tensors[absl::StrCat(path, part, ".bias")] = ones({width});
    }
    checkpoint.tensors[path + "down_proj.weight"] = ones({64, width});
    checkpoint.tensors[path + "down_proj.bias"] = ones({64});
  };
  for (int e = 0; e < 8; ++e) add_expert(absl::StrCat("model.layers.1.mlp.experts.", e, "."), 96);
  add_expert("model.layers.1.mlp.shared_experts.", 192);
  const auto source = Open(checkpoint);
  const LayerSpec& layer = source->spec().layers[0];
  EXPECT_EQ(layer.num_shared, 2);
  EXPECT_EQ(layer.shared_dim, 192);
  EXPECT_EQ(ToDoubles(source->ReadExpert(0, 8)->down_bias), Doubles(64, 1.0));
  const auto second = source->ReadExpert(0, 9);
  EXPECT_EQ(ToDoubles(second->down_bias), Doubles(64, 0.0));
  EXPECT_EQ(ToDoubles(second->up_bias), Doubles(96, 1.0));
  EXPECT_EQ(ToDoubles(second->gate_bias), Doubles(96, 1.0));
}

// A shared expert of width 100 beside experts of width 96: the second has 4 features and 92 zeros.
TEST(Qwen2Moe, ASharedExpertsLastPartIsPadded) {
  TestCheckpoint checkpoint = Load("qwen2_moe");
  checkpoint.config["shared_expert_intermediate_size"] = 100;
  for (auto& [name, tensor] : checkpoint.tensors) {
    if (name.find("shared_expert.") == name.npos) continue;
    int64_t& width = tensor.shape[name.ends_with("down_proj.weight") ? 1 : 0];
    width = 100;
    tensor.bytes.resize(64 * 100 * 2);
  }
  const auto source = Open(checkpoint);
  ASSERT_EQ(source->spec().layers[0].num_shared, 2);
  const auto second = source->ReadExpert(0, 9);
  ASSERT_TRUE(second.ok()) << second.status();
  const Doubles up = ToDoubles(second->up), down = ToDoubles(second->down);
  ASSERT_EQ(up.size(), 96u * 64);
  ASSERT_EQ(down.size(), 64u * 96);
  EXPECT_TRUE(std::all_of(up.begin() + 4 * 64, up.end(), [](double value) { return value == 0; }));
  EXPECT_FALSE(std::all_of(up.begin(), up.begin() + 4 * 64, [](double value) { return value == 0; }));
  for (int row = 0; row < 64; ++row) {
    for (int col = 4; col < 96; ++col) ASSERT_EQ(down[row * 96 + col], 0) << row << " " << col;
  }
  const TestTensor& stored = checkpoint.tensors["model.layers.0.mlp.shared_expert.down_proj.weight"];
  const ConstMatrixView whole = {std::as_bytes(std::span(stored.bytes)).data(), DType::kBF16, 64, 100};
  EXPECT_EQ(down[63 * 96 + 3], ToDoubles(whole)[63 * 100 + 99]);
}

TEST(Tutel, OptionsAndSeveralGates) {
  TestCheckpoint checkpoint = Load("tutel_top2_ffn");
  const json gate = checkpoint.config["gate"];
  json second = gate, third = {{"type", "cosine_top"}, {"k", 20}, {"proj_dim", 2}, {"alignment", 4}};
  second["k"] = 1;
  second["capacity_factor"] = -0.5;
  second["normalize_gate"] = false;
  checkpoint.config["gate"] = {gate, second, third};
  checkpoint.config["is_postscore"] = false;
  checkpoint.config["alignment"] = 8;
  checkpoint.config["batch_prioritized_routing"] = true;
  EXPECT_THAT(ErrorOf(checkpoint), HasSubstr("tensor 'gates.1.wg.weight': found none"));
  checkpoint.tensors["gates.1.wg.weight"] = checkpoint.tensors["gates.0.wg.weight"];
  const auto floats = [](std::vector<int64_t> shape, const std::vector<float>& values) {
    return TestTensor{"F32", std::move(shape), BytesOf(std::as_bytes(std::span(values)))};
  };
  std::vector<float> directions(16);
  for (int i = 0; i < 16; ++i) directions[i] = i;
  checkpoint.tensors["gates.2.sim_matrix"] = floats({2, 8}, directions);
  checkpoint.tensors["gates.2.cosine_projector.weight"] = floats({2, 64}, std::vector<float>(128, 0.5f));
  checkpoint.tensors["gates.2.cosine_projector.bias"] = floats({2}, {3, 4});
  checkpoint.tensors["gates.2.temperature"] = floats({1}, {100});

  const auto source = Open(checkpoint);
  const LayerSpec& layer = source->spec().layers[0];
  EXPECT_TRUE(layer.expert.weighs_input);
  ASSERT_EQ(layer.num_gates(), 3);
  EXPECT_EQ(layer.gate_at(0).capacity.alignment, 8);
  EXPECT_TRUE(layer.gate_at(0).capacity.by_priority);
  EXPECT_EQ(layer.gate_at(1).top_k, 1);
  EXPECT_EQ(layer.gate_at(1).capacity.factor, -0.5);
  EXPECT_EQ(layer.gate_at(1).normalization, Normalization::kNone);
  EXPECT_EQ(layer.gate_at(2).top_k, 8) << "at most all experts";
  EXPECT_EQ(layer.gate_at(2).capacity.alignment, 4) << "the gate's own";
  EXPECT_EQ(layer.gate_at(2).capacity.factor, 1) << "Tutel's default";
  EXPECT_FALSE(source->ReadRouter(0, 1)->is_cosine());
  const auto cosine = source->ReadRouter(0, 2);
  ASSERT_TRUE(cosine.ok()) << cosine.status();
  EXPECT_TRUE(cosine->is_cosine());
  // Column e of the stored matrix is row e: [e, 8 + e].
  EXPECT_EQ(ToDoubles(cosine->weight.view())[2 * 5 + 1], 13);
  EXPECT_THAT(cosine->projector_bias, ElementsAre(3, 4));
  EXPECT_NEAR(cosine->logit_scale, 100, 1e-4) << "bounded";
}

TEST(Tutel, UnknownPartsAreNamed) {
  TestCheckpoint checkpoint = Load("tutel_top2_ffn");
  checkpoint.config["gate"] = {checkpoint.config["gate"], {{"type", "hash"}}};
  EXPECT_THAT(ErrorOf(checkpoint), HasSubstr("config.json: gate[1].type: found 'hash', expected top or cosine_top"));
  checkpoint.config["gate"] = json::array();
  EXPECT_THAT(ErrorOf(checkpoint), HasSubstr("gate: found an empty list, expected at least one gate"));
  checkpoint = Load("tutel_top2_ffn");
  checkpoint.config["experts"]["type"] = "attention";
  EXPECT_THAT(ErrorOf(checkpoint), HasSubstr("experts.type: found 'attention', expected ffn or llama_ffn"));
}

}  // namespace
}  // namespace switchyard
