#include "worker/device.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <optional>

#include "base/logging/logging.h"
#include "moe/exchange/gloo/gloo_communicator.h"
#include "moe/exchange/mesh/mesh_address.h"
#include "moe/exchange/shm/shm_communicator.h"
#include "moe/exchange/tcp/tcp_communicator.h"
#include "moe/experts/cpu/cpu_engine.h"
#include "worker/accelerators.h"

namespace switchyard {
namespace {

constexpr int kCpu = -1;

// A front's worker that must not spin for its link must not spin for its peers.
std::chrono::microseconds ExchangeSpin(const WorkerOptions& options) {
  const std::chrono::microseconds spin = ShmOptions().spin;
  return options.local_index < 0 ? spin : std::min(spin, std::chrono::microseconds(options.link_spin_us));
}

class Cpu final : public Device {
 public:
  explicit Cpu(const WorkerOptions& options) : options_(options) {}

  std::string name() const override { return "cpu"; }
  std::vector<std::string> compute_dtypes() const override { return {"fp64", "fp32", "bf16"}; }
  std::vector<std::string> exchange_names() const override {
    if (HostIdentity().empty()) return {"tcp", "gloo"};
    return {"shm", "tcp", "gloo"};
  }
  absl::StatusOr<std::unique_ptr<ExpertEngine>> MakeEngine(DType compute_dtype) override {
    return CreateCpuEngine({.compute_dtype = compute_dtype,
                            .num_threads = options_.num_threads,
                            .compile_at_load = true,
                            .custom_expert = options_.custom_expert});
  }
  absl::StatusOr<std::unique_ptr<CommunicatorFactory>> MakeExchange(const std::string& name) override {
    if (name == "shm") return CreateShmFactory({.spin = ExchangeSpin(options_)});
    if (name != "tcp" && name != "gloo") {
      return absl::InvalidArgumentError(absl::StrCat("this worker has no exchange '", name, "'"));
    }
    SY_ASSIGN_OR_RETURN(const std::string address, ExchangeAddress(options_));
    if (name == "tcp") return CreateTcpFactory({.bind_host = address});
    return CreateGlooFactory({.bind_host = address});
  }

 private:
  const WorkerOptions options_;
};

// N of "cuda:N".
std::optional<int> NumberOf(const std::string& device) {
  constexpr size_t kPrefix = 5;
  int number = 0;
  const char* const end = device.data() + device.size();
  if (device.size() <= kPrefix || device.compare(0, kPrefix, "cuda:") != 0) return std::nullopt;
  const auto [stop, error] = std::from_chars(device.data() + kPrefix, end, number);
  if (error != std::errc() || stop != end || number < 0) return std::nullopt;
  return number;
}

absl::Status NoGpu(const std::string& device, const std::string& why) {
  return absl::FailedPreconditionError(absl::StrCat(
      "--device=", device, ": ", why, "; use --device=cpu, or --device=auto to take a GPU where there is one"));
}

absl::StatusOr<int> ChooseOwnGpu(const WorkerOptions& options, int num_gpus, const std::string& why_none) {
  if (num_gpus == 0) return NoGpu(options.device, why_none);
  if (options.num_local_workers > num_gpus) {
    return absl::FailedPreconditionError(absl::StrCat("--device=cuda: ", options.num_local_workers,
                                                      " workers need a GPU each, this host has ", num_gpus,
                                                      "; start at most --local_workers=", num_gpus));
  }
  return std::max(options.local_index, 0);
}

absl::StatusOr<int> ChooseAnyDevice(const WorkerOptions& options, int num_gpus, const std::string& why_none) {
  if (num_gpus > 0 && options.num_local_workers <= num_gpus) return std::max(options.local_index, 0);
  // All workers of a front make the same choice here, because they could not exchange rows otherwise.
  const std::string why =
      num_gpus == 0 ? why_none
                    : absl::StrCat(options.num_local_workers, " workers need a GPU each and this host has ", num_gpus);
  spdlog::info("--device=auto: {}, computing on the CPU", why);
  return kCpu;
}

absl::StatusOr<int> ChooseNumberedGpu(const WorkerOptions& options, int number, int num_gpus,
                                      const std::string& why_none) {
  if (num_gpus == 0) return NoGpu(options.device, why_none);
  if (number >= num_gpus) {
    return absl::FailedPreconditionError(
        absl::StrCat("--device=", options.device, ": this host has ", num_gpus, " GPUs, numbered from 0"));
  }
  if (options.num_local_workers > 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("--device=", options.device, ": ", options.num_local_workers,
                     " workers cannot share one GPU; --device=cuda gives each its own"));
  }
  return number;
}

}  // namespace

absl::StatusOr<int> ChooseGpu(const WorkerOptions& options, int num_gpus, const std::string& why_none) {
  if (options.device == "cpu") return kCpu;
  if (options.device == "auto") return ChooseAnyDevice(options, num_gpus, why_none);
  if (options.device == "cuda") return ChooseOwnGpu(options, num_gpus, why_none);
  if (const auto number = NumberOf(options.device); number.has_value()) {
    return ChooseNumberedGpu(options, *number, num_gpus, why_none);
  }
  return absl::InvalidArgumentError(absl::StrCat("--device=", options.device, ": expected auto, cpu, cuda or cuda:N"));
}

absl::StatusOr<std::unique_ptr<Device>> OpenDevice(const WorkerOptions& options) {
  const AcceleratorKind* const cuda = FindAccelerator("cuda");
  const int num_gpus = cuda == nullptr || options.device == "cpu" ? 0 : cuda->count();
  const std::string why_none =
      cuda == nullptr ? "this build has no GPU engine" : "this host has no GPU or no driver for it";
  SY_ASSIGN_OR_RETURN(const int gpu, ChooseGpu(options, num_gpus, why_none));
  if (gpu == kCpu) return std::make_unique<Cpu>(options);
  if (!options.custom_expert.empty()) {
    return absl::FailedPreconditionError(absl::StrCat("--custom_expert=", options.custom_expert,
                                                      ": custom experts compute on the CPU; add --device=cpu"));
  }
  return cuda->open(gpu, options);
}

}  // namespace switchyard
