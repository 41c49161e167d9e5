// The part that exchanges over a mesh have in common: the life of the communicator, and the loop that moves blocks
// until all have arrived. A transport says how blocks move (ShmCommunicator, TcpCommunicator).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "moe/exchange/communicator.h"
#include "moe/exchange/mesh/blocks.h"
#include "moe/exchange/mesh/peer_mesh.h"

namespace switchyard {

class MeshCommunicator : public Communicator {
 public:
  int rank() const final { return mesh_->rank(); }
  int size() const final { return mesh_->size(); }
  const std::string& address() const final { return mesh_->address(); }
  absl::Status Connect(std::span<const std::string> addresses) final;
  absl::Status AllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                         std::span<const size_t> recv_bytes, DeviceStream stream) final;
  void Abort() final { mesh_->ShutDown(); }

 protected:
  explicit MeshCommunicator(std::unique_ptr<PeerMesh> mesh) : mesh_(std::move(mesh)) {}

  // The rest runs on the calling thread. "Peers" are the ranks but this one.

  virtual absl::Status Join(std::span<const std::string> addresses) { return mesh_->Join(addresses); }
  // Takes up one block for `peer` and one from it. `exchange` numbers the exchanges.
  virtual void Begin(int peer, uint64_t exchange, std::span<const std::byte> send, std::span<std::byte> recv) = 0;
  // Moves what can be moved without waiting. Returns whether that was anything.
  virtual absl::StatusOr<bool> MoveAll() = 0;
  // Whether both blocks of `peer` have moved.
  virtual bool IsDone(int peer) const = 0;
  // Returns when there may be something to move. Nothing has moved since `idle_since`.
  virtual absl::Status Wait(SteadyTime idle_since) = 0;

  PeerMesh& mesh() const { return *mesh_; }
  // The order in which to serve the peers. Each rank begins with the next one, so that not all begin with rank 0.
  int PeerAt(int distance) const { return (rank() + distance) % size(); }
  // A peer that has yet to send or to take something, the next one first; this rank when there is none.
  int Awaited() const;
  absl::Status Silent() const;

 private:
  absl::Status Exchange(const Blocks<const std::byte>& send, const Blocks<std::byte>& recv);
  // Ends the communicator after a failure, so that the peers fail too.
  absl::Status Break(const absl::Status& failure);

  const std::unique_ptr<PeerMesh> mesh_;
  // The calling thread's.
  absl::Status broken_;
  bool is_connected_ = false;
  uint64_t exchange_ = 0;
};

}  // namespace switchyard
