// From a decoded ModelInferRequest to the request that the front runs, with every field checked on the way.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "moe/base/status.h"
#include "server/request.h"
#include "server/rpc/kserve_infer_codec.h"
#include "server/rpc/kserve_models.h"

namespace switchyard {

enum class InferOutput { kRows, kExpertIds, kExpertWeights };

struct InferRequest {
  std::shared_ptr<Request> request;  // without output and done
  int64_t num_bytes = 0;             // of its rows
  std::vector<InferOutput> outputs;  // in the order they were asked for
  int64_t timeout_us = 0;            // 0 for none
  bool marks_final = false;          // the answer says that it is the last one of its request
};

struct InferLimits {
  int64_t max_request_bytes = 0;
  int64_t max_batch_rows = 0;
};

// `entry` is the model that the request names. InvalidArgument names the tensor, field or parameter, what was expected
// and what came; ResourceExhausted for more than max_request_bytes; Unimplemented for tensors in shared memory.
absl::StatusOr<InferRequest> MakeInferRequest(DecodedInfer decoded, const KserveModels::Entry& entry,
                                              const InferLimits& limits);

}  // namespace switchyard
