// The kernel of grouped_gemm.h.
#pragma once

#include "moe/experts/cuda/kernels/gemm_consumer.cuh"
#include "moe/experts/cuda/kernels/gemm_producers.cuh"

namespace switchyard {

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
  // The shuffle tells the compiler that all lanes have the same value, so that descriptors live in uniform registers.
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  if (warp / 4 == Shape::kWarpgroups) {
    if constexpr (kMovesRegisters) hopper::ShrinkRegisters<40>();
    const bool leads = threadIdx.x % 32 == 0;
    if (warp % 4 == 0) TileScheduler<Shape>(shared, args).Run();
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
