// One run of PeerMesh::Join: calls every peer, answers the door, and tells peers from strangers. One thread uses it.
#pragma once

#include <poll.h>

#include <array>
#include <list>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "moe/exchange/mesh/mesh_address.h"
#include "moe/exchange/mesh/peer_mesh.h"

namespace switchyard {

// The first words of the end that connects, and the other end's answer.
struct MeshGreeting {
  uint64_t magic = 0;
  uint32_t from = 0;
  uint32_t to = 0;
  uint32_t size = 0;
  uint32_t reserved = 0;
  MeshNonce nonce{};  // of the one who is spoken to
};

class MeshJoin {
 public:
  // All arguments outlive this. `peers` has every rank's address, this one's included.
  MeshJoin(const MeshOptions& options, int rank, const std::vector<MeshAddress>& peers, int listener,
           std::span<const int> gifts);

  // Returns when every peer was reached and has come, or cannot be any more. `wake_fd` becomes readable when it should
  // return Aborted.
  absl::Status Run(int wake_fd);

  // After Run; by rank, this rank's elements are empty.
  std::vector<UniqueFd> TakeOutgoing();
  std::vector<UniqueFd> TakeIncoming() { return std::move(incoming_); }
  std::vector<std::vector<UniqueFd>> TakeGifts() { return std::move(gifts_from_); }

 private:
  // A connection to a peer.
  struct Call {
    enum class State { kPaused, kConnecting, kAwaitingAnswer, kDone };
    State state = State::kPaused;
    UniqueFd fd;
    SteadyTime retry_at;
    MeshGreeting answer;
    size_t num_received = 0;
    std::string problem = "does not answer";
  };
  // A connection that has not yet proved whose it is.
  struct Visitor {
    UniqueFd fd;
    SteadyTime deadline;
    MeshGreeting greeting;
    size_t num_received = 0;
    std::vector<UniqueFd> gifts;
  };
  enum class Reading { kMore, kWhole, kOver };

  int size() const { return static_cast<int>(peers_.size()); }
  bool IsComplete() const;
  absl::Status LateError() const;
  absl::Status Step(int wake_fd, SteadyTime deadline);
  int PollTimeoutMs(SteadyTime now, SteadyTime deadline) const;

  absl::Status StartCalls(SteadyTime now);
  absl::Status StartCall(int peer);
  absl::Status OnCallReady(int peer);
  absl::Status OnConnectResult(int peer, int error);
  void Greet(int peer);
  void Retry(int peer, std::string problem);

  void AcceptVisitors();
  Reading Read(Visitor& visitor);
  bool IsPeer(const Visitor& visitor) const;
  void Admit(Visitor& visitor);
  bool IsOwnUser(int fd) const;

  const MeshOptions& options_;
  const int rank_;
  const std::vector<MeshAddress>& peers_;
  const int listener_;
  const std::span<const int> gifts_;

  std::vector<Call> calls_;      // by rank
  std::list<Visitor> visitors_;  // the oldest first
  SteadyTime accept_after_;
  std::vector<UniqueFd> incoming_;                 // by rank
  std::vector<std::vector<UniqueFd>> gifts_from_;  // by rank
};

}  // namespace switchyard
