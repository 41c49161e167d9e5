#include "moe/gating/gate.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "base/tensor/buffer.h"
#include "base/work_pool.h"
#include "moe/gating/router.h"
#include "moe/gating/select_experts.h"

namespace switchyard {
namespace {

constexpr int64_t kMinTaskRows = 16, kMaxTaskRows = 256;
constexpr int64_t kTaskRowBytes = 1 << 20;    // bytes of a task's rows, which stay in a core's cache for all slices
constexpr int64_t kSharedTaskRows = 64;       // rows of a task that computes one slice
constexpr int64_t kTasksPerThread = 2;        // fewer would leave threads idle at the end
constexpr int64_t kSelectedRowsPerTask = 16;  // rows of a task that only selects
constexpr int64_t kMaxSelectedByCaller = 32;  // rows that the caller selects for before a helper would be awake
constexpr int64_t kMaxUnsharedNs = 20000;     // work that the caller does alone
constexpr int64_t kRouterBytesPerNs = 64;     // a core's rate of reading packed weights
constexpr int64_t kProductsPerNs = 150;       // a core's rate of multiplying

// How the work of one Route is shared out.
struct Shares {
  int64_t task_rows = 0;
  bool by_slice = false;  // a task is one slice of some rows, and selection comes when all are done
};

// The first error of several threads.
class FirstError {
 public:
  void Add(const absl::Status& status) {
    if (status.ok()) return;
    MutexLock lock(&mu_);
    first_.Update(status);
  }
  absl::Status Take() {
    MutexLock lock(&mu_);
    return first_;
  }

 private:
  Mutex mu_;
  absl::Status first_ ABSL_GUARDED_BY(mu_);
};

// Where the results of one call of Route go.
struct Target {
  GateSpec spec;  // with the call's top_k
  Routing* routing = nullptr;
  ScoreStats* stats = nullptr;  // or null
};

class RouterGate final : public Gate {
 public:
  RouterGate(const LayerSpec& layer, int gate_idx, std::vector<float> score_correction,
             std::shared_ptr<LinearContext> context, std::unique_ptr<Router> router);

  bool Accepts(DType dtype) const override { return router_->Accepts(dtype); }
  absl::Status Route(ConstMatrixView rows, int64_t first_row, int top_k, Routing* routing, ScoreStats* stats) override;

 private:
  absl::Status CheckRows(ConstMatrixView rows) const;
  absl::Status CheckTarget(int64_t num_rows, int64_t first_row, const Target& target) const;
  Shares ShareOut(ConstMatrixView rows) const;
  absl::Status RouteByRows(ConstMatrixView rows, int64_t task_rows, int64_t first_row, const Target& target);
  absl::Status RouteBySlices(ConstMatrixView rows, int64_t task_rows, int64_t first_row, const Target& target);
  absl::Status Select(float* y, int64_t num_rows, int64_t first_row, const Target& target);
  absl::Status SelectBlock(float* y, int64_t num_rows, int64_t first_row, int64_t task, int worker,
                           const Target& target);
  void FillShared(const LogitRows& logits, int64_t first_row, const Target& target) const;
  void PrepareSums(int64_t num_tasks, const Target& target);
  void AddSums(int64_t num_tasks, const Target& target) const;

  // Constant after construction. The router uses the context, so it is declared after it.
  const LayerSpec layer_;
  const int gate_idx_;
  const std::vector<float> score_correction_;
  const std::shared_ptr<LinearContext> context_;
  const std::unique_ptr<Router> router_;

  std::vector<Router::Scratch> workers_;  // [threads of the context]
  HostBuffer y_;
  std::vector<double> task_sums_;  // [tasks, E]: sums of scores, when statistics are wanted
};

RouterGate::RouterGate(const LayerSpec& layer, int gate_idx, std::vector<float> score_correction,
                       std::shared_ptr<LinearContext> context, std::unique_ptr<Router> router)
    : layer_(layer),
      gate_idx_(gate_idx),
      score_correction_(std::move(score_correction)),
      context_(std::move(context)),
      router_(std::move(router)) {
  for (int i = 0; i < context_->num_threads(); ++i) workers_.emplace_back(context_.get());
}

absl::Status RouterGate::CheckRows(ConstMatrixView rows) const {
  if (Accepts(rows.dtype) && rows.num_cols == layer_.hidden_dim) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "gate of layer ", layer_.name, ": rows are ", std::string(DTypeName(rows.dtype)), " of width ", rows.num_cols,
      ", expected ", Accepts(DType::kBF16) ? "fp32 or bf16" : "fp32", " of width ", layer_.hidden_dim));
}

absl::Status RouterGate::CheckTarget(int64_t num_rows, int64_t first_row, const Target& target) const {
  const int top_k = target.spec.top_k;
  const Routing& routing = *target.routing;
  const auto refuse = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat("gate of layer ", layer_.name, ": ", what));
  };
  if (top_k < 1 || top_k > layer_.num_experts) {
    return refuse(absl::StrCat("top_k is ", top_k, ", expected 1 to ", layer_.num_experts));
  }
  if (routing.top_k < top_k + layer_.num_shared || first_row < 0 || first_row + num_rows > routing.num_rows) {
    return refuse(absl::StrCat("routing has ", routing.num_rows, " rows of ", routing.top_k,
                               " choices, expected room for rows ", first_row, " to ", first_row + num_rows, " of ",
                               top_k + layer_.num_shared));
  }
  if (target.stats == nullptr) return absl::OkStatus();
  const int64_t stats_rows = target.stats->best_score.size(), stats_experts = target.stats->score_sum.size();
  if (stats_rows < first_row + num_rows || stats_experts != layer_.num_experts) {
    return refuse(absl::StrCat("score statistics have ", stats_rows, " rows and ", stats_experts, " experts, expected ",
                               first_row + num_rows, " and ", layer_.num_experts));
  }
  return absl::OkStatus();
}

// The largest power of two in [kMinTaskRows, largest] that still gives `num_tasks` tasks; kMinTaskRows if there is
// none.
int64_t TaskRows(int64_t num_rows, int64_t num_tasks, int64_t largest) {
  int64_t task_rows = kMinTaskRows;
  while (2 * task_rows <= largest && 2 * task_rows * num_tasks <= num_rows) task_rows *= 2;
  return task_rows;
}

Shares RouterGate::ShareOut(ConstMatrixView rows) const {
  const int64_t num_products = rows.num_rows * router_->products_per_row();
  const int64_t unshared_ns = router_->packed_bytes(rows.dtype) / kRouterBytesPerNs + num_products / kProductsPerNs;
  const int64_t largest = std::clamp<int64_t>(kTaskRowBytes / rows.row_bytes(), kMinTaskRows, kMaxTaskRows);
  if (context_->num_threads() == 1) return {largest};
  if (unshared_ns <= kMaxUnsharedNs) return {std::max<int64_t>(rows.num_rows, 1)};
  const int64_t num_tasks = kTasksPerThread * context_->num_threads();
  // With blocks of this many rows, each read of the router's weights already serves enough rows.
  if (rows.num_rows >= num_tasks * std::min(kSharedTaskRows / 2, largest)) {
    return {TaskRows(rows.num_rows, num_tasks, largest)};
  }
  const int64_t num_row_blocks = (num_tasks + router_->num_slices() - 1) / router_->num_slices();
  return {TaskRows(rows.num_rows, num_row_blocks, std::min(kSharedTaskRows, largest)), /*by_slice=*/true};
}

int64_t NumTasks(int64_t num_rows, int64_t task_rows) { return (num_rows + task_rows - 1) / task_rows; }

absl::Status RouterGate::RouteByRows(ConstMatrixView rows, int64_t task_rows, int64_t first_row, const Target& target) {
  const int64_t num_tasks = NumTasks(rows.num_rows, task_rows);
  PrepareSums(num_tasks, target);
  FirstError error;
  context_->pool().Run(num_tasks, [&](int64_t task, int worker) {
    const int64_t begin = task * task_rows;
    const ConstMatrixView block = rows.Rows(begin, std::min(task_rows, rows.num_rows - begin));
    HostBuffer& buffer = workers_[worker].y;
    buffer.EnsureSize(block.num_rows * router_->first_width() * sizeof(float));
    float* const y = reinterpret_cast<float*>(buffer.data());
    absl::Status status = router_->RunSlices(block, 0, router_->num_slices(), y, &workers_[worker]);
    if (status.ok()) status = SelectBlock(y, block.num_rows, first_row + begin, task, worker, target);
    error.Add(status);
  });
  AddSums(num_tasks, target);
  return error.Take();
}

absl::Status RouterGate::RouteBySlices(ConstMatrixView rows, int64_t task_rows, int64_t first_row,
                                       const Target& target) {
  y_.EnsureSize(rows.num_rows * router_->first_width() * sizeof(float));
  float* const y = reinterpret_cast<float*>(y_.data());
  const int64_t num_row_blocks = NumTasks(rows.num_rows, task_rows);
  FirstError error;
  context_->pool().Run(num_row_blocks * router_->num_slices(), [&](int64_t task, int worker) {
    const int64_t begin = task % num_row_blocks * task_rows;
    const ConstMatrixView block = rows.Rows(begin, std::min(task_rows, rows.num_rows - begin));
    const int slice = static_cast<int>(task / num_row_blocks);
    error.Add(router_->RunSlices(block, slice, 1, y + begin * router_->first_width(), &workers_[worker]));
  });
  SY_RETURN_IF_ERROR(error.Take());
  return Select(y, rows.num_rows, first_row, target);
}

// Runs the second step for all rows of y.
absl::Status RouterGate::Select(float* y, int64_t num_rows, int64_t first_row, const Target& target) {
  const int64_t task_rows = num_rows <= kMaxSelectedByCaller ? kMaxSelectedByCaller : kSelectedRowsPerTask;
  const int64_t num_tasks = NumTasks(num_rows, task_rows);
  PrepareSums(num_tasks, target);
  FirstError error;
  context_->pool().Run(num_tasks, [&](int64_t task, int worker) {
    const int64_t begin = task * task_rows;
    error.Add(SelectBlock(y + begin * router_->first_width(), std::min(task_rows, num_rows - begin), first_row + begin,
                          task, worker, target));
  });
  AddSums(num_tasks, target);
  return error.Take();
}

// Takes some rows from the router's first step to the routing.
absl::Status RouterGate::SelectBlock(float* y, int64_t num_rows, int64_t first_row, int64_t task, int worker,
                                     const Target& target) {
  SY_ASSIGN_OR_RETURN(const LogitRows logits, router_->Finish(y, num_rows, &workers_[worker]));
  SelectExperts(target.spec, score_correction_, logits, first_row, target.routing);
  FillShared(logits, first_row, target);
  if (target.stats != nullptr) {
    AddScores(target.spec.scoring, logits, &target.stats->best_score[first_row],
              &task_sums_[task * layer_.num_experts]);
  }
  return absl::OkStatus();
}

// Fills the columns behind the gate's own.
void RouterGate::FillShared(const LogitRows& logits, int64_t first_row, const Target& target) const {
  const int64_t top_k = target.spec.top_k, stride = target.routing->top_k;
  if (stride == top_k) return;
  for (int64_t i = 0; i < logits.num_rows; ++i) {
    int32_t* const expert_idx = &target.routing->expert_idx[(first_row + i) * stride];
    float* const weight = &target.routing->weight[(first_row + i) * stride];
    const float shared_weight =
        router_->has_shared_gate() ? 1.0f / (1.0f + std::exp(-logits.row(i)[layer_.num_experts])) : 1.0f;
    for (int64_t j = top_k; j < stride; ++j) {
      const bool is_shared = j < top_k + layer_.num_shared;
      expert_idx[j] = is_shared ? static_cast<int32_t>(layer_.num_experts + j - top_k) : -1;
      weight[j] = is_shared ? shared_weight : 0.0f;
    }
  }
}

// Every task sums its own rows, and the sums are added up in the order of tasks, so that no result depends on which
// thread was faster.
void RouterGate::PrepareSums(int64_t num_tasks, const Target& target) {
  if (target.stats != nullptr) task_sums_.assign(num_tasks * layer_.num_experts, 0.0);
}

void RouterGate::AddSums(int64_t num_tasks, const Target& target) const {
  if (target.stats == nullptr) return;
  for (int64_t task = 0; task < num_tasks; ++task) {
    for (int e = 0; e < layer_.num_experts; ++e) {
      target.stats->score_sum[e] += task_sums_[task * layer_.num_experts + e];
    }
  }
}

absl::Status RouterGate::Route(ConstMatrixView rows, int64_t first_row, int top_k, Routing* routing,
                               ScoreStats* stats) {
  Target target{layer_.gate_at(gate_idx_), routing, stats};
  if (top_k != 0) target.spec.top_k = top_k;
  SY_RETURN_IF_ERROR(CheckRows(rows));
  SY_RETURN_IF_ERROR(CheckTarget(rows.num_rows, first_row, target));
  const Shares shares = ShareOut(rows);
  if (shares.by_slice) return RouteBySlices(rows, shares.task_rows, first_row, target);
  return RouteByRows(rows, shares.task_rows, first_row, target);
}

absl::Status CheckGroups(const GateSpec& gate, int num_experts) {
  if (gate.num_groups < 1 || num_experts % gate.num_groups != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_groups is ", gate.num_groups, ", expected a divisor of ", num_experts));
  }
  if (gate.groups_kept < 1 || gate.groups_kept > gate.num_groups) {
    return absl::InvalidArgumentError(
        absl::StrCat("groups_kept is ", gate.groups_kept, ", expected 1 to ", gate.num_groups));
  }
  return absl::OkStatus();
}

absl::Status CheckCorrection(const std::vector<float>& correction, int num_experts) {
  if (correction.empty()) return absl::OkStatus();
  if (static_cast<int>(correction.size()) != num_experts) {
    return absl::InvalidArgumentError(
        absl::StrCat("score correction has ", correction.size(), " values, expected ", num_experts));
  }
  for (int e = 0; e < num_experts; ++e) {
    if (std::isfinite(correction[e])) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("score correction of expert ", e, " is ", correction[e], ", expected a finite number"));
  }
  return absl::OkStatus();
}

absl::Status CheckSpec(const LayerSpec& layer, int gate_idx, const RouterWeights& router) {
  if (gate_idx < 0 || gate_idx >= layer.num_gates()) {
    return absl::InvalidArgumentError(absl::StrCat("gate ", gate_idx, " of ", layer.num_gates()));
  }
  const GateSpec& gate = layer.gate_at(gate_idx);
  if (gate.top_k < 1 || gate.top_k > layer.num_experts) {
    return absl::InvalidArgumentError(absl::StrCat("top_k is ", gate.top_k, ", expected 1 to ", layer.num_experts));
  }
  SY_RETURN_IF_ERROR(CheckGroups(gate, layer.num_experts));
  return CheckCorrection(router.score_correction, layer.num_experts);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Gate>> Gate::Create(const LayerSpec& layer, int gate_idx, const RouterWeights& router,
                                                   std::shared_ptr<LinearContext> context) {
  const std::string where = absl::StrCat("gate of layer ", layer.name);
  SY_RETURN_IF_ERROR(Annotate(CheckSpec(layer, gate_idx, router), where));
  if (context == nullptr) {
    SY_ASSIGN_OR_RETURN(context, LinearContext::Create(/*num_threads=*/0));
  }
  auto packed = Router::Create(context.get(), layer, router);
  SY_RETURN_IF_ERROR(Annotate(packed.status(), where));
  return std::make_unique<RouterGate>(layer, gate_idx, router.score_correction, std::move(context),
                                      std::move(packed).value());
}

}  // namespace switchyard
