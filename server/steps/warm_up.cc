#include "server/steps/warm_up.h"

#include <algorithm>
#include <optional>
#include <random>

#include "base/clock.h"
#include "base/logging/logging.h"
#include "base/mutex.h"
#include "base/tensor/buffer.h"
#include "base/tensor/convert.h"

namespace switchyard {
namespace {

constexpr absl::Duration kPollPeriod = absl::Milliseconds(50);

// Tells the waiting thread how a request ended. The request shares it, because it may outlive the wait.
class Outcome {
 public:
  void Set(absl::Status status) {
    MutexLock lock(&mu_);
    status_ = std::move(status);
    changed_.SignalAll();
  }
  std::optional<absl::Status> WaitFor(absl::Duration timeout) {
    MutexLock lock(&mu_);
    if (!status_.has_value()) changed_.WaitFor(&mu_, absl::ToChronoNanoseconds(timeout));
    return status_;
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::optional<absl::Status> status_ ABSL_GUARDED_BY(mu_);
};

// Random rows, uniform with variance 1, like hidden states after the norm in front of the layer. They repeat one pool
// of random numbers, because making random numbers takes longer than steps. The pool's length is prime so that rows
// differ.
HostBuffer RandomRows(int64_t num_elements, DType dtype) {
  constexpr size_t kPoolSize = 65'521;
  std::vector<float> values(kPoolSize);
  std::minstd_rand random(1);
  std::uniform_real_distribution<float> uniform(-1.73f, 1.73f);
  for (float& value : values) value = uniform(random);
  HostBuffer rows(num_elements * SizeOf(dtype));
  for (size_t begin = 0; begin < static_cast<size_t>(num_elements); begin += kPoolSize) {
    ConvertElements(DType::kF32, reinterpret_cast<const std::byte*>(values.data()), dtype,
                    rows.data() + begin * SizeOf(dtype), std::min(kPoolSize, num_elements - begin));
  }
  return rows;
}

std::shared_ptr<Request> MakeRequest(const std::shared_ptr<ServedLayer>& layer, int64_t num_rows) {
  const DType dtype = layer->on_group.compute_dtype;
  const auto rows = std::make_shared<const HostBuffer>(RandomRows(num_rows * layer->spec.hidden_dim, dtype));
  auto request = std::make_shared<Request>();
  request->ask.layer = layer;
  request->ask.dtype = dtype;
  request->ask.num_rows = num_rows;
  request->ask.is_warm_up = true;
  request->ask.top_k = layer->spec.gate_at(0).top_k;
  request->ask.capacity = layer->spec.gate_at(0).capacity;
  request->progress.rows = ChunkedRows({{rows->data(), rows->size()}}, rows);
  return request;
}

std::string NameOf(const ServedLayer& layer) { return absl::StrCat(layer.model, ".", layer.spec.name); }

// Enqueues a request, and waits for its answer or for a reason to stop.
absl::Status RunStep(const std::shared_ptr<Request>& request, const WarmUpPort& port) {
  const auto outcome = std::make_shared<Outcome>();
  request->ask.arrival = Clock::Real().Now();
  request->ask.done = [outcome](absl::Status status) { outcome->Set(std::move(status)); };
  port.enqueue(request);
  while (true) {
    if (const auto status = outcome->WaitFor(kPollPeriod); status.has_value()) {
      return Annotate(*status,
                      absl::StrCat("warm-up of ", NameOf(*request->ask.layer), ", ", request->ask.num_rows, " rows"));
    }
    if (absl::Status stop = port.should_stop(); !stop.ok()) {
      port.cancel(request);
      return stop;
    }
  }
}

// Runs the steps, as long as there is time.
class Runner {
 public:
  Runner(const WarmUpOptions& options, const WarmUpPort& port)
      : options_(options), port_(port), begin_(options.clock->Now()) {}

  bool has_time() const { return left() >= SteadyTime::duration::zero(); }
  int num_steps() const { return num_steps_; }
  double seconds() const { return MicrosBetween(begin_, options_.clock->Now()) / 1e6; }

  // Returns how long the step took.
  absl::StatusOr<SteadyTime::duration> Run(const std::shared_ptr<ServedLayer>& layer, int64_t num_rows) {
    const SteadyTime begin = options_.clock->Now();
    SY_RETURN_IF_ERROR(RunStep(MakeRequest(layer, num_rows), port_));
    ++num_steps_;
    return options_.clock->Now() - begin;
  }

  // Runs a step of `full_rows`, after smaller ones if it may take longer than the time that is left. A step of one row
  // took `took`. Returns whether the full step was run.
  absl::StatusOr<bool> Fill(const std::shared_ptr<ServedLayer>& layer, int64_t full_rows, SteadyTime::duration took) {
    for (int64_t num_rows = 1; num_rows < full_rows;) {
      // The time grows with the rows at most in proportion.
      int64_t next = full_rows;
      if (took / num_rows * full_rows > left()) next = std::min(kGrowth * num_rows, full_rows);
      if (took / num_rows * next > left()) return false;
      num_rows = next;
      SY_ASSIGN_OR_RETURN(took, Run(layer, num_rows));
    }
    return true;
  }

 private:
  static constexpr int64_t kGrowth = 8;

  SteadyTime::duration left() const { return begin_ + options_.time_limit - options_.clock->Now(); }

  const WarmUpOptions& options_;
  const WarmUpPort& port_;
  const SteadyTime begin_;
  int num_steps_ = 0;
};

}  // namespace

absl::Status WarmUp(const WarmUpOptions& options, const std::vector<std::shared_ptr<ServedLayer>>& layers,
                    const WarmUpPort& port) {
  Runner runner(options, port);
  std::vector<SteadyTime::duration> took;  // by layer: its step of one row
  for (const std::shared_ptr<ServedLayer>& layer : layers) {
    if (!runner.has_time()) break;
    SY_ASSIGN_OR_RETURN(took.emplace_back(), runner.Run(layer, 1));
  }
  size_t num_full = 0;
  for (size_t i = 0; i < took.size() && took.size() == layers.size() && runner.has_time(); ++i) {
    const int64_t full_rows = std::min(options.full_rows, layers[i]->on_group.max_batch_rows);
    SY_ASSIGN_OR_RETURN(const bool is_full, runner.Fill(layers[i], full_rows, took[i]));
    num_full += is_full ? 1 : 0;
  }
  if (num_full < layers.size()) {
    spdlog::warn("warm-up: {} of {} layers with full steps in {:.2f} s; the first requests warm up the rest", num_full,
                 layers.size(), runner.seconds());
  }
  spdlog::info("warm-up: {} steps in {:.2f} s", runner.num_steps(), runner.seconds());
  return absl::OkStatus();
}

}  // namespace switchyard
