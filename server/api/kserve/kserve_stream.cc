#include "server/api/kserve/kserve_stream.h"

#include "server/api/kserve/kserve_infer_call.h"

namespace switchyard {

StreamProtocol::Action InferProtocol::Read(const grpc::ByteBuffer& message, StreamReply reply) {
  const auto send = [reply](const InferAnswer& answer) {
    grpc::ByteBuffer bytes = answer.status.ok() ? EncodeStreamInfer(answer.head, answer.tensors)
                                                : EncodeStreamError(answer.head, answer.status);
    reply.Send(&bytes);
  };
  return {.call = std::make_shared<InferCall>(front_, models_, access_, identity_, &message, send)};
}

}  // namespace switchyard
