// The native API. Handlers are thin: decode, check, admit, hand over, answer.
#pragma once

#include <grpcpp/grpcpp.h>

#include "proto/switchyard.grpc.pb.h"
#include "server/front/front.h"

namespace switchyard {

// Methods that carry rows are raw, so that protobuf does not copy the rows.
class SwitchyardService final
    : public v1::Switchyard::WithRawCallbackMethod_Forward<
          v1::Switchyard::WithRawCallbackMethod_ForwardStream<v1::Switchyard::WithCallbackMethod_ListModels<
              v1::Switchyard::WithCallbackMethod_GetStatus<v1::Switchyard::Service>>>> {
 public:
  // `front` must outlive the server that this service is registered with.
  explicit SwitchyardService(Front* front) : front_(front) {}

  grpc::ServerUnaryReactor* Forward(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                    grpc::ByteBuffer* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ForwardStream(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context, const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context, const v1::GetStatusRequest* request,
                                      v1::GetStatusResponse* response) override;

 private:
  Front* const front_;
};

}  // namespace switchyard
