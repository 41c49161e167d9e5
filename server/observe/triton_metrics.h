// Triton's metrics of models, for dashboards and load generators that know those: nv_inference_*, derived from the
// statistics of each layer when they are collected.
#pragma once

#include <prometheus/collectable.h>

#include "server/observe/metrics.h"

namespace switchyard {

// Thread-safe.
class TritonMetrics final : public prometheus::Collectable {
 public:
  // `metrics` outlives this.
  explicit TritonMetrics(const Metrics* metrics) : metrics_(metrics) {}

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const Metrics* const metrics_;
};

}  // namespace switchyard
