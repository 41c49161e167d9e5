// How the ranks become a group: under which epoch it forms, and how far the formation is.
//
//   waiting → preparing → connecting → serving
//
// Every formation has a new epoch. Losing a worker, a failed step or a failed formation puts the group back to waiting.
//
// A state machine without threads or I/O of its own. Thread-compatible: Membership owns it. Time is passed in.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "proto/worker.pb.h"
#include "server/group/group_rank.h"

namespace switchyard {

struct FormationOptions {
  // The flag --exchange.
  std::string exchange = "auto";
  // A formation that takes longer is given up and tried again.
  std::chrono::milliseconds form_timeout{15'000};
  // The pause after a failed formation or a failed step. A failed step is often the first sign of a worker's death, and
  // the pause saves a formation with the dead.
  std::chrono::milliseconds form_backoff{100};
};

class Formation {
 public:
  enum class Phase { kWaiting, kPreparing, kConnecting, kServing };

  // `ranks` outlive this.
  Formation(const FormationOptions& options, GroupRanks* ranks) : options_(options), ranks_(*ranks) {}

  // Begins a formation if the group waits for one and every rank is ready. All present ranks have an exchange in common
  // (CheckExchange).
  void TryBegin(SteadyTime now);
  // FailedPrecondition, with the reason, if a worker with this Hello and the ranks that are present have no exchange in
  // common that the options allow.
  absl::Status CheckExchange(const worker::Hello& newcomer) const;
  void OnAddress(GroupRank& rank, const worker::GroupAddress& message);
  // Returns whether the group serves from now on.
  bool OnReady(GroupRank& rank, const worker::GroupReady& message);
  // Ends the group, or its formation. Survivors are told, so that none waits for rows of a lost rank. Returns whether
  // the group had served.
  bool Break(const std::string& why, SteadyTime retry_at);
  // Whether the formation has taken too long.
  bool IsLate(SteadyTime now) const { return is_forming() && now > deadline_; }
  // The front was not running for `absence`, which does not count against the ranks.
  void Excuse(SteadyTime::duration absence) { deadline_ += absence; }
  // From now on nothing forms, and no worker is told when the group breaks.
  void Stop() { is_stopped_ = true; }

  SteadyTime AfterBackoff(SteadyTime now) const { return now + options_.form_backoff; }
  Phase phase() const { return phase_; }
  Epoch epoch() const { return epoch_; }

 private:
  bool is_forming() const { return phase_ == Phase::kPreparing || phase_ == Phase::kConnecting; }
  std::vector<const worker::Hello*> PresentWorkers() const;
  void SendToAll(const worker::FrontMessage& message) const;

  const FormationOptions options_;
  GroupRanks& ranks_;
  Phase phase_ = Phase::kWaiting;
  Epoch epoch_;
  SteadyTime not_before_;  // backoff after a failed formation
  SteadyTime deadline_;    // of the formation under way
  bool is_stopped_ = false;
};

}  // namespace switchyard
