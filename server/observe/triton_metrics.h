// Triton's metrics of models (nv_inference_*), for dashboards and load generators that know them. They are derived from
// each layer's statistics when they are collected.
#pragma once

#include <prometheus/collectable.h>

#include "server/observe/metrics.h"

namespace switchyard {

// Thread-safe.
class TritonMetrics final : public prometheus::Collectable {
 public:
  // `metrics` must outlive this object.
  explicit TritonMetrics(const Metrics* metrics) : metrics_(metrics) {}

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const Metrics* const metrics_;
};

}  // namespace switchyard
