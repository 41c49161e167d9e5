// From a decoded ModelInferRequest to the request that the front runs, with every field checked on the way.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "server/api/kserve/kserve_infer_codec.h"
#include "server/api/kserve/kserve_memory.h"
#include "server/api/kserve/kserve_models.h"
#include "server/requests/request.h"

namespace switchyard {

enum class InferOutput { kRows, kExpertIds, kExpertWeights };

// By its name in the protocol.
const char* NameOf(InferOutput output);

struct WantedOutput {
  InferOutput output;
  std::optional<TensorPlace> place;  // when it goes to shared memory; there is room
};

struct InferRequest {
  std::shared_ptr<Request> request;       // without output and done
  int64_t num_bytes = 0;                  // of its rows
  std::optional<TensorPlace> rows_place;  // of rows that are in shared memory: the request is without them still
  std::vector<WantedOutput> outputs;      // in the order they were asked for
  bool marks_final = false;               // the answer says that it is the last one of its request
};

struct InferLimits {
  int64_t max_request_bytes = 0;
  int64_t max_batch_rows = 0;
};

// `entry` is the model that the request names, `access` the shared memory that it may. InvalidArgument names the
// tensor, field or parameter, what was expected and what came; ResourceExhausted for more than max_request_bytes;
// errors of FindPlace.
absl::StatusOr<InferRequest> MakeInferRequest(DecodedInfer decoded, const KserveModels::Entry& entry,
                                              const InferLimits& limits, const MemoryAccess& access);

}  // namespace switchyard
