// This rank's membership in the group: one communicator per epoch. Epochs are those of one front: another front begins
// again with the first, and so needs another GroupMember.
//
// The step thread prepares and connects. A gRPC thread announces newer epochs, which aborts the communicator of an
// older epoch even while the step thread is blocked in it.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/mutex.h"
#include "moe/exchange/communicator.h"

namespace switchyard {

class GroupMember {
 public:
  using ExchangeMaker = std::function<absl::StatusOr<std::unique_ptr<CommunicatorFactory>>(const std::string& name)>;
  // Told the epoch of the group that this rank is in, or 0 for none, whenever that changes. Called with a lock held, in
  // order, by the thread that changes it.
  using OnEpochFn = std::function<void(Epoch)>;
  GroupMember(ExchangeMaker make_exchange, OnEpochFn on_epoch)
      : make_exchange_(std::move(make_exchange)), on_epoch_(std::move(on_epoch)) {}

  // Leaves the old epoch, prepares for `epoch`, in which rows move through `exchange`, and returns this rank's address.
  // Aborted when a newer epoch was announced.
  absl::StatusOr<std::string> Prepare(Epoch epoch, const std::string& exchange, int rank, int size);

  // Joins the ranks of `epoch`, which must be the epoch last prepared, and checks the exchange. Aborted when a newer
  // epoch was announced.
  absl::Status Connect(Epoch epoch, const std::vector<std::string>& addresses);

  // The epoch whose steps this rank can run. Only meaningful when there is a communicator().
  Epoch epoch() const { return connected_epoch_; }
  // Null unless connected.
  Communicator* communicator() const { return connected_ ? current_.get() : nullptr; }

  // Tells that epochs older than `epoch` have ended. Any thread may call it.
  void Announce(Epoch epoch);
  // Lets a step thread that waits for a peer beat (base/heartbeat.h). Any thread may call it.
  void Nudge();

 private:
  absl::StatusOr<CommunicatorFactory*> FactoryOf(const std::string& exchange);

  const ExchangeMaker make_exchange_;
  const OnEpochFn on_epoch_;
  // Step thread only.
  std::map<std::string, std::unique_ptr<CommunicatorFactory>> factories_;  // by exchange
  bool connected_ = false;
  Epoch connected_epoch_;

  Mutex mu_;
  Epoch newest_ ABSL_GUARDED_BY(mu_);
  Epoch prepared_ ABSL_GUARDED_BY(mu_);
  // Only the step thread writes it, under the lock, so the step thread may read it without the lock.
  std::shared_ptr<Communicator> current_;
};

}  // namespace switchyard
