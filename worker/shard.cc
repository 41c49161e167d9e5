#include "worker/shard.h"

#include "moe/weights/weight_source.h"

namespace switchyard {
namespace {

int64_t CountExperts(const worker::Welcome& welcome) {
  int64_t total = 0;
  for (const auto& model : welcome.models()) {
    for (const auto& layer : model.layers()) total += layer.expert_idx_size();
  }
  return total;
}

absl::StatusOr<std::unique_ptr<WeightSource>> OpenSameWeights(const worker::ModelShare& model) {
  SY_ASSIGN_OR_RETURN(auto source, OpenWeightSource(model.location()));
  if (source->spec().fingerprint != model.fingerprint()) {
    return absl::FailedPreconditionError(
        absl::StrCat(model.location(),
                     " is not what the front serves: its configuration or tensors "
                     "changed since the front started, or this host has another copy"));
  }
  if (static_cast<int>(source->spec().layers.size()) != model.layers_size()) {
    return absl::FailedPreconditionError(absl::StrCat(model.location(), ": the front announced ", model.layers_size(),
                                                      " layers, found ", source->spec().layers.size()));
  }
  return source;
}

absl::Status LoadLayer(WeightSource& source, int layer_idx, const worker::LayerShare& share, ExpertEngine& engine,
                       const std::function<void()>& expert_done) {
  const LayerSpec& spec = source.spec().layers[layer_idx];
  SY_RETURN_IF_ERROR(engine.AddLayer(spec, share.expert_idx_size()));
  for (int slot = 0; slot < share.expert_idx_size(); ++slot) {
    const int expert = share.expert_idx(slot);
    if (expert < 0 || expert >= spec.num_experts) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", spec.name, ": expert ", expert, " of ", spec.num_experts, " was assigned"));
    }
    SY_ASSIGN_OR_RETURN(const ExpertWeights weights, source.ReadExpert(layer_idx, expert));
    SY_RETURN_IF_ERROR(Annotate(engine.LoadExpert(LayerId{layer_idx}, slot, weights),
                                absl::StrCat("layer ", spec.name, ", expert ", expert)));
    source.ReleaseExpert(layer_idx, expert);
    expert_done();
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Shard>> Shard::Load(const worker::Welcome& welcome, const EngineFactory& make_engine,
                                                   const LoadProgressFn& progress) {
  auto shard = std::make_unique<Shard>();
  const int64_t total = CountExperts(welcome);
  int64_t done = 0;
  progress(done, total);
  for (const worker::ModelShare& model : welcome.models()) {
    SY_RETURN_IF_ERROR(Annotate(shard->LoadModel(model, make_engine, [&] { progress(++done, total); }),
                                absl::StrCat("model ", model.name())));
  }
  return shard;
}

absl::Status Shard::LoadModel(const worker::ModelShare& model, const EngineFactory& make_engine,
                              const std::function<void()>& expert_done) {
  SY_ASSIGN_OR_RETURN(const DType compute_dtype, ParseDType(model.compute_dtype()));
  SY_ASSIGN_OR_RETURN(auto source, OpenSameWeights(model));
  SY_ASSIGN_OR_RETURN(auto engine, make_engine(compute_dtype));
  for (int i = 0; i < model.layers_size(); ++i) {
    SY_RETURN_IF_ERROR(LoadLayer(*source, i, model.layers(i), *engine, expert_done));
    const LayerSpec& spec = source->spec().layers[i];
    layers_.push_back({engine.get(), LayerId{i}, spec.hidden_dim, model.layers(i).expert_idx_size(), spec.gate.top_k});
  }
  engines_.push_back(std::move(engine));
  return absl::OkStatus();
}

const Shard::Layer* Shard::FindLayer(LayerId layer) const {
  if (layer.value < 0 || layer.value >= static_cast<int>(layers_.size())) return nullptr;
  return &layers_[layer.value];
}

int64_t Shard::weight_bytes() const {
  int64_t total = 0;
  for (const auto& engine : engines_) total += engine->weight_bytes();
  return total;
}

}  // namespace switchyard
