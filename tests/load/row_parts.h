// What several rows of the scorecard need: servers, an honest caller's figures, attacking clients, waiting.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "tests/load/honest_caller.h"
#include "tests/load/rows.h"
#include "tests/load/server_watch.h"

namespace switchyard {

inline constexpr double kMib = 1 << 20;
inline constexpr std::chrono::milliseconds kHonestPeriod{10};

// A layer that computes for long on few bytes; kHeavyDim wide.
inline constexpr char kHeavyModel[] =
    "--model=heavy=synthetic:dim=128,hidden=4096,experts=8,topk=8,layers=1,dtype=fp32";
inline constexpr int64_t kHeavyDim = 128;

// The front itself has to hide losses from callers, so they try once.
inline const ClientOptions kOneAttempt = {.timeout = absl::Seconds(60), .max_attempts = 1};

// Serves jargon-moe as "m" on two workers, in fp32. Ends the program when it does not start.
std::unique_ptr<ServerProcess> StartServer(const ScorecardSettings& settings, std::vector<std::string> flags = {});
// Takes the value, or ends the program with the error.
template <typename T>
T OrDie(absl::StatusOr<T> value);
[[noreturn]] void Die(const absl::Status& why);

// Waits until a status answers `condition`. Returns the microseconds this took; ends the program after two minutes,
// because then nothing that follows would mean anything.
int64_t WaitForStatus(Client& client, const std::function<bool(const v1::GetStatusResponse&)>& condition);
// Waits until the group of a later epoch than `before` serves.
int64_t WaitForNewGroup(Client& client, const v1::GetStatusResponse& before);
// Waits until that group is lost. Returns the microseconds.
int64_t WaitForLoss(Client& client, const v1::GetStatusResponse& before);

// The honest caller's figures while nothing else happens.
HonestReport MeasureCalm(const ScorecardSettings& settings, HonestCaller& honest);
std::string Show(const HonestReport& report);
std::string ShowBoth(const HonestReport& before, const HonestReport& during);
Demand Unharmed(const HonestReport& report);
// Small sizes have too few calls for a 99th percentile, so there it is not asked for.
Demand P99Within(const ScorecardSettings& settings, const HonestReport& before, const HonestReport& during);
std::string Leftover(const AdmittedWork& work);

// A misbehaving client (tests/load/attack_main.cc) at the lowest priority, as if it were on another machine.
class Attack {
 public:
  Attack(const ScorecardSettings& settings, const ServerProcess& server, std::vector<std::string> arguments);

  // Waits for the end of the client; returns its output.
  std::map<std::string, std::string> Finish();

 private:
  std::unique_ptr<ChildProcess> process_;
};
double Number(const std::map<std::string, std::string>& output, const std::string& key);
// Lists the codes in an attack's output with their counts.
std::string Codes(const std::map<std::string, std::string>& output);

// ---- Implementation

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  if (!value.ok()) Die(value.status());
  return *std::move(value);
}

}  // namespace switchyard
