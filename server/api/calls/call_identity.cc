#include "server/api/calls/call_identity.h"

#include <grpc/support/time.h>

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "base/clock.h"
#include "server/api/calls/memory_owner.h"

namespace switchyard {
namespace {

constexpr size_t kMaxClientIdBytes = 64;
// A deadline further away counts as none, because clocks would overflow.
constexpr double kLongestDeadlineUs = 365.0 * 86'400 * 1e6;

constexpr char kRequestIdKey[] = "x-request-id";

std::string ClientIdOf(const grpc::CallbackServerContext& context) {
  const auto& metadata = context.client_metadata();
  const auto it = metadata.find("x-client-id");
  if (it == metadata.end()) return "";
  return std::string(it->second.data(), std::min(it->second.size(), kMaxClientIdBytes));
}

std::string SenderOf(const grpc::CallbackServerContext& context) {
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

RequestIdentity IdentifyCall(const ServerOptions& options, grpc::CallbackServerContext* context) {
  const auto& metadata = context->client_metadata();
  const auto find = [&](const char* key) {
    const auto it = metadata.find(key);
    return it == metadata.end() ? std::string_view() : std::string_view(it->second.data(), it->second.size());
  };
  RequestIdentity identity = Identify(find(kRequestIdKey), find("traceparent"), context->peer());
  Holder holder = {SenderOf(*context), options.client_ids ? ClientIdOf(*context) : ""};
  identity.client = holder.client_id.empty() ? holder.sender : holder.client_id;
  identity.holder = std::make_shared<const Holder>(std::move(holder));
  identity.deadline = SteadyDeadline(context->raw_deadline());
  context->AddTrailingMetadata(kRequestIdKey, identity.id);
  return identity;
}

}  // namespace switchyard
