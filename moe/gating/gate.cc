#include "moe/gating/gate.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "moe/base/mutex.h"
#include "moe/linear/sliced_linear.h"
#include "moe/linear/work_pool.h"
#include "moe/tensor/buffer.h"

namespace switchyard {
namespace {

constexpr int64_t kMinTaskRows = 16, kMaxTaskRows = 256;
constexpr int64_t kTaskRowBytes = 1 << 20;    // rows of a task: they stay in a core's cache for all slices
constexpr int64_t kSharedTaskRows = 64;       // rows of a task that computes one slice
constexpr int64_t kTasksPerThread = 2;        // fewer would leave threads idle at the end
constexpr int64_t kSelectedRowsPerTask = 16;  // rows of a task that only selects
constexpr int64_t kMaxSelectedByCaller = 32;  // rows that are selected for before a helper would be awake
constexpr int64_t kMaxUnsharedNs = 20000;     // what the caller does alone
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

class RouterGate final : public Gate {
 public:
  RouterGate(const LayerSpec& layer, std::shared_ptr<LinearContext> context)
      : layer_(layer), context_(std::move(context)) {}

  absl::Status Pack(const HostMatrix& router);

  bool Accepts(DType dtype) const override { return LinearFor(dtype) != nullptr; }
  absl::Status Route(ConstMatrixView rows, int64_t first_row, Routing* routing) override;

 private:
  // What one thread works in.
  struct Worker {
    explicit Worker(LinearContext* context) : linear(context) {}
    SlicedLinear::Scratch linear;
    HostBuffer logits;
  };

  const SlicedLinear* LinearFor(DType dtype) const;
  absl::Status CheckArguments(ConstMatrixView rows, int64_t first_row, const Routing& routing) const;
  Shares ShareOut(ConstMatrixView rows, const SlicedLinear& linear) const;
  absl::Status RouteBlock(const SlicedLinear& linear, ConstMatrixView rows, int64_t first_row, Worker* worker,
                          Routing* routing) const;
  absl::Status RouteByRows(const SlicedLinear& linear, ConstMatrixView rows, int64_t task_rows, int64_t first_row,
                           Routing* routing);
  absl::Status RouteBySlices(const SlicedLinear& linear, ConstMatrixView rows, int64_t task_rows, int64_t first_row,
                             Routing* routing);
  void Select(const float* logits, int64_t num_rows, int64_t first_row, Routing* routing);

  // Constant after Pack. The linears use the context, so they come after it.
  const LayerSpec layer_;
  const std::shared_ptr<LinearContext> context_;
  std::unique_ptr<SlicedLinear> fp32_;
  std::unique_ptr<SlicedLinear> bf16_;  // null when fp32 alone is accepted

  std::vector<Worker> workers_;  // [threads of the context]
  HostBuffer logits_;
};

absl::Status RouterGate::Pack(const HostMatrix& router) {
  for (int i = 0; i < context_->num_threads(); ++i) workers_.emplace_back(context_.get());
  SY_ASSIGN_OR_RETURN(fp32_, SlicedLinear::Create(context_.get(), DType::kF32, router.view()));
  if (router.dtype != DType::kBF16) return absl::OkStatus();
  auto bf16 = SlicedLinear::Create(context_.get(), DType::kBF16, router.view());
  // Without bf16 code for this CPU the rows come as fp32.
  if (bf16.status().code() == absl::StatusCode::kUnimplemented) return absl::OkStatus();
  SY_ASSIGN_OR_RETURN(bf16_, std::move(bf16));
  return absl::OkStatus();
}

const SlicedLinear* RouterGate::LinearFor(DType dtype) const {
  if (dtype == DType::kF32) return fp32_.get();
  return dtype == DType::kBF16 ? bf16_.get() : nullptr;
}

absl::Status RouterGate::CheckArguments(ConstMatrixView rows, int64_t first_row, const Routing& routing) const {
  if (!Accepts(rows.dtype) || rows.num_cols != layer_.hidden_dim) {
    return absl::InvalidArgumentError(absl::StrCat(
        "gate of layer ", layer_.name, ": rows are ", std::string(DTypeName(rows.dtype)), " of width ", rows.num_cols,
        ", expected ", bf16_ != nullptr ? "fp32 or bf16" : "fp32", " of width ", layer_.hidden_dim));
  }
  if (routing.top_k != layer_.gate.top_k || first_row < 0 || first_row + rows.num_rows > routing.num_rows) {
    return absl::InvalidArgumentError(absl::StrCat(
        "gate of layer ", layer_.name, ": routing has ", routing.num_rows, " rows of ", routing.top_k,
        " choices, expected room for rows ", first_row, " to ", first_row + rows.num_rows, " of ", layer_.gate.top_k));
  }
  return absl::OkStatus();
}

// The largest power of two in [kMinTaskRows, largest] that leaves `num_tasks` tasks, where there is one.
int64_t TaskRows(int64_t num_rows, int64_t num_tasks, int64_t largest) {
  int64_t task_rows = kMinTaskRows;
  while (2 * task_rows <= largest && 2 * task_rows * num_tasks <= num_rows) task_rows *= 2;
  return task_rows;
}

Shares RouterGate::ShareOut(ConstMatrixView rows, const SlicedLinear& linear) const {
  const int64_t num_products = rows.num_rows * layer_.num_experts * layer_.hidden_dim;
  const int64_t unshared_ns = linear.packed_bytes() / kRouterBytesPerNs + num_products / kProductsPerNs;
  const int64_t largest = std::clamp<int64_t>(kTaskRowBytes / rows.row_bytes(), kMinTaskRows, kMaxTaskRows);
  if (context_->num_threads() == 1) return {largest};
  if (unshared_ns <= kMaxUnsharedNs) return {std::max<int64_t>(rows.num_rows, 1)};
  const int64_t num_tasks = kTasksPerThread * context_->num_threads();
  // Rows in blocks of this many read the router often enough already.
  if (rows.num_rows >= num_tasks * std::min(kSharedTaskRows / 2, largest)) {
    return {TaskRows(rows.num_rows, num_tasks, largest)};
  }
  const int64_t num_row_blocks = (num_tasks + linear.num_slices() - 1) / linear.num_slices();
  return {TaskRows(rows.num_rows, num_row_blocks, std::min(kSharedTaskRows, largest)), /*by_slice=*/true};
}

absl::Status RouterGate::RouteBlock(const SlicedLinear& linear, ConstMatrixView rows, int64_t first_row, Worker* worker,
                                    Routing* routing) const {
  worker->logits.EnsureSize(rows.num_rows * layer_.num_experts * sizeof(float));
  float* const logits = reinterpret_cast<float*>(worker->logits.data());
  SY_RETURN_IF_ERROR(linear.Run(rows, 0, linear.num_slices(), logits, &worker->linear));
  SelectExperts(layer_.gate, logits, rows.num_rows, layer_.num_experts, first_row, routing);
  return absl::OkStatus();
}

absl::Status RouterGate::RouteByRows(const SlicedLinear& linear, ConstMatrixView rows, int64_t task_rows,
                                     int64_t first_row, Routing* routing) {
  FirstError error;
  context_->pool().Run((rows.num_rows + task_rows - 1) / task_rows, [&](int64_t task, int worker) {
    const int64_t begin = task * task_rows;
    const ConstMatrixView block = rows.Rows(begin, std::min(task_rows, rows.num_rows - begin));
    error.Add(RouteBlock(linear, block, first_row + begin, &workers_[worker], routing));
  });
  return error.Take();
}

absl::Status RouterGate::RouteBySlices(const SlicedLinear& linear, ConstMatrixView rows, int64_t task_rows,
                                       int64_t first_row, Routing* routing) {
  logits_.EnsureSize(rows.num_rows * layer_.num_experts * sizeof(float));
  float* const logits = reinterpret_cast<float*>(logits_.data());
  const int64_t num_row_blocks = (rows.num_rows + task_rows - 1) / task_rows;
  FirstError error;
  context_->pool().Run(num_row_blocks * linear.num_slices(), [&](int64_t task, int worker) {
    const int64_t begin = task % num_row_blocks * task_rows;
    const ConstMatrixView block = rows.Rows(begin, std::min(task_rows, rows.num_rows - begin));
    const int slice = static_cast<int>(task / num_row_blocks);
    error.Add(linear.Run(block, slice, 1, logits + begin * layer_.num_experts, &workers_[worker].linear));
  });
  SY_RETURN_IF_ERROR(error.Take());
  Select(logits, rows.num_rows, first_row, routing);
  return absl::OkStatus();
}

void RouterGate::Select(const float* logits, int64_t num_rows, int64_t first_row, Routing* routing) {
  const int64_t task_rows = num_rows <= kMaxSelectedByCaller ? kMaxSelectedByCaller : kSelectedRowsPerTask;
  context_->pool().Run((num_rows + task_rows - 1) / task_rows, [&](int64_t task, int) {
    const int64_t begin = task * task_rows;
    SelectExperts(layer_.gate, logits + begin * layer_.num_experts, std::min(task_rows, num_rows - begin),
                  layer_.num_experts, first_row + begin, routing);
  });
}

absl::Status RouterGate::Route(ConstMatrixView rows, int64_t first_row, Routing* routing) {
  SY_RETURN_IF_ERROR(CheckArguments(rows, first_row, *routing));
  const SlicedLinear& linear = *LinearFor(rows.dtype);
  const Shares shares = ShareOut(rows, linear);
  if (shares.by_slice) return RouteBySlices(linear, rows, shares.task_rows, first_row, routing);
  return RouteByRows(linear, rows, shares.task_rows, first_row, routing);
}

absl::Status CheckSpec(const LayerSpec& layer, const HostMatrix& router) {
  if (layer.gate.top_k < 1 || layer.gate.top_k > layer.num_experts) {
    return absl::InvalidArgumentError(absl::StrCat("gate of layer ", layer.name, ": top_k is ", layer.gate.top_k,
                                                   ", expected 1 to ", layer.num_experts));
  }
  if (router.num_rows != layer.num_experts || router.num_cols != layer.hidden_dim) {
    return absl::InvalidArgumentError(absl::StrCat("gate of layer ", layer.name, ": router is [", router.num_rows, ", ",
                                                   router.num_cols, "], expected [", layer.num_experts, ", ",
                                                   layer.hidden_dim, "]"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Gate>> Gate::Create(const LayerSpec& layer, const RouterWeights& router,
                                                   std::shared_ptr<LinearContext> context) {
  SY_RETURN_IF_ERROR(CheckSpec(layer, router.weight));
  if (context == nullptr) {
    SY_ASSIGN_OR_RETURN(context, LinearContext::Create(/*num_threads=*/0));
  }
  auto gate = std::make_unique<RouterGate>(layer, std::move(context));
  SY_RETURN_IF_ERROR(Annotate(gate->Pack(router.weight), absl::StrCat("gate of layer ", layer.name)));
  return gate;
}

}  // namespace switchyard
