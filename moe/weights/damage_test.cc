// Damaged checkpoints of every family are refused at open, naming what is wrong: each tensor of a MoE layer removed,
// renamed, misshapen and of another type; each key that a family needs removed, and each that it reads made absurd.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "moe/weights/golden_folders.h"
#include "moe/weights/test_checkpoint.h"

namespace switchyard {
namespace {

using nlohmann::json;
using testing::HasSubstr;

std::string ErrorOf(const TestCheckpoint& checkpoint) { return std::string(checkpoint.OpenError().message()); }

class Damage : public testing::TestWithParam<std::string> {
 protected:
  const TestCheckpoint whole_ = TestCheckpoint::Load("golden_" + GetParam());
};

TEST_P(Damage, TheWholeOneOpens) { EXPECT_EQ(ErrorOf(whole_), ""); }

TEST_P(Damage, ATensorThatIsMissingOrRenamed) {
  for (const auto& [name, tensor] : whole_.tensors) {
    TestCheckpoint missing = whole_;
    missing.tensors.erase(name);
    const absl::Status error = missing.OpenError();
    EXPECT_TRUE(absl::IsNotFound(error)) << name;
    EXPECT_THAT(std::string(error.message()),
                HasSubstr(absl::StrCat("tensor '", name, "': found none, expected shape [")));
    missing.tensors[name + "_"] = tensor;
    EXPECT_EQ(ErrorOf(missing), std::string(error.message())) << name;
  }
}

// One more dimension; then the first dimension doubled.
TEST_P(Damage, ATensorOfAnotherShape) {
  for (const auto& [name, tensor] : whole_.tensors) {
    TestCheckpoint misshapen = whole_;
    std::vector<int64_t>& shape = misshapen.tensors[name].shape;
    shape.push_back(1);
    EXPECT_THAT(ErrorOf(misshapen), HasSubstr(absl::StrCat("tensor '", name, "': found shape ["))) << name;
    shape = tensor.shape;
    shape.front() *= 2;
    misshapen.tensors[name].bytes += tensor.bytes;
    EXPECT_THAT(ErrorOf(misshapen), HasSubstr(absl::StrCat("tensor '", name, "': found shape ["))) << name;
    EXPECT_THAT(ErrorOf(misshapen), HasSubstr("], expected shape [")) << name;
  }
}

TEST_P(Damage, ATensorOfAnotherType) {
  for (const auto& [name, tensor] : whole_.tensors) {
    TestCheckpoint mistyped = whole_;
    mistyped.tensors[name].type = tensor.type == "F32" ? "I32" : "I16";
    EXPECT_THAT(ErrorOf(mistyped), HasSubstr(absl::StrCat("tensor '", name, "': found I"))) << name;
    EXPECT_THAT(ErrorOf(mistyped), HasSubstr(", expected F64, F32, F16")) << name;
  }
}

// Every key of the config, also in objects inside, as the path to it.
void AddKeys(const json& object, const json::json_pointer& path, std::vector<json::json_pointer>* keys) {
  for (const auto& [key, value] : object.items()) {
    if (value.is_object()) {
      AddKeys(value, path / key, keys);
    } else if (!value.is_null()) {
      keys->push_back(path / key);
    }
  }
}

std::vector<json::json_pointer> KeysOf(const json& config) {
  std::vector<json::json_pointer> keys;
  AddKeys(config, json::json_pointer(), &keys);
  return keys;
}

std::string LastOf(const json::json_pointer& key) { return key.back(); }

// A key is read when an object in its place is refused.
bool IsRead(const TestCheckpoint& whole, const json::json_pointer& key) {
  TestCheckpoint damaged = whole;
  damaged.config[key] = json::object();
  return !damaged.OpenError().ok();
}

// Keys without which no layer can be described, in any family that has them.
const std::set<std::string>& RequiredKeys() {
  static const auto* const keys = new std::set<std::string>{"model_type",
                                                            "hidden_size",
                                                            "d_model",
                                                            "model_dim",
                                                            "num_hidden_layers",
                                                            "num_layers",
                                                            "num_decoder_layers",
                                                            "encoder_layers",
                                                            "decoder_layers",
                                                            "num_experts_per_tok",
                                                            "moe_k",
                                                            "num_local_experts",
                                                            "num_experts",
                                                            "n_routed_experts",
                                                            "moe_num_experts",
                                                            "moe_intermediate_size",
                                                            "d_ff",
                                                            "encoder_ffn_dim",
                                                            "decoder_ffn_dim",
                                                            "expert_capacity",
                                                            "first_k_dense_replace",
                                                            "routed_scaling_factor",
                                                            "shared_expert_intermediate_size",
                                                            "hidden_size_per_expert",
                                                            "num_experts_per_device",
                                                            "type"};
  return *keys;
}

TEST_P(Damage, AKeyThatIsMissing) {
  int num_required = 0;
  for (const json::json_pointer& key : KeysOf(whole_.config)) {
    if (!RequiredKeys().contains(LastOf(key)) || !IsRead(whole_, key)) continue;
    TestCheckpoint missing = whole_;
    missing.config.at(key.parent_pointer()).erase(key.back());
    EXPECT_THAT(ErrorOf(missing), HasSubstr(LastOf(key) + ": found no such key, expected ")) << key;
    ++num_required;
  }
  EXPECT_GE(num_required, 5);
}

TEST_P(Damage, AKeyThatIsAbsurd) {
  int num_read = 0;
  for (const json::json_pointer& key : KeysOf(whole_.config)) {
    if (!IsRead(whole_, key)) continue;
    ++num_read;
    for (const json& absurd : {json("nonsense"), json(-12345678), json(1e300), json(uint64_t{1} << 63)}) {
      if (LastOf(key) == "transformers_version" && absurd.is_string()) continue;  // any text is one
      TestCheckpoint damaged = whole_;
      damaged.config[key] = absurd;
      const std::string error = ErrorOf(damaged);
      EXPECT_THAT(error, HasSubstr("config.json: ")) << key << " " << absurd;
      EXPECT_THAT(error, HasSubstr(absl::StrCat(LastOf(key), ": found "))) << key << " " << absurd;
      EXPECT_THAT(error, HasSubstr(", expected ")) << key << " " << absurd;
    }
  }
  EXPECT_GE(num_read, 7);
}

INSTANTIATE_TEST_SUITE_P(All, Damage, testing::ValuesIn(GoldenNames()), [](const auto& info) { return info.param; });

}  // namespace
}  // namespace switchyard
