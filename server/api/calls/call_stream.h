// A stream of calls: many requests in flight on one gRPC stream, answered as they finish. Each API defines its messages
// by a StreamProtocol.
//
//   ForwardStream: NewCallStream(std::make_unique<ForwardProtocol>(…), limits)
//
// Answers are sent in the order in which they are ready. A request that fails is answered with an error, and the stream
// goes on. The stream ends when the caller has said that it is done and everything is answered. It also ends when the
// caller is gone; then the requests in flight are cancelled.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "server/api/calls/layer_call.h"

namespace switchyard {

// How many requests and bytes of one stream are held at a time, from a request's arrival until its answer is written.
// At either limit the stream is not read, and gRPC's flow control holds its sender back.
struct StreamLimits {
  int max_requests = 256;
  int64_t max_bytes = 0;  // size of the requests' messages; one request is always taken, however large
};

class CallStream;

// The destination of the answer to one message. Trivially copyable, and small enough for std::function to store without
// allocating.
class StreamReply {
 public:
  // Call it exactly once, from any thread. Takes the contents of `answer`.
  void Send(grpc::ByteBuffer* answer) const;

 private:
  friend class CallStream;
  StreamReply(CallStream* stream, int slot) : stream_(stream), slot_(slot) {}

  CallStream* stream_;
  int slot_;
};

// Gives a stream's messages their meaning. Used by one thread at a time.
class StreamProtocol {
 public:
  virtual ~StreamProtocol() = default;

  // The wish of one message. `call`: run this call, which will answer through the given `reply`. `cancel`: cancel the
  // calls in flight with this id; the message itself is not answered.
  struct Action {
    std::shared_ptr<LayerCall> call;
    std::optional<uint64_t> cancel;
  };
  // `message` stays valid until the call's Start has returned.
  virtual Action Read(const grpc::ByteBuffer& message, StreamReply reply) = 0;
};

// Makes a reactor for one stream. It deletes itself when gRPC is done with it.
grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* NewCallStream(std::unique_ptr<StreamProtocol> protocol,
                                                                           const StreamLimits& limits);

}  // namespace switchyard
