#include "server/steps/scheduler.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "base/logging/logging.h"
#include "moe/plan/plan_codec.h"

namespace switchyard {
namespace {

std::vector<std::shared_ptr<const void>> MemoryOf(const std::vector<LinkBuffers*>& links) {
  std::vector<std::shared_ptr<const void>> memory;
  for (const LinkBuffers* link : links) memory.push_back(link->memory());
  return memory;
}

// Frees the memory of rows that came over the wire: they are in the links now, while the workers compute.
void ReleaseRows(const Step& step) {
  for (const Piece& piece : step.batch.pieces) {
    Request& request = *piece.request;
    if (piece.begin_row + piece.num_rows == request.ask.num_rows) request.progress.rows = ChunkedRows();
  }
}

// Adds what the request's piece cost in this step.
void AddStats(const StepTimeline& times, int num_submissions, RequestStats* stats) {
  if (++stats->num_steps == 1 || times.started < stats->first_started) {
    stats->first_started = times.started;
    stats->first_planned = times.planned;
  }
  stats->last_computed = times.finished;
  stats->gate_us += MicrosBetween(times.started, times.gated);
  stats->upload_us += MicrosBetween(times.started, times.uploaded);
  stats->plan_us += MicrosBetween(times.gated, times.planned);
  stats->step_us += MicrosBetween(times.planned, times.finished);
  stats->replays += num_submissions - 1;
}

// Cannot be, and must not become somebody's answer if it is.
absl::Status LostOutput(const Step& step) {
  return absl::InternalError(absl::StrCat("the output of step ", step.id.value, " belongs to another step"));
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, std::vector<LinkBuffers*> links, Metrics* metrics,
                     const Clock& clock, GroupBrokenFn on_group_broken)
    : options_(options),
      links_(std::move(links)),
      metrics_(metrics),
      clock_(clock),
      on_group_broken_(std::move(on_group_broken)),
      outputs_(std::make_shared<OutputPool>(links_[0]->layout().num_outputs, options.num_slots, MemoryOf(links_))),
      builder_(options.builder, links_, clock),
      answers_(options.answers, links_, outputs_),
      batcher_(options.batcher),
      flight_(options.num_ranks, options.num_slots, options.max_submissions),
      deadlines_(options.threads, clock) {
  if (options.threads == Threads::kOwn) dispatcher_ = std::thread([this] { DispatchLoop(); });
}

Scheduler::~Scheduler() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    WakeDispatcher();
  }
  if (dispatcher_.joinable()) {
    dispatcher_.join();
  } else {
    DispatchLoop();  // a step may have been handed over, as to the thread
  }
  deadlines_.Stop();
  std::vector<std::shared_ptr<Request>> left;
  {
    MutexLock lock(&mu_);
    left = batcher_.TakeAll();
    for (auto& request : flight_.TakeRequests()) left.push_back(std::move(request));
  }
  for (const auto& request : left) Complete(*request, absl::UnavailableError("the server is shutting down"));
}

void Scheduler::Enqueue(std::shared_ptr<Request> request) {
  request->progress.rows_unfinished = request->ask.num_rows;
  if (request->ask.return_routing) request->outcome.routing.Resize(request->ask.num_rows, request->ask.num_choices());
  if (request->ask.answer_by != SteadyTime::max()) SetTimeLimit(request);
  std::shared_ptr<Step> step;
  {
    MutexLock lock(&mu_);
    if (request->progress.completed.load()) return;  // a short time limit may have passed
    batcher_.Add(std::move(request), step_time_);
    ArmTimer();
    step = TakeInline(/*may_dispatch_here=*/true);
  }
  DispatchInline(std::move(step));
}

void Scheduler::Cancel(const std::shared_ptr<Request>& request, absl::Status why) {
  {
    MutexLock lock(&mu_);
    batcher_.Remove(*request);
  }
  Complete(*request, std::move(why));
}

void Scheduler::Complete(Request& request, absl::Status status) {
  if (request.progress.completed.exchange(true)) return;
  if (request.progress.time_limit.number != 0) deadlines_.Remove(request.progress.time_limit);
  request.ask.done(std::move(status));
}

void Scheduler::GroupFormed(Epoch epoch, std::vector<std::shared_ptr<LinkConnection>> connections) {
  auto group = std::make_shared<const FormedGroup>(FormedGroup{epoch, std::move(connections)});
  MutexLock lock(&mu_);
  flight_.SetGroup(std::move(group));
  WakeDispatcher();
}

void Scheduler::GroupLost(Epoch epoch) {
  std::shared_ptr<const FormedGroup> old;  // its connections end outside the lock
  MutexLock lock(&mu_);
  old = flight_.LoseGroup(epoch);
}

void Scheduler::DropLayers(const std::vector<LayerId>& layers) {
  MutexLock lock(&mu_);
  flight_.DropLayers(layers);
  for (const LayerId layer : layers) durations_.Forget(layer);
}

void Scheduler::FailLayers(const std::vector<LayerId>& layers, const absl::Status& why) {
  MutexLock lock(&mu_);
  flight_.FailLayers(layers, why);
}

Scheduler::Load Scheduler::load() const {
  MutexLock lock(&mu_);
  const Step* const oldest = flight_.oldest();
  return {
      batcher_.num_rows(),      batcher_.rows_by_priority(),
      flight_.size(),           oldest == nullptr ? std::chrono::nanoseconds(0) : clock_.Now() - oldest->times.planned,
      flight_.num_free_slots(), outputs_->num_free()};
}

std::optional<Scheduler::OldestStep> Scheduler::oldest_step() const {
  // A step that failed to end gets more time on the next group, in case it is only slow.
  constexpr int kMaxDoublings = 3, kPatienceWithWork = 4;
  MutexLock lock(&mu_);
  auto oldest = flight_.oldest_running();
  if (!oldest.has_value()) return std::nullopt;
  const Step& step = *oldest->step;
  OldestStep shown{oldest->epoch,
                   step.id,
                   absl::StrCat("step ", step.id.value, " of layer ", step.layer().model, ".", step.layer().spec.name,
                                " with ", step.batch.num_rows, " rows"),
                   std::move(oldest->owing),
                   options_.step_timeout,
                   options_.step_timeout};
  if (options_.step_timeout.count() == 0) {
    shown.limit = durations_.Limit(step.layer().id, step.batch.num_rows) *
                  (1 << std::clamp(oldest->num_submissions - 1, 0, kMaxDoublings));
    shown.limit_of_work = shown.limit * kPatienceWithWork;
  }
  return shown;
}

// ---- Dispatch -------------------------------------------------------------------------------------------------------

void Scheduler::DispatchLoop() {
  while (true) {
    const Work work = WaitForWork();
    if (work.stop) return;
    TakeTurn(work);
  }
}

void Scheduler::TakeTurn(const Work& work) {
  Dispatch(work);
  MutexLock lock(&mu_);
  baton_.Put();
  look_again_ = SteadyTime::min();  // what came meanwhile may have woken no one, because the baton was taken
}

void Scheduler::WakeDispatcher() {
  look_again_ = SteadyTime::min();
  work_.Signal();
}

Scheduler::Work Scheduler::WaitForWork() {
  MutexLock lock(&mu_);
  while (true) {
    if (auto work = TakeWork(); work.has_value()) return *std::move(work);
    if (look_again_ == SteadyTime::max()) {
      work_.Wait(&mu_);
    } else {
      work_.WaitFor(&mu_, look_again_ - clock_.Now());
    }
  }
}

std::optional<Scheduler::Work> Scheduler::TakeWork() {
  look_again_ = SteadyTime::max();
  Work work;
  if ((work.fresh = std::move(handed_over_)) != nullptr) return work;  // with the baton
  if (baton_.is_taken()) return std::nullopt;
  if (stopping_) {
    work.stop = true;
    return work;
  }
  if (flight_.can_replay()) {
    work.replays = flight_.TakeReplays();
  } else {
    // Both checks use one time, so that rows which are not ready at the first are waited for by the second.
    const SteadyTime now = clock_.Now();
    if ((work.fresh = TakeStep(now)) == nullptr) {
      const auto ready = batcher_.NextReadyTime();
      if (flight_.group() != nullptr && flight_.has_room() && ready.has_value() && *ready > now) look_again_ = *ready;
      return std::nullopt;
    }
  }
  baton_.Take();
  return work;
}

SteadyTime Scheduler::dispatch_due() const {
  MutexLock lock(&mu_);
  return look_again_;
}

void Scheduler::DispatchOnce() {
  std::optional<Work> work;
  {
    MutexLock lock(&mu_);
    work = TakeWork();
  }
  if (work.has_value() && !work->stop) TakeTurn(*work);
}

void Scheduler::Dispatch(const Work& work) {
  DispatchTurn turn(&baton_);
  for (const auto& [step, why] : work.replays.hopeless) Fail(*step, why);
  for (const auto& step : work.replays.steps) Submit(*step, *work.replays.group);
  if (work.fresh == nullptr) return;
  if (absl::Status built = CheckAndBuild(*work.fresh); !built.ok()) return Fail(*work.fresh, built);
  std::shared_ptr<const FormedGroup> group;
  {
    MutexLock lock(&mu_);
    group = flight_.Add(work.fresh);
  }
  if (group != nullptr) Submit(*work.fresh, *group);
  ReleaseRows(*work.fresh);
}

absl::Status Scheduler::CheckAndBuild(Step& step) {
  {
    MutexLock lock(&mu_);
    SY_RETURN_IF_ERROR(flight_.CheckLayer(step.layer().id));
  }
  return builder_.Build(step);
}

std::shared_ptr<Step> Scheduler::TakeInline(bool may_dispatch_here) {
  // The holder of the baton looks at the queues again before it puts the baton down for good.
  if (baton_.is_taken() || batcher_.num_rows() == 0) return nullptr;
  const bool is_blocked = stopping_ || flight_.has_replays();
  const bool is_lone = flight_.empty();
  std::shared_ptr<Step> step = is_blocked ? nullptr : TakeStep(clock_.Now());
  if (step == nullptr) {
    // The dispatcher times out `max_queue_delay`; otherwise the next result triggers dispatch.
    if (is_blocked || is_lone) WakeDispatcher();
    return nullptr;
  }
  baton_.Take();
  const int64_t max_rows = is_lone ? options_.max_lone_inline_rows : options_.max_inline_rows;
  if (may_dispatch_here && step->batch.num_rows <= max_rows) return step;
  handed_over_ = std::move(step);
  WakeDispatcher();
  return nullptr;
}

void Scheduler::DispatchInline(std::shared_ptr<Step> step) {
  if (step == nullptr) return;
  Work work;
  work.fresh = std::move(step);
  Dispatch(work);
  MutexLock lock(&mu_);
  baton_.Put();
  if (stopping_ || flight_.has_replays()) WakeDispatcher();
  TakeInline(/*may_dispatch_here=*/false);
}

std::shared_ptr<Step> Scheduler::TakeStep(SteadyTime now) {
  if (flight_.group() == nullptr || flight_.has_replays() || !flight_.has_room()) return nullptr;
  auto batch = batcher_.Take(now, flight_.empty());
  ArmTimer();
  if (!batch.has_value()) return nullptr;
  auto step = std::make_shared<Step>();
  step->id = {next_step_id_++};
  step->batch = *std::move(batch);
  step->slot = flight_.TakeSlot();
  step->output = outputs_->Take(step->id);
  step->placement = step->layer().on_group.placement;
  return step;
}

void Scheduler::Submit(const Step& step, const FormedGroup& group) {
  for (int rank = 0; rank < options_.num_ranks; ++rank) {
    const RankPlan& plan = step.plan.ranks[rank];
    StepSubmission submission;
    submission.message = {group.epoch,
                          step.id,
                          step.layer().id,
                          step.slot,
                          step.output,
                          plan.num_home_rows,
                          static_cast<int64_t>(EncodedSize(plan.view()))};
    submission.row_bytes = step.link_row_bytes();
    if (absl::Status status = group.connections[rank]->Submit(submission); !status.ok()) {
      return ReportBroken(group.epoch, rank, status);
    }
  }
}

// ---- Completion -----------------------------------------------------------------------------------------------------

void Scheduler::ReportBroken(Epoch epoch, int rank, const absl::Status& why) {
  GroupLost(epoch);
  on_group_broken_(epoch, rank, why);
}

void Scheduler::OnResult(int rank, const ResultMessage& result, const RowChunks* rows) {
  std::shared_ptr<Step> step;
  std::optional<StepsInFlight::Finished> finished;
  absl::Status failure = result.status;
  {
    MutexLock lock(&mu_);
    step = flight_.BeginResult(rank, result);
    if (step == nullptr) return;
    if (failure.ok() && rows == nullptr) finished = flight_.EndResult(*step, rank, result);
    if (!failure.ok()) flight_.DropResult();
  }
  if (failure.ok() && rows != nullptr) {
    failure = ReceiveRows(*step, rank, *rows);
    MutexLock lock(&mu_);
    if (failure.ok()) {
      finished = flight_.EndResult(*step, rank, result);
    } else {
      flight_.DropResult();
    }
    if (flight_.can_replay()) WakeDispatcher();
  }
  if (!failure.ok()) return ReportBroken(result.epoch, rank, failure);
  if (finished.has_value()) Finish(*step, *finished);
}

absl::Status Scheduler::ReceiveRows(const Step& step, int rank, const RowChunks& rows) {
  const size_t expected = step.plan.ranks[rank].num_home_rows * step.link_row_bytes();
  size_t num_bytes = 0;
  for (const auto& chunk : rows) num_bytes += chunk.size();
  if (num_bytes != expected) {
    return absl::DataLossError(absl::StrCat(num_bytes, " bytes of output rows, expected ", expected));
  }
  if (!outputs_->BelongsTo(step.output, step.id)) return LostOutput(step);
  std::byte* output = links_[rank]->output(step.output);
  for (const auto& chunk : rows) {
    if (!chunk.empty()) std::memcpy(output, chunk.data(), chunk.size());
    output += chunk.size();
  }
  return absl::OkStatus();
}

void Scheduler::Finish(Step& step, const StepsInFlight::Finished& how) {
  if (!outputs_->BelongsTo(step.output, step.id)) return Fail(step, LostOutput(step));
  step.times.finished = clock_.Now();
  RecordStep(step, how.slowest);
  auto parts = answers_.CutOutput(step);
  std::vector<std::shared_ptr<Request>> finished;
  std::shared_ptr<Step> next;
  {
    MutexLock lock(&mu_);
    finished = AddParts(step, std::move(parts), how.num_submissions);
    flight_.ReturnSlot(step.slot);
    if (how.num_submissions == 1) SmoothStepTime(step.times.finished - step.times.started);
    if (how.num_submissions == 1) LearnDuration(step);
    next = TakeInline(/*may_dispatch_here=*/true);
  }
  DispatchInline(std::move(next));  // before the answers, which take longer
  answers_.Send(finished, [this](Request& request) { Complete(request, absl::OkStatus()); });
}

void Scheduler::RecordStep(const Step& step, const StepTimes& slowest) {
  if (step.batch.pieces.front().request->ask.is_warm_up) return;
  StepRecord record;
  record.layer = step.layer().id;
  record.num_rows = step.batch.num_rows;
  record.gate_us = MicrosBetween(step.times.started, step.times.gated);
  record.plan_us = MicrosBetween(step.times.gated, step.times.planned);
  record.total_us = MicrosBetween(step.times.planned, step.times.finished);
  record.times = slowest;
  record.rows_crossed = step.plan.num_crossing_rows;
  // A row that crosses comes back as a partial sum of the same size.
  record.bytes_crossed = 2 * step.crossing_bytes();
  for (const RankPlan& rank : step.plan.ranks) record.rows_per_rank.push_back(rank.view().num_pairs());
  metrics_->RecordStep(record, step.plan.rows_per_expert);
}

std::vector<std::shared_ptr<Request>> Scheduler::AddParts(const Step& step, std::vector<std::vector<OutputPart>> parts,
                                                          int num_submissions) {
  std::vector<std::shared_ptr<Request>> finished;
  int64_t begin = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Piece& piece = step.batch.pieces[i];
    Request& request = *piece.request;
    std::move(parts[i].begin(), parts[i].end(), std::back_inserter(request.outcome.output));
    AddStats(step.times, num_submissions, &request.outcome.stats);
    request.outcome.stats.queue_us += MicrosBetween(request.ask.arrival, step.times.started);
    for (int64_t row = begin; row < begin + piece.num_rows; ++row) {
      request.outcome.stats.rows_crossed += step.plan.crossings[row];
    }
    request.progress.rows_unfinished -= piece.num_rows;
    if (request.progress.rows_unfinished == 0) finished.push_back(piece.request);
    begin += piece.num_rows;
  }
  return finished;
}

void Scheduler::SmoothStepTime(std::chrono::nanoseconds latest) {
  constexpr int kMemory = 8;  // steps
  step_time_ = step_time_.count() == 0 ? latest : step_time_ + (latest - step_time_) / kMemory;
}

// A step runs once the one before it has finished.
void Scheduler::LearnDuration(const Step& step) {
  const SteadyTime begun = std::max(step.times.planned, last_finish_);
  if (step.times.finished > begun) {
    durations_.Record(step.layer().id, step.batch.num_rows, step.times.finished - begun);
    last_finish_ = step.times.finished;
  }
}

void Scheduler::Fail(const Step& step, const absl::Status& why) {
  spdlog::error("step {} failed: {}", step.id.value, why.message());
  {
    MutexLock lock(&mu_);
    for (const Piece& piece : step.batch.pieces) batcher_.Remove(*piece.request);
    flight_.ReturnSlot(step.slot);
    WakeDispatcher();
  }
  outputs_->Return(step.output, step.id);
  for (const Piece& piece : step.batch.pieces) Complete(*piece.request, why);
}

// ---- Time limits ----------------------------------------------------------------------------------------------------

void Scheduler::SetTimeLimit(const std::shared_ptr<Request>& request) {
  request->progress.time_limit = deadlines_.NewKey(request->ask.answer_by);
  deadlines_.Add(request->progress.time_limit, [this, limited = std::weak_ptr<Request>(request)] {
    if (const auto late = limited.lock()) Cancel(late, WhyExpired(*late, clock_.Now()));
  });
}

// A timer is never taken back: one that fires too early finds nothing to do.
void Scheduler::ArmTimer() {
  const SteadyTime next = batcher_.has_expired() ? SteadyTime::min() : batcher_.NextExpiry();
  if (next >= timer_) return;
  timer_ = next;
  deadlines_.Add(deadlines_.NewKey(next), [this, next] { ExpireQueued(next); });
}

void Scheduler::ExpireQueued(SteadyTime when) {
  std::vector<std::shared_ptr<Request>> expired;
  {
    MutexLock lock(&mu_);
    if (timer_ == when) timer_ = SteadyTime::max();
    expired = batcher_.TakeExpired(clock_.Now());
    ArmTimer();
  }
  for (const auto& request : expired) Complete(*request, WhyExpired(*request, clock_.Now()));
}

}  // namespace switchyard
