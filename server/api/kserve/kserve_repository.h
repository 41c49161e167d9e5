// The front's models in the terms of the KServe API's repository calls.
//
// A checkpoint that was loaded is listed as its layers, NAME.LAYER, also when they are not served; one that never was,
// and whose layers nobody knows, as NAME.
#pragma once

#include <string>

#include "base/status.h"
#include "proto/inference.pb.h"
#include "server/models/model_table.h"

namespace switchyard {

// `front_state` is Front::state(). `ready_only` leaves out what is not served now.
inference::RepositoryIndexResponse IndexOf(const ModelTable& table, const std::string& front_state, bool ready_only);

// There is one repository, without a name. INVALID_ARGUMENT for one.
absl::Status CheckRepositoryName(const std::string& name);
// INVALID_ARGUMENT names the parameter that is not taken: models are what their checkpoints say.
absl::Status CheckLoad(const inference::RepositoryModelLoadRequest& request);
absl::Status CheckUnload(const inference::RepositoryModelUnloadRequest& request);

}  // namespace switchyard
