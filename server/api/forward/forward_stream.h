// ForwardStream: Forward's requests as a stream of calls.
#pragma once

#include <memory>
#include <utility>

#include "server/api/calls/call_stream.h"

namespace switchyard {

class ForwardProtocol final : public StreamProtocol {
 public:
  // `front` outlives the stream; `identity` is that of all its requests.
  ForwardProtocol(Front* front, RequestIdentity identity)
      : front_(front), identity_(std::make_shared<const RequestIdentity>(std::move(identity))) {}

  Action Read(const grpc::ByteBuffer& message, StreamReply reply) override;

 private:
  Front* const front_;
  const std::shared_ptr<const RequestIdentity> identity_;
};

}  // namespace switchyard
