#include "server/api/calls/layer_call.h"

#include <optional>

#include "base/clock.h"

namespace switchyard {

void LayerCall::Submit(absl::StatusOr<std::shared_ptr<Request>> request, const ServedLayer* layer) {
  const absl::Status status = TrySubmit(std::move(request));
  if (status.ok()) return;
  front_->metrics().RecordRejection(status.code(), layer == nullptr ? std::nullopt : std::optional(layer->id));
  front_->request_log().Refused(layer, *identity_, status);
  Refuse(status);
}

absl::Status LayerCall::TrySubmit(absl::StatusOr<std::shared_ptr<Request>> made) {
  SY_ASSIGN_OR_RETURN(const std::shared_ptr<Request> request, std::move(made));
  request->ask.client = identity_->client;
  request->ask.holder = identity_->holder;
  request->ask.deadline = identity_->deadline;
  // Weak, because the request holds the function. The caller of the function holds the request.
  request->ask.done = [self = shared_from_this(), submitted = std::weak_ptr<Request>(request)](
                          const absl::Status& status) { self->OnDone(submitted.lock(), status); };
  SY_RETURN_IF_ERROR(front_->Submit(request, static_cast<int64_t>(request->progress.rows.size_bytes())));
  bool is_given_up;
  {
    MutexLock lock(&mu_);
    if (!ended_) request_ = request;
    is_given_up = cancelled_;
  }
  if (is_given_up) front_->Cancel(request);  // Cancel came before request_ was set
  return absl::OkStatus();
}

void LayerCall::Cancel() {
  std::shared_ptr<Request> request;
  {
    MutexLock lock(&mu_);
    cancelled_ = true;
    request = request_;
  }
  if (request != nullptr) front_->Cancel(request);
}

void LayerCall::OnDone(const std::shared_ptr<Request>& request, const absl::Status& status) {
  std::shared_ptr<Request> released;  // released outside the lock
  {
    MutexLock lock(&mu_);
    ended_ = true;
    released.swap(request_);
  }
  Answer(status, request);
}

void LayerCall::Record(const Request& request, const absl::Status& status) const {
  const SteadyTime now = Clock::Real().Now();
  const int64_t total_us = MicrosBetween(request.ask.arrival, now);
  front_->metrics().RecordRequest(request.ask.layer->id, status.code(), request.outcome.stats, total_us);
  front_->request_log().Answered(request, *identity_, status, total_us, now);
  front_->tracer().RequestAnswered(request, *identity_, status.ok(), now);
}

TensorSlices LayerCall::OutputSlices(const Request& request) {
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

}  // namespace switchyard
