// The faults that strike the world. Each is armed for a point of the protocol, and strikes when that is passed for the
// n-th time.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/simulation/front.h"
#include "tests/simulation/worker.h"

namespace switchyard::simulation {

enum class Fault : uint8_t {
  kKill,
  kStop,            // the process, for a while
  kStopStepThread,  // that alone, for a while: pings are answered
  kSlow,            // steps take long for a while
  kTerminate,       // the worker is asked to end
  kBreakStream,     // the connection to the front breaks
  kLoseStream,      // the connection to the front is dead, and nobody knows
  kPartFromFront,   // nothing goes between front and worker for a while
  kSilenceToFront,  // nothing goes one way for a while
  kSilenceFromFront,
  kPartPeers,  // nothing goes between two workers for a while
  kSilencePeers,
  kLosePeers,      // the connections of two workers are dead, and nobody knows
  kAbortExchange,  // a worker gives the exchange up
  kFailStep,
  kFailGroup,  // a worker cannot form the group once
  kWrongSize,  // a result has the wrong number of bytes
  kStaleResults,
  kDuplicateResult,
  kFailLoad,
  kDieInLoad,
  kOtherFiles,  // a worker reads other weights for a while
  kLoadModel,
  kUnloadModel,
  kReloadModel,
  kPauseFront,  // the front's process does not run for a while
  kNumFaults
};
const char* NameOf(Fault fault);

// How often each fault has struck at each point.
struct Coverage {
  std::array<std::array<int64_t, static_cast<size_t>(Point::kNumPoints)>, static_cast<size_t>(Fault::kNumFaults)>
      counts{};
  void Add(const Coverage& other);
  // A table; and how many pairs have not been hit.
  std::string ToString() const;
  int64_t num_struck() const;
};

class Faults {
 public:
  Faults(Site* site, Front* front, std::vector<std::unique_ptr<Worker>>* workers)
      : site_(site), front_(front), workers_(*workers) {}

  void Arm(int count);
  // From now on nothing strikes, and what is in a bad way for a while recovers.
  void Calm();
  void Pass(Point point, int host, bool is_before);

  // Whether rows may have been lost without a trace, which only a step's time limit shows.
  bool has_lost_peers() const;
  const Coverage& coverage() const { return coverage_; }
  // The faults that struck, one a line.
  const std::string& history() const { return history_; }

 private:
  struct Armed {
    Fault fault;
    Point point;
    bool is_before;
    int countdown;
  };

  void Strike(Fault fault, Point point, int host);
  void StrikeWorker(Fault fault, Worker& worker);
  void StrikePeers(Fault fault, int one, int other);
  void ChangeModel(Fault fault);
  void BlockFor(int from, int to, Nanos time);
  void Continue(Worker& worker);
  Nanos Duration();
  bool HangsForGood(Worker& worker);

  Site* const site_;
  Front* const front_;
  std::vector<std::unique_ptr<Worker>>& workers_;
  std::vector<Armed> armed_;
  bool is_calm_ = false;
  Coverage coverage_;
  std::string history_;
};

}  // namespace switchyard::simulation
