// When a worker without a front tries again to join one, and when it gives up.
//
// Pauses double from one attempt to the next, up to the longest, and are shortened by chance, so that the workers of a
// front that restarts do not come all at once. They are short again after a session that lasted.
//
// Thread-compatible. Time is passed in.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <random>

#include "base/clock.h"

namespace switchyard {

struct JoinTimes {
  // How long to try for the first welcome of a front, and how long after a front that welcomed the worker was lost; a
  // `rejoin` of 0 does not try again.
  std::chrono::milliseconds join{60'000};
  std::chrono::milliseconds rejoin{0};
  std::chrono::milliseconds shortest_pause{100};
  std::chrono::milliseconds longest_pause{5'000};
  // A front that answers nothing is given up for this attempt.
  std::chrono::milliseconds attempt{10'000};
  // A session of this length shows that the front does not welcome the worker only to lose it again.
  std::chrono::milliseconds lasting_session{10'000};
};

class JoinAttempts {
 public:
  // The first attempt begins now.
  JoinAttempts(const JoinTimes& times, uint64_t seed, SteadyTime now)
      : times_(times), random_(seed), give_up_at_(now + times.join), pause_(times.shortest_pause) {}

  // When an attempt that begins now has to have its welcome.
  SteadyTime WelcomeDue(SteadyTime now) const { return std::min(now + times_.attempt, give_up_at_); }

  // The pause after an attempt that failed, or after the end of a session that had its welcome at `welcomed_at`.
  // Nullopt when it is time to give up.
  std::optional<std::chrono::milliseconds> PauseAfter(std::optional<SteadyTime> welcomed_at, SteadyTime now);

  // How long the attempts go on that end in a welcome or in giving up.
  std::chrono::milliseconds patience() const { return had_welcome_ ? times_.rejoin : times_.join; }

 private:
  const JoinTimes times_;
  std::minstd_rand random_;
  SteadyTime give_up_at_;
  std::chrono::milliseconds pause_;
  bool had_welcome_ = false;
};

}  // namespace switchyard
