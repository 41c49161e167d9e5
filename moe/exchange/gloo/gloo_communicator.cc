#include "moe/exchange/gloo/gloo_communicator.h"

#include <arpa/inet.h>
#include <gloo/transport/context.h>
#include <gloo/transport/device.h>
#include <gloo/transport/pair.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>
#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <exception>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "base/heartbeat.h"
#include "moe/exchange/gloo/gloo_address.h"

namespace switchyard {
namespace {

using gloo::transport::Pair;
using gloo::transport::UnboundBuffer;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr uint64_t kWatchSlot = std::numeric_limits<uint64_t>::max();
constexpr int kByteCountBits = 40;
constexpr uint64_t kHandshakeMagic = 0x31584547'4c4f4f59;

// Converts Gloo's exceptions to a Status; all calls that may throw go through here. `call` returns a Status.
template <typename Call>
absl::Status BridgeGloo(absl::string_view what, Call call) {
  try {
    return call();
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat(what, ": ", error.what()));
  }
}

// A message's slot identifies the exchange and the message's size. Gloo moves bytes only between equal slots, so ranks
// that disagree about a count wait for each other and time out instead of overrunning a buffer.
uint64_t MessageSlot(uint64_t sequence, size_t num_bytes) {
  constexpr uint64_t kSequenceMask = (uint64_t{1} << (63 - kByteCountBits)) - 1;
  return ((sequence & kSequenceMask) << kByteCountBits) | num_bytes;
}

std::vector<size_t> Offsets(std::span<const size_t> counts) {
  std::vector<size_t> offsets(counts.size());
  std::exclusive_scan(counts.begin(), counts.end(), offsets.begin(), size_t{0});
  return offsets;
}

// The blocks that a rank sends, or receives, in an exchange.
struct Blocks {
  std::byte* data;
  std::span<const size_t> sizes;
  std::vector<size_t> offsets;

  Blocks(std::byte* data, std::span<const size_t> sizes) : data(data), sizes(sizes), offsets(Offsets(sizes)) {}
  std::byte* block(int rank) const { return data + offsets[rank]; }
};

bool IsAddress(const std::string& text) {
  std::array<unsigned char, sizeof(in6_addr)> bytes;
  return inet_pton(AF_INET, text.c_str(), bytes.data()) == 1 || inet_pton(AF_INET6, text.c_str(), bytes.data()) == 1;
}

class GlooCommunicator final : public Communicator {
 public:
  static absl::StatusOr<std::unique_ptr<Communicator>> Create(int rank, int size, const GlooOptions& options);
  ~GlooCommunicator() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& address() const override { return address_; }
  absl::Status Connect(std::span<const std::string> addresses) override;
  absl::Status AllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                         std::span<const size_t> recv_bytes, DeviceStream stream) override;
  void Nudge() override { WakeWaits(); }
  void Abort() override;

 private:
  GlooCommunicator(int rank, int size, const GlooOptions& options) : rank_(rank), size_(size), options_(options) {}

  // The order in which to talk to the peers. Each rank begins with the next one, so that not all begin with rank 0.
  int PeerAt(int distance) const { return (rank_ + distance) % size_; }

  absl::Status Listen();
  absl::StatusOr<std::vector<std::string>> ParsePeers(std::span<const std::string> addresses) const;
  absl::Status Join(const std::vector<std::string>& peers);
  absl::Status ConnectPeer(int peer, const std::string& address);
  absl::Status Handshake();
  absl::Status CheckCounts(std::span<const size_t> send_bytes, std::span<const size_t> recv_bytes) const;
  enum class Way { kSend, kReceive };
  absl::Status Exchange(const Blocks& send, const Blocks& recv, milliseconds timeout);
  absl::Status Post(Way way, int peer, const Blocks& blocks);
  absl::Status Wait(Way way, int peer, const Blocks& blocks, steady_clock::time_point deadline);
  absl::Status WaitOnce(Way way, int peer, steady_clock::time_point deadline);
  absl::Status Break(const absl::Status& failure);
  void WakeWaits();
  void ClosePair(int peer);
  void CloseAllPairs();

  // Constant after Create.
  const int rank_;
  const int size_;
  const GlooOptions options_;
  std::string address_;
  std::shared_ptr<gloo::transport::Device> device_;
  std::shared_ptr<gloo::transport::Context> context_;
  // memory_[r] carries the blocks to and from rank r; null for this rank. It spans the whole address space and takes
  // pointers as offsets, so that one registration serves every call. Because it is always the same object, it can also
  // keep a receive pending that never completes (kWatchSlot). This one is needed to notice that a peer has died,
  // because Gloo reports a death only to transfers that have not begun.
  std::vector<std::unique_ptr<UnboundBuffer>> memory_;

  // Only the calling thread uses these.
  absl::Status broken_;
  uint64_t sequence_ = 0;

  // Shared with Abort(). Connect() stores connecting_peer_ or joined_ and then reads aborted_; Abort() stores aborted_
  // and then reads the other two. So whichever of them stores second sees the other's store.
  std::atomic<bool> aborted_{false};
  std::atomic<bool> joined_{false};
  std::atomic<int> connecting_peer_{-1};
};

absl::StatusOr<std::unique_ptr<Communicator>> GlooCommunicator::Create(int rank, int size, const GlooOptions& options) {
  if (size < 1 || rank < 0 || rank >= size) {
    return absl::InvalidArgumentError(absl::StrCat("no rank ", rank, " in a group of ", size));
  }
  if (!IsAddress(options.bind_host)) {  // Gloo would dereference null
    return absl::InvalidArgumentError(
        absl::StrCat("Gloo cannot listen on '", options.bind_host, "': expected an IPv4 or IPv6 address"));
  }
  std::unique_ptr<GlooCommunicator> communicator(new GlooCommunicator(rank, size, options));
  SY_RETURN_IF_ERROR(
      BridgeGloo(absl::StrCat("Gloo cannot listen on ", options.bind_host), [&] { return communicator->Listen(); }));
  return communicator;
}

// Unlike Abort(), this closes the pairs softly: data already sent still arrives, so a rank may leave as soon as its own
// last exchange is over.
GlooCommunicator::~GlooCommunicator() {
  memory_.clear();
  context_.reset();
  device_.reset();
}

absl::Status GlooCommunicator::Listen() {
  gloo::transport::tcp::attr attr;
  attr.hostname = options_.bind_host;
  device_ = gloo::transport::tcp::CreateDevice(attr);
  context_ = device_->createContext(rank_, size_);
  // A pair waits five times the context's timeout for its connection.
  context_->setTimeout(std::max(options_.connect_timeout / 5, milliseconds(1)));
  memory_.resize(size_);
  GlooAddress address{.rank = rank_, .pair_addresses = std::vector<std::string>(size_)};
  for (int distance = 1; distance < size_; ++distance) {
    const int peer = PeerAt(distance);
    const std::vector<char> bytes = context_->createPair(peer)->address().bytes();
    address.pair_addresses[peer].assign(bytes.begin(), bytes.end());
    memory_[peer] = context_->createUnboundBuffer(nullptr, std::numeric_limits<size_t>::max());
  }
  address_ = EncodeGlooAddress(address);
  return absl::OkStatus();
}

absl::Status GlooCommunicator::Connect(std::span<const std::string> addresses) {
  SY_RETURN_IF_ERROR(broken_);
  if (joined_) return absl::FailedPreconditionError("this communicator is connected already");
  const absl::StatusOr<std::vector<std::string>> peers = ParsePeers(addresses);
  const absl::Status joined = peers.ok() ? Join(*peers) : peers.status();
  if (aborted_) return broken_ = absl::AbortedError("connecting was aborted");
  return broken_ = joined;
}

// From each peer's blob, the address of the socket that the peer opened for this rank.
absl::StatusOr<std::vector<std::string>> GlooCommunicator::ParsePeers(std::span<const std::string> addresses) const {
  if (static_cast<int>(addresses.size()) != size_) {
    return absl::InvalidArgumentError(absl::StrCat("expected ", size_, " addresses, got ", addresses.size()));
  }
  if (addresses[rank_] != address_) {
    return absl::InvalidArgumentError(absl::StrCat("address ", rank_, " is not this rank's own"));
  }
  std::vector<std::string> peers;
  for (int peer = 0; peer < size_; ++peer) {
    SY_ASSIGN_OR_RETURN(GlooAddress address, ParseGlooAddress(addresses[peer], peer, size_));
    peers.push_back(std::move(address.pair_addresses[rank_]));
  }
  return peers;
}

// Connects the pairs in rank order, on every rank. One end of a pair waits until the other end comes to it. In this
// order, the first unconnected pair is the next one for both of its ends, so some pair always makes progress. With
// other orders the ranks could wait in a circle.
absl::Status GlooCommunicator::Join(const std::vector<std::string>& peers) {
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    SY_RETURN_IF_ERROR(
        BridgeGloo(absl::StrCat("connecting to rank ", peer), [&] { return ConnectPeer(peer, peers[peer]); }));
  }
  SY_RETURN_IF_ERROR(Handshake());
  joined_ = true;
  if (aborted_) CloseAllPairs();
  return absl::OkStatus();
}

absl::Status GlooCommunicator::ConnectPeer(int peer, const std::string& address) {
  connecting_peer_ = peer;
  if (aborted_) return absl::AbortedError("aborted");
  const Heartbeat::Doing connecting(Heartbeat::Activity::kConnecting, peer);
  context_->getPair(peer)->connect(std::vector<char>(address.begin(), address.end()));
  memory_[peer]->recv(peer, kWatchSlot, 0, 0);
  return absl::OkStatus();
}

absl::Status GlooCommunicator::Handshake() {
  using Greeting = std::array<uint64_t, 3>;
  std::vector<Greeting> sent(size_,
                             Greeting{kHandshakeMagic, static_cast<uint64_t>(rank_), static_cast<uint64_t>(size_)});
  std::vector<Greeting> received(size_);
  const std::vector<size_t> sizes(size_, sizeof(Greeting));
  SY_RETURN_IF_ERROR(Exchange(Blocks(reinterpret_cast<std::byte*>(sent.data()), sizes),
                              Blocks(reinterpret_cast<std::byte*>(received.data()), sizes), options_.connect_timeout));
  for (int peer = 0; peer < size_; ++peer) {
    const Greeting expected{kHandshakeMagic, static_cast<uint64_t>(peer), static_cast<uint64_t>(size_)};
    if (received[peer] == expected) continue;
    return absl::UnavailableError(
        absl::StrCat("the process that answers as rank ", peer, " is not rank ", peer, " of ", size_));
  }
  return absl::OkStatus();
}

absl::Status GlooCommunicator::CheckCounts(std::span<const size_t> send_bytes,
                                           std::span<const size_t> recv_bytes) const {
  if (static_cast<int>(send_bytes.size()) != size_ || static_cast<int>(recv_bytes.size()) != size_) {
    return absl::InvalidArgumentError(absl::StrCat("expected ", size_, " counts, got ", send_bytes.size(),
                                                   " to send and ", recv_bytes.size(), " to receive"));
  }
  if (send_bytes[rank_] != recv_bytes[rank_]) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", rank_, " sends itself ", send_bytes[rank_], " bytes but expects ", recv_bytes[rank_]));
  }
  for (const std::span<const size_t> counts : {send_bytes, recv_bytes}) {
    for (const size_t count : counts) {
      if (count >> kByteCountBits == 0) continue;
      return absl::InvalidArgumentError(absl::StrCat("a block of ", count, " bytes is beyond 2^", kByteCountBits));
    }
  }
  return absl::OkStatus();
}

absl::Status GlooCommunicator::AllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                                         std::span<const size_t> recv_bytes, DeviceStream) {
  if (aborted_) return absl::AbortedError("the communicator was aborted");
  SY_RETURN_IF_ERROR(broken_);
  if (!joined_) return absl::FailedPreconditionError("the communicator is not connected");
  if (absl::Status counts = CheckCounts(send_bytes, recv_bytes); !counts.ok()) return Break(counts);
  // Gloo's buffers are not const, but Gloo does not write to a buffer that is only sent from.
  return Exchange(Blocks(const_cast<std::byte*>(send), send_bytes), Blocks(recv, recv_bytes),
                  options_.exchange_timeout);
}

// Receives are posted first, because a send whose receive is known goes out without a round of notifications. Once
// posted, every transfer proceeds on its own, so each wait depends on its own peer only.
absl::Status GlooCommunicator::Exchange(const Blocks& send, const Blocks& recv, milliseconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  for (int distance = 1; distance < size_; ++distance) {
    if (absl::Status posted = Post(Way::kReceive, PeerAt(size_ - distance), recv); !posted.ok()) return Break(posted);
  }
  for (int distance = 1; distance < size_; ++distance) {
    if (absl::Status posted = Post(Way::kSend, PeerAt(distance), send); !posted.ok()) return Break(posted);
  }
  if (recv.sizes[rank_] > 0) std::memcpy(recv.block(rank_), send.block(rank_), recv.sizes[rank_]);
  for (int distance = 1; distance < size_; ++distance) {
    const int peer = PeerAt(distance);
    if (absl::Status received = Wait(Way::kReceive, peer, recv, deadline); !received.ok()) return Break(received);
    if (absl::Status sent = Wait(Way::kSend, peer, send, deadline); !sent.ok()) return Break(sent);
  }
  ++sequence_;
  return absl::OkStatus();
}

absl::Status GlooCommunicator::Post(Way way, int peer, const Blocks& blocks) {
  const size_t num_bytes = blocks.sizes[peer];
  if (num_bytes == 0) return absl::OkStatus();
  return BridgeGloo(absl::StrCat("rank ", peer), [&] {
    const size_t offset = reinterpret_cast<size_t>(blocks.block(peer));
    if (way == Way::kSend) {
      memory_[peer]->send(peer, MessageSlot(sequence_, num_bytes), offset, num_bytes);
    } else {
      memory_[peer]->recv(peer, MessageSlot(sequence_, num_bytes), offset, num_bytes);
    }
    return absl::OkStatus();
  });
}

absl::Status GlooCommunicator::Wait(Way way, int peer, const Blocks& blocks, steady_clock::time_point deadline) {
  if (blocks.sizes[peer] == 0) return absl::OkStatus();
  const absl::Status first = WaitOnce(way, peer, deadline);
  if (!absl::IsUnavailable(first)) return first;
  if (steady_clock::now() >= deadline) return absl::UnavailableError(absl::StrCat("rank ", peer, " is silent"));
  // If a peer completes the transfer and then leaves, both events wake the wait, and Gloo looks at the leaving first. A
  // second wait finds the completed transfer, or fails like the first.
  return WaitOnce(way, peer, deadline);
}

// A wait that Nudge() woke begins again. Gloo's own timeout cannot be used for that, because it closes all pairs.
absl::Status GlooCommunicator::WaitOnce(Way way, int peer, steady_clock::time_point deadline) {
  const Heartbeat::Doing waiting(Heartbeat::Activity::kWaiting, peer);
  return BridgeGloo(absl::StrCat("rank ", peer), [&] {
    while (!aborted_) {
      // At least a millisecond, because Gloo takes -1 as its own default.
      const auto left = std::max(milliseconds(1), std::chrono::ceil<milliseconds>(deadline - steady_clock::now()));
      if (way == Way::kSend ? memory_[peer]->waitSend(left) : memory_[peer]->waitRecv(left)) return absl::OkStatus();
      Heartbeat::Beat();
    }
    return absl::AbortedError("aborted");
  });
}

// Ends the communicator after a failure. Once the pairs are closed, Gloo no longer touches the caller's buffers.
absl::Status GlooCommunicator::Break(const absl::Status& failure) {
  broken_ = aborted_ ? absl::AbortedError("the all-to-all was aborted")
                     : Annotate(failure, absl::StrCat("all-to-all on rank ", rank_));
  CloseAllPairs();
  return broken_;
}

void GlooCommunicator::ClosePair(int peer) {
  BridgeGloo("close", [&] {
    if (const std::unique_ptr<Pair>& pair = context_->getPair(peer)) pair->close();
    return absl::OkStatus();
  }).IgnoreError();
}

void GlooCommunicator::CloseAllPairs() {
  for (int distance = 1; distance < size_; ++distance) ClosePair(PeerAt(distance));
}

void GlooCommunicator::WakeWaits() {
  for (const std::unique_ptr<UnboundBuffer>& memory : memory_) {
    if (memory == nullptr) continue;
    memory->abortWaitRecv();
    memory->abortWaitSend();
  }
}

void GlooCommunicator::Abort() {
  if (aborted_.exchange(true)) return;
  WakeWaits();
  if (joined_) {
    CloseAllPairs();
  } else if (const int peer = connecting_peer_; peer >= 0) {
    // Closes only the pair that Connect() may be waiting for. Resetting a connection that the peer has not yet accepted
    // would be fatal to the peer's Gloo, so the other pairs are closed softly on destruction.
    ClosePair(peer);
  }
}

class GlooFactory final : public CommunicatorFactory {
 public:
  explicit GlooFactory(GlooOptions options) : options_(std::move(options)) {}

  absl::StatusOr<std::unique_ptr<Communicator>> Prepare(int rank, int size) override {
    return GlooCommunicator::Create(rank, size, options_);
  }

 private:
  const GlooOptions options_;
};

}  // namespace

std::unique_ptr<CommunicatorFactory> CreateGlooFactory(GlooOptions options) {
  return std::make_unique<GlooFactory>(std::move(options));
}

}  // namespace switchyard
