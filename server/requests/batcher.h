// Queues of rows waiting for a step, one per layer, and the rule by which they leave.
//
// Work-conserving: when nothing is in flight, whatever is queued leaves at once, unless max_queue_delay asks it to wait
// for company. While steps are in flight, rows leave early only when some layer's fill a good part of a step; otherwise
// the queues grow until the group is free, which costs nothing as the group could not start them any sooner. Large
// requests are cut, small ones joined.
//
// Who goes first: the layer in which a request of the highest level waits; among such layers they take turns. Within
// the layer requests of higher levels, and within a level clients in turn (see FairQueue). What room is left in the
// step goes to the lower levels. A request of a lower level that has waited for priority_aging shares the highest
// level's place: of the two, each gets half of the rows while both wait, so neither keeps the other out.
//
// Requests that expire, by their queue timeout or deadline, leave by TakeExpired and never in a batch.
//
// A layer has a queue here while rows of it wait. Adding and removing a request take constant time, or logarithmic for
// one that can expire; taking a batch takes time for its pieces and for each layer with rows.
//
// Thread-compatible: the scheduler guards it.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "server/requests/fair_queue.h"
#include "server/requests/request.h"

namespace switchyard {

struct BatcherOptions {
  int64_t max_batch_rows = 4096;
  std::chrono::microseconds max_queue_delay{0};
  std::chrono::milliseconds priority_aging{1000};
};

// A layer's requests.
struct LayerQueue {
  explicit LayerQueue(int64_t max_batch_rows);

  // Index in the order of service of the first that has requests.
  int top() const;
  FairQueue& Next();

  const int64_t max_batch_rows;
  // The highest level, those of lower ones that have aged, and the lower ones that have not.
  std::array<FairQueue, kNumPriorities + 1> queues;
  int64_t aged_lead = 0;  // cost that left from the aged ones more than from the highest level, while both wait
  QueuedRequest::List by_arrival;
  int64_t num_rows = 0;
  int64_t turn = 0;  // the layer with the lowest goes first
};

class Batcher {
 public:
  explicit Batcher(const BatcherOptions& options) : options_(options) {}

  // Steps take about `step_time`; 0 when that is not known. What would leave later than twice that, and a quarter of
  // its caller's time, before its deadline expires instead: it would be computed for nobody, and under overload, when
  // all that leaves has waited for long, so would everything.
  void Add(std::shared_ptr<Request> request, std::chrono::nanoseconds step_time = std::chrono::nanoseconds(0));

  // Takes the rows of a request that are still queued out of its queue; returns how many there were.
  int64_t Remove(const Request& request);

  // The next batch that is ready at `now`; `idle` when no step is in flight. Requests that have expired by then leave
  // the queue before, and are kept for TakeExpired.
  std::optional<Batch> Take(SteadyTime now, bool idle);
  bool has_expired() const { return !expired_.empty(); }

  // Takes out the requests that have expired by `now`.
  std::vector<std::shared_ptr<Request>> TakeExpired(SteadyTime now);
  // Takes out every request.
  std::vector<std::shared_ptr<Request>> TakeAll();

  // When waiting rows become ready by age alone, if there are any. Later arrivals and results may come first.
  std::optional<SteadyTime> NextReadyTime() const;
  // When the next request in the queue expires; SteadyTime::max() when none can.
  SteadyTime NextExpiry() const;

  int64_t num_rows() const { return num_rows_; }
  // By Priority, the highest first.
  const std::array<int64_t, kNumPriorities>& rows_by_priority() const { return rows_by_priority_; }

 private:
  bool IsReady(const LayerQueue& layer, SteadyTime now, bool idle) const;
  // None comes to a warm-up.
  SteadyTime CompanyIsWaitedForUntil(const LayerQueue& layer) const;
  bool HasWaitedForCompany(const LayerQueue& layer, SteadyTime now) const;
  LayerQueue* ChooseLayer(SteadyTime now, bool idle);
  Batch Cut(LayerQueue& layer);
  // Adds rows of whose turn it is to the batch, for at most `room`. What they cost; 0 when the next row does not fit.
  int64_t TakeTurn(LayerQueue& layer, int64_t room, Batch* batch);
  void AppendRows(QueuedRequest& queued, int64_t count, Batch* batch);

  LayerQueue& QueueOf(const ServedLayer& layer);
  void Age(SteadyTime now);
  void SetExpiry(QueuedRequest* queued);
  void Expire(SteadyTime now);
  void CountRows(const QueuedRequest& queued, int64_t change);
  // Ends it here, with its layer's queue if that is empty now.
  std::shared_ptr<Request> Drop(QueuedRequest* queued);

  const BatcherOptions options_;
  absl::flat_hash_map<const Request*, std::unique_ptr<QueuedRequest>> queued_;
  absl::flat_hash_map<int32_t, std::unique_ptr<LayerQueue>> layers_;  // by LayerId
  QueuedRequest::List aging_;                                         // of the lower levels, by arrival
  absl::btree_set<std::pair<SteadyTime, QueuedRequest*>> expiries_;
  std::vector<std::shared_ptr<Request>> expired_;
  int64_t num_rows_ = 0;
  std::array<int64_t, kNumPriorities> rows_by_priority_{};
  int64_t num_turns_ = 0;
  int64_t num_batches_ = 0;
};

}  // namespace switchyard
