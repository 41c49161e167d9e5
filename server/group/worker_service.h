// The worker port's service: accepts Join streams and turns them into events of the group, and results into calls of
// the scheduler.
//
// Nothing of a call is read before WorkerAccess lets it in. Its first message, which must be a small Hello, has to come
// in time, and no other is read before the group has accepted the worker.
#pragma once

#include <grpcpp/impl/codegen/service_type.h>

#include <chrono>
#include <memory>

namespace switchyard {

class Group;
class WorkerAccess;

// `access` and `group` outlive the server that the service is registered with. The service outlives that server, too.
std::unique_ptr<grpc::Service> MakeWorkerService(const WorkerAccess* access, std::chrono::milliseconds hello_timeout,
                                                 Group* group);

}  // namespace switchyard
