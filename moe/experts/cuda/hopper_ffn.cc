// ExpertFfn with Switchyard's grouped GEMM: two products for all experts, which also apply activation and biases.
#include <algorithm>
#include <cstring>
#include <map>

#include "moe/experts/cuda/expert_ffn.h"
#include "moe/experts/cuda/gemm_choice.h"
#include "moe/experts/cuda/kernels/grouped_gemm.h"
#include "moe/experts/cuda/step_tables.h"
#include "moe/gpu/cuda_status.h"

namespace switchyard {
namespace {

// The copy engine's maps of the workspace for one layer, one per tile.
struct LayerMaps {
  // Where the workspace was when the maps were made. It moves when another engine needs a larger one.
  const std::byte* grouped_rows = nullptr;
  const std::byte* hidden_rows = nullptr;
  RowsMap grouped[kNumGemmTiles];
  RowsMap hidden[kNumGemmTiles];
};

// How one product of a step is cut into tiles.
struct Cut {
  GemmTile tile = GemmTile::kRows128;
  std::vector<TileGroup> groups;
  const TileGroup* device_groups = nullptr;
  int num_tiles = 0;
};

class HopperFfn final : public ExpertFfn {
 public:
  HopperFfn(CudaDevice* device, DType dtype) : device_(device), dtype_(dtype) {}

  bool reads_runs_in_place() const override { return true; }
  int64_t ProductBytesPerPair(const FfnShape&) const override { return 0; }
  int64_t TableBytes(int64_t num_pairs, int num_slots) const override;
  PackTarget TargetOf(const CudaLayer& layer, int slot, Part part) const override;
  absl::StatusOr<int> MakeTables(const CudaLayer& layer, const RankPlanView& plan, int64_t max_parts) override;
  absl::Status Run(const CudaLayer& layer, const FfnStep& step) override;

 private:
  int NumMultiprocessors(const RankPlanView& plan) const;
  absl::StatusOr<const LayerMaps*> MapsOf(const CudaLayer& layer);
  absl::Status MakeMaps(Workspace workspace, int64_t pitch, const std::byte* rows, RowsMap* maps) const;
  absl::Status MakeCut(const RankPlanView& plan, int m_blocks, int k_blocks, Cut& cut);
  static void UseCut(const Cut& cut, GroupedGemmArgs& args);
  GroupedGemmArgs UpArgs(const CudaLayer& layer, const FfnStep& step) const;
  GroupedGemmArgs DownArgs(const CudaLayer& layer, const FfnStep& step) const;

  CudaDevice* const device_;
  const DType dtype_;
  std::map<const CudaLayer*, LayerMaps> maps_;

  // These belong to the step that is being enqueued.
  Cut up_;
  Cut down_;
  int down_splits_ = 1;
};

int64_t HopperFfn::TableBytes(int64_t num_pairs, int num_slots) const {
  return 2 * static_cast<int64_t>(sizeof(TileGroup)) *
         MaxGroups(num_pairs, num_slots, SizeOf(GemmTile::kRows16).max_rows);
}

absl::StatusOr<const LayerMaps*> HopperFfn::MapsOf(const CudaLayer& layer) {
  LayerMaps& maps = maps_[&layer];
  SY_ASSIGN_OR_RETURN(const std::byte* grouped, device_->Get(Workspace::kGrouped, 0));
  SY_ASSIGN_OR_RETURN(const std::byte* hidden, device_->Get(Workspace::kHidden, 0));
  if (maps.grouped_rows != grouped || maps.hidden_rows != hidden) {
    SY_RETURN_IF_ERROR(MakeMaps(Workspace::kGrouped, layer.shape.row_pitch, grouped, maps.grouped));
    SY_RETURN_IF_ERROR(MakeMaps(Workspace::kHidden, layer.shape.hidden_pitch, hidden, maps.hidden));
    maps.grouped_rows = grouped;
    maps.hidden_rows = hidden;
  }
  return &maps;
}

absl::Status HopperFfn::MakeMaps(Workspace workspace, int64_t pitch, const std::byte* rows, RowsMap* maps) const {
  const int64_t capacity = static_cast<int64_t>(device_->Size(workspace)) / (pitch * 2);
  for (int tile = 0; tile < kNumGemmTiles; ++tile) {
    SY_ASSIGN_OR_RETURN(maps[tile], MakeRowsMap(dtype_, rows, capacity, pitch, static_cast<GemmTile>(tile)));
  }
  return absl::OkStatus();
}

PackTarget HopperFfn::TargetOf(const CudaLayer& layer, int slot, Part part) const {
  const FfnShape& shape = layer.shape;
  PackTarget target;
  target.dtype = dtype_;
  if (part == Part::kDown) {
    target.weights = layer.down.data() + slot * shape.down_elements() * 2;
    target.k_blocks = shape.hidden_pitch / kBlockDim;
  } else {
    target.weights = layer.up.data() + slot * shape.up_elements() * 2;
    target.k_blocks = shape.row_pitch / kBlockDim;
    if (layer.spec.expert.gated) target.place = part == Part::kGate ? RowPlace::kGate : RowPlace::kUp;
  }
  return target;
}

// Our kernels keep their multiprocessors until they are done, so they leave some to an exchange that runs meanwhile.
int HopperFfn::NumMultiprocessors(const RankPlanView& plan) const {
  const bool exchanges_meanwhile = plan.num_chunks > 1 && plan.num_ranks > 1;
  return exchanges_meanwhile ? device_->multiprocessors_beside_exchange() : device_->num_multiprocessors();
}

absl::Status HopperFfn::MakeCut(const RankPlanView& plan, int m_blocks, int k_blocks, Cut& cut) {
  cut.tile = ChooseTile(plan.expert_offsets, m_blocks, k_blocks, NumMultiprocessors(plan));
  cut.groups.clear();
  cut.num_tiles = CutTiles(plan, SizeOf(cut.tile).max_rows, cut.groups);
  const size_t num_bytes = cut.groups.size() * sizeof(TileGroup);
  SY_ASSIGN_OR_RETURN(std::byte * table, device_->NewTable(num_bytes));
  std::memcpy(table, cut.groups.data(), num_bytes);
  cut.device_groups = reinterpret_cast<const TileGroup*>(device_->OnDevice(table));
  return absl::OkStatus();
}

absl::StatusOr<int> HopperFfn::MakeTables(const CudaLayer& layer, const RankPlanView& plan, int64_t max_parts) {
  const int up_blocks = static_cast<int>(layer.shape.up_rows / kBlockDim);
  const int row_blocks = static_cast<int>(layer.shape.row_pitch / kBlockDim);
  const int hidden_blocks = static_cast<int>(layer.shape.hidden_pitch / kBlockDim);
  SY_RETURN_IF_ERROR(MakeCut(plan, up_blocks, row_blocks, up_));
  SY_RETURN_IF_ERROR(MakeCut(plan, row_blocks, hidden_blocks, down_));
  const int splits = ChooseSplits(down_.tile, down_.num_tiles, row_blocks, hidden_blocks, NumMultiprocessors(plan));
  down_splits_ = static_cast<int>(std::min<int64_t>(splits, max_parts));
  return down_splits_;
}

void HopperFfn::UseCut(const Cut& cut, GroupedGemmArgs& args) {
  args.groups = cut.device_groups;
  args.num_groups = static_cast<int>(cut.groups.size());
  args.num_tiles = cut.num_tiles;
}

GroupedGemmArgs HopperFfn::UpArgs(const CudaLayer& layer, const FfnStep& step) const {
  GroupedGemmArgs args;
  args.weights = layer.up.data();
  args.bias = reinterpret_cast<const float*>(layer.up_bias.data());
  args.out = step.hidden;
  args.out_pitch = layer.shape.hidden_pitch;
  UseCut(up_, args);
  args.in_place = step.rows_in_place.data != nullptr;
  args.m_blocks = static_cast<int>(layer.shape.up_rows / kBlockDim);
  args.k_blocks = static_cast<int>(layer.shape.row_pitch / kBlockDim);
  args.gated = layer.spec.expert.gated;
  args.form = InnerFormOf(layer.spec.expert);
  args.swish = SwishConstantsOf<float>(layer.spec.expert);
  return args;
}

GroupedGemmArgs HopperFfn::DownArgs(const CudaLayer& layer, const FfnStep& step) const {
  GroupedGemmArgs args;
  args.weights = layer.down.data();
  args.bias = reinterpret_cast<const float*>(layer.down_bias.data());
  args.out = step.outputs;
  args.out_pitch = layer.shape.row_pitch;
  UseCut(down_, args);
  args.m_blocks = static_cast<int>(layer.shape.row_pitch / kBlockDim);
  args.k_blocks = static_cast<int>(layer.shape.hidden_pitch / kBlockDim);
  args.k_splits = down_splits_;
  args.split_stride = step.plan->num_pairs() * layer.shape.row_pitch;
  return args;
}

absl::Status HopperFfn::Run(const CudaLayer& layer, const FfnStep& step) {
  if (step.plan->num_pairs() == 0) return absl::OkStatus();
  SY_ASSIGN_OR_RETURN(const LayerMaps* maps, MapsOf(layer));
  RowsMap rows = maps->grouped[static_cast<int>(up_.tile)];
  if (const ConstMatrixView in_place = step.rows_in_place; in_place.data != nullptr) {
    SY_ASSIGN_OR_RETURN(rows, MakeRowsMap(dtype_, in_place.data, in_place.num_rows, in_place.num_cols, up_.tile));
  }
  const int max_blocks = NumMultiprocessors(*step.plan);
  SY_RETURN_IF_ERROR(LaunchGroupedGemm(dtype_, up_.tile, rows, UpArgs(layer, step), max_blocks, device_->compute()));
  return LaunchGroupedGemm(dtype_, down_.tile, maps->hidden[static_cast<int>(down_.tile)], DownArgs(layer, step),
                           max_blocks, device_->compute());
}

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertFfn>> CreateHopperFfn(CudaDevice* device, DType dtype) {
  if (!device->has_wgmma()) return absl::FailedPreconditionError("this GPU has no Hopper tensor cores");
  SY_RETURN_IF_ERROR(PrepareGroupedGemm());
  return std::make_unique<HopperFfn>(device, dtype);
}

}  // namespace switchyard
