#include "server/requests/batcher.h"

#include <algorithm>

namespace switchyard {
namespace {

// While the group is busy, a step is prepared ahead only when it has at least 1 / kEarlyFraction of the rows of a full
// step.
constexpr int64_t kEarlyFraction = 4;

// LayerQueue::queues in the order of service.
constexpr int kHighest = 0, kAged = 1;

int QueueIndex(Priority priority) {
  return priority == Priority::kHigh ? kHighest : static_cast<int>(priority);  // kAged comes between
}

// The last moment at which a request may leave the queue and still be answered in time: two step times before its
// deadline. At least a quarter of the time from arrival to deadline is kept for the way to the caller and back, which
// takes longer under overload. At least half of that time is left for the queue, however long steps take.
SteadyTime LatestStart(const Request& request, std::chrono::nanoseconds step_time) {
  if (request.ask.deadline == SteadyTime::max() || step_time.count() == 0) return request.ask.deadline;
  const auto given = request.ask.deadline - request.ask.arrival;
  if (given.count() <= 0) return request.ask.deadline;
  return request.ask.deadline - std::clamp<SteadyTime::duration>(2 * step_time, given / 4, given / 2);
}

}  // namespace

LayerQueue::LayerQueue(int64_t max_batch_rows)
    : max_batch_rows(max_batch_rows),
      queues{FairQueue(max_batch_rows), FairQueue(max_batch_rows), FairQueue(max_batch_rows),
             FairQueue(max_batch_rows)} {}

int LayerQueue::top() const {
  for (int i = 0; i < static_cast<int>(queues.size()); ++i) {
    if (!queues[i].empty()) return i == kAged ? kHighest : i;
  }
  return static_cast<int>(queues.size());
}

FairQueue& LayerQueue::Next() {
  if (queues[kHighest].empty() || queues[kAged].empty()) aged_lead = 0;
  if (!queues[kAged].empty() && (queues[kHighest].empty() || aged_lead < 0)) return queues[kAged];
  return *std::find_if(queues.begin(), queues.end(), [](const FairQueue& queue) { return !queue.empty(); });
}

// ---- Coming and going

void Batcher::Add(std::shared_ptr<Request> request, std::chrono::nanoseconds step_time) {
  auto owned = std::make_unique<QueuedRequest>();
  QueuedRequest* queued = owned.get();
  const Request* key = request.get();
  queued->request = std::move(request);
  queued->latest = LatestStart(*queued->request, step_time);
  LayerQueue& layer = QueueOf(*queued->request->ask.layer);
  queued->layer = &layer;
  queued->in_layer = layer.by_arrival.insert(layer.by_arrival.end(), queued);
  layer.queues[QueueIndex(queued->request->ask.priority)].Add(queued);
  queued->may_age = queued->request->ask.priority != Priority::kHigh;
  if (queued->may_age) queued->in_aging = aging_.insert(aging_.end(), queued);
  SetExpiry(queued);
  CountRows(*queued, queued->request->ask.num_rows);
  queued_.emplace(key, std::move(owned));
}

LayerQueue& Batcher::QueueOf(const ServedLayer& served) {
  std::unique_ptr<LayerQueue>& layer = layers_[served.id.value];
  if (layer == nullptr) {
    layer = std::make_unique<LayerQueue>(std::min(options_.max_batch_rows, served.on_group.max_batch_rows));
    layer->turn = ++num_turns_;  // behind the layers that wait already
  }
  return *layer;
}

int64_t Batcher::Remove(const Request& request) {
  const auto it = queued_.find(&request);
  if (it == queued_.end()) return 0;
  const int64_t removed = it->second->num_rows_left();
  Drop(it->second.get());
  return removed;
}

std::shared_ptr<Request> Batcher::Drop(QueuedRequest* queued) {
  CountRows(*queued, -queued->num_rows_left());
  if (queued->expiry != SteadyTime::max()) expiries_.erase({queued->expiry, queued});
  if (queued->may_age) aging_.erase(queued->in_aging);
  queued->level->Remove(queued);
  LayerQueue& layer = *queued->layer;
  layer.by_arrival.erase(queued->in_layer);
  std::shared_ptr<Request> request = std::move(queued->request);
  queued_.erase(request.get());
  if (layer.by_arrival.empty()) layers_.erase(request->ask.layer->id.value);
  return request;
}

void Batcher::CountRows(const QueuedRequest& queued, int64_t change) {
  queued.layer->num_rows += change;
  num_rows_ += change;
  rows_by_priority_[static_cast<int>(queued.request->ask.priority) - 1] += change;
}

void Batcher::SetExpiry(QueuedRequest* queued) {
  const Request& request = *queued->request;
  SteadyTime expiry = queued->latest;
  if (request.ask.queue_timeout.count() > 0 && queued->next_row == 0) {
    expiry = std::min(expiry, request.ask.arrival + request.ask.queue_timeout);
  }
  if (expiry == queued->expiry) return;
  if (queued->expiry != SteadyTime::max()) expiries_.erase({queued->expiry, queued});
  queued->expiry = expiry;
  if (expiry != SteadyTime::max()) expiries_.insert({expiry, queued});
}

void Batcher::Expire(SteadyTime now) {
  while (!expiries_.empty() && expiries_.begin()->first <= now) expired_.push_back(Drop(expiries_.begin()->second));
}

std::vector<std::shared_ptr<Request>> Batcher::TakeExpired(SteadyTime now) {
  Expire(now);
  return std::exchange(expired_, {});
}

std::vector<std::shared_ptr<Request>> Batcher::TakeAll() {
  std::vector<std::shared_ptr<Request>> all = std::exchange(expired_, {});
  while (!queued_.empty()) all.push_back(Drop(queued_.begin()->second.get()));
  std::stable_sort(all.begin(), all.end(),
                   [](const auto& one, const auto& other) { return one->ask.arrival < other->ask.arrival; });
  return all;
}

void Batcher::Age(SteadyTime now) {
  while (!aging_.empty() && now - aging_.front()->request->ask.arrival >= options_.priority_aging) {
    QueuedRequest* queued = aging_.front();
    aging_.pop_front();
    queued->may_age = false;
    queued->level->Remove(queued);
    queued->layer->queues[kAged].Add(queued);
  }
}

// ---- Batches

SteadyTime Batcher::CompanyIsWaitedForUntil(const LayerQueue& layer) const {
  const Request& oldest = *layer.by_arrival.front()->request;
  return oldest.ask.is_warm_up ? oldest.ask.arrival : oldest.ask.arrival + options_.max_queue_delay;
}

bool Batcher::HasWaitedForCompany(const LayerQueue& layer, SteadyTime now) const {
  return now >= CompanyIsWaitedForUntil(layer);
}

bool Batcher::IsReady(const LayerQueue& layer, SteadyTime now, bool idle) const {
  if (layer.num_rows >= layer.max_batch_rows) return true;
  if (idle) return HasWaitedForCompany(layer, now);
  return layer.num_rows * kEarlyFraction >= layer.max_batch_rows && options_.max_queue_delay.count() == 0;
}

LayerQueue* Batcher::ChooseLayer(SteadyTime now, bool idle) {
  LayerQueue* first = nullptr;
  bool is_any_ready = false;
  for (const auto& [id, owned] : layers_) {
    LayerQueue& layer = *owned;
    const bool is_ready = IsReady(layer, now, idle);
    is_any_ready |= is_ready;
    // A step is prepared ahead because some layer fills it well, but it goes to the layer whose turn it is; otherwise a
    // busy layer would keep small ones out.
    if (!is_ready && !HasWaitedForCompany(layer, now)) continue;
    if (first == nullptr || std::pair(layer.top(), layer.turn) < std::pair(first->top(), first->turn)) first = &layer;
  }
  return is_any_ready ? first : nullptr;
}

std::optional<Batch> Batcher::Take(SteadyTime now, bool idle) {
  Expire(now);
  Age(now);
  LayerQueue* layer = ChooseLayer(now, idle);
  if (layer == nullptr) return std::nullopt;
  layer->turn = ++num_turns_;
  return Cut(*layer);
}

Batch Batcher::Cut(LayerQueue& layer) {
  Batch batch;
  ++num_batches_;
  int64_t room = layer.max_batch_rows;
  int64_t rows_left = layer.num_rows;  // a copy, because `layer` is destroyed with its last row
  while (rows_left > 0) {
    const int64_t before = batch.num_rows;
    const int64_t cost = TakeTurn(layer, room, &batch);
    if (cost == 0) break;
    room -= cost;
    rows_left -= batch.num_rows - before;
  }
  return batch;
}

int64_t Batcher::TakeTurn(LayerQueue& layer, int64_t room, Batch* batch) {
  FairQueue& queue = layer.Next();
  const auto [queued, credit] = queue.Next();
  const int64_t row_cost = queued->request->ask.row_cost;
  // The first row of a step always fits, even if it costs more than `room` (see RequestAsk::row_cost).
  const int64_t most = batch->pieces.empty() ? std::max<int64_t>(room / row_cost, 1) : room / row_cost;
  const int64_t count = std::min({queued->num_rows_left(), most, (credit + row_cost - 1) / row_cost});
  if (count <= 0) return 0;
  const int64_t cost = count * row_cost;
  if (&queue == &layer.queues[kHighest]) layer.aged_lead -= cost;
  if (&queue == &layer.queues[kAged]) layer.aged_lead += cost;
  queue.Charge(queued, cost);
  AppendRows(*queued, count, batch);
  if (queued->num_rows_left() == 0) Drop(queued);
  return cost;
}

void Batcher::AppendRows(QueuedRequest& queued, int64_t count, Batch* batch) {
  // Several turns of a request in one batch make one piece.
  if (queued.batch_number != num_batches_) {
    queued.batch_number = num_batches_;
    queued.piece_idx = batch->pieces.size();
    batch->pieces.push_back({queued.request, queued.next_row, 0});
  }
  batch->pieces[queued.piece_idx].num_rows += count;
  batch->num_rows += count;
  batch->layer = queued.request->ask.layer.get();
  CountRows(queued, -count);
  const bool was_whole = queued.next_row == 0;
  queued.next_row += count;
  queued.request->progress.has_left = true;
  if (was_whole) SetExpiry(&queued);  // its first rows left, so its queue timeout no longer applies
}

std::optional<SteadyTime> Batcher::NextReadyTime() const {
  std::optional<SteadyTime> next;
  for (const auto& [id, layer] : layers_) {
    const SteadyTime ready = CompanyIsWaitedForUntil(*layer);
    if (!next.has_value() || ready < *next) next = ready;
  }
  return next;
}

SteadyTime Batcher::NextExpiry() const { return expiries_.empty() ? SteadyTime::max() : expiries_.begin()->first; }

}  // namespace switchyard
