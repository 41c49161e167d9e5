// The bare connection that the service is compared with: a gRPC server with the front's settings, whose Forward returns
// the message it gets. Prints `READY grpc=HOST:PORT` and ends with SIGTERM.
#include <grpcpp/grpcpp.h>

#include <cstdio>
#include <cstdlib>

#include "base/process/deadlock_detection.h"
#include "proto/switchyard.grpc.pb.h"
#include "rpc/listen.h"
#include "rpc/wire_options.h"

namespace switchyard {
namespace {

class EchoService final : public v1::Switchyard::WithRawCallbackMethod_Forward<v1::Switchyard::Service> {
 public:
  grpc::ServerUnaryReactor* Forward(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                    grpc::ByteBuffer* response) override {
    *response = *request;  // shares the bytes
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

int Serve() {
  EchoService service;
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(-1);
  builder.SetMaxSendMessageSize(-1);
  TuneServer(builder);
  builder.RegisterService(&service);
  const auto server =
      PortServer::Start(builder, grpc::InsecureServerCredentials(), {.host = "127.0.0.1", .flag = "port"});
  if (!server.ok()) {
    std::fprintf(stderr, "%s\n", std::string(server.status().message()).c_str());
    return 1;
  }
  std::printf("READY grpc=127.0.0.1:%d\n", (*server)->port());
  std::fflush(stdout);
  (*server)->grpc().Wait();
  return 0;
}

}  // namespace
}  // namespace switchyard

int main() {
  switchyard::StopLookingForDeadlocks();
  return switchyard::Serve();
}
