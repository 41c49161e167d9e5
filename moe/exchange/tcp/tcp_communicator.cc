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
#include "moe/exchange/mesh/mesh_communicator.h"
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

class TcpCommunicator final : public MeshCommunicator {
 public:
  TcpCommunicator(std::unique_ptr<PeerMesh> mesh, const TcpOptions& options)
      : MeshCommunicator(std::move(mesh)), options_(options), peers_(size()) {}

 private:
  struct Peer {
    OutgoingBlock outgoing;
    IncomingBlock incoming;
  };

  void Begin(int peer, uint64_t exchange, std::span<const std::byte> send, std::span<std::byte> recv) override;
  absl::StatusOr<bool> MoveAll() override;
  absl::StatusOr<bool> MoveOut(int peer);
  absl::StatusOr<bool> MoveIn(int peer);
  bool IsDone(int peer) const override { return peers_[peer].outgoing.is_done() && peers_[peer].incoming.is_done(); }
  absl::Status Wait(SteadyTime idle_since) override;

  const TcpOptions options_;
  // The calling thread's.
  std::vector<Peer> peers_;  // by rank; this rank's is not used
};

void TcpCommunicator::Begin(int peer, uint64_t exchange, std::span<const std::byte> send, std::span<std::byte> recv) {
  peers_[peer].outgoing.Begin(exchange, send);
  peers_[peer].incoming.Begin(exchange, recv);
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
  const Moving moving = block.Move(mesh().to(peer));
  if (moving == Moving::kBroken) return absl::UnavailableError(absl::StrCat("rank ", peer, " is gone"));
  return moving == Moving::kMoved;
}

absl::StatusOr<bool> TcpCommunicator::MoveIn(int peer) {
  IncomingBlock& block = peers_[peer].incoming;
  if (block.is_done()) return false;
  const Moving moving = block.Move(mesh().from(peer));
  if (moving == Moving::kBroken) return absl::UnavailableError(absl::StrCat("rank ", peer, " is gone"));
  if (block.is_wrong()) return WrongBlock(peer, rank(), block.found(), block.expected());
  return moving == Moving::kMoved;
}

absl::Status TcpCommunicator::Wait(SteadyTime idle_since) {
  std::vector<pollfd> polled = {{mesh().wake_fd(), POLLIN, 0}};
  for (int distance = 1; distance < size(); ++distance) {
    const int peer = PeerAt(distance);
    if (!peers_[peer].outgoing.is_done()) polled.push_back({mesh().to(peer), POLLOUT, 0});
    if (!peers_[peer].incoming.is_done()) polled.push_back({mesh().from(peer), POLLIN, 0});
  }
  const auto left =
      std::chrono::ceil<std::chrono::milliseconds>(idle_since + options_.exchange_timeout - Clock::Real().Now());
  const int num_ready = PollBeating(polled, left, Awaited());
  if (mesh().is_shut_down()) return absl::AbortedError("aborted");
  if (num_ready < 0 && errno != EINTR) return ErrnoStatus(errno, "poll");
  if (num_ready != 0) return absl::OkStatus();
  return Silent();
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
