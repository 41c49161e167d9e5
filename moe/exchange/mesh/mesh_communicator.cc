#include "moe/exchange/mesh/mesh_communicator.h"

#include <cstring>
#include <optional>

namespace switchyard {

absl::Status MeshCommunicator::Connect(std::span<const std::string> addresses) {
  if (mesh_->is_shut_down()) return absl::AbortedError("the communicator was aborted");
  SY_RETURN_IF_ERROR(broken_);
  if (is_connected_) return absl::FailedPreconditionError("this communicator is connected already");
  const absl::Status joined = Join(addresses);
  is_connected_ = joined.ok();
  return joined.ok() ? joined : Break(joined);
}

absl::Status MeshCommunicator::AllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                                         std::span<const size_t> recv_bytes, DeviceStream) {
  if (mesh_->is_shut_down() && broken_.ok()) return absl::AbortedError("the communicator was aborted");
  SY_RETURN_IF_ERROR(broken_);
  if (!is_connected_) return absl::FailedPreconditionError("the communicator is not connected");
  absl::Status done = CheckBlockSizes(rank(), size(), send_bytes, recv_bytes);
  if (done.ok()) done = Exchange({send, send_bytes}, {recv, recv_bytes});
  return done.ok() ? done : Break(Annotate(done, absl::StrCat("all-to-all on rank ", rank())));
}

absl::Status MeshCommunicator::Exchange(const Blocks<const std::byte>& send, const Blocks<std::byte>& recv) {
  ++exchange_;
  for (int distance = 1; distance < size(); ++distance) {
    const int peer = PeerAt(distance);
    Begin(peer, exchange_, send[peer], recv[peer]);
  }
  SY_RETURN_IF_ERROR(MoveAll().status());  // so that the peers need not wait for this rank's copy for itself
  const auto own = send[rank()];
  if (!own.empty()) std::memcpy(recv[rank()].data(), own.data(), own.size());
  std::optional<SteadyTime> idle_since;
  while (Awaited() != rank()) {
    SY_ASSIGN_OR_RETURN(const bool has_moved, MoveAll());
    if (has_moved) {
      idle_since.reset();
    } else {
      if (!idle_since.has_value()) idle_since = Clock::Real().Now();
      SY_RETURN_IF_ERROR(Wait(*idle_since));
    }
  }
  return absl::OkStatus();
}

int MeshCommunicator::Awaited() const {
  for (int distance = 1; distance < size(); ++distance) {
    if (!IsDone(PeerAt(distance))) return PeerAt(distance);
  }
  return rank();
}

absl::Status MeshCommunicator::Silent() const {
  return absl::UnavailableError(absl::StrCat("rank ", Awaited(), " is silent"));
}

absl::Status MeshCommunicator::Break(const absl::Status& failure) {
  broken_ = mesh_->is_shut_down() ? absl::AbortedError("the exchange was aborted") : failure;
  mesh_->ShutDown();
  return broken_;
}

}  // namespace switchyard
