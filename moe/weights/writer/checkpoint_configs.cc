// The keys under which each family keeps its sizes, as its published configs spell them.
#include <map>

#include "moe/weights/writer/checkpoint_writer.h"

namespace switchyard {
namespace {

using nlohmann::json;
using MakeFn = json (*)(const CheckpointOptions&);

int64_t SharedDim(const CheckpointOptions& options) {
  return options.shared_dim == 0 ? options.expert_dim : options.shared_dim;
}

// Hidden size, layers and top-k, where most families keep them.
json Common(const CheckpointOptions& options) {
  return {{"hidden_size", options.hidden_dim},
          {"num_hidden_layers", options.num_layers},
          {"num_experts_per_tok", options.top_k},
          {"hidden_act", "silu"}};
}

json MixtralKind(const CheckpointOptions& options) {
  json config = Common(options);
  config["num_local_experts"] = options.num_experts;
  config["intermediate_size"] = options.expert_dim;
  return config;
}

json OlmoeKind(const CheckpointOptions& options) {
  json config = Common(options);
  config["num_experts"] = options.num_experts;
  config["intermediate_size"] = options.expert_dim;
  return config;
}

json QwenKind(const CheckpointOptions& options) {
  json config = Common(options);
  config["num_experts"] = options.num_experts;
  config["moe_intermediate_size"] = options.expert_dim;
  config["norm_topk_prob"] = true;
  config["decoder_sparse_step"] = 1;
  config["mlp_only_layers"] = json::array();
  return config;
}

json QwenWithSharedKind(const CheckpointOptions& options) {
  json config = QwenKind(options);
  config["shared_expert_intermediate_size"] = SharedDim(options);
  return config;
}

json DeepseekKind(const CheckpointOptions& options) {
  json config = Common(options);
  config["n_routed_experts"] = options.num_experts;
  config["moe_intermediate_size"] = options.expert_dim;
  config["n_shared_experts"] = options.shared_dim / options.expert_dim;
  config["n_group"] = options.num_groups;
  config["topk_group"] = options.groups_kept;
  config["first_k_dense_replace"] = 0;
  config["moe_layer_freq"] = 1;
  config["routed_scaling_factor"] = 2.5;
  config["norm_topk_prob"] = true;
  return config;
}

json DeepseekV2Kind(const CheckpointOptions& options) {
  json config = DeepseekKind(options);
  config["topk_method"] = options.num_groups > 1 ? "group_limited_greedy" : "greedy";
  config["norm_topk_prob"] = false;
  return config;
}

json JambaKind(const CheckpointOptions& options) {
  json config = OlmoeKind(options);
  config["expert_layer_period"] = 1;
  config["expert_layer_offset"] = 0;
  return config;
}

json ErnieKind(const CheckpointOptions& options) {
  json config = Common(options);
  config.erase("num_experts_per_tok");
  config["moe_k"] = options.top_k;
  config["moe_num_experts"] = options.num_experts;
  config["moe_intermediate_size"] = options.expert_dim;
  config["moe_num_shared_experts"] = options.shared_dim / options.expert_dim;
  config["moe_layer_start_index"] = 0;
  config["moe_layer_end_index"] = options.num_layers - 1;
  config["moe_layer_interval"] = 1;
  return config;
}

json DbrxKind(const CheckpointOptions& options) {
  return {{"d_model", options.hidden_dim},
          {"n_layers", options.num_layers},
          {"ffn_config",
           {{"ffn_hidden_size", options.expert_dim},
            {"moe_num_experts", options.num_experts},
            {"moe_top_k", options.top_k},
            {"moe_normalize_expert_weights", 1.0}}}};
}

json SwitchKind(const CheckpointOptions& options) {
  return {{"d_model", options.hidden_dim},
          {"d_ff", options.expert_dim},
          {"num_experts", options.num_experts},
          {"expert_capacity", 64},
          {"num_layers", options.num_layers},
          {"encoder_sparse_step", 1},
          {"num_decoder_layers", options.num_layers},
          {"decoder_sparse_step", 1},
          {"dense_act_fn", "relu"}};
}

json NllbKind(const CheckpointOptions& options) {
  return {{"d_model", options.hidden_dim},
          {"encoder_ffn_dim", options.expert_dim},
          {"decoder_ffn_dim", options.expert_dim},
          {"num_experts", options.num_experts},
          {"encoder_layers", options.num_layers},
          {"decoder_layers", options.num_layers},
          {"encoder_sparse_step", 1},
          {"decoder_sparse_step", 1},
          {"activation_function", "relu"},
          {"moe_token_dropout", 0.2},
          {"moe_eval_capacity_token_fraction", 1.0}};
}

json TutelKind(const CheckpointOptions& options) {
  return {{"model_dim", options.hidden_dim},
          {"gate", {{"type", "top"}, {"k", options.top_k}, {"capacity_factor", 0.0}}},
          {"experts",
           {{"type", "ffn"},
            {"hidden_size_per_expert", options.expert_dim},
            {"num_experts_per_device", options.num_experts},
            {"activation", "relu"}}}};
}

const std::map<std::string, MakeFn>& Kinds() {
  static const auto* const kinds = new std::map<std::string, MakeFn>{
      {"dbrx", &DbrxKind},
      {"deepseek_v2", &DeepseekV2Kind},
      {"deepseek_v3", &DeepseekKind},
      {"ernie4_5_moe", &ErnieKind},
      {"glm4_moe", &DeepseekKind},
      {"gpt_oss", &MixtralKind},
      {"granitemoe", &MixtralKind},
      {"jamba", &JambaKind},
      {"kimi_k2", &DeepseekKind},
      {"llama4", &MixtralKind},
      {"llama4_text", &MixtralKind},
      {"minimax_m2", &MixtralKind},
      {"mixtral", &MixtralKind},
      {"nllb-moe", &NllbKind},
      {"olmoe", &OlmoeKind},
      {"phimoe", &MixtralKind},
      {"qwen2_moe", &QwenWithSharedKind},
      {"qwen3_moe", &QwenKind},
      {"qwen3_next", &QwenWithSharedKind},
      {"switch_transformers", &SwitchKind},
      {"tutel", &TutelKind},
  };
  return *kinds;
}

}  // namespace

absl::StatusOr<json> MakeConfig(const CheckpointOptions& options) {
  const auto kind = Kinds().find(options.family);
  if (kind == Kinds().end()) {
    std::string known;
    for (const auto& [name, make] : Kinds()) absl::StrAppend(&known, known.empty() ? "" : ", ", name);
    return absl::InvalidArgumentError(absl::StrCat("family: found '", options.family, "', expected one of ", known));
  }
  json config = kind->second(options);
  if (options.family == "llama4") config = {{"text_config", config}};
  config["model_type"] = options.family;
  if (options.dtype == "fp8") {
    config["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}};
  }
  if (options.dtype == "mxfp4") config["quantization_config"] = {{"quant_method", "mxfp4"}};
  return config;
}

}  // namespace switchyard
