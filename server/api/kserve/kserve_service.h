// The KServe v2 API with Triton's extensions, beside the native API and over the same queues. docs/api.md says what
// each call does.
//
// Thread-safe, as gRPC's handlers must be.
#pragma once

#include <grpcpp/grpcpp.h>

#include "proto/inference.grpc.pb.h"
#include "server/api/calls/access_control.h"
#include "server/api/kserve/kserve_memory.h"
#include "server/api/kserve/kserve_models.h"
#include "server/front/front.h"

namespace switchyard {

// Base with the methods mixed in, each around the next.
template <class Base, template <class> class... Methods>
struct WithMethods {
  using Type = Base;
};
template <class Base, template <class> class First, template <class> class... Rest>
struct WithMethods<Base, First, Rest...> {
  using Type = First<typename WithMethods<Base, Rest...>::Type>;
};

// All methods are asynchronous. The two that carry tensors are raw, so that protobuf does not copy the tensors.
using InferenceService = inference::GRPCInferenceService;
using KserveServiceBase = WithMethods<
    InferenceService::Service, InferenceService::WithRawCallbackMethod_ModelInfer,
    InferenceService::WithRawCallbackMethod_ModelStreamInfer, InferenceService::WithCallbackMethod_ServerLive,
    InferenceService::WithCallbackMethod_ServerReady, InferenceService::WithCallbackMethod_ModelReady,
    InferenceService::WithCallbackMethod_ServerMetadata, InferenceService::WithCallbackMethod_ModelMetadata,
    InferenceService::WithCallbackMethod_ModelConfig, InferenceService::WithCallbackMethod_ModelStatistics,
    InferenceService::WithCallbackMethod_RepositoryIndex, InferenceService::WithCallbackMethod_RepositoryModelLoad,
    InferenceService::WithCallbackMethod_RepositoryModelUnload,
    InferenceService::WithCallbackMethod_SystemSharedMemoryStatus,
    InferenceService::WithCallbackMethod_SystemSharedMemoryRegister,
    InferenceService::WithCallbackMethod_SystemSharedMemoryUnregister,
    InferenceService::WithCallbackMethod_CudaSharedMemoryStatus,
    InferenceService::WithCallbackMethod_CudaSharedMemoryRegister,
    InferenceService::WithCallbackMethod_CudaSharedMemoryUnregister, InferenceService::WithCallbackMethod_TraceSetting,
    InferenceService::WithCallbackMethod_LogSettings>::Type;

class KserveService final : public KserveServiceBase {
 public:
  // All must outlive the server that this service is registered with. `memory` is null unless clients may share memory.
  KserveService(Front* front, const KserveModels* models, const AccessControl* access, ClientMemory* memory)
      : front_(front), models_(models), access_(access), memory_(memory) {}

  using Context = grpc::CallbackServerContext;
  using Reactor = grpc::ServerUnaryReactor;

  Reactor* ServerLive(Context* context, const inference::ServerLiveRequest* request,
                      inference::ServerLiveResponse* response) override;
  Reactor* ServerReady(Context* context, const inference::ServerReadyRequest* request,
                       inference::ServerReadyResponse* response) override;
  Reactor* ModelReady(Context* context, const inference::ModelReadyRequest* request,
                      inference::ModelReadyResponse* response) override;
  Reactor* ServerMetadata(Context* context, const inference::ServerMetadataRequest* request,
                          inference::ServerMetadataResponse* response) override;
  Reactor* ModelMetadata(Context* context, const inference::ModelMetadataRequest* request,
                         inference::ModelMetadataResponse* response) override;
  Reactor* ModelConfig(Context* context, const inference::ModelConfigRequest* request,
                       inference::ModelConfigResponse* response) override;

  Reactor* ModelInfer(Context* context, const grpc::ByteBuffer* request, grpc::ByteBuffer* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ModelStreamInfer(Context* context) override;

  Reactor* ModelStatistics(Context* context, const inference::ModelStatisticsRequest* request,
                           inference::ModelStatisticsResponse* response) override;
  Reactor* RepositoryIndex(Context* context, const inference::RepositoryIndexRequest* request,
                           inference::RepositoryIndexResponse* response) override;
  Reactor* TraceSetting(Context* context, const inference::TraceSettingRequest* request,
                        inference::TraceSettingResponse* response) override;
  Reactor* LogSettings(Context* context, const inference::LogSettingsRequest* request,
                       inference::LogSettingsResponse* response) override;

  // UNIMPLEMENTED when clients may not share memory.
  Reactor* SystemSharedMemoryStatus(Context* context, const inference::SystemSharedMemoryStatusRequest* request,
                                    inference::SystemSharedMemoryStatusResponse* response) override;
  Reactor* SystemSharedMemoryRegister(Context* context, const inference::SystemSharedMemoryRegisterRequest* request,
                                      inference::SystemSharedMemoryRegisterResponse* response) override;
  Reactor* SystemSharedMemoryUnregister(Context* context, const inference::SystemSharedMemoryUnregisterRequest* request,
                                        inference::SystemSharedMemoryUnregisterResponse* response) override;
  Reactor* CudaSharedMemoryStatus(Context* context, const inference::CudaSharedMemoryStatusRequest* request,
                                  inference::CudaSharedMemoryStatusResponse* response) override;
  Reactor* CudaSharedMemoryRegister(Context* context, const inference::CudaSharedMemoryRegisterRequest* request,
                                    inference::CudaSharedMemoryRegisterResponse* response) override;
  Reactor* CudaSharedMemoryUnregister(Context* context, const inference::CudaSharedMemoryUnregisterRequest* request,
                                      inference::CudaSharedMemoryUnregisterResponse* response) override;

  // Load and unload models while the server runs. They answer when the change is made. AccessControl says who may call
  // them.
  Reactor* RepositoryModelLoad(Context* context, const inference::RepositoryModelLoadRequest* request,
                               inference::RepositoryModelLoadResponse* response) override;
  Reactor* RepositoryModelUnload(Context* context, const inference::RepositoryModelUnloadRequest* request,
                                 inference::RepositoryModelUnloadResponse* response) override;

 private:
  MemoryAccess AccessOf(const Context& context) const;

  Front* const front_;
  const KserveModels* const models_;
  const AccessControl* const access_;
  ClientMemory* const memory_;
};

}  // namespace switchyard
