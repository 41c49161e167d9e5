#include "server/observe/triton_metrics.h"

#include <prometheus/metric_family.h>

namespace switchyard {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Snapshot = LayerStatistics::Snapshot;

constexpr char kVersionLabel[] = "1";

struct CounterRow {
  const char* name;
  const char* help;
  double (*value)(const Snapshot&);
};

double Micros(const Tally& tally) { return static_cast<double>(tally.total_us); }

// The metrics with the labels {model, version}.
constexpr CounterRow kCounters[] = {
    {"nv_inference_request_success", "Requests answered.",
     [](const Snapshot& counts) { return static_cast<double>(counts.success.count); }},
    {"nv_inference_count", "Inferences done: one for each request answered.",
     [](const Snapshot& counts) { return static_cast<double>(counts.success.count); }},
    {"nv_inference_exec_count", "Steps done, each with rows of one or more requests.",
     [](const Snapshot& counts) { return static_cast<double>(counts.num_steps); }},
    {"nv_inference_request_duration_us", "Time of answered requests from arrival to answer, in microseconds.",
     [](const Snapshot& counts) { return Micros(counts.success); }},
    {"nv_inference_queue_duration_us", "Time of answered requests in the queue, in microseconds.",
     [](const Snapshot& counts) { return Micros(counts.queue); }},
    {"nv_inference_compute_input_duration_us", "Time of answered requests in gate and plan, in microseconds.",
     [](const Snapshot& counts) { return Micros(counts.input); }},
    {"nv_inference_compute_infer_duration_us", "Time of answered requests on the workers, in microseconds.",
     [](const Snapshot& counts) { return Micros(counts.infer); }},
    {"nv_inference_compute_output_duration_us", "The rest of the time of answered requests, in microseconds.",
     [](const Snapshot& counts) { return Micros(counts.output); }},
};

MetricFamily Family(const char* name, const char* help) {
  MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = MetricType::Counter;
  return family;
}

ClientMetric Counter(const std::string& model, double value) {
  ClientMetric metric;
  metric.label = {{"model", model}, {"version", kVersionLabel}};
  metric.counter.value = value;
  return metric;
}

}  // namespace

std::vector<MetricFamily> TritonMetrics::Collect() const {
  const auto layers = metrics_->AllStatistics();
  std::vector<MetricFamily> families;
  for (const CounterRow& row : kCounters) {
    MetricFamily& family = families.emplace_back(Family(row.name, row.help));
    for (const auto& [model, counts] : layers) family.metric.push_back(Counter(model, row.value(counts)));
  }
  MetricFamily& failures = families.emplace_back(Family("nv_inference_request_failure", "Requests that failed."));
  for (const auto& [model, counts] : layers) {
    for (int reason = 0; reason < kNumFailureReasons; ++reason) {
      ClientMetric metric = Counter(model, static_cast<double>(counts.failures_by_reason[reason]));
      metric.label.push_back({"reason", FailureReasonName(static_cast<FailureReason>(reason))});
      failures.metric.push_back(std::move(metric));
    }
  }
  return families;
}

}  // namespace switchyard
