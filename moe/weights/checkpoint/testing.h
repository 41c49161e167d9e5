// Files and bytes, for tests of checkpoints.
#pragma once

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "moe/weights/checkpoint/safetensors.h"

namespace switchyard {

// A path of this test's own.
inline std::string TempPath(const std::string& name) { return testing::TempDir() + "/" + name; }

inline void WriteFile(const std::string& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), bytes.size());
  ASSERT_TRUE(file.good()) << path;
}

inline std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

inline std::string LengthField(uint64_t length) { return {reinterpret_cast<const char*>(&length), sizeof(length)}; }

// A .safetensors file's bytes.
inline std::string FileBytes(std::string_view header, std::string_view data) {
  return LengthField(header.size()) + std::string(header) + std::string(data);
}

inline std::string BytesOf(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Checks a file that opened: every tensor of a known type has exactly the bytes of its shape, and together the tensors
// are the data.
inline void ExpectConsistent(const SafetensorsFile& file) {
  size_t num_bytes = 0;
  unsigned sum = 0;
  for (std::string_view name : file.names()) {
    const TensorEntry& entry = *file.Find(name);
    size_t expected = entry.type->num_bytes;
    for (int64_t dim : entry.shape) expected *= dim;
    if (entry.type->num_bytes > 0) {
      ASSERT_EQ(entry.bytes.size(), expected) << name;
    }
    for (std::byte byte : entry.bytes) sum += std::to_integer<unsigned>(byte);  // readable
    num_bytes += entry.bytes.size();
  }
  volatile unsigned sink = sum;
  (void)sink;
  ASSERT_EQ(file.header_bytes().size() + num_bytes, file.size_bytes());
}

}  // namespace switchyard
