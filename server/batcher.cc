#include "server/batcher.h"

#include <algorithm>

namespace switchyard {
namespace {

// While the group is busy, a step is prepared ahead only when it is at least this part of a full one.
constexpr int64_t kEarlyFraction = 4;

}  // namespace

void Batcher::Add(std::shared_ptr<Request> request) {
  Queue& queue = queues_[request->layer->id.value];
  queue.num_rows += request->num_rows;
  num_rows_ += request->num_rows;
  queue.requests.push_back(std::move(request));
}

int64_t Batcher::Remove(const Request& request) {
  Queue& queue = queues_[request.layer->id.value];
  const auto it = std::find_if(queue.requests.begin(), queue.requests.end(),
                               [&](const auto& queued) { return queued.get() == &request; });
  if (it == queue.requests.end()) return 0;
  const int64_t removed = request.num_rows - request.queued_from;
  queue.num_rows -= removed;
  num_rows_ -= removed;
  queue.requests.erase(it);
  return removed;
}

bool Batcher::IsReady(const Queue& queue, SteadyTime now, bool idle) const {
  if (queue.num_rows == 0) return false;
  if (queue.num_rows >= options_.max_batch_rows) return true;
  if (!idle) return queue.num_rows * kEarlyFraction >= options_.max_batch_rows && options_.max_queue_delay.count() == 0;
  return now - queue.requests.front()->arrival >= options_.max_queue_delay;
}

std::optional<Batch> Batcher::Take(SteadyTime now, bool idle) {
  Queue* next = nullptr;
  for (Queue& queue : queues_) {
    if (IsReady(queue, now, idle) && (next == nullptr || queue.last_served < next->last_served)) next = &queue;
  }
  if (next == nullptr) return std::nullopt;
  next->last_served = ++num_served_;
  return Cut(*next);
}

Batch Batcher::Cut(Queue& queue) {
  Batch batch;
  batch.layer = queue.requests.front()->layer;
  int64_t room = options_.max_batch_rows;
  while (!queue.requests.empty()) {
    const int64_t row_cost = queue.requests.front()->row_cost;
    // A step has room for one row of any request (see Request::row_cost).
    const int64_t most = batch.pieces.empty() ? std::max<int64_t>(room / row_cost, 1) : room / row_cost;
    if (most == 0) break;
    std::shared_ptr<Request> request = std::move(queue.requests.front());
    queue.requests.pop_front();
    const int64_t count = std::min(request->num_rows - request->queued_from, most);
    room -= count * row_cost;
    batch.pieces.push_back({request, request->queued_from, count});
    batch.num_rows += count;
    request->queued_from += count;
    if (request->queued_from < request->num_rows) queue.requests.push_back(std::move(request));
  }
  queue.num_rows -= batch.num_rows;
  num_rows_ -= batch.num_rows;
  return batch;
}

std::optional<SteadyTime> Batcher::NextReadyTime() const {
  std::optional<SteadyTime> next;
  for (const Queue& queue : queues_) {
    if (queue.num_rows == 0) continue;
    const SteadyTime ready = queue.requests.front()->arrival + options_.max_queue_delay;
    if (!next.has_value() || ready < *next) next = ready;
  }
  return next;
}

}  // namespace switchyard
