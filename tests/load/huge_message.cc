#include "tests/load/huge_message.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <vector>

#include "base/notification.h"

namespace switchyard {
namespace {

constexpr size_t kPartBytes = 1 << 20;

// One part, repeated: slices share their bytes.
grpc::ByteBuffer Repeated(const std::string& part, int64_t num_bytes) {
  const grpc::Slice slice(part);
  const std::vector<grpc::Slice> slices(static_cast<size_t>(num_bytes) / part.size(), slice);
  return grpc::ByteBuffer(slices.data(), slices.size());
}

grpc::Status Send(const std::string& target, const std::string& method, const grpc::ByteBuffer& message,
                  grpc_compression_algorithm compression) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxSendMessageSize(-1);
  grpc::GenericStub stub(grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(2));
  context.set_compression_algorithm(compression);
  grpc::ByteBuffer response;
  grpc::Status status;
  Notification done;
  stub.UnaryCall(&context, method, {}, &message, &response, [&](const grpc::Status& result) {
    status = result;
    done.Notify();
  });
  done.WaitForNotification();
  return status;
}

}  // namespace

grpc::Status SendHugeMessage(const std::string& target, const std::string& method, int64_t num_bytes) {
  return Send(target, method, Repeated(std::string(kPartBytes, 'h'), num_bytes), GRPC_COMPRESS_NONE);
}

grpc::Status SendCompressedZeros(const std::string& target, const std::string& method, int64_t num_bytes) {
  return Send(target, method, Repeated(std::string(kPartBytes, '\0'), num_bytes), GRPC_COMPRESS_GZIP);
}

grpc::Status SendManyFields(const std::string& target, const std::string& method, int64_t num_fields) {
  std::string part;
  while (part.size() < kPartBytes) part += std::string("\x78\x00", 2);  // field 15, varint, value 0
  return Send(target, method, Repeated(part, 2 * num_fields), GRPC_COMPRESS_NONE);
}

}  // namespace switchyard
