// The native API. Its handlers are thin: decode, check, admit, hand over, answer.
#pragma once

#include <grpcpp/impl/codegen/service_type.h>

#include <memory>

namespace switchyard {

class Front;

// The name under which gRPC knows the service.
extern const char* const kSwitchyardServiceName;

// `front` outlives the server that the service is registered with. The service outlives that server, too.
std::unique_ptr<grpc::Service> MakeSwitchyardService(Front* front);

}  // namespace switchyard
