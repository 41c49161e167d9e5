// Random damage to a valid file: every result must be an error or a consistent file, never a crash or a read outside
// the mapping. Seeded; SWITCHYARD_FUZZ_ITERATIONS asks for more than the default.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <functional>
#include <random>

#include "base/unique_fd.h"
#include "moe/weights/checkpoint/testing.h"

namespace switchyard {
namespace {

constexpr char kHeader[] = R"({"__metadata__":{"format":"pt","note":"\u00e9"},)"
                           R"("m.gate":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
                           R"("m.up":{"dtype":"BF16","shape":[2,4],"data_offsets":[16,32]},)"
                           R"("m.scale":{"dtype":"F64","shape":[],"data_offsets":[32,40]},)"
                           R"("m.none":{"dtype":"I64","shape":[0],"data_offsets":[40,40]},)"
                           R"("m.mask":{"dtype":"BOOL","shape":[8],"data_offsets":[40,48]}})";
constexpr size_t kDataBytes = 48;

// Tokens that have broken parsers before, and this format's own.
constexpr std::array kTokens = {"-1",
                                "18446744073709551615",
                                "18446744073709551616",
                                "9223372036854775807",
                                "1e5",
                                "0.0",
                                "null",
                                "[",
                                "]",
                                "{",
                                "}",
                                ",",
                                "\"",
                                "\\u0000",
                                "[0,16]",
                                "\"F32\"",
                                "\"a\"",
                                "\"__metadata__\":{}",
                                "\"shape\":[1]",
                                "true"};

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  std::string Damaged() {
    std::string header = kHeader;
    for (size_t count = Below(4) + 1; count > 0; --count) DamageOnce(&header);
    size_t num_data_bytes = kDataBytes;
    if (Below(8) == 0) num_data_bytes = Below(100);
    uint64_t length = header.size();
    if (Below(8) == 0) length = Below(2) == 0 ? Below(1000) : random_();
    return LengthField(length) + header + std::string(num_data_bytes, 'd');
  }

 private:
  size_t Below(size_t bound) { return random_() % bound; }

  void DamageOnce(std::string* text) {
    if (text->empty()) return;
    const size_t pos = Below(text->size());
    const size_t span = Below(24) + 1;
    switch (Below(7)) {
      case 0:
        (*text)[pos] ^= static_cast<char>(1 << Below(8));
        return;
      case 1:
        (*text)[pos] = static_cast<char>(Below(256));
        return;
      case 2:
        text->erase(pos, span);
        return;
      case 3:
        text->insert(Below(text->size()), text->substr(pos, span * 4));
        return;
      case 4:
        text->insert(pos, kTokens[Below(kTokens.size())]);
        return;
      case 5:
        ReplaceNumber(text, pos);
        return;
      default:
        text->replace(pos, std::min(span, text->size() - pos), kTokens[Below(kTokens.size())]);
    }
  }

  // Replaces the first number at or after `pos` by a small or an extreme one, which keeps the JSON valid.
  void ReplaceNumber(std::string* text, size_t pos) {
    constexpr char kDigits[] = "0123456789";
    const size_t begin = text->find_first_of(kDigits, pos);
    if (begin == std::string::npos) return;
    const size_t end = std::min(text->find_first_not_of(kDigits, begin), text->size());
    text->replace(begin, end - begin, Below(2) == 0 ? absl::StrCat(Below(64)) : kTokens[Below(6)]);
  }

  std::mt19937_64 random_;
};

// A file in memory with a path, rewritten for every iteration: a hundred times faster than one on disk.
class MemoryFile {
 public:
  MemoryFile() : fd_(memfd_create("fuzz", MFD_CLOEXEC)), path_(absl::StrCat("/proc/self/fd/", fd_.get())) {}

  const std::string& path() const { return path_; }

  void Write(const std::string& bytes) {
    ASSERT_EQ(ftruncate(fd_.get(), static_cast<off_t>(bytes.size())), 0);
    ASSERT_EQ(pwrite(fd_.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  }

 private:
  const UniqueFd fd_;
  const std::string path_;
};

int64_t NumIterations() {
  const char* wanted = std::getenv("SWITCHYARD_FUZZ_ITERATIONS");
  return wanted == nullptr ? 20'000 : std::atoll(wanted);
}

TEST(SafetensorsFuzz, DamagedFilesAreRefusedOrConsistent) {
  MemoryFile memory;
  memory.Write(FileBytes(kHeader, std::string(kDataBytes, 'd')));
  ASSERT_TRUE(SafetensorsFile::Open(memory.path()).ok());
  Mutator mutator(20240607);
  int64_t num_opened = 0;
  const int64_t num_iterations = NumIterations();
  for (int64_t i = 0; i < num_iterations; ++i) {
    const std::string bytes = mutator.Damaged();
    memory.Write(bytes);
    const auto file = SafetensorsFile::Open(memory.path());
    if (!file.ok()) {
      ASSERT_TRUE(absl::IsInvalidArgument(file.status())) << file.status();
      continue;
    }
    ++num_opened;
    ExpectConsistent(**file);
    ASSERT_FALSE(testing::Test::HasFailure()) << "iteration " << i << ": " << bytes.substr(8);
  }
  // Both outcomes must occur, or the damage is too weak or too strong to test anything.
  EXPECT_GT(num_opened, 0);
  EXPECT_LT(num_opened, num_iterations / 2);
}

}  // namespace
}  // namespace switchyard
