// The exchange of the simulated workers: a communicator whose calls block the fiber of the worker's step thread until
// messages of the simulated network have arrived.
//
// Each pair of ranks has one connection per formation: pipes, one in each direction. A rank finds its peers by the
// addresses that the front carried. It is refused where no communicator of that address is there any more.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "moe/exchange/communicator.h"
#include "tests/simulation/network.h"

namespace switchyard::simulation {

// The step thread of a worker, as its communicator needs it.
class StepThread {
 public:
  virtual ~StepThread() = default;
  // Blocks the thread until it is woken, which may be for nothing. `peer` is the rank that it waits for.
  virtual void WaitForPeer(int peer) = 0;
  virtual void Wake() = 0;
  // Its process is being killed: nothing more is waited for.
  virtual bool is_over() const = 0;
};

class PeerCommunicator;

// Knows every communicator that can be connected to.
class PeerDirectory {
 public:
  explicit PeerDirectory(Network* network) : network_(network) {}

  Network& network() { return *network_; }
  std::string Register(PeerCommunicator* communicator);
  void Unregister(const std::string& address) { known_.erase(address); }
  PeerCommunicator* Find(const std::string& address) const;

 private:
  Network* const network_;
  std::map<std::string, PeerCommunicator*> known_;
  int64_t num_registered_ = 0;
};

class PeerCommunicator final : public Communicator {
 public:
  PeerCommunicator(PeerDirectory* directory, StepThread* thread, int host, int rank, int size);
  // Its connections end.
  ~PeerCommunicator() override;

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(peers_.size()); }
  const std::string& address() const override { return address_; }
  absl::Status Connect(std::span<const std::string> addresses) override;
  absl::Status AllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                         std::span<const size_t> recv_bytes, DeviceStream stream) override;
  void Abort() override;

 private:
  struct Peer {
    std::shared_ptr<Pipe> out;
    std::deque<std::vector<std::byte>> blocks;  // that have arrived
    bool has_greeted = false, has_ended = false;
  };

  // Sends `arrive` to be run with the peer's communicator, unless that is gone by then.
  void SendTo(int peer, Point point, std::function<void(PeerCommunicator&)> arrive);
  void Greet(int peer, const std::string& address);
  void End();
  absl::Status CheckPeer(int peer) const;
  absl::Status Receive(int peer, std::byte* to, size_t num_bytes);

  PeerDirectory* const directory_;
  StepThread* const thread_;
  const int host_, rank_;
  std::string address_;
  std::vector<std::string> addresses_;
  std::vector<Peer> peers_;  // by rank
  bool is_aborted_ = false;
};

}  // namespace switchyard::simulation
