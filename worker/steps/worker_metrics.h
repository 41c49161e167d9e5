// A worker's own Prometheus metrics, of facts that a rank knows better than the front. docs/operations.md explains
// each.
//
// Thread-safe.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/metric_family.h>
#include <prometheus/registry.h>

#include <cstdint>
#include <vector>

#include "base/ids.h"
#include "http/process_metrics.h"
#include "worker/steps/step_pipeline.h"

namespace switchyard {

class WorkerMetrics {
 public:
  WorkerMetrics();

  // All metrics, for a scrape.
  std::vector<prometheus::MetricFamily> Collect() const;
  // Whether the worker is in a group.
  bool in_group() const { return epoch_.Value() > 0; }

  void SetWeightBytes(int64_t bytes) { weight_bytes_.Set(static_cast<double>(bytes)); }
  // The epoch of the group that the worker is in; 0 for none.
  void SetEpoch(Epoch epoch) { epoch_.Set(static_cast<double>(epoch.value)); }
  void SetRank(int rank) { rank_.Set(rank); }

  // Returns a function that counts the step and then calls `done`.
  StepDoneFn Watch(const RankStep& step, StepDoneFn done);

 private:
  void RecordStep(int64_t num_home_rows, int64_t num_pairs, const absl::Status& status, const StepTimes& times);

  prometheus::Registry registry_;
  const ProcessMetrics process_;
  prometheus::Family<prometheus::Counter>& steps_;
  prometheus::Counter& steps_ok_;
  prometheus::Counter& steps_failed_;
  prometheus::Counter& home_rows_;
  prometheus::Counter& rows_;
  prometheus::Family<prometheus::Histogram>& phase_seconds_;
  prometheus::Histogram& dispatch_;
  prometheus::Histogram& expert_;
  prometheus::Histogram& combine_;
  prometheus::Gauge& weight_bytes_;
  prometheus::Gauge& epoch_;
  prometheus::Gauge& rank_;
};

}  // namespace switchyard
