// Reads the parameters of requests and tensors. Their values are of several kinds; each function reads one kind.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/status.h"
#include "proto/inference.pb.h"

namespace switchyard {

using InferParameters = google::protobuf::Map<std::string, inference::InferParameter>;

// Each function leaves `value` unchanged when the parameter is not there. InvalidArgument for a value of another kind.

// An unsigned integer that does not fit an int64 becomes the largest int64.
absl::Status ReadInteger(const InferParameters& parameters, const char* name, int64_t* value);
// Integers count as numbers too.
absl::Status ReadNumber(const InferParameters& parameters, const char* name, std::optional<double>* value);
absl::Status ReadBool(const InferParameters& parameters, const char* name, bool* value);
absl::Status ReadString(const InferParameters& parameters, const char* name, std::string* value);

}  // namespace switchyard
