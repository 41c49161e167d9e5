// Framing of address blobs: little-endian 32-bit integers, and byte strings behind their length. The bytes come from
// other processes, so every read is checked against the bytes left.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace switchyard {

static_assert(std::endian::native == std::endian::little);

inline void AppendU32(uint32_t value, std::string& out) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

inline void AppendBytes(std::string_view bytes, std::string& out) {
  AppendU32(static_cast<uint32_t>(bytes.size()), out);
  out += bytes;
}

// Reads a blob from the front. A read that returns false has changed nothing but its place.
class BlobReader {
 public:
  explicit BlobReader(std::string_view rest) : rest_(rest) {}

  bool ReadRaw(void* bytes, size_t num_bytes) {
    if (rest_.size() < num_bytes) return false;
    std::memcpy(bytes, rest_.data(), num_bytes);
    rest_.remove_prefix(num_bytes);
    return true;
  }

  bool ReadU32(uint32_t& value) { return ReadRaw(&value, sizeof(value)); }

  bool ReadBytes(std::string& bytes) {
    uint32_t num_bytes = 0;
    if (!ReadU32(num_bytes) || num_bytes > rest_.size()) return false;
    bytes = std::string(rest_.substr(0, num_bytes));
    rest_.remove_prefix(num_bytes);
    return true;
  }

  bool empty() const { return rest_.empty(); }

 private:
  std::string_view rest_;
};

}  // namespace switchyard
