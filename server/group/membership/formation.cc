#include "server/group/membership/formation.h"

#include <algorithm>
#include <utility>

#include "server/group/membership/exchange_choice.h"

namespace switchyard {
namespace {

constexpr int kMaxDoublings = 20;
constexpr size_t kMaxTold = 4;

}  // namespace

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
  deadline_ = now + options_.address_timeout;
  spdlog::log(num_failures_ == 0 ? spdlog::level::info : spdlog::level::debug,
              "forming the group of epoch {} (exchange {})", epoch_.value, *exchange);
  for (GroupRank& rank : ranks_) {
    rank.address.reset();
    rank.is_connected = false;
  }
  worker::FrontMessage prepare;
  prepare.mutable_prepare_group()->set_epoch(epoch_.value);
  prepare.mutable_prepare_group()->set_exchange(*exchange);
  SendToAll(prepare);
}

std::vector<int> Formation::Owing() const {
  std::vector<int> owing;
  for (size_t rank = 0; rank < ranks_.size(); ++rank) {
    const bool has_paid = phase_ == Phase::kPreparing ? ranks_[rank].address.has_value() : ranks_[rank].is_connected;
    if (!has_paid) owing.push_back(static_cast<int>(rank));
  }
  return owing;
}

void Formation::OnAddress(GroupRank& rank, const worker::GroupAddress& message, SteadyTime now) {
  if (phase_ != Phase::kPreparing || Epoch{message.epoch()} != epoch_) return;
  rank.address = message.address();
  if (!AllRanks(ranks_, [](const GroupRank& each) { return each.address.has_value(); })) return;
  phase_ = Phase::kConnecting;
  deadline_ = now + options_.connect_timeout;
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
  StartAnew();
  return true;
}

void Formation::Fail(const std::string& why, SteadyTime now) {
  const auto pause = options_.form_backoff * (1 << std::min(num_failures_, kMaxDoublings));
  ++num_failures_;
  // A reason may carry the numbers of sockets and the like, so the log has no more than a few of them.
  const bool is_new = told_.size() < kMaxTold && told_.insert(why).second;
  End(why, now + std::min<std::chrono::milliseconds>(pause, options_.longest_backoff),
      is_new ? spdlog::level::warn : spdlog::level::debug);
}

void Formation::StartAnew() {
  num_failures_ = 0;
  told_.clear();
}

bool Formation::Break(const std::string& why, SteadyTime retry_at) { return End(why, retry_at, spdlog::level::warn); }

bool Formation::End(const std::string& why, SteadyTime retry_at, spdlog::level::level_enum level) {
  const Phase was = std::exchange(phase_, Phase::kWaiting);
  not_before_ = retry_at;
  if (was != Phase::kWaiting && !is_stopped_) {
    spdlog::log(level, "group of epoch {} is over: {}", epoch_.value, why);
    worker::FrontMessage end;
    end.mutable_end_group()->set_epoch(epoch_.value);
    SendToAll(end);
  }
  return was == Phase::kServing;
}

}  // namespace switchyard
