#include <algorithm>
#include <utility>

#include "moe/experts/cuda/kernels/grouped_gemm.cuh"
#include "moe/experts/cuda/kernels/grouped_gemm.h"
#include "moe/gpu/cuda_status.h"
#include "moe/gpu/driver.h"

namespace switchyard {
namespace {

template <typename T, typename Shape>
absl::Status Prepare() {
  SY_CUDA(cudaFuncSetAttribute(GroupedGemmKernel<T, Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               Shape::kSharedBytes));
  return absl::OkStatus();
}

// Clusters that can be resident at once. They may be fewer than the multiprocessors divided by the cluster's size,
// because a cluster must lie within one of the GPU's processing clusters, whose number of multiprocessors need not be a
// multiple of that size. The number is the same for every launch, so it is determined once.
template <typename T, typename Shape>
absl::StatusOr<int> MaxClusters(const cudaLaunchConfig_t& config) {
  static const std::pair<cudaError_t, int> found = [&config] {
    int clusters = 0;
    const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, GroupedGemmKernel<T, Shape>, &config);
    return std::pair(error, clusters);
  }();
  SY_RETURN_IF_ERROR(CudaStatus(found.first, "cudaOccupancyMaxActiveClusters"));
  return found.second;
}

template <typename T, typename Shape>
absl::Status Launch(const RowsMap& rows, const GroupedGemmArgs& args, int max_blocks, cudaStream_t stream) {
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = Shape::kCluster;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(max_blocks / Shape::kCluster * Shape::kCluster);
  config.blockDim = dim3(Shape::kThreads);
  config.dynamicSmemBytes = Shape::kSharedBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  int64_t clusters = max_blocks / Shape::kCluster;
  if constexpr (Shape::kCluster > 1) {
    SY_ASSIGN_OR_RETURN(const int resident, (MaxClusters<T, Shape>(config)));
    clusters = std::min<int64_t>(clusters, resident);
  }
  const int64_t num_units =
      args.num_tiles * CeilDiv(args.m_blocks, Shape::kWarpgroups * Shape::kCluster) * args.k_splits;
  config.gridDim = dim3(static_cast<unsigned>(std::min(clusters, num_units) * Shape::kCluster));
  SY_CUDA(cudaLaunchKernelEx(&config, GroupedGemmKernel<T, Shape>, rows.map, args));
  return absl::OkStatus();
}

// Calls body with the TileShape of `tile`.
template <typename Body>
auto WithShape(GemmTile tile, const Body& body) {
  switch (tile) {
    case GemmTile::kRows16:
      return body(Rows16{});
    case GemmTile::kRows32:
      return body(Rows32{});
    case GemmTile::kRows64:
      return body(Rows64{});
    case GemmTile::kRows128:
      return body(Rows128{});
    case GemmTile::kRows256:
      break;
  }
  return body(Rows256{});
}

}  // namespace

GemmTileSize SizeOf(GemmTile tile) {
  return WithShape(tile, [](auto shape) {
    return GemmTileSize{shape.kRows, shape.kBoxRows, shape.kWarpgroups * shape.kCluster, shape.kCluster};
  });
}

absl::Status PrepareGroupedGemm() {
  for (int tile = 0; tile < kNumGemmTiles; ++tile) {
    SY_RETURN_IF_ERROR(WithShape(static_cast<GemmTile>(tile), [](auto shape) -> absl::Status {
      SY_RETURN_IF_ERROR((Prepare<__nv_bfloat16, decltype(shape)>()));
      return Prepare<__half, decltype(shape)>();
    }));
  }
  return absl::OkStatus();
}

absl::StatusOr<RowsMap> MakeRowsMap(DType dtype, const void* rows, int64_t capacity, int64_t pitch, GemmTile tile) {
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(pitch), static_cast<cuuint64_t>(capacity)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(pitch) * 2};
  const cuuint32_t box[2] = {kBlockDim, static_cast<cuuint32_t>(SizeOf(tile).box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  RowsMap result;
  SY_CU(cuTensorMapEncodeTiled, &result.map,
        dtype == DType::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
        const_cast<void*>(rows), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result;
}

absl::Status LaunchGroupedGemm(DType dtype, GemmTile tile, const RowsMap& rows, const GroupedGemmArgs& args,
                               int max_blocks, cudaStream_t stream) {
  if (args.num_tiles == 0) return absl::OkStatus();
  return WithShape(tile, [&](auto shape) -> absl::Status {
    if (dtype == DType::kF16) return Launch<__half, decltype(shape)>(rows, args, max_blocks, stream);
    return Launch<__nv_bfloat16, decltype(shape)>(rows, args, max_blocks, stream);
  });
}

}  // namespace switchyard
