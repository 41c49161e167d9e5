// The worker port: accepts Join streams and turns them into events of the group.
#pragma once

#include <grpcpp/grpcpp.h>

#include "proto/worker.grpc.pb.h"
#include "server/group/group.h"

namespace switchyard {

class WorkerService final : public worker::WorkerHub::CallbackService {
 public:
  // `group` outlives the server that this service is registered with.
  explicit WorkerService(Group* group) : group_(group) {}

  grpc::ServerBidiReactor<worker::WorkerMessage, worker::FrontMessage>* Join(
      grpc::CallbackServerContext* context) override;

 private:
  Group* const group_;
};

}  // namespace switchyard
