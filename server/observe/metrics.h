// The front's Prometheus metrics; docs/operations.md explains each.
//
// Thread-safe. A record looks up a layer's metrics once, by the layer's id, and no labels are built while requests run.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/ids.h"
#include "base/mutex.h"
#include "moe/link/step_socket.h"
#include "server/models/served_model.h"
#include "server/observe/layer_statistics.h"

namespace switchyard {

// The cost of one finished step.
struct StepRecord {
  LayerId layer;
  int64_t num_rows = 0;
  int64_t gate_us = 0;
  int64_t plan_us = 0;
  int64_t total_us = 0;  // submission to last result
  StepTimes times;       // slowest rank
  int64_t rows_crossed = 0;
  int64_t bytes_crossed = 0;
  std::vector<int64_t> rows_per_rank;  // (row, expert) pairs that each rank computed
};

// Why someone at the worker port did not become a worker.
enum class WorkerRefusal {
  kToken,         // it has not the token
  kUser,          // on a port without a token: of another user, or that cannot be told
  kLate,          // it sent no Hello in time
  kFirstMessage,  // its first message is too large or no Hello
  kHello,         // of another version or build, without a rank, or of no use to the group
};

class Metrics {
 public:
  Metrics();

  prometheus::Registry& registry() { return registry_; }

  // Registers a layer; call it before anything is recorded for the layer. A layer that is added again under the same
  // name, with another id, goes on counting where the earlier one stopped. Exported metrics are never removed.
  void AddLayer(const ServedLayer& layer);
  // Removes layers. Nothing may be recorded for them, or asked by their ids, afterwards.
  void RemoveLayers(const std::vector<LayerId>& layers);

  void RecordStep(const StepRecord& record, const std::vector<int64_t>& rows_per_expert);
  // Records a request that has ended, with the gRPC code of its status. `stats` count when the code is OK.
  void RecordRequest(LayerId layer, absl::StatusCode code, const RequestStats& stats, int64_t total_us);
  // Records a request that was refused before it was queued; `layer` is unset when the request named no known layer.
  void RecordRejection(absl::StatusCode code, std::optional<LayerId> layer);
  void RecordRecovery(double seconds);
  void RecordWorkerRefusal(WorkerRefusal reason);

  void SetQueue(int64_t rows, int64_t bytes, int64_t requests);
  // Rows that no step has taken yet, by Priority, the highest first.
  void SetQueuedRows(const std::array<int64_t, kNumPriorities>& rows);
  // How long the oldest step in flight has been so; 0 when there is none.
  void SetOldestStep(std::chrono::nanoseconds age);
  void SetGroup(Epoch epoch, int ranks_serving);

  // Rows each expert has computed since the start.
  std::vector<int64_t> RowsPerExpert(LayerId layer) const;
  LayerStatistics::Snapshot Statistics(LayerId layer) const;
  // Statistics of every layer, with its name for KServe clients, NAME.LAYER.
  std::vector<std::pair<std::string, LayerStatistics::Snapshot>> AllStatistics() const;

 private:
  // gRPC's codes, OK included.
  static constexpr int kNumCodes = 17;
  // Counters of requests by code. A layer's counter for OK exists from the start, the others are made when they are
  // first needed.
  using RequestCounters = std::array<std::atomic<prometheus::Counter*>, kNumCodes>;

  // The counts that a layer takes over from an earlier layer of the same name.
  struct NamedCounts {
    RequestCounters requests = {};
    LayerStatistics statistics;
  };

  // Constant once made, but the counts and metrics it points to change.
  struct LayerMetrics {
    std::string model, layer;
    NamedCounts* counts = nullptr;
    std::vector<prometheus::Counter*> rows_per_expert;
    std::vector<prometheus::Counter*> rows_per_rank;
    prometheus::Counter* steps = nullptr;
    prometheus::Counter* rows = nullptr;
    prometheus::Counter* rows_crossed = nullptr;
    prometheus::Counter* bytes_crossed = nullptr;
    prometheus::Histogram* gate = nullptr;
    prometheus::Histogram* plan = nullptr;
    prometheus::Histogram* dispatch = nullptr;
    prometheus::Histogram* expert = nullptr;
    prometheus::Histogram* combine = nullptr;
    prometheus::Histogram* step = nullptr;
    prometheus::Histogram* queue = nullptr;
    prometheus::Histogram* total = nullptr;
    prometheus::Histogram* batch_rows = nullptr;
    prometheus::Histogram* imbalances = nullptr;
    prometheus::Gauge* imbalance = nullptr;
  };

  // `layer` must have been added.
  const LayerMetrics& Find(LayerId layer) const;
  // The counter for the code among `counters`, made when it does not exist yet.
  prometheus::Counter& RequestCounter(const std::string& model, const std::string& layer, absl::StatusCode code,
                                      RequestCounters& counters);
  static void RecordLoad(const LayerMetrics& layer, const std::vector<int64_t>& rows_per_rank);

  prometheus::Registry registry_;
  prometheus::Family<prometheus::Histogram>& stage_seconds_;
  prometheus::Family<prometheus::Histogram>& batch_rows_;
  prometheus::Family<prometheus::Counter>& expert_rows_;
  prometheus::Family<prometheus::Counter>& rank_rows_;
  prometheus::Family<prometheus::Histogram>& imbalances_;
  prometheus::Family<prometheus::Gauge>& imbalance_;
  prometheus::Family<prometheus::Counter>& steps_;
  prometheus::Family<prometheus::Counter>& rows_;
  prometheus::Family<prometheus::Counter>& rows_crossed_;
  prometheus::Family<prometheus::Counter>& bytes_crossed_;
  prometheus::Family<prometheus::Counter>& requests_;
  prometheus::Gauge& queue_rows_;
  prometheus::Gauge& queue_bytes_;
  prometheus::Gauge& queue_requests_;
  std::array<prometheus::Gauge*, kNumPriorities> queued_rows_;  // by Priority
  prometheus::Gauge& oldest_step_seconds_;
  prometheus::Gauge& epoch_;
  prometheus::Gauge& ranks_serving_;
  prometheus::Counter& recoveries_;
  prometheus::Histogram& recovery_seconds_;
  std::vector<prometheus::Counter*> worker_refusals_;  // by WorkerRefusal
  RequestCounters unknown_requests_ = {};              // requests that named no known layer
  mutable Mutex mu_;
  std::map<std::pair<std::string, std::string>, std::unique_ptr<NamedCounts>> counts_ ABSL_GUARDED_BY(mu_);
  // Only layers that are there have an entry, because ids grow with every load and never come again.
  absl::flat_hash_map<int32_t, std::unique_ptr<const LayerMetrics>> layers_ ABSL_GUARDED_BY(mu_);  // by LayerId
};

}  // namespace switchyard
