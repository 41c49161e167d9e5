#include "server/api/kserve/control/kserve_statistics.h"

#include "server/api/kserve/control/kserve_models.h"

namespace switchyard {
namespace {

void Fill(const Tally& tally, inference::StatisticDuration* duration) {
  duration->set_count(static_cast<uint64_t>(tally.count));
  duration->set_ns(static_cast<uint64_t>(tally.total_us) * 1000);
}

}  // namespace

inference::ModelStatistics StatisticsOf(const std::string& name, const LayerStatistics::Snapshot& counts) {
  inference::ModelStatistics statistics;
  statistics.set_name(name);
  statistics.set_version(kKserveVersion);
  statistics.set_last_inference(static_cast<uint64_t>(absl::ToUnixMillis(counts.last_success)));
  statistics.set_inference_count(static_cast<uint64_t>(counts.success.count));
  statistics.set_execution_count(static_cast<uint64_t>(counts.num_steps));
  inference::InferStatistics& stages = *statistics.mutable_inference_stats();
  Fill(counts.success, stages.mutable_success());
  Fill(counts.failure, stages.mutable_fail());
  Fill(counts.queue, stages.mutable_queue());
  Fill(counts.input, stages.mutable_compute_input());
  Fill(counts.infer, stages.mutable_compute_infer());
  Fill(counts.output, stages.mutable_compute_output());
  for (const auto& [rows, tally] : counts.steps) {
    inference::InferBatchStatistics& batch = *statistics.add_batch_stats();
    batch.set_batch_size(static_cast<uint64_t>(rows));
    Fill(tally.input, batch.mutable_compute_input());
    Fill(tally.infer, batch.mutable_compute_infer());
    Fill({tally.infer.count, 0}, batch.mutable_compute_output());
  }
  return statistics;
}

}  // namespace switchyard
