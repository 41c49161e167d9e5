#include "server/model_table.h"

#include <algorithm>
#include <thread>

#include "absl/strings/str_join.h"
#include "moe/base/logging.h"
#include "moe/weights/weight_source.h"

namespace switchyard {
namespace {

// What fp16 becomes on workers that do not have it.
constexpr DType kWidened = DType::kF32;

int GateThreads(const ServerOptions& options) {
  if (options.gate_threads > 0) return options.gate_threads;
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / 4);
}

absl::StatusOr<std::vector<std::unique_ptr<Gate>>> MakeGates(WeightSource& source, int layer_idx,
                                                             const std::shared_ptr<LinearContext>& context) {
  std::vector<std::unique_ptr<Gate>> gates;
  const LayerSpec& spec = source.spec().layers[layer_idx];
  for (int gate_idx = 0; gate_idx < spec.num_gates(); ++gate_idx) {
    SY_ASSIGN_OR_RETURN(const RouterWeights router, source.ReadRouter(layer_idx, gate_idx));
    SY_ASSIGN_OR_RETURN(auto gate, Gate::Create(spec, gate_idx, router, context));
    gates.push_back(std::move(gate));
  }
  return gates;
}

}  // namespace

absl::StatusOr<ComputeDType> ChooseComputeDType(const ServerOptions& options, DType checkpoint) {
  const bool is_auto = options.compute_dtype == "auto";
  const bool on_cpus = options.local_workers > 0 && options.device == "cpu";
  DType dtype = checkpoint;
  if (!is_auto) {
    auto parsed = ParseDType(options.compute_dtype);
    if (!parsed.ok()) return Annotate(parsed.status(), "--compute_dtype");
    dtype = *parsed;
  }
  if (dtype != DType::kF16) return ComputeDType{dtype};
  if (!on_cpus) return ComputeDType{dtype, /*is_settled=*/!is_auto};
  if (is_auto) return ComputeDType{kWidened};
  return absl::InvalidArgumentError("--compute_dtype=fp16: the CPU engine computes in fp64, fp32 or bf16");
}

absl::StatusOr<std::unique_ptr<ModelTable>> ModelTable::Load(const ServerOptions& options, int num_ranks) {
  auto table = std::make_unique<ModelTable>();
  SY_ASSIGN_OR_RETURN(std::shared_ptr<LinearContext> gate_context, LinearContext::Create(GateThreads(options)));
  for (const ModelOption& model : options.models) {
    SY_RETURN_IF_ERROR(Annotate(table->AddModel(model, options, num_ranks, gate_context),
                                absl::StrCat("--model=", model.name, "=", model.location)));
  }
  return table;
}

absl::Status ModelTable::AddModel(const ModelOption& option, const ServerOptions& options, int num_ranks,
                                  const std::shared_ptr<LinearContext>& gate_context) {
  SY_ASSIGN_OR_RETURN(auto source, OpenWeightSource(option.location));
  ServedModel model;
  model.name = option.name;
  model.location = option.location;
  model.spec = source->spec();
  if (options.local_workers > 0) {
    SY_ASSIGN_OR_RETURN(model.file_identity, source->FileIdentity());
  }
  model.first_layer = static_cast<int>(layers_.size());
  SY_ASSIGN_OR_RETURN(const ComputeDType compute, ChooseComputeDType(options, model.spec.dtype));
  model.is_dtype_settled = compute.is_settled;
  for (int i = 0; i < static_cast<int>(model.spec.layers.size()); ++i) {
    const LayerSpec& spec = model.spec.layers[i];
    SY_ASSIGN_OR_RETURN(auto gates, MakeGates(*source, i, gate_context));
    layers_.push_back(std::unique_ptr<ServedLayer>(
        new ServedLayer{LayerId{static_cast<int32_t>(layers_.size())}, model.name, spec, compute.dtype,
                        Placement::Even(spec.num_experts, num_ranks, spec.num_shared), std::move(gates)}));
  }
  spdlog::info("model {}: {} with {} MoE layers, {} weights, computing in {}", model.name, model.spec.family,
               model.spec.layers.size(), DTypeName(model.spec.dtype),
               compute.is_settled ? DTypeName(compute.dtype) : "what the workers have");
  models_.push_back(std::move(model));
  return absl::OkStatus();
}

absl::Status ModelTable::AgreeOnComputeDTypes(const std::vector<std::string>& available) {
  const auto has = [&](DType dtype) {
    return std::find(available.begin(), available.end(), std::string(DTypeName(dtype))) != available.end();
  };
  for (ServedModel& model : models_) {
    if (!model.is_dtype_settled) Settle(model, has(compute_dtype(model)) ? compute_dtype(model) : kWidened);
    if (has(compute_dtype(model))) continue;
    return absl::FailedPreconditionError(absl::StrCat("model ", model.name, " is computed in ",
                                                      std::string(DTypeName(compute_dtype(model))), ", it has ",
                                                      absl::StrJoin(available, ", ")));
  }
  return absl::OkStatus();
}

void ModelTable::Settle(ServedModel& model, DType compute_dtype) {
  for (size_t i = 0; i < model.spec.layers.size(); ++i) layers_[model.first_layer + i]->compute_dtype = compute_dtype;
  model.is_dtype_settled = true;
  spdlog::info("model {}: computing in {}", model.name, DTypeName(compute_dtype));
}

absl::StatusOr<ServedLayer*> ModelTable::Find(const std::string& model, const std::string& layer) const {
  std::vector<std::string> known;
  for (const ServedModel& candidate : models_) {
    known.push_back(candidate.name);
    if (candidate.name != model) continue;
    known.clear();
    for (size_t i = 0; i < candidate.spec.layers.size(); ++i) {
      ServedLayer* served = layers_[candidate.first_layer + i].get();
      if (served->spec.name == layer) return served;
      known.push_back(served->spec.name);
    }
    return absl::NotFoundError(absl::StrCat("layer: model '", model, "' has no MoE layer '", layer,
                                            "'; it has: ", absl::StrJoin(known, ", ")));
  }
  return absl::NotFoundError(
      absl::StrCat("model: no model '", model, "' is served here; there are: ", absl::StrJoin(known, ", ")));
}

worker::Welcome ModelTable::WelcomeFor(int rank, int num_ranks, int64_t max_batch_rows) const {
  worker::Welcome welcome;
  welcome.set_rank(rank);
  welcome.set_num_ranks(num_ranks);
  welcome.set_max_batch_rows(max_batch_rows);
  for (const ServedModel& model : models_) {
    worker::ModelShare& share = *welcome.add_models();
    share.set_name(model.name);
    share.set_location(model.location);
    share.set_fingerprint(model.spec.fingerprint);
    share.set_file_identity(model.file_identity);
    share.set_compute_dtype(std::string(DTypeName(compute_dtype(model))));
    for (size_t i = 0; i < model.spec.layers.size(); ++i) {
      const auto& experts = layers_[model.first_layer + i]->placement.experts_of(rank);
      share.add_layers()->mutable_expert_idx()->Add(experts.begin(), experts.end());
    }
  }
  return welcome;
}

int64_t ModelTable::max_row_bytes() const {
  int64_t widest = 0;
  for (const ServedModel& model : models_) {
    const DType dtype = model.is_dtype_settled ? compute_dtype(model) : kWidened;
    for (const LayerSpec& layer : model.spec.layers) {
      widest = std::max<int64_t>(widest, layer.hidden_dim * static_cast<int64_t>(SizeOf(dtype)));
    }
  }
  return widest;
}

}  // namespace switchyard
