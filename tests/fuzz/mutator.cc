#include "tests/fuzz/mutator.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <optional>
#include <utility>

namespace switchyard {
namespace {

enum WireType { kVarint = 0, kFixed64 = 1, kLengthDelimited = 2, kStartGroup = 3, kEndGroup = 4, kFixed32 = 5 };

constexpr int kMaxDepth = 4;
constexpr size_t kMaxCopies = 200;
constexpr size_t kMaxMessageBytes = 64 << 10;  // repetition stops growing a message beyond this

std::optional<uint64_t> TakeVarint(std::string_view* bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes->size() && i < 10; ++i) {
    const auto byte = static_cast<uint8_t>((*bytes)[i]);
    value |= uint64_t{byte & 0x7fu} << (7 * i);
    if (byte < 0x80) {
      bytes->remove_prefix(i + 1);
      return value;
    }
  }
  return std::nullopt;
}

bool TakeBytes(uint64_t count, std::string_view* bytes, std::string* to) {
  if (count > bytes->size()) return false;
  to->assign(bytes->data(), count);
  bytes->remove_prefix(count);
  return true;
}

bool TakePayload(std::string_view* bytes, WireField* field) {
  switch (field->wire_type) {
    case kVarint: {
      const std::string_view before = *bytes;
      if (!TakeVarint(bytes).has_value()) return false;
      field->payload.assign(before.data(), before.size() - bytes->size());
      return true;
    }
    case kFixed64:
      return TakeBytes(8, bytes, &field->payload);
    case kFixed32:
      return TakeBytes(4, bytes, &field->payload);
    case kLengthDelimited: {
      const auto length = TakeVarint(bytes);
      return length.has_value() && TakeBytes(*length, bytes, &field->payload);
    }
    default:
      return false;
  }
}

// Encodes the value in more bytes than it needs, which is legal but rarely tested.
void AppendLongVarint(uint64_t value, size_t num_bytes, std::string* to) {
  for (size_t i = 1; i < num_bytes; ++i, value >>= 7) to->push_back(static_cast<char>((value & 0x7f) | 0x80));
  to->push_back(static_cast<char>(value & 0x7f));
}

}  // namespace

std::vector<WireField> SplitFields(std::string_view bytes) {
  std::vector<WireField> fields;
  while (!bytes.empty()) {
    const auto tag = TakeVarint(&bytes);
    if (!tag.has_value() || *tag >> 3 == 0 || *tag > std::numeric_limits<uint32_t>::max()) return {};
    WireField& field = fields.emplace_back();
    field.number = static_cast<uint32_t>(*tag >> 3);
    field.wire_type = static_cast<int>(*tag & 7);
    if (!TakePayload(&bytes, &field)) return {};
  }
  return fields;
}

void AppendVarint(uint64_t value, std::string* to) {
  for (; value >= 0x80; value >>= 7) to->push_back(static_cast<char>(value | 0x80));
  to->push_back(static_cast<char>(value));
}

void AppendField(const WireField& field, std::string* to) {
  AppendVarint(uint64_t{field.number} << 3 | static_cast<uint64_t>(field.wire_type), to);
  if (field.wire_type == kLengthDelimited) AppendVarint(field.payload.size(), to);
  to->append(field.payload);
}

std::string Mutator::Next() {
  std::string message = AnyOfCorpus();
  if (OneIn(64)) return message;
  for (size_t count = Below(4) + 1; count > 0; --count) MutateMessage(0, &message);
  return message;
}

void Mutator::MutateMessage(int depth, std::string* message) {
  std::vector<WireField> fields = SplitFields(*message);
  if (fields.empty() || OneIn(6)) return DamageBytes(message);
  MutateFields(depth, &fields);
  *message = Join(fields);
}

void Mutator::MutateFields(int depth, std::vector<WireField>* fields) {
  const size_t at = Below(fields->size());
  switch (Below(8)) {
    case 0:
      fields->erase(fields->begin() + static_cast<ptrdiff_t>(at));
      return;
    case 1:
      std::swap((*fields)[at], (*fields)[Below(fields->size())]);
      return;
    case 2: {
      const WireField copy = (*fields)[at];
      const size_t most = std::min(kMaxCopies, kMaxMessageBytes / (copy.payload.size() + 1));
      fields->insert(fields->begin() + static_cast<ptrdiff_t>(Below(fields->size())), 1 + Below(most + 1), copy);
      return;
    }
    case 3: {  // a part of another message
      const std::vector<WireField> other = SplitFields(AnyOfCorpus());
      if (!other.empty()) fields->insert(fields->begin() + static_cast<ptrdiff_t>(at), other[Below(other.size())]);
      return;
    }
    default:
      return MutateField(depth, &(*fields)[at]);
  }
}

void Mutator::MutateField(int depth, WireField* field) {
  if (OneIn(8)) field->number = static_cast<uint32_t>(OneIn(4) ? Below(1 << 29) : Below(20) + 1);
  if (OneIn(8)) field->wire_type = static_cast<int>(Below(8));
  switch (field->wire_type) {
    case kVarint:
      field->payload.clear();
      return AppendVarint(ExtremeNumber(), &field->payload);
    case kFixed32:
    case kFixed64:
      field->payload = Junk(field->wire_type == kFixed32 ? 4 : 8);
      return;
    case kLengthDelimited:
      if (depth < kMaxDepth && !OneIn(3)) return MutateMessage(depth + 1, &field->payload);
      return DamageBytes(&field->payload);
    default:
      return;  // the payload follows a group's begin or end, or a type that does not exist
  }
}

std::string Mutator::Join(const std::vector<WireField>& fields) {
  const size_t odd = fields.empty() || !OneIn(4) ? fields.size() : Below(fields.size());
  std::string message;
  for (size_t i = 0; i < fields.size(); ++i) {
    i == odd ? AppendOddField(fields[i], &message) : AppendField(fields[i], &message);
  }
  return message;
}

void Mutator::AppendOddField(const WireField& field, std::string* to) {
  const uint64_t tag = uint64_t{field.number} << 3 | static_cast<uint64_t>(field.wire_type);
  OneIn(2) ? AppendVarint(tag, to) : AppendLongVarint(tag, 5 + Below(7), to);
  if (field.wire_type == kLengthDelimited) {
    const uint64_t size = field.payload.size();
    switch (Below(4)) {
      case 0:
        AppendVarint(ExtremeNumber(), to);
        break;
      case 1:
        AppendVarint(size + Below(5) - 2, to);  // a little too long or too short; wraps below 0
        break;
      case 2:
        AppendLongVarint(size, 2 + Below(10), to);
        break;
      default:
        AppendVarint(size, to);
    }
  }
  to->append(field.payload);
}

void Mutator::DamageBytes(std::string* bytes) {
  if (bytes->empty()) {
    *bytes = Junk(Below(8));
    return;
  }
  const size_t at = Below(bytes->size());
  switch (Below(6)) {
    case 0:
      (*bytes)[at] = static_cast<char>((*bytes)[at] ^ (1 << Below(8)));
      return;
    case 1:
      (*bytes)[at] = static_cast<char>(random_());
      return;
    case 2:
      bytes->resize(at);
      return;
    case 3:
      bytes->erase(at, Below(16) + 1);
      return;
    case 4:
      bytes->insert(at, Junk(Below(16) + 1));
      return;
    default: {
      const std::string& other = AnyOfCorpus();
      bytes->replace(at, std::string::npos, other, other.empty() ? 0 : Below(other.size()), std::string::npos);
    }
  }
}

uint64_t Mutator::ExtremeNumber() {
  switch (Below(4)) {
    case 0:
      return Below(8);
    case 1:
      return ~uint64_t{0} - Below(4);
    case 2:  // around a power of two
      return (uint64_t{1} << Below(64)) + Below(3) - 1;
    default:
      return random_();
  }
}

std::string Mutator::Junk(size_t num_bytes) {
  std::string junk(num_bytes, '\0');
  for (char& byte : junk) byte = static_cast<char>(random_());
  return junk;
}

grpc::ByteBuffer Mutator::Cut(std::string_view bytes) {
  const size_t longest = OneIn(3) ? bytes.size() + 1 : 1 + Below(64);
  std::vector<grpc::Slice> slices;
  while (!bytes.empty()) {
    const size_t count = longest > bytes.size() ? bytes.size() : Below(longest + 1);
    slices.emplace_back(bytes.data(), count);
    bytes.remove_prefix(count);
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

int64_t FuzzIterations(int64_t usual) {
  const char* wanted = std::getenv("SWITCHYARD_FUZZ_ITERATIONS");
  return wanted == nullptr ? usual : std::atoll(wanted);
}

}  // namespace switchyard
