// The network between the front, host 0, and the workers' hosts.
//
// A connection is two pipes. What is sent into a pipe arrives in order, each after a random delay, as over TCP; pipes
// do not wait for each other. A pipe holds what it has while its path is blocked (a partition) or its receiver is
// stopped. A partition ends by itself; a pipe that is lost for good, as when a box in between has forgotten the
// connection, swallows what it gets, and neither end hears of it.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "tests/simulation/event_loop.h"
#include "tests/simulation/point.h"

namespace switchyard::simulation {

constexpr int kFrontHost = 0;

class Network;

class Pipe : public std::enable_shared_from_this<Pipe> {
 public:
  using Delivery = std::function<void()>;

  Pipe(Network* network, int from, int to) : network_(network), from_(from), to_(to) {}

  // `worker_host` is the one that the message is about, for the faults that it triggers.
  void Send(Point point, int worker_host, Delivery delivery);
  // What is on its way does not arrive, nor does anything that is sent later.
  void Cut();
  void Lose() { is_lost_ = true; }
  // What is on its way is lost with the connection; what is sent later arrives.
  void Drop();
  int from() const { return from_; }
  int to() const { return to_; }

 private:
  friend class Network;
  struct Packet {
    Point point;
    int worker_host;
    SteadyTime arrives;
    Delivery delivery;
    int64_t number;
    bool is_struck = false;  // the faults that come before it have been
  };

  void Schedule();
  void DeliverNext();

  Network* const network_;
  const int from_, to_;
  std::deque<Packet> packets_;
  SteadyTime last_arrival_;
  int64_t num_sent_ = 0;
  std::shared_ptr<Pipe> self_;  // while packets are on their way, which they are whatever becomes of the sender
  bool is_scheduled_ = false, is_cut_ = false, is_lost_ = false;
};

class Network {
 public:
  ~Network();

  // Called with every message, before and after it is handed over.
  using Hook = std::function<void(Point point, int worker_host, bool is_before)>;

  Network(EventLoop* loop, int num_hosts, Nanos usual_delay)
      : loop_(loop), usual_delay_(usual_delay), blocked_(num_hosts, std::vector<int>(num_hosts)), stopped_(num_hosts) {}

  void SetHook(Hook hook) { hook_ = std::move(hook); }
  std::shared_ptr<Pipe> Open(int from, int to);

  // Blocks nest.
  void Block(int from, int to) { ++blocked_[from][to]; }
  void Unblock(int from, int to);
  // A stopped host takes nothing.
  void Stop(int host) { ++stopped_[host]; }
  void Continue(int host);
  // The process that was stopped has ended.
  void Restart(int host);
  bool is_stopped(int host) const { return stopped_[host] > 0; }
  // Ends all blocks and stops.
  void Heal();
  // The pipes between two hosts lose what they have and will get: some, or all that there are.
  void LosePipes(int one, int other);

 private:
  friend class Pipe;
  bool passes(const Pipe& pipe) const { return blocked_[pipe.from_][pipe.to_] == 0 && stopped_[pipe.to_] == 0; }
  void Pump();
  void ForEachPipe(int one, int other, const std::function<void(Pipe&)>& fn);

  EventLoop* const loop_;
  const Nanos usual_delay_;
  Hook hook_ = [](Point, int, bool) {};
  std::vector<std::vector<int>> blocked_;  // by sender and receiver
  std::vector<int> stopped_;
  std::vector<std::weak_ptr<Pipe>> pipes_;
};

}  // namespace switchyard::simulation
