// ModelStreamInfer: many requests in flight on one stream, answered as they finish.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>

#include "server/front.h"
#include "server/rpc/kserve_memory.h"
#include "server/rpc/kserve_models.h"

namespace switchyard {

// How much of one stream is held at a time, from a request's arrival until its answer is on its way. At either limit
// the stream is not read, and gRPC's flow control holds its sender back.
struct StreamLimits {
  int max_requests = 256;
  int64_t max_bytes = 0;  // of requests' messages; one is always taken, however large
};

// A reactor for one stream; deletes itself when gRPC is done with it. Answers come in any order, with their requests'
// ids; a request that fails is answered with an error and the stream goes on. It ends when the caller has said that it
// is done and everything is answered, or when the caller is gone. `access` is the shared memory that the caller may
// use.
grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* NewInferStream(Front* front, const KserveModels* models,
                                                                            MemoryAccess access,
                                                                            grpc::CallbackServerContext* context,
                                                                            const StreamLimits& limits);

}  // namespace switchyard
