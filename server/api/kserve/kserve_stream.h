// The protocol of ModelStreamInfer: a stream of calls whose requests are those of ModelInfer.
#pragma once

#include <memory>
#include <utility>

#include "server/api/calls/call_stream.h"
#include "server/api/kserve/control/kserve_models.h"
#include "server/api/kserve/kserve_memory.h"

namespace switchyard {

class InferProtocol final : public StreamProtocol {
 public:
  // `front` and `models` must outlive the stream. `access` is the shared memory that the caller may use; `identity`
  // applies to all requests.
  InferProtocol(Front* front, const KserveModels* models, MemoryAccess access, RequestIdentity identity)
      : front_(front),
        models_(models),
        access_(std::move(access)),
        identity_(std::make_shared<const RequestIdentity>(std::move(identity))) {}

  Action Read(const grpc::ByteBuffer& message, StreamReply reply) override;

 private:
  Front* const front_;
  const KserveModels* const models_;
  const MemoryAccess access_;
  const std::shared_ptr<const RequestIdentity> identity_;
};

}  // namespace switchyard
