// This rank's membership in the group: one communicator per epoch.
//
// The step thread prepares and connects. A gRPC thread announces newer epochs, which aborts the communicator of an
// older epoch even while the step thread is blocked in it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/mutex.h"
#include "moe/exchange/communicator.h"

namespace switchyard {

class GroupMember {
 public:
  explicit GroupMember(std::unique_ptr<CommunicatorFactory> factory) : factory_(std::move(factory)) {}

  // Leaves the old epoch, prepares for `epoch` and returns this rank's address. Aborted when a newer epoch was
  // announced.
  absl::StatusOr<std::string> Prepare(Epoch epoch, int rank, int size);

  // Joins the ranks of `epoch`, which must be the epoch last prepared, and checks the exchange.
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
  const std::unique_ptr<CommunicatorFactory> factory_;
  // Step thread only.
  bool connected_ = false;
  Epoch connected_epoch_;

  Mutex mu_;
  Epoch newest_ ABSL_GUARDED_BY(mu_);
  Epoch prepared_ ABSL_GUARDED_BY(mu_);
  // Only the step thread writes it, under the lock, so the step thread may read it without the lock.
  std::shared_ptr<Communicator> current_;
};

}  // namespace switchyard
