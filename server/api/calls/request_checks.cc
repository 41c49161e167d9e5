#include "server/api/calls/request_checks.h"

#include <grpc/support/time.h>

#include <algorithm>
#include <cmath>
#include <string_view>
#include <utility>

#include "server/api/calls/memory_owner.h"
#include "server/requests/pushback.h"

namespace switchyard {
namespace {

constexpr double kMaxCapacityFactor = 1e6;
constexpr size_t kMaxClientIdBytes = 64;
// A deadline further away counts as none, because clocks would overflow.
constexpr double kLongestDeadlineUs = 365.0 * 86'400 * 1e6;

constexpr char kRequestIdKey[] = "x-request-id";

absl::Status CheckWish(const GateWish& wish, const LayerSpec& spec) {
  if (wish.gate_idx < 0 || wish.gate_idx >= spec.num_gates()) {
    return absl::InvalidArgumentError(absl::StrCat("gate_index: the layer has ", spec.num_gates(),
                                                   " gates, expected 0 to ", spec.num_gates() - 1, ", found ",
                                                   wish.gate_idx));
  }
  if (wish.top_k < 0 || wish.top_k > spec.num_experts) {
    return absl::InvalidArgumentError(absl::StrCat("top_k: expected 1 to ", spec.num_experts,
                                                   " experts, or 0 for the gate's own number, found ", wish.top_k));
  }
  const GateSpec& gate = spec.gate_at(static_cast<int>(wish.gate_idx));
  if (gate.scoring == Scoring::kSparseMixer && wish.top_k > gate.top_k) {
    return absl::InvalidArgumentError(
        absl::StrCat("top_k: this gate (sparsemixer) draws ", gate.top_k, " experts at most, found ", wish.top_k));
  }
  if (wish.capacity_factor.has_value() && !(std::abs(*wish.capacity_factor) <= kMaxCapacityFactor)) {
    return absl::InvalidArgumentError(absl::StrCat("capacity_factor: expected a number from ", -kMaxCapacityFactor,
                                                   " to ", kMaxCapacityFactor, ", found ", *wish.capacity_factor));
  }
  return absl::OkStatus();
}

std::string ClientOf(const grpc::CallbackServerContext& context) {
  const auto& metadata = context.client_metadata();
  if (const auto it = metadata.find("x-client-id"); it != metadata.end()) {
    return std::string(it->second.data(), std::min(it->second.size(), kMaxClientIdBytes));
  }
  const auto authentication = context.auth_context();
  const bool is_known = authentication != nullptr && authentication->IsPeerAuthenticated();
  return is_known ? OwnerOf(context) : context.peer();
}

// gRPC keeps deadlines by its own monotonic clock, so this converts them.
SteadyTime SteadyDeadline(gpr_timespec deadline) {
  const gpr_timespec monotonic = gpr_convert_clock_type(deadline, GPR_CLOCK_MONOTONIC);
  const gpr_timespec left = gpr_time_sub(monotonic, gpr_now(GPR_CLOCK_MONOTONIC));
  const double left_us = gpr_timespec_to_micros(left);
  if (left_us > kLongestDeadlineUs) return SteadyTime::max();
  return Clock::Real().Now() + std::chrono::microseconds(static_cast<int64_t>(left_us));
}

}  // namespace

absl::Status ChooseGate(const GateWish& wish, int64_t max_batch_rows, Request* request) {
  const LayerSpec& spec = request->ask.layer->spec;
  SY_RETURN_IF_ERROR(CheckWish(wish, spec));
  const GateSpec& gate = spec.gate_at(static_cast<int>(wish.gate_idx));
  request->ask.gate_idx = static_cast<int>(wish.gate_idx);
  request->ask.top_k = wish.top_k > 0 ? static_cast<int>(wish.top_k) : gate.top_k;
  request->ask.capacity = gate.capacity;
  if (wish.capacity_factor.has_value()) {
    request->ask.capacity.rule = CapacityRule::kTutel;
    request->ask.capacity.factor = *wish.capacity_factor;
  }
  const int usual = spec.num_choices();
  request->ask.row_cost = (request->ask.num_choices() + usual - 1) / usual;
  const int64_t most = std::min(max_batch_rows, request->ask.layer->on_group.max_batch_rows);
  if (request->ask.row_cost <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("top_k: ", request->ask.top_k, " is more than steps of ", most,
                                                 " rows have room for (--max_batch_rows=", max_batch_rows, ")"));
}

absl::Status ChooseQueueing(const QueueWish& wish, const char* timeout_name, Request* request) {
  if (wish.priority < 0) {
    return absl::InvalidArgumentError(absl::StrCat("priority: expected 0 or more, found ", wish.priority));
  }
  if (wish.timeout_us < 0) {
    return absl::InvalidArgumentError(absl::StrCat(timeout_name, ": expected 0 or more, found ", wish.timeout_us));
  }
  constexpr auto kLowest = static_cast<int64_t>(Priority::kBackground);
  if (wish.priority > 0) request->ask.priority = static_cast<Priority>(std::min(wish.priority, kLowest));
  request->ask.queue_timeout = std::chrono::microseconds(std::min(wish.timeout_us, kLongestTimeoutUs));
  return absl::OkStatus();
}

TensorSlices OutputSlices(const Request& request) {
  using Owners = std::pair<std::shared_ptr<const void>, std::shared_ptr<const void>>;
  TensorSlices slices;
  for (const OutputPart& part : request.outcome.output) {
    // gRPC takes bytes as non-const, even though it only reads these.
    slices.emplace_back(
        const_cast<std::byte*>(part.bytes.data()), part.bytes.size(),
        [](void* owners) { delete static_cast<Owners*>(owners); }, new Owners(part.owner, request.outcome.held_bytes));
  }
  return slices;
}

RequestIdentity IdentifyCall(grpc::CallbackServerContext* context) {
  const auto& metadata = context->client_metadata();
  const auto find = [&](const char* key) {
    const auto it = metadata.find(key);
    return it == metadata.end() ? std::string_view() : std::string_view(it->second.data(), it->second.size());
  };
  RequestIdentity identity = Identify(find(kRequestIdKey), find("traceparent"), context->peer());
  identity.client = ClientOf(*context);
  identity.deadline = SteadyDeadline(context->raw_deadline());
  context->AddTrailingMetadata(kRequestIdKey, identity.id);
  return identity;
}

void RecordAnswer(Front& front, const Request& request, const absl::Status& status, const RequestIdentity& identity) {
  const SteadyTime now = Clock::Real().Now();
  const int64_t total_us = MicrosBetween(request.ask.arrival, now);
  front.metrics().RecordRequest(request.ask.layer->id, status.code(), request.outcome.stats, total_us);
  front.request_log().Answered(request, identity, status, total_us, now);
  front.tracer().RequestAnswered(request, identity, status.ok(), now);
}

void RecordRefusal(Front& front, const ServedLayer* layer, const absl::Status& status,
                   const RequestIdentity& identity) {
  front.metrics().RecordRejection(status.code(), layer == nullptr ? std::nullopt : std::optional(layer->id));
  front.request_log().Refused(layer, identity, status);
}

void AddPushback(const absl::Status& status, grpc::CallbackServerContext* context) {
  const int64_t pushback_ms = PushbackMs(status);
  if (pushback_ms > 0) context->AddTrailingMetadata("grpc-retry-pushback-ms", absl::StrCat(pushback_ms));
}

}  // namespace switchyard
