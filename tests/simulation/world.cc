#include "tests/simulation/world.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/simulation/callers.h"

namespace switchyard::simulation {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

// The longest time from the last fault until all requests are answered and the group serves. What takes so long is a
// step whose rows were lost without a trace, and poison, each piece of which costs as many groups as a step has
// attempts. The limit of a step is learned: after one of a few rows that was very slow, a step of many may take the
// better part of an hour (StepDurations).
constexpr Nanos kLongestRecovery = std::chrono::hours(3);
// The same without those. A worker notices its dead stream in this time, and pauses between formations end.
constexpr Nanos kUsualRecovery = seconds(45);
constexpr Nanos kLongestDrain = seconds(60);
constexpr int64_t kMostEvents = 5'000'000;

// The world as it is drawn from the seed.
struct Setting {
  FrontOptions front;
  std::vector<ModelShape> checkpoints;
  int num_loaded = 1;
  int num_workers = 1;
  bool keeps_weights = false;
  CallersOptions callers;
  int num_requests = 0, num_faults = 0;
  Nanos span{};
  bool ends_in_storm = false;
  Nanos usual_delay{}, load_time{}, work_time{}, front_timeout{};

  std::string ToString() const {
    const MembershipOptions& group = front.group.membership;
    return absl::StrCat(group.num_ranks, group.local ? " local ranks, " : " ranks, ", num_workers, " workers, ",
                        checkpoints.size(), " checkpoints, steps of ", front.scheduler.batcher.max_batch_rows,
                        " rows, ", front.scheduler.num_slots, " slots, ", front.num_spare_outputs, " spare outputs");
  }
};

ModelShape DrawShape(Random& random) {
  ModelShape shape;
  shape.hidden_dim = random.Of({2, 4, 8});
  shape.num_experts = static_cast<int>(random.In(1, 6));
  shape.num_shared = random.Chance(25) ? 1 : 0;
  shape.top_k = static_cast<int>(random.In(1, std::min(3, shape.num_experts)));
  shape.num_layers = static_cast<int>(random.In(1, 2));
  return shape;
}

void DrawScheduler(Random& random, SchedulerOptions* scheduler) {
  scheduler->threads = Threads::kNone;
  scheduler->batcher.max_batch_rows = random.Of({2, 5, 8, 16});
  scheduler->batcher.max_queue_delay = microseconds(random.Of({0, 0, 0, 300, 5000}));
  scheduler->batcher.priority_aging = milliseconds(random.Of({5, 1000}));
  scheduler->num_slots = static_cast<int>(random.In(1, 3));
  scheduler->max_submissions = static_cast<int>(random.Of({8, 8, 3}));
  scheduler->step_timeout = milliseconds(random.Of({0, 0, 1500, 4000}));
  scheduler->max_inline_rows = random.Of({0, 4, 32});
  scheduler->max_lone_inline_rows = random.Of({0, 4, 256});
  scheduler->answers.min_lent_bytes = random.Of({0, 64, 4096});
}

void DrawGroup(Random& random, GroupOptions* group) {
  group->threads = Threads::kNone;
  MembershipOptions& membership = group->membership;
  membership.num_ranks = static_cast<int>(random.In(1, 4));
  membership.local = random.Chance(50);
  membership.version = "1";
  membership.build = "b";
  membership.ping_interval = milliseconds(random.Of({100, 200}));
  membership.worker_timeout = milliseconds(random.Of({1000, 2500}));
  membership.formation.address_timeout = milliseconds(random.Of({1500, 10'000}));
  membership.formation.connect_timeout = milliseconds(random.Of({2000, 15'000}));
  membership.formation.longest_backoff = milliseconds(random.Of({1000, 10'000}));
}

Setting Draw(Random& random) {
  Setting setting;
  DrawScheduler(random, &setting.front.scheduler);
  DrawGroup(random, &setting.front.group);
  setting.front.scheduler.num_ranks = setting.front.group.membership.num_ranks;
  setting.front.num_spare_outputs = static_cast<int>(random.In(0, 3));
  setting.front.max_queued_rows = random.Of({60, 1000});
  setting.front.largest = {8, 6, 1, 3, 2};
  const int num_checkpoints = static_cast<int>(random.In(1, 3));
  for (int i = 0; i < num_checkpoints; ++i) setting.checkpoints.push_back(DrawShape(random));
  setting.num_loaded = static_cast<int>(random.In(1, num_checkpoints));
  setting.num_workers = setting.front.group.membership.num_ranks;
  if (!setting.front.group.membership.local && random.Chance(30)) ++setting.num_workers;
  setting.keeps_weights = !setting.front.group.membership.local && random.Chance(50);
  setting.callers.max_rows = 2 * setting.front.scheduler.batcher.max_batch_rows;
  setting.callers.slowest_reader = milliseconds(random.Of({0, 1, 50}));
  setting.callers.max_submissions = setting.front.scheduler.max_submissions;
  setting.callers.percent_poisoned = random.Chance(10) ? 10 : 0;
  setting.num_requests = static_cast<int>(random.In(5, 40));
  setting.num_faults = static_cast<int>(random.In(4, 30));
  setting.span = milliseconds(random.Of({200, 1000, 5000}));
  setting.ends_in_storm = random.Chance(10);
  setting.usual_delay = microseconds(random.Of({20, 100, 2000}));
  setting.load_time = milliseconds(random.Of({2, 50, 500}));
  setting.work_time = microseconds(random.Of({20, 300, 5000}));
  setting.front_timeout = milliseconds(random.Of({3000, 10'000}));
  return setting;
}

class World {
 public:
  World(uint64_t seed, const RunOptions& options);
  Outcome Run();

 private:
  // Runs events until `done`, at most for `longest`. Returns whether it came to that.
  template <typename Done>
  bool RunUntil(Done done, Nanos longest);
  void Fail(const std::string& what);
  bool has_failed() const { return !outcome_.failure.empty(); }

  void Storm();
  void Calm();
  void Prove();
  void End();
  bool IsWell() const;
  bool RanksHaveTheirModels() const;
  void CheckNothingIsLeft();

  Outcome outcome_;
  EventLoop loop_;
  const Setting setting_;
  Network network_;
  PeerDirectory directory_;
  Site site_;
  std::vector<std::weak_ptr<Connection>> streams_;
  std::unique_ptr<Front> front_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::unique_ptr<Callers> callers_;
  std::unique_ptr<Faults> faults_;
};

FrontOptions OnClock(FrontOptions options, const EventLoop& loop) {
  options.group.clock = &loop.clock();
  return options;
}

World::World(uint64_t seed, const RunOptions& options)
    : loop_(seed, options.prints),
      setting_(Draw(loop_.random())),
      network_(&loop_, setting_.num_workers + 1, setting_.usual_delay),
      directory_(&network_),
      site_{.loop = &loop_, .network = &network_, .directory = &directory_} {
  outcome_.seed = seed;
  outcome_.history = absl::StrCat("              ", setting_.ToString(), "\n");
  site_.version = setting_.front.group.membership.version;
  site_.build = setting_.front.group.membership.build;
  site_.load_time = setting_.load_time;
  site_.work_time = setting_.work_time;
  site_.front_timeout = setting_.front_timeout;
  site_.corrupts_results = options.corrupts_results;
  front_ = std::make_unique<Front>(&site_, OnClock(setting_.front, loop_), setting_.checkpoints, setting_.num_loaded);
  site_.front = front_.get();
  site_.interleave = [this] { front_->Interleave(); };
  site_.is_deadly = [this](int64_t model) { return front_->is_deadly(ModelId{model}); };
  site_.is_settled = [this](int64_t model) { return front_->is_settled(ModelId{model}); };
  for (int i = 0; i < setting_.num_workers; ++i) {
    const int local_index = setting_.front.group.membership.local ? i : -1;
    workers_.push_back(std::make_unique<Worker>(&site_, i + 1, local_index, setting_.keeps_weights));
  }
  callers_ = std::make_unique<Callers>(&loop_, front_.get(), setting_.callers,
                                       [this](const std::string& what) { Fail(what); });
  faults_ = std::make_unique<Faults>(&site_, front_.get(), &workers_);
  site_.pass = [this](Point point, int host) { faults_->Pass(point, host, /*is_before=*/false); };
  network_.SetHook([this](Point point, int host, bool is_before) { faults_->Pass(point, host, is_before); });
  loop_.SetAfterEach([this] { front_->Poke(); });
}

void World::Fail(const std::string& what) {
  if (has_failed()) return;
  outcome_.failure = absl::StrCat("after ", static_cast<double>(loop_.elapsed().count()) * 1e-9, " s: ", what);
  loop_.Print(absl::StrCat("FAILED: ", what));
}

template <typename Done>
bool World::RunUntil(Done done, Nanos longest) {
  const SteadyTime until = loop_.now() + longest;
  while (!has_failed() && !done()) {
    if (loop_.now() > until || !loop_.RunNext()) return false;
    if (loop_.num_run() > kMostEvents) Fail("there is no end of events");
  }
  return !has_failed();
}

// ---- The phases -----------------------------------------------------------------------------------------------------

void World::Storm() {
  for (const auto& worker : workers_) {
    loop_.After(loop_.random().Delay(milliseconds(10)), [&worker] { worker->Start(); });
  }
  faults_->Arm(setting_.num_faults);
  callers_->SendWithin(setting_.num_requests, setting_.span);
  const SteadyTime end = loop_.now() + setting_.span + milliseconds(loop_.random().In(0, 3000));
  loop_.At(end, [] {});
  RunUntil([&] { return loop_.now() >= end; }, setting_.span + seconds(10));
}

bool World::RanksHaveTheirModels() const {
  std::set<int64_t> loaded;
  for (const Checkpoint& checkpoint : front_->checkpoints()) {
    if (checkpoint.loaded != nullptr) loaded.insert(checkpoint.loaded->id.value);
  }
  int num_ranks = 0;
  for (const auto& worker : workers_) {
    if (!worker->is_alive() || worker->rank() < 0) continue;
    if (worker->models() != loaded) return false;
    ++num_ranks;
  }
  return num_ranks == setting_.front.group.membership.num_ranks;
}

bool World::IsWell() const {
  return callers_->num_open() == 0 && callers_->num_to_send() == 0 && callers_->num_unread() == 0 &&
         front_->is_serving() && front_->load().steps_in_flight == 0 && front_->models_are_settled() &&
         RanksHaveTheirModels();
}

void World::Calm() {
  const SteadyTime begin = loop_.now();
  loop_.Note("calm");
  faults_->Calm();
  // A stream that is dead is noticed within this time.
  const SteadyTime noticed = loop_.now() + 2 * setting_.front.group.membership.worker_timeout;
  loop_.At(noticed, [] {});
  const bool is_long = faults_->has_lost_peers() || setting_.callers.percent_poisoned > 0;
  const Nanos longest = is_long ? kLongestRecovery : kUsualRecovery;
  if (!RunUntil([&] { return loop_.now() >= noticed && IsWell(); }, longest)) {
    Fail(absl::StrCat("no recovery: ", callers_->Describe(), "; ", front_->Describe(),
                      RanksHaveTheirModels() ? "" : "; ranks have not the models that they are to have"));
  }
  outcome_.recovery = loop_.now() - begin;
  const Scheduler::Load load = front_->load();
  const int num_outputs = setting_.front.scheduler.num_slots + setting_.front.num_spare_outputs;
  if (!has_failed() && (load.queued_rows != 0 || load.steps_in_flight != 0 ||
                        load.free_slots != setting_.front.scheduler.num_slots || load.free_outputs != num_outputs)) {
    Fail(absl::StrCat("something leaked: ", front_->Describe()));
  }
  const Admission::Held held = front_->held();
  if (!has_failed() && (held.rows != 0 || held.bytes != 0 || held.requests != 0)) {
    Fail(absl::StrCat("admission still holds ", held.rows, " rows, ", held.bytes, " bytes, ", held.requests,
                      " requests"));
  }
}

// Fills every slot while every spare output is lent.
void World::Prove() {
  const auto checkpoint = std::find_if(front_->checkpoints().begin(), front_->checkpoints().end(),
                                       [](const Checkpoint& each) { return each.loaded != nullptr; });
  if (checkpoint == front_->checkpoints().end()) return;
  // New connections, because some may be dead that nothing has gone through since.
  for (const auto& worker : workers_) worker->AbortExchange();
  const int64_t full = setting_.front.scheduler.batcher.max_batch_rows;
  for (int i = 0; i < setting_.front.num_spare_outputs + 1; ++i) {
    front_->Run([&] { callers_->SendPlain(*checkpoint, full); });
    RunUntil([&] { return callers_->num_open() == 0; }, kLongestRecovery);
  }
  // No result comes until all slots are taken.
  for (const auto& worker : workers_) network_.Block(worker->host(), kFrontHost);
  for (int i = 0; i < setting_.front.scheduler.num_slots + 1; ++i) callers_->SendPlain(*checkpoint, full);
  const auto are_full = [&] { return front_->load().steps_in_flight == setting_.front.scheduler.num_slots; };
  if (!RunUntil(are_full, milliseconds(500))) Fail(absl::StrCat("not every slot is used: ", front_->Describe()));
  network_.Heal();
  if (!RunUntil([&] { return callers_->num_open() == 0; }, kLongestRecovery)) {
    Fail(absl::StrCat("without faults: ", callers_->Describe(), "; ", front_->Describe()));
  }
  callers_->LetGo();
}

void World::End() {
  front_->BeginDrain();
  for (Checkpoint& checkpoint : front_->checkpoints()) checkpoint.loading = nullptr;
  // As Front::Drain: what was accepted is answered within a while, or given up.
  const bool is_answered = RunUntil([&] { return callers_->num_open() == 0; }, seconds(loop_.random().In(0, 5)));
  if (!is_answered && !has_failed() && !setting_.ends_in_storm) Fail("the drain did not answer all");
  if (!setting_.ends_in_storm) faults_->Calm();
  site_.restarts = false;
  front_->DrainWorkers();
  // A worker that joins a front which drains is not told to end: its stream ends with the front, or the supervisor
  // ends its process.
  const auto has_ended = [](const auto& worker) { return !worker->is_alive(); };
  const auto have_all_ended = [&] { return std::all_of(workers_.begin(), workers_.end(), has_ended); };
  if (setting_.ends_in_storm) RunUntil(have_all_ended, seconds(1));
  faults_->Calm();
  const bool is_local = setting_.front.group.membership.local;
  if (!RunUntil(have_all_ended, seconds(5)) && is_local && !setting_.ends_in_storm) Fail("workers do not end");
  front_->Destroy();
  for (const auto& worker : workers_) {
    if (!worker->is_alive()) continue;
    if (is_local) {
      worker->Kill();
    } else {
      worker->connection()->Break();
    }
  }
  if (!RunUntil(have_all_ended, kLongestDrain)) Fail("workers do not end with the front");
  callers_->LetGo();
  RunUntil([&] { return callers_->num_unread() == 0; }, seconds(60));
  CheckNothingIsLeft();
}

void World::CheckNothingIsLeft() {
  if (callers_->num_open() != 0) Fail(absl::StrCat("never answered: ", callers_->Describe()));
  const Admission::Held held = front_->held();
  if (held.rows != 0 || held.bytes != 0 || held.requests != 0) Fail("admission holds something at the end");
  if (callers_->NumLeaked() != 0) Fail(absl::StrCat(callers_->NumLeaked(), " requests are left"));
  for (const ModelId id : front_->LeakedModels()) Fail(absl::StrCat("model ", id.value, " is left"));
}

Outcome World::Run() {
  Storm();
  if (!has_failed() && !setting_.ends_in_storm) Calm();
  if (!has_failed() && !setting_.ends_in_storm) Prove();
  if (!has_failed()) End();
  outcome_.history += faults_->history();
  outcome_.hash = loop_.hash();
  outcome_.coverage = faults_->coverage();
  outcome_.num_events = loop_.num_run();
  outcome_.num_formations = front_->num_formations();
  outcome_.num_answers = callers_->num_of(absl::StatusCode::kOk);
  outcome_.num_requests = setting_.num_requests;
  front_->Destroy();
  loop_.SetAfterEach(nullptr);
  site_.pass = [](Point, int) {};
  workers_.clear();
  loop_.Clear();
  return std::move(outcome_);
}

}  // namespace

std::string Outcome::Report() const {
  return absl::StrCat("seed ", seed, " failed ", failure, "\nwhat struck, in seconds:\n", history,
                      "again, with every event:\n  bazel run -c opt //tests/simulation:simulate -- --replay=", seed,
                      " --trace\n");
}

Outcome RunWorld(uint64_t seed, const RunOptions& options) {
  World world(seed, options);
  return world.Run();
}

}  // namespace switchyard::simulation
