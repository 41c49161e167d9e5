// How far the threads of a rank are on which steps depend, from what its worker's pongs say, and which rank is to blame
// when something does not end.
//
// Time is counted in the front's ticks, and only ticks in which the worker answered count: a pause of the front or of
// the worker's process is not held against the worker's threads.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "proto/worker.pb.h"

namespace switchyard {

// Thread-compatible.
class RankProgress {
 public:
  void OnPong(const worker::Pong& pong);
  void OnTick();

  // Describes a thread that has not moved for `num_ticks` ticks although it should have; nullopt when all threads move.
  std::optional<std::string> StandsStill(int num_ticks) const;

  // The rank's activity as its peers notice it: that of the first thread that is not idle.
  struct State {
    worker::ThreadProgress::Activity activity = worker::ThreadProgress::IDLE;
    int peer = -1;
    bool is_lasting = false;  // it waits, and has been in this one wait for a second or so
    std::string text;         // "computes step 7", "waits for rank 2"
  };
  State state() const;

 private:
  struct Thread {
    worker::ThreadProgress last;  // as of the last pong
    bool is_heard = false;        // there was a pong since the last tick
    int64_t moves_at_tick = 0, wait_at_tick = 0;
    int num_still_ticks = 0, num_wait_ticks = 0;
  };

  std::vector<Thread> threads_;
};

// The ranks to blame when some ranks owe something: a result, an address, a ready.
struct Blame {
  std::vector<int> guilty;  // these are to be given up; empty when the ranks wait for each other
  bool is_working = false;  // a rank that owes something computes, and is not among the guilty for that reason
  std::string text;         // what every rank that owes does
};

enum class Debt : uint8_t {
  kOfAll = 0,  // ranks need each other to pay it
  kOfEach = 1  // each rank can pay it alone
};

// A rank that waits for what others owe is not guilty; one that does nothing is, and one that computes if
// `blame_working`.
// `owing` are ranks of `progress`.
Blame FindBlame(const std::vector<const RankProgress*>& progress, const std::vector<int>& owing, Debt debt,
                bool blame_working);

// "rank 1", "ranks 0, 2"
std::string NameRanks(const std::vector<int>& ranks);

}  // namespace switchyard
