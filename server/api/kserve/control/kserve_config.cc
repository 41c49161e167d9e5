#include "server/api/kserve/control/kserve_config.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace switchyard {
namespace {

void DescribeRank(size_t rank, absl::string_view device, inference::ModelConfig* config) {
  inference::ModelInstanceGroup& group = *config->add_instance_group();
  group.set_name(absl::StrCat(config->name(), "_rank", rank));
  group.set_count(1);
  int32_t gpu = 0;
  if (absl::ConsumePrefix(&device, "cuda:") && absl::SimpleAtoi(device, &gpu)) {
    group.set_kind(inference::ModelInstanceGroup::KIND_GPU);
    group.add_gpus(gpu);
  } else {
    group.set_kind(device.empty() ? inference::ModelInstanceGroup::KIND_AUTO : inference::ModelInstanceGroup::KIND_CPU);
  }
}

}  // namespace

void DescribeServing(const ServingFacts& facts, inference::ModelConfig* config) {
  bool on_gpus = false;
  for (size_t rank = 0; rank < facts.devices.size(); ++rank) {
    DescribeRank(rank, facts.devices[rank], config);
    on_gpus |= config->instance_group().rbegin()->kind() == inference::ModelInstanceGroup::KIND_GPU;
  }
  inference::ModelDynamicBatching& batching = *config->mutable_dynamic_batching();
  batching.set_max_queue_delay_microseconds(static_cast<uint64_t>(facts.max_queue_delay_us));
  inference::ModelQueuePolicy& queue = *batching.mutable_default_queue_policy();
  queue.set_timeout_action(inference::ModelQueuePolicy::REJECT);
  queue.set_allow_timeout_override(true);
  inference::ModelOptimizationPolicy& optimization = *config->mutable_optimization();
  optimization.set_priority(inference::ModelOptimizationPolicy::PRIORITY_DEFAULT);
  optimization.mutable_input_pinned_memory()->set_enable(on_gpus);
  optimization.mutable_output_pinned_memory()->set_enable(on_gpus);
  optimization.set_eager_batching(facts.steps_in_flight > 1);
  config->mutable_response_cache()->set_enable(false);
  (*config->mutable_parameters())["max_batch_rows"].set_string_value(absl::StrCat(facts.max_batch_rows));
}

}  // namespace switchyard
