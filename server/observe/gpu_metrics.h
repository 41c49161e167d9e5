// Triton's metrics of GPUs (nv_gpu_*), for every GPU of this host that NVIDIA's management library shows.
//
// The library comes with the driver; it is looked for when the program runs, since the front links nothing of CUDA.
// Where it is missing, so are the metrics.
#pragma once

#include <prometheus/collectable.h>

#include <memory>
#include <vector>

namespace switchyard {

// Thread-safe.
class GpuMetrics final : public prometheus::Collectable {
 public:
  // `library` is its file's name.
  explicit GpuMetrics(const char* library = "libnvidia-ml.so.1");
  ~GpuMetrics() override;

  // What a GPU does not tell is left out.
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  class Nvml;
  std::unique_ptr<const Nvml> nvml_;  // null where there is none
};

}  // namespace switchyard
