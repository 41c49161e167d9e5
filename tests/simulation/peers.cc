#include "tests/simulation/peers.h"

#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace switchyard::simulation {
namespace {

// "HOST:NUMBER"
int HostOf(const std::string& address) {
  int host = kFrontHost;
  (void)absl::SimpleAtoi(address.substr(0, address.find(':')), &host);
  return host;
}

}  // namespace

std::string PeerDirectory::Register(PeerCommunicator* communicator) {
  std::string number = absl::StrCat(++num_registered_);
  known_[number] = communicator;
  return number;
}

PeerCommunicator* PeerDirectory::Find(const std::string& address) const {
  const auto found = known_.find(address.substr(address.find(':') + 1));
  return found == known_.end() ? nullptr : found->second;
}

PeerCommunicator::PeerCommunicator(PeerDirectory* directory, StepThread* thread, int host, int rank, int size)
    : directory_(directory), thread_(thread), host_(host), rank_(rank), peers_(size) {
  address_ = absl::StrCat(host, ":", directory->Register(this));
}

PeerCommunicator::~PeerCommunicator() {
  End();
  directory_->Unregister(address_.substr(address_.find(':') + 1));
}

void PeerCommunicator::SendTo(int peer, Point point, std::function<void(PeerCommunicator&)> arrive) {
  if (peers_[peer].out == nullptr) return;
  peers_[peer].out->Send(point, HostOf(addresses_[peer]),
                         [directory = directory_, address = addresses_[peer], arrive = std::move(arrive)] {
                           if (PeerCommunicator* const found = directory->Find(address)) arrive(*found);
                         });
}

// Connects to the peer. Where nobody listens any more, this rank learns of it a little later.
void PeerCommunicator::Greet(int peer, const std::string& address) {
  const int host = HostOf(address);
  peers_[peer].out = directory_->network().Open(host_, host);
  const auto refused = directory_->network().Open(host, host_);
  peers_[peer].out->Send(Point::kPeerHello, host,
                         [directory = directory_, rank = rank_, peer, from = address_, address, refused, host = host_] {
                           if (PeerCommunicator* const found = directory->Find(address);
                               found != nullptr && !found->is_aborted_) {
                             found->peers_[rank].has_greeted = true;
                             found->thread_->Wake();
                             return;
                           }
                           refused->Send(Point::kPeerEnd, host, [directory, from, peer] {
                             if (PeerCommunicator* const self = directory->Find(from)) {
                               self->peers_[peer].has_ended = true;
                               self->thread_->Wake();
                             }
                           });
                         });
}

absl::Status PeerCommunicator::Connect(std::span<const std::string> addresses) {
  addresses_.assign(addresses.begin(), addresses.end());
  if (is_aborted_) return absl::AbortedError("the exchange was aborted");
  for (int peer = 0; peer < size(); ++peer) {
    if (peer != rank_) Greet(peer, addresses_[peer]);
  }
  for (int peer = 0; peer < size(); ++peer) {
    while (peer != rank_ && !peers_[peer].has_greeted) {
      SY_RETURN_IF_ERROR(CheckPeer(peer));
      thread_->WaitForPeer(peer);
    }
  }
  return absl::OkStatus();
}

absl::Status PeerCommunicator::CheckPeer(int peer) const {
  if (is_aborted_ || thread_->is_over()) return absl::AbortedError("the exchange was aborted");
  if (peers_[peer].has_ended) return absl::UnavailableError(absl::StrCat("the connection to rank ", peer, " ended"));
  return absl::OkStatus();
}

absl::Status PeerCommunicator::AllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                                         std::span<const size_t> recv_bytes, DeviceStream) {
  const std::byte* own = nullptr;
  for (int peer = 0; peer < size(); send += send_bytes[peer++]) {
    if (peer == rank_) own = send;
    if (peer == rank_ || send_bytes[peer] == 0) continue;
    SY_RETURN_IF_ERROR(CheckPeer(peer));
    SendTo(peer, Point::kPeerBlock,
           [rank = rank_, block = std::vector<std::byte>(send, send + send_bytes[peer])](PeerCommunicator& to) {
             to.peers_[rank].blocks.push_back(block);
             to.thread_->Wake();
           });
  }
  for (int peer = 0; peer < size(); recv += recv_bytes[peer++]) {
    if (recv_bytes[peer] == 0) continue;
    if (peer == rank_) {
      std::memcpy(recv, own, recv_bytes[peer]);
    } else {
      SY_RETURN_IF_ERROR(Receive(peer, recv, recv_bytes[peer]));
    }
  }
  return absl::OkStatus();
}

absl::Status PeerCommunicator::Receive(int peer, std::byte* to, size_t num_bytes) {
  while (peers_[peer].blocks.empty()) {
    SY_RETURN_IF_ERROR(CheckPeer(peer));
    thread_->WaitForPeer(peer);
  }
  if (is_aborted_ || thread_->is_over()) return absl::AbortedError("the exchange was aborted");
  const std::vector<std::byte> block = std::move(peers_[peer].blocks.front());
  peers_[peer].blocks.pop_front();
  if (block.size() != num_bytes) {
    return absl::DataLossError(absl::StrCat(block.size(), " bytes from rank ", peer, ", expected ", num_bytes));
  }
  std::memcpy(to, block.data(), num_bytes);
  return absl::OkStatus();
}

void PeerCommunicator::End() {
  for (int peer = 0; peer < size(); ++peer) {
    SendTo(peer, Point::kPeerEnd, [rank = rank_](PeerCommunicator& to) {
      to.peers_[rank].has_ended = true;
      to.thread_->Wake();
    });
    peers_[peer].out = nullptr;
  }
}

void PeerCommunicator::Abort() {
  if (std::exchange(is_aborted_, true)) return;
  End();
  thread_->Wake();
}

}  // namespace switchyard::simulation
