#include "server/links/stream_link.h"

namespace switchyard {
namespace {

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
  message.times = {result.times().dispatch_us(), result.times().expert_us(), result.times().combine_us()};
  message.status = absl::Status(static_cast<absl::StatusCode>(result.code()), result.message());
  return message;
}

}  // namespace switchyard
