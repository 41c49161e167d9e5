#include "server/api/kserve/kserve_parameters.h"

#include <algorithm>
#include <limits>

namespace switchyard {
namespace {

using inference::InferParameter;

const char* KindOf(const InferParameter& parameter) {
  switch (parameter.parameter_choice_case()) {
    case InferParameter::kBoolParam:
      return "a bool";
    case InferParameter::kInt64Param:
    case InferParameter::kUint64Param:
      return "an integer";
    case InferParameter::kStringParam:
      return "a string";
    case InferParameter::kDoubleParam:
      return "a double";
    case InferParameter::PARAMETER_CHOICE_NOT_SET:
      return "none";
  }
  return "none";
}

absl::Status WrongKind(const char* name, const char* expected, const InferParameter& found) {
  return absl::InvalidArgumentError(
      absl::StrCat("parameters ", name, ": expected ", expected, ", found ", KindOf(found)));
}

}  // namespace

absl::Status ReadInteger(const InferParameters& parameters, const char* name, int64_t* value) {
  const auto it = parameters.find(name);
  if (it == parameters.end()) return absl::OkStatus();
  const InferParameter& parameter = it->second;
  if (parameter.has_int64_param()) {
    *value = parameter.int64_param();
  } else if (parameter.has_uint64_param()) {
    *value = static_cast<int64_t>(std::min<uint64_t>(parameter.uint64_param(), std::numeric_limits<int64_t>::max()));
  } else {
    return WrongKind(name, "an integer", parameter);
  }
  return absl::OkStatus();
}

absl::Status ReadNumber(const InferParameters& parameters, const char* name, std::optional<double>* value) {
  const auto it = parameters.find(name);
  if (it == parameters.end()) return absl::OkStatus();
  if (it->second.has_double_param()) {
    *value = it->second.double_param();
    return absl::OkStatus();
  }
  int64_t integer = 0;
  if (!ReadInteger(parameters, name, &integer).ok()) return WrongKind(name, "a number", it->second);
  *value = static_cast<double>(integer);
  return absl::OkStatus();
}

absl::Status ReadBool(const InferParameters& parameters, const char* name, bool* value) {
  const auto it = parameters.find(name);
  if (it == parameters.end()) return absl::OkStatus();
  if (!it->second.has_bool_param()) return WrongKind(name, "a bool", it->second);
  *value = it->second.bool_param();
  return absl::OkStatus();
}

absl::Status ReadString(const InferParameters& parameters, const char* name, std::string* value) {
  const auto it = parameters.find(name);
  if (it == parameters.end()) return absl::OkStatus();
  if (!it->second.has_string_param()) return WrongKind(name, "a string", it->second);
  *value = it->second.string_param();
  return absl::OkStatus();
}

}  // namespace switchyard
