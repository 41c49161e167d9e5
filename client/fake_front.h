// A real gRPC server on a free loopback port with a small service behind it, for the client's own tests.
//
// It serves one model, "tiny", with the layers "1" and "3" of 4 and 6 columns. Their output is twice their input, which
// is exact in every type. Tests of failures replace that by a handler. It also has the two calls of the KServe API that
// load and unload models; they succeed for every name but "absent".
//
// Thread-safe.
#pragma once

#include <grpcpp/server.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "proto/switchyard.grpc.pb.h"

namespace switchyard {

class FakeFront {
 public:
  using Stream = grpc::ServerReaderWriter<v1::ForwardStreamResponse, v1::ForwardStreamRequest>;
  using StreamHandler = std::function<grpc::Status(grpc::ServerContext*, Stream*)>;
  using Handler = std::function<grpc::Status(grpc::ServerContext*, const v1::ForwardRequest&, v1::ForwardResponse*)>;

  FakeFront();
  ~FakeFront();  // waits for the handlers that run

  std::string target() const;

  // Makes `handler` answer Forward from then on.
  void SetHandler(Handler handler);
  // Makes `handler` answer ForwardStream from then on. The default one answers requests in turn, as Forward would.
  void SetStreamHandler(StreamHandler handler);
  // Makes GetStatus answer with `status` from then on.
  void SetStatus(v1::GetStatusResponse status);

  int num_forwards() const { return num_forwards_.load(); }
  // "load NAME" and "unload NAME" of each change so far.
  std::vector<std::string> changes() const;
  // x-request-id of each Forward and ForwardStream received so far.
  std::vector<std::string> request_ids() const;

  // The default handler.
  static grpc::Status Double(grpc::ServerContext* context, const v1::ForwardRequest& request,
                             v1::ForwardResponse* response);
  // The answer of `handler` to one message of a stream.
  static v1::ForwardStreamResponse Answer(const v1::ForwardStreamRequest& message, const Handler& handler = &Double);

 private:
  class Service;
  class Repository;

  const std::unique_ptr<Service> service_;
  const std::unique_ptr<Repository> repository_;
  std::atomic<int> num_forwards_{0};
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;

  mutable Mutex mu_;
  Handler handler_ ABSL_GUARDED_BY(mu_);
  StreamHandler stream_handler_ ABSL_GUARDED_BY(mu_);
  v1::GetStatusResponse status_ ABSL_GUARDED_BY(mu_);
  std::vector<std::string> request_ids_ ABSL_GUARDED_BY(mu_);
  std::vector<std::string> changes_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard
