// The warps of the grouped GEMM that supply work: the scheduler and the producers of weights and rows.
#pragma once

#include "moe/experts/cuda/kernels/gemm_tile.cuh"
#include "moe/experts/cuda/kernels/grouped_gemm.h"
#include "moe/experts/cuda/kernels/hopper.cuh"

namespace switchyard {

// TileScheduler: one warp that finds the thread block's units of work ahead of the warps that need them. Units are
// numbered group by group; within a group, all tiles of one stretch of weights come before those of the next stretch. A
// stretch is some block rows and one of the splits along K. The warp looks at 32 groups at a time and never goes back
// to an earlier group.
template <typename Shape>
class TileScheduler {
 public:
  __device__ TileScheduler(typename Shape::Shared* shared, const GroupedGemmArgs& args)
      : shared_(shared),
        args_(args),
        units_per_tile_((args.m_blocks + kBlocksPerUnit - 1) / kBlocksPerUnit * args.k_splits) {}

  // All lanes of the warp call it.
  __device__ void Run() {
    const int num_units = args_.num_tiles * units_per_tile_;
    for (int i = blockIdx.x / Shape::kCluster; i < num_units; i += gridDim.x / Shape::kCluster) Push(Find(i));
    Push(WorkUnit{});
  }

 private:
  static constexpr int kBlocksPerUnit = Shape::kWarpgroups * Shape::kCluster;

  __device__ WorkUnit Find(int unit_idx) {
    const int lane = threadIdx.x % 32;
    while (true) {
      const int candidate = group_ + lane;
      const bool starts_before =
          candidate < args_.num_groups && args_.groups[candidate].first_tile * units_per_tile_ <= unit_idx;
      const int count = __popc(__ballot_sync(0xffffffff, starts_before));
      group_ += count - 1;
      if (count < 32) break;
    }
    const TileGroup group = args_.groups[group_];
    const int local = unit_idx - group.first_tile * units_per_tile_;
    const int tile = local % group.num_tiles;
    const int stretch = local / group.num_tiles;
    const int split = stretch % args_.k_splits;
    const int skipped = tile * group.rows_per_tile;
    const int first_k = args_.k_blocks * split / args_.k_splits;
    return {group.slot,
            group.first_row + skipped,
            (args_.in_place ? group.source_row : group.first_row) + skipped,
            min(group.rows_per_tile, group.num_rows - skipped),
            stretch / args_.k_splits * kBlocksPerUnit,
            first_k,
            args_.k_blocks * (split + 1) / args_.k_splits - first_k,
            split};
  }

  __device__ void Push(const WorkUnit& unit) {
    if (threadIdx.x % 32 == 0) {
      hopper::Wait(&shared_->units_empty[ring_.stage], ring_.phase ^ 1);
      shared_->units[ring_.stage] = unit;
      hopper::Arrive(&shared_->units_full[ring_.stage]);
    }
    ring_.Advance();
  }

  typename Shape::Shared* const shared_;
  const GroupedGemmArgs& args_;
  const int units_per_tile_;
  int group_ = 0;
  RingCursor<Shape::kUnitStages> ring_;
};

// Reads the scheduler's units in the other warps: producers read as single threads, consumers as whole warps.
template <typename Shape>
class UnitReader {
 public:
  __device__ explicit UnitReader(typename Shape::Shared* shared) : shared_(shared) {}

  __device__ WorkUnit NextOfThread() {
    hopper::Wait(&shared_->units_full[ring_.stage], ring_.phase);
    const WorkUnit unit = shared_->units[ring_.stage];
    hopper::Arrive(&shared_->units_empty[ring_.stage]);
    ring_.Advance();
    return unit;
  }

  __device__ WorkUnit NextOfWarp() {
    hopper::Wait(&shared_->units_full[ring_.stage], ring_.phase);
    const WorkUnit unit = shared_->units[ring_.stage];
    __syncwarp();  // all lanes have copied it
    if (threadIdx.x % 32 == 0) hopper::Arrive(&shared_->units_empty[ring_.stage]);
    ring_.Advance();
    return unit;
  }

 private:
  typename Shape::Shared* const shared_;
  RingCursor<Shape::kUnitStages> ring_;
};

// One thread that keeps the ring of weights full. It need not wait for previous kernels, because none writes weights.
template <typename T, typename Shape>
class WeightProducer {
 public:
  __device__ WeightProducer(typename Shape::Shared* shared, const GroupedGemmArgs& args, int cta_rank)
      : shared_(shared), args_(args), cta_rank_(cta_rank) {}

  __device__ void Run() {
    UnitReader<Shape> units(shared_);
    for (WorkUnit unit = units.NextOfThread(); unit.num_rows > 0; unit = units.NextOfThread()) Load(unit);
  }

 private:
  __device__ void Load(const WorkUnit& unit) {
    const T* from[Shape::kWarpgroups];
#pragma unroll
    for (int i = 0; i < Shape::kWarpgroups; ++i) {
      const int m_block = min(unit.m_block + cta_rank_ * Shape::kWarpgroups + i, args_.m_blocks - 1);
      const int64_t row = static_cast<int64_t>(unit.slot) * args_.m_blocks + m_block;
      from[i] = static_cast<const T*>(args_.weights) + (row * args_.k_blocks + unit.first_k) * kBlockElements;
    }
    for (int k = 0; k < unit.num_k; ++k, ring_.Advance()) {
      uint64_t* const full = &shared_->weights_full[ring_.stage];
      hopper::Wait(&shared_->weights_empty[ring_.stage], ring_.phase ^ 1);
      hopper::ArriveExpecting(full, Shape::kWarpgroups * Shape::kBlockBytes);
#pragma unroll
      for (int i = 0; i < Shape::kWarpgroups; ++i) {
        hopper::CopyBulk(shared_->weights[ring_.stage] + i * Shape::kBlockBytes, from[i] + k * kBlockElements,
                         Shape::kBlockBytes, full);
      }
    }
  }

  typename Shape::Shared* const shared_;
  const GroupedGemmArgs& args_;
  const int cta_rank_;
  RingCursor<Shape::kWeightStages> ring_;
};

// One thread that keeps the ring of rows full. Every block of a cluster copies a share of the boxes to all blocks.
template <typename T, typename Shape>
class RowProducer {
 public:
  __device__ RowProducer(typename Shape::Shared* shared, const CUtensorMap* map, int cta_rank)
      : shared_(shared), map_(map), cta_rank_(cta_rank) {}

  __device__ void Run() {
    hopper::PrefetchTensorMap(map_);
    hopper::WaitForPreviousKernels();
    UnitReader<Shape> units(shared_);
    for (WorkUnit unit = units.NextOfThread(); unit.num_rows > 0; unit = units.NextOfThread()) Load(unit);
  }

 private:
  __device__ void Load(const WorkUnit& unit) {
    const int num_boxes = (unit.num_rows + Shape::kBoxRows - 1) / Shape::kBoxRows;
    for (int k = 0; k < unit.num_k; ++k, ring_.Advance()) {
      hopper::Wait(&shared_->rows_empty[ring_.stage], ring_.phase ^ 1);
      hopper::ArriveExpecting(&shared_->rows_full[ring_.stage], num_boxes * Shape::kBoxBytes);
      for (int box = cta_rank_; box < num_boxes; box += Shape::kCluster) {
        LoadBox(shared_->rows[ring_.stage] + box * Shape::kBoxBytes, unit.first_k + k,
                unit.source_row + box * Shape::kBoxRows);
      }
    }
  }

  __device__ void LoadBox(std::byte* to, int k, int row) {
    uint64_t* const full = &shared_->rows_full[ring_.stage];
    if constexpr (Shape::kCluster == 1) {
      hopper::CopyTile(to, map_, k * kBlockDim, row, full);
    } else {
      hopper::CopyTileMulticast(to, map_, k * kBlockDim, row, full, (1 << Shape::kCluster) - 1);
    }
  }

  typename Shape::Shared* const shared_;
  const CUtensorMap* const map_;
  const int cta_rank_;
  RingCursor<Shape::kRowStages> ring_;
};

}  // namespace switchyard
