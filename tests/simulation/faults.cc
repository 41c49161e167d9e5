#include "tests/simulation/faults.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace switchyard::simulation {
namespace {

using std::chrono::milliseconds;

constexpr size_t kNumFaults = static_cast<size_t>(Fault::kNumFaults);
constexpr size_t kNumPoints = static_cast<size_t>(Point::kNumPoints);

}  // namespace

const char* NameOf(Fault fault) {
  static constexpr std::array<const char*, kNumFaults> kNames = {"kill",
                                                                 "stop",
                                                                 "stop step thread",
                                                                 "slow",
                                                                 "terminate",
                                                                 "break stream",
                                                                 "lose stream",
                                                                 "part from front",
                                                                 "silence to front",
                                                                 "silence from front",
                                                                 "part peers",
                                                                 "silence peers",
                                                                 "lose peers",
                                                                 "abort exchange",
                                                                 "fail step",
                                                                 "fail group",
                                                                 "wrong size",
                                                                 "stale results",
                                                                 "duplicate result",
                                                                 "fail load",
                                                                 "die in load",
                                                                 "other files",
                                                                 "load model",
                                                                 "unload model",
                                                                 "reload model",
                                                                 "pause front"};
  return kNames[static_cast<size_t>(fault)];
}

// ---- Coverage -------------------------------------------------------------------------------------------------------

void Coverage::Add(const Coverage& other) {
  for (size_t fault = 0; fault < kNumFaults; ++fault) {
    for (size_t point = 0; point < kNumPoints; ++point) counts[fault][point] += other.counts[fault][point];
  }
}

int64_t Coverage::num_struck() const {
  int64_t total = 0;
  for (const auto& row : counts) {
    for (const int64_t count : row) total += count;
  }
  return total;
}

std::string Coverage::ToString() const {
  std::string text = absl::StrFormat("%-14s", "");
  for (size_t fault = 0; fault < kNumFaults; ++fault) absl::StrAppend(&text, absl::StrFormat(" %6d", fault + 1));
  absl::StrAppend(&text, "\n");
  int64_t num_missed = 0;
  for (size_t point = 0; point < kNumPoints; ++point) {
    absl::StrAppend(&text, absl::StrFormat("%-14s", NameOf(static_cast<Point>(point))));
    for (size_t fault = 0; fault < kNumFaults; ++fault) {
      absl::StrAppend(&text, absl::StrFormat(" %6d", counts[fault][point]));
      if (counts[fault][point] == 0) ++num_missed;
    }
    absl::StrAppend(&text, "\n");
  }
  for (size_t fault = 0; fault < kNumFaults; ++fault) {
    absl::StrAppend(&text, fault == 0 ? "" : ", ", fault + 1, " ", NameOf(static_cast<Fault>(fault)));
  }
  absl::StrAppend(&text, "\n", num_missed, " of ", kNumFaults * kNumPoints, " pairs were not hit\n");
  return text;
}

bool Faults::has_lost_peers() const {
  const auto& lost = coverage_.counts[static_cast<size_t>(Fault::kLosePeers)];
  return std::any_of(lost.begin(), lost.end(), [](int64_t count) { return count > 0; });
}

// ---- Faults ---------------------------------------------------------------------------------------------------------

Nanos Faults::Duration() {
  Random& random = site_->loop->random();
  return milliseconds(random.Chance(50) ? random.In(1, 300) : random.In(300, 6000));
}

void Faults::Arm(int count) {
  Random& random = site_->loop->random();
  for (int i = 0; i < count; ++i) {
    Armed armed;
    armed.fault = static_cast<Fault>(random.Below(kNumFaults));
    armed.point = static_cast<Point>(random.Below(kNumPoints));
    armed.is_before = random.Chance(50);
    armed.countdown = static_cast<int>(random.Chance(60) ? random.In(1, 3) : random.In(1, 20));
    armed_.push_back(armed);
  }
}

void Faults::Pass(Point point, int host, bool is_before) {
  for (size_t i = 0; i < armed_.size(); ++i) {
    Armed& armed = armed_[i];
    if (armed.point != point || armed.is_before != is_before || --armed.countdown > 0) continue;
    const Fault fault = armed.fault;
    armed_.erase(armed_.begin() + static_cast<int64_t>(i));
    return Strike(fault, point, host);
  }
}

void Faults::Strike(Fault fault, Point point, int host) {
  Random& random = site_->loop->random();
  const auto num_workers = static_cast<int64_t>(workers_.size());
  const bool strikes_other = host == kFrontHost || random.Chance(20);
  const auto struck = static_cast<int>(strikes_other ? random.In(1, num_workers) : host);
  ++coverage_.counts[static_cast<size_t>(fault)][static_cast<size_t>(point)];
  site_->loop->Note(NameOf(fault), static_cast<int64_t>(point), struck);
  absl::StrAppend(&history_, absl::StrFormat("%12.6f  %s at %s, worker %d\n",
                                             static_cast<double>(site_->loop->elapsed().count()) * 1e-9, NameOf(fault),
                                             NameOf(point), struck));
  switch (fault) {
    case Fault::kLoadModel:
    case Fault::kUnloadModel:
    case Fault::kReloadModel:
      // Another thread makes the change.
      return site_->loop->After(random.Delay(std::chrono::microseconds(10)),
                                [this, fault] { front_->Run([this, fault] { ChangeModel(fault); }); });
    case Fault::kPauseFront:
      if (site_->network->is_stopped(kFrontHost)) return;
      front_->Pause();
      return site_->loop->After(Duration(), [this] {
        if (!is_calm_) front_->Continue();
      });
    case Fault::kPartPeers:
    case Fault::kSilencePeers:
    case Fault::kLosePeers:
      return StrikePeers(fault, struck, static_cast<int>(random.In(1, num_workers)));
    default:
      return StrikeWorker(fault, *workers_[struck - 1]);
  }
}

void Faults::BlockFor(int from, int to, Nanos time) {
  site_->network->Block(from, to);
  site_->loop->After(time, [this, from, to] {
    if (!is_calm_) site_->network->Unblock(from, to);
  });
}

void Faults::StrikePeers(Fault fault, int one, int other) {
  if (fault == Fault::kLosePeers) return site_->network->LosePipes(one, other);
  const Nanos time = Duration();
  BlockFor(one, other, time);
  if (fault == Fault::kPartPeers) BlockFor(other, one, time);
}

void Faults::Continue(Worker& worker) {
  if (worker.hangs_for_good()) return;
  site_->network->Continue(worker.host());
  if (!site_->network->is_stopped(worker.host())) worker.Continue();
}

void Faults::StrikeWorker(Fault fault, Worker& worker) {
  Random& random = site_->loop->random();
  Misbehaviour& next = worker.misbehaviour();
  const int host = worker.host();
  switch (fault) {
    case Fault::kKill:
      return worker.Kill();
    case Fault::kStop:
      site_->network->Stop(host);
      if (HangsForGood(worker)) return;
      return site_->loop->After(Duration(), [this, &worker] {
        if (!is_calm_) Continue(worker);
      });
    case Fault::kStopStepThread:
      worker.StopStepThread();
      if (HangsForGood(worker)) return;
      return site_->loop->After(Duration(), [&worker] { worker.ContinueStepThread(); });
    case Fault::kSlow:
      next.slowness = static_cast<int>(random.Of({10, 100, 2000}));
      return site_->loop->After(Duration(), [&next] { next.slowness = 1; });
    case Fault::kTerminate:
      return worker.Terminate();
    case Fault::kBreakStream:
      if (worker.connection() != nullptr) worker.connection()->Break();
      return;
    case Fault::kLoseStream:
      // No connection on one host is lost so.
      if (worker.connection() != nullptr && worker.local_index() < 0) worker.connection()->Lose();
      return;
    case Fault::kPartFromFront: {
      const Nanos time = Duration();
      BlockFor(host, kFrontHost, time);
      return BlockFor(kFrontHost, host, time);
    }
    case Fault::kSilenceToFront:
      return BlockFor(host, kFrontHost, Duration());
    case Fault::kSilenceFromFront:
      return BlockFor(kFrontHost, host, Duration());
    case Fault::kAbortExchange:
      return worker.AbortExchange();
    case Fault::kFailStep:
      next.fail_step = true;
      return;
    case Fault::kFailGroup:
      next.fail_group = true;
      return;
    case Fault::kWrongSize:
      next.wrong_size = true;
      return;
    case Fault::kStaleResults:
      next.stale_results = true;
      return;
    case Fault::kDuplicateResult:
      next.duplicate_result = true;
      return;
    case Fault::kFailLoad:
      next.fail_loads += static_cast<int>(random.In(1, 2));
      return;
    case Fault::kDieInLoad:
      next.die_in_loads += static_cast<int>(random.In(1, 4));
      return;
    case Fault::kOtherFiles:
      next.reads_other_files = true;
      return site_->loop->After(Duration(), [&next] { next.reads_other_files = false; });
    default:
      return;
  }
}

void Faults::ChangeModel(Fault fault) {
  if (is_calm_) return;
  std::vector<Checkpoint*> fitting;
  for (Checkpoint& checkpoint : front_->checkpoints()) {
    const bool is_loaded = checkpoint.loaded != nullptr;
    if (fault == Fault::kLoadModel ? !is_loaded : is_loaded) fitting.push_back(&checkpoint);
  }
  if (fitting.empty()) return;
  Checkpoint& checkpoint = *site_->loop->random().Of(fitting);
  if (fault == Fault::kUnloadModel) {
    front_->Unload(checkpoint);
  } else {
    front_->Load(checkpoint);
  }
}

// Only the front's own workers are ended by somebody when they hang, and only once they have joined: before that the
// front does not know that there is a worker to wait for.
bool Faults::HangsForGood(Worker& worker) {
  if (worker.local_index() < 0 || worker.rank() < 0 || !site_->loop->random().Chance(30)) return false;
  worker.HangForGood();
  return true;
}

void Faults::Calm() {
  is_calm_ = true;
  armed_.clear();
  site_->network->Heal();
  for (const auto& worker : workers_) {
    if (worker->hangs_for_good() && worker->is_alive() && !worker->step_is_stopped()) {
      site_->network->Stop(worker->host());
    }
  }
  front_->Continue();
  for (const auto& worker : workers_) {
    worker->misbehaviour() = {};
    if (worker->hangs_for_good() && worker->is_alive()) continue;
    worker->ContinueStepThread();
    worker->Continue();
  }
}

}  // namespace switchyard::simulation
