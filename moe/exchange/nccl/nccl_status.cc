#include "moe/exchange/nccl/nccl_status.h"

#include "absl/strings/ascii.h"

namespace switchyard {
namespace {

absl::StatusCode CodeOf(ncclResult_t result) {
  switch (result) {
    case ncclRemoteError:
    case ncclSystemError:
      return absl::StatusCode::kUnavailable;
    case ncclInvalidUsage:
      return absl::StatusCode::kFailedPrecondition;
    case ncclInvalidArgument:
      return absl::StatusCode::kInvalidArgument;
    default:
      return absl::StatusCode::kInternal;
  }
}

}  // namespace

absl::Status NcclStatus(ncclResult_t result, absl::string_view call, ncclComm_t comm) {
  if (result == ncclSuccess || result == ncclInProgress) return absl::OkStatus();
  (void)cudaGetLastError();  // clears a CUDA error that NCCL may have left for the next check; a sticky one stays
  std::string message = absl::StrCat(call, ": ", ncclGetErrorString(result));
  if (const char* last = ncclGetLastError(comm); last != nullptr && *last != '\0') {
    absl::StrAppend(&message, ": ", absl::StripAsciiWhitespace(last));
  }
  return absl::Status(CodeOf(result), message);
}

}  // namespace switchyard
