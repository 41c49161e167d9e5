// The protocol of ForwardStream: a stream of calls whose requests are those of Forward.
#pragma once

#include <memory>
#include <utility>

#include "server/api/calls/call_stream.h"

namespace switchyard {

class ForwardProtocol final : public StreamProtocol {
 public:
  // `front` must outlive the stream; `identity` applies to all of its requests.
  ForwardProtocol(Front* front, RequestIdentity identity)
      : front_(front), identity_(std::make_shared<const RequestIdentity>(std::move(identity))) {}

  Action Read(const grpc::ByteBuffer& message, StreamReply reply) override;

 private:
  Front* const front_;
  const std::shared_ptr<const RequestIdentity> identity_;
};

}  // namespace switchyard
