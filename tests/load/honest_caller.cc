#include "tests/load/honest_caller.h"

#include <utility>

#include "base/clock.h"
#include "cli/compare.h"
#include "cli/payloads.h"

namespace switchyard {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);
// The pause that the server's grpc-retry-pushback-ms asks for.
constexpr std::chrono::milliseconds kPushback{50};
constexpr int kMaxRetries = 100;

HostMatrix FirstRows(const HostMatrix& matrix, int64_t num_rows) {
  const ConstMatrixView view = matrix.view().Rows(0, num_rows);
  HostMatrix copy = HostMatrix::Allocate(view.dtype, num_rows, view.num_cols);
  std::copy_n(view.data, num_rows * view.num_cols * static_cast<int64_t>(SizeOf(view.dtype)), copy.view().data);
  return copy;
}

}  // namespace

HonestWork GoldenWork(const std::string& model, const std::string& checkpoint, int layer, int64_t num_rows) {
  const auto tensor = [&](const char* what) {
    const std::string key = absl::StrCat("model.layers.", layer, ".mlp.", what);
    return FirstRows(LoadMatrix({checkpoint + "/golden.safetensors", key}).value(), num_rows);
  };
  return {model, absl::StrCat(layer), tensor("input"), tensor("output")};
}

absl::StatusOr<HonestWork> ObservedWork(const ServerProcess& server, const std::string& model, const std::string& layer,
                                        int64_t num_rows, int64_t hidden_dim) {
  HonestWork work{model, layer, FirstRows(*Payloads::Make(DType::kF32, num_rows, hidden_dim, 11).Get(0), num_rows), {}};
  SY_ASSIGN_OR_RETURN(ForwardResult result, server.Connect()->Forward({model, layer, std::as_const(work.rows).view()}));
  work.expected = std::move(result.rows);
  return work;
}

HonestCaller::HonestCaller(const ServerProcess& server, const HonestWork& work, std::chrono::milliseconds period)
    : work_(work), client_(server.Connect({.timeout = kPatience})), thread_([this, period] { Run(period); }) {}

HonestCaller::~HonestCaller() {
  stop_.store(true);
  thread_.join();
}

HonestReport HonestCaller::Take() {
  MutexLock lock(&mu_);
  return std::exchange(report_, HonestReport());
}

void HonestCaller::WaitForCalls(int64_t count) {
  MutexLock lock(&mu_);
  for (const int64_t wanted = num_calls_ + count; num_calls_ < wanted;) called_.Wait(&mu_);
}

void HonestCaller::Run(std::chrono::milliseconds period) {
  for (SteadyTime due = Clock::Real().Now(); !stop_.load();
       due = std::max(due + period, Clock::Real().Now() - period)) {
    std::this_thread::sleep_until(due);
    CallOnce(due);
  }
}

void HonestCaller::CallOnce(SteadyTime due) {
  int retries = 0;
  auto result = client_->Forward({work_.model, work_.layer, work_.rows.view()});
  while (absl::IsResourceExhausted(result.status()) && retries < kMaxRetries && !stop_.load()) {
    ++retries;
    std::this_thread::sleep_for(kPushback);
    result = client_->Forward({work_.model, work_.layer, work_.rows.view()});
  }
  const SteadyTime end = Clock::Real().Now();
  const bool right =
      result.ok() && Compare(result->rows.view(), work_.expected.view(), {1e-4, 1e-5}).within_tolerance();
  MutexLock lock(&mu_);
  report_.retries += retries;
  if (result.ok()) {
    ++report_.answered;
    report_.latency.Record(end - due);
    report_.wrong += !right;
  } else if (!stop_.load()) {
    if (report_.failed++ == 0) report_.first_failure = result.status().ToString();
  }
  ++num_calls_;
  called_.SignalAll();
}

}  // namespace switchyard
