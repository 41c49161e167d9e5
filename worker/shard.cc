#include "worker/shard.h"

#include <algorithm>

#include "moe/base/logging.h"
#include "moe/weights/weight_source.h"
#include "worker/expert_loader.h"

namespace switchyard {
namespace {

int64_t CountExperts(const worker::Welcome& welcome) {
  int64_t total = 0;
  for (const auto& model : welcome.models()) {
    for (const auto& layer : model.layers()) total += layer.expert_idx_size();
  }
  return total;
}

// The files must stay what the front opened, or some ranks, or some experts, would be of other weights than the rest.
absl::Status CheckSameFiles(const worker::ModelShare& model, const WeightSource& source) {
  if (model.file_identity() == 0) return absl::OkStatus();
  SY_ASSIGN_OR_RETURN(const uint64_t identity, source.FileIdentity());
  if (identity == model.file_identity()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(model.location(),
                   " was written to since the front opened it; restart the front to serve what is there now, or "
                   "put the files back"));
}

absl::StatusOr<std::unique_ptr<WeightSource>> OpenSameWeights(const worker::ModelShare& model) {
  SY_ASSIGN_OR_RETURN(auto source, OpenWeightSource(model.location()));
  SY_RETURN_IF_ERROR(CheckSameFiles(model, *source));
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

// Declares every layer and lists the experts to load.
absl::StatusOr<std::vector<ExpertToLoad>> AddLayers(const worker::ModelShare& model, const ModelSpec& spec,
                                                    ExpertEngine& engine) {
  std::vector<ExpertToLoad> experts;
  for (int layer_idx = 0; layer_idx < model.layers_size(); ++layer_idx) {
    const LayerSpec& layer = spec.layers[layer_idx];
    const auto& share = model.layers(layer_idx).expert_idx();
    SY_RETURN_IF_ERROR(engine.AddLayer(layer, share.size()));
    for (int slot = 0; slot < share.size(); ++slot) {
      if (share[slot] < 0 || share[slot] >= layer.num_stored_experts()) {
        return absl::InvalidArgumentError(absl::StrCat("layer ", layer.name, ": expert ", share[slot], " of ",
                                                       layer.num_stored_experts(), " was assigned"));
      }
      experts.push_back({layer_idx, slot, share[slot]});
    }
  }
  return experts;
}

int64_t CountBytes(const worker::ModelShare& model, const ModelSpec& spec, DType compute_dtype) {
  int64_t num_bytes = 0;
  for (int i = 0; i < model.layers_size(); ++i) {
    num_bytes += model.layers(i).expert_idx_size() * ExpertBytes(spec.layers[i], compute_dtype);
  }
  return num_bytes;
}

}  // namespace

struct Shard::OpenModel {
  const worker::ModelShare* share = nullptr;
  DType compute_dtype = DType::kF32;
  std::unique_ptr<WeightSource> source;
  int64_t num_bytes = 0;  // of this rank's experts

  static absl::StatusOr<OpenModel> Open(const worker::ModelShare& share) {
    OpenModel model = {.share = &share};
    SY_ASSIGN_OR_RETURN(model.compute_dtype, ParseDType(share.compute_dtype()));
    SY_ASSIGN_OR_RETURN(model.source, OpenSameWeights(share));
    model.num_bytes = CountBytes(share, model.source->spec(), model.compute_dtype);
    return model;
  }
};

absl::StatusOr<std::unique_ptr<Shard>> Shard::Load(const worker::Welcome& welcome, const EngineFactory& make_engine,
                                                   const LoadProgressFn& progress) {
  auto shard = std::make_unique<Shard>();
  LoadProgress so_far{.experts_total = CountExperts(welcome)};
  std::vector<OpenModel> models;
  for (const worker::ModelShare& share : welcome.models()) {
    auto model = OpenModel::Open(share);
    if (!model.ok()) return Annotate(model.status(), absl::StrCat("model ", share.name()));
    so_far.models.push_back({0, model->num_bytes});
    models.push_back(*std::move(model));
  }
  progress(so_far);
  for (size_t i = 0; i < models.size(); ++i) {
    const auto expert_done = [&](int64_t num_bytes) {
      ++so_far.experts_done;
      so_far.models[i].bytes_done += num_bytes;
      progress(so_far);
    };
    SY_RETURN_IF_ERROR(Annotate(shard->LoadModel(models[i], welcome.max_batch_rows(), make_engine, expert_done),
                                absl::StrCat("model ", models[i].share->name())));
    models[i].source.reset();
  }
  return shard;
}

absl::Status Shard::LoadModel(const OpenModel& open, int64_t max_batch_rows, const EngineFactory& make_engine,
                              const std::function<void(int64_t num_bytes)>& expert_done) {
  const worker::ModelShare& model = *open.share;
  const ModelSpec& spec = open.source->spec();
  SY_ASSIGN_OR_RETURN(auto engine, make_engine(open.compute_dtype));
  SY_ASSIGN_OR_RETURN(const std::vector<ExpertToLoad> experts, AddLayers(model, spec, *engine));
  spdlog::info("model {}: {} experts, {:.1f} MiB of weights in {}", model.name(), experts.size(),
               open.num_bytes / 1048576.0, DTypeName(open.compute_dtype));
  SY_RETURN_IF_ERROR(engine->Reserve(max_batch_rows));
  SY_RETURN_IF_ERROR(LoadExperts(*open.source, *engine, experts, [&](const ExpertToLoad& expert) {
    expert_done(ExpertBytes(spec.layers[expert.layer_idx], open.compute_dtype));
  }));
  SY_RETURN_IF_ERROR(CheckSameFiles(model, *open.source));  // also while they were read
  for (int i = 0; i < model.layers_size(); ++i) {
    const LayerSpec& layer = spec.layers[i];
    layers_.push_back({engine.get(), LayerId{i}, layer.hidden_dim, model.layers(i).expert_idx_size()});
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

absl::Status Shard::CheckDevice() const {
  for (const auto& engine : engines_) SY_RETURN_IF_ERROR(engine->CheckDevice());
  return absl::OkStatus();
}

int Shard::num_lanes() const {
  int num_lanes = 0;
  for (const auto& engine : engines_) {
    if (engine->stream() == nullptr) return 0;
    num_lanes = num_lanes == 0 ? engine->num_lanes() : std::min(num_lanes, engine->num_lanes());
  }
  return num_lanes;
}

}  // namespace switchyard
