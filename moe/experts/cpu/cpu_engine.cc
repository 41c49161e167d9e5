#include "moe/experts/cpu/cpu_engine.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/heartbeat.h"
#include "moe/experts/check_layer.h"
#include "moe/experts/cpu/cpu_expert.h"
#include "moe/experts/cpu/row_kernels.h"
#include "moe/experts/custom_expert.h"
#include "moe/linear/parallel.h"
#include "moe/linear/row_chunks.h"

namespace switchyard {
namespace {

// Consecutive pairs of one expert that are computed together, with one library call per GEMM and buffers that stay in
// cache.
struct Tile {
  int slot = 0;
  int64_t first_pair = 0;
  int64_t num_pairs = 0;
};

struct CpuLayer {
  LayerSpec spec;
  std::vector<std::unique_ptr<HostExpert>> experts;  // by slot; null until loaded
};

// Arguments of RunExperts.
struct CpuStep {
  const CpuLayer& layer;
  const RankPlanView& plan;
  ConstMatrixView received;
  MatrixView partial_sums;
};

absl::Status CheckShape(const char* name, ConstMatrixView matrix, DType dtype, int64_t num_rows) {
  if (matrix.dtype == dtype && matrix.num_rows == num_rows) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": ", matrix.num_rows, " rows of ",
                                                 std::string(DTypeName(matrix.dtype)), ", expected ", num_rows, " of ",
                                                 std::string(DTypeName(dtype))));
}

absl::Status CheckSameWidth(const char* name, ConstMatrixView matrix, int64_t num_cols) {
  if (matrix.num_cols == num_cols) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": rows of width ", matrix.num_cols, ", expected ", num_cols));
}

// T is the element of rows: float, double or BF16.
template <typename T>
class CpuEngine final : public ExpertEngine {
 public:
  CpuEngine(const CpuEngineOptions& options, std::unique_ptr<LinearContext> context, HostExpertFactory make_expert)
      : options_(options),
        num_threads_(context->num_threads()),
        kernels_(FastestRowKernels<T>()),
        context_(std::move(context)),
        make_expert_(std::move(make_expert)) {}

  DType compute_dtype() const override { return options_.compute_dtype; }
  absl::Status AddLayer(const LayerSpec& spec, int num_slots) override;
  absl::Status LoadExpert(LayerId layer, int slot, const ExpertWeights& weights) override;
  int64_t weight_bytes() const override;
  absl::StatusOr<std::byte*> ScratchBytes(Scratch purpose, size_t num_bytes) override;
  DeviceStream stream() const override { return nullptr; }

  absl::Status GatherSendRows(const RankPlanView& plan, ConstMatrixView home_rows, MatrixView send_rows) override;
  absl::Status RunExperts(LayerId layer, const RankPlanView& plan, ConstMatrixView received,
                          MatrixView partial_sums) override;
  absl::Status Combine(const RankPlanView& plan, ConstMatrixView returned, MatrixView output) override;

 private:
  using Sum = SumOf<T>;

  absl::Status CheckStep(LayerId layer, const RankPlanView& plan, ConstMatrixView received,
                         ConstMatrixView partial_sums) const;
  void CutTiles(const RankPlanView& plan);
  void StartSums(const CpuStep& step);
  void GatherPair(const CpuStep& step, int64_t pair, std::byte* x) const;
  void AddPair(const CpuStep& step, int64_t pair, const Sum* y);
  void MoveRows(const CpuStep& step, const Tile* done, const Tile* next);
  absl::Status RunTile(const CpuLayer& layer, const Tile& tile);
  void FindSources(const RankPlanView& plan, ConstMatrixView returned);

  const CpuEngineOptions options_;
  const int num_threads_;
  const RowKernels<T> kernels_;

  const std::unique_ptr<LinearContext> context_;  // declared before layers_ so that it outlives the experts
  const HostExpertFactory make_expert_;
  std::vector<CpuLayer> layers_;

  // Buffers of the running step, kept for the next one.
  std::array<HostBuffer, 4> scratch_;  // by Scratch
  HostBuffer x_;                       // [tile, D], rows of a tile side by side
  HostBuffer y_;                       // [tile, D] of Sum, the expert's outputs for those rows
  HostBuffer sums_;                    // [num_recv_rows, D] of Sum; unused if T is Sum
  std::vector<Tile> tiles_;
  std::vector<int32_t> pairs_left_;      // per received row: pairs not yet added
  std::vector<uint8_t> is_started_;      // per received row: whether its sum holds a pair
  std::vector<int64_t> source_offsets_;  // [num_home_rows + 1] into sources_
  std::vector<const T*> sources_;        // returned rows of each home row, in rank order
};

template <typename T>
absl::Status CpuEngine<T>::AddLayer(const LayerSpec& spec, int num_slots) {
  SY_RETURN_IF_ERROR(CheckLayerSizes(spec, num_slots));
  if (options_.custom_expert.empty()) SY_RETURN_IF_ERROR(CheckExpertFormula(spec));
  layers_.push_back({spec, {}});
  layers_.back().experts.resize(num_slots);
  return absl::OkStatus();
}

template <typename T>
absl::Status CpuEngine<T>::LoadExpert(LayerId layer, int slot, const ExpertWeights& weights) {
  if (layer.value < 0 || layer.value >= static_cast<int64_t>(layers_.size())) {
    return absl::InvalidArgumentError(absl::StrCat("layer id ", layer.value, ": there are ", layers_.size()));
  }
  CpuLayer& target = layers_[layer.value];
  if (slot < 0 || slot >= static_cast<int64_t>(target.experts.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", target.spec.name, ": slot ", slot, ", expected 0 to ", target.experts.size() - 1));
  }
  auto expert = make_expert_({options_.compute_dtype, context_.get()}, target.spec, weights);
  if (!expert.ok()) {
    return Annotate(expert.status(), absl::StrCat("layer ", target.spec.name, ", expert in slot ", slot));
  }
  target.experts[slot] = *std::move(expert);
  return options_.compile_at_load ? target.experts[slot]->Prepare() : absl::OkStatus();
}

template <typename T>
int64_t CpuEngine<T>::weight_bytes() const {
  int64_t num_bytes = 0;
  for (const CpuLayer& layer : layers_) {
    for (const auto& expert : layer.experts) num_bytes += expert != nullptr ? expert->weight_bytes() : 0;
  }
  return num_bytes;
}

template <typename T>
absl::StatusOr<std::byte*> CpuEngine<T>::ScratchBytes(Scratch purpose, size_t num_bytes) {
  HostBuffer& buffer = scratch_[static_cast<size_t>(purpose)];
  buffer.EnsureSize(num_bytes);
  return buffer.data();
}

template <typename T>
absl::Status CpuEngine<T>::GatherSendRows(const RankPlanView& plan, ConstMatrixView home_rows, MatrixView send_rows) {
  SY_RETURN_IF_ERROR(CheckShape("home rows", home_rows, compute_dtype(), plan.num_home_rows));
  SY_RETURN_IF_ERROR(CheckShape("send rows", send_rows, compute_dtype(), plan.num_send_rows()));
  SY_RETURN_IF_ERROR(CheckSameWidth("send rows", send_rows, home_rows.num_cols));
  ParallelFor(num_threads_, plan.num_send_rows(), [&](int64_t i) {
    std::memcpy(send_rows.row(i), home_rows.row(plan.send_rows[i]), home_rows.row_bytes());
  });
  return absl::OkStatus();
}

template <typename T>
absl::Status CpuEngine<T>::CheckStep(LayerId layer, const RankPlanView& plan, ConstMatrixView received,
                                     ConstMatrixView partial_sums) const {
  if (layer.value < 0 || layer.value >= static_cast<int64_t>(layers_.size())) {
    return absl::InvalidArgumentError(absl::StrCat("layer id ", layer.value, ": there are ", layers_.size()));
  }
  const CpuLayer& target = layers_[layer.value];
  SY_RETURN_IF_ERROR(CheckShape("received rows", received, compute_dtype(), plan.num_recv_rows()));
  SY_RETURN_IF_ERROR(CheckShape("partial sums", partial_sums, compute_dtype(), plan.num_recv_rows()));
  SY_RETURN_IF_ERROR(CheckSameWidth("received rows", received, target.spec.hidden_dim));
  SY_RETURN_IF_ERROR(CheckSameWidth("partial sums", partial_sums, target.spec.hidden_dim));
  if (plan.num_slots() != static_cast<int64_t>(target.experts.size())) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", target.spec.name, ": the plan has ", plan.num_slots(),
                                                   " expert slots, this rank ", target.experts.size()));
  }
  for (int slot = 0; slot < plan.num_slots(); ++slot) {
    if (plan.expert_offsets[slot] == plan.expert_offsets[slot + 1] || target.experts[slot] != nullptr) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("layer ", target.spec.name, ": rows for the expert in slot ", slot, ", which is not loaded"));
  }
  return absl::OkStatus();
}

template <typename T>
void CpuEngine<T>::CutTiles(const RankPlanView& plan) {
  tiles_.clear();
  for (int slot = 0; slot < plan.num_slots(); ++slot) {
    const int64_t end = plan.expert_offsets[slot + 1];
    for (int64_t begin = plan.expert_offsets[slot]; begin < end;) {
      tiles_.push_back({slot, begin, NextChunkRows(end - begin)});
      begin += tiles_.back().num_pairs;
    }
  }
}

template <typename T>
void CpuEngine<T>::StartSums(const CpuStep& step) {
  const MatrixView& sums = step.partial_sums;
  pairs_left_.assign(sums.num_rows, 0);
  is_started_.assign(sums.num_rows, 0);
  for (const int32_t row_idx : step.plan.pair_rows) ++pairs_left_[row_idx];
  for (int64_t row_idx = 0; row_idx < sums.num_rows; ++row_idx) {
    if (pairs_left_[row_idx] == 0) std::memset(sums.row(row_idx), 0, sums.row_bytes());
  }
  if constexpr (!std::is_same_v<T, Sum>) sums_.EnsureSize(sums.num_rows * sums.num_cols * sizeof(Sum));
}

template <typename T>
void CpuEngine<T>::GatherPair(const CpuStep& step, int64_t pair, std::byte* x) const {
  const std::byte* const row = step.received.row(step.plan.pair_rows[pair]);
  if (step.layer.spec.expert.weighs_input) {
    kernels_.scale(step.plan.pair_weights[pair], reinterpret_cast<const T*>(row), reinterpret_cast<T*>(x),
                   step.received.num_cols);
  } else {
    std::memcpy(x, row, step.received.row_bytes());
  }
}

// The first pair of a row starts the row's sum and the last pair rounds it to the rows' type, so no extra pass over the
// sums has to clear or convert them.
template <typename T>
void CpuEngine<T>::AddPair(const CpuStep& step, int64_t pair, const Sum* y) {
  const int64_t num_cols = step.partial_sums.num_cols;
  const int32_t row_idx = step.plan.pair_rows[pair];
  const Sum weight = step.layer.spec.expert.weighs_input ? 1 : step.plan.pair_weights[pair];
  T* const out = reinterpret_cast<T*>(step.partial_sums.row(row_idx));
  Sum* sum = nullptr;
  if constexpr (std::is_same_v<T, Sum>) {
    sum = out;
  } else {
    sum = reinterpret_cast<Sum*>(sums_.data()) + row_idx * num_cols;
  }
  const Sum* base = is_started_[row_idx] != 0 ? sum : nullptr;
  is_started_[row_idx] = 1;
  if (--pairs_left_[row_idx] == 0) {
    kernels_.finish(weight, y, base, out, num_cols);
  } else {
    kernels_.accumulate(weight, y, base, sum, num_cols);
  }
}

// Adds the outputs of tile `done` to their rows' sums and gathers the rows of tile `next`; either may be null. The
// pairs of one expert have different rows, so the pairs of a tile are added in parallel.
template <typename T>
void CpuEngine<T>::MoveRows(const CpuStep& step, const Tile* done, const Tile* next) {
  const int64_t num_done = done != nullptr ? done->num_pairs : 0;
  const int64_t num_next = next != nullptr ? next->num_pairs : 0;
  const ConstMatrixView& received = step.received;
  x_.EnsureSize(num_next * received.row_bytes());
  const Sum* const y = reinterpret_cast<const Sum*>(y_.data());
  ParallelFor(num_threads_, std::max(num_done, num_next), [&](int64_t i) {
    if (i < num_done) AddPair(step, done->first_pair + i, y + i * received.num_cols);
    if (i < num_next) GatherPair(step, next->first_pair + i, x_.data() + i * received.row_bytes());
  });
}

template <typename T>
absl::Status CpuEngine<T>::RunTile(const CpuLayer& layer, const Tile& tile) {
  const ConstMatrixView x{x_.data(), compute_dtype(), tile.num_pairs, layer.spec.hidden_dim};
  MatrixView y{nullptr, SumDType(compute_dtype()), tile.num_pairs, layer.spec.hidden_dim};
  y_.EnsureSize(y.size_bytes());
  y.data = y_.data();
  return layer.experts[tile.slot]->Run(x, y);
}

template <typename T>
absl::Status CpuEngine<T>::RunExperts(LayerId layer, const RankPlanView& plan, ConstMatrixView received,
                                      MatrixView partial_sums) {
  SY_RETURN_IF_ERROR(CheckStep(layer, plan, received, partial_sums));
  const CpuStep step{layers_[layer.value], plan, received, partial_sums};
  CutTiles(plan);
  StartSums(step);
  const Tile* done = nullptr;
  for (const Tile& tile : tiles_) {
    MoveRows(step, done, &tile);
    SY_RETURN_IF_ERROR(RunTile(step.layer, tile));
    Heartbeat::Beat();
    done = &tile;
  }
  MoveRows(step, done, nullptr);
  return absl::OkStatus();
}

// Lists the returned rows of each home row with a counting sort, which keeps them in rank order.
template <typename T>
void CpuEngine<T>::FindSources(const RankPlanView& plan, ConstMatrixView returned) {
  source_offsets_.assign(plan.num_home_rows + 1, 0);
  for (const int32_t row_idx : plan.send_rows) ++source_offsets_[row_idx + 1];
  for (int64_t i = 0; i < plan.num_home_rows; ++i) source_offsets_[i + 1] += source_offsets_[i];
  sources_.resize(plan.send_rows.size());
  std::vector<int64_t> next(source_offsets_.begin(), source_offsets_.end() - 1);
  for (int64_t i = 0; i < plan.num_send_rows(); ++i) {
    sources_[next[plan.send_rows[i]]++] = reinterpret_cast<const T*>(returned.row(i));
  }
}

template <typename T>
absl::Status CpuEngine<T>::Combine(const RankPlanView& plan, ConstMatrixView returned, MatrixView output) {
  SY_RETURN_IF_ERROR(CheckShape("returned sums", returned, compute_dtype(), plan.num_send_rows()));
  SY_RETURN_IF_ERROR(CheckShape("output rows", output, compute_dtype(), plan.num_home_rows));
  SY_RETURN_IF_ERROR(CheckSameWidth("output rows", output, returned.num_cols));
  FindSources(plan, returned);
  ParallelFor(num_threads_, plan.num_home_rows, [&](int64_t row_idx) {
    const int64_t first = source_offsets_[row_idx];
    const int num_sources = source_offsets_[row_idx + 1] - first;
    if (num_sources == 0) {
      std::memset(output.row(row_idx), 0, output.row_bytes());
    } else if (num_sources == 1) {
      std::memcpy(output.row(row_idx), sources_[first], output.row_bytes());
    } else {
      kernels_.add_rows(&sources_[first], num_sources, reinterpret_cast<T*>(output.row(row_idx)), output.num_cols);
    }
  });
  return absl::OkStatus();
}

// Makes experts that compute ExpertSpec's formula and share one scratch.
HostExpertFactory FormulaExperts() {
  return [scratch = std::make_shared<ExpertScratch>()](const HostExpertContext& context, const LayerSpec& layer,
                                                       const ExpertWeights& weights) {
    return CpuExpert::Load(context, layer, weights, scratch);
  };
}

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertEngine>> CreateCpuEngine(const CpuEngineOptions& options) {
  HostExpertFactory make_expert = FormulaExperts();
  if (!options.custom_expert.empty()) {
    SY_ASSIGN_OR_RETURN(make_expert, FindCustomExpert(options.custom_expert));
  }
  SY_ASSIGN_OR_RETURN(std::unique_ptr<LinearContext> context, LinearContext::Create(options.num_threads));
  switch (options.compute_dtype) {
    case DType::kF64:
      return std::make_unique<CpuEngine<double>>(options, std::move(context), std::move(make_expert));
    case DType::kF32:
      return std::make_unique<CpuEngine<float>>(options, std::move(context), std::move(make_expert));
    case DType::kBF16:
      return std::make_unique<CpuEngine<BF16>>(options, std::move(context), std::move(make_expert));
    case DType::kF16:
      break;
  }
  return absl::UnimplementedError("CPU engine: compute type fp16 is not available; use fp64, fp32 or bf16");
}

}  // namespace switchyard
