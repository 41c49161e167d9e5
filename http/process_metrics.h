// The process_* metrics that Prometheus' client libraries report, from /proc, connections by port and log lines that
// were dropped, for the front and for workers.
#pragma once

#include <prometheus/collectable.h>

#include <vector>

namespace switchyard {

// Thread-safe.
class ProcessMetrics final : public prometheus::Collectable {
 public:
  // Values that cannot be read are left out.
  std::vector<prometheus::MetricFamily> Collect() const override;
};

}  // namespace switchyard
