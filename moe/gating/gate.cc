#include "moe/gating/gate.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/linear/packed_linear.h"
#include "moe/linear/parallel.h"
#include "moe/tensor/buffer.h"

namespace switchyard {
namespace {

constexpr int64_t kRowsPerBlock = 1024;  // rows whose logits exist at a time
constexpr int64_t kRowsPerTask = 64;     // rows one thread selects for at a time

class RouterGate final : public Gate {
 public:
  RouterGate(const LayerSpec& layer, std::shared_ptr<LinearContext> context)
      : layer_(layer), context_(std::move(context)) {}

  absl::Status Pack(const HostMatrix& router);

  bool Accepts(DType dtype) const override { return LinearFor(dtype) != nullptr; }
  absl::Status Route(ConstMatrixView rows, int64_t first_row, Routing* routing) override;

 private:
  const PackedLinear* LinearFor(DType dtype) const;
  absl::Status CheckArguments(ConstMatrixView rows, int64_t first_row, const Routing& routing) const;
  void Select(ConstMatrixView logits, int64_t first_row, Routing* routing) const;

  // Constant after Pack. The linears use the context, so they come after it.
  const LayerSpec layer_;
  const std::shared_ptr<LinearContext> context_;
  std::unique_ptr<PackedLinear> fp32_;
  std::unique_ptr<PackedLinear> bf16_;  // null when fp32 alone is accepted

  HostBuffer logits_;
};

absl::Status RouterGate::Pack(const HostMatrix& router) {
  const WeightView weight{router.view(), /*transposed=*/false};
  SY_ASSIGN_OR_RETURN(fp32_, PackedLinear::Create(context_.get(), DType::kF32, weight, {}));
  if (router.dtype != DType::kBF16) return absl::OkStatus();
  auto bf16 = PackedLinear::Create(context_.get(), DType::kBF16, weight, {});
  // Without bf16 code for this CPU the rows come as fp32.
  if (bf16.status().code() == absl::StatusCode::kUnimplemented) return absl::OkStatus();
  SY_ASSIGN_OR_RETURN(bf16_, std::move(bf16));
  return absl::OkStatus();
}

const PackedLinear* RouterGate::LinearFor(DType dtype) const {
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

void RouterGate::Select(ConstMatrixView logits, int64_t first_row, Routing* routing) const {
  const int64_t num_tasks = (logits.num_rows + kRowsPerTask - 1) / kRowsPerTask;
  ParallelFor(context_->num_threads(), num_tasks, [&](int64_t task) {
    const int64_t begin = task * kRowsPerTask;
    const ConstMatrixView part = logits.Rows(begin, std::min(kRowsPerTask, logits.num_rows - begin));
    SelectExperts(layer_.gate, part.as<float>(), part.num_rows, layer_.num_experts, first_row + begin, routing);
  });
}

absl::Status RouterGate::Route(ConstMatrixView rows, int64_t first_row, Routing* routing) {
  SY_RETURN_IF_ERROR(CheckArguments(rows, first_row, *routing));
  const PackedLinear* linear = LinearFor(rows.dtype);
  for (int64_t begin = 0; begin < rows.num_rows; begin += kRowsPerBlock) {
    const int64_t count = std::min(kRowsPerBlock, rows.num_rows - begin);
    MatrixView logits{nullptr, DType::kF32, count, layer_.num_experts};
    logits_.EnsureSize(logits.size_bytes());
    logits.data = logits_.data();
    SY_RETURN_IF_ERROR(linear->Run(rows.Rows(begin, count), {}, logits));
    Select(logits, first_row + begin, routing);
  }
  return absl::OkStatus();
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
