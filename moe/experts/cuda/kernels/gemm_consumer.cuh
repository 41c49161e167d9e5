// The warps of the grouped GEMM that multiply and write out.
#pragma once

#include "moe/experts/cuda/kernels/activation.cuh"
#include "moe/experts/cuda/kernels/gemm_producers.cuh"
#include "moe/experts/cuda/kernels/wgmma_ops.cuh"

namespace switchyard {

// The next larger width of a product after `width`. Widths are 8 and the multiples of 16 (step_tables.cc cuts tiles to
// them).
constexpr int NextWidth(int width) { return width < 16 ? 16 : width + 16; }

// One of the warpgroups that multiply. It computes 64 output features for all rows of the tile.
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
  // Calls MultiplyWidth with the smallest width from `kWidth` on that covers all rows.
  template <int kWidth = 8>
  __device__ void Multiply(int num_rows) {
    if constexpr (kWidth < Shape::kRows) {
      if (num_rows > kWidth) return Multiply<NextWidth(kWidth)>(num_rows);
    }
    MultiplyWidth<kWidth>();
  }

  template <int kWidth>
  __device__ void MultiplyWidth() {
    int weights_done = 0;
    int rows_done = 0;
    for (int k = 0; k < num_k_; ++k) {
      hopper::Wait(&shared_->rows_full[rows_.stage], rows_.phase);
      hopper::Wait(&shared_->weights_full[weights_.stage], weights_.phase);
      MultiplyStage<kWidth>(k > 0);
      // The previous product is done, so its stages may be filled again.
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

  template <int kWidth>
  __device__ void MultiplyStage(int accumulate) {
    const uint64_t weights = hopper::TileDescriptor(shared_->weights[weights_.stage] + warpgroup_ * Shape::kBlockBytes);
    const uint64_t rows = hopper::TileDescriptor(shared_->rows[rows_.stage]);
    __syncwarp();  // lanes may have left the waits at different times, and the product needs them together
    hopper::WgmmaFence();
#pragma unroll
    for (int i = 0; i < kBlockDim / 16; ++i) {
      Wgmma<T, kWidth>::Run(sums_, weights + 2 * i, rows + 2 * i, i == 0 ? accumulate : 1);
    }
    hopper::WgmmaCommit();
  }

  // Rows were copied to all blocks of the cluster, so every block must learn that this one has finished with them.
  // Weights were copied to this block only.
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
    switch (args_.form) {
      case InnerForm::kNone:
        return WriteChunks(Identity{}, unit, m_block);
      case InnerForm::kSilu:
        return WriteChunks(Silu{}, unit, m_block);
      case InnerForm::kGelu:
        return WriteChunks(Gelu{}, unit, m_block);
      case InnerForm::kRelu:
        return WriteChunks(Relu{}, unit, m_block);
      case InnerForm::kGeluTanh:
        return WriteChunks(GeluTanh{}, unit, m_block);
      case InnerForm::kSwish:
        return WriteChunks(Swish<float>{args_.swish}, unit, m_block);
    }
  }

  // A thread holds features lane / 4 and lane / 4 + 8 of its warp's 16, for rows 8 j + 2 (lane % 4) and the row after
  // it, in sums_[4 j + 0 … 3].
  template <typename Act>
  __device__ void WriteChunks(const Act& act, const WorkUnit& unit, int m_block) {
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
        StageGated(act, sums, bias, staging);
        __syncwarp();
        StoreChunk<1>(out, first, unit.num_rows, staging);
      } else {
        StagePlain(act, sums, bias, staging);
        __syncwarp();
        StoreChunk<2>(out, first, unit.num_rows, staging);
      }
      __syncwarp();
    }
  }

  template <typename Act>
  static __device__ void StageGated(const Act& act, const float* sums, const float* bias, std::byte* staging) {
    const int lane = threadIdx.x % 32;
    constexpr int kMatrices = Shape::kChunkRows / 8;
    uint32_t packed[kMatrices];
#pragma unroll
    for (int i = 0; i < kMatrices; ++i) {
      const float* s = sums + 4 * i;
      packed[i] = Pack<T>(MultiplyGated(act, s[0] + bias[0], s[2] + bias[1]),
                          MultiplyGated(act, s[1] + bias[0], s[3] + bias[1]));
    }
    if constexpr (kMatrices == 4) {
      hopper::StoreMatricesTransposed(staging + lane * Shape::kOutPitch, packed[0], packed[1], packed[2], packed[3]);
    } else {
      hopper::StoreMatricesTransposed(staging + lane % 16 * Shape::kOutPitch, packed[0], packed[1]);
    }
  }

  template <typename Act>
  static __device__ void StagePlain(const Act& act, const float* sums, const float* bias, std::byte* staging) {
    const int lane = threadIdx.x % 32;
    // The four matrices: rows from 8 j on with features 0 to 7 and 8 to 15, then rows from 8 (j + 1) on likewise.
    std::byte* const to = staging + (lane / 16 * 8 + lane % 8) * Shape::kOutPitch + lane / 8 % 2 * 16;
#pragma unroll
    for (int j = 0; j < Shape::kChunkRows / 8; j += 2) {
      uint32_t packed[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* s = sums + 4 * (j + i / 2) + i % 2 * 2;
        packed[i] = Pack<T>(act.Apply(s[0] + bias[i % 2]), act.Apply(s[1] + bias[i % 2]));
      }
      hopper::StoreMatricesTransposed(to + 8 * j * Shape::kOutPitch, packed[0], packed[1], packed[2], packed[3]);
    }
  }

  // Stores a chunk of the tile's rows from row `first` on, kPieces times 16 bytes of each row.
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

}  // namespace switchyard
