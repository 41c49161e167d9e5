// Parameters of requests and tensors, which are of several kinds, as values of one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/status.h"
#include "proto/inference.pb.h"

namespace switchyard {

using InferParameters = google::protobuf::Map<std::string, inference::InferParameter>;

// Each leaves `value` alone when there is no such parameter. InvalidArgument for one of another kind.

// An unsigned integer beyond the signed ones is the largest of these.
absl::Status ReadInteger(const InferParameters& parameters, const char* name, int64_t* value);
// Integers are numbers too.
absl::Status ReadNumber(const InferParameters& parameters, const char* name, std::optional<double>* value);
absl::Status ReadBool(const InferParameters& parameters, const char* name, bool* value);
absl::Status ReadString(const InferParameters& parameters, const char* name, std::string* value);

}  // namespace switchyard
