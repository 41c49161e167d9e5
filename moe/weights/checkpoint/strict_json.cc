#include "moe/weights/checkpoint/strict_json.h"

#include <vector>

#include "absl/container/flat_hash_set.h"
#include "moe/weights/checkpoint/quoted.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 64;

// Checks the rules and builds nothing.
class RuleChecker final : public nlohmann::json_sax<json> {
 public:
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override { return Enter(); }
  bool start_array(size_t) override { return Enter(); }
  bool end_object() override { return Leave(); }
  bool end_array() override { return Leave(); }

  bool key(string_t& name) override {
    if (keys_.back().insert(name).second) return true;
    return Fail(absl::StrCat("duplicate key ", Quoted(name)));
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    return Fail(absl::StrCat("not JSON at byte ", position, ": ", Quoted(error.what())));
  }

  const std::string& error() const { return error_; }

 private:
  bool Enter() {
    keys_.emplace_back();
    return keys_.size() <= kMaxDepth || Fail(absl::StrCat("nested deeper than ", kMaxDepth, " levels"));
  }
  bool Leave() {
    keys_.pop_back();
    return true;
  }
  bool Fail(std::string error) {
    error_ = std::move(error);
    return false;
  }

  std::vector<absl::flat_hash_set<std::string>> keys_;  // of each open object or array
  std::string error_ = "not JSON: it contains a NUL byte";
};

}  // namespace

absl::StatusOr<json> ParseStrictJson(std::string_view text) {
  RuleChecker checker;
  if (!ParseSax(text, &checker)) return absl::InvalidArgumentError(checker.error());
  return json::parse(text.begin(), text.end(), /*cb=*/nullptr, /*allow_exceptions=*/false);
}

std::string Described(const json& value) {
  if (value.is_string()) return absl::StrCat("the string ", Quoted(value.get_ref<const std::string&>()));
  if (value.is_number()) return absl::StrCat("the number ", value.dump());
  if (value.is_boolean()) return value.dump();
  if (value.is_null()) return "null";
  return absl::StrCat("an ", value.type_name());
}

absl::StatusOr<std::string> DumpJson(const json& value) {
  try {
    return value.dump();
  } catch (const json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("cannot be written as JSON: ", error.what()));
  }
}

}  // namespace switchyard
