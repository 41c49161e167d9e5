#include "server/models/model_opener.h"

#include <algorithm>

#include "absl/strings/str_join.h"
#include "base/logging/logging.h"
#include "base/process/container_limits.h"
#include "moe/plan/plan_codec.h"
#include "moe/weights/weight_source.h"

namespace switchyard {
namespace {

// The type that replaces fp16 on workers that do not have it.
constexpr DType kWidened = DType::kF32;

// If other models may be loaded later, links have room for steps with rows of 8192 bf16 elements, 16 experts per row
// and 256 experts on a rank. Models with wider rows get smaller steps. Memory that no step uses is never touched.
constexpr size_t kUsualRowBytes = 16 << 10;
constexpr int kUsualChoices = 16;
constexpr int kUsualSlots = 256;

// The least number of rows that a step must be able to have: with smaller steps a model would be too slow to be useful.
constexpr int64_t kSmallestStep = 16;

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

int64_t HomeRows(int64_t num_rows, int num_ranks) { return (num_rows + num_ranks - 1) / num_ranks; }

// The size of a row in its compute type or, while that is open, in the widest type that it may become.
size_t RowBytes(const ServedModel& model, const ServedLayer& layer) {
  return layer.spec.hidden_dim * SizeOf(model.is_dtype_settled ? layer.on_group.compute_dtype.load() : kWidened);
}

// The largest size, over all ranks, of a rank's encoded plan of a step with `num_rows` rows.
size_t PlanBytes(const ServedLayer& layer, int num_ranks, int64_t num_rows) {
  size_t largest = 0;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const int num_slots = static_cast<int>(layer.on_group.current_placement().experts_of(rank).size());
    largest = std::max(largest, MaxEncodedSize(num_ranks, num_slots, layer.spec.num_choices(),
                                               HomeRows(num_rows, num_ranks), num_rows));
  }
  return largest;
}

}  // namespace

absl::StatusOr<std::shared_ptr<ServedModel>> ModelOpener::Open(const ModelOption& option) {
  SY_ASSIGN_OR_RETURN(auto source, OpenWeightSource(option.location));
  auto model = std::make_shared<ServedModel>();
  model->id = ModelId{++num_models_};
  model->name = option.name;
  model->location = option.location;
  model->spec = source->spec();
  if (options_.local_workers > 0) {
    SY_ASSIGN_OR_RETURN(model->file_identity, source->FileIdentity());
  }
  SY_ASSIGN_OR_RETURN(const ComputeDType compute, ChooseComputeDType(options_, model->spec.dtype));
  model->is_dtype_settled = compute.is_settled;
  // Each model has its own context, because gates of another model may run while this model's gates are packed.
  SY_ASSIGN_OR_RETURN(std::shared_ptr<LinearContext> context,
                      LinearContext::Create(PreparingThreads(options_, OwnCpuShare().num_threads)));
  const int num_layers = static_cast<int>(model->spec.layers.size());
  const int32_t first_id = num_layers_.fetch_add(num_layers);
  for (int i = 0; i < num_layers; ++i) {
    const LayerSpec& spec = model->spec.layers[i];
    SY_ASSIGN_OR_RETURN(auto gates, MakeGates(*source, i, context));
    model->layers.push_back(std::unique_ptr<ServedLayer>(new ServedLayer{
        LayerId{first_id + i},
        model->name,
        spec,
        std::move(gates),
        {FirstPlacement(Placement::Even(spec.num_experts, num_ranks_, spec.num_shared)), compute.dtype}}));
  }
  spdlog::info("model {}: {} with {} MoE layers, {} weights, computing in {}", model->name, model->spec.family,
               num_layers, DTypeName(model->spec.dtype),
               compute.is_settled ? DTypeName(compute.dtype) : "what the workers have");
  return model;
}

// ---- Compute types --------------------------------------------------------------------------------------------------

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

absl::Status AgreeOnComputeDType(const std::vector<std::string>& available, ServedModel* model) {
  const auto has = [&](DType dtype) {
    return std::find(available.begin(), available.end(), std::string(DTypeName(dtype))) != available.end();
  };
  if (!model->is_dtype_settled) {
    const DType settled = has(model->compute_dtype()) ? model->compute_dtype() : kWidened;
    for (const auto& layer : model->layers) layer->on_group.compute_dtype = settled;
    model->is_dtype_settled = true;
    spdlog::info("model {}: computing in {}", model->name, DTypeName(settled));
  }
  if (has(model->compute_dtype())) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("model ", model->name, " is computed in ",
                                                    std::string(DTypeName(model->compute_dtype())), ", it has ",
                                                    absl::StrJoin(available, ", ")));
}

// ---- Messages to workers --------------------------------------------------------------------------------------------

std::vector<worker::ModelShare> MakeShares(const ServedModel& model, int num_ranks) {
  std::vector<worker::ModelShare> shares(num_ranks);
  for (int rank = 0; rank < num_ranks; ++rank) {
    worker::ModelShare& share = shares[rank];
    share.set_name(model.name);
    share.set_location(model.location);
    share.set_fingerprint(model.spec.fingerprint);
    share.set_file_identity(model.file_identity);
    share.set_compute_dtype(std::string(DTypeName(model.compute_dtype())));
    share.set_model_id(model.id.value);
    share.set_first_layer_id(model.layers.front()->id.value);
    for (const auto& layer : model.layers) {
      const auto& experts = layer->on_group.current_placement().experts_of(rank);
      share.add_layers()->mutable_expert_idx()->Add(experts.begin(), experts.end());
      share.set_max_batch_rows(std::max(share.max_batch_rows(), layer->on_group.max_batch_rows));
    }
  }
  return shares;
}

// ---- Links ----------------------------------------------------------------------------------------------------------

LinkLayout ChooseLinkLayout(const std::vector<std::shared_ptr<ServedModel>>& models, const ServerOptions& options,
                            int num_ranks, const LinkWishes& wishes) {
  const int64_t max_rows = options.max_batch_rows;
  const int64_t max_home_rows = HomeRows(max_rows, num_ranks);
  size_t row_bytes = wishes.may_load_more ? kUsualRowBytes : 0;
  size_t plan_bytes =
      wishes.may_load_more ? MaxEncodedSize(num_ranks, kUsualSlots, kUsualChoices, max_home_rows, max_rows) : 0;
  for (const auto& model : models) {
    for (const auto& layer : model->layers) {
      row_bytes = std::max(row_bytes, RowBytes(*model, *layer));
      plan_bytes = std::max(plan_bytes, PlanBytes(*layer, num_ranks, max_rows));
    }
  }
  return LinkLayout::For(options.steps_in_flight, max_home_rows * row_bytes, plan_bytes, max_home_rows * row_bytes,
                         wishes.num_spares);
}

absl::Status FitToLinks(const LinkLayout& layout, int64_t max_batch_rows, int num_ranks, ServedModel* model) {
  for (const auto& layer : model->layers) {
    const size_t row_bytes = RowBytes(*model, *layer);
    const auto fits = [&](int64_t num_rows) {
      return HomeRows(num_rows, num_ranks) * row_bytes <= std::min(layout.input_bytes, layout.output_bytes) &&
             PlanBytes(*layer, num_ranks, num_rows) <= layout.plan_bytes;
    };
    // The largest number of rows that fits.
    int64_t low = 0, high = max_batch_rows;
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      fits(middle) ? low = middle : high = middle - 1;
    }
    if (low < std::min(max_batch_rows, kSmallestStep)) {
      return absl::FailedPreconditionError(absl::StrCat(
          "layer ", layer->spec.name, ": the links of this server, which were made at its start, have room for ", low,
          " rows of ", row_bytes,
          " bytes with their plan in a step; start the server with this model in --model, or "
          "with a larger --max_batch_rows"));
    }
    if (low < max_batch_rows) {
      spdlog::info("model {}: steps of layer {} have at most {} rows, which is what the links have room for",
                   model->name, layer->spec.name, low);
    }
    layer->on_group.max_batch_rows = low;
  }
  return absl::OkStatus();
}

}  // namespace switchyard
