// The reactors of unary methods, of either API.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <utility>

#include "base/status.h"
#include "server/api/calls/layer_call.h"

namespace switchyard {

// A method whose answer comes later, from a LayerCall. Deletes itself when gRPC is done with it, so make it with new.
class UnaryCall final : public grpc::ServerUnaryReactor {
 public:
  explicit UnaryCall(grpc::CallbackServerContext* context) : context_(context) {}

  // Starts `call`, whose answer has to call End. Call it once, before the method returns.
  void Start(std::shared_ptr<LayerCall> call);
  // Finishes the method with the response as it is filled in. Call it once, from any thread, perhaps before Start
  // returns. This object may be gone when it returns.
  void End(const absl::Status& status);

 private:
  void OnCancel() override { call_->Cancel(); }
  void OnDone() override { delete this; }
  // OnCancel and OnDone are short, so gRPC may call them inline instead of on a thread of its executor.
  bool InternalInlineable() override { return true; }

  grpc::CallbackServerContext* const context_;
  std::shared_ptr<LayerCall> call_;
};

// Finishes a method at once, with the response as it is filled in.
grpc::ServerUnaryReactor* FinishNow(grpc::CallbackServerContext* context, const absl::Status& status);

}  // namespace switchyard
