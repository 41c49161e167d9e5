#include "moe/exchange/tcp/tcp_communicator.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "moe/exchange/mesh/blocks.h"
#include "moe/exchange/mesh/peer_mesh.h"
#include "moe/exchange/mesh/poll_beating.h"

namespace switchyard {
namespace {

// Whether a block has moved a part, cannot at the moment, or never will.
enum class Moving { kMoved, kNotNow, kBroken };

Moving AfterError(ssize_t result) {
  return result < 0 && (errno == EAGAIN || errno == EINTR) ? Moving::kNotNow : Moving::kBroken;
}

// A block on its way out: a header, then the bytes.
class OutgoingBlock {
 public:
  // A block without bytes is not sent.
  void Begin(uint64_t exchange, std::span<const std::byte> block) {
    header_ = {exchange, block.size()};
    block_ = block;
    num_total_ = block.empty() ? 0 : sizeof(header_) + block.size();
    num_sent_ = 0;
  }
  bool is_done() const { return num_sent_ == num_total_; }

  Moving Move(int socket) {
    const size_t header_sent = std::min(num_sent_, sizeof(header_)), block_sent = num_sent_ - header_sent;
    std::array<iovec, 2> parts = {
        iovec{reinterpret_cast<char*>(&header_) + header_sent, sizeof(header_) - header_sent},
        iovec{const_cast<std::byte*>(block_.data()) + block_sent, block_.size() - block_sent}};
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    const ssize_t sent = sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent <= 0) return AfterError(sent);
    num_sent_ += sent;
    return Moving::kMoved;
  }

 private:
  BlockHeader header_;
  std::span<const std::byte> block_;
  size_t num_total_ = 0;
  size_t num_sent_ = 0;
};

class IncomingBlock {
 public:
  void Begin(uint64_t exchange, std::span<std::byte> block) {
    expected_ = {exchange, block.size()};
    block_ = block;
    num_total_ = block.empty() ? 0 : sizeof(found_) + block.size();
    num_received_ = 0;
  }
  bool is_done() const { return num_received_ == num_total_; }

  // Nothing is written to the block before the header has been found right.
  Moving Move(int socket) {
    const bool in_header = num_received_ < sizeof(found_);
    std::byte* const to = in_header ? reinterpret_cast<std::byte*>(&found_) + num_received_
                                    : block_.data() + (num_received_ - sizeof(found_));
    const size_t num_wanted = (in_header ? sizeof(found_) : num_total_) - num_received_;
    const ssize_t received = recv(socket, to, num_wanted, MSG_DONTWAIT);
    if (received <= 0) return AfterError(received);
    num_received_ += received;
    return Moving::kMoved;
  }
  bool is_wrong() const { return num_received_ == sizeof(found_) && found_ != expected_; }
  const BlockHeader& found() const { return found_; }
  const BlockHeader& expected() const { return expected_; }

 private:
  BlockHeader expected_;
  BlockHeader found_;
  std::span<std::byte> block_;
  size_t num_total_ = 0;
  size_t num_received_ = 0;
};

class TcpCommunicator final : public Communicator {
 public:
  TcpCommunicator(std::unique_ptr<PeerMesh> mesh, const TcpOptions& options)
      : options_(options), mesh_(std::move(mesh)), peers_(mesh_->size()) {}

  int rank() const override { return mesh_->rank(); }
  int size() const override { return mesh_->size(); }
  const std::string& address() const override { return mesh_->address(); }
  absl::Status Connect(std::span<const std::string> addresses) override;
  absl::Status AllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                         std::span<const size_t> recv_bytes, DeviceStream stream) override;
  void Abort() override { mesh_->ShutDown(); }

 private:
  struct Peer {
    OutgoingBlock outgoing;
    IncomingBlock incoming;

    bool is_done() const { return outgoing.is_done() && incoming.is_done(); }
  };

  // The order in which to serve the peers. Each rank begins with the next one, so that not all begin with rank 0.
  int PeerAt(int distance) const { return (rank() + distance) % size(); }
  absl::Status Exchange(const Blocks<const std::byte>& send, const Blocks<std::byte>& recv);
  // Moves what can be moved without waiting. Returns whether that was anything.
  absl::StatusOr<bool> MoveAll();
  absl::StatusOr<bool> MoveOut(int peer);
  absl::StatusOr<bool> MoveIn(int peer);
  bool IsDone() const;
  // A peer that has yet to send or to take something, the next one first.
  int Awaited() const;
  absl::Status Wait();
  absl::Status Break(const absl::Status& failure);

  const TcpOptions options_;
  const std::unique_ptr<PeerMesh> mesh_;
  // The calling thread's.
  std::vector<Peer> peers_;  // by rank; this rank's is not used
  absl::Status broken_;
  bool is_connected_ = false;
  uint64_t exchange_ = 0;
};

absl::Status TcpCommunicator::Connect(std::span<const std::string> addresses) {
  if (mesh_->is_shut_down()) return absl::AbortedError("the communicator was aborted");
  SY_RETURN_IF_ERROR(broken_);
  if (is_connected_) return absl::FailedPreconditionError("this communicator is connected already");
  const absl::Status joined = mesh_->Join(addresses);
  is_connected_ = joined.ok();
  return joined.ok() ? joined : Break(joined);
}

absl::Status TcpCommunicator::AllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                                        std::span<const size_t> recv_bytes, DeviceStream) {
  if (mesh_->is_shut_down() && broken_.ok()) return absl::AbortedError("the communicator was aborted");
  SY_RETURN_IF_ERROR(broken_);
  if (!is_connected_) return absl::FailedPreconditionError("the communicator is not connected");
  absl::Status done = CheckBlockSizes(rank(), size(), send_bytes, recv_bytes);
  if (done.ok()) done = Exchange({send, send_bytes}, {recv, recv_bytes});
  return done.ok() ? done : Break(Annotate(done, absl::StrCat("all-to-all on rank ", rank())));
}

absl::Status TcpCommunicator::Exchange(const Blocks<const std::byte>& send, const Blocks<std::byte>& recv) {
  ++exchange_;
  for (int distance = 1; distance < size(); ++distance) {
    const int peer = PeerAt(distance);
    peers_[peer].outgoing.Begin(exchange_, send[peer]);
    peers_[peer].incoming.Begin(exchange_, recv[peer]);
  }
  SY_RETURN_IF_ERROR(MoveAll().status());  // so that the network is busy while this rank copies its own block
  const auto own = send[rank()];
  if (!own.empty()) std::memcpy(recv[rank()].data(), own.data(), own.size());
  while (!IsDone()) {
    SY_ASSIGN_OR_RETURN(const bool has_moved, MoveAll());
    if (!has_moved) SY_RETURN_IF_ERROR(Wait());
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> TcpCommunicator::MoveAll() {
  bool has_moved = false;
  for (int distance = 1; distance < size(); ++distance) {
    SY_ASSIGN_OR_RETURN(const bool has_sent, MoveOut(PeerAt(distance)));
    SY_ASSIGN_OR_RETURN(const bool has_received, MoveIn(PeerAt(size() - distance)));
    has_moved |= has_sent || has_received;
  }
  return has_moved;
}

absl::StatusOr<bool> TcpCommunicator::MoveOut(int peer) {
  OutgoingBlock& block = peers_[peer].outgoing;
  if (block.is_done()) return false;
  const Moving moving = block.Move(mesh_->to(peer));
  if (moving == Moving::kBroken) return absl::UnavailableError(absl::StrCat("rank ", peer, " is gone"));
  return moving == Moving::kMoved;
}

absl::StatusOr<bool> TcpCommunicator::MoveIn(int peer) {
  IncomingBlock& block = peers_[peer].incoming;
  if (block.is_done()) return false;
  const Moving moving = block.Move(mesh_->from(peer));
  if (moving == Moving::kBroken) return absl::UnavailableError(absl::StrCat("rank ", peer, " is gone"));
  if (block.is_wrong()) return WrongBlock(peer, rank(), block.found(), block.expected());
  return moving == Moving::kMoved;
}

bool TcpCommunicator::IsDone() const {
  return std::all_of(peers_.begin(), peers_.end(), [](const Peer& peer) { return peer.is_done(); });
}

int TcpCommunicator::Awaited() const {
  for (int distance = 1; distance < size(); ++distance) {
    if (!peers_[PeerAt(distance)].is_done()) return PeerAt(distance);
  }
  return rank();
}

absl::Status TcpCommunicator::Wait() {
  std::vector<pollfd> polled = {{mesh_->wake_fd(), POLLIN, 0}};
  for (int distance = 1; distance < size(); ++distance) {
    const int peer = PeerAt(distance);
    if (!peers_[peer].outgoing.is_done()) polled.push_back({mesh_->to(peer), POLLOUT, 0});
    if (!peers_[peer].incoming.is_done()) polled.push_back({mesh_->from(peer), POLLIN, 0});
  }
  const int num_ready = PollBeating(polled, options_.exchange_timeout, Awaited());
  if (mesh_->is_shut_down()) return absl::AbortedError("aborted");
  if (num_ready < 0 && errno != EINTR) return ErrnoStatus(errno, "poll");
  if (num_ready != 0) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("rank ", Awaited(), " is silent"));
}

// Ends the communicator after a failure, so that the peers fail too.
absl::Status TcpCommunicator::Break(const absl::Status& failure) {
  broken_ = mesh_->is_shut_down() ? absl::AbortedError("the exchange was aborted") : failure;
  mesh_->ShutDown();
  return broken_;
}

class TcpFactory final : public CommunicatorFactory {
 public:
  explicit TcpFactory(TcpOptions options) : options_(std::move(options)) {}

  absl::StatusOr<std::unique_ptr<Communicator>> Prepare(int rank, int size) override {
    MeshOptions mesh_options{.family = AF_INET};
    mesh_options.bind_host = options_.bind_host;
    mesh_options.connect_timeout = options_.connect_timeout;
    SY_ASSIGN_OR_RETURN(auto mesh, PeerMesh::Listen(rank, size, mesh_options));
    return std::make_unique<TcpCommunicator>(std::move(mesh), options_);
  }

 private:
  const TcpOptions options_;
};

}  // namespace

std::unique_ptr<CommunicatorFactory> CreateTcpFactory(TcpOptions options) {
  return std::make_unique<TcpFactory>(std::move(options));
}

}  // namespace switchyard
