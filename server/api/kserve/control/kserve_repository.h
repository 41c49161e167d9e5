// The front's models in the terms of the KServe API's repository calls.
//
// A checkpoint that was ever loaded is listed as its layers, NAME.LAYER, also while they are not served. A checkpoint
// that was never loaded, so that its layers are not known, is listed as NAME.
#pragma once

#include <string>

#include "base/status.h"
#include "proto/inference.pb.h"
#include "server/models/model_table.h"

namespace switchyard {

// `front_state` is Front::state(). With `ready_only`, layers that are not ready are left out.
inference::RepositoryIndexResponse IndexOf(const ModelTable& table, const std::string& front_state, bool ready_only);

// INVALID_ARGUMENT unless `name` is empty, because there is one repository, without a name.
absl::Status CheckRepositoryName(const std::string& name);
// INVALID_ARGUMENT names a parameter that is not accepted. Load accepts none, because models are as their checkpoints
// say.
absl::Status CheckLoad(const inference::RepositoryModelLoadRequest& request);
absl::Status CheckUnload(const inference::RepositoryModelUnloadRequest& request);

}  // namespace switchyard
