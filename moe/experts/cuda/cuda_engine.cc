#include "moe/experts/cuda/cuda_engine.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "moe/experts/check_layer.h"
#include "moe/experts/cuda/cuda_device.h"
#include "moe/experts/cuda/expert_ffn.h"
#include "moe/experts/cuda/kernels/row_kernels.h"
#include "moe/experts/cuda/step_tables.h"
#include "moe/experts/cuda/weight_loader.h"
#include "moe/gpu/cuda_status.h"
#include "moe/gpu/stream.h"

namespace switchyard {
namespace {

absl::Status CheckRows(const char* name, ConstMatrixView rows, DType dtype, int64_t num_rows, int64_t num_cols) {
  if (rows.dtype == dtype && rows.num_rows == num_rows && rows.num_cols == num_cols) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": [", rows.num_rows, ", ", rows.num_cols, "] ",
                                                 std::string(DTypeName(rows.dtype)), ", expected [", num_rows, ", ",
                                                 num_cols, "] ", std::string(DTypeName(dtype))));
}

// A stored matrix must have the layer's sizes, because the kernel that packs it does not check them.
absl::Status CheckWeight(const char* name, const WeightView& weight, int64_t outputs, int64_t inputs) {
  const int64_t rows = weight.transposed ? inputs : outputs;
  const int64_t cols = weight.transposed ? outputs : inputs;
  if (weight.present() && weight.matrix.num_rows == rows && weight.matrix.num_cols == cols) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " weights: [", weight.matrix.num_rows, ", ",
                                                 weight.matrix.num_cols, "], expected [", rows, ", ", cols, "]"));
}

absl::Status CheckBias(const char* name, ConstMatrixView bias, int64_t outputs) {
  if (bias.data != nullptr && bias.num_rows == 1 && bias.num_cols == outputs) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " bias: [", bias.num_rows, ", ", bias.num_cols, "], expected [1, ", outputs, "]"));
}

// Outputs come in several parts only in steps within these limits, which are low because the tables of such a step must
// fit the room that is reserved for any step.
constexpr int64_t kMaxParts = 8;
constexpr int64_t kMaxPartedPairs = 4096;

int64_t TableBytes(int64_t num_offsets, int64_t num_entries, bool weighted) {
  return (num_offsets + 1 + num_entries * (weighted ? 2 : 1)) * 4 + 64;
}

class CudaEngine final : public ExpertEngine {
 public:
  CudaEngine(std::shared_ptr<CudaDevice> device, DType dtype, std::unique_ptr<ExpertFfn> ffn)
      : device_(std::move(device)), dtype_(dtype), ffn_(std::move(ffn)) {}

  ~CudaEngine() override {
    if (device_->MakeCurrent().ok()) (void)cudaDeviceSynchronize();
    device_->Release(reserved_bytes_);
  }

  DType compute_dtype() const override { return dtype_; }
  absl::Status AddLayer(const LayerSpec& spec, int num_slots) override;
  absl::Status Reserve(int64_t max_rows) override;
  int load_threads() const override { return WeightLoader::kNumLoaders; }
  absl::Status LoadExpert(LayerId layer, int slot, const ExpertWeights& weights) override;
  int64_t weight_bytes() const override;

  absl::StatusOr<std::byte*> ScratchBytes(Scratch purpose, size_t num_bytes) override {
    return device_->Get(static_cast<Workspace>(purpose), num_bytes);
  }
  DeviceStream stream() const override { return ToDeviceStream(device_->compute()); }
  DeviceStream exchange_stream() const override { return ToDeviceStream(device_->exchange()); }
  absl::Status Order(DeviceStream earlier, DeviceStream later) override {
    return device_->Order(ToCudaStream(earlier), ToCudaStream(later));
  }
  int num_lanes() const override { return CudaDevice::kNumLanes; }
  absl::StatusOr<ConstMatrixView> BeginStep(int lane, ConstMatrixView home_rows) override {
    return device_->BeginStep(lane, home_rows);
  }
  absl::StatusOr<MatrixView> StepOutput(int lane, MatrixView output) override {
    return device_->StepOutput(lane, output);
  }
  absl::Status EndStep(int lane, ConstMatrixView step_output, MatrixView output) override {
    return device_->EndStep(lane, step_output, output);
  }
  absl::Status WaitStep(int lane) override { return device_->WaitStep(lane); }
  absl::Status CheckDevice() override { return switchyard::CheckDevice(); }

  absl::Status GatherSendRows(const RankPlanView& plan, ConstMatrixView home_rows, MatrixView send_rows) override;
  absl::Status RunExperts(LayerId layer, const RankPlanView& plan, ConstMatrixView received,
                          MatrixView partial_sums) override;
  absl::Status Combine(const RankPlanView& plan, ConstMatrixView returned, MatrixView output) override;

 private:
  absl::StatusOr<CudaLayer*> FindLayer(LayerId layer) const;
  DeviceNeeds NeedsOf(const CudaLayer& layer, int64_t max_rows) const;
  absl::Status AllocateWeights(CudaLayer& layer);
  absl::Status CheckExpert(const CudaLayer& layer, int slot, const ExpertWeights& weights) const;
  std::vector<MatrixLoad> MatricesOf(const CudaLayer& layer, int slot, const ExpertWeights& weights) const;
  std::vector<BiasLoad> BiasesOf(const CudaLayer& layer, int slot, const ExpertWeights& weights) const;
  absl::Status CheckStep(const CudaLayer& layer, const RankPlanView& plan, ConstMatrixView received,
                         ConstMatrixView partial_sums) const;
  absl::Status NewPairLists(const RankPlanView& plan, int num_parts, RowLists* device);

  bool CanStayInPlace(const CudaLayer& layer, const RankPlanView& plan, ConstMatrixView received) const;
  int64_t MaxParts(const FfnShape& shape, const RankPlanView& plan) const;
  absl::StatusOr<FfnStep> BuffersOf(const CudaLayer& layer, const RankPlanView& plan) const;

  // Makes room for lists in the step's tables. `device` gets the addresses that kernels read after UploadTables.
  absl::StatusOr<HostRowLists> NewLists(int64_t num_rows, int64_t num_entries, bool weighted, RowLists* device);

  int64_t element_bytes() const { return static_cast<int64_t>(SizeOf(dtype_)); }
  int64_t bias_bytes() const { return dtype_ == DType::kF64 ? 8 : 4; }

  const std::shared_ptr<CudaDevice> device_;
  const DType dtype_;
  const std::unique_ptr<ExpertFfn> ffn_;
  std::vector<std::unique_ptr<CudaLayer>> layers_;
  int64_t reserved_bytes_ = 0;            // for weights
  std::unique_ptr<WeightLoader> loader_;  // made by Reserve
};

absl::Status CudaEngine::AddLayer(const LayerSpec& spec, int num_slots) {
  SY_RETURN_IF_ERROR(CheckLayerSizes(spec, num_slots));
  SY_RETURN_IF_ERROR(CheckExpertFormula(spec));
  if (loader_ != nullptr) {
    return absl::FailedPreconditionError(absl::StrCat("layer ", spec.name, " comes after Reserve"));
  }
  layers_.push_back(std::make_unique<CudaLayer>(spec, num_slots));
  layers_.back()->is_loaded.assign(num_slots, 0);
  return absl::OkStatus();
}

// The most experts that a row can have, over all of the layer's gates, shared experts included.
int MaxChoices(const LayerSpec& spec) {
  int top_k = 0;
  for (int i = 0; i < spec.num_gates(); ++i) top_k = std::max(top_k, spec.gate_at(i).top_k);
  return top_k + spec.num_shared;
}

// A row has at most one pair on this rank for each of its choices, and at most one for each local expert.
DeviceNeeds CudaEngine::NeedsOf(const CudaLayer& layer, int64_t max_rows) const {
  const FfnShape& shape = layer.shape;
  const int64_t max_pairs = max_rows * std::min(MaxChoices(layer.spec), layer.num_slots);
  DeviceNeeds needs;
  auto workspace = [&](Workspace purpose) -> int64_t& { return needs.workspace_bytes[static_cast<size_t>(purpose)]; };
  needs.weight_bytes = layer.num_slots * (shape.up_elements() + shape.down_elements()) * element_bytes();
  if (layer.spec.expert.biased) {
    needs.weight_bytes += layer.num_slots * (shape.up_rows + shape.row_pitch) * bias_bytes();
  }
  needs.row_bytes = max_rows * shape.hidden_dim * element_bytes();
  for (const Workspace purpose : {Workspace::kSend, Workspace::kReceive, Workspace::kPartial, Workspace::kReturned}) {
    workspace(purpose) = needs.row_bytes;
  }
  workspace(Workspace::kGrouped) = max_pairs * shape.row_pitch * element_bytes();
  workspace(Workspace::kOutputs) = max_pairs * shape.row_pitch * element_bytes();
  workspace(Workspace::kHidden) = max_pairs * shape.hidden_pitch * element_bytes();
  workspace(Workspace::kProducts) = max_pairs * ffn_->ProductBytesPerPair(shape);
  // Tables for outputs in parts, send rows, pairs, returns and the implementation's own. Each chunk has its own
  // offsets.
  constexpr int64_t kMaxChunks = 8;
  needs.table_bytes = TableBytes(2 * kMaxPartedPairs, kMaxPartedPairs * (kMaxParts + 1), true) + max_rows * 4 +
                      TableBytes(max_rows + kMaxChunks, max_pairs, true) + TableBytes(max_rows, max_rows, false) +
                      kMaxChunks * (ffn_->TableBytes(max_pairs / kMaxChunks + 1, layer.num_slots) + 256);
  return needs;
}

absl::Status CudaEngine::Reserve(int64_t max_rows) {
  DeviceNeeds total;
  for (const auto& layer : layers_) {
    const DeviceNeeds needs = NeedsOf(*layer, max_rows);
    total.weight_bytes += needs.weight_bytes;
    total.row_bytes = std::max(total.row_bytes, needs.row_bytes);
    total.table_bytes = std::max(total.table_bytes, needs.table_bytes);
    for (int i = 0; i < kNumWorkspaces; ++i) {
      total.workspace_bytes[i] = std::max(total.workspace_bytes[i], needs.workspace_bytes[i]);
    }
  }
  SY_RETURN_IF_ERROR(device_->Reserve(total));
  reserved_bytes_ += total.weight_bytes;
  for (const auto& layer : layers_) {
    SY_RETURN_IF_ERROR(Annotate(AllocateWeights(*layer), absl::StrCat("layer ", layer->spec.name)));
  }
  SY_ASSIGN_OR_RETURN(loader_, WeightLoader::Create());
  return absl::OkStatus();
}

// Zeroes all weights, because their padding must be zero and is never written afterwards.
absl::Status CudaEngine::AllocateWeights(CudaLayer& layer) {
  const FfnShape& shape = layer.shape;
  auto allocate = [&](int64_t bytes_per_slot, DeviceBuffer& buffer) -> absl::Status {
    SY_ASSIGN_OR_RETURN(buffer, DeviceBuffer::Allocate(layer.num_slots * bytes_per_slot));
    if (buffer.size() > 0) SY_CUDA(cudaMemset(buffer.data(), 0, buffer.size()));
    return absl::OkStatus();
  };
  SY_RETURN_IF_ERROR(allocate(shape.up_elements() * element_bytes(), layer.up));
  SY_RETURN_IF_ERROR(allocate(shape.down_elements() * element_bytes(), layer.down));
  if (layer.spec.expert.biased) {
    SY_RETURN_IF_ERROR(allocate(shape.up_rows * bias_bytes(), layer.up_bias));
    SY_RETURN_IF_ERROR(allocate(shape.row_pitch * bias_bytes(), layer.down_bias));
  }
  SY_CUDA(cudaDeviceSynchronize());  // because loaders write on streams of their own
  return absl::OkStatus();
}

absl::Status CudaEngine::CheckExpert(const CudaLayer& layer, int slot, const ExpertWeights& weights) const {
  if (slot < 0 || slot >= layer.num_slots) {
    return absl::InvalidArgumentError(absl::StrCat("slot ", slot, ", expected 0 to ", layer.num_slots - 1));
  }
  const FfnShape& shape = layer.shape;
  SY_RETURN_IF_ERROR(CheckWeight("up", weights.up, shape.expert_dim, shape.hidden_dim));
  if (layer.spec.expert.gated) {
    SY_RETURN_IF_ERROR(CheckWeight("gate", weights.gate, shape.expert_dim, shape.hidden_dim));
  } else if (weights.gate.present()) {
    return absl::InvalidArgumentError("gate weights for an expert of a layer without");
  }
  SY_RETURN_IF_ERROR(CheckWeight("down", weights.down, shape.hidden_dim, shape.expert_dim));
  if (layer.spec.expert.biased) {
    SY_RETURN_IF_ERROR(CheckBias("up", weights.up_bias, shape.expert_dim));
    if (layer.spec.expert.gated) SY_RETURN_IF_ERROR(CheckBias("gate", weights.gate_bias, shape.expert_dim));
    return CheckBias("down", weights.down_bias, shape.hidden_dim);
  }
  for (const ConstMatrixView& bias : {weights.up_bias, weights.gate_bias, weights.down_bias}) {
    if (bias.data != nullptr) return absl::InvalidArgumentError("a bias for an expert of a layer without");
  }
  return absl::OkStatus();
}

std::vector<MatrixLoad> CudaEngine::MatricesOf(const CudaLayer& layer, int slot, const ExpertWeights& weights) const {
  using Part = ExpertFfn::Part;
  std::vector<MatrixLoad> loads = {{weights.up, ffn_->TargetOf(layer, slot, Part::kUp)},
                                   {weights.down, ffn_->TargetOf(layer, slot, Part::kDown)}};
  if (layer.spec.expert.gated) loads.push_back({weights.gate, ffn_->TargetOf(layer, slot, Part::kGate)});
  return loads;
}

std::vector<BiasLoad> CudaEngine::BiasesOf(const CudaLayer& layer, int slot, const ExpertWeights& weights) const {
  if (!layer.spec.expert.biased) return {};
  const DType dtype = dtype_ == DType::kF64 ? DType::kF64 : DType::kF32;
  std::byte* const up_bias = layer.up_bias.data() + slot * layer.shape.up_rows * bias_bytes();
  // Biases are in the order of the rows of their matrix.
  const auto beside = [&](ConstMatrixView bias, ExpertFfn::Part part) {
    const PackTarget matrix = ffn_->TargetOf(layer, slot, part);
    return BiasLoad{bias, matrix.place, matrix.first_row, dtype, up_bias};
  };
  std::vector<BiasLoad> loads = {beside(weights.up_bias, ExpertFfn::Part::kUp),
                                 {weights.down_bias, RowPlace::kPlain, 0, dtype,
                                  layer.down_bias.data() + slot * layer.shape.row_pitch * bias_bytes()}};
  if (layer.spec.expert.gated) loads.push_back(beside(weights.gate_bias, ExpertFfn::Part::kGate));
  return loads;
}

absl::Status CudaEngine::LoadExpert(LayerId layer_id, int slot, const ExpertWeights& weights) {
  SY_ASSIGN_OR_RETURN(CudaLayer * layer, FindLayer(layer_id));
  const std::string where = absl::StrCat("layer ", layer->spec.name, ", expert in slot ", slot);
  SY_RETURN_IF_ERROR(Annotate(CheckExpert(*layer, slot, weights), where));
  if (loader_ == nullptr) return absl::FailedPreconditionError(absl::StrCat(where, ": Reserve comes first"));
  SY_RETURN_IF_ERROR(device_->MakeCurrent());
  SY_RETURN_IF_ERROR(
      Annotate(loader_->Load(MatricesOf(*layer, slot, weights), BiasesOf(*layer, slot, weights)), where));
  layer->is_loaded[slot] = 1;
  return absl::OkStatus();
}

int64_t CudaEngine::weight_bytes() const {
  int64_t num_bytes = 0;
  for (const auto& layer : layers_) {
    num_bytes += layer->up.size() + layer->down.size() + layer->up_bias.size() + layer->down_bias.size();
  }
  return num_bytes;
}

absl::StatusOr<CudaLayer*> CudaEngine::FindLayer(LayerId layer) const {
  if (layer.value >= 0 && layer.value < static_cast<int64_t>(layers_.size())) return layers_[layer.value].get();
  return absl::InvalidArgumentError(absl::StrCat("layer id ", layer.value, ": there are ", layers_.size()));
}

absl::Status CudaEngine::CheckStep(const CudaLayer& layer, const RankPlanView& plan, ConstMatrixView received,
                                   ConstMatrixView partial_sums) const {
  SY_RETURN_IF_ERROR(CheckRows("received rows", received, dtype_, plan.num_recv_rows(), layer.spec.hidden_dim));
  SY_RETURN_IF_ERROR(CheckRows("partial sums", partial_sums, dtype_, plan.num_recv_rows(), layer.spec.hidden_dim));
  if (plan.num_slots() != layer.num_slots) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer.spec.name, ": the plan has ", plan.num_slots(),
                                                   " expert slots, this rank ", layer.num_slots));
  }
  for (int slot = 0; slot < plan.num_slots(); ++slot) {
    if (plan.expert_offsets[slot] == plan.expert_offsets[slot + 1] || layer.is_loaded[slot] != 0) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("layer ", layer.spec.name, ": rows for the expert in slot ", slot, ", which is not loaded"));
  }
  return absl::OkStatus();
}

absl::StatusOr<HostRowLists> CudaEngine::NewLists(int64_t num_rows, int64_t num_entries, bool weighted,
                                                  RowLists* device) {
  HostRowLists lists;
  auto make = [&](int64_t count, auto& span, auto*& on_device) -> absl::Status {
    using T = typename std::remove_reference_t<decltype(span)>::value_type;
    SY_ASSIGN_OR_RETURN(std::byte * table, device_->NewTable(count * sizeof(T)));
    span = {reinterpret_cast<T*>(table), static_cast<size_t>(count)};
    on_device = reinterpret_cast<const T*>(device_->OnDevice(table));
    return absl::OkStatus();
  };
  SY_RETURN_IF_ERROR(make(num_rows + 1, lists.offsets, device->offsets));
  SY_RETURN_IF_ERROR(make(num_entries, lists.indices, device->indices));
  if (weighted) SY_RETURN_IF_ERROR(make(num_entries, lists.weights, device->weights));
  return lists;
}

absl::Status CudaEngine::NewPairLists(const RankPlanView& plan, int num_parts, RowLists* device) {
  SY_ASSIGN_OR_RETURN(const HostRowLists lists,
                      NewLists(plan.num_recv_rows(), plan.num_pairs() * num_parts, /*weighted=*/true, device));
  ListPairs(plan, num_parts, lists);
  return absl::OkStatus();
}

// The rows must be in device memory because the product reads them many times, once for each part of the weights.
// Layers that weigh the input need a weighed copy of the rows, so theirs cannot stay in place.
bool CudaEngine::CanStayInPlace(const CudaLayer& layer, const RankPlanView& plan, ConstMatrixView received) const {
  return ffn_->reads_runs_in_place() && !layer.spec.expert.weighs_input &&
         layer.shape.row_pitch == layer.shape.hidden_dim && reinterpret_cast<uintptr_t>(received.data) % 16 == 0 &&
         TakesRuns(plan) && IsDeviceMemory(received.data);
}

absl::Status CudaEngine::GatherSendRows(const RankPlanView& plan, ConstMatrixView home_rows, MatrixView send_rows) {
  SY_RETURN_IF_ERROR(CheckRows("home rows", home_rows, dtype_, plan.num_home_rows, home_rows.num_cols));
  SY_RETURN_IF_ERROR(CheckRows("send rows", send_rows, dtype_, plan.num_send_rows(), home_rows.num_cols));
  SY_ASSIGN_OR_RETURN(std::byte * table, device_->NewTable(plan.send_rows.size_bytes()));
  std::copy(plan.send_rows.begin(), plan.send_rows.end(), reinterpret_cast<int32_t*>(table));
  SY_RETURN_IF_ERROR(device_->UploadTables());
  return GatherRows(home_rows, reinterpret_cast<const int32_t*>(device_->OnDevice(table)), send_rows,
                    device_->compute());
}

// A small step leaves room in the workspace for outputs in several parts, and more parts keep more of the GPU busy.
int64_t CudaEngine::MaxParts(const FfnShape& shape, const RankPlanView& plan) const {
  if (plan.num_pairs() == 0 || plan.num_recv_rows() > kMaxPartedPairs || plan.num_pairs() > kMaxPartedPairs) return 1;
  const int64_t rows = static_cast<int64_t>(device_->Size(Workspace::kOutputs)) / (shape.row_pitch * element_bytes());
  return std::clamp<int64_t>(rows / plan.num_pairs(), 1, kMaxParts);
}

absl::StatusOr<FfnStep> CudaEngine::BuffersOf(const CudaLayer& layer, const RankPlanView& plan) const {
  FfnStep step;
  step.plan = &plan;
  const int64_t row_bytes = layer.shape.row_pitch * element_bytes();
  const int64_t hidden_bytes = layer.shape.hidden_pitch * element_bytes();
  SY_ASSIGN_OR_RETURN(step.grouped, device_->Get(Workspace::kGrouped, plan.num_pairs() * row_bytes));
  SY_ASSIGN_OR_RETURN(step.hidden, device_->Get(Workspace::kHidden, plan.num_pairs() * hidden_bytes));
  SY_ASSIGN_OR_RETURN(step.outputs, device_->Get(Workspace::kOutputs, plan.num_pairs() * row_bytes));
  return step;
}

absl::Status CudaEngine::RunExperts(LayerId layer_id, const RankPlanView& plan, ConstMatrixView received,
                                    MatrixView partial_sums) {
  SY_ASSIGN_OR_RETURN(const CudaLayer* layer, FindLayer(layer_id));
  SY_RETURN_IF_ERROR(CheckStep(*layer, plan, received, partial_sums));
  if (plan.num_recv_rows() == 0) return absl::OkStatus();
  SY_ASSIGN_OR_RETURN(FfnStep step, BuffersOf(*layer, plan));
  if (CanStayInPlace(*layer, plan, received)) step.rows_in_place = received;
  SY_ASSIGN_OR_RETURN(const int num_parts, ffn_->MakeTables(*layer, plan, MaxParts(layer->shape, plan)));
  RowLists outputs;  // for each received row, the outputs to add up
  SY_RETURN_IF_ERROR(NewPairLists(plan, num_parts, &outputs));
  RowLists scattered = outputs;  // for each received row, its grouped rows: the same list unless outputs come in parts
  if (num_parts > 1 && step.rows_in_place.data == nullptr) SY_RETURN_IF_ERROR(NewPairLists(plan, 1, &scattered));
  (layer->spec.expert.weighs_input ? outputs : scattered).weights = nullptr;  // weigh the input or the output, not both
  SY_RETURN_IF_ERROR(device_->UploadTables());
  const int64_t pitch = layer->shape.row_pitch;
  if (step.rows_in_place.data == nullptr) {
    SY_RETURN_IF_ERROR(ScatterRows(received, scattered, step.grouped, pitch, device_->compute()));
  }
  SY_RETURN_IF_ERROR(ffn_->Run(*layer, step));
  return SumRows(step.outputs, pitch, outputs, partial_sums, /*early=*/true, device_->compute());
}

absl::Status CudaEngine::Combine(const RankPlanView& plan, ConstMatrixView returned, MatrixView output) {
  SY_RETURN_IF_ERROR(CheckRows("returned sums", returned, dtype_, plan.num_send_rows(), output.num_cols));
  SY_RETURN_IF_ERROR(CheckRows("output rows", output, dtype_, plan.num_home_rows, output.num_cols));
  RowLists returns;
  SY_ASSIGN_OR_RETURN(const HostRowLists lists, NewLists(plan.num_home_rows, plan.num_send_rows(), false, &returns));
  ListReturns(plan, lists);
  SY_RETURN_IF_ERROR(device_->UploadTables());
  return SumRows(returned.data, returned.num_cols, returns, output, /*early=*/false, device_->compute());
}

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertEngine>> CreateCudaEngine(std::shared_ptr<CudaDevice> device,
                                                               const CudaEngineOptions& options) {
  SY_RETURN_IF_ERROR(device->MakeCurrent());
  const DType dtype = options.compute_dtype;
  const bool is_half = dtype == DType::kF16 || dtype == DType::kBF16;
  std::unique_ptr<ExpertFfn> ffn;
  if (is_half && device->has_wgmma() && !options.force_cublas) {
    SY_ASSIGN_OR_RETURN(ffn, CreateHopperFfn(device.get(), dtype));
  } else {
    ffn = CreateCublasFfn(device.get(), dtype, options.allow_tf32);
  }
  return std::make_unique<CudaEngine>(std::move(device), dtype, std::move(ffn));
}

}  // namespace switchyard
