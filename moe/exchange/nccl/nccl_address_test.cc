#include "moe/exchange/nccl/nccl_address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace switchyard {
namespace {

using testing::AllOf;
using testing::HasSubstr;

NcclAddress AddressOf(int rank, int size) {
  NcclAddress address{.rank = rank, .size = size, .nccl_version = 22809};
  for (size_t idx = 0; idx < address.gpu.size(); ++idx) address.gpu[idx] = static_cast<uint8_t>(16 * rank + idx);
  for (size_t idx = 0; idx < NcclAddress::UniqueIdBytes(rank, size); ++idx) {
    address.unique_id.push_back(static_cast<char>(7 * idx));
  }
  return address;
}

std::vector<std::string> BlobsOf(int size) {
  std::vector<std::string> blobs;
  for (int rank = 0; rank < size; ++rank) blobs.push_back(EncodeNcclAddress(AddressOf(rank, size)));
  return blobs;
}

absl::Status Parse(const std::string& blob, int rank, int size) { return ParseNcclAddress(blob, rank, size).status(); }

TEST(NcclAddressTest, ComesBackAsItWas) {
  for (const int size : {1, 2, 5}) {
    for (int rank = 0; rank < size; ++rank) {
      const NcclAddress address = AddressOf(rank, size);
      const auto parsed = ParseNcclAddress(EncodeNcclAddress(address), rank, size);
      ASSERT_TRUE(parsed.ok()) << parsed.status();
      EXPECT_EQ(parsed->rank, rank);
      EXPECT_EQ(parsed->size, size);
      EXPECT_EQ(parsed->nccl_version, address.nccl_version);
      EXPECT_EQ(parsed->gpu, address.gpu);
      EXPECT_EQ(parsed->unique_id, address.unique_id);
    }
  }
}

TEST(NcclAddressTest, OnlyRankZeroOfSeveralBringsAUniqueId) {
  EXPECT_EQ(NcclAddress::UniqueIdBytes(0, 1), 0u);
  EXPECT_EQ(NcclAddress::UniqueIdBytes(0, 2), kNcclUniqueIdBytes);
  EXPECT_EQ(NcclAddress::UniqueIdBytes(1, 2), 0u);
}

TEST(NcclAddressTest, EveryTruncationIsRefused) {
  for (const int rank : {0, 1}) {
    const std::string blob = EncodeNcclAddress(AddressOf(rank, 2));
    for (size_t length = 0; length < blob.size(); ++length) {
      EXPECT_EQ(Parse(blob.substr(0, length), rank, 2).code(), absl::StatusCode::kInvalidArgument) << length;
    }
  }
}

TEST(NcclAddressTest, BytesBehindTheEndAreRefused) {
  for (const int rank : {0, 1}) {
    EXPECT_THAT(Parse(EncodeNcclAddress(AddressOf(rank, 2)) + "x", rank, 2).message(), HasSubstr("unique id of"));
  }
}

TEST(NcclAddressTest, AnotherRankOrSizeIsRefused) {
  const std::string blob = EncodeNcclAddress(AddressOf(1, 3));
  EXPECT_THAT(Parse(blob, 2, 3).message(), HasSubstr("expected rank 2 of 3, got 1 of 3"));
  EXPECT_THAT(Parse(blob, 1, 2).message(), HasSubstr("expected rank 1 of 2, got 1 of 3"));
}

TEST(NcclAddressTest, ForeignBytesAndFormatsAreRefused) {
  std::string blob = EncodeNcclAddress(AddressOf(0, 2));
  EXPECT_THAT(Parse("SYGL" + blob.substr(4), 0, 2).message(), HasSubstr("does not start with SYNC"));
  blob[4] = 9;
  EXPECT_THAT(Parse(blob, 0, 2).message(), HasSubstr("expected format 1, got 9"));
}

TEST(NcclAddressTest, UniqueIdWhereNoneBelongsIsRefused) {
  NcclAddress address = AddressOf(1, 2);
  address.unique_id = AddressOf(0, 2).unique_id;
  EXPECT_THAT(Parse(EncodeNcclAddress(address), 1, 2).message(), HasSubstr("expected a unique id of 0 bytes"));
  address = AddressOf(0, 2);
  address.unique_id.clear();
  EXPECT_THAT(Parse(EncodeNcclAddress(address), 0, 2).message(), HasSubstr("expected a unique id of 128 bytes"));
}

// Random bytes must give a Status or a well-formed address.
TEST(NcclAddressTest, MutatedBlobsAreParsedOrRefused) {
  std::mt19937 random(1);
  const std::string blob = EncodeNcclAddress(AddressOf(0, 2));
  for (int round = 0; round < 100'000; ++round) {
    std::string mutated = blob;
    const int num_mutations = 1 + random() % 4;
    for (int idx = 0; idx < num_mutations; ++idx) mutated[random() % mutated.size()] = static_cast<char>(random());
    if (random() % 4 == 0) mutated.resize(random() % (2 * blob.size()));
    const auto parsed = ParseNcclAddress(mutated, 0, 2);
    if (parsed.ok()) {
      EXPECT_EQ(parsed->unique_id.size(), kNcclUniqueIdBytes);
    } else {
      EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
    }
  }
}

TEST(NcclGroupTest, RanksOnTheirOwnGpusMayMeet) {
  for (const int size : {1, 2, 5}) {
    const auto group = ParseNcclGroup(BlobsOf(size));
    ASSERT_TRUE(group.ok()) << group.status();
    EXPECT_EQ(static_cast<int>(group->size()), size);
  }
}

TEST(NcclGroupTest, TwoRanksOnOneGpuAreBothNamed) {
  std::vector<std::string> blobs = BlobsOf(4);
  NcclAddress twin = AddressOf(3, 4);
  twin.gpu = AddressOf(1, 4).gpu;
  blobs[3] = EncodeNcclAddress(twin);
  const absl::Status refused = ParseNcclGroup(blobs).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.message(), AllOf(HasSubstr("ranks 1 and 3"), HasSubstr("101112131415161718191a1b1c1d1e1f")));
}

TEST(NcclGroupTest, AnotherNcclIsNamed) {
  std::vector<std::string> blobs = BlobsOf(3);
  NcclAddress older = AddressOf(2, 3);
  older.nccl_version = 22707;
  blobs[2] = EncodeNcclAddress(older);
  const absl::Status refused = ParseNcclGroup(blobs).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.message(), HasSubstr("rank 0 runs NCCL 2.28.9, rank 2 runs NCCL 2.27.7"));
}

TEST(NcclGroupTest, OneBadBlobNamesItsRank) {
  std::vector<std::string> blobs = BlobsOf(3);
  blobs[1].clear();
  EXPECT_THAT(ParseNcclGroup(blobs).status().message(), HasSubstr("rank 1: shorter than its header"));
}

}  // namespace
}  // namespace switchyard
