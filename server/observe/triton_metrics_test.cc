#include "server/observe/triton_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include "server/observe/gpu_metrics.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

std::string Text(const prometheus::Collectable& collectable) {
  return prometheus::TextSerializer().Serialize(collectable.Collect());
}

TEST(TritonMetrics, EveryLayerIsAModel) {
  Metrics metrics;
  LayerSpec spec;
  spec.name = "3";
  spec.num_experts = 2;
  metrics.AddLayer(ServedLayer{
      .id = {0}, .model = "m", .spec = spec, .gates = {}, .on_group = {FirstPlacement(Placement::Even(2, 1))}});
  metrics.RecordRequest({0}, absl::StatusCode::kOk,
                        {.num_steps = 1, .queue_us = 10, .gate_us = 3, .plan_us = 2, .step_us = 50}, 70);
  metrics.RecordRequest({0}, absl::StatusCode::kCancelled, {}, 5);
  metrics.RecordRejection(absl::StatusCode::kInvalidArgument, LayerId{0});
  metrics.RecordStep({.layer = {0}, .num_rows = 4, .rows_per_rank = {4}}, {2, 2});
  const std::string text = Text(TritonMetrics(&metrics));
  for (const char* line : {"# TYPE nv_inference_request_success counter\n",
                           "nv_inference_request_success{model=\"m.3\",version=\"1\"} 1\n",
                           "nv_inference_count{model=\"m.3\",version=\"1\"} 1\n",
                           "nv_inference_exec_count{model=\"m.3\",version=\"1\"} 1\n",
                           "nv_inference_request_duration_us{model=\"m.3\",version=\"1\"} 70\n",
                           "nv_inference_queue_duration_us{model=\"m.3\",version=\"1\"} 10\n",
                           "nv_inference_compute_input_duration_us{model=\"m.3\",version=\"1\"} 5\n",
                           "nv_inference_compute_infer_duration_us{model=\"m.3\",version=\"1\"} 50\n",
                           "nv_inference_compute_output_duration_us{model=\"m.3\",version=\"1\"} 5\n",
                           "nv_inference_request_failure{model=\"m.3\",version=\"1\",reason=\"REJECTED\"} 0\n",
                           "nv_inference_request_failure{model=\"m.3\",version=\"1\",reason=\"CANCELED\"} 1\n",
                           "nv_inference_request_failure{model=\"m.3\",version=\"1\",reason=\"OTHER\"} 1\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST(GpuMetrics, WhatEveryGpuTells) {
  EXPECT_THAT(Text(GpuMetrics("server/observe/libfake_nvml.so")),
              AllOf(HasSubstr("nv_gpu_utilization{gpu_uuid=\"GPU-one\"} 0.75\n"),
                    HasSubstr("nv_gpu_utilization{gpu_uuid=\"GPU-two\"} 0\n"),
                    HasSubstr("nv_gpu_power_usage{gpu_uuid=\"GPU-one\"} 123.5\n"),
                    Not(HasSubstr("nv_gpu_power_usage{gpu_uuid=\"GPU-two\"}")),
                    HasSubstr("nv_gpu_power_limit{gpu_uuid=\"GPU-two\"} 700\n"),
                    HasSubstr("nv_gpu_memory_total_bytes{gpu_uuid=\"GPU-two\"} 1000\n"),
                    HasSubstr("nv_gpu_memory_used_bytes{gpu_uuid=\"GPU-one\"} 100\n")));
}

TEST(GpuMetrics, NoneWithoutTheLibrary) {
  EXPECT_THAT(GpuMetrics("libnowhere.so.9").Collect(), IsEmpty());
  EXPECT_THAT(GpuMetrics("libc.so.6").Collect(), IsEmpty()) << "a library without its functions";
}

}  // namespace
}  // namespace switchyard
