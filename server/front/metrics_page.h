// Collects everything that the front's /metrics page shows: its own metrics, the same under Triton's names, and metrics
// of the GPUs and the process.
#pragma once

#include <prometheus/metric_family.h>

#include <vector>

#include "http/process_metrics.h"
#include "server/front/front.h"
#include "server/observe/gpu_metrics.h"
#include "server/observe/triton_metrics.h"

namespace switchyard {

// Thread-safe.
class MetricsPage {
 public:
  // `front` outlives this.
  explicit MetricsPage(Front* front) : front_(front), triton_(&front->metrics()) {}

  std::vector<prometheus::MetricFamily> Collect() const;

 private:
  Front* const front_;
  const TritonMetrics triton_;
  const GpuMetrics gpus_;
  const ProcessMetrics process_;
};

}  // namespace switchyard
