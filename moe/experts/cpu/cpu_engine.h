// ExpertEngine on CPU cores: oneDNN for fp32 and bf16, OpenBLAS for fp64.
#pragma once

#include <memory>
#include <string>

#include "moe/experts/expert_engine.h"

namespace switchyard {

struct CpuEngineOptions {
  // fp64, fp32 or bf16.
  DType compute_dtype = DType::kF32;

  // Number of compute threads; 0 for every core that the process may run on. Divide the cores among the workers of a
  // host.
  int num_threads = 0;

  // Whether loading the first expert of each new shape also compiles the code for every number of rows (0.1 to 0.2 s
  // and up to 40 MiB per shape). Otherwise a step compiles the code for each number of rows that it is the first to use
  // (0.3 ms each). For servers.
  bool compile_at_load = false;

  // Name of the custom expert that computes instead of ExpertSpec's formula (custom_expert.h); empty for none.
  std::string custom_expert = {};
};

// UNIMPLEMENTED for compute types that the CPU or its library lacks; NOT_FOUND, with the registered names, for a custom
// expert that is not registered.
absl::StatusOr<std::unique_ptr<ExpertEngine>> CreateCpuEngine(const CpuEngineOptions& options);

}  // namespace switchyard
