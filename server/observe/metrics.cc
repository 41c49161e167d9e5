#include "server/observe/metrics.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "http/common_metrics.h"

namespace switchyard {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::Registry;

const prometheus::Histogram::BucketBoundaries& RowsBuckets() {
  static const prometheus::Histogram::BucketBoundaries buckets = {1,   2,   4,    8,    16,   32,   64,    128,
                                                                  256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  return buckets;
}

// Rows of the busiest rank over the mean of all ranks. 1 means that ranks share the load evenly; the number of ranks
// means that one rank has all of it.
const prometheus::Histogram::BucketBoundaries& ImbalanceBuckets() {
  static const prometheus::Histogram::BucketBoundaries buckets = {1,   1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2,
                                                                  2.5, 3,    4,   6,   8,    16,  32,   64};
  return buckets;
}

void ObserveMicros(prometheus::Histogram* histogram, int64_t micros) {
  histogram->Observe(static_cast<double>(micros) * 1e-6);
}

auto& CounterFamily(Registry& registry, const char* name, const char* help) {
  return BuildCounter().Name(name).Help(help).Register(registry);
}

}  // namespace

Metrics::Metrics()
    : stage_seconds_(BuildHistogram()
                         .Name("switchyard_stage_seconds")
                         .Help("Time in each stage: queue and total per request; gate, plan, dispatch, expert, combine "
                               "and step per step (slowest rank).")
                         .Register(registry_)),
      batch_rows_(BuildHistogram().Name("switchyard_step_rows").Help("Rows in each step.").Register(registry_)),
      expert_rows_(CounterFamily(registry_, "switchyard_expert_rows_total", "Rows computed by each expert.")),
      rank_rows_(CounterFamily(registry_, "switchyard_rank_rows_total",
                               "Rows computed on each rank, once for each of their experts there.")),
      imbalances_(BuildHistogram()
                      .Name("switchyard_step_imbalance_ratio")
                      .Help("Rows of each step's busiest rank over the mean of all ranks: 1 is an even load.")
                      .Register(registry_)),
      imbalance_(BuildGauge()
                     .Name("switchyard_imbalance_ratio")
                     .Help("Rows of the busiest rank over the mean of all ranks, in the last step.")
                     .Register(registry_)),
      steps_(CounterFamily(registry_, "switchyard_steps_total", "Steps finished.")),
      rows_(CounterFamily(registry_, "switchyard_rows_total", "Rows in finished steps.")),
      rows_crossed_(CounterFamily(registry_, "switchyard_rows_crossed_total",
                                  "Copies of rows dispatched to another rank than their home.")),
      bytes_crossed_(CounterFamily(registry_, "switchyard_exchanged_bytes_total",
                                   "Bytes of rows and partial sums that crossed ranks.")),
      requests_(CounterFamily(registry_, "switchyard_requests_total", "Requests answered, by gRPC status code.")),
      queue_rows_(SingleGauge(registry_, "switchyard_admitted_rows", "Rows of requests queued or in flight.")),
      queue_bytes_(SingleGauge(registry_, "switchyard_admitted_bytes", "Bytes of requests queued or in flight.")),
      queue_requests_(SingleGauge(registry_, "switchyard_admitted_requests", "Requests queued or in flight.")),
      oldest_step_seconds_(SingleGauge(registry_, "switchyard_oldest_step_seconds",
                                       "Time since the oldest step in flight was first submitted; 0 for none.")),
      epoch_(SingleGauge(registry_, "switchyard_group_epoch", "Epoch of the worker group; grows when it re-forms.")),
      ranks_serving_(SingleGauge(registry_, "switchyard_ranks_serving", "Workers in the serving group.")),
      recoveries_(SingleCounter(registry_, "switchyard_recoveries_total",
                                "Times the group was re-formed after it had served.")),
      recovery_seconds_(BuildHistogram()
                            .Name("switchyard_recovery_seconds")
                            .Help("From the loss of a group to the next one serving.")
                            .Register(registry_)
                            .Add({}, SecondsBuckets())) {
  AddBuildInfo(registry_);
  auto& queued_rows = BuildGauge()
                          .Name("switchyard_queued_rows")
                          .Help("Rows that no step has taken yet, by priority.")
                          .Register(registry_);
  for (int i = 0; i < kNumPriorities; ++i) queued_rows_[i] = &queued_rows.Add({{"priority", std::to_string(i + 1)}});
  auto& refusals = CounterFamily(registry_, "switchyard_worker_refusals_total",
                                 "Calls at the worker port that did not become a worker, by reason.");
  for (const char* reason : {"token", "user", "late", "first_message", "hello"}) {
    worker_refusals_.push_back(&refusals.Add({{"reason", reason}}));
  }
}

void Metrics::RemoveLayers(const std::vector<LayerId>& layers) {
  MutexLock lock(&mu_);
  for (const LayerId layer : layers) layers_.erase(layer.value);
}

void Metrics::AddLayer(const ServedLayer& served) {
  auto added = std::make_unique<LayerMetrics>();
  LayerMetrics& layer = *added;
  layer.model = served.model;
  layer.layer = served.spec.name;
  const prometheus::Labels labels = {{"model", layer.model}, {"layer", layer.layer}};
  auto stage = [&](const char* name) {
    prometheus::Labels with_stage = labels;
    with_stage["stage"] = name;
    return &stage_seconds_.Add(with_stage, SecondsBuckets());
  };
  layer.queue = stage("queue");
  layer.gate = stage("gate");
  layer.plan = stage("plan");
  layer.dispatch = stage("dispatch");
  layer.expert = stage("expert");
  layer.combine = stage("combine");
  layer.step = stage("step");
  layer.total = stage("total");
  layer.batch_rows = &batch_rows_.Add(labels, RowsBuckets());
  layer.steps = &steps_.Add(labels);
  layer.rows = &rows_.Add(labels);
  layer.rows_crossed = &rows_crossed_.Add(labels);
  layer.bytes_crossed = &bytes_crossed_.Add(labels);
  layer.imbalances = &imbalances_.Add(labels, ImbalanceBuckets());
  layer.imbalance = &imbalance_.Add(labels);
  const auto numbered = [&](const char* label, auto& family, int num_wanted,
                            std::vector<prometheus::Counter*>* counters) {
    while (static_cast<int>(counters->size()) < num_wanted) {
      prometheus::Labels with_number = labels;
      with_number[label] = std::to_string(counters->size());
      counters->push_back(&family.Add(with_number));
    }
  };
  numbered("expert", expert_rows_, served.spec.num_experts, &layer.rows_per_expert);
  numbered("rank", rank_rows_, served.on_group.current_placement().num_ranks(), &layer.rows_per_rank);

  MutexLock lock(&mu_);
  std::unique_ptr<NamedCounts>& counts = counts_[{layer.model, layer.layer}];
  if (counts == nullptr) counts = std::make_unique<NamedCounts>();
  layer.counts = counts.get();
  RequestCounter(layer.model, layer.layer, absl::StatusCode::kOk, counts->requests);
  layers_[served.id.value] = std::move(added);
}

const Metrics::LayerMetrics& Metrics::Find(LayerId layer) const {
  MutexLock lock(&mu_);
  return *layers_.at(layer.value);
}

void Metrics::RecordStep(const StepRecord& record, const std::vector<int64_t>& rows_per_expert) {
  const LayerMetrics& layer = Find(record.layer);
  layer.steps->Increment();
  layer.rows->Increment(static_cast<double>(record.num_rows));
  layer.rows_crossed->Increment(static_cast<double>(record.rows_crossed));
  layer.bytes_crossed->Increment(static_cast<double>(record.bytes_crossed));
  layer.batch_rows->Observe(static_cast<double>(record.num_rows));
  ObserveMicros(layer.gate, record.gate_us);
  ObserveMicros(layer.plan, record.plan_us);
  ObserveMicros(layer.dispatch, record.times.dispatch_us);
  ObserveMicros(layer.expert, record.times.expert_us);
  ObserveMicros(layer.combine, record.times.combine_us);
  ObserveMicros(layer.step, record.total_us);
  layer.counts->statistics.RecordStep(record.num_rows, record.gate_us + record.plan_us, record.total_us);
  RecordLoad(layer, record.rows_per_rank);
  for (size_t expert = 0; expert < rows_per_expert.size(); ++expert) {
    if (rows_per_expert[expert] != 0) {
      layer.rows_per_expert[expert]->Increment(static_cast<double>(rows_per_expert[expert]));
    }
  }
}

void Metrics::RecordLoad(const LayerMetrics& layer, const std::vector<int64_t>& rows_per_rank) {
  int64_t most = 0, sum = 0;
  for (size_t rank = 0; rank < rows_per_rank.size(); ++rank) {
    layer.rows_per_rank[rank]->Increment(static_cast<double>(rows_per_rank[rank]));
    most = std::max(most, rows_per_rank[rank]);
    sum += rows_per_rank[rank];
  }
  if (sum == 0) return;  // every choice was dropped
  const double imbalance = static_cast<double>(most) * static_cast<double>(rows_per_rank.size()) / sum;
  layer.imbalances->Observe(imbalance);
  layer.imbalance->Set(imbalance);
}

prometheus::Counter& Metrics::RequestCounter(const std::string& model, const std::string& layer, absl::StatusCode code,
                                             RequestCounters& counters) {
  std::atomic<prometheus::Counter*>& counter = counters[std::min<size_t>(static_cast<size_t>(code), kNumCodes - 1)];
  if (counter.load() == nullptr) {
    // When two threads get here at once, both get the same counter.
    counter.store(&requests_.Add({{"model", model}, {"layer", layer}, {"code", absl::StatusCodeToString(code)}}));
  }
  return *counter.load();
}

void Metrics::RecordRequest(LayerId layer_id, absl::StatusCode code, const RequestStats& stats, int64_t total_us) {
  const LayerMetrics& layer = Find(layer_id);
  RequestCounter(layer.model, layer.layer, code, layer.counts->requests).Increment();
  ObserveMicros(layer.total, total_us);
  if (code != absl::StatusCode::kOk) return layer.counts->statistics.RecordFailure(code, total_us);
  ObserveMicros(layer.queue, stats.queue_us);
  layer.counts->statistics.RecordSuccess(stats, total_us);
}

void Metrics::RecordRejection(absl::StatusCode code, std::optional<LayerId> layer_id) {
  if (!layer_id.has_value()) return RequestCounter("", "", code, unknown_requests_).Increment();
  const LayerMetrics& layer = Find(*layer_id);
  RequestCounter(layer.model, layer.layer, code, layer.counts->requests).Increment();
  layer.counts->statistics.RecordFailure(code, 0);
}

void Metrics::RecordRecovery(double seconds) {
  recoveries_.Increment();
  recovery_seconds_.Observe(seconds);
}

void Metrics::RecordWorkerRefusal(WorkerRefusal reason) { worker_refusals_[static_cast<size_t>(reason)]->Increment(); }

void Metrics::SetQueue(int64_t rows, int64_t bytes, int64_t requests) {
  queue_rows_.Set(static_cast<double>(rows));
  queue_bytes_.Set(static_cast<double>(bytes));
  queue_requests_.Set(static_cast<double>(requests));
}

void Metrics::SetQueuedRows(const std::array<int64_t, kNumPriorities>& rows) {
  for (int i = 0; i < kNumPriorities; ++i) queued_rows_[i]->Set(static_cast<double>(rows[i]));
}

void Metrics::SetOldestStep(std::chrono::nanoseconds age) {
  oldest_step_seconds_.Set(std::chrono::duration<double>(age).count());
}

void Metrics::SetGroup(Epoch epoch, int ranks_serving) {
  epoch_.Set(static_cast<double>(epoch.value));
  ranks_serving_.Set(ranks_serving);
}

std::vector<int64_t> Metrics::RowsPerExpert(LayerId layer) const {
  std::vector<int64_t> rows;
  for (const prometheus::Counter* counter : Find(layer).rows_per_expert) {
    rows.push_back(static_cast<int64_t>(counter->Value()));
  }
  return rows;
}

LayerStatistics::Snapshot Metrics::Statistics(LayerId layer) const { return Find(layer).counts->statistics.snapshot(); }

std::vector<std::pair<std::string, LayerStatistics::Snapshot>> Metrics::AllStatistics() const {
  // Every request needs the lock, so the statistics are copied without it. They live as long as this object.
  std::vector<std::pair<std::string, const LayerStatistics*>> layers;
  {
    MutexLock lock(&mu_);
    layers.reserve(counts_.size());
    for (const auto& [names, counts] : counts_) {
      layers.emplace_back(absl::StrCat(names.first, ".", names.second), &counts->statistics);
    }
  }
  std::vector<std::pair<std::string, LayerStatistics::Snapshot>> all;
  for (auto& [name, statistics] : layers) all.emplace_back(std::move(name), statistics->snapshot());
  return all;
}

}  // namespace switchyard
