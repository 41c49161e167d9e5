// What Prometheus' client libraries tell of their process (process_*), from /proc: for the front and for workers.
#pragma once

#include <prometheus/collectable.h>

#include <vector>

namespace switchyard {

// Thread-safe.
class ProcessMetrics final : public prometheus::Collectable {
 public:
  // What cannot be read is left out.
  std::vector<prometheus::MetricFamily> Collect() const override;
};

}  // namespace switchyard
