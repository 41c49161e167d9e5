#include "server/observe/tracer.h"

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

// The times of the events in Triton's trace of a request. The events of the computation are left out when the request
// was not computed in full.
std::vector<std::pair<const char*, SteadyTime>> TimestampsOf(const Request& request, bool ok, SteadyTime now) {
  const RequestStats& stats = request.outcome.stats;
  std::vector<std::pair<const char*, SteadyTime>> timestamps = {{"REQUEST_START", request.ask.arrival},
                                                                {"QUEUE_START", request.ask.arrival}};
  if (ok) {
    timestamps.insert(timestamps.end(), {{"COMPUTE_START", stats.first_started},
                                         {"COMPUTE_INPUT_END", stats.first_planned},
                                         {"COMPUTE_OUTPUT_START", stats.last_computed},
                                         {"COMPUTE_END", now}});
  }
  timestamps.emplace_back("REQUEST_END", now);
  return timestamps;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tracer>> Tracer::Create(const std::string& file) {
  std::unique_ptr<Tracer> tracer(new Tracer(file));
  if (!file.empty()) {
    SY_ASSIGN_OR_RETURN(tracer->writer_, TraceWriter::Create(file));
  }
  return tracer;
}

absl::Status Tracer::Update(const std::string& model, const TraceValues& changes) {
  MutexLock lock(&mu_);
  SY_RETURN_IF_ERROR(settings_.Update(model, changes));
  is_on_.store(settings_.is_any_on());
  return absl::OkStatus();
}

TraceValues Tracer::Show(const std::string& model) const {
  MutexLock lock(&mu_);
  return settings_.Show(model);
}

void Tracer::Trace(const Request& request, const RequestIdentity& identity, bool ok, SteadyTime now) {
  std::string model = absl::StrCat(request.ask.layer->model, ".", request.ask.layer->spec.name);
  int64_t traces_per_file;
  {
    MutexLock lock(&mu_);
    if (!settings_.Sample(model)) return;
    traces_per_file = settings_.log_frequency();
  }
  writer_->Add({std::move(model), request.ask.caller_id, identity, TimestampsOf(request, ok, now)}, traces_per_file);
}

}  // namespace switchyard
