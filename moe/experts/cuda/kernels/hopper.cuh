// The Hopper instructions that the grouped GEMM uses, each in a thin function: barriers in shared memory, bulk copies
// that complete on them, warpgroup matrix products, clusters. Names follow the PTX manual.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace switchyard::hopper {

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// --- Barriers. `parity` is the parity of the phase to wait for: 0, 1, 0, …

__device__ __forceinline__ void InitBarrier(uint64_t* barrier, uint32_t num_arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(num_arrivals));
}

// Makes initialised barriers visible to the copy engine and to the other blocks of the cluster.
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives once, and makes the phase also wait for `num_bytes` of copies.
__device__ __forceinline__ void ArriveExpecting(uint64_t* barrier, uint32_t num_bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(num_bytes)
               : "memory");
}

__device__ __forceinline__ void Arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}

// Arrives at the same barrier of block `cta_rank` of the cluster. On purpose it releases nothing beyond the block: a
// release to the cluster would wait for every store before it, and the stages that are handed over here were only read.
__device__ __forceinline__ void ArriveRemote(uint64_t* barrier, uint32_t cta_rank) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}\n" ::"r"(SharedAddress(barrier)),
      "r"(cta_rank)
      : "memory");
}

__device__ __forceinline__ void Wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n}\n" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// --- Copies from global to shared memory that complete on a barrier.

__device__ __forceinline__ void CopyBulk(void* shared, const void* global, uint32_t num_bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   SharedAddress(shared)),
               "l"(global), "r"(num_bytes), "r"(SharedAddress(barrier))
               : "memory");
}

__device__ __forceinline__ void CopyTile(void* shared, const CUtensorMap* map, int column, int row, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          SharedAddress(shared)),
      "l"(map), "r"(column), "r"(row), "r"(SharedAddress(barrier))
      : "memory");
}

// Copies to the same place in every block in `cta_mask`, and completes on each block's own barrier.
__device__ __forceinline__ void CopyTileMulticast(void* shared, const CUtensorMap* map, int column, int row,
                                                  uint64_t* barrier, uint16_t cta_mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(SharedAddress(shared)),
      "l"(map), "r"(column), "r"(row), "r"(SharedAddress(barrier)), "h"(cta_mask)
      : "memory");
}

__device__ __forceinline__ void PrefetchTensorMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// --- Warpgroup matrix products.

// Describes a 1024-byte-aligned tile in shared memory whose rows are 64 16-bit elements (128 bytes), with 16-byte
// pieces swizzled by the row modulo 8. Adding 2 to the descriptor moves it on by 16 columns.
__device__ __forceinline__ uint64_t TileDescriptor(const void* shared) {
  constexpr uint64_t kSwizzle128 = 1ull << 62;
  constexpr uint64_t kEightRows = (1024ull >> 4) << 32;
  constexpr uint64_t kUnused = 1ull << 16;
  return kSwizzle128 | kEightRows | kUnused | ((SharedAddress(shared) & 0x3ffff) >> 4);
}

__device__ __forceinline__ void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void WgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Stores four (two) 8×8 matrices of 16-bit elements, transposed: lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void StoreMatricesTransposed(void* shared, uint32_t m0, uint32_t m1, uint32_t m2,
                                                        uint32_t m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(SharedAddress(shared)),
               "r"(m0), "r"(m1), "r"(m2), "r"(m3)
               : "memory");
}

__device__ __forceinline__ void StoreMatricesTransposed(void* shared, uint32_t m0, uint32_t m1) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(SharedAddress(shared)), "r"(m0),
               "r"(m1)
               : "memory");
}

// --- Registers and clusters.

template <int kRegisters>
__device__ __forceinline__ void GrowRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void ShrinkRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

__device__ __forceinline__ uint32_t ClusterCtaRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void SyncCluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// --- Kernels that start before the previous kernel has ended.

// Blocks until all writes of previous kernels are visible. Before this call, touch only constant data.
__device__ __forceinline__ void WaitForPreviousKernels() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// Lets the next kernel's blocks start as soon as there is room.
__device__ __forceinline__ void LetNextKernelStart() { asm volatile("griddepcontrol.launch_dependents;"); }

}  // namespace switchyard::hopper
