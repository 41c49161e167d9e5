// The tiny checkpoints of tests/testdata, one of every family that has a reference to be recorded from.
#pragma once

#include <string>
#include <vector>

namespace switchyard {

inline std::vector<std::string> GoldenNames() {
  return {"deepseek_v2",
          "deepseek_v3",
          "ernie4_5_moe",
          "glm4_moe",
          "gpt_oss",
          "granitemoe",
          "jamba",
          "llama4",
          "minimax_m2",
          "mixtral",
          "nllb_moe",
          "olmoe",
          "phimoe",
          "qwen2_moe",
          "qwen3_moe",
          "qwen3_moe_nonorm",
          "qwen3_next",
          "switch_transformers",
          "tutel_cosine_top2",
          "tutel_top1_ffn_cap1",
          "tutel_top2_ffn",
          "tutel_top3_llama_ffn"};
}

inline std::string GoldenFolder(const std::string& name) { return "tests/testdata/golden_" + name; }

}  // namespace switchyard
