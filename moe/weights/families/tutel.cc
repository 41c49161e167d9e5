// One Tutel moe_layer, saved from a single device: its state_dict beside a config.json that names the arguments it was
// made with:
//
//   {"model_type": "tutel", "model_dim": D,
//    "gate": {"type": "top" | "cosine_top", "k": 2, "capacity_factor": 1.0, "proj_dim": 256},   or a list of such
//    "experts": {"type": "ffn" | "llama_ffn", "hidden_size_per_expert": H, "num_experts_per_device": E,
//                "activation": "relu"},
//    "is_postscore": true, "normalize_gate": true, "batch_prioritized_routing": false, "alignment": 1}
//
// normalize_gate, batch_prioritized_routing and alignment may also be given in a gate, and then hold for that gate.
#include <algorithm>
#include <limits>

#include "moe/weights/checkpoint/quoted.h"
#include "moe/weights/families/family.h"

namespace switchyard {
namespace {

constexpr double kMaxFactor = 1e6;
constexpr int64_t kMaxAlignment = 1 << 20;

absl::StatusOr<bool> BoolOf(const ConfigReader& gate, const ConfigReader& layer, std::string_view key, bool fallback) {
  return gate.Has(key) ? gate.Bool(key) : layer.Bool(key, fallback);
}

absl::StatusOr<CapacitySpec> ReadCapacity(const ConfigReader& gate, const ConfigReader& layer) {
  CapacitySpec capacity;
  capacity.rule = CapacityRule::kTutel;
  SY_ASSIGN_OR_RETURN(capacity.factor, gate.Double("capacity_factor", -kMaxFactor, kMaxFactor, 1.0));
  const ConfigReader& with_alignment = gate.Has("alignment") ? gate : layer;
  SY_ASSIGN_OR_RETURN(capacity.alignment, with_alignment.Int("alignment", 1, kMaxAlignment, 1));
  SY_ASSIGN_OR_RETURN(capacity.by_priority, BoolOf(gate, layer, "batch_prioritized_routing", false));
  return capacity;
}

absl::StatusOr<GateSpec> ReadGate(const ConfigReader& gate, const ConfigReader& layer, int num_experts) {
  GateSpec spec;
  SY_ASSIGN_OR_RETURN(const int64_t top_k, gate.Int("k", 1, 1 << 16, 1));
  spec.top_k = static_cast<int>(std::min<int64_t>(top_k, num_experts));
  SY_ASSIGN_OR_RETURN(const bool normalize, BoolOf(gate, layer, "normalize_gate", true));
  if (normalize) spec.normalization = Normalization::kSum;
  spec.normalizes_single = false;
  spec.norm_min = std::numeric_limits<float>::epsilon();
  SY_ASSIGN_OR_RETURN(spec.capacity, ReadCapacity(gate, layer));
  return spec;
}

absl::StatusOr<GateNames> ReadGateNames(const ConfigReader& gate, size_t idx) {
  GateNames names;
  const std::string path = absl::StrCat("gates.", idx, ".");
  SY_ASSIGN_OR_RETURN(const std::string type, gate.Text("type"));
  if (type == "top") {
    names.weight = {path + "wg.weight"};
  } else if (type == "cosine_top") {
    names.weight = {path + "sim_matrix"};
    names.projector = path + "cosine_projector";
    names.temperature = path + "temperature";
    SY_ASSIGN_OR_RETURN(names.projection_dim, gate.Int("proj_dim", 1, 1 << 20, 256));
  } else {
    return gate.Error("type", absl::StrCat("found ", Quoted(type), ", expected top or cosine_top"));
  }
  return names;
}

absl::Status ReadGates(const ConfigReader& config, MoeBlock* block) {
  SY_ASSIGN_OR_RETURN(const std::vector<ConfigReader> gates, config.Objects("gate"));
  if (gates.empty()) return config.Error("gate", "found an empty list, expected at least one gate");
  block->names.gates.clear();
  for (size_t idx = 0; idx < gates.size(); ++idx) {
    SY_ASSIGN_OR_RETURN(const GateNames names, ReadGateNames(gates[idx], idx));
    SY_ASSIGN_OR_RETURN(const GateSpec spec, ReadGate(gates[idx], config, block->spec.num_experts));
    block->names.gates.push_back(names);
    if (idx == 0) {
      block->spec.gate = spec;
    } else {
      block->spec.more_gates.push_back(spec);
    }
  }
  return absl::OkStatus();
}

StackedNames FfnExperts() {
  StackedNames names;
  names.up = "experts.batched_fc1_w";
  names.up_bias = "experts.batched_fc1_bias";
  names.down = "experts.batched_fc2_w";
  names.down_bias = "experts.batched_fc2_bias";
  names.down_in_major = true;
  return names;
}

StackedNames LlamaFfnExperts() {
  StackedNames names;
  names.gate = "experts.W_fc1";
  names.up = "experts.W_fc2";
  names.down = "experts.W_fc3";
  names.shape = StackedNames::Shape::kFlat;
  names.inner_in_major = true;
  names.down_in_major = true;
  return names;
}

absl::Status ReadExperts(const ConfigReader& experts, MoeBlock* block) {
  LayerSpec& spec = block->spec;
  SY_ASSIGN_OR_RETURN(const std::string type, experts.Text("type"));
  if (type != "ffn" && type != "llama_ffn") {
    return experts.Error("type", absl::StrCat("found ", Quoted(type), ", expected ffn or llama_ffn"));
  }
  const bool is_llama = type == "llama_ffn";
  SY_ASSIGN_OR_RETURN(spec.expert_dim, ReadWidth(experts, "hidden_size_per_expert"));
  SY_ASSIGN_OR_RETURN(spec.num_experts, ReadNumExperts(experts, {"num_experts_per_device"}, 1));
  spec.expert.activation = is_llama ? Activation::kSilu : Activation::kRelu;
  if (experts.Has("activation")) {
    SY_ASSIGN_OR_RETURN(spec.expert.activation, ReadActivation(experts, "activation"));
  }
  spec.expert.gated = is_llama;
  spec.expert.biased = !is_llama;
  block->names.each.reset();
  block->names.stacked = {is_llama ? LlamaFfnExperts() : FfnExperts()};
  return absl::OkStatus();
}

absl::StatusOr<std::vector<MoeBlock>> TutelBlocks(const ConfigReader& config) {
  MoeBlock block;
  block.spec.name = "0";
  block.paths = {""};
  SY_ASSIGN_OR_RETURN(block.spec.hidden_dim, ReadWidth(config, "model_dim"));
  SY_ASSIGN_OR_RETURN(const ConfigReader experts, config.Object("experts"));
  SY_RETURN_IF_ERROR(ReadExperts(experts, &block));
  SY_RETURN_IF_ERROR(ReadGates(config, &block));
  SY_ASSIGN_OR_RETURN(const bool is_postscore, config.Bool("is_postscore", true));
  block.spec.expert.weighs_input = !is_postscore;
  return std::vector<MoeBlock>{block};
}

const FamilyRegistration kTutelFamily("tutel", &TutelBlocks);

}  // namespace
}  // namespace switchyard
