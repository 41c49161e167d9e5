#include "server/observe/request_log.h"

#include <string>
#include <vector>

#include "base/logging/logging.h"

namespace switchyard {
namespace {

void AddIdentity(const RequestIdentity& identity, std::vector<LogField>* fields) {
  fields->push_back({"request_id", identity.id});
  if (identity.trace.has_value()) fields->push_back({"trace_id", identity.trace->trace_id});
  if (!identity.peer.empty()) fields->push_back({"peer", identity.peer});
}

void AddLayer(const ServedLayer& layer, std::vector<LogField>* fields) {
  fields->push_back({"model", layer.model});
  fields->push_back({"layer", layer.spec.name});
}

std::vector<LogField> FieldsOf(const Request& request, const RequestIdentity& identity, int64_t total_us) {
  std::vector<LogField> fields;
  AddIdentity(identity, &fields);
  if (!request.ask.caller_id.empty()) fields.push_back({"id", request.ask.caller_id});
  AddLayer(*request.ask.layer, &fields);
  fields.push_back({"rows", request.ask.num_rows});
  fields.push_back({"total_us", total_us});
  return fields;
}

// Call it only for requests that were answered in full; for others the times of their steps are not known.
void AddStages(const RequestStats& stats, std::vector<LogField>* fields) {
  fields->push_back({"queue_us", stats.queue_us});
  fields->push_back({"gate_us", stats.gate_us});
  fields->push_back({"plan_us", stats.plan_us});
  fields->push_back({"step_us", stats.step_us});
  fields->push_back({"steps", stats.num_steps});
  fields->push_back({"replays", stats.replays});
}

bool IsOurFault(absl::StatusCode code) {
  return code == absl::StatusCode::kInternal || code == absl::StatusCode::kDataLoss ||
         code == absl::StatusCode::kUnknown;
}

}  // namespace

void RequestLog::Answered(const Request& request, const RequestIdentity& identity, const absl::Status& status,
                          int64_t total_us, SteadyTime now) {
  const bool is_slow = slow_us_ > 0 && total_us >= slow_us_;
  const bool is_failure = IsOurFault(status.code());
  if (!is_slow && !is_failure && !spdlog::should_log(spdlog::level::debug)) return;
  const std::string code = absl::StatusCodeToString(status.code());
  std::vector<LogField> fields = FieldsOf(request, identity, total_us);
  fields.push_back({"code", code});
  if (status.ok()) AddStages(request.outcome.stats, &fields);
  const LogFields logged(std::move(fields));
  if (is_failure) {
    if (const auto more = failed_lines_.Take(now); more.has_value()) {
      spdlog::warn("request failed{}: {}", OthersLike(*more), status.message());
    }
  } else if (is_slow) {
    if (const auto more = slow_lines_.Take(now); more.has_value()) {
      spdlog::warn("slow request{}", OthersLike(*more));
    }
  } else {
    spdlog::debug("request answered");
  }
}

void RequestLog::Refused(const ServedLayer* layer, const RequestIdentity& identity, const absl::Status& status) const {
  if (!spdlog::should_log(spdlog::level::debug)) return;
  std::vector<LogField> fields;
  AddIdentity(identity, &fields);
  if (layer != nullptr) AddLayer(*layer, &fields);
  const std::string code = absl::StatusCodeToString(status.code());
  fields.push_back({"code", code});
  const LogFields logged(std::move(fields));
  spdlog::debug("request refused: {}", status.message());
}

}  // namespace switchyard
