// Queues of rows waiting for a step, one per layer, and the rule by which they leave.
//
// Work-conserving: when nothing is in flight, whatever is queued leaves at once, unless max_queue_delay asks it to wait
// for company. While steps are in flight, a layer's rows leave early only if they fill a good part of a step; otherwise
// the queue grows until the group is free, which costs nothing as the group could not start them any sooner. Large
// requests are cut, small ones joined. Fair: among layers that are ready the one served longest ago goes first, and
// what is left of a cut request goes behind the others of its layer.
//
// Thread-compatible: the scheduler guards it.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "server/request.h"

namespace switchyard {

struct BatcherOptions {
  int num_layers = 0;
  int64_t max_batch_rows = 4096;
  std::chrono::microseconds max_queue_delay{0};
};

class Batcher {
 public:
  explicit Batcher(const BatcherOptions& options) : options_(options), queues_(options.num_layers) {}

  void Add(std::shared_ptr<Request> request);

  // Takes the rows of a request that are still queued out of its queue; returns how many there were.
  int64_t Remove(const Request& request);

  // The next batch that is ready at `now`; `idle` when no step is in flight.
  std::optional<Batch> Take(SteadyTime now, bool idle);

  // When waiting rows become ready by age alone, if there are any. Later arrivals and results may come first.
  std::optional<SteadyTime> NextReadyTime() const;

  int64_t num_rows() const { return num_rows_; }

 private:
  struct Queue {
    std::deque<std::shared_ptr<Request>> requests;
    int64_t num_rows = 0;
    int64_t last_served = 0;
  };

  bool IsReady(const Queue& queue, SteadyTime now, bool idle) const;
  Batch Cut(Queue& queue);

  const BatcherOptions options_;
  std::vector<Queue> queues_;  // by LayerId
  int64_t num_rows_ = 0;
  int64_t num_served_ = 0;
};

}  // namespace switchyard
