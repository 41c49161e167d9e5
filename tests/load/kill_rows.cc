// Row 1: workers that are killed under load.
#include <signal.h>

#include <random>
#include <thread>

#include "tests/e2e/checked_load.h"
#include "tests/load/row_parts.h"

namespace switchyard {
namespace {

// What a worker's death must not change for the others.
bool OthersKeptTheirWeights(const v1::GetStatusResponse& before, const v1::GetStatusResponse& after, int victim) {
  for (int rank = 0; rank < before.ranks_size(); ++rank) {
    if (rank != victim && before.ranks(rank).pid() != after.ranks(rank).pid()) return false;
  }
  return true;
}

struct Losses {
  int64_t slowest_detection_us = 0;
  int64_t slowest_recovery_us = 0;
  int64_t lost_survivors = 0;
};

void KillOne(Client& client, int victim, Losses* losses) {
  const auto before = OrDie(client.GetStatus());
  kill(before.ranks(victim).pid(), SIGKILL);
  const int64_t detection_us = WaitForLoss(client, before);
  const int64_t recovery_us = detection_us + WaitForNewGroup(client, before);
  losses->slowest_detection_us = std::max(losses->slowest_detection_us, detection_us);
  losses->slowest_recovery_us = std::max(losses->slowest_recovery_us, recovery_us);
  losses->lost_survivors += !OthersKeptTheirWeights(before, OrDie(client.GetStatus()), victim);
}

}  // namespace

void MeasureKills(const ScorecardSettings& settings, Scorecard& card) {
  const auto num_kills = settings.Size(15, 3);
  const std::chrono::seconds period(settings.Size(20, 2));
  const double max_recovery_s = settings.device == "cpu" ? 5 : 3;
  const auto server = StartServer(settings);
  const HonestWork work = GoldenWork("m", settings.checkpoint(), 1, 8);
  HonestCaller honest(*server, work, kHonestPeriod);
  const HonestReport calm = MeasureCalm(settings, honest);
  const auto client = server->Connect(), caller = server->Connect(kOneAttempt);
  CheckedLoad load(caller.get(), settings.checkpoint(), 4);
  std::mt19937 random(20);
  Losses losses;
  honest.Take();
  const SteadyTime begin = Clock::Real().Now();
  for (int64_t kill_idx = 1; kill_idx <= num_kills; ++kill_idx) {
    std::this_thread::sleep_until(begin + kill_idx * period);
    KillOne(*client, static_cast<int>(random() % 2), &losses);
  }
  load.Stop();
  const HonestReport during = honest.Take();
  card.Print(
      1, {.tried = absl::StrCat("SIGKILL of a random worker of two every ", period.count(), " s, ", num_kills,
                                " times, under the load of four callers on ", settings.device),
          .limit = absl::StrCat("no wrong answer; every request answered; detected < 1 s; serving again < ",
                                Format("%.0f s", max_recovery_s), "; survivors keep their weights"),
          .measured = absl::StrCat(load.answered(), " answers, ", load.wrong(), " wrong, ", load.failed(),
                                   " requests lost; detected within ", losses.slowest_detection_us / 1000,
                                   " ms, serving again within ", losses.slowest_recovery_us / 1000,
                                   " ms; survivors that lost their weights: ", losses.lost_survivors, "; longest call ",
                                   load.TakeLongestUs() / 1000, " ms; ", ShowBoth(calm, during)),
          .demands = {{load.wrong() == 0, "no wrong answer"},
                      {load.failed() == 0, absl::StrCat("no lost request: ", load.first_failure())},
                      {losses.slowest_detection_us < 1'000'000, "detected < 1 s"},
                      {losses.slowest_recovery_us < max_recovery_s * 1e6, "serving again in time"},
                      {losses.lost_survivors == 0, "survivors keep their weights"},
                      Unharmed(during)},
          .not_run = ""});
}

}  // namespace switchyard
