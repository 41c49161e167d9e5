#include "server/steps/steps_in_flight.h"

#include <algorithm>

namespace switchyard {

StepsInFlight::StepsInFlight(int num_ranks, int num_slots, int max_submissions)
    : num_ranks_(num_ranks), max_submissions_(max_submissions) {
  for (int slot = num_slots - 1; slot >= 0; --slot) free_slots_.push_back(slot);
}

void StepsInFlight::SetGroup(std::shared_ptr<const FormedGroup> group) {
  group_ = std::move(group);
  has_replays_ = !steps_.empty();
}

std::shared_ptr<const FormedGroup> StepsInFlight::LoseGroup(Epoch epoch) {
  if (group_ == nullptr || group_->epoch > epoch) return nullptr;
  return std::exchange(group_, nullptr);
}

int StepsInFlight::TakeSlot() {
  const int slot = free_slots_.back();
  free_slots_.pop_back();
  return slot;
}

std::shared_ptr<const FormedGroup> StepsInFlight::Add(std::shared_ptr<Step> step) {
  Flight& flight = steps_[step->id];
  flight.step = std::move(step);
  if (group_ == nullptr || has_replays_) {
    has_replays_ = true;
    return nullptr;
  }
  BeginSubmission(flight);
  return group_;
}

void StepsInFlight::BeginSubmission(Flight& flight) const {
  flight.epoch = group_->epoch;
  flight.answered.assign(num_ranks_, false);
  flight.num_unanswered = num_ranks_;
  ++flight.num_submissions;
}

std::optional<StepsInFlight::Oldest> StepsInFlight::oldest_running() const {
  if (steps_.empty() || group_ == nullptr || has_replays_) return std::nullopt;
  const Flight& flight = steps_.begin()->second;
  Oldest oldest = {flight.step.get(), flight.epoch, flight.num_submissions, {}};
  for (int rank = 0; rank < num_ranks_; ++rank) {
    if (!flight.answered[rank]) oldest.owing.push_back(rank);
  }
  return oldest;
}

std::vector<std::shared_ptr<Request>> StepsInFlight::TakeRequests() {
  std::vector<std::shared_ptr<Request>> requests;
  for (const auto& [id, flight] : steps_) {
    for (const Piece& piece : flight.step->batch.pieces) requests.push_back(piece.request);
  }
  steps_.clear();
  return requests;
}

StepsInFlight::Replays StepsInFlight::TakeReplays() {
  Replays replays;
  replays.group = group_;
  has_replays_ = false;
  for (auto it = steps_.begin(); it != steps_.end();) {
    Flight& flight = it->second;
    BeginSubmission(flight);
    absl::Status why = CheckLayer(flight.step->layer().id);
    if (flight.num_submissions > max_submissions_) {
      why.Update(
          absl::InternalError(absl::StrCat("a step with these rows failed ", flight.num_submissions - 1, " times")));
    }
    if (why.ok()) {
      replays.steps.push_back(flight.step);
      ++it;
    } else {
      replays.hopeless.emplace_back(std::move(flight.step), why);
      it = steps_.erase(it);
    }
  }
  return replays;
}

StepsInFlight::Flight* StepsInFlight::FindFlight(int rank, StepId step, Epoch epoch) {
  const auto it = steps_.find(step);
  if (it == steps_.end() || it->second.epoch != epoch || it->second.answered[rank]) return nullptr;
  if (group_ == nullptr || group_->epoch != epoch) return nullptr;  // the step will be replayed
  return &it->second;
}

std::shared_ptr<Step> StepsInFlight::BeginResult(int rank, const ResultMessage& result) {
  const Flight* flight = FindFlight(rank, result.step_id, result.epoch);
  if (flight == nullptr) return nullptr;
  ++num_receiving_;
  return flight->step;
}

std::optional<StepsInFlight::Finished> StepsInFlight::EndResult(const Step& step, int rank,
                                                                const ResultMessage& result) {
  --num_receiving_;
  Flight* flight = FindFlight(rank, step.id, result.epoch);
  if (flight == nullptr) return std::nullopt;
  flight->answered[rank] = true;
  StepTimes& slowest = flight->slowest;
  slowest.dispatch_us = std::max(slowest.dispatch_us, result.times.dispatch_us);
  slowest.expert_us = std::max(slowest.expert_us, result.times.expert_us);
  slowest.combine_us = std::max(slowest.combine_us, result.times.combine_us);
  if (--flight->num_unanswered > 0) return std::nullopt;
  const Finished finished = {flight->num_submissions, slowest};
  steps_.erase(step.id);
  return finished;
}

void StepsInFlight::FailLayers(const std::vector<LayerId>& layers, const absl::Status& why) {
  for (const LayerId layer : layers) failed_layers_[layer] = why;
}

void StepsInFlight::DropLayers(const std::vector<LayerId>& layers) {
  for (const LayerId layer : layers) failed_layers_.erase(layer);
}

absl::Status StepsInFlight::CheckLayer(LayerId layer) const {
  const auto failed = failed_layers_.find(layer);
  return failed == failed_layers_.end() ? absl::OkStatus() : failed->second;
}

}  // namespace switchyard
