// Row 3: a worker is killed in each phase of its life and of a step.
//
// A phase is known from outside, before the kill:
//   join      the front has started the process, and its status knows no worker of that rank yet
//   load      the status says "loading"
//   re-form   all ranks are loaded and no group serves, because the survivor is stopped and owes its address
//   dispatch  a step is in flight, and the other rank was stopped before it could get its rows; so this one, which has
//             stopped to use its core, waits for them
//   compute   the step thread has used between 20 % and 80 % of the CPU time that a step takes, of which the workers'
//             own times say that nearly all is in the experts
//   combine   the other rank was stopped in the middle of its experts; so this one, which has used the CPU time of its
//             own and has stopped to use its core, waits for partial sums
// An attempt whose phase has passed before the kill is made again, and not counted.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <future>
#include <optional>
#include <random>
#include <set>

#include "cli/compare.h"
#include "tests/e2e/checked_load.h"
#include "tests/load/row_parts.h"

namespace switchyard {
namespace {

constexpr char kPhaseLimit[] = "≥ 100 kills; no wrong answer, none lost, the survivor keeps its weights";
// Loading it takes a few hundred milliseconds.
constexpr char kSlowToLoad[] =
    "--model=big=synthetic:dim=512,hidden=1024,experts=32,topk=2,act=silu,glu=1,bias=0,dtype=fp32,layers=1";

// The processes that this one has started.
std::set<pid_t> ChildrenOf(pid_t pid) {
  std::set<pid_t> children;
  std::error_code gone;
  for (const auto& task : std::filesystem::directory_iterator(absl::StrCat("/proc/", pid, "/task"), gone)) {
    std::ifstream file(task.path() / "children");
    for (pid_t child = 0; file >> child;) children.insert(child);
  }
  return children;
}

// The CPU time of the process's main thread, in microseconds; 0 when it has ended.
int64_t CpuUs(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/task/", pid, "/schedstat"));
  int64_t ns = 0;
  file >> ns;
  return ns / 1000;
}

struct Kills {
  int64_t count = 0;
  int64_t missed = 0;  // the phase had passed
  int64_t slowest_recovery_us = 0;
  int64_t lost_survivors = 0;
  int64_t wrong = 0;
  int64_t lost = 0;
  std::string first_failure;
};

// One attempt's surroundings. Ranks are 0 and 1.
struct Attempt {
  const ServerProcess& server;
  Client& client;
  std::mt19937& random;
  v1::GetStatusResponse before;
  int victim = 0;
  pid_t keeper = 0;  // keeps its weights

  int other() const { return 1 - victim; }
  pid_t pid_of(int rank) const { return before.ranks(rank).pid(); }
};

// ---- Join, load, re-form

bool IsServing(const v1::GetStatusResponse& status) { return status.state() == "serving"; }

// Kills the victim and waits until its successor is started; returns the successor.
pid_t Restart(const Attempt& attempt) {
  const std::set<pid_t> known = ChildrenOf(attempt.server.process().pid());
  kill(attempt.pid_of(attempt.victim), SIGKILL);
  while (true) {
    for (const pid_t child : ChildrenOf(attempt.server.process().pid())) {
      if (!known.contains(child)) return child;
    }
    usleep(200);
  }
}

bool KillWhileJoining(Attempt& attempt) {
  const pid_t successor = Restart(attempt);
  usleep(attempt.random() % 20'000);
  const auto status = attempt.client.GetStatus();
  if (!status.ok() || status->ranks(attempt.victim).state() != "absent") return false;
  return kill(successor, SIGKILL) == 0;
}

bool KillWhileLoading(Attempt& attempt) {
  const pid_t successor = Restart(attempt);
  WaitForStatus(attempt.client, [&](const v1::GetStatusResponse& status) {
    return IsServing(status) || status.ranks(attempt.victim).state() == "loading";
  });
  usleep(attempt.random() % 50'000);
  const auto status = attempt.client.GetStatus();
  if (!status.ok() || status->ranks(attempt.victim).state() != "loading") return false;
  return kill(successor, SIGKILL) == 0;
}

// Half of the time it kills the successor, and otherwise the survivor, which is stopped.
bool KillWhileForming(Attempt& attempt) {
  const pid_t survivor = attempt.pid_of(attempt.other());
  kill(survivor, SIGSTOP);
  const pid_t successor = Restart(attempt);
  const auto are_loaded = [&](const v1::GetStatusResponse& status) {
    return status.ranks(0).state() == "ready" && status.ranks(1).state() == "ready";
  };
  const SteadyTime begin = Clock::Real().Now();
  bool is_forming = false;
  while (!is_forming && MicrosBetween(begin, Clock::Real().Now()) < 2'000'000) {
    const auto status = attempt.client.GetStatus();
    is_forming = status.ok() && are_loaded(*status) && !IsServing(*status);
  }
  if (is_forming) {
    const bool is_survivor = attempt.random() % 2 == 0;
    kill(is_survivor ? survivor : successor, SIGKILL);
    if (is_survivor) attempt.keeper = successor;
  }
  kill(survivor, SIGCONT);
  return is_forming;
}

struct LifePhase {
  const char* name;
  bool (*kill)(Attempt&);
  std::vector<std::string> flags;
};

Attempt Begin(const ServerProcess& server, Client& client, std::mt19937& random) {
  Attempt attempt{server, client, random, OrDie(client.GetStatus()), static_cast<int>(random() % 2)};
  attempt.keeper = attempt.pid_of(attempt.other());
  return attempt;
}

bool IsThere(const v1::GetStatusResponse& status, pid_t worker) {
  return status.ranks(0).pid() == worker || status.ranks(1).pid() == worker;
}

ScorecardLine LineOf(const std::string& tried, const Kills& kills, int64_t wanted, const std::string& more) {
  return {.tried = tried,
          .limit = kPhaseLimit,
          .measured =
              absl::StrCat(kills.count, " kills (", kills.missed, " more attempts came too late); ", more, kills.wrong,
                           " wrong, ", kills.lost, " lost; serving again within ", kills.slowest_recovery_us / 1000,
                           " ms; survivors that lost their weights: ", kills.lost_survivors),
          .demands = {{kills.count >= wanted, absl::StrCat(wanted, " kills")},
                      {kills.wrong == 0, "no wrong answer"},
                      {kills.lost == 0, absl::StrCat("none lost: ", kills.first_failure)},
                      {kills.lost_survivors == 0, "the survivor keeps its weights"}},
          .not_run = ""};
}

void MeasureLifePhase(const ScorecardSettings& settings, const LifePhase& phase, Scorecard& card) {
  const int64_t wanted = settings.Size(100, 3);
  const auto server = StartServer(settings, phase.flags);
  const auto client = server->Connect(), caller = server->Connect(kOneAttempt);
  CheckedLoad load(caller.get(), settings.checkpoint(), 2);
  std::mt19937 random(22);
  Kills kills;
  while (kills.count < wanted && kills.missed < 2 * wanted + 10) {
    load.WaitForAnswers(5);
    Attempt attempt = Begin(*server, *client, random);
    const SteadyTime begin = Clock::Real().Now();
    ++(phase.kill(attempt) ? kills.count : kills.missed);
    WaitForNewGroup(*client, attempt.before);
    WaitForStatus(*client, IsServing);
    kills.slowest_recovery_us = std::max(kills.slowest_recovery_us, MicrosBetween(begin, Clock::Real().Now()));
    kills.lost_survivors += !IsThere(OrDie(client->GetStatus()), attempt.keeper);
  }
  load.Stop();
  kills.wrong = load.wrong();
  kills.lost = load.failed();
  kills.first_failure = load.first_failure();
  card.Print(3, LineOf(absl::StrCat("SIGKILL in the phase ", phase.name, ", under load on ", settings.device), kills,
                       wanted, absl::StrCat(load.answered(), " answers, ")));
}

// ---- Dispatch, compute, combine

// What a step of the heavy layer usually takes.
struct StepCost {
  int64_t cpu_us[2] = {0, 0};  // of each rank's step thread
  double expert_share = 0;     // of the step, by the workers' own times
};

constexpr int64_t kStepRows = 1024;

// Calls the heavy layer once, and compares the answer.
class OneCall {
 public:
  OneCall(Client& client, const HonestWork& work) : work_(work) {
    client.ForwardAsync({.model = work.model, .layer = work.layer, .rows = work.rows.view()},
                        [this](absl::StatusOr<ForwardResult> result) { promise_.set_value(std::move(result)); });
  }
  bool HasEnded() { return future_.wait_for(std::chrono::seconds(0)) == std::future_status::ready; }
  // Waits for the answer, and counts it when it is wrong or missing.
  void Finish(Kills* kills) {
    const auto result = future_.get();
    if (!result.ok()) {
      if (kills->lost++ == 0) kills->first_failure = result.status().ToString();
    } else if (!Compare(result->rows.view(), work_.expected.view(), {1e-4, 1e-5}).within_tolerance()) {
      ++kills->wrong;
    }
  }

 private:
  const HonestWork& work_;
  std::promise<absl::StatusOr<ForwardResult>> promise_;
  std::future<absl::StatusOr<ForwardResult>> future_ = promise_.get_future();
};

double StageSeconds(const std::string& metrics, const std::string& stage) {
  const std::string name =
      absl::StrCat("switchyard_stage_seconds_sum{layer=\"0\",model=\"heavy\",stage=\"", stage, "\"}");
  return std::max(0.0, MetricValue(metrics, name));
}

StepCost MeasureStep(const ServerProcess& server, Client& client, const HonestWork& work, Kills* kills) {
  constexpr int kSteps = 5;
  StepCost cost;
  const auto status = OrDie(client.GetStatus());
  for (int step = -1; step < kSteps; ++step) {  // the first warms up
    int64_t before[2] = {CpuUs(status.ranks(0).pid()), CpuUs(status.ranks(1).pid())};
    OneCall(client, work).Finish(kills);
    for (int rank = 0; rank < 2 && step >= 0; ++rank) {
      cost.cpu_us[rank] += (CpuUs(status.ranks(rank).pid()) - before[rank]) / kSteps;
    }
  }
  const std::string metrics = server.Get("/metrics");
  const double expert = StageSeconds(metrics, "expert");
  const double rest = StageSeconds(metrics, "dispatch") + StageSeconds(metrics, "combine");
  cost.expert_share = expert / std::max(1e-9, expert + rest);
  return cost;
}

class StepAttempt {
 public:
  StepAttempt(const Attempt& attempt, const StepCost& cost, const HonestWork& work)
      : attempt_(attempt), cost_(cost), work_(work) {
    for (int rank = 0; rank < 2; ++rank) cpu_before_us_[rank] = CpuUs(attempt.pid_of(rank));
  }

  // Begins the step.
  void Call() { call_.emplace(attempt_.client, work_); }
  bool HasEnded() { return call_->HasEnded(); }
  void Finish(Kills* kills) { call_->Finish(kills); }

  // The share of a step's CPU time that the rank has used since the beginning.
  double Share(int rank) const {
    return static_cast<double>(CpuUs(attempt_.pid_of(rank)) - cpu_before_us_[rank]) /
           static_cast<double>(std::max<int64_t>(1, cost_.cpu_us[rank]));
  }
  // Waits until the rank has used so much of it; false when the step ends before.
  bool WaitForShare(int rank, double share) {
    while (Share(rank) < share) {
      if (HasEnded()) return false;
      usleep(300);
    }
    return true;
  }
  // Waits until the rank waits: it uses no CPU time for 20 ms.
  bool WaitUntilItWaits(int rank) {
    int64_t last = -1;
    for (int64_t used = CpuUs(attempt_.pid_of(rank)); used != last; used = CpuUs(attempt_.pid_of(rank))) {
      if (HasEnded()) return false;
      last = used;
      usleep(20'000);
    }
    return !HasEnded();
  }
  bool Kill(int rank) { return !HasEnded() && kill(attempt_.pid_of(rank), SIGKILL) == 0; }

  const Attempt& attempt() const { return attempt_; }

 private:
  const Attempt& attempt_;
  const StepCost& cost_;
  const HonestWork& work_;
  int64_t cpu_before_us_[2];
  std::optional<OneCall> call_;
};

bool KillInDispatch(StepAttempt& step) {
  const int victim = step.attempt().victim, other = step.attempt().other();
  kill(step.attempt().pid_of(other), SIGSTOP);
  step.Call();
  WaitForStatus(step.attempt().client, [](const auto& status) { return status.steps_in_flight() == 1; });
  usleep(5000);  // the rank takes the step up
  const bool is_there = step.WaitUntilItWaits(victim) && step.Share(victim) < 0.2 && step.Kill(victim);
  kill(step.attempt().pid_of(other), SIGCONT);
  return is_there;
}

bool KillInCompute(StepAttempt& step) {
  const int victim = step.attempt().victim;
  const double share = 0.2 + 0.55 * static_cast<double>(step.attempt().random() % 1000) / 1000;
  step.Call();
  return step.WaitForShare(victim, share) && step.Share(victim) <= 0.8 && step.Kill(victim);
}

bool KillInCombine(StepAttempt& step) {
  const int victim = step.attempt().victim, other = step.attempt().other();
  step.Call();
  if (!step.WaitForShare(other, 0.3)) return false;
  kill(step.attempt().pid_of(other), SIGSTOP);
  const bool is_there =
      step.Share(other) <= 0.8 && step.WaitForShare(victim, 0.85) && step.WaitUntilItWaits(victim) && step.Kill(victim);
  kill(step.attempt().pid_of(other), SIGCONT);
  return is_there;
}

void MeasureStepPhase(const ScorecardSettings& settings, const std::string& name, bool (*strike)(StepAttempt&),
                      Scorecard& card) {
  const int64_t wanted = settings.Size(100, 3);
  const auto server = StartServer(settings, {kHeavyModel, "--worker_threads=1"});
  const auto client = server->Connect(kOneAttempt);
  const HonestWork work = OrDie(ObservedWork(*server, "heavy", "0", kStepRows, kHeavyDim));
  std::mt19937 random(23);
  Kills kills;
  const StepCost cost = MeasureStep(*server, *client, work, &kills);
  while (kills.count < wanted && kills.missed < 2 * wanted + 10) {
    const Attempt attempt = Begin(*server, *client, random);
    StepAttempt step(attempt, cost, work);
    const bool is_struck = strike(step);
    const SteadyTime begin = Clock::Real().Now();
    ++(is_struck ? kills.count : kills.missed);
    if (is_struck) WaitForNewGroup(*client, attempt.before);
    kills.slowest_recovery_us = std::max(kills.slowest_recovery_us, MicrosBetween(begin, Clock::Real().Now()));
    step.Finish(&kills);
    WaitForStatus(*client, IsServing);
    kills.lost_survivors += !IsThere(OrDie(client->GetStatus()), attempt.keeper);
  }
  card.Print(3, LineOf(absl::StrCat("SIGKILL in the phase ", name, " of a step of ", kStepRows, " rows"), kills, wanted,
                       absl::StrCat("a step takes ", cost.cpu_us[0] / 1000, " ms of CPU time on a rank, ",
                                    Format("%.0f %%", 100 * cost.expert_share), " of it in the experts; ",
                                    kills.count + kills.missed, " calls answered, ")));
}

}  // namespace

void MeasureKillsByPhase(const ScorecardSettings& settings, Scorecard& card) {
  const auto is_wanted = [&](const std::string& phase) {
    return settings.phases.empty() || std::count(settings.phases.begin(), settings.phases.end(), phase) > 0;
  };
  for (const LifePhase& phase : std::vector<LifePhase>{{"join", KillWhileJoining, {}},
                                                       {"load", KillWhileLoading, {kSlowToLoad}},
                                                       {"re-form", KillWhileForming, {}}}) {
    if (is_wanted(phase.name)) MeasureLifePhase(settings, phase, card);
  }
  for (const auto& [name, strike] : std::vector<std::pair<std::string, bool (*)(StepAttempt&)>>{
           {"dispatch", KillInDispatch}, {"compute", KillInCompute}, {"combine", KillInCombine}}) {
    if (!is_wanted(name)) continue;
    if (settings.device == "cpu") {
      MeasureStepPhase(settings, name, strike, card);
    } else {
      card.Print(3, NotRun(absl::StrCat("SIGKILL in the phase ", name, " of a step"), kPhaseLimit,
                           "on a GPU a step's phases overlap and cannot be told apart from outside; row 1 kills at "
                           "random moments"));
    }
  }
}

}  // namespace switchyard
