#include "worker/rank_steps.h"

#include <algorithm>
#include <utility>

#include "base/logging/logging.h"
#include "moe/plan/plan_codec.h"

namespace switchyard {
namespace {

// A step that came over the stream, with its input rows and its answer.
struct StreamStep {
  worker::StepRequest request;
  worker::WorkerMessage answer;
};

void FillResult(const absl::Status& status, const StepTimes& times, worker::StepResult* result) {
  result->set_code(static_cast<int>(status.code()));
  result->set_message(std::string(status.message()));
  if (!status.ok()) result->clear_rows();
  result->mutable_times()->set_dispatch_us(times.dispatch_us);
  result->mutable_times()->set_expert_us(times.expert_us);
  result->mutable_times()->set_combine_us(times.combine_us);
}

void AddThread(const Heartbeat& heartbeat, worker::Pong* pong) {
  if (!heartbeat.is_watching()) return;
  const Heartbeat::View view = heartbeat.Look();
  worker::ThreadProgress& thread = *pong->add_threads();
  thread.set_moves(view.moves);
  thread.set_activity(static_cast<worker::ThreadProgress::Activity>(view.activity));
  thread.set_peer(view.peer);
  thread.set_num_waits(view.num_waits);
  thread.set_epoch(view.epoch.value);
  thread.set_step_id(view.step.value);
}

// Bytes of a row of a layer that is there.
size_t RowBytes(const RankExperts::Place& place) {
  return place.layer().hidden_dim * SizeOf(place.engine().compute_dtype());
}

}  // namespace

RankSteps::RankSteps(WorkerBase* base, const RankExperts* experts, GroupMember* group, SendFn send,
                     std::function<void(const absl::Status&)> on_device_lost)
    : base_(base),
      experts_(experts),
      group_(group),
      send_(std::move(send)),
      on_device_lost_(std::move(on_device_lost)) {}

void RankSteps::PrepareFor(const ExpertEngine& engine) {
  if (pipeline_ != nullptr) return;
  const int num_lanes = engine.stream() == nullptr ? 0 : engine.num_lanes();
  pipeline_ = std::make_unique<StepPipeline>(num_lanes, on_device_lost_, &completion_heartbeat_);
}

void RankSteps::Drain() {
  if (pipeline_ != nullptr) pipeline_->Drain();
}

void RankSteps::Describe(worker::Pong* pong) const {
  AddThread(base_->step_heartbeat, pong);
  AddThread(completion_heartbeat_, pong);
}

bool RankSteps::BeginStep(Epoch epoch, StepId step) {
  if (group_->communicator() == nullptr || group_->epoch() != epoch) return false;
  base_->step_heartbeat.SetStep(epoch, step);
  return true;
}

absl::Status RankSteps::HandleLinkStep() {
  auto received = ReceiveStep(base_->link.socket.get());
  // If the link is closed without a message on the control stream, the front is gone.
  if (!received.ok()) return Annotate(received.status(), "step link");
  const StepMessage& step = *received;
  if (!BeginStep(step.epoch, step.step_id)) return absl::OkStatus();
  auto done = [this, epoch = step.epoch, id = step.step_id](const absl::Status& status, const StepTimes& times) {
    SendLinkResult({epoch, id, times, status});
  };
  const RankExperts::Place place = experts_->Find(step.layer);
  if (!FitsLink(step, place)) {
    RefuseStep(absl::InternalError(absl::StrCat("step ", step.step_id.value, " does not fit the link's layout")),
               std::move(done));
    return absl::OkStatus();
  }
  const LinkLayout& layout = base_->link.layout;
  std::byte* const memory = base_->link.memory->data();
  const size_t num_bytes = step.num_home_rows * RowBytes(place);
  RunStep(step.layer, {memory + layout.plan_offset(step.slot), static_cast<size_t>(step.plan_bytes)},
          {memory + layout.input_offset(step.slot), num_bytes}, {memory + layout.output_offset(step.output), num_bytes},
          std::move(done));
  return absl::OkStatus();
}

bool RankSteps::FitsLink(const StepMessage& step, const RankExperts::Place& place) const {
  const LinkLayout& layout = base_->link.layout;
  return place.part != nullptr && step.slot >= 0 && step.slot < layout.num_slots && step.output >= 0 &&
         step.output < layout.num_outputs && step.num_home_rows >= 0 && step.plan_bytes >= 0 &&
         static_cast<uint64_t>(step.plan_bytes) <= layout.plan_bytes &&
         static_cast<uint64_t>(step.num_home_rows) <=
             std::min(layout.input_bytes, layout.output_bytes) / RowBytes(place);
}

// A failure to send is only logged: when the front is gone, the step thread notices that the link is closed.
void RankSteps::SendLinkResult(const ResultMessage& result) const {
  if (absl::Status sent = SendResult(base_->link.socket.get(), result); !sent.ok()) {
    spdlog::warn("rank {}: step {} is done and cannot be reported: {}", rank_, result.step_id.value, sent.message());
  }
}

void RankSteps::HandleStreamStep(worker::StepRequest request) {
  if (!BeginStep(Epoch{request.epoch()}, StepId{request.step_id()})) return;
  auto step = std::make_shared<StreamStep>();
  step->request = std::move(request);
  worker::StepResult& result = *step->answer.mutable_step_result();
  result.set_epoch(step->request.epoch());
  result.set_step_id(step->request.step_id());
  std::string& output = *result.mutable_rows();
  output.resize(step->request.rows().size());
  // protobuf keeps bytes in a std::string, whose data malloc aligns to 16 bytes, enough for the plan and every row
  // type.
  RunStep(LayerId{step->request.layer_id()}, std::as_bytes(std::span(step->request.plan())),
          std::as_bytes(std::span(step->request.rows())), std::as_writable_bytes(std::span(output)),
          [this, step](const absl::Status& status, const StepTimes& times) {
            FillResult(status, times, step->answer.mutable_step_result());
            send_(std::move(step->answer));
          });
}

void RankSteps::RunStep(LayerId layer, std::span<const std::byte> plan, std::span<const std::byte> rows,
                        std::span<std::byte> output, StepDoneFn done) {
  const auto step = MakeStep(layer, plan, rows, output);
  if (step.ok()) return pipeline_->Submit(*step, base_->metrics.Watch(*step, std::move(done)));
  RefuseStep(step.status(), std::move(done));
}

void RankSteps::RefuseStep(const absl::Status& why, StepDoneFn done) {
  group_->communicator()->Abort();
  if (pipeline_ == nullptr) return done(why, StepTimes{});
  pipeline_->Refuse(why, std::move(done));
}

absl::StatusOr<RankStep> RankSteps::MakeStep(LayerId layer_id, std::span<const std::byte> plan_bytes,
                                             std::span<const std::byte> rows, std::span<std::byte> output) const {
  const RankExperts::Place place = experts_->Find(layer_id);
  if (place.part == nullptr) return absl::InternalError(absl::StrCat("no layer number ", layer_id.value));
  const ModelPart::Layer& layer = place.layer();
  const DType dtype = place.engine().compute_dtype();
  const int64_t row_bytes = layer.hidden_dim * static_cast<int64_t>(SizeOf(dtype));
  const int64_t num_rows = static_cast<int64_t>(rows.size()) / row_bytes;
  auto plan = DecodeRankPlan(plan_bytes, {.num_ranks = num_ranks_,
                                          .num_slots = layer.num_slots,
                                          .max_home_rows = num_rows,
                                          .max_rows = place.part->share.max_batch_rows()});
  if (!plan.ok()) return Annotate(plan.status(), "plan");
  if (plan->num_home_rows != num_rows || num_rows * row_bytes != static_cast<int64_t>(rows.size())) {
    return absl::InternalError(
        absl::StrCat("the plan has ", plan->num_home_rows, " home rows, ", rows.size(), " bytes of rows came"));
  }
  return RankStep{.engine = &place.engine(),
                  .communicator = group_->communicator(),
                  .layer = place.engine_layer,
                  .hidden_dim = layer.hidden_dim,
                  .plan = *plan,
                  .home_rows = {rows.data(), dtype, num_rows, layer.hidden_dim},
                  .output = {output.data(), dtype, num_rows, layer.hidden_dim}};
}

}  // namespace switchyard
