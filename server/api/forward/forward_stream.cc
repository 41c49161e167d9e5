#include "server/api/forward/forward_stream.h"

#include "server/api/forward/forward_call.h"
#include "server/requests/pushback.h"

namespace switchyard {

StreamProtocol::Action ForwardProtocol::Read(const grpc::ByteBuffer& message, StreamReply reply) {
  DecodedStreamMessage decoded = DecodeStreamMessage(message);
  if (decoded.is_cancel) return {.cancel = decoded.id};
  const auto send = [reply](const ForwardAnswer& answer) {
    grpc::ByteBuffer bytes = answer.status.ok()
                                 ? EncodeStreamForward(answer.id, answer.head, answer.rows)
                                 : EncodeStreamError(answer.id, answer.status, PushbackMs(answer.status));
    reply.Send(&bytes);
  };
  ForwardCall::Options options = {.identity = identity_, .id = decoded.id};
  return {.call = std::make_shared<ForwardCall>(front_, std::move(options), std::move(decoded.forward), send)};
}

}  // namespace switchyard
