// Messages that a server must refuse without holding them.
#pragma once

#include <grpcpp/support/status.h>

#include <cstdint>
#include <string>

namespace switchyard {

// Sends `num_bytes` as one message of a call. The sender holds only a small part of them.
grpc::Status SendHugeMessage(const std::string& target, const std::string& method, int64_t num_bytes);

// The same with zeros under gzip, which take a thousandth on the wire.
grpc::Status SendCompressedZeros(const std::string& target, const std::string& method, int64_t num_bytes);

// Sends a message of many empty fields that the receiver does not know, two bytes each, to a method that protobuf
// reads.
grpc::Status SendManyFields(const std::string& target, const std::string& method, int64_t num_fields);

}  // namespace switchyard
