// Connects every rank of a group with every other by two sockets: rank a sends to rank b on the one that a opened, and
// b to a on the other. Exchanges that talk over sockets, or that meet on them, are built on this.
//
// Strangers. A listening socket can be reached by others than the ranks: with Unix sockets by every process of the
// network namespace, with TCP by every host. Therefore each end proves with the other's nonce (mesh_address.h) that it
// belongs to this group in this epoch, and over Unix sockets the system tells that it is of this user. A connection
// that does not prove it within `greeting_timeout` is closed and costs nothing else. A connection that is dropped
// before it is answered is tried again until `connect_timeout`. TCP carries nonces in clear: who can read the network
// between the hosts can read the rows, too.
//
// Ends. When a rank closes its sockets, or its process dies, all its peers find theirs readable at once.
//
// Thread-safety: one thread calls everything but ShutDown() and is_shut_down(), which any thread may call at any time.
#pragma once

#include <sys/socket.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "moe/exchange/mesh/mesh_address.h"

namespace switchyard {

struct MeshOptions {
  // AF_UNIX for processes of one user on one host, AF_INET for TCP over IPv4 or IPv6.
  sa_family_t family = AF_UNIX;
  // For TCP, the address to listen on, as digits; peers must be able to reach it.
  std::string bind_host = "127.0.0.1";
  // With Unix sockets: how many descriptors every rank gives to every other.
  int num_gifts = 0;
  // How long Join() waits for all peers.
  std::chrono::milliseconds connect_timeout{10'000};
  // How long a connection may take to prove that it is a peer's.
  std::chrono::milliseconds greeting_timeout{2'000};
};

class PeerMesh {
 public:
  // InvalidArgument for a rank that does not exist, Unavailable where it cannot listen.
  static absl::StatusOr<std::unique_ptr<PeerMesh>> Listen(int rank, int size, const MeshOptions& options);

  int rank() const { return own_.rank; }
  int size() const { return own_.size; }
  // The bytes that the other ranks need for Join.
  const std::string& address() const { return address_; }
  // Becomes readable with ShutDown(), and when a peer that has it writes to it. A nonblocking eventfd.
  int wake_fd() const { return wake_.get(); }

  // Connects with every rank; addresses[r] is rank r's address(). `gifts` are duplicated for each peer. Returns once
  // all sockets are there. Unavailable, naming a peer, when one is gone or does not come in time; Aborted after
  // ShutDown().
  absl::Status Join(std::span<const std::string> addresses, std::span<const int> gifts = {});

  // The rest is for after Join, and for other ranks than this one. The sockets do not block.
  int to(int peer) const { return to_[peer].get(); }
  int from(int peer) const { return from_[peer].get(); }
  // The descriptors that `peer` gave.
  std::vector<UniqueFd> TakeGifts(int peer) { return std::move(gifts_[peer]); }

  // Ends all connections for good, and Join().
  void ShutDown();
  bool is_shut_down() const { return is_shut_down_; }

 private:
  PeerMesh(const MeshOptions& options, MeshAddress own) : options_(options), own_(std::move(own)) {}
  absl::Status Open();
  absl::StatusOr<std::vector<MeshAddress>> ParsePeers(std::span<const std::string> addresses) const;
  absl::Status TakeOver(std::vector<UniqueFd> to, std::vector<UniqueFd> from, std::vector<std::vector<UniqueFd>> gifts);

  // Constant after Listen.
  const MeshOptions options_;
  MeshAddress own_;
  std::string address_;
  UniqueFd wake_;

  std::atomic<bool> is_shut_down_{false};
  Mutex mu_;
  UniqueFd listener_ ABSL_GUARDED_BY(mu_);
  bool is_joining_ ABSL_GUARDED_BY(mu_) = false;
  // Only Join writes them, under the lock, so the calling thread may read them without it.
  std::vector<UniqueFd> to_;
  std::vector<UniqueFd> from_;

  std::vector<std::vector<UniqueFd>> gifts_;  // calling thread only
};

}  // namespace switchyard
