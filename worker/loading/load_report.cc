#include "worker/loading/load_report.h"

#include "base/logging/logging.h"

namespace switchyard {
namespace {

constexpr auto kReportPeriod = std::chrono::milliseconds(500);
constexpr auto kLogPeriod = std::chrono::seconds(5);

worker::WorkerMessage MakeReport(const LoadProgress& so_far) {
  worker::WorkerMessage message;
  for (const LoadProgress::Model& model : so_far.models) {
    worker::ModelProgress& added = *message.mutable_load_progress()->add_models();
    added.set_model_id(model.id.value);
    added.set_bytes_done(model.bytes_done);
    added.set_bytes_total(model.bytes_total);
  }
  return message;
}

}  // namespace

void LoadReport::Update(const LoadProgress& so_far) {
  const SteadyTime now = Clock::Real().Now();
  // The first report, which tells the total, and the last one are always sent.
  const bool is_edge = so_far.bytes_done() == 0 || so_far.bytes_done() == so_far.bytes_total();
  if (!is_edge && now - last_report_ < kReportPeriod) return;
  last_report_ = now;
  if (logs_) Log(so_far, now);
  send_(MakeReport(so_far));
}

void LoadReport::Log(const LoadProgress& so_far, SteadyTime now) {
  if (!meter_.has_value()) {
    meter_.emplace(now);
    last_line_ = now;
  }
  const Progress progress = meter_->Update(now, so_far.bytes_done(), so_far.bytes_total());
  if (progress.is_done()) {
    meter_.reset();
  } else if (now - last_line_ >= kLogPeriod) {
    last_line_ = now;
    spdlog::info("loading: {}", ProgressText(progress));
  }
}

}  // namespace switchyard
