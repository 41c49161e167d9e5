#include "worker/join_attempts.h"

namespace switchyard {

std::optional<std::chrono::milliseconds> JoinAttempts::PauseAfter(std::optional<SteadyTime> welcomed_at,
                                                                  SteadyTime now) {
  if (welcomed_at.has_value()) {
    had_welcome_ = true;
    give_up_at_ = now + times_.rejoin;
    if (now - *welcomed_at >= times_.lasting_session) pause_ = times_.shortest_pause;
  }
  if (now >= give_up_at_) return std::nullopt;
  const auto longest = pause_;
  pause_ = std::min(2 * pause_, times_.longest_pause);
  const std::chrono::milliseconds pause(
      std::uniform_int_distribution<int64_t>(longest.count() / 2, longest.count())(random_));
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(give_up_at_ - now);
  return std::min(pause, left);
}

}  // namespace switchyard
