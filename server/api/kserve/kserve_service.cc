#include "server/api/kserve/kserve_service.h"

#include <grpcpp/grpcpp.h>

#include <memory>
#include <utility>

#include "base/version.h"
#include "proto/inference.grpc.pb.h"
#include "rpc/grpc_status.h"
#include "server/api/calls/access_control.h"
#include "server/api/calls/call_identity.h"
#include "server/api/calls/memory_owner.h"
#include "server/api/calls/unary_call.h"
#include "server/api/kserve/control/kserve_config.h"
#include "server/api/kserve/control/kserve_models.h"
#include "server/api/kserve/control/kserve_repository.h"
#include "server/api/kserve/control/kserve_statistics.h"
#include "server/api/kserve/control/log_settings.h"
#include "server/api/kserve/control/trace_setting.h"
#include "server/api/kserve/kserve_infer_call.h"
#include "server/api/kserve/kserve_memory.h"
#include "server/api/kserve/kserve_stream.h"
#include "server/front/front.h"

namespace switchyard {
namespace {

// The protocol extensions that this server has, by the names that Triton gives them.
constexpr const char* kExtensions[] = {"model_configuration",
                                       "parameters",
                                       "statistics",
                                       "trace",
                                       "logging",
                                       "model_repository",
                                       "model_repository(unload_dependents)"};
constexpr const char* kMemoryExtensions[] = {"system_shared_memory", "cuda_shared_memory"};

// Registers on another thread, because CUDA takes its time to start and other calls need not wait for it.
template <typename Request>
grpc::ServerUnaryReactor* RegisterAndFinish(grpc::CallbackServerContext* context, MemoryAccess access,
                                            const Request* request) {
  if (access.memory == nullptr) return FinishNow(context, RegisterMemory(access, *request));
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  TaskThreads& threads = access.memory->threads();
  threads.Run([reactor, access = std::move(access), request] {
    reactor->Finish(ToGrpcStatus(RegisterMemory(access, *request)));
  });
  return reactor;
}

ServingFacts FactsOf(const Front& front) {
  const ServerOptions& options = front.options();
  ServingFacts facts = {.max_batch_rows = options.max_batch_rows,
                        .max_queue_delay_us = options.max_queue_delay_us,
                        .steps_in_flight = options.steps_in_flight,
                        .devices = {}};
  for (const RankInfo& rank : front.group_info().ranks) facts.devices.push_back(rank.device);
  return facts;
}

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
  // All outlive the server that this service is registered with. `memory` is null unless clients may share memory.
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

// ---- Health and metadata --------------------------------------------------------------------------------------------

KserveService::Reactor* KserveService::ServerLive(Context* context, const inference::ServerLiveRequest*,
                                                  inference::ServerLiveResponse* response) {
  response->set_live(true);
  return FinishNow(context, absl::OkStatus());
}

KserveService::Reactor* KserveService::ServerReady(Context* context, const inference::ServerReadyRequest*,
                                                   inference::ServerReadyResponse* response) {
  response->set_ready(front_->ready());
  return FinishNow(context, absl::OkStatus());
}

KserveService::Reactor* KserveService::ModelReady(Context* context, const inference::ModelReadyRequest* request,
                                                  inference::ModelReadyResponse* response) {
  const auto entry = models_->Find(request->name(), request->version());
  response->set_ready(entry.ok() && front_->ready());
  // A model that does not exist or is not served is not ready. Any other error is the caller's mistake.
  const bool is_mistake = absl::IsInvalidArgument(entry.status());
  return FinishNow(context, is_mistake ? entry.status() : absl::OkStatus());
}

KserveService::Reactor* KserveService::ServerMetadata(Context* context, const inference::ServerMetadataRequest*,
                                                      inference::ServerMetadataResponse* response) {
  response->set_name("switchyard");
  response->set_version(std::string(kVersion));
  for (const char* extension : kExtensions) response->add_extensions(extension);
  if (memory_ != nullptr) {
    for (const char* extension : kMemoryExtensions) response->add_extensions(extension);
  }
  return FinishNow(context, absl::OkStatus());
}

KserveService::Reactor* KserveService::ModelMetadata(Context* context, const inference::ModelMetadataRequest* request,
                                                     inference::ModelMetadataResponse* response) {
  const auto entry = models_->Find(request->name(), request->version());
  if (entry.ok()) *response = MetadataOf(**entry);
  return FinishNow(context, entry.status());
}

KserveService::Reactor* KserveService::ModelConfig(Context* context, const inference::ModelConfigRequest* request,
                                                   inference::ModelConfigResponse* response) {
  const auto entry = models_->Find(request->name(), request->version());
  if (entry.ok()) {
    *response->mutable_config() = ConfigOf(**entry);
    DescribeServing(FactsOf(*front_), response->mutable_config());
  }
  return FinishNow(context, entry.status());
}

// ---- Repository -----------------------------------------------------------------------------------------------------

KserveService::Reactor* KserveService::RepositoryIndex(Context* context,
                                                       const inference::RepositoryIndexRequest* request,
                                                       inference::RepositoryIndexResponse* response) {
  const absl::Status status = CheckRepositoryName(request->repository_name());
  if (!status.ok()) return FinishNow(context, status);
  Reactor* const reactor = context->DefaultReactor();
  front_->repository().List([this, reactor, request, response](const ModelTable& table) {
    *response = IndexOf(table, front_->state(), request->ready());
    reactor->Finish(grpc::Status::OK);
  });
  return reactor;
}

KserveService::Reactor* KserveService::RepositoryModelLoad(Context* context,
                                                           const inference::RepositoryModelLoadRequest* request,
                                                           inference::RepositoryModelLoadResponse*) {
  absl::Status status = access_->CheckAdmin(*context, "RepositoryModelLoad");
  status.Update(CheckLoad(*request));
  if (!status.ok()) return FinishNow(context, status);
  Reactor* const reactor = context->DefaultReactor();
  front_->repository().Load(
      request->model_name(), [reactor](const absl::Status& done) { reactor->Finish(ToGrpcStatus(done)); },
      [context] { return !context->IsCancelled(); });
  return reactor;
}

KserveService::Reactor* KserveService::RepositoryModelUnload(Context* context,
                                                             const inference::RepositoryModelUnloadRequest* request,
                                                             inference::RepositoryModelUnloadResponse*) {
  absl::Status status = access_->CheckAdmin(*context, "RepositoryModelUnload");
  status.Update(CheckUnload(*request));
  if (!status.ok()) return FinishNow(context, status);
  Reactor* const reactor = context->DefaultReactor();
  front_->repository().Unload(
      request->model_name(), [reactor](const absl::Status& done) { reactor->Finish(ToGrpcStatus(done)); },
      [context] { return !context->IsCancelled(); });
  return reactor;
}

// ---- Inference ------------------------------------------------------------------------------------------------------

KserveService::Reactor* KserveService::ModelInfer(Context* context, const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  auto* unary = new UnaryCall(context);
  const auto answer = [unary, response](const InferAnswer& made) {
    if (made.status.ok()) *response = EncodeInfer(made.head, made.tensors);
    unary->End(made.status);
  };
  auto identity = std::make_shared<const RequestIdentity>(IdentifyCall(front_->options(), context));
  unary->Start(std::make_shared<InferCall>(front_, models_, AccessOf(*context), std::move(identity), request, answer));
  return unary;
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* KserveService::ModelStreamInfer(Context* context) {
  return NewCallStream(
      std::make_unique<InferProtocol>(front_, models_, AccessOf(*context), IdentifyCall(front_->options(), context)),
      {.max_bytes = front_->options().max_request_bytes});
}

// ---- Statistics and settings ----------------------------------------------------------------------------------------

KserveService::Reactor* KserveService::ModelStatistics(Context* context,
                                                       const inference::ModelStatisticsRequest* request,
                                                       inference::ModelStatisticsResponse* response) {
  const auto add = [&](const KserveModels::Entry& entry) {
    *response->add_model_stats() = StatisticsOf(entry.name, front_->metrics().Statistics(entry.layer->id));
  };
  if (request->name().empty()) {
    for (const auto& entry : models_->entries()) add(*entry);
    return FinishNow(context, absl::OkStatus());
  }
  const auto entry = models_->Find(request->name(), request->version());
  if (entry.ok()) add(**entry);
  return FinishNow(context, entry.status());
}

KserveService::Reactor* KserveService::LogSettings(Context* context, const inference::LogSettingsRequest* request,
                                                   inference::LogSettingsResponse* response) {
  absl::Status status = request->settings().empty() ? absl::OkStatus() : access_->CheckAdmin(*context, "LogSettings");
  if (status.ok()) status = ChangeLogSettings(*request);
  if (status.ok()) *response = CurrentLogSettings();
  return FinishNow(context, status);
}

KserveService::Reactor* KserveService::TraceSetting(Context* context, const inference::TraceSettingRequest* request,
                                                    inference::TraceSettingResponse* response) {
  if (!request->model_name().empty()) {
    const auto entry = models_->Find(request->model_name(), "");
    if (!entry.ok()) return FinishNow(context, entry.status());
  }
  absl::Status status = request->settings().empty() ? absl::OkStatus() : access_->CheckAdmin(*context, "TraceSetting");
  if (status.ok()) status = ChangeTraceSettings(*request, &front_->tracer());
  if (status.ok()) *response = CurrentTraceSettings(request->model_name(), front_->tracer());
  return FinishNow(context, status);
}

// ---- Shared memory --------------------------------------------------------------------------------------------------

MemoryAccess KserveService::AccessOf(const Context& context) const {
  if (memory_ == nullptr) return {};
  return {memory_, OwnerOf(context)};
}

KserveService::Reactor* KserveService::SystemSharedMemoryStatus(
    Context* context, const inference::SystemSharedMemoryStatusRequest* request,
    inference::SystemSharedMemoryStatusResponse* response) {
  return FinishNow(context, ListMemory(AccessOf(*context), *request, response));
}

KserveService::Reactor* KserveService::SystemSharedMemoryRegister(
    Context* context, const inference::SystemSharedMemoryRegisterRequest* request,
    inference::SystemSharedMemoryRegisterResponse*) {
  return RegisterAndFinish(context, AccessOf(*context), request);
}

KserveService::Reactor* KserveService::SystemSharedMemoryUnregister(
    Context* context, const inference::SystemSharedMemoryUnregisterRequest* request,
    inference::SystemSharedMemoryUnregisterResponse*) {
  return FinishNow(context, UnregisterMemory(AccessOf(*context), *request));
}

KserveService::Reactor* KserveService::CudaSharedMemoryStatus(Context* context,
                                                              const inference::CudaSharedMemoryStatusRequest* request,
                                                              inference::CudaSharedMemoryStatusResponse* response) {
  return FinishNow(context, ListMemory(AccessOf(*context), *request, response));
}

KserveService::Reactor* KserveService::CudaSharedMemoryRegister(
    Context* context, const inference::CudaSharedMemoryRegisterRequest* request,
    inference::CudaSharedMemoryRegisterResponse*) {
  return RegisterAndFinish(context, AccessOf(*context), request);
}

KserveService::Reactor* KserveService::CudaSharedMemoryUnregister(
    Context* context, const inference::CudaSharedMemoryUnregisterRequest* request,
    inference::CudaSharedMemoryUnregisterResponse*) {
  return FinishNow(context, UnregisterMemory(AccessOf(*context), *request));
}

}  // namespace

const char* const kKserveServiceName = InferenceService::service_full_name();

std::unique_ptr<grpc::Service> MakeKserveService(Front* front, const KserveModels* models, const AccessControl* access,
                                                 ClientMemory* memory) {
  return std::make_unique<KserveService>(front, models, access, memory);
}

}  // namespace switchyard
