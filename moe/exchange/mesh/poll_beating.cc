#include "moe/exchange/mesh/poll_beating.h"

#include <algorithm>

#include "base/clock.h"
#include "base/heartbeat.h"

namespace switchyard {

int PollBeating(std::span<pollfd> polled, std::chrono::milliseconds timeout, int peer) {
  const Heartbeat::Doing waiting(Heartbeat::Activity::kWaiting, peer);
  const SteadyTime until = Clock::Real().Now() + timeout;
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::Real().Now());
    const auto slice = std::clamp(left, std::chrono::milliseconds(0), Heartbeat::kInterval);
    const int num_ready = poll(polled.data(), polled.size(), static_cast<int>(slice.count()));
    if (num_ready != 0 || left <= slice) return num_ready;
    Heartbeat::Beat();
  }
}

}  // namespace switchyard
