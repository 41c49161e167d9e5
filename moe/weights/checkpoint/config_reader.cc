#include "moe/weights/checkpoint/config_reader.h"

#include "moe/weights/checkpoint/strict_json.h"

namespace switchyard {
namespace {

using nlohmann::json;

bool IsIntIn(const json& value, int64_t min, int64_t max) {
  if (!value.is_number_integer()) return false;
  // An unsigned number above 2^63 would wrap to a negative one.
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) return false;
  const auto number = value.get<int64_t>();
  return min <= number && number <= max;
}

std::string Range(int64_t min, int64_t max) { return absl::StrCat("from ", min, " to ", max); }

}  // namespace

absl::StatusOr<ConfigReader> ConfigReader::Parse(std::string file, std::string_view text) {
  auto root = ParseStrictJson(text);
  if (!root.ok()) return Annotate(root.status(), file);
  if (!root->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": found ", Described(*root), ", expected an object"));
  }
  return ConfigReader(std::move(file), "", *std::move(root));
}

absl::StatusOr<int64_t> ConfigReader::Int(std::string_view key, int64_t min, int64_t max,
                                          std::optional<int64_t> fallback) const {
  const json* value = Find(key);
  if (value == nullptr && fallback) return *fallback;
  if (value != nullptr && IsIntIn(*value, min, max)) return value->get<int64_t>();
  return Mismatch(key, value, absl::StrCat("a whole number ", Range(min, max)));
}

absl::StatusOr<double> ConfigReader::Double(std::string_view key, double min, double max,
                                            std::optional<double> fallback) const {
  const json* value = Find(key);
  if (value == nullptr && fallback) return *fallback;
  if (value != nullptr && value->is_number()) {
    const auto number = value->get<double>();
    if (min <= number && number <= max) return number;
  }
  return Mismatch(key, value, absl::StrCat("a number from ", min, " to ", max));
}

absl::StatusOr<bool> ConfigReader::Bool(std::string_view key, std::optional<bool> fallback) const {
  const json* value = Find(key);
  if (value == nullptr && fallback) return *fallback;
  if (value != nullptr && value->is_boolean()) return value->get<bool>();
  return Mismatch(key, value, "true or false");
}

absl::StatusOr<std::string> ConfigReader::Text(std::string_view key, std::optional<std::string> fallback) const {
  const json* value = Find(key);
  if (value == nullptr && fallback) return *fallback;
  if (value != nullptr && value->is_string()) return value->get<std::string>();
  return Mismatch(key, value, "a string");
}

absl::StatusOr<std::vector<int64_t>> ConfigReader::IntList(std::string_view key, int64_t min, int64_t max) const {
  std::vector<int64_t> numbers;
  const json* value = Find(key);
  if (value == nullptr) return numbers;
  if (!value->is_array()) return Mismatch(key, value, "a list of whole numbers");
  for (const json& item : *value) {
    if (!IsIntIn(item, min, max)) return Mismatch(key, &item, absl::StrCat("whole numbers ", Range(min, max)));
    numbers.push_back(item.get<int64_t>());
  }
  return numbers;
}

absl::StatusOr<ConfigReader> ConfigReader::Object(std::string_view key) const {
  const json* value = Find(key);
  if (value == nullptr || !value->is_object()) return Mismatch(key, value, "an object");
  return ConfigReader(file_, absl::StrCat(path_, std::string(key), "."), *value);
}

absl::StatusOr<std::vector<ConfigReader>> ConfigReader::Objects(std::string_view key) const {
  std::vector<ConfigReader> objects;
  const json* value = Find(key);
  if (value == nullptr || !value->is_array()) {
    SY_ASSIGN_OR_RETURN(ConfigReader object, Object(key));
    objects.push_back(std::move(object));
    return objects;
  }
  for (const json& item : *value) {
    if (!item.is_object()) return Mismatch(key, &item, "a list of objects");
    const std::string path = absl::StrCat(path_, std::string(key), "[", objects.size(), "].");
    objects.push_back(ConfigReader(file_, path, item));
  }
  return objects;
}

bool ConfigReader::IsNull(std::string_view key) const {
  const auto found = root_.find(std::string(key));
  return found != root_.end() && found->is_null();
}

absl::Status ConfigReader::Error(std::string_view key, std::string_view message) const {
  return absl::InvalidArgumentError(absl::StrCat(file_, ": ", path_, std::string(key), ": ", std::string(message)));
}

const json* ConfigReader::Find(std::string_view key) const {
  const auto found = root_.find(std::string(key));
  return found == root_.end() || found->is_null() ? nullptr : &*found;
}

absl::Status ConfigReader::Mismatch(std::string_view key, const json* found, std::string_view expected) const {
  const std::string shown = found == nullptr ? "no such key" : Described(*found);
  return Error(key, absl::StrCat("found ", shown, ", expected ", std::string(expected)));
}

}  // namespace switchyard
