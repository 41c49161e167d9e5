// This rank's membership in the group: one communicator per epoch.
//
// The step thread prepares and connects; a gRPC thread announces newer epochs, which aborts the communicator of an
// older one even while the step thread is blocked in it.
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

  // Leaves the old epoch and prepares for `epoch`: returns this rank's address. Aborted when a newer one was announced.
  absl::StatusOr<std::string> Prepare(Epoch epoch, int rank, int size);

  // Joins the ranks of the epoch last prepared and checks the exchange.
  absl::Status Connect(Epoch epoch, const std::vector<std::string>& addresses);

  // The epoch this rank can run steps of; only meaningful with a communicator.
  Epoch epoch() const { return connected_epoch_; }
  // Null unless connected.
  Communicator* communicator() const { return connected_ ? current_.get() : nullptr; }

  // From any thread: everything older than `epoch` is over.
  void Announce(Epoch epoch);

 private:
  const std::unique_ptr<CommunicatorFactory> factory_;
  // Step thread only.
  bool connected_ = false;
  Epoch connected_epoch_;

  Mutex mu_;
  Epoch newest_ ABSL_GUARDED_BY(mu_);
  Epoch prepared_ ABSL_GUARDED_BY(mu_);
  // Written by the step thread under the lock, so that it may read it without.
  std::shared_ptr<Communicator> current_;
};

}  // namespace switchyard
