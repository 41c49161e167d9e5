// How the ranks become a group: under which epoch it forms, and how far the formation is.
//
//   waiting → preparing → connecting → serving
//
// The pauses after failed formations grow, and the reasons are logged once: until the group serves, or a worker joins.
//
// Every formation has a new epoch. Losing a worker, a failed step or a failed formation puts the group back to waiting.
//
// A state machine without threads or I/O of its own. Thread-compatible: Membership owns it. Time is passed in.
#pragma once

#include <chrono>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/logging/logging.h"
#include "base/status.h"
#include "proto/worker.pb.h"
#include "server/group/membership/group_rank.h"

namespace switchyard {

struct FormationOptions {
  // The flag --exchange.
  std::string exchange = "auto";
  // Addresses, and then readies, that take longer are late: either the ranks that owe them are given up, or the
  // formation is given up and tried again. Each rank makes its address alone; connecting takes longer.
  std::chrono::milliseconds address_timeout{10'000};
  std::chrono::milliseconds connect_timeout{15'000};
  // The pause after a failed step, and after the first failed formation; it doubles with each further one. A failed
  // step is often the first sign of a worker's death, and the pause saves a formation with the dead.
  std::chrono::milliseconds form_backoff{100};
  std::chrono::milliseconds longest_backoff{10'000};
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
  void OnAddress(GroupRank& rank, const worker::GroupAddress& message, SteadyTime now);
  // Returns whether the group serves from now on.
  bool OnReady(GroupRank& rank, const worker::GroupReady& message);
  // Ends the group, or its formation. Survivors are told, so that none waits for rows of a lost rank. Returns whether
  // the group had served.
  bool Break(const std::string& why, SteadyTime retry_at);
  // Ends a formation that failed by itself. It is tried again after a pause.
  void Fail(const std::string& why, SteadyTime now);
  // Forgets earlier failures: pauses are short again, and reasons are logged again.
  void StartAnew();
  // Whether addresses, or readies, have taken too long.
  bool IsLate(SteadyTime now) const { return is_forming() && now > deadline_; }
  // Whether they have taken so long that even a rank that computes is waited for no more.
  bool IsVeryLate(SteadyTime now) const {
    return IsLate(now) && now - deadline_ > kPatience * options_.connect_timeout;
  }
  // The ranks that have not sent their address, or have not said that they are ready.
  std::vector<int> Owing() const;
  // The front was not running for `absence`, which does not count against the ranks.
  void Excuse(SteadyTime::duration absence) { deadline_ += absence; }
  // From now on nothing forms, and no worker is told when the group breaks.
  void Stop() { is_stopped_ = true; }

  SteadyTime AfterBackoff(SteadyTime now) const { return now + options_.form_backoff; }
  Phase phase() const { return phase_; }
  Epoch epoch() const { return epoch_; }

 private:
  static constexpr int kPatience = 3;

  bool is_forming() const { return phase_ == Phase::kPreparing || phase_ == Phase::kConnecting; }
  std::vector<const worker::Hello*> PresentWorkers() const;
  void SendToAll(const worker::FrontMessage& message) const;
  bool End(const std::string& why, SteadyTime retry_at, spdlog::level::level_enum level);

  const FormationOptions options_;
  GroupRanks& ranks_;
  Phase phase_ = Phase::kWaiting;
  Epoch epoch_;
  SteadyTime not_before_;       // backoff after a failed formation
  SteadyTime deadline_;         // of the formation's phase
  int num_failures_ = 0;        // in a row
  std::set<std::string> told_;  // reasons of those failures that are in the log
  bool is_stopped_ = false;
};

}  // namespace switchyard
