#include "moe/exchange/shm/shm_communicator.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "moe/exchange/mesh/mesh_communicator.h"
#include "moe/exchange/mesh/poll_beating.h"
#include "moe/exchange/shm/shm_area.h"
#include "moe/exchange/shm/shm_ring.h"
#include "moe/link/shared_memory.h"
#include "moe/link/spin_wait.h"

namespace switchyard {
namespace {

constexpr size_t kMinRingBytes = 64 << 10;

// A power of two, so that it is a multiple of the page size.
size_t RingBytes(int size, const ShmOptions& options) {
  const size_t share = std::bit_floor(options.max_area_bytes / std::max(1, size - 1));
  return std::max(kMinRingBytes, std::min(std::bit_floor(options.max_ring_bytes), share));
}

class ShmCommunicator final : public MeshCommunicator {
 public:
  static absl::StatusOr<std::unique_ptr<Communicator>> Create(int rank, int size, const ShmOptions& options);

 private:
  ShmCommunicator(std::unique_ptr<PeerMesh> mesh, SharedMemory memory, const ShmOptions& options)
      : MeshCommunicator(std::move(mesh)),
        options_(options),
        ring_bytes_(RingBytes(size(), options)),
        memory_(std::move(memory)),
        area_(memory_.data(), size(), ring_bytes_),
        spin_(options.spin),
        peers_(size()) {}

  // This rank's view of a peer, and its ways to it.
  struct Peer {
    std::optional<SharedMemory> memory;
    std::optional<ShmArea> area;
    UniqueFd doorbell;
    uint64_t rung_for = 0;  // the peer's sleep word when it was last woken
    bool is_gone = false;
    RingWriter writer;
    RingReader reader;
  };

  absl::Status Join(std::span<const std::string> addresses) override;
  absl::Status Attach(int peer);
  void Begin(int peer, uint64_t exchange, std::span<const std::byte> send, std::span<std::byte> recv) override;
  absl::StatusOr<bool> MoveAll() override;
  absl::Status CheckMove(int peer, RingMove move) const;
  bool IsDone(int peer) const override { return peers_[peer].writer.is_done() && peers_[peer].reader.is_done(); }
  bool CanMove() const;
  absl::Status Wait(SteadyTime idle_since) override;
  void Sleep(std::chrono::milliseconds timeout);
  absl::Status CheckPeers() const;
  void Wake(Peer& peer);

  const ShmOptions options_;
  const size_t ring_bytes_;
  const SharedMemory memory_;
  const ShmArea area_;

  // The calling thread's.
  SpinWait spin_;
  std::vector<Peer> peers_;     // by rank; this rank's is not used
  std::vector<pollfd> polled_;  // this rank's doorbell, then by rank
  uint64_t sleep_word_ = 0;
};

absl::StatusOr<std::unique_ptr<Communicator>> ShmCommunicator::Create(int rank, int size, const ShmOptions& options) {
  const MeshOptions mesh_options{.family = AF_UNIX, .num_gifts = 2, .connect_timeout = options.connect_timeout};
  SY_ASSIGN_OR_RETURN(auto mesh, PeerMesh::Listen(rank, size, mesh_options));
  SY_ASSIGN_OR_RETURN(SharedMemory memory, SharedMemory::Create(ShmArea::TotalBytes(size, RingBytes(size, options))));
  return std::unique_ptr<Communicator>(new ShmCommunicator(std::move(mesh), std::move(memory), options));
}

// ---- Connecting -----------------------------------------------------------------------------------------------------

absl::Status ShmCommunicator::Join(std::span<const std::string> addresses) {
  SY_RETURN_IF_ERROR(mesh().Join(addresses, std::array{memory_.fd(), mesh().wake_fd()}));
  polled_.assign(1 + size(), {-1, POLLIN, 0});
  polled_[0].fd = mesh().wake_fd();
  for (int distance = 1; distance < size(); ++distance) {
    const int peer = PeerAt(distance);
    SY_RETURN_IF_ERROR(Annotate(Attach(peer), absl::StrCat("rank ", peer)));
    polled_[1 + peer].fd = mesh().from(peer);
  }
  return absl::OkStatus();
}

absl::Status ShmCommunicator::Attach(int idx) {
  Peer& peer = peers_[idx];
  std::vector<UniqueFd> gifts = mesh().TakeGifts(idx);
  SY_ASSIGN_OR_RETURN(SharedMemory memory,
                      SharedMemory::Attach(std::move(gifts[0]), ShmArea::TotalBytes(size(), ring_bytes_)));
  peer.memory.emplace(std::move(memory));
  peer.area.emplace(peer.memory->data(), size(), ring_bytes_);
  peer.doorbell = std::move(gifts[1]);
  peer.writer = RingWriter(area_.ring(idx), ring_bytes_, &area_.written(idx), &peer.area->consumed(rank()));
  peer.reader = RingReader(peer.area->ring(rank()), ring_bytes_, &peer.area->written(rank()), &area_.consumed(idx));
  return absl::OkStatus();
}

// ---- Exchanging -----------------------------------------------------------------------------------------------------

void ShmCommunicator::Begin(int peer, uint64_t exchange, std::span<const std::byte> send, std::span<std::byte> recv) {
  peers_[peer].writer.Begin(exchange, send);
  peers_[peer].reader.Begin(exchange, recv);
}

absl::StatusOr<bool> ShmCommunicator::MoveAll() {
  bool has_moved = false;
  for (int distance = 1; distance < size(); ++distance) {
    const int to = PeerAt(distance), from = PeerAt(size() - distance);
    const RingMove sent = peers_[to].writer.Move();
    SY_RETURN_IF_ERROR(CheckMove(to, sent));
    if (sent != RingMove::kNone) Wake(peers_[to]);
    const RingMove received = peers_[from].reader.Move();
    SY_RETURN_IF_ERROR(CheckMove(from, received));
    if (received == RingMove::kMovedFull) Wake(peers_[from]);
    has_moved |= sent != RingMove::kNone || received != RingMove::kNone;
  }
  return has_moved;
}

absl::Status ShmCommunicator::CheckMove(int peer, RingMove move) const {
  if (move == RingMove::kBroken) {
    return absl::UnavailableError(absl::StrCat("rank ", peer, " has written impossible counters to shared memory"));
  }
  if (move != RingMove::kWrongBlock) return absl::OkStatus();
  const RingReader& reader = peers_[peer].reader;
  return WrongBlock(peer, rank(), reader.found(), reader.expected());
}

bool ShmCommunicator::CanMove() const {
  return std::any_of(peers_.begin(), peers_.end(),
                     [](const Peer& peer) { return peer.writer.CanMove() || peer.reader.CanMove(); });
}

// ---- Waiting --------------------------------------------------------------------------------------------------------

absl::Status ShmCommunicator::Wait(SteadyTime idle_since) {
  if (!spin_.Until([this] { return CanMove() || mesh().is_shut_down(); })) {
    SY_RETURN_IF_ERROR(CheckPeers());  // nothing wakes this rank for a peer that it knows to be gone
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(idle_since + options_.exchange_timeout - Clock::Real().Now());
    if (left.count() <= 0) return Silent();
    Sleep(left);
  }
  if (mesh().is_shut_down()) return absl::AbortedError("aborted");
  return CheckPeers();
}

// A rank says that it sleeps and then looks once more; a peer moves and then looks whether the rank sleeps. All four
// are sequentially consistent, so at least one of the two sees the other.
void ShmCommunicator::Sleep(std::chrono::milliseconds timeout) {
  area_.sleep_word().store(++sleep_word_, std::memory_order_seq_cst);
  if (!CanMove() && PollBeating(polled_, timeout, Awaited()) > 0) {
    uint64_t num_rings;
    if (polled_[0].revents != 0) {
      [[maybe_unused]] const ssize_t drained = read(polled_[0].fd, &num_rings, sizeof(num_rings));
    }
    for (int peer = 0; peer < size(); ++peer) {
      if (polled_[1 + peer].revents == 0) continue;
      peers_[peer].is_gone = true;
      polled_[1 + peer].fd = -1;
    }
  }
  area_.sleep_word().store(++sleep_word_, std::memory_order_seq_cst);
}

// A peer may leave when it has sent and received everything, so bytes that it has left behind are still good.
absl::Status ShmCommunicator::CheckPeers() const {
  for (int distance = 1; distance < size(); ++distance) {
    const int idx = PeerAt(distance);
    const Peer& peer = peers_[idx];
    if (!peer.is_gone || IsDone(idx)) continue;
    if (peer.writer.CanMove() || peer.reader.CanMove()) continue;
    return absl::UnavailableError(absl::StrCat("rank ", idx, " is gone"));
  }
  return absl::OkStatus();
}

void ShmCommunicator::Wake(Peer& peer) {
  const uint64_t word = peer.area->sleep_word().load(std::memory_order_seq_cst);
  if (word % 2 == 0 || word == peer.rung_for) return;
  peer.rung_for = word;
  const uint64_t one = 1;
  // Fails only when the peer has so many rings to hear that it will wake anyway.
  [[maybe_unused]] const ssize_t written = write(peer.doorbell.get(), &one, sizeof(one));
}

class ShmFactory final : public CommunicatorFactory {
 public:
  explicit ShmFactory(const ShmOptions& options) : options_(options) {}

  absl::StatusOr<std::unique_ptr<Communicator>> Prepare(int rank, int size) override {
    return ShmCommunicator::Create(rank, size, options_);
  }

 private:
  const ShmOptions options_;
};

}  // namespace

std::unique_ptr<CommunicatorFactory> CreateShmFactory(ShmOptions options) {
  return std::make_unique<ShmFactory>(options);
}

}  // namespace switchyard
