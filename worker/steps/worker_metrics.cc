#include "worker/steps/worker_metrics.h"

#include <iterator>
#include <utility>

#include "http/common_metrics.h"

namespace switchyard {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildHistogram;

}  // namespace

WorkerMetrics::WorkerMetrics()
    : steps_(BuildCounter()
                 .Name("switchyard_worker_steps_total")
                 .Help("Steps that ended on this rank, by outcome.")
                 .Register(registry_)),
      steps_ok_(steps_.Add({{"outcome", "ok"}})),
      steps_failed_(steps_.Add({{"outcome", "failed"}})),
      home_rows_(SingleCounter(registry_, "switchyard_worker_home_rows_total", "Rows whose home this rank was.")),
      rows_(SingleCounter(registry_, "switchyard_worker_rows_total",
                          "Rows computed on this rank, once for each of their experts here.")),
      phase_seconds_(BuildHistogram()
                         .Name("switchyard_worker_phase_seconds")
                         .Help("Time of each step on this rank by phase: dispatch, expert, combine.")
                         .Register(registry_)),
      dispatch_(phase_seconds_.Add({{"phase", "dispatch"}}, SecondsBuckets())),
      expert_(phase_seconds_.Add({{"phase", "expert"}}, SecondsBuckets())),
      combine_(phase_seconds_.Add({{"phase", "combine"}}, SecondsBuckets())),
      weight_bytes_(SingleGauge(registry_, "switchyard_worker_weight_bytes", "Weights held on the device.")),
      epoch_(
          SingleGauge(registry_, "switchyard_worker_group_epoch", "Epoch of the group this rank is in; 0 for none.")),
      rank_(SingleGauge(registry_, "switchyard_worker_rank", "Number of this rank in its group, or in the last one.")) {
  AddBuildInfo(registry_);
}

std::vector<prometheus::MetricFamily> WorkerMetrics::Collect() const {
  auto all = registry_.Collect();
  auto process = process_.Collect();
  all.insert(all.end(), std::make_move_iterator(process.begin()), std::make_move_iterator(process.end()));
  return all;
}

StepDoneFn WorkerMetrics::Watch(const RankStep& step, StepDoneFn done) {
  return [this, num_home_rows = step.plan.num_home_rows, num_pairs = step.plan.num_pairs(), done = std::move(done)](
             const absl::Status& status, const StepTimes& times) {
    RecordStep(num_home_rows, num_pairs, status, times);
    done(status, times);
  };
}

void WorkerMetrics::RecordStep(int64_t num_home_rows, int64_t num_pairs, const absl::Status& status,
                               const StepTimes& times) {
  if (!status.ok()) return steps_failed_.Increment();
  steps_ok_.Increment();
  home_rows_.Increment(static_cast<double>(num_home_rows));
  rows_.Increment(static_cast<double>(num_pairs));
  dispatch_.Observe(static_cast<double>(times.dispatch_us) * 1e-6);
  expert_.Observe(static_cast<double>(times.expert_us) * 1e-6);
  combine_.Observe(static_cast<double>(times.combine_us) * 1e-6);
}

}  // namespace switchyard
