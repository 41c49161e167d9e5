#include "server/steps/scheduler.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/logging.h"
#include "base/tensor/convert.h"
#include "moe/plan/chunked_plan.h"
#include "moe/plan/plan_codec.h"

namespace switchyard {
namespace {

// Calls `done` unless it was called before.
void Complete(Request& request, absl::Status status) {
  if (!request.completed.exchange(true)) request.done(std::move(status));
}

int64_t NumElements(const ServedLayer& layer, int64_t num_rows) { return num_rows * layer.spec.hidden_dim; }

bool GatesAccept(const ServedLayer& layer, DType dtype) {
  return std::all_of(layer.gates.begin(), layer.gates.end(), [&](const auto& gate) { return gate->Accepts(dtype); });
}

bool AreGatedAlike(const Request& one, const Request& other) {
  return !other.is_routed && one.gate_idx == other.gate_idx && one.top_k == other.top_k;
}

// Calls fn(rank, row in the rank's home block, begin row of the step, count) for every run of the step's rows
// [begin, begin + count) that has one home.
template <typename Fn>
void ForEachHomeRun(const std::vector<int64_t>& home_offsets, int64_t begin, int64_t count, Fn fn) {
  const int num_ranks = static_cast<int>(home_offsets.size()) - 1;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const int64_t from = std::max(begin, home_offsets[rank]);
    const int64_t to = std::min(begin + count, home_offsets[rank + 1]);
    if (from < to) fn(rank, from - home_offsets[rank], from, to - from);
  }
}

std::vector<std::shared_ptr<const void>> MemoryOf(const std::vector<LinkBuffers*>& links) {
  std::vector<std::shared_ptr<const void>> memory;
  for (const LinkBuffers* link : links) memory.push_back(link->memory());
  return memory;
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
      copy_pool_(options.num_copy_threads),
      answer_pool_(options.num_answer_threads),
      batcher_(options.batcher) {
  for (int slot = options.num_slots - 1; slot >= 0; --slot) free_slots_.push_back(slot);
  dispatcher_ = std::thread([this] { DispatchLoop(); });
  expirer_ = std::thread([this] { ExpireLoop(); });
}

Scheduler::~Scheduler() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    work_.SignalAll();
    WakeExpirer();
  }
  dispatcher_.join();
  expirer_.join();
  std::vector<std::shared_ptr<Request>> left;
  {
    MutexLock lock(&mu_);
    left = batcher_.TakeAll();
    for (auto& [id, step] : steps_) {
      for (Piece& piece : step->batch.pieces) left.push_back(piece.request);
    }
    steps_.clear();
  }
  for (const auto& request : left) Complete(*request, absl::UnavailableError("the server is shutting down"));
}

void Scheduler::Enqueue(std::shared_ptr<Request> request) {
  request->rows_unfinished = request->num_rows;
  if (request->return_routing) request->routing.Resize(request->num_rows, request->num_choices());
  std::shared_ptr<Step> step;
  {
    MutexLock lock(&mu_);
    batcher_.Add(std::move(request), step_time_);
    if (batcher_.NextExpiry() < expirer_wakes_) WakeExpirer();
    step = TakeInline();
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

void Scheduler::GroupFormed(Epoch epoch, std::vector<std::shared_ptr<LinkConnection>> connections) {
  std::shared_ptr<const Group> group = std::make_shared<Group>(Group{epoch, std::move(connections)});
  MutexLock lock(&mu_);
  group_.swap(group);
  replay_ = !steps_.empty();
  work_.SignalAll();
}

void Scheduler::GroupLost(Epoch epoch) {
  std::shared_ptr<const Group> old;  // its connections end outside the lock
  MutexLock lock(&mu_);
  if (group_ != nullptr && group_->epoch <= epoch) old.swap(group_);
}

void Scheduler::DropLayers(const std::vector<LayerId>& layers) {
  MutexLock lock(&mu_);
  for (const LayerId layer : layers) failed_layers_.erase(layer);
}

void Scheduler::FailLayers(const std::vector<LayerId>& layers, const absl::Status& why) {
  MutexLock lock(&mu_);
  for (const LayerId layer : layers) failed_layers_[layer] = why;
}

absl::Status Scheduler::CheckLayer(const Step& step) const {
  const auto failed = failed_layers_.find(step.batch.layer->id);
  return failed == failed_layers_.end() ? absl::OkStatus() : failed->second;
}

Scheduler::Load Scheduler::load() const {
  MutexLock lock(&mu_);
  return {batcher_.num_rows(), batcher_.rows_by_priority(), static_cast<int>(steps_.size())};
}

// ---- Dispatch -------------------------------------------------------------------------------------------------------

void Scheduler::DispatchLoop() {
  while (true) {
    Work work = WaitForWork();
    if (work.stop) return;
    Dispatch(work);
    MutexLock lock(&mu_);
    dispatching_ = false;
  }
}

void Scheduler::Dispatch(const Work& work) {
  for (const auto& step : work.replays) Submit(*step, *work.group);
  if (work.fresh == nullptr) return;
  if (absl::Status status = Prepare(*work.fresh); !status.ok()) return Fail(work.fresh, status);
  const auto group = Register(work.fresh);
  if (group != nullptr) Submit(*work.fresh, *group);
  ReleaseRows(*work.fresh);
}

// What came over the wire is in the links now; its memory is free while the workers compute.
void Scheduler::ReleaseRows(const Step& step) {
  for (const Piece& piece : step.batch.pieces) {
    Request& request = *piece.request;
    if (piece.begin_row + piece.num_rows == request.num_rows) request.rows = ChunkedRows();
  }
}

std::shared_ptr<Scheduler::Step> Scheduler::TakeInline() {
  if (dispatching_ || batcher_.num_rows() == 0) return nullptr;  // whoever dispatches looks again
  std::shared_ptr<Step> step = stopping_ || replay_ ? nullptr : TakeStep(clock_.Now());
  if (step == nullptr) {
    // Rows that wait for company are the dispatcher's to watch; others wait for a result.
    if (stopping_ || replay_ || steps_.empty()) work_.Signal();
    return nullptr;
  }
  dispatching_ = true;
  if (step->batch.num_rows <= (steps_.empty() ? options_.max_lone_inline_rows : options_.max_inline_rows)) return step;
  handed_over_ = std::move(step);
  work_.Signal();
  return nullptr;
}

void Scheduler::DispatchInline(std::shared_ptr<Step> step) {
  while (step != nullptr) {
    Work work;
    work.fresh = std::move(step);
    Dispatch(work);
    MutexLock lock(&mu_);
    dispatching_ = false;
    if (stopping_ || replay_) work_.Signal();
    step = TakeInline();
  }
}

std::shared_ptr<const Scheduler::Group> Scheduler::Register(const std::shared_ptr<Step>& step) {
  MutexLock lock(&mu_);
  steps_[step->id] = step;
  if (group_ == nullptr || replay_) {
    replay_ = true;
    return nullptr;
  }
  step->epoch = group_->epoch;
  step->submissions = 1;
  return group_;
}

Scheduler::Work Scheduler::WaitForWork() {
  Work work;
  std::vector<std::pair<std::shared_ptr<Step>, absl::Status>> hopeless;
  {
    MutexLock lock(&mu_);
    while (true) {
      if ((work.fresh = std::move(handed_over_)) != nullptr) break;
      if (dispatching_) {
        work_.Wait(&mu_);
        continue;
      }
      if (stopping_) {
        work.stop = true;
        return work;
      }
      if (group_ != nullptr && replay_) {
        replay_ = false;
        work.replays = TakeReplays(&hopeless);
        work.group = group_;
        break;
      }
      // One for both: what was not ready for the one is still to come for the other.
      const SteadyTime now = clock_.Now();
      if ((work.fresh = TakeStep(now)) != nullptr) break;
      const auto ready = batcher_.NextReadyTime();
      if (group_ == nullptr || free_slots_.empty() || !ready.has_value() || *ready <= now) {
        work_.Wait(&mu_);
      } else {
        work_.WaitWithTimeout(&mu_, absl::FromChrono(*ready - now));
      }
    }
    dispatching_ = true;
  }
  for (const auto& [step, why] : hopeless) Fail(step, why);
  return work;
}

std::shared_ptr<Scheduler::Step> Scheduler::TakeStep(SteadyTime now) {
  if (group_ == nullptr || free_slots_.empty()) return nullptr;
  auto batch = batcher_.Take(now, steps_.empty());
  if (batcher_.has_expired()) WakeExpirer();
  if (!batch.has_value()) return nullptr;
  auto step = std::make_shared<Step>();
  step->id = {next_step_id_++};
  step->batch = *std::move(batch);
  step->slot = free_slots_.back();
  free_slots_.pop_back();
  step->output = outputs_->Take();
  step->answered.assign(options_.num_ranks, false);
  step->num_unanswered = options_.num_ranks;
  return step;
}

std::vector<std::shared_ptr<Scheduler::Step>> Scheduler::TakeReplays(
    std::vector<std::pair<std::shared_ptr<Step>, absl::Status>>* hopeless) {
  std::vector<std::shared_ptr<Step>> replays;
  for (auto it = steps_.begin(); it != steps_.end();) {
    Step& step = *it->second;
    step.epoch = group_->epoch;
    step.answered.assign(options_.num_ranks, false);
    step.num_unanswered = options_.num_ranks;
    absl::Status why = CheckLayer(step);
    if (++step.submissions > options_.max_submissions) {
      why.Update(absl::InternalError(absl::StrCat("a step with these rows failed ", step.submissions - 1, " times")));
    }
    if (!why.ok()) {
      hopeless->emplace_back(it->second, why);
      it = steps_.erase(it);
    } else {
      replays.push_back(it->second);
      ++it;
    }
  }
  return replays;
}

void Scheduler::WakeExpirer() {
  expirer_wakes_ = SteadyTime::min();  // once is enough
  wake_expirer_.Signal();
}

void Scheduler::ExpireLoop() {
  while (true) {
    std::vector<std::shared_ptr<Request>> expired;
    {
      MutexLock lock(&mu_);
      while (!stopping_ && (expired = batcher_.TakeExpired(clock_.Now())).empty()) {
        expirer_wakes_ = batcher_.NextExpiry();
        if (expirer_wakes_ == SteadyTime::max()) {
          wake_expirer_.Wait(&mu_);
        } else {
          wake_expirer_.WaitWithTimeout(&mu_, absl::FromChrono(expirer_wakes_ - clock_.Now()));
        }
      }
      if (expired.empty()) return;
    }
    for (const auto& request : expired) Complete(*request, WhyExpired(*request, clock_.Now()));
  }
}

absl::Status Scheduler::Prepare(Step& step) {
  step.started = clock_.Now();
  {
    MutexLock lock(&mu_);
    SY_RETURN_IF_ERROR(CheckLayer(step));
  }
  std::vector<int64_t> home_offsets = HomeOffsets(step.batch.num_rows, options_.num_ranks);
  for (const Piece& piece : step.batch.pieces) {
    Request& request = *piece.request;
    if (request.IsRoutedWhole() && !request.is_routed) SY_RETURN_IF_ERROR(router_.Route(request));
  }
  UploadRows(step, home_offsets);
  step.uploaded = clock_.Now();
  SY_RETURN_IF_ERROR(GateRows(step, home_offsets));
  step.gated = clock_.Now();
  step.plan = PlanStep(step.routing, step.batch.layer->placement, std::move(home_offsets));
  const int num_chunks = ChooseNumChunks(CrossingBytes(step) / options_.num_ranks);
  for (RankPlan& rank : step.plan.ranks) rank.num_chunks = num_chunks;
  EncodePlans(step);
  step.planned = clock_.Now();
  step.submitted = step.planned;
  return absl::OkStatus();
}

void Scheduler::UploadRows(Step& step, const std::vector<int64_t>& home_offsets) {
  const ServedLayer& layer = *step.batch.layer;
  const size_t row_bytes = layer.spec.hidden_dim * SizeOf(layer.compute_dtype);
  // Rows are read from the wire once. Where the gate cannot use the compute type they go to its fp32 copy first: gating
  // on the caller's own precision keeps a near tie between experts from being decided by the rounding to bf16.
  const bool all_in_link_type =
      std::all_of(step.batch.pieces.begin(), step.batch.pieces.end(),
                  [&](const Piece& piece) { return piece.request->dtype == layer.compute_dtype; });
  const bool gate_reads_link =
      layer.compute_dtype == DType::kF32 || (all_in_link_type && GatesAccept(layer, layer.compute_dtype));
  float* gate_rows = nullptr;
  if (!gate_reads_link) {
    gate_rows_.EnsureSize(NumElements(layer, step.batch.num_rows) * sizeof(float));
    gate_rows = reinterpret_cast<float*>(gate_rows_.data());
  }
  copy_tasks_.clear();
  int64_t begin = 0;
  for (Piece& piece : step.batch.pieces) {
    ForEachHomeRun(home_offsets, begin, piece.num_rows,
                   [&](int rank, int64_t home_row, int64_t step_row, int64_t count) {
                     AddCopyTasks(*piece.request, layer.compute_dtype, count,
                                  links_[rank]->input(step.slot) + home_row * row_bytes,
                                  gate_rows == nullptr ? nullptr : gate_rows + NumElements(layer, step_row));
                   });
    begin += piece.num_rows;
  }
  if (step.batch.num_rows * row_bytes < 2 * options_.copy_task_bytes) {
    for (const CopyTask& task : copy_tasks_) task.Run();
  } else {
    copy_pool_.Run(static_cast<int64_t>(copy_tasks_.size()), [&](int64_t task, int) { copy_tasks_[task].Run(); });
  }
  step.gate_reads_link = gate_reads_link;
}

void Scheduler::AddCopyTasks(Request& request, DType link_dtype, int64_t num_rows, std::byte* link_rows,
                             float* gate_rows) {
  const int64_t width = request.layer->spec.hidden_dim;
  const auto row_bytes = static_cast<int64_t>(width * SizeOf(request.dtype));
  const int64_t task_rows = std::max<int64_t>(1, static_cast<int64_t>(options_.copy_task_bytes) / row_bytes);
  for (int64_t row = 0; row < num_rows; row += task_rows) {
    const int64_t count = std::min(task_rows, num_rows - row);
    copy_tasks_.push_back({&request.rows, request.rows.SkipNext(count * row_bytes), request.dtype, link_dtype,
                           static_cast<size_t>(count * width), link_rows + row * width * SizeOf(link_dtype),
                           gate_rows == nullptr ? nullptr : gate_rows + row * width});
  }
}

void Scheduler::CopyTask::Run() const {
  rows->ReadAt(begin, from, num_elements, to, link_rows);
  if (gate_rows != nullptr) {
    rows->ReadAt(begin, from, num_elements, DType::kF32, reinterpret_cast<std::byte*>(gate_rows));
  }
}

absl::Status Scheduler::GateRows(Step& step, const std::vector<int64_t>& home_offsets) {
  const std::vector<Piece>& pieces = step.batch.pieces;
  int num_choices = 0;
  for (const Piece& piece : pieces) num_choices = std::max(num_choices, piece.request->num_choices());
  step.routing.Resize(step.batch.num_rows, num_choices);
  int64_t begin = 0;
  for (size_t i = 0; i < pieces.size();) {
    const Request& request = *pieces[i].request;
    int64_t count = pieces[i].num_rows;
    if (request.is_routed) {
      CopyChoices(request.routing, pieces[i++].begin_row, count, begin, &step.routing);
    } else {
      // Together with the pieces behind it that are gated alike.
      while (++i < pieces.size() && AreGatedAlike(request, *pieces[i].request)) count += pieces[i].num_rows;
      SY_RETURN_IF_ERROR(GateRun(step, home_offsets, request, begin, count));
    }
    begin += count;
  }
  return absl::OkStatus();
}

absl::Status Scheduler::GateRun(Step& step, const std::vector<int64_t>& home_offsets, const Request& like,
                                int64_t begin, int64_t count) {
  const ServedLayer& layer = *step.batch.layer;
  const int64_t width = layer.spec.hidden_dim;
  Gate& gate = *layer.gates[like.gate_idx];
  if (!step.gate_reads_link) {
    const ConstMatrixView rows{gate_rows_.data(), DType::kF32, step.batch.num_rows, width};
    return gate.Route(rows.Rows(begin, count), begin, like.top_k, &step.routing, nullptr);
  }
  absl::Status status;
  ForEachHomeRun(home_offsets, begin, count, [&](int rank, int64_t home_row, int64_t step_row, int64_t run_rows) {
    const ConstMatrixView rows{links_[rank]->input(step.slot), layer.compute_dtype, home_row + run_rows, width};
    status.Update(gate.Route(rows.Rows(home_row, run_rows), step_row, like.top_k, &step.routing, nullptr));
  });
  return status;
}

int64_t Scheduler::CrossingBytes(const Step& step) {
  const ServedLayer& layer = *step.batch.layer;
  return step.plan.num_crossing_rows * layer.spec.hidden_dim * static_cast<int64_t>(SizeOf(layer.compute_dtype));
}

void Scheduler::EncodePlans(const Step& step) {
  for (int rank = 0; rank < options_.num_ranks; ++rank) {
    EncodeRankPlan(step.plan.ranks[rank].view(), links_[rank]->plan(step.slot));
  }
}

void Scheduler::Submit(Step& step, const Group& group) {
  const ServedLayer& layer = *step.batch.layer;
  for (int rank = 0; rank < options_.num_ranks; ++rank) {
    const RankPlan& plan = step.plan.ranks[rank];
    StepSubmission submission;
    submission.message = {group.epoch,
                          step.id,
                          layer.id,
                          step.slot,
                          step.output,
                          plan.num_home_rows,
                          static_cast<int64_t>(EncodedSize(plan.view()))};
    submission.row_bytes = layer.spec.hidden_dim * SizeOf(layer.compute_dtype);
    if (absl::Status status = group.connections[rank]->Submit(submission); !status.ok()) {
      on_group_broken_(group.epoch, rank, status);
      return;
    }
  }
}

// ---- Completion -----------------------------------------------------------------------------------------------------

void Scheduler::OnResult(int rank, const ResultMessage& result, std::span<const std::byte> rows) {
  std::shared_ptr<Step> step;
  {
    MutexLock lock(&mu_);
    const auto it = steps_.find(result.step_id);
    if (it == steps_.end() || it->second->epoch != result.epoch || it->second->answered[rank]) return;
    if (group_ == nullptr || group_->epoch != result.epoch) return;  // it will be replayed
    step = it->second;
  }
  if (!result.status.ok()) {
    on_group_broken_(result.epoch, rank, result.status);
    return;
  }
  if (!rows.empty()) {
    const size_t expected = step->plan.ranks[rank].num_home_rows * step->batch.layer->spec.hidden_dim *
                            SizeOf(step->batch.layer->compute_dtype);
    if (rows.size() != expected) {
      on_group_broken_(result.epoch, rank,
                       absl::DataLossError(absl::StrCat(rows.size(), " bytes of output rows, expected ", expected)));
      return;
    }
    std::memcpy(links_[rank]->output(step->output), rows.data(), rows.size());
  }
  {
    MutexLock lock(&mu_);
    if (step->epoch != result.epoch || step->answered[rank]) return;
    step->answered[rank] = true;
    step->slowest.dispatch_us = std::max(step->slowest.dispatch_us, result.times.dispatch_us);
    step->slowest.expert_us = std::max(step->slowest.expert_us, result.times.expert_us);
    step->slowest.combine_us = std::max(step->slowest.combine_us, result.times.combine_us);
    if (--step->num_unanswered > 0) return;
    steps_.erase(step->id);
  }
  Finish(step);
}

void Scheduler::Finish(const std::shared_ptr<Step>& step) {
  step->finished = clock_.Now();
  RecordStep(*step);
  CompletePieces(*step, CutOutput(*step));
}

std::vector<std::vector<OutputPart>> Scheduler::CutOutput(const Step& step) {
  std::vector<std::vector<OutputPart>> parts;
  std::shared_ptr<const void> loan;
  int64_t begin = 0;
  for (const Piece& piece : step.batch.pieces) {
    Request& request = *piece.request;
    parts.push_back(CutPiece(step, piece, begin, &loan));
    if (request.return_routing && !request.is_routed) {
      CopyChoices(step.routing, begin, piece.num_rows, piece.begin_row, &request.routing);
    }
    begin += piece.num_rows;
  }
  if (loan == nullptr) outputs_->Return(step.output);
  return parts;
}

std::vector<OutputPart> Scheduler::CutPiece(const Step& step, const Piece& piece, int64_t begin,
                                            std::shared_ptr<const void>* loan) {
  const ServedLayer& layer = *step.batch.layer;
  const DType dtype = piece.request->dtype;
  const size_t link_row_bytes = layer.spec.hidden_dim * SizeOf(layer.compute_dtype);
  const size_t row_bytes = layer.spec.hidden_dim * SizeOf(dtype), num_bytes = piece.num_rows * row_bytes;
  const bool may_stay = dtype == layer.compute_dtype && num_bytes >= options_.min_lent_bytes;
  if (may_stay && *loan == nullptr) *loan = outputs_->Lend(step.output);
  const bool stays = may_stay && *loan != nullptr;
  std::vector<OutputPart> parts;
  std::byte* copy = nullptr;
  if (!stays) {
    const std::shared_ptr<std::byte[]> owned = std::make_shared_for_overwrite<std::byte[]>(num_bytes);
    copy = owned.get();
    parts.push_back({piece.begin_row, {copy, num_bytes}, owned});
  }
  ForEachHomeRun(step.plan.home_offsets, begin, piece.num_rows,
                 [&](int rank, int64_t home_row, int64_t step_row, int64_t count) {
                   const std::byte* const rows = links_[rank]->output(step.output) + home_row * link_row_bytes;
                   if (stays) {
                     parts.push_back({piece.begin_row + step_row - begin, {rows, count * row_bytes}, *loan});
                   } else {
                     ConvertElements(layer.compute_dtype, rows, dtype, copy + (step_row - begin) * row_bytes,
                                     NumElements(layer, count));
                   }
                 });
  return parts;
}

void Scheduler::RecordStep(const Step& step) {
  if (step.batch.pieces.front().request->is_warm_up) return;
  StepRecord record;
  record.layer = step.batch.layer->id;
  record.num_rows = step.batch.num_rows;
  record.gate_us = MicrosBetween(step.started, step.gated);
  record.plan_us = MicrosBetween(step.gated, step.planned);
  record.total_us = MicrosBetween(step.submitted, step.finished);
  record.times = step.slowest;
  record.rows_crossed = step.plan.num_crossing_rows;
  // A row that crosses comes back as a partial sum of the same size.
  record.bytes_crossed = 2 * CrossingBytes(step);
  for (const RankPlan& rank : step.plan.ranks) record.rows_per_rank.push_back(rank.view().num_pairs());
  metrics_->RecordStep(record, step.plan.rows_per_expert);
}

void Scheduler::CompletePieces(const Step& step, std::vector<std::vector<OutputPart>> parts) {
  std::vector<std::shared_ptr<Request>> finished;
  std::shared_ptr<Step> next;
  {
    MutexLock lock(&mu_);
    int64_t begin = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      const Piece& piece = step.batch.pieces[i];
      Request& request = *piece.request;
      std::move(parts[i].begin(), parts[i].end(), std::back_inserter(request.output));
      RequestStats& stats = request.stats;
      if (++stats.num_steps == 1 || step.started < stats.first_started) {
        stats.first_started = step.started;
        stats.first_planned = step.planned;
      }
      stats.last_computed = step.finished;
      stats.queue_us += MicrosBetween(request.arrival, step.started);
      stats.gate_us += MicrosBetween(step.started, step.gated);
      stats.upload_us += MicrosBetween(step.started, step.uploaded);
      stats.plan_us += MicrosBetween(step.gated, step.planned);
      stats.step_us += MicrosBetween(step.submitted, step.finished);
      stats.replays += step.submissions - 1;
      for (int64_t row = begin; row < begin + piece.num_rows; ++row) stats.rows_crossed += step.plan.crossings[row];
      request.rows_unfinished -= piece.num_rows;
      if (request.rows_unfinished == 0) finished.push_back(piece.request);
      begin += piece.num_rows;
    }
    free_slots_.push_back(step.slot);
    if (step.submissions == 1) SmoothStepTime(step.finished - step.started);
    next = TakeInline();
  }
  DispatchInline(std::move(next));  // before the answers, which take longer
  Answer(finished);
}

void Scheduler::Answer(const std::vector<std::shared_ptr<Request>>& finished) {
  const auto answer = [&](int64_t i, int) {
    std::vector<OutputPart>& output = finished[i]->output;
    std::sort(output.begin(), output.end(),
              [](const OutputPart& one, const OutputPart& other) { return one.begin_row < other.begin_row; });
    Complete(*finished[i], absl::OkStatus());
  };
  const auto num_answers = static_cast<int64_t>(finished.size());
  const bool are_many = options_.num_answer_threads > 1 && finished.size() >= options_.min_shared_answers;
  if (!are_many || answer_pool_is_taken_.exchange(true, std::memory_order_acquire)) {
    for (int64_t i = 0; i < num_answers; ++i) answer(i, 0);
    return;
  }
  answer_pool_.Run(num_answers, answer);
  answer_pool_is_taken_.store(false, std::memory_order_release);
}

void Scheduler::SmoothStepTime(std::chrono::nanoseconds latest) {
  constexpr int kMemory = 8;  // steps
  step_time_ = step_time_.count() == 0 ? latest : step_time_ + (latest - step_time_) / kMemory;
}

void Scheduler::Fail(const std::shared_ptr<Step>& step, const absl::Status& why) {
  spdlog::error("step {} failed: {}", step->id.value, why.message());
  {
    MutexLock lock(&mu_);
    for (const Piece& piece : step->batch.pieces) batcher_.Remove(*piece.request);
    free_slots_.push_back(step->slot);
    work_.Signal();
  }
  outputs_->Return(step->output);
  for (const Piece& piece : step->batch.pieces) Complete(*piece.request, why);
}

}  // namespace switchyard
