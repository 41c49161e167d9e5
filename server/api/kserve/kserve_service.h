// The KServe v2 API with Triton's extensions, beside the native API and over the same queues. docs/api.md says what
// each call does.
#pragma once

#include <grpcpp/impl/codegen/service_type.h>

#include <memory>

namespace switchyard {

class AccessControl;
class ClientMemory;
class Front;
class KserveModels;

// The name under which gRPC knows the service.
extern const char* const kKserveServiceName;

// All arguments outlive the server that the service is registered with, and so does the service. `memory` is null
// unless clients may share memory.
std::unique_ptr<grpc::Service> MakeKserveService(Front* front, const KserveModels* models, const AccessControl* access,
                                                 ClientMemory* memory);

}  // namespace switchyard
