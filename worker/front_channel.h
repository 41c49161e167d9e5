// The connection to a front, and the token to show there. Files are read anew for each connection, so that a token or a
// certificate that was replaced counts from the next one on.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "base/status.h"
#include "worker/options.h"

namespace switchyard {

// Empty for none. The error names the file.
absl::StatusOr<std::string> TokenForFront(const WorkerOptions& options);

// A channel with connections of its own: it begins without the pauses of earlier ones, and uses none that is broken.
absl::StatusOr<std::shared_ptr<grpc::Channel>> ConnectToFront(const WorkerOptions& options);

}  // namespace switchyard
