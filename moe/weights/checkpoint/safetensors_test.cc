#include "moe/weights/checkpoint/safetensors.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <fstream>
#include <numeric>

#include "base/tensor/buffer.h"
#include "moe/weights/checkpoint/fault_guard.h"
#include "moe/weights/checkpoint/testing.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kSmallHeader[] = R"({"__metadata__":{"format":"pt"},)"
                                R"("a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                                R"("b":{"dtype":"BF16","shape":[],"data_offsets":[24,26]},)"
                                R"("c":{"dtype":"U8","shape":[0,7],"data_offsets":[26,26]},)"
                                R"("d":{"dtype":"I8","shape":[5],"data_offsets":[26,31]}}   )";
constexpr size_t kSmallDataBytes = 31;

std::string SmallFile() {
  std::string data(kSmallDataBytes, '\0');
  std::iota(data.begin(), data.end(), 1);
  return FileBytes(kSmallHeader, data);
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> OpenBytes(std::string_view bytes) {
  const std::string path = TempPath("case.safetensors");
  WriteFile(path, bytes);
  return SafetensorsFile::Open(path);
}

std::string RuleBroken(std::string_view header, size_t num_data_bytes) {
  const auto file = OpenBytes(FileBytes(header, std::string(num_data_bytes, 'x')));
  EXPECT_FALSE(file.ok()) << header;
  if (file.ok()) return "";
  EXPECT_TRUE(absl::IsInvalidArgument(file.status()));
  EXPECT_THAT(std::string(file.status().message()), testing::StartsWith(TempPath("case.safetensors: ")));
  return std::string(file.status().message());
}

TEST(SafetensorsFile, ReadsNamesShapesTypesBytesAndMetadata) {
  const auto file = OpenBytes(SmallFile());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT((*file)->names(), ElementsAre("a", "b", "c", "d"));
  EXPECT_EQ((*file)->metadata().at("format"), "pt");
  const TensorEntry* a = (*file)->Find("a");
  EXPECT_EQ(a->type->name, "F32");
  EXPECT_EQ(a->type->element, DType::kF32);
  EXPECT_THAT(a->shape, ElementsAre(2, 3));
  EXPECT_EQ(std::to_integer<int>(a->bytes[0]), 1);
  EXPECT_TRUE((*file)->Find("b")->shape.empty());
  EXPECT_TRUE((*file)->Find("c")->bytes.empty());
  EXPECT_EQ(std::to_integer<int>((*file)->Find("d")->bytes.back()), 31);
  EXPECT_FALSE((*file)->Find("d")->type->element.has_value());
  EXPECT_EQ((*file)->Find("e"), nullptr);
  ExpectConsistent(**file);
}

TEST(SafetensorsFile, AcceptsEveryTypeOfTheFormat) {
  const std::vector<std::pair<std::string, size_t>> types = {
      {"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},     {"U64", 8},     {"I32", 4}, {"U32", 4},
      {"I16", 2}, {"U16", 2}, {"I8", 1},  {"U8", 1},   {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"BOOL", 1}};
  for (const auto& [type, num_bytes] : types) {
    const std::string header =
        absl::StrCat(R"({"t":{"dtype":")", type, R"(","shape":[3],"data_offsets":[0,)", 3 * num_bytes, "]}}");
    EXPECT_TRUE(OpenBytes(FileBytes(header, std::string(3 * num_bytes, 'x'))).ok()) << type;
  }
}

TEST(SafetensorsFile, ATypeThatIsNotKnownStopsNothing) {
  const auto file = OpenBytes(FileBytes(R"({"t":{"dtype":"F4","shape":[7,3],"data_offsets":[0,5]},)"
                                        R"("u":{"dtype":"U8","shape":[2],"data_offsets":[5,7]},)"
                                        R"("v":{"dtype":"F4","shape":[],"data_offsets":[7,8]}})",
                                        "12345678"));
  ASSERT_TRUE(file.ok()) << file.status();
  const TensorEntry* const unknown = (*file)->Find("t");
  EXPECT_EQ(unknown->type->name, "F4");
  EXPECT_EQ(unknown->type->num_bytes, 0u);
  EXPECT_FALSE(unknown->type->element.has_value());
  EXPECT_EQ((*file)->Find("v")->type, unknown->type);
  EXPECT_EQ((*file)->Find("u")->type->name, "U8");
  EXPECT_EQ(BytesOf((*file)->Find("u")->bytes), "67");
  ExpectConsistent(**file);
}

TEST(SafetensorsFile, AFileWithoutTensorsIsWhole) {
  EXPECT_TRUE(OpenBytes(FileBytes("{}", "")).ok());
  EXPECT_THAT(RuleBroken("{}", 1), HasSubstr("the tensors end at byte 0 of the data, expected 1"));
}

TEST(SafetensorsFile, SystemErrorsNameTheFile) {
  const auto missing = SafetensorsFile::Open(TempPath("no-such-file"));
  EXPECT_TRUE(absl::IsNotFound(missing.status())) << missing.status();
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("no-such-file"));
  const auto folder = SafetensorsFile::Open(testing::TempDir());
  EXPECT_THAT(std::string(folder.status().message()), HasSubstr("not a regular file"));
}

TEST(SafetensorsFile, HeaderLengthIsCheckedAgainstTheFileAndTheLimit) {
  for (const uint64_t length : {uint64_t{3}, uint64_t{1} << 32, ~uint64_t{0}, ~uint64_t{0} - 7}) {
    const auto file = OpenBytes(LengthField(length) + "{}");
    EXPECT_THAT(std::string(file.status().message()), HasSubstr("header length: found")) << length;
  }
  // A sparse file that is longer than any header may be.
  const std::string path = TempPath("long.safetensors");
  WriteFile(path, LengthField(kMaxSafetensorsHeaderBytes + 1) + "{}");
  ASSERT_EQ(truncate(path.c_str(), kMaxSafetensorsHeaderBytes + 100), 0);
  EXPECT_THAT(std::string(SafetensorsFile::Open(path).status().message()), HasSubstr("expected at most 100000000"));
  unlink(path.c_str());
}

struct RuleCase {
  const char* header;
  size_t num_data_bytes;
  const char* message;
};

TEST(SafetensorsFile, EveryRuleIsEnforcedAndNamed) {
  const RuleCase cases[] = {
      {"", 0, "the header begins with nothing"},
      {" {}", 0, "expected '{'"},
      {"[]", 0, "expected '{'"},
      {"{", 0, "not JSON at byte"},
      {"{} {}", 0, "not JSON at byte"},
      {"{\"a\xff\":1}", 0, "not JSON at byte"},
      {R"({"t":5})", 0, "tensor 't': found the number 5, expected an object"},
      {R"({"t":null})", 0, "found null, expected an object"},
      {R"({"t":[]})", 0, "found a list, expected an object"},
      {R"({"t":{"dtype":"F32","shape":[1]}})", 4, "tensor 't': key data_offsets is missing"},
      {R"({"t":{"dtype":"F32","data_offsets":[0,4]}})", 4, "key shape is missing"},
      {R"({"t":{"shape":[1],"data_offsets":[0,4]}})", 4, "key dtype is missing"},
      {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4, "unknown key 'x'"},
      {R"({"t":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4, "duplicate key dtype"},
      {R"({"t":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}})", 5, "end at byte 4 of the data, expected 5"},
      {R"({"t":{"dtype":4,"shape":[1],"data_offsets":[0,4]}})", 4, "'dtype': found the number 4, expected a string"},
      {R"({"t":{"dtype":{"a":1},"shape":[1],"data_offsets":[0,4]}})", 4, "found an object, expected a string"},
      {R"({"t":{"dtype":"F32","shape":1,"data_offsets":[0,4]}})", 4, "expected a list of whole numbers"},
      {R"({"t":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4, "found a list"},
      {R"({"t":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "found the number -1, expected a whole"},
      {R"({"t":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4, "found the number '1.0'"},
      {R"({"t":{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}})", 4, "found a string"},
      {R"({"t":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}})", 4, "found a boolean"},
      {R"({"t":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]}})", 4, "at most 2^63 - 1"},
      {R"({"t":{"dtype":"F32","shape":[18446744073709551617],"data_offsets":[0,4]}})", 4, "found the number"},
      {R"({"t":{"dtype":"F32","shape":[4611686018427387904,4,1],"data_offsets":[0,4]}})", 4, "more than 2^64"},
      {R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "span 4 bytes, but shape [2] of F32 needs 8"},
      {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4, "data_offsets: found 1 numbers"},
      {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", 4, "data_offsets: found more than 2 numbers"},
      {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4, "expected begin <= end <= 4"},
      {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 4, "expected begin <= end <= 4"},
      {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, "tensor 't' leaves a hole: it begins at 4"},
      {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 5, "end at byte 4 of the data, expected 5"},
      {R"({"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"u":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
       6, "tensor 'u' overlaps another tensor: it begins at 2, expected 4"},
      {R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"t":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2, "tensor 't': this name stands twice"},
      {R"({"__metadata__":{"a":1}})", 0, "'__metadata__': 'a': found the number 1, expected a string"},
      {R"({"__metadata__":{"a":{}}})", 0, "found an object, expected a string"},
      {R"({"__metadata__":{"a":[]}})", 0, "found a list, expected a string"},
      {R"({"__metadata__":{"a":"x","a":"y"}})", 0, "duplicate key 'a'"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "this name stands twice"},
      {R"({"__metadata__":"pt"})", 0, "found a string, expected an object"},
  };
  for (const RuleCase& rule : cases) {
    EXPECT_THAT(RuleBroken(rule.header, rule.num_data_bytes), HasSubstr(rule.message)) << rule.header;
  }
}

TEST(SafetensorsFile, ANulByteDoesNotEndTheHeader) {
  using std::string_literals::operator""s;
  EXPECT_THAT(RuleBroken("{}\0\"hidden\""s, 0), HasSubstr("NUL"));
}

TEST(SafetensorsFile, NestingAndRankAreBounded) {
  std::string deep = R"({"t":{"dtype":"F32","shape":)";
  deep += std::string(1'000'000, '[');
  EXPECT_THAT(RuleBroken(deep, 0), HasSubstr("found a list"));
  std::string ones = "1";
  for (size_t i = 0; i < kMaxSafetensorsRank; ++i) ones += ",1";
  EXPECT_THAT(RuleBroken(R"({"t":{"dtype":"U8","shape":[)" + ones + R"(],"data_offsets":[0,1]}})", 1),
              HasSubstr("shape: found more than 32 numbers"));
}

TEST(SafetensorsFile, HostileNamesAreEscapedAndCutInErrors) {
  const std::string name = std::string("\\u0007") + std::string(5000, 'n');
  const std::string message = RuleBroken(R"({")" + name + R"(":1})", 0);
  EXPECT_THAT(message, HasSubstr("'\\x07nnn"));
  EXPECT_LT(message.size(), 600u);
}

TEST(SafetensorsFile, EveryTruncationAndAnExtraByteAreRefused) {
  const std::string whole = SmallFile();
  for (size_t length = 0; length < whole.size(); ++length) {
    EXPECT_FALSE(OpenBytes(whole.substr(0, length)).ok()) << length;
  }
  EXPECT_FALSE(OpenBytes(whole + "x").ok());
}

// A flip is refused, or gives a file that is as valid as any other (for example with another letter in a name).
TEST(SafetensorsFile, EveryFlippedHeaderByteIsRefusedOrConsistent) {
  const std::string whole = SmallFile();
  size_t num_refused = 0, num_opened = 0;
  for (size_t pos = 0; pos < whole.size() - kSmallDataBytes; ++pos) {
    for (int flip = 1; flip < 256; flip = flip < 128 ? flip * 2 : flip + 127) {
      std::string damaged = whole;
      damaged[pos] ^= static_cast<char>(flip);
      const auto file = OpenBytes(damaged);
      if (file.ok()) {
        ++num_opened;
        ExpectConsistent(**file);
      } else {
        ++num_refused;
        EXPECT_TRUE(absl::IsInvalidArgument(file.status())) << file.status();
      }
    }
  }
  EXPECT_GT(num_refused, 5 * num_opened);
}

TEST(SafetensorsFile, EveryOtherHeaderByteIsHandled) {
  const std::string header = kSmallHeader;
  for (size_t pos = 0; pos < header.size(); ++pos) {
    for (int value = 0; value < 256; ++value) {
      std::string damaged = header;
      damaged[pos] = static_cast<char>(value);
      const auto parsed = ParseSafetensorsHeader(damaged, kSmallDataBytes);
      if (!parsed.ok()) continue;
      uint64_t num_bytes = 0;
      for (const auto& [name, record] : parsed->tensors) num_bytes += record.end - record.begin;
      ASSERT_EQ(num_bytes, kSmallDataBytes) << damaged;
    }
  }
}

int64_t ResidentFileKib() {
  std::ifstream status("/proc/self/status");
  std::string word;
  int64_t kib = -1;
  while (status >> word) {
    if (word == "RssFile:") status >> kib;
  }
  return kib;
}

TEST(SafetensorsFile, ReleasedPagesLeaveMemoryAndReadTheSameAgain) {
  const std::string path = TempPath("big.safetensors");
  std::vector<std::byte> bytes(16 << 20, std::byte{7});
  ASSERT_TRUE(WriteSafetensors(path, std::array{TensorToWrite{"t", "U8", {16 << 20}, bytes}}).ok());
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  ExpectConsistent(**file);
  const int64_t before_kib = ResidentFileKib();
  (*file)->ReleasePages((*file)->Find("t")->bytes);
  const int64_t after_kib = ResidentFileKib();
  if (before_kib >= 0) {  // some sandboxes do not report it
    EXPECT_LT(after_kib, before_kib - (12 << 10));
  }
  EXPECT_EQ((*file)->Find("t")->bytes.back(), std::byte{7});
  unlink(path.c_str());
}

TEST(SafetensorsFile, PopulatedPagesStayWhileNeighboursAreReleased) {
  const std::string path = TempPath("neighbours.safetensors");
  const std::string bytes(5 << 20, '\7');
  const auto data = std::as_bytes(std::span(bytes));
  const std::array tensors = {TensorToWrite{"a", "U8", {5 << 20}, data}, TensorToWrite{"b", "U8", {5 << 20}, data}};
  ASSERT_TRUE(WriteSafetensors(path, tensors).ok());
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto a = (*file)->Find("a")->bytes, b = (*file)->Find("b")->bytes;
  const int64_t before_kib = ResidentFileKib();
  ASSERT_TRUE((*file)->PopulatePages(a).ok());
  ASSERT_TRUE((*file)->PopulatePages(b).ok());
  const int64_t both_kib = ResidentFileKib();
  (*file)->ReleasePages(a);
  (*file)->ReleasePages(a);  // once too often
  const int64_t one_kib = ResidentFileKib();
  EXPECT_EQ(BytesOf(a), bytes) << "released, not lost";
  (*file)->ReleasePages(a);
  (*file)->ReleasePages(b);
  const int64_t none_kib = ResidentFileKib();
  if (before_kib >= 0 && both_kib >= before_kib + (10 << 10)) {  // the system reports it, and can populate
    EXPECT_GE(one_kib, before_kib + (5 << 10) - 2048) << "all of b but a window that a's second release may take";
    EXPECT_LT(none_kib, before_kib + 1024);
  }
  unlink(path.c_str());
}

TEST(SafetensorsFile, AFileThatBecameShorterIsNoticedBeforeItsBytesAreUsed) {
  const std::string path = TempPath("shorter.safetensors");
  const std::string bytes(1 << 20, '\7');
  const std::array tensors = {TensorToWrite{"t", "U8", {1 << 20}, std::as_bytes(std::span(bytes))}};
  ASSERT_TRUE(WriteSafetensors(path, tensors).ok());
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(truncate(path.c_str(), 1 << 19), 0);
  const absl::Status populated = (*file)->PopulatePages((*file)->Find("t")->bytes);
  EXPECT_EQ(populated.code(), absl::StatusCode::kDataLoss) << populated;
  EXPECT_THAT(populated.message(), HasSubstr(path + ": bytes "));
  EXPECT_THAT(populated.message(), HasSubstr("cannot be read: the file became shorter or its disk fails"));
  unlink(path.c_str());
}

TEST(SafetensorsFile, BytesThatAreGoneReadAsZerosAndAreReported) {
  const std::string path = TempPath("gone.safetensors");
  const std::string bytes(1 << 20, '\7');
  const std::array tensors = {TensorToWrite{"t", "U8", {1 << 20}, std::as_bytes(std::span(bytes))}};
  ASSERT_TRUE(WriteSafetensors(path, tensors).ok());
  const auto file = SafetensorsFile::Open(path);
  const auto untouched = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok() && untouched.ok());
  const std::span<const std::byte> read = (*file)->Find("t")->bytes;
  ASSERT_TRUE((*file)->PopulatePages(read).ok());
  ASSERT_EQ(truncate(path.c_str(), 1 << 19), 0);
  EXPECT_EQ(read.front(), std::byte{7});
  EXPECT_TRUE((*file)->CheckIntact().ok()) << "what was read so far was there";
  EXPECT_EQ(read.back(), std::byte{0});
  EXPECT_EQ(read[read.size() / 2 + 100'000], std::byte{0});
  const absl::Status damaged = (*file)->CheckIntact();
  EXPECT_EQ(damaged.code(), absl::StatusCode::kDataLoss) << damaged;
  EXPECT_THAT(damaged.message(), HasSubstr(path + ": the file became shorter than "));
  EXPECT_TRUE((*untouched)->CheckIntact().ok()) << "another mapping of the file, that nobody has read";
  unlink(path.c_str());
}

TEST(FaultGuard, WhatIsNotGuardedStillEndsTheProcess) {
  EXPECT_EXIT(
      {
        const std::string path = TempPath("unguarded");
        WriteFile(path, std::string(4096, 'x'));
        const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        void* const plain = mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
        const FaultGuard other(std::as_bytes(std::span("elsewhere")));
        if (truncate(path.c_str(), 0) != 0) _exit(1);
        _exit(*static_cast<const volatile char*>(plain));
      },
      [](int status) { return !WIFEXITED(status) || WEXITSTATUS(status) != 0; }, "");
}

TEST(WriteSafetensors, RoundTripsAndAlignsEveryTensor) {
  const std::string path = TempPath("round.safetensors");
  const std::array<uint8_t, 3> odd = {1, 2, 3};
  HostMatrix matrix = HostMatrix::Allocate(DType::kF64, 2, 2);
  for (int i = 0; i < 4; ++i) matrix.view().as<double>()[i] = i + 0.5;
  const std::array tensors = {TensorToWrite{"odd", "U8", {3}, std::as_bytes(std::span(odd))},
                              MatrixToWrite("m", matrix.view()), TensorToWrite{"empty", "F32", {0, 9}, {}}};
  ASSERT_TRUE(WriteSafetensors(path, tensors, {{"source", "a \"test\""}}).ok());
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT((*file)->names(), ElementsAre("empty", "m", "odd"));
  EXPECT_EQ((*file)->metadata().at("source"), "a \"test\"");
  const TensorEntry* m = (*file)->Find("m");
  EXPECT_THAT(m->shape, ElementsAre(2, 2));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(m->bytes.data()) % 8, 0u);
  EXPECT_EQ(BytesOf(m->bytes), BytesOf({matrix.buffer.data(), 32}));
  EXPECT_EQ(BytesOf((*file)->Find("odd")->bytes), "\1\2\3");
}

TEST(WriteSafetensors, ReplacesTheFileUnderItsReaders) {
  const std::string path = TempPath("replaced.safetensors");
  const std::array<uint8_t, 4> bytes = {1, 2, 3, 4};
  const auto write = [&](size_t count) {
    const auto used = std::as_bytes(std::span(bytes).first(count));
    return WriteSafetensors(path, std::array{TensorToWrite{"t", "U8", {static_cast<int64_t>(count)}, used}});
  };
  ASSERT_TRUE(write(4).ok());
  const auto old_file = SafetensorsFile::Open(path);
  ASSERT_TRUE(write(1).ok());
  EXPECT_EQ(BytesOf((*old_file)->Find("t")->bytes), "\1\2\3\4");
  EXPECT_EQ((*SafetensorsFile::Open(path))->Find("t")->bytes.size(), 1u);
}

TEST(WriteSafetensors, RefusesWhatCouldNotBeReadBack) {
  const std::string path = TempPath("refused.safetensors");
  const std::array<uint8_t, 4> bytes = {};
  const auto write = [&](std::vector<TensorToWrite> tensors) {
    for (TensorToWrite& tensor : tensors) tensor.bytes = std::as_bytes(std::span(bytes));
    return std::string(WriteSafetensors(path, tensors).message());
  };
  EXPECT_THAT(write({{"t", "U8", {5}, {}}}), HasSubstr("shape [5] of U8 needs 5"));
  EXPECT_THAT(write({{"t", "U9", {4}, {}}}), HasSubstr("unknown dtype U9"));
  EXPECT_THAT(write({{"t", "U8", {4}, {}}, {"t", "U8", {4}, {}}}), HasSubstr("given twice"));
  EXPECT_THAT(write({{"\xff", "U8", {4}, {}}}), HasSubstr("cannot be written as JSON"));
  EXPECT_NE(access(path.c_str(), F_OK), 0) << "a refused file should not appear";
  EXPECT_FALSE(WriteSafetensors(TempPath("no/such/folder.safetensors"), {}).ok());
}

}  // namespace
}  // namespace switchyard
