// Brings weights from host memory to their place on the GPU: copies them in stretches through page-locked staging, and
// converts, transposes and places them with a kernel. The next stretch is copied into staging while one is in flight.
//
// Thread-safety: up to kNumLoaders threads may call Load at once; each takes a loader.
#pragma once

#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "base/status.h"
#include "moe/experts/cuda/kernels/pack_weights.h"
#include "moe/gpu/memory.h"
#include "moe/gpu/stream.h"
#include "moe/weights/weight_source.h"

namespace switchyard {

// One matrix or bias and where it goes.
struct MatrixLoad {
  WeightView source;
  PackTarget target;
};
struct BiasLoad {
  ConstMatrixView source;
  RowPlace place = RowPlace::kPlain;
  int64_t first_row = 0;
  DType out_dtype = DType::kF32;
  void* out = nullptr;
};

class WeightLoader {
 public:
  // Threads that may load at once, and the bytes of device memory that their staging takes.
  static constexpr int kNumLoaders = 8;
  static int64_t StagingBytes();

  static absl::StatusOr<std::unique_ptr<WeightLoader>> Create();

  // Returns when all weights are in place.
  absl::Status Load(const std::vector<MatrixLoad>& matrices, const std::vector<BiasLoad>& biases);

 private:
  struct Stage {
    PinnedBuffer host;
    DeviceBuffer device;
    CudaEvent done;
  };
  struct Loader {
    CudaStream stream;
    Stage stages[2];
    int next = 0;
  };

  static absl::StatusOr<std::unique_ptr<Loader>> CreateLoader();
  static absl::StatusOr<const std::byte*> Upload(Loader& loader, const std::byte* data, size_t num_bytes);
  static absl::Status LoadMatrix(Loader& loader, const MatrixLoad& load);
  static absl::Status LoadBias(Loader& loader, const BiasLoad& load);
  static absl::Status LoadAll(Loader& loader, const std::vector<MatrixLoad>& matrices,
                              const std::vector<BiasLoad>& biases);

  absl::StatusOr<std::unique_ptr<Loader>> Take();

  Mutex mu_;
  std::vector<std::unique_ptr<Loader>> idle_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard
