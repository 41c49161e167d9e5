// A checkpoint that only its weights tell from another.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace switchyard {

// Writes a safetensors file of bf16 weights anew with the same names, shapes and types, and with the sign of every
// weight inverted.
inline void WriteNegated(const std::filesystem::path& from, const std::filesystem::path& to) {
  std::ifstream in(from, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(in), {}};
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  for (size_t i = sizeof(header_bytes) + header_bytes + 1; i < bytes.size(); i += 2) bytes[i] ^= '\x80';  // bf16
  std::ofstream(to, std::ios::binary) << bytes;
}

}  // namespace switchyard
