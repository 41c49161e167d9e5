#include "rpc/library_logs.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>

#include "absl/strings/str_cat.h"
#include "base/logging/line_budget.h"
#include "base/logging/logging.h"

namespace switchyard {
namespace {

// gRPC calls this for lines of the level that GRPC_VERBOSITY asks for; by default that is errors.
void LogOfGrpc(gpr_log_func_args* args) {
  if (args->severity != GPR_LOG_SEVERITY_ERROR) return spdlog::info("gRPC: {}", args->message);
  static LineBudgets* const budgets = new LineBudgets(1);  // not destroyed: gRPC's threads may log until the end
  LogWithin(budgets->Of(absl::StrCat(args->file, ":", args->line)), spdlog::level::warn, "gRPC: {}", args->message);
}

}  // namespace

void TakeOverLibraryLogs() {
  gpr_set_log_function(LogOfGrpc);
  google::protobuf::SetLogHandler(nullptr);
}

}  // namespace switchyard
