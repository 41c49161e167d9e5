#include "server/api/calls/unary_call.h"

#include "rpc/grpc_status.h"
#include "server/requests/pushback.h"

namespace switchyard {
namespace {

// Adds trailing metadata that tells the caller how long to wait before it tries again, if it should.
void AddPushback(const absl::Status& status, grpc::CallbackServerContext* context) {
  const int64_t pushback_ms = PushbackMs(status);
  if (pushback_ms > 0) context->AddTrailingMetadata("grpc-retry-pushback-ms", absl::StrCat(pushback_ms));
}

}  // namespace

void UnaryCall::Start(std::shared_ptr<LayerCall> call) {
  call_ = std::move(call);
  const std::shared_ptr<LayerCall> started = call_;  // this object may be gone before Start returns
  started->Start();
}

void UnaryCall::End(const absl::Status& status) {
  AddPushback(status, context_);
  Finish(ToGrpcStatus(status));
}

grpc::ServerUnaryReactor* FinishNow(grpc::CallbackServerContext* context, const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

}  // namespace switchyard
