// The kernel of grouped_gemm.h.
#pragma once

#include "moe/experts/cuda/activation.cuh"
#include "moe/experts/cuda/grouped_gemm.h"
#include "moe/experts/cuda/hopper.cuh"
#include "moe/experts/cuda/wgmma_ops.cuh"

namespace switchyard {

// What one block works on: a tile of rows and a few block rows of weights.
struct WorkUnit {
  int slot;
  int first_row;
  int source_row;
  int num_rows;  // 0: there is no more work
  int m_block;   // first block row of the whole cluster
  int first_k;   // block columns [first_k, first_k + num_k)
  int num_k;
  int split;
};

// `kRows_` are the most rows of a tile, `kBoxRows_` those that one copy brings, `kCluster_` the blocks that share the
// rows they read. Each of the two warpgroups that multiply has a block row of weights.
//
// Weights come from memory, rows from the L2: each have a ring of their own, as deep as their way is long.
template <int kRows_, int kBoxRows_, int kCluster_, int kWeightStages_, int kRowStages_>
struct TileShape {
  static constexpr int kRows = kRows_;
  static constexpr int kBoxRows = kBoxRows_;
  static constexpr int kWarpgroups = 2;
  static constexpr int kCluster = kCluster_;
  static constexpr int kWeightStages = kWeightStages_;
  static constexpr int kRowStages = kRowStages_;

  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kBlockBytes = kBlockElements * 2;
  static constexpr int kBoxBytes = kBoxRows * kBlockDim * 2;
  static constexpr int kRowBytes = kRows * kBlockDim * 2;
  static constexpr int kAccumulators = kRows / 2;
  static constexpr int kUnitStages = 4;

  // Outputs pass through shared memory to leave as whole 16-byte pieces of rows: each warp's by itself, in chunks of
  // rows that are padded against bank conflicts.
  static constexpr int kChunkRows = kRows < 32 ? kRows : 32;
  static constexpr int kOutPitch = 48;

  struct Shared {
    alignas(1024) std::byte weights[kWeightStages][kWarpgroups * kBlockBytes];
    alignas(1024) std::byte rows[kRowStages][kRowBytes];
    alignas(16) std::byte out[kWarpgroups * 4][kChunkRows * kOutPitch];
    uint64_t weights_full[kWeightStages], weights_empty[kWeightStages];
    uint64_t rows_full[kRowStages], rows_empty[kRowStages];
    uint64_t units_full[kUnitStages], units_empty[kUnitStages];
    WorkUnit units[kUnitStages];
  };
  static constexpr int kSharedBytes = sizeof(Shared) + 1024;  // dynamic shared memory is not aligned enough
};

using Rows16 = TileShape<16, 16, 1, 10, 6>;
using Rows32 = TileShape<32, 32, 1, 10, 6>;
using Rows64 = TileShape<64, 64, 1, 8, 6>;
using Rows128 = TileShape<128, 64, 2, 8, 5>;
using Rows256 = TileShape<256, 64, 2, 5, 4>;

// A position in a ring of stages, and its phase.
template <int kStages>
struct RingCursor {
  int stage = 0;
  uint32_t phase = 0;
  __device__ void Advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// Scheduler: one warp that finds the block's units, ahead of those who need them. Units are numbered group by group;
// inside a group the tiles of one stretch of weights come first, then the stretches along K. The warp looks at 32
// groups at a time; groups only ever move forward.
template <typename Shape>
class Scheduler {
 public:
  __device__ Scheduler(typename Shape::Shared* shared, const GroupedGemmArgs& args)
      : shared_(shared),
        args_(args),
        units_per_tile_((args.m_blocks + kBlocksPerUnit - 1) / kBlocksPerUnit * args.k_splits) {}

  // All lanes call it.
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

// How everybody else reads the scheduler's units: producers as single threads, consumers as whole warps.
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

// One thread that keeps the ring of weights full. They depend on no kernel before this one.
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

// One thread that keeps the ring of rows full: every block of a cluster brings a share of the boxes to all of them.
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

// One of the warpgroups that multiply: 64 output features, all rows of the tile.
template <typename T, typename Shape>
class Consumer {
 public:
  __device__ Consumer(typename Shape::Shared* shared, const GroupedGemmArgs& args, int cta_rank, int warpgroup)
      : shared_(shared), args_(args), cta_rank_(cta_rank), warpgroup_(warpgroup), thread_(threadIdx.x % 128) {}

  __device__ void Run() {
    UnitReader<Shape> units(shared_);
    for (WorkUnit unit = units.NextOfWarp(); unit.num_rows > 0; unit = units.NextOfWarp()) {
      num_k_ = unit.num_k;
      Multiply(unit.num_rows);
      const int m_block = unit.m_block + cta_rank_ * Shape::kWarpgroups + warpgroup_;
      if (m_block < args_.m_blocks) WriteOut(unit, m_block);
    }
  }

 private:
  // Calls MultiplyWidth for the narrowest product that has all rows.
  __device__ void Multiply(int num_rows) {
    if (num_rows <= 8) return MultiplyWidth<8>();
    switch ((num_rows + 15) / 16) {
      case 1:
        return MultiplyWidth<16>();
      case 2:
        return MultiplyWidth<32>();
      case 3:
        return MultiplyWidth<48>();
      case 4:
        return MultiplyWidth<64>();
      case 5:
        return MultiplyWidth<80>();
      case 6:
        return MultiplyWidth<96>();
      case 7:
        return MultiplyWidth<112>();
      case 8:
        return MultiplyWidth<128>();
      case 9:
        return MultiplyWidth<144>();
      case 10:
        return MultiplyWidth<160>();
      case 11:
        return MultiplyWidth<176>();
      case 12:
        return MultiplyWidth<192>();
      case 13:
        return MultiplyWidth<208>();
      case 14:
        return MultiplyWidth<224>();
      case 15:
        return MultiplyWidth<240>();
      default:
        return MultiplyWidth<256>();
    }
  }

  template <int kWidth>
  __device__ void MultiplyWidth() {
    if constexpr (kWidth <= Shape::kRows) {
      int weights_done = 0;
      int rows_done = 0;
      for (int k = 0; k < num_k_; ++k) {
        hopper::Wait(&shared_->rows_full[rows_.stage], rows_.phase);
        hopper::Wait(&shared_->weights_full[weights_.stage], weights_.phase);
        MultiplyStage<kWidth>(k > 0);
        // The product before this one is done: its stages may be filled again.
        hopper::WgmmaWait<1>();
        if (k > 0) Release(weights_done, rows_done);
        weights_done = weights_.stage;
        rows_done = rows_.stage;
        weights_.Advance();
        rows_.Advance();
      }
      hopper::WgmmaWait<0>();
      Release(weights_done, rows_done);
      __syncwarp();
    }
  }

  template <int kWidth>
  __device__ void MultiplyStage(int accumulate) {
    const uint64_t weights = hopper::TileDescriptor(shared_->weights[weights_.stage] + warpgroup_ * Shape::kBlockBytes);
    const uint64_t rows = hopper::TileDescriptor(shared_->rows[rows_.stage]);
    __syncwarp();  // lanes may have left the waits apart, and the product needs them together
    hopper::WgmmaFence();
#pragma unroll
    for (int i = 0; i < kBlockDim / 16; ++i) {
      Wgmma<T, kWidth>::Run(sums_, weights + 2 * i, rows + 2 * i, i == 0 ? accumulate : 1);
    }
    hopper::WgmmaCommit();
  }

  // Rows were brought to the whole cluster, so all of it must know that they are done with; weights only to this block.
  __device__ void Release(int weight_stage, int row_stage) {
    if (thread_ == 0) hopper::Arrive(&shared_->weights_empty[weight_stage]);
    if (thread_ < Shape::kCluster) {
      if constexpr (Shape::kCluster == 1) {
        hopper::Arrive(&shared_->rows_empty[row_stage]);
      } else {
        hopper::ArriveRemote(&shared_->rows_empty[row_stage], thread_);
      }
    }
  }

  __device__ void WriteOut(const WorkUnit& unit, int m_block) {
    if (!args_.activated) return WriteChunks<Identity>(unit, m_block);
    switch (args_.activation) {
      case Activation::kSilu:
        return WriteChunks<Silu>(unit, m_block);
      case Activation::kGelu:
        return WriteChunks<Gelu>(unit, m_block);
      case Activation::kRelu:
        return WriteChunks<Relu>(unit, m_block);
    }
  }

  // A thread holds features lane / 4 and lane / 4 + 8 of its warp's 16, for rows 8 j + 2 (lane % 4) and the next, as
  // sums_[4 j + 0 … 3].
  template <typename Act>
  __device__ void WriteChunks(const WorkUnit& unit, int m_block) {
    const int warp = thread_ / 32;
    const int lane = thread_ % 32;
    float bias[2] = {0.0f, 0.0f};
    if (args_.bias != nullptr && unit.split == 0) {
      const float* of_block =
          args_.bias + (static_cast<int64_t>(unit.slot) * args_.m_blocks + m_block) * kBlockDim + warp * 16 + lane / 4;
      bias[0] = of_block[0];
      bias[1] = of_block[8];
    }
    std::byte* const staging = shared_->out[warpgroup_ * 4 + warp];
    T* out = static_cast<T*>(args_.out) + unit.split * args_.split_stride +
             static_cast<int64_t>(unit.first_row) * args_.out_pitch;
    out += args_.gated ? m_block * 32 + warp * 8 : m_block * 64 + warp * 16;
    constexpr int kChunks = Shape::kRows / Shape::kChunkRows;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int first = chunk * Shape::kChunkRows;
      if (first >= unit.num_rows) break;
      const float* const sums = &sums_[first / 2];
      if (args_.gated) {
        StageGated<Act>(sums, bias, staging);
        __syncwarp();
        StoreChunk<1>(out, first, unit.num_rows, staging);
      } else {
        StagePlain<Act>(sums, bias, staging);
        __syncwarp();
        StoreChunk<2>(out, first, unit.num_rows, staging);
      }
      __syncwarp();
    }
  }

  template <typename Act>
  static __device__ void StageGated(const float* sums, const float* bias, std::byte* staging) {
    const int lane = threadIdx.x % 32;
    constexpr int kMatrices = Shape::kChunkRows / 8;
    uint32_t packed[kMatrices];
#pragma unroll
    for (int i = 0; i < kMatrices; ++i) {
      const float* s = sums + 4 * i;
      packed[i] = Pack<T>(Act::Apply(s[0] + bias[0]) * (s[2] + bias[1]), Act::Apply(s[1] + bias[0]) * (s[3] + bias[1]));
    }
    if constexpr (kMatrices == 4) {
      hopper::StoreMatricesTransposed(staging + lane * Shape::kOutPitch, packed[0], packed[1], packed[2], packed[3]);
    } else {
      hopper::StoreMatricesTransposed(staging + lane % 16 * Shape::kOutPitch, packed[0], packed[1]);
    }
  }

  template <typename Act>
  static __device__ void StagePlain(const float* sums, const float* bias, std::byte* staging) {
    const int lane = threadIdx.x % 32;
    // Matrices: rows 8 j, features 0 to 7 and 8 to 15; then rows 8 (j + 1) likewise.
    std::byte* const to = staging + (lane / 16 * 8 + lane % 8) * Shape::kOutPitch + lane / 8 % 2 * 16;
#pragma unroll
    for (int j = 0; j < Shape::kChunkRows / 8; j += 2) {
      uint32_t packed[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* s = sums + 4 * (j + i / 2) + i % 2 * 2;
        packed[i] = Pack<T>(Act::Apply(s[0] + bias[i % 2]), Act::Apply(s[1] + bias[i % 2]));
      }
      hopper::StoreMatricesTransposed(to + 8 * j * Shape::kOutPitch, packed[0], packed[1], packed[2], packed[3]);
    }
  }

  // Rows [first, …) of the tile, kPieces times 16 bytes of each.
  template <int kPieces>
  __device__ void StoreChunk(T* out, int first, int num_rows, const std::byte* staging) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = lane; i < Shape::kChunkRows * kPieces; i += 32) {
      const int row = i / kPieces;
      const int piece = i % kPieces;
      if (first + row >= num_rows) continue;
      *reinterpret_cast<uint4*>(out + (first + row) * args_.out_pitch + piece * 8) =
          *reinterpret_cast<const uint4*>(staging + row * Shape::kOutPitch + piece * 16);
    }
  }

  typename Shape::Shared* const shared_;
  const GroupedGemmArgs& args_;
  const int cta_rank_;
  const int warpgroup_;
  const int thread_;
  RingCursor<Shape::kWeightStages> weights_;
  RingCursor<Shape::kRowStages> rows_;
  int num_k_ = 0;
  float sums_[Shape::kAccumulators];
};

template <int kStages>
__device__ void InitRing(uint64_t* full, uint64_t* empty, int num_readers) {
  for (int stage = 0; stage < kStages; ++stage) {
    hopper::InitBarrier(&full[stage], 1);
    hopper::InitBarrier(&empty[stage], num_readers);
  }
}

template <typename Shape>
__device__ void InitBarriers(typename Shape::Shared* shared) {
  if (threadIdx.x == 0) {
    InitRing<Shape::kWeightStages>(shared->weights_full, shared->weights_empty, Shape::kWarpgroups);
    InitRing<Shape::kRowStages>(shared->rows_full, shared->rows_empty, Shape::kWarpgroups * Shape::kCluster);
    InitRing<Shape::kUnitStages>(shared->units_full, shared->units_empty, Shape::kWarpgroups * 4 + 2);
    hopper::FenceBarrierInit();
  }
  if constexpr (Shape::kCluster > 1) {
    hopper::SyncCluster();
  } else {
    __syncthreads();
  }
}

template <typename T, typename Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    GroupedGemmKernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ GroupedGemmArgs args) {
  extern __shared__ std::byte dynamic_shared[];
  auto* shared =
      reinterpret_cast<typename Shape::Shared*>((reinterpret_cast<uintptr_t>(dynamic_shared) + 1023) / 1024 * 1024);
  hopper::LetNextKernelStart();
  InitBarriers<Shape>(shared);
  const int cta_rank = Shape::kCluster > 1 ? static_cast<int>(hopper::ClusterCtaRank()) : 0;
  constexpr bool kMovesRegisters = Shape::kAccumulators > 64;
  // The same in all lanes, and known to be: descriptors live in uniform registers.
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  if (warp / 4 == Shape::kWarpgroups) {
    if constexpr (kMovesRegisters) hopper::ShrinkRegisters<40>();
    const bool leads = threadIdx.x % 32 == 0;
    if (warp % 4 == 0) Scheduler<Shape>(shared, args).Run();
    if (warp % 4 == 1 && leads) WeightProducer<T, Shape>(shared, args, cta_rank).Run();
    if (warp % 4 == 2 && leads) RowProducer<T, Shape>(shared, &map, cta_rank).Run();
  } else {
    if constexpr (kMovesRegisters) hopper::GrowRegisters<232>();
    Consumer<T, Shape>(shared, args, cta_rank, warp / 4).Run();
  }
  __syncwarp();
  // A block must not end while others of its cluster still write to its shared memory.
  if constexpr (Shape::kCluster > 1) hopper::SyncCluster();
}

}  // namespace switchyard
