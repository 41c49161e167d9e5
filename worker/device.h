// Which device a worker computes on, and what it brings: engines and an exchange.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "moe/exchange/communicator.h"
#include "moe/experts/expert_engine.h"
#include "worker/options.h"
#include "worker/shard.h"

namespace switchyard {

// Turns "auto" into a device this host and build have, and says in the log which; InvalidArgument or FailedPrecondition
// for one that they have not.
absl::StatusOr<std::string> ResolveDevice(const std::string& wanted);

// Names of the compute types that the device's engine has.
std::vector<std::string> ComputeDTypes(const std::string& device);

// "gloo" or "nccl".
std::string ExchangeName(const std::string& device);

EngineFactory MakeEngineFactory(const WorkerOptions& options, const std::string& device);
std::unique_ptr<CommunicatorFactory> MakeExchange(const WorkerOptions& options, const std::string& device);

}  // namespace switchyard
