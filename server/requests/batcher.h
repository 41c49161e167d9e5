// Queues of rows waiting for a step, one per layer, and the rule by which the rows leave.
//
// Work-conserving: when no step is in flight, the queued rows leave at once, unless max_queue_delay makes them wait for
// more rows. While steps are in flight, rows leave early only when the rows of some layer fill a good part of a step.
// Otherwise the queues grow until the group is free, which costs nothing, because the group could not start the rows
// any sooner. Large requests are cut, small ones joined.
//
// A step serves the layer whose most urgent request has the highest level; layers of equal level take turns. Within the
// layer, requests of higher levels go first, and within a level clients take turns (see FairQueue). Room that is left
// in the step goes to the lower levels. A request of a lower level that has waited for priority_aging shares the place
// of the highest level: while aged requests and requests of the highest level wait, each kind gets half of the rows, so
// neither keeps the other out.
//
// Requests that expire, by their queue timeout or deadline, leave by TakeExpired and never in a batch.
//
// A layer has a queue here while rows of it wait. Adding and removing a request take constant time, or logarithmic time
// if the request can expire. Taking a batch takes time proportional to its pieces and to the number of layers with
// rows.
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

  // The index of the first queue that has requests, in the order of service. Aged requests count as the highest level.
  int top() const;
  FairQueue& Next();

  const int64_t max_batch_rows;
  // In this order: the highest level, the aged requests of lower levels, and each lower level without its aged
  // requests.
  std::array<FairQueue, kNumPriorities + 1> queues;
  int64_t aged_lead = 0;  // while both wait: cost of aged rows that left, less that of rows of the highest level
  QueuedRequest::List by_arrival;
  int64_t num_rows = 0;
  int64_t turn = 0;  // the layer with the lowest turn goes first
};

class Batcher {
 public:
  explicit Batcher(const BatcherOptions& options) : options_(options) {}

  // `step_time` is the time that a step usually takes; 0 when it is not known. If it is known, a request expires before
  // its deadline: by two step times, but by at least a quarter and at most half of the time from its arrival to its
  // deadline. A request that left later would be computed in vain, because its answer would come too late; under
  // overload, when all requests wait long before they leave, that would happen to every one.
  void Add(std::shared_ptr<Request> request, std::chrono::nanoseconds step_time = std::chrono::nanoseconds(0));

  // Removes the rows of a request that are still queued, and returns their number.
  int64_t Remove(const Request& request);

  // Takes the next batch that is ready at `now`; `idle` is true when no step is in flight. Requests that have expired
  // by `now` are removed from the queue first, and kept for TakeExpired.
  std::optional<Batch> Take(SteadyTime now, bool idle);
  bool has_expired() const { return !expired_.empty(); }

  // Takes out the requests that have expired by `now`.
  std::vector<std::shared_ptr<Request>> TakeExpired(SteadyTime now);
  // Takes out every request, in the order in which they came.
  std::vector<std::shared_ptr<Request>> TakeAll();

  // The time at which the first waiting rows become ready by age alone; nullopt when no rows wait. Arrivals and results
  // may make rows ready earlier.
  std::optional<SteadyTime> NextReadyTime() const;
  // The time at which the next queued request expires; SteadyTime::max() when none can expire.
  SteadyTime NextExpiry() const;

  int64_t num_rows() const { return num_rows_; }
  // Queued rows of each Priority, the highest first.
  const std::array<int64_t, kNumPriorities>& rows_by_priority() const { return rows_by_priority_; }

 private:
  bool IsReady(const LayerQueue& layer, SteadyTime now, bool idle) const;
  // The time until which the layer's oldest request waits for more rows to join it. A warm-up does not wait, because no
  // other rows come to join it.
  SteadyTime CompanyIsWaitedForUntil(const LayerQueue& layer) const;
  bool HasWaitedForCompany(const LayerQueue& layer, SteadyTime now) const;
  LayerQueue* ChooseLayer(SteadyTime now, bool idle);
  Batch Cut(LayerQueue& layer);
  // Adds rows of the request whose turn it is to the batch, with a cost of at most `room`. Returns their cost, or 0
  // when the next row does not fit. The first row of a batch always fits.
  int64_t TakeTurn(LayerQueue& layer, int64_t room, Batch* batch);
  void AppendRows(QueuedRequest& queued, int64_t count, Batch* batch);

  LayerQueue& QueueOf(const ServedLayer& layer);
  void Age(SteadyTime now);
  void SetExpiry(QueuedRequest* queued);
  void Expire(SteadyTime now);
  void CountRows(const QueuedRequest& queued, int64_t change);
  // Removes a request from every queue and list, and removes its layer's queue if that is empty then.
  std::shared_ptr<Request> Drop(QueuedRequest* queued);

  const BatcherOptions options_;
  absl::flat_hash_map<const Request*, std::unique_ptr<QueuedRequest>> queued_;
  absl::flat_hash_map<int32_t, std::unique_ptr<LayerQueue>> layers_;  // by LayerId
  QueuedRequest::List aging_;  // requests of lower levels that have not aged yet, by arrival
  absl::btree_set<std::pair<SteadyTime, QueuedRequest*>> expiries_;
  std::vector<std::shared_ptr<Request>> expired_;
  int64_t num_rows_ = 0;
  std::array<int64_t, kNumPriorities> rows_by_priority_{};
  int64_t num_turns_ = 0;
  int64_t num_batches_ = 0;
};

}  // namespace switchyard
