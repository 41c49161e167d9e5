#include "worker/group_member.h"

#include "base/heartbeat.h"

namespace switchyard {
namespace {

absl::Status Superseded(Epoch epoch) {
  return absl::AbortedError(absl::StrCat("epoch ", epoch.value, " was superseded"));
}

}  // namespace

absl::StatusOr<CommunicatorFactory*> GroupMember::FactoryOf(const std::string& exchange) {
  if (const auto made = factories_.find(exchange); made != factories_.end()) return made->second.get();
  SY_ASSIGN_OR_RETURN(std::unique_ptr<CommunicatorFactory> factory, make_exchange_(exchange));
  return (factories_[exchange] = std::move(factory)).get();
}

absl::StatusOr<std::string> GroupMember::Prepare(Epoch epoch, const std::string& exchange, int rank, int size) {
  const Heartbeat::Doing connecting(Heartbeat::Activity::kConnecting);
  connected_ = false;
  std::shared_ptr<Communicator> old;
  {
    MutexLock lock(&mu_);
    old = std::move(current_);
    current_ = nullptr;
    on_epoch_(Epoch{});
  }
  old.reset();  // outside the lock, because ending a communicator may take a while
  SY_ASSIGN_OR_RETURN(CommunicatorFactory* const factory, FactoryOf(exchange));
  SY_ASSIGN_OR_RETURN(std::shared_ptr<Communicator> fresh, factory->Prepare(rank, size));
  std::string address = fresh->address();
  MutexLock lock(&mu_);
  if (newest_ > epoch) return Superseded(epoch);
  prepared_ = epoch;
  current_ = std::move(fresh);
  return address;
}

absl::Status GroupMember::Connect(Epoch epoch, const std::vector<std::string>& addresses) {
  const Heartbeat::Doing connecting(Heartbeat::Activity::kConnecting);
  {
    MutexLock lock(&mu_);
    if (newest_ > epoch || prepared_ != epoch || current_ == nullptr) return Superseded(epoch);
  }
  SY_RETURN_IF_ERROR(current_->Connect(addresses));
  SY_RETURN_IF_ERROR(CheckExchange(*current_));
  MutexLock lock(&mu_);
  if (newest_ > epoch) return Superseded(epoch);
  connected_ = true;
  connected_epoch_ = epoch;
  on_epoch_(epoch);
  return absl::OkStatus();
}

void GroupMember::Announce(Epoch epoch) {
  std::shared_ptr<Communicator> old;
  {
    MutexLock lock(&mu_);
    if (epoch <= newest_) return;
    newest_ = epoch;
    if (prepared_ >= epoch) return;
    old = current_;
    on_epoch_(Epoch{});
  }
  if (old != nullptr) old->Abort();
}

void GroupMember::Nudge() {
  std::shared_ptr<Communicator> current;
  {
    MutexLock lock(&mu_);
    current = current_;
  }
  if (current != nullptr) current->Nudge();
}

}  // namespace switchyard
