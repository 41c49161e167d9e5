#include "tests/simulation/network.h"

#include <algorithm>
#include <utility>

namespace switchyard::simulation {

// ---- Pipes ----------------------------------------------------------------------------------------------------------

void Pipe::Send(Point point, int worker_host, Delivery delivery) {
  if (is_cut_ || is_lost_) return;
  EventLoop& loop = *network_->loop_;
  last_arrival_ = std::max(last_arrival_, loop.now() + loop.random().Delay(network_->usual_delay_));
  packets_.push_back({point, worker_host, last_arrival_, std::move(delivery), ++num_sent_});
  self_ = shared_from_this();
  Schedule();
}

void Pipe::Cut() {
  is_cut_ = true;
  Drop();
}

void Pipe::Drop() {
  const std::deque<Packet> dropped = std::exchange(packets_, {});
  self_ = nullptr;
}

void Pipe::Schedule() {
  if (is_scheduled_ || packets_.empty() || !network_->passes(*this)) return;
  is_scheduled_ = true;
  network_->loop_->At(packets_.front().arrives, [self = shared_from_this()] { self->DeliverNext(); });
}

void Pipe::DeliverNext() {
  is_scheduled_ = false;
  if (is_lost_) Drop();
  if (packets_.empty() || !network_->passes(*this)) return;
  if (!packets_.front().is_struck) {
    const int64_t number = packets_.front().number;
    packets_.front().is_struck = true;
    network_->hook_(packets_.front().point, packets_.front().worker_host, /*is_before=*/true);
    // The fault may have been one of this pipe.
    if (packets_.empty() || packets_.front().number != number || !network_->passes(*this) || is_lost_) {
      return Schedule();
    }
  }
  const Packet packet = std::move(packets_.front());
  packets_.pop_front();
  network_->loop_->Note(NameOf(packet.point), from_, to_);
  packet.delivery();
  network_->hook_(packet.point, packet.worker_host, /*is_before=*/false);
  Schedule();
  if (packets_.empty()) self_ = nullptr;
}

// ---- The network ----------------------------------------------------------------------------------------------------

Network::~Network() {
  for (const auto& each : pipes_) {
    if (const auto pipe = each.lock()) pipe->Cut();
  }
}

std::shared_ptr<Pipe> Network::Open(int from, int to) {
  auto pipe = std::make_shared<Pipe>(this, from, to);
  std::erase_if(pipes_, [](const auto& each) { return each.expired(); });
  pipes_.push_back(pipe);
  return pipe;
}

void Network::Pump() {
  for (const auto& each : std::vector<std::weak_ptr<Pipe>>(pipes_)) {
    if (const auto pipe = each.lock()) pipe->Schedule();
  }
}

void Network::Unblock(int from, int to) {
  if (blocked_[from][to] > 0) --blocked_[from][to];
  Pump();
}

void Network::Continue(int host) {
  if (stopped_[host] > 0) --stopped_[host];
  Pump();
}

void Network::Restart(int host) {
  stopped_[host] = 0;
  Pump();
}

void Network::Heal() {
  for (auto& row : blocked_) std::fill(row.begin(), row.end(), 0);
  std::fill(stopped_.begin(), stopped_.end(), 0);
  Pump();
}

void Network::ForEachPipe(int one, int other, const std::function<void(Pipe&)>& fn) {
  for (const auto& each : std::vector<std::weak_ptr<Pipe>>(pipes_)) {
    const auto pipe = each.lock();
    if (pipe == nullptr) continue;
    if ((pipe->from_ == one && pipe->to_ == other) || (pipe->from_ == other && pipe->to_ == one)) fn(*pipe);
  }
}

void Network::LosePipes(int one, int other) {
  ForEachPipe(one, other, [](Pipe& pipe) { pipe.Lose(); });
}

}  // namespace switchyard::simulation
