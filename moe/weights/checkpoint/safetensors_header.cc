#include "moe/weights/checkpoint/safetensors_header.h"

#include <algorithm>
#include <array>
#include <limits>

#include "absl/strings/str_join.h"
#include "moe/weights/checkpoint/quoted.h"
#include "moe/weights/checkpoint/strict_json.h"

namespace switchyard {
namespace {

constexpr std::array<StoredType, 15> kStoredTypes = {{
    {"F64", 8, DType::kF64},
    {"F32", 4, DType::kF32},
    {"F16", 2, DType::kF16},
    {"BF16", 2, DType::kBF16},
    {"I64", 8, std::nullopt},
    {"U64", 8, std::nullopt},
    {"I32", 4, std::nullopt},
    {"U32", 4, std::nullopt},
    {"I16", 2, std::nullopt},
    {"U16", 2, std::nullopt},
    {"I8", 1, std::nullopt},
    {"U8", 1, std::nullopt},
    {"F8_E4M3", 1, std::nullopt},
    {"F8_E5M2", 1, std::nullopt},
    {"BOOL", 1, std::nullopt},
}};

constexpr std::string_view kMetadata = "__metadata__";

// Reads the header event by event, so that parsing stops at the first wrong event of a hostile header, before it costs
// memory. Levels: 0 before the outermost object; 1 in it, at names and entries; 2 in an entry; 3 in an entry's list.
class HeaderHandler final : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool start_object(size_t) override {
    if (level_ == 0) return Enter();
    if (level_ == 1) return in_metadata_ ? Enter() : BeginTensor();
    return Unexpected("an object");
  }

  bool end_object() override {
    --level_;
    return level_ != 1 || in_metadata_ || EndTensor();
  }

  bool key(string_t& key) override {
    if (level_ == 1) return BeginEntry(key);
    if (in_metadata_) return BeginMetadataValue(key);
    field_ = key;
    if (field_ != "dtype" && field_ != "shape" && field_ != "data_offsets") {
      return Fail(absl::StrCat("unknown key ", Quoted(key), ", expected dtype, shape or data_offsets"));
    }
    bool& seen = field_ == "dtype" ? seen_dtype_ : field_ == "shape" ? seen_shape_ : seen_offsets_;
    if (seen) return Fail(absl::StrCat("duplicate key ", field_));
    return seen = true;
  }

  bool string(string_t& text) override {
    if (level_ == 2 && in_metadata_) {
      header_.metadata[field_] = text;
      return true;
    }
    if (level_ != 2 || field_ != "dtype") return Unexpected("a string");
    record_.type = FindStoredType(text);
    if (record_.type == nullptr) record_.type = UnknownType(text);
    return true;
  }

  bool start_array(size_t) override {
    if (level_ != 2 || in_metadata_ || field_ == "dtype") return Unexpected("a list");
    numbers_.clear();
    return Enter();
  }

  bool number_unsigned(number_unsigned_t number) override {
    if (level_ != 3) return Unexpected(absl::StrCat("the number ", number));
    const size_t max_numbers = field_ == "shape" ? kMaxSafetensorsRank : 2;
    if (numbers_.size() == max_numbers) {
      return Fail(absl::StrCat(field_, ": found more than ", max_numbers, " numbers"));
    }
    if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Fail(absl::StrCat(field_, ": found ", number, ", expected at most 2^63 - 1"));
    }
    numbers_.push_back(static_cast<int64_t>(number));
    return true;
  }

  bool end_array() override {
    --level_;
    if (field_ == "shape") {
      record_.shape = numbers_;
      return true;
    }
    if (numbers_.size() != 2) {
      return Fail(absl::StrCat("data_offsets: found ", numbers_.size(), " numbers, expected [begin, end]"));
    }
    record_.begin = numbers_[0];
    record_.end = numbers_[1];
    return true;
  }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_integer(number_integer_t number) override { return Unexpected(absl::StrCat("the number ", number)); }
  bool number_float(number_float_t, const string_t& text) override { return Unexpected("the number " + Quoted(text)); }
  bool binary(binary_t&) override { return Unexpected("binary data"); }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    return Fail(absl::StrCat("not JSON at byte ", position, ": ", Quoted(error.what())));
  }

  const std::string& error() const { return error_; }
  SafetensorsHeader& header() { return header_; }

 private:
  bool Enter() {
    ++level_;
    return true;
  }

  bool BeginEntry(const std::string& name) {
    name_ = name;
    field_.clear();
    in_metadata_ = name == kMetadata;
    const bool duplicate = in_metadata_ ? seen_metadata_ : header_.tensors.contains(name);
    seen_metadata_ |= in_metadata_;
    return !duplicate || Fail("this name stands twice in the header");
  }

  bool BeginMetadataValue(const std::string& key) {
    field_ = key;
    return !header_.metadata.contains(key) || Fail(absl::StrCat("duplicate key ", Quoted(key)));
  }

  const StoredType* UnknownType(const std::string& name) {
    const auto type = header_.unknown_types.try_emplace(name).first;
    type->second.name = type->first;
    return &type->second;
  }

  bool BeginTensor() {
    record_ = {};
    seen_dtype_ = seen_shape_ = seen_offsets_ = false;
    return Enter();
  }

  bool EndTensor() {
    const char* missing = !seen_dtype_ ? "dtype" : !seen_shape_ ? "shape" : !seen_offsets_ ? "data_offsets" : nullptr;
    if (missing != nullptr) return Fail(absl::StrCat("key ", missing, " is missing"));
    header_.tensors.emplace(name_, std::move(record_));
    return true;
  }

  bool Unexpected(const std::string& found) {
    const std::string where = field_.empty() ? "" : absl::StrCat(Quoted(field_), ": ");
    return Fail(absl::StrCat(where, "found ", found, ", expected ", Expected()));
  }

  const char* Expected() const {
    if (level_ == 0) return "an object of tensors";
    if (level_ == 1) return "an object";
    if (in_metadata_ || field_ == "dtype") return "a string";
    return level_ == 2 ? "a list of whole numbers" : "a whole number of at least 0";
  }

  bool Fail(std::string error) {
    error_ = level_ == 0 || name_.empty() ? std::move(error) : absl::StrCat("tensor ", Quoted(name_), ": ", error);
    return false;
  }

  SafetensorsHeader header_;
  int level_ = 0;
  bool seen_metadata_ = false;
  std::string name_;  // of the entry being read
  bool in_metadata_ = false;
  std::string field_;  // the entry's key being read
  bool seen_dtype_ = false, seen_shape_ = false, seen_offsets_ = false;
  TensorRecord record_;
  std::vector<int64_t> numbers_;  // of the list being read
  std::string error_ = "not JSON: it contains a NUL byte";
};

// Bytes of a tensor; nullopt when they do not fit 64 bits.
std::optional<uint64_t> TensorBytes(const TensorRecord& record) {
  uint64_t num_bytes = record.type->num_bytes;
  for (int64_t dim : record.shape) {
    if (__builtin_mul_overflow(num_bytes, static_cast<uint64_t>(dim), &num_bytes)) return std::nullopt;
  }
  return num_bytes;
}

absl::Status CheckSpan(const TensorRecord& record, uint64_t num_data_bytes) {
  if (record.begin > record.end || record.end > num_data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("data_offsets: found [", record.begin, ", ", record.end,
                                                   "], expected begin <= end <= ", num_data_bytes,
                                                   ", the bytes after the header"));
  }
  if (record.type->num_bytes == 0) return absl::OkStatus();
  const std::optional<uint64_t> num_bytes = TensorBytes(record);
  if (num_bytes == record.end - record.begin) return absl::OkStatus();
  const std::string wanted = num_bytes ? absl::StrCat(*num_bytes, " bytes") : "more than 2^64 bytes";
  return absl::InvalidArgumentError(absl::StrCat("data_offsets span ", record.end - record.begin, " bytes, but shape [",
                                                 absl::StrJoin(record.shape, ", "), "] of ",
                                                 std::string(record.type->name), " needs ", wanted));
}

// The tensors, sorted by where they begin, must follow each other from the first byte to the last.
absl::Status CheckCoverage(const SafetensorsHeader& header, uint64_t num_data_bytes) {
  using Named = std::pair<const std::string, TensorRecord>;
  std::vector<const Named*> in_order;
  for (const Named& tensor : header.tensors) in_order.push_back(&tensor);
  std::sort(in_order.begin(), in_order.end(), [](const Named* a, const Named* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  uint64_t covered = 0;
  for (const Named* tensor : in_order) {
    if (tensor->second.begin != covered) {
      const char* rule = tensor->second.begin > covered ? "leaves a hole" : "overlaps another tensor";
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(tensor->first), " ", rule, ": it begins at ",
                                                     tensor->second.begin, ", expected ", covered));
    }
    covered = tensor->second.end;
  }
  if (covered == num_data_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the tensors end at byte ", covered, " of the data, expected ", num_data_bytes, ", its end"));
}

}  // namespace

const StoredType* FindStoredType(std::string_view name) {
  const auto found = std::find_if(kStoredTypes.begin(), kStoredTypes.end(),
                                  [name](const StoredType& type) { return type.name == name; });
  return found == kStoredTypes.end() ? nullptr : &*found;
}

const StoredType& StoredTypeOf(DType dtype) {
  return *std::find_if(kStoredTypes.begin(), kStoredTypes.end(),
                       [dtype](const StoredType& type) { return type.element == dtype; });
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json, uint64_t num_data_bytes) {
  if (json.empty() || json.front() != '{') {
    return absl::InvalidArgumentError(absl::StrCat(
        "the header begins with ", json.empty() ? "nothing" : Quoted(json.substr(0, 1)), ", expected '{'"));
  }
  HeaderHandler handler;
  if (!ParseSax(json, &handler)) return absl::InvalidArgumentError(absl::StrCat("header: ", handler.error()));
  for (const auto& [name, record] : handler.header().tensors) {
    SY_RETURN_IF_ERROR(Annotate(CheckSpan(record, num_data_bytes), absl::StrCat("tensor ", Quoted(name))));
  }
  SY_RETURN_IF_ERROR(CheckCoverage(handler.header(), num_data_bytes));
  return std::move(handler.header());
}

}  // namespace switchyard
