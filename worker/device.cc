#include "worker/device.h"

#include "moe/base/logging.h"
#include "moe/exchange/gloo/gloo_communicator.h"
#include "moe/experts/cpu/cpu_engine.h"

namespace switchyard {

absl::StatusOr<std::string> ResolveDevice(const std::string& wanted) {
  if (wanted == "cpu") return wanted;
  if (wanted == "auto") {
    spdlog::info("--device=auto: this build has no GPU engine, computing on the CPU");
    return std::string("cpu");
  }
  if (wanted == "cuda" || wanted.rfind("cuda:", 0) == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("--device=", wanted, ": this build has no GPU engine; use --device=cpu or --device=auto"));
  }
  return absl::InvalidArgumentError(absl::StrCat("--device=", wanted, ": expected auto, cpu or cuda:N"));
}

std::vector<std::string> ComputeDTypes(const std::string&) { return {"fp64", "fp32", "bf16"}; }

std::string ExchangeName(const std::string&) { return "gloo"; }

EngineFactory MakeEngineFactory(const WorkerOptions& options, const std::string&) {
  const int num_threads = options.num_threads;
  return [num_threads](DType compute_dtype) {
    return CreateCpuEngine({.compute_dtype = compute_dtype, .num_threads = num_threads, .compile_at_load = true});
  };
}

std::unique_ptr<CommunicatorFactory> MakeExchange(const WorkerOptions& options, const std::string&) {
  return CreateGlooFactory({.bind_host = options.exchange_host});
}

}  // namespace switchyard
