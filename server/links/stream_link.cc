#include "server/links/stream_link.h"

#include <algorithm>

#include "base/logging/log_text.h"

namespace switchyard {
namespace {

// A worker's word is bounded: no step takes a day, so that sums over steps stay meaningful, and a reason is short.
constexpr int64_t kMaxStepMicros = int64_t{24} * 3600 * 1'000'000;
constexpr size_t kMaxReasonBytes = 2000;

class StreamConnection final : public LinkConnection {
 public:
  StreamConnection(std::shared_ptr<WorkerChannel> channel, LinkBuffers* buffers)
      : channel_(std::move(channel)), buffers_(buffers) {}

  absl::Status Submit(const StepSubmission& step) override {
    const StepMessage& message = step.message;
    worker::FrontMessage out;
    worker::StepRequest& request = *out.mutable_step();
    request.set_epoch(message.epoch.value);
    request.set_step_id(message.step_id.value);
    request.set_layer_id(message.layer.value);
    request.set_plan(buffers_->plan(message.slot), message.plan_bytes);
    request.set_rows(buffers_->input(message.slot), message.num_home_rows * step.row_bytes);
    channel_->Send(std::move(out));
    return absl::OkStatus();
  }

 private:
  const std::shared_ptr<WorkerChannel> channel_;
  LinkBuffers* const buffers_;
};

}  // namespace

std::shared_ptr<LinkConnection> MakeStreamConnection(std::shared_ptr<WorkerChannel> channel, LinkBuffers* buffers) {
  return std::make_shared<StreamConnection>(std::move(channel), buffers);
}

ResultMessage ParseStreamResult(const worker::StepResult& result) {
  ResultMessage message;
  message.epoch = {result.epoch()};
  message.step_id = {result.step_id()};
  const auto time = [](int64_t micros) { return std::clamp<int64_t>(micros, 0, kMaxStepMicros); };
  message.times = {time(result.times().dispatch_us()), time(result.times().expert_us()),
                   time(result.times().combine_us())};
  message.status =
      absl::Status(static_cast<absl::StatusCode>(result.code()), CutForLog(result.message(), kMaxReasonBytes));
  return message;
}

}  // namespace switchyard
