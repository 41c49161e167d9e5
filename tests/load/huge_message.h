// Messages that a server must refuse without taking them in.
#pragma once

#include <grpcpp/support/status.h>

#include <cstdint>
#include <string>

namespace switchyard {

// Sends `num_bytes` as one message of a call. The sender holds a small part of them only.
grpc::Status SendHugeMessage(const std::string& target, const std::string& method, int64_t num_bytes);

// The same of zeros under gzip, a thousandth on the wire.
grpc::Status SendCompressedZeros(const std::string& target, const std::string& method, int64_t num_bytes);

// A message of so many empty fields that nobody knows, two bytes each, to a method that protobuf reads.
grpc::Status SendManyFields(const std::string& target, const std::string& method, int64_t num_fields);

}  // namespace switchyard
