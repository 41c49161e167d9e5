// Makes the request that the front runs from a decoded ModelInferRequest, and checks every field on the way.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "server/api/kserve/control/kserve_models.h"
#include "server/api/kserve/kserve_infer_codec.h"
#include "server/api/kserve/kserve_memory.h"
#include "server/requests/request.h"

namespace switchyard {

enum class InferOutput { kRows, kExpertIds, kExpertWeights };

// The output's name in the protocol.
const char* NameOf(InferOutput output);

struct WantedOutput {
  InferOutput output;
  std::optional<TensorPlace> place;  // set when the output goes to shared memory; the place has room for it
};

struct InferRequest {
  std::shared_ptr<Request> request;       // complete but for output and done
  int64_t num_bytes = 0;                  // size of its rows
  std::optional<TensorPlace> rows_place;  // set when the rows are in shared memory; the request does not have them yet
  std::vector<WantedOutput> outputs;      // in the order in which they were requested
  bool marks_final = false;               // the answer says that it is the last one to its request
};

struct InferLimits {
  int64_t max_request_bytes = 0;
  int64_t max_batch_rows = 0;
};

// `entry` is the model that the request names, `access` the shared memory that the request may use. InvalidArgument
// names the tensor, field or parameter, what was expected and what came. ResourceExhausted for more than
// max_request_bytes. Also returns FindPlace's errors.
absl::StatusOr<InferRequest> MakeInferRequest(DecodedInfer decoded, const KserveModels::Entry& entry,
                                              const InferLimits& limits, const MemoryAccess& access);

}  // namespace switchyard
