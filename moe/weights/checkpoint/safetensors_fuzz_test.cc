// Random damage to a valid file: every result must be an error or a consistent file, never a crash or a read outside
// the mapping. Seeded; SWITCHYARD_FUZZ_ITERATIONS asks for more than the default.
#include <gtest/gtest.h>

#include <array>

#include "moe/weights/checkpoint/testing.h"
#include "moe/weights/checkpoint/text_mutator.h"

namespace switchyard {
namespace {

constexpr char kHeader[] = R"({"__metadata__":{"format":"pt","note":"\u00e9"},)"
                           R"("m.gate":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
                           R"("m.up":{"dtype":"BF16","shape":[2,4],"data_offsets":[16,32]},)"
                           R"("m.scale":{"dtype":"F64","shape":[],"data_offsets":[32,40]},)"
                           R"("m.none":{"dtype":"I64","shape":[0],"data_offsets":[40,40]},)"
                           R"("m.mask":{"dtype":"BOOL","shape":[8],"data_offsets":[40,48]}})";
constexpr size_t kDataBytes = 48;

// The format's own tokens.
constexpr std::array kTokens = {"[0,16]", "\"F32\"", "\"a\"", "\"__metadata__\":{}", "\"shape\":[1]"};

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : text_(seed, {kTokens.begin(), kTokens.end()}) {}

  std::string Damaged() {
    const std::string header = text_.Damaged(kHeader);
    size_t num_data_bytes = kDataBytes;
    if (text_.Below(8) == 0) num_data_bytes = text_.Below(100);
    uint64_t length = header.size();
    if (text_.Below(8) == 0) length = text_.Below(2) == 0 ? text_.Below(1000) : text_.Any();
    return LengthField(length) + header + std::string(num_data_bytes, 'd');
  }

 private:
  TextMutator text_;
};

TEST(SafetensorsFuzz, DamagedFilesAreRefusedOrConsistent) {
  MemoryFile memory;
  memory.Write(FileBytes(kHeader, std::string(kDataBytes, 'd')));
  ASSERT_TRUE(SafetensorsFile::Open(memory.path()).ok());
  Mutator mutator(20240607);
  int64_t num_opened = 0;
  const int64_t num_iterations = FuzzIterations(20'000);
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
