// Row 2: workers, a step thread, an exchange or a front that stand still without ending.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <optional>
#include <random>
#include <thread>

#include "tests/e2e/checked_load.h"
#include "tests/e2e/disturbances.h"
#include "tests/load/row_parts.h"

namespace switchyard {
namespace {

constexpr char kStuckLimit[] = "detected < 3 s; no stuck call";
// A call that takes longer counts as stuck: it has to be answered soon after the loss is noticed.
constexpr int64_t kStuckUs = 8'000'000;

struct Stops {
  int64_t count = 0;
  int64_t slowest_detection_us = 0;
  int64_t slowest_recovery_us = 0;
  std::string not_run;
};

struct Stuck {
  Client& client;
  const v1::GetStatusResponse& before;
  int victim;
};

// Waits until the loss is noticed and a new group serves; calls `meanwhile` again and again.
void WatchRecovery(
    const Stuck& stuck, Stops* stops, const std::function<void()>& meanwhile = [] {}) {
  const auto until = [&](const std::function<bool(const v1::GetStatusResponse&)>& condition) {
    return WaitForStatus(stuck.client, [&](const v1::GetStatusResponse& status) {
      meanwhile();
      return condition(status);
    });
  };
  const int64_t epoch = stuck.before.epoch();
  const int64_t detection_us =
      until([&](const v1::GetStatusResponse& status) { return status.state() != "serving" || status.epoch() > epoch; });
  const int64_t rest_us =
      until([&](const v1::GetStatusResponse& status) { return status.state() == "serving" && status.epoch() > epoch; });
  ++stops->count;
  stops->slowest_detection_us = std::max(stops->slowest_detection_us, detection_us);
  stops->slowest_recovery_us = std::max(stops->slowest_recovery_us, detection_us + rest_us);
}

void StopProcess(const Stuck& stuck, Stops* stops) {
  kill(stuck.before.ranks(stuck.victim).pid(), SIGSTOP);
  WatchRecovery(stuck, stops);
}

void StopThread(const Stuck& stuck, pid_t tid, Stops* stops) {
  StoppedThread stopped(tid);
  if (stopped.error() != 0) {
    stops->not_run = absl::StrCat("ptrace is not allowed here: error ", stopped.error());
    return;
  }
  WatchRecovery(stuck, stops, [&] { stopped.Reap(); });
}

// The step thread is the main thread of a worker.
void StopStepThread(const Stuck& stuck, Stops* stops) {
  StopThread(stuck, stuck.before.ranks(stuck.victim).pid(), stops);
}

void StopCompletionThread(const Stuck& stuck, Stops* stops) {
  StopThread(stuck, FindThread(stuck.before.ranks(stuck.victim).pid(), "completion"), stops);
}

void HangExchange(const Stuck& stuck, Stops* stops) {
  if (DropPacketsFromPeers(stuck.before.ranks(stuck.victim).pid()) == 0) {
    stops->not_run = "connections of another process cannot be taken here (pidfd_getfd)";
    return;
  }
  WatchRecovery(stuck, stops);
}

struct KindOfStop {
  const char* tried;
  void (*stop)(const Stuck&, Stops*);
  std::vector<std::string> flags;
};

void MeasureKind(const ScorecardSettings& settings, const KindOfStop& kind, Scorecard& card) {
  const int64_t wanted = settings.Size(10, 2);
  const auto server = StartServer(settings, kind.flags);
  const HonestWork work = GoldenWork("m", settings.checkpoint(), 1, 8);
  HonestCaller honest(*server, work, kHonestPeriod);
  const HonestReport calm = MeasureCalm(settings, honest);
  const auto client = server->Connect(), caller = server->Connect(kOneAttempt);
  CheckedLoad load(caller.get(), settings.checkpoint(), 2);
  std::mt19937 random(21);
  Stops stops;
  honest.Take();
  while (stops.count < wanted && stops.not_run.empty()) {
    load.WaitForAnswers(50);
    const auto before = OrDie(client->GetStatus());
    kind.stop({*client, before, static_cast<int>(random() % 2)}, &stops);
  }
  load.Stop();
  const HonestReport during = honest.Take();
  const int64_t longest_us = load.TakeLongestUs();
  card.Print(
      2, {.tried = absl::StrCat(kind.tried, ", ", wanted, " times, under load on ", settings.device),
          .limit = kStuckLimit,
          .measured = absl::StrCat("detected within ", stops.slowest_detection_us / 1000, " ms, serving again within ",
                                   stops.slowest_recovery_us / 1000, " ms, longest call ", longest_us / 1000, " ms; ",
                                   load.answered(), " answers, ", load.wrong(), " wrong, ", load.failed(), " lost; ",
                                   ShowBoth(calm, during)),
          .demands = {{stops.slowest_detection_us < 3'000'000, "detected < 3 s"},
                      {longest_us < kStuckUs, "no stuck call"},
                      {load.failed() + load.wrong() == 0, absl::StrCat("every answer right: ", load.first_failure())},
                      Unharmed(during)},
          .not_run = stops.not_run});
}

// Everything that changes when a worker is given up.
std::string Identity(const v1::GetStatusResponse& status) {
  std::string identity = absl::StrCat(status.epoch());
  for (const v1::Rank& rank : status.ranks()) absl::StrAppend(&identity, " ", rank.pid());
  return identity;
}

void MeasureStoppedFront(const ScorecardSettings& settings, Scorecard& card) {
  const int64_t wanted = settings.Size(10, 1);
  const std::chrono::seconds pause(5);
  const auto server = StartServer(settings);
  const auto client = server->Connect(), caller = server->Connect(kOneAttempt);
  CheckedLoad load(caller.get(), settings.checkpoint(), 2);
  int64_t given_up = 0, slowest_us = 0;
  for (int64_t i = 0; i < wanted; ++i) {
    load.WaitForAnswers(50);
    const std::string before = Identity(OrDie(client->GetStatus()));
    server->process().Signal(SIGSTOP);
    std::this_thread::sleep_for(pause);
    server->process().Signal(SIGCONT);
    const SteadyTime continued = Clock::Real().Now();
    load.WaitForAnswers(4);
    slowest_us = std::max(slowest_us, MicrosBetween(continued, Clock::Real().Now()));
    std::this_thread::sleep_for(std::chrono::seconds(1));  // in which a front would give up workers
    given_up += Identity(OrDie(client->GetStatus())) != before;
  }
  load.Stop();
  card.Print(
      2, {.tried = absl::StrCat("SIGSTOP of the front for ", pause.count(), " s, ", wanted, " times"),
          .limit = "no worker given up; no stuck call",
          .measured =
              absl::StrCat(given_up, " times a worker was given up; answers again within ", slowest_us / 1000, " ms; ",
                           load.answered(), " answers, ", load.wrong(), " wrong, ", load.failed(), " lost"),
          .demands = {{given_up == 0, "no worker given up"},
                      {slowest_us < 1'000'000, "answers again within 1 s"},
                      {load.failed() + load.wrong() == 0, absl::StrCat("every answer right: ", load.first_failure())}},
          .not_run = ""});
}

}  // namespace

void MeasureStuckWorkers(const ScorecardSettings& settings, Scorecard& card) {
  MeasureKind(settings, {"SIGSTOP of a worker", StopProcess, {}}, card);
  MeasureKind(settings, {"the step thread of a worker stopped, which answers pings", StopStepThread, {}}, card);
  constexpr char kHung[] = "an exchange that hangs: packets between two workers dropped (tcp)";
  if (settings.device == "cpu") {
    MeasureKind(settings, {kHung, HangExchange, {"--exchange=tcp"}}, card);
  } else {
    MeasureKind(settings, {"the completion thread of a worker stopped", StopCompletionThread, {}}, card);
    card.Print(2, NotRun(kHung, kStuckLimit, "GPUs of one host exchange rows without packets"));
  }
  MeasureStoppedFront(settings, card);
}

}  // namespace switchyard
