// Triton's metrics of GPUs (nv_gpu_*), for every GPU of this host that NVIDIA's management library shows.
//
// The library comes with the driver. It is looked up at run time, because the front links nothing of CUDA. Without the
// library there are no such metrics.
#pragma once

#include <prometheus/collectable.h>

#include <memory>
#include <vector>

namespace switchyard {

// Thread-safe.
class GpuMetrics final : public prometheus::Collectable {
 public:
  // `library` is the library's file name.
  explicit GpuMetrics(const char* library = "libnvidia-ml.so.1");
  ~GpuMetrics() override;

  // Values that a GPU does not report are left out.
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  class Nvml;
  std::unique_ptr<const Nvml> nvml_;  // null when the library is missing or does not work
};

}  // namespace switchyard
