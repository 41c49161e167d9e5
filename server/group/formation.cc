#include "server/group/formation.h"

#include <utility>

#include "base/logging.h"
#include "server/group/exchange_choice.h"

namespace switchyard {

void Formation::SendToAll(const worker::FrontMessage& message) const {
  for (const GroupRank& rank : ranks_) {
    if (rank.channel != nullptr) rank.channel->Send(message);
  }
}

std::vector<const worker::Hello*> Formation::PresentWorkers() const {
  std::vector<const worker::Hello*> workers;
  for (const GroupRank& rank : ranks_) {
    if (!rank.is_absent()) workers.push_back(&rank.hello);
  }
  return workers;
}

absl::Status Formation::CheckExchange(const worker::Hello& newcomer) const {
  std::vector<const worker::Hello*> workers = PresentWorkers();
  workers.push_back(&newcomer);
  return ChooseExchange(options_.exchange, workers).status();
}

void Formation::TryBegin(SteadyTime now) {
  if (phase_ != Phase::kWaiting || now < not_before_ || is_stopped_) return;
  if (!AllRanks(ranks_, [](const GroupRank& rank) { return rank.state == RankState::kReady; })) return;
  const absl::StatusOr<std::string> exchange = ChooseExchange(options_.exchange, PresentWorkers());
  if (!exchange.ok()) return;  // cannot be: every rank was checked when it joined
  ++epoch_.value;
  phase_ = Phase::kPreparing;
  deadline_ = now + options_.form_timeout;
  spdlog::info("forming the group of epoch {} (exchange {})", epoch_.value, *exchange);
  for (GroupRank& rank : ranks_) {
    rank.address.reset();
    rank.is_connected = false;
  }
  worker::FrontMessage prepare;
  prepare.mutable_prepare_group()->set_epoch(epoch_.value);
  prepare.mutable_prepare_group()->set_exchange(*exchange);
  SendToAll(prepare);
}

void Formation::OnAddress(GroupRank& rank, const worker::GroupAddress& message) {
  if (phase_ != Phase::kPreparing || Epoch{message.epoch()} != epoch_) return;
  rank.address = message.address();
  if (!AllRanks(ranks_, [](const GroupRank& each) { return each.address.has_value(); })) return;
  phase_ = Phase::kConnecting;
  worker::FrontMessage connect;
  connect.mutable_connect_group()->set_epoch(epoch_.value);
  for (const GroupRank& each : ranks_) connect.mutable_connect_group()->add_addresses(*each.address);
  SendToAll(connect);
}

bool Formation::OnReady(GroupRank& rank, const worker::GroupReady& message) {
  if (phase_ != Phase::kConnecting || Epoch{message.epoch()} != epoch_) return false;
  rank.is_connected = true;
  if (!AllRanks(ranks_, [](const GroupRank& each) { return each.is_connected; })) return false;
  phase_ = Phase::kServing;
  spdlog::info("group of epoch {} serves with {} ranks", epoch_.value, ranks_.size());
  return true;
}

bool Formation::Break(const std::string& why, SteadyTime retry_at) {
  const Phase was = std::exchange(phase_, Phase::kWaiting);
  not_before_ = retry_at;
  if (was != Phase::kWaiting && !is_stopped_) {
    spdlog::warn("group of epoch {} is over: {}", epoch_.value, why);
    worker::FrontMessage end;
    end.mutable_end_group()->set_epoch(epoch_.value);
    SendToAll(end);
  }
  return was == Phase::kServing;
}

}  // namespace switchyard
