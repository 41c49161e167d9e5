// The worker port's service: accepts Join streams and turns them into events of the group, and results into calls of
// the scheduler.
#pragma once

#include <grpcpp/impl/codegen/service_type.h>

#include <memory>

namespace switchyard {

class Group;

// `group` outlives the server that the service is registered with. The service outlives that server, too.
std::unique_ptr<grpc::Service> MakeWorkerService(Group* group);

}  // namespace switchyard
