// A stream of calls: many requests in flight on one gRPC stream, answered as they finish. What the messages are, the
// APIs say, each by a StreamProtocol.
//
//   ForwardStream: NewCallStream(std::make_unique<ForwardProtocol>(…), limits)
//
// Answers go out in the order in which they are ready. A request that fails is answered with an error, and the stream
// goes on. It ends when the caller has said that it is done and everything is answered, or when the caller is gone;
// then what is in flight is cancelled.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "server/api/calls/layer_call.h"

namespace switchyard {

// How much of one stream is held at a time, from a request's arrival until its answer is on its way. At either limit
// the stream is not read, and gRPC's flow control holds its sender back.
struct StreamLimits {
  int max_requests = 256;
  int64_t max_bytes = 0;  // of requests' messages; one is always taken, however large
};

class CallStream;

// Where the answer to one message goes. Trivially copyable, small enough for std::function to hold in itself.
class StreamReply {
 public:
  // Exactly once, from any thread; `answer` is taken.
  void Send(grpc::ByteBuffer* answer) const;

 private:
  friend class CallStream;
  StreamReply(CallStream* stream, int slot) : stream_(stream), slot_(slot) {}

  CallStream* stream_;
  int slot_;
};

// The meaning of a stream's messages. Used by one thread at a time.
class StreamProtocol {
 public:
  virtual ~StreamProtocol() = default;

  // What one message asks for: to run a call, which will answer through the `reply` given, or to give up the calls in
  // flight with an id, which it does not answer.
  struct Action {
    std::shared_ptr<LayerCall> call;
    std::optional<uint64_t> cancel;
  };
  // `message` stays until the call's Start has returned.
  virtual Action Read(const grpc::ByteBuffer& message, StreamReply reply) = 0;
};

// A reactor for one stream; deletes itself when gRPC is done with it.
grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* NewCallStream(std::unique_ptr<StreamProtocol> protocol,
                                                                           const StreamLimits& limits);

}  // namespace switchyard
